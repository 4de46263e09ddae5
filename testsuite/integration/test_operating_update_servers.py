# SPDX-License-Identifier: Apache-2.0
"""Operating update servers, for real: CAs fetched over TLS, firewall rules that packets meet, the commands."""

from __future__ import annotations

import contextlib
import http.server
import json
import socket
import ssl
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from factory.errors import NotGood, RegionError
from factory.model import Region, RegionClient, Server
from factory.region.certificates import Issued, issue
from factory.region.operate.firewall import Policy, nftables, walls
from factory.region.operate.peers import fetch_ca, pin_of
from factory.system.clock import now
from factory.system.namespaces import NetworkNamespace, network_namespace
from factory.system.run import run, running
from testsuite.conftest import type_factory

NAME = "update-a.example"


# -- CAs --------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def update_server(folder: Path, authority: Issued, *, shown: bytes, names: list[str]) -> Iterator[int]:
    """What answers ``/rmt.crt`` over TLS: which certificate it shows for itself, and which CA it gives out."""
    certificate, key = issue(names[0], now=now(), days=30, names=names, authority=authority).write(folder, "server")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path in {"/rmt.crt", "/api/health/status"}
            body = shown if self.path == "/rmt.crt" else b'{"state":"online"}'
            self.send_response(200 if known else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *rest) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *_: None
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.fixture
def authority() -> Issued:
    return issue("CA", now=now(), days=30, is_authority=True)


def a_server(pem: Path) -> Server:
    return Server(name=NAME, ipv4="127.0.0.1", pem=pem)


def test_a_peer_s_ca_is_fetched_by_its_fingerprint(tmp_path: Path, authority: Issued) -> None:
    pin = pin_of(authority.pem.decode())
    with update_server(tmp_path, authority, shown=authority.pem, names=[NAME]) as port:
        assert fetch_ca(a_server(tmp_path / "ca.pem"), pin=pin, port=port) == authority.pem.decode()
        with pytest.raises(NotGood, match="is not the pinned one"):
            fetch_ca(a_server(tmp_path / "ca.pem"), pin="0" * 64, port=port)
    with pytest.raises(RegionError, match="gives no CA certificate"):
        fetch_ca(a_server(tmp_path / "ca.pem"), pin=pin, port=port)


def test_a_server_with_a_certificate_of_another_ca_or_name_is_refused(tmp_path: Path, authority: Issued) -> None:
    pin = pin_of(authority.pem.decode())
    other = issue("CA", now=now(), days=30, is_authority=True)
    for number, (signed_by, names) in enumerate(((other, [NAME]), (authority, ["update-b.example"]))):
        folder = tmp_path / str(number)
        folder.mkdir()
        served = update_server(folder, signed_by, shown=authority.pem, names=names)
        with served as port, pytest.raises(NotGood, match="does not show a certificate of its own CA"):
            fetch_ca(a_server(folder / "ca.pem"), pin=pin, port=port)


# -- firewall ---------------------------------------------------------------------------------------------------------

UPDATE, GUEST, PEER, ADMIN, STRANGER = "198.51.100.20", "198.51.100.99", "192.0.2.30", "203.0.113.7", "192.0.2.99"
UPDATE6, GUEST6, STRANGER6 = "2001:db8::20", "2001:db8::99", "2001:db8:ffff::99"
REGION = Region(
    name="eu",
    networks=("198.51.100.0/24", "2001:db8::/48"),
    servers=(Server(name="region-a.example", ipv4="192.0.2.10", pem=Path("a.pem")),),
    update_servers=(
        Server(name="update-a.example", ipv4=UPDATE, ipv6=UPDATE6, pem=Path("ca.pem")),
        Server(name="update-b.example", ipv4=PEER, pem=Path("ca.pem")),
    ),
)
POLICY = Policy(admin=("203.0.113.0/24",))
LISTEN = """
import socket, sys, time
held = []
for port in (22, 80, 443, 8080):
    made = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    held.append(made)
print("ready", flush=True)
time.sleep(120)
"""
KNOCK = """
import socket, sys
source, target, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
try:
    socket.create_connection((target, port), 0.6, source_address=(source, 0)).close()
except TimeoutError:
    sys.exit(1)
"""


@pytest.fixture(scope="module")
def wire() -> Iterator[tuple[NetworkNamespace, NetworkNamespace]]:
    """Two namespaces joined by one wire: the server's, and the one where everybody else is."""
    with network_namespace() as inside, network_namespace() as outside:
        run(inside.inside(["ip", "link", "add", "wire0", "type", "veth", "peer", "name", "wire1"]), timeout_s=20)
        run(inside.inside(["ip", "link", "set", "wire1", "netns", str(outside.pid)]), timeout_s=20)
        for namespace, device, addresses in (
            (inside, "wire0", (UPDATE, UPDATE6)),
            (outside, "wire1", (GUEST, PEER, ADMIN, STRANGER, GUEST6, STRANGER6)),
        ):
            run(namespace.inside(["ip", "link", "set", device, "up"]), timeout_s=20)
            for address in addresses:
                extra = ["/0", "nodad"] if ":" in address else ["/32"]
                argv = ["ip", "address", "add", address + extra[0].replace("/0", "/128"), "dev", device, *extra[1:]]
                run(namespace.inside(argv), timeout_s=20)
            run(namespace.inside(["ip", "route", "add", "default", "dev", device]), timeout_s=20)
            run(namespace.inside(["ip", "-6", "route", "add", "default", "dev", device]), timeout_s=20)
        yield inside, outside


@pytest.fixture(scope="module")
def listening(wire, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    log = tmp_path_factory.mktemp("listen") / "log"
    with running(wire[0].inside([sys.executable, "-c", LISTEN]), log=log):
        for _ in range(200):
            if log.exists() and "ready" in log.read_text():
                break
            threading.Event().wait(0.05)
        yield


def reaches(outside: NetworkNamespace, source: str, port: int) -> bool:
    target = UPDATE6 if ":" in source else UPDATE
    argv = outside.inside([sys.executable, "-I", "-c", KNOCK, source, target, str(port)])
    knocked = run(argv, check=False, timeout_s=20)
    assert not knocked.stderr, knocked.stderr
    return knocked.returncode == 0


def load(inside: NetworkNamespace, policy: Policy, client: RegionClient) -> None:
    (wall,) = (one for one in walls((REGION,), client, policy) if one.server == "update-a.example")
    run(inside.inside(["nft", "--file", "-"]), stdin=nftables(wall).encode(), timeout_s=20)


@pytest.mark.needs_root
def test_packets_meet_the_rules(wire, listening) -> None:
    """Not that nft can read them: who gets through. Loaded twice, because a change replaces the old rules."""
    inside, outside = wire
    assert reaches(outside, STRANGER, 8080), "without rules everybody gets through"
    load(inside, POLICY, RegionClient(https_only=False))
    load(inside, POLICY, RegionClient())
    wanted = {
        (GUEST, 443): True,
        (GUEST6, 443): True,
        (PEER, 443): True,
        (ADMIN, 22): True,
        (GUEST, 80): False,
        (GUEST, 22): False,
        (PEER, 22): False,
        (ADMIN, 443): False,
        (STRANGER, 443): False,
        (STRANGER6, 443): False,
        (STRANGER, 22): False,
        (ADMIN, 8080): False,
    }
    assert {case: reaches(outside, *case) for case in wanted} == wanted
    load(inside, replace(POLICY, sources="all", verification="openstack"), RegionClient(https_only=False))
    assert reaches(outside, STRANGER, 443)
    assert reaches(outside, STRANGER6, 443)
    assert reaches(outside, STRANGER, 80)
    assert not reaches(outside, STRANGER, 22)


# -- the commands -----------------------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path, authority: Issued) -> Path:
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    for name in "ab":
        issue("r", now=now(), days=900, addresses=[f"192.0.2.1{name == 'b':d}"]).write(tmp_path, f"region-{name}")
    (tmp_path / "site.toml").write_text(
        """
[[region]]
name = "eu"
networks = ["198.51.100.0/24"]
servers = [{ name = "region-a.example", ipv4 = "192.0.2.10", pem = "region-a.pem" },
           { name = "region-b.example", ipv4 = "192.0.2.11", pem = "region-b.pem" }]
update_servers = [{ name = "update-a.example", ipv4 = "192.0.2.20", pem = "ca.pem" },
                  { name = "update-b.example", ipv4 = "192.0.2.21", pem = "ca.pem" }]
"""
    )
    return tmp_path / "site.toml"


def typed(site: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return type_factory("--site", site, "region", *words, state=site.parent / "state", timeout_s=60)


def test_the_commands_of_an_operator(site: Path, tmp_path: Path) -> None:
    timers = typed(site, "timers", "--out", tmp_path / "timers")
    assert timers.returncode == 0, timers.stderr
    assert len(list((tmp_path / "timers").rglob("50-image-factory.conf"))) == 4

    secret = tmp_path / "secret"
    peers = typed(site, "peers-config", "--offline", "--secret-file", secret, "--out", tmp_path / "peers")
    assert peers.returncode == 0, peers.stderr
    assert secret.read_text().strip() not in peers.stdout + peers.stderr
    assert len(list((tmp_path / "peers").rglob("regsharing.yml"))) == 2

    firewall = typed(site, "firewall", "--admin", "203.0.113.0/24", "--format", "security-groups")
    assert len(json.loads(firewall.stdout)["value"]) == 4
    refused = typed(site, "firewall", "--admin", "203.0.113.0/24", "--sources", "all")
    assert refused.returncode == 2
    assert "update_server.verification" in refused.stderr
    site.write_text(site.read_text() + '[update_server]\nverification = "openstack"\n')
    assert typed(site, "firewall", "--admin", "203.0.113.0/24", "--sources", "all").returncode == 0


def test_the_commands_that_examine_exit_with_1(site: Path, tmp_path: Path) -> None:
    bad = tmp_path / "product_config.json"
    bad.write_text('[{"products": ["SLES"], "versions": ["15.7",]}]')
    found = typed(site, "mirrors", bad)
    assert found.returncode == 1
    assert found.stdout.count("product_config.json:1") == 3

    wanted, listing = tmp_path / "repositories.json", tmp_path / "repos.csv"
    wanted.write_text('[{"id": 1, "description": "Pool", "framework": null, "location": "/SUSE/Pool/"}]')
    listing.write_text("SCC ID,Product,Description,Mandatory?,Mirror?,Last mirrored\n1,Pool,Pool,true,false,\n")
    found = typed(site, "mirrors", wanted, "--compare", listing)
    assert found.returncode == 1
    assert "rmt-cli repos enable 1\n" in found.stdout

    archive = tmp_path / "export.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        packed.addfile(tarfile.TarInfo("smt-data-export/systems.csv"))
    found = typed(site, "smt-export", archive, "--unpack", tmp_path / "never")
    assert found.returncode == 1
    assert "hw_info.csv: is missing" in found.stdout
    assert not (tmp_path / "never").exists()
    archive.write_bytes(b"")
    assert typed(site, "smt-export", archive).returncode == 2


def test_openstack_s_own_client_understands_the_commands(site: Path) -> None:
    """Its parser accepts them: with nobody to talk to, it fails only at the connection."""
    script = typed(site, "firewall", "--admin", "203.0.113.0/24", "--format", "openstack").stdout
    line = next(line for line in script.splitlines() if line.startswith("openstack security group rule create"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    head = f"{Path(sys.executable).parent}/openstack --os-auth-type admin_token --os-token x"
    tried = line.replace("openstack ", f"{head} --os-endpoint http://127.0.0.1:{port} ", 1)
    done = subprocess.run(["sh", "-c", tried], capture_output=True, text=True, check=False)
    assert "Unable to establish connection" in done.stderr, done.stderr
