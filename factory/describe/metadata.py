# SPDX-License-Identifier: Apache-2.0
"""``[metadata]`` of the descriptions: judged where it is written, and against the other descriptions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations

from factory.describe.places import KeyPath, place
from factory.errors import Fault
from factory.model import Description
from factory.store.metadata import identity
from factory.store.properties import FREQUENCIES_DAYS, faults, reserved

_PUBLISHES_DAYS = {"every-night": 1, "monthly": 31, "on-security": 31}


def metadata_faults(shown: str, description: Description, lines: Mapping[KeyPath, int]) -> Iterator[Fault]:
    """What is wrong with the properties that a description sets, each with its line."""

    def where(key: str) -> str:
        return place(shown, lines, ("metadata", key))

    said = description.metadata
    yield from reserved(said, place=where)
    yield from faults(said, place=where, complete=False)
    agreed = {"hw_firmware_type": description.disk.firmware, "architecture": description.arch}
    for key, value in agreed.items():
        if said.get(key, value) != value:
            yield Fault(place=where(key), problem=f"is '{said[key]}', but the image is made for '{value}'")
    if said.get("min_disk", "").isdecimal() and int(said["min_disk"]) < description.disk.min_gib:
        problem = f"is '{said['min_disk']}', but disk.min_gib is {description.disk.min_gib}"
        yield Fault(place=where("min_disk"), problem=problem, cure="leave it out: it follows from disk.min_gib")
    promised = FREQUENCIES_DAYS.get(said.get("replace_frequency", ""))
    if promised is not None and promised < _PUBLISHES_DAYS[description.publish]:
        problem = f"promises '{said['replace_frequency']}', but the image is published {description.publish}"
        yield Fault(place=where("replace_frequency"), problem=problem, cure="at least monthly is certain")


def generic_faults(descriptions: Mapping[str, tuple[str, Description, Mapping[KeyPath, int]]]) -> Iterator[Fault]:
    """Lines that would both be the generic image of one distribution, version and architecture (SCS-0102).

    Args:
        descriptions: by image, how its file is called, the description, and its lines.
    """
    for one, other in combinations(sorted(descriptions), 2):
        shown, description, lines = descriptions[one]
        other_shown, other_description, other_lines = descriptions[other]
        same = identity(description)
        if same is None or same != identity(other_description) or description.line == other_description.line:
            continue
        beside = place(other_shown, other_lines, ("metadata", "os_purpose"))
        yield Fault(
            place=place(shown, lines, ("metadata", "os_purpose")),
            problem=f"is the generic image of {same}, and so is that of {beside.partition(' ')[0]}",
            cure="set os_purpose of one of them to minimal, k8snode, gpu, network or custom",
        )
