# SPDX-License-Identifier: Apache-2.0
"""Two images as they are known become what differs; pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from factory.build.compare import file_differences
from factory.build.evidence import Source
from factory.build.inventory import Inventory, Unit
from factory.diff.model import Booted, Change, FileChanges, ImageDifference, PackageChange, Side, SourceChange
from factory.diff.versions import compare, of_source
from factory.model import Package

NAMED_FILES = 400
_OPTIONAL_KEYS = ("sha256", "mtime")
"""What lists of older factories lack: on one side only, it says nothing."""
_DATABASES = ("/var/lib/dpkg/", "/var/lib/apt/", "/usr/share/info/dir", "/etc/ld.so.cache")
"""What changes whenever a package does."""


def difference(old: Side, new: Side) -> ImageDifference:
    """What differs between two images."""
    packages = package_changes(old.packages, new.packages)
    unknown = []
    for what, one, other in (
        ("files", old.files, new.files),
        ("services", old.inventory, new.inventory),
        ("listening ports", old.booted, new.booted),
    ):
        unknown += [
            f"{what}: {side.end.name} does not say" for side, known in ((old, one), (new, other)) if known is None
        ]
    if new.sources is None:
        unknown.append(f"changelogs: {new.end.name} does not say")
    return ImageDifference(
        old=old.end,
        new=new.end,
        identical=bool(old.end.sha256) and old.end.sha256 == new.end.sha256,
        packages=packages,
        sources=source_changes(old, new),
        files=None if old.files is None or new.files is None else file_changes(old.files, new.files, packages),
        services=service_changes(old.inventory, new.inventory),
        listening=listening_changes(old.booted, new.booted),
        sysctl=sysctl_changes(old, new),
        unknown=tuple(unknown),
    )


# -- packages ---------------------------------------------------------------------------------------------------------


def package_changes(old: Iterable[Package], new: Iterable[Package]) -> tuple[PackageChange, ...]:
    """Packages that were added, removed, upgraded or downgraded, sorted by name."""
    before, after = _by_key(old), _by_key(new)
    result = []
    for key in sorted({*before, *after}):
        was, now = before.get(key), after.get(key)
        one = now or was
        if one is None or (was is not None and now is not None and was.version == now.version):
            continue
        change = PackageChange(
            name=one.name,
            arch=one.arch,
            change=_direction(was, now),
            old=was.version if was else "",
            new=now.version if now else "",
            source=one.source,
        )
        result.append(change)
    return tuple(result)


def _by_key(packages: Iterable[Package]) -> dict[tuple[str, str], Package]:
    return {(one.name, one.arch): one for one in packages}


def _direction(was: Package | None, now: Package | None) -> str:
    if was is None or now is None:
        return "removed" if now is None else "added"
    return "upgraded" if compare(was.version, now.version) < 0 else "downgraded"


def source_changes(old: Side, new: Side) -> tuple[SourceChange, ...]:
    """Source packages of another version, with what their changelogs say between the two."""
    if new.sources is None:
        return ()
    before = _source_versions(old)
    changed = {one.source for one in package_changes(old.packages, new.packages)}
    theirs = {one.source or one.name for one in new.packages if one.origin}
    found = []
    for name, source in sorted(new.sources.items()):
        was = before.get(name, "")
        told = name in changed or name in (old.sources or {})  # a binary package's version is only like its source's
        if was and told and compare(was, source.version) != 0:
            found.append(_source_change(name, was, source, ours=name not in theirs))
    return tuple(found)


def _source_versions(side: Side) -> dict[str, str]:
    """The versions of source packages; where nothing tells, those of their binary packages."""
    found = {one.source or one.name: of_source(one.version) for one in side.packages}
    return found | {name: source.version for name, source in (side.sources or {}).items()}


def _source_change(name: str, was: str, source: Source, *, ours: bool) -> SourceChange:
    """What a changelog says between two versions; packages that the factory makes tell of one version only."""
    later = tuple(
        one for one in source.entries if compare(was, one.version) < 0 and compare(one.version, source.version) <= 0
    )
    upward = compare(was, source.version) < 0
    return SourceChange(
        source=name,
        old=was,
        new=source.version,
        fixes=tuple(dict.fromkeys(fix for one in later for fix in one.fixes)),
        entries=later,
        complete=ours or not upward or any(compare(one.version, was) <= 0 for one in source.entries),
    )


# -- files ------------------------------------------------------------------------------------------------------------


def file_changes(
    old: Mapping[str, Mapping[str, Any]], new: Mapping[str, Mapping[str, Any]], packages: Iterable[PackageChange]
) -> FileChanges:
    """Files that differ, by class."""
    before, after = _alike(old, new)
    changed = {one.name for one in packages}
    found = file_differences(before, after, changed)
    counts = Counter("removed" if one == "missing" else one for file in found for one in file.classes)
    news = [one for one in found if not _explained(one.name, one.package, changed) and one.classes != ("time",)]
    return FileChanges(
        added=counts.pop("added", 0),
        removed=counts.pop("removed", 0),
        changed=sum(1 for one in found if not {"added", "missing"} & set(one.classes)),
        classes=dict(sorted(counts.items())),
        unexplained=tuple(news[:NAMED_FILES]),
        left_out=max(0, len(news) - NAMED_FILES),
    )


def _explained(path: str, package: str, changed: set[str]) -> bool:
    return package in changed or (bool(changed) and path.startswith(_DATABASES))


def _alike(
    old: Mapping[str, Mapping[str, Any]], new: Mapping[str, Mapping[str, Any]]
) -> tuple[Mapping[str, Mapping[str, Any]], Mapping[str, Mapping[str, Any]]]:
    """Both lists with the keys that both have."""
    lacking = {
        key
        for key in _OPTIONAL_KEYS
        if any(key in one for one in old.values()) != any(key in one for one in new.values())
    }
    if not lacking:
        return old, new
    before, after = (
        {path: {key: value for key, value in one.items() if key not in lacking} for path, one in side.items()}
        for side in (old, new)
    )
    return before, after


# -- what it is set up to do ------------------------------------------------------------------------------------------


def service_changes(old: Inventory | None, new: Inventory | None) -> tuple[Change, ...]:
    """Units that are enabled, disabled or masked otherwise."""
    if old is None or new is None:
        return ()
    return _changes(*({_unit_name(one): _unit_state(one) for one in side.units} for side in (old, new)))


def _unit_name(unit: Unit) -> str:
    return unit.name if unit.scope == "system" else f"{unit.name} ({unit.scope})"


def _unit_state(unit: Unit) -> str:
    return "masked" if unit.masked else f"wanted by {', '.join(unit.wanted_by)}"


def listening_changes(old: Booted | None, new: Booted | None) -> tuple[Change, ...]:
    """Where the image listens otherwise."""
    if old is None or new is None:
        return ()
    return _changes(*(_listening(side) for side in (old, new)))


def _listening(side: Booted) -> dict[str, str]:
    found: dict[str, set[str]] = {}
    for one in side.listening:
        found.setdefault(f"{one.protocol} {one.port}", set()).add(f"{one.program or 'unknown'} on {one.reach}")
    return {name: ", ".join(sorted(words)) for name, words in found.items()}


def sysctl_changes(old: Side, new: Side) -> tuple[Change, ...]:
    """Kernel settings that differ: as both images had them when they were up, and else as their files make them."""
    if old.booted and new.booted and old.booted.sysctl and new.booted.sysctl:
        return _changes(old.booted.sysctl, new.booted.sysctl)
    if old.inventory is None or new.inventory is None:
        return ()
    return _changes(old.inventory.sysctl, new.inventory.sysctl)


def _changes(old: Mapping[str, str], new: Mapping[str, str]) -> tuple[Change, ...]:
    return tuple(
        Change(name=name, old=old.get(name, ""), new=new.get(name, ""))
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    )
