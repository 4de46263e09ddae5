# SPDX-License-Identifier: Apache-2.0
"""The sandbox update server, run as its owner runs it, asked by a client that shares no code with it."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import ssl
import threading
import time
import xml.dom.minidom
from collections.abc import Iterator
from pathlib import Path

import pytest

from testsuite.integration.update_server_fixtures import (
    FQDN,
    Asker,
    Standalone,
    authority,
    described,
    free_port,
    running_server,
)

pytestmark = pytest.mark.timeout(120)

ADDRESS = "127.0.0.21"
PRODUCT = {"identifier": "SLES", "version": "15.6", "arch": "x86_64"}
PRODUCTS = """
[[product]]
identifier = "SLES"
version = "15.6"
arch = "x86_64"
repositories = ["product"]
[[product]]
identifier = "sle-module-basesystem"
version = "15.6"
arch = "x86_64"
product_type = "module"
extends = ["SLES/15.6/x86_64"]
[[repository]]
alias = "product"
location = "SUSE/Products/SLE-Product-SLES/15-SP6/x86_64/product"
folder = "repo"
[byos]
regcodes = ["CODE-1"]
"""
FILE = "/repo/SUSE/Products/SLE-Product-SLES/15-SP6/x86_64/product/repodata/repomd.xml"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standalone]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "repo/repodata").mkdir(parents=True)
    (folder / "repo/repodata/repomd.xml").write_text("<repomd/>" * 10_000)
    (folder / "secret").write_text("outside of everything")
    found = described(folder, authority(folder), address=ADDRESS, port=free_port(ADDRESS), products=PRODUCTS)
    with running_server(found):
        yield found
        assert "Traceback" not in found.log, found.log
        assert '" 500 ' not in found.log


@pytest.fixture
def ask(server: Standalone) -> Asker:
    return server.asker()


def test_the_request_sequence_of_a_registration(ask: Asker, server: Standalone) -> None:  # noqa: PLR0915 - one story
    """The table of what registercloudguest, SUSEConnect and zypper send, in its order."""
    health = ask("GET", "/api/health/status")
    assert (health.status, health.json["state"]) == (200, "online")
    assert "sandbox update server, not RMT" in health.headers["Server"]
    for name in ("/smt.crt", "/rmt.crt"):
        assert ask("GET", name).body == (server.folder / "ca.pem").read_bytes()
    announced = ask.announce()
    assert set(announced) == {"id", "login", "password", "last_seen_at"}
    assert announced["login"].startswith("SCC_")
    assert announced["last_seen_at"] is None
    service = ask("POST", "/connect/systems/products", PRODUCT, headers={"System-Token": ""})
    assert (service.status, service.json["name"]) == (201, "SLES_15.6_x86_64")
    token = service.headers["System-Token"]
    assert token
    checked = ask("POST", "/connect/systems/products/migrations", {})
    assert checked.status == 422
    index = f"/services/{service.json['id']}/repo/repoindex.xml"
    for method in ("HEAD", "GET"):
        refused = ask(method, index, known=False)
        assert (refused.status, refused.reason) == (401, "Unauthorized")
        assert refused.headers["Www-Authenticate"].startswith("Basic realm=")
        good = ask(method, index)
        assert (good.status, int(good.headers["Content-Length"]) > 0) == (200, True)
        assert len(good.body) == (0 if method == "HEAD" else int(good.headers["Content-Length"]))
    document = xml.dom.minidom.parseString(ask("GET", index).body).documentElement
    assert (document.tagName, document.getAttribute("ttl")) == ("repoindex", "86400")
    (repo,) = document.getElementsByTagName("repo")
    assert repo.getAttribute("url").startswith(f"https://{FQDN}/repo/SUSE/Products/")
    assert {"url", "alias", "name", "autorefresh", "enabled"} == set(repo.attributes.keys())
    with_body = ask("GET", "/connect/systems/products", PRODUCT)
    with_query = ask("GET", "/connect/systems/products?identifier=SLES&version=15.6&arch=x86_64")
    assert with_body.status == with_query.status == 200
    assert with_body.json == with_query.json
    assert isinstance(with_query.json["extensions"], list)
    file = ask("GET", FILE)
    assert (file.status, len(file.body)) == (200, 90_000)
    assert ask("GET", FILE, headers={"Range": "bytes=0-8"}).body == b"<repomd/>"
    assert ask("GET", FILE, known=False).status == 401

    probe = ask("GET", "/connect/repositories/installer", known=False)
    assert (probe.status, probe.json["type"]) == (422, "error")
    renewed = ask("PUT", "/connect/systems", {"hostname": "renamed"}, headers={"System-Token": token})
    assert (renewed.status, renewed.body) == (204, b"")
    assert renewed.headers["System-Token"] not in {"", token}
    activations = ask("GET", "/connect/systems/activations")
    assert [one["service"]["product"]["identifier"] for one in activations.json] == ["SLES"]
    base = ask("DELETE", "/connect/systems/products", PRODUCT)
    assert base.status == 422
    module = {**PRODUCT, "identifier": "sle-module-basesystem"}
    assert ask("POST", "/connect/systems/products", module).status == 201
    assert ask("DELETE", "/connect/systems/products", module).status == 200
    assert ask("DELETE", "/connect/systems").status == 204
    gone = ask("GET", "/connect/systems/activations")
    assert (gone.status, gone.reason, gone.json["error"]) == (401, "Unauthorized", "Invalid system credentials")


def test_a_refusal_shows_the_servers_text(ask: Asker) -> None:
    ask.announce()
    refused = ask("POST", "/connect/systems/products", {**PRODUCT, "version": "99"})
    assert refused.status == 422
    assert refused.json["localized_error"].startswith("No product found")
    wrong = ask(
        "POST", "/connect/subscriptions/systems", {"hostname": "h"}, headers={"Authorization": "Token token=CODE-9"}
    )
    assert "Registration Code" in wrong.json["error"]
    ask.announce("CODE-1")
    assert ask("POST", "/connect/systems/products", PRODUCT).status == 201
    assert ask("GET", "/connect/systems/activations").json[0]["regcode"] == "CODE-1"


def test_many_connections_at_once(server: Standalone) -> None:
    """Thirty clients register, use and leave at the same time; some connect and say nothing."""
    silent = [socket.create_connection((ADDRESS, server.port), 5) for _ in range(20)]
    failures: list[str] = []

    def visit() -> None:
        ask = server.asker()
        try:
            ask.announce()
            assert ask("POST", "/connect/systems/products", PRODUCT).status == 201
            for _ in range(3):
                assert ask("GET", FILE).status == 200
            assert ask("DELETE", "/connect/systems").status == 204
        except Exception as wrong:  # noqa: BLE001 - told below, from the main thread
            failures.append(repr(wrong))

    threads = [threading.Thread(target=visit) for _ in range(30)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert time.monotonic() - started < 40
    for one in silent:
        one.close()


def raw(server: Standalone, request: bytes) -> bytes:
    """Bytes as they are, over TLS; what came back before the server closed or fell silent."""
    context = ssl.create_default_context(cafile=server.folder / "ca.pem")
    plain = socket.create_connection((ADDRESS, server.port), 10)
    with context.wrap_socket(plain, server_hostname=FQDN) as connection, contextlib.suppress(OSError):
        found = b""
        connection.settimeout(5)
        with contextlib.suppress(OSError):
            connection.sendall(request)
        while b"\r\n\r\n" not in found and (chunk := connection.recv(65536)):
            found += chunk
        return found
    return b""


HEAD = b"POST /connect/subscriptions/systems HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
HOSTILE = {
    "header-flood": (b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(5000)) + b"\r\n", 431),
    "header-size": (b"GET / HTTP/1.1\r\nX: " + b"y" * 200_000 + b"\r\n\r\n", 431),
    "line-size": (b"GET /" + b"y" * 200_000 + b" HTTP/1.1\r\n\r\n", 414),
    "no-http": (b"\x16\x03\x01" * 100 + b"\r\n\r\n", 400),
    "length-negative": (HEAD + b"Content-Length: -1\r\n\r\n", 400),
    "length-twice": (HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}", 400),
    "length-and-chunked": (HEAD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "huge": (HEAD + b"Content-Length: 99999999999\r\n\r\n{", 413),
    "chunked": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 201),
    "chunked-huge": (
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + (b"10000\r\n" + b"x" * 65536 + b"\r\n") * 40 + b"0\r\n\r\n",
        413,
    ),
    "chunked-bad": (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n", 400),
    "encoding": (HEAD + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\n\x1f\x8b\x08", 422),
    "charset": (HEAD + b"Content-Type: application/json; charset=no-such\r\nContent-Length: 2\r\n\r\n{}", 201),
    "nested": (HEAD + b"Content-Length: 500000\r\n\r\n" + b"[" * 500_000, 422),
    "authorization": (
        b"GET /services/1 HTTP/1.1\r\nHost: x\r\nAuthorization: Basic \xff\xfe\r\nConnection: close\r\n\r\n",
        401,
    ),
    "traversal": (b"GET /repo/../secret HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 401),
    "method": (b"TRACE / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 405),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_requests_are_answered_and_forgotten(server: Standalone, name: str) -> None:
    request, status = HOSTILE[name]
    answer = raw(server, request)
    if answer or status not in {414, 431}:  # unread bytes may reset the connection before the answer is read
        assert answer.split(b" ")[1:2] == [str(status).encode()], answer[:200]
    assert b"outside of everything" not in answer
    assert server.asker()("GET", "/api/health/status").status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/repo/SUSE/Products/SLE-Product-SLES/15-SP6/x86_64/product/../../../../../../../secret",
        "/repo/SUSE/Products/SLE-Product-SLES/15-SP6/x86_64/product/..%2f..%2fsecret",
        "/repo/SUSE/Products/SLE-Product-SLES/15-SP6/x86_64/product/%2e%2e/secret",
        "/repo/SUSE/Products/SLE-Product-SLES/15-SP6/x86_64/product//etc/passwd",
        "/repo/SUSE/Products/SLE-Product-SLES/15-SP6/x86_64/product/repodata/repomd.xml%00.txt",
        "/repo/SUSE/Products/SLE-Product-SLES/15-SP6/x86_64/product/..\\secret",
        "/repo/../secret",
        "/repo//secret",
        "//secret",
        "/repo/%c0%ae%c0%ae/secret",
    ],
)
def test_no_path_leads_out(ask: Asker, path: str) -> None:
    ask.announce()
    assert ask("POST", "/connect/systems/products", PRODUCT).status == 201
    answer = ask("GET", path)
    assert answer.status in {301, 308, 400, 403, 404}, (answer.status, answer.body[:100])
    assert b"outside of everything" not in answer.body


def test_the_owner_lists_and_removes_systems(ask: Asker, server: Standalone) -> None:
    login = ask.announce()["login"]
    listed = server.factory("systems", "list", "--config", "server.toml", "--json")
    assert listed.returncode == 0, listed.stderr
    assert login in [one["login"] for one in json.loads(listed.stdout)["value"]]
    assert "password" not in listed.stdout
    done = server.factory("systems", "remove", login, "--database", "registrations.sqlite")
    assert (done.returncode, done.stdout) == (0, f"removed {login}\n")
    assert ask("GET", "/connect/systems/activations").status == 401
    again = server.factory("systems", "remove", login, "--config", "server.toml")
    assert (again.returncode, "no system has the login" in again.stderr) == (2, True)


def test_a_server_is_checked_before_it_runs(server: Standalone, tmp_path: Path) -> None:
    good = server.factory("update-server", "--config", "server.toml", "--check")
    assert (good.returncode, "sandbox update server, not RMT" in good.stdout) == (0, True), good.stderr
    (tmp_path / "bad.toml").write_text(server.toml.read_text().replace('ca = "ca.pem"', 'ca = "none.pem"'))
    bad = server.factory("update-server", "--config", str(tmp_path / "bad.toml"))
    assert (bad.returncode, "server.ca: 'none.pem' is not there" in bad.stderr) == (2, True)
    options = ["--fqdn", FQDN, "--certificate", "server.pem", "--key", "server.key", "--ca", "ca.pem"]
    options += [
        "--database",
        str(tmp_path / "r.sqlite"),
        "--product",
        "debian/13/x86_64",
        "--repository",
        "debian=repo",
    ]
    short = server.factory("update-server", *options, "--check", "--json")
    assert json.loads(short.stdout)["value"]["repositories"] == "/repo/debian"
    assert "not RMT" in server.factory("update-server", "--help").stdout


def test_logs_hold_no_secrets(ask: Asker, server: Standalone) -> None:
    password = ask.announce("CODE-1")["password"]
    ask("GET", "/connect/systems/activations")
    assert "/connect/systems/activations" in server.log
    assert password not in server.log
    assert base64.b64encode(password.encode()).decode() not in server.log
    assert "CODE-1" not in server.log
