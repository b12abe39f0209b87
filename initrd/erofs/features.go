package erofs

import (
	"fmt"
	"strconv"
	"strings"
)

// KernelVersion is a release of Linux, as 6.1.
type KernelVersion struct{ Major, Minor int }

// ParseKernelVersion reads the number that a release begins with: 6.1 of
// 6.1.0-56-amd64.
func ParseKernelVersion(release string) (KernelVersion, error) {
	major, rest, _ := strings.Cut(release, ".")
	minor := rest[:len(rest)-len(strings.TrimLeft(rest, "0123456789"))]
	v := KernelVersion{}
	var errMajor, errMinor error
	v.Major, errMajor = strconv.Atoi(major)
	v.Minor, errMinor = strconv.Atoi(minor)
	if errMajor != nil || errMinor != nil || v.Major < 0 {
		return KernelVersion{}, fmt.Errorf("%q does not begin with the version of a kernel, as 6.1", release)
	}
	return v, nil
}

// Before reports whether v is an older release than other.
func (v KernelVersion) Before(other KernelVersion) bool {
	return v.Major < other.Major || v.Major == other.Major && v.Minor < other.Minor
}

func (v KernelVersion) String() string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }

// Feature is something on the disk that a kernel has to know to mount an image
// or to read its files.
type Feature struct {
	Name  string
	Since KernelVersion // the release that brought it
}

// The features that the writer uses, with the releases that mkfs.erofs(1) and
// the history of fs/erofs name.
var (
	// FeatureFormat is the format itself, outside of drivers/staging, with LZ4
	// in physical clusters of 4 KiB and compact indexes.
	FeatureFormat       = Feature{"EROFS", KernelVersion{5, 4}}
	FeatureBigPcluster  = Feature{"physical clusters of more than 4096 bytes", KernelVersion{5, 13}}
	FeatureChunks       = Feature{"chunks and holes", KernelVersion{5, 15}}
	FeatureBlobs        = Feature{"extra devices", KernelVersion{5, 16}}
	FeatureZtailpacking = Feature{"ztailpacking", KernelVersion{5, 17}}
	FeatureFragments    = Feature{"fragments", KernelVersion{6, 1}}
	FeatureDedupe       = Feature{"dedupe", KernelVersion{6, 1}}
)

// Features are those that an image written with these options may have.
func (o Options) Features() []Feature {
	list := []Feature{FeatureFormat}
	for _, f := range []struct {
		used bool
		Feature
	}{
		{o.Compress, FeatureBigPcluster},
		{o.Holes || o.ChunkBytes > 0, FeatureChunks},
		{o.Ztailpacking, FeatureZtailpacking},
		{o.PackBytes > 0, FeatureFragments},
		{o.Dedupe, FeatureDedupe},
	} {
		if f.used {
			list = append(list, f.Feature)
		}
	}
	return list
}

// CheckKernel refuses options whose images the kernel cannot read.
func (o Options) CheckKernel(v KernelVersion) error {
	for _, f := range o.Features() {
		if v.Before(f.Since) {
			return &UnsupportedError{f, v}
		}
	}
	return nil
}

// UnsupportedError is a feature that a kernel is too old for.
type UnsupportedError struct {
	Feature Feature
	Kernel  KernelVersion
}

func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("kernel %v cannot read images with %s; Linux %v and later can", e.Kernel, e.Feature.Name, e.Feature.Since)
}
