# SPDX-License-Identifier: Apache-2.0
"""What packages tell about themselves: their source, who maintains them, their licences and changelogs.

Read from the root tree while it is there. An image may leave documentation out: then the same files are read from the
package files that were recorded.
"""

from __future__ import annotations

import json
import lzma
import posixpath
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from factory.build.changelog import Entry, changelog_text, entries_of
from factory.build.contents import Tree, installed
from factory.build.deb import files_of_deb
from factory.build.inventory import Inventory, inventory_of
from factory.build.licences import Licences, licences_of
from factory.errors import NotGood
from factory.system.values import adapter

CHANGELOGS = "changelogs.json.xz"
SCHEMA = "factory/changelogs/1"
_DOC = "/usr/share/doc"
_COPYRIGHT = "copyright"
_LOGS = ("changelog.Debian.gz", "changelog.Debian", "changelog.gz", "changelog")
_LINKS = 8
_UNPACKED_BYTES = 64 << 20

Read = Callable[[str], bytes]
"""The content of a path in the image, or nothing."""
Pack = Callable[[bytes], bytes]
"""Compresses to the form of xz."""


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """One installed package, beyond its name and version; ``licences`` is None where nothing tells."""

    source: str
    source_version: str
    maintainer: str = ""
    licences: Licences | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A source package of an image: its version, and its newest changelog entries."""

    version: str
    entries: tuple[Entry, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What was found: ``about`` by name and architecture, ``sources`` by source package."""

    about: Mapping[tuple[str, str], About]
    sources: Mapping[str, Source]
    inventory: Inventory


def evidence_of(status: str, tree: Tree) -> Evidence:
    """Everything that a root tree tells, given its dpkg status text."""
    read = following(tree)
    about: dict[tuple[str, str], About] = {}
    sources: dict[str, Source] = {}
    for fields in sorted(installed(status), key=lambda one: (one["Package"], one["Architecture"])):
        name, known = fields["Package"], _about(fields)
        about[(name, fields["Architecture"])] = replace(known, licences=_licences(read, name))
        if not sources.get(known.source, Source(version="")).entries:
            sources[known.source] = Source(version=known.source_version, entries=_entries(read, name, known.source))
    return Evidence(about=about, sources=sources, inventory=inventory_of(tree.entries, read))


def with_package_files(found: Evidence, files: Mapping[tuple[str, str], Path]) -> Evidence:
    """The same, with what the tree does not tell read from package files.

    Args:
        files: package files by name and architecture.
    """
    about, sources = dict(found.about), dict(found.sources)
    for (name, arch), one in found.about.items():
        lacks_log = not sources[one.source].entries
        if (name, arch) not in files or not (one.licences is None or lacks_log):
            continue
        wanted = [f"{_DOC}/{name}/{file}" for file in (_COPYRIGHT, *_LOGS)]
        inside = files_of_deb(files[(name, arch)], wanted)
        read = _reading(inside)
        if one.licences is None:
            about[(name, arch)] = replace(one, licences=_licences(read, name))
        if lacks_log:
            sources[one.source] = replace(sources[one.source], entries=_entries(read, name, one.source))
    return replace(found, about=about, sources=sources)


def _reading(files: Mapping[str, bytes]) -> Read:
    return lambda path: files.get(path, b"")


def following(tree: Tree) -> Read:
    """Reads plain files of a tree, and follows links as the image itself would."""

    def read(path: str) -> bytes:
        for _ in range(_LINKS):
            path = tree.canonical(path)
            entry = tree.entries.get(path)
            if entry is None or entry.kind != "link":
                return tree.read(path)
            path = posixpath.normpath(posixpath.join(posixpath.dirname(path), entry.target))
        return b""

    return read


def _about(fields: Mapping[str, str]) -> About:
    source, _, version = fields.get("Source", fields["Package"]).partition(" ")
    return About(
        source=source,
        source_version=version.strip("() ") or fields["Version"],
        maintainer=fields.get("Maintainer", ""),
    )


def _licences(read: Read, name: str) -> Licences | None:
    content = read(f"{_DOC}/{name}/{_COPYRIGHT}")
    return licences_of(content.decode(errors="replace")) if content else None


def _entries(read: Read, name: str, source: str) -> tuple[Entry, ...]:
    """The entries of a package's changelog, when it is one of its source package and not of what that packages."""
    for file in _LOGS:
        content = read(f"{_DOC}/{name}/{file}")
        found = entries_of(changelog_text(content)) if content else ()
        if found and found[0].source == source:
            return found
    return ()


# -- changelogs as a file ---------------------------------------------------------------------------------------------


def changelogs_bytes(sources: Mapping[str, Source], *, pack: Pack = lzma.compress) -> bytes:
    """The changelogs of an image, compressed: every byte follows from what they say, and from what ``pack`` is."""
    body = adapter(dict[str, Source]).dump_python(dict(sorted(sources.items())), mode="json")
    text = json.dumps({"schema": SCHEMA, "sources": body}, sort_keys=True)
    return pack(text.encode())


def read_changelogs(content: bytes) -> dict[str, Source]:
    """Read them back.

    Raises:
        NotGood: they are damaged, or much larger than any image's.
    """
    try:
        text = lzma.LZMADecompressor(memlimit=_UNPACKED_BYTES).decompress(content, _UNPACKED_BYTES)
        body: dict[str, Any] = json.loads(text)
        if body["schema"] != SCHEMA:
            raise NotGood("the changelogs are of another version than this factory reads")
        return adapter(dict[str, Source]).validate_python(body["sources"])
    except (lzma.LZMAError, ValueError, KeyError, TypeError, RecursionError, ValidationError) as damaged:
        raise NotGood("the changelogs are damaged", facts=(("said", str(damaged)[:200]),)) from None


def coverage(found: Iterable[Licences | None]) -> dict[str, int]:
    """How many packages name all their licences as SPDX does, only some, none but by other names, or not at all."""
    counts = {"spdx": 0, "partly": 0, "named": 0, "prose": 0, "missing": 0}
    for one in found:
        if one is None:
            counts["missing"] += 1
        elif one.spdx:
            counts["partly" if one.named else "spdx"] += 1
        else:
            counts["named" if one.named else "prose"] += 1
    return counts
