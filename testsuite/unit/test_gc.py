# SPDX-License-Identifier: Apache-2.0
"""What stays and what goes: decided from listings, then done in a real state folder."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.errors import FactoryError
from factory.gc import Blob, Limits, Listing, RunFolder, collect, collect_blobs, expect_space, look, plan_gc
from factory.inputs.lock import Input, write_lock
from factory.model import Artifact, Bundle, Publication, Rotations
from factory.system.lock import exclusive
from factory.system.state import Run, State
from testsuite import samples

NOW = samples.NIGHT
LIMITS = Limits(whole_runs=2, recorded_runs=4, blob_days=14)


def folder(number: int, image: str = "debian13", **change: object) -> RunFolder:
    run = Run(path=Path(f"/state/runs/202611{number:02d}-020000-{image}"))
    return replace(RunFolder(run=run, built=True, bulk_bytes=100, rest_bytes=7), **change)


def decided(*runs: RunFolder, limits: Limits = LIMITS, referenced: frozenset[str] = frozenset()) -> dict[str, str]:
    plan = plan_gc(Listing(runs=runs, blobs=()), now=NOW, limits=limits, referenced=referenced)
    return {one.path.name[6:8]: one.kind for one in plan}


def blob(name: str, days: float) -> Blob:
    return Blob(path=Path("/state/blobs") / name, size_bytes=5, changed_at=NOW - timedelta(days=days))


RUNS = {
    "few runs": ([folder(1), folder(2)], {}),
    "older ones are thinned": ([folder(1), folder(2), folder(3)], {"01": "bulk"}),
    "much older ones go": (
        [folder(day) for day in range(1, 7)],
        {"01": "run", "02": "run", "03": "bulk", "04": "bulk"},
    ),
    "nothing to thin": ([folder(1, bulk_bytes=0), folder(2), folder(3)], {}),
    "the newest built one stays": (
        [folder(1), *(folder(day, built=False) for day in (2, 3, 4, 5))],
        {
            "02": "bulk",
            "03": "bulk",
        },
    ),
    "what is latest and prev stays": (
        [
            folder(1, image_ids=frozenset({"p"})),
            folder(2, image_ids=frozenset({"l"}), current_ids=frozenset({"l", "p"})),
            folder(3, image_ids=frozenset({"withheld"})),
            *(folder(day) for day in (4, 5, 6)),
        ],
        {"03": "bulk", "04": "bulk"},
    ),
}


@pytest.mark.parametrize("case", RUNS)
def test_runs_that_go(case):
    runs, expected = RUNS[case]
    assert decided(*runs) == expected


def test_each_image_counts_its_own_runs():
    assert decided(*(folder(day) for day in (1, 2)), *(folder(day, "rocky") for day in (3, 4))) == {}


def test_a_run_or_image_that_is_referenced_stays():
    runs = [folder(1, image_ids=frozenset({"uuid"})), folder(2), folder(3), folder(4)]
    assert decided(*runs) == {"01": "bulk", "02": "bulk"}
    assert decided(*runs, referenced=frozenset({"uuid", runs[1].run.id})) == {}


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=12), st.integers(-3, 5), st.integers(-3, 5))
def test_the_newest_run_never_goes_whatever_the_limits(built, whole, recorded):
    runs = [folder(number + 1, built=one) for number, one in enumerate(built)]
    gone = decided(*runs, limits=Limits(whole_runs=whole, recorded_runs=recorded))
    assert f"{len(runs):02d}" not in gone


BLOBS = {
    "needed": ([folder(1, blobs=frozenset({"aa"}))], [blob("aa", 99)], []),
    "not needed": ([folder(1)], [blob("aa", 15)], ["aa"]),
    "not needed but young": ([folder(1)], [blob("aa", 13)], []),
    "needed by a run that goes": (
        [folder(1, blobs=frozenset({"aa"})), folder(2), folder(3)],
        [blob("aa", 99)],
        ["aa"],
    ),
    "a kept lock cannot be read": ([folder(1, blobs=None)], [blob("aa", 99), blob(".incoming-x", 2)], [".incoming-x"]),
    "half a download of today": ([], [blob(".incoming-x", 0.5)], []),
}


@pytest.mark.parametrize("case", BLOBS)
def test_blobs_that_go(case):
    runs, blobs, expected = BLOBS[case]
    plan = plan_gc(Listing(runs=tuple(runs), blobs=tuple(blobs)), now=NOW, limits=LIMITS)
    assert [one.path.name for one in plan if one.kind == "blob"] == expected


TREES = {
    "a kept run was built with it": ([folder(1, tools="aa")], [blob("aa", 99)], []),
    "nobody's": ([folder(1, tools="bb")], [blob("aa", 15)], ["aa"]),
    "nobody's, but used lately": ([folder(1)], [blob("aa", 13)], []),
    "of a run that goes": ([folder(1, tools="aa"), folder(2), folder(3)], [blob("aa", 15)], ["aa"]),
    "a kept run cannot be read": ([folder(1, blobs=None)], [blob("aa", 99), blob(".aa.part", 2)], [".aa.part"]),
    "being made": ([], [blob(".aa.part", 0.5)], []),
}


@pytest.mark.parametrize("case", TREES)
def test_tools_trees_that_go(case):
    runs, trees, expected = TREES[case]
    plan = plan_gc(Listing(runs=tuple(runs), blobs=(), trees=tuple(trees)), now=NOW, limits=LIMITS)
    assert [one.path.name for one in plan if one.kind == "tools"] == expected


ROOTS = {
    "used lately": ([blob("aa", 13)], [], []),
    "not used for two weeks": ([blob("aa", 15)], [], ["aa"]),
    "newer ones took its place": ([blob("aa", 1)], ["aa"], ["aa"]),
    "being made": ([blob(".aa.part", 0.5)], [], []),
    "half made": ([blob(".aa.part", 2)], [], [".aa.part"]),
}


@pytest.mark.parametrize("case", ROOTS)
def test_kept_root_trees_that_go(case):
    roots, surplus, expected = ROOTS[case]
    old = frozenset(one.path for one in roots if one.path.name in surplus)
    plan = plan_gc(Listing(runs=(), blobs=(), roots=tuple(roots), surplus=old), now=NOW, limits=LIMITS)
    assert [one.path.name for one in plan if one.kind == "root"] == expected


# -- in a real folder -------------------------------------------------------------------------------------------------


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(path=tmp_path / "state").prepare()


def night(state: State, day: int, *, published: bool = False) -> Run:
    """A run with everything a night leaves, its lock naming a blob of its own."""
    run = state.new_run("debian13", NOW.replace(day=day))
    made = samples.artifact(run, content=os.urandom(300_000))
    (run.tree).mkdir()
    (run.tree / "config.xml").write_text("<image/>")
    run.log("build").write_text("log")
    (run.path / "report.html").write_text("<p>")
    bundle_dir = run.path / "bundle"
    bundle_dir.mkdir()
    os.link(made.path, bundle_dir / made.path.name)
    digest = f"{day:02d}" * 64
    write_lock(made.lock, [Input(repository="debian", path="a.deb", sha512=digest, size_bytes=3)])
    run.write("build", made)
    if published:
        bundle = Bundle(
            artifact=made,
            verdict=samples.verdict(made),
            fingerprint="F" * 40,
            throw_away_key=True,
            directory=bundle_dir,
            files=(),
            signed_at=NOW,
        )
        release = samples.release(bundle, generation=day)
        run.write("publish", Publication(releases=(release,), reason=""))
        run.write("rotate", Rotations(rotations=(samples.rotation(release),)))
    links = state.blobs / "by-sha256"
    links.mkdir(parents=True, exist_ok=True)
    (state.blobs / digest).write_bytes(b"x" * 5000)
    (links / digest[:64]).symlink_to(f"../{digest}")
    old = (NOW - timedelta(days=40)).timestamp()
    os.utime(state.blobs / digest, (old, old))
    return run


def test_inputs_alone_are_collected_by_the_runs_that_are_whole(state):
    runs = {day: night(state, day) for day in (11, 12)}
    orphan = "ff" * 64
    (state.blobs / orphan).write_bytes(b"x")
    os.utime(state.blobs / orphan, ((NOW - timedelta(days=40)).timestamp(),) * 2)
    found = collect_blobs(state, now=NOW, dry_run=True)
    assert [path.name for path, _ in found.removals] == [orphan]
    assert (state.blobs / orphan).exists()
    collect_blobs(state, now=NOW)
    assert not (state.blobs / orphan).exists()
    assert all(run.path.exists() for run in runs.values())
    assert {path.name[:2] for path in state.blobs.iterdir() if path.is_file()} == {"11", "12"}


def test_a_collection_leaves_records_and_what_is_current(state):
    runs = {day: night(state, day, published=day in {13, 14}) for day in range(11, 19)}
    (state.runs / ".gone-x").mkdir()
    limits = Limits(whole_runs=2, recorded_runs=7)

    would = collect(state, now=NOW, dry_run=True, limits=limits)
    assert all(run.path.exists() for run in runs.values())
    before = sum(path.lstat().st_blocks * 512 for path in {p.lstat().st_ino: p for p in state.path.rglob("*")}.values())

    done = collect(state, now=NOW, limits=limits)
    assert done == would
    after = sum(path.lstat().st_blocks * 512 for path in {p.lstat().st_ino: p for p in state.path.rglob("*")}.values())
    assert before - after == pytest.approx(done.freed_bytes, abs=100_000)
    assert not runs[11].path.exists()
    for day in (12, 15, 16):
        assert {path.name for path in runs[day].path.iterdir()} == {"build.json", "inputs.lock", "logs", "report.html"}
    for day in (13, 14, 17, 18):
        assert (runs[day].path / "bundle" / "debian13.qcow2").exists(), day
    assert {path.name[:2] for path in state.blobs.iterdir() if path.is_file()} == {"13", "14", "17", "18"}
    assert {path.readlink().name[:2] for path in (state.blobs / "by-sha256").iterdir()} == {"13", "14", "17", "18"}
    assert not list(state.runs.glob(".gone*"))
    assert collect(state, now=NOW, limits=limits).removals == ()


def test_a_working_factory_is_left_alone(state):
    runs = [night(state, day) for day in (11, 12, 13)]
    with exclusive(state.locks / "debian13.lock", what="image debian13"):
        found = collect(state, now=NOW, limits=Limits(whole_runs=1, recorded_runs=1))
    assert found.removals == ()
    assert found.freed_bytes == 0
    assert {why for _, why in found.skipped} == {"a factory works on debian13", "a build is under way"}
    assert all((run.path / "bundle").exists() for run in runs)
    assert len(list(state.blobs.glob("1*"))) == 3


def test_what_a_crash_in_the_middle_left_goes_next_time(state, monkeypatch):
    """Killed between putting a run aside and removing it: it is not there any more, and not half there."""
    for day in (11, 12):
        night(state, day)
    monkeypatch.setattr("factory.gc.remove", lambda path: path.exists() and (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        collect(state, now=NOW, limits=Limits(whole_runs=1, recorded_runs=1))
    monkeypatch.undo()
    assert [run.id for run in state.runs_of("debian13")] == ["20261112-020000-debian13"]
    assert len(list(state.runs.glob(".gone-*"))) == 1
    collect(state, now=NOW)
    assert not list(state.runs.glob(".gone-*"))


def test_damaged_records_make_it_careful(state):
    runs = [night(state, day) for day in (11, 12)]
    runs[1].file("build").write_text("{")
    (state.blobs / ("99" * 64)).write_bytes(b"x")
    os.utime(state.blobs / ("99" * 64), (0, 0))
    assert [one.blobs is None for one in look(state).runs] == [False, True]
    assert collect(state, now=NOW).removals == ()


def test_an_empty_state_has_nothing_to_collect(state):
    assert collect(state, now=NOW).removals == ()


def test_missing_space_is_told_with_how_much(state):
    expect_space(state, 1)
    with pytest.raises(FactoryError) as told:
        expect_space(state, 1 << 60)
    assert "GiB of free space are missing" in told.value.message
    assert "factory gc" in told.value.hint
    assert dict(told.value.facts)["where"] == str(state.path)


def test_a_tools_tree_goes_whole_and_frees_what_it_took(state):
    kept, gone = state.tools / ("a" * 64), state.tools / ("b" * 64)
    run = night(state, 20)
    made = run.read("build", Artifact)
    run.write("build", replace(made, tools={**made.tools, "tools-tree": kept.name}))
    for tree in (kept, gone, state.tools / ".x.part"):
        (tree / "usr").mkdir(parents=True)
        (tree / "usr" / "file").write_bytes(bytes(70_000))
        os.utime(tree, (0, 0))
    (state.tools / "found-1.json").write_text("[]")
    done = collect(state, now=NOW)
    assert {path.name for path, _ in done.removals} == {gone.name, ".x.part"}
    assert done.freed_bytes >= 140_000
    assert sorted(path.name for path in state.tools.iterdir()) == [kept.name, "found-1.json"]


def test_a_kept_root_tree_goes_whole_and_frees_what_it_took(state):
    for name, age_days in (("a", 0), ("b", 15), (".c.part", 15)):
        (state.roots / name).mkdir(parents=True)
        (state.roots / name / "root.tar.zst").write_bytes(bytes(70_000))
        os.utime(state.roots / name, ((NOW - timedelta(days=age_days)).timestamp(),) * 2)
    done = collect(state, now=NOW)
    assert {path.name for path, _ in done.removals} == {"b", ".c.part"}
    assert done.freed_bytes >= 140_000
    assert [path.name for path in state.roots.iterdir()] == ["a"]
