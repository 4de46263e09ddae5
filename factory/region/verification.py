# SPDX-License-Identifier: Apache-2.0
"""Whether who asks is an instance of this cloud, by what its ``dataProvider`` says of it.

A provider is a class with the methods of :class:`Verification`; ``none`` and ``openstack`` are here, others are named
``package.module:Class`` and made with the public key (a Path or None). What a provider accepted is remembered in files
for a while, because package managers ask for many files in a row.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import importlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol, cast

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from factory.errors import InputFault
from factory.region.products import Product
from factory.region.registrations import PAYG
from factory.system.files import write_whole

SCHEMA = "image-factory/instance/1"
CACHE_FOR = {PAYG: timedelta(minutes=20)}
"""How long a positive answer counts, by mode; BYOS and hybrid systems: a day, as in RMT."""
_CACHE_OTHERS_FOR = timedelta(hours=24)
_SWEEP_EVERY = timedelta(hours=1)
_INSTANCE_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_REPOFORMAT = re.compile(r"\s*(<repoformat>[^<>]*</repoformat>\s*)*")
_MAX_CHARACTERS = 65536


class InstanceRefused(Exception):
    """Why an instance is not accepted, in words for its owner."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """An accepted instance.

    ``proven`` says that the cloud signed for ``identifier``; ``products`` are those it may use (NAME/VERSION/ARCH),
    ``not_after`` when the proof ends.
    """

    identifier: str = ""
    proven: bool = False
    products: tuple[str, ...] = ()
    payg: bool = True
    not_after: datetime | None = None


class Verification(Protocol):
    """What an update server asks of an instance verification provider.

    Every method raises InstanceRefused, with a text for the instance's owner.
    """

    def identify(self, instance_data: str, *, now: datetime) -> Verified:
        """Who announces itself; no product is known yet."""
        ...

    def verify(self, instance_data: str, product: Product, *, now: datetime | None = None) -> Verified:
        """Whether this instance may have this base product."""
        ...

    def allows(self, instance_data: str, extension: Product) -> bool:
        """Whether this extension can be had here at all (False: 403)."""
        ...


class NoVerification:
    """The provider ``none``: everybody is accepted, and nobody has an identifier."""

    def __init__(self, public_key: Path | None = None) -> None:
        if public_key is not None:
            raise InputFault("the provider 'none' checks no signature", hint="leave 'public_key' away")

    def identify(self, instance_data: str, *, now: datetime) -> Verified:  # noqa: ARG002
        return Verified()

    def verify(self, instance_data: str, product: Product, *, now: datetime | None = None) -> Verified:  # noqa: ARG002
        return Verified(products=(product.triple,))

    def allows(self, instance_data: str, extension: Product) -> bool:  # noqa: ARG002
        return True


class OpenStackVerification:
    """The provider ``openstack``: the document of our ``instance-data`` program, and the cloud's signature in it.

    Without a public key only the form is checked, which keeps mistakes out but no liar. With one, the signature over
    the bytes of the document is required, and the document must name the same instance and product and not be expired.
    """

    def __init__(self, public_key: Path | None = None) -> None:
        self._key = _public_key(public_key) if public_key else None

    def identify(self, instance_data: str, *, now: datetime) -> Verified:
        claimed = _document(instance_data)
        instance = claimed.get("instance_id")
        if not isinstance(instance, str) or not _INSTANCE_ID.fullmatch(instance):
            raise InstanceRefused("the instance data names no instance")
        if self._key is None:
            return Verified(identifier=instance)
        signed = _signed(claimed.get("vendordata"), self._key)
        if signed.get("instance_id") != instance:
            raise InstanceRefused("the signed document is of another instance")
        if signed.get("project_id") != claimed.get("project_id"):
            raise InstanceRefused("the signed document is of another project")
        not_after = _time(signed.get("not_after"))
        if not_after <= now:
            raise InstanceRefused("the signed document is expired")
        return Verified(identifier=instance, proven=True, products=_products(signed), not_after=not_after)

    def verify(self, instance_data: str, product: Product, *, now: datetime | None = None) -> Verified:
        found = self.identify(instance_data, now=now or datetime.now(tz=UTC))
        claimed = _document(instance_data).get("product")
        if claimed != product.triple:
            raise InstanceRefused(f"the instance is of product {_printable(claimed)}")
        if found.proven and product.triple not in found.products:
            raise InstanceRefused("the signed document is for another product")
        return found

    def allows(self, instance_data: str, extension: Product) -> bool:  # noqa: ARG002
        return True


def load(provider: str, public_key: Path | None) -> Verification:
    """The provider by its name, or by ``package.module:Class``.

    Raises:
        InputFault: there is none, or it does not take this key.
    """
    if provider == "none":
        return NoVerification(public_key)
    if provider == "openstack":
        return OpenStackVerification(public_key)
    module, _, name = provider.partition(":")
    try:
        return cast(Verification, getattr(importlib.import_module(module), name)(public_key))
    except (ImportError, AttributeError, TypeError, ValueError) as wrong:
        raise InputFault(
            f"there is no instance verification provider '{provider}'",
            hint=f"'none', 'openstack', or package.module:Class: {wrong}",
        ) from wrong


class RememberedInstances:
    """Positive answers of a provider, as files that several processes share."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._swept: datetime | None = None

    def knows(self, key: tuple[str, ...], *, now: datetime) -> bool:
        """Whether this was accepted not too long ago."""
        try:
            return datetime.fromisoformat(self._path(key).read_text()) > now
        except (OSError, ValueError):
            return False

    def keep(self, key: tuple[str, ...], verified: Verified, *, mode: str, now: datetime) -> None:
        """Remember an answer."""
        until = now + CACHE_FOR.get(mode, _CACHE_OTHERS_FOR)
        if verified.not_after is not None:
            until = min(until, verified.not_after)
        write_whole(self._path(key), until.isoformat(), mode=0o600)
        if self._swept is None or self._swept < now - _SWEEP_EVERY:
            self._swept = now
            self._sweep(now)

    def _path(self, key: tuple[str, ...]) -> Path:
        return self._folder / hashlib.sha256("\0".join(key).encode(errors="replace")).hexdigest()

    def _sweep(self, now: datetime) -> None:
        for path in self._folder.iterdir():
            with contextlib.suppress(OSError):
                try:
                    old = datetime.fromisoformat(path.read_text()) <= now
                except ValueError:  # what a killed process left half written
                    old = datetime.fromtimestamp(path.stat().st_mtime, tz=UTC) < now - _SWEEP_EVERY
                if old:
                    path.unlink()


def _document(instance_data: str) -> Mapping[str, Any]:
    """The provider's JSON, without the line that every client adds."""
    text = instance_data[:_MAX_CHARACTERS].strip()
    try:
        found, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        raise InstanceRefused("the instance data is missing or no JSON document") from None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA or not _REPOFORMAT.fullmatch(text, end):
        raise InstanceRefused(f"the instance data is no document of schema {SCHEMA}")
    return found


def _signed(vendordata: object, key: PublicKey) -> Mapping[str, Any]:
    if not isinstance(vendordata, dict):
        raise InstanceRefused("the instance data is not signed by the cloud")
    try:
        document = base64.b64decode(str(vendordata.get("document")), validate=True)
        signature = base64.b64decode(str(vendordata.get("signature")), validate=True)
        _verify(key, str(vendordata.get("algorithm")), signature, document)
        found = json.loads(document)
    except (binascii.Error, InvalidSignature):
        raise InstanceRefused("the signature of the instance data is not good") from None
    except (ValueError, RecursionError):
        raise InstanceRefused("the signed document cannot be read") from None
    if not isinstance(found, dict):
        raise InstanceRefused("the signed document cannot be read")
    return found


PublicKey = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey | rsa.RSAPublicKey


def _verify(key: PublicKey, algorithm: str, signature: bytes, document: bytes) -> None:
    """The algorithm must be the key's own, so that nobody chooses another."""
    if isinstance(key, ed25519.Ed25519PublicKey) and algorithm == "ed25519":
        key.verify(signature, document)
    elif isinstance(key, ec.EllipticCurvePublicKey) and algorithm == "ecdsa-sha256":
        key.verify(signature, document, ec.ECDSA(hashes.SHA256()))
    elif isinstance(key, rsa.RSAPublicKey) and algorithm == "rsa-sha256":
        key.verify(signature, document, padding.PKCS1v15(), hashes.SHA256())
    else:
        raise InvalidSignature


def _public_key(path: Path) -> PublicKey:
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as wrong:
        raise InputFault(f"'{path}' is no public key in PEM form", hint=str(wrong)) from wrong
    if not isinstance(key, ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        raise InputFault(f"'{path}' is a key of another kind", hint="use Ed25519, ECDSA or RSA")
    return key


def _products(signed: Mapping[str, Any]) -> tuple[str, ...]:
    named = signed.get("products")
    several = named if isinstance(named, list) else [signed.get("product")]
    return tuple(one for one in several if isinstance(one, str))


def _time(value: object) -> datetime:
    """ISO 8601, or seconds since 1970; a time without a zone is UTC."""
    try:
        if isinstance(value, str):
            found = datetime.fromisoformat(value)
            return found if found.tzinfo else found.replace(tzinfo=UTC)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return datetime.fromtimestamp(value, tz=UTC)
    except (ValueError, OverflowError, OSError):
        pass
    raise InstanceRefused("the signed document does not say how long it is good")


def _printable(value: object) -> str:
    text = value if isinstance(value, str) else "?"
    return "".join(char if char.isprintable() else "?" for char in text)[:100]
