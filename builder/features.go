package builder

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"initoverlayfs/initrd/erofs"
)

// BaselineKernel is the one that images are made for if none is named. It is
// fixed, so that the bytes do not depend on the machine.
var BaselineKernel = erofs.KernelVersion{Major: 5, Minor: 15}

// Switch turns a feature on or off, or leaves that to the kernel.
type Switch int8

// Auto is on if the kernel that the image is for knows the feature.
const (
	Auto Switch = iota
	On
	Off
)

// ImageFeatures are the ways to make an image smaller; see erofs.Options.
type ImageFeatures struct {
	Holes                           Switch // of all images
	Ztailpacking, Fragments, Dedupe Switch // of compressed ones
	Chunks                          Switch // of uncompressed ones; Auto is off
	// FragmentBytes is the size of the largest contents that are packed together;
	// 0 is that of a physical cluster.
	FragmentBytes int64
	// ChunkBytes is the size of what is compared and shared; 0 is a block.
	ChunkBytes int64
}

type namedSwitch struct {
	name string
	*Switch
	feature erofs.Feature
	kind    imageKind
	bytes   *int64 // the value of a feature that has one
}

// imageKind says which images may have a feature.
type imageKind int

const (
	anyImage imageKind = iota
	compressedImage
	plainImage
)

func (f *ImageFeatures) switches() []namedSwitch {
	return []namedSwitch{
		{"holes", &f.Holes, erofs.FeatureChunks, anyImage, nil},
		{"ztailpacking", &f.Ztailpacking, erofs.FeatureZtailpacking, compressedImage, nil},
		{"fragments", &f.Fragments, erofs.FeatureFragments, compressedImage, &f.FragmentBytes},
		{"dedupe", &f.Dedupe, erofs.FeatureDedupe, compressedImage, nil},
		{"chunks", &f.Chunks, erofs.FeatureChunks, plainImage, &f.ChunkBytes},
	}
}

// ParseImageFeatures reads a list as `ztailpacking,fragments=65536,no-dedupe`.
// What it does not name stays Auto.
func ParseImageFeatures(list string) (ImageFeatures, error) {
	var f ImageFeatures
	for item := range strings.SplitSeq(list, ",") {
		if item == "" && list == "" {
			break
		}
		if err := f.set(item); err != nil {
			return ImageFeatures{}, err
		}
	}
	return f, nil
}

func (f *ImageFeatures) set(item string) error {
	name, value, hasValue := strings.Cut(item, "=")
	name, off := strings.CutPrefix(name, "no-")
	var names []string
	for _, s := range f.switches() {
		names = append(names, s.name)
		if s.name != name {
			continue
		}
		if *s.Switch != Auto {
			return fmt.Errorf("image feature %s is named twice", name)
		}
		*s.Switch = On
		if off {
			*s.Switch = Off
		}
		if !hasValue {
			return nil
		}
		n, err := strconv.ParseInt(value, 10, 64)
		if off || s.bytes == nil || err != nil || n < 1 {
			return fmt.Errorf("bad image feature %q; only fragments and chunks have a value, a number of bytes", item)
		}
		*s.bytes = n
		return nil
	}
	return fmt.Errorf("unknown image feature %q; those are %s, each also with no-", item, strings.Join(names, ", "))
}

// String gives the form that ParseImageFeatures reads, without what is Auto.
func (f ImageFeatures) String() string {
	var list []string
	for _, s := range f.switches() {
		switch {
		case *s.Switch == Off:
			list = append(list, "no-"+s.name)
		case *s.Switch == On && s.bytes != nil && *s.bytes > 0:
			list = append(list, fmt.Sprintf("%s=%d", s.name, *s.bytes))
		case *s.Switch == On:
			list = append(list, s.name)
		}
	}
	return strings.Join(list, ",")
}

// settle decides what is Auto and refuses what the kernel could not read. With
// frugal set, nothing is on that was not asked for.
func (o ImageOptions) settle(frugal bool) (ImageOptions, error) {
	if err := o.Check(); err != nil {
		return o, err
	}
	if o.Kernel == (erofs.KernelVersion{}) {
		o.Kernel = BaselineKernel
		if o.BlobDir != "" {
			o.Kernel = erofs.FeatureBlobs.Since
		}
	}
	compressed := !o.Compress.DAX()
	if o.BlobDir != "" && compressed {
		return o, &HintedError{errors.New("data in blobs is not compressed"), "add --image-compress none"}
	}
	for _, s := range o.Features.switches() {
		switch {
		case *s.Switch == On && !compressed && s.kind == compressedImage:
			return o, fmt.Errorf("image feature %s needs a compressed image", s.name)
		case *s.Switch == On && compressed && s.kind == plainImage:
			return o, fmt.Errorf("image feature %s needs an uncompressed image", s.name)
		case *s.Switch == Auto && !frugal && !o.Kernel.Before(s.feature.Since) &&
			(s.kind == anyImage || s.kind == compressedImage && compressed):
			*s.Switch = On
		case *s.Switch == Auto:
			*s.Switch = Off
		}
	}
	var unsupported *erofs.UnsupportedError
	err := o.writerOptions().CheckKernel(o.Kernel)
	if o.BlobDir != "" && o.Kernel.Before(erofs.FeatureBlobs.Since) {
		err = &erofs.UnsupportedError{Feature: erofs.FeatureBlobs, Kernel: o.Kernel}
	}
	if errors.As(err, &unsupported) {
		return o, &HintedError{err, "name another kernel with --kernel-version, or leave the feature out"}
	}
	return o, err
}

// identity tells apart the options of which the image's bytes differ.
func (o ImageOptions) identity() string {
	return fmt.Sprintf("%s %d %s", o.Compress, o.PclusterBytes, o.Features)
}

// writerOptions are those of the writer for settled options.
func (o ImageOptions) writerOptions() erofs.Options {
	if o.Compress.DAX() {
		w := erofs.Options{DAX: o.BlobDir == "", Holes: o.Features.Holes == On}
		if o.Features.Chunks == On || o.BlobDir != "" {
			if w.ChunkBytes = int(o.Features.ChunkBytes); w.ChunkBytes == 0 {
				w.ChunkBytes = defaultChunkBytes
			}
		}
		return w
	}
	w := erofs.Options{
		Holes:         o.Features.Holes == On,
		Compress:      true,
		Level:         lz4Level(o.Compress),
		PclusterBytes: o.PclusterBytes,
		Ztailpacking:  o.Features.Ztailpacking == On,
		Dedupe:        o.Features.Dedupe == On,
	}
	if o.Features.Fragments == On {
		if w.PackBytes = o.Features.FragmentBytes; w.PackBytes == 0 {
			w.PackBytes = int64(o.PclusterBytes)
		}
	}
	return w
}
