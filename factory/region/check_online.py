# SPDX-License-Identifier: Apache-2.0
"""What region and update servers answer right now, asked as an instance asks (rules 3 and 10 to 15, ``--online``)."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from cryptography import x509
from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from factory.model import Region, RegionClient, Server
from factory.region.certificates import certificates_in, fingerprint, pem_blocks
from factory.region.check_findings import At, Notes, shown
from factory.region.check_http import Door, Unanswered
from factory.region.check_regions import served_faults
from factory.region.config import items

FINGERPRINT = re.compile(r"[0-9A-F]{2}(:[0-9A-F]{2}){19}")
_CA_PATHS = ("/smt.crt", "/rmt.crt")
_HEALTH = "/api/health/status"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How servers are asked; ``https`` and ``http`` are the ports, which only tests change."""

    timeout_s: float = 10.0
    https: int = 443
    http: int = 80


def examine_region_servers(
    pems: Mapping[str, str], regions: Sequence[Region], client: RegionClient, notes: Notes, *, asking: Asking
) -> None:
    """Ask each region server, trusting nothing but the PEM that images pin for it.

    Args:
        pems: the PEM by region server, as ``regionsrv`` names it.
        regions: whose update servers the answers should name; empty when nobody says.
    """
    if not pems:
        notes.skip(10, "there is no region server to ask")
        return
    notes.look(10)
    notes.skipped.pop(10, None)
    for item, pem in pems.items():
        door = Door(address=item, name=item, trust=pem, port=asking.https, timeout_s=asking.timeout_s)
        at = At(file=f"https://{item}/{client.api}")
        if not _region_info(door, f"/{client.api}", notes, at):
            continue
        notes.facts.append(f"region server {item}: TLS with the pinned certificate, and an answer (probed)")
        for region in regions:
            _hinted(door, region, client, notes)


def _region_info(door: Door, path: str, notes: Notes, at: At) -> bool:
    """Whether the server answers as it should, whatever region it takes us for."""
    try:
        reply = door.ask(path)
    except Unanswered as wrong:
        notes.error(
            10,
            at,
            f"does not answer: {wrong}",
            why="instances go on to the next region server; with none left they cannot register",
            cure="start the server; when TLS is refused, compare its certificate with the PEM in the image",
        )
        return False
    if reply.status == http.client.NOT_FOUND:
        return True
    if reply.status != http.client.OK:
        notes.error(
            10,
            at,
            f"answers {reply.status}",
            why="instances take only 200",
            cure="compare 'api' with what the server serves",
        )
        return False
    return smt_info(reply.body, notes, at) is not None


def smt_info(body: bytes, notes: Notes, at: At) -> tuple[Mapping[str, str], ...] | None:
    """The update servers of a region server's answer, looked at; None when it cannot be read."""
    try:
        root = ElementTree.fromstring(body, forbid_dtd=True)
    except (ElementTree.ParseError, DefusedXmlException, LookupError, ValueError, RecursionError) as wrong:
        notes.error(
            10,
            at,
            f"its answer is not XML that can be read safely: {type(wrong).__name__} {wrong}",
            why="the client ends with a traceback",
            cure="values in regionData.cfg must not hold &, < or quotes",
        )
        return None
    found = tuple({str(name): str(value) for name, value in one.attrib.items()} for one in root)
    for server in found:
        for problem in _attribute_problems(server):
            notes.error(
                11,
                at,
                f"names an update server with {problem}",
                why="the client cannot use this server",
                cure="correct regionData.cfg: 'factory region data validate'",
            )
    return found


def _attribute_problems(server: Mapping[str, str]) -> list[str]:
    problems = [f"{name}={shown(value)!r}" for name, value in server.items() if value != value.strip()]
    problems += [f"no {name}" for name in ("SMTserverName", "fingerprint", "SMTregistryName") if not server.get(name)]
    problems += [
        f"{name}='None'" for name in ("SMTserverIP", "SMTserverIPv6") if server.get(name, "").strip() == "None"
    ]
    told = server.get("fingerprint", "")
    if told and not FINGERPRINT.fullmatch(told):
        problems.append(f"fingerprint={shown(told)!r}, which is not SHA-1 in upper case with colons")
    return problems


def _hinted(door: Door, region: Region, client: RegionClient, notes: Notes) -> None:
    """The server knows the region by its name, and names our update servers for it."""
    path = f"/{client.api}?regionHint={quote(region.name)}"
    at = At(file=f"https://{door.address}{path}")
    try:
        reply = door.ask(path)
    except Unanswered as wrong:
        notes.error(10, at, f"does not answer: {wrong}", why="instances with this hint wait", cure="see its log")
        return
    found = smt_info(reply.body, notes, at) if reply.status == http.client.OK else ()
    if found is None:
        return
    names = {server.get("SMTserverName", "") for server in found}
    told = {server.get("region", "") for server in found}
    expected = {server.name for server in region.update_servers}
    if reply.status != http.client.OK or told != {region.name.lower()}:
        notes.error(
            13,
            at,
            f"answers {reply.status}" + (f" for region {', '.join(sorted(map(shown, told)))}" if told else ""),
            why="instances of this region are sent elsewhere, or nowhere",
            cure=f"regionData.cfg needs a section [{region.name}]: 'factory region data generate'",
        )
    elif names != expected:
        notes.error(
            11,
            at,
            f"names {', '.join(sorted(map(shown, names)))} instead of {', '.join(sorted(expected))}",
            why="instances register at servers that the site file does not know",
            cure="bring regionData.cfg and site.toml together: 'factory region data diff'",
        )
    else:
        _same_prints(found, region, notes, at)


def _same_prints(found: Sequence[Mapping[str, str]], region: Region, notes: Notes, at: At) -> None:
    for server in region.update_servers:
        try:
            wanted = fingerprint(server.pem.read_text())
        except (OSError, ValueError):
            continue
        told = next(one.get("fingerprint", "") for one in found if one.get("SMTserverName") == server.name)
        if told != wanted:
            notes.error(
                12,
                at,
                f"announces the CA {shown(told)} for {server.name}; the site file's has {wanted}",
                why="the client compares it with the CA it fetches, and ends with 'Fingerprint could not be verified'",
                cure="write the fingerprint of the CA that the server serves as /rmt.crt",
            )


# -- update servers ---------------------------------------------------------------------------------------------------


def examine_update_servers(regions: Sequence[Region], client: RegionClient, notes: Notes, *, asking: Asking) -> None:
    """Ask every update server at each of its addresses."""
    servers = [(region, server) for region in regions for server in region.update_servers]
    if not servers:
        notes.skip((12, 14, 15), "there is no update server to ask: no [[region]] names one")
        return
    notes.look(12, 14, 15)
    for rule in (12, 14):
        notes.skipped.pop(rule, None)
    notes.skipped[15] = ["shared registrations are seen with --peers only"]
    for _, server in servers:
        for address in server.addresses:
            _update_server(server, address, client, notes, asking)


def _update_server(server: Server, address: str, client: RegionClient, notes: Notes, asking: Asking) -> None:
    where = f"https://{_bracketed(address)}"
    unverified = Door(address=address, name=server.name, port=asking.https, timeout_s=asking.timeout_s)
    try:
        authority = server.pem.read_text()
        wanted = fingerprint(authority)
    except (OSError, ValueError):
        notes.skip(12, f"the CA of {server.name} cannot be read")
        return
    if not _served_authority(unverified, wanted, notes, where, ipv6=":" in address):
        return
    if not client.https_only:
        _plain_authority(server, address, notes, asking)
    verified = Door(address=address, name=server.name, trust=authority, port=asking.https, timeout_s=asking.timeout_s)
    _health(unverified, verified, server, notes, where)


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _served_authority(door: Door, wanted: str, notes: Notes, where: str, *, ipv6: bool) -> bool:
    """Whether the server can be reached at all; what it serves as its CA is compared on the way."""
    served = {}
    for path in _CA_PATHS:
        try:
            reply = door.ask(path)
        except Unanswered as wrong:
            notes.error(
                14 if ipv6 else 15,
                At(file=where + path),
                f"does not answer: {wrong}",
                why="instances move on to a sibling; with none left they cannot register"
                + (" (IPv6 is asked first)" if ipv6 else ""),
                cure="start the server, open port 443" + (", or do not name its IPv6 address" if ipv6 else ""),
            )
            return False
        if reply.status == http.client.OK:
            served[path] = reply.body.decode(errors="replace")
    if ipv6 and "/smt.crt" not in served:
        notes.error(
            14,
            At(file=f"{where}/smt.crt"),
            "is not served on IPv6",
            why="the client takes an IPv6 address only when /smt.crt answers there",
            cure="serve the CA as /smt.crt too",
        )
    if not served:
        notes.error(
            12,
            At(file=f"{where}/rmt.crt"),
            "neither /smt.crt nor /rmt.crt is served",
            why="the client cannot fetch the CA and exits with 1",
            cure="serve the CA certificate as both",
        )
    for path, text in served.items():
        _compare(text, wanted, notes, At(file=where + path))
    return True


def _compare(text: str, wanted: str, notes: Notes, at: At) -> None:
    why = "the client ends with 'Fingerprint could not be verified'"
    try:
        found = fingerprint(text)
    except ValueError as wrong:
        notes.error(12, at, f"is not a certificate: {wrong}", why=why, cure="serve the CA certificate as PEM")
        return
    if found != wanted:
        cure = "serve the CA that images and region data know, or announce this one"
        notes.error(12, at, f"is the CA {found}, not {wanted}", why=why, cure=cure)
    if len(pem_blocks(text)) > 1:
        notes.error(
            12,
            at,
            f"holds {len(pem_blocks(text))} certificates",
            why="only the first one is compared and trusted",
            cure="serve the CA certificate alone",
        )


def _plain_authority(server: Server, address: str, notes: Notes, asking: Asking) -> None:
    """Where httpsOnly is not true, the CA must also be there on port 80."""
    door = Door(address=address, name=server.name, tls=False, port=asking.http, timeout_s=asking.timeout_s)
    answers = []
    for path in _CA_PATHS:
        try:
            answers.append(str(door.ask(path).status))
        except Unanswered as wrong:
            answers.append(str(wrong))
            break
    if str(int(http.client.OK)) not in answers:
        notes.error(
            3,
            At(file=f"http://{_bracketed(address)}/smt.crt"),
            f"is not served on port 80: {', '.join(answers)}",
            why="without httpsOnly = true the client fetches the CA there, and exits with 1",
            cure="set httpsOnly = true, or open port 80",
        )


def _health(unverified: Door, verified: Door, server: Server, notes: Notes, where: str) -> None:
    at = At(file=where + _HEALTH)
    try:
        reply = unverified.ask(_HEALTH)
    except Unanswered as wrong:
        notes.error(15, at, f"does not answer: {wrong}", why="instances take this server for dead", cure="see its log")
        return
    _shown_certificate(reply.certificate, server, notes, At(file=where))
    try:
        verified.ask(_HEALTH)
    except Unanswered as wrong:
        notes.error(
            12,
            At(file=f"https://{server.name} at {verified.address}"),
            f"TLS with the announced CA fails: {wrong}",
            why="after the CA is imported, every request by name fails",
            cure="the server's certificate must chain to the CA and name the server",
        )
    if reply.status == http.client.NOT_FOUND:
        notes.facts.append(f"{server.name} at {verified.address}: no health status; /rmt.crt shows that it lives")
        return
    try:
        state = json.loads(reply.body)["state"] if reply.status == http.client.OK else f"status {reply.status}"
    except (ValueError, KeyError, TypeError, RecursionError):
        state = "no JSON with a 'state'"
    if state != "online":
        notes.error(
            15,
            at,
            f"says {shown(str(state))!r} instead of 'online'",
            why="instances take this server for dead",
            cure="see the server's log",
        )
    else:
        notes.facts.append(f"{server.name} at {verified.address}: online (probed)")


def _shown_certificate(der: bytes, server: Server, notes: Notes, at: At) -> None:
    try:
        served = x509.load_der_x509_certificate(der)
        authority = certificates_in(server.pem.read_text())[0]
        served_faults(served, authority, server, notes, at)
    except ValueError as wrong:
        notes.error(
            12, at, f"its certificate cannot be read: {wrong}", why="TLS by name fails", cure="make a new certificate"
        )


def pinned(regions: Sequence[Region], read: Callable[[Server], str]) -> Mapping[str, str]:
    """The PEM by region server, for those that can be read."""
    found = {}
    for item, server in items(regions).items():
        try:
            found[item] = read(server)
        except (OSError, UnicodeDecodeError):
            continue
    return found
