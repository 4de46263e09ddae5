# SPDX-License-Identifier: Apache-2.0
"""Update servers that share registrations: each one's section of ``/etc/rmt.conf``, and the peers' CA by fingerprint.

RMT reads ``regsharing`` (engines/registration_sharing in github.com/SUSE/rmt): whom it tells of every registration, the
secret that all of them show each other, and ``ca_path``, a folder of CA certificates by OpenSSL's hashed names.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from factory.errors import Fault, InputFault, NotGood, RegionError
from factory.model import Region, Server
from factory.region.certificates import pem_blocks
from factory.region.check_http import Door, Unanswered
from factory.system.files import write_whole
from factory.system.run import run

CA_PATH = "/etc/rmt/ssl/peers"
DATA_DIR = "/var/lib/rmt/regsharing"
SECRET_CHARACTERS = 32
_SECRET = re.compile(rf"[A-Za-z0-9_-]{{{SECRET_CHARACTERS},128}}", re.ASCII)
_PIN = re.compile(r"(sha1:|sha256:)?([0-9a-f]{40}|[0-9a-f]{64})")
_SHA1_DIGITS = 40
_CA_PATHS = ("/rmt.crt", "/smt.crt")
_OK = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """What one update server needs: whom it tells, and whose CA it has to trust for that."""

    server: str
    region: str
    peers: tuple[Server, ...]

    def section(self, secret: str) -> str:
        """Its section of ``/etc/rmt.conf``; holds the secret, so the file is for root only."""
        body = {
            "regsharing": {
                "peers": [peer.name for peer in self.peers],
                "api_secret": secret,
                "data_dir": DATA_DIR,
                "ca_path": CA_PATH,
            }
        }
        return yaml.safe_dump(body, sort_keys=False, default_flow_style=False)


def sharing(regions: Sequence[Region]) -> tuple[Sharing, ...]:
    """Every update server with its peers: the other ones of its region."""
    return tuple(
        Sharing(
            server=server.name,
            region=region.name,
            peers=tuple(peer for peer in region.update_servers if peer.name != server.name),
        )
        for region in regions
        for server in region.update_servers
    )


def shared_secret(path: Path) -> str:
    """The secret of a region's servers, from a file that only its owner reads; made when there is none.

    Raises:
        InputFault: others can read the file, or the secret is too weak to stand between the world and registrations.
    """
    if not path.exists():
        write_whole(path, secrets.token_urlsafe(SECRET_CHARACTERS) + "\n", mode=0o600)
    if path.stat().st_mode & 0o077:
        fault = Fault(place=str(path), problem="others can read it", cure="chmod 600")
        raise InputFault("the secret is no secret", faults=(fault,))
    found = path.read_text().strip()
    if not _SECRET.fullmatch(found):
        cure = f"{SECRET_CHARACTERS} to 128 letters, digits, '-' and '_'; remove the file to have one made"
        raise InputFault(
            "the secret cannot be used", faults=(Fault(place=str(path), problem="has the wrong form", cure=cure),)
        )
    return found


# -- CA certificates by fingerprint ------------------------------------------------------------------------------------


def pin_of(pem: str) -> str:
    """The SHA-256 fingerprint of the first certificate of a PEM, to pin it by.

    Raises:
        ValueError: there is no certificate.
    """
    return _first(pem).fingerprint(hashes.SHA256()).hex()


def normal_pin(text: str) -> str:
    """A fingerprint as people write it, SHA-256 or (as region data has it) SHA-1, as lower-case hex.

    Raises:
        ValueError: it is neither.
    """
    found = _PIN.fullmatch(text.strip().lower().replace(":", "").replace("sha1", "sha1:").replace("sha256", "sha256:"))
    if found is None or (found[1] and (found[1] == "sha1:") != (len(found[2]) == _SHA1_DIGITS)):
        raise ValueError(f"{text!r} is neither a SHA-256 nor a SHA-1 fingerprint")
    return found[2]


def pinned(body: bytes, pin: str, *, server: str) -> str:
    """The CA certificate in what a server sent, when it is the pinned one and nothing else is sent along.

    Raises:
        NotGood: it is another certificate, not one, or more than one.
    """
    try:
        text = body.decode("ascii")
        certificate = _first(text)
    except (UnicodeDecodeError, ValueError):
        raise NotGood(f"'{server}' sends no certificate as its CA", hint="is it an update server?") from None
    algorithm = hashes.SHA1() if len(pin) == _SHA1_DIGITS else hashes.SHA256()  # noqa: S303 region data has SHA-1
    found = certificate.fingerprint(algorithm).hex()
    if not hmac.compare_digest(found, pin):
        raise NotGood(
            f"the CA certificate of '{server}' is not the pinned one",
            facts=(("pinned", pin), ("found", found)),
            hint="somebody else answers there, or the CA was changed; ask its administrator before you trust it",
        )
    if len(pem_blocks(text)) != 1:
        raise NotGood(f"'{server}' sends more than its CA certificate", hint="clients hash the first one only")
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _first(text: str) -> x509.Certificate:
    blocks = pem_blocks(text)
    if not blocks:
        raise ValueError("no certificate")
    return x509.load_pem_x509_certificate(blocks[0].encode())


def fetch_ca(server: Server, *, pin: str, port: int = 443, timeout_s: float = 10.0) -> str:
    """Fetch an update server's CA certificate; the fingerprint decides whether it is trusted, and then TLS with it.

    Raises:
        NotGood: another certificate than the pinned one, or the server does not show one of that CA for its name.
        RegionError: the server does not answer.
    """
    reasons = []
    for address in server.addresses or (server.name,):
        for path in _CA_PATHS:
            door = Door(address=address, name=server.name, port=port, timeout_s=timeout_s)
            try:
                reply = door.ask(path)
            except Unanswered as silent:
                reasons.append(f"https://{address}{path}: {silent}")
                continue
            if reply.status != _OK:
                reasons.append(f"https://{address}{path}: status {reply.status}")
                continue
            pem = pinned(reply.body, pin, server=server.name)
            _expect_chain(server, address, pem, port=port, timeout_s=timeout_s)
            return pem
    raise RegionError(f"'{server.name}' gives no CA certificate", facts=tuple(("tried", reason) for reason in reasons))


def _expect_chain(server: Server, address: str, pem: str, *, port: int, timeout_s: float) -> None:
    door = Door(address=address, name=server.name, trust=pem, port=port, timeout_s=timeout_s)
    try:
        door.ask("/api/health/status")
    except Unanswered as refused:
        raise NotGood(
            f"'{server.name}' does not show a certificate of its own CA for its name",
            facts=(("address", address), ("says", str(refused))),
            hint="sharing would fail the same way: renew the server certificate",
        ) from refused


def write_ca_folder(folder: Path, authorities: Sequence[str]) -> tuple[Path, ...]:
    """Write CA certificates by OpenSSL's hashed names, as ``ca_path`` needs them; the same one only once."""
    made: list[Path] = []
    taken: dict[str, int] = {}
    for pem in sorted(set(authorities)):
        hashed = run(["openssl", "x509", "-noout", "-subject_hash"], stdin=pem.encode(), timeout_s=20).stdout.strip()
        number = taken.get(hashed, 0)
        taken[hashed] = number + 1
        path = folder / f"{hashed}.{number}"
        write_whole(path, pem)
        made.append(path)
    return tuple(made)


# -- files ------------------------------------------------------------------------------------------------------------


def write_sharing(
    found: Sequence[Sharing],
    folder: Path,
    *,
    secret: str,
    pins: Mapping[str, str],
    offline: bool,
    say: Callable[[str], None],
) -> tuple[Path, ...]:
    """Write, for each server that has peers, its section of ``rmt.conf`` and the folder of its peers' CAs.

    Args:
        pins: the fingerprint of a server's CA by the server's name; without one, that of the site's PEM counts.
        offline: take the CA from the site's PEM instead of from the server.

    Raises:
        InputFault: a pin is for no server.
        NotGood: a server shows another CA than the pinned one; nothing was written.
        RegionError: a server does not answer; nothing was written.
    """
    peers = {peer.name: peer for one in found for peer in one.peers}
    if strange := sorted(pins.keys() - peers.keys()):
        raise InputFault(f"--pin names no update server with peers: {', '.join(strange)}")
    authorities = {name: _authority(peer, pins.get(name), offline=offline) for name, peer in peers.items()}
    made: list[Path] = []
    for one in found:
        if not one.peers:
            say(f"{one.server}: no peers in region {one.region}; with one server there is nothing to fall back to")
            continue
        section = folder / one.server / "regsharing.yml"
        write_whole(section, one.section(secret), mode=0o600)
        made.append(section)
        made += write_ca_folder(
            folder / one.server / CA_PATH.lstrip("/"), [authorities[peer.name] for peer in one.peers]
        )
    return tuple(made)


def _authority(server: Server, pin: str | None, *, offline: bool) -> str:
    text = server.pem.read_text()
    wanted = pin or pin_of(text)
    return pinned(text.encode(), wanted, server=server.name) if offline else fetch_ca(server, pin=wanted)
