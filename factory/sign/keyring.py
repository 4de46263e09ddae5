# SPDX-License-Identifier: Apache-2.0
"""Whose signatures count: ``keys/keys.toml``, and the throw-away key of the embedded default.

``keys/`` holds public keys and dates only. The throw-away key is made once in the state folder; its home appears whole
by rename, so a crash leaves either no key or a complete one.
"""

from __future__ import annotations

import contextlib
import re
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from factory.errors import Fault, InputFault, LineHeld, SignError
from factory.model import Signing, utc
from factory.sign.openpgp import Home, Key, configured_home, own_home
from factory.system.files import appearing, write_whole
from factory.system.lock import exclusive
from factory.system.state import State

KEYS_FILE = "keys.toml"
THROW_AWAY_USER_ID = "throw-away key of an embedded Image Factory; do not trust"
THROW_AWAY_DAYS = 365
SIGNING_MARGIN = timedelta(days=14)
"""A key that expires sooner than this signs nothing more: there must be time to change keys."""

WARN_DAYS = 30
"""People hear of a key's end this long before, so that its successor can be published in time."""

_FINGERPRINT = re.compile(r"[0-9A-F]{40}([0-9A-F]{24})?")
_LOCK_WAIT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyDates:
    """One key of ours, by full fingerprint: when it was made, when it signs, and the file with its public part.

    A date means its first moment in UTC; ``in_use_to`` and ``expires`` are the first day on which it no longer counts.
    """

    fingerprint: str
    user_id: str
    created: date
    in_use_from: date
    in_use_to: date | None
    expires: date | None
    file: Path

    @property
    def ends(self) -> datetime | None:
        """When the key signs no more, if ever."""
        return min((start_of(day) for day in (self.in_use_to, self.expires) if day is not None), default=None)

    def in_use_at(self, when: datetime) -> bool:
        """Whether the key was the one to sign with."""
        return start_of(self.in_use_from) <= when and (self.ends is None or when < self.ends)

    @property
    def in_use(self) -> str:
        """The time in use, in words."""
        return f"{self.in_use_from} to {self.in_use_to or self.expires or 'now'}"


def start_of(day: date) -> datetime:
    """The first moment of a day, in UTC."""
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    fingerprint: str
    user_id: str = Field(min_length=1)
    created: date
    in_use_from: date
    in_use_to: date | None = None
    expires: date | None = None
    file: str

    @field_validator("fingerprint", mode="after")
    @classmethod
    def _full(cls, value: str) -> str:
        plain = value.replace(" ", "").upper()
        if not _FINGERPRINT.fullmatch(plain):
            raise ValueError("is not a full fingerprint (40 or 64 hexadecimal digits)")
        return plain


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    key: tuple[_Entry, ...] = Field(default=(), strict=False)


def key_dates(folder: Path) -> tuple[KeyDates, ...]:
    """The keys of ``keys/keys.toml``, in its order; none when there is no such file.

    Raises:
        InputFault: every fault of the file at once, each with its place.
    """
    path = folder / KEYS_FILE
    try:
        text = path.read_text()
    except FileNotFoundError:
        return ()
    lines = [number for number, line in enumerate(text.splitlines(), start=1) if re.match(r"\s*\[\[\s*key\s*]]", line)]

    def place(location: tuple[int | str, ...]) -> str:
        numbers = [part for part in location if isinstance(part, int)]
        where = f":{lines[numbers[0]]}" if numbers and numbers[0] < len(lines) else ""
        return f"{path}{where} {'.'.join(map(str, location))}"

    try:
        read = tomllib.loads(text)
    except tomllib.TOMLDecodeError as malformed:
        raise InputFault(
            f"'{path}' is not TOML", faults=(Fault(place=str(path), problem=str(malformed)),)
        ) from malformed
    entries, found = _entries(read)
    for index, entry in entries.items():
        before = tuple(other for at, other in entries.items() if at < index)
        found += [(("key", index), problem) for problem in _problems(entry, before, folder)]
    if not found or len(entries) == len(read.get("key", ())):  # without a key's dates nobody can tell
        found += [(("key", index), problem) for index, problem in _gaps(entries)]
    if found:
        faults = tuple(Fault(place=place(where), problem=problem) for where, problem in found)
        raise InputFault(f"'{path}' has {_count(faults)}", faults=faults)
    return tuple(_dates(entry, folder) for entry in entries.values())


_Found = list[tuple[tuple[int | str, ...], str]]


def _entries(read: dict[str, object]) -> tuple[dict[int, _Entry], _Found]:
    """The entries that are of the right form, by their place, and what is wrong with the form of the file."""
    try:
        return dict(enumerate(_File.model_validate(read).key)), []
    except ValidationError as invalid:
        found = [(one["loc"], one["msg"].removeprefix("Value error, ")) for one in invalid.errors()]
    tables = read.get("key")
    wrong = {where[1] for where, _ in found if len(where) > 1}
    good = [at for at in range(len(tables)) if at not in wrong] if isinstance(tables, list) else []
    return ({at: _Entry.model_validate(tables[at]) for at in good} if isinstance(tables, list) else {}), found


def _gaps(entries: dict[int, _Entry]) -> Iterator[tuple[int, str]]:
    """Every time between the first and the last key in which none is in use, told at the key after it."""
    if any((end := _end(entry)) is not None and end <= entry.in_use_from for entry in entries.values()):
        return
    ordered = sorted(entries.items(), key=lambda item: item[1].in_use_from)
    reached: date | None = None
    for number, (index, entry) in enumerate(ordered):
        if number and reached is not None and entry.in_use_from > reached:
            yield index, f"no key is in use from {reached} to {entry.in_use_from}"
        end = _end(entry)
        if end is None:
            return
        reached = end if reached is None else max(reached, end)


def _end(entry: _Entry) -> date | None:
    return min((day for day in (entry.in_use_to, entry.expires) if day is not None), default=None)


def _count(faults: tuple[Fault, ...]) -> str:
    return f"{len(faults)} fault" + ("s" if len(faults) > 1 else "")


def _problems(entry: _Entry, earlier: tuple[_Entry, ...], folder: Path) -> Iterator[str]:
    if entry.fingerprint in {other.fingerprint for other in earlier}:
        yield f"the key {entry.fingerprint} stands there twice"
    if entry.in_use_from < entry.created:
        yield "in_use_from is before created"
    if entry.in_use_to is not None and entry.in_use_to <= entry.in_use_from:
        yield "in_use_to is not after in_use_from"
    if entry.expires is not None and (entry.in_use_to or entry.in_use_from) > entry.expires:
        yield "the key is in use after it expires"
    if Path(entry.file).name != entry.file:
        yield f"file {entry.file!r} is not a plain name of a file in keys/"
    elif not (folder / entry.file).is_file():
        yield f"file {entry.file!r} is not in keys/"


def _dates(entry: _Entry, folder: Path) -> KeyDates:
    return KeyDates(**{**entry.model_dump(), "file": folder / entry.file})


@contextlib.contextmanager
def signing_key(
    signing: Signing, *, state: State, keys: Path, now: datetime, log: Path
) -> Iterator[tuple[Home, Key, bool]]:
    """The GnuPG home to sign in, the key, and whether it is a throw-away one.

    Raises:
        SignError: the configured key is absent, unknown to ``keys/keys.toml``, not in use now, or about to expire.
    """
    if not signing.fingerprint:
        with _throw_away(state, now=now, log=log) as (home, key):
            yield home, key, True
        return
    if signing.gnupg_home is None:
        raise SignError(
            "signing.fingerprint names a key, but signing.gnupg_home does not say where it is",
            hint="set signing.gnupg_home in the site file to the GnuPG home that holds the key",
        )
    wanted = signing.fingerprint.replace(" ", "").upper()
    with configured_home(signing.gnupg_home, now=now) as home:
        key = _private_key(home, wanted, signing.gnupg_home)
        expect_listed(key, key_dates(keys), now=now)
        expect_alive(key, now=now)
        yield home, key, False


def end_of(key: Key, listed: tuple[KeyDates, ...]) -> datetime | None:
    """When a key signs no more: by its own end, or by the dates that are listed for it."""
    ends = [key.expires, *(one.ends for one in listed if one.fingerprint == key.fingerprint)]
    return min((end for end in ends if end is not None), default=None)


def _private_key(home: Home, fingerprint: str, folder: Path) -> Key:
    for key in home.keys(secret=True):
        if key.fingerprint == fingerprint:
            return key
    raise SignError(
        f"the private key {fingerprint} is not in '{folder}'",
        hint="name the primary key by its full fingerprint, as 'gpg --list-secret-keys' shows it",
    )


def expect_listed(key: Key, listed: tuple[KeyDates, ...], *, now: datetime) -> None:
    """Raise SignError unless ``keys/keys.toml`` says that this key signs now."""
    dates = next((one for one in listed if one.fingerprint == key.fingerprint), None)
    if dates is None:
        raise SignError(
            f"the key {key.fingerprint} is not in keys/{KEYS_FILE}",
            hint="add it with its dates and its public key, so that others can tell whose signatures count",
        )
    if not dates.in_use_at(now):
        raise SignError(
            f"the key {key.fingerprint} is not in use on {now:%Y-%m-%d}",
            facts=(("in use", dates.in_use),),
            hint=f"sign with the key that keys/{KEYS_FILE} says is in use, or change its dates there",
        )


def expect_alive(key: Key, *, now: datetime) -> None:
    """Raise SignError when the key is revoked, from the future, expired, or about to expire."""
    if key.primary.revoked:
        raise SignError(f"the key {key.fingerprint} is revoked", hint="sign with another key")
    if key.primary.created > now:
        raise SignError(
            f"the key {key.fingerprint} was made in the future",
            facts=(("made", f"{key.primary.created:%Y-%m-%d %H:%M:%S}"), ("now", f"{now:%Y-%m-%d %H:%M:%S}")),
            hint="set this host's clock",
        )
    if key.expires is None or key.expires - now >= SIGNING_MARGIN:
        return
    how = "has expired" if key.expires <= now else "expires too soon to sign with"
    raise SignError(
        f"the key {key.fingerprint} {how}",
        facts=(("expires", f"{key.expires:%Y-%m-%d}"), ("at least", f"{SIGNING_MARGIN.days} days ahead")),
        hint="prolong the key ('gpg --quick-set-expire') and its dates in keys/, or sign with its successor",
    )


@contextlib.contextmanager
def _throw_away(state: State, *, now: datetime, log: Path) -> Iterator[tuple[Home, Key]]:
    with _waiting(state.locks / "signing.lock"):
        folder = state.keys / "gnupg"
        if not _usable(folder, now=now, log=log):
            _make(folder, now=now, log=log)
        with own_home(folder, now=now, log=log) as home:
            key = home.keys(secret=True)[0]
            expect_alive(key, now=now)
            write_whole(state.keys / "public" / f"{key.fingerprint}.asc", home.export(key.fingerprint))
            yield home, key


def _usable(folder: Path, *, now: datetime, log: Path) -> bool:
    """Whether the home is there with a key that has not expired and will not soon."""
    if not folder.is_dir():
        return False
    with own_home(folder, now=now, log=log) as home:
        found = home.keys(secret=True)
    return bool(found) and (found[0].expires or utc(0)) - now >= SIGNING_MARGIN


def _make(folder: Path, *, now: datetime, log: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with appearing(folder) as partial:
        partial.mkdir(mode=0o700)
        with own_home(partial, now=now, log=log) as home:
            home.generate(THROW_AWAY_USER_ID, days=THROW_AWAY_DAYS)


@contextlib.contextmanager
def _waiting(path: Path) -> Iterator[None]:
    """Hold a lock that others hold for seconds only."""
    deadline = time.monotonic() + _LOCK_WAIT_S
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(exclusive(path, what="the signing key"))
                break
            except LineHeld:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.1)
        yield
