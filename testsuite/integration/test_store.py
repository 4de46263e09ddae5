# SPDX-License-Identifier: Apache-2.0
"""What every image store must do: the same tests for the real Glance and for the one in memory."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from factory.errors import StoreError
from factory.store.memory import MemoryGlance, MemoryStore
from factory.store.protocol import IdTaken, ImageStore, NotWanted
from factory.system.files import digests
from testsuite.fakes.bundles import VIRTUAL_BYTES, make_qcow2
from testsuite.fakes.narrow_glance import narrowed
from testsuite.integration.cloud_fixtures import Tenant
from testsuite.integration.test_narrow_clouds import RULES, narrow

Pair = tuple[ImageStore, ImageStore]
WHOLE, NARROW = ("memory", "glance"), tuple(RULES)
"""``NARROW``: the real one without what test_narrow_clouds.py takes away, which the store does without."""


def chosen(*names: str) -> list[object]:
    return [name if name == "memory" else pytest.param(name, marks=pytest.mark.needs_glance) for name in names]


def two_projects(kind: str, request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Two projects in one image service."""
    if kind == "memory":
        service = MemoryGlance()
        yield MemoryStore(service, "one", holder="h"), MemoryStore(service, "two", holder="h")
        return
    make: Callable[[], Tenant] = request.getfixturevalue("new_tenant")
    one, two = make(), make()
    if kind == "glance":
        yield one.store(holder="h"), two.store(holder="h")
        return
    with narrowed(one.store().address(), RULES[kind]()) as address:
        yield narrow(one, address, kind, holder="h"), narrow(two, address, kind, holder="h")


@pytest.fixture(params=chosen(*WHOLE, *NARROW))
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    yield from two_projects(request.param, request)


@pytest.fixture(params=chosen(*WHOLE, "hidden", "together"))
def pair_with_ids(request: pytest.FixtureRequest) -> Iterator[Pair]:
    yield from two_projects(request.param, request)


@pytest.fixture(params=chosen(*WHOLE, "chosen-ids", "hidden"))
def store_of_whole_patches(request: pytest.FixtureRequest) -> Iterator[ImageStore]:
    for one, _ in two_projects(request.param, request):
        yield one


@pytest.fixture
def store(pair: Pair) -> ImageStore:
    return pair[0]


@pytest.fixture(scope="module")
def qcow2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("qcow2") / "small.qcow2"
    make_qcow2(path, data_bytes=4096)
    return path


def fresh() -> str:
    return str(uuid.uuid4())


def record(line: str, generation: int = 1, **more: object) -> dict[str, object]:
    return {
        "name": f"{line}_x",
        "visibility": "private",
        "imgfactory_line": line,
        "imgfactory_generation": str(generation),
        **more,
    }


def test_a_record_is_as_it_was_asked_for(store: ImageStore) -> None:
    wanted = record("L", 7, os_hidden=True, tags=["b", "a"], min_disk=4, hw_disk_bus="scsi")
    made = store.create(fresh(), wanted)
    assert store.get(made.id) == made
    assert (made.status, made.hidden, made.visibility, made.protected) == ("queued", True, "private", False)
    assert (made.line, made.generation, made.tags) == ("L", 7, ("a", "b"))
    assert (made.properties["min_disk"], made.properties["hw_disk_bus"]) == ("4", "scsi")
    assert made.owner == store.project_id
    assert (made.hash_value, made.size_bytes) == ("", None)


def test_an_id_is_taken_once_and_stays_burnt(pair_with_ids: Pair) -> None:
    store, other = pair_with_ids
    image_id = fresh()
    store.create(image_id, record("L"))
    for whoever in pair_with_ids:
        with pytest.raises(IdTaken):
            whoever.create(image_id, record("M"))
    assert other.get(image_id) is None
    store.delete(image_id)
    store.delete(image_id)
    with pytest.raises(IdTaken):
        store.create(image_id, record("L"))


def test_names_are_not_unique_and_lists_hold_hidden_images_too(pair: Pair) -> None:
    store, other = pair
    for generation, hidden in ((1, True), (2, False), (3, True)):
        store.create(fresh(), record("L", generation, os_hidden=hidden))
    store.create(fresh(), record("M"))
    other.create(fresh(), record("L"))
    assert [image.generation for image in store.list_line("L")] == [3, 2, 1]
    assert len(store.list_all()) == 4
    assert len(store.named("L_x", "none")) == 3
    assert len(store.named("L_x", "M_x")) == 4
    assert store.list_line("none") == ()


def test_bytes_arrive_and_are_read_back(store: ImageStore, qcow2: Path) -> None:
    made = store.create(fresh(), record("L"))
    store.upload(made.id, qcow2)
    stored = store.get(made.id)
    expected = digests(qcow2)
    assert stored is not None
    assert (stored.status, stored.size_bytes) == ("active", expected.size_bytes)
    assert (stored.hash_algo, stored.hash_value) == ("sha512", expected.sha512)
    assert stored.virtual_size_bytes == VIRTUAL_BYTES
    assert store.read_back(made.id) == expected
    with pytest.raises(NotWanted):
        store.upload(made.id, qcow2)


def test_other_bytes_than_declared_are_refused(store: ImageStore, tmp_path: Path) -> None:
    (tmp_path / "junk").write_bytes(b"x" * 65536)
    made = store.create(fresh(), record("L"))
    with pytest.raises(NotWanted):
        store.upload(made.id, tmp_path / "junk")
    refused = store.get(made.id)
    assert refused is not None
    assert refused.status == "queued"


def test_a_patch_sets_everything_and_may_be_sent_twice(store: ImageStore) -> None:
    made = store.create(fresh(), record("L", kept="yes"))
    change = {
        "name": "N",
        "os_hidden": True,
        "protected": True,
        "min_ram": 512,
        "a/b~c": "d",
        "imgfactory_role": "prev",
    }
    for patched in (store.patch(made.id, change), store.prepare(made.id, change)(), store.get(made.id)):
        assert patched is not None
        assert (patched.name, patched.hidden, patched.protected) == ("N", True, True)
        assert (patched.properties["min_ram"], patched.properties["a/b~c"], patched.role) == ("512", "d", "prev")
        assert patched.properties["kept"] == "yes"
    store.patch(made.id, {"protected": False})


@pytest.mark.parametrize(
    "wrong",
    [{"number": 1}, {"os_hidden": "true"}, {"min_disk": "4"}, {"os_hash_value": "0"}, {"name": "x" * 256}],
    ids=str,
)
def test_a_patch_with_one_fault_changes_nothing(store_of_whole_patches: ImageStore, wrong: dict[str, object]) -> None:
    store = store_of_whole_patches
    made = store.create(fresh(), record("L"))
    with pytest.raises(StoreError, match="refused"):
        store.patch(made.id, {"name": "changed", **wrong})
    assert store.get(made.id) == made


def test_protected_images_stay(store: ImageStore) -> None:
    made = store.create(fresh(), record("L", protected=True))
    with pytest.raises(StoreError):
        store.delete(made.id)
    assert store.get(made.id) is not None
    store.patch(made.id, {"protected": False})
    store.delete(made.id)
    assert store.get(made.id) is None


def test_another_project_sees_public_images_and_changes_none(pair: Pair, qcow2: Path) -> None:
    store, other = pair
    made = store.create(fresh(), record("L", name=f"public-{fresh()}"))
    store.upload(made.id, qcow2)
    assert other.get(made.id) is None
    public = store.patch(made.id, {"visibility": "public", "os_hidden": True})
    assert other.get(made.id) is not None
    assert [image.id for image in other.named(public.name)] == [made.id]
    assert other.list_line("L") == ()
    with pytest.raises(StoreError):
        other.patch(made.id, {"name": "theirs"})
    with pytest.raises(StoreError):
        other.delete(made.id)
    store.patch(made.id, {"visibility": "private"})


def test_a_deactivated_image_stays_but_has_no_bytes_to_give(store: ImageStore, qcow2: Path) -> None:
    made = store.create(fresh(), record("L"))
    with pytest.raises(StoreError):
        store.deactivate(made.id)  # it has no bytes yet
    store.upload(made.id, qcow2)
    for _ in range(2):
        store.deactivate(made.id)
    found = store.get(made.id)
    assert found is not None
    assert found.status == "deactivated"
    store.delete(made.id)
    assert store.get(made.id) is None
