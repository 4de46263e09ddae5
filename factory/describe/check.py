# SPDX-License-Identifier: Apache-2.0
"""What can be known to be wrong before a build starts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path

from factory.errors import Fault
from factory.model import Description, Region, Server, Site
from factory.region.check import check_pem, check_tree
from factory.region.config import items
from factory.region.region_rules import check_regions

_DAYS_A_MONTH = 31


def lifetime_days(description: Description, site: Site) -> int:
    """How long instances may be started from an image: as long as one is kept."""
    kept = site.retention or description.retention
    return max(kept.monthly * _DAYS_A_MONTH, kept.daily, 1)


def region_faults(
    description: Description, site: Site, regions: tuple[Region, ...], *, now: datetime
) -> tuple[Fault, ...]:
    """What is wrong with the regions and with the certificates that instances would pin."""
    if description.registration.mode == "none":
        return ()
    shown = site.path.name if site.path else "site.toml"
    if not items(regions):
        return (Fault(place=shown, problem="names no region server", cure="add servers to [[region]]"),)
    found = [*check_regions(regions, place=shown)]
    days = lifetime_days(description, site)
    for item, server in items(regions).items():
        found += _pem_faults(item, server, site, now=now, days=days)
    return tuple(found)


def _pem_faults(item: str, server: Server, site: Site, *, now: datetime, days: int) -> Iterator[Fault]:
    place = _relative(server.pem, site)
    try:
        text = server.pem.read_text()
    except (OSError, UnicodeDecodeError):
        yield Fault(
            place=place,
            problem=f"the certificate of region server '{server.name}' cannot be read",
            cure="no instance could trust this server; name a readable PEM file",
        )
        return
    yield from check_pem(text, item, place=place, now=now, lifetime_days=days)


def _relative(path: Path, site: Site) -> str:
    """A path as a person who looks at the site file would write it."""
    return os.path.relpath(path, site.path.parent) if site.path else path.name


def tree_faults(
    root: Path, description: Description, site: Site, regions: tuple[Region, ...], *, now: datetime
) -> tuple[Fault, ...]:
    """What is wrong with the region files in the overlay of a build tree."""
    days = lifetime_days(description, site)
    mode = description.registration.mode
    return check_tree(root, regions, now=now, lifetime_days=days, mode=mode)


def secret_faults(tree: Path) -> Iterator[Fault]:
    """Private keys in a build tree: they would be in every image and in the source tarball."""
    for path in sorted(tree.rglob("*")):
        if path.is_file() and not path.is_symlink() and b"PRIVATE KEY-----\n" in path.read_bytes():
            place = path.relative_to(tree).as_posix()
            yield Fault(place=place, problem="holds a private key", cure="it must never be in an image; remove it")


def ntp_servers(description: Description, site: Site) -> tuple[str, ...]:
    """The site's time servers, else the description's."""
    return site.ntp_servers or description.ntp_servers


def unused(site: Site, descriptions: Mapping[str, Description]) -> Iterator[Fault]:
    """Aliases in the site file that no image knows: most likely a spelling mistake."""
    known = {one.alias for description in descriptions.values() for one in description.update_repositories}
    shown = site.path.name if site.path else "site.toml"
    for table, names in (("mirrors", site.mirrors), ("update_repositories", site.update_repositories)):
        for alias in names:
            if alias not in known:
                yield Fault(
                    place=f"{shown} {table}.{alias}",
                    problem="is an alias that no image knows",
                    cure=f"known: {', '.join(sorted(known))}",
                )
