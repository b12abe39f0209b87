package builder

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Files are written as the initramfs generators write theirs: what is inside
// may be secret (keys, password hashes), the manifest is not.
const (
	privateMode = 0o600
	publicMode  = 0o644
)

// pendingFiles are new files of one directory. They are written under temporary
// names beside their final ones and appear only when all of them are complete.
type pendingFiles struct {
	dir   string
	files []pendingFile
}

type pendingFile struct {
	*os.File
	name string // final name in the directory
}

// create begins a file. A path that exists and is not a regular file is refused
// now, when nothing has been replaced yet.
func (p *pendingFiles) create(name string, mode os.FileMode) (*os.File, error) {
	final := filepath.Join(p.dir, name)
	switch info, err := os.Lstat(final); {
	case err == nil && !info.Mode().IsRegular():
		return nil, fmt.Errorf("write %s: in the way is something that is not a regular file", final)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	f, err := os.CreateTemp(p.dir, "."+name+".*.tmp")
	if err != nil {
		return nil, err
	}
	p.files = append(p.files, pendingFile{f, name})
	return f, f.Chmod(mode)
}

// publish makes the files durable and gives them their names, in the order in
// which they were created.
func (p *pendingFiles) publish() error {
	for _, f := range p.files {
		if err := f.Sync(); err != nil {
			return err
		}
	}
	for len(p.files) > 0 {
		f := p.files[0]
		if err := os.Rename(f.Name(), filepath.Join(p.dir, f.name)); err != nil {
			return err
		}
		p.files = p.files[1:]
		// Of a file that takes the place of another one a FAT has freed the
		// data of that before it has written where that of this one is.
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return SyncDir(p.dir)
}

// WriteFile replaces the file at path by what write puts into a new one, which is
// durable before it takes the name: there is always a whole file at path, the
// old one or the new one.
func WriteFile(path string, mode os.FileMode, write func(*os.File) error) error {
	files := pendingFiles{dir: filepath.Dir(path)}
	defer files.discard()
	f, err := files.create(filepath.Base(path), mode)
	if err != nil {
		return err
	}
	if err := write(f); err != nil {
		return err
	}
	return files.publish()
}

// discard removes what was not published. After publish it does nothing.
func (p *pendingFiles) discard() {
	for _, f := range p.files {
		_ = f.Close()
		_ = os.Remove(f.Name())
	}
	p.files = nil
}

// SyncDir makes the names in a folder durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	return errors.Join(err, d.Close())
}
