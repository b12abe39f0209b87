package install

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"initoverlayfs/bootentry"
	"initoverlayfs/builder"
	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/initrd/erofs"
)

// Finding is what the verification of one thing gave.
type Finding struct {
	KernelVersion string `json:"kernel_version"`
	Generation    int    `json:"generation,omitempty"`
	Path          string `json:"path"`
	Problem       string `json:"problem,omitempty"` // empty: it is good
}

// Verdict is the result of a verification.
type Verdict struct {
	Findings []Finding `json:"findings"`
	Boots    bool      `json:"boots"` // nothing was found that would keep a pair from booting
}

// Verify reads all that is published for a kernel again, and compares it with
// what was published and with what storage-init will look for.
func Verify(ctx context.Context, o Options) (*Verdict, error) {
	i, release, err := begin(&o, false)
	if err != nil {
		return nil, err
	}
	defer release()
	state, err := readState(i.statePath())
	if err != nil {
		return nil, err
	}
	if state == nil {
		return nil, fmt.Errorf("nothing is installed for kernel %s in %s", o.KernelVersion, i.bootDir)
	}
	v := &verification{i: i, state: state, verdict: &Verdict{Boots: true}}
	for n := range state.Generations {
		g := &state.Generations[n]
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		i.progress(fmt.Sprintf("reading generation %d of kernel %s", g.Number, o.KernelVersion))
		v.generation(g)
	}
	if !o.NoEntries {
		v.entries()
	}
	return v.verdict, nil
}

type verification struct {
	i       *installation
	state   *State
	verdict *Verdict
}

// found notes what was found of a file.
func (v *verification) found(generation int, path string, err error) {
	f := Finding{KernelVersion: v.i.o.KernelVersion, Generation: generation, Path: path}
	if err != nil {
		f.Problem = err.Error()
		v.verdict.Boots = false
	}
	v.verdict.Findings = append(v.verdict.Findings, f)
}

func (v *verification) generation(g *Generation) {
	m, err := v.manifest(g)
	v.found(g.Number, g.Manifest, err)
	if err != nil {
		return
	}
	v.found(g.Number, g.Mini, v.mini(g, m))
	if g.Image != "" {
		v.found(g.Number, g.Image, v.image(g, m))
	}
	if g.Number == v.state.Current && g.Source != "" {
		_, err := os.Stat(v.i.m.path(g.Source))
		v.found(g.Number, g.Source, err)
	}
}

func (v *verification) manifest(g *Generation) (*bootconf.Manifest, error) {
	path := v.i.m.path(g.Manifest)
	sum, err := digestFile(path)
	if err != nil {
		return nil, err
	}
	if sum != g.ManifestSHA256 {
		return nil, fmt.Errorf("its sha256 is %s, not %s", sum, g.ManifestSHA256)
	}
	return builder.ReadManifest(path)
}

func checkFile(path string, size int64, sha256 string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.Size() != size {
		return fmt.Errorf("it has %d bytes, not %d", info.Size(), size)
	}
	sum, err := digestFile(path)
	if err == nil && sum != sha256 {
		err = fmt.Errorf("its sha256 is %s, not %s", sum, sha256)
	}
	return err
}

// mini checks the mini-initramfs, and that what it tells storage-init leads to
// the image.
func (v *verification) mini(g *Generation, m *bootconf.Manifest) error {
	path := v.i.m.path(g.Mini)
	if err := checkFile(path, m.Mini.Size, m.Mini.SHA256); err != nil {
		return err
	}
	c, err := builder.MiniConfig(path)
	if err != nil {
		return err
	}
	switch {
	case c.ImageUUID.String() != m.Image.UUID:
		return fmt.Errorf("it looks for the image %s, the pair has %s", c.ImageUUID, m.Image.UUID)
	case c.ImageSize != m.Image.Size:
		return fmt.Errorf("it looks for an image of %d bytes, the pair has one of %d", c.ImageSize, m.Image.Size)
	}
	if g.Image == "" {
		return nil
	}
	// Where the image lies now must be where it is looked for.
	p, _, err := locate(filepath.Dir(v.i.m.path(g.Image)))
	if err != nil {
		if v.i.config.set["bootfs"] {
			return nil // of a machine that is not this one
		}
		return err
	}
	if want := filepath.Join(p.path, filepath.Base(g.Image)); c.FS != want {
		return fmt.Errorf("it looks for the image at %s of its filesystem, which is at %s", c.FS, want)
	}
	return p.matches(c.Bootfs)
}

// matches compares a place with a tag that is to name it.
func (p *place) matches(tag bootconf.Tag) error {
	switch {
	case tag.Kind == bootconf.TagUUID && tag.Value != p.uuid:
		return fmt.Errorf("it looks on the filesystem %s, the image lies on that with UUID %s", tag, p.uuid)
	case tag.Kind == bootconf.TagPartUUID && tag.Value != p.partID:
		return fmt.Errorf("it looks on the partition %s, the image lies on that with PARTUUID %s", tag, p.partID)
	}
	return nil
}

func (v *verification) image(g *Generation, m *bootconf.Manifest) error {
	path := v.i.m.path(g.Image)
	if err := checkFile(path, m.Image.Size, m.Image.SHA256); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return erofs.Check(f, m.Image.Size).Err()
}

// entries checks that each boot entry is as it was written.
func (v *verification) entries() {
	p, err := v.i.plan(v.state)
	if p == nil && err == nil {
		return // GRUB's menu has them, which is generated
	}
	var checked map[string]error
	if err == nil {
		checked, err = bootentry.Verify(*p)
	}
	if err != nil {
		v.found(0, v.i.m.name(v.i.bootDir), err)
		return
	}
	for _, name := range slices.Sorted(maps.Keys(checked)) {
		v.found(0, v.i.entryName(name), checked[name])
	}
}
