#!/usr/bin/env bash
# enter.sh DISK ESP SHARE: runs the script on standard input inside the Debian on
# a disk, in a mount namespace of its own. The partitions are the ESP, whose
# OFFSET:BYTES is given, /boot and the root; SHARE is a folder that is /run/host
# in there.
# shellcheck disable=SC2317  # leave is called by trap
set -euo pipefail
disk=$1 share=$3
esp=$disk@@${2%:*}
export MTOOLS_SKIP_CHECK=1

root=$(mktemp -d)
loop=
leave() {
	if mountpoint -q "$root"; then umount -R "$root"; fi
	rmdir "$root"
	if [ -n "$loop" ]; then
		partx -d "$loop"
		losetup -d "$loop"
	fi
}
trap leave EXIT
loop=$(losetup -f --show "$disk")
# A run that was killed may have left its partitions to the next user of the
# device.
partx -d "$loop" 2>/dev/null || true
partx -a "$loop"
mount "${loop}p3" "$root"
mkdir -p "$root/boot"
mount "${loop}p2" "$root/boot"
mkdir -p "$root/boot/efi"
mount -t tmpfs -o mode=755 esp "$root/boot/efi"
if [ -n "$(mdir -i "$esp" -b ::/)" ]; then mcopy -snmi "$esp" '::/*' "$root/boot/efi/"; fi
for dir in proc sys dev; do
	mount --rbind "/$dir" "$root/$dir"
	mount --make-rslave "$root/$dir"
done
mount -t tmpfs run "$root/run"
mkdir "$root/run/host"
mount --bind "$share" "$root/run/host"

status=0
# bootctl believes of the tmpfs that it is the partition.
chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C \
	DEBIAN_FRONTEND=noninteractive SYSTEMD_ESP_PATH=/boot/efi bash -eu -s || status=$?

mkfs.vfat -F 32 -n ESP -i 49e3a7d1 --offset $((${2%:*} / 512)) "$disk" $((${2#*:} / 1024)) >/dev/null 2>&1
if [ -n "$(ls -A "$root/boot/efi")" ]; then mcopy -snmi "$esp" "$root"/boot/efi/* ::/; fi
exit "$status"
