package boots

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"initoverlayfs/builder"
	"initoverlayfs/disk"
	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/vmtest"
)

// putInBlobs makes a build put its data into blobs. The first of two is that of
// another image, which has the big file.
func (s spec) putInBlobs(o *builder.Options) error {
	var err error
	if o.Producer, err = builder.ProducerNamed("native"); err != nil {
		return err
	}
	o.Image.Compress = builder.ImageCompression{}
	o.Image.BlobDir = filepath.Join(o.OutputDir, "blobs")
	if err := os.Mkdir(o.Image.BlobDir, 0o700); err != nil || s.blobs < 2 {
		return err
	}
	other, err := archives.get(noInitTree, noInitTree.archive)
	if err != nil {
		return err
	}
	_, err = builder.CreateImage(context.Background(), builder.Source{Archive: other}, filepath.Join(o.OutputDir, "other"), o.Producer, o.Image, 0)
	return err
}

// blobDisk is a disk with a build's image and its blobs: on one filesystem, or as
// partitions that are called blob0, blob1.
func (b *build) blobDisk(tb testing.TB, backend bootconf.Backend, blobs []string) vmtest.Drive {
	tb.Helper()
	if backend != bootconf.Block {
		part := b.filePartition("boot")
		for i, path := range blobs {
			if path != "" {
				part.Files[b.conf.Devices[i]] = path
			}
		}
		return drive(vmtest.VirtioBlk, bootDisk(tb, part))
	}
	parts := []disk.Partition{b.imagePartition()}
	for i, path := range blobs {
		if path != "" {
			parts = append(parts, disk.Partition{Label: fmt.Sprintf("blob%d", i), Image: path})
		}
	}
	return drive(vmtest.VirtioBlk, bootDisk(tb, parts...))
}

// blobBuilds are a build for each backend that serves blobs.
var blobBuilds = []struct {
	backend bootconf.Backend
	spec    spec
}{
	{bootconf.Loop, spec{config: "backend loop\n" + onBootLabel, blobs: 1}},
	{bootconf.Loop, spec{config: "backend loop\n" + onBootLabel, blobs: 2}},
	{bootconf.RAM, spec{config: "backend ram\n" + onBootLabel, blobs: 2}},
	{bootconf.File, spec{config: "backend file\n" + onBootLabel, blobs: 2, kernel: "kernel-6.12"}},
	{bootconf.Block, spec{config: "backend block\ndevice PARTLABEL=blob0\n", blobs: 1}},
	{bootconf.Block, spec{config: "backend block\ndevice PARTLABEL=blob0,PARTLABEL=blob1\n", blobs: 2}},
}

// TestBlobs boots images that have their data in blobs, and reads a file that
// lies in one of them.
func TestBlobs(t *testing.T) {
	t.Parallel()
	for _, test := range blobBuilds {
		t.Run(fmt.Sprintf("%s %d", test.backend, test.spec.blobs), func(t *testing.T) {
			t.Parallel()
			b := test.spec.build(t)
			if got := len(b.blobs); got != test.spec.blobs {
				t.Fatalf("the image has %d blobs, want %d", got, test.spec.blobs)
			}
			m := b.machine(t)
			m.Drives = append(m.Drives, b.blobDisk(t, test.backend, b.blobs))
			wantCachedOnce(t, b.boot(t, m, test.backend, growthOfBig))
		})
	}
}

// TestBadBlobs does not boot what would fail later: without a blob, with a part
// of one, with one in the place of another.
func TestBadBlobs(t *testing.T) {
	t.Parallel()
	for _, test := range blobBuilds {
		if test.spec.blobs < 2 || test.backend == bootconf.RAM {
			continue
		}
		t.Run(string(test.backend), func(t *testing.T) {
			t.Parallel()
			b := test.spec.build(t)
			short := filepath.Join(t.TempDir(), "short")
			data, err := os.ReadFile(b.blobs[0])
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(short, data[:len(data)/2], 0o600); err != nil {
				t.Fatal(err)
			}
			reversed := "initoverlayfs.device=" + b.conf.Devices[1] + "," + b.conf.Devices[0]
			for _, bad := range []struct {
				name, word string
				blobs      []string
				want       []string
			}{
				{"missing", "", []string{b.blobs[0], ""}, []string{"extra device " + b.conf.Devices[1], "no such"}},
				{"truncated", "", []string{short, b.blobs[1]}, []string{"extra device " + b.conf.Devices[0], "bytes, the image says"}},
				{"order", reversed, b.blobs, []string{"extra device " + b.conf.Devices[1], "bytes, the image says"}},
			} {
				t.Run(bad.name, func(t *testing.T) {
					t.Parallel()
					words := []string{"initoverlayfs.timeout=1", rebootSoon}
					if bad.word != "" {
						words = append(words, bad.word)
					}
					m := b.machine(t, words...)
					m.Drives = append(m.Drives, b.blobDisk(t, test.backend, bad.blobs))
					failure{words: bad.want, timeoutS: 1, policy: "reboot:1"}.boot(t, m)
				})
			}
		})
	}
}
