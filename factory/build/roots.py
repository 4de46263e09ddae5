# SPDX-License-Identifier: Apache-2.0
"""Debian packages, laid into a folder that becomes a root: no maintainer script runs.

Of the host's programs only xz takes part, which gives everywhere what was packed.

Format: deb(5), an ``ar`` archive whose ``data.tar`` holds the files. What is made are folders, plain files, and links;
owners and the right to run as somebody else are not taken over. Nothing is written through a link, so nothing appears
outside the folder. Several threads may lay packages into one folder.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import os
import shutil
import stat
import tarfile
import tempfile
import threading
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from factory.errors import BuildError, CommandFailed
from factory.system.run import run
from factory.system.unpack import Careful

_MAGIC = b"!<arch>\n"
_HEADER_BYTES = 60
_CHUNK_BYTES = 1 << 20
_ALIASED = frozenset({"bin", "lib", "lib32", "lib64", "libx32", "sbin"})
_MODE = 0o755
_TIMEOUT_S = 600.0
_MEMORY = "256MiB"


class _Part:
    """A part of an open file, to read."""

    def __init__(self, file: IO[bytes], size_bytes: int) -> None:
        self._file = file
        self._left = size_bytes

    def read(self, size: int = -1) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        found = self._file.read(wanted)
        self._left -= len(found)
        return found

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False


class Root:
    """A folder that packages are laid into.

    Args:
        unneeded: folders of packages that are left out, without leading slash.
    """

    def __init__(self, folder: Path, *, unneeded: Collection[str] = ()) -> None:
        self.folder = folder
        self._unneeded = tuple(f"{name}/" for name in unneeded)
        self._folders: set[PurePosixPath] = {PurePosixPath()}
        self._mutex = threading.Lock()

    def add_package(self, package: Path, name: str) -> None:
        """Lay a ``.deb`` file into the folder; ``name`` is for people.

        Raises:
            BuildError: it is damaged, or holds a file that no package may bring.
        """
        try:
            with package.open("rb") as file:
                member, size_bytes = _data(file)
                opened = _OPENERS.get(member)
                if opened is None:
                    raise BuildError(f"'{name}' is packed in a way that is not read here: {member}")
                with (
                    opened(_Part(file, size_bytes), self.folder) as unpacked,
                    tarfile.open(fileobj=unpacked, mode="r|", tarinfo=Careful) as members,
                ):
                    for one in members:
                        self._add(members, one, name)
        except (tarfile.TarError, zlib.error, CommandFailed, EOFError, OSError, ValueError) as damaged:
            raise BuildError(f"'{name}' cannot be unpacked", facts=(("said", str(damaged)[:300]),)) from damaged

    def add_file(self, inside: str, content: bytes, *, name: str, mode: int = 0o644, mtime: int = 0) -> None:
        """Write one file.

        Raises:
            BuildError: its name leads out of the folder, or through a link.
            FileExistsError: it is there already.
        """
        _write(self._place(inside, name), [content], mode=mode, mtime=mtime)

    def _add(self, members: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> None:
        inside = member.name.removeprefix("./").rstrip("/")
        if inside in {"", "."} or f"{inside}/".startswith(self._unneeded):
            return
        if member.isdir():
            self._folder(_checked(inside, name), name)
        elif member.issym():
            self._place(inside, name).symlink_to(member.linkname)
        elif member.islnk():
            first = member.linkname.removeprefix("./")
            if not first.startswith(self._unneeded):
                os.link(self._place(first, name), self._place(inside, name), follow_symlinks=False)
        elif member.isreg():
            content = members.extractfile(member)
            assert content is not None
            chunks = iter(lambda: content.read(_CHUNK_BYTES), b"")
            _write(self._place(inside, name), chunks, mode=member.mode & _MODE, mtime=int(member.mtime))
        else:
            raise BuildError(f"'{name}' holds '{inside}', which is neither a file, a folder nor a link")

    def _place(self, inside: str, name: str) -> Path:
        """Where a file goes; its folder is there afterwards, and no link leads to it."""
        path = _checked(inside, name)
        self._folder(path.parent, name)
        return self.folder / path

    def _folder(self, path: PurePosixPath, name: str) -> None:
        if path in self._folders:
            return
        self._folder(path.parent, name)
        real = self.folder / path
        with self._mutex:
            if not os.path.lexists(real):
                real.mkdir(mode=_MODE)
                real.chmod(_MODE)
            if not stat.S_ISDIR(real.lstat().st_mode):
                raise BuildError(f"'{name}' would write through '{path}', which is no folder")
            self._folders.add(path)


@contextlib.contextmanager
def _unxz(part: _Part, scratch: Path) -> Iterator[IO[bytes]]:
    """What a part is without xz, in a file of its own for the length of the block: programs work side by side.

    ``scratch`` is the root that is being made, so that what a crash leaves there goes with it.
    """
    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=scratch) as folder:
        packed = Path(folder) / "data.tar.xz"
        with packed.open("wb") as file:
            shutil.copyfileobj(part, file, _CHUNK_BYTES)
        run(["xz", "--decompress", "--threads=1", f"--memlimit={_MEMORY}", packed], timeout_s=_TIMEOUT_S)
        with packed.with_suffix("").open("rb") as unpacked:
            yield unpacked


_OPENERS: dict[str, Callable[[Any, Path], contextlib.AbstractContextManager[Any]]] = {
    "data.tar": lambda part, _: contextlib.nullcontext(part),
    "data.tar.xz": _unxz,
    "data.tar.gz": lambda part, _: gzip.GzipFile(fileobj=part),
    "data.tar.bz2": lambda part, _: bz2.BZ2File(part),
}


def _write(path: Path, chunks: Iterable[bytes], *, mode: int, mtime: int) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
        for chunk in chunks:
            file.write(chunk)
        file.flush()
        os.fchmod(file.fileno(), mode)
        os.utime(file.fileno(), (mtime, mtime))


def _checked(inside: str, name: str) -> PurePosixPath:
    """A member's path; folders that are links into ``usr`` in every merged root are written as what they are."""
    path = PurePosixPath(inside)
    if path.is_absolute() or ".." in path.parts or not path.parts or not inside.isprintable():
        raise BuildError(f"'{name}' holds {inside[:200]!r}, which leads out of its folder or is no name")
    if len(path.parts) > 1 and path.parts[0] in _ALIASED:
        path = PurePosixPath("usr") / path
    return path


def _data(file: IO[bytes]) -> tuple[str, int]:
    """Find the archive of files in a package; the file then stands at its beginning."""
    if file.read(len(_MAGIC)) != _MAGIC:
        raise ValueError("it is no ar archive")
    while len(header := file.read(_HEADER_BYTES)) == _HEADER_BYTES:
        member, size_bytes = header[:16].decode("ascii").rstrip().rstrip("/"), int(header[48:58])
        if member.startswith("data.tar"):
            return member, size_bytes
        file.seek(size_bytes + size_bytes % 2, os.SEEK_CUR)
    raise EOFError("it holds no files")
