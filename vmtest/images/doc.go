// Package images holds no code but tests: kernels mount what the EROFS writer
// makes, and a guest reads every file of it.
//
// A boot looks at many images, each in a partition of its own. The guest sends
// digests of what system calls tell it about the paths below each directory of
// the root; the tests compute the same digests from the tree that the writer was
// given. So neither side has anything of the writer or of the project's reader.
//
// INITOVERLAYFS_VM=1 asks for the options that differ in the format, and =full
// for all combinations and for large trees.
package images
