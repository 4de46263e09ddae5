# SPDX-License-Identifier: Apache-2.0
"""Metadata and promises on the real Glance."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from factory.errors import InputFault
from factory.installation import Installation
from factory.ledger import Ledger, detail_of
from factory.model import Bundle, Capability, Otc, Package, Rotation, Rotations, Site, StoredImage, Target
from factory.promises import Promise, watch
from factory.publish import publish
from factory.rotate import rotate
from factory.store.glance import GlanceStore
from factory.store.metadata import metadata
from factory.store.properties import CAPABILITIES, faults
from factory.system.clock import now
from factory.system.state import State
from factory.watch import promised, promises_of, unpublished_since
from testsuite.fakes.bundles import BUILT, make_bundle, with_description
from testsuite.integration.cloud_fixtures import Tenant

pytestmark = pytest.mark.needs_glance
OTC = Otc(capabilities=(Capability(name="kvm", bit=3, flag="__support_kvm"),), properties={"__description": "x" * 1024})


def silent(_line: str) -> None:
    return


def night(bundle: Bundle, store: GlanceStore, target: Target) -> Rotation:
    release = publish(bundle, store=store, target=target, now=now(), say=silent)
    return rotate(release, store=store, now=now(), say=silent)


@pytest.fixture
def bundle(tmp_path: Path, tenant: Tenant) -> Bundle:
    return make_bundle(tmp_path / "one", line=f"Meta_{tenant.name}", built_at=now(), data_bytes=4096)


def test_everything_that_was_meant_is_what_glance_holds(tenant: Tenant, bundle: Bundle) -> None:
    store, target = tenant.store(), Target(otc=OTC, aged_purpose="archive")
    bundle = with_description(bundle, capabilities=("kvm",), metadata={"hotfix_hours": "48", "os_version": "13"})
    done = night(bundle, store, target)
    assert done.differs == ()
    image = store.get(done.latest)
    assert image is not None
    assert faults(image.properties, place="Glance", purposes=["archive"]) == ()
    assert (image.properties[CAPABILITIES], image.properties["__support_kvm"]) == ("8", "true")
    meant = metadata(bundle, target)
    assert {key: image.properties[key] for key in meant if key != "os_purpose"} | {"uuid_validity": ""} == {
        key: value for key, value in meant.items() if key != "os_purpose"
    } | {"uuid_validity": ""}
    assert image.properties["os_purpose"] == "generic"


def test_what_a_foreign_hand_changed_is_set_again_by_the_next_rotation(tenant: Tenant, bundle: Bundle) -> None:
    store, said = tenant.store(), list[str]()
    release = publish(bundle, store=store, target=Target(), now=now(), say=silent)
    rotate(release, store=store, now=now(), say=silent)
    store.patch(release.image_id, {"os_version": "12", "visibility": "private"})
    assert rotate(release, store=store, now=now(), say=said.append).differs == ()
    image = store.get(release.image_id)
    assert image is not None
    assert (image.properties["os_version"], image.visibility) == ("13", "public")
    assert any("os_version is '12', meant was '13'" in line for line in said)


def test_a_second_generic_line_is_refused(tenant: Tenant, bundle: Bundle) -> None:
    store = tenant.store()
    other = with_description(bundle, line=f"Other_{tenant.name}")
    night(bundle, store, Target())
    with pytest.raises(InputFault, match="second generic image"):
        night(other, store, Target())
    assert store.list_line(f"Other_{tenant.name}") == ()
    minimal = with_description(other, metadata={"os_purpose": "minimal"})
    assert night(minimal, store, Target()).differs == ()


# -- promises


@pytest.fixture
def published(tenant: Tenant, tmp_path: Path) -> Callable[..., tuple[str, GlanceStore, list[StoredImage]]]:
    """Three nights of a line, whose description promises."""

    def make(**said: str) -> tuple[str, GlanceStore, list[StoredImage]]:
        line, store = f"Promise_{tenant.name}", tenant.store()
        for days in (2, 1, 0):
            made = make_bundle(tmp_path / f"p{days}", line=line, built_at=now() - timedelta(days=days), data_bytes=4096)
            night(with_description(made, metadata={"os_version": "13", **said}), store, Target())
        return line, store, list(store.list_line(line))

    return make


def told(found: tuple[Promise, ...]) -> list[str]:
    return [f"{one.promise} {one.state.value}" for one in found]


def test_promises_of_what_glance_holds(published: Callable[..., tuple[str, GlanceStore, list[StoredImage]]]) -> None:
    line, store, images = published(replace_frequency="daily", hotfix_hours="4", provided_until="2099-01-01")
    assert watch(line, images, now=now()) == ()
    assert told(watch(line, images, now=now() + timedelta(hours=40))) == ["replace_frequency breached"]
    late = watch(line, images, now=now(), unpublished_since=now() - timedelta(hours=5))
    assert told(late) == ["hotfix_hours breached"]
    store.deactivate(images[1].id)
    (broken,) = watch(line, store.list_line(line), now=now())
    assert (broken.image_id, broken.promise) == (images[1].id, "uuid_validity")
    store.patch(images[0].id, {"provided_until": "2020-01-01", "os_hidden": True})
    found = told(watch(line, store.list_line(line), now=now()))
    assert found == ["provided_until breached", "replace_frequency breached", "uuid_validity breached"]


def test_ids_that_the_ledger_promised_and_glance_lost(
    tenant: Tenant,
    published: Callable[..., tuple[str, GlanceStore, list[StoredImage]]],
    tmp_path: Path,
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As ``factory status`` asks: through the site's target, the ledger and the runs."""
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(tenant.clouds_yaml))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    line, store, images = published(hotfix_hours="4")
    state = State(path=tmp_path / "state").prepare()
    here = Installation(project=tmp_path, state=state, site=Site(targets=(Target(cloud=tenant.name),)))
    description = dataclasses.replace(bundle.artifact.recipe.description, line=line)
    rotated = Rotation(
        target=Target(), line=line, latest="", prev=None, archived=None, steps=(), gap_s=0, rotated_at=BUILT
    )
    run = state.new_run("debian13", now() - timedelta(hours=9))
    run.write("build", bundle.artifact)
    run.write("rotate", Rotations(rotations=(rotated,)))
    fixed = (Package(name="openssl", version="2", arch="amd64", origin="debian-security"),)
    red = dataclasses.replace(bundle.artifact, packages=fixed, built_at=now() - timedelta(hours=5))
    state.new_run("debian13", now()).write("build", red)
    assert unpublished_since("debian13", here=here) == red.built_at
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        ledger.begin_run(run.id, image="debian13", line=line, started_at=BUILT)
        detail = detail_of(Rotations(rotations=(rotated,)), images=images)
        ledger.record_stage(run.id, "rotate", outcome="done", started_at=BUILT, seconds=1, detail=detail)
        assert {one.image_id for owner, one in promised("debian13", ledger) if owner == tenant.project_id} == {
            image.id for image in images
        }
        oldest = images[-1]
        store.patch(oldest.id, {"protected": False})
        store.delete(oldest.id)
        said: list[str] = []
        found = promises_of(description, here=here, ledger=ledger, now=now(), say=said.append)
        assert found is not None
        assert told(found) == ["uuid_validity breached", "hotfix_hours breached"]
        assert oldest.id in {one.image_id for one in found}
        away = dataclasses.replace(here, site=Site(targets=(Target(cloud="nowhere"),)))
        assert promises_of(description, here=away, ledger=ledger, now=now(), say=said.append) is None
        assert any("'nowhere' are not looked at" in line for line in said)


def test_the_embedded_cloud_is_not_started_to_look_at_promises(tmp_path: Path, bundle: Bundle) -> None:
    state = State(path=tmp_path / "state").prepare()
    here = Installation(project=tmp_path, state=state, site=Site())
    description = bundle.artifact.recipe.description
    said: list[str] = []
    assert promises_of(description, here=here, ledger=None, now=now(), say=said.append) is None
    assert "does not run" in said[0]
    assert not (state.cloud / "data").exists()
