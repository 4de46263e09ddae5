#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# fdisk for a build box: gives the partition table the disk identifier that was derived from image and epoch, where
# fdisk would make up one; the builder notes the partition's id (made from it) before it sets its own.
PATH=/usr/sbin:/sbin:/usr/bin:/bin
fdisk "$@"
status=$?
[ -n "${FACTORY_DISK_ID:-}" ] && sfdisk --no-reread --quiet --disk-id "${*: -1}" "$FACTORY_DISK_ID" >/dev/null 2>&1
exit $status
