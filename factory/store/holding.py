# SPDX-License-Identifier: Apache-2.0
"""Who works on a line: a living candidate says so, and for work without one a record made for it.

Glance has no compare-and-swap for changes, so each factory first shows that it works on the line, then looks whether
another one does, and only then changes what users see. Of two that begin at the same state both derive the same id for
their record, and creating an id succeeds once; of two that begin at different states the later one sees the earlier.
"""

from __future__ import annotations

import contextlib
import hashlib
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from factory.errors import LineHeld, StoreError
from factory.model import Role, StoredImage
from factory.store.line import LEASE_S, held
from factory.store.protocol import IdTaken, ImageStore
from factory.system.clock import uptime_s

_TRIES = 8


def refuse_if_held(
    images: Sequence[StoredImage], *, line: str, now: datetime, lease_s: float = LEASE_S, holder: str = ""
) -> None:
    """Raise LineHeld when another, living factory has a candidate of this line, or repairs it."""
    claim = held(images, now=now, lease_s=lease_s, holder=holder)
    if claim is not None:
        age_s = (now - claim.updated_at).total_seconds()
        raise LineHeld(
            f"another factory publishes '{line}'",
            facts=(("image", f"{claim.id} ({claim.name}, {claim.status}, {max(0.0, age_s):.0f} s ago)"),),
            hint=f"it keeps the line until it is done or silent for {lease_s:.0f} s; nothing was changed",
        )


def expect_same_time(store: ImageStore, now: datetime, lease_s: float) -> None:
    """Refuse to judge leases by a clock that goes wrong: a living candidate would seem abandoned.

    Raises:
        StoreError: our clock and the store's are further apart than half a lease.
    """
    there = store.clock
    if there is None or abs((there - now).total_seconds()) <= lease_s / 2:
        return
    raise StoreError(
        "our clock and the image service's are too far apart to tell who works on a line",
        facts=(("here", now.isoformat(timespec="seconds")), ("there", there.isoformat(timespec="seconds"))),
        hint="set the clocks; nothing was changed",
    )


@dataclass(kw_only=True)
class Fence:
    """Stops whoever slept between looking at a line and changing it: others may have taken the line over meanwhile.

    A stopped process, a paused or migrated host: all of them go on as if nothing had happened. Others take a silent
    candidate for abandoned after ``lease_s``, so half of that is the longest anybody may rely on what was seen. What is
    left is the time that one request takes; Glance has no compare-and-swap.
    """

    lease_s: float = LEASE_S
    clock: Callable[[], float] = uptime_s
    looked_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.looked_s = self.clock()

    def expect_awake(self, line: str) -> None:
        """Raise StoreError when what was seen is too long ago."""
        slept_s = self.clock() - self.looked_s
        if slept_s > self.lease_s / 2:
            raise StoreError(
                f"this factory slept for {slept_s:.0f} s between looking at '{line}' and changing it",
                hint="another may have gone on with the line; run this again: it looks anew, and finishes or undoes",
            )


@contextlib.contextmanager
def holding(store: ImageStore, line: str, images: Sequence[StoredImage]) -> Iterator[str]:
    """Show others that we work on the line, by a record whose id is given; read the line again before changing it.

    Killed within, the record is a candidate of ours without bytes, which the next recovery deletes.

    Raises:
        LineHeld: another factory was quicker.
    """
    lock = _show(store, line, images)
    try:
        yield lock
    except Exception:
        with contextlib.suppress(StoreError):
            store.delete(lock)
        raise
    with contextlib.suppress(StoreError):  # it is taken for abandoned by the next run
        store.delete(lock)


def lock_id(project_id: str, line: str, images: Sequence[StoredImage], number: int) -> str:
    """The id that everybody derives who wants to change a line that looks like this."""
    seen = sorted(f"{one.id} {one.name} {one.hidden} {one.status} {one.role} {one.updated_at}" for one in images)
    state = hashlib.sha256("\n".join(seen).encode()).hexdigest()
    return str(uuid.uuid5(uuid.uuid5(uuid.NAMESPACE_URL, project_id), f"{line}/state/{state}/{number}"))


def _show(store: ImageStore, line: str, images: Sequence[StoredImage]) -> str:
    name = f"{line}_held"
    record = {
        "name": name,
        "visibility": "private",
        "os_hidden": True,
        "imgfactory_line": line,
        "imgfactory_role": Role.CANDIDATE.value,
        "imgfactory_dated_name": name,
        "imgfactory_holder": store.holder,
    }
    for number in range(_TRIES):
        wanted = lock_id(store.project_id, line, images, number)
        try:
            return store.create(wanted, record).id
        except IdTaken:
            found = store.get(wanted)
            if found is not None and found.properties.get("imgfactory_holder") == store.holder:
                return found.id  # our own, whose answer was lost
            if found is not None or _state(store.list_line(line)) != _state(images):
                break
            # burnt, and yet the line is as it was: whoever had it did nothing
    raise LineHeld(f"another factory works on '{line}'", hint="nothing was changed; run this again when it is done")


def _state(images: Sequence[StoredImage]) -> set[tuple[str, str, bool, str, str, datetime]]:
    return {(one.id, one.name, one.hidden, one.status, one.role, one.updated_at) for one in images}
