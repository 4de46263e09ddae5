# SPDX-License-Identifier: Apache-2.0
"""``regionData.cfg``: what it says, whether that can be served, and how it is written.

The grammar is that of SUSE's ``cloud-regionsrv``: one section a region, comma lists, server values paired by position.
Reading never stops at the first problem. Each one is a *fault* (nothing can be served), a *quirk* (we serve it, SUSE's
own server makes something else of it), or a *note* (served by all, and worth knowing).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from xml.sax.saxutils import quoteattr

from factory.errors import Fault, InputFault
from factory.model import Region
from factory.region import ini
from factory.region.certificates import fingerprint
from factory.region.region_rules import NAME, REGION_NAME

Network = IPv4Network | IPv6Network

FINGERPRINT = re.compile(r"[0-9A-F]{2}(:[0-9A-F]{2}){19}")
_FAMILIES = (("public-ips", 4), ("public-ipsv6", 6))
_OPTIONS = (
    "public-ips",
    "public-ipsv6",
    "smt-server-ip",
    "smt-server-ipv6",
    "smt-server-name",
    "smt-registry-name",
    "smt-fingerprint",
)
_FORGOTTEN_BY_CLIENTS = ("127.0.0.1", "::1")
_ENOUGH_SERVERS = 2
_LOOKS_LIKE = 0.75


@dataclass(frozen=True, kw_only=True)
class UpdateServer:
    """One element of a reply."""

    ipv4: str
    ipv6: str
    name: str
    registry: str
    fingerprint: str
    region: str

    @cached_property
    def element(self) -> str:
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
class RegionEntry:
    """One section: a region by its lower-cased name, whose addresses are in it, and who updates them."""

    name: str
    networks: tuple[Network, ...]
    servers: tuple[UpdateServer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a region data file says, as far as it could be understood."""

    entries: tuple[RegionEntry, ...]
    faults: tuple[Fault, ...]
    quirks: tuple[Fault, ...]
    notes: tuple[Fault, ...]


def read_file(path: Path) -> str:
    """The text of a file that a person wrote.

    Raises:
        InputFault: it is not there, may not be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as unreadable:
        fault = Fault(place=str(path), problem=f"cannot be read: {unreadable}", cure="it must be UTF-8 text")
        raise InputFault(f"'{path}' cannot be read", faults=(fault,)) from unreadable


def network_of(text: str) -> Network:
    """The network that a text names; a bare address is a network of one.

    Raises:
        ValueError: it names none; the text says why.
    """
    if "%" in text:  # a zone means something on one host only
        raise ValueError(f"{text!r} does not appear to be an IPv4 or IPv6 network")
    try:
        return ip_network(text)
    except ValueError as wrong:
        raise ValueError(str(wrong) if repr(text) in str(wrong) else f"{text!r}: {wrong}") from None


def server_address_problem(text: str, version: int) -> str:
    """Why an update server cannot be announced at this address, or an empty text."""
    try:
        address = ip_address(text) if "%" not in text else None
    except ValueError:
        address = None
    if address is None or address.version != version:
        return f"{text!r} is not an IPv{version} address"
    if str(address) in _FORGOTTEN_BY_CLIENTS:
        return f"{address} is each instance itself: SUSE's client forgets a server there"
    if address.is_unspecified or address.is_multicast:
        return f"{address} can never be a server"
    return ""


def entries_of(regions: Sequence[Region]) -> tuple[RegionEntry, ...]:
    """Regions as region data has them; without a registry name the server's own stands in, which clients need.

    Raises:
        ValueError, OSError: a CA certificate cannot be read (``check_regions`` tells of all of them).
    """
    return tuple(
        RegionEntry(
            name=region.name.lower(),
            networks=tuple(dict.fromkeys(map(ip_network, region.networks))),
            servers=tuple(
                UpdateServer(
                    ipv4=server.ipv4,
                    ipv6=server.ipv6,
                    name=server.name,
                    registry=server.registry or server.name,
                    fingerprint=fingerprint(server.pem.read_text()),
                    region=region.name.lower(),
                )
                for server in region.update_servers
            ),
        )
        for region in regions
    )


def read_region_data(text: str, *, place: str) -> Reading:
    """Understand the text of a region data file that faults call ``place``; never raises."""
    read = ini.read(text, place=place)
    reader = _Reader(place, list(read.faults))
    for section in read.sections.values():
        reader.section(section)
    if not read.sections:
        reader.fault(f"{place}:1", "holds no region", "every instance would get 404; add a section for each region")
    return Reading(
        entries=tuple(reader.entries.values()),
        faults=tuple(reader.faults),
        quirks=tuple(reader.quirks),
        notes=tuple(reader.notes),
    )


def served_entries(text: str, *, place: str) -> tuple[RegionEntry, ...]:
    """The regions of a file that can be served.

    Raises:
        InputFault: with all of its faults.
    """
    read = read_region_data(text, place=place)
    if read.faults:
        raise InputFault(f"'{place}' cannot be served", faults=read.faults)
    return read.entries


def render(entries: Sequence[RegionEntry]) -> str:
    """The text of a ``regionData.cfg``, in the style that SUSE's server reads too: no blanks in lists."""
    return "\n".join("\n".join(_lines(entry)) + "\n" for entry in entries)


def _lines(entry: RegionEntry) -> Iterator[str]:
    values = {
        "public-ips": [str(network) for network in entry.networks if isinstance(network, IPv4Network)],
        "public-ipsv6": [str(network) for network in entry.networks if isinstance(network, IPv6Network)],
        "smt-server-ip": [server.ipv4 for server in entry.servers if server.ipv4],
        "smt-server-ipv6": [server.ipv6 for server in entry.servers if server.ipv6],
        "smt-server-name": [server.name for server in entry.servers],
        "smt-registry-name": [server.registry for server in entry.servers],
        "smt-fingerprint": [server.fingerprint for server in entry.servers],
    }
    yield f"[{entry.name}]"
    for option, items in values.items():
        if items:
            yield f"{option} = {','.join(items)}"


@dataclass(frozen=True, slots=True)
class _Item:
    text: str
    place: str


class _Reader:
    def __init__(self, place: str, faults: list[Fault]) -> None:
        self.place = place
        self.faults = faults
        self.quirks: list[Fault] = []
        self.notes: list[Fault] = []
        self.entries: dict[str, RegionEntry] = {}
        self.owners: dict[Network, _Item] = {}

    def section(self, section: ini.Section) -> None:
        region = section.name.lower()
        at = f"{self.place}:{section.line} [{section.name}]"
        if not REGION_NAME.fullmatch(section.name):
            self.fault(at, "is no region name", "use letters, digits, '.', '_' and '-'")
        if region in self.entries:
            self.fault(at, "is there already: case does not count", "its instances would get the other servers")
        self._unknown_options(section)
        servers = tuple(self._servers(section, region, at))
        networks = tuple(
            network
            for option, version in _FAMILIES
            for item in self._items(section, option)
            if (network := self._network(item, version, region))
        )
        if not networks:
            self.note(
                at, "has neither public-ips nor public-ipsv6", "only instances that send its name as hint find it"
            )
        self.entries[region] = RegionEntry(name=region, networks=networks, servers=servers)

    def fault(self, place: str, problem: str, cure: str) -> None:
        self.faults.append(Fault(place=place, problem=problem, cure=cure))

    def note(self, place: str, problem: str, cure: str) -> None:
        self.notes.append(Fault(place=place, problem=problem, cure=cure))

    def _unknown_options(self, section: ini.Section) -> None:
        for name, option in section.options.items():
            if name in _OPTIONS:
                continue
            at = f"{self.place}:{option.line} {section.name}.{name}"
            meant = difflib.get_close_matches(name, _OPTIONS, n=1, cutoff=_LOOKS_LIKE)
            if meant and meant[0] not in section.options:
                self.fault(at, "is no option of region data", f"is '{meant[0]}' meant?")
            else:
                self.note(at, "is no option of region data", "no region server reads it; remove it")

    def _items(self, section: ini.Section, option: str) -> list[_Item]:
        """The list under ``option``, trimmed; what SUSE's server, which does not trim, makes of it is a quirk."""
        found = section.options.get(option)
        if found is None or not found.value.strip():
            return []
        items, blanks = [], []
        for line, text in found.items():
            at = f"{self.place}:{line} {section.name}.{option}"
            if not text.strip():
                self.fault(at, "has an empty list item", "remove the extra comma")
                continue
            if text != text.strip():
                blanks.append(at)
            items.append(_Item(text.strip(), at))
        if blanks:
            consequence = "drops such a network" if option.startswith("public") else "announces it with the blank"
            problem = f"has blanks beside {len(blanks)} commas of its list"
            cure = f"remove them: SUSE's own server {consequence}"
            self.quirks.append(Fault(place=blanks[0], problem=problem, cure=cure))
        return items

    def _network(self, item: _Item, version: int, region: str) -> Network | None:
        try:
            network = network_of(item.text)
        except ValueError as wrong:
            self.fault(
                item.place, str(wrong), "instances there would get 404; write ADDRESS/LENGTH with host bits zero"
            )
            return None
        if network.version != version:
            self.fault(item.place, f"{item.text} is not IPv{version}", "move it to the other option")
            return None
        owner = self.owners.setdefault(network, _Item(region, item.place))
        if owner.place is item.place:
            return network
        if owner.text == region:
            self.note(item.place, f"{network} is there already", "name it once")
        else:
            self.fault(item.place, f"{network} is there already, in [{owner.text}]", "an address has one region")
        return None

    def _addresses(self, section: ini.Section, option: str, version: int) -> list[str]:
        items = self._items(section, option)
        for item in items:
            if problem := server_address_problem(item.text, version):
                self.fault(item.place, problem, "write the update server's own address, bare")
        return [item.text for item in items]

    def _servers(self, section: ini.Section, region: str, at: str) -> Iterator[UpdateServer]:
        ipv4 = self._addresses(section, "smt-server-ip", 4)
        ipv6 = self._addresses(section, "smt-server-ipv6", 6)
        count = len(ipv4) or len(ipv6)
        if not count:
            self.fault(at, "has neither smt-server-ip nor smt-server-ipv6", "name the update servers' addresses")
        elif count < _ENOUGH_SERVERS:
            self.note(at, "has one update server only", "when it fails, no instance there gets updates")
        if ipv4 and ipv6 and len(ipv4) != len(ipv6):
            self.fault(at, f"pairs {len(ipv4)} IPv4 with {len(ipv6)} IPv6 addresses", "element i of each is one server")
        if ipv6 and not ipv4:
            self.note(at, "has no smt-server-ip", "SUSE's own server would announce 'None'; ours leaves it out")
        names = self._paired(section, "smt-server-name", count, NAME)
        registries = self._paired(section, "smt-registry-name", count, NAME)
        prints = self._paired(section, "smt-fingerprint", count, FINGERPRINT)
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
        items = self._items(section, option)
        if not items:
            line = section.options[option].line if option in section.options else section.line
            at = f"{self.place}:{line} {section.name}.{option}"
            self.fault(at, f"'{option}' is missing", "SUSE's clients cannot do without it")
        for item in items:
            if not form.fullmatch(item.text):
                wanted = "a SHA-1 fingerprint, upper case with colons" if form is FINGERPRINT else "a DNS name"
                self.fault(item.place, f"{item.text!r} is not {wanted}", "clients refuse it")
        if items and count and len(items) not in {1, count}:
            problem = f"holds {len(items)} values for {count} servers"
            self.fault(items[0].place, problem, "write one for all, or one for each")
        values = [item.text for item in items]
        return values * count if len(values) == 1 else values
