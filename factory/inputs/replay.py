# SPDX-License-Identifier: Apache-2.0
"""Inputs, replayed: only what a lock names, each byte compared with the lock before a build sees it.

A replay asks no mirror: it knows a lock, keyrings, and sources of bytes. What it serves are copies of its own in a
fresh store, so that a file changed under a source between the comparison and the answer changes nothing. Signed indexes
are verified as when they were recorded, and ``Valid-Until`` is judged at the lock's epoch: the newest date that any of
them was signed at.
"""

from __future__ import annotations

import difflib
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote

from factory.errors import InputsError
from factory.inputs.answers import Answers, unsigned
from factory.inputs.blobs import BlobStore
from factory.inputs.lock import WHEELS, Input
from factory.inputs.sources import Source

_INDEX = re.compile(r"(?:.*/)?InRelease")


class Replay(Answers):
    """Answers from a lock.

    Args:
        lock: what may be asked for.
        keyrings: who must have signed a repository, by its alias.
        blobs: a folder of this replay's own; what was served is left there.
        sources: where the bytes are, tried in this order for each file.
        instead: sources to try first for single repositories.
        epoch: when the lock was made, in seconds since 1970.
    """

    def __init__(
        self,
        *,
        lock: Iterable[Input],
        keyrings: Mapping[str, Path],
        blobs: Path,
        sources: Sequence[Source],
        epoch: int,
        instead: Mapping[str, Source] | None = None,
    ) -> None:
        super().__init__(store=BlobStore(blobs), now=datetime.fromtimestamp(epoch, UTC))
        self._known = {(entry.repository, entry.path): entry for entry in lock}
        self._keyrings = keyrings
        self._sources = tuple(sources)
        self._instead = dict(instead or {})

    @property
    def aliases(self) -> tuple[str, ...]:
        return tuple(self._keyrings)

    def address(self, repository: str, path: str) -> str:
        return f"{repository}/{path}"

    @property
    def known(self) -> tuple[Input, ...]:
        """What the lock names."""
        return tuple(self._known[key] for key in sorted(self._known))

    @property
    def unasked(self) -> tuple[Input, ...]:
        """What the lock names and nobody asked for."""
        given = {(entry.repository, entry.path) for entry in self.inputs}
        return tuple(entry for key, entry in sorted(self._known.items()) if key not in given)

    def _answer(self, repository: str, path: str) -> Input:
        entry = self._known.get((repository, path))
        if entry is None:
            raise self._unknown(repository, path)
        if not entry.found:
            return entry
        plain = unquote(path)
        file = self._served(entry)
        if _INDEX.fullmatch(plain):
            self._read_release(repository, plain, file, self._keyrings[repository])
            return entry
        self._expect_signed(entry, plain)
        self._note_packages(repository, plain, entry)
        return entry

    def _served(self, entry: Input) -> Path:
        """The verified copy of an input."""
        file = self.store.path(entry.sha512)
        if file.is_file():
            return file
        instead = self._instead.get(entry.repository)
        refused: list[tuple[str, str]] = []
        for source in (*((instead,) if instead else ()), *self._sources):
            with self.store.incoming() as incoming:
                if not source.copy(entry, incoming):
                    refused.append(("tried", f"{source.place(entry)}: is not there"))
                    continue
                found = incoming.digests
                if (found.sha512, found.size_bytes) == (entry.sha512, entry.size_bytes):
                    self.store.keep(incoming)
                    return file
                refused.append(("tried", f"{source.place(entry)}: has other bytes (sha512 {found.sha512[:32]}...)"))
        damaged = any("other bytes" in what for _, what in refused)
        name = posixpath.basename(unquote(entry.path))
        raise InputsError(
            f"'{name}' of repository '{entry.repository}' "
            + ("is not what was recorded" if damaged else "is not in the store of recorded inputs"),
            facts=(
                ("path", self.address(entry.repository, entry.path)),
                ("locked", f"sha512 {entry.sha512[:32]}..., {entry.size_bytes} bytes"),
                *refused,
            ),
            hint="'factory inputs verify' looks at a whole store; get the inputs again from where the image was built",
        )

    def _expect_signers(self, repository: str, suite: str, signers: tuple[str, ...]) -> None:
        """Any key of the keyring may have signed: the lock names the very bytes, and the keyring came with it."""

    def _expect_signed(self, entry: Input, plain: str) -> None:
        """A lock cannot bring in what the repository's own index says is something else."""
        expected = self._expected(entry.repository, plain)
        if expected is None and entry.repository == WHEELS:
            return  # no index is signed there: what was recorded had the digest that is pinned in the factory
        if expected is None:
            raise unsigned(entry.repository, entry.path)
        found = self.store.known(expected)
        if found is None or found.sha512 != entry.sha512:
            raise InputsError(
                f"the lock's '{posixpath.basename(plain)}' is not the one that repository '{entry.repository}' signed",
                facts=(("signed", f"sha256 {expected}"), ("locked", f"sha512 {entry.sha512}")),
                hint="do not trust this lock",
            )

    def _unknown(self, repository: str, path: str) -> InputsError:
        facts = [("asked", self.address(repository, path))]
        if near := nearest(repository, path, self._known):
            facts.append(("nearest", near))
        return InputsError(
            f"the lock does not name '{self.address(repository, path)}'",
            facts=tuple(facts),
            hint="the build asks for something that the recorded one did not: are builder and build tree the same?",
        )


def nearest(repository: str, path: str, known: Iterable[tuple[str, str]]) -> str:
    """What the asker may have meant: another version of the package, the same path elsewhere, or a similar path."""
    pairs = tuple(known)
    folder, _, name = path.rpartition("/")
    package = name.partition("_")[0]
    for alias, other in pairs:
        if alias == repository and "_" in name and other.startswith(f"{folder}/{package}_"):
            return f"{alias}/{other}"
    for alias, other in pairs:
        if other == path:
            return f"{alias}/{other}"
    every = {f"{alias}/{other}": None for alias, other in pairs}
    found = difflib.get_close_matches(f"{repository}/{path}", list(every), n=1, cutoff=0.5)
    return found[0] if found else ""
