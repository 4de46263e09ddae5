# SPDX-License-Identifier: Apache-2.0
"""What is noted beside a kept root tree, and which trees newer ones have taken the place of."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from factory.inputs.lock import Input

KEEP = 2
"""So many trees of an image stay: the newest, and the one before in case a mirror goes back."""
NOTE = "root.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """A kept tree: its archive's digest, the image it was first made for, and what it was made of."""

    image: str
    sha256: str
    inputs: tuple[Input, ...]


def read_root(place: Path) -> Root | None:
    """What is noted in the folder of a tree; None when that cannot be read."""
    with contextlib.suppress(OSError, ValidationError):
        return TypeAdapter(Root).validate_json((place / NOTE).read_bytes())
    return None


def surplus(folder: Path) -> tuple[Path, ...]:
    """The trees below ``folder`` that newer ones of the same image have taken the place of."""
    images: dict[str, list[Path]] = {}
    for place in folder.iterdir() if folder.is_dir() else ():
        if not place.name.startswith(".") and (root := read_root(place)):
            images.setdefault(root.image, []).append(place)
    by_age = (sorted(places, key=lambda place: place.stat().st_mtime, reverse=True) for places in images.values())
    return tuple(place for places in by_age for place in places[KEEP:])
