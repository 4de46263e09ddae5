# SPDX-License-Identifier: Apache-2.0
"""A line in a store: its names, its claim ids, what each role looks like, and who holds it.

Roles live in properties; names and hidden flags are what users see. Every change of a role is one of the functions
here, each the content of one PATCH, so the swap, the rollback and the recovery cannot disagree about it.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from factory.model import Role, StoredImage
from factory.store.properties import AGED_PURPOSE

Change = Mapping[str, object]

LEASE_S = 3600.0
"""How long a candidate that its holder does not touch keeps the line."""
_FIELD_OF = {"name": "name", "os_hidden": "hidden", "visibility": "visibility", "protected": "protected"}
HIDDEN: Change = {"os_hidden": True}
BLOCKED = "imgfactory_blocked"
"""Property of a withdrawn image that nobody may start: it is to be deactivated, and stays so."""


def latest_name(line: str) -> str:
    """The name under which users find the newest image."""
    return f"{line}_latest"


def prev_name(line: str) -> str:
    """The name under which users find the one before."""
    return f"{line}_prev"


def claim_id(project_id: str, line: str, generation: int) -> str:
    """The id that every factory of a project derives for a generation: creating it is the lock on the line."""
    return str(uuid.uuid5(uuid.uuid5(uuid.NAMESPACE_URL, project_id), f"{line}/{generation}"))


def dated_name(image: StoredImage) -> str:
    """The dated name to return to; made from the creation time when somebody removed the property."""
    return image.dated_name or f"{image.line}_{image.created_at:%Y%m%d_%H%M}"


def free_dated_name(line: str, built_at: datetime, taken: Iterable[str]) -> str:
    """``<line>_<YYYYMMDD>``; when that is taken ``_HHMM`` is appended, of the first free minute."""
    names = set(taken)
    name = f"{line}_{built_at:%Y%m%d}"
    while name in names:
        name = f"{line}_{built_at:%Y%m%d_%H%M}"
        built_at += timedelta(minutes=1)
    return name


def purpose(image: StoredImage) -> str:
    """The ``os_purpose`` of this image while it is the latest."""
    return image.properties.get("imgfactory_purpose", "generic")


def aged_purpose(image: StoredImage) -> str:
    """Its ``os_purpose`` at any other time: at most one visible image of a distribution is generic (SCS-0102)."""
    aged = image.properties.get("imgfactory_aged_purpose", AGED_PURPOSE)
    return aged if purpose(image) == "generic" else purpose(image)


def as_latest(image: StoredImage) -> Change:
    """Visible under its present name, as the latest."""
    return {"os_hidden": False, "os_purpose": purpose(image), "imgfactory_role": Role.LATEST.value}


def as_prev(image: StoredImage) -> Change:
    """Renamed to the previous one's name; whether it is hidden stays."""
    return {
        "name": prev_name(image.line),
        "os_purpose": aged_purpose(image),
        "imgfactory_role": Role.PREV.value,
    }


def as_archive(image: StoredImage) -> Change:
    """Back to its dated name; a withdrawn image stays withdrawn."""
    role = Role.WITHDRAWN if image.role == Role.WITHDRAWN else Role.ARCHIVE
    return {"name": dated_name(image), "imgfactory_role": role.value}


def as_withdrawn(image: StoredImage) -> Change:
    """Hidden under its dated name, never to be the latest again."""
    return {
        "name": dated_name(image),
        "os_hidden": True,
        "os_purpose": aged_purpose(image),
        "imgfactory_role": Role.WITHDRAWN.value,
    }


def as_unfit(image: StoredImage) -> Change:
    """Out of everybody's sight: withdrawn when it is blocked, else in the archive."""
    if image.status != "active":
        return as_withdrawn(image)
    return {**as_archive(image), **HIDDEN, "os_purpose": aged_purpose(image)}


def changed(image: StoredImage, change: Change) -> StoredImage:
    """The image as a PATCH with this content leaves it."""
    fields: dict[str, Any] = {_FIELD_OF[key]: value for key, value in change.items() if key in _FIELD_OF}
    properties = {key: str(value) for key, value in change.items() if key not in _FIELD_OF}
    return dataclasses.replace(image, properties={**image.properties, **properties}, **fields)


def healthy(image: StoredImage) -> bool:
    """Whether it may be what users get: active, tested, not withdrawn."""
    return image.status == "active" and image.tested and image.role != Role.WITHDRAWN


def newest(images: Iterable[StoredImage]) -> list[StoredImage]:
    """Healthy images before others, then by generation, newest first."""
    return sorted(images, key=lambda image: (healthy(image), image.generation, image.id), reverse=True)


def ours(image: StoredImage, *, now: datetime, lease_s: float, holder: str) -> bool:
    """Whether we may take a candidate over: it is ours (the caller has the local lock), or its lease has ended."""
    if image.properties.get("imgfactory_holder", "") == holder:
        return True
    return now - image.updated_at > timedelta(seconds=lease_s)


def held(images: Sequence[StoredImage], *, now: datetime, lease_s: float, holder: str) -> StoredImage | None:
    """The candidate with which another, living factory holds this line, or its latest before the swap's last step."""
    for image in images:
        since = image.updated_at if image.role == Role.CANDIDATE else _last_step_lacks_since(image, images)
        at_work = since and dataclasses.replace(image, updated_at=since)
        if at_work and not ours(at_work, now=now, lease_s=lease_s, holder=holder):
            return image
    return None


def _last_step_lacks_since(image: StoredImage, images: Sequence[StoredImage]) -> datetime | None:
    """When this latest's swap began, if two images have the previous one's name, as between R4 and R5 of it.

    Told by the image that R1 hid: who repairs the line touches the others.
    """
    if image.hidden or image.name != latest_name(image.line):
        return None
    named = [one for one in images if one.name == prev_name(image.line)]
    hidden = [one.updated_at for one in named if one.hidden]
    return max(hidden) if hidden and len(hidden) < len(named) else None
