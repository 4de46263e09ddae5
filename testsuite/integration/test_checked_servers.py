# SPDX-License-Identifier: Apache-2.0
"""``factory region check --online --peers`` against real region and update servers in a network namespace."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from factory.model import Region
from factory.region.config import region_data
from factory.region.issuing import Files, Wanted, renew
from factory.system.namespaces import NetworkNamespace, network_namespace
from testsuite.fakes.regions import make_region, write_site
from testsuite.integration.update_server_fixtures import FACTORY, START_S, Standalone

pytestmark = [pytest.mark.needs_root, pytest.mark.timeout(240)]

PROJECT = Path(__file__).parents[2]
SERVER = """\
[server]
fqdn = "{name}"
listen = ["{ipv4}:443", "[{ipv6}]:443"]
certificate = "{certificate}"
key = "{key}"
ca = "{ca}"
database = "registrations.sqlite"

[[product]]
identifier = "debian"
version = "13"
arch = "x86_64"

[[repository]]
alias = "debian"
folder = "repo"

[regsharing]
peers = ["{peer}:443"]
api_secret_file = "secret"
data_dir = "regsharing"
ca_path = "{ca}"
interval_s = 0.3
"""


@dataclass
class Place:
    """A region whose servers run."""

    folder: Path
    namespace: NetworkNamespace
    region: Region
    servers: dict[str, Standalone]

    def check(self, *argv: str, region: Region | None = None) -> tuple[int, dict[str, Any], str]:
        """The examination of the servers, as a person in the region would see it."""
        site = write_site(self.folder / "site.toml", region or self.region)
        options = ["--project", str(PROJECT), "--state", str(self.folder / "state"), "--site", str(site)]
        words = [sys.executable, "-m", "factory.cli", *options, "region", "check", "debian13", "--json", *argv]
        done = subprocess.run(
            self.namespace.inside(words), capture_output=True, text=True, check=False, timeout=120, cwd=PROJECT
        )
        assert done.returncode in {0, 1}, done.stderr
        image, servers = json.loads(done.stdout)["value"]
        assert image["subject"] == "debian13"
        assert not [one for one in image["findings"] if one["severity"] == "error"]
        return done.returncode, servers, done.stderr


def described(folder: Path, region: Region, number: int) -> Standalone:
    own, peer = region.update_servers[number], region.update_servers[1 - number]
    made = folder / own.name
    (made / "repo/dists/trixie").mkdir(parents=True)
    (made / "repo/dists/trixie/InRelease").write_text("index")
    (made / "secret").write_text("a shared secret\n")
    (made / "secret").chmod(0o600)
    text = SERVER.format(
        name=own.name,
        ipv4=own.ipv4,
        ipv6=own.ipv6,
        certificate=own.certificate,
        key=own.key,
        ca=own.pem,
        peer=peer.ipv4,
    )
    (made / "server.toml").write_text(text)
    return Standalone(folder=made, address=own.ipv4, port=443)


@contextlib.contextmanager
def region_server(folder: Path, namespace: NetworkNamespace, region: Region, number: int) -> Iterator[None]:
    """``factory region serve``, as its owner would start it."""
    own = region.servers[number]
    config, data = folder / f"{own.name}.cfg", folder / "regionData.cfg"
    data.write_text(region_data([region]))
    log = folder / f"{own.name}.log"
    config.write_text(f"[server]\nlogFile = {folder / own.name}.access.log\nregionConfig = {data}\n")
    argv: Sequence[object] = [FACTORY, "region", "serve", "--file", config, "--certificate", own.pem, "--key", own.key]
    binds = [f"{own.ipv4}:443", *([f"[{own.ipv6}]:443"] if own.ipv6 else [])]
    words = [*map(str, argv), *(word for bind in binds for word in ("--bind", bind)), "--workers", "1"]
    with log.open("wb") as output:
        process = subprocess.Popen(namespace.inside(words), stdout=output, stderr=output, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_S
        while "Booting worker" not in log.read_text(errors="replace"):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("place")
    made = make_region(folder / "region", now=datetime.now(UTC))
    region = replace(made, servers=made.servers[:2], update_servers=made.update_servers[:2])
    addresses = [one for server in (*region.servers, *region.update_servers) for one in server.addresses]
    with contextlib.ExitStack() as stack:
        namespace = stack.enter_context(network_namespace(addresses))
        for number in (0, 1):
            stack.enter_context(region_server(folder, namespace, region, number))
        servers = {}
        for number, own in enumerate(region.update_servers):
            servers[own.name] = described(folder, region, number)
            stack.callback(servers[own.name].kill)
            servers[own.name].start(namespace.inside([]))
        yield Place(folder=folder, namespace=namespace, region=region, servers=servers)


def errors(servers: dict[str, Any]) -> set[int]:
    return {one["rule"] for one in servers["findings"] if one["severity"] == "error"}


def outcome(servers: dict[str, Any], rule: int) -> str:
    return next(one["outcome"] for one in servers["rules"] if one["rule"] == rule)


def test_good_servers_are_good_and_a_registration_is_shared_and_taken_back(place: Place) -> None:
    code, servers, told = place.check("--online", "--peers", "--within", "30")
    assert (code, servers["findings"]) == (0, []), (told, servers["findings"])
    for rule in (10, 11, 12, 13, 14, 15):
        assert outcome(servers, rule) == "good", rule
    for name in place.servers:
        assert any(f"a registration at {name} was seen on all peers, and gone" in one for one in servers["facts"])
        listed = place.servers[name].factory("systems", "list", "--config", str(place.servers[name].toml), "--json")
        assert json.loads(listed.stdout)["value"] == [], "a registration of the check was left behind"


def test_a_server_that_images_do_not_trust_is_seen(place: Place, tmp_path: Path) -> None:
    """Another PEM than the server's own: the rule for handshakes is red, and no other."""
    strange = make_region(tmp_path, now=datetime.now(UTC))
    first, second = place.region.servers
    spoiled = replace(place.region, servers=(first, replace(second, pem=strange.servers[1].pem)))
    code, servers, _ = place.check("--online", region=spoiled)
    assert (code, errors(servers)) == (1, {10})
    assert all(one["at"]["file"] == "https://192.0.2.2/regionInfo" for one in servers["findings"])


def test_a_pem_in_renewal_is_accepted_before_the_switch(place: Place, tmp_path: Path) -> None:
    first, second = place.region.servers
    pem = tmp_path / "renewed.pem"
    pem.write_bytes(first.pem.read_bytes())
    files = Files.of(first.name, tmp_path, pem)
    renew(Wanted(host=first.name, names=[first.name], addresses=first.addresses), files, now=datetime.now(UTC))
    renewed = replace(place.region, servers=(replace(first, pem=pem), second))
    code, servers, _ = place.check("--online", region=renewed)
    assert (code, servers["findings"]) == (0, [])


def test_a_foreign_ca_in_the_site_file_is_seen(place: Place, tmp_path: Path) -> None:
    strange = make_region(tmp_path, now=datetime.now(UTC)).update_servers[0].pem
    changed = tuple(replace(one, pem=strange, certificate=None) for one in place.region.update_servers)
    code, servers, _ = place.check("--online", region=replace(place.region, update_servers=changed))
    assert (code, errors(servers)) == (1, {12})


def test_peers_that_do_not_share_and_a_dead_one_are_seen(place: Place) -> None:
    """Another secret on one server: its peer refuses it. Then that server is dead."""
    name = place.region.update_servers[1].name
    server = place.servers[name]
    server.kill()
    secret = (server.folder / "secret").read_text()
    (server.folder / "secret").write_text("another secret\n")
    server.start(place.namespace.inside([]))
    code, servers, _ = place.check("--peers", "--within", "3")
    assert (code, errors(servers)) == (1, {15})
    problems = [one["problem"] for one in servers["findings"]]
    assert any("does not know a registration made at" in one for one in problems)
    server.kill()
    (server.folder / "secret").write_text(secret)
    code, servers, _ = place.check("--online")
    assert (code, errors(servers)) == (1, {14, 15}), "its IPv6 address is rule 14's, the other one rule 15's"
    server.start(place.namespace.inside([]))
