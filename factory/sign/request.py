# SPDX-License-Identifier: Apache-2.0
"""What is to be signed, without the bytes of any image: checked, sealed with a key, and carried between two hosts.

The host that built writes a request: the checksums, the two statements, and the texts that they rest on. The host that
has the key checks that these agree, seals them, and writes an answer: the signed files of the bundle. A bundle that is
signed where it was built takes the same way, without the two files.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from factory.errors import InputFault, NotGood
from factory.sign import dsse
from factory.sign.checksums import NAME as SUMS
from factory.sign.checksums import is_plain, sums_text
from factory.sign.evidence import LOCK, PUBLIC_KEY, VERDICT, Evidence, Fault, images_in, judge, judged_at, name_of
from factory.sign.openpgp import Home, Key
from factory.sign.strict_json import Kind, Malformed, parse, shaped
from factory.system.text import visible

VERDICT_DAYS = 7
"""A verdict older than this is stale: packages it did not see may have had security fixes since."""
CLOCK_SLACK = timedelta(hours=1)
REQUEST_SCHEMA, ANSWER_SCHEMA = "factory/sign-request/1", "factory/signatures/1"
LIMIT_BYTES = 32 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHOWN_FAULTS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningRequest:
    """What a bundle's signatures are to be about.

    ``digests`` are the SHA-256 of its files by their names, ``statements`` the payloads as text; ``verdict`` and
    ``lock`` the texts of two of the files.
    """

    run: str
    image: str
    digests: Mapping[str, str]
    statements: tuple[str, ...]
    verdict: str
    lock: str

    def text(self) -> str:
        """The request as a file."""
        return json.dumps({"schema": REQUEST_SCHEMA, **asdict(self)}, indent=1, sort_keys=True) + "\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """The signed part of a bundle: its files by name, and the key that signed."""

    fingerprint: str
    throw_away: bool
    files: Mapping[str, str]

    def text(self) -> str:
        """The answer as a file."""
        return json.dumps({"schema": ANSWER_SCHEMA, **asdict(self)}, indent=1, sort_keys=True) + "\n"


class _Request(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    run: str
    image: str
    digests: dict[str, str]
    statements: list[str]
    verdict: str
    lock: str


class _Answer(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    fingerprint: str
    throw_away: bool
    files: dict[str, str]


def read_request(path: Path) -> SigningRequest:
    """Read a request; it is not checked yet.

    Raises:
        InputFault: there is no such file.
        NotGood: it is not a request of this version.
    """
    read = _file(path, _Request, schema=REQUEST_SCHEMA, what="a request to sign")
    return SigningRequest(**{**read.model_dump(), "statements": tuple(read.statements)})


def read_answer(path: Path) -> Sealed:
    """Read an answer; what it is worth shows when the bundle is verified.

    Raises:
        InputFault: there is no such file.
        NotGood: it is not an answer of this version.
    """
    return Sealed(**_file(path, _Answer, schema=ANSWER_SCHEMA, what="an answer to a request").model_dump())


def _file(path: Path, kind: type[Kind], *, schema: str, what: str) -> Kind:
    try:
        with path.open("rb") as file:
            value = parse(file.read(LIMIT_BYTES + 1), limit_bytes=LIMIT_BYTES)
        if not isinstance(value, dict) or value.pop("schema", None) != schema:
            raise Malformed(f"is not {what} that this version reads")  # noqa: TRY301 told below
        return shaped(kind, value)
    except OSError as missing:
        raise InputFault(f"'{path}' cannot be read: {missing.strerror}") from None
    except Malformed as wrong:
        raise NotGood(
            f"'{path}' {visible(str(wrong))}", hint="was the file cut short, or is it of another factory?"
        ) from None


def expect_good(request: SigningRequest, *, now: datetime) -> Evidence:
    """What a request attests, when it is one that may be signed.

    Raises:
        NotGood: its parts do not agree, or its verdict is not green or stale; every fault is a fact.
    """
    encoded = _bytes(request.verdict), _bytes(request.lock)
    payloads = [_bytes(one) for one in request.statements]
    found = judge(payloads, sums=request.digests, verdict=encoded[0], lock=encoded[1], sha512=None)
    faults = [*_faults(request, encoded), *found.faults, *_faults_of_time(encoded[0], now=now)]
    if found.evidence is not None and found.evidence.run != request.run:
        faults.append(("run", "is another one than the provenance names"))
    if faults or found.evidence is None:
        raise NotGood(
            "this is not signed",
            facts=tuple((visible(name), visible(problem)) for name, problem in faults[:_SHOWN_FAULTS]),
            hint="make the request again from the run, and ask who changed it",
        )
    return found.evidence


def _faults(request: SigningRequest, encoded: tuple[bytes, bytes]) -> Iterator[Fault]:
    taken = {SUMS, PUBLIC_KEY, name_of(request.image)}
    for name, sha256 in sorted(request.digests.items()):
        if not is_plain(name) or name in taken or name.endswith(".asc"):
            yield name, "cannot stand in a bundle by this name"
        if not _SHA256.fullmatch(sha256):
            yield name, "has no SHA-256"
    if images_in(request.digests) != [request.image]:
        yield request.image, "is not the one image among the files"
    for name, text in zip((VERDICT, LOCK), encoded, strict=True):
        if request.digests.get(name) != hashlib.sha256(text).hexdigest():
            yield name, "is another text than its SHA-256 says"


def _faults_of_time(verdict: bytes, *, now: datetime) -> Iterator[Fault]:
    at = judged_at(verdict)
    if at is None:
        yield VERDICT, "does not say when it was given"
    elif now - at > timedelta(days=VERDICT_DAYS):
        yield VERDICT, f"is stale: {(now - at).days} days old, at most {VERDICT_DAYS}"
    elif at - now > CLOCK_SLACK:
        yield VERDICT, f"is of the future, {at:%Y-%m-%d %H:%M:%S}"


def seal(request: SigningRequest, *, home: Home, key: Key, throw_away: bool) -> Sealed:
    """Sign the statements, and then the checksums of everything, the statements included.

    Raises:
        SignError: GnuPG could not.
    """
    lines = []
    for payload in (one.encode() for one in request.statements):
        made = home.sign_bytes(dsse.encoded(payload), fingerprint=key.fingerprint, what="a statement")
        lines.append(dsse.line(payload, keyid=key.fingerprint, signature=made))
    files = {name_of(request.image): "".join(lines)}
    files |= {PUBLIC_KEY: home.export(key.fingerprint)} if throw_away else {}
    digests = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}
    sums = sums_text({**request.digests, **digests})
    made = home.sign_bytes(sums.encode(), fingerprint=key.fingerprint, what=SUMS, digest="SHA512", armor=True)
    files |= {SUMS: sums, f"{SUMS}.asc": made.decode()}
    return Sealed(fingerprint=key.fingerprint, throw_away=throw_away, files=files)


def expect_answer(sealed: Sealed, request: SigningRequest) -> None:
    """Raise NotGood unless an answer is to this request; its signatures are for the bundle's verification to judge."""
    wanted = {name_of(request.image), SUMS, f"{SUMS}.asc", *({PUBLIC_KEY} if sealed.throw_away else set())}
    if set(sealed.files) != wanted:
        odd = ", ".join(sorted(visible(name) for name in set(sealed.files) ^ wanted))
        raise NotGood("the answer holds other files than were asked for", facts=(("files", odd),))
    try:
        for text in sealed.files.values():
            text.encode()
    except UnicodeEncodeError:
        raise NotGood("the answer holds other text than UTF-8") from None
    try:
        found = [one.payload for one in dsse.envelopes(_bytes(sealed.files[name_of(request.image)]))]
    except Malformed as wrong:
        raise NotGood(f"the statements of the answer cannot be read: {visible(str(wrong))}") from None
    if found != [one.encode() for one in request.statements]:
        raise NotGood("the answer is to another request", hint="write the request again and have it signed")


def _bytes(text: str) -> bytes:
    """A text that was read from JSON; what cannot be UTF-8 stays as it is, and is then refused as no UTF-8."""
    return text.encode("utf-8", "surrogatepass")
