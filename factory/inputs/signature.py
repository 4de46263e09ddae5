# SPDX-License-Identifier: Apache-2.0
"""Whether the people we trust signed a package index."""

from __future__ import annotations

import base64
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from factory.errors import InputsError
from factory.system.run import run

_STATUS = re.compile(r"^\[GNUPG:\] (\S+) ?(.*)$", re.MULTILINE)
_BAD = {
    "BADSIG": "the content was changed after it was signed",
    "EXPKEYSIG": "the key has expired",
    "REVKEYSIG": "the key was revoked",
    "EXPSIG": "the signature has expired",
    "ERRSIG": "the key is not in the keyring",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """The text of a clear-signed file, and the full fingerprints of the primary keys whose signatures are good."""

    text: str
    signers: tuple[str, ...]


def signed_text(file: Path, *, keyring: Path, repository: str, suite: str) -> str:
    """The text alone; see :func:`signed`."""
    return signed(file, keyring=keyring, repository=repository, suite=suite).text


def signed(file: Path, *, keyring: Path, repository: str, suite: str) -> Signed:
    """The text of a clear-signed file, exactly as far as a key of ``keyring`` signed it, and who did.

    One good signature is enough, as for apt: archives sign with the keys of several releases, and a host knows the
    newest of them late, and the oldest expire. A signature that does not fit the content is never outvoted.

    Raises:
        InputsError: not good; names the repository, the keys and the keyring.
    """
    if not keyring.is_file():
        raise InputsError(
            f"the keyring of repository '{repository}' is missing",
            facts=(("keyring", str(keyring)),),
            hint="install the archive's keyring package, or name the keyring in the description",
        )
    with tempfile.TemporaryDirectory(prefix="factory-gpgv-") as scratch:
        binary, text = Path(scratch) / "keyring.gpg", Path(scratch) / "text"
        binary.write_bytes(_binary(keyring.read_bytes()))
        argv: list[str | Path] = [
            "gpgv",
            "--homedir",
            scratch,
            "--status-fd",
            "1",
            "--keyring",
            binary,
            "--output",
            text,
            file,
        ]
        verdict = run(argv, check=False, timeout_s=60)
        status = _STATUS.findall(verdict.stdout)
        words = {word for word, _ in status}
        if "GOODSIG" in words and "BADSIG" not in words and text.is_file():
            return Signed(text=text.read_text(errors="replace"), signers=_signers(status))
    raise _not_good(status, keyring=keyring, repository=repository, suite=suite, said=verdict.stderr)


def signers_of_detached(file: Path, signature: Path, *, keyring: Path, what: str) -> tuple[str, ...]:
    """The full fingerprints of the primary keys whose good detached signatures over ``file`` stand in ``signature``.

    Raises:
        InputsError: not good; names ``what`` was signed, the keys and the keyring.
    """
    with tempfile.TemporaryDirectory(prefix="factory-gpgv-") as scratch:
        binary = Path(scratch) / "keyring.gpg"
        binary.write_bytes(_binary(keyring.read_bytes()))
        argv: list[str | Path] = ["gpgv", "--homedir", scratch, "--status-fd", "1", "--keyring", binary]
        verdict = run([*argv, signature, file], check=False, timeout_s=600)
    status = _STATUS.findall(verdict.stdout)
    words = {word for word, _ in status}
    if "GOODSIG" in words and "BADSIG" not in words and (found := _signers(status)):
        return found
    facts = [("key", f"{rest.split()[0]}: {_BAD[word]}") for word, rest in status if word in _BAD and rest]
    said = [("said", line) for line in verdict.stderr.strip().splitlines()[-3:]]
    raise InputsError(
        f"the signature of {what} is not good",
        facts=(*(facts or said), ("keyring", str(keyring))),
        hint="compare the key's fingerprint with the vendor's own word; if it is right, do not trust this mirror",
    )


def _signers(status: list[tuple[str, str]]) -> tuple[str, ...]:
    """The primary keys of good signatures: gpgv tells of each first whether it is good, then by whom it is.

    ``VALIDSIG`` alone is no proof: it is also said of keys that have expired or were revoked.
    """
    found, good = set(), False
    for word, rest in status:
        if word in {"NEWSIG", *_BAD}:
            good = False
        elif word == "GOODSIG":
            good = True
        elif word == "VALIDSIG" and good and rest:
            found.add(rest.split()[-1].upper())
    return tuple(sorted(found))


def _not_good(status: list[tuple[str, str]], *, keyring: Path, repository: str, suite: str, said: str) -> InputsError:
    facts = [("key", f"{rest.split()[0]}: {_BAD[word]}") for word, rest in status if word in _BAD and rest]
    if not facts:
        facts = [("said", line) for line in said.strip().splitlines()[-3:]]
    return InputsError(
        f"the signature of repository '{repository}' (suite {suite}) is not good",
        facts=(*facts, ("keyring", str(keyring))),
        hint="update the archive's keyring package; if the key is right, do not trust this mirror",
    )


def _binary(keyring: bytes) -> bytes:
    """A keyring as gpgv wants it; armoured ones (RFC 9580, 6.2) are unpacked."""
    if not keyring.startswith(b"-----BEGIN PGP"):
        return keyring
    found = b""
    for block in re.findall(rb"-----BEGIN PGP PUBLIC KEY BLOCK-----(.*?)-----END", keyring, re.DOTALL):
        body = block.replace(b"\r", b"").split(b"\n\n", 1)[-1]
        lines = [line for line in body.split(b"\n") if line and not line.startswith(b"=")]
        found += base64.b64decode(b"".join(lines))
    return found
