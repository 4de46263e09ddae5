# SPDX-License-Identifier: Apache-2.0
"""Two factories on one line of one image service, which hand over before every single request.

Each factory's work is a greenlet; whoever drives the world says which of them may send its next request, and what
becomes of that: it passes, its sender dies before or after it, it is lost, its answer is lost. So every interleaving is
a script, and a script gives the same world each time. What must never happen is checked at each request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from greenlet import getcurrent, greenlet

from factory.errors import FactoryError, LineHeld, StoreError
from factory.model import StoredImage
from factory.store.memory import MemoryGlance, MemoryStore
from factory.system.files import Digests
from testsuite.fakes.crash import Killed

Answer = TypeVar("Answer")
Work = Callable[["Handing"], object]

GO, DIE_BEFORE, DIE_AFTER, LOST, UNANSWERED = "go", "die before", "die after", "lost", "unanswered"
WHAT_HAPPENS = (GO, DIE_BEFORE, DIE_AFTER, LOST, UNANSWERED)
_NEVER_TOUCHED = frozenset({"create", "read"})
_BETWEEN_CHANGES = _NEVER_TOUCHED | {"deactivate"}
"""What a factory asks for that has ended one change; it deactivates only what it has withdrawn."""


class Handing:
    """The store of one factory: hands over before each request."""

    def __init__(self, factory: Factory, store: MemoryStore) -> None:
        self._factory = factory
        self._store = store

    @property
    def project_id(self) -> str:
        return self._store.project_id

    @property
    def holder(self) -> str:
        return self._store.holder

    @property
    def clock(self) -> datetime | None:
        return self._store.clock

    def list_line(self, line: str) -> tuple[StoredImage, ...]:
        return self._ask("read", "", lambda: self._store.list_line(line))

    def list_all(self) -> tuple[StoredImage, ...]:
        return self._ask("read", "", self._store.list_all)

    def named(self, *names: str) -> tuple[StoredImage, ...]:
        return self._ask("read", "", lambda: self._store.named(*names))

    def shown(self, properties: Mapping[str, str]) -> tuple[StoredImage, ...]:
        return self._ask("read", "", lambda: self._store.shown(properties))

    def get(self, image_id: str) -> StoredImage | None:
        return self._ask("read", image_id, lambda: self._store.get(image_id))

    def read_back(self, image_id: str) -> Digests:
        return self._ask("read", image_id, lambda: self._store.read_back(image_id))

    def create(self, image_id: str, attributes: Mapping[str, object]) -> StoredImage:
        return self._ask("create", image_id, lambda: self._store.create(image_id, attributes))

    def upload(self, image_id: str, path: Path) -> None:
        self._ask("upload", image_id, lambda: self._store.upload(image_id, path))

    def patch(self, image_id: str, change: Mapping[str, object]) -> StoredImage:
        shows = change.get("os_hidden") is False and change.keys() <= {"os_hidden", "os_purpose"}
        return self._ask("show" if shows else "patch", image_id, lambda: self._store.patch(image_id, change))

    def prepare(self, image_id: str, change: Mapping[str, object]) -> Callable[[], StoredImage]:
        return lambda: self.patch(image_id, change)

    def deactivate(self, image_id: str) -> None:
        self._ask("deactivate", image_id, lambda: self._store.deactivate(image_id))

    def delete(self, image_id: str) -> None:
        self._ask("delete", image_id, lambda: self._store.delete(image_id))

    def _ask(self, kind: str, image_id: str, send: Callable[[], Answer]) -> Answer:
        factory = self._factory
        if factory.dead:
            raise Killed
        fate = factory.hand_over(kind, image_id)
        if fate == DIE_BEFORE:
            factory.dead = True
            raise Killed
        if fate == LOST:
            raise StoreError("the image service does not answer")
        factory.world.before(factory, kind, image_id)
        try:
            answer = send()
        finally:
            if fate == DIE_AFTER:
                factory.dead = True
                raise Killed
        if fate == UNANSWERED:
            raise StoreError("the image service does not answer")
        return answer


@dataclass(eq=False)
class Factory:
    """One of the two: at most one work at a time, as its local lock has it."""

    world: World
    name: str
    running: greenlet | None = None
    asks: tuple[str, str] = ("", "")
    dead: bool = False
    inside: bool = False
    outcome: str = ""
    refusal: FactoryError | None = None

    @property
    def busy(self) -> bool:
        return self.running is not None

    def begin(self, work: Work) -> None:
        """Start a work; it stands before its first request then."""
        assert not self.busy
        self.dead, self.inside, self.outcome, self.refusal = False, False, "", None
        store = Handing(self, MemoryStore(self.world.service, "p", holder=self.name))
        self.running = greenlet(lambda: self._run(work, store))
        self._resume(None)

    def step(self, fate: str = GO) -> None:
        """Let its next request happen, in this way; it stands before the one after it then, or has ended."""
        self._resume(fate)

    def finish(self) -> str:
        while self.busy:
            self.step()
        return self.outcome

    def hand_over(self, kind: str, image_id: str) -> str:
        self.asks = (kind, image_id)
        parent = getcurrent().parent
        assert parent is not None
        return str(parent.switch(None))

    def _resume(self, fate: str | None) -> None:
        assert self.running is not None
        self.running.parent = getcurrent()
        try:
            self.running.switch(fate) if fate is not None else self.running.switch()
        finally:  # what was found wrong is told, and not that its finder works no more
            if self.running.dead:
                self.running = None
                self.inside = False

    def _run(self, work: Work, store: Handing) -> None:
        try:
            work(store)
            self.outcome = "done"
        except Killed:
            self.outcome = "killed"
        except LineHeld as held:
            self.outcome, self.refusal = "held", held
        except FactoryError as refused:
            self.outcome, self.refusal = "refused", refused


@dataclass(eq=False)
class World:
    """The image service, both factories, and what was seen so far."""

    line: str
    service: MemoryGlance
    factories: list[Factory] = field(default_factory=list)
    exclusive: bool = True
    steps: int = 0
    generations: dict[int, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.factories = [Factory(self, "one"), Factory(self, "two")]

    @property
    def now(self) -> datetime:
        return self.service.now

    @property
    def images(self) -> tuple[StoredImage, ...]:
        return self.us().list_line(self.line)

    def us(self) -> MemoryStore:
        return MemoryStore(self.service, "p", holder="hand")

    @property
    def idle(self) -> bool:
        return not any(factory.busy for factory in self.factories)

    def other(self, factory: Factory) -> Factory:
        return self.factories[1 - self.factories.index(factory)]

    def before(self, factory: Factory, kind: str, image_id: str) -> None:
        """What no request of a factory may do, whatever else goes on."""
        image = self.service.images.get(image_id)
        self.asked.append(
            f"{factory.name}: {kind} {image and (image.generation, image.name, image.role, image.hidden)}"
        )
        if kind not in _NEVER_TOUCHED and image is not None:
            assert image.owner == "p", f"{factory.name} would {kind} an image of somebody else"
            assert image.line == self.line, f"{factory.name} would {kind} an image that is not the line's"
            if image.tested:
                self._published(factory, kind, image)

    def _published(self, factory: Factory, kind: str, image: StoredImage) -> None:
        if kind == "delete":
            assert image.role not in {"latest", "prev"}, "the latest or the previous image would be deleted"
            until = image.properties.get("imgfactory_keep_until", "")
            assert until < f"{self.now:%Y-%m-%d}", f"an image promised until {until} would be deleted"
        if image.role == "candidate" and image.properties.get("imgfactory_holder") == factory.name:
            return  # nobody looks at it yet
        if kind == "deactivate" and image.role == "withdrawn":
            return  # nobody is sent to it any more, and nobody makes it anything else
        named = image.name == f"{self.line}_latest"
        shows = named and (image.hidden or kind == "show")  # C1: the one thing that waits for nobody
        if not shows:
            rival = self.other(factory)
            assert not (self.exclusive and rival.inside), self._told(f"{factory.name} writes while {rival.name} does")
            factory.inside = True

    def _at_work(self, factory: Factory) -> bool:
        """Whether something in the store says that it is in the middle of a change."""
        mine = [image for image in self.images if image.properties.get("imgfactory_holder") == factory.name]
        named = [image for image in self.images if image.name == f"{self.line}_prev"]
        return any(image.role == "candidate" for image in mine) or len(named) > 1

    def _told(self, what: str) -> str:
        return "\n".join([what, *self.asked[-40:]])

    def after(self) -> None:
        """What holds after each request."""
        self.steps += 1
        for factory in self.factories:
            if factory.asks[0] in _BETWEEN_CHANGES and not self._at_work(factory):
                factory.inside = (
                    False  # it has ended its change, and looks or shows itself before it begins another one
                )
        for image in self.images:
            if image.generation:
                first = self.generations.setdefault(image.generation, image.id)
                assert first == image.id, f"generation {image.generation} was used twice"


def record(**properties: Any) -> dict[str, object]:
    """What a foreign hand creates."""
    return {"visibility": "private", **properties}
