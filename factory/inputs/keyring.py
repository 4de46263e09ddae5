# SPDX-License-Identifier: Apache-2.0
"""Which keys a keyring holds, and until when what they sign can be trusted."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote

from factory.errors import CommandFailed
from factory.system.run import run

NEVER = datetime.max.replace(tzinfo=UTC)
_GONE = frozenset("ri")
_DEAD = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryKey:
    """A primary key by full fingerprint; ``ends`` is when nothing it signs, itself or by a subkey, counts any more."""

    fingerprint: str
    user_id: str
    ends: datetime


def that_sign(keys: Iterable[RepositoryKey], named: Collection[str]) -> tuple[RepositoryKey, ...]:
    """The keys that may sign a repository: those named by full fingerprint, or all where none is named."""
    return tuple(key for key in keys if not named or key.fingerprint in named)


def told(keys: Iterable[RepositoryKey]) -> str:
    """Each key by its full fingerprint, and when it ends."""
    return ", ".join(f"{key.fingerprint} ends {_day(key.ends)}" for key in keys)


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d}" if moment > _DEAD else "as revoked, or cannot sign"


def keys_in(keyring: Path) -> tuple[RepositoryKey, ...]:
    """The primary keys of a keyring, in its order; none when it is no keyring, or GnuPG cannot read it."""
    with tempfile.TemporaryDirectory(prefix="factory-keys-") as scratch:
        argv: list[str | Path] = [
            "gpg",
            "--homedir",
            scratch,
            "--batch",
            "--with-colons",
            "--show-keys",
            keyring.absolute(),
        ]
        try:
            listed = run(argv, check=False, timeout_s=60).stdout
        except CommandFailed:
            return ()
    return tuple(parse_keys(listed.splitlines()))


def parse_keys(lines: Iterable[str]) -> Iterator[RepositoryKey]:
    """The keys that GnuPG lists (its doc/DETAILS, "Format of the colon listings")."""
    block: list[list[str]] = []
    for line in lines:
        fields = [*line.split(":"), *[""] * 12]
        if fields[0] == "pub" and block:
            yield from _key(block)
            block = []
        block.append(fields)
    yield from _key(block)


def _key(block: list[list[str]]) -> Iterator[RepositoryKey]:
    primary = next((fields for fields in block if fields[0] == "pub"), None)
    fingerprint = next((fields[9] for fields in block if fields[0] == "fpr"), "")
    if primary is None or not fingerprint:
        return
    user_id = next((fields[9] for fields in block if fields[0] == "uid"), "")
    signing = [fields for fields in block if fields[0] in {"pub", "sub"} and "s" in fields[11]]
    ends = [min(_end(primary), _end(fields)) for fields in signing]
    plain = unquote(user_id.replace("%", "%25").replace("\\x", "%"), errors="replace")
    yield RepositoryKey(fingerprint=fingerprint, user_id=plain, ends=max(ends, default=_DEAD))


def _end(fields: list[str]) -> datetime:
    """When a key or subkey ends: in seconds since 1970 or, by old versions, a date; revoked ones ended before all."""
    if fields[1] in _GONE:
        return _DEAD
    if not fields[6]:
        return NEVER
    try:
        return datetime.fromtimestamp(int(fields[6]), UTC)
    except (ValueError, OverflowError, OSError):
        return _DEAD
