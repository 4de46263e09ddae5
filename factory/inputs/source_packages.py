# SPDX-License-Identifier: Apache-2.0
"""The source packages of an image, fetched into a folder: what it installed, and what was built into that.

Which source a package is of stands in the package indexes that the lock names; where its files are, with their
digests, in the signed ``Sources`` indexes of the same suites (https://wiki.debian.org/DebianRepository/Format): the
ones that the mirror has now, and where a version is gone from those, the ones of the lock's own time, as far as the
mirror kept them. Every file is compared with its digest before it gets its name. Called again, it goes on where it
stopped.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from factory.errors import InputsError
from factory.inputs.download import Wanted, fetch
from factory.inputs.index import Release
from factory.inputs.lock import TOOL_ALIASES
from factory.inputs.recorder import Recorder
from factory.inputs.replay import Replay
from factory.inputs.stanzas import Offer, Stanzas, fields_of
from factory.inputs.unpacking import index_text
from factory.inputs.upstream import Upstream
from factory.model import Package, Repository
from factory.system.files import write_whole

SCHEMA = "factory/sources/1"
LIST = "sources.json"
_INDEXES = ".indexes"
_FETCHERS = 4
_ENDINGS = (".xz", ".gz", ".bz2", "")
_CHECKSUM = re.compile(r"([0-9a-f]{64}) (\d+) (\S+)")
Source = tuple[str, str]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourcePackage:
    """One source package: the image's packages that come of it, and its files by name below ``folder``.

    ``missing`` says what of it could not be had.
    """

    name: str
    version: str
    binaries: tuple[str, ...]
    repository: str = ""
    folder: str = ""
    files: tuple[Wanted, ...] = ()
    missing: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirrors:
    """Where repositories are read from: signed indexes by ``recorder``, any other file by ``upstream``."""

    recorder: Recorder
    upstream: Upstream


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """The sources of an image; ``ours`` are its packages whose source is its own source tarball."""

    image: str
    place: Path
    packages: tuple[SourcePackage, ...]
    ours: tuple[str, ...]

    @property
    def missing(self) -> tuple[SourcePackage, ...]:
        """Those that no index has any more."""
        return tuple(one for one in self.packages if one.missing)

    @property
    def size_bytes(self) -> int:
        """What there is of them."""
        return sum(file.size_bytes for one in self.packages if not one.missing for file in one.files)


def sources_of(packages: Iterable[Package], offers: Iterable[Offer]) -> tuple[dict[Source, set[str]], tuple[str, ...]]:
    """Which sources packages are made of, by name and version; and the packages that no index offers.

    A package is also made of what its build linked or copied in: ``Built-Using``.
    """
    known = {(offer.name, offer.version, offer.arch): offer for offer in offers}
    found: dict[Source, set[str]] = {}
    unknown = []
    for package in packages:
        offer = known.get((package.name, package.version, package.arch))
        if offer is None:
            unknown.append(package.name)
            continue
        for source in ((offer.source, offer.source_version), *offer.built_using):
            found.setdefault(source, set()).add(package.name)
    return found, tuple(sorted(unknown))


def export_sources(
    image: str,
    packages: tuple[Package, ...],
    *,
    repositories: tuple[Repository, ...],
    locked: Replay,
    at: Mirrors,
    out: Path,
    say: Say,
) -> Sources:
    """Fetch the sources of an image's packages into ``out``, and list them in ``sources.json`` there.

    Args:
        locked: the image's lock, to read package indexes from.
        at: where the repositories are read from now.

    Raises:
        InputsError: a mirror is away, or gives other files than were signed.
    """
    out.mkdir(parents=True, exist_ok=True)
    aliases = tuple(one.alias for one in repositories)
    wanted, ours = sources_of(packages, _offers(packages, repositories, locked))
    say(f"{len(packages)} packages come of {len(wanted)} sources")
    found: dict[Source, SourcePackage] = {}
    for signed in (at.recorder, locked):
        left = [source for source in wanted if source not in found]
        for index in _indexes(repositories, signed, at, out, say) if left else ():
            say(f"looking into {index}")
            found = {**_in_index(index, left), **found}
    listed = [
        replace(found.get((name, version), _gone(name, version, aliases)), binaries=tuple(sorted(binaries)))
        for (name, version), binaries in sorted(wanted.items())
    ]
    made = Sources(image=image, place=out, packages=tuple(listed), ours=ours)
    say(f"{made.size_bytes / 1e6:.0f} MB in {sum(len(one.files) for one in listed)} files")
    _fetch_all(listed, at, out, say)
    made = replace(made, packages=tuple(listed))
    body = {"schema": SCHEMA, "image": image, "ours": list(ours), "sources": [_line(one) for one in listed]}
    write_whole(out / LIST, json.dumps(body, indent=1) + "\n")
    return made


def _line(one: SourcePackage) -> dict[str, object]:
    """A source as the list has it; paths of files are below the folder and below the repository's address."""
    files = [
        {"name": file.name, "path": file.address, "sha256": file.sha256, "size": file.size_bytes} for file in one.files
    ]
    return {
        "name": one.name,
        "version": one.version,
        "packages": list(one.binaries),
        **({"missing": one.missing} if one.missing else {}),
        "repository": one.repository,
        "folder": one.folder,
        "files": files,
    }


def _offers(packages: Iterable[Package], repositories: tuple[Repository, ...], locked: Replay) -> tuple[Offer, ...]:
    locked.read_indexes(repositories)
    aliases = [one.alias for one in repositories]
    for entry in locked.known:
        if entry.repository not in TOOL_ALIASES and locked.is_packages(entry):
            locked.get(entry.repository, entry.path)
    return locked.offers((package.name for package in packages), aliases)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Index:
    """A ``Sources`` index of a component of a suite."""

    repository: str
    suite: str
    component: str
    date: datetime
    stanzas: Stanzas

    def __str__(self) -> str:
        return f"{self.repository} {self.suite} {self.component} of {self.date:%Y-%m-%d}"


def _indexes(
    repositories: tuple[Repository, ...], signed: Replay | Recorder, at: Mirrors, out: Path, say: Say
) -> Iterator[_Index]:
    """The ``Sources`` indexes that the signed indexes of ``signed`` name, as far as the mirror has them."""
    signed.read_indexes(repositories)
    unlike: Say = say if signed is at.recorder else lambda _: None  # one of an earlier time is not expected there
    for one in repositories:
        for suite in one.suites:
            release = signed.release(one.alias, f"dists/{suite}")
            for component in one.components:
                try:
                    file = _index_file(release, f"dists/{suite}", component, alias=one.alias, at=at, out=out)
                except _Unlike as other:
                    unlike(f"{one.alias} {suite} {component}: {other}")
                    continue
                if file is not None:
                    yield _Index(
                        repository=one.alias,
                        suite=suite,
                        component=component,
                        date=release.date,
                        stanzas=Stanzas(index_text(file.name, file)),
                    )


class _Unlike(Exception):
    """The mirror has an index of sources, and not the one that its signed index names."""


def _index_file(release: Release, suite: str, component: str, *, alias: str, at: Mirrors, out: Path) -> Path | None:
    folder = f"{component}/source"
    name = next((name for ending in _ENDINGS if (name := f"{folder}/Sources{ending}") in release.files), "")
    if not name:
        return None
    sha256 = release.files[name]
    file = out / _INDEXES / f"{sha256[:16]}-{posixpath.basename(name)}"
    by_hash = at.recorder.address(alias, f"{suite}/{folder}/by-hash/SHA256/{sha256}")
    if fetch(Wanted(name=name, address=by_hash, sha256=sha256), file, at.upstream):
        return file
    plain = at.recorder.address(alias, f"{suite}/{name}")
    try:
        return file if fetch(Wanted(name=name, address=plain, sha256=sha256), file, at.upstream) else None
    except InputsError as other:
        raise _Unlike(other.message) from other


def _in_index(index: _Index, wanted: Iterable[Source]) -> dict[Source, SourcePackage]:
    found = {}
    for name, version in wanted:
        for stanza in index.stanzas.named(name):
            fields = fields_of(stanza)
            if fields.get("Version") == version:
                found[(name, version)] = _described(index.repository, fields)
    return found


def _described(alias: str, fields: Mapping[str, str]) -> SourcePackage:
    name, version = fields["Package"], fields["Version"]
    files = tuple(
        Wanted(name=file, address=f"{fields.get('Directory', '')}/{file}", sha256=sha256, size_bytes=int(size))
        for sha256, size, file in _CHECKSUM.findall(fields.get("Checksums-Sha256", ""))
        if posixpath.basename(file) == file and file not in {"", ".", ".."}
    )
    folder = quote(f"{name}_{version}", safe="+~")
    missing = "" if files else "its index names no files"
    return SourcePackage(
        name=name, version=version, binaries=(), repository=alias, folder=folder, files=files, missing=missing
    )


def _gone(name: str, version: str, aliases: Iterable[str]) -> SourcePackage:
    why = f"no Sources index of {', '.join(aliases)} has this version any more"
    return SourcePackage(name=name, version=version, binaries=(), missing=why)


def _fetch_all(listed: list[SourcePackage], at: Mirrors, out: Path, say: Say) -> None:
    """Fetch every file that is not there yet; what the mirror does not have makes its source a missing one."""

    def one(number: int) -> SourcePackage:
        package, gone = listed[number], []
        for file in package.files:
            path = quote(file.address, safe="/~:+")
            wanted = replace(file, address=at.recorder.address(package.repository, path))
            target = out / package.folder / file.name
            target.parent.mkdir(exist_ok=True)
            if not fetch(wanted, target, at.upstream):
                gone.append(f"'{file.name}'")
        return replace(package, missing=f"the mirror has no {', '.join(gone)} any more") if gone else package

    with ThreadPoolExecutor(max_workers=_FETCHERS) as pool:
        for number, package in enumerate(pool.map(one, range(len(listed)))):
            listed[number] = package
            if package.missing:
                say(f"{package.name} {package.version}: {package.missing}")
