# SPDX-License-Identifier: Apache-2.0
"""Publish, swap, rollback and recovery on a real Glance from which one capability was taken away."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from factory.errors import LineHeld, StoreError
from factory.model import Bundle, Target
from factory.publish import publish
from factory.rotate import reconcile, rollback
from factory.store.glance import connect_glance
from factory.store.line import latest_name, prev_name
from factory.store.narrow import NarrowGlance
from factory.store.probe import probe
from factory.system.clock import now
from testsuite.fakes.narrow_glance import Refusal, Rule, narrowed
from testsuite.fakes.readers import expect_order
from testsuite.integration.cloud_fixtures import Tenant
from testsuite.integration.test_cloud_probe import counts, refuses, strips
from testsuite.integration.test_glance import Readers, night, nights, readers, silent

__all__ = ["nights", "readers"]
pytestmark = pytest.mark.needs_glance


def no_hidden(method: str, path: str, body: Any) -> Refusal | None:
    if "os_hidden" in path:
        return 400, {"said": "no such filter"}
    return refuses("POST", "os_hidden")(method, path, body) or refuses("PATCH", "os_hidden")(method, path, body)


def unhidden(image: dict[str, Any]) -> None:
    image.pop("os_hidden", None)


RULES: dict[str, Callable[[], Rule]] = {
    "chosen-ids": lambda: Rule(ask=refuses("POST", "id")),
    "hidden": lambda: Rule(ask=no_hidden, tell=unhidden),
    "together": lambda: Rule(ask=counts(1)),
}


def narrow(tenant: Tenant, address: str, *without: str, holder: str = "test") -> NarrowGlance:
    path = tenant.clouds_yaml.with_suffix(f".{holder}.narrow.yaml")
    path.write_text(tenant.clouds_yaml.read_text() + f"    image_endpoint_override: {address}\n")
    store = connect_glance(tenant.name, clouds_yaml=path, direct=True, holder=holder, without=without)
    assert isinstance(store, NarrowGlance)
    return store


@pytest.fixture(params=RULES)
def lack(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store(tenant: Tenant, lack: str) -> Iterator[NarrowGlance]:
    with narrowed(tenant.store().address(), RULES[lack]()) as address:
        yield narrow(tenant, address, lack)


def test_a_line_lives_through_nights_a_rollback_and_a_crash(
    tenant: Tenant, store: NarrowGlance, lack: str, nights: Callable[[str], list[Bundle]], readers: Readers
) -> None:
    line = f"Narrow_{tenant.name}"
    ids = []
    for number, bundle in enumerate(nights(line)):
        ids.append(night(bundle, store))
        expect_order(store.list_line(line), line, prev=number > 0)
    assert readers.plain(latest_name(line)) == [ids[2]]
    assert readers.plain(prev_name(line)) == [ids[1]]
    assert readers.image.get_image(ids[0]).name == f"{line}_20261121", "archived images stay there by their id"
    # cut off after R3: nobody is shown as the latest
    store.patch(ids[2], {"name": latest_name(line), "os_hidden": True, "imgfactory_role": "candidate"})
    assert readers.plain(latest_name(line)) == []
    reconcile(line, store=store, now=now(), say=silent)
    expect_order(store.list_line(line), line, prev=True)
    assert readers.plain(latest_name(line)) == [ids[2]]
    done = rollback(line, store=store, target=Target(), now=now(), say=silent)
    assert (done.latest, done.prev) == (ids[1], ids[0])
    expect_order(store.list_line(line), line, prev=True)
    assert readers.plain(latest_name(line)) == [ids[1]]
    assert night(nights(line)[0], store) == ids[0], "what is there already is not published again"


def test_doctor_tells_what_to_set_and_is_content_then(tenant: Tenant, store: NarrowGlance, lack: str) -> None:
    plain = connect_glance(
        tenant.name, clouds_yaml=tenant.clouds_yaml.with_suffix(".test.narrow.yaml"), direct=True, holder="test"
    )
    found = probe(plain, visibility="public", now=now(), say=silent)
    assert any(f'without = ["{lack}"]' in one.degraded for one in found if not one.ok)
    again = probe(store, visibility="public", without=(lack,), now=now(), say=silent)
    assert [one.name for one in again if one.needed and not one.ok] == []
    assert any("as the target says" in one.degraded for one in again if not one.ok)
    assert tenant.store().list_all() == ()


def test_without_chosen_ids_one_of_two_claims_stays(tenant: Tenant, nights: Callable[[str], list[Bundle]]) -> None:
    line = f"Claims_{tenant.name}"
    results: dict[str, object] = {}
    with narrowed(tenant.store().address(), Rule(ask=strips("id"))) as address:
        stores = [narrow(tenant, address, "chosen-ids", holder=name) for name in ("one", "two")]

        def work(store: NarrowGlance, bundle: Bundle) -> None:
            try:
                results[store.holder] = publish(bundle, store=store, target=Target(), now=now(), say=silent)
            except LineHeld as held:
                results[store.holder] = held.exit_code

        threads = [threading.Thread(target=work, args=pair) for pair in zip(stores, nights(line), strict=False)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert list(results.values()).count(4) == 1, results
        (left,) = tenant.store().list_line(line)
        assert left.tested


def test_a_cloud_that_ignores_os_hidden_unasked_gets_nothing(
    tenant: Tenant, nights: Callable[[str], list[Bundle]]
) -> None:
    with narrowed(tenant.store().address(), Rule(ask=strips("os_hidden"))) as address:
        path = tenant.clouds_yaml.with_suffix(".ignores.yaml")
        path.write_text(tenant.clouds_yaml.read_text() + f"    image_endpoint_override: {address}\n")
        store = connect_glance(tenant.name, clouds_yaml=path, direct=True, holder="test")
        with pytest.raises(StoreError, match="no hidden images") as told:
            publish(nights(f"Ignores_{tenant.name}")[0], store=store, target=Target(), now=now(), say=silent)
    assert "without" in told.value.hint
    assert tenant.store().list_all() == ()
