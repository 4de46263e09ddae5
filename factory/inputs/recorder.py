# SPDX-License-Identifier: Apache-2.0
"""Everything a build fetches passes here: fetched once, verified, kept by content, listed.

Rules, in the order a request meets them:

1. What this run has already answered, it answers again with the same bytes: one night sees one state of the mirrors.
2. ``InRelease`` is always fetched and its signature verified; only the text that was signed is read.
3. A file whose SHA-256 a signed index of this run gives comes from the store when it is there, else from the mirror,
   and is served only when it has that digest.
4. Anything else is fetched and served as it is (apt verifies once more); a 4xx answer is recorded as an answer.

What cannot be got or is not good is an error of the night: it is kept in :attr:`Recorder.faults`, and the build gets a
502 instead of the file.
"""

from __future__ import annotations

import posixpath
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import quote, unquote

from factory.errors import FactoryError, InputsError
from factory.inputs.blobs import BlobStore, Incoming
from factory.inputs.index import Release, epoch, package_digests, parse_release, with_dependencies
from factory.inputs.lock import Input
from factory.inputs.signature import signed_text
from factory.inputs.unpacking import index_text
from factory.inputs.upstream import Upstream
from factory.model import Repository
from factory.system.files import Digests

_OK = 200
_CLOCK_SLACK = timedelta(hours=24)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a repository is read from, and who must have signed it."""

    mirror: str
    keyring: Path


class Recorder:
    """Answers for repositories by alias; safe to use from several threads."""

    def __init__(
        self, *, origins: Mapping[str, Origin], blobs: Path, now: datetime, upstream: Upstream | None = None
    ) -> None:
        self.store = BlobStore(blobs)
        self.store.prepare()
        self._origins = origins
        self._now = now
        self._upstream = upstream or Upstream()
        self._inputs: dict[tuple[str, str], Input] = {}
        self._releases: dict[tuple[str, str], Release] = {}
        self._unread: dict[tuple[str, str], tuple[str, str]] = {}
        self._packages: dict[str, dict[str, bytes]] = {}
        self._digests: dict[str, dict[str, str]] = {}
        self._faults: list[FactoryError] = []
        self._mutex = threading.Lock()
        self._reading = threading.Lock()

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

    def has(self, repository: str) -> bool:
        """Whether there is a repository with this alias."""
        return repository in self._origins

    def read_indexes(self, repositories: tuple[Repository, ...]) -> None:
        """Fetch and verify the signed index of every suite.

        Raises:
            InputsError: a mirror is away, has no such suite, or its index is not good.
        """
        for repository in repositories:
            for suite in repository.suites:
                path = f"dists/{suite}/InRelease"
                if not self.get(repository.alias, path).found:
                    raise InputsError(
                        f"repository '{repository.alias}' has no suite '{suite}'",
                        facts=(("address", f"{self._origins[repository.alias].mirror}/{path}"),),
                        hint="check the suites in image.toml and [mirrors] in site.toml",
                    )

    def get(self, repository: str, path: str) -> Input:
        """The repository's answer for ``path`` (percent-encoded, without a leading slash); fetched when it is new.

        Raises:
            InputsError: the mirror is away, or the file is not what a signed index says.
        """
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
        with self._mutex:
            return self._inputs.setdefault((repository, path), answer)

    def fetch_with_dependencies(self, package: str, installed: frozenset[str]) -> int:
        """Record the files that installing ``package`` in the finished image takes; returns how many."""
        wanted = []
        for alias in self._origins:
            self._read_packages(alias)
        everything = [text for texts in self._packages.values() for text in texts.values()]
        names = with_dependencies(package, installed, everything)
        for alias in self._origins:
            wanted += [(alias, name) for name in sorted(names) if name in self._digests.get(alias, {})]
        for alias, name in wanted:
            self.get(alias, quote(name, safe="/~:"))
        return len(wanted)

    def _answer(self, repository: str, path: str) -> Input:
        plain = unquote(path)
        if posixpath.basename(plain) == "InRelease":
            return self._signed_index(repository, path)
        expected = self._expected(repository, plain)
        if expected is not None and (found := self.store.known(expected)) is not None:
            answer = _input(repository, path, found)
        else:
            answer = self._fetch(repository, path, expected)
        if answer.found:
            self._note_packages(repository, plain, answer)
        return answer

    def _fetch(self, repository: str, path: str, expected: str | None) -> Input:
        with self.store.incoming() as incoming:
            status = self._receive(repository, path, incoming)
            if status != _OK:
                return Input(repository=repository, path=path, status=status)
            found = incoming.digests
            if expected is not None and found.sha256 != expected:
                raise InputsError(
                    f"repository '{repository}' serves another '{posixpath.basename(unquote(path))}' than it signed",
                    facts=(
                        ("address", self._address(repository, path)),
                        ("signed", f"sha256 {expected}"),
                        ("served", f"sha256 {found.sha256}, {found.size_bytes} bytes"),
                    ),
                    hint="the mirror is damaged or in the middle of an update; try again, or use another one",
                )
            return _input(repository, path, self.store.keep(incoming))

    def _receive(self, repository: str, path: str, incoming: Incoming) -> int:
        with self._upstream.get(self._address(repository, path)) as (status, body):
            if status == _OK:
                for chunk in body:
                    incoming.write(chunk)
            return status

    def _address(self, repository: str, path: str) -> str:
        return f"{self._origins[repository].mirror.rstrip('/')}/{path}"

    def _signed_index(self, repository: str, path: str) -> Input:
        folder = posixpath.dirname(unquote(path))
        suite = folder.removeprefix("dists/")
        with self.store.incoming() as incoming:
            status = self._receive(repository, path, incoming)
            if status != _OK:
                return Input(repository=repository, path=path, status=status)
            incoming.digests  # noqa: B018 what was written reaches the file
            keyring = self._origins[repository].keyring
            release = parse_release(signed_text(incoming.path, keyring=keyring, repository=repository, suite=suite))
            self._expect_current(release, repository, suite)
            answer = _input(repository, path, self.store.keep(incoming))
        with self._mutex:
            self._releases[(repository, folder)] = release
        return answer

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
                self._packages.setdefault(repository, {})[plain] = text
                self._digests.setdefault(repository, {}).update(package_digests(text))


def _input(repository: str, path: str, found: Digests) -> Input:
    return Input(repository=repository, path=path, sha512=found.sha512, size_bytes=found.size_bytes)
