package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"initoverlayfs/vmtest"
)

// insmod loads the modules in a folder, by the order of their names.
func insmod(dir string) error {
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, file := range files {
		module, err := os.ReadFile(filepath.Join(dir, file.Name()))
		if err != nil {
			return err
		}
		if err := unix.InitModule(module, ""); err != nil {
			return fmt.Errorf("load %s: %w", file.Name(), err)
		}
	}
	return nil
}

// images mounts each of the images in turn, and sends what it sees of it. It
// gives their number.
func (g *guest) images() (any, error) {
	text, err := os.ReadFile(vmtest.ImagesPath)
	if err != nil {
		return nil, err
	}
	var images []vmtest.Image
	if err := json.Unmarshal(text, &images); err != nil {
		return nil, fmt.Errorf("%s: %w", vmtest.ImagesPath, err)
	}
	const dir = "/image"
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	for _, image := range images {
		seen := vmtest.ImageSeen{Name: image.Name, Trees: map[string]vmtest.TreeSeen{}}
		if err := unix.Mount(image.Device, dir, "erofs", unix.MS_RDONLY, image.Options); err != nil {
			seen.Mount = err.Error()
		} else {
			if err := lookAtImage(dir, image.Backward, seen.Trees); err != nil {
				seen.Walk = err.Error()
			}
			if err := unix.Unmount(dir, 0); err != nil {
				return nil, fmt.Errorf("umount %s: %w", image.Name, err)
			}
		}
		if err := g.send(vmtest.EventImage, seen); err != nil {
			return nil, err
		}
	}
	return map[string]int{"images": len(images)}, nil
}

// lookAtImage fills in the digests of a mounted image.
func lookAtImage(root string, backward bool, trees map[string]vmtest.TreeSeen) error {
	hashes := map[string]hash.Hash{}
	first := map[uint64]string{} // path by inode number
	var line []byte
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		e, err := entry(path)
		if err != nil {
			return err
		}
		if e.Path, err = filepath.Rel(root, path); err != nil {
			return err
		}
		if backward && e.Size > 0 && e.Size < vmtest.SampledBytes && d.Type().IsRegular() {
			if e.SHA256, err = digestBackward(path, e.Size); err != nil {
				return err
			}
		}
		if e.Xattrs, err = xattrs(path); err != nil {
			return err
		}
		if d.IsDir() {
			if err := lookUpMissing(path); err != nil {
				return err
			}
		} else if e.NLink > 1 {
			var s unix.Stat_t
			if err := unix.Lstat(path, &s); err != nil {
				return err
			}
			if e.First = first[s.Ino]; e.First == "" {
				first[s.Ino] = e.Path
			}
		}
		top, _, below := strings.Cut(e.Path, "/")
		if !below && !d.IsDir() {
			top = "."
		}
		if hashes[top] == nil {
			hashes[top] = sha256.New()
		}
		line = e.Append(line[:0])
		hashes[top].Write(line)
		t := trees[top]
		t.Entries++
		trees[top] = t
		return nil
	})
	for top, h := range hashes {
		trees[top] = vmtest.TreeSeen{Entries: trees[top].Entries, SHA256: hex.EncodeToString(h.Sum(nil))}
	}
	return err
}

// digestBackward is the digest of a file, the end of which is read first.
func digestBackward(path string, size int64) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	// Each read brings in the pages it asks for, and no more.
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM); err != nil {
		return "", fmt.Errorf("fadvise %s: %w", path, err)
	}
	content := make([]byte, size)
	const piece = 29_989 // a prime
	for end := size; end > 0; end -= piece {
		at := max(0, end-piece)
		if _, err := f.ReadAt(content[at:end], at); err != nil {
			return "", fmt.Errorf("read %s at %d: %w", path, at, err)
		}
	}
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:]), nil
}

// xattrs gives all extended attributes of a path, nil if there are none.
func xattrs(path string) (map[string][]byte, error) {
	list := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, list)
	if err != nil {
		return nil, fmt.Errorf("llistxattr %s: %w", path, err)
	}
	if n == 0 {
		return nil, nil
	}
	found := map[string][]byte{}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return nil, fmt.Errorf("lgetxattr %s %s: %w", path, name, err)
		}
		found[name] = value[:n]
	}
	return found, nil
}

// lookUpMissing looks for names before, between and behind those of a directory.
func lookUpMissing(dir string) error {
	for _, name := range []string{"\x01", "none such", "\xff\xff"} {
		var s unix.Stat_t
		if err := unix.Lstat(filepath.Join(dir, name), &s); !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("lstat of a name that %s does not have: %w", dir, err)
		}
	}
	return nil
}
