# SPDX-License-Identifier: Apache-2.0
"""``[[region]]`` and ``[region_client]`` of the site file, and ``factory region check`` as people call it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from factory.cli import app
from factory.describe import load_site
from factory.errors import FactoryError, InputFault
from factory.model import Region, RegionClient, Registration
from factory.region.certificates import issue
from factory.region.config import client_config, for_image
from factory.region.embedded import with_embedded_client
from factory.region.services import verification_for
from testsuite.fakes.regions import make_region, make_suse_root, write_site

PROJECT = Path(__file__).parents[2]
NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Region:
    return make_region(tmp_path_factory.mktemp("region"), now=NOW)


# -- [region_client] --------------------------------------------------------------------------------------------------

PROTOCOL = """\
[region_client]
api = "info/v1"
certLocation = "/var/lib/regionService/certs"
httpsOnly = false
dataProvider = "/usr/bin/instance-data --json"
instanceArgs = "cloudhint"
packageBackend = "zypper"
provider = "acme"
"""


def test_every_key_is_read_in_the_protocols_spelling_and_in_ours(tmp_path: Path, region: Region) -> None:
    wanted = RegionClient(
        api="info/v1",
        cert_location="/var/lib/regionService/certs",
        https_only=False,
        data_provider="/usr/bin/instance-data --json",
        instance_args="cloudhint",
        package_backend="zypper",
        provider="acme",
    )
    ours = re.sub(r"(?m)^\w+", lambda key: re.sub(r"[A-Z]", lambda one: f"_{one[0].lower()}", key[0]), PROTOCOL)
    for text in (PROTOCOL, ours):
        found = load_site(write_site(tmp_path / "site.toml", region, more=text))
        assert found.region_client == wanted
    config = client_config(found.regions, wanted)
    for line in ("api = info/v1", "httpsOnly = false", "instanceArgs = cloudhint", "packageBackend = zypper"):
        assert line in config.splitlines()
    assert found.regions[0].servers[0].addresses == ("192.0.2.1", "2001:db8::1")


def test_the_package_backend_follows_the_images_client_where_the_site_names_none() -> None:
    for client, backend in (("guestregister", "apt"), ("registercloudguest", "zypper")):
        registration = Registration(client=client)
        assert for_image(RegionClient(), registration).package_backend == backend
        assert for_image(RegionClient(package_backend="dnf"), registration).package_backend == "dnf"


FAULTS: Mapping[str, tuple[str, str, str]] = {
    "slash": ('api = "/regionInfo"', "region_client.api", "begins with '/'"),
    "address": ('api = "https://a"', "region_client.api", "is not a path"),
    "relative": ('certLocation = "certs"', "region_client.certLocation", "not an absolute path"),
    "text": ('httpsOnly = "true"', "region_client.httpsOnly", "is text"),
    "bare": ('dataProvider = "provider"', "region_client.dataProvider", "neither 'none' nor"),
    "shell": ('dataProvider = "/bin/a | /bin/b"', "region_client.dataProvider", "shell syntax"),
    "module": ('instance_args = "a.py"', "region_client.instance_args", "Python module"),
    "backend": ('packageBackend = "yum"', "region_client.packageBackend", "'yum'"),
    "metadata": ('metadata_server = "SOME_URL"', "region_client.metadata_server", "not an http"),
    "unknown": ("verifyAccess = true", "region_client.verifyAccess", "not a known key"),
    "misspelled": ("httpsonly = true", "region_client.httpsonly", "did you mean 'httpsOnly'"),
    "both spellings": ("httpsOnly = true\nhttps_only = true", "region_client.https_only", "not a known key"),
    "provider": ('provider = "A Cloud"', "region_client.provider", "wrong form"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_mistake_in_region_client_is_told_with_its_line(tmp_path: Path, region: Region, case: str) -> None:
    text, key, words = FAULTS[case]
    path = write_site(tmp_path / "site.toml", region, more=f"[region_client]\n{text}\n")
    with pytest.raises(InputFault) as caught:
        load_site(path)
    name = key.rpartition(".")[2]
    line = next(number for number, one in enumerate(path.read_text().splitlines(), 1) if one.startswith(f"{name} ="))
    (fault,) = caught.value.faults
    assert fault.place == f"site.toml:{line} {key}"
    assert words in f"{fault.problem} {fault.cure}"


def test_all_mistakes_are_told_at_once(tmp_path: Path, region: Region) -> None:
    text = '[region_client]\napi = "/a"\nhttpsOnly = 1\ndataProvider = "x"\ninstanceArgs = "y z"\n'
    with pytest.raises(InputFault) as caught:
        load_site(write_site(tmp_path / "site.toml", region, more=text))
    assert len(caught.value.faults) == 4


@pytest.mark.parametrize("case", ["address twice", "no address", "no region servers"])
def test_servers_that_cannot_be_are_told_with_their_line(tmp_path: Path, region: Region, case: str) -> None:
    path = write_site(tmp_path / "site.toml", region)
    text = path.read_text()
    if case == "no region servers":
        text = re.sub(r"(?s)^servers = \[.*?\n\]", "servers = []", text, flags=re.MULTILINE)
        place, words = "region[0].servers", "missing or empty"
    elif case == "no address":
        text = text.replace('ipv4 = "198.51.100.1", ipv6 = "2001:db8:1::1", ', "")
        place, words = "region[0].update_servers[0]", "has no address"
    else:
        text = text.replace('"192.0.2.3"', '"192.0.2.2"')
        place, words = "region[0].servers[2]", "belongs to 'region-b.cloud.example'"
    path.write_text(text)
    with pytest.raises(InputFault) as caught:
        load_site(path)
    (fault,) = caught.value.faults
    assert re.fullmatch(rf"site\.toml:\d+ {re.escape(place)}", fault.place), fault.place
    assert words in fault.problem


def test_a_metadata_server_replaces_region_servers_but_no_update_server(tmp_path: Path, region: Region) -> None:
    more = '[region_client]\nmetadata_server = "https://meta.cloud.example/update"\n'
    path = write_site(tmp_path / "site.toml", region, more=more)
    path.write_text(re.sub(r"(?s)^servers = \[.*?\n\]\n", "", path.read_text(), flags=re.MULTILINE))
    found = load_site(path)
    assert found.regions[0].servers == ()
    config = client_config(found.regions, found.region_client)
    assert "metadata_server = https://meta.cloud.example/update\n" in config
    path.write_text(more)
    with pytest.raises(InputFault) as caught:
        load_site(path)
    assert [fault.place for fault in caught.value.faults] == ["site.toml:2 region_client.metadata_server"]


def test_images_of_the_embedded_region_say_which_instance_they_are(tmp_path: Path, region: Region) -> None:
    embedded = with_embedded_client(load_site(None))
    assert "dataProvider = /usr/lib/image-factory/instance-data\n" in client_config((region,), embedded.region_client)
    assert verification_for(embedded.region_client).provider == "openstack"
    ours = load_site(write_site(tmp_path / "site.toml", region))
    assert with_embedded_client(ours) == ours
    assert verification_for(ours.region_client).provider == "none"


# -- the command ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Done:
    """What a command said, and its exit status."""

    returncode: int
    stdout: str
    stderr: str


def factory(folder: Path, *argv: str) -> Done:
    """``factory region check`` in this process, with the way out that ``main`` has."""
    options = ["--project", str(PROJECT), "--state", str(folder / "state"), "--site", str(folder / "site.toml")]
    done = CliRunner().invoke(app, [*options, "region", "check", *argv])
    if isinstance(done.exception, FactoryError):
        return Done(done.exception.exit_code, done.stdout, "\n".join(done.exception.lines()))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return Done(done.exit_code, done.stdout, done.stderr)


def document(done: Done) -> list[dict[str, Any]]:
    told = json.loads(done.stdout)
    assert told["schema"] == "factory/region-check/1"
    return list(told["value"])


def test_without_an_argument_all_images_are_examined(tmp_path: Path, region: Region) -> None:
    write_site(tmp_path / "site.toml", region)
    done = factory(tmp_path, "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    found = document(done)
    assert {one["subject"] for one in found} == {path.parent.name for path in PROJECT.glob("descriptions/*/image.toml")}
    for one in found:
        assert one["findings"] == []
        assert len(one["rules"]) == 22
        skipped = [rule for rule in one["rules"] if rule["outcome"] == "not applicable"]
        assert skipped
        assert all(rule["not_looked_at"] for rule in skipped)


def test_a_fault_of_the_site_is_told_by_file_and_line_and_makes_exit_1(tmp_path: Path, region: Region) -> None:
    short = issue("x", now=NOW, days=30, addresses=["192.0.2.2"])
    pem = tmp_path / "short.pem"
    pem.write_bytes(short.pem)
    path = write_site(tmp_path / "site.toml", region)
    second, third = region.servers[1:]
    path.write_text(
        path.read_text()
        .replace(str(second.pem), "short.pem")
        .replace('"192.0.2.0/24", ', "")
        .replace("update-a.cloud", "update-a.other")
    )
    done = factory(tmp_path, "debian13")
    assert done.returncode == 1, done.stderr
    assert re.search(
        r"error short\.pem:1 \(/usr/lib/regionService/certs/192\.0\.2\.2\.pem in the image\): exp", done.stdout
    )
    assert re.search(r"error site\.toml:1 region\.north: its update servers are in several domains", done.stdout)
    assert "rule 15; cure: " in done.stdout
    assert "not good" in done.stdout
    assert third.name not in done.stdout


def test_a_pem_that_cannot_be_read_is_told_by_the_site_files_name(tmp_path: Path, region: Region) -> None:
    path = write_site(tmp_path / "site.toml", region)
    (tmp_path / "bad.pem").write_bytes(b"\xff\xfe")
    path.write_text(path.read_text().replace(str(region.servers[1].pem), "bad.pem"))
    done = factory(tmp_path, "debian13", "--json")
    (found,) = document(done)
    assert done.returncode == 1
    assert [(one["rule"], one["at"]["file"]) for one in found["findings"]] == [(8, "bad.pem")]


@pytest.mark.parametrize("spoiled", [True, False])
def test_a_root_file_system_is_examined_by_its_path(tmp_path: Path, region: Region, *, spoiled: bool) -> None:
    write_site(tmp_path / "site.toml", region, more='[region_client]\ninstanceArgs = "cloudhint"\n')
    root = make_suse_root(tmp_path / "root", region)
    if spoiled:
        (root / "etc/regionserverclnt.cfg").write_text("[server]\napi = /x\n")
    done = factory(tmp_path, str(root), "--json")
    (found,) = document(done)
    assert found["kind"] == "root file system"
    assert done.returncode == (1 if spoiled else 0)
    assert bool(found["findings"]) == spoiled
    byos = factory(tmp_path, str(root), "--mode", "byos", "--json")
    assert 17 in {one["rule"] for one in document(byos)[0]["findings"]}
    later = factory(tmp_path, str(root), "--lifetime-days", "9000", "--json")
    assert spoiled or {one["rule"] for one in document(later)[0]["findings"]} == {9}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["no-such-image"], "there is no image 'no-such-image'"),
        (["debian13", "--mode", "sometimes"], "there is no mode 'sometimes'"),
        (["debian13", "--online", "--peer-report", "absent.json"], "'absent.json' cannot be read"),
    ],
)
def test_usage_is_exit_2(tmp_path: Path, region: Region, argv: list[str], words: str) -> None:
    write_site(tmp_path / "site.toml", region)
    done = factory(tmp_path, *argv)
    assert done.returncode == 2
    assert words in done.stderr


def test_the_embedded_region_has_no_servers_to_ask(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text("")
    done = factory(tmp_path, "debian13", "--online")
    assert done.returncode == 2
    assert "no servers to ask" in done.stderr


def test_what_is_no_image_is_not_good(tmp_path: Path, region: Region) -> None:
    write_site(tmp_path / "site.toml", region)
    (tmp_path / "disk.qcow2").write_bytes(b"nothing")
    done = factory(tmp_path, str(tmp_path / "disk.qcow2"))
    assert done.returncode == 1
    assert "not a sound qcow2" in done.stderr
