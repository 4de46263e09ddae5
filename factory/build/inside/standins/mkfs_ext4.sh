#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# mkfs.ext4 for a build box: the root file system gets the UUID that was derived from image and epoch. The builder
# derives one from epoch and label alone, the same for every image of a night.
arguments=() next=
for argument in "$@"; do
  [ "$next" = -U ] && [ -n "${FACTORY_ROOT_UUID:-}" ] && argument=$FACTORY_ROOT_UUID
  arguments+=("$argument")
  next=$argument
done
PATH=/usr/sbin:/sbin:/usr/bin:/bin exec mkfs.ext4 "${arguments[@]}"
