package builder

import (
	"path"

	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/initrd/cpio"
)

// KindOf tells what generated the full tree, from the files by which each
// generator's own init works; it is one of bootconf.Kind.
func KindOf(tree *cpio.Tree) string {
	has := func(name string) bool { return tree.Resolve(name) != nil }
	switch {
	case has("usr/lib/dracut") || has("lib/dracut"):
		if initIsSystemd(tree) {
			return bootconf.KindDracutSystemd
		}
		return bootconf.KindDracut
	case has("scripts/functions") && has("conf/initramfs.conf"):
		return bootconf.KindInitramfsTools
	case has("init_functions") || (has("config") && has("hooks")):
		return bootconf.KindMkinitcpio
	case has("bbin"):
		return bootconf.KindUroot
	}
	return bootconf.KindUnknown
}

// initIsSystemd reports whether /init is systemd, which pivots to the real root
// by itself.
func initIsSystemd(tree *cpio.Tree) bool {
	n := tree.Lookup("init")
	return n != nil && n.Type() == cpio.TypeSymlink && path.Base(n.Target) == "systemd"
}
