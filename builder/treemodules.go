package builder

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"regexp"
	"slices"

	"initoverlayfs/builder/kmod"
	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/initrd/compress"
	"initoverlayfs/initrd/cpio"
)

// Why a module of the full tree is not as it was.
const (
	reasonUnpacked         = "stored unpacked, so that no boot has to do it"
	reasonStripped         = "stored without its signature, as asked"
	reasonUnpackedStripped = reasonUnpacked + ", and without its signature, as asked"
)

// moduleName is that of a module's file, packed or not.
var moduleName = regexp.MustCompile(`\.ko(\.xz|\.zst|\.gz)?$`)

// modulesOptions say what is done to the modules of a full tree.
type modulesOptions struct {
	unpack, strip bool
	temp          string // folder for temporary files
	warn          func(string)
}

// storeModules stores the packed modules of a tree unpacked, or modules without
// their signatures, and gives the changed paths, sorted.
//
// A packed module has to be read whole and unpacked at each boot, by xz ten times
// as slowly as the image's LZ4; that the image grows is the price. The name
// stays, because modules.dep and modules.dep.bin have it: libkmod tells packed
// modules by their first bytes, in every version, and so does busybox, which at
// most tries the kernel's own unpacker first. In a tree of which it is not known
// what loads its modules they stay packed.
//
// A module that cannot be unpacked stays as it is, with a warning: it could not
// be loaded before either. So does one whose other names are no modules, and
// one that carries a digest of its content as an attribute.
//
// What is unpacked goes to a temporary file, so memory does not grow with it.
func (t *fullTree) storeModules(ctx context.Context, kind, kver string, o modulesOptions) ([]bootconf.Change, error) {
	switch kind {
	case bootconf.KindDracut, bootconf.KindDracutSystemd, bootconf.KindInitramfsTools, bootconf.KindMkinitcpio:
	default:
		o.unpack = false
	}
	if !o.unpack && !o.strip {
		return nil, nil
	}
	modules := modulesOf(t.Tree, kver)
	if len(modules) == 0 {
		return nil, nil
	}
	f, err := os.CreateTemp(o.temp, "initoverlayfs-modules-")
	if err != nil {
		return nil, err
	}
	// The contents stay in the file until the image is written; close closes it.
	t.modules = f
	if err := os.Remove(f.Name()); err != nil {
		return nil, err
	}
	s := moduleStore{tree: t, options: o, in: bufio.NewReaderSize(nil, 64<<10)}
	var changes []bootconf.Change
	for _, m := range modules {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		reason, err := s.store(m.node)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", m.paths[0], err)
		}
		for _, p := range m.paths {
			if reason != "" {
				changes = append(changes, bootconf.Change{Path: p, Reason: reason})
			}
		}
		if s.damage != nil {
			o.warn(fmt.Sprintf("module %s is left as it is: %v", m.paths[0], s.damage))
			s.damage = nil
		}
	}
	return sortedChanges(changes), nil
}

// sortedChanges sorts changes by path.
func sortedChanges(changes []bootconf.Change) []bootconf.Change {
	slices.SortFunc(changes, func(a, b bootconf.Change) int { return bytes.Compare([]byte(a.Path), []byte(b.Path)) })
	return changes
}

// treeModule is the file of a module under all its names.
type treeModule struct {
	node  *cpio.Node
	paths []string
}

// modulesOf gives the modules that lie in the module directory of a kernel and
// whose contents may be replaced.
func modulesOf(tree *cpio.Tree, kver string) []treeModule {
	var modules []treeModule
	index := make(map[*cpio.Node]int)
	for dir, root := range dirNodes(tree, []string{"lib/modules/" + kver, "usr/lib/modules/" + kver}) {
		_ = cpio.NewTree(root).Walk(func(p string, n *cpio.Node) error {
			if n.Type() != cpio.TypeRegular || n.Size == 0 || !moduleName.MatchString(p) {
				return nil
			}
			i, known := index[n]
			if !known {
				i = len(modules)
				index[n] = i
				modules = append(modules, treeModule{node: n})
			}
			modules[i].paths = append(modules[i].paths, path.Join(dir, p))
			return nil
		})
	}
	modules = slices.DeleteFunc(modules, func(m treeModule) bool {
		_, ima := m.node.Xattrs["security.ima"]
		_, evm := m.node.Xattrs["security.evm"]
		return len(m.paths) != m.node.NLink || ima || evm
	})
	for _, m := range modules {
		slices.Sort(m.paths)
	}
	slices.SortFunc(modules, func(a, b treeModule) int { return bytes.Compare([]byte(a.paths[0]), []byte(b.paths[0])) })
	return modules
}

// moduleStore replaces contents by what they are to be.
type moduleStore struct {
	tree    *fullTree
	options modulesOptions
	in      *bufio.Reader
	end     int64 // of what is in the tree's file of modules
	damage  error // of the module that was stored last
}

// store replaces the content of one file and says why; an empty reason is that
// of a content that stays.
func (s *moduleStore) store(n *cpio.Node) (reason string, err error) {
	body, err := s.tree.writer.Open(n.Ref)
	if err != nil {
		return "", err
	}
	defer body.Close()
	source := &checkedReader{r: body}
	in := s.in
	in.Reset(source)
	format, packed := packedModule(in)
	if source.err != nil || packed && !s.options.unpack || !packed && !s.options.strip {
		return "", source.err
	}
	out := &checkedWriter{w: io.NewOffsetWriter(s.tree.modules, s.end)}
	size, err := kmod.Unpack(out, in, format)
	if fatal := errors.Join(source.err, out.err); fatal != nil {
		return "", fatal
	}
	if err != nil {
		s.damage = fmt.Errorf("near offset %d: %w", source.n-int64(in.Buffered()), err)
		return "", nil
	}
	content := io.NewSectionReader(s.tree.modules, s.end, size)
	signature, err := s.signature(content)
	if signature < 0 || err != nil {
		return "", err
	}
	if signature == 0 && !packed {
		return "", nil
	}
	size -= signature
	ref, err := s.tree.writer.Add(io.NewSectionReader(s.tree.modules, s.end, size), size)
	if err != nil {
		return "", err
	}
	if err := s.tree.writer.Delete(n.Ref); err != nil {
		return "", err
	}
	n.Ref, n.Size = ref, size
	s.end += size
	switch {
	case signature == 0:
		return reasonUnpacked, nil
	case !packed:
		return reasonStripped, nil
	}
	return reasonUnpackedStripped, nil
}

// signature gives the size of what is to be cut off an unpacked module; a
// negative size tells that it is damaged.
func (s *moduleStore) signature(module *io.SectionReader) (int64, error) {
	head := make([]byte, len(elf.ELFMAG))
	if _, err := module.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	if string(head) != elf.ELFMAG {
		s.damage = errors.New("not an ELF file")
		return -1, nil
	}
	if !s.options.strip {
		return 0, nil
	}
	tail := make([]byte, min(kmod.SignatureTailBytes, module.Size()))
	if _, err := module.ReadAt(tail, module.Size()-int64(len(tail))); err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	size, err := kmod.SignatureSize(tail, module.Size())
	if err != nil {
		s.damage = err
		return -1, nil
	}
	return size, nil
}

// packedModule tells how the module at the beginning of in is packed, by the
// bytes that libkmod looks at.
func packedModule(in *bufio.Reader) (format compress.Format, packed bool) {
	head, _ := in.Peek(2) // of what is shorter there is nothing to tell
	switch format, _ := compress.Detect(head); format {
	case compress.XZ, compress.Zstd, compress.Gzip:
		return format, true
	}
	return compress.None, false
}

// checkedReader counts, and keeps an error of its source: what is read from it
// need not be at fault then.
type checkedReader struct {
	r   io.Reader
	n   int64
	err error
}

func (c *checkedReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		c.err = err
	}
	return n, err
}

// checkedWriter keeps an error of its file.
type checkedWriter struct {
	w   io.Writer
	err error
}

func (c *checkedWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	if err != nil {
		c.err = err
	}
	return n, err
}
