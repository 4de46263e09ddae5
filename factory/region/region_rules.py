# SPDX-License-Identifier: Apache-2.0
"""What must hold for regions before a region server can serve them or an image can be made for them."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence

from factory.errors import Fault
from factory.model import Region, Server
from factory.region.certificates import fingerprint

NAME = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
)
REGION_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


KeyLines = Mapping[tuple[str | int, ...], int]
"""On which line of a site file each key stands, such as ``("region", 0, "networks")``."""


def check_regions(
    regions: Sequence[Region], *, place: str = "site.toml", lines: KeyLines | None = None
) -> tuple[Fault, ...]:
    """Every reason why these regions cannot be served; with ``lines``, each with its line."""
    return tuple(_faults(regions, place, lines or {}))


def _where(place: str, lines: KeyLines, region: Region, *path: str | int) -> str:
    """Where a region, or a part of it, stands: the line of the nearest key that the file has."""
    line = next((lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in lines), None)
    return f"{place}:{line} region.{region.name}" if line else f"{place} region.{region.name}"


def _faults(regions: Sequence[Region], place: str, lines: KeyLines) -> Iterator[Fault]:
    seen: dict[str, str] = {}
    owners: dict[str, str] = {}
    for number, region in enumerate(regions):
        where = _where(place, lines, region, "region", number, "name")
        if not REGION_NAME.fullmatch(region.name):
            yield Fault(
                place=where,
                problem="the region's name holds characters that the protocol cannot carry",
                cure="use letters, digits, '.', '_' and '-'",
            )
        if region.name.lower() in seen:
            yield Fault(
                place=where,
                problem=f"is the same region as '{seen[region.name.lower()]}': case does not count",
                cure="instances of the first would be sent to the second; rename one",
            )
        seen.setdefault(region.name.lower(), region.name)
        if not region.update_servers:
            yield Fault(
                place=where, problem="has no update servers", cure="instances could not register; name two or more"
            )
        yield from _network_faults(region, _where(place, lines, region, "region", number, "networks"), owners)
        for kind, servers in (("servers", region.servers), ("update_servers", region.update_servers)):
            for position, server in enumerate(servers):
                yield from _server_faults(server, _where(place, lines, region, "region", number, kind, position))
        updates = _where(place, lines, region, "region", number, "update_servers")
        yield from _pairing_faults(region, updates)
        yield from _authority_faults(region, updates)


def _network_faults(region: Region, where: str, owners: dict[str, str]) -> Iterator[Fault]:
    for network in region.networks:
        try:
            owner = owners.setdefault(str(ipaddress.ip_network(network)), region.name)
        except ValueError as wrong:
            yield Fault(
                place=f"{where}.networks",
                problem=f"{network!r}: {wrong}",
                cure="instances there would get 404 from the region server; write ADDRESS/LENGTH with host bits zero",
            )
            continue
        if owner != region.name:
            yield Fault(
                place=f"{where}.networks",
                problem=f"{network} is in '{owner}' too",
                cure="an address has one region; of nested networks the longer prefix wins",
            )


def _server_faults(server: Server, where: str) -> Iterator[Fault]:
    at = f"{where} server {server.name}"
    for name in (server.name, server.registry):
        if name and not NAME.fullmatch(name):
            yield Fault(
                place=at, problem=f"{name!r} is not a DNS name", cure="use the name in the server's certificate"
            )
    for address, version in ((server.ipv4, 4), (server.ipv6, 6)):
        if not address:
            continue
        try:
            found = ipaddress.ip_address(address)
        except ValueError:
            yield Fault(
                place=at, problem=f"{address!r} is not an address", cure=f"write an IPv{version} address, no brackets"
            )
            continue
        if found.version != version:
            yield Fault(place=at, problem=f"{address} is not IPv{version}", cure="exchange ipv4 and ipv6")
        if found.is_loopback or found.is_unspecified or found.is_multicast:
            yield Fault(
                place=at, problem=f"{address} can never be another host", cure="SUSE's client forgets a server there"
            )


def _pairing_faults(region: Region, where: str) -> Iterator[Fault]:
    for server in region.update_servers:
        if not server.addresses:
            yield Fault(place=f"{where} server {server.name}", problem="has no address", cure="set ipv4 and/or ipv6")
    for family in ("ipv4", "ipv6"):
        having = [server for server in region.update_servers if getattr(server, family)]
        if having and len(having) != len(region.update_servers):
            yield Fault(
                place=where,
                problem=f"only {len(having)} of {len(region.update_servers)} update servers have {family}",
                cure="region data pairs addresses by position: give all servers of a region the same families",
            )


def _authority_faults(region: Region, where: str) -> Iterator[Fault]:
    for server in region.update_servers:
        try:
            fingerprint(server.pem.read_text())
        except (OSError, ValueError) as wrong:
            yield Fault(
                place=f"{where} server {server.name}",
                problem=f"'{server.pem}' is not a CA certificate: {wrong}",
                cure="instances check the CA by its fingerprint; name the file that the server serves as /rmt.crt",
            )
