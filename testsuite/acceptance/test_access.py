# SPDX-License-Identifier: Apache-2.0
"""Who can come in: one user with the injected key and sudo, and nobody else."""

from __future__ import annotations

SHADOW = "cat /etc/shadow"
PASSWD = "cat /etc/passwd"
AUTHORIZED = """for home in $(cut -d: -f6 /etc/passwd | sort -u); do
  for file in "$home/.ssh/authorized_keys" "$home/.ssh/authorized_keys2"; do
    if [ -s "$file" ]; then sed "s|^|$file |" "$file"; fi
  done
done"""


def _shadow(guest):
    return dict(line.split(":")[:2] for line in guest.root(SHADOW).splitlines())


def _keys(guest):
    """Every usable line of every authorized_keys file: (file, line)."""
    pairs = [line.split(" ", 1) for line in guest.root(AUTHORIZED).splitlines()]
    return [(file, line) for file, line in pairs if line.strip() and not line.startswith("#")]


def test_the_login_user_is_the_described_one(guest, description):
    """The user whom a customer logs in as is the one the description names."""
    found = guest.user("id -un").strip()
    assert found == description.login_user, f"ssh led to the account {found!r}, not to {description.login_user!r}"


def test_the_login_user_accepts_the_injected_key_and_no_other(guest, description, facts):
    """The key that the cloud injects opens the login user's account, and no other key does."""
    home = guest.user("echo $HOME").strip()
    found = [line for file, line in _keys(guest) if file.startswith(home + "/")]
    wanted = " ".join(facts.injected_key.split()[:2])
    strange = [line for line in found if wanted not in line]
    assert any(wanted in line for line in found), f"the injected key is not in {home}/.ssh/authorized_keys"
    assert not strange, f"keys that nobody injected open the account: {strange}"


def test_no_other_account_accepts_a_key(guest, description):
    """No account but the login user's accepts any ssh key."""
    home = guest.user("echo $HOME").strip()
    others = [(file, line) for file, line in _keys(guest) if not file.startswith(home + "/")]
    usable = [file for file, line in others if "command=" not in line]
    assert not usable, f"further accounts accept keys: {sorted(set(usable))}"


def test_the_login_user_has_sudo_without_a_password(host, description):
    """The login user becomes root with sudo and is not asked for a password."""
    done = host.run("sudo -n id -u")
    assert (done.rc, done.stdout.strip()) == (0, "0"), f"sudo refused {description.login_user}: {done.stderr.strip()}"


def test_nobody_else_has_sudo_without_a_password(guest, description):
    """No user or group but the login user and root may use sudo without a password."""
    lines = guest.root("cat /etc/sudoers /etc/sudoers.d/* 2>/dev/null || true").splitlines()
    granted = [line.split()[0] for line in lines if "NOPASSWD" in line and not line.lstrip().startswith("#")]
    strange = sorted(set(granted) - {description.login_user, "root"})
    assert not strange, f"sudo without a password is also given to: {strange}"


def test_root_has_no_password(guest):
    """The root account is locked."""
    found = _shadow(guest)["root"]
    assert found[:1] in {"!", "*"}, "root has a password (or an empty one): its account is not locked"


def test_no_other_account_has_a_password(guest, description):
    """No account but the login user's has a password, and none has an empty one."""
    found = _shadow(guest)
    allowed = {description.login_user} if _has_password(found, description.login_user) else set()
    strange = sorted(name for name in found if _has_password(found, name) and name not in allowed | {"root"})
    empty = sorted(name for name, value in found.items() if value == "")
    assert not empty, f"accounts with an empty password: {empty}"
    assert not strange, f"further accounts have a password: {strange}"


def _has_password(shadow, name):
    return shadow.get(name, "!")[:1] not in {"!", "*"}


def test_only_root_and_the_login_user_have_a_shell(guest, description):
    """No account but root's and the login user's has a login shell."""
    closed = ("/usr/sbin/nologin", "/sbin/nologin", "/bin/false", "/usr/bin/false", "/bin/sync")
    accounts = [line.split(":") for line in guest.root(PASSWD).splitlines()]
    strange = [
        name for name, *_, shell in accounts if shell not in closed and name not in {"root", description.login_user}
    ]
    assert not strange, f"further accounts have a login shell: {strange}"


def test_root_is_the_only_account_with_uid_zero(guest):
    """No second account has root's user id."""
    found = [line.split(":")[0] for line in guest.root(PASSWD).splitlines() if line.split(":")[2] == "0"]
    assert found == ["root"], f"accounts with uid 0: {found}"
