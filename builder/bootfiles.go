package builder

import (
	"bufio"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"initoverlayfs/initrd/cpio"
)

// BootFiles says which files of a tree are laid out to be read at every boot:
// in front, in the order of their use, and not compressed. The zero value is none.
type BootFiles struct {
	Init  bool     // the init, the programs of bootPrograms, and what they are linked to
	Paths []string // these, in the order of their use
}

// ParseBootFiles reads `init`, `none`, or the file of that name with a path a
// line, and comments that begin with #.
func ParseBootFiles(value string) (BootFiles, error) {
	switch value {
	case "init":
		return BootFiles{Init: true}, nil
	case "none":
		return BootFiles{}, nil
	}
	text, err := os.ReadFile(value)
	if err != nil {
		return BootFiles{}, err
	}
	var b BootFiles
	lines := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimRight(lines.Text(), "\r")
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
		case !strings.HasPrefix(line, "/") || strings.ContainsRune(line, 0):
			return BootFiles{}, fmt.Errorf("%s:%d: %q is not an absolute path", value, n, line)
		default:
			b.Paths = append(b.Paths, line)
		}
	}
	if err := lines.Err(); err != nil {
		return BootFiles{}, fmt.Errorf("%s: %w", value, err)
	}
	if len(b.Paths) == 0 {
		return BootFiles{}, fmt.Errorf("%s: names no path", value)
	}
	return b, nil
}

// contentOpener gives the contents of a tree's files.
type contentOpener interface {
	Open(ref int64) (io.ReadCloser, error)
}

// bootOrder is the place of nodes among those that every boot reads, from 1 on.
type bootOrder map[*cpio.Node]uint32

// order finds the nodes in a tree.
func (b BootFiles) order(tree *cpio.Tree, contents contentOpener) (bootOrder, error) {
	f := bootFinder{tree: tree, contents: contents, order: bootOrder{}}
	if b.Init {
		if err := f.init(); err != nil {
			return nil, err
		}
	}
	found := len(b.Paths) == 0
	for _, name := range b.Paths {
		found = f.mark(name) != nil || found
	}
	if !found {
		return nil, errors.New("the list of boot files names no file of it")
	}
	return f.order, nil
}

type bootFinder struct {
	tree      *cpio.Tree
	contents  contentOpener
	order     bootOrder
	libraries map[string][]string // paths by name
}

// mark gives the node at name its place, and before it the directories and
// symlinks on the way. It gives the node, or nil if there is none.
func (f *bootFinder) mark(name string) *cpio.Node {
	n := f.tree.Resolve(name)
	if n == nil {
		return nil
	}
	at := ""
	for part := range strings.SplitSeq(strings.Trim(path.Clean(name), "/"), "/") {
		dir := f.tree.Resolve(at)
		if dir == nil || !dir.IsDir() {
			break
		}
		at += "/" + part
		f.add(dir.Children[part])
		f.add(f.tree.Resolve(at))
	}
	return n
}

func (f *bootFinder) add(n *cpio.Node) {
	if n != nil && f.order[n] == 0 && n != f.tree.Root() {
		f.order[n] = uint32(len(f.order) + 1)
	}
}

// bootPrograms are those that an init of systemd, dracut or initramfs-tools
// starts at every boot, in the order of their use.
var bootPrograms = []string{
	"/init", "/sbin/init",
	"/usr/lib/systemd/systemd-executor", "/lib/systemd/systemd-executor",
	"/usr/lib/systemd/systemd-journald", "/lib/systemd/systemd-journald",
	"/usr/lib/systemd/systemd-udevd", "/lib/systemd/systemd-udevd",
	"/usr/bin/udevadm", "/bin/udevadm",
	"/usr/bin/kmod", "/bin/kmod",
}

// init marks the programs of bootPrograms with what they are linked to.
func (f *bootFinder) init() error {
	for _, name := range bootPrograms {
		if err := f.program(name, 0); err != nil {
			return err
		}
	}
	return nil
}

// maxProgramDepth ends what refers to itself.
const maxProgramDepth = 16

// maxProgramSize is more than programs and libraries of an initramfs have; what
// is larger is not looked into.
const maxProgramSize = 64 << 20

// program marks a program or library, and what it needs: the interpreter of a
// script, or the loader and the libraries of an ELF file. What is not there, or
// is neither, is passed over.
func (f *bootFinder) program(name string, depth int) error {
	n := f.tree.Resolve(name)
	if n == nil || n.Type() != cpio.TypeRegular || n.Size == 0 || n.Size > maxProgramSize || depth > maxProgramDepth || f.order[n] > 0 {
		return nil
	}
	body, err := f.read(n)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	f.mark(name)
	if line, ok := bytes.CutPrefix(body, []byte("#!")); ok {
		line, _, _ = bytes.Cut(line[:min(len(line), 256)], []byte("\n"))
		if words := bytes.Fields(line); len(words) > 0 {
			return f.program(string(words[0]), depth+1)
		}
		return nil
	}
	for _, needed := range f.needs(name, body) {
		if err := f.program(needed, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (f *bootFinder) read(n *cpio.Node) ([]byte, error) {
	r, err := f.contents.Open(n.Ref)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// needs gives the paths of an ELF file's loader and libraries.
func (f *bootFinder) needs(name string, body []byte) (paths []string) {
	e, err := elf.NewFile(bytes.NewReader(body))
	if err != nil {
		return nil
	}
	for _, p := range e.Progs {
		if p.Type == elf.PT_INTERP && p.Filesz <= uint64(len(body)) {
			if loader, err := io.ReadAll(p.Open()); err == nil {
				paths = append(paths, strings.TrimRight(string(loader), "\x00"))
			}
		}
	}
	var dirs []string
	for _, tag := range []elf.DynTag{elf.DT_RUNPATH, elf.DT_RPATH} {
		values, _ := e.DynString(tag)
		for _, v := range values {
			dirs = append(dirs, strings.Split(strings.ReplaceAll(v, "$ORIGIN", path.Dir(name)), ":")...)
		}
	}
	libraries, _ := e.ImportedLibraries()
	for _, library := range libraries {
		if p := f.library(library, dirs); p != "" {
			paths = append(paths, p)
		}
	}
	return paths
}

// library gives the path of a library: in one of dirs, or else where libraries
// are, the shortest first, as the loader's own directories are.
func (f *bootFinder) library(name string, dirs []string) string {
	for _, dir := range dirs {
		if p := path.Join("/", dir, name); f.tree.Resolve(p) != nil {
			return p
		}
	}
	if f.libraries == nil {
		f.libraries = make(map[string][]string)
		_ = f.tree.Walk(func(p string, n *cpio.Node) error {
			if base := path.Base(p); strings.Contains(base, ".so") && !n.IsDir() {
				f.libraries[base] = append(f.libraries[base], "/"+p)
			}
			return nil
		})
	}
	found := f.libraries[name]
	if len(found) == 0 {
		return ""
	}
	return slices.MinFunc(found, func(a, b string) int { return len(a) - len(b) }) // sorted, so the first of them
}

// identity tells apart orders; a tree without boot files has none.
func (o bootOrder) identity(paths map[*cpio.Node]string) string {
	var s strings.Builder
	for _, n := range slices.SortedFunc(maps.Keys(o), func(a, b *cpio.Node) int { return int(o[a]) - int(o[b]) }) {
		fmt.Fprintf(&s, "boot %q\n", paths[n])
	}
	return s.String()
}
