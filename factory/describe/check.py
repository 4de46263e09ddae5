# SPDX-License-Identifier: Apache-2.0
"""What can be known to be wrong before a build starts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from factory.describe.foreign import VENDOR
from factory.describe.places import KeyPath, key_lines
from factory.errors import Fault
from factory.model import Description, Region, RegionClient, Server, Site
from factory.region.check import check_pem, check_tree
from factory.region.check_findings import At, Notes
from factory.region.config import for_image, items
from factory.region.region_rules import check_regions


def lifetime_days(description: Description, site: Site) -> int:
    """How long instances may be started from an image: as long as one is kept."""
    return (site.retention or description.retention).lifetime_days


def region_faults(
    description: Description, site: Site, regions: tuple[Region, ...], *, now: datetime
) -> tuple[Fault, ...]:
    """What is wrong with the regions and with the certificates that instances would pin."""
    if description.registration.mode == "none":
        return ()
    shown = site_name(site)
    if not items(regions) and not site.region_client.metadata_server:
        return (Fault(place=shown, problem="names no region server", cure="add servers to [[region]]"),)
    found = [*check_regions(regions, place=shown)]
    days = lifetime_days(description, site)
    for item, server in items(regions).items():
        found += _pem_faults(item, server, site, now=now, days=days)
    return tuple(found)


def site_name(site: Site) -> str:
    """How findings call the site file."""
    return site.path.name if site.path else "site.toml"


def carried(description: Description, site: Site, regions: tuple[Region, ...], notes: Notes) -> bool:
    """Whether the build tree can be written: there are region servers, and each has a PEM that can be read."""
    if description.registration.mode == "none":
        return True
    found = items(regions)
    for server in found.values():
        try:
            server.pem.read_text()
        except (OSError, UnicodeDecodeError) as unreadable:
            notes.error(
                8,
                At(file=_relative(server.pem, site)),
                f"the certificate of region server '{server.name}' cannot be read: {unreadable}",
                why="no instance could trust this server",
                cure="name a readable PEM file in the site file; 'factory region cert' makes one",
            )
    return not notes.findings and bool(found or site.region_client.metadata_server)


def secrets(tree: Path, notes: Notes) -> None:
    """Private keys in a build tree, as findings."""
    for fault in secret_faults(tree):
        notes.error(
            9, At(file=fault.place), fault.problem, why="everybody with the image would have it", cure="remove it"
        )


def located(notes: Notes, site: Site, regions: tuple[Region, ...], client: RegionClient) -> Notes:
    """The same findings, at the places where a person has to change something.

    PEMs in the image are told by the file that the site names; regions and servers by their line in the site file.
    """
    folder = client.cert_location.strip("/")
    pems = {f"{folder}/{item}.pem": _relative(server.pem, site) for item, server in items(regions).items()}
    lines = key_lines(site.path.read_text()) if site.path and site.path.is_file() else {}
    notes.findings = [replace(one, at=_place(one.at, pems, lines, site, regions)) for one in notes.findings]
    return notes


def _place(
    at: At, pems: Mapping[str, str], lines: Mapping[KeyPath, int], site: Site, regions: tuple[Region, ...]
) -> At:
    own = at.file.removeprefix("root/")
    if own in pems:
        return replace(at, file=pems[own], key=f"(/{own} in the image)")
    if at.file != site_name(site) or at.line:
        return at
    path: KeyPath = ()
    for number, region in enumerate(regions):
        if at.key.split(" ")[0].split(".networks")[0] == f"region.{region.name}":
            path = ("region", number)
            for kind, servers in (("servers", region.servers), ("update_servers", region.update_servers)):
                for position, server in enumerate(servers):
                    if at.key.endswith(f" server {server.name}"):
                        path = ("region", number, kind, position)
    line = next((lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in lines), 0)
    return replace(at, line=line or lines.get(("region",), 0))


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
    tree: Path, description: Description, site: Site, regions: tuple[Region, ...], *, now: datetime
) -> tuple[Fault, ...]:
    """What is wrong with the region files in a build tree."""
    days = lifetime_days(description, site)
    mode = description.registration.mode
    client = for_image(site.region_client, description.registration)
    return check_tree(tree, regions, now=now, lifetime_days=days, mode=mode, client=client)


def secret_faults(tree: Path) -> Iterator[Fault]:
    """Private keys in a build tree: they would be in every image and in the source tarball."""
    for path in sorted(tree.rglob("*")):
        if path.is_file() and not path.is_symlink() and b"PRIVATE KEY-----\n" in path.read_bytes():
            place = path.relative_to(tree).as_posix()
            yield Fault(place=place, problem="holds a private key", cure="it must never be in an image; remove it")


def ntp_servers(description: Description, site: Site) -> tuple[str, ...]:
    """The site's time servers, else the description's."""
    return site.ntp_servers or description.ntp_servers


TOOL_MIRRORS = ("tools", "python")
"""Keys of ``[mirrors]`` that are no repository of an image: where what builds images comes from."""


def unused(site: Site, descriptions: Mapping[str, Description]) -> Iterator[Fault]:
    """Aliases in the site file that no image knows: most likely a spelling mistake."""
    known = {one.alias for description in descriptions.values() for one in description.update_repositories}
    shown = site_name(site)
    tables = (
        ("mirrors", [alias for alias in site.mirrors if alias not in TOOL_MIRRORS]),
        ("update_repositories", site.update_repositories),
        ("freshness", site.freshness),
    )
    for table, names in tables:
        for alias in names:
            if alias not in known:
                yield Fault(
                    place=f"{shown} {table}.{alias}",
                    problem="is an alias that no image knows",
                    cure=f"known: {', '.join(sorted(known))}",
                )
    for image, mirrors in site.repositories.items():
        described = descriptions.get(image)
        own = {one.alias for one in described.update_repositories} if described else set()
        own |= {VENDOR} if described and described.foreign else set()
        for alias in mirrors:
            if alias not in own:
                yield Fault(
                    place=f"{shown} repositories.{image}.{alias}",
                    problem="is an alias that this image does not know" if described else "there is no such image",
                    cure=f"known: {', '.join(sorted(own if described else descriptions))}",
                )
