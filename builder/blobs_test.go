package builder

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"initoverlayfs/initrd/bootconf"
)

// blobOptions builds an image whose data goes into blobs of a new folder.
func blobOptions(t *testing.T, settings ...string) Options {
	a := newArchive(t)
	generators["initramfs-tools with busybox"].make(a)
	a.file("large", strings.Repeat("not behind an inode ", 1000))
	o := buildOptions(t, oldKernel(), a.save(), settings...)
	o.Image.Compress = ImageCompression{}
	o.Image.BlobDir = t.TempDir()
	return o
}

// A build tells storage-init where the blobs of its image are.
func TestBuildBlobs(t *testing.T) {
	for _, test := range []struct {
		name     string
		settings []string
		want     func(blob string) string
	}{
		{"beside the image", []string{"backend loop", "bootfs LABEL=boot"}, func(blob string) string { return "/" + blob }},
		{"in its folder", []string{"backend ram", "bootfs LABEL=boot", "fs /boot/x.img"}, func(blob string) string { return "/boot/" + blob }},
		{"named", []string{"backend block", "device PARTLABEL=blob"}, func(string) string { return "PARTLABEL=blob" }},
		{"auto", []string{"bootfs LABEL=boot"}, func(blob string) string { return "/" + blob }},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := blobOptions(t, test.settings...)
			m, err := Build(context.Background(), o)
			if err != nil {
				t.Fatal(err)
			}
			blobs := namesIn(t, o.Image.BlobDir)
			if len(blobs) != 1 || !strings.HasSuffix(blobs[0], bootconf.BlobSuffix) {
				t.Fatalf("the folder of blobs has %q", blobs)
			}
			if diff := cmp.Diff(blobs, m.Image.Blobs); diff != "" {
				t.Errorf("blobs in the manifest (-want +got):\n%s", diff)
			}
			c, err := MiniConfig(filepath.Join(o.OutputDir, m.Mini.File))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]string{test.want(blobs[0])}, c.Devices); diff != "" {
				t.Errorf("key device (-want +got):\n%s", diff)
			}
			for _, b := range c.Backends {
				if b == bootconf.Pmem || b == bootconf.PmemDAX || b == bootconf.Block && c.Devices[0][0] == '/' {
					t.Errorf("backend %s is there", b)
				}
			}
		})
	}
}

func TestBuildBlobsFails(t *testing.T) {
	for _, test := range []struct {
		name     string
		settings []string
		change   func(*Options)
		want     string
	}{
		{"pmem", []string{"backend pmem"}, nil, "the backend pmem has no place for blobs"},
		{"embedded", []string{"backend embedded"}, nil, "the backend embedded has no place for blobs"},
		{"block without devices", []string{"backend block"}, nil, "the backend block needs to know the devices"},
		{"more devices", []string{"backend loop", "bootfs LABEL=boot", "device /a,/b"}, nil, "the image has 1 blobs, the key device names 2"},
		{"devices without blobs", []string{"backend loop", "bootfs LABEL=boot", "device /a"}, func(o *Options) { o.Image.BlobDir = "" },
			"the key device is for images with blobs"},
		{"reuse", []string{"backend loop", "bootfs LABEL=boot"}, func(o *Options) { o.Reuse = o.OutputDir }, "cannot be taken from an earlier build"},
		{"no folder", []string{"backend loop", "bootfs LABEL=boot"}, func(o *Options) { o.Image.BlobDir += "/none" }, "no such file or directory"},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := blobOptions(t, test.settings...)
			if test.change != nil {
				test.change(&o)
			}
			if _, err := Build(context.Background(), o); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one with %q", err, test.want)
			}
		})
	}
}
