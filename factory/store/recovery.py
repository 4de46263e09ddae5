# SPDX-License-Identifier: Apache-2.0
"""From what the store shows to what has to be done: no files of ours are needed.

:func:`decide` is pure and looks at one listing of one line; the first case that matches is repaired, then it looks
again. Every repair is one PATCH or one DELETE, so recovery may itself be killed and run again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from factory.errors import StoreError
from factory.model import Role, StoredImage
from factory.store.holding import Fence, expect_same_time, holding, refuse_if_held
from factory.store.line import (
    HIDDEN,
    LEASE_S,
    Change,
    aged_purpose,
    as_archive,
    as_latest,
    as_prev,
    as_unfit,
    as_withdrawn,
    changed,
    dated_name,
    healthy,
    latest_name,
    newest,
    ours,
    prev_name,
    purpose,
)
from factory.store.protocol import ImageStore, Say
from factory.system.clock import uptime_s

_UNFINISHED = frozenset({"queued", "saving", "uploading", "importing", "killed"})
_ROUNDS = 50
_ROLES_OF_DATED = frozenset({Role.CANDIDATE, Role.ARCHIVE, Role.WITHDRAWN})


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """One request that brings a line nearer to order; ``change`` is None for a deletion.

    ``alarm`` marks what a crash of ours does not explain: a foreign hand was here.
    """

    case: str
    image_id: str
    change: Change | None
    why: str
    alarm: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """What was done to bring a line to order, and its images then."""

    repairs: tuple[Repair, ...]
    images: tuple[StoredImage, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """A line, sorted by what users see."""

    line: str
    images: tuple[StoredImage, ...]
    latest: tuple[StoredImage, ...]
    hidden_latest: tuple[StoredImage, ...]
    prev: tuple[StoredImage, ...]
    hidden_prev: tuple[StoredImage, ...]
    others: tuple[StoredImage, ...]
    abandoned: Callable[[StoredImage], bool]
    kept: Callable[[StoredImage], bool]


def decide(
    images: Sequence[StoredImage],
    *,
    line: str,
    now: datetime,
    lease_s: float = LEASE_S,
    holder: str = "",
    keep: Sequence[str] = (),
) -> tuple[Repair, ...]:
    """The repairs of the first case that matches; empty when the line is in order.

    Args:
        holder: who we are; candidates that we made are abandoned, as the caller has the local lock.
        keep: image ids and SHA-512 whose candidates are about to be finished and must not be touched.
    """
    seen = _look(tuple(images), line, now=now, lease_s=lease_s, holder=holder, keep=keep)
    for case in _CASES:
        repairs = tuple(_taken_over(repair, seen, holder) for repair in case(seen))
        if repairs:
            return repairs
    return ()


def _taken_over(repair: Repair, seen: _Seen, holder: str) -> Repair:
    """A dead factory's candidate becomes ours with its repair: renewed by our request, its maker would seem alive."""
    image = next(one for one in seen.images if one.id == repair.image_id)
    change = repair.change
    if change is None or image.role != Role.CANDIDATE or "imgfactory_role" in change:
        return repair
    if not seen.abandoned(image) or image.properties.get("imgfactory_holder", holder) == holder:
        return repair
    return replace(repair, change={**change, "imgfactory_holder": holder})


def foresee(
    images: Sequence[StoredImage], *, line: str, now: datetime, lease_s: float = LEASE_S, holder: str = ""
) -> tuple[Repair, ...]:
    """All repairs that :func:`recover` would make on this listing."""
    present = {image.id: image for image in images}
    found: list[Repair] = []
    for _ in range(_ROUNDS):
        repairs = decide(tuple(present.values()), line=line, now=now, lease_s=lease_s, holder=holder)
        if not repairs:
            break
        found += repairs
        for repair in repairs:
            if repair.change is None:
                del present[repair.image_id]
            else:
                present[repair.image_id] = changed(present[repair.image_id], repair.change)
    return tuple(found)


def recover(
    store: ImageStore,
    line: str,
    *,
    now: datetime,
    say: Say,
    lease_s: float = LEASE_S,
    keep: Sequence[str] = (),
    shown: bool = False,
    clock: Callable[[], float] = uptime_s,
) -> Recovered:
    """Repair the line until it is in order. The caller has the local lock of the line.

    A latest image that nobody can list is shown at once; everything else waits while another factory holds the line,
    and is done while others see that we work on it.

    Args:
        shown: the caller has a candidate, ``keep``, or a record by which others see it.
        clock: seconds that go on while we sleep.

    Raises:
        LineHeld: another, living factory works on this line.
        StoreError: the store is away, the line does not come to rest, or we slept too long to go on.
    """
    done: list[Repair] = []
    for _ in range(_ROUNDS):
        fence = Fence(lease_s=lease_s, clock=clock)
        images = store.list_line(line)
        expect_same_time(store, now, lease_s)
        repairs = decide(images, line=line, now=now, lease_s=lease_s, holder=store.holder, keep=keep)
        if not repairs or repairs[0].case != "C1":
            refuse_if_held(images, line=line, now=now, lease_s=lease_s, holder=store.holder)
        if not repairs:
            return Recovered(repairs=tuple(done), images=images)
        if not shown and any(repair.change is not None and repair.case != "C1" for repair in repairs):
            with holding(store, line, images) as lock:
                found = recover(
                    store, line, now=now, say=say, lease_s=lease_s, keep=(*keep, lock), shown=True, clock=clock
                )
            rest = tuple(image for image in found.images if image.id != lock)
            return Recovered(repairs=(*done, *found.repairs), images=rest)
        for repair in repairs:
            say(f"{line}: {'ALARM, ' if repair.alarm else ''}{repair.why} ({repair.case}, {repair.image_id})")
            fence.expect_awake(line)
            carry_out(repair, store)
            done.append(repair)
    raise StoreError(f"the line '{line}' does not come to rest", hint="does somebody else rename its images?")


def carry_out(repair: Repair, store: ImageStore) -> None:
    """Send the one request of a repair."""
    if repair.change is None:
        store.delete(repair.image_id)
    else:
        store.patch(repair.image_id, repair.change)


def foreign(store: ImageStore, line: str) -> tuple[StoredImage, ...]:
    """Images under this line's names that are not this line's: to be reported, never touched."""
    found = store.named(latest_name(line), prev_name(line))
    return tuple(image for image in found if image.owner != store.project_id or image.line != line)


def _look(
    images: tuple[StoredImage, ...], line: str, *, now: datetime, lease_s: float, holder: str, keep: Sequence[str]
) -> _Seen:
    groups: dict[tuple[str, bool], list[StoredImage]] = {}
    names = {latest_name(line): "latest", prev_name(line): "prev"}
    for image in newest(images):
        groups.setdefault((names.get(image.name, "other"), image.hidden), []).append(image)

    def group(name: str, *, hidden: bool) -> tuple[StoredImage, ...]:
        return tuple(groups.get((name, hidden), ()))

    return _Seen(
        line=line,
        images=tuple(newest(images)),
        latest=group("latest", hidden=False),
        hidden_latest=group("latest", hidden=True),
        prev=group("prev", hidden=False),
        hidden_prev=group("prev", hidden=True),
        others=(*group("other", hidden=False), *group("other", hidden=True)),
        abandoned=lambda image: ours(image, now=now, lease_s=lease_s, holder=holder),
        kept=lambda image: image.id in keep or image.properties.get("imgfactory_sha512") in keep,
    )


# -- the cases, in the order they are tried ------------------------------------------------------------------------


def _unlisted_latest(seen: _Seen) -> Iterator[Repair]:
    """C1: killed between R3 and R4 (or K3 and K4): show the image that everybody already resolves.

    A candidate whose maker may live stays its candidate: it keeps the line until its maker has sent its last request.
    """
    if not seen.latest and len(seen.hidden_latest) == 1 and healthy(seen.hidden_latest[0]):
        image = seen.hidden_latest[0]
        change = dict(as_latest(image))
        if image.role == Role.CANDIDATE and not seen.abandoned(image):
            del change["imgfactory_role"]
        yield Repair(case="C1", image_id=image.id, change=change, why="finishing the swap: showing the latest")


def _missing_latest(seen: _Seen) -> Iterator[Repair]:
    """C2: nobody is the latest: the newest good one becomes it, in one request."""
    if seen.latest or seen.hidden_latest:
        return
    for image in seen.images:
        if healthy(image) and not seen.kept(image):
            first = all(other.role == Role.CANDIDATE for other in seen.images)
            why = "finishing the first release" if first else "the latest image is gone; the newest good one takes over"
            change = {"name": latest_name(seen.line), **as_latest(image)}
            yield Repair(case="C2", image_id=image.id, change=change, why=why, alarm=not first)
            return


def _several_latest(seen: _Seen) -> Iterator[Repair]:
    """C3: several visible latest: the newest stays, the next becomes the previous one, the rest is archived."""
    if len(seen.latest) <= 1:
        return
    _, *surplus = seen.latest
    second, *rest = newest([*surplus, *seen.prev])
    for image in rest:
        change = {**as_archive(image), **HIDDEN, "os_purpose": aged_purpose(image)}
        yield Repair(case="C3", image_id=image.id, change=change, why="one latest too many: archived", alarm=True)
    if second not in seen.prev:
        why = "one latest too many: the older is now the previous one"
        yield Repair(case="C3", image_id=second.id, change=as_prev(second), why=why, alarm=True)


def _several_prev(seen: _Seen) -> Iterator[Repair]:
    """C3 for the previous image: the newest stays."""
    for image in seen.prev[1:]:
        change = {**as_archive(image), **HIDDEN}
        yield Repair(case="C3", image_id=image.id, change=change, why="one previous image too many", alarm=True)


def _several_hidden_latest(seen: _Seen) -> Iterator[Repair]:
    """C4: the fallback of a lookup by name would be ambiguous."""
    for image in seen.hidden_latest[1:]:
        change = {"name": dated_name(image)}
        why = "hidden under the latest's name beside another one"
        yield Repair(case="C4", image_id=image.id, change=change, why=why, alarm=True)


def _before_the_commit(seen: _Seen) -> Iterator[Repair]:
    """C5: killed after R2 (or K2): send the commit that was next."""
    if len(seen.latest) != 1 or len(seen.hidden_latest) != 1:
        return
    visible, hidden = seen.latest[0], seen.hidden_latest[0]
    if not healthy(hidden):
        return
    if not healthy(visible):
        why = "the latest is not fit to be it: the image that stands by takes over"
        yield Repair(case="C5", image_id=visible.id, change=as_unfit(visible), why=why, alarm=True)
    elif hidden.generation > visible.generation:
        for image in seen.prev:
            yield Repair(case="C5", image_id=image.id, change=HIDDEN, why="hiding the previous image first")
        why = "finishing the swap: the latest becomes the previous one"
        yield Repair(case="C5", image_id=visible.id, change=as_prev(visible), why=why)
    elif hidden.role == Role.PREV:
        why = "finishing the rollback: withdrawing the latest"
        yield Repair(case="C5", image_id=visible.id, change=as_withdrawn(visible), why=why)


def _false_latest(seen: _Seen) -> Iterator[Repair]:
    """C6: hidden under the latest's name, but not fit to be it."""
    for image in seen.hidden_latest:
        change = {"name": dated_name(image)}
        why = "hidden under the latest's name, but not fit to be the latest"
        yield Repair(case="C6", image_id=image.id, change=change, why=why, alarm=True)


def _unfit_latest(seen: _Seen) -> Iterator[Repair]:
    """C6: shown as the latest, but deactivated or without a test mark: the newest good one stands by, then C5."""
    if len(seen.latest) != 1 or seen.hidden_latest or healthy(seen.latest[0]):
        return
    for image in seen.images:
        if healthy(image) and not seen.kept(image):
            change = {"name": latest_name(seen.line), **HIDDEN}
            why = "the latest is not fit to be it: the newest good image stands by"
            yield Repair(case="C6", image_id=image.id, change=change, why=why, alarm=True)
            return


def _unfit_prev(seen: _Seen) -> Iterator[Repair]:
    """C6 for the previous image: nobody is sent back to what does not start."""
    for image in seen.prev:
        if not healthy(image):
            why = "not fit to be the previous image"
            yield Repair(case="C6", image_id=image.id, change=as_unfit(image), why=why, alarm=True)


def _replaced_prev(seen: _Seen) -> Iterator[Repair]:
    """C7: killed before R5."""
    if seen.prev:
        for image in seen.hidden_prev:
            why = "finishing the swap: archiving the old previous image"
            yield Repair(case="C7", image_id=image.id, change=as_archive(image), why=why)


def _hidden_prev(seen: _Seen) -> Iterator[Repair]:
    """C8: killed after R1 (or before K5): there is a previous image, but no list shows it."""
    if not seen.hidden_prev:
        return
    first, *rest = seen.hidden_prev
    for image in rest:
        yield Repair(case="C8", image_id=image.id, change=as_archive(image), why="one hidden previous image too many")
    if healthy(first) and seen.latest:
        change = {**as_prev(first), "os_hidden": False}
        yield Repair(case="C8", image_id=first.id, change=change, why="showing the previous image again")
    else:
        why = "not fit to be the previous image"
        yield Repair(case="C8", image_id=first.id, change=as_archive(first), why=why)


def _abandoned(seen: _Seen) -> Iterator[Repair]:
    """C9, C10: candidates whose maker is gone and that nobody resumes: no user ever saw them."""
    for image in seen.images:
        if image.role != Role.CANDIDATE or image.tested or image.protected or seen.kept(image):
            continue
        if seen.abandoned(image):
            case = "C10" if image.status in _UNFINISHED else "C9"
            yield Repair(
                case=case, image_id=image.id, change=None, why=f"deleting an abandoned candidate ({image.status})"
            )


def _shown_dated(seen: _Seen) -> Iterator[Repair]:
    """C12: under a dated (or foreign) name only hidden images."""
    for image in seen.others:
        if not image.hidden:
            change = {**HIDDEN, "name": dated_name(image), "os_purpose": aged_purpose(image)}
            yield Repair(case="C12", image_id=image.id, change=change, why="visible under another name", alarm=True)
        elif image.name != dated_name(image):
            change = {"name": dated_name(image)}
            yield Repair(case="C12", image_id=image.id, change=change, why="hidden under a foreign name", alarm=True)


def _wrong_role(seen: _Seen) -> Iterator[Repair]:
    """C11: names and hidden flags are what users see; the properties follow."""
    for image in seen.latest:
        if (image.role, image.properties.get("os_purpose")) != (Role.LATEST, purpose(image)):
            yield Repair(case="C11", image_id=image.id, change=as_latest(image), why="its role is the latest")
    for image in seen.prev:
        if (image.role, image.properties.get("os_purpose")) != (Role.PREV, aged_purpose(image)):
            yield Repair(case="C11", image_id=image.id, change=as_prev(image), why="its role is the previous one")
    newest_shown = max((image.generation for image in seen.latest), default=0)
    for image in seen.others:
        overtaken = image.role == Role.CANDIDATE and image.tested and image.generation < newest_shown
        if (overtaken and not seen.kept(image)) or image.role not in _ROLES_OF_DATED:
            change = {**as_archive(image), "os_purpose": aged_purpose(image)}
            yield Repair(case="C11", image_id=image.id, change=change, why="its role is the archive")


_CASES: tuple[Callable[[_Seen], Iterator[Repair]], ...] = (
    _unlisted_latest,
    _missing_latest,
    _several_latest,
    _several_prev,
    _several_hidden_latest,
    _before_the_commit,
    _false_latest,
    _unfit_latest,
    _unfit_prev,
    _replaced_prev,
    _hidden_prev,
    _abandoned,
    _shown_dated,
    _wrong_role,
)
