# SPDX-License-Identifier: Apache-2.0
"""Mirrors that follow their archive and mirrors that do not: real indexes, really signed, really served."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from factory.errors import InputsError
from factory.inputs.age import SuiteAge, Trust, suite_ages
from factory.inputs.blobs import BlobStore
from factory.inputs.lock import Input, write_lock
from factory.inputs.signers import Signers
from factory.installation import Installation
from factory.model import (
    Artifact,
    Bundle,
    Description,
    Freshness,
    Package,
    Publication,
    Rotation,
    Rotations,
    Site,
    Target,
)
from factory.pipeline import Line
from factory.system.state import Run, State
from testsuite.fakes.bundles import make_bundle
from testsuite.repository import NOW, Archive, SigningKey, make_key, mirror

pytestmark = pytest.mark.programs

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SigningKey]:
    folder = tmp_path_factory.mktemp("k")
    made = {user: make_key(folder, user) for user in ("archive", "stranger")}
    both = folder / "both.gpg"
    both.write_bytes(b"".join(key.keyring.read_bytes() for key in made.values()))
    return made | {"both": dataclasses.replace(made["archive"], keyring=both)}


@pytest.fixture
def recorded(tmp_path: Path, keys: dict[str, SigningKey]) -> Callable[[datetime], Path]:
    """A lock with one index of ``debian-security`` signed at a time."""

    def record(signed: datetime) -> Path:
        archive = Archive(root=tmp_path / f"mirror-{signed:%d%H}", key=keys["archive"], suite="trixie-security")
        archive.publish(signed=signed)
        blobs = BlobStore(tmp_path / "state" / "blobs")
        blobs.prepare()
        with blobs.incoming() as incoming:
            incoming.write((archive.root / "dists/trixie-security/InRelease").read_bytes())
            kept = blobs.keep(incoming)
        entry = Input(
            repository="debian-security",
            path="dists/trixie-security/InRelease",
            sha512=kept.sha512,
            size_bytes=kept.size_bytes,
        )
        write_lock(tmp_path / "inputs.lock", [entry])
        return tmp_path / "inputs.lock"

    return record


def trust(keys: dict[str, SigningKey], *pinned: str, folder: Path | None = None) -> Trust:
    """One keyring has both keys: which of them counts is not its to say."""
    return Trust(
        keyrings={"debian-security": keys["both"].keyring if pinned or folder else keys["archive"].keyring},
        pinned={"debian-security": tuple(fingerprint(keys[name]) for name in pinned)} if pinned else {},
        signers=Signers(folder),
    )


def fingerprint(key: SigningKey) -> str:
    argv = ["gpg", "--homedir", str(key.home), "--batch", "--with-colons", "--list-keys", key.user]
    listed = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    return next(line.split(":")[9] for line in listed.splitlines() if line.startswith("fpr:"))


def judge(
    lock: Path, keys: dict[str, SigningKey], *, upstream: str = "", hours: int = 24, by: Trust | None = None
) -> tuple[SuiteAge, ...]:
    return suite_ages(
        lock,
        blobs=lock.parent / "state" / "blobs",
        trust=by or trust(keys),
        wanted={"debian-security": Freshness(fresh_within_h=hours, upstream=upstream)},
        now=NOW,
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "stale"),
    [
        (timedelta(), timedelta(), False),
        (23 * HOUR, timedelta(), False),
        (25 * HOUR, timedelta(), True),
        (60 * DAY, 60 * DAY, False),  # quiet, and the mirror has all there is
        (60 * DAY, 58 * DAY, True),
        (2 * HOUR, 30 * HOUR, False),  # ahead of upstream's own front server
    ],
)
def test_against_upstream(tmp_path, keys, recorded, ours: timedelta, theirs: timedelta, *, stale: bool) -> None:
    archive = Archive(root=tmp_path / "upstream", key=keys["archive"], suite="trixie-security")
    archive.publish(signed=NOW - theirs)
    with mirror(archive.root) as (address, asked):
        (age,) = judge(recorded(NOW - ours), keys, upstream=address)
    assert asked == ["/dists/trixie-security/InRelease"]
    assert (age.stale, age.why) == (stale, "")


@pytest.mark.parametrize(("ours", "stale"), [(23 * HOUR, False), (25 * HOUR, True)])
def test_without_upstream_the_clock_is_the_measure_and_it_is_said(keys, recorded, ours, *, stale: bool) -> None:
    (age,) = judge(recorded(NOW - ours), keys)
    assert (age.stale, age.why) == (stale, "no upstream is named")
    (age,) = judge(recorded(NOW - ours), keys, upstream="http://127.0.0.1:9")
    assert age.stale is stale
    assert "not reachable" in age.why
    assert "the clock (upstream is not reachable" in str(age)


@pytest.mark.parametrize("wrong", ["stranger", "gone", "huge"])
def test_only_what_upstream_signed_counts(tmp_path, keys, recorded, wrong: str) -> None:
    archive = Archive(root=tmp_path / "upstream", key=keys["archive"], suite="trixie-security")
    archive.publish(signed=NOW, key=keys["stranger"] if wrong == "stranger" else None)
    index = archive.root / "dists/trixie-security/InRelease"
    if wrong == "gone":
        index.unlink()
    if wrong == "huge":
        index.write_bytes(b"x" * (17 << 20))
    with mirror(archive.root) as (address, _):
        (age,) = judge(recorded(NOW - 23 * HOUR), keys, upstream=address)
    assert age.upstream is None
    assert {"stranger": "not good", "gone": "404", "huge": "too large"}[wrong] in age.why
    assert not age.stale


@pytest.mark.parametrize("known", ["pinned", "seen before"])
def test_only_the_keys_that_builds_take_may_date_an_index(tmp_path, keys, recorded, known: str) -> None:
    """Both keys are in the keyring, and both signatures are good; one of them is not the repository's."""
    archive = Archive(root=tmp_path / "upstream", key=keys["archive"], suite="trixie-security")
    lock = recorded(NOW - 25 * HOUR)
    by = trust(keys, *(["archive"] if known == "pinned" else []), folder=tmp_path / "signers")
    with mirror(archive.root) as (address, _):
        archive.publish(signed=NOW)
        (age,) = judge(lock, keys, upstream=address, by=by)
        assert (age.upstream, age.stale, age.why) == (NOW, True, "")
        archive.publish(signed=NOW - 25 * HOUR, key=keys["stranger"])
        (age,) = judge(lock, keys, upstream=address, by=by)
    assert age.upstream is None
    assert "'debian-security' (suite trixie-security) is signed by another key" in age.why
    assert age.stale, "a date of a stranger must not hide that the mirror is behind"
    with pytest.raises(InputsError, match="signed by another key"):
        judge(lock, keys, by=trust(keys, "stranger"))


def test_repositories_and_suites_without_the_key_are_never_asked(keys, recorded) -> None:
    lock = recorded(NOW - 300 * DAY)
    for wanted in ({}, {"debian-security": Freshness(fresh_within_h=1, suites=("trixie",))}):
        found = suite_ages(lock, blobs=lock.parent / "state/blobs", trust=trust(keys), wanted=wanted, now=NOW)
        assert found == ()


def test_an_index_that_is_not_recorded_any_more_is_told(keys, recorded) -> None:
    lock = recorded(NOW)
    for blob in (lock.parent / "state/blobs").iterdir():
        if blob.is_file():
            blob.unlink()
    with pytest.raises(InputsError, match="not recorded any more"):
        judge(lock, keys)


# -- what the night makes of it ----------------------------------------------------------------------------------------


@pytest.fixture
def night(tmp_path, keys, recorded) -> Callable[..., tuple[Line, Bundle, list[str]]]:
    """A run that has been signed: what ``publish`` is about to get."""

    def make(*, age: timedelta, policy: str = "every-night", now: datetime = NOW, allowed_h: int = 24):
        state = State(path=tmp_path / "state").prepare()
        made = make_bundle(
            tmp_path / "bundle", description=Description(name="tiny", line="Tiny", publish=policy), data_bytes=4096
        )
        recipe = dataclasses.replace(made.artifact.recipe, keyrings={"debian-security": keys["archive"].keyring})
        artifact = dataclasses.replace(made.artifact, recipe=recipe, lock=recorded(NOW - age))
        bundle = dataclasses.replace(made, artifact=artifact)
        run = state.new_run("tiny", now)
        run.write("describe", recipe)
        run.write("build", artifact)
        run.write("verify", bundle.verdict)
        run.write("sign", bundle)
        site = dataclasses.replace(
            Site(), freshness={"debian-security": Freshness(fresh_within_h=allowed_h)}, targets=(Target(cloud="none"),)
        )
        said: list[str] = []
        line = Line(
            run=run,
            here=Installation(project=tmp_path, state=state, site=site),
            ledger=None,
            now=lambda: now,
            say=lambda stage, text: said.append(f"{stage}: {text}"),
        )
        return line, bundle, said

    return make


def earlier(state: State, bundle: Bundle, at: datetime, packages: tuple[Package, ...]) -> Run:
    """A run of the past whose image became the latest."""
    run = state.new_run("tiny", at)
    run.write("build", dataclasses.replace(bundle.artifact, packages=packages))
    rotation = Rotation(
        target=Target(), line="Tiny", latest="x", prev=None, archived=None, steps=(), gap_s=0, rotated_at=at
    )
    run.write("rotate", Rotations(rotations=(rotation,)))
    return run


def test_a_mirror_that_is_behind_stops_publishing_and_is_asked_again_the_next_night(night) -> None:
    line, bundle, said = night(age=25 * HOUR)
    for force in (False, True):
        withheld = line.publish(bundle, force=force)
        assert withheld.releases == ()
        assert "green, but not published: a mirror does not follow its archive: debian-security" in withheld.reason
        assert len(withheld.stale) == 1
    assert not line.run.has("publish"), "the next night would take it for decided"
    assert any(text.startswith("publish: withheld: green") for text in said)
    assert any("compared with the clock" in text for text in said)
    assert [one.outcome for one in line.results] == ["withheld", "withheld"]
    fresh, bundle, _ = night(age=23 * HOUR, now=NOW + timedelta(seconds=1))
    assert fresh.stale(bundle.artifact) == ()


def test_a_green_image_that_is_not_due_is_told_as_such_and_is_due_in_the_next_month(night) -> None:
    line, bundle, _ = night(age=HOUR, policy="on-security")
    earlier(line.here.state, bundle, NOW - 3 * DAY, bundle.artifact.packages)
    withheld = line.publish(bundle)
    assert withheld == Publication(
        releases=(),
        reason="green, but not published: no security or boot package changed since 2026-11-18",
    )
    assert line.run.has("publish")
    assert not line.is_due(line.run)
    line.now = lambda: NOW + 10 * DAY
    assert line.is_due(line.run), "December has no image yet"


def test_a_dirty_image_is_never_due_by_itself(night) -> None:
    line, bundle, _ = night(age=HOUR)
    recipe = dataclasses.replace(bundle.artifact.recipe, dirty=True)
    line.run.write("build", dataclasses.replace(bundle.artifact, recipe=recipe))
    assert not line.is_due(line.run)
    assert line.run.read("build", Artifact).recipe.dirty
