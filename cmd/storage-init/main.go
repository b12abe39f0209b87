// Storage-init is PID 1 of the mini-initramfs; of one with systemd it is a unit. In
// a full tree the same program stands under the names of the switch-root programs
// that do not know an overlay root, and does their work; see package switchroot. In the
// booted system it gives back the memory that the image was in; see package region.
package main

import (
	"initoverlayfs/storageinit"
	"initoverlayfs/storageinit/region"
	"initoverlayfs/storageinit/switchroot"
)

func main() {
	sys := &storageinit.Linux{}
	argv := sys.Args()
	role, ok := switchroot.Role(argv)
	image, returns := region.Role(argv)
	switch {
	case ok:
		if err := switchroot.Main(sys, role, argv); err != nil {
			sys.Fail(role + ": " + err.Error())
		}
	case storageinit.IsInit():
		storageinit.Run(sys)
	case returns:
		region.Main(sys, image)
	case storageinit.IsUnit(argv):
		sys.Udev = true
		storageinit.RunUnit(sys)
	default:
		// On a running system a boot would begin with mounts and end with a reboot.
		sys.Fail("storage-init: this is PID 1 of a mini-initramfs, or a unit of one with systemd")
	}
}
