# SPDX-License-Identifier: Apache-2.0
"""What published images promise, compared with what is there; pure.

SCS-0102 lets an image promise how often it is replaced (``replace_frequency``), how long its id can be used
(``uuid_validity``), until when it is offered at all (``provided_until``) and how fast security fixes come
(``hotfix_hours``). Nobody but its publisher can see a breach coming, so this is said before it is one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from typing import Any

from factory.model import Role, StoredImage
from factory.store.line import BLOCKED, healthy, latest_name, prev_name
from factory.store.properties import FREQUENCIES_DAYS

NIGHT = timedelta(hours=24)
"""How far a night looks ahead: what is not mended now, the next one mends at the earliest."""
SOON = timedelta(hours=6)
"""How far a person who asks looks ahead."""
_SLACK = timedelta(hours=12)
"""Nights differ: an image may be this much later than its frequency says."""
_END_NOTICE = timedelta(days=30)
_LAST = re.compile(r"last-([1-9][0-9]*)")
_NEVER_BREACHED = frozenset({"", "none", "notice"})


class State(StrEnum):
    """How a promise stands."""

    WARNING = "warning"
    BREACHED = "breached"


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """A promise that is, or soon will be, broken; ``at`` is when, where there is a time."""

    line: str
    image_id: str
    name: str
    promise: str
    state: State
    says: str
    at: datetime | None = None

    def __str__(self) -> str:
        return f"{self.state.value}: {self.name} ({self.image_id}): {self.promise}: {self.says}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What was promised when an image was published, as the ledger remembers it."""

    image_id: str
    name: str
    uuid_validity: str
    generation: int


def watch(
    line: str,
    images: Sequence[StoredImage],
    *,
    now: datetime,
    ahead: timedelta = SOON,
    given: Iterable[Given] = (),
    unpublished_since: datetime | None = None,
) -> tuple[Promise, ...]:
    """Every promise of a line that is broken, or will be within ``ahead``; the gravest first.

    Args:
        images: every image of the line that the store holds.
        given: ids that were promised to users, some of which may be gone.
        unpublished_since: since when a security fix waits that is in no published image, or None.
    """
    published = [image for image in images if image.role != Role.CANDIDATE]
    shown = [image for image in published if image.name == latest_name(line) and not image.hidden and healthy(image)]
    found: list[Promise] = []
    if published and not shown:
        newest = max(published, key=lambda image: image.generation)
        says = "the line has no healthy latest image; run 'factory reconcile'"
        found.append(_promise(newest, "replace_frequency", State.BREACHED, says))
    for image in shown:
        found += _replaced(image, now=now, ahead=ahead)
        found += _fixed(image, unpublished_since, now=now, ahead=ahead)
    for image in published:
        if image.name in {latest_name(line), prev_name(line)}:
            found += _provided(image, now=now)
        found += _usable(image, published, now=now)
    found += _gone(line, given, published, today=now.date())
    return tuple(sorted(found, key=lambda one: (one.state is not State.BREACHED, one.name, one.promise)))


def _replaced(image: StoredImage, *, now: datetime, ahead: timedelta) -> Iterator[Promise]:
    frequency = image.properties.get("replace_frequency", "")
    days = FREQUENCIES_DAYS.get(frequency)
    if days is None:
        return
    built = built_at(image)
    breach = built + timedelta(days=days) + _SLACK
    if now + ahead >= breach:
        says = f"'{frequency}', and the latest image is of {built:%Y-%m-%d %H:%M} UTC, {_span(now - built)} old"
        yield _timed(image, "replace_frequency", breach, says, now=now)


def _fixed(image: StoredImage, since: datetime | None, *, now: datetime, ahead: timedelta) -> Iterator[Promise]:
    text = image.properties.get("hotfix_hours", "")
    if since is None or not text.isdecimal() or int(text) == 0:  # 0 is best effort, absent is no promise
        return
    breach = since + timedelta(hours=int(text))
    if now + ahead >= breach:
        says = f"{text} h, and a security fix waits since {since:%Y-%m-%d %H:%M} UTC"
        yield _timed(image, "hotfix_hours", breach, says, now=now)


def _provided(image: StoredImage, *, now: datetime) -> Iterator[Promise]:
    until = _date(image.properties.get("provided_until", ""))
    if until is None:
        return
    ends = datetime.combine(until + timedelta(days=1), time(), UTC)
    if now >= ends:
        says = (
            f"users were told that it ends on {until}, and it is still offered; publish it with a later date or end it"
        )
        yield _promise(image, "provided_until", State.BREACHED, says, at=ends)
    elif now + _END_NOTICE >= ends:
        says = f"it ends on {until}, in {_span(ends - now)}: users have to hear what comes after it"
        yield _promise(image, "provided_until", State.WARNING, says, at=ends)


def _usable(image: StoredImage, published: Sequence[StoredImage], *, now: datetime) -> Iterator[Promise]:
    """An id that is there and cannot be used, or that our own retention would delete too early."""
    valid = image.properties.get("uuid_validity", "")
    if BLOCKED in image.properties or not _still_promised(valid, image.generation, published, today=now.date()):
        return
    if image.status != "active":
        yield _promise(image, "uuid_validity", State.BREACHED, f"'{valid}', and the image is {image.status}")
    keep = image.properties.get("imgfactory_keep_until", "")
    if _less(keep, valid):
        says = f"'{valid}', but imgfactory_keep_until is '{keep}': it would be deleted before"
        yield _promise(image, "uuid_validity", State.WARNING, says)


def _gone(line: str, given: Iterable[Given], published: Sequence[StoredImage], *, today: date) -> Iterator[Promise]:
    present = {image.id for image in published}
    for one in given:
        if one.image_id in present or not _still_promised(one.uuid_validity, one.generation, published, today=today):
            continue
        says = f"'{one.uuid_validity}', and the image is gone"
        yield Promise(
            line=line,
            image_id=one.image_id,
            name=one.name,
            promise="uuid_validity",
            state=State.BREACHED,
            says=says,
        )


def _still_promised(valid: str, generation: int, published: Sequence[StoredImage], *, today: date) -> bool:
    if valid in _NEVER_BREACHED:
        return False
    if valid == "forever":
        return True
    if last := _LAST.fullmatch(valid):
        return sum(other.generation > generation for other in published) < int(last[1])
    until = _date(valid)
    return until is not None and today <= until


def _less(keep: str, valid: str) -> bool:
    """Whether what the sweep goes by is less than what users were told."""
    if keep in {"", "forever", valid}:
        return False
    keeps, validity = _LAST.fullmatch(keep), _LAST.fullmatch(valid)
    if keeps and validity:
        return int(keeps[1]) < int(validity[1])
    dates = _date(keep), _date(valid)
    if dates[0] is not None and dates[1] is not None:
        return dates[0] < dates[1]
    return valid == "forever" or bool(keeps) != bool(validity)


def built_at(image: StoredImage) -> datetime:
    """When an image was built, as it says itself; else when its record was made."""
    text = image.properties.get("imgfactory_built_at", "")
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return image.created_at
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _date(text: str) -> date | None:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def _timed(image: StoredImage, promise: str, breach: datetime, says: str, *, now: datetime) -> Promise:
    broken = now >= breach
    when = f"broken since {breach:%Y-%m-%d %H:%M}" if broken else f"broken at {breach:%Y-%m-%d %H:%M}"
    return _promise(image, promise, State.BREACHED if broken else State.WARNING, f"{says}; {when} UTC", at=breach)


def _promise(image: StoredImage, promise: str, state: State, says: str, *, at: datetime | None = None) -> Promise:
    return Promise(line=image.line, image_id=image.id, name=image.name, promise=promise, state=state, says=says, at=at)


def _span(span: timedelta) -> str:
    hours = span.total_seconds() / 3600
    return f"{hours:.0f} h" if hours < 72 else f"{hours / 24:.0f} days"  # noqa: PLR2004 up to three days in hours


def promises_detail(promises: Sequence[Promise]) -> dict[str, Any]:
    """The JSON to record for promises that are at risk."""
    return {"promises": [_recorded(one) for one in promises]}


def _recorded(value: Promise) -> dict[str, Any]:
    return {
        "name": value.name,
        "image_id": value.image_id,
        "promise": value.promise,
        "state": value.state.value,
        "says": value.says,
        "at": value.at.isoformat() if value.at else "",
    }
