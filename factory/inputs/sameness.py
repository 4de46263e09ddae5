# SPDX-License-Identifier: Apache-2.0
"""Whether a build from newer indexes would install what an earlier build installed; purely decided.

What a resolver chooses follows from what it can see on its way: the packages it takes, every package that these name
(to depend on, to conflict with, to recommend), whoever provides such a name, and what every system has to have. These
are *watched*. When no watched package has another stanza in the newer index, and none is new or gone, the resolver sees
the same, and a new build would install the same files. Any doubt means that something changed: a night that builds for
nothing is cheap, a missed update is not. How Debian's indexes read: https://wiki.debian.org/DebianRepository/Format.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import unquote

from factory.inputs.index import Release
from factory.inputs.stanzas import Stanzas, fields_of

_DATES = frozenset({"Date", "Valid-Until"})
"""Fields of a Release file that may differ: when it was signed, and for how long it holds."""
_TEXT_ONLY = frozenset({"Description", "Description-md5", "Tag"})
"""Fields of a stanza that no resolver reads and that reach no image: dpkg keeps those of the package itself."""
_RELATIONS = ("Pre-Depends", "Depends", "Recommends", "Conflicts", "Breaks", "Replaces", "Provides")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9+.-]*")
_WANTED, _WANTED_PRIORITIES = ("Essential", "Important", "Protected"), frozenset({"required", "important"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A package index of a suite as it was and as it is."""

    name: str
    old: Stanzas
    new: Stanzas


def release_difference(old: Release, new: Release, folders: Iterable[str]) -> str:
    """What differs between two Release files of a suite beside dates and content; empty when nothing does.

    Args:
        folders: where the package indexes lie that the build read (``main/binary-amd64``).
    """
    for name in sorted({*old.fields, *new.fields} - _DATES):
        was, is_now = old.fields.get(name, ""), new.fields.get(name, "")
        if was != is_now:
            return f"{name} was '{was[:80]}' and is '{is_now[:80]}'"
    components = {folder.partition("/")[0] for folder in folders}
    before, after = (_index_names(release, components) for release in (old, new))
    if before != after:
        return f"other package indexes: {', '.join(sorted(before ^ after)[:4])}"
    return ""


def _index_names(release: Release, components: Iterable[str]) -> set[str]:
    wanted = tuple(f"{component}/binary-" for component in components)
    return {name for name in release.files if name.startswith(wanted) and "/Packages" in name}


def changed_folders(old: Release, new: Release, folders: Iterable[str]) -> tuple[str, ...]:
    """The folders whose package indexes have other content now."""

    def content(release: Release, folder: str) -> set[tuple[str, str]]:
        return {(name, sha256) for name, sha256 in release.files.items() if name.startswith(f"{folder}/Packages")}

    return tuple(sorted(folder for folder in folders if content(old, folder) != content(new, folder)))


def fetched_packages(paths: Iterable[str]) -> frozenset[str]:
    """The names of the packages among a lock's paths (percent-encoded)."""
    names = (posixpath.basename(unquote(path)) for path in paths)
    return frozenset(name.partition("_")[0] for name in names if name.endswith(".deb"))


def watched(fetched: Iterable[str], indexes: Iterable[Stanzas]) -> frozenset[str]:
    """The packages a build took, and every name that they mention in a relation to others.

    Args:
        indexes: every package index that the build read.
    """
    names, every = set(fetched), tuple(indexes)
    for name in tuple(names):
        for index in every:
            for stanza in index.named(name):
                fields = fields_of(stanza)
                for relation in _RELATIONS:
                    names |= _named(fields.get(relation, ""))
    return frozenset(names)


def _named(relation: str) -> set[str]:
    """The package names of a relation field (Debian Policy 7.1), without versions, architectures and profiles."""
    choices = (choice.strip() for group in relation.replace("\n", " ").split(",") for choice in group.split("|"))
    return {found[0] for choice in choices if (found := _NAME.match(choice))}


def package_difference(pairs: Iterable[Pair], names: frozenset[str]) -> str:
    """The first watched package that a newer index has otherwise than the older one; empty when there is none."""
    return next((said for pair in pairs for said in _differences(pair, names)), "")


def _differences(pair: Pair, names: frozenset[str]) -> Iterator[str]:
    old, new = (frozenset(index.text.strip(b"\n").split(b"\n\n")) for index in (pair.old, pair.new))
    touched = (fields_of(stanza) for stanza in old ^ new)
    for name in sorted({fields.get("Package", "") for fields in touched if _matters(fields, names)}):
        before, after = (_plain(index, name) for index in (pair.old, pair.new))
        if before != after:
            yield f"{pair.name}: {name} {_said(before, after)}"


def _matters(fields: Mapping[str, str], names: frozenset[str]) -> bool:
    """Whether a stanza is of a watched package, of one that provides a watched name, or of one that a system must have.

    A builder takes the last kind though nobody names it.
    """
    provided = _named(fields.get("Provides", ""))
    wanted = any(fields.get(name) == "yes" for name in _WANTED) or fields.get("Priority") in _WANTED_PRIORITIES
    return wanted or fields.get("Package", "") in names or not names.isdisjoint(provided)


def _plain(index: Stanzas, package: str) -> list[dict[str, str]]:
    """What an index says of a package that matters, in an order of its own."""
    found = [
        {name: value for name, value in fields_of(stanza).items() if name not in _TEXT_ONLY}
        for stanza in index.named(package)
    ]
    return sorted(found, key=lambda fields: sorted(fields.items()))


def _said(before: list[dict[str, str]], after: list[dict[str, str]]) -> str:
    old, new = (" and ".join(sorted({one.get("Version", "?") for one in stanzas})) for stanzas in (before, after))
    if not before:
        return f"{new} is new"
    if not after:
        return f"{old} is gone"
    if old != new:
        return f"was {old} and is {new}"
    fields = sorted(_changed_fields(before, after))
    return f"{new} is described otherwise" + (f" ({', '.join(fields[:4])})" if fields else "")


def _changed_fields(before: list[dict[str, str]], after: list[dict[str, str]]) -> set[str]:
    def pairs(stanzas: list[dict[str, str]]) -> set[tuple[str, str]]:
        return {item for stanza in stanzas for item in stanza.items()}

    return {name for name, _ in pairs(before) ^ pairs(after)}
