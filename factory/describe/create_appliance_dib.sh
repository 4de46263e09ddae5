#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Build this image again with nothing but diskimage-builder (https://docs.openstack.org/diskimage-builder/) and mmdebstrap:
# the same packages and configuration, as far as the repositories still have them. It does not give the same bytes: the
# signed image's bytes come from 'factory rebuild', which replays the recorded inputs.
set -euo pipefail

# @SETTINGS@

usage() {
    echo "usage: $0 [--repo ALIAS=URL]... [--keyring FILE] [--target DIR]"
    echo "  --repo ALIAS=URL  read a repository from elsewhere; known: ${!address[*]}"
    echo "  --keyring FILE    the keys that sign the repositories (default: this host's copy of the image's)"
    echo "  --target DIR      where the disk image goes (default: ./$image-appliance)"
}

fail() {
    echo "create_appliance.sh: $1" >&2
    exit "${2:-2}"
}

target=$PWD/$image-appliance
while [ $# -gt 0 ]; do
    case $1 in
    --repo)
        [ $# -ge 2 ] && [[ $2 == ?*=?* ]] || fail "--repo needs ALIAS=URL"
        [ -n "${address[${2%%=*}]:-}" ] || fail "there is no repository '${2%%=*}'; known: ${!address[*]}"
        address[${2%%=*}]=${2#*=}
        shift 2
        ;;
    --keyring)
        [ $# -ge 2 ] && [ -r "$2" ] || fail "--keyring needs a file that can be read"
        export DIB_APT_KEYRING=$2
        shift 2
        ;;
    --target)
        [ $# -ge 2 ] || fail "--target needs a folder"
        target=$2
        shift 2
        ;;
    -h | --help)
        usage
        exit 0
        ;;
    *)
        usage >&2
        exit 2
        ;;
    esac
done

for program in disk-image-create mmdebstrap kpartx; do
    command -v "$program" >/dev/null || fail "$program is not installed" 3
done
[ -e /dev/mapper/control ] || fail "this host has no device-mapper, by which diskimage-builder makes partitions" 3
[ ! -e "$target" ] || fail "'$target' exists already"

for keyring in "${keyrings[@]}"; do
    for file in "$keyring" "${keyring%.?gp}.gpg" "${keyring%.?gp}.pgp"; do
        [ -n "${DIB_APT_KEYRING:-}" ] || [ ! -r "$file" ] || export DIB_APT_KEYRING=$file
    done
done

DIB_APT_SOURCES_CONF=
for entry in "${suites[@]}"; do
    IFS='|' read -r alias suite components <<<"$entry"
    DIB_APT_SOURCES_CONF+="$alias-$suite:deb ${address[$alias]} $suite $components"$'\n'
done
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export DIB_APT_SOURCES_CONF ELEMENTS_PATH=$here/elements DIB_NO_TMPFS=1
mkdir -p "$target"
disk-image-create -n -t raw --image-size "$disk_gib" --mkfs-options "-i 16384" --root-label ROOT \
    -o "$target/$image" "$image"
ls -l "$target"/*.raw
