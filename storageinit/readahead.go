package storageinit

import "initoverlayfs/storageinit/probe"

// readAheadBytes is the most of an image's metadata that is read ahead: that of a
// full tree with all drivers, and what a slow card reads in a few hundredths of a
// second.
const readAheadBytes = 1 << 20

// readAhead has the kernel read the image's inodes and directories while the boot
// goes on. EROFS asks for their blocks one by one and waits for each, which is
// half of all requests of a boot. It is best-effort. source is what is mounted; an
// image in memory has nothing to wait for.
func (b *boot) readAhead(source string, image *probe.EROFS) {
	offset, length := image.Metadata()
	if length = min(length, readAheadBytes); length == 0 {
		return
	}
	if err := b.sys.ReadAhead(source, offset, length); err != nil {
		b.log(levelWarn, "read ahead in "+source+": "+err.Error())
	}
}
