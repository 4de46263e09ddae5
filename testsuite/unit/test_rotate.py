# SPDX-License-Identifier: Apache-2.0
"""The swap, the rollback and the recovery: decided from listings, and killed at every request on a store in memory."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.errors import InputFault, LineHeld, StoreError
from factory.model import Bundle, StoredImage, Target
from factory.publish import publish
from factory.rotate import apply, plan, plan_rollback, reconcile, rollback, rotate
from factory.store.holding import Fence
from factory.store.memory import MemoryGlance, MemoryStore
from factory.store.recovery import decide, recover
from testsuite.fakes.bundles import BUILT, make_bundle
from testsuite.fakes.crash import CrashingStore, Killed
from testsuite.fakes.readers import expect_never_broken, expect_order, plain_list, sdk_lookup

LINE = "Standard_Debian_13"
LATEST, PREV = f"{LINE}_latest", f"{LINE}_prev"
TARGET = Target()
T0 = datetime(2026, 11, 1, tzinfo=UTC)
LATER = T0 + timedelta(days=10)


def silent(_line: str) -> None:
    return


def image(
    id: str,  # noqa: A002
    generation: int,
    name: str = "",
    *,
    role: str = "",
    hidden: bool = False,
    tested: bool = True,
    status: str = "active",
    purpose: str | None = None,
    updated_at: datetime = T0,
    holder: str = "h",
    protected: bool | None = None,
) -> StoredImage:
    dated = f"{LINE}_2026110{generation}"
    roles = {LATEST: "latest", PREV: "prev"}
    role = role or roles.get(name, "archive")
    properties = {
        "imgfactory_line": LINE,
        "imgfactory_role": role,
        "imgfactory_generation": str(generation),
        "imgfactory_dated_name": dated,
        "imgfactory_holder": holder,
        "imgfactory_sha512": f"sha-{id}",
        "os_purpose": purpose or ("generic" if role == "latest" else "oldgeneric"),
    }
    if tested:
        properties["imgfactory_tested"] = "pass:1"
    return StoredImage(
        id=id,
        name=name or dated,
        status=status,
        hidden=hidden,
        visibility="public",
        protected=tested if protected is None else protected,
        owner="p",
        size_bytes=1,
        virtual_size_bytes=1,
        hash_algo="sha512",
        hash_value=f"sha-{id}",
        created_at=T0,
        updated_at=updated_at,
        properties=properties,
    )


A = image("A", 3, LATEST)
P = image("P", 2, PREV)
O = image("O", 1, hidden=True)  # noqa: E741
B = image("B", 4, role="candidate", hidden=True)


def steps(planned: object) -> list[tuple[str, str, dict[str, object]]]:
    return [(step.name, step.image_id, dict(step.change)) for step in planned.steps]  # type: ignore[attr-defined]


# -- plans ------------------------------------------------------------------------------------------------------------


def test_swap_is_the_five_patches_of_the_protocol() -> None:
    assert steps(plan([B, A, P, O], "B", line=LINE)) == [
        ("R1", "P", {"os_hidden": True}),
        ("R2", "B", {"name": LATEST}),
        ("R3", "A", {"name": PREV, "os_purpose": "oldgeneric", "imgfactory_role": "prev"}),
        ("R4", "B", {"os_hidden": False, "os_purpose": "generic", "imgfactory_role": "latest"}),
        ("R5", "P", {"name": f"{LINE}_20261102", "imgfactory_role": "archive"}),
    ]


def test_without_a_previous_image_three_and_the_first_release_one() -> None:
    assert [step.name for step in plan([B, A], "B", line=LINE).steps] == ["R2", "R3", "R4"]
    only = plan([B], "B", line=LINE)
    assert steps(only) == [
        ("R4", "B", {"name": LATEST, "os_hidden": False, "os_purpose": "generic", "imgfactory_role": "latest"})
    ]
    assert (only.latest, only.prev) == ("B", None)


def test_overlap_shows_the_new_one_before_the_old_is_renamed() -> None:
    planned = plan([B, A, P], "B", line=LINE, policy="overlap")
    assert [(step.name, step.image_id) for step in planned.steps] == [
        ("R1", "P"), ("O2", "B"), ("O3", "A"), ("R5", "P"),
    ]  # fmt: skip


def test_rollback_is_the_five_patches_of_the_protocol() -> None:
    assert steps(plan_rollback([A, P, O], line=LINE)) == [
        ("K1", "O", {"name": PREV, "os_hidden": True}),
        ("K2", "P", {"name": LATEST, "os_hidden": True}),
        (
            "K3",
            "A",
            {
                "name": f"{LINE}_20261103",
                "os_hidden": True,
                "os_purpose": "oldgeneric",
                "imgfactory_role": "withdrawn",
            },
        ),
        ("K4", "P", {"os_hidden": False, "os_purpose": "generic", "imgfactory_role": "latest"}),
        ("K5", "O", {"name": PREV, "os_purpose": "oldgeneric", "imgfactory_role": "prev", "os_hidden": False}),
    ]
    assert [step.name for step in plan_rollback([A, P], line=LINE).steps] == ["K2", "K3", "K4"]


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ([A], "gone"),
        ([A, image("B", 4, role="candidate", hidden=True, tested=False)], "tested: False"),
        ([A, image("B", 4, role="candidate", hidden=True, status="deactivated")], "deactivated"),
        ([A, image("B", 4, role="withdrawn", hidden=True)], "withdrawn"),
        ([A, image("A2", 2, LATEST), B], "not in order"),
        ([image("A", 3, LATEST, hidden=True), B], "not in order"),
    ],
)
def test_what_cannot_be_the_latest_is_refused(images: list[StoredImage], expected: str) -> None:
    with pytest.raises(StoreError) as refused:
        plan(images, "B", line=LINE)
    assert expected in "\n".join(refused.value.lines())
    assert refused.value.exit_code == 3


def test_an_unknown_policy_is_a_fault_of_the_site_file() -> None:
    with pytest.raises(InputFault):
        plan([B], "B", line=LINE, policy="shadows")


def test_a_line_without_a_healthy_previous_image_has_no_way_back() -> None:
    for images in ([A], [A, image("P", 2, PREV, status="deactivated")]):
        with pytest.raises(StoreError, match="no healthy previous"):
            plan_rollback(images, line=LINE)


def test_a_purpose_of_its_own_survives_the_rotation() -> None:
    k8s = dataclasses.replace(B, properties={**B.properties, "imgfactory_purpose": "k8snode"})
    old = dataclasses.replace(A, properties={**A.properties, "imgfactory_purpose": "k8snode"})
    changes = {step.name: dict(step.change) for step in plan([k8s, old], "B", line=LINE).steps}
    assert changes["R3"]["os_purpose"] == changes["R4"]["os_purpose"] == "k8snode"


# -- recovery, case by case -------------------------------------------------------------------------------------------

B_STANDS_BY = image("B", 4, LATEST, role="candidate", hidden=True)
A_IS_PREV = image("A", 3, PREV)
P_HIDDEN = image("P", 2, PREV, hidden=True)

CASES: dict[str, tuple[list[StoredImage], str, list[tuple[str, dict[str, object] | None]]]] = {
    "in order": ([A, P, O], "", []),
    "in order with a candidate that is being finished": ([A, P, B], "", []),
    "killed between R3 and R4": (
        [B_STANDS_BY, A_IS_PREV, P_HIDDEN],
        "C1",
        [("B", {"os_hidden": False, "os_purpose": "generic", "imgfactory_role": "latest"})],
    ),
    "the latest was deleted": (
        [P, O],
        "C2",
        [("P", {"name": LATEST, "os_hidden": False, "os_purpose": "generic", "imgfactory_role": "latest"})],
    ),
    "two latest": (
        [A, image("A2", 4, LATEST), P],
        "C3",
        [
            (
                "P",
                {
                    "name": f"{LINE}_20261102",
                    "imgfactory_role": "archive",
                    "os_hidden": True,
                    "os_purpose": "oldgeneric",
                },
            ),
            ("A", {"name": PREV, "os_purpose": "oldgeneric", "imgfactory_role": "prev"}),
        ],
    ),
    "two previous": (
        [A, P, image("O", 1, PREV)],
        "C3",
        [("O", {"name": f"{LINE}_20261101", "imgfactory_role": "archive", "os_hidden": True})],
    ),
    "two hidden latest": (
        [A, P, B_STANDS_BY, image("O", 1, LATEST, role="archive", hidden=True)],
        "C4",
        [("O", {"name": f"{LINE}_20261101"})],
    ),
    "killed after R2": (
        [A, B_STANDS_BY, P_HIDDEN],
        "C5",
        [("A", {"name": PREV, "os_purpose": "oldgeneric", "imgfactory_role": "prev"})],
    ),
    "killed after R2, and somebody showed the previous one": (
        [A, B_STANDS_BY, P],
        "C5",
        [
            ("P", {"os_hidden": True}),
            ("A", {"name": PREV, "os_purpose": "oldgeneric", "imgfactory_role": "prev"}),
        ],
    ),
    "killed after K2": (
        [A, image("P", 2, LATEST, role="prev", hidden=True), image("O", 1, PREV, role="archive", hidden=True)],
        "C5",
        [
            (
                "A",
                {
                    "name": f"{LINE}_20261103",
                    "os_hidden": True,
                    "os_purpose": "oldgeneric",
                    "imgfactory_role": "withdrawn",
                },
            )
        ],
    ),
    "an untested image stands by": (
        [A, P, image("B", 4, LATEST, role="candidate", hidden=True, tested=False)],
        "C6",
        [("B", {"name": f"{LINE}_20261104"})],
    ),
    "the latest was deactivated": (
        [image("A", 3, LATEST, status="deactivated"), P, O],
        "C6",
        [("P", {"name": LATEST, "os_hidden": True})],
    ),
    "the latest was deactivated and another one stands by": (
        [image("A", 3, LATEST, status="deactivated"), image("P", 2, LATEST, role="prev", hidden=True), O],
        "C5",
        [
            (
                "A",
                {
                    "name": f"{LINE}_20261103",
                    "os_hidden": True,
                    "os_purpose": "oldgeneric",
                    "imgfactory_role": "withdrawn",
                },
            )
        ],
    ),
    "the previous image lost its test mark": (
        [A, image("P", 2, PREV, tested=False), O],
        "C6",
        [
            (
                "P",
                {
                    "name": f"{LINE}_20261102",
                    "imgfactory_role": "archive",
                    "os_hidden": True,
                    "os_purpose": "oldgeneric",
                },
            )
        ],
    ),
    "an archived image hides under the latest's name": (
        [A, P, image("O", 1, LATEST, role="archive", hidden=True)],
        "C6",
        [("O", {"name": f"{LINE}_20261101"})],
    ),
    "killed before R5": (
        [image("B", 4, LATEST), A_IS_PREV, P_HIDDEN],
        "C7",
        [("P", {"name": f"{LINE}_20261102", "imgfactory_role": "archive"})],
    ),
    "killed after R1": (
        [A, P_HIDDEN, B],
        "C8",
        [("P", {"name": PREV, "os_purpose": "oldgeneric", "imgfactory_role": "prev", "os_hidden": False})],
    ),
    "our own candidate without a test mark": (
        [A, P, image("B", 4, role="candidate", hidden=True, tested=False)],
        "C9",
        [("B", None)],
    ),
    "our own candidate without bytes": (
        [A, P, image("B", 4, role="candidate", hidden=True, tested=False, status="queued")],
        "C10",
        [("B", None)],
    ),
    "somebody else's candidate, long silent": (
        [A, P, image("B", 4, role="candidate", hidden=True, tested=False, status="saving", holder="x")],
        "C10",
        [("B", None)],
    ),
    "a candidate that was overtaken": (
        [A, P, image("O", 1, role="candidate", hidden=True)],
        "C11",
        [
            (
                "O",
                {"name": f"{LINE}_20261101", "imgfactory_role": "archive", "os_purpose": "oldgeneric"},
            )
        ],
    ),
    "a role that disagrees with the name": (
        [image("A", 3, LATEST, role="prev"), P],
        "C11",
        [("A", {"os_hidden": False, "os_purpose": "generic", "imgfactory_role": "latest"})],
    ),
    "two generic images": (
        [A, image("P", 2, PREV, purpose="generic")],
        "C11",
        [("P", {"name": PREV, "os_purpose": "oldgeneric", "imgfactory_role": "prev"})],
    ),
    "visible under its dated name": (
        [A, P, image("O", 1)],
        "C12",
        [("O", {"os_hidden": True, "name": f"{LINE}_20261101", "os_purpose": "oldgeneric"})],
    ),
    "visible under a foreign name": (
        [A, P, image("O", 1, "mine")],
        "C12",
        [("O", {"os_hidden": True, "name": f"{LINE}_20261101", "os_purpose": "oldgeneric"})],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_case_has_its_repair(name: str) -> None:
    images, case, expected = CASES[name]
    repairs = decide(images, line=LINE, now=LATER, holder="h")
    assert [(repair.image_id, repair.change) for repair in repairs] == expected
    assert {repair.case for repair in repairs} == ({case} if case else set())


@pytest.mark.parametrize("name", CASES)
def test_reconcile_says_beforehand_what_it_will_do(name: str) -> None:
    store = stocked(CASES[name][0])
    foreseen = reconcile(LINE, store=store, now=LATER, say=silent, dry_run=True)
    before = store.list_line(LINE)
    assert store.list_line(LINE) == before
    done = reconcile(LINE, store=store, now=LATER, say=silent)
    assert done == foreseen
    assert reconcile(LINE, store=store, now=LATER, say=silent) == ()
    # the previous image may be gone for good where nothing healthy is left to be it
    prev = bool(plain_list(store.list_line(LINE), PREV))
    expect_order(store.list_line(LINE), LINE, prev=prev)


def test_a_candidate_that_is_about_to_be_finished_is_kept() -> None:
    claimed = image("B", 4, role="candidate", hidden=True, tested=False, status="queued")
    assert decide([A, P, claimed], line=LINE, now=LATER, holder="h", keep=("sha-B",)) == ()
    assert decide([B], line=LINE, now=LATER, holder="h", keep=("B",)) == ()
    assert [repair.case for repair in decide([B], line=LINE, now=LATER, holder="h")] == ["C2"]


def test_another_living_factory_holds_the_line_but_a_missing_latest_is_shown_at_once() -> None:
    now = T0 + timedelta(minutes=5)
    theirs = image("B", 4, LATEST, role="candidate", hidden=True, holder="other")
    store = stocked([theirs, A_IS_PREV, P_HIDDEN])
    with pytest.raises(LineHeld):  # C1, and no more: its maker may be about to archive the old previous image
        recover(store, LINE, now=now, say=silent)
    assert [found.id for found in plain_list(store.list_line(LINE), LATEST)] == ["B"]
    held = stocked([A, P_HIDDEN, dataclasses.replace(theirs, name=f"{LINE}_20261104")])
    with pytest.raises(LineHeld) as refused:
        recover(held, LINE, now=now, say=silent)
    assert refused.value.exit_code == 4
    assert plain_list(held.list_line(LINE), PREV) == []
    recover(held, LINE, now=now, say=silent, lease_s=60)
    assert [found.id for found in plain_list(held.list_line(LINE), PREV)] == ["P"]


def test_who_shows_the_latest_of_a_dead_factory_finishes_its_swap_as_well() -> None:
    theirs = image("B", 4, LATEST, role="candidate", hidden=True, holder="other")
    store = stocked([theirs, A_IS_PREV, P_HIDDEN])
    store.service.now = LATER
    found = recover(store, LINE, now=LATER, say=silent)
    assert [repair.case for repair in found.repairs] == ["C1", "C7"]


def test_a_change_under_us_stops_before_the_first_request() -> None:
    store = stocked([B, A, P])
    planned = plan(store.list_line(LINE), "B", line=LINE)
    store.patch("A", {"os_purpose": "custom"})
    before = store.list_line(LINE)
    with pytest.raises(LineHeld, match="changed under us"):
        apply(planned, store, target=TARGET, now=T0, say=silent)
    assert store.list_line(LINE) == before


@pytest.mark.parametrize("slept_before", range(5))
def test_who_sleeps_in_the_middle_of_a_swap_changes_nothing_more(slept_before: int) -> None:
    store = stocked([B, A, P])
    planned = plan(store.list_line(LINE), "B", line=LINE)
    assert len(planned.steps) == 5
    ticks = iter([0.0, *[1.0] * slept_before, *[1801.0] * 5])
    with pytest.raises(StoreError, match=r"slept for 1801 s between looking at .* and changing it"):
        apply(planned, store, target=TARGET, now=T0, say=silent, fence=Fence(lease_s=3600, clock=lambda: next(ticks)))
    changed = [found.id for found in store.list_line(LINE) if found.updated_at != T0]
    assert len(changed) <= slept_before
    before = store.list_line(LINE)
    if slept_before == 0:
        assert {found.name for found in before} == {found.name for found in (B, A, P)}
    service = store.service
    service.now = LATER
    other = MemoryStore(service, "p", holder="other")
    reconcile(LINE, store=other, now=LATER, say=silent)
    expect_order(other.list_line(LINE), LINE, prev=True)


def test_a_recovery_that_slept_changes_nothing_more() -> None:
    store = stocked([image("B", 4, LATEST, role="candidate", hidden=True), A_IS_PREV, P_HIDDEN])
    before = store.list_line(LINE)
    ticks = iter([0.0, 1801.0])
    with pytest.raises(StoreError, match="slept for 1801 s"):
        recover(store, LINE, now=T0, say=silent, clock=lambda: next(ticks))
    assert store.list_line(LINE) == before


def test_a_rollback_that_the_recovery_has_finished_goes_back_once() -> None:
    for latest in (A, image("A", 3, LATEST, status="deactivated")):
        standing_by = image("P", 2, LATEST, role="prev", hidden=True)
        store = stocked([latest, standing_by, image("O", 1, PREV, role="archive", hidden=True)])
        done = rollback(LINE, store=store, target=TARGET, now=LATER, say=silent)
        assert (done.latest, done.prev, done.archived, done.steps) == ("P", "O", "A", ())
        expect_order(store.list_line(LINE), LINE, prev=True)


def stocked(images: list[StoredImage]) -> MemoryStore:
    service = MemoryGlance(images={found.id: found for found in images}, now=T0)
    service.burnt = set(service.images)
    return MemoryStore(service, "p", holder="h")


# -- killed at every request ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    return [
        make_bundle(folder / str(number), built_at=BUILT + timedelta(days=number), data_bytes=4096)
        for number in range(5)
    ]


@dataclass
class World:
    """A store in memory, the bundles to come, and the clock."""

    bundles: list[Bundle]
    service: MemoryGlance = field(default_factory=MemoryGlance)
    now: datetime = BUILT

    def store(self, **crash: object) -> CrashingStore:
        return CrashingStore(MemoryStore(self.service, "p", holder="h"), **crash)  # type: ignore[arg-type]

    @property
    def images(self) -> tuple[StoredImage, ...]:
        return self.store().list_line(LINE)

    def has(self, name: str) -> bool:
        return bool(sdk_lookup(self.images, name))

    def night(self, number: int, store: CrashingStore) -> None:
        release = publish(self.bundles[number], store=store, target=TARGET, now=self.now, say=silent)
        rotate(release, store=store, now=self.now, say=silent)

    def back(self, store: CrashingStore) -> None:
        rollback(LINE, store=store, target=TARGET, now=self.now, say=silent)


def test_three_nights_leave_one_latest_one_previous_and_a_hidden_archive(bundles: list[Bundle]) -> None:
    world = World(bundles)
    counts = []
    for number in range(3):
        store = world.store()
        world.night(number, store)
        counts.append(len(store.writes))
        expect_order(world.images, LINE, prev=number > 0)
    assert counts == [3 + 1, 3 + 3, 3 + 5]
    newest, middle, oldest = world.images
    assert (newest.name, middle.name, oldest.name) == (LATEST, PREV, f"{LINE}_20261121")
    again = world.store()
    world.night(2, again)
    assert again.writes == []


def test_equal_bytes_of_another_night_are_another_release(bundles: list[Bundle], tmp_path: Path) -> None:
    world = World(
        [bundles[0], make_bundle(tmp_path, built_at=BUILT + timedelta(hours=1), qcow2=bundles[0].artifact.path)]
    )
    world.night(0, world.store())
    world.night(1, world.store())
    assert [found.name for found in world.images] == [LATEST, PREV]
    assert {found.dated_name for found in world.images} == {f"{LINE}_20261121", f"{LINE}_20261121_0310"}


NIGHT_WRITES = range(1, 9)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("kill_at", NIGHT_WRITES)
def test_a_night_killed_at_any_request_is_finished_by_the_next_run(
    bundles: list[Bundle], kill_at: int, *, before: bool
) -> None:
    world = World(bundles)
    for number in range(2):
        world.night(number, world.store())
    with pytest.raises(Killed):
        world.night(2, world.store(kill_at=kill_at, before=before))
    expect_never_broken(world.images, LINE, prev=True)
    world.night(2, world.store())
    expect_order(world.images, LINE, prev=True)
    assert [found.properties["imgfactory_sha512"] for found in world.images if found.name == LATEST] == [
        bundles[2].artifact.sha512
    ]
    assert len(world.images) == 3


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("kill_at", range(1, 8))
def test_a_rollback_killed_at_any_request_is_finished_or_undone(
    bundles: list[Bundle], kill_at: int, *, before: bool
) -> None:
    world = World(bundles)
    for number in range(3):
        world.night(number, world.store())
    with pytest.raises(Killed):
        world.back(world.store(kill_at=kill_at, before=before))
    expect_never_broken(world.images, LINE, prev=True)
    recover(world.store(), LINE, now=world.now, say=silent)
    expect_order(world.images, LINE, prev=True)
    done = kill_at > 3 or (kill_at == 3 and not before)  # the first request shows others that we work on the line
    latest = next(found for found in world.images if found.name == LATEST)
    assert latest.generation == (2 if done else 3)


Operation = tuple[str, int, bool]
OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["night", "rollback", "recover"]), st.integers(0, 9), st.booleans()), max_size=10
)


@settings(max_examples=150, deadline=None)
@given(OPERATIONS)
def test_no_sequence_of_killed_runs_breaks_the_line(operations: list[Operation]) -> None:
    world = World(shared_bundles())
    night = 0
    for name, kill_at, before in operations:
        store = world.store(kill_at=kill_at, before=before)
        had_latest, had_prev = world.has(LATEST), world.has(PREV)
        try:
            if name == "night":
                world.night(night, store)
                night = (night + 1) % len(world.bundles)
            elif name == "rollback":
                world.back(store)
            else:
                recover(store, LINE, now=world.now, say=silent)
        except Killed:
            pass
        except StoreError as refused:
            # a bundle that was withdrawn before, or nothing to go back to
            assert "cannot become" in refused.message or "no healthy previous" in refused.message  # noqa: PT017
            night = (night + 1) % len(world.bundles)
        if had_latest:
            expect_never_broken(world.images, LINE, prev=had_prev and name == "night")
    recover(world.store(), LINE, now=world.now, say=silent)
    assert recover(world.store(), LINE, now=world.now, say=silent).repairs == ()
    if any(found.tested and found.role != "withdrawn" for found in world.images):
        expect_order(world.images, LINE, prev=world.has(PREV))


_SHARED: list[Bundle] = []


def shared_bundles() -> list[Bundle]:
    return _SHARED


@pytest.fixture(autouse=True, scope="module")
def _share(bundles: list[Bundle]) -> None:
    _SHARED[:] = bundles
