package builder

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"initoverlayfs/initrd/cpio"
)

func createNative(t *testing.T, src Source, o ImageOptions) (Image, string) {
	t.Helper()
	o.TempDir = t.TempDir()
	out := filepath.Join(t.TempDir(), "image")
	image, err := CreateImage(context.Background(), src, out, native{}, o, 0)
	if err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(o.TempDir); err != nil || len(left) > 0 {
		t.Errorf("%d temporary files are left, %v", len(left), err)
	}
	return image, out
}

func TestNativeKeepsTheTree(t *testing.T) {
	source := strangeArchive(t)
	tree, contents := treeOf(t, source)
	want := entriesOfTree(t, tree, contents.Open)
	if len(want) < 900 {
		t.Fatalf("the tree has only %d paths", len(want))
	}
	for name, o := range testLayouts() {
		t.Run(name, func(t *testing.T) {
			image, out := createNative(t, Source{Archive: source}, o)
			if diff := cmp.Diff(want, entriesOfImage(t, out)); diff != "" {
				t.Errorf("image (-archive +image):\n%s", diff)
			}
			if got, want := image.Compressed(), !o.Compress.DAX(); got != want {
				t.Errorf("Compressed() = %t, want %t", got, want)
			}
			if got, want := image.Size(), image.SizeBytes; got != want {
				t.Errorf("superblock has %d bytes, the file %d", got, want)
			}
		})
	}
}

// Neither the order of an archive's entries, nor what they override, nor that
// the source is a directory changes a byte.
func TestNativeIsReproducible(t *testing.T) {
	dir := t.TempDir()
	forward, backward := newArchive(t), newArchive(t)
	for _, a := range []*archive{forward, backward} {
		a.add(cpio.Header{Name: ".", Mode: unix.S_IFDIR | 0o750, NLink: 2, UID: uint32(os.Getuid()), GID: uint32(os.Getgid()),
			MTime: 1_600_000_000}, "")
	}
	for i := range 50 {
		name, body := "f"+strconv.Itoa(i), strings.Repeat(strconv.Itoa(i), 1000*i)
		header := cpio.Header{Name: name, Mode: unix.S_IFREG | 0o640, UID: uint32(os.Getuid()), GID: uint32(os.Getgid()),
			MTime: 1_600_000_000 + int64(i)}
		forward.add(header, body)
		header.Name = "f" + strconv.Itoa(49-i)
		header.MTime = 1_600_000_000 + int64(49-i)
		backward.add(header, "what the next entry overrides")
		backward.add(header, strings.Repeat(strconv.Itoa(49-i), 1000*(49-i)))
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path, []byte(body), 0o600), os.Chmod(path, 0o640),
			os.Chtimes(path, time.Time{}, time.Unix(1_600_000_000+int64(i), 0))); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Chmod(dir, 0o750), os.Chtimes(dir, time.Time{}, time.Unix(1_600_000_000, 0))); err != nil {
		t.Fatal(err)
	}
	sources := map[string]Source{
		"again":          {Archive: forward.save()},
		"another order":  {Archive: backward.save()},
		"of a directory": {Dir: dir},
	}
	for name, o := range testLayouts() {
		_, first := createNative(t, sources["again"], o)
		want, err := os.ReadFile(first)
		if err != nil {
			t.Fatal(err)
		}
		for source, src := range sources {
			_, out := createNative(t, src, o)
			if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s, %s: the image differs, %v", name, source, err)
			}
		}
	}
}

func TestNativeStops(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	tree, err := readTree(ctx, Source{Archive: strangeArchive(t)}, native{}, testLayouts()["lz4hc"])
	if err != nil {
		t.Fatal(err)
	}
	defer tree.close()
	cancel()
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := tree.writeImage(ctx, f, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want %v", err, context.Canceled)
	}
}
