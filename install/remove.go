package install

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"initoverlayfs/builder"
)

// Remove removes all that was installed for a kernel: its boot entries first,
// so that none of them names what is gone, then the files. It is an error if
// there is nothing.
func Remove(ctx context.Context, o Options) error {
	i, release, err := begin(&o, false)
	if err != nil {
		return err
	}
	defer release()
	// What a damaged state tells is not needed: all that is removed is ours by
	// its place.
	dirs := []string{i.dir, i.imageDir}
	if state, err := readState(i.statePath()); err == nil && state != nil {
		for _, g := range state.Generations {
			if g.Image != "" {
				dirs = append(dirs, filepath.Dir(filepath.Dir(i.m.path(g.Image)))) // image_dir may have been another
			}
		}
	}
	there := false
	for _, dir := range dirs {
		there = there || isDir(dir)
	}
	if !there {
		return &builder.HintedError{
			Err:    errors.New("nothing is installed for kernel " + o.KernelVersion + " in " + i.bootDir),
			Advice: "`initoverlayfs status` lists what is",
		}
	}
	// Without its state the kernel has no pairs, as GRUB's menu is told.
	if err := os.Remove(i.statePath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if !o.NoEntries {
		if err := i.removeEntries(ctx); err != nil {
			return err
		}
	}
	if err := removeAll(dirs); err != nil {
		return err
	}
	for _, dir := range dirs {
		_ = os.Remove(filepath.Dir(dir)) // the folder of all kernels, when it is empty
	}
	return nil
}

// Kernels lists the kernels for which something is installed.
func Kernels(o Options) ([]string, error) {
	o.KernelVersion = ""
	i, err := prepare(&o, false)
	if err != nil {
		return nil, err
	}
	found, err := filepath.Glob(filepath.Join(escapeGlob(i.dir), "*", stateName))
	if err != nil {
		return nil, err
	}
	var kernels []string
	for _, path := range found {
		kernels = append(kernels, filepath.Base(filepath.Dir(path)))
	}
	return kernels, nil
}
