# SPDX-License-Identifier: Apache-2.0
"""The source tarball: the build tree, so that names, modes and contents alone decide its bytes."""

from __future__ import annotations

import tarfile
from pathlib import Path

from factory.system.files import appearing


def write_tarball(tree: Path, tarball: Path, *, name: str, epoch: int) -> None:
    """Pack ``tree`` as ``name/``: sorted, no owner, every time the epoch."""

    def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        member.mtime = epoch
        return member

    paths = sorted(tree.rglob("*"), key=lambda path: path.relative_to(tree).as_posix().encode())
    with appearing(tarball) as partial, tarfile.open(partial, "w:xz", format=tarfile.PAX_FORMAT, preset=6) as archive:
        for path in [tree, *paths]:
            inside = path.relative_to(tree).as_posix()
            archive.add(path, name if inside == "." else f"{name}/{inside}", recursive=False, filter=anonymous)
