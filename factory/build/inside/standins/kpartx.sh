#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# kpartx for a build box: many kernels have no device-mapper, so partitions come from partx, and only their names are the
# ones that kpartx would give them. Knows what diskimage-builder says: -uvs, -av and -d, each with a whole device.
set -eu
device=${*: -1}
name=$(basename "$device")
case $1 in
  -d*)
    rm -f "/dev/mapper/${name}p"*
    partx --delete "$device"
    ;;
  *)
    # names of the box's own: /dev is the kernel's, and the host sees it too
    mkdir -p /dev/mapper
    mountpoint -q /dev/mapper || mount -t tmpfs -o mode=755,nosuid,noexec tmpfs /dev/mapper
    partx --add "$device"
    for partition in "$device"p*; do
      ln -sf "$partition" "/dev/mapper/$(basename "$partition")"
    done
    ;;
esac
