# SPDX-License-Identifier: Apache-2.0
"""rpm-md repositories, recorded and replayed by the rules of Debian's: one signed index, everything else by its digest.

``repodata/repomd.xml`` and the signature beside it (``.asc``) are always asked for and verified together, against the
keys that ``keys/upstream.toml`` names; every other index by the digest in it; every package by the digest in
``primary``. The key beside them (``.key``) is never given to a build: whoever can change the one can change the other.
"""

from __future__ import annotations

import contextlib
import gzip
import lzma
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, unquote

from factory.errors import CommandFailed, InputsError
from factory.inputs.answers import Answers, answered
from factory.inputs.lock import Input
from factory.inputs.recorder import Recorder
from factory.inputs.replay import Replay
from factory.inputs.rpm_md import KEY, REPOMD, SIGNATURE, Repomd, RpmPackage, epoch, parse_primary, parse_repomd
from factory.inputs.signature import signers_of_detached
from factory.inputs.stanzas import Offer
from factory.model import Repository
from factory.system.run import run

_CLOCK_SLACK = timedelta(hours=24)
_TIMEOUT_S = 300.0
_OPENERS: dict[str, Callable[[Path, str], Any]] = {".gz": gzip.open, ".xz": lzma.open}


class RpmAnswers(Answers):
    """What recorder and replay of rpm-md repositories have in common."""

    def __init__(self, **names: Any) -> None:  # noqa: ANN401 those of the class that this is mixed with
        super().__init__(**names)
        self._repomds: dict[str, Repomd] = {}
        self._listed: dict[str, dict[str, RpmPackage]] = {}
        self._listing = threading.Lock()

    @property
    def epoch(self) -> int:
        """The newest date among the signed indexes of this run."""
        return epoch(self._repomds.values())

    def read_indexes(self, repositories: tuple[Repository, ...]) -> None:
        """Get and verify the signed index of every repository.

        Raises:
            InputsError: a mirror is away, has no such repository, or its index is not good.
        """
        for repository in repositories:
            if not self.get(repository.alias, REPOMD).found:
                raise InputsError(
                    f"there is no rpm-md repository '{repository.alias}' where it is read from",
                    facts=(("address", self.address(repository.alias, REPOMD)),),
                    hint="check [mirrors] and [repositories.IMAGE] in site.toml",
                )

    def packages(self, repository: str) -> Mapping[str, RpmPackage]:
        """The packages that a repository's signed list names, by path.

        Raises:
            InputsError: the list is not there, or damaged.
        """
        repomd = self._repomd(repository)
        with self._listing:
            if repository not in self._listed:
                found = self.get(repository, quote(repomd.primary, safe="/~:+"))
                if not found.found:
                    raise InputsError(
                        f"repository '{repository}' does not have the list of packages that it signed",
                        facts=(("address", self.address(repository, repomd.primary)),),
                        hint="the mirror is in the middle of an update; try again, or use another one",
                    )
                with _unpacked(repomd.primary, self.store.path(found.sha512)) as text:
                    self._listed[repository] = {one.path: one for one in parse_primary(text)}
            return self._listed[repository]

    def offers(self, packages: Iterable[str], repositories: Iterable[str]) -> tuple[Offer, ...]:
        """What the signed lists offer under these names."""
        wanted = frozenset(packages)
        return tuple(
            Offer(
                repository=alias,
                name=one.name,
                version=one.evr,
                arch=one.arch,
                path=one.path,
                sha256=one.sha256,
                source=one.made_of[0],
                source_version=one.made_of[1],
            )
            for alias in repositories
            for one in self.packages(alias).values()
            if one.name in wanted
        )

    def _repomd(self, repository: str) -> Repomd:
        if repository not in self._repomds and not self.get(repository, REPOMD).found:
            raise InputsError(
                f"repository '{repository}' has no {REPOMD}",
                facts=(("address", self.address(repository, REPOMD)),),
                hint="check [mirrors] and [repositories.IMAGE] in site.toml",
            )
        return self._repomds[repository]

    def _expected(self, repository: str, plain: str) -> str | None:
        repomd = self._repomd(repository)
        if plain.startswith("repodata/"):
            return repomd.files.get(plain)
        if plain in repomd.files:
            return repomd.files[plain]
        package = self.packages(repository).get(plain)
        return package.sha256 if package else None

    def _take_in(self, repository: str, index: Path, signature: Path, keyring: Path) -> None:
        """Take in a signed index, when it is good and of now."""
        signers = signers_of_detached(index, signature, keyring=keyring, what=f"repository '{repository}'")
        self._expect_signers(repository, "repodata", signers)
        found = parse_repomd(index.read_bytes())
        if found.date > self._now + _CLOCK_SLACK:
            raise InputsError(
                f"repository '{repository}' was signed in the future",
                facts=(("signed", str(found.date)), ("now", str(self._now))),
                hint="set this host's clock",
            )
        self._repomds[repository] = found


class RpmRecorder(RpmAnswers, Recorder):
    """Records rpm-md repositories."""

    def _answer(self, repository: str, path: str) -> Input:
        plain = unquote(path)
        if plain == KEY:
            return Input(repository=repository, path=path, status=HTTPStatus.NOT_FOUND)
        if plain == SIGNATURE:
            self._repomd(repository)
            return next(one for one in self.inputs if (one.repository, one.path) == (repository, SIGNATURE))
        return self._signed_pair(repository) if plain == REPOMD else super()._answer(repository, path)

    def _signed_pair(self, repository: str) -> Input:
        """The list of indexes, verified with the signature beside it; both are recorded, or neither."""
        with self._present(repository, REPOMD) as index:
            if index.found is None:
                return Input(repository=repository, path=REPOMD, status=index.status)
            with self._present(repository, SIGNATURE) as signature:
                if signature.found is None:
                    raise InputsError(
                        f"repository '{repository}' is not signed: it has no {SIGNATURE}",
                        facts=(("address", self.address(repository, SIGNATURE)), ("status", str(signature.status))),
                        hint="use a mirror that keeps the vendor's signature",
                    )
                self._take_in(repository, index.file, signature.file, self._origins[repository].keyring)
                for path, one in ((REPOMD, index), (SIGNATURE, signature)):
                    if one.incoming is not None and one.found is not None:
                        self.store.keep(one.incoming)
                        self._validators.note(self.address(repository, path), one.marks, one.found)
                self._remember(answered(repository, SIGNATURE, signature.found))
                return answered(repository, REPOMD, index.found)


class RpmReplay(RpmAnswers, Replay):
    """Answers from a lock of rpm-md repositories."""

    def _answer(self, repository: str, path: str) -> Input:
        plain = unquote(path)
        if plain == SIGNATURE:
            self._repomd(repository)
        if plain not in {REPOMD, SIGNATURE}:
            return super()._answer(repository, path)
        index, signature = (self._known.get((repository, one)) for one in (REPOMD, SIGNATURE))
        if index is None or signature is None:
            raise self._unknown(repository, REPOMD if index is None else SIGNATURE)
        if plain == SIGNATURE:
            return signature
        self._take_in(repository, self._served(index), self._served(signature), self._keyrings[repository])
        self._remember(signature)
        return index


@contextlib.contextmanager
def _unpacked(name: str, file: Path) -> Iterator[IO[bytes]]:
    """A stored index to read, unpacked as its name says."""
    text = file.with_name(f".incoming-{secrets.token_hex(8)}")  # what a crash leaves under such a name is collected
    with contextlib.ExitStack() as stack:
        stack.callback(text.unlink, missing_ok=True)
        try:
            if name.endswith(".zst"):
                run(["zstd", "--decompress", "--quiet", "-o", text, file], timeout_s=_TIMEOUT_S)
            opener = next((opener for ending, opener in _OPENERS.items() if name.endswith(ending)), Path.open)
            yield stack.enter_context(opener(text if name.endswith(".zst") else file, "rb"))
        except (CommandFailed, OSError, EOFError, lzma.LZMAError) as damaged:
            raise InputsError(f"the list of packages '{name}' is damaged") from damaged
