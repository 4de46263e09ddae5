# SPDX-License-Identifier: Apache-2.0
"""What differs between two images: packages, security fixes, files, size, services, listening ports, kernel settings.

:mod:`factory.diff.read` reads the records of an image, :mod:`factory.diff.decide` compares them without touching
anything, :mod:`factory.diff.text` says it as people read it.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from factory.canary import stands
from factory.diff.decide import difference
from factory.diff.model import ImageDifference, Side
from factory.diff.read import longer_changelogs, read_side
from factory.errors import InputFault
from factory.system.state import Run, State

_RUN = re.compile(r"\d{8}-\d{6}-.+")
_HINT = (
    "name a run, an image (IMAGE, IMAGE@latest, IMAGE@prev), a folder with an image's records, or a qcow2 file in one"
)


def between(old: str, new: str, *, state: State) -> ImageDifference:
    """What differs between two images by name, or between an image's last two.

    Args:
        old: a run's ID, ``IMAGE``, ``IMAGE@latest``, ``IMAGE@prev``, or a path.
        new: the same; when it is empty, ``old`` is the newer one, and what was published before it is the older.

    Raises:
        InputFault: there is no such image, or nothing to compare it with.
        NotGood: a record is damaged.
    """
    if new:
        return of_places(_place(old, state), _place(new, state), state=state)
    place = _place(old, state)
    if place.parent != state.runs:
        raise InputFault(f"with what '{old}' is to be compared is not known", hint="name two images")
    before = published_before(Run(path=place))
    if before is None:
        raise InputFault(f"no image was published before run {place.name}", hint="name two runs")
    return of_places(before.path, place, state=state)


def of_places(old: Path, new: Path, *, state: State) -> ImageDifference:
    """What differs between the images of two places."""
    return of_sides(read_side(old), read_side(new), place=new, state=state)


def of_sides(before: Side, after: Side, *, place: Path, state: State) -> ImageDifference:
    """The same, of records that were read already.

    Args:
        place: where the newer image's are.
    """
    found = difference(before, after)
    short = {one.source: one.old for one in found.sources if not one.complete}
    lock = (place.parent if place.is_file() else place) / "inputs.lock"
    if not short or not lock.is_file():
        return found
    longer = longer_changelogs(after, short, lock=lock, blobs=state.blobs)
    return difference(before, replace(after, sources={**(after.sources or {}), **longer})) if longer else found


def published_before(run: Run) -> Run | None:
    """The run of the image that users had before this one."""
    return next((one for one in run.state.runs_of(run.image) if one.id < run.id and stands(one)), None)


def _place(name: str, state: State) -> Path:
    """Where the records of a named image are."""
    if "/" in name or name.endswith(".qcow2") or Path(name).is_dir():
        if not Path(name).exists():
            raise InputFault(f"there is no '{name}'", hint=_HINT)
        return Path(name).resolve()
    if _RUN.fullmatch(name):
        if not (state.runs / name).is_dir():
            raise InputFault(f"there is no run '{name}'", hint=_HINT)
        return state.runs / name
    image, at, which = name.partition("@")
    runs = [run for run in state.runs_of(image) if run.has("build")]
    if at:
        if which not in {"latest", "prev"}:
            raise InputFault(f"'@{which}' is neither '@latest' nor '@prev'", hint=_HINT)
        runs = [run for run in runs if stands(run)][which == "prev" :]
    if not runs:
        raise InputFault(f"no run of '{name}' is known here", hint=_HINT)
    return runs[0].path


__all__ = ["ImageDifference", "Side", "between", "of_places", "of_sides", "published_before"]
