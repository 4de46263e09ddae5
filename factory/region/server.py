# SPDX-License-Identifier: Apache-2.0
"""The region server: ``GET /regionInfo[?regionHint=NAME]`` tells an instance the update servers of its region.

The region is the one the hint names (case does not count), else the one with the longest prefix around the peer's
address. Same protocol as SUSE's ``cloud-regionsrv``, but list items are trimmed, values are XML-escaped, an IPv4
address mapped into IPv6 is looked up as what it is, and every problem of the region data is reported at start instead
of showing up as a broken reply. ``GET /health`` is ours; the protocol has 404 there.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING

import radix

from factory.region.data import Network, RegionEntry, UpdateServer, read_file, served_entries

if TYPE_CHECKING:
    from flask import Flask, Response

PATH = "/regionInfo"
HEALTH_PATH = "/health"
Address = IPv4Address | IPv6Address
Observer = Callable[[str, "Response", str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionTable:
    """Region data, ready for look-ups: by lower-cased name, and by prefix for each address family."""

    regions: Mapping[str, tuple[UpdateServer, ...]]
    prefixes: Mapping[int, radix.Radix]
    prefix_count: int = 0

    def find(self, hint: str, peer: str) -> tuple[UpdateServer, ...]:
        """The update servers for an instance; empty when nothing is known of it."""
        found = self.regions.get(hint.lower())
        return found if found is not None else self.regions.get(self.region_of(peer), ())

    def region_of(self, peer: str) -> str:
        """The region with the longest prefix around an address, or an empty text."""
        address = readable(peer)
        if address is None:
            return ""
        inside = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        # a peer that a dual-stack socket calls ::ffff:a.b.c.d has the IPv4 address a.b.c.d
        return (self._best(inside) if inside else "") or self._best(address)

    def network_of(self, address: Address) -> Network | None:
        """The longest prefix around an address."""
        node = self.prefixes[address.version].search_best(packed=address.packed)
        return ip_network(node.prefix) if node else None

    def _best(self, address: Address) -> str:
        node = self.prefixes[address.version].search_best(packed=address.packed)
        return str(node.data["region"]) if node else ""


def region_table(entries: Sequence[RegionEntry]) -> RegionTable:
    """The look-up table of these regions; takes time in proportion to the number of prefixes."""
    prefixes = {4: radix.Radix(), 6: radix.Radix()}
    for entry in entries:
        for network in entry.networks:
            tree = prefixes[network.version]
            tree.add(packed=network.network_address.packed, masklen=network.prefixlen).data["region"] = entry.name
    return RegionTable(
        regions={entry.name: entry.servers for entry in entries},
        prefixes=prefixes,
        prefix_count=sum(len(entry.networks) for entry in entries),
    )


def load_region_data(path: Path) -> RegionTable:
    """Read and check a ``regionData.cfg``.

    Raises:
        InputFault: with all problems of the file.
    """
    return parse_region_data(read_file(path), place=str(path))


def parse_region_data(text: str, *, place: str) -> RegionTable:
    """Like :func:`load_region_data`, for a text that faults call ``place``."""
    return region_table(served_entries(text, place=place))


def create_app(region_data: Path | str) -> Flask:
    """The WSGI application that serves a region data file, with nothing around it.

    Raises:
        InputFault: with all problems of the file.
    """
    return app_for(load_region_data(Path(region_data)))


def app_for(table: RegionTable, *, trusted_proxies: Sequence[Network] = (), observe: Observer | None = None) -> Flask:
    """The WSGI application that answers from a table.

    Args:
        trusted_proxies: whose ``X-Forwarded-For`` is believed; by default nobody's.
        observe: is told of every answer: the peer, the response, and the region that was answered (or nothing).
    """
    from flask import Flask, Response, g, request  # checks of region data need no web server

    app = Flask("region-server", static_folder=None)
    shuffle = random.SystemRandom().shuffle

    @app.get(PATH)
    def region_info() -> Response | tuple[str, int]:
        found = list(table.find(request.args.get("regionHint", ""), peer()))
        if not found:
            return "Not found", 404
        g.region = found[0].region
        shuffle(found)
        body = "\n".join(["<regionSMTdata>", *(server.element for server in found), "</regionSMTdata>"])
        return Response(body, content_type="text/html; charset=utf-8")

    @app.get(HEALTH_PATH)
    def health() -> dict[str, object]:
        return {"state": "online", "regions": len(table.regions), "networks": table.prefix_count}

    def peer() -> str:
        forwarded = request.headers.get("X-Forwarded-For", "") if trusted_proxies else ""
        return peer_address(request.remote_addr or "", forwarded, trusted_proxies)

    if observe is not None:

        @app.after_request
        def tell(response: Response) -> Response:
            observe(peer(), response, g.get("region", ""))
            return response

    return app


def peer_address(remote: str, forwarded: str, trusted_proxies: Sequence[Network]) -> str:
    """Who asks: the last hop that is no trusted proxy; empty when a trusted proxy names nothing readable.

    Args:
        remote: the socket's address.
        forwarded: the value of ``X-Forwarded-For``, to which each proxy appends whom it saw.
    """
    hops = [*forwarded.split(","), remote] if forwarded else [remote]
    for hop in reversed(hops):
        address = readable(hop.strip())
        if address is None:
            return remote if len(hops) == 1 else ""
        plain = (isinstance(address, IPv6Address) and address.ipv4_mapped) or address
        if not any(plain in network for network in trusted_proxies):
            return hop.strip()
    return hops[0].strip()


def readable(text: str) -> Address | None:
    """An address without its zone, or None."""
    try:
        return ip_address(text.partition("%")[0])
    except ValueError:
        return None
