package storageinit

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"initoverlayfs/storageinit/probe"
)

// All metadata is read ahead, but not more than what is worth it.
func TestReadAhead(t *testing.T) {
	for _, test := range []struct{ blocks, metadata, want uint32 }{
		{100, 90, 10},
		{1000, 744, 256},
		{1000, 743, 256},
		{1000, 10, 256},
		{100, 100, 0},
		{100, 101, 0},
	} {
		head := erofsContent(imageUUID, true).head
		binary.LittleEndian.PutUint32(head[1024+36:], test.blocks)
		binary.LittleEndian.PutUint32(head[1024+40:], test.metadata)
		image, err := probe.ReadEROFS(bytes.NewReader(head))
		if err != nil {
			t.Fatal(err)
		}
		f := newFake(t)
		newBoot(f).readAhead("/dev/x", &image)
		var want []string
		if test.want > 0 {
			want = []string{fmt.Sprintf("read ahead in /dev/x: %d+%d", test.metadata<<12, test.want<<12)}
		}
		if !slices.Equal(f.calls, want) {
			t.Errorf("with metadata at block %d of %d: %q, want %q", test.metadata, test.blocks, f.calls, want)
		}
	}
}

func TestReadAheadFails(t *testing.T) {
	f := newFake(t, "backend loop", "bootfs LABEL=boot", "fs "+imagePath)
	f.inject = func(_ int, call string) error {
		if strings.HasPrefix(call, "read ahead") {
			return unix.EIO
		}
		return nil
	}
	f.run()
	if f.end != "exec" || !f.injected {
		t.Fatalf("the boot ends with %s: %s", f.end, f.fatal())
	}
	if want := "read ahead in /dev/loop0: input/output error"; len(f.linesWith(want)) != 1 {
		t.Errorf("no line %q in %q", want, f.logs)
	}
}
