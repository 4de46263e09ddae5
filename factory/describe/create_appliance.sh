#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Build this image again with nothing but kiwi (https://osinside.github.io/kiwi/): the same packages and configuration,
# as far as the repositories still have them. It does not give the same bytes: the signed image's bytes come from
# 'factory rebuild', which replays the recorded inputs.
set -euo pipefail

# @SETTINGS@

usage() {
    echo "usage: $0 [--repo ALIAS=URL]... [--keyring FILE]... [--target DIR]"
    echo "  --repo ALIAS=URL  read a repository from elsewhere; known: ${!address[*]}"
    echo "  --keyring FILE    the keys that sign the repositories (default: this host's copy of the image's)"
    echo "  --target DIR      where the disk image goes (default: ./$image-appliance)"
}

fail() {
    echo "create_appliance.sh: $1" >&2
    exit "${2:-2}"
}

target=$PWD/$image-appliance
given=()
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
        given+=("$2")
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

command -v kiwi-ng >/dev/null || fail "kiwi-ng is not installed" 3
[ "$(id -u)" -eq 0 ] || fail "kiwi-ng needs root" 2
[ ! -e "$target" ] || fail "'$target' exists already"

if [ ${#given[@]} -eq 0 ]; then
    for keyring in "${keyrings[@]}"; do
        found=
        for file in "$keyring" "${keyring%.?gp}.gpg" "${keyring%.?gp}.pgp"; do
            [ -n "$found" ] || [ ! -r "$file" ] || found=$file
        done
        [ -n "$found" ] || fail "'$keyring' is not on this host; name it with --keyring"
        given+=("$found")
    done
fi

options=()
for keyring in "${given[@]}"; do
    options+=(--signing-key "$keyring")
done
for entry in "${suites[@]}"; do
    IFS='|' read -r alias suite components <<<"$entry"
    options+=(--add-repo "${address[$alias]},apt-deb,$alias-${suite//[^a-z0-9]/-},,false,true,,$components,$suite,true")
done

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# programs that kiwi runs inside the root tree would look for it there
unset TMPDIR
: >"$scratch/kiwi.yml"
if [ ! -e /dev/mapper/control ]; then
    # no device-mapper here: partitions by partx instead of kpartx
    printf 'mapper:\n  part_mapper: partx\n' >"$scratch/kiwi.yml"
fi
kiwi-ng --config "$scratch/kiwi.yml" --shared-cache-dir "$scratch/cache" system build \
    --description "$here" --target-dir "$target" --ignore-repos-used-for-build "${options[@]}"
ls -l "$target"/*.raw
