package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"initoverlayfs/builder"
	"initoverlayfs/initrd/erofs"
)

// imageReadCommands are the verbs that read an image.
func (a *app) imageReadCommands() []*cobra.Command {
	return []*cobra.Command{a.imageLsCommand(), a.imageCatCommand(), a.imageExtractCommand(), a.imageCheckCommand()}
}

// openedImage is an image file and those of its extra devices.
type openedImage struct {
	file  *os.File
	size  int64
	blobs []io.ReaderAt
	files []*os.File
}

func openImage(image string, devices deviceFlags) (*openedImage, error) {
	o := &openedImage{}
	var err error
	defer func() {
		if err != nil {
			o.close()
		}
	}()
	if o.file, err = o.open(image); err != nil {
		return nil, err
	}
	// Also a block device says its size so.
	if o.size, err = o.file.Seek(0, io.SeekEnd); err != nil {
		return nil, err
	}
	names := devices.files
	if len(names) == 0 {
		if names, err = devices.find(image, o); err != nil {
			return nil, err
		}
	}
	for _, name := range names {
		var blob io.ReaderAt
		if name != "" {
			if blob, err = o.open(name); err != nil {
				return nil, err
			}
		}
		o.blobs = append(o.blobs, blob)
	}
	return o, nil
}

func (o *openedImage) open(name string) (*os.File, error) {
	f, err := os.Open(name)
	if err == nil {
		o.files = append(o.files, f)
	}
	return f, err
}

// deviceFlags say where the extra devices of an image are.
type deviceFlags struct {
	files []string
	blobs string
	all   bool // without one of them there is nothing to do
}

// find looks for blobs by their names. One that is nowhere is an empty name: what
// needs it cannot be read.
func (d *deviceFlags) find(image string, o *openedImage) (names []string, err error) {
	f, err := erofs.Open(o.file, o.size)
	if err != nil {
		return nil, nil // whoever opens it for its files will say it
	}
	for _, device := range f.Devices() {
		name := ""
		for _, dir := range []string{d.blobs, filepath.Dir(image)} {
			path := filepath.Join(dir, builder.BlobName(device))
			if _, err := os.Stat(path); err == nil && dir != "" && name == "" && !strings.ContainsRune(device.Tag, '/') {
				name = path
			}
		}
		if name == "" && d.all {
			return nil, hinted{fmt.Errorf("%s: its blob %s is missing", image, builder.BlobName(device)),
				"name the folder of its blobs with --blobs, or each one with --device"}
		}
		names = append(names, name)
	}
	return names, nil
}

func (o *openedImage) close() {
	for _, f := range o.files {
		f.Close()
	}
}

// withImage opens an image for fn.
func withImage(image string, devices deviceFlags, fn func(*erofs.FS) error) error {
	o, err := openImage(image, devices)
	if err != nil {
		return err
	}
	defer o.close()
	f, err := erofs.Open(o.file, o.size, o.blobs...)
	if err != nil {
		return fmt.Errorf("%s: %w", image, err)
	}
	return fn(f)
}

func addDeviceFlag(cmd *cobra.Command, devices *deviceFlags) {
	cmd.Flags().StringArrayVar(&devices.files, "device", nil, "`FILE` of the image's next extra device (default: blobs by their names)")
	cmd.Flags().StringVar(&devices.blobs, "blobs", "", "`DIR` of blobs (default: that of the image)")
}

// imagePath turns a path as users write it into one of package io/fs.
func imagePath(name string) string {
	return cmp.Or(strings.TrimPrefix(path.Clean("/"+name), "/"), ".")
}

// printable quotes a name that a terminal would not show as it is.
func printable(name string) string {
	if utf8.ValidString(name) && !strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return name
	}
	return strconv.Quote(name)
}

func (a *app) imageLsCommand() *cobra.Command {
	var long, recursive bool
	var devices deviceFlags
	cmd := &cobra.Command{
		Use:   "ls IMAGE [PATH]",
		Short: "List files of an image",
		Long: "List what the directory PATH of an image holds, or PATH itself when it is a\n" +
			"file. A name that is not printable is quoted as in Go.",
		Args: cobra.RangeArgs(1, 2),
		RunE: a.verb(func(ctx context.Context, args []string) error {
			name := "."
			if len(args) > 1 {
				name = imagePath(args[1])
			}
			return withImage(args[0], devices, func(image *erofs.FS) error {
				out := bufio.NewWriter(a.stdout)
				l := lister{ctx: ctx, image: image, out: out, long: long, recursive: recursive}
				if err := l.list(name); err != nil {
					return err
				}
				return out.Flush()
			})
		}),
	}
	cmd.Flags().BoolVarP(&long, "long", "l", false, "print mode, links, owner, group, size or device, time (UTC)")
	cmd.Flags().BoolVarP(&recursive, "recursive", "R", false, "list everything below, with paths")
	addDeviceFlag(cmd, &devices)
	return cmd
}

type lister struct {
	ctx             context.Context
	image           *erofs.FS
	out             io.Writer
	long, recursive bool
}

func (l *lister) list(name string) error {
	info, err := l.image.Lstat(name)
	if err != nil {
		return err
	}
	ino := info.Sys().(*erofs.Inode)
	if !ino.IsDir() {
		return l.print(name, ino)
	}
	if l.recursive {
		return ino.Walk(func(name string, ino *erofs.Inode) error {
			if name == "." {
				return l.ctx.Err()
			}
			return errors.Join(l.ctx.Err(), l.print(name, ino))
		})
	}
	entries, err := ino.ReadDir()
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !l.long {
			if _, err := fmt.Fprintln(l.out, printable(e.Name)); err != nil {
				return err
			}
			continue
		}
		child, err := l.image.InodeAt(e.NID)
		if err != nil {
			return err
		}
		if err := l.print(e.Name, child); err != nil {
			return err
		}
	}
	return l.ctx.Err()
}

func (l *lister) print(name string, ino *erofs.Inode) error {
	if !l.long {
		_, err := fmt.Fprintln(l.out, printable(name))
		return err
	}
	info := ino.FileInfo(name)
	size := strconv.FormatInt(ino.Size, 10)
	if info.Mode()&fs.ModeDevice != 0 {
		size = fmt.Sprintf("%d,%d", ino.RdevMajor, ino.RdevMinor)
	}
	line := fmt.Sprintf("%s %3d %5d %5d %10s %s %s", modeString(ino.Mode), ino.NLink, ino.UID, ino.GID, size,
		info.ModTime().UTC().Format(time.RFC3339), printable(name))
	if ino.IsSymlink() {
		target, err := ino.LinkTarget()
		if err != nil {
			return err
		}
		line += " -> " + printable(target)
	}
	_, err := fmt.Fprintln(l.out, line)
	return err
}

// modeString is the mode as ls prints it.
func modeString(mode uint32) string {
	s := []byte("?rwxrwxrwx")
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		s[0] = '-'
	case unix.S_IFDIR:
		s[0] = 'd'
	case unix.S_IFLNK:
		s[0] = 'l'
	case unix.S_IFCHR:
		s[0] = 'c'
	case unix.S_IFBLK:
		s[0] = 'b'
	case unix.S_IFIFO:
		s[0] = 'p'
	case unix.S_IFSOCK:
		s[0] = 's'
	}
	for i := range 9 {
		if mode>>(8-i)&1 == 0 {
			s[1+i] = '-'
		}
	}
	for _, special := range []struct {
		bit      uint32
		at       int
		set, alt byte // alt where the x bit is missing
	}{{unix.S_ISUID, 3, 's', 'S'}, {unix.S_ISGID, 6, 's', 'S'}, {unix.S_ISVTX, 9, 't', 'T'}} {
		if mode&special.bit == 0 {
			continue
		}
		if s[special.at] == 'x' {
			s[special.at] = special.set
		} else {
			s[special.at] = special.alt
		}
	}
	return string(s)
}

func (a *app) imageCatCommand() *cobra.Command {
	var devices deviceFlags
	cmd := &cobra.Command{
		Use:   "cat IMAGE PATH...",
		Short: "Print files of an image",
		Args:  cobra.MinimumNArgs(2),
		RunE: a.verb(func(ctx context.Context, args []string) error {
			return withImage(args[0], devices, func(image *erofs.FS) error {
				for _, name := range args[1:] {
					if err := catFile(ctx, a.stdout, image, imagePath(name)); err != nil {
						return err
					}
				}
				return nil
			})
		}),
	}
	addDeviceFlag(cmd, &devices)
	return cmd
}

func catFile(ctx context.Context, out io.Writer, image *erofs.FS, name string) error {
	info, err := image.Stat(name)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return &fs.PathError{Op: "cat", Path: name, Err: errors.New("not a regular file")}
	}
	f := io.NewSectionReader(info.Sys().(*erofs.Inode), 0, info.Size())
	_, err = io.CopyBuffer(struct{ io.Writer }{out}, contextReader{ctx, f}, make([]byte, 1<<20))
	if err != nil {
		return fmt.Errorf("cat %s: %w", name, err)
	}
	return nil
}

// contextReader stops reading when a context ends.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

func (a *app) imageCheckCommand() *cobra.Command {
	devices := deviceFlags{all: true}
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check IMAGE",
		Short: "Find what is wrong with an image",
		Long: "Read an image from end to end and print everything that is wrong, one problem\n" +
			"a line; the status is 1 when there is one.",
		Args: cobra.ExactArgs(1),
		RunE: a.verb(func(_ context.Context, args []string) error {
			o, err := openImage(args[0], devices)
			if err != nil {
				return err
			}
			defer o.close()
			report := erofs.Check(o.file, o.size, o.blobs...)
			if err := a.printReport(args[0], report, asJSON); err != nil {
				return err
			}
			switch n := len(report.Problems); {
			case report.Incomplete:
				return fmt.Errorf("%s: more than %d problems", args[0], n)
			case n == 1:
				return fmt.Errorf("%s: 1 problem", args[0])
			case n > 0:
				return fmt.Errorf("%s: %d problems", args[0], n)
			}
			return nil
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	addDeviceFlag(cmd, &devices)
	return cmd
}

// checkJSON is the document of `image check --json`.
type checkJSON struct {
	File      string        `json:"file"`
	OK        bool          `json:"ok"`
	Inodes    int           `json:"inodes"`
	Bytes     int64         `json:"bytes"` // of content
	Pclusters int           `json:"pclusters"`
	Problems  []problemJSON `json:"problems"`
}

type problemJSON struct {
	Path  string `json:"path"` // empty for what belongs to no file
	Error string `json:"error"`
}

func (a *app) printReport(name string, r *erofs.Report, asJSON bool) error {
	if asJSON {
		doc := checkJSON{
			File: name, OK: len(r.Problems) == 0, Inodes: r.Inodes, Bytes: r.Bytes, Pclusters: r.Pclusters,
			Problems: []problemJSON{},
		}
		for _, p := range r.Problems {
			doc.Problems = append(doc.Problems, problemJSON{p.Path, p.Err.Error()})
		}
		return a.printJSON(doc)
	}
	for _, p := range r.Problems {
		if p.Path != "" {
			p.Path = printable(p.Path)
		}
		if _, err := fmt.Fprintln(a.stdout, p.Error()); err != nil {
			return err
		}
	}
	a.progress("%s: %d inodes, %d bytes, %d compressed clusters", name, r.Inodes, r.Bytes, r.Pclusters)
	return nil
}

func (a *app) imageExtractCommand() *cobra.Command {
	devices := deviceFlags{all: true}
	var noSameOwner bool
	cmd := &cobra.Command{
		Use:   "extract IMAGE DIR",
		Short: "Unpack an image",
		Long: "Unpack an image into DIR, which must be empty or not exist. Without the rights\n" +
			"to set owners, to make device nodes or to set attributes, those are left out;\n" +
			"what was left out is printed, and is an error unless --no-same-owner is given.",
		Args: cobra.ExactArgs(2),
		RunE: a.verb(func(ctx context.Context, args []string) error {
			return withImage(args[0], devices, func(image *erofs.FS) error {
				x := &extractor{ctx: ctx, image: image, sameOwner: !noSameOwner, links: map[uint64]string{}, skipped: map[string]int{}}
				if err := x.extract(args[1]); err != nil {
					return err
				}
				a.progress("%s: %d files and directories", args[1], x.count)
				summary := x.summary()
				switch {
				case summary == "":
				case noSameOwner:
					a.warn("left out: %s", summary)
				default:
					return hinted{fmt.Errorf("unpacked into %s, but left out: %s", args[1], summary),
						"run it as root, or with --no-same-owner to accept that"}
				}
				return nil
			})
		}),
	}
	cmd.Flags().BoolVar(&noSameOwner, "no-same-owner", false, "set no owners, and accept that the rights for others are missing")
	addDeviceFlag(cmd, &devices)
	return cmd
}

// extractor unpacks an image. Whatever names and links the image has, it stays
// in its directory: each name is used in the directory's own file descriptor,
// and no symbolic link is followed.
type extractor struct {
	ctx       context.Context
	image     *erofs.FS
	sameOwner bool

	root    *os.Root
	dir     *os.File // the open directory
	dirName string
	dirs    []extractedDir
	links   map[uint64]string // first name of files with several
	skipped map[string]int
	count   int
	buf     []byte
}

type extractedDir struct {
	name string
	ino  *erofs.Inode
}

const (
	skippedOwners  = "owners"
	skippedDevices = "device nodes"
	skippedXattrs  = "extended attributes"
)

// extract fills target. After an error nothing is left there.
func (x *extractor) extract(target string) (err error) {
	made := false
	entries, err := os.ReadDir(target)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := os.Mkdir(target, 0o700); err != nil {
			return err
		}
		made = true
	case err != nil:
		return err
	case len(entries) > 0:
		return fmt.Errorf("%s is not empty", target)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, emptyDirectory(target, made))
		}
	}()
	if x.root, err = os.OpenRoot(target); err != nil {
		return err
	}
	defer func() {
		if x.dir != nil {
			x.dir.Close()
		}
		err = errors.Join(err, x.root.Close())
	}()
	x.buf = make([]byte, 1<<20)
	if err := x.image.Walk(x.entry); err != nil {
		return err
	}
	// Only now: a directory's time changes with what is put there, and its mode
	// may forbid that.
	for _, d := range slices.Backward(x.dirs) {
		if err := x.attributes(d.name, d.ino); err != nil {
			return err
		}
	}
	return nil
}

// emptyDirectory removes what a directory holds, and itself if self is set.
func emptyDirectory(dir string, self bool) error {
	if self {
		return os.RemoveAll(dir)
	}
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	return err
}

func (x *extractor) summary() string {
	var parts []string
	for _, what := range []string{skippedOwners, skippedDevices, skippedXattrs} {
		if n := x.skipped[what]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, what))
		}
	}
	return strings.Join(parts, ", ")
}

// in opens the directory of a name and gives the last element. The root itself
// is "." in itself.
func (x *extractor) in(name string) (dirfd int, base string, err error) {
	dir, base := path.Dir(name), path.Base(name)
	if x.dir == nil || x.dirName != dir {
		f, err := x.root.Open(dir)
		if err != nil {
			return 0, "", err
		}
		if x.dir != nil {
			x.dir.Close()
		}
		x.dir, x.dirName = f, dir
	}
	return int(x.dir.Fd()), base, nil
}

// entry makes one file or directory.
func (x *extractor) entry(name string, ino *erofs.Inode) error {
	if err := x.ctx.Err(); err != nil {
		return err
	}
	x.count++
	if ino.IsDir() {
		x.dirs = append(x.dirs, extractedDir{name, ino})
		if name == "." {
			return nil
		}
	}
	if first, ok := x.links[ino.NID]; ok && !ino.IsDir() {
		if first == "" {
			x.skipped[skippedDevices]++
			return nil
		}
		return x.root.Link(first, name)
	}
	made, err := x.make(name, ino)
	if err != nil {
		return &fs.PathError{Op: "unpack", Path: name, Err: err}
	}
	if ino.IsDir() {
		return nil
	}
	if ino.NLink > 1 {
		x.links[ino.NID] = ""
		if made {
			x.links[ino.NID] = name
		}
	}
	if !made {
		x.skipped[skippedDevices]++
		return nil
	}
	return x.attributes(name, ino)
}

// make makes a file without its attributes, or says that it may not.
func (x *extractor) make(name string, ino *erofs.Inode) (bool, error) {
	dirfd, base, err := x.in(name)
	if err != nil {
		return false, err
	}
	switch ino.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return true, unix.Mkdirat(dirfd, base, 0o700)
	case unix.S_IFREG:
		fd, err := unix.Openat(dirfd, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return false, err
		}
		f := os.NewFile(uintptr(fd), name)
		return true, errors.Join(x.content(f, ino), f.Close())
	case unix.S_IFLNK:
		target, err := ino.LinkTarget()
		if err != nil {
			return false, err
		}
		return true, unix.Symlinkat(target, dirfd, base)
	}
	err = unix.Mknodat(dirfd, base, ino.Mode&unix.S_IFMT|0o600, int(unix.Mkdev(ino.RdevMajor, ino.RdevMinor)))
	if errors.Is(err, unix.EPERM) {
		return false, nil
	}
	return true, err
}

// content copies a file's content and leaves holes where only zeros are.
func (x *extractor) content(f *os.File, ino *erofs.Inode) error {
	const block = 4096
	var zeros [block]byte
	for off := int64(0); ; {
		start, end, err := ino.NextData(off)
		if errors.Is(err, io.EOF) {
			return f.Truncate(ino.Size)
		}
		if err != nil {
			return err
		}
		for off = start; off < end; {
			if err := x.ctx.Err(); err != nil {
				return err
			}
			p := x.buf[:min(end-off, int64(len(x.buf)))]
			if _, err := ino.ReadAt(p, off); err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			for i := 0; i < len(p); {
				n := i
				for n < len(p) && !bytes.Equal(p[n:min(n+block, len(p))], zeros[:min(block, len(p)-n)]) {
					n = min(n+block, len(p))
				}
				if n > i {
					if _, err := f.WriteAt(p[i:n], off+int64(i)); err != nil {
						return err
					}
				}
				i = n + block
			}
			off += int64(len(p))
		}
	}
}

// attributes sets owner, extended attributes, mode and time, in this order: a
// new owner clears capabilities and mode bits.
func (x *extractor) attributes(name string, ino *erofs.Inode) error {
	dirfd, base, err := x.in(name)
	if err != nil {
		return err
	}
	failed := func(what string, err error) error {
		return &fs.PathError{Op: "set " + what, Path: name, Err: err}
	}
	if x.sameOwner {
		err := unix.Fchownat(dirfd, base, int(ino.UID), int(ino.GID), unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.EPERM) {
			x.skipped[skippedOwners]++
		} else if err != nil {
			return failed("owner", err)
		}
	}
	xattrs, err := ino.Xattrs()
	if err != nil {
		return failed("extended attributes", err)
	}
	for key, value := range xattrs {
		// There is no call with a directory's descriptor for this.
		err := unix.Lsetxattr(fmt.Sprintf("/proc/self/fd/%d/%s", dirfd, base), key, value, 0)
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOTSUP) {
			x.skipped[skippedXattrs]++
		} else if err != nil {
			return failed("extended attribute "+key, err)
		}
	}
	if !ino.IsSymlink() {
		if err := unix.Fchmodat(dirfd, base, ino.Mode&0o7777, 0); err != nil {
			return failed("mode", err)
		}
	}
	when := unix.Timespec{Sec: ino.MTime, Nsec: int64(ino.MTimeNsec)}
	if err := unix.UtimesNanoAt(dirfd, base, []unix.Timespec{when, when}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return failed("time", err)
	}
	return nil
}
