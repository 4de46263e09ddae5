# SPDX-License-Identifier: Apache-2.0
"""Release → Rotation: the shadow swap that makes a candidate ``<line>_latest``.

Five requests, three when there is no previous image, one for the first release of a line. Each is a PATCH of one image
that may be sent twice. A lookup by name through the SDK or the command line finds exactly one image of each name after
every one of them; plain lists miss ``_latest`` between R3 and R4 only, and that gap is measured.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from factory.errors import InputFault, LineHeld, StoreError
from factory.model import Release, Role, Rotation, RotationPlan, Step, StoredImage, Target
from factory.store.holding import Fence, holding, refuse_if_held
from factory.store.line import (
    BLOCKED,
    HIDDEN,
    LEASE_S,
    as_archive,
    as_latest,
    as_prev,
    as_withdrawn,
    healthy,
    latest_name,
    newest,
    prev_name,
)
from factory.store.metadata import Difference, differs, wire
from factory.store.properties import SIGNATURE
from factory.store.protocol import ImageStore, Say
from factory.store.recovery import Recovered, foresee, recover

POLICIES = ("shadow", "overlap")
GAP_ALARM_S = 2.0
_COMMITS = frozenset({"R3", "K3"})


def rotate(release: Release, *, store: ImageStore, now: datetime, say: Say, lease_s: float = LEASE_S) -> Rotation:
    """Make a release the latest of its line. The caller has the local lock; a rotation that is done does nothing.

    Raises:
        LineHeld: another factory holds the line, or changed it under us; nothing was changed.
        StoreError: the store is away, or the release is not fit.
    """
    line = release.bundle.artifact.recipe.description.line
    held = (release.image_id,)
    fence = Fence(lease_s=lease_s)
    images = recover(store, line, now=now, say=say, lease_s=lease_s, keep=held, shown=True).images
    planned = plan(images, release.image_id, line=line, policy=release.target.policy)
    done = apply(planned, store, target=release.target, now=now, say=say, fence=fence)
    return replace(done, differs=_as_meant(release, done, store, now=now, say=say))


def _as_meant(release: Release, done: Rotation, store: ImageStore, *, now: datetime, say: Say) -> tuple[str, ...]:
    """Compare what the store holds with what was meant; what differs is set once more, and what then differs is told.

    An overlapping request of somebody else may have undone a part of ours (Glance writes whole records back), and a
    cloud may keep some properties for itself.
    """
    image = store.get(release.image_id)
    if done.latest != release.image_id or image is None or image.role != Role.LATEST:
        return ()
    found = differs(image, release.bundle, release.target)
    if any(one.key not in SIGNATURE for one in found):
        found = _mended(release, found, store, line=done.line, now=now, say=say)
    for one in found:
        say(f"ALARM: {done.line}: image {release.image_id}: {one}")
    return tuple(map(str, found))


def _mended(
    release: Release, found: tuple[Difference, ...], store: ImageStore, *, line: str, now: datetime, say: Say
) -> tuple[Difference, ...]:
    """Set again what does not read as meant, unless others are at work; returns what differs still."""
    try:
        with holding(store, line, store.list_line(line)):
            images = store.list_line(line)
            refuse_if_held(images, line=line, now=now, holder=store.holder)
            image = next((one for one in images if one.id == release.image_id and one.role == Role.LATEST), None)
            if image is None:
                return ()
            found = differs(image, release.bundle, release.target)
            if mended := {one.key: one.meant for one in found if one.key not in SIGNATURE}:
                say(f"{line}: setting again what does not read as meant: {'; '.join(map(str, found))}")
                found = differs(store.patch(image.id, wire(mended)), release.bundle, release.target)
    except (LineHeld, StoreError) as left:
        say(f"{line}: what does not read as meant stays for now: {left.message}")
    return found


def plan(images: Sequence[StoredImage], candidate_id: str, *, line: str, policy: str = "shadow") -> RotationPlan:
    """The requests that make a candidate the latest, from a listing of its line that is in order.

    Raises:
        StoreError: the candidate is not there, not tested, withdrawn or not active; or the line is not in order.
        InputFault: no such policy.
    """
    if policy not in POLICIES:
        raise InputFault(f"there is no rotation policy '{policy}'", hint=f"one of {', '.join(POLICIES)}")
    latest, prev = _only(images, latest_name(line)), _only(images, prev_name(line))
    candidate = next((image for image in images if image.id == candidate_id), None)
    if candidate is None or not healthy(candidate):
        state = "gone" if candidate is None else f"{candidate.status}, {candidate.role}, tested: {candidate.tested}"
        raise StoreError(f"image {candidate_id} cannot become '{latest_name(line)}' ({state})")
    if latest is not None and candidate.generation <= latest.generation:  # it is the latest, or was overtaken
        return RotationPlan(line=line, steps=(), latest=latest.id, prev=prev.id if prev else None)
    if latest is None:
        steps = [_step("R4", candidate, {"name": latest_name(line), **as_latest(candidate)}, "the first latest")]
    else:
        swap = _shadow if policy == "shadow" else _overlap
        steps = swap(line, latest, candidate)
    if prev is not None:
        steps = [
            _step("R1", prev, HIDDEN, "the previous image leaves the lists"),
            *steps,
            _step("R5", prev, as_archive(prev), "the previous image gets its dated name back"),
        ]
    return RotationPlan(
        line=line,
        steps=tuple(steps),
        latest=candidate.id,
        prev=latest.id if latest else None,
        seen=tuple(image for image in (latest, prev, candidate) if image is not None),
    )


def _shadow(line: str, latest: StoredImage, candidate: StoredImage) -> list[Step]:
    return [
        _step("R2", candidate, {"name": latest_name(line)}, "the new image stands by, hidden, under the latest's name"),
        _step("R3", latest, as_prev(latest), "the latest becomes the previous one: from here on the new one is found"),
        _step("R4", candidate, as_latest(candidate), "the new image is shown in the lists"),
    ]


def _overlap(line: str, latest: StoredImage, candidate: StoredImage) -> list[Step]:
    """For clouds whose users all take the newest of a name: never none, but two for one round trip."""
    return [
        _step("O2", candidate, {"name": latest_name(line), **as_latest(candidate)}, "the new image is the latest"),
        _step("O3", latest, as_prev(latest), "the old latest becomes the previous one"),
    ]


def plan_rollback(images: Sequence[StoredImage], *, line: str, block: bool = False) -> RotationPlan:
    """The requests that make the previous image the latest again and withdraw the latest.

    Args:
        block: note on the withdrawn image that it is to be deactivated, so that a crash does not forget it.

    Raises:
        StoreError: there is no healthy previous image, or the line is not in order.
    """
    bad, good = _only(images, latest_name(line)), _only(images, prev_name(line))
    if bad is None or good is None or not healthy(good):
        raise StoreError(f"'{line}' has no healthy previous image to go back to", hint="publish a fixed image instead")
    older = [image for image in images if image.hidden and image.role == Role.ARCHIVE and healthy(image)]
    blocked = {BLOCKED: "wanted"} if block else {}
    before = next((image for image in newest(older) if image.generation < good.generation), None)
    steps = [
        _step(
            "K2", good, {"name": latest_name(line), **HIDDEN}, "the previous image stands by under the latest's name"
        ),
        _step(
            "K3",
            bad,
            {**as_withdrawn(bad), **blocked},
            "the latest is withdrawn: from here on the previous one is found",
        ),
        _step("K4", good, as_latest(good), "the previous image is shown as the latest"),
    ]
    if before is not None:
        steps = [
            _step(
                "K1", before, {"name": prev_name(line), **HIDDEN}, "the one before stands by under the previous name"
            ),
            *steps,
            _step("K5", before, {**as_prev(before), "os_hidden": False}, "the one before is shown as the previous one"),
        ]
    seen = tuple(image for image in (bad, good, before) if image is not None)
    return RotationPlan(line=line, steps=tuple(steps), latest=good.id, prev=before.id if before else None, seen=seen)


def apply(
    plan: RotationPlan, store: ImageStore, *, target: Target, now: datetime, say: Say, fence: Fence | None = None
) -> Rotation:
    """Send the requests of a plan, in order; the one after the commit is ready before the commit is sent.

    Raises:
        LineHeld: an image is not as it was when the plan was made; nothing was changed.
        StoreError: the store is away, or we slept too long to go on; what is half done, the next run finishes.
    """
    fence = fence or Fence()
    _expect_unchanged(plan, store)
    gap_s = 0.0
    pending = [(step, store.prepare(step.image_id, step.change)) for step in plan.steps]
    committed_at: float | None = None
    for step, send in pending:
        say(f"{plan.line}: {step.name}, {step.why}")
        if step.name in _COMMITS:
            committed_at = time.monotonic()
        fence.expect_awake(plan.line)
        send()
        if committed_at is not None and step.name not in _COMMITS:
            gap_s, committed_at = time.monotonic() - committed_at, None
    if gap_s > GAP_ALARM_S:
        say(f"ALARM: lists missed '{latest_name(plan.line)}' for {gap_s:.1f} s")
    if not plan.steps:
        say(f"{plan.line}: {plan.latest} is the latest already")
    return Rotation(
        target=target,
        line=plan.line,
        latest=plan.latest,
        prev=plan.prev,
        archived=next((step.image_id for step in plan.steps if step.name in {"R5", "K3"}), None),
        steps=plan.steps,
        gap_s=gap_s,
        rotated_at=now,
    )


def rollback(
    line: str, *, store: ImageStore, target: Target, now: datetime, say: Say, deactivate: bool = False
) -> Rotation:
    """Withdraw the latest image of a line in favour of the previous one. The caller has the local lock.

    Args:
        deactivate: the withdrawn image is dangerous, not only broken: nobody may start it any more, by its id either.
    """
    found = recover(store, line, now=now, say=say)
    withdrawn = _just_withdrawn(found)
    if withdrawn:
        done = _done_already(found, withdrawn, line=line, target=target, now=now)
        say(f"{line}: the recovery has withdrawn image {withdrawn}; going back once is what was asked for")
    else:
        plan_rollback(found.images, line=line, block=deactivate)  # what cannot be is told before anything is written
        with holding(store, line, found.images) as lock:
            fence = Fence()
            images = recover(store, line, now=now, say=say, keep=(lock,), shown=True).images
            planned = plan_rollback(images, line=line, block=deactivate)
            done = apply(planned, store, target=target, now=now, say=say, fence=fence)
    if deactivate and done.archived:
        store.deactivate(done.archived)
        say(f"{line}: nobody can start image {done.archived} any more")
    return done


def _just_withdrawn(found: Recovered) -> str | None:
    """The image that a recovery withdrew: the end of a rollback that was killed, or a latest that was deactivated."""
    for repair in found.repairs:
        if repair.change and repair.change.get("imgfactory_role") == Role.WITHDRAWN:
            return repair.image_id
    return None


def _done_already(found: Recovered, withdrawn: str, *, line: str, target: Target, now: datetime) -> Rotation:
    latest, prev = _only(found.images, latest_name(line)), _only(found.images, prev_name(line))
    if latest is None:
        raise StoreError(f"'{line}' has no image left to go back to", hint="publish a fixed image")
    return Rotation(
        target=target,
        line=line,
        latest=latest.id,
        prev=prev.id if prev else None,
        archived=withdrawn,
        steps=(),
        gap_s=0.0,
        rotated_at=now,
    )


def reconcile(
    line: str, *, store: ImageStore, now: datetime, say: Say, dry_run: bool = False, lease_s: float = LEASE_S
) -> tuple[Step, ...]:
    """Finish or undo what a crash left, from what the store shows; with ``dry_run`` only say what would be done.

    The caller has the local lock of the line. A step's change is ``{"deleted": True}`` where an image is deleted.
    """
    if dry_run:
        images = store.list_line(line)
        repairs = foresee(images, line=line, now=now, lease_s=lease_s, holder=store.holder)
        if not repairs or repairs[0].case != "C1":
            refuse_if_held(images, line=line, now=now, lease_s=lease_s, holder=store.holder)
    else:
        repairs = recover(store, line, now=now, say=say, lease_s=lease_s).repairs
    return tuple(
        Step(
            name=repair.case,
            image_id=repair.image_id,
            change={"deleted": True} if repair.change is None else repair.change,
            why=repair.why,
        )
        for repair in repairs
    )


def _step(name: str, image: StoredImage, change: Mapping[str, object], why: str) -> Step:
    return Step(name=name, image_id=image.id, change=change, why=why)


def _only(images: Sequence[StoredImage], name: str) -> StoredImage | None:
    """The image of a name, when it is the only one and visible, as in every line that is in order."""
    found = [image for image in images if image.name == name]
    if len(found) > 1 or any(image.hidden for image in found):
        raise StoreError(f"'{name}' is not in order", hint="run 'factory reconcile'")
    return found[0] if found else None


def _expect_unchanged(plan: RotationPlan, store: ImageStore) -> None:
    """Read the images again right before the first request. A check, not a lock: Glance has no compare-and-swap."""
    for image in plan.seen:
        found = store.get(image.id)
        if found is None or _state(found) != _state(image):
            raise LineHeld(
                f"image {image.id} of '{plan.line}' was changed under us",
                facts=(("was", str(_state(image))), ("is", str(_state(found)) if found else "gone")),
                hint="somebody else works on this line; nothing was changed",
            )


def _state(image: StoredImage) -> tuple[str, str, str, str, str]:
    shown = "hidden" if image.hidden else "visible"
    return image.name, shown, image.role, image.status, image.updated_at.isoformat()
