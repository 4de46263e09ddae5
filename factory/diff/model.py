# SPDX-License-Identifier: Apache-2.0
"""The frozen values of a comparison: two images as they are known, and what differs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from factory.build.changelog import Entry
from factory.build.compare import Difference as FileDifference
from factory.build.evidence import Source
from factory.build.inventory import Inventory
from factory.model import Package


@dataclass(frozen=True, slots=True, kw_only=True)
class Socket:
    """Where a booted image waits for others."""

    protocol: str
    port: int
    reach: str
    program: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Booted:
    """What was noted of an image that was up."""

    listening: tuple[Socket, ...] = ()
    sysctl: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """One of the two images; ``made`` is the day of its inputs. What is not known is empty or 0."""

    name: str
    image: str = ""
    sha256: str = ""
    size_bytes: int = 0
    made: str = ""
    packages: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """An image as its records tell it; None stands for a record that is not there."""

    end: End
    packages: tuple[Package, ...]
    files: Mapping[str, Mapping[str, Any]] | None = None
    inventory: Inventory | None = None
    sources: Mapping[str, Source] | None = None
    booted: Booted | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageChange:
    """A package that was added, removed, upgraded or downgraded; a version that is not there is empty."""

    name: str
    arch: str
    change: str
    old: str = ""
    new: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceChange:
    """A source package of another version, and what its changelog says between the two.

    ``fixes`` are the security fixes that it names. Without ``complete`` the changelog at hand does not reach back to
    the old version, so that there may be more.
    """

    source: str
    old: str
    new: str
    fixes: tuple[str, ...] = ()
    entries: tuple[Entry, ...] = ()
    complete: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A thing by name, as it was and as it is; nothing stands for a thing that is not there."""

    name: str
    old: str
    new: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FileChanges:
    """Files by count, by class, and those by name that no changed package explains.

    Classes are those of ``factory rebuild``; a file has one or several. ``left_out`` is how many more are not named.
    """

    added: int = 0
    removed: int = 0
    changed: int = 0
    classes: Mapping[str, int] = field(default_factory=dict)
    unexplained: tuple[FileDifference, ...] = ()
    left_out: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageDifference:
    """What differs between two images; ``unknown`` says what could not be compared, and why."""

    old: End
    new: End
    identical: bool
    packages: tuple[PackageChange, ...] = ()
    sources: tuple[SourceChange, ...] = ()
    files: FileChanges | None = None
    services: tuple[Change, ...] = ()
    listening: tuple[Change, ...] = ()
    sysctl: tuple[Change, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def fixes(self) -> tuple[str, ...]:
        """Every security fix that changelogs name, sorted."""
        return tuple(sorted({fix for one in self.sources for fix in one.fixes}))
