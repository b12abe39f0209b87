package builder

import (
	"maps"
	"os"
	"slices"

	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/initrd/cpio"
)

// Where the generators put their switch-root programs.
var switchRootDirs = []string{"usr/bin", "usr/sbin", "bin", "sbin", "bbin"}

const (
	switchRootName = "switch_root" // util-linux, busybox, u-root
	runInitName    = "run-init"    // klibc, busybox
)

// switchRootNames are the names, sorted, under which a tree of this kind calls
// the program that hands over to the real root, and why that program does not
// serve on an overlay.
func switchRootNames(kind string) (names []string, reason string) {
	switch kind {
	case bootconf.KindInitramfsTools:
		return []string{runInitName, switchRootName}, "the original refuses a root that is not a ramfs or tmpfs"
	case bootconf.KindDracut, bootconf.KindMkinitcpio, bootconf.KindUroot:
		return []string{switchRootName}, "the original does not free the memory of an overlay root"
	}
	return nil, ""
}

// replaceSwitchRoot puts the program at programPath in place of the switch-root
// programs of a tree: one file, a hard link under each name that there is. It
// gives the changed paths, sorted.
func replaceSwitchRoot(tree *cpio.Tree, store cpio.Store, kind, programPath string) ([]bootconf.Change, error) {
	if initIsSystemd(tree) {
		return nil, nil
	}
	names, reason := switchRootNames(kind)
	var program *cpio.Node
	var changes []bootconf.Change
	dirs := dirNodes(tree, switchRootDirs)
	for _, dir := range slices.Sorted(maps.Keys(dirs)) {
		d := dirs[dir]
		for _, name := range names {
			old := d.Children[name]
			if old == nil || old.IsDir() {
				continue
			}
			if program == nil {
				var err error
				if program, err = putProgram(store, programPath, old.MTime); err != nil {
					return nil, err
				}
			}
			if err := unlink(store, old); err != nil {
				return nil, err
			}
			d.Children[name] = program
			program.NLink++
			changes = append(changes, bootconf.Change{Path: dir + "/" + name, Reason: reason})
		}
	}
	return changes, nil
}

// dirNodes gives the directories at these paths, each once and by its path
// without symlinks: usr/sbin is often a symlink to bin.
func dirNodes(tree *cpio.Tree, paths []string) map[string]*cpio.Node {
	wanted := make(map[*cpio.Node]bool)
	for _, dir := range paths {
		if n := tree.Resolve(dir); n != nil && n.IsDir() {
			wanted[n] = true
		}
	}
	found := make(map[string]*cpio.Node, len(wanted))
	_ = tree.Walk(func(path string, n *cpio.Node) error {
		if wanted[n] {
			found[path] = n
		}
		return nil
	})
	return found
}

// putProgram stores a program as a node without names.
func putProgram(store cpio.Store, path string, mtime int64) (*cpio.Node, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	n := &cpio.Node{Mode: cpio.TypeRegular | 0o755, MTime: mtime, Size: info.Size()}
	n.Ref, err = store.Put(f, n.Size)
	return n, err
}

// unlink takes one name from a node, and its content with the last one.
func unlink(store cpio.Store, n *cpio.Node) error {
	n.NLink--
	if n.NLink == 0 && n.Type() == cpio.TypeRegular && n.Size > 0 {
		return store.Delete(n.Ref)
	}
	return nil
}
