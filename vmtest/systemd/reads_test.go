package systemd

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/vmtest/fixtures"
)

// BenchmarkImageReads boots a dracut tree from differently laid out images to
// multi-user.target, through each backend that reads on demand, and says what was
// read of the image. The kernel reads and decompresses whole clusters, so that a
// smaller image may cost more to boot from.
//
// Requests and kB are those of the disk with the image. A loop device's are of
// its boot filesystem, the metadata included. Through persistent memory, where
// nothing waits, the time to the first message of the tree's init is in billions
// of instructions.
//
//	INITOVERLAYFS_VM=full go test ./vmtest/systemd -run '^$' -bench ImageReads -timeout 0
func BenchmarkImageReads(b *testing.B) {
	fixtures.RequireBoots(b, fixtures.All)
	root := fixtures.Path(b, rootDisk)
	for _, test := range []struct {
		name   string
		mkfs19 bool
		args   []string
	}{
		{"none", false, []string{"--image-features", "no-ztailpacking,no-dedupe,no-fragments"}},
		{"ztail", false, []string{"--image-features", "ztailpacking,no-dedupe,no-fragments"}},
		{"ztail+dedupe", false, []string{"--image-features", "ztailpacking,dedupe,no-fragments"}},
		{"ztail+dedupe+fragments", false, []string{"--image-features", "ztailpacking,dedupe,fragments"}},
		{"mkfs.erofs-1.9-none", true, []string{"--mkfs", "mkfs.erofs"}},
		// The wrapper makes them all-fragments.
		{"mkfs.erofs-1.9-dedupe+all-fragments", true, []string{"--mkfs", "mkfs.erofs", "--image-features", "dedupe,fragments"}},
		{"16k-ztail+dedupe", false, []string{"--pcluster", "16384", "--image-features", "ztailpacking,dedupe,no-fragments"}},
		{"16k-ztail+dedupe+fragments", false, []string{"--pcluster", "16384", "--image-features", "ztailpacking,dedupe,fragments"}},
		{"32k-ztail+dedupe+fragments", false, []string{"--pcluster", "32768", "--image-features", "ztailpacking,dedupe,fragments"}},
	} {
		b.Run(test.name, func(b *testing.B) {
			if test.mkfs19 {
				needTools(b, "fakeroot")
				b.Setenv("PATH", mkfs19(b)+":"+os.Getenv("PATH"))
			}
			first := filepath.Join(b.TempDir(), "first") // build of this layout
			for _, backend := range []bootconf.Backend{bootconf.Block, bootconf.Loop, bootconf.Pmem} {
				b.Run(string(backend), func(b *testing.B) {
					args := append([]string{"--backend", string(backend), "--image-compress", fastImage, "--kernel-version", "6.1"}, test.args...)
					if backend == bootconf.Loop {
						args = append(args, "--bootfstype", "ext4")
					}
					if backend != bootconf.Block {
						args = append(args, "--reuse", first)
					}
					built := build(b, "kernel-6.1", "dracut-6.1.img", args...)
					var total reads
					runs := 0.0
					for b.Loop() {
						args := []string{"--dir", built.dir, "--backend", string(backend), "--rootdisk", root, "--accel", "tcg", "--timeout", "20m"}
						if backend == bootconf.Pmem {
							args = append(args, "--icount")
						}
						total.add(readsOf(boot(b, built.kernel, args...), backend))
						runs++
					}
					b.ReportMetric(float64(built.Image.Size)/1e6, "image-MB")
					for i, name := range []string{"requests", "kB", "major-faults", "faults", "Ginstr-init"} {
						if total[i] > 0 {
							b.ReportMetric(total[i]/runs, name)
						}
					}
					b.ReportMetric(0, "ns/op") // of the host, which says nothing here
					if backend == bootconf.Block {
						if err := os.Rename(built.dir, first); err != nil {
							b.Fatal(err)
						}
					}
				})
			}
		})
	}
}

// reads are what one boot took; 0 is what its backend does not tell.
type reads [5]float64

func (r *reads) add(other reads) {
	for i := range r {
		r[i] += other[i]
	}
}

func readsOf(d document, backend bootconf.Backend) reads {
	image, init := d.Done.Disks["vda1"], 0.0
	if backend == bootconf.Pmem {
		// Its driver counts nothing: what no disk was asked for.
		image.KB = d.Done.ReadKB - d.Done.Disks["vda"].KB
		init = *d.InitfsInitS
	}
	return reads{float64(image.Requests), float64(image.KB), float64(d.Done.MajorFaults), float64(d.Done.Faults), init}
}

// mkfs19 is a folder with an mkfs.erofs that takes whole files for fragments, and
// not only their ends. It gets its libraries from where fakeroot's are, too, which
// the fixture's own does not look for.
func mkfs19(b *testing.B) string {
	b.Helper()
	dir := b.TempDir()
	script := fmt.Sprintf(`#!/bin/sh
for word; do
	shift
	[ "$word" != -Efragments ] || word=-Eall-fragments
	set -- "$@" "$word"
done
dir=%s
exec "$dir/lib/ld-linux-x86-64.so.2" --library-path "$dir/lib:$LD_LIBRARY_PATH" "$dir/bin/mkfs.erofs" "$@"
`, fixtures.Path(b, "erofs-utils-1.9"))
	if err := os.WriteFile(filepath.Join(dir, "mkfs.erofs"), []byte(script), 0o755); err != nil {
		b.Fatal(err)
	}
	return dir
}
