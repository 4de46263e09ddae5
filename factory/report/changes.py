# SPDX-License-Identifier: Apache-2.0
"""What changed between two package lists."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """Packages by name: ``updated`` holds name, old version, new version."""

    added: tuple[tuple[str, str], ...] = ()
    removed: tuple[tuple[str, str], ...] = ()
    updated: tuple[tuple[str, str, str], ...] = ()

    @property
    def count(self) -> int:
        return len(self.added) + len(self.removed) + len(self.updated)

    @property
    def rows(self) -> tuple[tuple[str, str, str], ...]:
        """Name, old and new version of everything that changed; nothing stands for a version that was not there."""
        added = ((name, "", version) for name, version in self.added)
        removed = ((name, version, "") for name, version in self.removed)
        return (*self.updated, *added, *removed)


def changes(old: Iterable[Sequence[str]], new: Iterable[Sequence[str]]) -> Changes:
    """The difference of two lists of (name, version, architecture)."""
    before, after = _versions(old), _versions(new)
    name = _names((*before, *after))
    return Changes(
        added=tuple((name[key], after[key]) for key in sorted(after.keys() - before.keys())),
        removed=tuple((name[key], before[key]) for key in sorted(before.keys() - after.keys())),
        updated=tuple(
            (name[key], before[key], after[key])
            for key in sorted(before.keys() & after.keys())
            if before[key] != after[key]
        ),
    )


def _versions(packages: Iterable[Sequence[str]]) -> dict[tuple[str, str], str]:
    """Versions by name and architecture; a package that may be installed several times keeps them all."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, version, arch in packages:
        found.setdefault((name, arch), []).append(version)
    return {key: ", ".join(sorted(versions)) for key, versions in found.items()}


def _names(keys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """What to call each package: its name, with the architecture where one name has several."""
    arches: dict[str, set[str]] = {}
    keys = tuple(keys)
    for name, arch in keys:
        arches.setdefault(name, set()).add(arch)
    return {(name, arch): name if len(arches[name]) == 1 else f"{name}:{arch}" for name, arch in keys}
