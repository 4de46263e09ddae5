#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# losetup for a build box: devices vanish with the box. They belong to the kernel and would outlive it, so each is
# marked to clear itself on last close and held open by a process of the box. The device is attached through a hard
# link whose name carries the box's mark: a kill between attaching and holding leaves a device that can be recognised.
place=/run/factory
real=/usr/sbin/losetup
[ -x "$real" ] || real=/sbin/losetup
case " $* " in
  *" --show "*)
    file=${*: -1}
    link="$(dirname "$file")/$(cat "$place/etc/mark").$$"
    ln "$file" "$link" || exit
    dev=$("$real" -P "${@:1:$#-1}" "$link") || exit
    # opened here first: a holder that starts late would find the device cleared already
    exec 3<"$dev"
    # -P: with the partition-scan flag the kernel drops partition nodes on clearing, even those that partx added
    setsid bash -c 'exec -a loop-holder sleep infinity' <&3 3<&- >/dev/null 2>&1 &
    echo $! >"$place/loops/$(basename "$dev")"
    "$real" -d "$dev" # a device in use is only marked to clear itself
    exec 3<&-
    rm -f "$link"
    echo "$dev"
    ;;
  *" -d "*)
    dev=${*: -1}
    holder="$place/loops/$(basename "$dev")"
    [ -f "$holder" ] || exec "$real" "$@"
    kill "$(<"$holder")"
    tail --pid="$(<"$holder")" --sleep-interval=0.02 -f /dev/null # looks once a second else
    rm "$holder"
    ;;
  *) exec "$real" "$@" ;;
esac
