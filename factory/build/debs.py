# SPDX-License-Identifier: Apache-2.0
"""A Debian package's own records, read without installing it (deb(5), deb-control(5))."""

from __future__ import annotations

import io
import lzma
import tarfile
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from factory.errors import BuildError, CommandFailed
from factory.system.run import run

_MAGIC = b"!<arch>\n"
_HEADER_BYTES = 60
_LIMIT_BYTES = 16 << 20
_TIMEOUT_S = 60.0
_PACKED = (lzma.LZMAError, zlib.error)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deb:
    """What a package file says of itself; ``md5sums`` is its list of digests, None when it has none."""

    name: str
    version: str
    arch: str
    md5sums: bytes | None


def read_deb(file: Path, *, shown: str = "") -> Deb:
    """Read a package file.

    Args:
        shown: how people know the file.

    Raises:
        BuildError: it is no Debian package.
    """
    try:
        files = _control_files(file)
        fields = {
            name: value.strip()
            for name, colon, value in (
                line.partition(":") for line in files["control"].decode(errors="replace").splitlines()
            )
            if colon and name[:1] not in {" ", "\t"}
        }
        return Deb(
            name=fields["Package"],
            version=fields["Version"],
            arch=fields["Architecture"],
            md5sums=files.get("md5sums"),
        )
    except (OSError, ValueError, KeyError, EOFError, tarfile.TarError, CommandFailed, *_PACKED) as broken:
        raise BuildError(f"'{shown or file.name}' is not a Debian package", facts=(("said", str(broken)),)) from broken


def _control_files(file: Path) -> dict[str, bytes]:
    """The plain files of the control member, by name; a member of large or unknown form is left to dpkg."""
    name, content = _control_member(file)
    if not name.endswith((".tar", ".gz", ".xz")):
        return _by_dpkg(file)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        found = {}
        for member in archive:
            opened = archive.extractfile(member) if member.isreg() and member.size <= _LIMIT_BYTES else None
            if opened is not None:
                found[member.name.removeprefix("./")] = opened.read()
        return found


def _control_member(file: Path) -> tuple[str, bytes]:
    with file.open("rb") as archive:
        if archive.read(len(_MAGIC)) != _MAGIC:
            raise ValueError("it is no ar archive")
        while len(header := archive.read(_HEADER_BYTES)) == _HEADER_BYTES:
            name, size = header[:16].decode(errors="replace").strip().rstrip("/"), int(header[48:58])
            if name.startswith("control.tar"):
                if size > _LIMIT_BYTES:
                    raise ValueError("its control files are too large")
                return name, archive.read(size)
            archive.seek(size + size % 2, 1)
    raise ValueError("it has no control files")


def _by_dpkg(file: Path) -> dict[str, bytes]:
    """The control files by dpkg's own hand, for forms that this Python does not know (zstd)."""
    with tempfile.TemporaryDirectory(prefix="factory-deb-") as scratch:
        run(["dpkg-deb", "--control", file, Path(scratch) / "control"], timeout_s=_TIMEOUT_S)
        found = (path for path in (Path(scratch) / "control").iterdir() if path.is_file() and not path.is_symlink())
        return {path.name: path.read_bytes() for path in found if path.stat().st_size <= _LIMIT_BYTES}
