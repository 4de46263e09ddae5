#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# PID 1 of a build box. Arguments: descriptor to report on, description folder, size of the memory file system (or "-"),
# folder to use instead of it, folder of stand-ins, mark for loop devices.
# Mounts what a builder may see, tells its PID (as seen from outside) on the descriptor, then waits for its end.
set -eu
report=$1 description=$2 size=$3 folder=$4 standins=$5 mark=$6
place=/run/factory

# the old /proc still belongs to the host's PID namespace, so this is our PID there
while read -r key pid _; do [ "$key" = NSpid: ] && break; done </proc/self/status

mount --make-rprivate /
# a mount over the host's /proc could be lifted again, and nsenter through it reaches the host's network: drop it first
umount -l -R /proc && mount -t proc -o nosuid,nodev,noexec proc /proc
umount -l -R /sys && mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
# unix sockets are found by path, whatever the network namespace
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs /run
mkdir -p /run/lock "$place"/{bin,etc,description,target,root,loops}
hostname localhost

# the builder copies these into the root tree, so the host's would be inputs
printf 'nameserver 127.0.0.1\n' >"$place/etc/resolv.conf"
printf '127.0.0.1 localhost\n::1 localhost\n' >"$place/etc/hosts"
for name in resolv.conf hosts; do
  file=$(readlink -m "/etc/$name")
  case $file in /run/*) mkdir -p "$(dirname "$file")" && : >"$file" ;; esac # a link into the /run we just hid
  if [ -e "$file" ]; then mount --bind "$place/etc/$name" "$file"; fi
done

# apt outside the root tree reads the host's configuration (hooks, languages, proxies, pins), and the builder writes
# keyrings there and an empty status file beside dpkg's
mkdir -p "$place"/etc/apt/{apt.conf.d,auth.conf.d,keyrings,preferences.d,sources.list.d,trusted.gpg.d}
mount --bind "$place/etc/apt" /etc/apt
mkdir -p "$place"/etc/dpkg/{alternatives,info,parts,triggers,updates}
: >"$place/etc/dpkg/status"
mount --bind "$place/etc/dpkg" /var/lib/dpkg
# hosts without device-mapper have no kpartx
printf 'mapper:\n  part_mapper: partx\n' >"$place/etc/kiwi.yml"

for standin in "$standins"/*.sh; do
  name=$(basename "$standin" .sh)
  install -m 755 "$standin" "$place/bin/${name//_/.}"
done
printf '%s' "$mark" >"$place/etc/mark"

mount --bind "$description" "$place/description"
mount -o remount,bind,ro "$place/description"
if [ "$size" = - ]; then mount --bind "$folder" "$place/target"; else
  mount -t tmpfs -o "size=$size,mode=755" tmpfs "$place/target"
fi

echo "$pid" >&"$report"
eval "exec $report>&-"
# bash reaps what is orphaned here; the box ends when this process is killed, and it is killed when the factory dies
while :; do sleep 3600 & wait $! || true; done
