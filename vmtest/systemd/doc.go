// Package systemd holds no code but tests: it does with initramfs archives and
// a root disk of real distributions what a user does, through the command line,
// and boots to multi-user.target.
//
// The tests of trees and of bytes need no VM. Of the boots, INITOVERLAYFS_VM=1
// asks for a few and INITOVERLAYFS_VM=full for all; one guest runs at a time,
// because their memory and times are compared.
package systemd
