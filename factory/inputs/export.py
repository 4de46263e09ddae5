# SPDX-License-Identifier: Apache-2.0
"""A lock's inputs, to take elsewhere: a folder or tar file with the lock and exactly the files that it names.

``inputs.lock`` and ``blobs/<sha512>``; an export can stand behind any HTTP server as a store that ``factory rebuild
--inputs URL/blobs`` reads.
"""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from factory.errors import InputFault, InputsError, NotGood
from factory.inputs.blobs import BlobStore
from factory.inputs.lock import Input, read_lock
from factory.system.files import appearing, digests
from factory.system.unpack import Limits, unpack

LOCK, BLOBS = "inputs.lock", "blobs"
_CHUNK_BYTES = 1 << 20
_LIMITS = Limits(bytes_unpacked=64 << 30, files=200_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """What an export or import comes to; ``new`` counts the files that were not there before."""

    place: Path
    files: int
    size_bytes: int
    new: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsound:
    """An input that is not in a store as its lock names it."""

    repository: str
    path: str
    sha512: str
    problem: str


def contents(lock: Iterable[Input]) -> dict[str, Input]:
    """The files that a lock names, each content once."""
    return {entry.sha512: entry for entry in sorted(lock, reverse=True) if entry.found}


def unsound(lock: Iterable[Input], blobs: Path) -> tuple[Unsound, ...]:
    """The inputs of a lock that are missing in a store, or damaged."""
    found = []
    for sha512, entry in contents(lock).items():
        if problem := _problem(blobs / sha512, entry):
            found.append(Unsound(repository=entry.repository, path=entry.path, sha512=sha512, problem=problem))
    return tuple(sorted(found, key=lambda one: (one.repository, one.path)))


def _problem(file: Path, entry: Input) -> str:
    if not file.is_file():
        return "is missing"
    found = digests(file)
    return "" if (found.sha512, found.size_bytes) == (entry.sha512, entry.size_bytes) else "has other bytes"


def export_inputs(lock: Path, *, blobs: Path, to: Path, say: Callable[[str], None]) -> Moved:
    """Write a lock and its files to ``to``, which must not exist: a folder, or a file when it ends in ``.tar``.

    Raises:
        InputFault: ``to`` exists.
        InputsError: an input is missing or damaged; nothing is left.
    """
    if to.exists():
        raise InputFault(f"'{to}' exists already", hint="export to a new place")
    files = contents(read_lock(lock))
    if bad := unsound(files.values(), blobs):
        raise _not_whole(bad)
    with appearing(to) as partial, tempfile.TemporaryDirectory(prefix=".factory-export-", dir=to.parent) as scratch:
        folder = Path(scratch) / "inputs" if to.suffix == ".tar" else partial
        (folder / BLOBS).mkdir(parents=True)
        shutil.copyfile(lock, folder / LOCK)
        for sha512 in sorted(files):
            shutil.copyfile(blobs / sha512, folder / BLOBS / sha512)
        if to.suffix == ".tar":
            _pack(folder, partial)
    size = sum(entry.size_bytes for entry in files.values())
    say(f"{len(files)} files, {size / 1e6:.0f} MB in {to}")
    return Moved(place=to, files=len(files), size_bytes=size, new=len(files))


def _pack(folder: Path, tar: Path) -> None:
    def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = member.mtime = 0
        member.uname = member.gname = ""
        member.mode = 0o755 if member.isdir() else 0o644
        return member

    with tarfile.open(tar, "w", format=tarfile.PAX_FORMAT) as archive:
        for path in [folder, *sorted(folder.rglob("*"))]:
            inside = path.relative_to(folder.parent).as_posix()
            archive.add(path, inside, recursive=False, filter=anonymous)


def import_inputs(source: Path, *, blobs: Path, say: Callable[[str], None]) -> Moved:
    """Take the files of an export into a store, each only when it is what the export's lock names.

    Raises:
        NotGood: a file is missing or damaged, or the tar file is none of ours; nothing is taken in.
        InputFault: there is nothing of the kind.
    """
    if source.is_dir():
        return _take_in(source, blobs, say)
    if not source.is_file():
        raise InputFault(f"there is no folder or tar file '{source}'", hint="'factory inputs export' makes one")
    blobs.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(prefix=".factory-import-", dir=blobs.parent) as scratch:
        return _take_in(unpack(source, Path(scratch), limits=_LIMITS), blobs, say)


def _take_in(folder: Path, blobs: Path, say: Callable[[str], None]) -> Moved:
    try:
        files = contents(read_lock(folder / LOCK))
    except InputsError as unreadable:
        raise NotGood(f"'{folder}' is no export of inputs", hint="'factory inputs export' makes one") from unreadable
    store = BlobStore(blobs)
    store.prepare()
    new = 0
    if bad := unsound(files.values(), folder / BLOBS):
        raise _not_whole(bad)
    for sha512, entry in sorted(files.items()):
        if not _problem(store.path(sha512), entry):
            continue
        with store.incoming() as incoming, (folder / BLOBS / sha512).open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                incoming.write(chunk)
            if incoming.digests.sha512 != sha512:
                raise NotGood(f"'{folder / BLOBS / sha512}' changed while it was read")
            store.keep(incoming)
        new += 1
    size = sum(entry.size_bytes for entry in files.values())
    say(f"{len(files)} files, {size / 1e6:.0f} MB, {new} of them new")
    return Moved(place=blobs, files=len(files), size_bytes=size, new=new)


def _not_whole(bad: tuple[Unsound, ...]) -> NotGood:
    return NotGood(
        f"{len(bad)} of the inputs are not there as the lock names them",
        facts=tuple(("input", f"{one.repository}/{one.path} {one.problem}") for one in bad[:20]),
        hint="get them from another store, or build again",
    )
