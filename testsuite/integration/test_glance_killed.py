# SPDX-License-Identifier: Apache-2.0
"""A factory that is killed, or meets a fault, at every single request to a real Glance: users never suffer.

A proxy before Glance kills the process before it passes a request on, or after Glance has answered. What readers get is
judged at once (I1, I2), then one ``reconcile`` brings the line to order, and the work done again ends as it should.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from factory.cloud import CloudAccess
from factory.errors import FactoryError
from factory.model import Bundle, StoredImage, Target
from factory.publish import publish
from factory.retention import sweep
from factory.rotate import reconcile, rollback, rotate
from factory.store.glance import GlanceStore, connect_glance
from factory.store.line import claim_id, latest_name, prev_name
from factory.store.metadata import wire
from factory.system.clock import now
from testsuite.fakes.readers import expect_never_broken, expect_order, sdk_lookup
from testsuite.integration.cloud_fixtures import Tenant
from testsuite.integration.test_glance import Readers, night, nights, other_process, readers, silent

__all__ = ["nights", "readers"]

pytestmark = pytest.mark.needs_glance
_MADE_BY_GLANCE = frozenset({"disk_format", "container_format", "virtual_size", "checksum"})


@dataclass(frozen=True)
class Proxy:
    """The proxy, as tests talk to it."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def fault(self, **what: object) -> None:
        self._control("PUT", what)

    def requests(self) -> list[str]:
        return self._control("GET", {})

    def _control(self, method: str, what: dict[str, object]) -> list[str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, "/__fault", body=json.dumps(what))
        found: list[str] = json.load(connection.getresponse())
        connection.close()
        return found


@pytest.fixture(scope="module")
def proxy(embedded_cloud: CloudAccess) -> Iterator[Proxy]:
    glance = urlsplit(embedded_cloud.image_url)
    argv = [sys.executable, "-m", "testsuite.fakes.glance_proxy", str(glance.hostname), str(glance.port)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    assert process.stdout is not None
    try:
        yield Proxy(port=int(process.stdout.readline()))
    finally:
        process.kill()
        process.wait()


class Watchers:
    """Readers of all classes that poll a line in a process of their own, and what they saw of each kind of work."""

    def __init__(self, access: CloudAccess) -> None:
        argv = [sys.executable, "-m", "testsuite.fakes.polling_readers", str(access.clouds_yaml), access.reader]
        self.program = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2], bufsize=1
        )
        self.seen: dict[str, dict[str, Counter[str]]] = {}
        assert self._told() == "ready"

    def _told(self) -> str:
        assert self.program.stdout is not None
        return self.program.stdout.readline().strip()

    def _say(self, words: str) -> None:
        assert self.program.stdin is not None
        self.program.stdin.write(words + "\n")
        self.program.stdin.flush()

    @contextlib.contextmanager
    def watching(self, work: Work, line: str, image_id: str | None) -> Iterator[None]:
        """Poll while the block runs. Lookups by the SDK may miss once (they are two requests), never twice in turn."""
        self._say(json.dumps({"line": line, "id": image_id}))
        assert self._told() == "watching"
        try:
            yield
        finally:
            self._say("")
            found: dict[str, dict[str, int]] = json.loads(self._told())
            for name, one in found.items():
                self.seen.setdefault(work.name, {}).setdefault(name, Counter()).update(one)
        assert found["R-id"]["none"] == 0
        if work.policy == "shadow":
            assert found["R-sdk"]["several"] == found["R-sdk"]["repeated"] == 0, found
            assert found["R-one"]["several"] == found["R-prop"]["several"] == 0, found

    def table(self) -> str:
        """What each class saw of each work: one image / none / several."""
        names = ("R-sdk", "R-one", "R-new", "R-prop", "R-id")
        rows = [["work, killed at each request", *names]]
        for work, seen in self.seen.items():
            rows.append(
                [work, *(f"{seen[one]['one']} / {seen[one]['none']} / {seen[one]['several']}" for one in names)]
            )
        rows.insert(1, ["---"] * len(rows[0]))
        return "\n".join("| " + " | ".join(row) + " |" for row in rows)


@pytest.fixture(scope="module")
def watchers(embedded_cloud: CloudAccess, progress: Callable[[str], None]) -> Iterator[Watchers]:
    made = Watchers(embedded_cloud)
    try:
        yield made
    finally:
        made.program.kill()
        made.program.wait()
        progress(made.table())


def through(tenant: Tenant, proxy: Proxy) -> GlanceStore:
    """The tenant's Glance, as seen through the proxy."""
    text = tenant.clouds_yaml.read_text()
    text = text.replace("    auth:\n", f"    image_endpoint_override: {proxy.url}\n    auth:\n", 1)
    path = tenant.clouds_yaml.with_suffix(".proxied")
    path.write_text(text)
    return connect_glance(tenant.name, clouds_yaml=path, direct=True, holder="test")


# -- what is interrupted ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """Something a factory does with a line.

    Attributes:
        before: how many images were published before.
        prepare: what else happened to them.
        do: the work; it may be done again after ``reconcile``.
        requests: how many requests it makes, counted by a test.
        latest: which of the bundles is the latest when it is done.
        images: how many images the line then has.
    """

    name: str
    before: int
    do: Callable[[GlanceStore, str, list[Bundle]], object]
    requests: int
    latest: int
    images: int
    prepare: Callable[[GlanceStore, str], None] = lambda _store, _line: None
    policy: str = "shadow"
    repeat: bool = True


def nightly(number: int, policy: str = "shadow") -> Callable[[GlanceStore, str, list[Bundle]], object]:
    def do(store: GlanceStore, _line: str, bundles: list[Bundle]) -> object:
        release = publish(bundles[number], store=store, target=Target(policy=policy), now=now(), say=silent)
        return rotate(release, store=store, now=now(), say=silent)

    return do


def back(store: GlanceStore, line: str, _bundles: list[Bundle]) -> object:
    return rollback(line, store=store, target=Target(), now=now(), say=silent)


def mend(store: GlanceStore, line: str, _bundles: list[Bundle]) -> object:
    return reconcile(line, store=store, now=now(), say=silent)


def clear(store: GlanceStore, line: str, _bundles: list[Bundle]) -> object:
    return sweep(line, store=store, now=now(), say=silent)


def cut_off_in_the_swap(store: GlanceStore, line: str) -> None:
    """As after R2 of a swap: C5, then C1, then C7."""
    new, latest, prev = store.list_line(line)
    store.patch(prev.id, {"name": prev_name(line), "os_hidden": True, "imgfactory_role": "prev"})
    store.patch(latest.id, {"name": latest_name(line), "os_hidden": False, "imgfactory_role": "latest"})
    store.patch(new.id, {"name": latest_name(line), "os_hidden": True, "imgfactory_role": "candidate"})


def mixed_up(store: GlanceStore, line: str) -> None:
    """By a foreign hand: everything is visible, and everything is the latest."""
    for image in store.list_line(line):
        store.patch(image.id, {"name": latest_name(line), "os_hidden": False})


def outlived(store: GlanceStore, line: str) -> None:
    store.patch(store.list_line(line)[-1].id, {"imgfactory_keep_until": "2026-01-01"})


WORKS = (
    Work(name="first-night", before=0, do=nightly(0), requests=18, latest=0, images=1),
    Work(name="second-night", before=1, do=nightly(1), requests=21, latest=1, images=2),
    Work(name="third-night", before=2, do=nightly(2), requests=24, latest=2, images=3),
    Work(name="overlap", before=2, do=nightly(2, "overlap"), requests=23, latest=2, images=3, policy="overlap"),
    Work(name="rollback", before=3, do=back, requests=17, latest=1, images=3, repeat=False),
    Work(name="recovery", before=3, do=mend, requests=21, latest=2, images=3, prepare=cut_off_in_the_swap),
    Work(name="foreign-hand", before=3, do=mend, requests=14, latest=2, images=3, prepare=mixed_up, policy="foreign"),
    Work(name="sweep", before=3, do=clear, requests=12, latest=2, images=2, prepare=outlived),
)


@dataclass(frozen=True)
class Scene:
    """A line of a project of its own, made ready for one piece of work."""

    line: str
    store: GlanceStore
    proxied: GlanceStore
    bundles: list[Bundle]
    proxy: Proxy
    readers: Readers

    def judge(self, work: Work) -> None:
        """What users get right now, whatever happened: looked at without us, by name, as they do."""
        images = self.store.list_line(self.line)
        if work.policy == "foreign" or (work.before == 0 and not any(image.tested for image in images)):
            return
        if work.policy == "overlap":  # two for one round trip: readers take the newest
            found = sdk_lookup(images, latest_name(self.line))
            assert 1 <= len(found) <= 2
            assert all(image.status == "active" and image.tested for image in found)
            return
        if work.before:
            expect_never_broken(images, self.line, prev=work.before > 1)
            assert self.readers.sdk(latest_name(self.line)) is not None

    def finish(self, work: Work) -> None:
        """One reconcile, and the line is in order; the work done again ends as it should."""
        reconcile(self.line, store=self.store, now=now(), say=silent)
        sweep(self.line, store=self.store, now=now(), say=silent)  # the verb does both
        images = self.store.list_line(self.line)
        if work.before:
            expect_order(images, self.line, prev=sum(image.role != "candidate" for image in images) > 1)
        if work.repeat or self.readers.sdk(latest_name(self.line)) != self.image_of(work.latest):
            work.do(self.store, self.line, self.bundles)
        images = self.store.list_line(self.line)
        expect_order(images, self.line, prev=work.images > 1)
        assert self.readers.sdk(latest_name(self.line)) == self.image_of(work.latest)
        assert len(images) == work.images

    def image_of(self, number: int) -> str | None:
        digest = self.bundles[number].artifact.sha512
        found = [one.id for one in self.store.list_line(self.line) if one.properties["imgfactory_sha512"] == digest]
        return found[0] if found else None


@pytest.fixture(scope="module")
def models(
    new_tenant: Callable[[], Tenant], nights: Callable[[str], list[Bundle]]
) -> dict[int, tuple[StoredImage, ...]]:
    """What a line looks like after so many real nights; copies of it spare each case those nights."""
    tenant = new_tenant()
    line = f"Model_{tenant.name}"
    store, found = tenant.store(), {0: ()}
    for number, bundle in enumerate(nights(line), start=1):
        night(bundle, store)
        found[number] = store.list_line(line)
    return found


def copied(image: StoredImage, old: str, new: str, bundles: list[Bundle], store: GlanceStore) -> None:
    """The same image in another project and line."""
    bundle = next(one for one in bundles if one.artifact.sha512 == image.hash_value)
    given = {key: value.replace(old, new) for key, value in image.properties.items() if key not in _MADE_BY_GLANCE}
    image_id = claim_id(store.project_id, new, image.generation)
    store.create(image_id, wire({"name": image.name.replace(old, new), "visibility": "private", **given}))
    store.upload(image_id, bundle.artifact.path)
    store.patch(image_id, {"os_hidden": image.hidden, "protected": image.protected, "visibility": image.visibility})


@pytest.fixture
def scene(
    tenant: Tenant,
    proxy: Proxy,
    nights: Callable[[str], list[Bundle]],
    readers: Readers,
    models: dict[int, tuple[StoredImage, ...]],
    work: Work,
) -> Scene:
    line = f"Kill_{tenant.name}"
    bundles, store = nights(line), tenant.store()
    for image in reversed(models[work.before]):
        copied(image, image.line, line, bundles, store)
    work.prepare(store, line)
    return Scene(
        line=line,
        store=store,
        proxied=through(tenant, proxy),
        bundles=bundles,
        proxy=proxy,
        readers=readers,
    )


@pytest.mark.parametrize("work", WORKS, ids=lambda one: one.name)
def test_every_request_is_counted(scene: Scene, work: Work) -> None:
    scene.proxy.fault(number=0, kind="")
    work.do(scene.proxied, scene.line, scene.bundles)
    asked = scene.proxy.requests()
    scene.finish(work)
    assert len(asked) == work.requests, asked


def kill_points() -> Iterator[object]:
    """Before and after each request; what Glance holds before one is what it holds after the one before."""
    for work in WORKS:
        for number in range(1, work.requests + 1):
            for moment in ("before", "after"):
                marks = (pytest.mark.slow,) if moment == "before" and number > 1 else ()
                yield pytest.param(work, number, moment, marks=marks, id=f"{work.name}-{moment}-{number}")


@pytest.mark.parametrize(("work", "number", "moment"), list(kill_points()))
def test_killed_at_any_request(
    scene: Scene, work: Work, number: int, moment: str, tmp_path: Path, watchers: Watchers
) -> None:
    found = scene.readers.sdk(latest_name(scene.line)) if work.before and work.policy != "foreign" else None
    with watchers.watching(work, scene.line, found) if found else contextlib.nullcontext():
        kill(scene, work, number, moment, tmp_path)


def kill(scene: Scene, work: Work, number: int, moment: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace"

    def killed() -> None:
        scene.proxy.fault(victim=os.getpid(), number=number, moment=moment, kind="kill")
        work.do(scene.proxied, scene.line, scene.bundles)

    with other_process(killed, trace) as pid:
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == -signal.SIGKILL, trace.read_text() if trace.exists() else "it was done before it was killed"
    scene.proxy.fault(number=0, kind="")
    scene.judge(work)
    scene.finish(work)


FAULTS = (
    ("500", "before"),
    ("500", "after"),
    ("409", "before"),
    ("reset", "before"),
    ("reset", "after"),
    ("delay", "before"),
)


def fault_points() -> Iterator[object]:
    """In the usual run one fault for each request of the works that differ most, in the long one all of all."""
    for work in WORKS:
        for number in range(1, work.requests + 1):
            for turn, (kind, moment) in enumerate(FAULTS):
                usual = work.name in {"third-night", "rollback", "recovery"} and turn == number % len(FAULTS)
                marks = () if usual else (pytest.mark.slow,)
                yield pytest.param(work, number, kind, moment, marks=marks, id=f"{work.name}-{kind}-{moment}-{number}")


@pytest.mark.parametrize(("work", "number", "kind", "moment"), list(fault_points()))
def test_a_fault_at_any_request(scene: Scene, work: Work, number: int, kind: str, moment: str) -> None:
    scene.proxy.fault(number=number, moment=moment, kind=kind)
    told: list[int] = []
    try:
        work.do(scene.proxied, scene.line, scene.bundles)
    except FactoryError as refused:
        told.append(refused.exit_code)
    assert told in ([], [3], [4])
    scene.judge(work)
    scene.finish(work)
