# SPDX-License-Identifier: Apache-2.0
"""Which images of a line have outlived their promise, and their deletion.

The promise stands on each image, in ``imgfactory_keep_until``: a date, ``last-N`` or ``forever``; a change of the
configuration changes later images only. What users may have in use by its id goes in steps: an optional grace period
deactivated (no new boots, running servers stay), then one PATCH that takes the protection away, then the deletion.
Killed anywhere, the next sweep goes on from what the store shows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from factory.errors import LineHeld, StoreError
from factory.model import Role, Step, StoredImage
from factory.store.holding import holding, refuse_if_held
from factory.store.line import BLOCKED, healthy, latest_name
from factory.store.protocol import ImageStore, Say

FOREVER = "forever"
_LAST = re.compile(r"last-([1-9][0-9]*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """What a sweep did (or, dry, would do) and the ids it had to leave, with why."""

    steps: tuple[Step, ...] = ()
    left: tuple[tuple[str, str], ...] = ()


def plan_sweep(images: Sequence[StoredImage], *, line: str, now: datetime, grace_days: int = 0) -> Swept:
    """The images of a line that may go, oldest first; pure.

    Never the latest or the previous one, never one that lists show, nothing before its time, and nothing at all while
    the line has no healthy latest.

    Args:
        grace_days: how long an image stays deactivated before it is deleted; 0 deletes at once.
    """
    block = [
        Step(name="deactivate", image_id=image.id, change={"deactivated": True}, why="it was withdrawn as dangerous")
        for image in images
        if BLOCKED in image.properties and image.role == Role.WITHDRAWN and image.status == "active"
    ]
    shown = [image for image in images if image.name == latest_name(line) and not image.hidden and healthy(image)]
    if len(shown) != 1:
        why = "the line has no healthy latest image"
        return Swept(steps=tuple(block), left=tuple((image.id, why) for image in _dated(images)))
    steps = block.copy()
    left = []
    published = [image for image in images if image.role != Role.CANDIDATE]
    for image in sorted(_dated(images), key=lambda one: (one.generation, one.id)):
        why, fault = _outlived(image, published, today=now.date())
        if fault:
            left.append((image.id, fault))
        elif why:
            step = _step(image, why, now=now, grace=timedelta(days=grace_days))
            known = {(one.name, one.image_id) for one in block}
            steps += [step] if step is not None and (step.name, step.image_id) not in known else []
    return Swept(steps=tuple(steps), left=tuple(left))


def sweep(
    line: str, *, store: ImageStore, now: datetime, say: Say, grace_days: int = 0, dry_run: bool = False
) -> Swept:
    """Delete what has outlived its promise. The caller has the local lock of the line, which is in order.

    An image that cannot be deleted now (in use by a copy-on-write backend, say) is left, said, and tried again by the
    next sweep. Each image is read again right before its first request: somebody may have promised it longer.
    """
    images = store.list_line(line)
    planned = plan_sweep(images, line=line, now=now, grace_days=grace_days)
    for image_id, why in planned.left:
        say(f"{line}: image {image_id} stays: {why}")
    if dry_run or not planned.steps:
        return planned
    try:
        with holding(store, line, images) as lock:
            images = store.list_line(line)
            refuse_if_held(images, line=line, now=now, holder=store.holder)
            again = plan_sweep([one for one in images if one.id != lock], line=line, now=now, grace_days=grace_days)
            return _carried_out(again, store, line=line, now=now, say=say, grace_days=grace_days)
    except LineHeld as held:
        say(f"{line}: old images stay for now: {held.message}")
        return Swept(left=tuple((step.image_id, held.message) for step in planned.steps))


def _carried_out(planned: Swept, store: ImageStore, *, line: str, now: datetime, say: Say, grace_days: int) -> Swept:
    done, left = [], list(planned.left)
    for step in planned.steps:
        try:
            if not _still(step, store, now=now, grace_days=grace_days):
                left.append((step.image_id, "it was changed meanwhile"))
                continue
            _take(step, store)
        except StoreError as refused:
            left.append((step.image_id, refused.message))
            say(f"{line}: image {step.image_id} stays for now: {refused.message}")
            continue
        say(f"{line}: {step.name} {step.image_id}: {step.why}")
        done.append(step)
    return Swept(steps=tuple(done), left=tuple(left))


def promise_faults(text: str) -> str:
    """Why a ``keep_until`` cannot be understood, or nothing."""
    if text == FOREVER or _LAST.fullmatch(text):
        return ""
    try:
        date.fromisoformat(text)
    except ValueError:
        return f"its imgfactory_keep_until '{text[:40]}' is no date, last-N or {FOREVER}"
    return ""


def _dated(images: Iterable[StoredImage]) -> list[StoredImage]:
    """Hidden images under their dated names that were published once."""
    return [image for image in images if image.hidden and image.role in {Role.ARCHIVE, Role.WITHDRAWN}]


def _outlived(image: StoredImage, published: Sequence[StoredImage], *, today: date) -> tuple[str, str]:
    """Why an image may go, or why nobody can tell; both empty when it has to stay."""
    until = image.properties.get("imgfactory_keep_until", "")
    if fault := promise_faults(until):
        return "", fault
    if until == FOREVER:
        return "", ""
    if last := _LAST.fullmatch(until):
        newer = sum(other.generation > image.generation for other in published if healthy(other))
        return (f"{newer} newer images are there, promised were {last[1]}" if newer >= int(last[1]) else ""), ""
    return (f"it was promised until {until}" if date.fromisoformat(until) < today else ""), ""


def _step(image: StoredImage, why: str, *, now: datetime, grace: timedelta) -> Step | None:
    if grace and image.status == "active":
        return Step(name="deactivate", image_id=image.id, change={"deactivated": True}, why=why)
    if grace and image.status == "deactivated" and now - image.updated_at < grace:
        return None
    return Step(name="delete", image_id=image.id, change={"deleted": True}, why=why)


def _still(step: Step, store: ImageStore, *, now: datetime, grace_days: int) -> bool:
    image = store.get(step.image_id)
    if image is None or not _dated([image]):
        return False
    until = image.properties.get("imgfactory_keep_until", "")
    if _LAST.fullmatch(until) or BLOCKED in image.properties:  # counted a moment ago, under the lock
        return True
    why, _ = _outlived(image, (), today=now.date())
    return bool(why) and _step(image, why, now=now, grace=timedelta(days=grace_days)) is not None


def _take(step: Step, store: ImageStore) -> None:
    if step.name == "deactivate":
        store.deactivate(step.image_id)
        return
    store.patch(step.image_id, {"protected": False, "imgfactory_role": Role.WITHDRAWN.value})
    store.delete(step.image_id)
