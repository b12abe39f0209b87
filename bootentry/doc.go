// Package bootentry writes, lists and removes the boot loader entries of
// initoverlayfs pairs. It looks at no mounts: the caller says where the boot
// loader reads, and gives paths as the boot loader sees them.
//
// # Boot Loader Specification
//
// Type 1 entries (https://uapi-group.org/specifications/specs/boot_loader_specification/)
// serve systemd-boot and GRUB's blscfg. PlainEntries finds what the distribution
// wrote for a kernel, WriteBLS derives ours from it, RemoveBLS removes them. Of a
// kernel V the menu shows our entry, the plain one, our previous one, and then
// the next older kernel's. What puts them in this order:
//
//   - systemd-boot, with a sort-key: the field version, which is V.initoverlayfs,
//     V and V~initoverlayfs.
//   - systemd-boot without a sort-key, GRUB 2.14: the file names
//     ID.initoverlayfs.conf, ID.conf and ID.backup.initoverlayfs.conf. "backup"
//     comes before "conf" in the alphabet. A '~' would do as well, but bootctl
//     and logind refuse it in the name of an entry.
//   - Fedora's GRUB: the file names without .conf, compared by rpm's rules, where
//     only a '~' comes before the end of a name. So the previous entry is called
//     ID~initoverlayfs.conf beside an entry that has keys of GRUB; Fedora's own
//     debug entries have such names.
//
// Where one of them meets names made for another one, the previous entry comes
// second and the plain one third; ours is first everywhere, with one exception:
// systemd-boot 252 (257 does not) counts the boot counter to the name, and puts the
// plain entry first where both have a counter and neither has a sort-key.
//
// An entry of ours has a comment line that says so. Comments are what all loaders
// pass over in silence: bootctl complains about a key that it does not know, and
// a line without a value, even an empty one, ends what GRUB reads of the file.
//
// # GRUB's own menu
//
// Where GRUB has no entries to read, GrubMenu prints menu entries. The script
// dracut/hooks/grub.d/09_initoverlayfs, which grub-mkconfig runs, calls
// "initoverlayfs hook grub" and copies what that prints into grub.cfg.
// ReadGrubDefaults computes what GrubMenu needs from the command's environment:
//
//	INITOVERLAYFS_GRUB_PREPARE    GRUB commands that make the filesystem of /boot
//	                              the root (prepare_grub_to_access_device)
//	INITOVERLAYFS_GRUB_BOOT_PATH  path of /boot on its filesystem, as GRUB sees it:
//	                              "/" for a filesystem of its own, else "/boot",
//	                              on a btrfs subvolume "/@/boot"
//	INITOVERLAYFS_GRUB_ROOT_PATH  path of / on its filesystem, "/@" on a subvolume
//	INITOVERLAYFS_GRUB_ROOT_LVM   "true" where the root lies on LVM, else empty
//
// and what grub-mkconfig itself exports: GRUB_CMDLINE_LINUX,
// GRUB_CMDLINE_LINUX_DEFAULT, GRUB_DEVICE, GRUB_DEVICE_UUID,
// GRUB_DEVICE_PARTUUID, GRUB_DISABLE_LINUX_UUID, GRUB_DISABLE_LINUX_PARTUUID,
// GRUB_DISTRIBUTOR, GRUB_EARLY_INITRD_LINUX_CUSTOM, GRUB_EARLY_INITRD_LINUX_STOCK,
// GRUB_FS, GRUB_GFXPAYLOAD_LINUX and GRUB_SAVEDEFAULT.
package bootentry
