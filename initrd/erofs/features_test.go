package erofs

import (
	"errors"
	"testing"
)

func TestParseKernelVersion(t *testing.T) {
	for in, want := range map[string]KernelVersion{
		"6.1": {6, 1}, "6.1.0-56-amd64": {6, 1}, "5.15.0-1-generic": {5, 15}, "6.12+deb13-amd64": {6, 12}, "7.2-rc1": {7, 2}, "10.0": {10, 0},
	} {
		if got, err := ParseKernelVersion(in); err != nil || got != want {
			t.Errorf("ParseKernelVersion(%q) = %v, %v; want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "6", "6.", "6.x", "v6.1", ".1", "-6.1", "linux", "99999999999999999999.1"} {
		if got, err := ParseKernelVersion(in); err == nil {
			t.Errorf("ParseKernelVersion(%q) = %v, want an error", in, got)
		}
	}
}

func TestCheckKernel(t *testing.T) {
	all := Options{Compress: true, PclusterBytes: 65536, Ztailpacking: true, PackBytes: 1, Dedupe: true}
	tests := []struct {
		name   string
		o      Options
		kernel KernelVersion
		want   string // feature that is missing
	}{
		{"no EROFS", Options{}, KernelVersion{5, 3}, "EROFS"},
		{"plain", Options{}, KernelVersion{5, 4}, ""},
		{"pclusters", Options{Compress: true, PclusterBytes: 65536}, KernelVersion{5, 12}, FeatureBigPcluster.Name},
		{"pclusters on 5.13", Options{Compress: true, PclusterBytes: 65536}, KernelVersion{5, 13}, ""},
		{"holes", Options{Holes: true}, KernelVersion{5, 14}, FeatureChunks.Name},
		{"chunks", Options{ChunkBytes: 4096}, KernelVersion{5, 14}, FeatureChunks.Name},
		{"chunks on 5.15", Options{ChunkBytes: 4096}, KernelVersion{5, 15}, ""},
		{"first of all", all, KernelVersion{5, 16}, "ztailpacking"},
		{"fragments", all, KernelVersion{5, 19}, "fragments"},
		{"dedupe", Options{Compress: true, PclusterBytes: 65536, Dedupe: true}, KernelVersion{6, 0}, "dedupe"},
		{"all", all, KernelVersion{6, 1}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.o.CheckKernel(tt.kernel)
			var unsupported *UnsupportedError
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("error %v", err)
			case tt.want != "" && (!errors.As(err, &unsupported) || unsupported.Feature.Name != tt.want || unsupported.Kernel != tt.kernel):
				t.Errorf("error %v, want one about %s", err, tt.want)
			}
		})
	}
}
