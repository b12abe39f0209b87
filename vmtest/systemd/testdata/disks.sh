#!/bin/sh
# PID 1 of a virtual machine that makes a boot filesystem on disks which the
# machine of the tests has no drivers for. The kernel command line says the layout
# (luks: LVM in LUKS on the second disk; md: a mirror of the second and third
# disk), and the path at which the first disk's content is stored.
set -eu
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
# No udev is there to answer.
export DM_DISABLE_UDEV=1 MDADM_NO_UDEV=1
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev || :

report() {
	printf '{"event":"done","ok":%s,"error":"%s"}\n' "$1" "$2" >"/dev/$events"
	sync
	echo o >/proc/sysrq-trigger
	while :; do sleep 1; done
}

read -r cmdline </proc/cmdline
for word in $cmdline; do
	case $word in
	layout=*) layout=${word#*=} ;;
	path=*) path=${word#*=} ;;
	vmtest.events=*) events=${word#*=} ;;
	esac
done
trap 'report false "disks.sh: a command failed"' EXIT
set -x
for module in virtio_pci virtio_blk ext4 dm_mod dm_crypt raid1; do modprobe "$module"; done
case $layout in
luks)
	cryptsetup luksFormat --batch-mode --type luks2 --uuid 1a5e0000-0000-4000-8000-000000000001 \
		--pbkdf pbkdf2 --pbkdf-force-iterations 1000 /dev/vdb /boot.key
	cryptsetup open --key-file /boot.key /dev/vdb crypt
	lvm pvcreate /dev/mapper/crypt
	lvm vgcreate vg /dev/mapper/crypt
	lvm lvcreate --config 'activation { udev_sync=0 udev_rules=0 }' -Zn -Wn -n boot -l 100%FREE vg
	device=/dev/mapper/vg-boot
	;;
md)
	# With this format the members show the filesystem of the whole.
	mdadm --create /dev/md0 --run --level=1 --raid-devices=2 --metadata=1.0 --assume-clean \
		--uuid=1a5e0000:00004000:80000000:00000002 /dev/vdb /dev/vdc
	device=/dev/md0
	;;
esac
mke2fs -q -t ext4 -L boot "$device"
mkdir /target
mount "$device" /target
mkdir -p "/target${path%/*}"
dd if=/dev/vda of="/target$path" bs=1M
umount /target
case $layout in
luks)
	lvm vgchange --config 'activation { udev_sync=0 udev_rules=0 }' -an vg
	cryptsetup close crypt
	;;
md) mdadm --stop /dev/md0 ;;
esac
trap - EXIT
report true ''
