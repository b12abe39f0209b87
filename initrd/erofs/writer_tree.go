package erofs

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"sort"
	"strings"
)

// Node is a file of the tree to be written. Hard links are one *Node under
// several names; a directory has one name.
type Node struct {
	Mode      uint32 // with the S_IFMT bits of Linux
	UID, GID  uint32
	MTime     int64 // seconds since 1970
	MTimeNsec uint32
	RDevMajor uint32
	RDevMinor uint32
	Size      int64             // of a regular file, bytes
	Ref       int64             // of its content, valid while Size is not 0
	Target    string            // of a symlink
	Xattrs    map[string][]byte // by full name, as "user.x"
	Children  map[string]*Node  // of a directory
	// Boot is the place of a file or directory among those that every boot reads,
	// from 1 on in the order of their use; 0: it is none. Their inodes lie in front
	// of the others, and so do their contents, which are not compressed: all of
	// them are needed, and copying a page is cheaper than decompressing it.
	Boot uint32
}

// plan is the tree as inodes, with the sizes of all that does not depend on how
// contents are encoded.
type plan struct {
	root     *planInode
	packed   *planInode   // the hidden file of fragments, if there are any
	shared   bool         // several inodes have the same content
	inodes   []*planInode // the root, those of Node.Boot, the others: a directory before what it holds, by name
	contents []*planData  // in the order of the inodes
	chunked  []*planData  // the same of those that have chunks, or may have
	xattrs   sharedXattrs
}

// planInode is an inode that will be written.
type planInode struct {
	node     *Node
	path     string // first name, for messages
	nlink    uint32
	size     int64
	extended bool
	xattrs   []byte // with its header
	data     *planData
	parent   *planInode // of a directory
	entries  []planEntry

	layout    Layout
	u         uint32 // block address, number of blocks or device
	indexSize int    // of the indexes behind the attributes
	inline    int    // bytes of content behind all that, in one block
	offset    int64  // in the metadata
}

type planEntry struct {
	name  string
	inode *planInode
}

// planData is a content that will be written, of one inode or of several.
type planData struct {
	source io.ReaderAt
	size   int64
	path   string
	room   int  // a tail of so many bytes fits behind each of the inodes
	packed bool // the content of the hidden file
	boot   bool // read at every boot, so it is not compressed
	chunks chunkPlan

	cuts   []int64  // where an extent must begin, because others refer to it
	copies []copied // in order
	lent   int64    // end of what others refer to
	stored
}

// headSize is the size of the inode with its extended attributes.
func (in *planInode) headSize() int {
	if in.extended {
		return inodeExtendedSize + len(in.xattrs)
	}
	return inodeCompactSize + len(in.xattrs)
}

// room is how many bytes can lie behind the inode, in the same block.
func (in *planInode) room() int { return max(0, blockSize-in.headSize()) }

type planner struct {
	w     *Writer
	id    Identity
	plan  *plan
	seen  map[*Node]*planInode
	datas map[int64]*planData
	equal map[contentKey]*planData
	pack  *packedReader // outlives the planner
}

// contentKey is the same for equal contents.
type contentKey struct {
	size int64
	sum  Sum
}

func (w *Writer) plan(root *Node, id Identity) (*plan, error) {
	if root.Mode&modeType != modeDir {
		return nil, errors.New("the root is not a directory")
	}
	p := &planner{w: w, id: id, plan: &plan{}, seen: make(map[*Node]*planInode),
		datas: make(map[int64]*planData), equal: make(map[contentKey]*planData), pack: &packedReader{}}
	r, err := p.inode("/", root, nil)
	if err != nil {
		return nil, err
	}
	r.parent = r
	p.plan.root = r
	slices.SortStableFunc(p.plan.inodes[1:], func(a, b *planInode) int {
		return cmp.Compare(a.node.Boot-1, b.node.Boot-1) // 0 becomes the largest
	})
	p.plan.xattrs = shareXattrs(p.plan.inodes)
	for _, n := range p.plan.inodes {
		if err := p.finish(n); err != nil {
			return nil, fmt.Errorf("%s: %w", n.path, err)
		}
	}
	return p.plan, p.addPacked()
}

// addPacked adds the hidden file.
func (p *planner) addPacked() error {
	if len(p.pack.contents) == 0 {
		return nil
	}
	ordered, err := bySimilarity(p.pack.contents)
	if err != nil {
		return err
	}
	p.pack.contents = nil
	for _, d := range ordered {
		d.start = uint64(p.pack.size())
		p.pack.contents = append(p.pack.contents, d)
	}
	d := &planData{source: p.pack, size: p.pack.size(), path: "packed contents", packed: true}
	in := &planInode{node: &Node{Mode: modeReg, MTime: p.id.BuildTime, MTimeNsec: p.id.BuildTimeNsec}, path: d.path,
		nlink: 1, size: d.size, extended: d.size > math.MaxUint32, data: d}
	d.room = in.room()
	p.plan.packed = in
	p.plan.inodes = append(p.plan.inodes, in)
	p.plan.contents = append(p.plan.contents, d)
	return nil
}

// inode adds a node and what is below it.
func (p *planner) inode(path string, n *Node, parent *planInode) (*planInode, error) {
	if known, ok := p.seen[n]; ok {
		if n.Mode&modeType == modeDir {
			return nil, fmt.Errorf("%s: directory is also %s", path, known.path)
		}
		if known.nlink == math.MaxUint32 {
			return nil, fmt.Errorf("%s: too many links", path)
		}
		known.nlink++
		return known, nil
	}
	in := &planInode{node: n, path: path, nlink: 1, parent: parent}
	p.seen[n] = in
	p.plan.inodes = append(p.plan.inodes, in)
	var err error
	switch n.Mode & modeType {
	case modeDir:
		err = p.dir(in)
	case modeLnk:
		in.size = int64(len(n.Target))
		if in.size == 0 || in.size > maxSymlinkLen || strings.ContainsRune(n.Target, 0) {
			err = fmt.Errorf("%s: bad symlink target of %d bytes", path, in.size)
		}
	case modeReg:
		in.size = n.Size
	case modeChr, modeBlk:
		if n.RDevMajor > 0xfff || n.RDevMinor > 0xfffff {
			err = fmt.Errorf("%s: device %d:%d has no number in 32 bits", path, n.RDevMajor, n.RDevMinor)
		}
	case modeFifo, modeSock:
	default:
		err = fmt.Errorf("%s: mode %#o has no known file type", path, n.Mode)
	}
	if err == nil && (n.Mode > math.MaxUint16 || n.MTimeNsec > 999_999_999) {
		err = fmt.Errorf("%s: mode %#o or nanoseconds %d out of range", path, n.Mode, n.MTimeNsec)
	}
	return in, err
}

func (p *planner) dir(in *planInode) error {
	in.nlink = 2
	in.entries = append(in.entries, planEntry{".", in}, planEntry{"..", nil})
	prefix := strings.TrimSuffix(in.path, "/") + "/"
	for _, name := range slices.Sorted(maps.Keys(in.node.Children)) {
		if err := checkName(name); err != nil {
			return fmt.Errorf("%s%s: %w", prefix, name, err)
		}
		child, err := p.inode(prefix+name, in.node.Children[name], in)
		if err != nil {
			return err
		}
		if child.entries != nil {
			in.nlink++
		}
		in.entries = append(in.entries, planEntry{name, child})
	}
	slices.SortFunc(in.entries, func(a, b planEntry) int { return strings.Compare(a.name, b.name) })
	return nil
}

func checkName(name string) error {
	switch {
	case name == "" || name == "." || name == "..":
		return errors.New("not a name for a file")
	case len(name) > maxNameLen:
		return fmt.Errorf("name is longer than %d bytes", maxNameLen)
	case strings.ContainsAny(name, "/\x00"):
		return errors.New("name has a slash or a zero byte")
	}
	return nil
}

// finish decides the form of an inode, which needs its links counted and the
// shared attributes known.
func (p *planner) finish(in *planInode) error {
	n := in.node
	var err error
	if in.xattrs, err = p.plan.xattrs.body(n.Xattrs); err != nil {
		return err
	}
	for i := range in.entries {
		if in.entries[i].name == ".." {
			in.entries[i].inode = in.parent
		}
	}
	in.extended = n.MTime != p.id.BuildTime || n.MTimeNsec != p.id.BuildTimeNsec ||
		n.UID > math.MaxUint16 || n.GID > math.MaxUint16 || in.nlink > math.MaxUint16
	if in.entries != nil {
		in.size = dirSize(in.entries)
	}
	if in.size > math.MaxUint32 {
		in.extended = true
	}
	if n.Mode&modeType != modeReg || n.Size == 0 {
		return nil
	}
	c, err := p.w.content(n.Ref)
	if err != nil {
		return err
	}
	if c.size != n.Size {
		return fmt.Errorf("size %d, but its content has %d bytes", n.Size, c.size)
	}
	in.data = p.data(n, c, in.path)
	in.data.room = min(in.data.room, in.room())
	return nil
}

// data finds or adds the content of a node.
func (p *planner) data(n *Node, c *content, path string) *planData {
	ref := n.Ref
	if d := p.datas[ref]; d != nil {
		return d
	}
	d := &planData{source: c.at(), size: c.size, path: path, room: blockSize, boot: n.Boot > 0}
	p.datas[ref] = d
	if p.w.options.Dedupe {
		key := contentKey{c.size, c.sum}
		if other := p.equal[key]; other != nil {
			p.datas[ref], p.plan.shared = other, true
			return other
		}
		p.equal[key] = d
	}
	if d.chunks = p.w.planChunks(c); d.chunks.bits > 0 {
		p.plan.chunked = append(p.plan.chunked, d)
		return d
	}
	if c.size <= p.w.options.PackBytes && !d.boot {
		d.layout, d.fragment = LayoutCompressedFull, true
		p.pack.contents = append(p.pack.contents, d)
		return d
	}
	p.plan.contents = append(p.plan.contents, d)
	return d
}

// packedReader reads contents one behind the other.
type packedReader struct{ contents []*planData }

func (r *packedReader) size() int64 {
	if len(r.contents) == 0 {
		return 0
	}
	last := r.contents[len(r.contents)-1]
	return int64(last.start) + last.size
}

// ReadAt reads from the contents of which a part lies in p.
func (r *packedReader) ReadAt(p []byte, off int64) (n int, err error) {
	i := sort.Search(len(r.contents), func(i int) bool { return int64(r.contents[i].start)+r.contents[i].size > off })
	for ; n < len(p); i++ {
		if i == len(r.contents) {
			return n, io.EOF
		}
		d := r.contents[i]
		at := off + int64(n) - int64(d.start)
		part := p[n:min(int64(len(p)), int64(n)+d.size-at)]
		if err := readAt(d.source, part, at); err != nil {
			return n, fmt.Errorf("%s: %w", d.path, err)
		}
		n += len(part)
	}
	return n, nil
}

// dirBlocks cuts entries into directory blocks: all of a block's entries, then
// all of their names.
func dirBlocks(entries []planEntry) (blocks [][]planEntry) {
	for len(entries) > 0 {
		n, used := 0, 0
		for n < len(entries) && used+direntSize+len(entries[n].name) <= blockSize {
			used += direntSize + len(entries[n].name)
			n++
		}
		blocks = append(blocks, entries[:n])
		entries = entries[n:]
	}
	return blocks
}

// dirBlockSize is how much of its block a directory block takes.
func dirBlockSize(block []planEntry) int {
	used := 0
	for _, e := range block {
		used += direntSize + len(e.name)
	}
	return used
}

func dirSize(entries []planEntry) int64 {
	blocks := dirBlocks(entries)
	last := len(blocks) - 1
	return int64(last)<<blockBits + int64(dirBlockSize(blocks[last]))
}

// encodeDirBlock appends a directory block; inodes have their places.
func encodeDirBlock(b []byte, block []planEntry) []byte {
	off := len(block) * direntSize
	for _, e := range block {
		b = encode(b, &diskDirent{Nid: e.inode.nid(), NameOff: uint16(off), FileType: fileType(e.inode.node.Mode)})
		off += len(e.name)
	}
	for _, e := range block {
		b = append(b, e.name...)
	}
	return b
}
