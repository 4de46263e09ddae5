# SPDX-License-Identifier: Apache-2.0
"""Debian packages and all that they depend on, from ``Packages`` texts alone; pure, no input or output.

Fields and their meaning: Debian Policy 5 and 7. One suite holds one version of a package, so versions are not weighed.
Of alternatives the first is taken that there is. A virtual name is served by a package that is wanted anyway, else by
the provider of the highest priority, and among those by the first in the alphabet: the same answer from the same text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from factory.errors import InputsError

_PACKAGE = re.compile(rb"\nPackage: *(\S+)")  # a plain beginning: searched for in tens of megabytes
_PROVIDES = re.compile(rb"\nProvides: *(.+)")
_NAME = re.compile(r"\s*([a-z0-9][a-z0-9+.-]*)")
_PRIORITIES = ("required", "important", "standard", "optional", "extra")
_NEEDS = ("Pre-Depends", "Depends")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class DebianPackage:
    """One package of an index; ``path`` is below the repository's address."""

    name: str
    version: str
    path: str
    sha256: str


def closure(
    wanted: Iterable[str], indexes: Iterable[bytes], *, without: Iterable[str] = ()
) -> tuple[DebianPackage, ...]:
    """The packages ``wanted`` and all that they need, sorted by name.

    Args:
        without: packages that are left out although others need them, and what only they need.

    Raises:
        InputsError: an index has no such package, or nothing that a package depends on.
    """
    archive, left_out = _Archive(indexes), frozenset(without)
    chosen: dict[str, Mapping[str, str]] = {}
    asked = list(dict.fromkeys(wanted))
    open_names = [(name, "the list of tools") for name in reversed(asked)]
    while open_names:
        name, who = open_names.pop()
        found = archive.choice([name], {*chosen, *asked})
        if found is None:
            raise InputsError(f"no package index has '{name}'", facts=(("needed by", who),))
        if found in chosen or found in left_out:
            continue
        fields = archive.fields(found)
        chosen[found] = fields
        for names in dependencies(fields):
            if not left_out.isdisjoint(names):
                continue
            needed = archive.choice(names, {*chosen, *asked})
            if needed is None:
                raise InputsError(f"no package index has any of: {', '.join(names)}", facts=(("needed by", found),))
            open_names.append((needed, found))
    return tuple(sorted(_package(name, fields) for name, fields in chosen.items()))


def dependencies(fields: Mapping[str, str]) -> Iterator[list[str]]:
    """What a package needs: for each dependency, the names that satisfy it, in the order of preference."""
    for field in _NEEDS:
        for group in filter(str.strip, fields.get(field, "").split(",")):
            yield [match[1] for choice in group.split("|") if (match := _NAME.match(choice))]


class _Archive:
    """The packages of some indexes by name; the first index that has one counts."""

    def __init__(self, indexes: Iterable[bytes]) -> None:
        self._places: dict[str, tuple[bytes, int]] = {}
        self._providers: dict[str, list[str]] | None = None
        self._indexes = tuple(b"\n" + text for text in indexes)
        for text in self._indexes:
            for match in _PACKAGE.finditer(text):
                self._places.setdefault(match[1].decode(errors="replace"), (text, match.start() + 1))

    def fields(self, name: str) -> dict[str, str]:
        """The fields of one package, continuation lines left out."""
        text, start = self._places[name]
        end = text.find(b"\n\n", start)
        lines = text[start : end if end >= 0 else None].decode(errors="replace").splitlines()
        pairs = (line.partition(":") for line in lines if line[:1] not in {" ", "\t"})
        return {field: value.strip() for field, _, value in pairs}

    def choice(self, names: Iterable[str], preferred: Iterable[str]) -> str | None:
        """The package that serves one of ``names``."""
        alternatives, chosen = list(names), frozenset(preferred)
        for name in alternatives:  # what is there already settles it
            if name in self._places and name in chosen:
                return name
            if name not in self._places and (served := sorted(chosen.intersection(self._provided(name)))):
                return served[0]
        for name in alternatives:
            if name in self._places:
                return name
            if providers := self._provided(name):
                return min(providers, key=lambda one: (self._rank(one), one))
        return None

    def _rank(self, name: str) -> int:
        priority = self.fields(name).get("Priority", "")
        return _PRIORITIES.index(priority) if priority in _PRIORITIES else len(_PRIORITIES)

    def _provided(self, name: str) -> list[str]:
        if self._providers is None:
            self._providers = {}
            for text in self._indexes:
                for match in _PROVIDES.finditer(text):
                    start = max(0, text.rfind(b"\n\n", 0, match.start()))
                    owner = _PACKAGE.search(text, start)
                    for given in match[1].decode(errors="replace").split(","):
                        if owner is not None and (virtual := _NAME.match(given)):
                            self._providers.setdefault(virtual[1], []).append(owner[1].decode(errors="replace"))
        return self._providers.get(name, [])


def _package(name: str, fields: Mapping[str, str]) -> DebianPackage:
    if not fields.get("Filename") or not fields.get("SHA256"):
        raise InputsError(f"the package index does not say where '{name}' is, or what it must be")
    return DebianPackage(name=name, version=fields.get("Version", ""), path=fields["Filename"], sha256=fields["SHA256"])
