// Storage-init is PID 1 of the mini-initramfs. In a full tree the same program
// stands under the names of the switch-root programs that do not know an
// overlay root, and does their work; see package switchroot.
package main

import (
	"initoverlayfs/storageinit"
	"initoverlayfs/storageinit/switchroot"
)

func main() {
	sys := &storageinit.Linux{}
	argv := sys.Args()
	role, ok := switchroot.Role(argv)
	if !ok {
		storageinit.Run(sys)
	}
	if err := switchroot.Main(sys, role, argv); err != nil {
		sys.Fail(role + ": " + err.Error())
	}
}
