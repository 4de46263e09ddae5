# SPDX-License-Identifier: Apache-2.0
"""The region server: ``GET /regionInfo[?regionHint=NAME]`` tells an instance the update servers of its region.

The region is the one the hint names (case does not count), else the one with the longest prefix around the peer's
address. Same protocol as SUSE's ``cloud-regionsrv``, but list items are trimmed, values are XML-escaped, and every
problem of the region data is reported at start instead of showing up as a broken reply.
"""

from __future__ import annotations

import ipaddress
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import quoteattr

import radix
from flask import Flask, Response, request

from factory.errors import Fault, InputFault
from factory.region import ini
from factory.region.region_rules import NAME, REGION_NAME

_FINGERPRINT = re.compile(r"[0-9A-F]{2}(:[0-9A-F]{2}){19}")
_FAMILIES = (("public-ips", 4), ("public-ipsv6", 6))


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateServer:
    """One element of a reply."""

    ipv4: str
    ipv6: str
    name: str
    registry: str
    fingerprint: str
    region: str

    def xml(self) -> str:
        """The element, with its attributes in the protocol's order; an absent address is left out."""
        attributes = (
            ("SMTserverIP", self.ipv4),
            ("SMTserverIPv6", self.ipv6),
            ("SMTserverName", self.name),
            ("SMTregistryName", self.registry),
            ("fingerprint", self.fingerprint),
            ("region", self.region),
        )
        return "<smtInfo " + " ".join(f"{name}={quoteattr(value)}" for name, value in attributes if value) + "/>"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionTable:
    """Region data, ready for look-ups: by lower-cased name, and by prefix for each address family."""

    regions: Mapping[str, tuple[UpdateServer, ...]]
    prefixes: Mapping[int, radix.Radix]

    def find(self, hint: str, peer: str) -> tuple[UpdateServer, ...]:
        """The update servers for an instance; empty when nothing is known of it."""
        if hint.lower() in self.regions:
            return self.regions[hint.lower()]
        try:
            version = ipaddress.ip_address(peer.partition("%")[0]).version
        except ValueError:
            return ()
        node = self.prefixes[version].search_best(peer.partition("%")[0])
        return self.regions[node.data["region"]] if node else ()


def create_app(region_data: Path | str) -> Flask:
    """The WSGI application that serves the region data file.

    Raises:
        InputFault: with all problems of the file.
    """
    table = load_region_data(Path(region_data))
    app = Flask("region-server", static_folder=None)
    shuffle = random.SystemRandom().shuffle

    @app.get("/regionInfo")
    def region_info() -> Response | tuple[str, int]:
        found = list(table.find(request.args.get("regionHint", ""), request.remote_addr or ""))
        if not found:
            return "Not found", 404
        shuffle(found)
        body = "\n".join(["<regionSMTdata>", *(server.xml() for server in found), "</regionSMTdata>"])
        return Response(body, content_type="text/html; charset=utf-8")

    return app


def load_region_data(path: Path) -> RegionTable:
    """Read and check a ``regionData.cfg``.

    Raises:
        InputFault: with all problems of the file.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as unreadable:
        raise InputFault(f"'{path}' cannot be read", hint=str(unreadable)) from unreadable
    return parse_region_data(text, place=str(path))


def parse_region_data(text: str, *, place: str) -> RegionTable:
    """Like :func:`load_region_data`, for a text that faults call ``place``."""
    read = ini.read(text, place=place)
    loader = _Loader(place, list(read.faults))
    for section in read.sections.values():
        loader.section(section)
    if not read.sections:
        loader.faults.append(Fault(place=f"{place}:1", problem="holds no region", cure="every instance would get 404"))
    if loader.faults:
        raise InputFault(f"'{place}' cannot be served", faults=tuple(loader.faults))
    return RegionTable(regions=loader.regions, prefixes=loader.prefixes)


class _Loader:
    def __init__(self, place: str, faults: list[Fault]) -> None:
        self.place = place
        self.faults = faults
        self.regions: dict[str, tuple[UpdateServer, ...]] = {}
        self.prefixes = {4: radix.Radix(), 6: radix.Radix()}

    def section(self, section: ini.Section) -> None:
        region = section.name.lower()
        at = f"{self.place}:{section.line} [{section.name}]"
        if not REGION_NAME.fullmatch(section.name):
            self.fault(at, "is no region name", "use letters, digits, '.', '_' and '-'")
        if region in self.regions:
            self.fault(at, "is there already: case does not count", "its instances would get the other servers")
        self.regions[region] = tuple(self._servers(section, region, at))
        for option, version in _FAMILIES:
            for network in self._values(section, option):
                self._network(network, version, region, f"{self._at(section, option)}")

    def fault(self, place: str, problem: str, cure: str) -> None:
        self.faults.append(Fault(place=place, problem=problem, cure=cure))

    def _at(self, section: ini.Section, option: str) -> str:
        line = section.options[option].line if option in section.options else section.line
        return f"{self.place}:{line} {section.name}.{option}"

    def _values(self, section: ini.Section, option: str) -> tuple[str, ...]:
        found = section.options.get(option)
        if found is None or not found.value.strip():
            return ()
        values = tuple(value.strip() for value in found.value.split(","))
        if "" in values:
            self.fault(self._at(section, option), "has an empty list item", "remove the extra comma")
        return tuple(value for value in values if value)

    def _network(self, text: str, version: int, region: str, at: str) -> None:
        try:
            network = ipaddress.ip_network(text)
        except ValueError as wrong:
            self.fault(at, f"{text!r}: {wrong}", "instances there would get 404; host bits must be zero")
            return
        if network.version != version:
            self.fault(at, f"{text} is not IPv{version}", "move it to the other option")
            return
        tree = self.prefixes[version]
        node = tree.search_exact(str(network))
        if node is not None:
            self.fault(at, f"{network} is there already, in [{node.data['region']}]", "an address has one region")
            return
        tree.add(str(network)).data["region"] = region

    def _addresses(self, section: ini.Section, option: str, version: int) -> tuple[str, ...]:
        values = self._values(section, option)
        for value in values:
            try:
                good = ipaddress.ip_address(value).version == version
            except ValueError:
                good = False
            if not good:
                self.fault(self._at(section, option), f"{value!r} is not an IPv{version} address", "write it bare")
        return values

    def _servers(self, section: ini.Section, region: str, at: str) -> Iterator[UpdateServer]:
        ipv4 = self._addresses(section, "smt-server-ip", 4)
        ipv6 = self._addresses(section, "smt-server-ipv6", 6)
        count = len(ipv4) or len(ipv6)
        if not count:
            self.fault(at, "has neither smt-server-ip nor smt-server-ipv6", "name the update servers' addresses")
        if ipv4 and ipv6 and len(ipv4) != len(ipv6):
            self.fault(at, f"pairs {len(ipv4)} IPv4 with {len(ipv6)} IPv6 addresses", "element i of each is one server")
        names = self._paired(section, "smt-server-name", count, NAME)
        registries = self._paired(section, "smt-registry-name", count, NAME)
        prints = self._paired(section, "smt-fingerprint", count, _FINGERPRINT)
        for index in range(min(count, len(names), len(registries), len(prints))):
            yield UpdateServer(
                ipv4=ipv4[index] if index < len(ipv4) else "",
                ipv6=ipv6[index] if index < len(ipv6) else "",
                name=names[index],
                registry=registries[index],
                fingerprint=prints[index],
                region=region,
            )

    def _paired(self, section: ini.Section, option: str, count: int, form: re.Pattern[str]) -> Sequence[str]:
        values = self._values(section, option)
        at = self._at(section, option)
        if not values:
            self.fault(at, f"'{option}' is missing", "SUSE's clients cannot do without it")
        for value in values:
            if not form.fullmatch(value):
                wanted = "a SHA-1 fingerprint, upper case with colons" if form is _FINGERPRINT else "a DNS name"
                self.fault(at, f"{value!r} is not {wanted}", "clients refuse it")
        if values and count and len(values) not in {1, count}:
            self.fault(at, f"holds {len(values)} values for {count} servers", "write one for all, or one for each")
        return values * count if len(values) == 1 else values
