# SPDX-License-Identifier: Apache-2.0
"""What goes and what stays, decided from listings; and a sweep that is killed, refused or overtaken."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.errors import StoreError
from factory.model import Retention, StoredImage, Target
from factory.retention import plan_sweep, sweep
from factory.rotate import plan_rollback, rollback
from factory.store.memory import MemoryGlance, MemoryStore
from factory.store.metadata import promise
from factory.store.recovery import recover
from testsuite.fakes.crash import CrashingStore, Killed
from testsuite.unit.test_rotate import LATEST, LINE, PREV, image, silent

NOW = datetime(2026, 11, 21, 3, 0, tzinfo=UTC)
PAST, FUTURE = "2026-11-20", "2026-11-21"


def kept(one: StoredImage, until: str) -> StoredImage:
    return dataclasses.replace(one, properties={**one.properties, "imgfactory_keep_until": until})


def line_of(*dated: StoredImage) -> tuple[StoredImage, ...]:
    """A line in order: a latest, a previous one, and these."""
    return (kept(image("l", 9, LATEST), PAST), kept(image("v", 8, PREV), PAST), *dated)


def gone(*dated: StoredImage, grace_days: int = 0) -> list[tuple[str, str]]:
    planned = plan_sweep(line_of(*dated), line=LINE, now=NOW, grace_days=grace_days)
    return [(step.name, step.image_id) for step in planned.steps]


@pytest.mark.parametrize(
    ("until", "expected"),
    [
        (PAST, ["a"]),
        (FUTURE, []),  # promised until that day, its end included
        ("forever", []),
        ("last-2", ["a"]),
        ("last-3", []),
        ("", []),
        ("soon", []),
        ("last-0", []),
        ("2026-13-01", []),
    ],
)
def test_an_image_goes_when_its_promise_has_ended(until: str, expected: list[str]) -> None:
    assert gone(kept(image("a", 1, hidden=True), until)) == [("delete", one) for one in expected]


@pytest.mark.parametrize("until", ["", "soon", "last-0"])
def test_a_promise_that_nobody_can_read_is_told(until: str) -> None:
    planned = plan_sweep(line_of(kept(image("a", 1, hidden=True), until)), line=LINE, now=NOW)
    assert planned.left[0][0] == "a"
    assert "is no date" in planned.left[0][1]


@pytest.mark.parametrize(
    "one",
    [
        image("a", 1, hidden=False),
        image("a", 1, hidden=True, role="candidate"),
        image("a", 1, hidden=True, role="prev"),
        image("a", 1, hidden=True, role="latest"),
    ],
)
def test_what_lists_show_or_a_role_holds_is_never_touched(one: StoredImage) -> None:
    assert gone(kept(one, PAST)) == []


@pytest.mark.parametrize(
    "latest",
    [
        image("l", 9, LATEST, hidden=True),
        image("l", 9, LATEST, status="deactivated"),
        image("l", 9, LATEST, tested=False),
        image("l", 9),
    ],
)
def test_without_a_healthy_latest_nothing_goes(latest: StoredImage) -> None:
    old = kept(image("a", 1, hidden=True), PAST)
    planned = plan_sweep((latest, old), line=LINE, now=NOW)
    assert planned.steps == ()
    assert ("a", "the line has no healthy latest image") in planned.left


def test_the_oldest_go_first() -> None:
    assert gone(*(kept(image(name, n, hidden=True), PAST) for name, n in (("c", 3), ("a", 1), ("b", 2)))) == [
        ("delete", "a"),
        ("delete", "b"),
        ("delete", "c"),
    ]


@pytest.mark.parametrize(
    ("status", "days_ago", "expected"),
    [("active", 100, "deactivate"), ("deactivated", 2, ""), ("deactivated", 4, "delete")],
)
def test_with_a_grace_period_it_is_deactivated_first(status: str, days_ago: int, expected: str) -> None:
    one = image("a", 1, hidden=True, status=status, updated_at=NOW - timedelta(days=days_ago))
    assert gone(kept(one, PAST), grace_days=3) == ([(expected, "a")] if expected else [])


@given(st.integers(2, 6), st.integers(0, 12))
def test_last_n_keeps_exactly_so_many(last: int, archived: int) -> None:
    every = line_of(*(kept(image(f"a{n}", n, hidden=True), f"last-{last}") for n in range(1, archived + 1)))
    renumbered = [
        dataclasses.replace(one, properties={**one.properties, "imgfactory_generation": str(100 + index)})
        if one.id in {"v", "l"}
        else one
        for index, one in enumerate(reversed(every))
    ]
    planned = plan_sweep(renumbered, line=LINE, now=NOW)
    assert len(every) - len(planned.steps) == min(len(every), max(last, 2))


@pytest.mark.parametrize(
    ("retention", "first", "advertised", "expected"),
    [
        (Retention(), False, "", "2026-11-28"),
        (Retention(), True, "", "2028-11-21"),
        (Retention(), True, "none", "2028-11-21"),
        (Retention(), False, "2027-01-31", "2027-01-31"),
        (Retention(), True, "2027-01-31", "2028-11-21"),
        (Retention(last=3), True, "", "last-3"),
        (Retention(), False, "last-5", "last-5"),
        (Retention(last=3), False, "forever", "forever"),
    ],
)
def test_what_is_advertised_is_kept(retention: Retention, first: bool, advertised: str, expected: str) -> None:  # noqa: FBT001
    assert promise(NOW, retention, first_of_month=first, advertised=advertised) == expected


# -- on a store -------------------------------------------------------------------------------------------------------


@pytest.fixture
def store() -> MemoryStore:
    service = MemoryGlance()
    for one in line_of(
        kept(image("a", 1, hidden=True), PAST),
        kept(image("b", 2, hidden=True), PAST),
        kept(image("c", 3, hidden=True), FUTURE),
    ):
        service.images[one.id] = dataclasses.replace(one, owner="p")
    return MemoryStore(service, "p", holder="h")


def ids(store: MemoryStore) -> set[str]:
    return {one.id for one in store.list_all()}


def test_a_sweep_deletes_protected_images_and_a_dry_one_nothing(store: MemoryStore) -> None:
    planned = sweep(LINE, store=store, now=NOW, say=silent, dry_run=True)
    assert ids(store) == {"l", "v", "a", "b", "c"}
    assert sweep(LINE, store=store, now=NOW, say=silent) == planned
    assert ids(store) == {"l", "v", "c"}
    assert sweep(LINE, store=store, now=NOW, say=silent).steps == ()


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("kill_at", [1, 2, 3, 4, 5, 6])
def test_a_killed_sweep_is_finished_by_the_next(store: MemoryStore, kill_at: int, before: bool) -> None:  # noqa: FBT001
    with pytest.raises(Killed):
        sweep(LINE, store=CrashingStore(store, kill_at=kill_at, before=before), now=NOW, say=silent)
    assert {"l", "v", "c"} <= ids(store)
    recover(store, LINE, now=NOW, say=silent)  # as the verb does; the record by which others saw the sweep goes as well
    sweep(LINE, store=store, now=NOW, say=silent)
    assert ids(store) == {"l", "v", "c"}


class Busy(MemoryStore):
    """A copy-on-write backend that still has servers on one image."""

    def delete(self, image_id: str) -> None:
        if image_id == "a":
            raise StoreError("the image is in use")
        super().delete(image_id)


def test_an_image_in_use_stays_and_the_others_go(store: MemoryStore) -> None:
    said: list[str] = []
    swept = sweep(LINE, store=Busy(store.service, "p", holder="h"), now=NOW, say=said.append)
    assert swept.left == (("a", "the image is in use"),)
    assert ids(store) == {"l", "v", "a", "c"}
    assert any("a stays for now: the image is in use" in text for text in said)
    sweep(LINE, store=store, now=NOW, say=silent)
    assert ids(store) == {"l", "v", "c"}


class Overtaken(MemoryStore):
    """Between our listing and our request somebody promises the image longer."""

    def list_line(self, line: str) -> tuple[StoredImage, ...]:
        found = super().list_line(line)
        if any(one.name == f"{LINE}_held" for one in found):
            self.service.images["a"] = kept(self.service.images["a"], "forever")
        return found


def test_a_sweep_waits_for_another_factory(store: MemoryStore) -> None:
    claim = image("x", 10, role="candidate", hidden=True, tested=False, holder="other", updated_at=NOW)
    store.service.images["x"] = dataclasses.replace(claim, owner="p")
    swept = sweep(LINE, store=store, now=NOW, say=silent)
    assert swept.steps == ()
    assert [one for one, _ in swept.left] == ["a", "b"]
    assert ids(store) == {"l", "v", "a", "b", "c", "x"}


def test_a_promise_made_meanwhile_is_kept(store: MemoryStore) -> None:
    swept = sweep(LINE, store=Overtaken(store.service, "p", holder="h"), now=NOW, say=silent)
    assert ("a", "it was changed meanwhile") in swept.left
    assert "a" in ids(store)


# -- dangerous images -------------------------------------------------------------------------------------------------


def test_a_dangerous_image_is_blocked_and_a_crash_does_not_forget_it(store: MemoryStore) -> None:
    rollback(LINE, store=store, target=Target(), now=NOW, say=silent, deactivate=True)
    blocked = store.get("l")
    assert blocked is not None
    assert (blocked.status, blocked.role, blocked.hidden) == ("deactivated", "withdrawn", True)


@pytest.mark.parametrize(("until", "steps"), [(PAST, ["deactivate", "delete"]), (FUTURE, ["deactivate"])])
def test_blocking_is_finished_by_the_next_sweep(store: MemoryStore, until: str, steps: list[str]) -> None:
    store.patch("l", {"imgfactory_keep_until": until})
    for step in plan_rollback(store.list_line(LINE), line=LINE, block=True).steps:
        store.patch(step.image_id, step.change)
    swept = sweep(LINE, store=store, now=NOW, say=silent)
    assert [step.name for step in swept.steps if step.image_id == "l"] == steps


def test_a_rollback_as_such_blocks_nothing(store: MemoryStore) -> None:
    rollback(LINE, store=store, target=Target(), now=NOW, say=silent)
    assert store.service.images["l"].status == "active"
