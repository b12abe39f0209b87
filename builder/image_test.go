package builder

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/initrd/cpio"
	"initoverlayfs/initrd/erofs"
)

// archive writes newc archives for tests.
type archive struct {
	t   *testing.T
	buf bytes.Buffer
	w   *cpio.Writer
	ino uint32
}

func newArchive(t *testing.T) *archive {
	a := &archive{t: t}
	a.w = cpio.NewWriter(&a.buf)
	return a
}

func (a *archive) add(h cpio.Header, body string) {
	a.t.Helper()
	if h.Ino == 0 {
		a.ino++
		h.Ino = a.ino
	}
	if h.NLink == 0 {
		h.NLink = 1
	}
	h.Size = int64(len(body))
	if err := a.w.WriteHeader(&h); err != nil {
		a.t.Fatal(err)
	}
	if _, err := io.WriteString(a.w, body); err != nil {
		a.t.Fatal(err)
	}
}

func (a *archive) dirs(names ...string) {
	for _, name := range names {
		a.add(cpio.Header{Name: name, Mode: unix.S_IFDIR | 0o755, NLink: 2, MTime: 1_600_000_000}, "")
	}
}

func (a *archive) file(name, body string) {
	a.add(cpio.Header{Name: name, Mode: unix.S_IFREG | 0o644, MTime: 1_600_000_001}, body)
}

func (a *archive) link(name, target string) {
	a.add(cpio.Header{Name: name, Mode: unix.S_IFLNK | 0o777, MTime: 1_600_000_002}, target)
}

// hardLinks adds one file under several names, its content with the last one
// as cpio writes it.
func (a *archive) hardLinks(body string, names ...string) {
	a.ino++
	for i, name := range names {
		h := cpio.Header{Name: name, Ino: a.ino, Mode: unix.S_IFREG | 0o755, NLink: uint32(len(names)), MTime: 1_600_000_003}
		if i < len(names)-1 {
			a.add(h, "")
		} else {
			a.add(h, body)
		}
	}
}

// save ends the archive and gives its path.
func (a *archive) save() string {
	a.t.Helper()
	if err := a.w.Close(); err != nil {
		a.t.Fatal(err)
	}
	path := filepath.Join(a.t.TempDir(), "initramfs.img")
	if err := os.WriteFile(path, a.buf.Bytes(), 0o600); err != nil {
		a.t.Fatal(err)
	}
	return path
}

// strangeArchive has one of everything that a conversion could lose.
func strangeArchive(t *testing.T) string {
	a := newArchive(t)
	a.add(cpio.Header{Name: ".", Mode: unix.S_IFDIR | 0o711, UID: 3, GID: 4, NLink: 2, MTime: 1_234_567_890}, "")
	a.dirs("bin", "dev", "names", "deep", "deep/er", "links")
	a.add(cpio.Header{Name: "closed", Mode: unix.S_IFDIR, NLink: 2, MTime: 7}, "")
	a.add(cpio.Header{Name: "closed/inside", Mode: unix.S_IFREG, MTime: 1}, "nobody may read this")
	a.add(cpio.Header{Name: "tmp", Mode: unix.S_IFDIR | unix.S_ISVTX | 0o777, NLink: 2, MTime: 1_600_000_000}, "")
	a.add(cpio.Header{Name: "bin/su", Mode: unix.S_IFREG | unix.S_ISUID | unix.S_ISGID | 0o4755, MTime: 1_600_000_000}, "su")
	a.add(cpio.Header{Name: "bin/owned", Mode: unix.S_IFREG | 0o640, UID: 70_000, GID: 4_294_967_294, MTime: 5}, "x")
	a.add(cpio.Header{Name: "bin/old", Mode: unix.S_IFREG | 0o644}, "1970")
	a.add(cpio.Header{Name: "bin/future", Mode: unix.S_IFREG | 0o644, MTime: 4_000_000_000}, "2096")
	a.file("bin/empty", "")
	a.file("bin/large", strings.Repeat("compressible ", 100_000))
	noise := make([]byte, 300_001)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(noise)
	a.file("bin/noise", string(noise))
	// fsck.erofs 1.5 extracts nothing of holes, so there are no whole blocks of zeros.
	a.file("bin/zeros", strings.Repeat(string(make([]byte, 4000))+"x", 50))
	a.file("bin/block", strings.Repeat("b", 4096))
	a.add(cpio.Header{Name: "dev/null", Mode: unix.S_IFCHR | 0o666, RDevMajor: 1, RDevMinor: 3, MTime: 9}, "")
	a.add(cpio.Header{Name: "dev/disk", Mode: unix.S_IFBLK | 0o660, GID: 6, RDevMajor: 259, RDevMinor: 70_001, MTime: 9}, "")
	a.add(cpio.Header{Name: "dev/fifo", Mode: unix.S_IFIFO | 0o600, MTime: 9}, "")
	a.add(cpio.Header{Name: "dev/socket", Mode: unix.S_IFSOCK | 0o600, MTime: 9}, "")
	a.link("bin/sh", "su")
	a.link("bin/dangling", "/"+strings.Repeat("far/", 200)+"away")
	a.add(cpio.Header{Name: "bin/theirs", Mode: unix.S_IFLNK | 0o777, UID: 8, GID: 9, MTime: 11}, "../dev")
	for _, name := range []string{
		strings.Repeat("n", 250), "a b", "new\nline", "back\\slash", "\xff\xfe", "ü", "-dash", `quo"te`, "trailing ",
	} {
		a.file("names/"+name, name)
	}
	for i := range 600 { // more than a block of names
		a.file("deep/er/file-with-a-longer-name-"+strconv.Itoa(i), strconv.Itoa(i%7))
	}
	var names []string
	for i := range 300 {
		names = append(names, "links/applet"+strconv.Itoa(i))
	}
	a.hardLinks("all applets", names...)
	a.ino++
	for _, name := range []string{"dev/console", "links/console"} {
		a.add(cpio.Header{Name: name, Ino: a.ino, Mode: unix.S_IFCHR | 0o600, NLink: 2, RDevMajor: 5, RDevMinor: 1, MTime: 9}, "")
	}
	return a.save()
}

func skipWithoutMkfs(t *testing.T) {
	t.Helper()
	needTool(t, "mkfs.erofs")
	needTool(t, "fakeroot")
}

// treeOf reads an archive, contents into a spool of its own.
func treeOf(t *testing.T, path string) (*cpio.Tree, *spool) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := &spool{dir: t.TempDir()}
	tree, err := cpio.ReadTree(cpio.NewReader(f), s)
	if err != nil {
		t.Fatal(err)
	}
	return tree, s
}

// testLayouts have no holes, from which the first versions of fsck.erofs make
// empty files.
func testLayouts() map[string]ImageOptions {
	noHoles := ImageFeatures{Holes: Off}
	return map[string]ImageOptions{
		"lz4hc":        {Compress: ImageCompression{"lz4hc", 9}, PclusterBytes: 64 << 10, Features: noHoles},
		"lz4":          {Compress: ImageCompression{Algorithm: "lz4"}, PclusterBytes: 4096, Features: noHoles},
		"uncompressed": {PclusterBytes: 4096, Features: noHoles},
	}
}

func TestImageKeepsTheTree(t *testing.T) {
	skipWithoutMkfs(t)
	source := strangeArchive(t)
	tree, contents := treeOf(t, source)
	want := entriesOfTree(t, tree, contents.Open)
	if len(want) < 900 {
		t.Fatalf("the tree has only %d paths", len(want))
	}
	for name, o := range testLayouts() {
		t.Run(name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "image")
			image, err := CreateImage(context.Background(), Source{Archive: source}, out, mkfsErofs{}, o, 0)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, entriesOfImage(t, out)); diff != "" {
				t.Errorf("image (-archive +image):\n%s", diff)
			}
			if got, want := image.BuildTime, int64(4_000_000_000); got != want {
				t.Errorf("build time %d, want that of the newest file, %d", got, want)
			}
			if got, want := image.Compressed(), !o.Compress.DAX(); got != want {
				t.Errorf("Compressed() = %t, want %t", got, want)
			}
		})
	}
}

// The same source gives the same bytes, in whatever folder and in whatever
// order its entries come; another source or option gives another identity.
func TestImageIsReproducible(t *testing.T) {
	skipWithoutMkfs(t)
	source := strangeArchive(t)
	create := func(src Source, o ImageOptions, epoch int64) (Image, []byte) {
		t.Helper()
		o.TempDir = t.TempDir()
		out := filepath.Join(t.TempDir(), "image")
		image, err := CreateImage(context.Background(), src, out, mkfsErofs{}, o, epoch)
		if err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		return image, data
	}
	o := testLayouts()["lz4hc"]
	first, firstBytes := create(Source{Archive: source}, o, 0)
	second, secondBytes := create(Source{Archive: source}, o, 0)
	if !bytes.Equal(firstBytes, secondBytes) || !reflect.DeepEqual(first, second) {
		t.Error("two images of one archive differ")
	}
	forward, backward := newArchive(t), newArchive(t)
	for i := range 50 {
		forward.file("f"+strconv.Itoa(i), strconv.Itoa(i))
		backward.file("f"+strconv.Itoa(49-i), strconv.Itoa(49-i))
	}
	forwardImage, forwardBytes := create(Source{Archive: forward.save()}, o, 0)
	_, backwardBytes := create(Source{Archive: backward.save()}, o, 0)
	if !bytes.Equal(forwardBytes, backwardBytes) {
		t.Error("the order of the entries changes the image")
	}
	seen := map[bootconf.UUID]string{first.UUID: "first", forwardImage.UUID: "another tree"}
	later, _ := create(Source{Archive: source}, o, 4_100_000_000)
	if later.BuildTime != 4_100_000_000 {
		t.Errorf("build time %d, want the epoch 4100000000", later.BuildTime)
	}
	plain, _ := create(Source{Archive: source}, testLayouts()["uncompressed"], 0)
	for name, image := range map[string]Image{"later epoch": later, "uncompressed": plain} {
		if other, ok := seen[image.UUID]; ok {
			t.Errorf("%s has the UUID of %s", name, other)
		}
		seen[image.UUID] = name
	}
	if len(seen) != 4 {
		t.Errorf("%d identities, want 4", len(seen))
	}
}

func TestImageOfDirectory(t *testing.T) {
	skipWithoutMkfs(t)
	dir := t.TempDir()
	write := func(name, body string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(body), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write("one", "content")
	write("empty", "")
	must(os.Mkdir(filepath.Join(dir, "sub"), 0o750))
	must(os.Link(filepath.Join(dir, "one"), filepath.Join(dir, "sub", "two")))
	must(os.Symlink("../one", filepath.Join(dir, "sub", "link")))
	must(unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))

	tree, err := readTree(t.Context(), Source{Dir: dir}, native{}, testLayouts()["lz4"])
	must(err)
	defer tree.close()
	want := entriesOfTree(t, tree.Tree, tree.writer.Open)
	if got := want["one"]; got.NLink != 2 || got.UID != uint32(os.Getuid()) || got.Mode != unix.S_IFREG|0o640 {
		t.Errorf("readDir: %+v", got)
	}
	if got := want["sub/two"].Inode; got != "one" {
		t.Errorf("sub/two is a link to %q, want one", got)
	}
	if got := want["."].NLink; got != 3 {
		t.Errorf("the root has %d links, want 3", got)
	}
	for name, p := range map[string]Producer{"native": native{}, "mkfs.erofs": mkfsErofs{}} {
		out := filepath.Join(t.TempDir(), "image")
		if _, err := CreateImage(context.Background(), Source{Dir: dir}, out, p, testLayouts()["lz4"], 0); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if diff := cmp.Diff(want, entriesOfImage(t, out)); diff != "" {
			t.Errorf("%s: image (-directory +image):\n%s", name, diff)
		}
	}
}

func TestReadDirNamesWhatCannotBeRead(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("root can read everything")
	}
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte("x"), 0); err != nil {
		t.Fatal(err)
	}
	_, err := readTree(t.Context(), Source{Dir: dir}, native{}, testLayouts()["lz4"])
	if !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), secret) {
		t.Errorf("error %v, want permission denied for %s", err, secret)
	}
}

// A failure leaves neither the image nor anything temporary, and what was there
// before stays.
func TestCreateImageFails(t *testing.T) {
	t.Run("native", func(t *testing.T) { testCreateImageFails(t, native{}) })
	t.Run("mkfs.erofs", func(t *testing.T) {
		skipWithoutMkfs(t)
		testCreateImageFails(t, mkfsErofs{})
	})
}

func testCreateImageFails(t *testing.T, p Producer) {
	good := strangeArchive(t)
	text, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	truncated := filepath.Join(t.TempDir(), "truncated")
	if err := os.WriteFile(truncated, text[:len(text)/2], 0o600); err != nil {
		t.Fatal(err)
	}

	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	tests := []struct {
		name string
		ctx  context.Context
		src  Source
		o    ImageOptions
		is   error
		want string
	}{
		{"missing", context.Background(), Source{Archive: "/nonexistent"}, testLayouts()["lz4"], os.ErrNotExist, "/nonexistent"},
		{"missing directory", context.Background(), Source{Dir: "/nonexistent"}, testLayouts()["lz4"], os.ErrNotExist, "/nonexistent"},
		{"truncated", context.Background(), Source{Archive: truncated}, testLayouts()["lz4"], io.ErrUnexpectedEOF, "segment 0"},
		{"cancelled", cancelled, Source{Archive: good}, testLayouts()["lz4"], context.Canceled, ""},
		{"feature", context.Background(), Source{Archive: good}, ImageOptions{Compress: ImageCompression{Algorithm: "lz4"}, PclusterBytes: 4096,
			Features: ImageFeatures{Dedupe: On}}, nil, "kernel 5.15 cannot read images with dedupe; Linux 6.1 and later can"},
		{"feature of a plain image", context.Background(), Source{Archive: good}, ImageOptions{PclusterBytes: 4096,
			Features: ImageFeatures{Fragments: On}, Kernel: erofs.KernelVersion{Major: 6, Minor: 1}}, nil, "fragments needs a compressed image"},
		{"pcluster", context.Background(), Source{Archive: good}, ImageOptions{PclusterBytes: 5000}, nil, "5000"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			dir, temp := t.TempDir(), t.TempDir()
			out := filepath.Join(dir, "image")
			if err := os.WriteFile(out, []byte("old"), 0o600); err != nil {
				t.Fatal(err)
			}
			test.o.TempDir = temp
			_, err := CreateImage(test.ctx, test.src, out, p, test.o, 0)
			if err == nil {
				t.Fatal("no error")
			}
			if test.is != nil && !errors.Is(err, test.is) {
				t.Errorf("error %q is not %q", err, test.is)
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %q does not contain %q", err, test.want)
			}
			if got := namesIn(t, dir); !cmp.Equal(got, []string{"image"}) {
				t.Errorf("left behind: %q", got)
			}
			if got := namesIn(t, temp); len(got) > 0 {
				t.Errorf("left behind in the folder for temporary files: %q", got)
			}
			if text, err := os.ReadFile(out); err != nil || string(text) != "old" {
				t.Errorf("the old image is %q, %v", text, err)
			}
		})
	}
}

// A program that fakeroot does not reach makes an image of the temporary files
// as they are.
func TestCreateImageWithoutFakeroot(t *testing.T) {
	skipWithoutMkfs(t)
	programs := t.TempDir()
	script := "#!/bin/sh\nshift 3\nexec \"$@\"\n" // -i STATE --
	if err := os.WriteFile(filepath.Join(programs, "fakeroot"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	source := strangeArchive(t)
	t.Setenv("PATH", programs+string(os.PathListSeparator)+os.Getenv("PATH"))
	out := filepath.Join(t.TempDir(), "image")
	_, err := CreateImage(context.Background(), Source{Archive: source}, out, mkfsErofs{}, testLayouts()["lz4"], 0)
	if err == nil || !strings.Contains(err.Error(), "mode") {
		t.Errorf("error %v, want one about the mode of the root", err)
	}
	if _, err := os.Stat(out); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("image: %v, want that there is none", err)
	}
}

func namesIn(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestParseImageCompression(t *testing.T) {
	for in, want := range map[string]ImageCompression{
		"none": {}, "lz4": {"lz4", 0}, "lz4hc": {"lz4hc", 12}, "lz4hc,3": {"lz4hc", 3},
	} {
		got, err := ParseImageCompression(in)
		if err != nil || got != want {
			t.Errorf("ParseImageCompression(%q) = %v, %v; want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "zstd", "lz4,3", "lz4hc,", "lz4hc,13", "lz4hc,0", "none,1"} {
		if got, err := ParseImageCompression(in); err == nil {
			t.Errorf("ParseImageCompression(%q) = %v, want an error", in, got)
		}
	}
}
