# SPDX-License-Identifier: Apache-2.0
"""Nights without news: nothing to do, a mirror that stands still, an image whose month has come."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from factory.build.tools import note_name, read_list, tree_digest
from factory.errors import StoreError
from factory.inputs.blobs import BlobStore
from factory.inputs.lock import Input, write_lock
from factory.installation import Installation
from factory.model import Artifact, Bundle, Freshness, Publication, Release, Rotation, Rotations, Site, Target
from factory.pipeline import Line, Night, nightly, start
from factory.system.state import Run, State
from testsuite.fakes.bundles import make_bundle
from testsuite.repository import NOW, Archive, SigningKey, make_key, mirror

pytestmark = pytest.mark.programs

PROJECT = Path(__file__).parents[2]
PATH = "dists/trixie-security/InRelease"
DAY = timedelta(days=1)


@dataclass
class Place:
    """A factory whose mirror is on loopback and whose cloud is nowhere: nothing can be published by mistake."""

    here: Installation
    archive: Archive
    said: list[str]

    def with_tools(self) -> None:
        """A warm tools tree of nothing, found by the index of Debian that the mirror has."""
        debian = Archive(root=self.archive.root, key=self.archive.key)
        debian.publish(signed=NOW - 2 * DAY, valid_days=None)
        packages = Input(repository="tools", path="", sha512=hashlib.sha512(debian.index).hexdigest())
        folder = self.here.state.tools
        (folder / tree_digest({})).mkdir(parents=True)
        (folder / note_name(read_list(), [packages])).write_text("[]")

    def earlier(self, at: datetime, *, signed: datetime, policy: str = "every-night") -> Run:
        """A run that was built from what the mirror still serves, and signed."""
        state = self.here.state
        line = Line(run=state.new_run("debian13", at), here=self.here, ledger=None, now=lambda: at, say=self.say)
        recipe = line.describe()
        self.archive.publish(signed=signed)
        blobs = BlobStore(state.blobs)
        blobs.prepare()
        with blobs.incoming() as incoming:
            incoming.write((self.archive.root / PATH).read_bytes())
            kept = blobs.keep(incoming)
        made = make_bundle(line.run.path / "bundle", built_at=at, data_bytes=4096)
        described = dataclasses.replace(recipe.description, publish=policy)
        artifact = dataclasses.replace(
            made.artifact,
            recipe=dataclasses.replace(recipe, description=described, dirty=False),
            tools={**made.artifact.tools, "tools-tree": tree_digest({})},
        )
        write_lock(
            artifact.lock,
            [Input(repository="debian-security", path=PATH, sha512=kept.sha512, size_bytes=kept.size_bytes)],
        )
        line.run.write("build", artifact)
        line.run.write("verify", made.verdict)
        line.run.write("sign", dataclasses.replace(made, artifact=artifact))
        return line.run

    def say(self, stage: str, text: str) -> None:
        self.said.append(f"{stage}: {text}")

    def night(self, at: datetime, **options: bool) -> Night:
        return nightly("debian13", here=self.here, ledger=None, now=lambda: at, say=self.say, **options)


def project_of(folder: Path, key: SigningKey) -> Path:
    """This project, with keyrings of its own."""
    project = folder / "project"
    (project / "keys/vendor").mkdir(parents=True)
    for name in ("descriptions", "testsuite"):
        (project / name).symlink_to(PROJECT / name)
    for alias in ("debian", "debian-security"):
        shutil.copyfile(key.keyring, project / f"keys/vendor/{alias}.gpg")
    return project


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Callable[..., Place]]:
    key = make_key(tmp_path, "archive")
    archive = Archive(root=tmp_path / "mirror", key=key, suite="trixie-security")
    archive.publish(signed=NOW)
    with mirror(archive.root) as (address, _):

        def make(**freshness: Freshness) -> Place:
            site = Site(
                mirrors={"debian": address, "debian-security": address},
                update_repositories={"debian": address, "debian-security": address},
                targets=(Target(cloud="nowhere"),),
                freshness={alias.replace("_", "-"): rule for alias, rule in freshness.items()},
            )
            state = State(path=tmp_path / "state").prepare()
            here = Installation(project=project_of(tmp_path, key), state=state, site=site)
            made = Place(here=here, archive=archive, said=[])
            made.with_tools()
            return made

        yield make


def rotated(run: Run, at: datetime) -> None:
    done = Rotation(target=Target(), line="L", latest="x", prev=None, archived=None, steps=(), gap_s=0, rotated_at=at)
    run.write("rotate", Rotations(rotations=(done,)))


def test_nothing_changed(place) -> None:
    here = place(debian_security=Freshness(fresh_within_h=72))
    run = here.earlier(NOW - DAY, signed=NOW - 2 * DAY)
    rotated(run, NOW - DAY)
    night = here.night(NOW)
    assert (night.outcome, night.stale) == ("unchanged", ())
    assert night.reason == f"nothing changed since run {run.id}: all 1 signed indexes are the same; so are the tools"


def test_a_mirror_that_stands_still_has_no_news_and_is_told(place) -> None:
    here = place(debian_security=Freshness(fresh_within_h=24))
    rotated(here.earlier(NOW - DAY, signed=NOW - 2 * DAY), NOW - DAY)
    night = here.night(NOW)
    assert night.outcome == "unchanged"
    assert "but a mirror does not follow its archive: debian-security trixie-security" in night.reason
    assert len(night.stale) == 1
    assert here.night(NOW + timedelta(seconds=1), allow_stale=True).stale == ()


def test_a_night_that_a_stale_mirror_stopped_goes_on_when_it_is_allowed(place) -> None:
    here = place(debian_security=Freshness(fresh_within_h=24))
    run = here.earlier(NOW - DAY, signed=NOW - 2 * DAY)
    night = here.night(NOW, allow_dirty=True)
    assert (night.outcome, night.run.id, len(night.stale)) == ("withheld", run.id, 1)
    assert not run.has("publish")
    with pytest.raises(StoreError, match="nowhere"):
        here.night(NOW + timedelta(seconds=1), allow_dirty=True, allow_stale=True)


def test_a_withheld_image_is_published_when_its_month_begins(place) -> None:
    here = place()
    first = here.earlier(NOW - 3 * DAY, signed=NOW - 4 * DAY, policy="monthly")
    rotated(first, NOW - 3 * DAY)
    run = here.earlier(NOW - DAY, signed=NOW - 2 * DAY, policy="monthly")
    run.write("publish", Publication(releases=(), reason="green, but not published: ..."))
    assert here.night(NOW).outcome == "unchanged"
    assert run.has("publish")
    with pytest.raises(StoreError, match="nowhere"):
        here.night(NOW + 12 * DAY, allow_dirty=True)
    assert any(f"the image of run {run.id}, which was not published, is due now" in text for text in here.said)


def test_an_index_that_is_newer_and_says_the_same_is_no_news(place) -> None:
    here = place()
    run = here.earlier(NOW - DAY, signed=NOW - 2 * DAY)
    rotated(run, NOW - DAY)
    here.archive.publish(signed=NOW - DAY)
    night = here.night(NOW)
    assert night.outcome == "unchanged"
    assert night.reason.startswith(f"nothing changed since run {run.id}: newer signed indexes (debian-security ")
    assert not night.run.has("build")


def test_other_tools_are_news(place) -> None:
    here = place()
    run = here.earlier(NOW - DAY, signed=NOW - 2 * DAY)
    rotated(run, NOW - DAY)
    artifact = run.read("build", Artifact)
    run.write("build", dataclasses.replace(artifact, tools={**artifact.tools, "tools-tree": "0" * 64}))
    assert begun(here, NOW).unchanged_since == ""
    assert any("the tools are others now" in text for text in here.said)


def begun(here: Place, at: datetime) -> Line:
    return start("debian13", here=here.here, ledger=None, now=lambda: at, say=here.say, force=False)


def test_an_equal_image_is_made_anew_within_four_weeks(place) -> None:
    here = place()
    run = here.earlier(NOW - 30 * DAY, signed=NOW - 2 * DAY)
    rotated(run, NOW - 27 * DAY)
    assert begun(here, NOW).unchanged_since == run.id
    late = begun(here, NOW + timedelta(seconds=1))
    assert late.unchanged_since == ""
    assert late.run.id != run.id
    assert any("within 28 days there is a new one" in text for text in here.said)


def test_a_new_place_to_publish_to_is_news(place) -> None:
    here = place()
    run = here.earlier(NOW - DAY, signed=NOW - 2 * DAY)
    release = Release(
        bundle=run.read("sign", Bundle),
        target=Target(cloud="nowhere"),
        image_id="x",
        generation=1,
        dated_name="x",
        published_at=NOW - DAY,
    )
    run.write("publish", Publication(releases=(release,), reason="published"))
    rotated(run, NOW - DAY)
    assert begun(here, NOW).unchanged_since == run.id
    site = dataclasses.replace(here.here.site, targets=(Target(cloud="nowhere"), Target(cloud="elsewhere")))
    here.here = dataclasses.replace(here.here, site=site)
    assert begun(here, NOW + timedelta(seconds=1)).unchanged_since == ""
    assert any("'elsewhere' is a new place to publish to" in text for text in here.said)
