# SPDX-License-Identifier: Apache-2.0
"""``factory list``: the images there are, how each last went, and what each lacks on this host."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

from factory.describe import image_faults, images, load_description
from factory.describe.load import DESCRIPTIONS, IMAGE_FILE
from factory.doctor import Finding, Question, mirrors_of, programs, rights
from factory.errors import InputFault
from factory.installation import Installation
from factory.ledger import Ledger, status_of
from factory.store.line import latest_name

NEVER = "never built"
_ASKED_AT_ONCE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One image: ``name`` is what users find in Glance, ``latest`` the dated name of what they get.

    ``outcome``, ``at``, ``age`` and ``run`` are of its last night, ``misses`` what stands in the way of its next one.
    """

    image: str
    builder: str
    line: str
    name: str
    outcome: str = NEVER
    at: str = ""
    age: str = ""
    run: str = ""
    latest: str = ""
    misses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """All images, and what every one of them lacks because the host does."""

    images: tuple[Listed, ...]
    host: tuple[str, ...]

    @property
    def ready(self) -> bool:
        """Whether nothing is missing anywhere."""
        return not self.host and not any(one.misses for one in self.images)


def overview(here: Installation, records: Ledger | None, *, now: datetime) -> Overview:
    """Look at every description, its records, and by doctor's own checks at what it needs; no mirror is asked twice."""
    names = images(here.project)
    lacking = _mirrors(here, names)
    return Overview(
        images=tuple(_listed(here, name, records, lacking[name], now=now) for name in names),
        host=tuple(_said(one) for one in (*programs(), rights()) if one.needed and not one.ok),
    )


def _listed(
    here: Installation, image: str, records: Ledger | None, lacking: tuple[str, ...], *, now: datetime
) -> Listed:
    faults = image_faults(here.project, image, site=here.site, now=now)
    told = {} if records is None else _last(records, image, now=now)
    misses = tuple(dict.fromkeys((*map(str, faults), *lacking)))
    try:
        description = load_description(here.project, image)
    except InputFault:
        said = _as_written(here, image)
        return Listed(
            image=image, builder=said.get("builder", ""), line=said.get("line", ""), name="", misses=misses, **told
        )
    line = description.line
    return Listed(image=image, builder=description.builder, line=line, name=latest_name(line), misses=misses, **told)


def _as_written(here: Installation, image: str) -> dict[str, str]:
    """What a faulty description calls its line and builder, where that can be read."""
    try:
        table = tomllib.loads((here.project / DESCRIPTIONS / image / IMAGE_FILE).read_text())["image"]
        return {key: table[key] for key in ("line", "builder") if isinstance(table.get(key), str)}
    except (OSError, ValueError, KeyError, AttributeError, RecursionError):
        return {}


def _last(records: Ledger, image: str, *, now: datetime) -> dict[str, str]:
    found = status_of(image, next(iter(records.runs(image, 1)), None), records.last_published(image), now=now)
    return {key: str(found[key]) for key in ("outcome", "at", "age", "run", "latest") if found.get(key)}


def _mirrors(here: Installation, names: Iterable[str]) -> Mapping[str, tuple[str, ...]]:
    """By image, which of its mirrors do not answer and which of its secrets cannot be read."""
    faults: dict[str, tuple[str, ...]] = {}
    wanted: dict[str, tuple[Question, ...]] = {}
    for name in names:
        try:
            # one without an address is a fault of the description already
            wanted[name] = tuple(one for one in mirrors_of(here, name) if "://" in one.address)
        except InputFault as unread:
            faults[name] = tuple(map(str, unread.faults))
    questions = {one.key: one for asked in wanted.values() for one in asked}
    with ThreadPoolExecutor(max_workers=_ASKED_AT_ONCE) as pool:
        answers = dict(zip(questions, pool.map(Question.ask, questions.values()), strict=True))
    silent = {
        name: tuple(_said(answers[one.key]) for one in asked if not answers[one.key].ok)
        for name, asked in wanted.items()
    }
    return {**faults, **silent}


def _said(finding: Finding) -> str:
    return f"{finding.name}: {finding.says}" + (f" ({finding.cure})" if finding.cure else "")
