# SPDX-License-Identifier: Apache-2.0
"""What an image is set up to do, read from its root tree: which units are enabled, which kernel settings it makes.

``inventory.json`` beside the image keeps it, so that two images can be compared without being started.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from pydantic import ValidationError

from factory.build.contents import Entry
from factory.errors import NotGood
from factory.system.values import adapter

NAME = "inventory.json"
SCHEMA = "factory/inventory/1"
_UNITS = {
    "/etc/systemd/system": "system",
    "/usr/lib/systemd/system": "system",
    "/etc/systemd/user": "user",
    "/usr/lib/systemd/user": "user",
}
_WANTS = (".wants", ".requires")
_SYSCTL = ("/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d")
"""Where settings are, the first of files by the same name counts: sysctl.d(5)."""
_OS_RELEASE = ("/etc/os-release", "/usr/lib/os-release")


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A systemd unit that somebody wants, or that is masked: nobody can start it."""

    name: str
    scope: str = "system"
    wanted_by: tuple[str, ...] = ()
    masked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """What a root tree says; ``files`` and ``size_bytes`` count its plain files."""

    distro: str = ""
    version: str = ""
    title: str = ""
    files: int = 0
    size_bytes: int = 0
    units: tuple[Unit, ...] = ()
    sysctl: Mapping[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """The canonical text."""
        body = adapter(Inventory).dump_python(self, mode="json")
        return json.dumps({"schema": SCHEMA, **body}, indent=1, sort_keys=True) + "\n"


def read_inventory(text: bytes | str) -> Inventory:
    """Read one back.

    Raises:
        NotGood: it is of another form.
    """
    try:
        body = json.loads(text)
        if body.pop("schema") != SCHEMA:
            raise NotGood("the inventory is of another version than this factory reads")
        return adapter(Inventory).validate_python(body)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError, ValidationError) as damaged:
        raise NotGood("the inventory is damaged", facts=(("said", str(damaged)[:200]),)) from None


def inventory_of(entries: Mapping[str, Entry], read: Callable[[str], bytes]) -> Inventory:
    """The inventory of a tree.

    Args:
        entries: every file by its path in the image.
        read: the content of a plain file, or nothing.
    """
    release = _os_release(next(filter(None, map(read, _OS_RELEASE)), b"").decode(errors="replace"))
    plain = [entry for entry in entries.values() if entry.kind == "file"]
    return Inventory(
        distro=release.get("ID", ""),
        version=release.get("VERSION_ID", ""),
        title=release.get("PRETTY_NAME", ""),
        files=len(plain),
        size_bytes=sum(entry.size_bytes for entry in plain),
        units=units(entry for entry in entries.values() if entry.kind == "link"),
        sysctl=sysctl((path, read(path).decode(errors="replace")) for path in _sysctl_files(entries)),
    )


def _os_release(text: str) -> dict[str, str]:
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return {key.strip(): value.strip().strip("\"'") for key, _, value in pairs}


def units(links: Iterable[Entry]) -> tuple[Unit, ...]:
    """The units that links enable or mask, sorted."""
    wanted: dict[tuple[str, str], set[str]] = {}
    masked: set[tuple[str, str]] = set()
    for link in links:
        folder, name = posixpath.split(link.path)
        parent, target = posixpath.split(folder)
        if folder in _UNITS and link.target == "/dev/null":
            masked.add((_UNITS[folder], name))
        elif parent in _UNITS and target.endswith(_WANTS):
            wanted.setdefault((_UNITS[parent], name), set()).add(target.rpartition(".")[0])
    return tuple(
        Unit(
            name=name,
            scope=scope,
            wanted_by=tuple(sorted(wanted.get((scope, name), ()))),
            masked=(scope, name) in masked,
        )
        for scope, name in sorted({*wanted, *masked})
    )


def _sysctl_files(entries: Mapping[str, Entry]) -> list[str]:
    """The files that set kernel settings, in the order in which they are read."""
    found: dict[str, str] = {}
    for folder in reversed(_SYSCTL):
        found |= {
            name: path
            for path in entries
            if path.startswith(f"{folder}/") and "/" not in (name := path.removeprefix(f"{folder}/")) and name
        }
    return [found[name] for name in sorted(found) if name.endswith(".conf")]


def sysctl(files: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Kernel settings by key, from files in their order: the last one counts."""
    found: dict[str, str] = {}
    for _, text in files:
        for line in text.splitlines():
            key, separator, value = line.strip().lstrip("-").partition("=")
            if separator and not line.strip().startswith(("#", ";")):
                found[_key(key.strip())] = " ".join(value.split())
    return dict(sorted(found.items()))


def _key(text: str) -> str:
    """A key with dots: when a slash comes first, the other sign is part of a name."""
    slash, dot = text.find("/"), text.find(".")
    if slash >= 0 and (dot < 0 or slash < dot):
        return text.translate(str.maketrans("/.", "./"))
    return text
