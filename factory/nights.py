# SPDX-License-Identifier: Apache-2.0
"""``factory nightly --all``: the nights of all images, as many at once as this host carries.

Each night is a process of its own, the very one that ``factory nightly IMAGE`` is, so that none can stop another. What
may start next is decided from numbers alone: what the host had free in the beginning, and what each description needs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.build.box import memory_for_target
from factory.doctor import WANTED_MEMORY_BYTES
from factory.model import Description
from factory.pipeline import NEEDED_BYTES
from factory.system.crew import Crew, Ended
from factory.system.run import ending

BROKEN = 3
_GRAVEST = (130, 3, 2, 1, 4, 0)
"""Exit codes: what was interrupted, then the factory's own trouble before a red image, and a held line last."""
_OUTCOMES = {0: "done", 1: "red", 2: "refused", 4: "held", 130: "interrupted"}
_GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """Memory and disk space in bytes, and processors: what is free, or what is needed of it."""

    memory_bytes: int
    disk_bytes: int
    cpus: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OneNight:
    """How one image's night ended: ``status`` is its exit code, ``night`` what it says with ``--json``, if anything."""

    image: str
    outcome: str
    status: int
    reason: str
    seconds: float
    night: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Nights:
    """All nights, in the order of their images; ``at_once`` is how many ran side by side at most."""

    nights: tuple[OneNight, ...]
    status: int
    seconds: float
    at_once: int


def needs(description: Description | None, free: Resources) -> Resources:
    """What the night of an image takes of a host; a description that cannot be read is refused at once, for nothing.

    A processor, as much memory as two guests take or a build, and the space of a run. A build is in memory only where
    memory has room for twice its disk, of which it fills a third.
    """
    if description is None:
        return Resources(memory_bytes=0, disk_bytes=0, cpus=0)
    in_memory = memory_for_target(free.memory_bytes, description.disk.min_gib)
    build = _GIB + in_memory // 3 if in_memory else 0
    return Resources(memory_bytes=max(WANTED_MEMORY_BYTES, build), disk_bytes=NEEDED_BYTES, cpus=1)


def next_to_start(
    waiting: Mapping[str, Resources], running: Iterable[Resources], free: Resources, *, jobs: int | None = None
) -> str | None:
    """The first waiting image whose night fits beside those that run; one alone always starts.

    Args:
        free: what there was before any of them ran.
        jobs: at most so many at once.
    """
    taken = tuple(running)
    if jobs is not None and len(taken) >= jobs:
        return None
    if not taken:
        return next(iter(waiting), None)
    left = Resources(
        memory_bytes=free.memory_bytes - sum(one.memory_bytes for one in taken),
        disk_bytes=free.disk_bytes - sum(one.disk_bytes for one in taken),
        cpus=free.cpus - sum(one.cpus for one in taken),
    )
    return next((image for image, need in waiting.items() if _fits(need, left)), None)


def _fits(need: Resources, left: Resources) -> bool:
    return need.memory_bytes <= left.memory_bytes and need.disk_bytes <= left.disk_bytes and need.cpus <= left.cpus


def gravest(statuses: Iterable[int]) -> int:
    """The exit code for all: the gravest of theirs."""
    found = {status if status in _GRAVEST else BROKEN for status in statuses}
    return next((status for status in _GRAVEST if status in found), 0)


def all_nights(
    wanted: Mapping[str, Resources],
    command: Callable[[str], Sequence[str | Path]],
    *,
    free: Resources,
    env: Mapping[str, str],
    said: Callable[[str, str], None],
    seconds: Callable[[], float],
    jobs: int | None = None,
) -> Nights:
    """Do the night of every image; whatever becomes of one, the others go on.

    Args:
        wanted: what each image's night needs, in the order in which they are to start.
        command: the program that does the night of an image and writes it as JSON to its standard output.
        said: is told the image and each line of progress.
        seconds: a clock.
    """
    started, waiting = seconds(), dict(wanted)
    running: dict[str, Resources] = {}
    done: dict[str, OneNight] = {}
    told: dict[str, str] = {}
    most = 0

    def heard(image: str, line: str) -> None:
        if line.startswith("factory: "):
            told[image] = line.removeprefix("factory: ")
        said(image, line)

    with Crew(heard) as crew:
        while waiting or running:
            while (image := next_to_start(waiting, running.values(), free, jobs=jobs)) is not None:
                running[image] = waiting.pop(image)
                crew.start(image, command(image), env=env)
            most = max(most, len(running))
            ended = crew.wait()
            del running[ended.name]
            done[ended.name] = one = _night(ended, told.get(ended.name, ""))
            said(ended.name, f"{one.outcome}, {len(running)} at work, {len(waiting)} to come")
    nights = tuple(done[image] for image in wanted)
    return Nights(
        nights=nights,
        status=gravest(one.status for one in nights),
        seconds=round(seconds() - started, 1),
        at_once=most,
    )


def _night(ended: Ended, told: str) -> OneNight:
    """What a night's process left, whatever it was."""
    status = ended.returncode if ended.returncode in _GRAVEST else BROKEN
    try:
        night = json.loads(ended.stdout)["value"]
        outcome, reason = str(night["outcome"]), str(night["reason"])
    except (ValueError, KeyError, TypeError):
        how = f"its process {ending(ended.returncode, ended.seconds)}"
        night, outcome, reason = None, _OUTCOMES.get(status, "broken"), told or how
        if status == 0:  # it says that all is well, and not what
            status, outcome, reason = BROKEN, "broken", f"{how} without a word"
    return OneNight(
        image=ended.name, outcome=outcome, status=status, reason=reason, seconds=round(ended.seconds, 1), night=night
    )
