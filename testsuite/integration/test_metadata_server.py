# SPDX-License-Identifier: Apache-2.0
"""``metadata_server`` in the place of region servers: the guest client in a namespace, the metadata server played."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from factory.errors import InputFault
from factory.model import Region, RegionClient
from factory.region import metadata_server
from factory.region.certificates import fingerprint
from factory.region.embedded import embedded_region
from factory.region.services import serve
from factory.sandbox.metadata import metadata_service
from factory.system.clock import now
from factory.system.namespaces import network_namespace
from testsuite.integration.region_fixtures import Recorded, record_repository
from testsuite.integration.test_guest_client import PRODUCT, REGION_A, REGION_B, UPDATE_A, UPDATE_B, Stage, refused

pytestmark = [pytest.mark.needs_root, pytest.mark.timeout(240)]

PLAYED = RegionClient(metadata_server="http://203.0.113.200:8080/update/server?kind=smt")
OTHER = RegionClient(metadata_server="http://169.254.169.254/update/server")
PATH = "update/server"


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Region:
    return embedded_region(tmp_path_factory.mktemp("keys") / "region", now=now())


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return record_repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="module")
def running(region: Region, recorded: Recorded, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    work = tmp_path_factory.mktemp("services")
    with (
        network_namespace() as namespace,
        serve(
            namespace,
            (region,),
            view=recorded.view,
            product=PRODUCT,
            workdir=work / "work",
            log_dir=work / "logs",
            now=now(),
            say=lambda _: None,
            client=PLAYED,
        ) as services,
    ):
        yield Stage(services, region, recorded, work)


@pytest.fixture
def stage(running: Stage, tmp_path: Path) -> Stage:
    """No region server answers: whoever registers was told of its update server by the metadata server."""
    made = Stage(running.services, running.region, running.recorded, tmp_path)
    made.only(UPDATE_A, UPDATE_B)
    return made


def test_an_instance_registers_where_the_metadata_server_sends_it_and_moves_on(stage: Stage) -> None:
    guest = stage.instance(client=PLAYED)
    done = guest.guestregister()
    assert done.returncode == 0, done.stderr
    first = next(address for address in (UPDATE_A, UPDATE_B) if address in guest.read("etc/hosts"))
    second = {UPDATE_A: UPDATE_B, UPDATE_B: UPDATE_A}[first]
    assert "GET /update/server?kind=smt " in stage.services.access_log(stage.services.metadata_address)
    assert "/regionInfo" not in stage.services.access_log(REGION_A) + stage.services.access_log(REGION_B)
    stage.services.stop(first)
    for _ in range(8):  # which server the metadata server names is drawn by lot
        done = guest.guestregister()
        if done.returncode == 0:
            break
        assert first in guest.read("etc/hosts"), "what worked before was taken away"
    assert done.returncode == 0, done.stderr
    assert second in guest.read("etc/hosts")
    assert len(stage.services.registrations()) == 1


def test_a_metadata_server_that_is_dead_leaves_nothing_behind(stage: Stage) -> None:
    guest = stage.instance(client=PLAYED)
    stage.services.stop(stage.services.metadata_address)
    try:
        refused(stage, guest, "does not answer")
    finally:
        stage.services.start(stage.services.metadata_address)


def good(stage: Stage) -> dict[str, str]:
    server = stage.region.update_servers[0]
    return {
        "fingerprint": fingerprint(server.pem.read_text()),
        "SMTserverIP": server.ipv4,
        "SMTserverName": server.name,
    }


WRONG: dict[str, tuple[dict[str, object], str]] = {
    "another fingerprint": ({"fingerprint": ":".join(["AB"] * 20)}, "another fingerprint"),
    "lower case": ({"fingerprint": ":".join(["ab"] * 20)}, "not an upper-case SHA-1 fingerprint"),
    "no fingerprint": ({"fingerprint": ""}, "not an upper-case SHA-1 fingerprint"),
    "null": ({"SMTserverIP": None}, "names no update server"),
    "a list": ({"SMTserverName": ["x.y"]}, "names no update server"),
    "loopback": ({"SMTserverIP": "127.0.0.2"}, "has no usable address"),
    "a line in the name": ({"SMTserverName": "a.b\n203.0.113.9\tdeb.example"}, "named an update server"),
    "another name": ({"SMTserverName": "update-x.factory.invalid"}, "is not accepted"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_answer_leaves_nothing_behind(stage: Stage, case: str) -> None:
    changes, words = WRONG[case]
    guest = stage.instance(client=OTHER)
    with metadata_service(stage.namespace, {PATH: json.dumps({**good(stage), **changes})}):
        refused(stage, guest, words)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"fingerprint": 1}', "[" * 100_000, "\xff"])
def test_an_answer_that_is_none_leaves_nothing_behind(stage: Stage, text: str) -> None:
    guest = stage.instance(client=OTHER)
    with metadata_service(stage.namespace, {PATH: text}):
        refused(stage, guest, "the metadata server's answer (200) names no update server")


def test_an_answer_that_is_too_long_or_missing_leaves_nothing_behind(stage: Stage) -> None:
    guest = stage.instance(client=OTHER)
    with metadata_service(stage.namespace, {PATH: " " * (2 << 20)}):
        refused(stage, guest, "sent more than")
    with metadata_service(stage.namespace, {"update/elsewhere": json.dumps(good(stage))}):
        refused(stage, guest, "the metadata server's answer (404) names no update server")


def test_a_good_answer_from_elsewhere_is_enough(stage: Stage) -> None:
    """The cases above fail for their fault, and not because this server cannot be asked."""
    guest = stage.instance(client=OTHER)
    with metadata_service(stage.namespace, {PATH: json.dumps(good(stage))}):
        done = guest.guestregister()
    assert done.returncode == 0, done.stderr
    assert UPDATE_A in guest.read("etc/hosts")


def test_what_the_sandbox_cannot_play_is_told() -> None:
    with pytest.raises(InputFault, match="cannot play the metadata server https://meta"):
        metadata_server.place(RegionClient(metadata_server="https://meta.cloud.example/x"))
    named = RegionClient(metadata_server="http://meta.cloud.example/x")
    assert metadata_server.names(named) == {"meta.cloud.example": (metadata_server.ADDRESS,)}
    assert metadata_server.names(PLAYED) == {}
