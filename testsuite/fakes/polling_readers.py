# SPDX-License-Identifier: Apache-2.0
"""Tenants that look ``_latest`` up without pause, one class of reader after the other, while others work on the line.

A program of its own (``python -m testsuite.fakes.polling_readers CLOUDS_YAML CLOUD``), so that tests may fork without
threads. A line ``{"line": ..., "id": ...}`` on its input begins a watch, an empty line ends it; it answers with what
each class got, as JSON.
"""

from __future__ import annotations

import json
import select
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openstack.exceptions import DuplicateResource, NotFoundException

from factory.system.openstack import connect

CLASSES = ("R-sdk", "R-one", "R-new", "R-prop", "R-id")


@dataclass
class Seen:
    """What one class of readers got."""

    one: int = 0
    none: int = 0
    several: int = 0
    repeated: int = 0
    last: str = ""

    def note(self, word: str) -> None:
        setattr(self, word, getattr(self, word) + 1)
        self.repeated += word == self.last == "none"
        self.last = word

    def told(self) -> dict[str, int]:
        return {"one": self.one, "none": self.none, "several": self.several, "repeated": self.repeated}


def counted(found: Sequence[object]) -> str:
    return {0: "none", 1: "one"}.get(len(found), "several")


@dataclass
class Watch:
    """One line, watched; ``image`` is the SDK's image service."""

    image: Any
    line: str
    image_id: str
    seen: dict[str, Seen] = field(default_factory=lambda: {name: Seen() for name in CLASSES})

    def round(self) -> None:
        name = f"{self.line}_latest"
        self.seen["R-sdk"].note(self._sdk(name))
        listed = list(self.image.images(name=name))
        self.seen["R-one"].note(counted(listed))
        self.seen["R-new"].note("one" if listed else "none")
        alike = self.image.get(f"/images?os_purpose=generic&imgfactory_line={self.line}").json()["images"]
        self.seen["R-prop"].note(counted(alike))
        self.seen["R-id"].note(self._by_id())

    def _sdk(self, name: str) -> str:
        try:
            return "one" if self.image.find_image(name) else "none"
        except DuplicateResource:
            return "several"

    def _by_id(self) -> str:
        try:
            return "one" if self.image.get_image(self.image_id).status == "active" else "none"
        except NotFoundException:
            return "none"


def main() -> None:
    image = connect(sys.argv[2], clouds_yaml=Path(sys.argv[1]), direct=True).image
    list(image.images(limit=1, paginated=False))
    print("ready", flush=True)
    while words := sys.stdin.readline():
        told = json.loads(words)
        watch = Watch(image, told["line"], told["id"])
        watch.round()
        print("watching", flush=True)
        while not select.select([sys.stdin], [], [], 0)[0]:
            watch.round()
        sys.stdin.readline()
        print(json.dumps({name: one.told() for name, one in watch.seen.items()}), flush=True)


if __name__ == "__main__":
    main()
