# SPDX-License-Identifier: Apache-2.0
"""Debian packages of ours: the same content always makes the same bytes (dpkg-deb(1), deb-control(5))."""

from __future__ import annotations

import hashlib
import os
import tempfile
import textwrap
import zlib
from collections.abc import Iterator
from datetime import datetime
from email.utils import format_datetime
from pathlib import Path

from factory.model import utc
from factory.region.config import GuestFile, install
from factory.region.packages.contents import Payload
from factory.system.files import appearing
from factory.system.run import run

MAINTAINER = "Image Factory <image-factory@images.invalid>"
CONTENT_FIELD = "Content-Sha256"
_TIMEOUT_S = 60.0
_COLUMNS = 76
_OS_AT, _UNIX = 9, b"\x03"  # of a gzip header (RFC 1952, 2.3)
_POSTINST = """\
#!/bin/sh
set -e
if [ "$1" = configure ] && [ -z "${DPKG_ROOT:-}" ] && [ -d /run/systemd/system ]; then
    systemctl daemon-reload || true
fi
"""
_PRERM = """\
#!/bin/sh
set -e
if [ "$1" = remove ] && [ -z "${{DPKG_ROOT:-}}" ] && [ -d /run/systemd/system ]; then
    systemctl disable {unit} || true
fi
"""


def deb_name(payload: Payload, version: str) -> str:
    """The file name."""
    return f"{payload.name}_{version}_all.deb"


def build_deb(payload: Payload, version: str, folder: Path) -> Path:
    """Build the package into ``folder`` and return its path."""
    target = folder / deb_name(payload, version)
    with tempfile.TemporaryDirectory(prefix="factory-deb-") as scratch:
        root = Path(scratch) / "root"
        root.mkdir(mode=0o755)
        install(root, tuple(_all_files(payload, version)))
        control = root / "DEBIAN"
        control.mkdir()
        for name, text, mode in _control_files(payload, version, root):
            (control / name).write_text(text)
            (control / name).chmod(mode)
        level(root, epoch=payload.epoch)
        with appearing(target) as partial:
            argv: list[str | Path] = ["dpkg-deb", "--root-owner-group", "-Zxz", "-z6", "--threads-max=1"]
            env = {"SOURCE_DATE_EPOCH": str(payload.epoch)}
            run([*argv, "--build", root, partial], timeout_s=_TIMEOUT_S, env=env)
            partial.chmod(0o644)
    return target


def level(root: Path, *, epoch: int) -> None:
    """Give every file and folder the epoch as its time, and folders one mode, whatever the umask was."""
    for path in sorted([root, *root.rglob("*")], key=lambda found: len(found.parts), reverse=True):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
        os.utime(path, (epoch, epoch), follow_symlinks=False)


def _all_files(payload: Payload, version: str) -> Iterator[GuestFile]:
    yield from payload.files
    about = f"usr/share/doc/{payload.name}"
    yield GuestFile(path=f"{about}/copyright", content=_COPYRIGHT.encode())
    yield GuestFile(path=f"{about}/changelog.gz", content=gzipped(_changelog(payload, version).encode()))


def gzipped(content: bytes) -> bytes:
    """As ``gzip -9n`` packs it, by every version of Python: :func:`gzip.compress` of 3.13 writes another header."""
    packing = zlib.compressobj(9, zlib.DEFLATED, wbits=31)
    packed = packing.compress(content) + packing.flush()
    return packed[:_OS_AT] + _UNIX + packed[_OS_AT + 1 :]


def _control_files(payload: Payload, version: str, root: Path) -> Iterator[tuple[str, str, int]]:
    yield "control", control_text(payload, version), 0o644
    yield "md5sums", "".join(_md5sums(root)), 0o644
    if payload.keep:
        yield "conffiles", "".join(f"/{path}\n" for path in payload.keep), 0o644
    if payload.unit:
        yield "postinst", _POSTINST, 0o755
        yield "prerm", _PRERM.format(unit=payload.unit), 0o755


def control_text(payload: Payload, version: str) -> str:
    """The ``control`` file."""
    size = sum(len(file.content) for file in payload.files)
    fields = {
        "Package": payload.name,
        "Version": version,
        "Architecture": "all",
        "Maintainer": MAINTAINER,
        "Installed-Size": str(max(1, -(-size // 1024))),
        "Depends": ", ".join(payload.deb_depends),
        "Replaces": ", ".join(payload.deb_replaces),
        "Section": "admin",
        "Priority": "optional",
        CONTENT_FIELD: payload.content_sha256,
        "Description": "\n ".join([payload.summary, *textwrap.wrap(" ".join(payload.description), _COLUMNS)]),
    }
    return "".join(f"{name}: {value}\n" for name, value in fields.items() if value)


def _md5sums(root: Path) -> Iterator[str]:
    """The list of digests, against accidents (who made the package is for the repository's signature)."""
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_file() and not path.is_symlink() and not name.startswith(("DEBIAN/", "etc/")):
            yield f"{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}  {name}\n"


def _changelog(payload: Payload, version: str) -> str:
    when: datetime = utc(payload.epoch)
    return (
        f"{payload.name} ({version}) stable; urgency=medium\n\n  * Content {payload.content_sha256}.\n\n"
        f" -- {MAINTAINER}  {format_datetime(when)}\n"
    )


_COPYRIGHT = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: Image Factory

Files: *
Copyright: 2026 the authors of Image Factory
License: Apache-2.0
 On Debian systems the whole text is in /usr/share/common-licenses/Apache-2.0.
"""
