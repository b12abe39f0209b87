package builder

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"initoverlayfs/initrd/erofs"
)

func TestParseImageFeatures(t *testing.T) {
	for in, want := range map[string]ImageFeatures{
		"":                                       {},
		"ztailpacking":                           {Ztailpacking: On},
		"no-holes,chunks=65536":                  {Holes: Off, Chunks: On, ChunkBytes: 65536},
		"no-dedupe,fragments":                    {Dedupe: Off, Fragments: On},
		"fragments=4096,no-ztailpacking":         {Fragments: On, FragmentBytes: 4096, Ztailpacking: Off},
		"dedupe,fragments=1,ztailpacking":        {Ztailpacking: On, Fragments: On, FragmentBytes: 1, Dedupe: On},
		"no-dedupe,no-fragments,no-ztailpacking": {Ztailpacking: Off, Fragments: Off, Dedupe: Off},
	} {
		got, err := ParseImageFeatures(in)
		if err != nil || got != want {
			t.Errorf("ParseImageFeatures(%q) = %+v, %v; want %+v", in, got, err, want)
		}
		if back, err := ParseImageFeatures(got.String()); err != nil || back != got {
			t.Errorf("%q does not give back %+v: %+v, %v", got, got, back, err)
		}
	}
	for _, in := range []string{",", "dedupe,", "all", "no-", "no-no-dedupe", "fragments=", "fragments=0", "fragments=64k", "no-fragments=1", "holes=1", "chunks=0", "dedupe,dedupe"} {
		if got, err := ParseImageFeatures(in); err == nil {
			t.Errorf("ParseImageFeatures(%q) = %+v, want an error", in, got)
		}
	}
}

func TestSettle(t *testing.T) {
	lz4 := testLayouts()["lz4"]
	tests := []struct {
		name   string
		kernel erofs.KernelVersion
		asked  string
		frugal bool
		want   string
	}{
		{"baseline", erofs.KernelVersion{}, "", false, "holes,no-ztailpacking,no-fragments,no-dedupe,no-chunks"},
		{"5.13", erofs.KernelVersion{Major: 5, Minor: 13}, "", false, "no-holes,no-ztailpacking,no-fragments,no-dedupe,no-chunks"},
		{"5.17", erofs.KernelVersion{Major: 5, Minor: 17}, "", false, "holes,ztailpacking,no-fragments,no-dedupe,no-chunks"},
		{"6.1", erofs.KernelVersion{Major: 6, Minor: 1}, "", false, "holes,ztailpacking,fragments,dedupe,no-chunks"},
		{"7.2", erofs.KernelVersion{Major: 7, Minor: 2}, "no-fragments", false, "holes,ztailpacking,no-fragments,dedupe,no-chunks"},
		{"frugal", erofs.KernelVersion{Major: 6, Minor: 1}, "dedupe", true, "no-holes,no-ztailpacking,no-fragments,dedupe,no-chunks"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := lz4
			o.Kernel = tt.kernel
			var err error
			if o.Features, err = ParseImageFeatures(tt.asked); err != nil {
				t.Fatal(err)
			}
			settled, err := o.settle(tt.frugal)
			if err != nil || settled.Features.String() != tt.want {
				t.Errorf("settled to %q, %v; want %q", settled.Features, err, tt.want)
			}
		})
	}
}

func TestMkfsFeatures(t *testing.T) {
	tests := []struct {
		asked, version string
		want           []string
		err            string
	}{
		{"no-ztailpacking", "1.5", nil, ""},
		{"ztailpacking", "1.5", []string{"-Eztailpacking"}, ""},
		{"ztailpacking", "1.4", nil, "mkfs.erofs 1.4 does not know ztailpacking; 1.5 and later do"},
		{"ztailpacking,fragments,dedupe", "1.8.6", []string{"-Eztailpacking", "-Efragments", "-Ededupe"}, ""},
		{"fragments", "1.5-dirty", nil, "1.6 and later"},
		{"dedupe", "1.5", nil, "1.6 and later"},
		{"fragments=1", "1.9", nil, "no limit"},
		{"holes", "1.9", nil, "no holes"},
		{"chunks=4096", "1.9", nil, "no chunks"},
		{"", "unknown", nil, "unknown"},
	}
	for _, tt := range tests {
		f, err := ParseImageFeatures(tt.asked)
		if err != nil {
			t.Fatal(err)
		}
		got, err := mkfsFeatures(f, tt.version)
		if tt.err == "" && (err != nil || !slices.Equal(got, tt.want)) {
			t.Errorf("mkfsFeatures(%s, %s) = %q, %v; want %q", tt.asked, tt.version, got, err, tt.want)
		}
		if tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
			t.Errorf("mkfsFeatures(%s, %s): error %v does not contain %q", tt.asked, tt.version, err, tt.err)
		}
	}
}

// Kernels that know the same features get the same image.
func TestIdentity(t *testing.T) {
	identity := func(kernel erofs.KernelVersion) string {
		o := testLayouts()["lz4"]
		o.Kernel = kernel
		o, err := o.settle(false)
		if err != nil {
			t.Fatal(err)
		}
		return o.identity()
	}
	old, six, later := identity(BaselineKernel), identity(erofs.KernelVersion{Major: 6, Minor: 1}), identity(erofs.KernelVersion{Major: 6, Minor: 12})
	if old == six {
		t.Errorf("the options for %v and 6.1 are both %q", BaselineKernel, old)
	}
	if diff := cmp.Diff(six, later); diff != "" {
		t.Errorf("6.1 and 6.12 (-6.1 +6.12):\n%s", diff)
	}
}
