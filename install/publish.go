package install

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"initoverlayfs/builder"
	"initoverlayfs/initrd/bootconf"
)

// Modes of published files: an initramfs may hold secrets, a manifest does not.
const (
	privateMode = 0o600
	publicMode  = 0o644
)

// publication is what goes into the folders of a new generation.
type publication struct {
	path string // on this system
	from string // file that it is a copy of; empty: text
	text []byte
	size int64
	mode os.FileMode
}

// publications lists the files of a built pair in the order in which they get
// their names: what another one refers to comes first.
func (i *installation) publications(m *bootconf.Manifest, g *Generation) ([]publication, error) {
	m.Installed = &bootconf.ManifestInstalled{
		Generation: g.Number, Mini: g.Mini, Image: g.Image, Source: g.Source,
		Bootfs: i.conf.Bootfs.String(), FS: i.conf.FS,
	}
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, err
	}
	text = append(text, '\n')
	g.ManifestSHA256 = digest(text)
	var list []publication
	if g.Image != "" {
		list = append(list, publication{path: i.m.path(g.Image), from: filepath.Join(i.work, m.Image.File), size: m.Image.Size, mode: privateMode})
	}
	return append(list,
		publication{path: i.m.path(g.Mini), from: filepath.Join(i.work, m.Mini.File), size: m.Mini.Size, mode: privateMode},
		publication{path: i.m.path(g.Manifest), text: text, size: int64(len(text)), mode: publicMode}), nil
}

// spaceReserve is what the folders and a boot entry take, generously, in bytes.
const spaceReserve = 256 << 10

// checkSpace makes sure that the files fit before the first of them is written.
func checkSpace(list []publication, existing func(string) string) error {
	type demand struct {
		dir               string
		need, free, block int64 // bytes
	}
	demands := map[uint64]*demand{}
	var order []uint64
	for _, p := range list {
		dir := existing(p.path)
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err != nil {
			return fmt.Errorf("stat %s: %w", dir, err)
		}
		d := demands[st.Dev]
		if d == nil {
			var fs unix.Statfs_t
			if err := unix.Statfs(dir, &fs); err != nil {
				return fmt.Errorf("statfs %s: %w", dir, err)
			}
			d = &demand{dir: dir, need: spaceReserve, free: int64(fs.Bavail) * fs.Bsize, block: fs.Bsize}
			demands[st.Dev] = d
			order = append(order, st.Dev)
		}
		d.need += (p.size + d.block - 1) / d.block * d.block
	}
	for _, dev := range order {
		if d := demands[dev]; d.need > d.free {
			return &builder.HintedError{
				Err:    fmt.Errorf("no space in %s: the new pair needs %d bytes, %d are free", d.dir, d.need, d.free),
				Advice: "remove a kernel that is no longer booted, or put the images on another filesystem with image_dir",
			}
		}
	}
	return nil
}

// existingParent gives the nearest folder above path that is there.
func existingParent(path string) string {
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		if isDir(dir) || dir == filepath.Dir(dir) {
			return dir
		}
	}
}

// publish writes the files of a generation beside their names, makes them
// durable and gives them their names. If it fails the new folders are removed:
// nothing refers to them yet.
func (i *installation) publish(ctx context.Context, list []publication, number int) (err error) {
	if err := checkSpace(list, existingParent); err != nil {
		return err
	}
	dirs := i.generationDirs(number)
	defer func() {
		if err != nil {
			err = errors.Join(err, removeAll(dirs))
		}
	}()
	for _, dir := range dirs {
		if err := makeDurable(dir); err != nil {
			return err
		}
	}
	for _, p := range list {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := builder.WriteFile(p.path, p.mode, p.copyTo)
		if err != nil {
			return fmt.Errorf("write %s: %w", p.path, err)
		}
	}
	return i.flush(ctx, dirs)
}

func (p *publication) copyTo(f *os.File) error {
	if p.from == "" {
		_, err := f.Write(p.text)
		return err
	}
	in, err := os.Open(p.from)
	if err != nil {
		return err
	}
	defer in.Close()
	n, err := io.Copy(f, in)
	if err == nil && n != p.size {
		err = fmt.Errorf("%s has %d bytes, not %d", p.from, n, p.size)
	}
	return err
}

// flush freezes and thaws the filesystems of some folders, each once.
func (i *installation) flush(ctx context.Context, dirs []string) error {
	seen := map[uint64]bool{}
	for _, dir := range dirs {
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err != nil {
			return fmt.Errorf("stat %s: %w", dir, err)
		}
		if seen[st.Dev] {
			continue
		}
		seen[st.Dev] = true
		if err := i.o.Freeze(ctx, dir); err != nil {
			return err
		}
	}
	return nil
}

// generationDirs are the folders of a generation, on this system.
func (i *installation) generationDirs(number int) []string {
	name := strconv.Itoa(number)
	dirs := []string{filepath.Join(i.dir, name)}
	if i.imageDir != i.dir {
		dirs = append(dirs, filepath.Join(i.imageDir, name))
	}
	return dirs
}

// makeDurable makes a folder and those above it, so that they outlive a power
// cut.
func makeDurable(dir string) error {
	if isDir(dir) {
		return nil
	}
	parent := filepath.Dir(dir)
	if err := makeDurable(parent); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	return builder.SyncDir(parent)
}

func removeAll(dirs []string) error {
	var all error
	for _, dir := range dirs {
		all = errors.Join(all, os.RemoveAll(dir))
	}
	return all
}
