package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"initoverlayfs/vmtest"
)

// check does the named check; what it gives goes into the done event.
func (g *guest) check(name, argument string) (any, error) {
	switch name {
	case "args":
		return map[string]any{"argv": os.Args, "env": os.Environ(), "mounted": g.mounted}, nil
	case "modules":
		return modules()
	case "loop_dio":
		return loops()
	case "dax":
		return isDAX(argument)
	case "cached_growth":
		return cachedGrowth(argument)
	case "overlay_write":
		return overlayWrite(argument)
	case "tree_digest":
		return g.treeDigest()
	case "exists":
		_, err := os.Lstat(argument)
		return err == nil, nil
	case "read":
		return readFiles(argument)
	case "read_device":
		return readDevice(argument)
	case "list":
		return listFolders(argument)
	case "run":
		return runPrograms(argument)
	case "script":
		return runScript(argument)
	case "copy_self":
		return true, copySelf(argument)
	case "old_root":
		return oldRoot()
	case "insmod":
		return true, insmod(argument)
	case "dax_faults":
		return daxFaults(argument)
	case "images":
		return g.images()
	}
	return nil, errors.New("unknown")
}

// modules gives the names of the loaded modules.
func modules() ([]string, error) {
	text, err := os.ReadFile("/proc/modules")
	if err != nil {
		return nil, err
	}
	names := []string{}
	for line := range strings.Lines(string(text)) {
		name, _, _ := strings.Cut(line, " ")
		names = append(names, name)
	}
	return names, nil
}

// loops gives what sysfs says about each loop device in use.
func loops() (map[string]map[string]string, error) {
	dirs, err := filepath.Glob("/sys/block/loop*/loop")
	if err != nil {
		return nil, err
	}
	all := map[string]map[string]string{}
	for _, dir := range dirs {
		device := map[string]string{}
		for _, name := range []string{"dio", "backing_file", "autoclear", "offset"} {
			value, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				return nil, err
			}
			device[name] = strings.TrimSuffix(string(value), "\n")
		}
		all[filepath.Base(filepath.Dir(dir))] = device
	}
	return all, nil
}

// isDAX says whether the pages of a file are mapped and not copied, also
// where the filesystem that holds it is no longer in the mount table.
func isDAX(path string) (bool, error) {
	var s unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_BASIC_STATS, &s); err != nil {
		return false, fmt.Errorf("statx %s: %w", path, err)
	}
	if s.Attributes_mask&unix.STATX_ATTR_DAX == 0 {
		return false, fmt.Errorf("statx %s: the kernel does not say", path)
	}
	return s.Attributes&unix.STATX_ATTR_DAX != 0, nil
}

// cachedGrowth reads a file and gives its size in bytes and by how many kB
// the page cache grew.
func cachedGrowth(path string) (any, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	before, err := meminfo("Cached")
	if err != nil {
		return nil, err
	}
	n, err := io.Copy(io.Discard, f)
	if err != nil {
		return nil, err
	}
	after, err := meminfo("Cached")
	if err != nil {
		return nil, err
	}
	return map[string]int64{"bytes": n, "growth_kb": after - before}, nil
}

// overlayWrite changes and makes files in the root, and writes until it is
// full or limit bytes are written.
func overlayWrite(limit string) (any, error) {
	most := int64(1 << 30)
	if limit != "" {
		var err error
		if most, err = strconv.ParseInt(limit, 10, 64); err != nil {
			return nil, err
		}
	}
	const text = "written by the guest"
	name := "/.vmtest-write"
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		return nil, err
	}
	got, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	if string(got) != text {
		return nil, fmt.Errorf("read back %q, want %q", got, text)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs("/", &fs); err != nil {
		return nil, fmt.Errorf("statfs /: %w", err)
	}
	f, err := os.Create(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	block := make([]byte, 1<<20)
	var written int64
	full := false
	for written < most && !full {
		n, err := f.Write(block)
		written += int64(n)
		full = errors.Is(err, unix.ENOSPC)
		if err != nil && !full {
			return nil, err
		}
	}
	if err := os.Remove(name); err != nil {
		return nil, err
	}
	return map[string]any{
		"written_bytes": written, "enospc": full,
		"size_bytes": int64(fs.Blocks) * fs.Bsize,
	}, nil
}

// treeDigest sends an event for each path of the root filesystem, also of
// those that a mount covers. It gives their number.
func (g *guest) treeDigest() (any, error) {
	// A copy of the root mount alone has nothing mounted below.
	fd, err := unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open_tree /: %w", err)
	}
	// It goes with the guest: closing it would give nobody anything.
	root := fmt.Sprintf("/proc/self/fd/%d/", fd)
	count := 0
	err = filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		e, err := entry(path)
		if err != nil {
			return err
		}
		e.Path = strings.TrimPrefix(strings.TrimPrefix(path, root), "/")
		if e.Path == "" {
			e.Path = "."
		}
		count++
		return g.send(vmtest.EventEntry, e)
	})
	return map[string]int{"entries": count}, err
}

func entry(path string) (e vmtest.Entry, err error) {
	var s unix.Stat_t
	if err := unix.Lstat(path, &s); err != nil {
		return e, fmt.Errorf("lstat %s: %w", path, err)
	}
	e = vmtest.Entry{
		Mode: s.Mode, UID: s.Uid, GID: s.Gid, MTime: s.Mtim.Sec, Nsec: s.Mtim.Nsec,
		NLink: uint64(s.Nlink), //nolint:unconvert // 32 bits wide on arm64
	}
	switch s.Mode & unix.S_IFMT {
	case unix.S_IFCHR, unix.S_IFBLK:
		e.Major, e.Minor = unix.Major(s.Rdev), unix.Minor(s.Rdev)
	case unix.S_IFLNK:
		e.Size = s.Size
		e.Target, err = os.Readlink(path)
	case unix.S_IFREG:
		e.Size = s.Size
		e.SHA256, err = digest(path, e.Size)
	}
	return e, err
}

func digest(path string, size int64) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if size < vmtest.SampledBytes {
		if _, err := io.Copy(h, f); err != nil {
			return "", err
		}
		return hex.EncodeToString(h.Sum(nil)), nil
	}
	for offset, length := range vmtest.Samples(size) {
		if n, err := io.Copy(h, io.NewSectionReader(f, offset, length)); n != length {
			return "", fmt.Errorf("read %s at %d: %d of %d bytes: %w", path, offset, n, length, err)
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
