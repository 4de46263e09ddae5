# SPDX-License-Identifier: Apache-2.0
"""Statements in DSSE envelopes, one a line, as an in-toto attestation bundle holds them.

What is signed is the pre-authentication encoding of type and payload (DSSE v1), with an ordinary detached OpenPGP
signature: ``sig`` is its binary packet, ``keyid`` the full fingerprint of the primary key. So GnuPG alone can check it:
docs/reference/provenance.md has the two lines. securesystemslib gives the encoding and the envelope's form; reading is
our own, because its ``Envelope.from_dict`` takes what ``json.loads`` makes of a hostile file, and its OpenPGP signer
starts gpg by itself and writes a form of signature that gpg cannot read.

Sources: https://github.com/secure-systems-lab/dsse (protocol.md, envelope.md),
https://github.com/in-toto/attestation (spec/v1/bundle.md).
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from factory.sign.strict_json import Malformed, parse, shaped

PAYLOAD_TYPE = "application/vnd.in-toto+json"
SUFFIX = ".intoto.jsonl"
"""What an attestation bundle's name ends with; before it stands the name of the file that it is about."""
LIMIT_BYTES = 16 << 20
_MOST_LINES = 16
_MOST_SIGNATURES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A payload of the in-toto type and the OpenPGP signatures over it, each with the key that it claims."""

    payload: bytes
    signatures: tuple[tuple[str, bytes], ...]


class _Read(BaseModel):
    model_config = ConfigDict(strict=True)


class _Signature(_Read):
    keyid: str
    sig: str


class _Envelope(_Read):
    payload: str
    payload_type: str = Field(alias="payloadType")
    signatures: list[_Signature]


def encoded(payload: bytes) -> bytes:
    """The bytes that a signature over a statement is made of: DSSE's pre-authentication encoding."""
    from securesystemslib.dsse import Envelope as Made

    return Made(payload, PAYLOAD_TYPE, {}).pae()


def line(payload: bytes, *, keyid: str, signature: bytes) -> str:
    """An envelope as one line of a bundle."""
    from securesystemslib.dsse import Envelope as Made
    from securesystemslib.signer._signature import Signature

    made = Made(payload, PAYLOAD_TYPE, {keyid: Signature(keyid, signature.hex())})
    return json.dumps(made.to_dict(), separators=(",", ":")) + "\n"


def envelopes(text: bytes) -> tuple[Envelope, ...]:
    """The envelopes of a bundle, in its order.

    in-toto's rule for readers is to skip lines that they do not know; a bundle of ours is judged as a whole, so that
    nothing stands in it which nobody has checked.

    Raises:
        Malformed: names the line.
    """
    if len(text) > LIMIT_BYTES:
        raise Malformed(f"is longer than {LIMIT_BYTES >> 20} MiB")
    lines = text.split(b"\n")
    if lines.pop() != b"":
        raise Malformed("does not end with a line")
    if len(lines) > _MOST_LINES:
        raise Malformed(f"holds {len(lines)} lines")
    found = []
    for number, one in enumerate(lines, start=1):
        try:
            found.append(_envelope(one))
        except Malformed as wrong:
            raise Malformed(f"line {number} {wrong}") from None
    return tuple(found)


def _envelope(text: bytes) -> Envelope:
    read = shaped(_Envelope, parse(text, limit_bytes=LIMIT_BYTES))
    if read.payload_type != PAYLOAD_TYPE:
        raise Malformed(f"is of the type {read.payload_type[:80]!r}, not {PAYLOAD_TYPE}")
    if not 1 <= len(read.signatures) <= _MOST_SIGNATURES:
        raise Malformed(f"has {len(read.signatures)} signatures")
    if len({one.keyid for one in read.signatures}) != len(read.signatures):
        raise Malformed("has two signatures of one key")
    return Envelope(
        payload=_decoded(read.payload, "payload"),
        signatures=tuple((one.keyid, _decoded(one.sig, "sig")) for one in read.signatures),
    )


def _decoded(text: str, name: str) -> bytes:
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise Malformed(f"has a {name} that is not base64") from None
