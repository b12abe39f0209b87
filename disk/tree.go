package disk

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// HintedError is an error against which the user can do something.
type HintedError struct {
	Err  error
	hint string
}

// Error gives the text of Err.
func (e *HintedError) Error() string { return e.Err.Error() }

// Unwrap gives Err.
func (e *HintedError) Unwrap() error { return e.Err }

// Hint says what to do, in a form that can follow "hint: ".
func (e *HintedError) Hint() string { return e.hint }

// CheckTree makes sure that a tree is there and that the programs are that it
// takes to copy it.
func CheckTree(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	need := []struct{ name, hint string }{{"mke2fs", "install e2fsprogs"}}
	switch {
	case info.IsDir():
	case info.Mode().IsRegular():
		need = append(need, struct{ name, hint string }{"tar", "install tar"}, struct{ name, hint string }{"debugfs", "install e2fsprogs"})
		if !actsAsRoot() {
			need = append(need, struct{ name, hint string }{
				"fakeroot", "install fakeroot, or run as root: a tar's owners and device nodes need one of them",
			})
		}
	default:
		return fmt.Errorf("%s is neither a directory nor a tar archive", path)
	}
	for _, n := range need {
		if _, err := tool(n.name); err != nil {
			return &HintedError{err, n.hint}
		}
	}
	return nil
}

// actsAsRoot reports whether programs that are run can make device nodes, or
// believe so.
func actsAsRoot() bool { return os.Geteuid() == 0 || os.Getenv("FAKEROOTKEY") != "" }

// TreeDigest tells trees apart: archives by their bytes, directories by the
// names, kinds, owners, modes, sizes and times of what is in them.
func TreeDigest(ctx context.Context, path string) (string, error) {
	h := sha256.New()
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return "", err
	case info.IsDir():
		err = filepath.WalkDir(path, func(name string, d fs.DirEntry, err error) error {
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			st, ok := info.Sys().(*syscall.Stat_t)
			if !ok {
				return fmt.Errorf("%s: no owner", name)
			}
			size := info.Size()
			if info.IsDir() {
				size = 0 // it is the host's filesystem's
			}
			_, err = fmt.Fprintf(h, "%q %v %d %d %d %d %d\n", strings.TrimPrefix(name, path), info.Mode(), st.Uid, st.Gid, st.Rdev, size, info.ModTime().UnixNano())
			return err
		})
	default:
		var f *os.File
		if f, err = os.Open(path); err != nil {
			return "", err
		}
		defer f.Close()
		_, err = io.Copy(h, f)
	}
	if err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// treeSize is what a directory takes in a filesystem of 4096-byte blocks.
type treeSize struct{ bytes, inodes int64 }

const treeBlock = 4096

func measure(dir string) (treeSize, error) {
	var size treeSize
	type inode struct{ dev, ino uint64 }
	linked := map[inode]bool{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Nlink > 1 && !d.IsDir() {
			id := inode{st.Dev, st.Ino}
			if linked[id] {
				return nil
			}
			linked[id] = true
		}
		size.inodes++
		if d.IsDir() || info.Mode().IsRegular() {
			size.bytes += (max(info.Size(), 1) + treeBlock - 1) / treeBlock * treeBlock
		}
		return nil
	})
	return size, err
}

// planTree sets the size of a filesystem that gets a whole tree.
func (m *maker) planTree(p *Partition, least int64, scratch string) (filler, error) {
	if p.FS != "ext4" || len(p.Files) > 0 {
		return nil, errors.New("a tree needs an ext4 of its own")
	}
	if err := CheckTree(p.Tree); err != nil {
		return nil, err
	}
	dir, wrapper, x, err := m.openTree(p.Tree, scratch)
	if err != nil {
		return nil, err
	}
	size, err := measure(dir)
	if errors.Is(err, fs.ErrPermission) {
		err = &HintedError{err, "run as root"}
	}
	if err != nil {
		return nil, err
	}
	if p.Size == 0 {
		// The journal and the tables take some, and a system needs room to work.
		p.Size = max(size.bytes*5/4+size.inodes*512+64*mib, 256*mib)
	}
	p.Size = roundUp(max(p.Size, least))
	if p.Size < size.bytes {
		return nil, fmt.Errorf("size %d is below the %d of %s", p.Size, size.bytes, p.Tree)
	}
	inodes := max(p.Size/16384, size.inodes*3/2+1024)
	return func(disk *os.File, p *Partition) error {
		err := m.mke2fs(wrapper, disk, p, dir, "-b", strconv.Itoa(treeBlock), "-N", strconv.FormatInt(inodes, 10))
		if err != nil {
			return fmt.Errorf("%s: %w", p.Tree, err)
		}
		if dir != p.Tree {
			if err := os.RemoveAll(scratch); err != nil {
				return err
			}
		}
		if err := m.setXattrs(disk, p, x); err != nil {
			return fmt.Errorf("%s: %w", p.Tree, err)
		}
		return settleExt4(disk, p.Offset, false)
	}, nil
}

// openTree gives a directory with the tree, what mke2fs must run under to see
// its owners and device nodes, and the extended attributes that are not in the
// directory. mke2fs reads tar archives by itself since 1.47.1, if it was built
// so; unpacking works with every version.
func (m *maker) openTree(path, scratch string) (dir string, wrapper []string, x xattrs, err error) {
	info, err := os.Stat(path)
	if err != nil || info.IsDir() {
		return path, nil, nil, err
	}
	if err := os.Mkdir(scratch, 0o700); err != nil {
		return "", nil, nil, err
	}
	dir = filepath.Join(scratch, "tree")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", nil, nil, err
	}
	var unpacker []string
	if !actsAsRoot() {
		fakeroot, err := exec.LookPath("fakeroot")
		if err != nil {
			return "", nil, nil, err
		}
		state := filepath.Join(scratch, "fakeroot")
		unpacker = []string{fakeroot, "-s", state, "--"}
		wrapper = []string{fakeroot, "-i", state, "--"}
	}
	err = m.run(unpacker, "tar", "-C", dir, "--force-local", "--numeric-owner", "--same-owner", "--delay-directory-restore",
		"--no-xattrs", "--no-acls", "--no-selinux", "-xpf", path)
	if err != nil {
		return "", nil, nil, err
	}
	x, err = m.readXattrs(path)
	return dir, wrapper, x, err
}
