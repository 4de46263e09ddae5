# SPDX-License-Identifier: Apache-2.0
"""The canary: what is compared inside, what becomes of a red one, and of one that was killed in the middle."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from pathlib import Path

import pytest

from factory.canaries import canary_of, settle, taken_back, wanted
from factory.canary import STAGE, differing, other_packages, stands
from factory.errors import StoreError
from factory.ledger import Ledger
from factory.ledger_detail import detail_of
from factory.model import Canaries, Canary, Package, Publication, Release, Rotations, Site, Target, Tenant
from factory.pipeline import is_red
from factory.publish import publish
from factory.record import judged
from factory.report.page import page
from factory.rotate import rotate
from factory.store.memory import MemoryGlance, MemoryStore
from factory.system.state import Run, State
from testsuite.fakes.bundles import BUILT, make_bundle
from testsuite.fakes.crash import CrashingStore, Killed
from testsuite.fakes.readers import expect_never_broken, expect_order

LINE = "Standard_Debian_13"
LATEST = f"{LINE}_latest"
TENANT = Tenant(cloud="users", flavor="m1", network="net")
TARGET = Target(cloud="images", canary=TENANT)
DAY = timedelta(days=1)
FAULT = "the guest did not get to the end of its boot within 900 s"


def silent(_line: str) -> None:
    return


class Place:
    """A store in memory with released images of one line, and a run whose image is the latest."""

    def __init__(self, folder: Path, *, nights: int) -> None:
        self.glance = MemoryGlance()
        self.store = MemoryStore(self.glance, "p", holder="h")
        self.run: Run = State(path=folder / "state").new_run("debian13", BUILT)
        self.releases = [self._release(folder / str(night), BUILT + night * DAY) for night in range(nights)]
        self.booted = 0

    def _release(self, folder: Path, at) -> Release:
        bundle = make_bundle(folder, built_at=at, data_bytes=4096)
        made = publish(bundle, store=self.store, target=TARGET, now=at, say=silent)
        rotate(made, store=self.store, now=at, say=silent)
        return made

    @property
    def release(self) -> Release:
        return self.releases[-1]

    def boot(self, *faults: str):
        def boot() -> Canary:
            self.booted += 1
            return canary(self.release, *faults)

        return boot

    def settle(self, *faults: str, store=None) -> Canary:
        return settle(
            self.release,
            store=store or self.store,
            run=self.run,
            kept="canary-0",
            boot=self.boot(*faults),
            now=BUILT + 30 * DAY,
            say=silent,
        )

    def latest(self) -> str:
        return next(one.id for one in self.store.list_line(LINE) if one.name == LATEST and not one.hidden)


def canary(release: Release, *faults: str, **more: object) -> Canary:
    made = Canary(
        target=TARGET, line=LINE, image_id=release.image_id, tenant="users", faults=faults, boot_s=70.0, judged_at=BUILT
    )
    return dataclasses.replace(made, **more)  # type: ignore[arg-type]


def test_a_green_canary_changes_nothing(tmp_path: Path) -> None:
    place = Place(tmp_path, nights=3)
    before = place.store.list_line(LINE)
    assert place.settle().green
    assert place.store.list_line(LINE) == before


def test_a_red_canary_is_rolled_back(tmp_path: Path) -> None:
    place = Place(tmp_path, nights=3)
    found = place.settle(FAULT)
    assert (found.green, found.rolled_back, found.note) == (False, True, "")
    assert place.latest() == place.releases[1].image_id
    withdrawn = place.store.get(place.release.image_id)
    assert withdrawn is not None
    assert (withdrawn.role, withdrawn.hidden) == ("withdrawn", True)
    expect_order(place.store.list_line(LINE), LINE, prev=True)
    assert "is the image before again" in taken_back(found)


def test_without_an_image_before_it_stays_and_that_is_told(tmp_path: Path) -> None:
    place = Place(tmp_path, nights=1)
    found = place.settle(FAULT)
    assert (found.green, found.rolled_back) == (False, False)
    assert found.note.startswith("not rolled back: ")
    assert place.latest() == place.release.image_id
    assert taken_back(found).startswith(f"{FAULT}; not rolled back")


@pytest.mark.parametrize("nights", [2, 3])
@pytest.mark.parametrize("before", [True, False])
def test_killed_at_any_request_of_the_rollback_the_next_night_finishes_it_once(
    tmp_path: Path, nights: int, *, before: bool
) -> None:
    whole = Place(tmp_path / "whole", nights=nights)
    count = CrashingStore(whole.store)
    whole.settle(FAULT, store=count)
    assert len(count.writes) >= 3
    for kill_at in range(1, len(count.writes) + 1):
        place = Place(tmp_path / f"{kill_at}", nights=nights)
        with pytest.raises(Killed):
            place.settle(FAULT, store=CrashingStore(place.store, kill_at=kill_at, before=before))
        expect_never_broken(place.store.list_line(LINE), LINE, prev=False)
        found = place.settle(FAULT)
        assert (found.green, found.rolled_back, place.booted) == (False, True, 1), "it was booted or rolled back again"
        assert place.latest() == place.releases[-2].image_id
        expect_order(place.store.list_line(LINE), LINE, prev=nights == 3)
        assert place.settle(FAULT).rolled_back, "a third time does nothing"
        assert place.latest() == place.releases[-2].image_id


def test_an_image_that_is_not_the_latest_any_more_is_not_booted(tmp_path: Path) -> None:
    place = Place(tmp_path, nights=3)
    overtaken = place.releases[1]
    found = settle(
        overtaken, store=place.store, run=place.run, kept="canary-0", boot=place.boot(FAULT), now=BUILT, say=silent
    )
    assert (found.green, found.note, place.booted) == (True, "another image is the latest already", 0)
    place.settle(FAULT)
    place.run.file("canary-0").unlink()
    gone = place.settle(FAULT)
    assert (gone.green, gone.rolled_back, place.booted) == (False, True, 1)
    assert "was withdrawn before its canary" in gone.faults[0]


def test_a_store_that_is_away_is_a_broken_night_and_not_a_verdict(tmp_path: Path) -> None:
    place = Place(tmp_path, nights=2)

    class Away(CrashingStore):
        def list_line(self, line: str):
            raise StoreError(f"'{line}' cannot be listed")

    with pytest.raises(StoreError):
        place.settle(FAULT, store=Away(place.store))
    assert place.booted == 0


# -- what a run is worth ----------------------------------------------------------------------------------------------


def test_a_run_whose_canary_is_red_is_not_seen_as_published(tmp_path: Path) -> None:
    place = Place(tmp_path, nights=1)
    run = place.run
    assert not stands(run)
    run.write("rotate", Rotations(rotations=()))
    assert stands(run)
    assert not is_red(run)
    run.write(STAGE, Canaries(canaries=(canary(place.release),)))
    assert stands(run)
    run.write(STAGE, Canaries(canaries=(canary(place.release), canary(place.release, FAULT, rolled_back=True))))
    assert not stands(run)
    assert is_red(run)


def test_a_canary_is_wanted_where_it_was_released_for_one_and_still_is_configured(tmp_path: Path) -> None:
    release = Place(tmp_path, nights=1).release
    other = dataclasses.replace(TENANT, flavor="m2")
    configured = Site(targets=(Target(cloud="else"), dataclasses.replace(TARGET, canary=other)))
    assert canary_of(release, configured) == other
    assert canary_of(release, Site(targets=(Target(cloud="images"),))) is None
    assert canary_of(release, Site(targets=(dataclasses.replace(TARGET, region_name="r2"),))) is None
    without = dataclasses.replace(release, target=Target(cloud="images"))
    assert canary_of(without, configured) is None
    assert wanted(Publication(releases=(without, release), reason=""), configured)
    assert not wanted(Publication(releases=(without,), reason=""), configured)


def test_how_it_is_recorded_and_said(tmp_path: Path) -> None:
    release = Place(tmp_path, nights=1).release
    red = canary(release, f"{FAULT}\n  it said: nothing", rolled_back=True)
    assert judged(Canaries(canaries=(canary(release),))) == ("done", f"{LATEST} stands in users")
    assert judged(Canaries(canaries=(red,))) == ("red", f"{FAULT}; {LATEST} is the image before again")
    detail = detail_of(Canaries(canaries=(red,)))["canaries"][0]
    assert (detail["green"], detail["rolled_back"], detail["cloud"], detail["tenant"]) == (
        False,
        True,
        "images",
        "users",
    )
    assert detail["faults"] == [f"{FAULT}\n  it said: nothing"]


def _page(place: Place, found: Canaries | None) -> str:
    with Ledger.open(place.run.path / "ledger.sqlite") as ledger:
        ledger.begin_run(place.run.id, image="debian13", line=LINE, started_at=BUILT)
        rotation = rotate(place.release, store=place.store, now=BUILT, say=silent)
        values = [Publication(releases=(place.release,), reason=""), Rotations(rotations=(rotation,))]
        for stage, value in zip(("publish", "rotate", STAGE), [*values, *([found] if found else [])], strict=False):
            detail = detail_of(value)
            ledger.record_stage(place.run.id, stage, outcome="done", started_at=BUILT, seconds=1.0, detail=detail)
        green = found is None or found.green
        ledger.end_run(place.run.id, outcome="published" if green else "red", ended_at=BUILT, message="")
        record = ledger.run(place.run.id)
    assert record is not None
    return page(record, None, now=BUILT)


def test_the_report_tells_the_canary_and_obeys_nothing_of_it(tmp_path: Path) -> None:
    place = Place(tmp_path, nights=1)
    red = canary(place.release, "it said: <script>alert(1)</script>\x1b[2J", rolled_back=True)
    shown = _page(place, Canaries(canaries=(red,)))
    assert "Red: the canary did not stand" in shown
    assert "rolled back" in shown
    assert "&lt;script&gt;" in shown
    assert "<script>" not in shown
    assert "\x1b" not in shown
    assert "started by its name in users" in _page(place, Canaries(canaries=(canary(place.release),)))


def test_the_report_says_where_there_is_no_canary(tmp_path: Path) -> None:
    assert "<dt>canary</dt><dd>not configured</dd>" in _page(Place(tmp_path, nights=1), None)


# -- inside -----------------------------------------------------------------------------------------------------------

RELEASED = [Package(name=f"p{number}", version="1", arch="amd64") for number in range(10)]
SAME = {f"p{number} 1 amd64" for number in range(10)}


def test_the_same_packages_are_the_same_build() -> None:
    assert list(other_packages(SAME, RELEASED)) == []
    assert list(other_packages(set(), RELEASED)) == []


@pytest.mark.parametrize(
    "found", [SAME - {"p3 1 amd64"}, SAME | {"p99 1 amd64"}, SAME - {"p3 1 amd64"} | {"p3 2 amd64"}]
)
def test_other_packages_are_another_build(found: set[str]) -> None:
    (fault,) = other_packages(found, RELEASED)
    assert fault.startswith("the guest is another build")


def test_the_versions_of_the_system_are_compared() -> None:
    found = {"ID": "debian", "VERSION_ID": "12"}
    assert list(differing(found, {"ID": "debian", "VERSION_ID": ""})) == []
    (fault,) = differing(found, {"ID": "debian", "VERSION_ID": "13"})
    assert fault == "the guest's os-release says VERSION_ID='12', released was '13'"
