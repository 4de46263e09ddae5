# SPDX-License-Identifier: Apache-2.0
"""Archives from elsewhere, unpacked so that nothing appears outside the folder and nothing fills the host.

Only plain files, folders, and (where asked for) links that stay inside are made; owners and times of the archive are
not taken over, and of modes just whether a file can be executed.
"""

from __future__ import annotations

import lzma
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Self

from factory.errors import NotGood
from factory.system.text import visible

_CHUNK_BYTES = 1 << 20
_PACKED_BYTES = 1 << 16
_DICTIONARY_BYTES = 128 << 20
_MAX_HEADER_BYTES = 64 << 10
_LONG_HEADERS = frozenset(
    {
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an archive may come to at most."""

    bytes_unpacked: int = 512 << 20
    files: int = 20_000
    depth: int = 32


class Limited:
    """Reading a plain or xz file, until it has unpacked to more than it may; the dictionary has its limit as well."""

    def __init__(self, file: IO[bytes], limit_bytes: int, name: str, *, packed: bool) -> None:
        self._file = file
        self._left = limit_bytes
        self._limit_bytes = limit_bytes
        self._name = name
        self._xz = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_DICTIONARY_BYTES) if packed else None

    def read(self, size: int) -> bytes:
        found = self._unpacked(size) if self._xz is not None else self._file.read(size)
        self._left -= len(found)
        if self._left < 0:
            raise NotGood(f"'{self._name}' unpacks to more than {self._limit_bytes >> 20} MiB")
        return found

    def _unpacked(self, size: int) -> bytes:
        assert self._xz is not None
        found = b""
        while len(found) < size and not self._xz.eof:
            more = self._file.read(_PACKED_BYTES) if self._xz.needs_input else b""
            if self._xz.needs_input and not more:
                raise EOFError("it was cut off")
            found += self._xz.decompress(more, size - len(found))
        return found


class Careful(tarfile.TarInfo):
    """A header that is not believed when it announces a longer name than any path has."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        found = super().frombuf(buf, encoding, errors)
        if found.type in _LONG_HEADERS and found.size > _MAX_HEADER_BYTES:
            raise tarfile.ReadError("a header in it is larger than any header")
        return found


Taker = Callable[[PurePosixPath, tarfile.TarInfo, IO[bytes] | None], None]
"""Takes a member: where it belongs, its header, and what to read a plain file's content from."""


def unpack(archive: Path, folder: Path, *, links: bool = False, limits: Limits | None = None) -> Path:
    """Unpack a tar file (plain or xz) whose members lie below one folder; returns that folder.

    Args:
        folder: is there, and empty.
        links: make symbolic links, whatever they say; nothing is written through one.

    Raises:
        NotGood: it cannot be read, or a member has no place in such an archive; names it.
    """

    def make(path: PurePosixPath, member: tarfile.TarInfo, content: IO[bytes] | None) -> None:
        _make(content, member, folder / path)

    return folder / look_into(archive, make, links=links, limits=limits)


def look_into(archive: Path, take: Taker, *, links: bool = False, limits: Limits | None = None) -> str:
    """Give each member of a tar file that :func:`unpack` would make to ``take``; returns the one folder's name.

    Raises:
        NotGood: as there.
    """
    allowed = limits or Limits()
    tops = set()
    try:
        with archive.open("rb") as packed:
            limited: Any = Limited(packed, allowed.bytes_unpacked, archive.name, packed=archive.suffix == ".xz")
            with tarfile.open(fileobj=limited, mode="r|", tarinfo=Careful) as members:
                for member, path in _checked(members, archive.name, links=links, limits=allowed):
                    tops.add(path.parts[0])
                    take(path, member, members.extractfile(member) if member.isreg() else None)
    except (tarfile.TarError, lzma.LZMAError, EOFError, ValueError) as malformed:
        raise NotGood(f"'{archive.name}' cannot be unpacked: {visible(str(malformed)[:200])}") from malformed
    if len(tops) != 1:
        raise NotGood(f"'{archive.name}' does not hold one folder")
    return tops.pop()


def _checked(
    members: tarfile.TarFile, name: str, *, links: bool, limits: Limits
) -> Iterator[tuple[tarfile.TarInfo, PurePosixPath]]:
    made: set[PurePosixPath] = set()
    through: set[PurePosixPath] = set()
    for number, member in enumerate(members, start=1):
        if number > limits.files:
            raise NotGood(f"'{name}' holds more than {limits.files} files")
        path = PurePosixPath(member.name)
        problem = _problem(member, path, links=links, limits=limits)
        if path in made:
            problem = "is there twice"
        elif through & set(path.parents):
            problem = "would be written through a link"
        if problem:
            raise NotGood(
                f"'{name}' is not unpacked: '{visible(member.name[:200])}' {problem}",
                hint="do not use this archive; fetch it again, or ask whoever published it",
            )
        made.add(path)
        if member.issym():
            through.add(path)
        yield member, path


def _problem(member: tarfile.TarInfo, path: PurePosixPath, *, links: bool, limits: Limits) -> str:
    """Why a member is not unpacked, or nothing."""
    if path.is_absolute() or ".." in path.parts or not path.parts:
        return "leads out of its folder"
    if not member.name.isprintable() or len(path.parts) > limits.depth:
        return "has a name that no such file has"
    if not (member.isreg() or member.isdir() or (links and member.issym())) or member.issparse():
        return "is neither a plain file nor a folder"
    return ""


def _make(content: IO[bytes] | None, member: tarfile.TarInfo, path: Path) -> None:
    if member.isdir():
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.chmod(0o755)
        return
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    if member.issym():
        path.symlink_to(member.linkname)
        return
    assert content is not None
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
        while chunk := content.read(_CHUNK_BYTES):
            file.write(chunk)
        os.fchmod(file.fileno(), 0o755 if member.mode & 0o100 else 0o644)
