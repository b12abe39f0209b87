package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"

	"initoverlayfs/initrd/cpio"
)

// An archive, the tree that is unpacked from its image, and any number of
// processors give the same bytes.
func TestArchiveAndDirectoryAreAlike(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can unpack device nodes and owners")
	}
	dir := t.TempDir()
	archive, first, tree := filepath.Join(dir, "archive"), filepath.Join(dir, "first"), filepath.Join(dir, "tree")
	if err := os.WriteFile(archive, variedArchive(t), 0o600); err != nil {
		t.Fatal(err)
	}
	initoverlayfs := func(args ...string) {
		t.Helper()
		var stderr bytes.Buffer
		a := &app{stdout: io.Discard, stderr: &stderr, getenv: func(string) string { return "" }}
		if got := run(context.Background(), a, args); got != exitOK {
			t.Fatalf("%q: status %d: %s", args, got, stderr.String())
		}
	}
	for _, options := range [][]string{
		{"--kernel-version", "6.1", "--image-compress", "lz4"}, {"--image-compress", "none"},
	} {
		create := func(source, out string) []byte {
			t.Helper()
			initoverlayfs(append([]string{"image", "create", source, out}, options...)...)
			image, err := os.ReadFile(out)
			if err != nil {
				t.Fatal(err)
			}
			return image
		}
		want := create(archive, first)
		if _, err := os.Stat(tree); err != nil {
			initoverlayfs("image", "extract", first, tree)
		}
		processors := runtime.GOMAXPROCS(0)
		for _, n := range []int{1, 2} {
			runtime.GOMAXPROCS(n)
			for _, source := range []string{archive, tree} {
				if got := create(source, filepath.Join(dir, "again")); !bytes.Equal(got, want) {
					t.Errorf("%q of %s with %d processors differs", options, filepath.Base(source), n)
				}
			}
		}
		runtime.GOMAXPROCS(processors)
	}
}

// variedArchive has files of all types, links, and contents of several pieces.
func variedArchive(t *testing.T) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := cpio.NewWriter(&buf)
	ino := uint32(0)
	add := func(h cpio.Header, body []byte) {
		t.Helper()
		if h.Ino == 0 {
			ino++
			h.Ino = ino
		}
		h.NLink = max(h.NLink, 1)
		h.Size = int64(len(body))
		h.MTime = 1_500_000_000 + int64(h.Ino)
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(body); err != nil {
			t.Fatal(err)
		}
	}
	add(cpio.Header{Name: ".", Mode: cpio.TypeDir | 0o711, UID: 1, GID: 2}, nil)
	add(cpio.Header{Name: "dev", Mode: cpio.TypeDir | 0o755}, nil)
	add(cpio.Header{Name: "dev/null", Mode: cpio.TypeChar | 0o666, RDevMajor: 1, RDevMinor: 3}, nil)
	add(cpio.Header{Name: "dev/disk", Mode: cpio.TypeBlock | 0o660, RDevMajor: 259, RDevMinor: 70_001}, nil)
	add(cpio.Header{Name: "dev/fifo", Mode: cpio.TypeFIFO | 0o600}, nil)
	add(cpio.Header{Name: "dev/link", Mode: cpio.TypeSymlink | 0o777, UID: 7}, []byte("../large"))
	var large []byte
	for i := 0; len(large) < 5<<20; i++ {
		large = strconv.AppendInt(append(large, "line "...), int64(i*i), 36)
	}
	add(cpio.Header{Name: "large", Mode: cpio.TypeRegular | 0o4755, UID: 70_000}, large)
	add(cpio.Header{Name: "zeros", Mode: cpio.TypeRegular | 0o600}, make([]byte, 1<<20))
	for i := range 200 {
		body := large[i*i : i*i+i*97]
		add(cpio.Header{Name: "small" + strconv.Itoa(i), Mode: cpio.TypeRegular | 0o640}, body)
		if i%3 == 0 {
			add(cpio.Header{Name: "again" + strconv.Itoa(i), Mode: cpio.TypeRegular | 0o644}, body)
		}
	}
	ino++
	for _, name := range []string{"name", "dev/other"} {
		add(cpio.Header{Name: name, Ino: ino, NLink: 2, Mode: cpio.TypeRegular | 0o644}, []byte("of two names"))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}
