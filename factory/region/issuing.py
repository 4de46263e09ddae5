# SPDX-License-Identifier: Apache-2.0
"""Keys and certificates of region servers as files, and their renewal without a gap.

The layout is the one of SUSE's ``genRegionServerCert``: ``ssl.crt/HOST.crt`` and ``ssl.key/HOST.key`` for the server,
``regionServCert/HOST.pem`` for images. Nothing is overwritten unless it is asked for. A renewal makes a successor
beside the files in use (``HOST.new.crt``, ``HOST.new.key``) and a PEM with both certificates, the old one first;
instances that carry it accept the server before and after it is switched. Ending the renewal leaves the new one alone.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from factory.errors import InputFault
from factory.region.certificates import Issued, certificates_in, issue, pem_blocks, subject_of
from factory.region.check_config import item_problem
from factory.system.files import write_whole
from factory.system.lock import exclusive

KEY_TYPES = ("rsa", "ecdsa", "ecdsa-p384")
VALID_DAYS = 10 * 365


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A certificate to make; ``host`` names the files and is the common name.

    Without ``key_type`` a first key is RSA, and a renewed one of the old one's kind. What ``about`` does not tell of
    the subject is kept in a renewal too.
    """

    host: str
    names: Sequence[str] = ()
    addresses: Sequence[str] = ()
    key_type: str = ""
    days: int = VALID_DAYS
    about: Mapping[str, str] = field(default_factory=dict)

    def issue(self, now: datetime) -> Issued:
        """Make key and certificate.

        Raises:
            InputFault: the subject cannot be written.
        """
        try:
            return issue(
                self.host,
                now=now,
                days=self.days,
                names=self.names,
                addresses=self.addresses,
                key_type=self.key_type or KEY_TYPES[0],
                about=self.about,
            )
        except (ValueError, OverflowError) as wrong:
            raise InputFault(f"no certificate can be made for '{self.host}'", hint=str(wrong)) from wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Where the files of one server are; ``pem`` is what images get."""

    host: str
    folder: Path
    pem: Path

    @classmethod
    def of(cls, host: str, folder: Path, pem: Path | None = None) -> Files:
        """The usual places below ``folder``; ``pem`` where the site file names another for the PEM."""
        if item_problem(host):
            raise InputFault(f"'{host}' {item_problem(host)}", hint="name a region server by name or address")
        return cls(host=host, folder=folder, pem=pem or folder / "regionServCert" / f"{host}.pem")

    def certificate(self, stage: str = "") -> Path:
        """``ssl.crt/HOST.crt``; ``stage`` is ``.new`` or ``.old`` in a renewal."""
        return self.folder / "ssl.crt" / f"{self.host}{stage}.crt"

    def key(self, stage: str = "") -> Path:
        """``ssl.key/HOST.key``."""
        return self.folder / "ssl.key" / f"{self.host}{stage}.key"

    @property
    def lock(self) -> Path:
        return self.folder / ".lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What was made, for people and for scripts; ``expires`` lists what the PEM holds, in its order."""

    host: str
    certificate: Path
    key: Path
    pem: Path
    expires: tuple[datetime, ...]
    sha256: tuple[str, ...]


def make(wanted: Wanted, files: Files, *, now: datetime) -> Made:
    """Make a first key and certificate.

    Raises:
        InputFault: there is one already.
    """
    with _alone(files):
        existing = [path for path in (files.pem, files.certificate(), files.key()) if path.exists()]
        if existing == [files.certificate(), files.key()]:  # a crash came before the last step
            write_whole(files.pem, files.certificate().read_bytes())
            return _made(files, "")
        if existing:
            raise InputFault(
                f"'{existing[0]}' exists already: nothing was changed",
                hint="--renew makes a successor that clients accept beside it; to start anew, remove the files",
            )
        issued = wanted.issue(now)
        _write_pair(files, issued, "")
        write_whole(files.pem, issued.pem)  # last: no image pins a certificate whose key was lost in a crash
        return _made(files, "")


def renew(wanted: Wanted, files: Files, *, now: datetime) -> Made:
    """Make the successor of a certificate, for the names it has and those wanted, and a PEM that holds both.

    Raises:
        InputFault: there is none to renew, or a renewal is under way.
    """
    with _alone(files):
        text = _pem(files)
        found = certificates_in(text)
        if len(found) > 1 and found[0].not_valid_after_utc > now:
            raise InputFault(
                f"'{files.pem}' holds two certificates already: a renewal is under way",
                hint="when the server shows the new one, end it with --finish; then renew again",
            )
        if not found:
            raise InputFault(f"'{files.pem}' holds no certificate", hint="write the server's current one there")
        kept = [one for one in names_of(found[-1]) if one not in {*wanted.names, *wanted.addresses}]
        issued = replace(
            wanted,
            names=[*wanted.names, *(one for one in kept if not _is_address(one))],
            addresses=[*wanted.addresses, *(one for one in kept if _is_address(one))],
            key_type=wanted.key_type or _key_type(found[-1]),
            about={**subject_of(found[-1]), **{name: text for name, text in wanted.about.items() if text}},
        ).issue(now)
        if issued.certificate.not_valid_after_utc <= found[-1].not_valid_after_utc:
            raise InputFault(f"the successor of '{files.pem}' would expire before it", hint="give it more days: --days")
        _write_pair(files, issued, ".new")
        write_whole(files.pem, pem_blocks(text)[-1].encode() + issued.pem)
        return _made(files, ".new")


def finish(files: Files) -> Made:
    """End a renewal: the new certificate alone, and its files under the usual names; the old ones become ``.old``.

    Raises:
        InputFault: no renewal is under way.
    """
    with _alone(files):
        blocks = pem_blocks(_pem(files))
        moved = [(files.key(".new"), files.key(), files.key(".old"))]
        moved += [(files.certificate(".new"), files.certificate(), files.certificate(".old"))]
        if len(blocks) < 2 and not any(new.exists() for new, _, _ in moved):  # noqa: PLR2004 a renewal has two
            raise InputFault(f"no renewal of '{files.host}' is under way", hint="--renew begins one")
        for new, current, old in moved:  # after a crash, what was moved already is not there any more
            if new.exists():
                if current.exists():
                    current.replace(old)
                new.replace(current)
        write_whole(files.pem, blocks[-1])
        return _made(files, "")


def _alone(files: Files) -> AbstractContextManager[None]:
    files.folder.mkdir(parents=True, exist_ok=True)
    return exclusive(files.lock, what=f"the certificates in '{files.folder}'")


def _pem(files: Files) -> str:
    try:
        return files.pem.read_text()
    except (OSError, UnicodeDecodeError) as unreadable:
        raise InputFault(
            f"there is no certificate of '{files.host}' to renew", hint=f"'{files.pem}': {unreadable}"
        ) from unreadable


def _write_pair(files: Files, issued: Issued, stage: str) -> None:
    files.key(stage).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_whole(files.key(stage), issued.key_pem, mode=0o600)
    write_whole(files.certificate(stage), issued.pem)


def _made(files: Files, stage: str) -> Made:
    found = certificates_in(files.pem.read_text())
    return Made(
        host=files.host,
        certificate=files.certificate(stage),
        key=files.key(stage),
        pem=files.pem,
        expires=tuple(one.not_valid_after_utc for one in found),
        sha256=tuple(one.fingerprint(hashes.SHA256()).hex() for one in found),
    )


def names_of(certificate: x509.Certificate) -> list[str]:
    """The DNS names and addresses in subjectAltName."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    return [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]


def _key_type(certificate: x509.Certificate) -> str:
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return "rsa"
    return "ecdsa-p384" if isinstance(key.curve, ec.SECP384R1) else "ecdsa"


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


# -- who carries what -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """One image's PEM for one region server; instances of the image may boot for the first time until ``until``."""

    carrier: str
    item: str
    pem: str
    until: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Expiry:
    """One certificate: what it pins, until when, who carries it, and who of them outlives everything they pin."""

    sha256: str
    items: tuple[str, ...]
    expires: datetime
    days_left: int
    carried_by: tuple[str, ...]
    outlived_by: tuple[str, ...]


def expiries(pins: Sequence[Pin], *, now: datetime) -> tuple[Expiry, ...]:
    """Every certificate that images carry, the first to expire first."""
    certificates: dict[str, x509.Certificate] = {}
    items: dict[str, list[str]] = {}
    carried: dict[str, list[str]] = {}
    outlived: dict[str, list[str]] = {}
    for pin in pins:
        try:
            found = certificates_in(pin.pem)
        except ValueError:
            continue
        for one in found:
            name = one.fingerprint(hashes.SHA256()).hex()
            certificates[name] = one
            items.setdefault(name, []).append(pin.item)
            carried.setdefault(name, []).append(pin.carrier)
            last = one.not_valid_after_utc == max(other.not_valid_after_utc for other in found)
            if last and one.not_valid_after_utc < pin.until:
                outlived.setdefault(name, []).append(f"{pin.carrier} (until {pin.until:%Y-%m-%d})")
    rows = (
        Expiry(
            sha256=name,
            items=tuple(dict.fromkeys(items[name])),
            expires=one.not_valid_after_utc,
            days_left=(one.not_valid_after_utc - now) // timedelta(days=1),
            carried_by=tuple(dict.fromkeys(carried[name])),
            outlived_by=tuple(dict.fromkeys(outlived.get(name, ()))),
        )
        for name, one in certificates.items()
    )
    return tuple(sorted(rows, key=lambda row: (row.expires, row.items)))
