#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Install the packages of a list (name first on each line) that this Debian host lacks. Nothing is started: a policy
# for the time of the installation keeps daemons of new packages from running.
set -eu
names=$(sed -e 's/#.*//' -e '/^[[:space:]]*$/d' "$1" | awk '{print $1}')
missing=
for name in $names; do
  dpkg-query -W -f='${db:Status-Abbrev}' "$name" 2>/dev/null | grep -q '^ii' || missing="$missing $name"
done
[ -n "$missing" ] || exit 0
echo "installing Debian packages:$missing"
export DEBIAN_FRONTEND=noninteractive
${SUDO:-} apt-get -qq update
# shellcheck disable=SC2086
${SUDO:-} env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install $missing >/dev/null
