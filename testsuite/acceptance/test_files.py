# SPDX-License-Identifier: Apache-2.0
"""The files: each belongs to a package, to the description, or to the short list of generated files."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest

# One pass over the disk inside the guest: what no package owns, after /bin, /lib, ... were followed to /usr.
UNOWNED = r"""
import os, glob, re
alias = {d: os.path.realpath(d) for d in ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32") if os.path.islink(d)}
def real(path):
    top = "/" + path.split("/", 2)[1]
    return alias[top] + path[len(top):] if top in alias else path
owned = set()
for name in glob.glob("/var/lib/dpkg/info/*.list"):
    with open(name, encoding="utf-8", errors="surrogateescape") as file:
        owned.update(real(line.rstrip("\n")) for line in file)
try:
    with open("/var/lib/dpkg/diversions", encoding="utf-8", errors="surrogateescape") as file:
        rows = file.read().splitlines()
    owned.update(real(path) for path in rows[1::3])
except OSError:
    pass
root = os.lstat("/").st_dev
found = []
for folder, folders, files in os.walk("/"):
    keep = []
    for name in folders:
        path = os.path.join(folder, name)
        if os.path.islink(path):
            files.append(name)
        elif os.lstat(path).st_dev == root:
            keep.append(name)
    folders[:] = keep
    for name in files:
        path = os.path.join(folder, name)
        if path in owned or path in alias:
            continue
        if os.path.islink(path) and os.readlink(path).startswith("/etc/alternatives/"):
            continue
        if name.endswith(".pyc") and os.path.basename(folder) == "__pycache__":
            source = os.path.join(os.path.dirname(folder), name.split(".")[0] + ".py")
            if source in owned:
                continue
        found.append(path)
import base64, sys
sys.stdout.write(base64.b64encode("\0".join(sorted(found)).encode("utf-8", "surrogateescape")).decode())
"""


SET_UID = {
    "su",
    "sudo",
    "passwd",
    "chsh",
    "chfn",
    "newgrp",
    "gpasswd",
    "mount",
    "umount",
    "chage",
    "expiry",
    "unix_chkpwd",
    "crontab",
    "wall",
    "write",
    "bsd-write",
    "ssh-keysign",
    "ssh-agent",
    "dbus-daemon-launch-helper",
    "fusermount3",
    "pkexec",
    "polkit-agent-helper-1",
}


def _pattern(glob):
    """A glob as a regular expression: ``**`` over folders, ``*`` and ``?`` within one."""
    parts = re.split(r"(\*\*|\*|\?)", glob)
    return "".join({"**": ".*", "*": "[^/]*", "?": "[^/]"}.get(part, re.escape(part)) for part in parts)


def _listed(name):
    lines = Path(__file__).with_name(name).read_text().splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


@pytest.fixture(scope="session")
def unowned(guest):
    """The files of the guest that no package owns."""
    script = base64.b64encode(UNOWNED.encode()).decode()
    printed = guest.root(f"echo {script} | base64 -d | python3 -I -")
    return base64.b64decode(printed).decode(errors="surrogateescape").split("\0")


def test_every_file_has_an_owner(unowned, facts, description):
    """Each file belongs to a package, is declared by the description, or is on the list of generated files."""
    globs = [*_listed("generated-files.txt"), *(description.declared_files or ()), *(facts.seed.files or ())]
    known = re.compile("|".join(f"(?:{_pattern(glob)})" for glob in globs), re.DOTALL)
    strange = [path for path in unowned if path and not known.fullmatch(path)]
    shown = "\n  ".join(ascii(path)[1:-1] for path in strange[:40])
    assert not strange, f"{len(strange)} files that nobody accounts for:\n  {shown}"


def test_packaged_files_are_unchanged(guest, facts, description):
    """No file of a package was changed by the build, except those that the description declares."""
    lines = guest.root(
        "cd / && cat /var/lib/dpkg/info/*.md5sums | md5sum --quiet -c 2>/dev/null | sed 's/: .*//' || true"
    )
    globs = [*(description.declared_files or ()), *(facts.seed.files or ())]
    known = re.compile("|".join(f"(?:{_pattern(glob)})" for glob in globs) or r"(?!)")
    changed = [f"/{path}" for path in lines.splitlines() if not known.fullmatch(f"/{path}")]
    assert not changed, f"files of packages were changed: {changed[:20]}"


def test_nobody_can_write_system_files(guest):
    """No file or folder of the system, except the usual temporary ones, can be written by everybody."""
    found = guest.root(r"find / -xdev \( -type f -o -type d \) -perm -0002 ! -perm -1000 | head -n 20").split("\n")
    found = [path for path in found if path]
    assert not found, f"everybody can write: {found}"


def test_set_uid_programs_are_the_known_ones(guest):
    """No program is set-uid or set-gid but the few that a Debian server is known to need so."""
    found = guest.root("find / -xdev -type f -perm /6000 | sort").split()
    strange = [path for path in found if not path.startswith("/usr/") or path.rsplit("/", 1)[1] not in SET_UID]
    assert not strange, f"unexpected set-uid or set-gid programs: {strange}"
