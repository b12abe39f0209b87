package erofs

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
)

// Problem is something that Check found.
type Problem struct {
	Path string // as for FS.Inode; empty for what belongs to no file
	Err  error
}

func (p Problem) Error() string {
	if p.Path == "" {
		return p.Err.Error()
	}
	return p.Path + ": " + p.Err.Error()
}

func (p Problem) Unwrap() error { return p.Err }

// Report is what Check found.
type Report struct {
	Inodes     int   // different ones
	Bytes      int64 // of the content of all of them, the packed inode included
	Pclusters  int   // compressed ones that were decoded
	Problems   []Problem
	Incomplete bool // there were more problems than maxProblems
}

// maxProblems is how many problems a Report lists.
const maxProblems = 1000

// Err is nil when nothing was found, and else an error that joins the problems.
func (r *Report) Err() error {
	errs := make([]error, len(r.Problems))
	for i := range r.Problems {
		errs[i] = r.Problems[i]
	}
	return errors.Join(errs...)
}

// Check reads an image of size bytes from end to end: the superblock and its
// checksum, every inode that the root leads to and the packed one, their xattrs,
// the order and the names of directory entries, "." and "..", the number of
// links, indexes and their distances, that each pcluster decodes to the length
// that it must have, that nothing overlaps which must not, and that there are no
// more inodes and blocks than the superblock declares. blobs are as for Open.
func Check(r io.ReaderAt, size int64, blobs ...io.ReaderAt) *Report {
	c := checker{report: &Report{}, files: map[uint64]*checkedFile{}}
	f, err := Open(r, size, blobs...)
	if err != nil {
		c.problem("", err)
		return c.report
	}
	c.fs = f
	c.run()
	return c.report
}

type checker struct {
	fs     *FS
	report *Report
	files  map[uint64]*checkedFile
	ranges []checkedRange
	path   []byte
	buf    []byte
}

// checkedFile is an inode that was seen.
type checkedFile struct {
	ino   *Inode // nil when it could not be read
	path  string
	links uint32 // found
}

// checkedRange is a part of the image that something takes.
type checkedRange struct {
	space      *space
	start, end int64
	nid        uint64
	use        rangeUse
}

type rangeUse uint8

const (
	useMeta   rangeUse = iota // an inode with all that follows it, or the superblock
	useXattr                  // a shared xattr
	useData                   // of one file
	useShared                 // data that several files may have
)

func (u rangeUse) String() string {
	return [...]string{"metadata", "a shared xattr", "data", "data"}[u]
}

func (c *checker) problem(path string, err error) {
	if len(c.report.Problems) >= maxProblems {
		c.report.Incomplete = true
		return
	}
	c.report.Problems = append(c.report.Problems, Problem{path, err})
}

func (c *checker) run() {
	f := c.fs
	if declared := f.Super.Size(); declared > f.image.size || declared < 0 {
		c.problem("", corruptf("the superblock declares %d blocks of %d bytes, but the image has %d bytes",
			f.Super.Blocks, f.blockSize(), f.image.size))
	}
	c.take(f.image, SuperOffset, superSize, 0, useMeta)
	c.buf = make([]byte, 1<<20)

	if root, err := f.Root(); err != nil {
		c.problem(".", err)
	} else {
		c.visit(root, root.NID, 0)
	}
	if f.has(FeatureIncompatFragments) && f.packedNid != 0 {
		c.hidden("the packed inode", f.packedNid)
	}
	if f.has(FeatureIncompatMetabox) {
		c.hidden("the metabox", f.metaboxNid)
	}
	c.checkLinks()
	c.checkRanges()
	// There are more where an image was made of others.
	if found := uint64(c.report.Inodes); found > f.Super.Inos {
		c.problem("", corruptf("the superblock declares %d inodes, found %d", f.Super.Inos, found))
	}
}

// hidden checks an inode that is in no directory.
func (c *checker) hidden(name string, nid uint64) {
	ino, err := c.fs.InodeAt(nid)
	if err == nil && !ino.IsRegular() {
		err = corruptf("EROFS inode %d has mode %#o", nid, ino.Mode)
	}
	if err != nil {
		c.problem("", fmt.Errorf("%s: %w", name, err))
		return
	}
	if c.files[nid] != nil {
		c.problem("", fmt.Errorf("%s: %w", name, corruptf("EROFS inode %d is also in a directory", nid)))
		return
	}
	c.report.Inodes++
	if err := c.inode(ino); err != nil {
		c.problem("", fmt.Errorf("%s: %w", name, err))
	}
}

func (c *checker) name() string {
	if len(c.path) == 0 {
		return "."
	}
	return string(c.path)
}

// visit checks an inode and what is below it.
func (c *checker) visit(ino *Inode, parent uint64, depth int) {
	if file := c.files[ino.NID]; file != nil {
		file.links++
		if ino.IsDir() {
			c.problem(c.name(), corruptf("EROFS directory %d is also %s", ino.NID, file.path))
		}
		return
	}
	c.files[ino.NID] = &checkedFile{ino: ino, path: c.name(), links: 1}
	c.report.Inodes++
	if err := c.inode(ino); err != nil {
		c.problem(c.name(), err)
	}
	if ino.IsDir() {
		c.directory(ino, parent, depth)
	}
}

// directory checks a directory's entries and what they lead to.
func (c *checker) directory(dir *Inode, parent uint64, depth int) {
	if depth > maxDepth {
		c.problem(c.name(), corruptf("directories more than %d deep", maxDepth))
		return
	}
	var dot, dotDot bool
	var entries []rawDirent
	err := dir.eachDirent(func(e rawDirent, off int64) bool {
		switch string(e.name) {
		case ".":
			dot = true
			if e.nid != dir.NID {
				c.problem(c.name(), dir.corruptDir(off, `"." is inode %d`, e.nid))
			}
		case "..":
			dotDot = true
			if e.nid != parent {
				c.problem(c.name(), dir.corruptDir(off, `".." is inode %d, not %d`, e.nid, parent))
			}
		default:
			e.name = slices.Clone(e.name)
			entries = append(entries, e)
		}
		return true
	})
	if err != nil {
		c.problem(c.name(), err)
	} else if !dotDot || dot == dir.dotOmitted {
		c.problem(c.name(), corruptf(`EROFS directory %d lacks "." or "..", or has "." twice`, dir.NID))
	}
	subdirs := uint32(0)
	length := len(c.path)
	for _, e := range entries {
		if length > 0 {
			c.path = append(c.path, '/')
		}
		c.path = append(c.path, e.name...)
		if child := c.child(e); child != nil {
			if child.IsDir() {
				subdirs++
			}
			c.visit(child, dir.NID, depth+1)
		}
		c.path = c.path[:length]
	}
	c.files[dir.NID].links = 2 + subdirs
}

// child reads the inode of an entry.
func (c *checker) child(e rawDirent) *Inode {
	if file := c.files[e.nid]; file != nil {
		return file.ino
	}
	ino, err := c.fs.InodeAt(e.nid)
	if err != nil {
		c.problem(c.name(), err)
		return nil
	}
	if e.fileType != ftUnknown && e.fileType != fileType(ino.Mode) {
		c.problem(c.name(), corruptf("the directory says type %d, EROFS inode %d has mode %#o", e.fileType, e.nid, ino.Mode))
	}
	return ino
}

// checkLinks compares the numbers of links. A directory may have 1, which means
// that they are not counted.
func (c *checker) checkLinks() {
	nids := make([]uint64, 0, len(c.files))
	for nid := range c.files {
		nids = append(nids, nid)
	}
	slices.Sort(nids)
	for _, nid := range nids {
		file := c.files[nid]
		if got := file.ino.NLink; got != file.links && (got != 1 || !file.ino.IsDir()) {
			c.problem(file.path, corruptf("EROFS inode %d has %d links, found %d", nid, got, file.links))
		}
	}
}

// inode checks what belongs to one inode, but not a directory's entries.
func (c *checker) inode(ino *Inode) error {
	bodyEnd := ino.bodyEnd()
	if err := ino.space.check(ino.off, bodyEnd-ino.off); err != nil {
		return fmt.Errorf("EROFS inode %d: %w", ino.NID, err)
	}
	seen := map[string]bool{}
	_, err := ino.readXattrs(func(name string, at xattrPlace) error {
		switch {
		case name == "":
			return corruptf("an xattr of a class that there is not")
		case seen[name]:
			return corruptf("%q comes twice", name)
		case at.shared:
			c.take(at.space, at.pos, at.size, 0, useXattr)
		}
		seen[name] = true
		return nil
	})
	if err != nil {
		return fmt.Errorf("EROFS inode %d: xattrs: %w", ino.NID, err)
	}
	metaEnd := bodyEnd
	if ino.hasData() && ino.Size > 0 {
		if metaEnd, err = c.content(ino); err != nil {
			return err
		}
		c.report.Bytes += ino.Size
	}
	c.take(ino.space, ino.off, metaEnd-ino.off, ino.NID, useMeta)
	if ino.IsSymlink() {
		_, err = ino.LinkTarget()
	}
	return err
}

// content checks a file's extents and gives where what lies behind the inode
// ends.
func (c *checker) content(ino *Inode) (metaEnd int64, err error) {
	metaEnd = ino.bodyEnd()
	use := useData
	switch {
	case ino.Layout == LayoutChunkBased:
		unit := int64(blockMapEntrySize)
		if ino.chunkFormat&chunkIndexes != 0 {
			unit = chunkIndexSize
		}
		metaEnd = alignUp(metaEnd, unit) + ((ino.Size-1)>>ino.chunkBits()+1)*unit
		use = useShared
	case ino.Layout.Compressed():
		if metaEnd, err = c.indexes(ino); err != nil {
			return 0, fmt.Errorf("EROFS inode %d: %w", ino.NID, err)
		}
		if c.fs.has(FeatureIncompatFragments) { // also the bit of deduplication
			use = useShared
		}
	}
	// A table that is too short is found when it is read.
	metaEnd = min(metaEnd, ino.space.size)
	for off := int64(0); off < ino.Size; {
		e, err := ino.extentAt(off)
		if err != nil {
			return 0, err
		}
		if err := c.extent(ino, &e, use); err != nil {
			return 0, fmt.Errorf("EROFS inode %d, byte %d of %d: %w", ino.NID, off, ino.Size, err)
		}
		if e.inline {
			metaEnd = max(metaEnd, e.pos+e.size)
		}
		off = e.end()
	}
	return metaEnd, nil
}

// extent checks that an extent can be read.
func (c *checker) extent(ino *Inode, e *fileExtent, use rangeUse) error {
	switch e.kind {
	case extentHole:
		return nil
	case extentFragment:
		packed, err := c.fs.packed()
		if err != nil {
			return err
		}
		if packed.NID == ino.NID || e.pos > packed.Size || e.length > packed.Size-e.pos {
			return corruptf("fragment of %d bytes at %d of the packed inode, which has %d", e.length, e.pos, packed.Size)
		}
		return nil // the packed inode itself is checked
	}
	if err := e.space.check(e.pos, e.size); err != nil {
		return err
	}
	if !e.inline {
		c.take(e.space, e.pos, e.size, ino.NID, use)
	}
	if e.kind != extentLZ4 {
		// What was taken is read in checkRanges; this only says whether it fits.
		return c.fs.readExtent(ino, e, c.buf[:min(e.length, c.fs.blockSize())], 0)
	}
	c.report.Pclusters++
	if _, err := c.fs.decodeExtent(e); err != nil || !c.fs.wholeBlock(e) {
		return err
	}
	block, err := c.fs.pcluster(e)
	if err == nil {
		err = checkBlockEnd(block, int(e.length))
	}
	if err != nil {
		return fmt.Errorf("pcluster of %d bytes at offset %d: %w", e.size, e.pos, err)
	}
	return nil
}

// The kernel's decoder writes ahead, so it relies on how a block ends;
// LZ4_decompress_generic in lib/lz4/lz4_decompress.c.
const (
	lz4LastLiterals = 5  // bytes at the end that are literals
	lz4MatchLimit   = 12 // bytes before the end where matches no longer begin
	lz4LastInput    = 8  // bytes of the block that follow the literals before a match
)

// checkBlockEnd checks the rules for the end of an LZ4 block that is known to
// decode to length bytes.
func checkBlockEnd(block []byte, length int) error {
	in, out := 0, 0
	number := func(nibble byte) int {
		n := int(nibble)
		for more := nibble == 15; more; in++ {
			n += int(block[in])
			more = block[in] == 255
		}
		return n
	}
	for {
		token := block[in]
		in++
		literals := number(token >> 4)
		in += literals
		out += literals
		if in == len(block) {
			return nil
		}
		if out > length-lz4MatchLimit || in > len(block)-lz4LastInput {
			return corruptf("an LZ4 match at byte %d of %d", out, length)
		}
		in += 2
		out += 4 + number(token&15)
		if out > length-lz4LastLiterals {
			return corruptf("an LZ4 match up to byte %d of %d", out, length)
		}
	}
}

// indexes checks that the distances in the indexes of logical clusters agree
// with each other, and gives where they end.
func (c *checker) indexes(ino *Inode) (end int64, err error) {
	m, err := ino.clusters()
	if err != nil {
		return 0, err
	}
	end = alignUp(ino.bodyEnd(), mapHeaderSize) + mapHeaderSize
	switch {
	case m.whole:
		return end, nil
	case m.extents != nil:
		l := m.extents
		records := l.records
		if l.recordSize <= 8 {
			records = m.count
		}
		end = l.base + min(records, ino.space.size/l.recordSize)*l.recordSize
		if l.recordSize == 4 {
			end += 8
		}
		return end, nil
	}
	var head clusterIndex
	expect := int64(0) // where the distances ahead lead
	for n := int64(0); n<<m.bits < ino.Size; n++ {
		i, err := m.cluster(n)
		if err != nil {
			return 0, err
		}
		end = max(end, i.indexEnd)
		if i.isHead() {
			if expect > n {
				return 0, corruptf("logical cluster %d is a head, but the ones before lead to %d", n, expect)
			}
			head, expect = i, n+1
			continue
		}
		if n == expect {
			expect += max(1, i.ahead)
		}
		found, err := m.headBefore(n, i.back)
		if err != nil {
			return 0, err
		}
		if found.number != head.number {
			return 0, corruptf("the head of logical cluster %d is %d, not %d", n, head.number, found.number)
		}
	}
	return end, nil
}

func (c *checker) take(s *space, start, size int64, nid uint64, use rangeUse) {
	if size > 0 {
		c.ranges = append(c.ranges, checkedRange{s, start, start + size, nid, use})
	}
}

// checkRanges reads all data, and finds what overlaps.
func (c *checker) checkRanges() {
	order := map[*space]int{}
	for _, r := range c.ranges {
		if _, ok := order[r.space]; !ok {
			order[r.space] = len(order)
		}
	}
	slices.SortFunc(c.ranges, func(a, b checkedRange) int {
		return cmp.Or(cmp.Compare(order[a.space], order[b.space]), cmp.Compare(a.start, b.start),
			cmp.Compare(a.end, b.end), cmp.Compare(a.nid, b.nid))
	})
	var last checkedRange // the one of those before that ends last
	declared := c.fs.Super.Size()
	for _, r := range c.ranges {
		if r.space != last.space {
			last = checkedRange{space: r.space}
		}
		if r.space == c.fs.image && r.end > declared {
			c.problem("", corruptf("%s of inode %d at offset %d of the image, of which the superblock declares %d bytes",
				r.use, r.nid, r.start, declared))
			declared = r.end // once is enough
		}
		// Equal contents may lie in one place.
		same := r.use == useData && last.use == useData && r.start == last.start && r.end == last.end
		if r.start < last.end && !same && (r.use != last.use || r.use == useMeta || r.use == useData) {
			c.problem("", corruptf("%s of inode %d at offset %d and %s of inode %d at offset %d of the %s overlap",
				last.use, last.nid, last.start, r.use, r.nid, r.start, r.space.name))
		}
		if r.use != useMeta {
			c.readRange(r.space, max(r.start, last.end), r.end)
		}
		if r.end > last.end {
			last = r
		}
	}
}

// readRange reads a part of the image for the errors of the medium.
func (c *checker) readRange(s *space, start, end int64) {
	for start < end {
		p := c.buf[:min(int64(len(c.buf)), end-start)]
		if err := s.readAt(p, start); err != nil {
			c.problem("", err)
			return
		}
		start += int64(len(p))
	}
}
