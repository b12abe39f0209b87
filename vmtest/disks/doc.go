// Package disks holds the boot tests of what `initoverlayfs disk` makes: disks
// that UEFI firmware boots, by each entry of their menu, and the files for
// boards that have the image in memory.
package disks
