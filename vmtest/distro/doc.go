// Package distro has the tests of our package in whole Debians: installed,
// upgraded, removed and purged by dpkg, with kernels from the archive, on a disk
// that is then booted by UEFI firmware.
//
// The programs of the Debian run in a chroot whose root and /boot are the disk's
// own ext4 partitions. Its EFI system partition cannot be mounted by every
// kernel, so a tmpfs takes its place, whose files are copied from and to the
// partition. One test has it mounted as what it is, in a user-mode Linux.
package distro
