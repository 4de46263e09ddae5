#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# PID 1 of the box that a cloud runs in. Arguments: descriptor to report on, folder of the cloud.
# Makes what is written to /etc, /var and /run private, tells its PID (as seen from outside) on the descriptor, then
# waits for its end.
set -eu
report=$1 folder=$2

# the old /proc still belongs to the host's PID namespace, so this is our PID there
while read -r key pid _; do [ "$key" = NSpid: ] && break; done </proc/self/status

mount --make-rprivate /
mount -t proc -o nosuid,nodev,noexec proc /proc
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs /mnt
mkdir /mnt/folder /mnt/run
mount --bind "$folder" /mnt/folder
for place in /etc /var; do
  mkdir -p "/mnt/upper$place" "/mnt/work$place"
  mount -t overlay -o "lowerdir=$place,upperdir=/mnt/upper$place,workdir=/mnt/work$place" overlay "$place"
done
mount --bind /mnt/run /run
mkdir -p /run/lock "$folder"
mount --bind /mnt/folder "$folder" # it may lie below a place that was just covered

# nothing of a libvirt that the host may have: its settings, networks, filters and guests
for place in /etc/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt; do
  mkdir -p "$place"
  mount -t tmpfs -o mode=755 tmpfs "$place"
done
cp "$folder/etc/qemu.conf" /etc/libvirt/qemu.conf
# libvirt looks its usual user up before it reads that it shall not be used; making it is another package's work
grep -q '^libvirt-qemu:' /etc/passwd || echo 'libvirt-qemu:x:64055:64055::/nonexistent:/usr/sbin/nologin' >>/etc/passwd
grep -q '^libvirt-qemu:' /etc/group || echo 'libvirt-qemu:x:64055:' >>/etc/group
# in a container these are mounts, which the layer above does not show
printf '127.0.0.1 localhost %s\n::1 localhost\n' "$(uname -n)" >/etc/hosts

echo "$pid" >&"$report"
eval "exec $report>&-"
# bash reaps what is orphaned here; the box ends when this process is killed, and it is killed when who made it dies
while :; do sleep 3600 & wait $! || true; done
