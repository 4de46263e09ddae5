# SPDX-License-Identifier: Apache-2.0
"""Whether two region servers would tell instances the same: by their files, or by what a running one answers.

A running server is asked for each region by its hint, and for the first and last address of every network. An address
can only be asked for where the server believes our ``X-Forwarded-For`` (``trustedProxies`` names this host); whether it
does shows in its answers, and what could not be compared is said. Networks that it has besides ours are only seen where
they hold one of these addresses: files are compared in full.
"""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import quote, urlsplit

from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from factory.errors import InputFault, RegionError
from factory.region.data import Network, RegionEntry
from factory.region.server import Address, RegionTable, readable, region_table

_MAX_BYTES = 1 << 20
_ATTRIBUTES = ("SMTserverIP", "SMTserverIPv6", "SMTserverName", "SMTregistryName", "fingerprint", "region")
_PROBES = ("192.0.2.254", "198.51.100.254", "203.0.113.254", "2001:db8:ffff::fffe")
Answer = frozenset[tuple[str, ...]]
"""The servers of one answer, without their order; empty for 404."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """``ours`` and ``theirs`` say in words what each has; empty where it has nothing."""

    region: str
    what: str
    ours: str
    theirs: str

    def __str__(self) -> str:
        return f"[{self.region}] {self.what}: ours {self.ours or 'nothing'}, theirs {self.theirs or 'nothing'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What differs, how that was found, and what could not be compared (empty when everything could)."""

    other: str
    how: str
    differences: tuple[Difference, ...]
    left_out: str = ""


def compare_files(ours: Sequence[RegionEntry], theirs: Sequence[RegionEntry], *, other: str) -> Comparison:
    """Compare what two region data files say; order and spelling do not count."""
    return Comparison(other=other, how="file with file", differences=tuple(_entry_differences(ours, theirs)))


def _entry_differences(ours: Sequence[RegionEntry], theirs: Sequence[RegionEntry]) -> Iterator[Difference]:
    left, right = ({entry.name: entry for entry in entries} for entries in (ours, theirs))
    for name in dict.fromkeys([*left, *right]):
        a, b = left.get(name), right.get(name)
        if a is None or b is None:
            yield Difference(region=name, what="region", ours=_there(a), theirs=_there(b))
            continue
        mine, other = set(a.networks), set(b.networks)
        for network in sorted(mine ^ other, key=lambda one: (one.version, int(one.network_address), one.prefixlen)):
            yield _one_sided(name, "network", str(network), ours=network in mine)
        yield from _server_differences(name, answer_of(a), answer_of(b))


def _server_differences(region: str, ours: Answer, theirs: Answer) -> Iterator[Difference]:
    for server in sorted(ours ^ theirs):
        yield _one_sided(region, "server", " ".join(value for value in server[:-1] if value), ours=server in ours)


def _one_sided(region: str, what: str, text: str, *, ours: bool) -> Difference:
    return Difference(region=region, what=what, ours=text if ours else "", theirs="" if ours else text)


def _there(entry: RegionEntry | None) -> str:
    return f"{len(entry.networks)} networks, {len(entry.servers)} servers" if entry else ""


def answer_of(entry: RegionEntry) -> Answer:
    """What a region server with this entry answers."""
    return frozenset(
        (server.ipv4, server.ipv6, server.name, server.registry, server.fingerprint, server.region)
        for server in entry.servers
    )


@dataclass(slots=True, kw_only=True)
class RunningServer:
    """A region server by its address; one connection for many questions."""

    url: str
    context: ssl.SSLContext | None
    timeout_s: float = 15.0
    _connection: http.client.HTTPConnection | None = field(default=None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._connection is not None:
            self._connection.close()

    def answer(self, *, hint: str = "", address: str = "") -> Answer:
        """Ask by hint, or as if from an address.

        Raises:
            RegionError: it cannot be reached, is not who its certificate must say, or answers something else.
        """
        target = self._path() + (f"?regionHint={quote(hint, safe='')}" if hint else "")
        headers = {"X-Forwarded-For": address} if address else {}
        status, body = self._ask(target, headers)
        if status == http.client.NOT_FOUND:
            return frozenset()
        if status != http.client.OK:
            raise RegionError(f"'{self.url}' answers {status}", hint="is this a region server's address?")
        try:
            root = ElementTree.fromstring(body)
        except (ElementTree.ParseError, DefusedXmlException, LookupError, ValueError) as wrong:
            raise RegionError(f"'{self.url}' does not answer with region data") from wrong
        return frozenset(tuple(element.get(name, "") for name in _ATTRIBUTES) for element in root)

    def _path(self) -> str:
        path = urlsplit(self.url).path
        return path if path.strip("/") else "/regionInfo"

    def _ask(self, target: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
        for attempt in (1, 2):  # the server may have ended an idle connection
            connection = self._connection or self._connect()
            try:
                connection.request("GET", target, headers=dict(headers))
                reply = connection.getresponse()
                body = reply.read(_MAX_BYTES)
            except (OSError, http.client.HTTPException) as broken:
                fresh = self._connection is None
                connection.close()
                self._connection = None
                if fresh or attempt > 1:
                    raise RegionError(
                        f"'{self.url}' cannot be asked: {broken or type(broken).__name__}",
                        hint="it is verified against its pinned certificate; --ca PEM names another",
                    ) from broken
            else:
                self._connection = connection
                return reply.status, body
        raise AssertionError

    def _connect(self) -> http.client.HTTPConnection:
        parts = urlsplit(self.url)
        host = parts.hostname or ""
        if self.context is None:
            return http.client.HTTPConnection(host, parts.port or 80, timeout=self.timeout_s)
        return http.client.HTTPSConnection(host, parts.port or 443, timeout=self.timeout_s, context=self.context)


def running_server(url: str, *, pem: Path | None) -> RunningServer:
    """A running server to ask.

    Args:
        pem: the only certificate to trust; without one, the host's trust store.

    Raises:
        InputFault: the address or the certificate cannot be used.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as wrong:
        raise InputFault(f"{url!r} is no address: {wrong}") from wrong
    host = parts.hostname or ""
    address = readable(host)
    plain = parts.scheme == "http" and (host == "localhost" or (address is not None and address.is_loopback))
    if not host or port == 0 or not (parts.scheme == "https" or plain):
        raise InputFault(f"{url!r} is no address of a region server", hint="write https://HOST[:PORT][/regionInfo]")
    try:
        context = None if plain else ssl.create_default_context(cafile=pem)
    except (OSError, ssl.SSLError) as wrong:
        raise InputFault(f"'{pem}' is not a certificate", hint=str(wrong)) from wrong
    return RunningServer(url=url, context=context)


def compare_running(ours: Sequence[RegionEntry], server: RunningServer, *, hints_only: bool = False) -> Comparison:
    """Compare region data with a running server's answers.

    Raises:
        RegionError: it cannot be asked.
    """
    found = list(_hint_differences(ours, server))
    if hints_only:
        return Comparison(
            other=server.url, how="its answers to hints", differences=tuple(found), left_out="networks, as asked"
        )
    table = region_table(ours)
    seen = {entry.name: answer_of(entry) for entry in ours}
    asked = list(sample_addresses(ours, table))
    if asked and not _believes(server, table, asked):
        left_out = (
            "networks: it answers the same whatever address is asked for; add this host to its trustedProxies, "
            "or compare files"
        )
        return Comparison(other=server.url, how="its answers to hints", differences=tuple(found), left_out=left_out)
    answers = (server.answer(address=str(address)) for _, address in asked)
    for (network, address), answer in zip(asked, answers, strict=True):
        region = table.region_of(str(address))
        if answer != seen[region] and region_in(answer) != region:
            what = f"network {network} (asked for {address})"
            found.append(Difference(region=region, what=what, ours=region, theirs=region_in(answer)))
    networks = {network for network, _ in asked}
    hidden = sum(len(entry.networks) for entry in ours) - len(networks)
    how = f"its answers to hints and to the first and last address of each of {len(networks)} networks"
    if hidden:  # no address gets an answer by them
        how += f" ({hidden} more are covered wholly by longer prefixes)"
    return Comparison(other=server.url, how=how, differences=tuple(found))


def _believes(server: RunningServer, table: RegionTable, asked: Sequence[tuple[Network, Address]]) -> bool:
    """Whether the server's answer depends on the address we name: one in each region, and some in none, are tried."""
    first = {table.region_of(str(address)): str(address) for _, address in reversed(asked)}
    outside = [probe for probe in _PROBES if not table.region_of(probe)]
    here = server.answer()
    return any(server.answer(address=address) != here for address in (*first.values(), *outside))


def _hint_differences(ours: Sequence[RegionEntry], server: RunningServer) -> Iterator[Difference]:
    for entry in ours:
        answer = server.answer(hint=entry.name)
        if region_in(answer) != entry.name:  # an unknown hint falls back to our own address
            yield Difference(region=entry.name, what="region", ours=_there(entry), theirs="")
        else:
            yield from _server_differences(entry.name, answer_of(entry), answer)


def region_in(answer: Answer) -> str:
    """The region an answer is for, or an empty text."""
    return next((server[-1] for server in answer), "")


def sample_addresses(entries: Sequence[RegionEntry], table: RegionTable) -> Iterator[tuple[Network, Address]]:
    """The first and the last address of each network that no longer prefix claims; none where all are claimed."""
    for entry in entries:
        for network in entry.networks:
            first, last = int(network.network_address), int(network.broadcast_address)
            kind = type(network.network_address)
            while first <= last and (best := table.network_of(kind(first))) not in {network, None}:
                first = int(best.broadcast_address) + 1
            while first < last and (best := table.network_of(kind(last))) not in {network, None}:
                last = int(best.network_address) - 1
            if first <= last:
                yield from ((network, kind(one)) for one in dict.fromkeys((first, last)))
