# SPDX-License-Identifier: Apache-2.0
"""The certificates that images pin (rules 8 and 9)."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import pairwise

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa

from factory.region import ini
from factory.region.certificates import certificates_in, covers, pem_blocks
from factory.region.check_config import item_problem, option, split
from factory.region.check_findings import At, Notes
from factory.region.check_root import Root

_MIN_RSA_BITS = 2048
_MIN_EC_BITS = 256
_MAX_CERTIFICATES = 2
_REFUSED = "TLS to this region server fails on every instance"


def examine_pems(
    root: Root,
    read: ini.Ini,
    notes: Notes,
    *,
    file: str,
    expected: Mapping[str, str] | None,
    now: datetime,
    until: datetime,
) -> None:
    """Look at the PEM of every region server that a configuration lists.

    Args:
        expected: what each region server's PEM should be, where the site says so.
        until: how long instances of the image may boot for the first time.
    """
    if option(read, "server", "metadata_server") is not None:
        notes.skip((8, 9), "metadata_server replaces the region servers")
        return
    location, servers = option(read, "server", "certlocation"), option(read, "server", "regionsrv")
    if location is None or servers is None or not servers.value or not location.value.startswith("/"):
        notes.skip((8, 9), "the configuration names no region server, or no absolute certLocation")
        return
    notes.look(8, 9)
    listed = [item for item in dict.fromkeys(split(servers.value)) if not item_problem(item)]
    if expected is not None:
        _same_servers(listed, expected, notes, At(file=file, line=servers.line, key="server.regionsrv"))
    folder = location.value.strip("/")
    for item in listed:
        path = f"{folder}/{item}.pem"
        content = root.read(path)
        if content is None:
            notes.error(
                8,
                At(file=path),
                f"region server {item} has no readable PEM{_near(root, folder, item)}",
                why="the client skips a server without one, with a word in the debug log only",
                cure="put the server's certificate there, spelled exactly so",
            )
            continue
        text = content.decode(errors="replace")
        examine_pem(text, item, notes, file=path, now=now, until=until)
        if expected is not None and item in expected:
            _same_certificates(text, expected[item], item, notes, At(file=path))
    for path in root.glob(f"{folder}/*.pem"):
        if path.removeprefix(f"{folder}/").removesuffix(".pem") not in listed:
            notes.warn(
                8,
                At(file=path),
                "pins no region server of the configuration",
                why="nobody reads it; most likely a name is misspelled",
                cure="remove it, or list the server in regionsrv",
            )


def _same_certificates(text: str, wanted: str, item: str, notes: Notes, at: At) -> None:
    """The image should pin what the site names; in a renewal an older image pins only a part of that."""
    pinned, named = set(pem_blocks(text)), set(pem_blocks(wanted))
    if pinned & named:
        if named - pinned:
            notes.warn(
                8,
                at,
                f"lacks a certificate that the site file names for {item}",
                why="from the day the server shows it, TLS fails on instances of this image",
                cure="build the image again before the server is switched",
            )
    elif pinned:
        notes.error(
            8,
            at,
            f"is not the certificate that the site file names for {item}",
            why="the server shows another one, and TLS fails",
            cure="describe and build the image again",
        )


def _near(root: Root, folder: str, item: str) -> str:
    """Another spelling of the same item among the files, for people who look for the mistake."""
    for path in root.glob(f"{folder}/*"):
        stem = path.removeprefix(f"{folder}/").removesuffix(".pem")
        try:
            same = ipaddress.ip_address(stem) == ipaddress.ip_address(item)
        except ValueError:
            same = stem.lower() == item.lower() or stem.strip("[]") == item
        if same and stem != item:
            return f" (there is '{stem}.pem')"
    return ""


def _same_servers(listed: Sequence[str], expected: Mapping[str, str], notes: Notes, at: At) -> None:
    for item in sorted(set(expected) - set(listed)):
        notes.error(
            2,
            at,
            f"does not name region server {item}",
            why="the image knows fewer servers than the site has",
            cure="drop the overlay's own file; the factory writes it",
        )
    for item in sorted(set(listed) - set(expected)):
        notes.error(
            2,
            at,
            f"{item} is no region server of this site",
            why="instances would ask a stranger",
            cure="drop the overlay's own file; the factory writes it",
        )


def examine_pem(text: str, item: str, notes: Notes, *, file: str, now: datetime, until: datetime) -> None:
    """Look at the PEM file that pins the region server ``item``."""
    notes.look(9)
    if "PRIVATE KEY-----" in text:
        line = text[: text.index("PRIVATE KEY-----")].count("\n") + 1
        notes.error(
            9,
            At(file=file, line=line),
            "holds a private key",
            why="everybody with the image can play the server",
            cure="remove it, and make a new key and certificate",
        )
    blocks = pem_blocks(text)
    if not 1 <= len(blocks) <= _MAX_CERTIFICATES:
        notes.error(
            9,
            At(file=file, line=1),
            f"holds {len(blocks)} certificates",
            why=_REFUSED if not blocks else "more than the server's own are trusted",
            cure="write the server's, or two during a renewal, the old one first",
        )
        return
    try:
        found = certificates_in(text)
    except ValueError as wrong:
        notes.error(
            9, At(file=file, line=1), f"is not a certificate: {wrong}", why=_REFUSED, cure="write the server's PEM"
        )
        return
    places, end = [], 0
    for block in blocks:
        start = text.index(block.strip(), end)
        end = start + 1
        places.append(At(file=file, line=text[:start].count("\n") + 1))
    for certificate, at in zip(found, places, strict=True):
        _one(certificate, item, notes, at)
    _times(found, notes, places, now=now, until=until)


def _times(
    found: Sequence[x509.Certificate], notes: Notes, places: Sequence[At], *, now: datetime, until: datetime
) -> None:
    for (old, new), at in zip(pairwise(found), places, strict=False):
        if old == new:
            notes.error(9, at, "holds the same certificate twice", why="nothing is renewed", cure="remove one")
        elif old.not_valid_after_utc > new.not_valid_after_utc:
            notes.error(
                9,
                at,
                "holds the newer certificate first",
                why="programs that read only the first certificate refuse the old server, which still answers",
                cure="during a renewal the old one comes first",
            )
        if new.not_valid_before_utc > max(old.not_valid_after_utc, now):
            notes.error(
                9,
                places[-1],
                f"is not valid before {new.not_valid_before_utc:%Y-%m-%d}, but the old one ends earlier",
                why="in between no certificate is valid, and TLS fails",
                cure="make a certificate that is valid now",
            )
    if len(found) > 1 and found[0].not_valid_after_utc <= now:
        notes.warn(
            9,
            places[0],
            f"expired on {found[0].not_valid_after_utc:%Y-%m-%d}",
            why="only the second certificate still works",
            cure="end the renewal: leave the new certificate alone in the file",
        )
    newest, at = max(zip(found, places, strict=True), key=lambda one: one[0].not_valid_after_utc)
    if newest.not_valid_before_utc > now and (len(found) == 1 or found[0].not_valid_after_utc <= now):
        notes.error(
            9,
            at,
            f"is not valid before {newest.not_valid_before_utc:%Y-%m-%d}",
            why="TLS fails until then",
            cure="wait, or make one that is valid now",
        )
    if newest.not_valid_after_utc <= now:
        notes.error(
            9,
            at,
            f"expired on {newest.not_valid_after_utc:%Y-%m-%d}",
            why=_REFUSED,
            cure="renew the certificate: factory region cert --renew",
        )
    elif newest.not_valid_after_utc < until:
        notes.error(
            9,
            at,
            f"expires on {newest.not_valid_after_utc:%Y-%m-%d}; the image may live until {until:%Y-%m-%d}",
            why="instances started later cannot register",
            cure="renew the certificate first: factory region cert --renew",
        )


def _one(certificate: x509.Certificate, item: str, notes: Notes, at: At) -> None:
    if certificate.version is not x509.Version.v3:
        notes.error(
            9,
            at,
            "is X.509 version 1",
            why="Python 3.13 and later refuse it as a CA certificate",
            cure="make a version 3 certificate: factory region cert",
        )
    try:
        covered = covers(certificate, item)
    except ValueError:
        covered = False
    if not covered:
        notes.error(
            9,
            at,
            f"does not name {item} in subjectAltName",
            why="TLS checks the name, not the common name, and fails",
            cure="make one that names it, an address as IP and a name as DNS: factory region cert",
        )
    if _weak(certificate.public_key()):
        notes.error(
            9,
            at,
            "has a weak key",
            why="OpenSSL's usual security level refuses it",
            cure="use RSA with 2048 bits or more, or ECDSA P-256 or better",
        )
    try:
        algorithm = certificate.signature_hash_algorithm
    except ValueError:
        algorithm = hashes.MD5()  # one that nobody knows is no better  # noqa: S303
    if isinstance(algorithm, (hashes.SHA1, hashes.MD5)):
        notes.error(9, at, f"is signed with {algorithm.name}", why="clients refuse it", cure="use SHA-256")


def _weak(key: object) -> bool:
    if isinstance(key, rsa.RSAPublicKey):
        return key.key_size < _MIN_RSA_BITS
    if isinstance(key, ec.EllipticCurvePublicKey):
        return key.curve.key_size < _MIN_EC_BITS
    return not isinstance(key, (ed25519.Ed25519PublicKey, ed448.Ed448PublicKey))
