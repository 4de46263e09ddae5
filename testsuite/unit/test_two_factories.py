# SPDX-License-Identifier: Apache-2.0
"""Two factories on one line, crashes and foreign hands: a state machine that hands over before every request.

The usual run takes always the same scripts; the long run new ones, and many more. A factory that lives is taken to send
its next request within the lease: the clock passes it only while nobody works.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from factory.model import Bundle, StoredImage, Target
from factory.publish import publish
from factory.retention import sweep
from factory.rotate import reconcile, rollback, rotate
from factory.store.line import claim_id
from factory.store.memory import MemoryGlance, MemoryStore
from testsuite.fakes.bundles import BUILT, VIRTUAL_BYTES, make_bundle
from testsuite.fakes.readers import expect_never_broken, expect_order, sdk_lookup
from testsuite.fakes.two_factories import DIE_AFTER, DIE_BEFORE, GO, LOST, UNANSWERED, Handing, World

LINE = "Standard_Debian_13"
LATEST, PREV = f"{LINE}_latest", f"{LINE}_prev"
NIGHTS = 48
USUAL_STEPS, LONG_STEPS = 10_000, 100_000
CHANGES: list[dict[str, object]] = [
    {"name": LATEST},
    {"name": PREV},
    {"name": "mine"},
    {"name": f"{LINE}_20261121"},
    {"os_hidden": True},
    {"os_hidden": False},
    {"imgfactory_role": "archive"},
    {"imgfactory_role": "latest"},
    {"imgfactory_role": "prev"},
    {"imgfactory_role": "nonsense"},
    {"os_purpose": "generic"},
    {"imgfactory_tested": ""},
    {"visibility": "private"},
]
_BUNDLES: list[Bundle] = []
_TOLD = {"steps": 0, "runs": 0, "done": 0, "held": 0, "refused": 0, "killed": 0, "hands": 0, "promised": 0}


def silent(_line: str) -> None:
    return


@pytest.fixture(autouse=True, scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    """Bundles about the shortest files that the image service in memory takes for qcow2."""
    folder = tmp_path_factory.mktemp("bundles")
    head = b"QFI\xfb" + bytes(20) + VIRTUAL_BYTES.to_bytes(8, "big")
    for number in range(NIGHTS):
        (folder / "file").write_bytes(head + number.to_bytes(8, "big"))
        built_at = BUILT + timedelta(hours=7 * number)
        _BUNDLES.append(make_bundle(folder / str(number), built_at=built_at, qcow2=folder / "file"))
    return _BUNDLES


# -- works ------------------------------------------------------------------------------------------------------------


def nightly(world: World, number: int, policy: str = "shadow") -> Callable[[Handing], object]:
    def work(store: Handing) -> None:
        release = publish(_BUNDLES[number], store=store, target=Target(policy=policy), now=world.now, say=silent)
        rotate(release, store=store, now=world.now, say=silent)
        sweep(LINE, store=store, now=world.now, say=silent)

    return work


def back(world: World, *, deactivate: bool = False) -> Callable[[Handing], object]:
    return lambda store: rollback(LINE, store=store, target=Target(), now=world.now, say=silent, deactivate=deactivate)


def mend(world: World) -> Callable[[Handing], object]:
    def work(store: Handing) -> None:
        reconcile(LINE, store=store, now=world.now, say=silent)
        sweep(LINE, store=store, now=world.now, say=silent)

    return work


def new_world(nights: int) -> World:
    """A line after so many quiet nights."""
    world = World(line=LINE, service=MemoryGlance(now=BUILT + timedelta(days=60)))
    for number in range(nights):
        world.factories[number % 2].begin(nightly(world, number))
        assert world.factories[number % 2].finish() == "done"
    return world


def has_healthy(images: tuple[StoredImage, ...]) -> bool:
    return any(image.tested and image.status == "active" and image.role != "withdrawn" for image in images)


# -- the machine ------------------------------------------------------------------------------------------------------


class TwoFactories(RuleBasedStateMachine):
    """Rules are what may happen next; invariants what the protocol promises at that point."""

    world: World

    @initialize(nights=st.integers(0, 4), hands=st.booleans())
    def begin_with(self, nights: int, hands: bool) -> None:  # noqa: FBT001  (hypothesis calls it)
        self.hands = hands
        self.world = new_world(nights)
        self.night = nights
        self.last: dict[str, int] = {}
        self.promised = nights > 0
        self.expected_prev = nights > 1
        self.theirs: dict[str, StoredImage] = {}

    # -- the factories

    @precondition(lambda self: any(not factory.busy for factory in self.world.factories))
    @rule(which=st.integers(0, 1), kind=st.sampled_from(["night", "night", "again", "back", "mend", "danger"]))
    def begin(self, which: int, kind: str) -> None:
        factory = self.world.factories[which]
        if factory.busy:
            factory = self.world.other(factory)
        if kind == "night" or (kind == "again" and factory.name not in self.last):
            self.last[factory.name] = self.night % NIGHTS
            work = nightly(self.world, self.last[factory.name])
            self.night += 1
        elif kind == "again":
            work = nightly(self.world, self.last[factory.name])
        elif kind == "mend":
            work = mend(self.world)
        else:
            work = back(self.world, deactivate=kind == "danger")
            self.expected_prev = False  # there may be none to go back to; judged anew when all is quiet
        factory.begin(work)

    @precondition(lambda self: not self.world.idle)
    @rule(which=st.integers(0, 1), count=st.integers(1, 9))
    def step(self, which: int, count: int) -> None:
        for _ in range(count):
            self._step(which, GO)

    @precondition(lambda self: not self.world.idle)
    @rule(which=st.integers(0, 1))
    def finish(self, which: int) -> None:
        while not self.world.idle and self._step(which, GO):
            pass

    @precondition(lambda self: not self.world.idle)
    @rule(
        which=st.integers(0, 1),
        count=st.integers(0, 24),
        fate=st.sampled_from([DIE_BEFORE, DIE_AFTER, DIE_AFTER, LOST, UNANSWERED]),
    )
    def crash(self, which: int, count: int, fate: str) -> None:
        for _ in range(count):
            self._step(which, GO)
        self._step(which, fate)

    def _step(self, which: int, fate: str) -> bool:
        """One request of the factory, or of the other one when it has nothing to do; whether it still works."""
        factory = self.world.factories[which]
        if not factory.busy:
            factory = self.world.other(factory)
        if not factory.busy:
            return False
        factory.step(fate)
        self.world.after()
        _TOLD["steps"] += 1
        self.judge()
        if not factory.busy:
            _TOLD[factory.outcome] += 1
            self._settle()
        return factory.busy

    def _settle(self) -> None:
        """When all is quiet and in order, everything is promised from here on."""
        if not self.world.idle:
            return
        images = self.world.images
        prev = bool(sdk_lookup(images, PREV))
        try:
            expect_order(images, LINE, prev=prev)
        except AssertionError:
            return
        if not all(image.tested for image in images if not image.hidden):
            return  # a foreign hand took a test mark, which only the next recovery looks for
        self.promised, self.expected_prev, self.world.exclusive = True, prev, True

    # -- the clock

    @precondition(lambda self: self.world.idle)
    @rule(hours=st.sampled_from([0.2, 2, 24, 24 * 40, 24 * 800]))
    def wait(self, hours: float) -> None:
        self.world.service.now += timedelta(hours=hours)

    # -- foreign hands

    @precondition(lambda self: self.hands)
    @rule(
        hand=st.sampled_from(["change", "change", "delete", "deactivate", "duplicate", "stranger", "squat"]),
        pick=st.integers(0, 99),
        change=st.sampled_from(CHANGES),
    )
    def foreign_hand(self, hand: str, pick: int, change: dict[str, object]) -> None:
        _TOLD["hands"] += 1
        images = self.world.images
        if hand in {"duplicate", "stranger"}:
            self._duplicate(ours=hand == "duplicate", number=pick)
        elif hand == "squat":
            self._squat(ahead=1 + pick % 3, burnt=pick % 2 == 0)
        elif images:
            image = images[pick % len(images)]
            self.promised, self.world.exclusive = False, False  # until all was put in order again
            if hand == "change":
                self.world.us().patch(image.id, change)
            elif hand == "delete":
                self.world.us().patch(image.id, {"protected": False})
                self.world.us().delete(image.id)
            elif image.status == "active":
                self.world.us().deactivate(image.id)

    def _duplicate(self, *, ours: bool, number: int) -> None:
        """An image that is not the line's, under one of its names: of our project, or a stranger's."""
        image_id = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{self.world.steps}/{len(self.theirs)}"))
        self._foreign("p" if ours else "other", image_id, (LATEST, PREV)[number % 2], hidden=number % 3 == 0)

    def _squat(self, *, ahead: int, burnt: bool) -> None:
        """Somebody has, or had, the id of a generation to come."""
        highest = max((image.generation for image in self.world.images), default=0)
        image_id = claim_id("p", LINE, highest + ahead)
        if image_id in self.world.service.burnt:
            return
        self._foreign("other", image_id, "squat", hidden=False)
        if burnt:
            del self.theirs[image_id]
            MemoryStore(self.world.service, "other").delete(image_id)

    def _foreign(self, project: str, image_id: str, name: str, *, hidden: bool) -> None:
        store = MemoryStore(self.world.service, project)
        wanted = {"name": name, "visibility": "public", "os_hidden": hidden, "imgfactory_role": "latest"}
        if project == "other":
            wanted["imgfactory_line"] = LINE
        self.theirs[image_id] = store.create(image_id, wanted)

    # -- what holds

    def judge(self) -> None:
        if self.promised:
            _TOLD["promised"] += 1
            expect_never_broken(self.world.images, LINE, prev=self.expected_prev)
        for image_id, image in self.theirs.items():
            assert self.world.service.images.get(image_id) == image, "an image of somebody else was touched"

    def teardown(self) -> None:
        """Whoever still works ends, or dies; one reconcile later, with nobody else there, all is in order."""
        if not hasattr(self, "world"):
            return
        _TOLD["runs"] += 1
        if self.night % 2:
            while not self.world.idle:
                self._step(0, GO)
        for factory in self.world.factories:
            if factory.busy:
                factory.step(DIE_AFTER)
        self.judge()
        self.world.service.now += timedelta(hours=2)
        factory = self.world.factories[self.night % 2]
        factory.begin(mend(self.world))
        while factory.busy:
            factory.step()
            self.world.after()
        assert factory.outcome == "done", factory.refusal
        images = self.world.images
        if has_healthy(images):
            expect_order(images, LINE, prev=bool(sdk_lookup(images, PREV)))
            assert sdk_lookup(images, LATEST)
        self.judge()
        before = dict(self.world.service.images)
        factory.begin(mend(self.world))
        assert factory.finish() == "done"
        assert self.world.service.images == before, "a second reconcile found something to do"


def take_steps(runs: int, *, derandomize: bool) -> int:
    """Run the machine; how many requests were made in it."""
    before = _TOLD["steps"]
    chosen = settings(
        max_examples=runs,
        stateful_step_count=50,
        deadline=None,
        derandomize=derandomize,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate,),  # a shorter script takes minutes to find; the whole one is told, and reproducible
    )
    run_state_machine_as_test(TwoFactories, settings=chosen)
    print(", ".join(f"{key} {value}" for key, value in _TOLD.items()))
    return _TOLD["steps"] - before


def test_ten_thousand_steps_of_two_factories() -> None:
    assert take_steps(230, derandomize=True) >= USUAL_STEPS


@pytest.mark.slow
def test_many_more_steps_of_two_factories() -> None:
    done = 0
    while done < LONG_STEPS:
        done += take_steps(400, derandomize=False)


# -- in short ---------------------------------------------------------------------------------------------------------

TURNS = st.lists(st.integers(0, 1), max_size=60)


def interleaved(world: World, works: list[Callable[[Handing], object]], turns: list[int]) -> list[str]:
    """Two works, begun together, their requests in this order; then the rest of one, then of the other."""
    for factory, work in zip(world.factories, works, strict=True):
        factory.begin(work)
    for turn in turns:
        if world.factories[turn].busy:
            world.factories[turn].step()
            expect_never_broken(world.images, LINE, prev=True)
    return [factory.finish() for factory in world.factories]


@settings(max_examples=80, deadline=None, derandomize=True)
@given(TURNS)
def test_of_two_nights_exactly_one_goes_on(turns: list[int]) -> None:
    world = new_world(3)
    outcomes = interleaved(world, [nightly(world, 4), nightly(world, 5)], turns)
    assert sorted(outcomes) in (["done", "held"], ["done", "done"])  # both only one after the other
    for factory in world.factories:
        assert factory.refusal is None or factory.refusal.exit_code == 4
    present = {image.properties.get("imgfactory_sha512") for image in world.images}
    for number, outcome in zip((4, 5), outcomes, strict=True):
        assert (_BUNDLES[number].artifact.sha512 in present) == (outcome == "done")
    expect_order(world.images, LINE, prev=True)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(TURNS, st.integers(1, 30))
def test_of_two_recoveries_one_at_most_changes_the_line(turns: list[int], killed_at: int) -> None:
    """Both hosts begin the next night at the same time, after one of them was killed in the middle of a swap."""
    world = new_world(3)
    world.factories[0].begin(nightly(world, 4))
    for _ in range(killed_at):
        if world.factories[0].busy:
            world.factories[0].step()
    if world.factories[0].busy:
        world.factories[0].step(DIE_BEFORE)
    world.service.now += timedelta(days=1)
    outcomes = interleaved(world, [nightly(world, 5), nightly(world, 6)], turns)
    assert set(outcomes) <= {"done", "held"}
    for number, outcome in enumerate(outcomes):
        if outcome == "held":  # whoever waited gets its turn
            world.factories[number].begin(nightly(world, 5 + number))
            assert world.factories[number].finish() == "done"
    expect_order([image for image in world.images if image.tested], LINE, prev=True)


def test_a_factory_that_was_overtaken_before_its_claim_is_told_so() -> None:
    world = new_world(2)
    slow, quick = world.factories
    slow.begin(nightly(world, 4))
    while slow.asks[0] != "create":
        slow.step()
    quick.begin(nightly(world, 5))
    assert quick.finish() == "done"
    assert (slow.finish(), slow.refusal and slow.refusal.exit_code) == ("held", 4)
