#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# install.sh LIST [--with-tests]: install the packages of a list (name first on each line) that this Debian host lacks;
# lines marked [test] only when asked to. Nothing is started: a policy for the time of the installation keeps daemons of
# new packages from running.
set -eu
skipped='\[test\]'
[ "${2:-}" = --with-tests ] && skipped='^$'
names=$(sed -e 's/#.*//' -e '/^[[:space:]]*$/d' "$1" | grep -v "$skipped" | awk '{print $1}')
missing=
for name in $names; do
  dpkg-query -W -f='${db:Status-Abbrev}' "$name" 2>/dev/null | grep -q '^ii' || missing="$missing $name"
done
[ -n "$missing" ] || exit 0
echo "installing Debian packages:$missing"
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  trap '${SUDO:-} rm -f "$policy"' EXIT
  trap 'exit 130' INT TERM
  printf '#!/bin/sh\nexit 101\n' | ${SUDO:-} tee "$policy" >/dev/null
  ${SUDO:-} chmod 0755 "$policy"
fi
${SUDO:-} apt-get -qq update
# shellcheck disable=SC2086
${SUDO:-} env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=600 --no-install-recommends install $missing >/dev/null
