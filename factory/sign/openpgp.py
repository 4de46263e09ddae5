# SPDX-License-Identifier: Apache-2.0
"""GnuPG, through the one door to programs: homes, agents, keys, detached signatures.

GnuPG is driven by its ``--status-fd`` and ``--with-colons`` interfaces (GnuPG's doc/DETAILS), never by what it says in
words. User ids there are other people's text: only a newline, which GnuPG always escapes, ends a line. GnuPG's clock is
the caller's ``now`` (``--faked-system-time``), so that expiry is decided by a value we were given. A home is always
named explicitly; the user's own ``~/.gnupg`` is never read.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from factory.errors import CommandFailed, SignError
from factory.model import utc
from factory.system.run import Completed, run, running

_TIMEOUT_S = 300.0
_AGENT_START_S = 15.0
STRONG_HASHES = {"8": "SHA256", "9": "SHA384", "10": "SHA512"}
"""Digest algorithms of RFC 9580 section 9.5 that a signature may rest on."""
_BINARY_DOCUMENT = "00"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPart:
    """A primary key or a subkey: what it may do (``s`` signs) and between which times."""

    fingerprint: str
    created: datetime
    expires: datetime | None
    can_sign: bool
    revoked: bool

    def alive_at(self, when: datetime) -> bool:
        """Whether the key existed and had not expired."""
        return self.created <= when and (self.expires is None or when < self.expires)


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """An OpenPGP key: the primary part, its first user id, and the subkeys."""

    primary: KeyPart
    user_id: str
    subkeys: tuple[KeyPart, ...] = ()

    @property
    def fingerprint(self) -> str:
        """The full fingerprint of the primary key, which names the whole."""
        return self.primary.fingerprint

    def part(self, fingerprint: str) -> KeyPart | None:
        """The primary key or subkey with this fingerprint."""
        return next((part for part in (self.primary, *self.subkeys) if part.fingerprint == fingerprint), None)

    @property
    def expires(self) -> datetime | None:
        """When signing with this key ends: with the primary key, or with the last part that can sign."""
        signing = [part for part in (self.primary, *self.subkeys) if part.can_sign and not part.revoked]
        ends_of_parts = [part.expires for part in signing if part.expires is not None]
        last = max(ends_of_parts) if len(ends_of_parts) == len(signing) and signing else None
        ends = [time for time in (self.primary.expires, last) if time is not None]
        return min(ends) if ends else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """One signature as GnuPG judged it; ``fault`` is empty when the bytes and the key's mathematics agree."""

    fingerprint: str = ""
    primary: str = ""
    made_at: datetime | None = None
    fault: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """A GnuPG home and the time that GnuPG shall believe in; ``agent`` lets it start an agent of its own."""

    path: Path
    now: datetime
    agent: bool = False

    def gpg(self, *argv: str | Path, stdin: bytes | None = None, check: bool = True) -> Completed:
        """Run gpg in this home; status lines come on standard output."""
        head: list[str | Path] = ["gpg", "--homedir", self.path, "--batch", "--no-tty", "--status-fd", "1"]
        head += ["--no-auto-key-retrieve", "--faked-system-time", f"{self.now:%Y%m%dT%H%M%S}!"]
        head += [] if self.agent else ["--no-options", "--no-autostart"]
        return run([*head, *argv], stdin=stdin, check=check, timeout_s=_TIMEOUT_S)

    def keys(self, *, secret: bool = False) -> tuple[Key, ...]:
        """The keys of this home; with ``secret`` only those whose private part is here."""
        listing = self.gpg("--with-colons", "--list-secret-keys" if secret else "--list-keys", check=False)
        return parse_keys(listing.stdout)

    def import_keys(self, files: Sequence[Path]) -> None:
        """Take public keys in.

        Raises:
            SignError: a file holds no public key, or holds a private one.
        """
        for file in files:
            content = file.read_bytes()
            if b"PRIVATE KEY BLOCK" in content:
                raise SignError(f"'{file}' holds a private key", hint="give public keys only; move the file away")
            done = self.gpg("--import", stdin=content, check=False)
            if "[GNUPG:] IMPORT_OK " not in done.stdout:
                hint = "GnuPG takes no key that was made in the future; is this host's clock right?"
                raise SignError(f"'{file}' holds no OpenPGP public key", facts=_said(done), hint=hint)

    def export(self, fingerprint: str) -> str:
        """The public key, ASCII-armoured (RFC 9580 section 6)."""
        text = self.gpg("--armor", "--export-options", "export-minimal", "--export", fingerprint).stdout
        begin = text.find("-----BEGIN PGP PUBLIC KEY BLOCK-----")
        end = text.find("-----END PGP PUBLIC KEY BLOCK-----")
        if begin < 0 or end < begin:
            raise SignError(f"the public key {fingerprint} is not in '{self.path}'")
        return text[begin:end] + "-----END PGP PUBLIC KEY BLOCK-----\n"

    def generate(self, user_id: str, *, days: int) -> str:
        """Make an Ed25519 key without a passphrase that can only sign, and return its fingerprint."""
        done = self.gpg(
            "--passphrase", "", "--quick-generate-key", user_id, "ed25519", "sign", f"seconds={days * 86400}"
        )
        for fields in _status(done.stdout, "KEY_CREATED"):
            return fields[1]
        raise SignError("GnuPG made no key", facts=_said(done))

    def sign(
        self, file: Path, signature: Path, *, fingerprint: str, digest: str = "SHA512", armor: bool = True
    ) -> None:
        """Write a detached signature over ``file``, ASCII-armoured or as binary packet.

        Raises:
            SignError: GnuPG could not; its last words are in the facts.
        """
        argv: tuple[str | Path, ...] = ("--local-user", fingerprint, "--digest-algo", digest)
        try:
            self.gpg(*argv, "--armor" if armor else "--no-armor", "--output", signature, "--detach-sign", file)
        except CommandFailed as failed:
            raise SignError(
                f"'{file.name}' could not be signed with {fingerprint}",
                hint="a passphrase must be with the gpg-agent already (gpg-preset-passphrase, or a smart card)",
            ) from failed

    def sign_bytes(
        self, content: bytes, *, fingerprint: str, what: str, digest: str = "SHA256", armor: bool = False
    ) -> bytes:
        """A detached signature over ``content``, read back; ``what`` is what errors call it.

        Raises:
            SignError: GnuPG could not, or what it made does not verify.
        """
        with tempfile.TemporaryDirectory(prefix="factory-sign-") as folder:
            file, signature = Path(folder) / "content", Path(folder) / "signature"
            file.write_bytes(content)
            self.sign(file, signature, fingerprint=fingerprint, digest=digest, armor=armor)
            expect_made(self.verify(file, signature), fingerprint, what=what)
            return signature.read_bytes()

    def verify(self, file: Path, signature: Path) -> tuple[Signature, ...]:
        """Every signature in ``signature`` over ``file``, good or not."""
        return parse_signatures(self.gpg("--verify", signature, file, check=False).stdout)

    def verify_bytes(self, content: bytes, signature: bytes) -> tuple[Signature, ...]:
        """Every signature in ``signature`` over ``content``, good or not."""
        with tempfile.TemporaryDirectory(prefix="factory-verify-") as folder:
            files = Path(folder) / "content", Path(folder) / "signature"
            for file, body in zip(files, (content, signature), strict=True):
                file.write_bytes(body)
            return self.verify(*files)


def expect_made(made: Sequence[Signature], fingerprint: str, *, what: str) -> None:
    """Raise SignError unless this is one good signature of that primary key: read back before anyone else has to."""
    if [(one.primary, one.fault) for one in made] != [(fingerprint, "")]:
        raise SignError(
            f"the signature over {what} does not verify",
            facts=tuple(("GnuPG says", one.fault or f"made by {one.primary}") for one in made),
            hint="name the primary key by its full fingerprint",
        )


def _said(done: Completed) -> tuple[tuple[str, str], ...]:
    return tuple(("said", line) for line in done.stderr.strip().splitlines()[-4:])


def _status(text: str, keyword: str) -> Iterator[list[str]]:
    head = f"[GNUPG:] {keyword} "
    for line in text.split("\n"):
        if line.startswith(head):
            yield line[len(head) :].split(" ")


def _moment(text: str) -> datetime | None:
    """A time in GnuPG's machine interfaces: seconds since 1970, or ISO 8601 basic (doc/DETAILS)."""
    if not text or text == "0":
        return None
    if "T" in text:
        return datetime.fromisoformat(text + "+00:00")
    return utc(int(text))


def parse_keys(listing: str) -> tuple[Key, ...]:
    """Keys from ``--with-colons`` output."""
    found: list[tuple[list[KeyPart], list[str]]] = []
    record: list[str] = []
    for line in listing.split("\n"):
        fields = line.split(":")
        if fields[0] in {"pub", "sec", "sub", "ssb"}:
            record = fields
            if fields[0] in {"pub", "sec"}:
                found.append(([], []))
        elif fields[0] == "fpr" and record:
            found[-1][0].append(_part(record, fields[9]))
            record = []
        elif fields[0] == "uid" and found:
            found[-1][1].append(_unescaped(fields[9]))
    return tuple(
        Key(primary=parts[0], user_id=users[0] if users else "", subkeys=tuple(parts[1:]))
        for parts, users in found
        if parts
    )


def _part(record: list[str], fingerprint: str) -> KeyPart:
    return KeyPart(
        fingerprint=fingerprint,
        created=_moment(record[5]) or utc(0),
        expires=_moment(record[6]),
        can_sign="s" in record[11],
        revoked=record[1] == "r",
    )


def _unescaped(text: str) -> str:
    """A colon listing with its C-style escapes, such as that of a colon in a user id, undone."""
    head, *rest = text.split("\\x")
    return head + "".join(chr(int(piece[:2], 16)) + piece[2:] for piece in rest)


def parse_signatures(status: str) -> tuple[Signature, ...]:
    """Signatures from the status lines of ``gpg --verify``, one for each NEWSIG."""
    blocks: list[list[list[str]]] = []
    for line in status.split("\n"):
        if not line.startswith("[GNUPG:] "):
            continue
        fields = line.split(" ")[1:]
        if fields[0] == "NEWSIG":
            blocks.append([])
        elif blocks:
            blocks[-1].append(fields)
    return tuple(_judge({fields[0]: fields[1:] for fields in block}) for block in blocks)


def _judge(block: dict[str, list[str]]) -> Signature:
    if "BADSIG" in block:
        return Signature(fingerprint=block["BADSIG"][0], fault="does not match the file")
    valid = block.get("VALIDSIG", [])
    if len(valid) <= 9:  # noqa: PLR2004 -- VALIDSIG has ten fields, the last names the primary key
        error = block.get("ERRSIG", [])
        by = error[6] if len(error) > 6 else (error or ["an unknown key"])[0]  # noqa: PLR2004
        if "NO_PUBKEY" in block:
            return Signature(fingerprint=by, fault=f"was made by {by}, which is not among the keys given")
        return Signature(fingerprint=by, fault="cannot be checked by GnuPG")
    fault = ""
    if "REVKEYSIG" in block:
        fault = f"was made by {valid[9]}, which is revoked"
    elif "EXPSIG" in block:
        fault = "has itself expired"
    elif valid[7] not in STRONG_HASHES:
        fault = "rests on a digest that is no longer safe"
    elif valid[8] != _BINARY_DOCUMENT:
        fault = "is not one over a file's exact bytes"
    return Signature(fingerprint=valid[0], primary=valid[9], made_at=_moment(valid[2]), fault=fault)


@contextlib.contextmanager
def public_home(files: Sequence[Path], *, now: datetime) -> Iterator[Home]:
    """A temporary home that holds just these public keys; no agent, nothing of the user's."""
    with tempfile.TemporaryDirectory(prefix="factory-keys-") as folder:
        home = Home(path=Path(folder), now=now)
        home.import_keys(files)
        yield home


@contextlib.contextmanager
def own_home(folder: Path, *, now: datetime, log: Path) -> Iterator[Home]:
    """A home of ours with an agent that ends with the block, and within seconds of a ``kill -9`` of this process.

    The agent watches ``sleep``, which is killed together with us. GnuPG puts the agent's socket into its home, and a
    socket's path may not exceed 107 bytes (unix(7)); reached through our file descriptor the path is always short.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    short = Path(f"/proc/{os.getpid()}/fd/{descriptor}")
    try:
        _drop_sockets(folder)
        argv: list[str | Path] = ["gpg-agent", "--homedir", short, "--no-detach", "--daemon", "sleep", "infinity"]
        with running(argv, log=log):
            _await_socket(folder / "S.gpg-agent", log)
            yield Home(path=short, now=now)
    finally:
        os.close(descriptor)
        _drop_sockets(folder)


def _await_socket(path: Path, log: Path) -> None:
    deadline = time.monotonic() + _AGENT_START_S
    while not path.is_socket():
        if time.monotonic() > deadline:
            raise SignError("gpg-agent did not start", facts=(("log", str(log)),), hint="is gpg-agent installed?")
        time.sleep(0.01)


def _drop_sockets(folder: Path) -> None:
    for path in folder.glob("S.*"):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def configured_home(folder: Path, *, now: datetime) -> Iterator[Home]:
    """The site's own home; an agent that was running stays (it may hold a passphrase), one that we caused ends."""
    if not folder.is_dir():
        raise SignError(f"the GnuPG home '{folder}' does not exist", hint="see signing.gnupg_home in the site file")
    asked = run(
        ["gpg-connect-agent", "--homedir", folder, "--no-autostart", "GETINFO pid", "/bye"], check=False, timeout_s=20
    )
    was_running = asked.stdout.startswith("D ")
    try:
        yield Home(path=folder, now=now, agent=True)
    finally:
        if not was_running:
            run(["gpgconf", "--homedir", folder, "--kill", "gpg-agent"], check=False, timeout_s=20)
