#!/bin/sh
# Sourced by dracut-cmdline, the last of its kind: whatever root= says, it is not
# for the mini-initramfs to mount, nor to refuse.
# shellcheck disable=SC2034  # read by dracut-cmdline
root='' root_unset=UNSET
