# SPDX-License-Identifier: Apache-2.0
"""The sign stage: an artifact and a green verdict about the same bytes become a bundle.

``bundle/`` in the run's folder appears whole: the image (a hard link, not a copy), the source tarball, the package
list, the lock of the inputs, the verdict, ``SHA256SUMS`` over all of them, and detached signatures.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

from factory.errors import NotGood, SignError
from factory.model import Artifact, Bundle, Signing, Verdict
from factory.sign.checksums import NAME as SUMS
from factory.sign.checksums import is_plain, sums_text
from factory.sign.junit import junit
from factory.sign.keyring import signing_key
from factory.sign.openpgp import Home, Key
from factory.system.files import appearing, expect_digest, sha256_file, write_whole
from factory.system.state import Run, State

VERDICT_DAYS = 7
"""A verdict older than this is stale: packages it did not see may have had security fixes since."""
PUBLIC_KEY = "throw-away-key.pub"
_CLOCK_SLACK = timedelta(hours=1)
_SHOWN_FAILURES = 5


def sign(
    artifact: Artifact,
    verdict: Verdict,
    *,
    run: Run,
    state: State,
    signing: Signing,
    keys: Path,
    now: datetime,
    say: Callable[[str], None],
) -> Bundle:
    """Sign a green image.

    Args:
        signing: the site's key by full fingerprint, or nothing for the throw-away key of the embedded default.
        keys: the folder with ``keys.toml``; a configured key that it does not list signs nothing.

    Raises:
        NotGood: the verdict is red, stale, or about other bytes.
        SignError: the key is absent, unknown, expired or about to expire, or GnuPG failed.
        FactoryError: a file is no longer the one that was recorded.
    """
    expect_green(artifact, verdict, now=now)
    expect_digest(artifact.path, artifact.sha256)
    expect_digest(artifact.tarball, artifact.tarball_sha256)
    expect_digest(artifact.lock, artifact.lock_sha256)
    with signing_key(signing, state=state, keys=keys, now=now, log=run.log("gpg-agent")) as (home, key, throw_away):
        say(f"signing with {key.fingerprint}" + (", a throw-away key" if throw_away else ""))
        with appearing(run.path / "bundle") as folder:
            folder.mkdir()
            digests = _fill(folder, artifact, verdict, public_key=home.export(key.fingerprint) if throw_away else "")
            write_whole(folder / SUMS, sums_text(digests))
            for name in (artifact.path.name, SUMS, artifact.tarball.name):
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
    )


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


def _fill(folder: Path, artifact: Artifact, verdict: Verdict, *, public_key: str) -> dict[str, str]:
    """Put every file but the sums and signatures into ``folder``; returns names and digests."""
    known = {artifact.path: artifact.sha256, artifact.tarball: artifact.tarball_sha256}
    known |= {artifact.lock: artifact.lock_sha256, artifact.packages_list: sha256_file(artifact.packages_list)}
    digests: dict[str, str] = {}
    for path, sha256 in known.items():
        if path.name in digests or not is_plain(path.name):
            raise SignError(f"the file name {path.name!r} cannot stand in a bundle")
        os.link(path, folder / path.name)
        digests[path.name] = sha256
    texts = {"verdict.json": _verdict_json(verdict), "verdict.junit.xml": junit(verdict)}
    texts |= {PUBLIC_KEY: public_key} if public_key else {}
    for name, text in texts.items():
        write_whole(folder / name, text)
        digests[name] = sha256_file(folder / name)
    return digests


def _verdict_json(verdict: Verdict) -> str:
    body = {
        "schema": "factory/verdict/1",
        "artifact_sha256": verdict.artifact_sha256,
        "passed": verdict.passed,
        "judged_at": verdict.judged_at.isoformat(),
        "sandbox": verdict.sandbox,
        "accelerator": verdict.accelerator,
        "region_proof": verdict.region_proof,
        "checks": [
            {
                "name": one.name,
                "guarantee": one.guarantee,
                "outcome": one.outcome.value,
                "message": one.message,
                "seconds": round(one.seconds, 3),
            }
            for one in verdict.checks
        ],
    }
    return json.dumps(body, indent=1) + "\n"


def _sign_file(home: Home, key: Key, file: Path) -> None:
    """Sign, and read the signature back before anyone else has to."""
    signature = file.with_name(f"{file.name}.asc")
    home.sign(file, signature, fingerprint=key.fingerprint)
    signature.chmod(0o644)
    made = home.verify(file, signature)
    if [(one.primary, one.fault) for one in made] != [(key.fingerprint, "")]:
        raise SignError(
            f"the signature over '{file.name}' does not verify",
            facts=tuple(("GnuPG says", one.fault or f"made by {one.primary}") for one in made),
            hint="name the primary key by its full fingerprint",
        )
