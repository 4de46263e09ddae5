# SPDX-License-Identifier: Apache-2.0
"""Publishing and rotating on a real Glance: what readers see, and a real process killed at every request."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from openstack.exceptions import DuplicateResource

from factory.cloud import CloudAccess
from factory.cloud.settings import REGION
from factory.errors import LineHeld, StoreError
from factory.model import Bundle, StoredImage, Target
from factory.publish import publish
from factory.retention import sweep
from factory.rotate import rollback, rotate
from factory.store.glance import GlanceStore, connect_glance
from factory.store.line import claim_id
from factory.store.recovery import foreign, recover
from factory.system.clock import now
from factory.system.openstack import connect
from testsuite.fakes.bundles import BUILT, make_bundle
from testsuite.fakes.readers import expect_order
from testsuite.integration.cloud_fixtures import Tenant

pytestmark = pytest.mark.needs_glance

TARGET = Target()
BIN = Path(sys.executable).parent


def silent(_line: str) -> None:
    return


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Bundle]]:
    """Three bundles of a line, about the same three files."""
    folder = tmp_path_factory.mktemp("nights")
    files = [make_bundle(folder / str(number)).artifact.path for number in range(3)]

    def make(line: str) -> list[Bundle]:
        return [
            make_bundle(folder / line / str(number), line=line, built_at=BUILT + timedelta(days=number), qcow2=file)
            for number, file in enumerate(files)
        ]

    return make


def night(bundle: Bundle, store: GlanceStore, say: Callable[[str], None] = silent) -> str:
    release = publish(bundle, store=store, target=TARGET, now=now(), say=say)
    rotate(release, store=store, now=now(), say=say)
    return release.image_id


class Readers:
    """Tenants that look names up, each in the way of its tool."""

    def __init__(self, access: CloudAccess) -> None:
        self.access = access
        self.image = connect(access.reader, clouds_yaml=access.clouds_yaml, direct=True).image

    def sdk(self, name: str) -> str | None:
        """openstacksdk, openstackclient, Ansible: None when not found; raises on duplicates."""
        found = self.image.find_image(name)
        return found.id if found else None

    def plain(self, name: str) -> list[str]:
        """Terraform and scripts: visible images of a name."""
        return [image.id for image in self.image.images(name=name)]

    def glance_cli(self, name: str) -> list[str]:
        """python-glanceclient, with what ``factory cloud env`` prints."""
        from factory.cloud import env

        shell = env(self.access.clouds_yaml.parent, cloud=self.access.reader)
        command = f"{shell}exec {BIN}/glance image-list --property-filter name={name}"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=60)
        cells = [row.split("|") for row in done.stdout.splitlines() if row.startswith("|")]
        return [cell[1].strip() for cell in cells if cell[2].strip() == name]


@pytest.fixture
def readers(embedded_cloud: CloudAccess) -> Readers:
    return Readers(embedded_cloud)


def test_three_nights_as_every_reader_sees_them(
    tenant: Tenant, nights: Callable[[str], list[Bundle]], readers: Readers
) -> None:
    line = f"Three_{tenant.name}"
    latest, prev = f"{line}_latest", f"{line}_prev"
    store = tenant.store()
    requests: list[str] = []
    observed = tenant.store(observer=lambda when, name: requests.append(name) if when == "before" else None)
    ids = []
    for number, bundle in enumerate(nights(line)):
        requests.clear()
        ids.append(night(bundle, observed))
        writes = [name.split()[0] for name in requests if not name.startswith("GET")]
        assert writes == ["POST", "PUT", "PATCH", *["PATCH"] * (1, 3, 5)[number]]
        expect_order(store.list_line(line), line, prev=number > 0)
        for lookup in (readers.plain, readers.glance_cli):
            assert lookup(latest) == [ids[-1]]
            assert lookup(prev) == ids[-2:-1]
        assert readers.sdk(latest) == ids[-1]
        assert readers.sdk(prev) == (ids[-2] if number else None)
    assert ids == [claim_id(tenant.project_id, line, generation) for generation in (1, 2, 3)]
    # the archive: under its dated name for whoever knows it, in no list, undeletable
    oldest = readers.image.get_image(ids[0])
    assert (oldest.name, oldest.is_hidden, oldest.is_protected) == (f"{line}_20261121", True, True)
    with pytest.raises(StoreError, match="refused"):
        store.delete(ids[0])
    # the same again: nothing is written
    requests.clear()
    assert night(nights(line)[2], observed) == ids[2]
    assert {name.split()[0] for name in requests} == {"GET"}


def test_rollback_on_the_real_thing(tenant: Tenant, nights: Callable[[str], list[Bundle]], readers: Readers) -> None:
    line = f"Back_{tenant.name}"
    store = tenant.store()
    first, second, third = (night(bundle, store) for bundle in nights(line))
    rotation = rollback(line, store=store, target=TARGET, now=now(), say=silent)
    assert (rotation.latest, rotation.prev) == (second, first)
    expect_order(store.list_line(line), line, prev=True)
    assert readers.sdk(f"{line}_latest") == second
    withdrawn = store.get(third)
    assert withdrawn is not None
    assert (withdrawn.role, withdrawn.hidden) == ("withdrawn", True)


def test_readers_in_every_state_of_the_swap(
    tenant: Tenant, nights: Callable[[str], list[Bundle]], readers: Readers
) -> None:
    """The table of the protocol: lookups always resolve, lists miss the latest between R3 and R4 only."""
    line = f"Table_{tenant.name}"
    latest, prev = f"{line}_latest", f"{line}_prev"
    bundles = nights(line)
    older, old = (night(bundle, tenant.store()) for bundle in bundles[:2])
    seen: list[tuple[str | None, list[str], str | None, list[str]]] = []

    def look(when: str, name: str) -> None:
        if when == "after" and name.startswith("PATCH"):
            seen.append((readers.sdk(latest), readers.plain(latest), readers.sdk(prev), readers.plain(prev)))

    new = night(bundles[2], tenant.store(observer=look))
    assert seen == [
        (old, [old], older, [older]),  # S5
        (old, [old], older, []),  # R1
        (old, [old], older, []),  # R2
        (new, [], old, [old]),  # R3
        (new, [new], old, [old]),  # R4
        (new, [new], old, [old]),  # R5
    ]


def test_polling_readers_meet_no_duplicate_and_hardly_a_gap(
    tenant: Tenant, nights: Callable[[str], list[Bundle]], readers: Readers
) -> None:
    line = f"Poll_{tenant.name}"
    bundles = nights(line)
    for bundle in bundles[:2]:
        night(bundle, tenant.store())
    answers: list[str | None] = []
    stop = threading.Event()

    def poll() -> None:
        while not stop.is_set():
            try:
                answers.append(readers.sdk(f"{line}_latest"))
            except DuplicateResource:
                answers.append("duplicate")

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        new = night(bundles[2], tenant.store())
    finally:
        stop.set()
        thread.join()
    assert "duplicate" not in answers
    assert answers[-1] == new or len(answers) < 2
    # a lookup is two requests, and R4 may fall between them: a client's retry cures it
    assert answers.count(None) <= 2


# -- killed in the middle of a request (test_glance_killed.py: at every request) ---------------------------------------


@contextlib.contextmanager
def other_process(work: Callable[[], object], trace: Path) -> Iterator[int]:
    """A real process that does ``work``, by its pid; what it could not do is in ``trace``. Gone after the block."""
    child = os.fork()
    if child == 0:
        status = 9
        try:
            work()
            status = 0
        except BaseException:  # noqa: BLE001  (told to the test through the file)
            trace.write_text(traceback.format_exc())
        os._exit(status)
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def test_killed_in_the_middle_of_the_upload(tenant: Tenant, tmp_path: Path) -> None:
    line = f"Middle_{tenant.name}"
    bundle = make_bundle(tmp_path / "large", line=line, data_bytes=48 << 20)
    store = tenant.store()
    image_id = claim_id(tenant.project_id, line, 1)
    trace = tmp_path / "trace"
    with other_process(lambda: night(bundle, tenant.store()), trace):
        deadline = time.monotonic() + 60
        found = None
        while time.monotonic() < deadline and not trace.exists():
            found = store.get(image_id)
            if found is not None and found.status != "queued":
                break
    assert not trace.exists(), trace.read_text()
    assert found is not None
    assert found.status == "saving"
    night(bundle, store)
    expect_order([image for image in store.list_line(line) if image.tested], line, prev=False)
    assert len(store.list_line(line)) == 1


# -- others on the line ----------------------------------------------------------------------------------------------


def test_of_two_publishers_exactly_one_goes_on(tenant: Tenant, nights: Callable[[str], list[Bundle]]) -> None:
    line = f"Two_{tenant.name}"
    bundles = nights(line)
    results: dict[str, str] = {}
    gate = threading.Barrier(2)
    passed: set[str] = set()

    def work(holder: str, bundle: Bundle) -> None:
        def at_the_claim(when: str, name: str) -> None:
            # only the first attempt: in this race Glance on SQLite may answer 500, and the claim is sent again
            if when == "before" and name.startswith("POST") and holder not in passed:
                passed.add(holder)
                gate.wait(timeout=60)

        store = tenant.store(holder=holder, observer=at_the_claim)
        try:
            publish(bundle, store=store, target=TARGET, now=now(), say=silent)
            results[holder] = "published"
        except LineHeld as held:
            results[holder] = f"held {held.exit_code}"

    threads = [
        threading.Thread(target=work, args=(holder, bundle))
        for holder, bundle in zip(("one", "two"), bundles, strict=False)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results.values()) == ["held 4", "published"]
    assert len(tenant.store().list_line(line)) == 1
    # and whoever comes a little later is refused as well, before it writes anything
    loser = next(holder for holder, result in results.items() if result != "published")
    with pytest.raises(LineHeld):
        publish(bundles[2], store=tenant.store(holder=loser), target=TARGET, now=now(), say=silent)


def test_burnt_ids_are_stepped_over(tenant: Tenant, nights: Callable[[str], list[Bundle]]) -> None:
    line = f"Burnt_{tenant.name}"
    store = tenant.store()
    for generation in (1, 2):
        store.create(claim_id(tenant.project_id, line, generation), {"name": "squat", "visibility": "private"})
    store.delete(claim_id(tenant.project_id, line, 2))
    said: list[str] = []
    image_id = night(nights(line)[0], store, said.append)
    assert image_id == claim_id(tenant.project_id, line, 3)
    assert sum("ALARM" in line for line in said) == 2


def test_a_foreign_image_of_our_name_is_reported_and_left_alone(
    new_tenant: Callable[[], Tenant], nights: Callable[[str], list[Bundle]]
) -> None:
    mine, other = new_tenant(), new_tenant()
    line = f"Foreign_{mine.name}"
    squat = other.store().create("0" * 8 + claim_id(other.project_id, line, 1)[8:], {"name": f"{line}_latest"})
    other.store().patch(squat.id, {"visibility": "public"})
    said: list[str] = []
    night(nights(line)[0], mine.store(), said.append)
    assert [image.id for image in foreign(mine.store(), line)] == [squat.id]
    assert any("ALARM" in text and squat.id in text for text in said)
    assert other.store().get(squat.id) is not None


def test_a_foreign_hand_on_the_latest_is_repaired(
    tenant: Tenant, nights: Callable[[str], list[Bundle]], readers: Readers
) -> None:
    line = f"Hand_{tenant.name}"
    store = tenant.store()
    first, second = (night(bundle, store) for bundle in nights(line)[:2])
    store.patch(second, {"name": "mine", "os_purpose": "custom"})
    said: list[str] = []
    recover(store, line, now=now(), say=said.append)
    assert any("ALARM" in text for text in said)
    assert readers.sdk(f"{line}_latest") == second
    assert readers.sdk(f"{line}_prev") == first
    expect_order(store.list_line(line), line, prev=True)


# -- what has outlived its promise -------------------------------------------------------------------------------------


def test_a_sweep_deletes_what_may_go(tenant: Tenant, nights: Callable[[str], list[Bundle]], readers: Readers) -> None:
    line = f"Sweep_{tenant.name}"
    store = tenant.store()
    oldest, prev, latest = (night(bundle, store) for bundle in nights(line))
    assert sweep(line, store=store, now=now(), say=silent).steps == ()
    store.patch(oldest, {"imgfactory_keep_until": "2026-01-01"})
    sweep(line, store=store, now=now(), say=silent)
    assert [image.id for image in store.list_line(line)] == [latest, prev]
    assert readers.sdk(f"{line}_latest") == latest
    expect_order(store.list_line(line), line, prev=True)


# -- what goes wrong --------------------------------------------------------------------------------------------------


def cloud_without(tenant: Tenant, folder: Path, extra: str) -> GlanceStore:
    path = folder / "clouds.yaml"
    path.write_text(tenant.clouds_yaml.read_text() + extra)
    return connect_glance(tenant.name, clouds_yaml=path, direct=True)


def test_glance_away_is_one_clear_error(tenant: Tenant, nights: Callable[[str], list[Bundle]], tmp_path: Path) -> None:
    bundle = nights(f"Away_{tenant.name}")[0]
    away = cloud_without(tenant, tmp_path, "    image_endpoint_override: http://127.0.0.1:9/v2\n")
    with pytest.raises(StoreError, match="does not answer") as told:
        publish(bundle, store=away, target=TARGET, now=now(), say=silent)
    assert told.value.exit_code == 3
    assert "factory cloud status" in told.value.hint
    assert tenant.store().list_all() == ()


def test_wrong_credentials_and_an_unknown_cloud_are_told(tenant: Tenant, tmp_path: Path) -> None:
    path = tmp_path / "clouds.yaml"
    path.write_text(tenant.clouds_yaml.read_text().replace("password: ", "password: no"))
    with pytest.raises(StoreError, match="no access") as told:
        connect_glance(tenant.name, clouds_yaml=path, direct=True).list_line("x")
    assert "credentials" in told.value.hint
    with pytest.raises(StoreError, match="cannot be used"):
        connect_glance("nowhere", clouds_yaml=path)


def test_keystone_away_is_told(tmp_path: Path) -> None:
    path = tmp_path / "clouds.yaml"
    path.write_text(
        f"clouds:\n  x:\n    region_name: {REGION}\n    auth:\n      auth_url: http://127.0.0.1:9/v3\n"
        "      username: a\n      password: b\n      project_name: c\n      user_domain_name: Default\n"
        "      project_domain_name: Default\n"
    )
    with pytest.raises(StoreError) as told:
        connect_glance("x", clouds_yaml=path, direct=True).list_line("x")
    assert told.value.exit_code == 3


def test_a_project_that_may_not_publicize_keeps_its_candidate_to_itself(
    embedded_cloud: CloudAccess, new_tenant: Callable[[], Tenant], nights: Callable[[str], list[Bundle]]
) -> None:
    tenant = new_tenant()
    identity = connect(embedded_cloud.admin, clouds_yaml=embedded_cloud.clouds_yaml, direct=True).identity
    user, role = identity.find_user(tenant.name), identity.find_role("image_publisher")
    identity.unassign_project_role_from_user(tenant.project_id, user, role)
    bundle = nights(f"Private_{tenant.name}")[0]
    with pytest.raises(StoreError, match="403") as told:
        publish(bundle, store=tenant.store(), target=TARGET, now=now(), say=silent)
    assert "publicize" in told.value.hint
    (candidate,) = tenant.store().list_all()
    assert (candidate.visibility, candidate.hidden, candidate.tested) == ("private", True, False)
    # a target that asks for less goes on with it
    community = Target(visibility="community")
    release = publish(bundle, store=tenant.store(), target=community, now=now(), say=silent)
    rotate(release, store=tenant.store(), now=now(), say=silent)
    assert release.image_id == candidate.id


def test_bytes_that_are_no_qcow2_leave_nothing(tenant: Tenant, tmp_path: Path) -> None:
    junk = tmp_path / "junk.qcow2"
    junk.write_bytes(b"x" * 100_000)
    bundle = make_bundle(tmp_path / "b", line=f"Junk_{tenant.name}", qcow2=junk)
    with pytest.raises(StoreError, match="does not take") as told:
        publish(bundle, store=tenant.store(), target=TARGET, now=now(), say=silent)
    assert told.value.exit_code == 3
    assert tenant.store().list_all() == ()


def test_other_bytes_in_the_store_are_noticed_and_deleted(tenant: Tenant, tmp_path: Path) -> None:
    """As after a conversion on import, or an upload that was cut off unnoticed."""
    line = f"Other_{tenant.name}"
    bundle = make_bundle(tmp_path / "b", line=line)
    other = make_bundle(tmp_path / "o", line=line)
    store = tenant.store()

    class Swapping(GlanceStore):
        def upload(self, image_id: str, _path: Path) -> None:
            super().upload(image_id, other.artifact.path)

    swapping = Swapping(store._connection, cloud=tenant.name, holder="test")
    with pytest.raises(StoreError, match="other bytes than were signed"):
        publish(bundle, store=swapping, target=TARGET, now=now(), say=silent)
    assert store.list_all() == ()
    assert night(bundle, store) == claim_id(tenant.project_id, line, 2)


def test_without_a_digest_from_the_store_the_image_is_downloaded(tenant: Tenant, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", line=f"Hash_{tenant.name}")
    downloads: list[str] = []

    class Mute(GlanceStore):
        def get(self, image_id: str) -> StoredImage | None:
            import dataclasses

            found = super().get(image_id)
            return dataclasses.replace(found, hash_algo="", hash_value="") if found else None

    store = Mute(
        tenant.store()._connection,
        cloud=tenant.name,
        holder="test",
        observer=lambda _when, name: downloads.append(name) if name.endswith("/file") else None,
    )
    release = publish(bundle, store=store, target=TARGET, now=now(), say=silent)
    assert any(name.startswith("GET") for name in downloads)
    assert release.generation == 1
