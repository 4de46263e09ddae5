# SPDX-License-Identifier: Apache-2.0
"""Whether a folder of published files is what the factory signed, from public keys alone.

In this order: ``SHA256SUMS`` is signed by a key that counted when it signed; the folder holds just the files that it
lists, whole; files that have signatures of their own have good ones; both statements are signed likewise, and say what
the files say (:mod:`factory.sign.evidence`); the source tarball is of these files (:mod:`factory.sign.source`). A
signature that was made while its key was valid stays good after the key has expired. (The time in a signature is what
the signer's host claimed: a stolen key can date back, which is why such a key is revoked, not left to expire.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from factory.errors import InputFault, NotGood
from factory.sign.checksums import NAME as SUMS
from factory.sign.checksums import MalformedSums, parse_sums
from factory.sign.dsse import LIMIT_BYTES, SUFFIX, Envelope, encoded, envelopes
from factory.sign.evidence import (
    IMAGE_SUFFIX,
    LOCK,
    VERDICT,
    Evidence,
    images_in,
    judge,
    made_before_statements,
    name_of,
)
from factory.sign.keyring import THROW_AWAY_USER_ID, KeyDates, end_of, key_dates
from factory.sign.openpgp import Home, Key, Signature, public_home
from factory.sign.source import SUFFIXES as SOURCE_SUFFIXES
from factory.sign.source import source_faults
from factory.sign.strict_json import Malformed
from factory.system.files import digests, sha256_file
from factory.system.text import visible

SIGNED_SUFFIXES = (IMAGE_SUFFIX, *SOURCE_SUFFIXES)
"""Of these kinds are the files with a signature of their own where no provenance names them."""
UNSIGNED = frozenset({"index.html"})
"""Made by the download directory after signing; nothing depends on it."""
_CLOCK_SLACK = timedelta(hours=1)
_SUMS_MAX_BYTES = 1 << 20
_SHOWN_FAULTS = 100
_NONE = "lists no statements: this has no provenance, and was not made before factories attested"


@dataclass(frozen=True, slots=True, kw_only=True)
class GoodSignature:
    """A signature that counts: over which file, by which key, made when."""

    file: str
    fingerprint: str
    user_id: str
    made_at: datetime
    key_expires: datetime | None
    key_expired: bool
    throw_away: bool
    key_ends: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SignatureReport:
    """A folder that verified; ``files`` maps what SHA256SUMS lists to its digests, ``unsigned`` is beside it.

    ``evidence`` is what its statements say, or None where a factory made it that attested nothing yet.
    """

    directory: Path
    signatures: tuple[GoodSignature, ...]
    files: dict[str, str]
    unsigned: tuple[str, ...]
    evidence: Evidence | None = None

    @property
    def fingerprint(self) -> str:
        """The primary key that signed SHA256SUMS."""
        return next(one.fingerprint for one in self.signatures if one.file == SUMS)

    @property
    def throw_away(self) -> bool:
        """Whether any signature rests on a throw-away key, which proves nothing to anybody else."""
        return any(one.throw_away for one in self.signatures)


def verify_signatures(
    directory: Path, *, keys: Path, public_keys: Sequence[Path] = (), trusted: Path | None = None, now: datetime
) -> SignatureReport:
    """Check signatures, digests and completeness of a bundle or download directory.

    Args:
        keys: the folder with ``keys.toml``: keys listed there count only within their time in use.
        public_keys: trust just these public key files instead of those of ``keys``.
        trusted: a folder of further public keys (``*.asc``), such as the throw-away ones of this host.

    Raises:
        NotGood: something does not verify; every fault is a fact.
        InputFault: there is no such folder, or no public key to verify with.
    """
    if not directory.is_dir():
        raise InputFault(f"there is no folder '{directory}'", hint="name the folder that holds SHA256SUMS")
    dates = key_dates(keys)
    with public_home(_public_keys(dates, public_keys, trusted), now=now) as home:
        return _Inspection(directory, home=home, dates=dates).report()


def verify_file(
    file: Path, *, keys: Path, public_keys: Sequence[Path] = (), trusted: Path | None = None, now: datetime
) -> tuple[GoodSignature, ...]:
    """Check the signature ``FILE.asc`` beside a file, by the same rules as those of a whole bundle.

    Without one, the file is good when the signed ``SHA256SUMS`` beside it lists it by its digest.

    Raises:
        NotGood: there is none, or it does not count.
        InputFault: there is no such file, or no public key to verify with.
    """
    if not _plain_file(file):
        raise InputFault(f"there is no file '{file}'")
    dates = key_dates(keys)
    with public_home(_public_keys(dates, public_keys, trusted), now=now) as home:
        return _Inspection(file.parent, home=home, dates=dates).one(file.name)


def _public_keys(dates: tuple[KeyDates, ...], public_keys: Sequence[Path], trusted: Path | None) -> tuple[Path, ...]:
    files = tuple(public_keys) or (*(one.file for one in dates), *_key_files(trusted))
    if missing := [file for file in files if not file.is_file()]:
        raise InputFault(f"there is no public key file '{missing[0]}'")
    if not files:
        raise InputFault("there is no public key to verify with", hint="name one with --key, or list it in keys/")
    return files


def _key_files(folder: Path | None) -> tuple[Path, ...]:
    return tuple(sorted(folder.glob("*.asc"))) if folder is not None else ()


class _Inspection:
    """One look at one folder; faults are gathered, not raised one by one."""

    def __init__(self, directory: Path, *, home: Home, dates: tuple[KeyDates, ...]) -> None:
        self.directory = directory
        self.home = home
        self.keys = home.keys()
        self.dates = {one.fingerprint: one for one in dates}
        self.faults: list[tuple[str, str]] = []
        self.signatures: list[GoodSignature] = []
        self.sha512: dict[str, str] = {}
        self.detached: tuple[str, ...] = ()

    def report(self) -> SignatureReport:
        sums = self._sums()
        present = {path.name for path in self.directory.iterdir()}
        allowed = {SUMS, f"{SUMS}.asc", *sums, *(f"{name}.asc" for name in sums)}
        self._check_files(sums, present)
        self._check_signature(SUMS)
        evidence = self._evidence(sums)
        for name in sorted(sums):
            if f"{name}.asc" in present or name in self.detached:
                self._check_signature(name)
        for name in sorted(present - allowed - UNSIGNED):
            self._fault(name, f"is not listed in {SUMS}")
        if evidence and not self.faults:  # nothing is opened that somebody else may have made
            self._check_sources(sums, evidence)
        if self.faults:
            raise _not_good(self.directory, self.faults)
        return SignatureReport(
            directory=self.directory,
            signatures=tuple(self.signatures),
            files=sums,
            unsigned=tuple(sorted(present & UNSIGNED)),
            evidence=evidence,
        )

    def one(self, name: str) -> tuple[GoodSignature, ...]:
        if _plain_file(self.directory / f"{name}.asc") or not _plain_file(self.directory / SUMS):
            self._check_signature(name)
        else:
            sums = self._sums()
            self._check_signature(SUMS)
            if name in sums:
                self._check_files({name: sums[name]}, {name})
            else:
                self._fault(name, f"is not listed in {SUMS}")
        if self.faults:
            raise _not_good(self.directory / name, self.faults)
        return tuple(self.signatures)

    def _sums(self) -> dict[str, str]:
        path = self.directory / SUMS
        if not _plain_file(path):
            raise _not_good(self.directory, [(SUMS, "is missing")])
        try:
            with path.open("rb") as file:
                return parse_sums(file.read(_SUMS_MAX_BYTES).decode())
        except (MalformedSums, UnicodeDecodeError) as malformed:
            raise _not_good(self.directory, [(SUMS, f"is malformed: {malformed}")]) from None

    def _check_files(self, sums: dict[str, str], present: set[str]) -> None:
        for name, sha256 in sorted(sums.items()):
            path = self.directory / name
            if name not in present:
                self._fault(name, "is missing")
            elif not _plain_file(path):
                self._fault(name, "is not a plain file")
            else:
                found = self._sha256(path)
                if found != sha256:
                    self._fault(name, f"has the SHA-256 {found}, but {SUMS} says {sha256}")

    def _sha256(self, path: Path) -> str:
        """The digest of a file; that of an image, which provenance names by SHA-512 too, from one reading."""
        if not path.name.endswith(IMAGE_SUFFIX):
            return sha256_file(path)
        found = digests(path)
        self.sha512[path.name] = found.sha512
        return found.sha256

    def _evidence(self, sums: dict[str, str]) -> Evidence | None:
        """What the statements of this bundle say; nothing where they are not good, or older factories made none."""
        bundles = [name for name in sums if name.endswith(SUFFIX)]
        if not bundles and made_before_statements(self._content(VERDICT)):
            self.detached = tuple(name for name in sums if name.endswith(SIGNED_SUFFIXES))
            return None
        if not bundles or bundles != [name_of(image) for image in images_in(sums)]:
            self._fault(SUMS, f"lists statements of {len(bundles)} files, not of its one image" if bundles else _NONE)
            return None
        try:
            found = envelopes(self._content(bundles[0]))
        except Malformed as wrong:
            self._fault(bundles[0], str(wrong))
            return None
        for number, envelope in enumerate(found, start=1):
            self._check_envelope(bundles[0], number, envelope)
        judged = judge(
            [envelope.payload for envelope in found],
            sums=sums,
            verdict=self._content(VERDICT),
            lock=self._content(LOCK),
            sha512=self.sha512.get(images_in(sums)[0]),
        )
        self.faults += judged.faults
        self.detached = judged.evidence.detached if judged.evidence else ()
        return judged.evidence

    def _check_sources(self, sums: dict[str, str], evidence: Evidence) -> None:
        """The source tarballs are of this image, by what stands in them."""
        for name in sorted(name for name in sums if name.endswith(SOURCE_SUFFIXES)):
            found = source_faults(self.directory / name, image=images_in(sums)[0], sums=sums, evidence=evidence)
            self.faults += [(name, problem) for problem in found]

    def _content(self, name: str) -> bytes:
        """A file of the folder, cut where it is longer than any of ours; nothing where there is none."""
        path = self.directory / name
        if not _plain_file(path):
            return b""
        with path.open("rb") as file:
            return file.read(LIMIT_BYTES + 1)

    def _check_envelope(self, name: str, number: int, envelope: Envelope) -> None:
        """Every signature of an envelope is one good one, by the key that it names."""
        content = encoded(envelope.payload)
        for keyid, signature in envelope.signatures:
            made = self.home.verify_bytes(content, signature)
            problem = self._problem(made[0]) if len(made) == 1 else f"holds {len(made)} signatures, not one"
            if not problem and made[0].primary != keyid:
                problem = f"was made by {made[0].primary}, but names {keyid[:80]}"
            if problem:
                self._fault(name, f"the signature of statement {number} {problem}")
            else:
                self.signatures.append(self._good(f"{name}:{number}", made[0]))

    def _check_signature(self, name: str) -> None:
        file, signature = self.directory / name, self.directory / f"{name}.asc"
        if not _plain_file(signature):
            self._fault(name, f"has no signature '{signature.name}'")
            return
        if not _plain_file(file):
            return
        made = self.home.verify(file, signature)
        problems = [(one, self._problem(one)) for one in made]
        good = [one for one, problem in problems if not problem]
        if not made:
            self._fault(signature.name, "holds no signature")
        if good and not any(one.fault == "does not match the file" for one in made):
            self.signatures += [self._good(name, one) for one in good]
            return
        for _, problem in problems:
            if problem:
                self._fault(signature.name, problem)

    def _problem(self, made: Signature) -> str:
        """Why a signature does not count, or nothing."""
        if made.fault:
            return made.fault
        key = self._key(made)
        part = key.part(made.fingerprint) if key else None
        if key is None or part is None or made.made_at is None:
            return f"was made by {made.primary}, which is not among the keys given"
        if made.made_at > self.home.now + _CLOCK_SLACK:
            return f"is dated in the future, {_words(made.made_at)}"
        for one in (key.primary, part):
            if not one.alive_at(made.made_at):
                life = _life(one.created, one.expires)
                return f"was made on {_words(made.made_at)}, when the key was not valid ({life})"
        dates = self.dates.get(key.fingerprint)
        if dates is not None and not dates.in_use_at(made.made_at):
            return f"was made on {_words(made.made_at)}, when the key was not in use ({dates.in_use})"
        return ""

    def _key(self, made: Signature) -> Key | None:
        return next((key for key in self.keys if key.fingerprint == made.primary), None)

    def _good(self, name: str, made: Signature) -> GoodSignature:
        key = self._key(made)
        assert key is not None
        assert made.made_at is not None
        return GoodSignature(
            file=name,
            fingerprint=key.fingerprint,
            user_id=key.user_id,
            made_at=made.made_at,
            key_expires=key.expires,
            key_expired=key.expires is not None and key.expires <= self.home.now,
            key_ends=end_of(key, tuple(self.dates.values())),
            throw_away=key.user_id == THROW_AWAY_USER_ID,
        )

    def _fault(self, name: str, problem: str) -> None:
        self.faults.append((name, problem))


def _plain_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _words(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}"


def _life(created: datetime, expires: datetime | None) -> str:
    return f"{created:%Y-%m-%d} to {expires:%Y-%m-%d}" if expires else f"from {created:%Y-%m-%d}"


def _not_good(directory: Path, faults: list[tuple[str, str]]) -> NotGood:
    shown = tuple((visible(name), visible(problem)) for name, problem in faults[:_SHOWN_FAULTS])
    if len(faults) > _SHOWN_FAULTS:
        shown += (("more", f"{len(faults) - _SHOWN_FAULTS} faults are not shown"),)
    return NotGood(
        f"'{directory}' does not verify",
        facts=shown,
        hint="do not use these files; fetch them again, or ask whoever published them",
    )
