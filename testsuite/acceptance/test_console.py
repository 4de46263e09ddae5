# SPDX-License-Identifier: Apache-2.0
"""The consoles: serial and VGA, and the random password that only the VGA login prompt shows."""

from __future__ import annotations

from pathlib import Path

import pytest

# The password is taken from the screen inside the guest and handed on by pipes and shell variables only, so that the
# looking itself puts it on no command line.
PASSWORD = (
    "fold -w \"$(od -An -tu1 -N2 /dev/vcsa1 | awk '{print $2}')\" /dev/vcs1"
    " | sed -n -E 's/^.*[Pp]assword[^:]*: *([^ ]{8,}) *$/\\1/p' | tail -n 1"
)
TAKE = f'password=$({PASSWORD}); test -n "$password" || {{ echo no-password; exit 0; }}\n'
KEEP = TAKE + 'umask 077; pattern=$(mktemp /run/look.XXXXXX); printf %s "$password" >$pattern\n'
HOLDERS = (
    KEEP
    + r"""
find / /run /dev/shm -xdev \( -path /proc -o -path /sys -o -path /usr -o -path /var/lib/apt/lists \) -prune \
  -o -type f -size -8M -print0 2>/dev/null | xargs -0 grep -l -F -f $pattern 2>/dev/null \
  | grep -v -x -F $pattern | xargs -r stat -c '%a %U %n'
rm -f $pattern
"""
)
LOGS = (
    KEEP
    + r"""
journalctl --no-pager -a | grep -q -F -f $pattern && echo journal
grep -r -l -F -f $pattern /var/log /run/log /run/cloud-init /var/lib/cloud /var/lib/systemd 2>/dev/null
rm -f $pattern
"""
)
LOOKER = (
    TAKE
    + r"""
useradd --create-home --shell /bin/bash looker
trap 'userdel --remove --force looker >/dev/null 2>&1; rm -f /run/looker.sh' EXIT
cat >/run/looker.sh <<'END'
read -r password
places() {
  find / /run /dev/shm -xdev \( -path /proc -o -path /sys -o -path /usr -o -path /boot -o -path /var/lib/apt/lists \
    -o -path /var/lib/dpkg/info \) -prune -o -type f -size -2M -readable -print0
  for file in /proc/[0-9]*/cmdline /proc/[0-9]*/environ /dev/vcs /dev/vcs1 /dev/vcsa1 /dev/vcsu1; do
    test -r "$file" && printf '%s\0' "$file"
  done
}
places 2>/dev/null | xargs -0 grep -a -l -F -f <(printf %s "$password") 2>/dev/null
journalctl --no-pager -a 2>/dev/null | grep -q -F -f <(printf %s "$password") && echo journal
true
END
chmod 0644 /run/looker.sh
printf '%s\n' "$password" | runuser -u looker -- bash /run/looker.sh
"""
)
GETTYS = "systemctl is-active getty@tty1 serial-getty@ttyS0 || true; cat /proc/cmdline"


def _serial_log(facts):
    return "".join(Path(name).read_text(errors="replace") for name in facts.console_logs)


@pytest.fixture
def console_password(guest, description):
    """The password on the VGA screen; '' when it shows none."""
    if not description.console_password:
        pytest.skip("the description says console_password = false")
    return guest.root(PASSWORD).strip()


def test_the_vga_console_shows_the_password(console_password, description):
    """The VGA login prompt shows a random password of at least 12 characters for the login user."""
    assert console_password, "the VGA login prompt shows no password"
    assert len(console_password) >= 12, f"the console password has only {len(console_password)} characters"


@pytest.mark.later
@pytest.mark.needs("keyboard")
def test_the_password_opens_the_vga_console(facts, description):
    """Whoever types the shown password at the VGA login prompt is logged in as the login user."""
    if not description.console_password:
        pytest.skip("the description says console_password = false")
    if facts.outside is None or facts.outside.console_login is None:
        pytest.fail("nobody tried to log in on the console")
    tried = facts.outside.console_login
    assert tried.accepted, f"the shown password did not open the VGA console for {description.login_user}"


def test_only_root_can_read_the_password(guest, console_password):
    """The files that hold the password are readable by root only."""
    found = guest.root(HOLDERS).splitlines()
    assert found != ["no-password"], "the VGA login prompt shows no password to look for"
    wrong = [line for line in found if int(line.split()[0], 8) & 0o077 or line.split()[1] != "root"]
    assert not wrong, f"others than root may read the console password: {wrong}"


def test_no_log_holds_the_password(guest, console_password):
    """The password is neither in the journal, nor in cloud-init's or any other log."""
    found = guest.root(LOGS).split()
    assert found != ["no-password"], "the VGA login prompt shows no password to look for"
    assert not found, f"the console password is written in {found}"


def test_the_serial_console_does_not_show_the_password(console_password, facts):
    """The password never appeared on the serial console, whose log clouds show to every project member."""
    assert console_password, "the VGA login prompt shows no password to look for"
    log = _serial_log(facts)
    assert console_password not in log, "the console password is in the serial console's log"


def test_another_user_does_not_find_the_password(guest, console_password):
    """A second, unprivileged user who searches files, processes, screens and the journal does not find the password."""
    found = guest.root(LOOKER).split()
    assert found != ["no-password"], "the VGA login prompt shows no password to look for"
    assert not found, f"an unprivileged user reads the console password in {found}"


def test_there_is_no_password_when_switched_off(guest, description):
    """With console_password = false no password is made: the screen shows none and the account has none."""
    if description.console_password:
        pytest.skip("the description says console_password = true")
    shown = guest.root(PASSWORD).strip()
    stored = guest.root(f"getent shadow {description.login_user} | cut -d: -f2").strip()
    assert not shown, "the console shows a password although the description switches it off"
    assert stored[:1] in {"!", "*"}, "the login user has a password although the description switches it off"


def test_the_serial_console_offers_a_login(guest, facts):
    """The serial console carries the kernel's messages and a login prompt."""
    found = guest.root(GETTYS)
    assert "console=ttyS0" in found, "the kernel does not write to the serial console"
    assert found.splitlines()[1] == "active", f"no login prompt on the serial console: it is {found.splitlines()[1]}"
    log = _serial_log(facts)
    assert "login:" in log, "the serial console's log shows no login prompt"


def test_the_vga_console_offers_a_login(guest):
    """The VGA console carries the kernel's messages and a login prompt."""
    found = guest.root(GETTYS)
    assert "console=tty0" in found, "the kernel does not write to the VGA console"
    assert found.splitlines()[0] == "active", f"no login prompt on the VGA console: it is {found.splitlines()[0]}"


@pytest.fixture
def customers_password(facts):
    """What became of a password that the user-data of another guest set."""
    if facts.other is None or facts.other.user_data_password is None:
        pytest.fail("no guest was started with a password in its user-data")
    return facts.other.user_data_password


@pytest.mark.later
@pytest.mark.needs("other")
def test_a_user_data_password_opens_the_console(customers_password):
    """A password that the customer sets by user-data opens the VGA console."""
    assert customers_password.console.accepted, "the password from the user-data does not open the VGA console"


@pytest.mark.later
@pytest.mark.needs("other")
def test_a_user_data_password_does_not_open_ssh(customers_password):
    """A password that the customer sets by user-data does not open ssh."""
    tried = customers_password.ssh
    assert tried.exit != 0, "the password from the user-data opens ssh"
    assert "password" not in tried.offered, f"with a password in the user-data sshd offers {tried.offered}"


@pytest.mark.later
@pytest.mark.needs("other")
def test_a_user_data_password_replaces_the_shown_one(customers_password):
    """With a password by user-data the VGA prompt shows no random password that would not work."""
    assert not customers_password.shown, "the VGA prompt shows a random password although the user-data set another"
