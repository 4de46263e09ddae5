# SPDX-License-Identifier: Apache-2.0
"""X.509 v3 certificates for region and update servers, and what one needs to know of those that exist.

Every certificate carries subjectAltName (names, IPv4, IPv6), subject and authority key identifiers and a critical
basicConstraints, because Python 3.13 and later refuse version 1 and incomplete certificates (``VERIFY_X509_STRICT``),
and no current client looks at the common name (RFC 9525).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from factory.system.files import write_whole

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
THROW_AWAY = "throw-away key of Image Factory - not for production"
_BLOCK = re.compile(r"-----BEGIN CERTIFICATE-----\s.*?-----END CERTIFICATE-----", re.DOTALL)
_RSA_BITS = 4096
_COMMON_NAME_CHARACTERS = 64
_BACKDATED = timedelta(days=1)
_ABOUT = (
    ("country", NameOID.COUNTRY_NAME),
    ("state", NameOID.STATE_OR_PROVINCE_NAME),
    ("location", NameOID.LOCALITY_NAME),
    ("organization", NameOID.ORGANIZATION_NAME),
    ("department", NameOID.ORGANIZATIONAL_UNIT_NAME),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A certificate and its private key, in memory."""

    certificate: x509.Certificate
    key: PrivateKey

    @property
    def pem(self) -> bytes:
        """The certificate as PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The private key as unencrypted PKCS#8 PEM."""
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def write(self, folder: Path, stem: str) -> tuple[Path, Path]:
        """Write ``stem.key`` (0600) and ``stem.pem`` (0644), each whole, and return (certificate, key)."""
        certificate, key = folder / f"{stem}.pem", folder / f"{stem}.key"
        write_whole(key, self.key_pem, mode=0o600)
        write_whole(certificate, self.pem)
        return certificate, key


def issue(
    common_name: str,
    *,
    now: datetime,
    days: int,
    names: Sequence[str] = (),
    addresses: Sequence[str] = (),
    authority: Issued | None = None,
    is_authority: bool = False,
    key_type: str = "ecdsa",
    throw_away: bool = False,
    about: Mapping[str, str] | None = None,
) -> Issued:
    """Make a key and a certificate for it.

    Args:
        names: DNS names for subjectAltName.
        addresses: IPv4 and IPv6 addresses for subjectAltName.
        authority: who signs; None makes a self-signed certificate.
        is_authority: whether the certificate may sign others.
        key_type: ``ecdsa`` (P-256), ``ecdsa-p384`` or ``rsa`` (4096 bit).
        throw_away: say in the subject that nobody should trust this beyond a test.
        about: what else the subject tells: ``country``, ``state``, ``location``, ``organization``, ``department``.

    Raises:
        ValueError: a country that is not two letters, or a text that is too long.
    """
    key = _key(key_type)
    subject = _subject(common_name, throw_away=throw_away, about=about or {})
    issuer_key = authority.key if authority else key
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(authority.certificate.subject if authority else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=0 if is_authority else None), critical=True)
        .add_extension(_usage(is_authority=is_authority, encipherment=key_type == "rsa"), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if not is_authority:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    alternatives = [*map(x509.DNSName, names), *(x509.IPAddress(ipaddress.ip_address(one)) for one in addresses)]
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return Issued(certificate=builder.sign(issuer_key, hashes.SHA256()), key=key)


def pem_blocks(text: str) -> tuple[str, ...]:
    """The certificate blocks of a PEM text, unparsed."""
    return tuple(match.group() + "\n" for match in _BLOCK.finditer(text))


def certificates_in(text: str) -> tuple[x509.Certificate, ...]:
    """The certificates of a PEM text.

    Raises:
        ValueError: a block is not a certificate.
    """
    return tuple(x509.load_pem_x509_certificate(block.encode()) for block in pem_blocks(text))


def fingerprint(text: str) -> str:
    """The SHA-1 fingerprint of the first certificate in a PEM text, as the region protocol wants it: ``AA:BB:...``.

    SHA-1 because no other hash exists in that protocol; what it selects is then verified by TLS.

    Raises:
        ValueError: there is no certificate.
    """
    found = certificates_in(text)
    if not found:
        raise ValueError("no certificate")
    return found[0].fingerprint(hashes.SHA1()).hex(":").upper()  # noqa: S303 - the protocol's only hash


def covers(certificate: x509.Certificate, item: str) -> bool:
    """Whether subjectAltName names ``item``: an address as IP, a name as DNS."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    try:
        return ipaddress.ip_address(item) in names.get_values_for_type(x509.IPAddress)
    except ValueError:
        return item.lower() in {name.lower() for name in names.get_values_for_type(x509.DNSName)}


def _key(key_type: str) -> PrivateKey:
    if key_type == "rsa":
        return rsa.generate_private_key(public_exponent=65537, key_size=_RSA_BITS)
    return ec.generate_private_key(ec.SECP384R1() if key_type == "ecdsa-p384" else ec.SECP256R1())


def _subject(common_name: str, *, throw_away: bool, about: Mapping[str, str]) -> x509.Name:
    found = [(oid, about[name]) for name, oid in _ABOUT if about.get(name, "").strip()]
    if throw_away:
        found.append((NameOID.ORGANIZATION_NAME, THROW_AWAY))
    found.append((NameOID.COMMON_NAME, common_name[:_COMMON_NAME_CHARACTERS]))
    return x509.Name([x509.NameAttribute(oid, text) for oid, text in found])


def subject_of(certificate: x509.Certificate) -> dict[str, str]:
    """What a certificate's subject tells beside the common name, as :func:`issue` takes it in ``about``."""
    found = {name: certificate.subject.get_attributes_for_oid(oid) for name, oid in _ABOUT}
    return {name: str(values[0].value) for name, values in found.items() if values}


def _usage(*, is_authority: bool, encipherment: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        content_commitment=False,
        key_encipherment=encipherment and not is_authority,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        encipher_only=False,
        decipher_only=False,
    )
