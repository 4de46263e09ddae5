#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# PID 1 of a build box. Arguments: descriptor to report on, root to build in, description folder, size of the memory
# file system (or "-"), folder for what leaves the box (and for the target, without memory), folder of stand-ins, mark
# for loop devices.
# Mounts what a builder may see below the new root, makes that the root and drops the host's, tells its PID (as seen
# from outside) on the descriptor, then waits for its end. Everything above the line is done by the host's programs.
set -eu
umask 022
report=$1 root=$2 description=$3 size=$4 folder=$5 standins=$6 mark=$7
place=/run/factory

# the old /proc still belongs to the host's PID namespace, so this is our PID there
while read -r key pid _; do [ "$key" = NSpid: ] && break; done </proc/self/status

mount --make-rprivate /
mount --bind "$root" "$root"
mount -o remount,bind,ro,nosuid "$root"
mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
mount -t sysfs -o nosuid,nodev,noexec sysfs "$root/sys"
# loop devices and their partitions appear there; a host without it has its devices in another place, in full
mount -t devtmpfs -o nosuid devtmpfs "$root/dev" 2>/dev/null || mount --bind /dev "$root/dev"
mkdir -p "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$root/dev/shm"
for scratch in tmp var/tmp; do mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$root/$scratch"; done
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs "$root/run"
mkdir -p "$root/run/lock" "$root$place"/{bin,etc,description,target,root,loops,out}
hostname localhost

# the builder writes keyrings and an empty status file there, as if it were the host's
mkdir -p "$root$place"/etc/apt/{apt.conf.d,auth.conf.d,keyrings,preferences.d,sources.list.d,trusted.gpg.d}
mount --bind "$root$place/etc/apt" "$root/etc/apt"
mkdir -p "$root$place"/etc/dpkg/{alternatives,info,parts,triggers,updates}
: >"$root$place/etc/dpkg/status"
mount --bind "$root$place/etc/dpkg" "$root/var/lib/dpkg"
# hosts without device-mapper have no kpartx; what changed in packages is our own records' to tell
printf 'mapper:\n  part_mapper: partx\nbundle:\n  has_package_changes: false\n' >"$root$place/etc/kiwi.yml"

for standin in "$standins"/*.sh; do
  name=$(basename "$standin" .sh)
  install -m 755 "$standin" "$root$place/bin/${name//_/.}"
done
install -m 755 "$standins/kiwi_ng.py" "$root$place/bin/kiwi-ng"
printf '%s' "$mark" >"$root$place/etc/mark"

mount --bind "$description" "$root$place/description"
mount -o remount,bind,ro "$root$place/description"
mkdir -p "$folder/out" "$folder/target"
mount --bind "$folder/out" "$root$place/out"
if [ "$size" = - ]; then mount --bind "$folder/target" "$root$place/target"; else
  mount -t tmpfs -o "size=$size,mode=755" tmpfs "$root$place/target"
fi

cd "$root"
pivot_root . .
# ----------------------------------------------------------------------------------------------------------------------
umount -l .
cd /
# bash reaps what is orphaned here; the box ends when this process is killed, and it is killed when the factory dies
exec /usr/bin/bash --noprofile --norc -c '
  echo "$1" >&"$2"
  eval "exec $2>&-"
  while :; do sleep 3600 & wait $! || true; done
' box "$pid" "$report" </dev/null
