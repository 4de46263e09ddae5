# SPDX-License-Identifier: Apache-2.0
"""What is noted about a guest at one boot, to be compared with another; and logging in on its VGA console."""

from __future__ import annotations

import time
from typing import Any

from factory.sandbox.conversation import Conversation
from factory.sandbox.guest import Guest
from factory.system.run import Completed

# One round trip. The password stays in a shell variable: it is on no command line, and only its digest is printed.
_SEEN = r"""
export LC_ALL=C
echo boot_id=$(cat /proc/sys/kernel/random/boot_id)
echo machine_id=$(cat /etc/machine-id)
for key in /etc/ssh/ssh_host_*_key.pub; do echo host_key=$(ssh-keygen -lf $key | cut -d" " -f2); done
echo random_seed=$(sha256sum /var/lib/systemd/random-seed 2>/dev/null | cut -d" " -f1)
echo root_bytes=$(df --block-size=1 --output=size / | tail -n 1)
disk=$(lsblk -n -o PKNAME "$(findmnt -n -o SOURCE /)" | head -n 1)
echo disk_bytes=$(lsblk -b -d -n -o SIZE /dev/$disk)
echo guestregister_status=$(systemctl show -p ExecMainStatus --value guestregister.service)
for file in $(grep -s -l -r -i -E "^ *(machine|login)" /etc/apt/auth.conf /etc/apt/auth.conf.d); do
  echo registration=$(sha256sum <"$file" | cut -d" " -f1)
done
apt-get indextargets --format "repository=\$(REPO_URI)" 2>/dev/null | sort -u
password=$(fold -w "$(od -An -tu1 -N2 /dev/vcsa1 | awk '{print $2}')" /dev/vcs1 \
  | sed -n -E 's/^.*[Pp]assword[^:]*: *([^ ]{8,}) *$/\1/p' | tail -n 1)
test -z "$password" || echo password_sha256=$(printf %s "$password" | sha256sum | cut -d" " -f1)
"""
_SHOWN = r"""
fold -w "$(od -An -tu1 -N2 /dev/vcsa1 | awk '{print $2}')" /dev/vcs1 \
  | sed -n -E 's/^.*[Pp]assword[^:]*: *([^ ]{8,}) *$/\1/p' | tail -n 1
"""
_ON_CONSOLE = "ps -t tty1 -o user:32=,comm= || true"
_SHELLS = {"bash", "-bash", "sh", "-sh", "zsh"}
_MANY = {"host_key": "host_keys", "registration": "registration", "repository": "repositories"}


def seen(guest: Conversation) -> dict[str, Any]:
    """What the guest is at this boot: identities, disk, repositories, registration."""
    found: dict[str, Any] = {name: [] for name in _MANY.values()}
    for line in as_root(guest, _SEEN).stdout.splitlines():
        key, _, value = line.partition("=")
        if key in _MANY:
            found[_MANY[key]].append(value)
        else:
            found[key] = int(value) if value.isdecimal() else value
    return found


def shown_password(guest: Conversation) -> str:
    """The password on the VGA screen, or nothing; masked in everything that is kept of this guest from now on."""
    found = as_root(guest, _SHOWN).stdout.strip()
    guest.mask(found)
    return found


def as_root(guest: Conversation, script: str) -> Completed:
    """Run a shell script as root; it travels on standard input, so that it appears on no command line."""
    return guest.ssh("sudo -n sh -s", stdin=script.encode(), timeout_s=120)


def console_login(guest: Guest, *, user: str, password: str, timeout_s: float = 60) -> dict[str, Any]:
    """Type a name and a password at the VGA console; log out again.

    Returns:
        ``accepted``, and in ``screen`` the last line when not.
    """
    guest.mask(password)
    guest.type_text(f"{user}\n")
    if not _screen_shows(guest, "assword:", timeout_s=timeout_s):
        return {"accepted": False, "screen": _last_line(guest)}
    guest.type_text(f"{password}\n")
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        rows = [line.split() for line in guest.ssh(_ON_CONSOLE).stdout.splitlines()]
        if any(len(row) > 1 and row[0] == user and row[1] in _SHELLS for row in rows):
            guest.type_text("exit\n")
            return {"accepted": True}
        if "incorrect" in guest.screen_text():
            break
        time.sleep(1)
    return {"accepted": False, "screen": _last_line(guest)}


def _screen_shows(guest: Guest, text: str, *, timeout_s: float) -> bool:
    """Whether the line that the cursor is on shows ``text`` in time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if text in _last_line(guest):
            return True
        time.sleep(0.5)
    return False


def _last_line(guest: Guest) -> str:
    lines = guest.screen_text().splitlines()
    return lines[-1] if lines else ""
