// Package boots holds no code but tests: it boots storage-init in QEMU, through
// every backend, from every disk and filesystem, and into every failure.
//
// The full tree is tiny. Its init is the program of package vmtest/guest, which
// looks at the machine it finds itself on and reports what it saw; beside it
// lie a big file, links, and what makes the tree look like initramfs-tools' own,
// so that the builder replaces its switch-root programs. The kernels are
// Debian's generic ones with their signed modules.
//
// A build is made once for all tests that boot it (see spec), and the disks
// under it by each test. What differs between two boots of one build is on the
// kernel command line.
//
// Boots that fail run on a clock that counts instructions, on which a guest
// that waits loses no time: their timeouts are exact, however busy the host is.
package boots
