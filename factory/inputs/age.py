# SPDX-License-Identifier: Apache-2.0
"""How far a mirror is behind its archive, by the dates that the archive signed."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from factory.errors import InputsError
from factory.inputs.blobs import BlobStore
from factory.inputs.index import parse_release
from factory.inputs.lock import read_lock
from factory.inputs.signature import signed
from factory.inputs.signers import Signers
from factory.inputs.upstream import Upstream
from factory.model import Freshness

_OK = 200
_LIMIT_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteAge:
    """How old the signed index of a suite was that a build used, and against what that is judged.

    ``upstream`` is the date of upstream's own signed index; without it, ``why`` says so and the clock is the measure.
    """

    alias: str
    suite: str
    date: datetime
    allowed_h: int
    now: datetime
    upstream: datetime | None = None
    why: str = ""

    @property
    def behind(self) -> timedelta:
        """By how much the mirror is behind; nothing when it has what upstream has, however old that is."""
        return max((self.upstream or self.now) - self.date, timedelta())

    @property
    def stale(self) -> bool:
        """Whether that is more than the site file allows."""
        return self.behind > timedelta(hours=self.allowed_h)

    def __str__(self) -> str:
        against = f"upstream's of {self.upstream:%Y-%m-%d %H:%M}" if self.upstream else f"the clock ({self.why})"
        hours = self.behind.total_seconds() / 3600
        return (
            f"{self.alias} {self.suite}: index of {self.date:%Y-%m-%d %H:%M} UTC is {hours:.1f} h behind {against}, "
            f"allowed are {self.allowed_h} h"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Who may date an index: just those whose indexes a build takes.

    ``keyrings`` and ``pinned`` (full fingerprints of ``keys/upstream.toml``) are by a repository's alias; ``signers``
    knows who signed those for which nobody is pinned.
    """

    keyrings: Mapping[str, Path]
    pinned: Mapping[str, tuple[str, ...]]
    signers: Signers

    def date(self, file: Path, repository: str, suite: str) -> datetime:
        """The date that an index was signed at.

        Raises:
            InputsError: it is not signed well, or by somebody else.
        """
        found = signed(file, keyring=self.keyrings[repository], repository=repository, suite=suite)
        self.signers.expect(repository, suite, pinned=self.pinned.get(repository, ()), found=found.signers)
        return parse_release(found.text).date


def suite_ages(
    lock: Path, *, blobs: Path, trust: Trust, wanted: Mapping[str, Freshness], now: datetime
) -> tuple[SuiteAge, ...]:
    """Judge every suite of a lock whose repository must be fresh, against upstream where it answers.

    Raises:
        InputsError: an index of the lock is not in the store any more, or not signed by who must have signed it.
    """
    found = []
    client, away = Upstream(pause_s=0.5), dict[str, str]()
    for entry in read_lock(lock):
        folder, _, file = entry.path.rpartition("/")
        rule, suite = wanted.get(entry.repository), folder.removeprefix("dists/")
        if file != "InRelease" or rule is None or not entry.found or (rule.suites and suite not in rule.suites):
            continue
        ours = _recorded_date(BlobStore(blobs).path(entry.sha512), trust, entry.repository, suite)
        theirs, why = None, "no upstream is named" if not rule.upstream else away.get(rule.upstream, "")
        if not why:
            address = f"{rule.upstream}/{entry.path}"
            theirs, why = _upstream_date(client, address, trust, entry.repository, suite)
            away |= {rule.upstream: why} if why else {}
        found.append(
            SuiteAge(
                alias=entry.repository,
                suite=suite,
                date=ours,
                allowed_h=rule.fresh_within_h,
                now=now,
                upstream=theirs,
                why=why,
            )
        )
    return tuple(found)


def _recorded_date(file: Path, trust: Trust, repository: str, suite: str) -> datetime:
    if not file.is_file():
        raise InputsError(
            f"the index of repository '{repository}' (suite {suite}) is not recorded any more", hint="build again"
        )
    return trust.date(file, repository, suite)


def _upstream_date(
    client: Upstream, address: str, trust: Trust, repository: str, suite: str
) -> tuple[datetime | None, str]:
    """The date of upstream's own index, or why there is none; only a date that was signed counts."""
    with tempfile.NamedTemporaryFile(prefix="factory-upstream-") as file:
        try:
            with client.get(address) as (status, body):
                if status != _OK:
                    return None, f"upstream answers {status}"
                for chunk in body:
                    file.write(chunk)
                    if file.tell() > _LIMIT_BYTES:
                        return None, "upstream's index is too large"
        except InputsError as away:
            return None, f"upstream is not reachable: {away.message}"
        file.flush()
        try:
            return trust.date(Path(file.name), repository, suite), ""
        except InputsError as refused:
            return None, f"upstream's index is not good: {refused.message}"
