# SPDX-License-Identifier: Apache-2.0
"""Everything a build fetches passes here: fetched once, verified, kept by content, listed.

Rules, in the order a request meets them:

1. What this run has already answered, it answers again with the same bytes: one night sees one state of the mirrors.
2. ``InRelease`` is always asked for (on condition, so that what is here already is not sent again) and its signature
   verified; only the text that was signed is read.
3. A file whose SHA-256 a signed index of this run gives comes from the store when it is there, else from the mirror,
   and is served only when it has that digest.
4. Anything else is refused by its name: no signed index vouches for it, so nothing that comes of it could be trusted.
   What the mirror does not have (a 4xx answer) is recorded as an answer, whoever asked.

What cannot be got or is not good is an error of the night: it is kept in :attr:`Recorder.faults`, and the build gets a
502 instead of the file.
"""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from urllib.parse import unquote

from factory.errors import InputsError
from factory.inputs.answers import Answers, answered, unsigned
from factory.inputs.blobs import BlobStore, Incoming
from factory.inputs.lock import Input
from factory.inputs.signers import Signers
from factory.inputs.upstream import Upstream
from factory.inputs.validators import Validators
from factory.model import Recipe
from factory.system.files import Digests

_OK, _PARTIAL, _NOT_MODIFIED, _NOT_THAT_LONG = 200, 206, 304, 416


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a repository is read from, and who must have signed it.

    ``signers`` are the full fingerprints of the keys of ``keyring`` that do, where a person named them.
    """

    mirror: str
    keyring: Path
    signers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Present:
    """What a mirror has now: ``found`` are the digests of ``file``, which is in the store unless it is ``incoming``."""

    status: int
    file: Path
    found: Digests | None = None
    incoming: Incoming | None = None
    marks: Mapping[str, str] = field(default_factory=dict)


def origins_of(recipe: Recipe) -> dict[str, Origin]:
    """Where a recipe's repositories are read from.

    Raises:
        InputsError: a repository has no mirror, or no keyring.
    """
    missing = [r.alias for r in recipe.repositories if r.alias not in recipe.mirrors or r.alias not in recipe.keyrings]
    if missing:
        raise InputsError(
            f"repository '{missing[0]}' has no mirror to read from, or no keyring to trust",
            hint="name it in [mirrors] of site.toml, and its key in image.toml",
        )
    return {
        alias: Origin(
            mirror=recipe.mirrors[alias], keyring=recipe.keyrings[alias], signers=recipe.signers.get(alias, ())
        )
        for alias in (repository.alias for repository in recipe.repositories)
    }


class Recorder(Answers):
    """Answers for repositories by alias; safe to use from several threads."""

    def __init__(
        self,
        *,
        origins: Mapping[str, Origin],
        blobs: Path,
        now: datetime,
        upstream: Upstream | None = None,
        signers: Signers | None = None,
    ) -> None:
        super().__init__(store=BlobStore(blobs), now=now)
        self._origins = origins
        self._upstream = upstream or Upstream()
        self._validators = Validators(self.store)
        self._signers = signers or Signers()

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
        with self._present(repository, path) as present:
            return self._taken_in(repository, path, present)

    def get_unless(self, repository: str, path: str, sha512: str) -> Input | None:
        """A repository's present signed index, as :meth:`get` gives it; None when it still has this SHA-512.

        Of one that is the same nothing more is asked: it was verified when it was recorded.

        Raises:
            InputsError: the mirror is away or has no such index, or it is another one and not good.
        """
        with self._present(repository, path) as present:
            if present.found is None:
                raise InputsError(
                    f"the mirror does not serve '{self.address(repository, path)}'",
                    facts=(("status", str(present.status)),),
                    hint="check [mirrors] in site.toml",
                )
            if present.found.sha512 == sha512:
                if self.store.known(present.found.sha256):
                    self._validators.note(self.address(repository, path), present.marks, present.found)
                return None
            answer = self._taken_in(repository, path, present)
        self._remember(answer)
        return answer

    def _expect_signers(self, repository: str, suite: str, signers: tuple[str, ...]) -> None:
        self._signers.expect(repository, suite, pinned=self._origins[repository].signers, found=signers)

    def _taken_in(self, repository: str, path: str, present: _Present) -> Input:
        """Verify what a mirror has now, and keep it."""
        if present.found is None:
            return Input(repository=repository, path=path, status=present.status)
        self._read_release(repository, unquote(path), present.file, self._origins[repository].keyring)
        if present.incoming is not None:
            self.store.keep(present.incoming)
            self._validators.note(self.address(repository, path), present.marks, present.found)
        return answered(repository, path, present.found)

    @contextlib.contextmanager
    def _present(self, repository: str, path: str) -> Iterator[_Present]:
        """What a mirror has at an address that may change: asked on condition, so that the same is not sent again."""
        address = self.address(repository, path)
        conditions, known = self._validators.known(address)
        with (
            self.store.incoming() as incoming,
            self._upstream.get_unless(address, conditions) as (status, body, marks),
        ):
            if status == _NOT_MODIFIED and known is not None:
                yield _Present(status=status, file=self.store.path(known.sha512), found=known)
            elif status != _OK:
                yield _Present(status=status, file=incoming.path)
            else:
                for chunk in body:
                    incoming.write(chunk)
                yield _Present(
                    status=status, file=incoming.path, found=incoming.digests, incoming=incoming, marks=marks
                )
