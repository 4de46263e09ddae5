# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole, digests, and the digest of a tree."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from factory.errors import FactoryError
from factory.system.readings import known_sha256, reading

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Digests:
    """What identifies a file."""

    sha256: str
    sha512: str
    size_bytes: int


def digests(path: Path) -> Digests:
    """Read ``path`` once and return its digests and size."""
    sha256, sha512, size = hashlib.sha256(), hashlib.sha512(), 0

    def read() -> str:
        nonlocal size
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                sha256.update(chunk)
                sha512.update(chunk)
                size += len(chunk)
        return sha256.hexdigest()

    found = reading(path, read)
    return Digests(sha256=found, sha512=sha512.hexdigest(), size_bytes=size)


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def expect_digest(path: Path, sha256: str, *, anew: bool = False) -> None:
    """Raise FactoryError unless the file at ``path`` has this SHA-256.

    Args:
        anew: read it although this process did and it has not changed since (:mod:`factory.system.readings`).
    """
    if not path.is_file():
        raise FactoryError(f"'{path}' is missing", hint="the run directory is incomplete; build again")
    found = (None if anew else known_sha256(path)) or reading(path, lambda: sha256_file(path))
    if found != sha256:
        raise FactoryError(
            f"'{path}' is not the file that was recorded",
            facts=(("recorded", sha256), ("found", found)),
            hint="something changed the file after the stage that made it; build again",
        )


def write_whole(path: Path, data: bytes | str, *, mode: int = 0o644) -> None:
    """Write a file so that readers, and a crash, only ever see the old or the whole new content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` to write a file or folder under; it becomes ``path`` when the block succeeds.

    What stood at ``path`` is replaced; after a failure or a crash only the temporary name is left, and the next call
    for the same path removes it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    remove(partial)
    try:
        yield partial
        if partial.is_dir() and path.exists():
            remove(path)
        partial.replace(path)
    except BaseException:
        remove(partial)
        raise


def remove(path: Path) -> None:
    """Remove a file, link or folder if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def tree_digest(root: Path) -> str:
    """The SHA-256 of a folder: sorted relative names, types, permission bits, link targets and contents; no times."""
    lines = {}
    for path in root.rglob("*"):
        mode, name = path.lstat().st_mode, path.relative_to(root).as_posix()
        content = str(path.readlink()) if stat.S_ISLNK(mode) else "" if stat.S_ISDIR(mode) else sha256_file(path)
        lines[name] = tree_line(name, mode, content)
    return lines_digest(lines)


def tree_line(name: str, mode: int, content: str) -> str:
    """What of one file counts in :func:`tree_digest`; ``content`` is a file's SHA-256, or where a link leads."""
    if stat.S_ISLNK(mode):
        return f"link {name} {content}"
    if stat.S_ISDIR(mode):
        return f"dir {stat.S_IMODE(mode):04o} {name}"
    return f"file {stat.S_IMODE(mode):04o} {name} {content}"


def lines_digest(lines: Mapping[str, str]) -> str:
    """The digest of a folder that has these lines, by name."""
    total = hashlib.sha256()
    for name in sorted(lines, key=str.encode):
        total.update(lines[name].encode() + b"\0")
    return total.hexdigest()


def free_bytes(path: Path) -> int:
    """Bytes that can still be written on the file system of ``path`` (or of its nearest existing parent)."""
    while not path.exists():
        path = path.parent
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize
