// Package powercut shows what a disk may hold when the power goes: it reads the
// log of what a guest wrote to it (vmtest.Drive.WriteLog), and applies any part
// of that to the disk of before.
//
// A disk has a cache. What it has acknowledged may be lost until it was told to
// flush, and in any order. So there are as many states after a power cut as
// there are flushes, and between two of them as many as there are subsets of
// what was written.
package powercut
