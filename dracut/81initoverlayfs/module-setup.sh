#!/bin/bash
# The dracut module of initoverlayfs.
#
# In a full tree it does nothing: dracut builds that exactly as configured, and
# `initoverlayfs install` or a hook of the distribution makes the pair of the
# finished archive, which no module can change.
#
# In a mini-initramfs with systemd, which `initoverlayfs install` asks for by
# INITOVERLAYFS_CONF, it puts in storage-init, its units and that configuration.
# INITOVERLAYFS_STORAGE_INIT names a program in place of the installed one.
#
# shellcheck disable=SC2154  # moddir, initdir and others: dracut

# Only when it is asked for.
check() {
    return 255
}

depends() {
    local name
    [[ $INITOVERLAYFS_CONF ]] || return 0
    echo base systemd udev-rules
    # dracut splits them off in its later versions.
    for name in systemd-journald systemd-modules-load systemd-tmpfiles systemd-udevd initqueue; do
        ! compgen -G "$dracutbasedir/modules.d/[0-9][0-9]$name" > /dev/null || echo "$name"
    done
    return 0
}

initoverlayfs_bootfstype() {
    sed -n 's/^[[:space:]]*bootfstype[[:space:]]\{1,\}\([^[:space:]]*\).*/\1/p' "$INITOVERLAYFS_CONF" | tail -n 1
}

installkernel() {
    local fstype
    [[ $INITOVERLAYFS_CONF ]] || return 0
    fstype=$(initoverlayfs_bootfstype)
    case $fstype in
        '') fstype='ext4 xfs btrfs vfat' ;;
    esac
    # shellcheck disable=SC2086  # a word each
    hostonly='' instmods erofs overlay loop $fstype
    # What vfat asks the kernel for is in no list of dependencies.
    [[ $fstype != *vfat* ]] || hostonly='' instmods nls_cp437 nls_ascii nls_iso8859-1 nls_utf8
}

install() {
    local program=${INITOVERLAYFS_STORAGE_INIT:-/usr/lib/initoverlayfs/storage-init} name
    [[ $INITOVERLAYFS_CONF ]] || return 0
    if [[ ! -f $INITOVERLAYFS_CONF || ! -x $program ]]; then
        dfatal "initoverlayfs: $INITOVERLAYFS_CONF or $program is missing"
        exit 1
    fi
    inst_simple "$INITOVERLAYFS_CONF" /etc/initoverlayfs.conf
    inst_simple "$program" /usr/lib/initoverlayfs/storage-init
    for name in initoverlayfs.service initoverlayfs-cleanup.service \
        initoverlayfs-switch-root.target initoverlayfs-switch-root.service; do
        inst_simple "$moddir/$name" "$systemdsystemunitdir/$name"
    done
    inst_multiple systemctl
    # What systemd starts in an initrd; default.target counts only for old ones.
    inst_simple "$moddir/initrd.target" "$systemdsystemconfdir/initrd.target"
    $SYSTEMCTL -q --root "$initdir" set-default initrd.target

    mkdir -p "$initdir"/etc/modules-load.d "$initdir"/etc/systemd/system.conf.d "$initdir"/etc/systemd/system-generators
    printf '%s\n' erofs overlay loop > "$initdir/etc/modules-load.d/initoverlayfs.conf"
    # systemd before 254 takes a root that is an overlay for an initrd only so. The
    # manager keeps its environment when it switches the root.
    printf '%s\n' '[Manager]' ManagerEnvironment=SYSTEMD_IN_INITRD=lenient \
        > "$initdir/etc/systemd/system.conf.d/50-initoverlayfs.conf"
    # The real root is for the full tree to find and to mount.
    for name in dracut-pre-mount.service dracut-mount.service dracut-pre-pivot.service; do
        ln -sf /dev/null "$initdir$systemdsystemconfdir/$name"
    done
    for name in systemd-fstab-generator systemd-gpt-auto-generator systemd-hibernate-resume-generator \
        dracut-rootfs-generator; do
        ln -sf /dev/null "$initdir/etc/systemd/system-generators/$name"
    done

    # By this systemd and our units know an initrd; without some of dracut's modules
    # nobody else makes it.
    [[ -e $initdir/etc/initrd-release ]] || : > "$initdir/etc/initrd-release"

    inst_hook cmdline 99 "$moddir/no-root.sh"
    inst_hook initqueue/finished 81 "$moddir/bootfs-found.sh"
    if dracut_module_included dracut-systemd; then
        dracut_need_initqueue
    else
        # Its emergency shell is not there.
        inst_multiple -o "$systemdsystemunitdir"/emergency.service "$systemdsystemunitdir"/rescue.service \
            "$systemdutildir"/systemd-sulogin-shell sulogin
    fi
}
