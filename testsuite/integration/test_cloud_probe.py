# SPDX-License-Identifier: Apache-2.0
"""``factory doctor --cloud`` on the real Glance, whole and with one capability taken away."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from factory.cloud import CloudAccess
from factory.errors import StoreError
from factory.store.glance import GlanceStore, connect_glance
from factory.store.probe import TAG, Probed, clean, probe
from factory.system.clock import now
from testsuite.fakes.narrow_glance import Refusal, Rule, narrowed
from testsuite.integration.cloud_fixtures import Tenant

pytestmark = pytest.mark.needs_glance
PROJECT = Path(__file__).parents[2]


def silent(_line: str) -> None:
    return


def behind(tenant: Tenant, address: str) -> GlanceStore:
    """The tenant's store, through a proxy."""
    path = tenant.clouds_yaml.with_suffix(".proxy.yaml")
    path.write_text(tenant.clouds_yaml.read_text() + f"    image_endpoint_override: {address}\n")
    return connect_glance(tenant.name, clouds_yaml=path, direct=True, holder="test")


def look(store: GlanceStore, visibility: str = "public") -> dict[str, Probed]:
    return {one.name: one for one in probe(store, visibility=visibility, now=now(), say=silent)}


def lacking(found: dict[str, Probed]) -> set[str]:
    return {name for name, one in found.items() if not one.ok}


def test_the_real_glance_lacks_nothing_and_keeps_nothing(tenant: Tenant) -> None:
    store = tenant.store()
    found = look(store)
    assert lacking(found) == set()
    assert store.list_all() == ()
    assert "glance-direct" in found["import methods"].says
    assert found["digest"].says.startswith("sha512")
    assert len(found) >= 18


def patched(body: Any) -> dict[str, Any]:
    return {one["path"][1:]: one["value"] for one in body} if isinstance(body, list) else body or {}


def refuses(method: str, key: str, value: object = None, status: int = 403) -> Callable[..., Refusal | None]:
    def ask(asked: str, _path: str, body: Any) -> Refusal | None:
        found = patched(body)
        wrong = asked == method and key in found and (value is None or found[key] == value)
        return (status, {"said": "no"}) if wrong else None

    return ask


def strips(*keys: str) -> Callable[..., Refusal | None]:
    def ask(_method: str, _path: str, body: Any) -> Refusal | None:
        if isinstance(body, list):
            body[:] = [one for one in body if one["path"][1:] not in keys] or [
                {"op": "add", "path": "/nothing", "value": "x"}
            ]
        elif isinstance(body, dict):
            for key in keys:
                body.pop(key, None)
        return None

    return ask


def no_path(method: str, ending: str, status: int = 403) -> Callable[..., Refusal | None]:
    return lambda asked, path, _body: (status, {}) if asked == method and path.endswith(ending) else None


def counts(limit: int) -> Callable[..., Refusal | None]:
    return lambda asked, _path, body: (413, {}) if asked == "PATCH" and len(body) > limit else None


def long_names(_method: str, _path: str, body: Any) -> Refusal | None:
    return (400, {}) if len(str(patched(body).get("name", ""))) > 64 else None


def used_up(_method: str, path: str, _body: Any) -> Refusal | None:
    usage = {"image_count_total": {"limit": 10, "usage": 9}}
    return (200, {"usage": usage}) if path.endswith("/info/usage") else None


def both(*asks: Callable[..., Refusal | None]) -> Callable[..., Refusal | None]:
    return lambda *request: next((found for ask in asks if (found := ask(*request))), None)


def no_digest(image: dict[str, Any]) -> None:
    for key in ("os_hash_algo", "os_hash_value"):
        image.pop(key, None)


def hides_nothing(image: dict[str, Any]) -> None:
    image.pop("virtual_size", None)


def converted(image: dict[str, Any]) -> None:
    if image.get("os_hash_value"):
        image["os_hash_value"] = "0" * 128


TWICE = {"caller-chosen ids", "deleted ids"}


def reusable() -> Callable[..., Refusal | None]:
    """A cloud that takes an id at its word the first time and makes another one after that."""
    seen: set[str] = set()

    def ask(method: str, _path: str, body: Any) -> Refusal | None:
        if method == "POST" and isinstance(body, dict) and body.get("id") in seen:
            del body["id"]
        elif method == "POST" and isinstance(body, dict) and "id" in body:
            seen.add(body["id"])
        return None

    return ask


CASES: dict[str, tuple[Callable[[], Rule], set[str], set[str]]] = {
    # what is taken away: the rule, what is degraded, what the factory cannot do without
    "ids are refused": (lambda: Rule(ask=refuses("POST", "id")), TWICE, {"caller-chosen ids"}),
    "ids are ignored": (lambda: Rule(ask=strips("id")), TWICE, set()),
    "ids are taken twice": (lambda: Rule(ask=reusable()), TWICE, set()),
    "no hidden records": (
        lambda: Rule(ask=both(refuses("POST", "os_hidden"), refuses("PATCH", "os_hidden"))),
        {"hidden records", "os_hidden", "multi-operation PATCH", "visibility public", "visibility community"},
        {"hidden records", "multi-operation PATCH", "visibility public"},
    ),
    "os_hidden is ignored": (lambda: Rule(ask=strips("os_hidden")), {"os_hidden"}, set()),
    "one change a request": (
        lambda: Rule(ask=counts(1)),
        {"multi-operation PATCH", "properties", "visibility public", "visibility community"},
        {"multi-operation PATCH", "visibility public"},
    ),
    "half a request": (lambda: Rule(one_by_one=True), {"multi-operation PATCH"}, set()),
    "no public images": (
        lambda: Rule(ask=refuses("PATCH", "visibility", "public")),
        {"visibility public"},
        {"visibility public"},
    ),
    "no community images": (
        lambda: Rule(ask=refuses("PATCH", "visibility", "community")),
        {"visibility community"},
        set(),
    ),
    "no digest": (lambda: Rule(tell=no_digest), {"digest"}, set()),
    "conversion": (lambda: Rule(tell=converted), {"digest"}, {"digest"}),
    "no virtual size": (lambda: Rule(tell=hides_nothing), {"virtual size"}, set()),
    "no plain upload": (lambda: Rule(ask=no_path("PUT", "/file", 405)), {"upload"}, {"upload"}),
    "no deactivation": (lambda: Rule(ask=no_path("POST", "/deactivate")), {"deactivate"}, set()),
    "no protection": (lambda: Rule(ask=strips("protected")), {"protection"}, set()),
    "few properties": (lambda: Rule(ask=counts(40)), {"properties"}, set()),
    "short names": (lambda: Rule(ask=long_names), {"image names"}, set()),
    "quota": (lambda: Rule(ask=used_up), {"limits"}, set()),
    "clock": (lambda: Rule(late_s=600), {"clock"}, set()),
}


@pytest.fixture(scope="module")
def shared(new_tenant: Callable[[], Tenant]) -> Tenant:
    """One project for many probes: each leaves it empty."""
    return new_tenant()


@pytest.mark.parametrize("case", CASES)
def test_what_is_missing_is_told_with_what_it_costs(shared: Tenant, case: str) -> None:
    tenant = shared
    make, degraded, needed = CASES[case]
    with narrowed(tenant.store().address(), make()) as address:
        found = look(behind(tenant, address))
    assert lacking(found) == degraded, {name: one.says for name, one in found.items() if not one.ok}
    assert {name for name, one in found.items() if one.needed and not one.ok} == needed
    assert all(found[name].degraded for name in degraded)
    assert tenant.store().list_all() == (), "the probe left an image"


def test_another_algorithm_means_a_download(tenant: Tenant) -> None:
    rule = Rule()

    def sha256(image: dict[str, Any]) -> None:
        if image.get("os_hash_value"):
            image.update(os_hash_algo="sha256", os_hash_value=rule.uploaded["sha256"])

    rule.tell = sha256
    with narrowed(tenant.store().address(), rule) as address:
        found = look(behind(tenant, address))
    assert lacking(found) == {"digest"}
    assert (found["digest"].says, found["digest"].needed) == ("sha256, not sha512", False)
    assert "downloaded" in found["digest"].degraded


def test_what_a_target_does_not_ask_for_it_can_do_without(tenant: Tenant) -> None:
    rule = Rule(ask=refuses("PATCH", "visibility", "public"))
    with narrowed(tenant.store().address(), rule) as address:
        found = look(behind(tenant, address), visibility="community")
    assert (lacking(found), found["visibility public"].needed) == ({"visibility public"}, False)


def leave(store: GlanceStore, image_id: str, holder: str, **more: object) -> None:
    attributes = {"name": "x", "visibility": "private", TAG: "yes", "tags": [TAG], "imgfactory_holder": holder}
    store.create(image_id, {**attributes, **more})


def test_the_next_probe_deletes_what_a_killed_one_left_and_nothing_else(tenant: Tenant) -> None:
    store = tenant.store()
    ids = [f"00000000-0000-4000-8000-{os.getpid():08d}{number:04d}" for number in range(5)]
    leave(store, ids[0], "test")
    leave(store, ids[1], "test", os_hidden=True, protected=True)
    leave(store, ids[2], "another")
    store.create(ids[3], {"name": "theirs", "visibility": "private", "tags": [TAG]})
    store.create(ids[4], {"name": TAG, "visibility": "private", "imgfactory_line": "L"})
    said: list[str] = []
    assert clean(store, now=now(), say=said.append) == 2
    assert {image.id for image in store.list_all()} == set(ids[2:])
    assert any(ids[2] in line and "left alone" in line for line in said)
    assert clean(store, now=datetime.now(UTC) + timedelta(hours=2), say=silent) == 1
    assert {image.id for image in store.list_all()} == set(ids[3:])


@pytest.mark.parametrize("stop_at", ["PUT", "PATCH"])
def test_killed_in_the_middle_it_is_cleaned_up_by_the_next(tenant: Tenant, stop_at: str) -> None:
    child = os.fork()
    if child == 0:
        try:

            def die(when: str, request: str) -> None:
                if when == "after" and request.startswith(stop_at):
                    os.kill(os.getpid(), signal.SIGKILL)

            probe(tenant.store(observer=die), visibility="public", now=now(), say=silent)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert len(tenant.store().list_all()) == 1
    found = look(tenant.store())
    assert found["leftovers"].says.startswith("deleted 1 image")
    assert tenant.store().list_all() == ()


def test_an_interrupted_probe_leaves_nothing(tenant: Tenant) -> None:
    def stop(when: str, request: str) -> None:
        if when == "after" and request.startswith("PUT"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        probe(tenant.store(observer=stop), visibility="public", now=now(), say=silent)
    assert tenant.store().list_all() == ()


def test_a_cloud_that_is_away_is_one_clear_error(tenant: Tenant) -> None:
    with pytest.raises(StoreError, match="does not answer"):
        look(behind(tenant, "http://127.0.0.1:9/v2"))


def test_the_command(embedded_cloud: CloudAccess, tenant: Tenant) -> None:
    command = [sys.executable, "-m", "factory.cli", "--state", str(embedded_cloud.clouds_yaml.parent), "doctor"]
    environment = {**os.environ, "OS_CLIENT_CONFIG_FILE": str(tenant.clouds_yaml), "NO_PROXY": "127.0.0.1"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        options = {"capture_output": True, "text": True, "timeout": 120, "cwd": PROJECT, "env": environment}
        return subprocess.run([*command, *words], check=False, **options)  # type: ignore[call-overload]

    done = run("--cloud", tenant.name)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok       caller-chosen ids: the second record with one id is refused" in done.stdout
    told = json.loads(run("--cloud", tenant.name, "--json").stdout)
    assert told["schema"] == "factory/doctor-cloud/1"
    assert [one["ok"] for one in told["value"][tenant.name]].count(False) == 0
    assert run("--cloud", "nowhere").returncode == 3
    assert run("nowhere").returncode == 2
