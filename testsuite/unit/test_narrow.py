# SPDX-License-Identifier: Apache-2.0
"""What is done on clouds that lack something, and with clocks that go wrong: decided without a cloud."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import pytest

from factory.errors import StoreError
from factory.model import StoredImage
from factory.rotate import plan, plan_rollback
from factory.store.holding import expect_same_time
from factory.store.line import changed
from factory.store.memory import MemoryGlance, MemoryStore
from factory.store.narrow import one_by_one
from factory.store.recovery import decide
from testsuite.fakes.readers import plain_list, sdk_lookup
from testsuite.unit.test_rotate import CASES, LATER, LATEST, LINE, PREV, T0, A, B, O, P

SWAPS = {
    "shadow": (plan([B, A, P, O], "B", line=LINE), [B, A, P, O]),
    "the second release": (plan([B, A], "B", line=LINE), [B, A]),
    "rollback": (plan_rollback([A, P, O], line=LINE), [A, P, O]),
}


@pytest.mark.parametrize("name", SWAPS)
def test_change_by_change_no_reader_finds_two(name: str) -> None:
    planned, images = SWAPS[name]
    present = {image.id: image for image in images}
    for step in planned.steps:
        for part in one_by_one(step.change):
            present[step.image_id] = changed(present[step.image_id], part)
            shown = tuple(present.values())
            assert len(plain_list(shown, LATEST)) <= 1, (step, part)
            assert len(plain_list(shown, PREV)) <= 1, (step, part)
            assert sdk_lookup(shown, LATEST), (step, part)


@pytest.mark.parametrize(
    "name", [name for name, (_, case, _) in CASES.items() if case in {"C1", "C2", "C5", "C7", "C8"}]
)
def test_change_by_change_a_repair_shows_nothing_twice(name: str) -> None:
    present = {image.id: image for image in CASES[name][0]}
    for _ in range(9):
        repairs = decide(tuple(present.values()), line=LINE, now=LATER, holder="h")
        for repair in repairs:
            for part in one_by_one(repair.change or {}):
                before = doubled(tuple(present.values()))
                present[repair.image_id] = changed(present[repair.image_id], part)
                assert doubled(tuple(present.values())) <= before, (repair, part)


def doubled(images: Sequence[StoredImage]) -> int:
    return sum(len(plain_list(images, name)) > 1 for name in (LATEST, PREV))


def test_the_mark_that_makes_an_image_fit_comes_last() -> None:
    change = {"imgfactory_tested": "pass:1", "visibility": "public", "os_hidden": True, "a": "b", "protected": True}
    order = [next(iter(one)) for one in one_by_one(change)]
    assert order == ["os_hidden", "a", "protected", "visibility", "imgfactory_tested"]


class Elsewhere(MemoryStore):
    """A service whose clock tells this."""

    clock = T0


@pytest.mark.parametrize(("apart_s", "fine"), [(0, True), (1800, True), (-1800, True), (1801, False), (-1801, False)])
def test_leases_are_not_judged_by_a_clock_that_goes_wrong(apart_s: int, *, fine: bool) -> None:
    store = Elsewhere(MemoryGlance(), "p")
    now = T0 + timedelta(seconds=apart_s)
    if fine:
        expect_same_time(store, now, 3600)
        return
    with pytest.raises(StoreError, match="too far apart") as told:
        expect_same_time(store, now, 3600)
    assert told.value.exit_code == 3
