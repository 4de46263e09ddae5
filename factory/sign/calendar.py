# SPDX-License-Identifier: Apache-2.0
"""Our keys through time: which one signs today, what comes after it, and whether its file is what the dates say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path

from factory.errors import SignError
from factory.sign.keyring import WARN_DAYS, KeyDates, key_dates, start_of
from factory.sign.openpgp import Key, public_home


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyState:
    """A key on a day: ``state`` is ``in use``, ``not yet`` or ``retired``; ``days_left`` until it signs no more."""

    fingerprint: str
    user_id: str
    state: str
    in_use_from: date
    ends: date | None
    days_left: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFinding:
    """Something about keys that people should know; ``grave`` when it is wrong already, not only soon."""

    fingerprint: str
    says: str
    grave: bool


def key_states(dates: Sequence[KeyDates], *, now: datetime) -> tuple[KeyState, ...]:
    """Every key as it is now, in order of use."""
    return tuple(_state(one, now) for one in sorted(dates, key=lambda one: (one.in_use_from, one.fingerprint)))


def _state(one: KeyDates, now: datetime) -> KeyState:
    early = now < start_of(one.in_use_from)
    left = None if one.ends is None or now >= one.ends else (one.ends - now).days
    return KeyState(
        fingerprint=one.fingerprint,
        user_id=one.user_id,
        state="in use" if one.in_use_at(now) else "not yet" if early else "retired",
        in_use_from=one.in_use_from,
        ends=one.ends.date() if one.ends else None,
        days_left=left,
    )


def ending(dates: Sequence[KeyDates], *, now: datetime, days: int = WARN_DAYS) -> tuple[KeyFinding, ...]:
    """What the dates alone say: no key in use, or the last one for which no other takes over in time."""
    if not dates:
        return ()
    in_use = [one for one in dates if one.in_use_at(now)]
    if not in_use:
        return (KeyFinding(fingerprint="", says=f"no key is in use on {now:%Y-%m-%d}", grave=True),)
    reached = [one.ends for one in in_use]
    if None in reached:
        return ()
    ends = max(end for end in reached if end is not None)
    if ends - now > timedelta(days=days):
        return ()
    last = next(one for one in in_use if one.ends == ends)
    follower = next((one for one in dates if one.in_use_at(ends)), None)
    then = f"{follower.fingerprint} follows: name it in the site file" if follower else "no key follows it"
    says = f"signs for {(ends - now).days} days more, until {ends:%Y-%m-%d}; {then}"
    return (KeyFinding(fingerprint=last.fingerprint, says=says, grave=False),)


def examine_keys(
    folder: Path, *, now: datetime, signing: str = "", days: int = WARN_DAYS
) -> tuple[tuple[KeyState, ...], tuple[KeyFinding, ...]]:
    """Look at ``keys.toml``, and with GnuPG into every file that it names.

    Args:
        signing: the fingerprint that the site file signs with, or nothing.
        days: how long before a key's end people hear of it.

    Raises:
        InputFault: ``keys.toml`` has faults, a gap between keys among them.
    """
    dates = key_dates(folder)
    found = [*ending(dates, now=now, days=days), *_named_by_site(dates, signing, now=now)]
    for one in dates:
        found += [KeyFinding(fingerprint=one.fingerprint, says=says, grave=True) for says in _in_file(one, now=now)]
    return key_states(dates, now=now), tuple(found)


def _named_by_site(dates: Sequence[KeyDates], signing: str, *, now: datetime) -> Iterator[KeyFinding]:
    wanted = signing.replace(" ", "").upper()
    if not wanted:
        return
    listed = next((one for one in dates if one.fingerprint == wanted), None)
    if listed is None:
        yield KeyFinding(fingerprint=wanted, says="the site file signs with it, and it is not listed", grave=True)
    elif not listed.in_use_at(now):
        says = f"the site file signs with it, and it is not in use ({listed.in_use})"
        yield KeyFinding(fingerprint=wanted, says=says, grave=True)


def _in_file(dates: KeyDates, *, now: datetime) -> Iterator[str]:
    """Where a public key and its dates say different things."""
    try:
        with public_home([dates.file], now=now) as home:
            keys = home.keys()
    except SignError as wrong:
        yield wrong.message
        return
    key = next((one for one in keys if one.fingerprint == dates.fingerprint), None)
    if key is None:
        yield f"'{dates.file.name}' holds {', '.join(one.fingerprint for one in keys) or 'no key'} instead"
        return
    yield from _differences(key, dates)


def _differences(key: Key, dates: KeyDates) -> Iterator[str]:
    if key.primary.revoked:
        yield "is revoked: nothing that it signed is good"
    if key.primary.created.date() != dates.created:
        yield f"was made on {key.primary.created:%Y-%m-%d}, not on {dates.created}"
    expires = key.expires.date() if key.expires else None
    if expires != dates.expires:
        yield f"expires {expires or 'never'}, not {dates.expires or 'never'} as listed"
    if not any(part.can_sign for part in (key.primary, *key.subkeys)):
        yield "cannot sign"
