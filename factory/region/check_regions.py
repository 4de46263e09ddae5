# SPDX-License-Identifier: Apache-2.0
"""The regions of a site, before any server is asked (rules 11 to 15, and how many servers there are)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from factory.errors import Fault, InputFault
from factory.model import Region, RegionClient, Server
from factory.region.certificates import certificates_in, covers, pem_blocks
from factory.region.check_config import OFF, count_servers
from factory.region.check_findings import At, Notes
from factory.region.config import region_data, registry
from factory.region.region_rules import check_regions
from factory.region.server import parse_region_data

_RULES_BY_WORDS = (("can never be another host", 14), ("is not a CA certificate", 12))
_WHY = "the region server refuses to start, or sends instances where nobody answers"


def examine_regions(regions: Sequence[Region], client: RegionClient, notes: Notes, *, file: str, now: datetime) -> None:
    """Look at what a region server would be given for these regions, and at how many servers they have."""
    notes.look(11, 12, 13, 14, 15)
    notes.skip(12, "what update servers serve is seen with --online only")
    notes.skip(14, "whether IPv6 answers is seen with --online only")
    notes.skip(15, "health is seen with --online, shared registrations with --peers")
    found = check_regions(regions, place=file)
    for fault in found:
        _take(fault, notes)
    if not found:
        _round_trip(regions, notes, file)
    if not client.metadata_server:
        servers = {server.name for region in regions for server in region.servers}
        count_servers(notes, 2, At(file=file, key="region"), len(servers), what="region server")
    for region in regions:
        at = At(file=file, key=f"region.{region.name}")
        if region.update_servers:  # none at all is told above
            count_servers(notes, 11, at, len(region.update_servers), what="update server")
        _reachable(region, client, notes, at)
        _siblings(region, notes, at)
        for server in region.update_servers:
            _authority(server, notes, At(file=file, key=f"region.{region.name} server {server.name}"), now=now)


def _take(fault: Fault, notes: Notes) -> None:
    """A fault of the shared rules, as a finding; its cure says what happens, then what to do."""
    rule = next((number for words, number in _RULES_BY_WORDS if words in fault.problem), 11)
    why, separator, cure = fault.cure.rpartition("; ")
    file, _, key = fault.place.partition(" ")
    notes.error(
        rule, At(file=file, key=key), fault.problem, why=why if separator else _WHY, cure=cure or "see the problem"
    )


def _round_trip(regions: Sequence[Region], notes: Notes, file: str) -> None:
    """What we write for a region server is what a region server reads."""
    try:
        parse_region_data(region_data(regions), place="regionData.cfg")
    except InputFault as refused:
        for fault in refused.faults:
            key = f"({fault.place})"
            notes.error(11, At(file=file, key=key), fault.problem, why=_WHY, cure=fault.cure)


def _reachable(region: Region, client: RegionClient, notes: Notes, at: At) -> None:
    if region.networks:
        return
    if client.instance_args in OFF:
        notes.error(
            13,
            at,
            "has no networks, and images send no region hint",
            why="its instances get 404 from every region server",
            cure="name its networks, or set instanceArgs to a region hint plugin",
        )
    else:
        notes.advise(
            13,
            at,
            "has no networks; only the hint finds it",
            why="an instance whose metadata service is silent gets 404",
            cure="name its networks too",
        )


def _siblings(region: Region, notes: Notes, at: At) -> None:
    domains = {server.name.lower().partition(".")[2] for server in region.update_servers}
    if len(domains) > 1:
        notes.error(
            15,
            at,
            f"its update servers are in several domains: {', '.join(sorted(domains))}",
            why="when an instance moves to a sibling, /etc/hosts keeps the old server, which is removed by domain",
            cure="give all update servers of a region the same domain",
        )


def _authority(server: Server, notes: Notes, at: At, *, now: datetime) -> None:
    """The CA that region data announces, and the server's own certificate where we have it."""
    try:
        text = server.pem.read_text()
        found = certificates_in(text)
    except (OSError, ValueError):
        return  # told by the shared rules
    if "PRIVATE KEY-----" in text:
        notes.error(
            12, at, f"'{server.pem.name}' holds a private key", why="the CA's key would travel", cure="remove it"
        )
    if len(pem_blocks(text)) > 1:
        notes.error(
            12,
            at,
            f"'{server.pem.name}' holds {len(found)} certificates",
            why="only the first one is compared with the fingerprint, and only it becomes trusted",
            cure="serve the CA certificate alone",
        )
    if not found:
        return
    authority = found[0]
    if not authority.not_valid_before_utc <= now <= authority.not_valid_after_utc:
        notes.error(
            12,
            at,
            f"its CA is valid from {authority.not_valid_before_utc:%Y-%m-%d} "
            f"to {authority.not_valid_after_utc:%Y-%m-%d}",
            why="no instance can trust what this server shows",
            cure="renew the CA certificate",
        )
    if server.certificate is not None:
        served_faults(certificates_in(server.certificate.read_text())[0], authority, server, notes, at)


def served_faults(served: x509.Certificate, authority: x509.Certificate, server: Server, notes: Notes, at: At) -> None:
    """What is wrong with the certificate that an update server shows."""
    try:
        served.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        notes.error(
            12,
            at,
            "its certificate does not chain to the CA that region data announces",
            why="after the CA is imported, all verified requests to this server fail",
            cure="sign the server's certificate with that CA, or announce the other CA's fingerprint",
        )
    for name in dict.fromkeys((server.name, registry(server))):
        if not covers(served, name):
            notes.error(
                12,
                at,
                f"its certificate does not name {name} in subjectAltName",
                why="requests by that name fail at TLS",
                cure="make a certificate with the server's and the registry's name",
            )
