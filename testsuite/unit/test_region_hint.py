# SPDX-License-Identifier: Apache-2.0
"""The region hint: what the OpenStack plugin says, and how the guest client uses any plugin."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from factory.sandbox.metadata import metadata_service
from factory.system.namespaces import NetworkNamespace, network_namespace
from factory.system.run import run
from testsuite.unit.test_region_instance_data import GUEST, PLUGIN, iso, load

guest: ModuleType = load(GUEST / "guestregister")
plugin: ModuleType = load(PLUGIN)
CALL = "import runpy, sys; print(runpy.run_path(sys.argv[1])['generateRegionSrvArgs']())"


@pytest.mark.parametrize(
    ("metadata", "region"),
    [
        ({"meta": {"region": "eu-north"}, "availability_zone": "x-1a"}, "eu-north"),
        ({"meta": {"region": " "}, "availability_zone": "eu-west-1a"}, "eu-west-1"),
        ({"meta": [], "availability_zone": "eu-de-01"}, "eu-de"),
        ({"availability_zone": "eu-de-b"}, "eu-de"),
        ({"availability_zone": "muc5"}, "muc5"),
        ({"availability_zone": "nova"}, ""),
        ({"availability_zone": "a b"}, ""),
        ({"availability_zone": 7}, ""),
        ({"meta": {"region": "a&regionHint=b"}}, ""),
        ({"meta": {"region": "eu\n"}}, "eu"),
        ({}, ""),
    ],
)
def test_the_rule(metadata: dict[str, object], region: str) -> None:
    assert plugin.region_of(metadata) == region


@pytest.fixture(scope="module")
def namespace() -> Iterator[NetworkNamespace]:
    with network_namespace() as made:
        yield made


@pytest.mark.needs_root
def test_the_metadata_service_tells_the_region(namespace: NetworkNamespace) -> None:
    files = {"openstack/latest/meta_data.json": json.dumps({"uuid": "x", "availability_zone": "eu-west-1a"})}
    with metadata_service(namespace, files):
        assert run(namespace.inside([sys.executable, "-c", CALL, PLUGIN])).stdout == "regionHint=eu-west-1\n"
    assert run(namespace.inside([sys.executable, "-c", CALL, PLUGIN])).stdout == "\n"


@pytest.mark.needs_root
def test_a_config_drive_tells_the_region(namespace: NetworkNamespace, tmp_path: Path) -> None:
    setting = f"{plugin.DRIVE_VARIABLE}={iso(tmp_path)}"
    assert run(namespace.inside(["env", setting, sys.executable, "-c", CALL, PLUGIN])).stdout == "regionHint=eu-1\n"


def files_with(tmp_path: Path, text: str | None, name: str = "hinter") -> object:
    folder = tmp_path / "usr/lib/image-factory"
    folder.mkdir(parents=True)
    if text is not None:
        (folder / f"{name}.py").write_text(text)
    return guest.Files(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("def generateRegionSrvArgs(): return 'regionHint=eu'", "regionHint=eu"),
        (
            "print('noise')\ndef generateRegionSrvArgs():\n    print('more')\n    return 'regionHint=eu'",
            "regionHint=eu",
        ),
        ("def generateRegionSrvArgs(): return 'a b'", ""),
        ("def generateRegionSrvArgs(): return 'a\\r\\nHost: evil'", ""),
        ("def generateRegionSrvArgs(): return 7", ""),
        ("def generateRegionSrvArgs(): raise AttributeError('x')", ""),
        ("import sys\nsys.exit(0)", ""),
        ("import there_is_none", ""),
        ("def somethingElse(): return 'x'", ""),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", ""),
        (None, ""),
    ],
)
def test_a_plugin_is_never_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, arguments: str
) -> None:
    monkeypatch.setattr(guest, "PLUGIN_TRIES", 1)
    assert guest.region_arguments(files_with(tmp_path, text), "hinter") == arguments


@pytest.mark.parametrize("name", ["none", "", "../hinter", "hint er", "*"])
def test_a_name_that_is_no_module_runs_nothing(tmp_path: Path, name: str) -> None:
    files = files_with(tmp_path, f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert guest.region_arguments(files, name) == ""
    assert not (tmp_path / "ran").exists()


def test_a_plugin_that_says_nothing_at_first_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest.time, "sleep", lambda _: None)
    count = tmp_path / "count"
    text = (
        f"import pathlib\np = pathlib.Path({str(count)!r})\n"
        "def generateRegionSrvArgs():\n"
        "    p.write_text((p.read_text() if p.exists() else '') + 'x')\n"
        "    return 'regionHint=eu' if len(p.read_text()) > 2 else None\n"
    )
    files = files_with(tmp_path, text)
    assert guest.region_arguments(files, "hinter") == "regionHint=eu"
    assert count.read_text() == "xxx"


def test_a_plugin_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest, "PLUGIN_TIMEOUT_S", 1.0)
    assert guest.region_arguments(files_with(tmp_path, "import time\ntime.sleep(60)"), "hinter") == ""


def test_the_clients_of_suse_find_the_same_plugin(tmp_path: Path) -> None:
    folder = tmp_path / "usr/lib/python3.11/site-packages/cloudregister"
    folder.mkdir(parents=True)
    (folder / "theirs.py").write_text("def generateRegionSrvArgs(): return 'regionHint=theirs'")
    assert guest.region_arguments(guest.Files(str(tmp_path)), "theirs") == "regionHint=theirs"


PLACES = [
    (("qemu", "openstackregion", "regionHint=a"), ("qemu", "openstackregion", "regionHint=b"), True),
    (("qemu", "openstackregion", "regionHint=a"), ("qemu", "openstackregion", "regionHint=A"), False),
    (("qemu", "openstackregion", "regionHint=a"), ("other", "openstackregion", "regionHint=a"), True),
    (("qemu", "openstackregion", "regionHint=a"), ("qemu", "openstackregion", ""), False),
    (("qemu", "openstackregion", ""), ("qemu", "openstackregion", "regionHint=a"), False),
    (("qemu", "amazonec2", "regionHint=a"), ("qemu", "openstackregion", "regionHint=b"), False),
]


@pytest.mark.parametrize(("before", "after", "left"), PLACES)
def test_another_region_is_told_only_by_two_hints(
    before: tuple[str, ...], after: tuple[str, ...], *, left: bool
) -> None:
    assert guest.Place(*after).left(guest.Place.of(guest.Place(*before).state())) is left


def test_the_place_is_found(tmp_path: Path) -> None:
    files = files_with(tmp_path, "def generateRegionSrvArgs(): return 'regionHint=eu'")
    (tmp_path / "sys/class/dmi/id").mkdir(parents=True)
    (tmp_path / "sys/class/dmi/id/sys_vendor").write_text("OpenStack Foundation\n")
    found = guest.Place.find(files, SimpleNamespace(plugin="hinter"))
    assert (found.framework, found.plugin, found.region) == ("OpenStack Foundation", "hinter", "regionHint=eu")
