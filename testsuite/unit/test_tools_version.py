# SPDX-License-Identifier: Apache-2.0
"""A tools tree has the name of what it is made of and of ``VERSION``: who changes how trees are made must count it up.

Else a host that has a tree of the older making goes on with it, while another one, under the same name, has the newer.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from factory.build import tools_root
from testsuite.unit.test_tools import PROJECT_TOML, deb, member, source

GOLDEN = Path(__file__).parent / "golden"
"""Of each version, what it makes of the packages below."""


def packages(folder: Path) -> dict[str, Path]:
    """A little of everything that a package may hold, and what the finishing touches read."""
    folder.mkdir()
    points = "[console_scripts]\nwheeled = wheeled.main:run\n"
    found = {
        "base_1_all.deb": (
            (member("./usr/share/base-passwd/passwd.master"), b"root:*:0:0:root:/root:/bin/bash\n"),
            (member("./usr/share/base-passwd/group.master"), b"root:*:0:\n"),
            (member("./usr/share/ca-certificates/b/two.crt"), b"two\n"),
            (member("./usr/share/ca-certificates/a/one.crt"), b"one\n"),
            (member("./etc/hosts"), b"of a package\n"),
            (member("./tmp/", tarfile.DIRTYPE, mode=0o700), b""),
        ),
        "tool_1_amd64.deb": (
            (member("./usr/bin/", tarfile.DIRTYPE, mode=0o2775), b""),
            (member("./usr/bin/packed", mode=0o4751), b"program"),
            (member("./usr/bin/same", tarfile.LNKTYPE, link="./usr/bin/packed"), b""),
            (member("./usr/bin/which", tarfile.SYMTYPE, link="/bin/tool"), b""),
            (member("./sbin/merged"), b"merged"),
            (member("./lib", tarfile.SYMTYPE, link="usr/lib"), b""),
            (member("./usr/lib/python3.13/os.py"), b"x = 1\n"),
            *((member(f"./{inside}/{name}"), b"x") for inside in ("etc", "usr/lib", "usr/share") for name in PLACES),
        ),
    }
    made = {}
    for name, members in found.items():
        deb(folder, *members).replace(folder / name)
        made[name] = folder / name
    wheel = folder / "wheeled-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for inside, text in {"wheeled/main.py": "x = 1\n", "wheeled-1.0.dist-info/entry_points.txt": points}.items():
            archive.writestr(zipfile.ZipInfo(inside, (2026, 11, 20, 20, 0, 0)), text)
    path = source(folder, PROJECT_TOML, {"tool/main.py": "x = 1\n", "setup.py": "raise SystemExit\n"})
    return made | {wheel.name: wheel, path.name: path}


PLACES = (
    *("bash-completion/x", "bug/x", "doc/x", "doc-base/x", "fonts/x", "i18n/x", "info/x", "javascript/x", "lintian/x"),
    *("grub/x", "kernel/x", "locale/x", "man/x", "menu/x", "modules/x", "perl/x", "qemu/x", "systemd/x", "udev/x"),
    *("zoneinfo/x", "zsh/x"),
)


def listing(root: Path) -> list[str]:
    """What a builder sees of a tree, a line each; our own files of ``etc`` are as old as the tree."""
    lines = []
    for path in sorted(root.rglob("*")):
        seen = path.lstat()
        what = f"{path.relative_to(root)} {stat.filemode(seen.st_mode)}"
        if path.is_symlink():
            what += f" -> {path.readlink()}"
        elif path.is_file():
            what += f" {int(seen.st_mtime)}" if path.is_relative_to(root / "usr") else ""
            what += f" {seen.st_nlink} {hashlib.sha256(path.read_bytes()).hexdigest()}"
        lines.append(what)
    return lines


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_who_changes_how_a_tree_is_made_counts_its_version_up(tmp_path: Path, umask: int) -> None:
    root = tmp_path / "root"
    files = packages(tmp_path / "packages")
    before = os.umask(umask)
    try:
        root.mkdir()
        tools_root.lay(root, files)
    finally:
        os.umask(before)
    made = "".join(f"{line}\n" for line in [*listing(root), json.dumps(tools_root.COMPILE)])
    known = {path.stem: path.read_text() for path in GOLDEN.glob("tools-tree-*.txt")}
    told = (
        "the same packages make another tree than before: count VERSION in factory/build/tools_root.py up, and keep "
        "what the new version makes in a golden file of its own"
    )
    assert made == known.get(f"tools-tree-{tools_root.VERSION}"), told
    assert len(set(known.values())) == len(known), (
        "a version that makes the same is none: every tree would be made anew"
    )
