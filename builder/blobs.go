package builder

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/initrd/erofs"
)

// defaultChunkBytes finds most of what is equal, also in blobs. Chunks that lie
// together are one in an inode's map.
const defaultChunkBytes = 4096

// BlobName is the name of the file of a blob.
func BlobName(d erofs.Device) string { return d.Tag + bootconf.BlobSuffix }

// blobDir is a folder of blobs, named by their content.
type blobDir struct {
	dir   string
	blobs []erofs.Blob // by name
	files []*os.File
}

func openBlobDir(dir string) (_ *blobDir, err error) {
	entries, err := os.ReadDir(dir) // sorted
	if err != nil {
		return nil, err
	}
	b := &blobDir{dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	for _, e := range entries {
		digits, ok := strings.CutSuffix(e.Name(), bootconf.BlobSuffix)
		if !ok || strings.HasPrefix(digits, ".") {
			continue
		}
		blob := erofs.Blob{}
		sum, err := hex.DecodeString(digits)
		if err != nil || len(sum) != len(blob.SHA256) || digits != strings.ToLower(digits) {
			return nil, fmt.Errorf("%s: the name is not a SHA-256", filepath.Join(dir, e.Name()))
		}
		f, err := os.Open(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		b.files = append(b.files, f)
		if blob.Size, err = f.Seek(0, io.SeekEnd); err != nil {
			return nil, err
		}
		blob.SHA256, blob.Data = [len(blob.SHA256)]byte(sum), f
		b.blobs = append(b.blobs, blob)
	}
	return b, nil
}

func (b *blobDir) close() (err error) {
	if b != nil {
		for _, f := range b.files {
			err = errors.Join(err, f.Close())
		}
	}
	return err
}

// identity names the blobs, which decide over what the image refers to.
func (b *blobDir) identity() string {
	var s strings.Builder
	for _, blob := range b.blobs {
		fmt.Fprintf(&s, " %x", blob.SHA256)
	}
	return s.String()
}

// write writes an image, and the blob of what no other one has. That is complete
// and durable before it has its name.
func (b *blobDir) write(ctx context.Context, w *erofs.Writer, out io.WriterAt, root *erofs.Node, id erofs.Identity) (_ int64, err error) {
	f, err := os.CreateTemp(b.dir, ".new.*.tmp")
	if err != nil {
		return 0, err
	}
	defer func() {
		if f != nil {
			err = errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}()
	split, err := w.WriteSplit(ctx, out, f, b.blobs, root, id)
	if err != nil || !split.New {
		return split.Size, err
	}
	if err := f.Sync(); err != nil {
		return 0, err
	}
	name := filepath.Join(b.dir, BlobName(split.Devices[len(split.Devices)-1]))
	if err := os.Rename(f.Name(), name); err != nil {
		return 0, err
	}
	named := f
	f = nil
	return split.Size, errors.Join(named.Close(), SyncDir(b.dir))
}

// checkBlobs refuses what an image with its data in blobs cannot be used for.
func (o *Options) checkBlobs(c *bootconf.Config) error {
	if o.Image.BlobDir == "" {
		if len(c.Devices) > 0 {
			return errors.New("the key device is for images with blobs")
		}
		return nil
	}
	if o.Reuse != "" {
		return errors.New("an image with blobs cannot be taken from an earlier build")
	}
	for _, backend := range c.Backends {
		if !servesBlobs(backend) {
			return fmt.Errorf("the backend %s has no place for blobs", backend)
		}
	}
	if slices.Contains(c.Backends, bootconf.Block) && len(c.Devices) == 0 {
		return errors.New("the backend block needs to know the devices that hold the blobs")
	}
	return nil
}

// servesBlobs reports whether a build with this backend may have blobs.
func servesBlobs(b bootconf.Backend) bool {
	return b == bootconf.Block || b.OnBootfs()
}

// nameBlobs tells storage-init where the blobs are: beside the image, unless the
// configuration says it.
func nameBlobs(c *bootconf.Config, devices []erofs.Device) error {
	if len(c.Devices) == 0 {
		for _, d := range devices {
			c.Devices = append(c.Devices, path.Join(path.Dir(c.FS), BlobName(d)))
		}
	}
	if len(c.Devices) != len(devices) {
		return fmt.Errorf("the image has %d blobs, the key device names %d", len(devices), len(c.Devices))
	}
	return nil
}
