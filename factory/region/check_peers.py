# SPDX-License-Identifier: Apache-2.0
"""Whether update servers that stand in for each other really do (the second half of rule 15, ``--peers``).

Seen from outside, by probing: that registrations travel from each server to all others and back out, that the servers
offer the same repositories, and that their clocks agree. Seen only by a report that a server's administrator makes on
it (``factory/region-peer/1``): NTP, name resolution, the mirrored repositories, forwarding of registrations.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit

from factory.model import Region, Server
from factory.region.check_findings import At, Notes, shown
from factory.region.check_http import Door, Reply, Unanswered
from factory.region.check_online import Asking

REPORT_SCHEMA = "factory/region-peer/1"
_CLOCKS_S = 5.0
_PAUSE_S = 1.0
_JSON = {"Content-Type": "application/json", "Accept": "application/json"}
_REPOFORMAT = "<repoformat>plugin:susecloud</repoformat>\n"
_TRIPLE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What to register for the proof: a product, and instance data where servers verify instances."""

    product: str
    instance_data: str = ""
    within_s: float = 90.0

    @property
    def asked(self) -> Mapping[str, str]:
        parts = self.product.split("/")
        return dict(zip(("identifier", "version", "arch"), parts, strict=len(parts) == _TRIPLE))


@dataclass(slots=True)
class _Peer:
    """A server under probe; ``headers`` hold the credentials of the registration that is being followed."""

    server: Server
    door: Door
    headers: dict[str, str] = field(default_factory=dict)

    def ask(self, path: str, *, method: str = "GET", body: object = None) -> Reply:
        content = None if body is None else json.dumps(body).encode()
        return self.door.ask(path, method=method, headers={**_JSON, **self.headers}, body=content)

    def knows(self) -> bool:
        """Whether the server takes the credentials."""
        return self.ask("/connect/systems/activations").status == http.client.OK

    def serves(self) -> bool:
        """Whether the server also knows that a product is activated: peers may hear of that a moment later."""
        reply = self.ask("/connect/systems/activations")
        return reply.status == http.client.OK and bool(_list(reply.body))


def examine_peers(
    regions: Sequence[Region],
    notes: Notes,
    *,
    probe: Probe,
    reports: Mapping[str, Mapping[str, Any]],
    asking: Asking,
    say: Callable[[str], None],
) -> None:
    """Prove for each region that its update servers stand in for each other.

    Args:
        reports: what administrators reported, by server name (see :func:`read_report`).
    """
    notes.skipped.pop(15, None)
    for region in regions:
        at = At(file=f"region {region.name}")
        peers = _peers(region, asking, notes)
        if len(peers) < 2:  # noqa: PLR2004 a peer needs another
            notes.skip(15, f"region {region.name} has no peers that can be asked")
            continue
        _clocks(peers, notes, at)
        for origin in peers:
            say(f"a registration at {origin.server.name}, looked for at the others")
            _shared(origin, peers, probe, notes)
        _reported(region, reports, notes)


def _peers(region: Region, asking: Asking, notes: Notes) -> list[_Peer]:
    found = []
    for server in region.update_servers:
        try:
            trust = server.pem.read_text()
        except OSError:
            notes.skip(15, f"the CA of {server.name} cannot be read")
            continue
        door = Door(
            address=server.addresses[0], name=server.name, trust=trust, port=asking.https, timeout_s=asking.timeout_s
        )
        found.append(_Peer(server=server, door=door))
    return found


# -- what is probed ---------------------------------------------------------------------------------------------------


def _clocks(peers: Sequence[_Peer], notes: Notes, at: At) -> None:
    """The Date header tells a server's clock to the second."""
    offsets: dict[str, float] = {}
    for peer in peers:
        try:
            before = time.monotonic()
            told = parsedate_to_datetime(peer.ask("/api/health/status").headers.get("date", ""))
            offsets[peer.server.name] = told.timestamp() - (before + time.monotonic()) / 2
        except (Unanswered, ValueError, TypeError):
            notes.skip(15, f"the clock of {peer.server.name} cannot be seen: it sends no Date")
    if len(offsets) < 2:  # noqa: PLR2004
        return
    apart = max(offsets.values()) - min(offsets.values())
    notes.facts.append(f"{at.file}: clocks at most {apart:.0f} s apart (probed by the Date header)")
    if apart > _CLOCKS_S:
        slow, fast = min(offsets, key=offsets.__getitem__), max(offsets, key=offsets.__getitem__)
        notes.error(
            15,
            at,
            f"the clocks of {slow} and {fast} are {apart:.0f} s apart",
            why="registrations that travel between them are taken in the wrong order",
            cure="let NTP set the clock of both",
        )


@contextlib.contextmanager
def _registered(origin: _Peer, peers: Sequence[_Peer], probe: Probe, notes: Notes) -> Iterator[bool]:
    """A registration at ``origin`` for the length of the block, taken back everywhere at its end."""
    at = At(file=f"https://{origin.server.name}/connect")
    body = {"hostname": "region-check", "hwinfo": {}, "instance_data": probe.instance_data + _REPOFORMAT}
    for peer in peers:
        peer.headers.clear()
    origin.headers["Authorization"] = "Token token="
    try:
        told = origin.ask("/connect/subscriptions/systems", method="POST", body=body)
        credentials = json.loads(told.body) if told.status == http.client.CREATED else {}
        login, password = str(credentials["login"]), str(credentials["password"])
    except (Unanswered, ValueError, KeyError, TypeError) as wrong:
        said = str(wrong) if isinstance(wrong, Unanswered) else _refusal(told)
        _could_not(notes, at, f"takes no registration from here: {said}")
        yield False
        return
    basic = base64.b64encode(f"{login}:{password}".encode()).decode()
    data = base64.b64encode((probe.instance_data + _REPOFORMAT).encode()).decode()
    for peer in peers:
        peer.headers.update({"Authorization": f"Basic {basic}", "X-Instance-Data": data})
    try:
        yield _activated(origin, probe, notes, at)
    except Unanswered as wrong:  # whatever is asked in the block, too
        notes.error(15, at, f"stopped answering: {wrong}", why="registrations are lost", cure="see its log")
    finally:
        for peer in peers:
            with contextlib.suppress(Unanswered):
                if peer.knows():
                    peer.ask("/connect/systems", method="DELETE")


def _activated(origin: _Peer, probe: Probe, notes: Notes, at: At) -> bool:
    try:
        reply = origin.ask("/connect/systems/products", method="POST", body=dict(probe.asked))
    except Unanswered as wrong:
        notes.error(15, at, f"stopped answering: {wrong}", why="registrations are lost", cure="see its log")
        return False
    if reply.status != http.client.CREATED:
        _could_not(notes, at, f"does not activate {probe.product}: {_refusal(reply)}")
    return reply.status == http.client.CREATED


def _list(body: bytes) -> list[object]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return []
    return found if isinstance(found, list) else []


def _could_not(notes: Notes, at: At, problem: str) -> None:
    notes.warn(
        15,
        at,
        problem,
        why="shared registrations could not be proven",
        cure="name a product with --product; where instances are verified, ask from one, with --instance-data",
    )


def _refusal(reply: Reply) -> str:
    try:
        text = json.loads(reply.body)["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        text = reply.body[:80].decode(errors="replace")
    return f"{reply.status} {shown(str(text))}"


def _shared(origin: _Peer, peers: Sequence[_Peer], probe: Probe, notes: Notes) -> None:
    others = [peer for peer in peers if peer is not origin]
    with _registered(origin, peers, probe, notes) as good:
        if not good:
            return
        late = _wait(others, probe.within_s, until=lambda peer: peer.serves())
        for peer in late:
            notes.error(
                15,
                At(file=f"https://{peer.server.name}"),
                f"does not know a registration made at {origin.server.name} after {probe.within_s:.0f} s",
                why="when the other server dies, its instances are refused here",
                cure="compare api_secret and peers of registration sharing; each must resolve and trust the other",
            )
        if late:
            return
        _same_repositories(peers, probe, notes)
        origin.ask("/connect/systems", method="DELETE")
        late = _wait(peers, probe.within_s, until=lambda peer: not peer.knows())
        for peer in late:
            notes.error(
                15,
                At(file=f"https://{peer.server.name}"),
                f"still knows a registration {probe.within_s:.0f} s after it was removed at {origin.server.name}",
                why="removed systems keep their access",
                cure="see the log of registration sharing",
            )
        if not late:
            notes.facts.append(
                f"a registration at {origin.server.name} was seen on all peers, and gone from all after its removal "
                "(probed; so it resolves and reaches them)"
            )


def _wait(peers: Sequence[_Peer], within_s: float, *, until: Callable[[_Peer], bool]) -> list[_Peer]:
    """The servers for which it did not come true in time."""
    deadline, left = time.monotonic() + within_s, list(peers)
    while True:
        waiting = []
        for peer in left:
            try:
                if not until(peer):
                    waiting.append(peer)
            except Unanswered:
                waiting.append(peer)
        left = waiting
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(min(_PAUSE_S, max(0.05, within_s / 20)))


def _same_repositories(peers: Sequence[_Peer], probe: Probe, notes: Notes) -> None:
    offered: dict[str, dict[str, tuple[str, ...]]] = {}
    for peer in peers:
        try:
            offered[peer.server.name] = _repositories(peer, probe)
        except (Unanswered, ValueError, KeyError, TypeError) as wrong:
            at = At(file=f"https://{peer.server.name}/connect/systems/products")
            notes.error(
                15,
                at,
                f"does not list its repositories: {wrong}",
                why="instances cannot be compared with their siblings",
                cure="see its log",
            )
            return
    first, *rest = offered
    for name in rest:
        different = sorted(set(offered[first].items()) ^ set(offered[name].items()))
        if different:
            notes.error(
                15,
                At(file=f"https://{name}"),
                f"does not offer the same repositories as {first}: {', '.join(shown(key) for key, _ in different[:5])}",
                why="after a failover, packages are missing",
                cure="enable the same repositories on both: 'factory region mirrors'",
            )
            return
    notes.facts.append(f"{len(offered[first])} repositories, the same on {', '.join(offered)} (probed)")
    _same_metadata(peers, offered[first], notes)


def _repositories(peer: _Peer, probe: Probe) -> dict[str, tuple[str, ...]]:
    """Path on the server -> suites, of the product's repositories."""
    reply = peer.ask(f"/connect/systems/products?{urlencode(probe.asked)}")
    if reply.status != http.client.OK:
        raise ValueError(_refusal(reply))
    found = {}
    for one in json.loads(reply.body)["repositories"]:
        parts = urlsplit(str(one["url"]))
        path = parse_qs(parts.query).get("path", [""])[0] if parts.scheme == "plugin" else parts.path
        found[path] = tuple(str(one.get("description") or "").split())
    return found


def _same_metadata(peers: Sequence[_Peer], repositories: Mapping[str, tuple[str, ...]], notes: Notes) -> None:
    """Mirrors run at different times, so another state is only a warning."""
    for path, suites in repositories.items():
        for index in ("repodata/repomd.xml", *(f"dists/{suite}/InRelease" for suite in suites)):
            seen = {}
            for peer in peers:
                with contextlib.suppress(Unanswered):
                    reply = peer.ask(f"{quote(path)}/{quote(index)}")
                    if reply.status == http.client.OK:
                        seen[peer.server.name] = hashlib.sha256(reply.body).hexdigest()
            if seen and (len(seen) < len(peers) or len(set(seen.values())) > 1):
                notes.warn(
                    15,
                    At(file=f"{path}/{index}"),
                    f"is not the same on {', '.join(peer.server.name for peer in peers)}",
                    why="until the next mirror run, a failover changes what instances see",
                    cure="mirror again; where it stays so, compare the lists of enabled repositories",
                )


# -- what is reported -------------------------------------------------------------------------------------------------


def read_report(content: bytes, *, origin: str) -> tuple[str, Mapping[str, Any]]:
    """A peer's report and the server it is of.

    Raises:
        ValueError: it is none.
    """
    try:
        found = json.loads(content)
        if found["schema"] != REPORT_SCHEMA or not isinstance(found["server"], str):
            raise ValueError(f"its schema is not {REPORT_SCHEMA}")  # noqa: TRY301
    except (ValueError, KeyError, TypeError, RecursionError) as wrong:
        raise ValueError(f"'{origin}' is no peer report: {wrong}") from wrong
    return found["server"], found


def fetch_report(url: str, regions: Sequence[Region], *, timeout_s: float = 10.0) -> bytes:
    """A peer's report from an address on an update server, trusted by the CA that the site names for it.

    Raises:
        ValueError: not https, no update server of these regions, or no answer.
    """
    parts = urlsplit(url)
    servers = {server.name: server for region in regions for server in region.update_servers}
    if parts.scheme != "https" or parts.hostname not in servers:
        raise ValueError("a report is a file, or an https address on one of the update servers")
    server = servers[parts.hostname]
    door = Door(
        address=server.addresses[0],
        name=server.name,
        trust=server.pem.read_text(),
        port=parts.port,
        timeout_s=timeout_s,
    )
    try:
        reply = door.ask(parts.path + (f"?{parts.query}" if parts.query else ""))
    except Unanswered as wrong:
        raise ValueError(str(wrong)) from wrong
    if reply.status != http.client.OK:
        raise ValueError(f"the server answers {reply.status}")
    return reply.body


def _reported(region: Region, reports: Mapping[str, Mapping[str, Any]], notes: Notes) -> None:
    mirrored: dict[str, frozenset[str]] = {}
    for server in region.update_servers:
        report, at = reports.get(server.name), At(file=f"report of {server.name}")
        if report is None:
            notes.skip(15, f"NTP, name resolution and forwarding on {server.name}: no --peer-report of it")
            continue
        _report(server, region, report, notes, at)
        listed = report.get("repositories")
        if isinstance(listed, list):
            mirrored[server.name] = frozenset(map(str, listed))
    if len(set(mirrored.values())) > 1:
        odd = sorted(frozenset.union(*mirrored.values()) - frozenset.intersection(*mirrored.values()))
        notes.error(
            15,
            At(file=f"region {region.name}"),
            f"the reports name different repositories: {', '.join(map(shown, odd[:5]))}",
            why="after a failover, packages are missing",
            cure="enable the same repositories on all: 'factory region mirrors'",
        )


def _report(server: Server, region: Region, report: Mapping[str, Any], notes: Notes, at: At) -> None:
    if report.get("ntp_synchronised") is not True:
        notes.error(
            15,
            at,
            "its clock is not set by NTP",
            why="certificates and shared registrations need it",
            cure="enable NTP",
        )
    if report.get("forwarding") is not False:
        notes.error(
            15,
            at,
            "registrations are forwarded upstream, or nobody says they are not",
            why="on-demand instances would count as subscriptions of yours",
            cure="switch forwarding off (scc.sync_systems: false in /etc/rmt.conf)",
        )
    resolves = report.get("resolves")
    for peer in region.update_servers:
        if peer.name == server.name:
            continue
        found = resolves.get(peer.name) if isinstance(resolves, dict) else None
        if not isinstance(found, list) or not set(map(str, found)) & set(peer.addresses):
            notes.error(
                15,
                at,
                f"resolves {peer.name} to {shown(str(found or 'nothing'))}, not to {', '.join(peer.addresses)}",
                why="its registrations do not reach that peer",
                cure="enter the peer in its /etc/hosts or DNS",
            )
    notes.facts.append(f"{server.name}: NTP, name resolution, repositories and forwarding as its report says")
