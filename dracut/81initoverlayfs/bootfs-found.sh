#!/bin/sh
# Sourced by dracut-initqueue: its jobs, which assemble arrays and activate
# volumes, go on until the boot filesystem is there.
bootfs=$(getarg initoverlayfs.bootfs=)
while read -r key value; do
    [ "$key" != bootfs ] || bootfs=${bootfs:-$value}
done < /etc/initoverlayfs.conf
kind=${bootfs%%=*}
# A value may be in quotes.
value=${bootfs#*=}
value=${value#\"}
value=${value%\"}
case $bootfs in
    UUID=* | PARTUUID=*)
        # Which udev writes in small letters, but for FAT.
        lower=$(printf '%s' "$value" | tr '[:upper:]' '[:lower:]')
        [ -e "$(label_uuid_to_dev "$kind=$value")" ] || [ -e "$(label_uuid_to_dev "$kind=$lower")" ]
        ;;
    LABEL=* | PARTLABEL=*) [ -e "$(label_uuid_to_dev "$kind=$value")" ] ;;
    /dev/*) [ -e "$bootfs" ] ;;
esac
