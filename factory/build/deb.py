# SPDX-License-Identifier: Apache-2.0
"""Single files out of a Debian package, without dpkg: deb(5) is an ar archive with a tar archive in it."""

from __future__ import annotations

import lzma
import posixpath
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO

_MAGIC = b"!<arch>\n"
_HEADER_BYTES = 60
_LARGEST_BYTES = 4 << 20


def files_of_deb(path: Path, wanted: Iterable[str]) -> dict[str, bytes]:
    """The plain files of a package with these absolute paths, as far as they are there and can be read.

    A package that is damaged, or compressed in a way that Python does not know, holds nothing.
    """
    names, found = set(wanted), dict[str, bytes]()
    try:
        with path.open("rb") as file, tarfile.open(fileobj=_data(file), mode="r|*") as archive:
            for member in archive:
                name = posixpath.normpath("/" + member.name)
                if name in names and member.isreg() and member.size <= _LARGEST_BYTES:
                    inside = archive.extractfile(member)
                    found[name] = inside.read() if inside else b""
                if len(found) == len(names):
                    break
    except (OSError, EOFError, ValueError, tarfile.TarError, lzma.LZMAError, zlib.error):
        return found
    return found


class _Part:
    """A part of a file, to read from its beginning to its end."""

    def __init__(self, file: IO[bytes], size_bytes: int) -> None:
        self._file, self._left = file, size_bytes

    def read(self, size: int = -1) -> bytes:
        """The next bytes of the part."""
        taken = self._left if size < 0 else min(size, self._left)
        self._left -= taken
        return self._file.read(taken)


def _data(file: IO[bytes]) -> IO[bytes]:
    """The package's ``data.tar`` of whatever compression."""
    if file.read(len(_MAGIC)) != _MAGIC:
        raise ValueError("not an ar archive")
    while header := file.read(_HEADER_BYTES):
        name, size = header[:16].decode(errors="replace").strip().rstrip("/"), int(header[48:58])
        if name.startswith("data.tar"):
            return _Part(file, size)  # type: ignore[return-value]  # tarfile only reads
        file.seek(size + size % 2, 1)
    raise ValueError("no data.tar")
