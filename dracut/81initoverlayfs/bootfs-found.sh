#!/bin/sh
# Sourced by dracut-initqueue: its jobs, which assemble arrays and activate
# volumes, go on until the boot filesystem is there.
bootfs=$(getarg initoverlayfs.bootfs=)
while read -r key value; do
    [ "$key" != bootfs ] || bootfs=${bootfs:-$value}
done < /etc/initoverlayfs.conf
# A value may be in quotes.
value=${bootfs#*=}
value=${value#\"}
value=${value%\"}
case $bootfs in
    UUID=* | LABEL=* | PARTUUID=* | PARTLABEL=*) [ -e "$(label_uuid_to_dev "${bootfs%%=*}=$value")" ] ;;
    /dev/*) [ -e "$bootfs" ] ;;
esac
