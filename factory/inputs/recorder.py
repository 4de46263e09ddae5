# SPDX-License-Identifier: Apache-2.0
"""Everything a build fetches passes here: fetched once, verified, kept by content, listed.

Rules, in the order a request meets them:

1. What this run has already answered, it answers again with the same bytes: one night sees one state of the mirrors.
2. ``InRelease`` is always fetched and its signature verified; only the text that was signed is read.
3. A file whose SHA-256 a signed index of this run gives comes from the store when it is there, else from the mirror,
   and is served only when it has that digest.
4. Anything else is refused by its name: no signed index vouches for it, so nothing that comes of it could be trusted.
   What the mirror does not have (a 4xx answer) is recorded as an answer, whoever asked.

What cannot be got or is not good is an error of the night: it is kept in :attr:`Recorder.faults`, and the build gets a
502 instead of the file.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import unquote

from factory.errors import InputsError
from factory.inputs.answers import Answers, answered, unsigned
from factory.inputs.blobs import BlobStore, Incoming
from factory.inputs.lock import Input
from factory.inputs.upstream import Upstream

_OK, _PARTIAL, _NOT_THAT_LONG = 200, 206, 416


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a repository is read from, and who must have signed it."""

    mirror: str
    keyring: Path


class Recorder(Answers):
    """Answers for repositories by alias; safe to use from several threads."""

    def __init__(
        self, *, origins: Mapping[str, Origin], blobs: Path, now: datetime, upstream: Upstream | None = None
    ) -> None:
        super().__init__(store=BlobStore(blobs), now=now)
        self._origins = origins
        self._upstream = upstream or Upstream()

    @property
    def aliases(self) -> tuple[str, ...]:
        return tuple(self._origins)

    def address(self, repository: str, path: str) -> str:
        return f"{self._origins[repository].mirror.rstrip('/')}/{path}"

    def _answer(self, repository: str, path: str) -> Input:
        plain = unquote(path)
        if posixpath.basename(plain) == "InRelease":
            return self._signed_index(repository, path)
        expected = self._expected(repository, plain)
        if expected is None:
            return self._expect_absent(repository, path)
        with self.store.alone(expected):  # whoever waited here finds it in the store
            found = self.store.known(expected)
            answer = answered(repository, path, found) if found else self._fetch_signed(repository, path, expected)
        if answer.found:
            self._note_packages(repository, plain, answer)
        return answer

    def _expect_absent(self, repository: str, path: str) -> Input:
        """Ask for a file of which no index tells the content; only that there is none is an answer."""
        with self._upstream.get(self.address(repository, path)) as (status, _):
            if status != _OK:
                return Input(repository=repository, path=path, status=status)
        raise unsigned(repository, path, address=self.address(repository, path))

    def _fetch_signed(self, repository: str, path: str, expected: str) -> Input:
        """Get a file of which a signed index tells the content; half of it may be here from an earlier try."""
        with self.store.resumed(expected) as incoming:
            resumed = incoming.size_bytes > 0
            status = self._receive(repository, path, incoming)
            if resumed and status == _OK and incoming.digests.sha256 != expected:
                incoming.restart()  # the half was of something else
                status = self._receive(repository, path, incoming)
            if status != _OK:
                return Input(repository=repository, path=path, status=status)
            found = incoming.digests
            if found.sha256 == expected:
                return answered(repository, path, self.store.keep(incoming))
            incoming.restart()
        raise InputsError(
            f"repository '{repository}' serves another '{posixpath.basename(unquote(path))}' than it signed",
            facts=(
                ("address", self.address(repository, path)),
                ("signed", f"sha256 {expected}"),
                ("served", f"sha256 {found.sha256}, {found.size_bytes} bytes"),
            ),
            hint="the mirror is damaged or in the middle of an update; try again, or use another one",
        )

    def _receive(self, repository: str, path: str, incoming: Incoming) -> int:
        """Add what the mirror gives to what is there; 200 when it gave the whole, or the rest."""
        start = incoming.size_bytes
        with self._upstream.get(self.address(repository, path), start=start) as (status, body):
            if status == _OK and start:
                incoming.restart()
            if status in {_OK, _PARTIAL}:
                for chunk in body:
                    incoming.write(chunk)
                return _OK
        if status == _NOT_THAT_LONG and start:
            incoming.restart()
            return self._receive(repository, path, incoming)
        return status

    def _signed_index(self, repository: str, path: str) -> Input:
        with self.store.incoming() as incoming:
            status = self._receive(repository, path, incoming)
            if status != _OK:
                return Input(repository=repository, path=path, status=status)
            incoming.digests  # noqa: B018 what was written reaches the file
            self._read_release(repository, unquote(path), incoming.path, self._origins[repository].keyring)
            return answered(repository, path, self.store.keep(incoming))
