// Package vmtest boots a kernel and an initramfs in QEMU and tells what
// happened: how long each part of the boot took on the guest's own clock, and
// whether the guest said, by a typed event, that it reached its goal.
//
// A guest has two serial ports. The first is its console. On the second it
// writes events, one JSON object a line, the last of which is the done event;
// a boot without a done event has failed, whatever the console shows. The
// word vmtest.events=TTY on the kernel command line names that port.
//
// Each milestone has a time on the guest's clock, which firmware and boot loader
// are not in, and one on the host's, in which they are. What the guest has read
// from its drives until then is asked of QEMU, over its machine protocol, so
// that what firmware and boot loader read is counted, too, and the guest does
// nothing for it. Drives can be made as slow as a class of storage. How much
// memory there is at milestones is told by a program in the tree, which package
// memprobe adds.
//
// The package knows guests, not initramfs builders: it imports the boot
// contract and the standard library.
package vmtest
