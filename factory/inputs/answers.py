# SPDX-License-Identifier: Apache-2.0
"""What a build is answered, by recording and replaying alike: one answer for a path, signed indexes, packages."""

from __future__ import annotations

import posixpath
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, unquote

from factory.errors import FactoryError, InputsError
from factory.inputs.blobs import BlobStore
from factory.inputs.index import Release, epoch, package_digests, parse_release, with_dependencies
from factory.inputs.lock import Input
from factory.inputs.signature import signed
from factory.inputs.stanzas import Offer, Stanzas, offers
from factory.inputs.unpacking import index_text
from factory.model import Repository
from factory.system.files import Digests

_CLOCK_SLACK = timedelta(hours=24)


class Inputs(Protocol):
    """Where a build gets its files from; safe to use from several threads."""

    @property
    def store(self) -> BlobStore:
        """Where the bytes of an answer are, by its digest."""

    @property
    def inputs(self) -> tuple[Input, ...]:
        """What was answered so far, sorted."""

    @property
    def faults(self) -> tuple[FactoryError, ...]:
        """What could not be got or was not good, in the order it happened."""

    @property
    def epoch(self) -> int:
        """The newest date among the signed indexes that were answered."""

    def has(self, repository: str) -> bool:
        """Whether there is a repository with this alias."""

    def get(self, repository: str, path: str) -> Input:
        """The answer for ``path`` (percent-encoded, without a leading slash); raises InputsError when there is none."""

    def read_indexes(self, repositories: tuple[Repository, ...]) -> None:
        """Get and verify the signed index of every suite."""

    def fetch_with_dependencies(self, package: str, installed: frozenset[str]) -> int:
        """Get the files that installing ``package`` in the finished image takes; returns how many."""

    def offers(self, packages: Iterable[str], repositories: Iterable[str]) -> tuple[Offer, ...]:
        """What the signed package indexes that were answered offer under these names."""


class Answers(ABC):
    """Answers by repository alias and path; a subclass knows where the bytes come from."""

    def __init__(self, *, store: BlobStore, now: datetime) -> None:
        self.store = store
        self.store.prepare()
        self._now = now
        self._inputs: dict[tuple[str, str], Input] = {}
        self._releases: dict[tuple[str, str], Release] = {}
        self._unread: dict[tuple[str, str], tuple[str, str]] = {}
        self._packages: dict[str, dict[str, Stanzas]] = {}
        self._digests: dict[str, dict[str, str]] = {}
        self._faults: list[FactoryError] = []
        self._mutex = threading.Lock()
        self._reading = threading.Lock()
        self._asking: dict[tuple[str, str], threading.Lock] = {}

    @property
    def inputs(self) -> tuple[Input, ...]:
        """What was answered so far, sorted."""
        with self._mutex:
            return tuple(sorted(self._inputs.values()))

    @property
    def faults(self) -> tuple[FactoryError, ...]:
        """What could not be got or was not good, in the order it happened."""
        with self._mutex:
            return tuple(self._faults)

    @property
    def epoch(self) -> int:
        """The newest date among the signed indexes of this run."""
        return epoch(self._releases.values())

    @property
    @abstractmethod
    def aliases(self) -> tuple[str, ...]:
        """The repositories there are, in a fixed order."""

    @abstractmethod
    def address(self, repository: str, path: str) -> str:
        """Where a file comes from, for people."""

    @abstractmethod
    def _answer(self, repository: str, path: str) -> Input:
        """Get a file that was not asked for before."""

    def has(self, repository: str) -> bool:
        """Whether there is a repository with this alias."""
        return repository in self.aliases

    def read_indexes(self, repositories: tuple[Repository, ...]) -> None:
        """Get and verify the signed index of every suite.

        Raises:
            InputsError: a mirror is away, has no such suite, or its index is not good.
        """
        for repository in repositories:
            for suite in repository.suites:
                path = f"dists/{suite}/InRelease"
                if not self.get(repository.alias, path).found:
                    raise InputsError(
                        f"repository '{repository.alias}' has no suite '{suite}'",
                        facts=(("address", self.address(repository.alias, path)),),
                        hint="check the suites in image.toml and [mirrors] in site.toml",
                    )

    def get(self, repository: str, path: str) -> Input:
        """The repository's answer for ``path`` (percent-encoded, without a leading slash); fetched once.

        Raises:
            InputsError: the mirror is away, or the file is not what a signed index says.
        """
        with self._mutex:
            asking = self._asking.setdefault((repository, path), threading.Lock())
        with asking:
            with self._mutex:
                known = self._inputs.get((repository, path))
            if known is not None:
                return known
            try:
                answer = self._answer(repository, path)
            except FactoryError as fault:
                with self._mutex:
                    self._faults.append(fault)
                raise
            self._remember(answer)
            return answer

    def _remember(self, answer: Input) -> None:
        with self._mutex:
            self._inputs[(answer.repository, answer.path)] = answer

    def fetch_with_dependencies(self, package: str, installed: frozenset[str]) -> int:
        """Record the files that installing ``package`` in the finished image takes; returns how many."""
        wanted = []
        for alias in self.aliases:
            self._read_packages(alias)
        everything = [index for indexes in self._packages.values() for index in indexes.values()]
        names = with_dependencies(package, installed, everything)
        for alias in self.aliases:
            wanted += [(alias, name) for name in sorted(names) if name in self._digests.get(alias, {})]
        for alias, name in wanted:
            self.get(alias, quote(name, safe="/~:"))
        return len(wanted)

    def release(self, repository: str, folder: str) -> Release:
        """The signed index that was answered for a folder (``dists/trixie``)."""
        with self._mutex:
            return self._releases[(repository, folder)]

    def is_packages(self, entry: Input) -> bool:
        """Whether an answer is a package index of a suite whose signed index was answered."""
        release, name = self._release_of(entry.repository, unquote(entry.path))
        return entry.found and release is not None and release.is_packages(name) is not None

    def offers(self, packages: Iterable[str], repositories: Iterable[str]) -> tuple[Offer, ...]:
        """What the signed package indexes that were answered offer under these names."""
        wanted, found = frozenset(packages), list[Offer]()
        for alias in repositories:
            self._read_packages(alias)
            found += offers(alias, self._packages.get(alias, {}).values(), wanted)
        return tuple(found)

    def _read_release(self, repository: str, plain: str, file: Path, keyring: Path) -> None:
        """Take in a signed index, when it is good and of now."""
        folder = posixpath.dirname(plain)
        suite = folder.removeprefix("dists/")
        found = signed(file, keyring=keyring, repository=repository, suite=suite)
        self._expect_signers(repository, suite, found.signers)
        release = parse_release(found.text)
        self._expect_current(release, repository, suite)
        with self._mutex:
            self._releases[(repository, folder)] = release

    @abstractmethod
    def _expect_signers(self, repository: str, suite: str, signers: tuple[str, ...]) -> None:
        """Raise when the good signatures of an index are of other keys than are expected."""

    def _expect_current(self, release: Release, repository: str, suite: str) -> None:
        if release.valid_until is not None and release.valid_until < self._now:
            raise InputsError(
                f"repository '{repository}' (suite {suite}) is out of date",
                facts=(("valid", f"until {release.valid_until:%Y-%m-%d %H:%M} UTC"), ("signed", str(release.date))),
                hint="the mirror stopped following its archive, or this host's clock is wrong",
            )
        if release.date > self._now + _CLOCK_SLACK:
            raise InputsError(
                f"repository '{repository}' (suite {suite}) was signed in the future",
                facts=(("signed", str(release.date)), ("now", str(self._now))),
                hint="set this host's clock",
            )

    def _expected(self, repository: str, plain: str) -> str | None:
        release, name = self._release_of(repository, plain)
        if release is not None:
            return release.expected(name)
        self._read_packages(repository)
        return self._digests.get(repository, {}).get(plain)

    def _release_of(self, repository: str, plain: str) -> tuple[Release | None, str]:
        with self._mutex:
            for (owner, folder), release in self._releases.items():
                if owner == repository and plain.startswith(f"{folder}/"):
                    return release, plain.removeprefix(f"{folder}/")
        return None, plain

    def _note_packages(self, repository: str, plain: str, answer: Input) -> None:
        """Remember a package index; it is read only when a package is asked for."""
        release, name = self._release_of(repository, plain)
        file = release.is_packages(name) if release is not None else None
        if file is not None:
            with self._mutex:
                self._unread[(repository, plain)] = (file, answer.sha512)

    def _read_packages(self, repository: str) -> None:
        with self._reading:
            with self._mutex:
                unread = {key: self._unread.pop(key) for key in list(self._unread) if key[0] == repository}
            for (_, plain), (file, sha512) in unread.items():
                text = index_text(file, self.store.path(sha512))
                self._packages.setdefault(repository, {})[plain] = Stanzas(text)
                self._digests.setdefault(repository, {}).update(package_digests(text))


def answered(repository: str, path: str, found: Digests) -> Input:
    """The answer for a file with these digests."""
    return Input(repository=repository, path=path, sha512=found.sha512, size_bytes=found.size_bytes)


def unsigned(repository: str, path: str, *, address: str = "") -> InputsError:
    """The error of a file that no signed index names."""
    return InputsError(
        f"no signed index of repository '{repository}' names '{unquote(path)}'",
        facts=(("address", address or f"{repository}/{path}"),),
        hint="a build gets packages and indexes of signed suites only; put other files into the overlay",
    )
