#!/usr/bin/env bash
# enter.sh DISK ESP BOOT ROOT SHARE: runs the script on standard input inside the
# Debian on a disk, in a mount namespace of its own. ESP, BOOT and ROOT are the
# partitions as OFFSET:BYTES; SHARE is a folder that is /run/host in there.
set -euo pipefail
disk=$1 share=$5
esp=$disk@@${2%:*}
export MTOOLS_SKIP_CHECK=1

root=$(mktemp -d)
trap 'umount -R "$root" && rmdir "$root"' EXIT
mount -o "loop,offset=${4%:*},sizelimit=${4#*:}" "$disk" "$root"
mkdir -p "$root/boot"
mount -o "loop,offset=${3%:*},sizelimit=${3#*:}" "$disk" "$root/boot"
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
