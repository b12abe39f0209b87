package install

import (
	"path"
	"path/filepath"
	"strings"

	"initoverlayfs/bootentry"
)

// GrubKernels gives the kernels that GRUB's own menu shall have: those whose
// pairs lie below /boot, and that have no entry in a file of its own. bootPath is
// the path of /boot as GRUB sees it.
func GrubKernels(o Options, bootPath string) ([]bootentry.GrubKernel, error) {
	kernels, err := Kernels(o)
	if err != nil {
		return nil, err
	}
	var menu []bootentry.GrubKernel
	for _, kver := range kernels {
		o.KernelVersion = kver
		i, err := prepareKernel(&o, false)
		if err != nil {
			return nil, err
		}
		state, err := readState(i.statePath())
		if err != nil {
			i.warn(err.Error()) // the menu has the other kernels all the same
			continue
		}
		inFiles, err := i.entries()
		if err != nil {
			return nil, err
		}
		linux := "/boot/vmlinuz-" + kver
		if state == nil || len(inFiles) > 0 || !isFile(i.m.path(linux)) {
			continue
		}
		seen := func(name string) string {
			rel, below := strings.CutPrefix(name, "/boot/")
			if !below {
				return ""
			}
			return path.Join("/", bootPath, rel)
		}
		current := state.generation(state.Current)
		k := bootentry.GrubKernel{Version: kver, Linux: seen(linux), Mini: seen(current.Mini)}
		if isFile(i.m.path(current.Source)) && current.Source != "" {
			k.Plain = seen(current.Source)
		}
		if g := state.generation(state.Previous); g != nil {
			k.Previous = seen(g.Mini)
		}
		if k.Mini != "" && i.bootDir == filepath.Clean(i.m.path("/boot")) {
			menu = append(menu, k)
		}
	}
	return menu, nil
}
