# SPDX-License-Identifier: Apache-2.0
"""Glance's own image signature: four properties that have to be on the record before the bytes arrive.

Glance verifies them while it stores the bytes, and Nova may again before it boots them, against a certificate in the
cloud's key manager. ECDSA on P-384 with SHA-512 by default: its base64 has at most 140 characters, where an RSA one is
longer than the 255 that consumers may rely on. It is made from the digest that was signed, so no bytes are read again.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING

from factory.errors import InputFault
from factory.model import PlatformSignature

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

_CURVES = frozenset({"secp384r1", "secp521r1"})


def signature_properties(signature: PlatformSignature, sha512: str) -> dict[str, str]:
    """The four properties for an image with this SHA-512.

    Raises:
        InputFault: the key cannot be read, may be read by others, or is of no kind that Glance takes.
    """
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, utils

    key = _key(signature.key)
    made = key.sign(bytes.fromhex(sha512), ec.ECDSA(utils.Prehashed(hashes.SHA512())))
    return {
        "img_signature": base64.b64encode(made).decode(),
        "img_signature_hash_method": "SHA-512",
        "img_signature_key_type": f"ECC_{key.curve.name.upper()}",
        "img_signature_certificate_uuid": signature.certificate,
    }


def _key(path: Path) -> EllipticCurvePrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        if path.stat().st_mode & 0o077:
            raise InputFault(f"the platform key '{path.name}' can be read by others", hint=f"chmod 600 {path}")
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as away:
        raise InputFault(
            f"the platform key '{path.name}' cannot be read: {away.strerror}",
            hint="[[target]] signature.key in site.toml names it",
        ) from away
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise InputFault(
            f"the platform key '{path.name}' is no private key in PEM without a password",
            hint="openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384 makes one",
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in _CURVES:
        raise InputFault(
            f"the platform key '{path.name}' is not on the curve P-384 or P-521",
            hint="Glance takes no smaller curve, and an RSA signature is too long for a property",
        )
    return key
