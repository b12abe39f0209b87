package storageinit

import "errors"

// readOnlyOptions are the mount options by which a read-only mount does not
// replay the journal. A replay would write to a filesystem that a hibernated
// system still believes to be as it left it.
//
// Paths on a btrfs begin at its top, whichever subvolume is mounted by default.
var readOnlyOptions = map[string]string{
	"ext4":  "noload",
	"xfs":   "norecovery",
	"btrfs": "rescue=nologreplay,subvolid=5",
}

// mountBootfs mounts the filesystem of a device on bootfsDir.
func (b *boot) mountBootfs(d *device) error {
	fstype := b.conf.BootfsType
	if fstype == "" {
		if fstype = b.filesystem(d).Type; fstype == "" {
			return errors.New("no known filesystem (ext4, xfs, btrfs, vfat, erofs)")
		}
	}
	if err := b.sys.Mount(d.path(), bootfsDir, fstype, mountReadOnly, readOnlyOptions[fstype]); err != nil {
		return failed("mount "+fstype, err)
	}
	b.bootfsMounted = true
	return nil
}

// releaseBootfs unmounts bootfs: after a failed attempt, and when the image has
// been copied from it.
func (b *boot) releaseBootfs() error {
	if !b.bootfsMounted {
		return nil
	}
	if err := b.sys.Unmount(bootfsDir); err != nil {
		return failed("unmount "+bootfsDir, err)
	}
	b.bootfsMounted = false
	return nil
}
