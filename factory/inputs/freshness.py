# SPDX-License-Identifier: Apache-2.0
"""Whether the mirrors still have what an earlier build was made from, as far as it matters to that build.

Three questions, each asked only when the one before did not settle it: is the signed index the same, byte for byte;
does the newer one name other package indexes; does a newer package index have other packages of those that the build
took, or that could have been chosen instead (:mod:`factory.inputs.sameness`)? What is fetched for that is verified and
kept as in a build, so that a build which follows fetches none of it again.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from factory.errors import InputsError
from factory.inputs.index import Release, parse_release
from factory.inputs.lock import TOOL_ALIASES, Input, read_lock
from factory.inputs.recorder import Recorder
from factory.inputs.sameness import (
    Pair,
    changed_folders,
    fetched_packages,
    package_difference,
    release_difference,
    watched,
)
from factory.inputs.signature import signed_text
from factory.inputs.stanzas import Stanzas
from factory.inputs.unpacking import index_text
from factory.system.files import digests

_SIGNED = "InRelease"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Whether a build would be given the same, and what was compared to know it, in words."""

    same: bool
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Index:
    """A package index that the build read: its plain name below the suite, and its entry in the lock."""

    name: str
    entry: Input


@dataclass(frozen=True, slots=True, kw_only=True)
class _Suite:
    """A suite of a lock, as it was: the package indexes are by their folder (``main/binary-amd64``)."""

    repository: str
    folder: str
    release: Release
    indexes: Mapping[str, _Index]

    def outdated(self, recorder: Recorder) -> bool:
        """Whether the mirror's index was signed later than the build's; both of the same second count as that."""
        return recorder.release(self.repository, self.folder).date >= self.release.date

    def __str__(self) -> str:
        return f"{self.repository} {self.folder.removeprefix('dists/')}"


class _Doubt(Exception):
    """Something that changed or cannot be compared, in words."""


def compare(lock: Path, recorder: Recorder, keyrings: Mapping[str, Path]) -> Comparison:
    """Compare a lock with what the mirrors of a recorder have now; what builds the image is not looked at.

    Args:
        keyrings: who signed the lock's indexes, by repository.

    Raises:
        InputsError: a mirror is away, no longer has an index, or has one that is not good.
    """
    entries = tuple(entry for entry in read_lock(lock) if entry.found and entry.repository not in TOOL_ALIASES)
    try:
        return Comparison(same=True, why=_compared(entries, recorder, keyrings))
    except _Doubt as doubt:
        return Comparison(same=False, why=str(doubt))


def _compared(entries: tuple[Input, ...], recorder: Recorder, keyrings: Mapping[str, Path]) -> str:
    """What was compared and found the same; raises :class:`_Doubt`."""
    signed = [entry for entry in entries if posixpath.basename(unquote(entry.path)) == _SIGNED]
    if not signed:
        raise _Doubt("the earlier build's lock names no signed index")
    if strange := sorted({entry.repository for entry in entries} - set(recorder.aliases)):
        raise _Doubt(f"the earlier build read from '{strange[0]}', which this one does not know")
    others = [entry for entry in signed if recorder.get_unless(entry.repository, entry.path, entry.sha512) is not None]
    if not others:
        return f"all {len(signed)} signed indexes are the same"
    suites = [_suite(entry, entries, recorder, keyrings) for entry in signed]
    newer = [suite for entry, suite in zip(signed, suites, strict=True) if entry in others and suite.outdated(recorder)]
    if not newer:  # servers of one mirror are not always of one age: what we have is newer than what it shows
        return "no signed index is newer than those that the build used"
    found = {str(suite): _pairs(suite, recorder) for suite in newer}
    names = ", ".join(found)
    if not any(found.values()):
        return f"newer signed indexes ({names}) name the same package indexes"
    every = [_stanzas(index, recorder) for suite in suites for index in suite.indexes.values()]
    fetched = fetched_packages(entry.path for entry in entries)
    relevant = watched(fetched, every)
    if said := package_difference((pair for pairs in found.values() for pair in pairs), relevant):
        raise _Doubt(said)
    return (
        f"newer package indexes ({names}) change none of the {len(fetched)} packages that the build took, nor any of "
        f"the {len(relevant - fetched)} that these name"
    )


def _suite(entry: Input, entries: Iterable[Input], recorder: Recorder, keyrings: Mapping[str, Path]) -> _Suite:
    """A suite as its signed index in the lock told it; of a file of our own, too, only what was signed is read."""
    folder = posixpath.dirname(unquote(entry.path))
    suite = folder.removeprefix("dists/")
    try:
        file = _stored(entry, recorder)
        text = signed_text(file, keyring=keyrings[entry.repository], repository=entry.repository, suite=suite)
        release = parse_release(text)
    except (InputsError, KeyError) as unreadable:
        raise _Doubt(f"the signed index of {entry.repository} {suite} that the build used is not good any more") from (
            unreadable
        )
    indexes = {}
    for other in entries:
        plain = unquote(other.path)
        if other.repository == entry.repository and plain.startswith(f"{folder}/"):
            name = release.is_packages(plain.removeprefix(f"{folder}/"))
            if name is not None:
                indexes[posixpath.dirname(name)] = _Index(name=name, entry=other)
    return _Suite(repository=entry.repository, folder=folder, release=release, indexes=indexes)


def _pairs(suite: _Suite, recorder: Recorder) -> list[Pair]:
    """The package indexes of a suite that have other content now, before and after."""
    new = recorder.release(suite.repository, suite.folder)
    if said := release_difference(suite.release, new, suite.indexes):
        raise _Doubt(f"{suite}: {said}")
    found = []
    for folder in changed_folders(suite.release, new, suite.indexes):
        index = suite.indexes[folder]
        found.append(Pair(name=str(suite), old=_stanzas(index, recorder), new=_present(suite, index, new, recorder)))
    return found


def _present(suite: _Suite, index: _Index, new: Release, recorder: Recorder) -> Stanzas:
    """The package index that the mirror has now, by the name that says what it must hold."""
    path = f"{suite.folder}/{index.name}"
    if new.fields.get("Acquire-By-Hash", "").lower() == "yes":
        path = f"{posixpath.dirname(path)}/by-hash/SHA256/{new.files[index.name]}"
    answer = recorder.get(suite.repository, quote(path, safe="/~:+"))
    if not answer.found:
        raise _Doubt(f"{suite}: the mirror does not have the '{index.name}' that it signed")
    return Stanzas(index_text(index.name, recorder.store.path(answer.sha512)))


def _stanzas(index: _Index, recorder: Recorder) -> Stanzas:
    try:
        return Stanzas(index_text(index.name, _stored(index.entry, recorder)))
    except InputsError as damaged:
        raise _Doubt(damaged.message) from damaged


def _stored(entry: Input, recorder: Recorder) -> Path:
    """The file of a lock's entry, when it is stored and still what the lock names."""
    file = recorder.store.path(entry.sha512)
    try:
        found = digests(file)
    except OSError:
        raise _Doubt(f"'{entry.repository}/{entry.path}' of the earlier build is not stored any more") from None
    if found.sha512 != entry.sha512:
        raise _Doubt(f"'{entry.repository}/{entry.path}' of the earlier build is damaged in the store")
    return file
