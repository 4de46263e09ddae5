# SPDX-License-Identifier: Apache-2.0
"""The sign stage: an artifact and a green verdict about the same bytes become a bundle.

``bundle/`` in the run's folder appears whole: the image (a hard link, not a copy), the source tarball, the package
list, the lock of the inputs, the verdict, two signed statements (provenance and test result), ``SHA256SUMS`` over all
of them, and detached signatures. Where the key is on another host, a request goes there and an answer comes back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from factory.errors import NotGood, SignError
from factory.model import DIFFERENCE, RELEASE_NOTE, Artifact, Bundle, Signing, Verdict
from factory.sign.checksums import is_plain
from factory.sign.evidence import JUNIT, VERDICT
from factory.sign.junit import junit
from factory.sign.keyring import WARN_DAYS, end_of, key_dates, signing_key
from factory.sign.openpgp import Home, Key, expect_made
from factory.sign.request import CLOCK_SLACK as _CLOCK_SLACK
from factory.sign.request import VERDICT_DAYS, Sealed, SigningRequest, expect_answer, expect_good, read_answer, seal
from factory.sign.statements import PROVENANCE, TEST_RESULT, provenance, test_result, verdict_json
from factory.sign.verify import verify_signatures
from factory.system.files import appearing, expect_digest, sha256_file, write_whole
from factory.system.readings import link
from factory.system.state import Run, State

STATEMENTS = (PROVENANCE, TEST_RESULT)
_SHOWN_FAILURES = 5
Say = Callable[[str], None]


def sign(
    artifact: Artifact,
    verdict: Verdict,
    *,
    run: Run,
    state: State,
    signing: Signing,
    keys: Path,
    now: datetime,
    say: Say,
) -> Bundle:
    """Sign a green image with a key of this host.

    Args:
        signing: the site's key by full fingerprint, or nothing for the throw-away key of the embedded default.
        keys: the folder with ``keys.toml``; a configured key that it does not list signs nothing.

    Raises:
        NotGood: the verdict is red, stale, or about other bytes.
        SignError: the key is absent, unknown, expired or about to expire, or GnuPG failed.
        FactoryError: a file is no longer the one that was recorded.
    """
    detached = (artifact.path.name, artifact.tarball.name)
    parts, request = _prepared(artifact, verdict, run=run, signing=signing, detached=detached, now=now)
    with signing_key(signing, state=state, keys=keys, now=now, log=run.log("gpg-agent")) as (home, key, throw_away):
        say(f"signing with {key.fingerprint}" + (", a throw-away key" if throw_away else ""))
        ends = end_of(key, key_dates(keys) if not throw_away else ())
        warn_of_end(ends, now=now, say=say)
        with appearing(run.path / "bundle") as folder:
            sealed = seal(request, home=home, key=key, throw_away=throw_away)
            _fill(folder, parts, sealed.files)
            for name in detached:
                _sign_file(home, key, folder / name)
            files = tuple(sorted(path.name for path in folder.iterdir()))
    say(f"{len(files)} files in {run.path / 'bundle'}")
    return Bundle(
        artifact=artifact,
        verdict=verdict,
        fingerprint=key.fingerprint,
        throw_away_key=throw_away,
        directory=run.path / "bundle",
        files=files,
        signed_at=now,
        statements=STATEMENTS,
        key_ends=ends,
    )


def request_of(artifact: Artifact, verdict: Verdict, *, run: Run, signing: Signing, now: datetime) -> SigningRequest:
    """What another host is to sign: digests and statements, no image.

    Raises:
        NotGood: the verdict is red, stale, or about other bytes.
        FactoryError: a file is no longer the one that was recorded.
    """
    request = _prepared(artifact, verdict, run=run, signing=signing, detached=(), now=now)[1]
    expect_good(request, now=now)
    return request


def sign_request(
    request: SigningRequest, *, state: State, signing: Signing, keys: Path, now: datetime, say: Say
) -> Sealed:
    """Sign what another host asks for, with a key of this one.

    Raises:
        NotGood: the parts of the request do not agree, or its verdict is not green or stale.
        SignError: as for :func:`sign`.
    """
    expect_good(request, now=now)
    log = state.keys / "gpg-agent.log"
    with signing_key(signing, state=state, keys=keys, now=now, log=log) as (home, key, throw_away):
        say(f"signing with {key.fingerprint}" + (", a throw-away key" if throw_away else ""))
        warn_of_end(end_of(key, key_dates(keys) if not throw_away else ()), now=now, say=say)
        return seal(request, home=home, key=key, throw_away=throw_away)


def attach(
    artifact: Artifact,
    verdict: Verdict,
    answer: Path,
    *,
    run: Run,
    signing: Signing,
    keys: Path,
    trusted: Path,
    now: datetime,
    say: Say,
) -> Bundle:
    """Make the bundle of what another host signed; it appears only when it verifies.

    Args:
        answer: what that host wrote.
        trusted: a folder of further public keys, beside those that ``keys`` lists.

    Raises:
        NotGood: the answer is to another request, or does not verify.
        FactoryError: a file is no longer the one that was recorded.
    """
    parts, request = _prepared(artifact, verdict, run=run, signing=signing, detached=(), now=now)
    sealed = read_answer(answer)
    expect_answer(sealed, request)
    with appearing(run.path / "bundle") as folder:
        _fill(folder, parts, sealed.files)
        try:
            found = verify_signatures(folder, keys=keys, trusted=trusted, now=now)
        except NotGood as bad:
            hint = "is the signer's key in keys/keys.toml, and in use? Then write the request again"
            raise NotGood("the bundle does not verify with this answer", facts=bad.facts, hint=hint) from None
        files = tuple(sorted(path.name for path in folder.iterdir()))
    ends = min((one.key_ends for one in found.signatures if one.key_ends is not None), default=None)
    say(f"{len(files)} files in {run.path / 'bundle'}, signed elsewhere with {found.fingerprint}")
    warn_of_end(ends, now=now, say=say)
    return Bundle(
        artifact=artifact,
        verdict=verdict,
        fingerprint=found.fingerprint,
        throw_away_key=found.throw_away,
        directory=run.path / "bundle",
        files=files,
        signed_at=max(one.made_at for one in found.signatures),
        statements=STATEMENTS,
        key_ends=ends,
    )


def warn_of_end(ends: datetime | None, *, now: datetime, say: Say) -> None:
    """Say so when a key signs for a month more at most."""
    if ends is not None and ends - now <= timedelta(days=WARN_DAYS):
        say(f"warning: this key signs for {(ends - now).days} days more; see docs/how-to/change-signing-keys.md")


def expect_green(artifact: Artifact, verdict: Verdict, *, now: datetime) -> None:
    """Raise NotGood unless the verdict is green, recent, and about exactly this artifact."""
    if verdict.artifact_sha256 != artifact.sha256:
        raise NotGood(
            "the verdict is about other bytes than this image",
            facts=(("image", artifact.sha256), ("verdict", verdict.artifact_sha256)),
            hint="run 'factory verify' on this run again",
        )
    if verdict.failures:
        raise NotGood(
            f"a red image is not signed: {len(verdict.failures)} of {len(verdict.checks)} checks failed",
            facts=tuple(("failed", f"{one.name}: {one.message}") for one in verdict.failures[:_SHOWN_FAILURES]),
            hint="see the run's report",
        )
    if not verdict.passed:
        raise NotGood("nothing was tested, and that is not a pass", hint="run 'factory verify' on this run again")
    age = now - verdict.judged_at
    if verdict.judged_at < artifact.built_at - _CLOCK_SLACK or age < -_CLOCK_SLACK:
        raise NotGood(
            "the verdict's time does not fit the image",
            facts=(
                ("built", f"{artifact.built_at:%Y-%m-%d %H:%M:%S}"),
                ("judged", f"{verdict.judged_at:%Y-%m-%d %H:%M:%S}"),
                ("now", f"{now:%Y-%m-%d %H:%M:%S}"),
            ),
            hint="look at the clocks of the hosts; then run 'factory verify' again",
        )
    if age > timedelta(days=VERDICT_DAYS):
        raise NotGood(
            f"the verdict is stale: {age.days} days old",
            facts=(("at most", f"{VERDICT_DAYS} days"),),
            hint="run 'factory verify' on this run again, or start a new night",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What is in a bundle before anything is signed: files of the run by their SHA-256, and texts by name."""

    files: Mapping[Path, str]
    texts: Mapping[str, str]


def _prepared(
    artifact: Artifact, verdict: Verdict, *, run: Run, signing: Signing, detached: tuple[str, ...], now: datetime
) -> tuple[_Parts, SigningRequest]:
    """The parts of the bundle, and what is to be signed about them."""
    expect_green(artifact, verdict, now=now)
    # what a signature will vouch for is read here and now, whatever was read before
    expect_digest(artifact.path, artifact.sha256, anew=True)
    expect_digest(artifact.tarball, artifact.tarball_sha256, anew=True)
    expect_digest(artifact.lock, artifact.lock_sha256, anew=True)
    made = _built(artifact)
    files = {**made, **_noted(verdict, run)}
    texts = {VERDICT: verdict_json(artifact, verdict), JUNIT: junit(verdict)}
    built = {path.name: sha256 for path, sha256 in made.items()}
    named = {path.name: sha256 for path, sha256 in files.items()}
    digests = {**named, **{name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}}
    if len(digests) != len(files) + len(texts) or not all(is_plain(name) for name in digests):
        raise SignError(f"files of these names cannot stand in a bundle: {', '.join(path.name for path in files)}")
    statements = (
        provenance(
            artifact,
            run_id=run.id,
            built=built,
            lock=artifact.lock,
            detached=detached,
            builder_id=signing.builder,
        ),
        test_result(artifact, verdict, verdict_sha256=digests[VERDICT]),
    )
    request = SigningRequest(
        run=run.id,
        image=artifact.path.name,
        digests=digests,
        statements=tuple(one.decode() for one in statements),
        verdict=texts[VERDICT],
        lock=artifact.lock.read_text(),
    )
    return _Parts(files=files, texts=texts), request


def _built(artifact: Artifact) -> dict[Path, str]:
    """Every file that the build made for others, by SHA-256: the subjects of the provenance."""
    known = {artifact.path: artifact.sha256, artifact.tarball: artifact.tarball_sha256}
    known |= {artifact.lock: artifact.lock_sha256, artifact.packages_list: sha256_file(artifact.packages_list)}
    if artifact.sbom is not None:
        expect_digest(artifact.sbom, artifact.sbom_sha256, anew=True)
        known[artifact.sbom] = artifact.sbom_sha256
    return known | {path: sha256_file(path) for path in (artifact.inventory, artifact.changelogs) if path is not None}


def _noted(verdict: Verdict, run: Run) -> dict[Path, str]:
    """What was noted after the build, by SHA-256: of the guest that was up, and what changed since the last image."""
    found = (verdict.booted, *(run.path / name for name in (RELEASE_NOTE, DIFFERENCE)))
    return {path: sha256_file(path) for path in found if path is not None and path.is_file()}


def _fill(folder: Path, parts: _Parts, sealed: Mapping[str, str]) -> None:
    """Put the parts and the signed files into a new ``folder``."""
    folder.mkdir()
    for path in parts.files:
        link(path, folder / path.name)
    for name, text in {**parts.texts, **sealed}.items():
        write_whole(folder / name, text)


def _sign_file(home: Home, key: Key, file: Path) -> None:
    """Sign, and read the signature back before anyone else has to."""
    signature = file.with_name(f"{file.name}.asc")
    home.sign(file, signature, fingerprint=key.fingerprint)
    signature.chmod(0o644)
    expect_made(home.verify(file, signature), key.fingerprint, what=f"'{file.name}'")
