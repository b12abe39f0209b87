package builder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"initoverlayfs/initrd/cpio"
	"initoverlayfs/initrd/erofs"
	"initoverlayfs/initrd/lz4hc"
)

// native makes images itself.
type native struct{}

// nativeVersion changes with the bytes that are made of a tree.
const nativeVersion = "native 2"

func (native) Begin(_ context.Context, o ImageOptions) (ImageWriter, error) {
	o, err := o.settle(false)
	if err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(o.TempDir, "initoverlayfs-image-")
	if err != nil {
		return nil, err
	}
	w := &nativeWriter{spool: f, identity: nativeVersion + " " + o.identity(), boot: o.BootFiles}
	if o.BlobDir != "" {
		if w.blobs, err = openBlobDir(o.BlobDir); err != nil {
			return nil, errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
		w.identity += w.blobs.identity()
	}
	// Nothing is left behind, however this ends.
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	w.Writer, err = erofs.NewWriter(f, o.writerOptions())
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

// lz4Level maps the levels that LZ4's own compressor has.
func lz4Level(c ImageCompression) lz4hc.Level {
	switch {
	case c.Algorithm == "lz4" || c.Level < 4:
		return lz4hc.Fast
	case c.Level < 10:
		return lz4hc.Default
	}
	return lz4hc.Max
}

type nativeWriter struct {
	*erofs.Writer
	spool    *os.File // without a name
	identity string
	boot     BootFiles
	blobs    *blobDir // nil: the image has its contents itself
}

func (w *nativeWriter) Identity() string { return w.identity }

func (w *nativeWriter) BootFiles() BootFiles { return w.boot }

func (w *nativeWriter) Add(source io.ReaderAt, size int64) (int64, error) {
	return w.Writer.Add(source, size), nil
}

func (w *nativeWriter) Close() error { return errors.Join(w.spool.Close(), w.blobs.close()) }

func (w *nativeWriter) Write(ctx context.Context, path string, tree *cpio.Tree, boot bootOrder, id erofs.Identity) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	root := (&erofsNodes{boot: boot, known: make(map[*cpio.Node]*erofs.Node)}).node(tree.Root())
	var size int64
	if w.blobs != nil {
		size, err = w.blobs.write(ctx, w.Writer, &writebackFile{File: f}, root, id)
	} else {
		size, err = w.Writer.Write(ctx, &writebackFile{File: f}, root, id)
	}
	if err == nil {
		err = f.Truncate(size)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// erofsNodes makes the writer's nodes. The tree is taken apart, because with many
// files there is no room for it twice.
type erofsNodes struct {
	boot  bootOrder
	known map[*cpio.Node]*erofs.Node // those with several names
}

func (e *erofsNodes) node(n *cpio.Node) *erofs.Node {
	if known, ok := e.known[n]; ok {
		return known
	}
	en := &erofs.Node{
		Mode: n.Mode, UID: n.UID, GID: n.GID, MTime: n.MTime, MTimeNsec: n.MTimeNsec, Xattrs: n.Xattrs, RDevMajor: n.RDevMajor, RDevMinor: n.RDevMinor,
		Size: n.Size, Ref: n.Ref, Target: n.Target, Boot: e.boot[n],
	}
	if n.IsDir() {
		en.Children = make(map[string]*erofs.Node, len(n.Children))
		for name, child := range n.Children {
			en.Children[name] = e.node(child)
		}
		n.Children = nil
	} else if n.NLink > 1 {
		e.known[n] = en
	}
	return en
}
