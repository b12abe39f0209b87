package storageinit

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"

	"initoverlayfs/initrd/bootconf"
)

// Two blobs, of one block and of two.
var (
	tagA = strings.Repeat("a", 64)
	tagB = strings.Repeat("b", 64)

	blobA = "/" + tagA + bootconf.BlobSuffix
	blobB = "/" + tagB + bootconf.BlobSuffix
)

// needBlobs gives an image a device table with both blobs.
func needBlobs(c *fakeContent) {
	c.head = slices.Clone(c.head)
	super := c.head[1024:]
	super[80] |= 0x8
	binary.LittleEndian.PutUint16(super[86:], 2)
	binary.LittleEndian.PutUint16(super[88:], 9)
	for i, tag := range []string{tagA, tagB} {
		slot := c.head[9*128+i*128:]
		copy(slot, tag)
		binary.LittleEndian.PutUint32(slot[64:], uint32(i+1))
	}
}

// blobMachine has an image with two blobs for every backend, and the blobs.
func blobMachine(t *testing.T, lines ...string) *fakeSystem {
	f := newFake(t, lines...)
	files := f.disks[1].files
	needBlobs(files[imagePath])
	needBlobs(&f.disks[2].fakeContent)
	embedded := erofsContent(imageUUID, false)
	needBlobs(&embedded)
	f.embedded = &embedded
	f.blobs = map[string]*fakeContent{}
	for i, name := range []string{blobA, blobB} {
		files[name] = &fakeContent{size: int64(i+1) << 12}
		f.blobs[name] = files[name]
		part := &fakeBlock{name: fmt.Sprintf("vda%d", i+4), part: "blob" + name[1:2], fakeContent: fakeContent{size: 1 << 20}}
		f.disks = append(f.disks, part)
	}
	disk := gptDisk("vda", f.disks[1:]...)
	f.disks[0] = disk
	return f
}

const onDisk = "device PARTLABEL=bloba,PARTLABEL=blobb"

func onFiles() string { return "device " + blobA + "," + blobB }

func TestBlobs(t *testing.T) {
	for _, test := range []struct {
		backend, device string
		want            string // call
	}{
		{"loop", onFiles(), "mount /dev/loop2 on /lower type erofs (ro,device=/dev/loop0,device=/dev/loop1)"},
		{"ram", onFiles(), "mount /dev/loop2 on /lower type erofs (ro,device=/dev/loop0,device=/dev/loop1)"},
		{"embedded", onFiles(), "mount /dev/loop2 on /lower type erofs (ro,device=/dev/loop0,device=/dev/loop1)"},
		{"file", onFiles(), "mount /proc/self/fd/(/bootfs" + imagePath + ") on /lower type erofs (ro,directio,device=/proc/self/fd/(/bootfs" + blobA +
			"),device=/proc/self/fd/(/bootfs" + blobB + "))"},
		{"block", onDisk, "mount /dev/vda2 on /lower type erofs (ro,device=/dev/vda4,device=/dev/vda5)"},
		{"block", "device /dev/vda4,/dev/vda5", "mount /dev/vda2 on /lower type erofs (ro,device=/dev/vda4,device=/dev/vda5)"},
	} {
		t.Run(test.backend, func(t *testing.T) {
			lines := []string{"backend " + test.backend, "fs " + imagePath, test.device}
			if test.backend != "block" {
				lines = append(lines, "bootfs LABEL=boot")
			}
			f := blobMachine(t, lines...)
			f.run()
			wantBoot(t, f, test.backend)
			if !f.called(test.want) {
				t.Errorf("no call %q in %q", test.want, f.callsWith("mount"))
			}
		})
	}
}

func TestBlobOnCommandLine(t *testing.T) {
	f := blobMachine(t, append(loopLines, "device /other,/names")...)
	f.setCmdline("initoverlayfs.device=" + blobA + "," + blobB)
	f.run()
	wantBoot(t, f, "loop")
}

// A blob that is missing or another one is said, and nothing is mounted.
func TestBadBlobs(t *testing.T) {
	files := func(change func(map[string]*fakeContent)) func(*fakeSystem) {
		return func(f *fakeSystem) { change(f.disks[1].files) }
	}
	block := []string{"backend block", onDisk}
	loop := append(slices.Clone(loopLines), onFiles())
	for _, test := range []struct {
		name   string
		lines  []string
		change func(*fakeSystem)
		want   string
	}{
		{"missing file", loop, files(func(m map[string]*fakeContent) { delete(m, blobB) }),
			"no image after 30 s: loop: /dev/vda1: extra device " + blobB + ": no such file or directory"},
		{"short file", loop, files(func(m map[string]*fakeContent) { m[blobB].size-- }),
			"extra device " + blobB + ": it has 8191 bytes, the image says 8192"},
		{"long file", loop, files(func(m map[string]*fakeContent) { m[blobA].size++ }),
			"extra device " + blobA + ": it has 4097 bytes, the image says 4096"},
		{"order", append(slices.Clone(loopLines), "device "+blobB+","+blobA), nil,
			"extra device " + blobB + ": it has 8192 bytes, the image says 4096"},
		{"order of equal sizes", append(slices.Clone(loopLines), "device "+blobB+","+blobA),
			files(func(m map[string]*fakeContent) { m[blobA].size, m[blobB].size = 8192, 4096 }),
			"extra device " + blobB + ": the image has " + tagA + " in its place"},
		{"one", append(slices.Clone(loopLines), "device "+blobA), nil, "the image needs 2 extra devices, the key device names 1"},
		{"none", loopLines, nil, "the image needs 2 extra devices, the key device names 0"},
		{"three", append(slices.Clone(loopLines), onFiles()+",/c"), nil, "the image needs 2 extra devices, the key device names 3"},
		{"tag for a file", append(slices.Clone(loopLines), onDisk), nil, "extra device PARTLABEL=bloba: not a path"},
		{"ram: missing", []string{"backend ram", "bootfs LABEL=boot", "fs " + imagePath, onFiles()},
			files(func(m map[string]*fakeContent) { delete(m, blobA) }), "extra device " + blobA + ": no such file"},
		{"embedded: missing", []string{"backend embedded", onFiles()}, func(f *fakeSystem) { f.blobs = nil },
			"no image: embedded: extra device " + blobA + ": no such file"},
		{"block: missing", block, func(f *fakeSystem) { f.disks = f.disks[:5] },
			"no image after 30 s: block: /dev/vda2: extra device PARTLABEL=blobb: no such device"},
		{"block: short", block, func(f *fakeSystem) { f.disks[5].size = 8191 },
			"extra device PARTLABEL=blobb: it has 8191 bytes, the image says 8192"},
		{"file for a device", []string{"backend block", onFiles()}, nil, "extra device " + blobA + ": bad tag"},
		{"pmem", []string{"backend pmem", onFiles()}, func(f *fakeSystem) {
			f.addPmem(false)
			needBlobs(&f.pmems[0].fakeContent)
		}, "extra device " + blobA + ": an image in memory cannot have extra devices"},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := blobMachine(t, test.lines...)
			if test.change != nil {
				test.change(f)
			}
			f.run()
			if !strings.Contains(f.fatal(), test.want) {
				t.Errorf("fatal %q, want %q", f.fatal(), test.want)
			}
			if calls := f.callsWith("mount"); slices.ContainsFunc(calls, func(c string) bool { return strings.Contains(c, lowerDir) }) {
				t.Errorf("the image is mounted: %q", calls)
			}
		})
	}
}

// A blob on a disk that appears later than the image's.
func TestLateBlob(t *testing.T) {
	f := blobMachine(t, "backend block", onDisk)
	late := f.disks[5]
	f.disks = f.disks[:5]
	f.events = append(f.events, fakeEvent{at: 3, Uevent: Uevent{Block: late.name}, do: func(f *fakeSystem) { f.blocks = append(f.blocks, late) }})
	f.run()
	wantBoot(t, f, "block")
}

// The events of the loop devices that an attempt made do not begin another one.
func TestLoopEventsDoNotRetry(t *testing.T) {
	f := blobMachine(t, append(slices.Clone(loopLines), onFiles())...)
	delete(f.disks[1].files, blobB)
	for i := range 3 {
		f.events = append(f.events, fakeEvent{at: int64(i + 1), Uevent: Uevent{Block: "loop0"}})
	}
	f.run()
	if got := len(f.callsWith("attach loop to /bootfs" + blobA)); got != 1 {
		t.Errorf("the first blob is attached %d times, want once", got)
	}
}
