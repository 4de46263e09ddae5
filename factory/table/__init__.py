# SPDX-License-Identifier: Apache-2.0
"""Images against flavors: which image runs on which flavor, which can move while it runs, and why not; pure.

Both sides come from configuration: images from their descriptions, flavors from ``[[flavor]]`` of the site file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from factory.model import Description, Flavor
from factory.store.metadata import MIN_RAM_MIB

_SAME = ({"kvm", "qemu"},)
"""Hypervisor types that run each other's images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One image on one flavor: ``why_not`` is empty where it runs, ``stays`` where it can move while it runs."""

    image: str
    line: str
    flavor: str
    why_not: tuple[str, ...] = ()
    stays: tuple[str, ...] = ()

    @property
    def runs(self) -> bool:
        return not self.why_not

    @property
    def moves(self) -> bool:
        return self.runs and not self.stays


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Every image on every flavor, row by row."""

    images: tuple[Description, ...]
    flavors: tuple[Flavor, ...]
    cells: tuple[Cell, ...]

    def cell(self, image: str, flavor: str) -> Cell:
        """The cell of an image and a flavor."""
        return next(one for one in self.cells if (one.image, one.flavor) == (image, flavor))


def table(images: Sequence[Description], flavors: Sequence[Flavor]) -> Table:
    """Judge every image on every flavor."""
    cells = tuple(judge(image, flavor) for image in images for flavor in flavors)
    return Table(images=tuple(images), flavors=tuple(flavors), cells=cells)


def judge(image: Description, flavor: Flavor) -> Cell:
    """One image on one flavor."""
    return Cell(
        image=image.name,
        line=image.line,
        flavor=flavor.name,
        why_not=tuple(_hindrances(image, flavor)),
        stays=tuple(_anchors(image, flavor)),
    )


def _hindrances(image: Description, flavor: Flavor) -> Iterator[str]:
    if flavor.arch != image.arch:
        yield f"the image is for {image.arch}, the flavor for {flavor.arch}"
    min_disk = max(image.disk.min_gib, _number(image.metadata.get("min_disk", ""), 0))
    if flavor.disk_gib and flavor.disk_gib < min_disk:  # 0 boots from a volume of any size
        yield f"needs a disk of {min_disk} GiB, the flavor has {flavor.disk_gib}"
    min_ram = _number(image.metadata.get("min_ram", ""), int(MIN_RAM_MIB))
    if flavor.ram_mib < min_ram:
        yield f"needs {min_ram} MiB of memory, the flavor has {flavor.ram_mib}"
    if flavor.firmware and image.disk.firmware not in flavor.firmware:
        yield f"boots with {image.disk.firmware}, the flavor has {' or '.join(flavor.firmware)}"
    hypervisor = image.metadata.get("hypervisor_type", "")
    if flavor.hypervisor and hypervisor and not _runs_on(hypervisor, flavor.hypervisor):
        yield f"is for the hypervisor {hypervisor}, the flavor has {flavor.hypervisor}"
    lacking = [one for one in flavor.requires if one not in image.capabilities]
    if lacking:
        yield f"lacks {', '.join(lacking)}"


def _anchors(image: Description, flavor: Flavor) -> Iterator[str]:
    if not flavor.live_migration:
        yield "the flavor cannot be moved while it runs"
    lacking = [one for one in flavor.live_migration_requires if one not in image.capabilities]
    if lacking:
        yield f"lacks {', '.join(lacking)}"


def _runs_on(wanted: str, given: str) -> bool:
    return wanted == given or any({wanted, given} <= same for same in _SAME)


def _number(text: str, otherwise: int) -> int:
    return int(text) if text.isdecimal() else otherwise


def page(found: Table, *, now: datetime) -> str:
    """The table as one self-contained HTML page; everything in it is escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(table=found, now=now)
