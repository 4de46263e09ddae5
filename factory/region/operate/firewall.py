# SPDX-License-Identifier: Apache-2.0
"""Who may reach region servers and update servers, as nftables and as OpenStack security groups.

Decided once, as rules; the two formats only spell them. Everything that no rule lets in is dropped, in IPv4 and IPv6.
What a server itself opens to the world (its sources of packages, names, time) is not restricted.
"""

from __future__ import annotations

import ipaddress
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from factory.errors import Fault, InputFault
from factory.model import Region, RegionClient, Server

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Sources = Literal["ranges", "segment", "all"]
HTTPS, HTTP = 443, 80
_EVERYWHERE: tuple[Network, ...] = (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0"))
_TABLE = "image_factory"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The site's choice.

    ``sources`` says from where instances come: ``ranges``, the cloud's own networks of each region; ``segment``, a
    private network that only instances reach (``segments``); ``all``, from anywhere, through customers' networks.
    ``admin`` are the networks of the administrators, ``verification`` the update servers' instance verification.
    """

    sources: Sources = "ranges"
    segments: tuple[str, ...] = ()
    admin: tuple[str, ...] = ()
    ssh_port: int = 22
    verification: str = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What is let in: a TCP port from networks, and why."""

    port: int
    networks: tuple[Network, ...]
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wall:
    """The rules of one server."""

    server: str
    region: str
    role: Literal["region server", "update server"]
    rules: tuple[Rule, ...]

    @property
    def name(self) -> str:
        """A name for files and security groups."""
        return f"{self.role.split()[0]}-{self.server}"


def walls(regions: Sequence[Region], client: RegionClient, policy: Policy) -> tuple[Wall, ...]:
    """The rules of every server.

    Raises:
        InputFault: the policy would let in the world without instance verification, or nobody.
    """
    faults = tuple(_faults(regions, policy))
    if faults:
        raise InputFault("the firewall cannot be made so", faults=faults)
    return tuple(_walls(regions, client, policy))


def _faults(regions: Sequence[Region], policy: Policy) -> Iterator[Fault]:
    for place, texts in (("--admin", policy.admin), ("--segment", policy.segments)):
        for text in texts:
            try:
                network = ipaddress.ip_network(text)
            except ValueError as wrong:
                yield Fault(place=place, problem=f"{text!r} is not a network: {wrong}", cure="such as 192.0.2.0/24")
            else:
                if network.prefixlen == 0:
                    yield Fault(place=place, problem=f"{text} is everybody", cure="name your own networks")
    if not policy.admin:
        yield Fault(place="--admin", problem="is missing: nobody could log in", cure="the administrators' networks")
    if not 0 < policy.ssh_port < 1 << 16 or policy.ssh_port in {HTTP, HTTPS}:
        yield Fault(place="--ssh-port", problem=f"{policy.ssh_port} cannot be the port of ssh")
    if policy.sources == "segment" and not policy.segments:
        yield Fault(place="--segment", problem="is missing", cure="the network that only instances reach")
    for region in regions:
        yield from _source_faults(region, policy)


def _source_faults(region: Region, policy: Policy) -> Iterator[Fault]:
    place = f"region '{region.name}'"
    verified = policy.verification not in {"", "none"}
    if policy.sources == "ranges" and not region.networks:
        yield Fault(
            place=place, problem="has no networks, so no instance could reach its update servers", cure="networks"
        )
    open_to = "all addresses" if policy.sources == "all" else _whole_family(_sources(region, policy, lenient=True))
    if open_to and not verified:
        yield Fault(
            place=place,
            problem=f"its update servers would be open to {open_to}, and nothing there tells instances from others",
            cure="set update_server.verification in the site file to the provider that the update servers have",
        )


def _whole_family(networks: Sequence[Network]) -> str:
    """Which address family the collapsed networks cover as a whole."""
    for network in networks:
        if network.prefixlen == 0:
            return f"all IPv{network.version} addresses"
    return ""


def _sources(region: Region, policy: Policy, *, lenient: bool = False) -> tuple[Network, ...]:
    if policy.sources == "all":
        return _EVERYWHERE
    found = []
    for text in policy.segments if policy.sources == "segment" else region.networks:
        try:
            found.append(ipaddress.ip_network(text))
        except ValueError:
            if not lenient:
                raise
    return _collapsed(found)


def _collapsed(networks: Sequence[Network]) -> tuple[Network, ...]:
    four = [one for one in networks if isinstance(one, ipaddress.IPv4Network)]
    six = [one for one in networks if isinstance(one, ipaddress.IPv6Network)]
    return (*ipaddress.collapse_addresses(four), *ipaddress.collapse_addresses(six))


def _walls(regions: Sequence[Region], client: RegionClient, policy: Policy) -> Iterator[Wall]:
    admin = Rule(
        port=policy.ssh_port,
        networks=_collapsed([ipaddress.ip_network(one) for one in policy.admin]),
        why="administrators",
    )
    seen: set[str] = set()
    for region in regions:
        for server in region.servers:
            if server.name not in seen:
                seen.add(server.name)
                rules: tuple[Rule, ...] = (
                    Rule(port=HTTPS, networks=_EVERYWHERE, why="instances ask for their region"),
                    admin,
                )
                yield Wall(server=server.name, region=region.name, role="region server", rules=rules)
        sources = _sources(region, policy)
        for server in region.update_servers:
            rules = (*_guest_rules(sources, client), *_peer_rules(region, server), admin)
            yield Wall(server=server.name, region=region.name, role="update server", rules=rules)


def _guest_rules(sources: tuple[Network, ...], client: RegionClient) -> Iterator[Rule]:
    yield Rule(port=HTTPS, networks=sources, why="instances register and update")
    if not client.https_only:
        yield Rule(port=HTTP, networks=sources, why="instances fetch the CA certificate")


def _peer_rules(region: Region, server: Server) -> Iterator[Rule]:
    peers = [
        ipaddress.ip_network(address)
        for peer in region.update_servers
        if peer.name != server.name
        for address in peer.addresses
    ]
    if peers:
        yield Rule(port=HTTPS, networks=_collapsed(peers), why="peers share registrations")


# -- nftables ---------------------------------------------------------------------------------------------------------


def nftables(wall: Wall) -> str:
    """The rules for ``nft -f``: one table of its own, replaced as a whole in one transaction (nft(8))."""
    return "\n".join(_nft_lines(wall)) + "\n"


def _nft_lines(wall: Wall) -> Iterator[str]:
    yield f"# {wall.role} {wall.server}, region {wall.region}; made by 'factory region firewall'"
    yield f"table inet {_TABLE}"
    yield f"delete table inet {_TABLE}"
    yield f"table inet {_TABLE} {{"
    yield "    chain input {"
    yield "        type filter hook input priority filter; policy drop;"
    yield "        ct state established,related accept"
    yield "        ct state invalid drop"
    yield '        iif "lo" accept'
    yield "        icmp type { echo-request, destination-unreachable, time-exceeded, parameter-problem } accept"
    yield (
        "        icmpv6 type { echo-request, destination-unreachable, packet-too-big, time-exceeded, parameter-problem,"
        " nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert } accept"
    )
    for rule in wall.rules:
        for version, word in ((4, "ip"), (6, "ip6")):
            networks = [str(one) for one in rule.networks if one.version == version]
            if any(one.endswith("/0") for one in networks):
                yield f'        meta nfproto ipv{version} tcp dport {rule.port} accept comment "{rule.why}"'
            elif networks:
                listed = ", ".join(networks)
                yield f'        {word} saddr {{ {listed} }} tcp dport {rule.port} accept comment "{rule.why}"'
    yield "    }"
    yield "    chain forward {"
    yield "        type filter hook forward priority filter; policy drop;"
    yield "    }"
    yield "}"


# -- OpenStack --------------------------------------------------------------------------------------------------------


def security_groups(all_walls: Sequence[Wall]) -> list[dict[str, Any]]:
    """Security groups as the networking API and openstacksdk take them; a new group lets everything out by itself."""
    return [
        {
            "name": wall.name,
            "description": f"{wall.role} of region {wall.region}",
            "security_group_rules": [
                {
                    "direction": "ingress",
                    "ethertype": f"IPv{network.version}",
                    "protocol": "tcp",
                    "port_range_min": rule.port,
                    "port_range_max": rule.port,
                    "remote_ip_prefix": str(network),
                    "description": rule.why,
                }
                for rule in wall.rules
                for network in rule.networks
            ],
        }
        for wall in all_walls
    ]


def openstack_commands(all_walls: Sequence[Wall]) -> str:
    """The same as commands of python-openstackclient."""
    lines = ["#!/bin/sh", "set -eu"]
    for group in security_groups(all_walls):
        create = ["openstack", "security", "group", "create", "--description", group["description"], group["name"]]
        lines += ["", shlex.join(create)]
        for rule in group["security_group_rules"]:
            argv = ["openstack", "security", "group", "rule", "create", "--ingress", "--ethertype", rule["ethertype"]]
            argv += ["--protocol", "tcp", "--dst-port", str(rule["port_range_min"])]
            argv += ["--remote-ip", rule["remote_ip_prefix"], "--description", rule["description"], group["name"]]
            lines.append(shlex.join(argv))
    return "\n".join(lines) + "\n"
