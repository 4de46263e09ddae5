# SPDX-License-Identifier: Apache-2.0
"""Two update servers that share registrations, and die in between."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from testsuite.integration.update_server_fixtures import Asker, Standalone, authority, described, free_port

pytestmark = pytest.mark.timeout(120)

A, B = "127.0.0.31", "127.0.0.32"
PRODUCT = {"identifier": "debian", "version": "13", "arch": "x86_64"}
PRODUCTS = """
[[product]]
identifier = "debian"
version = "13"
arch = "x86_64"
[[repository]]
alias = "debian"
folder = "repo"
"""
SHARING = """
[regsharing]
peers = ["{peer}"]
api_secret_file = "secret"
data_dir = "regsharing"
ca_path = "ca.pem"
interval_s = 0.5
"""


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Standalone, Standalone]]:
    """Two servers, described and not yet started; ended whatever happens."""
    ca = authority(tmp_path)
    ports = {A: free_port(A), B: free_port(B)}
    made = []
    for address, other in ((A, B), (B, A)):
        folder = tmp_path / address
        (folder / "repo/dists/trixie").mkdir(parents=True)
        (folder / "repo/dists/trixie/InRelease").write_text("index")
        (folder / "secret").write_text("a shared secret\n")
        (folder / "secret").chmod(0o600)
        sharing = SHARING.format(peer=f"{other}:{ports[other]}")
        made.append(described(folder, ca, address=address, port=ports[address], products=PRODUCTS, more=sharing))
    with contextlib.ExitStack() as stack:
        for one in made:
            stack.callback(one.kill)
        yield made[0], made[1]


def waiting(server: Standalone) -> list[str]:
    """The logins whose peers have not heard of them."""
    return [path.name for path in server.folder.glob("regsharing/*/*") if not path.name.startswith(".")]


def until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def registered(server: Standalone) -> Asker:
    ask = server.asker()
    ask.announce()
    assert ask("POST", "/connect/systems/products", PRODUCT).status == 201
    return ask


def at(server: Standalone, known: Asker) -> Asker:
    """The same instance at another server."""
    other = server.asker()
    other.auth = known.auth
    return other


def test_killed_while_the_peer_is_down_it_tells_when_both_are_back(pair: tuple[Standalone, Standalone]) -> None:
    first, second = pair
    first.start()
    instance, left = registered(first), registered(first)
    login = instance.announce()["login"]
    assert instance("POST", "/connect/systems/products", PRODUCT).status == 201
    first.kill()  # SIGKILL, right after the answer
    assert login in waiting(first)
    told = len(waiting(first))
    assert told == 3
    first.start()
    assert left("DELETE", "/connect/systems").status == 204
    until(lambda: "cannot be told of registrations" in first.log, "the peer is down")
    first.kill()
    assert len(waiting(first)) == told, "nothing is struck out that the peer has not heard"

    second.start()
    first.start()
    until(lambda: not waiting(first), first.log)
    there = at(second, instance)
    assert there("GET", "/repo/debian/dists/trixie/InRelease").body == b"index"
    assert at(second, left)("GET", "/connect/systems/activations").status == 401
    assert waiting(second) == [], "not told onward"
    listed = second.factory("systems", "list", "--config", "server.toml").stdout
    assert login in listed
    assert "2 registered" in listed


def test_the_peer_dies_and_hears_of_everything_when_it_recovers(pair: tuple[Standalone, Standalone]) -> None:
    first, second = pair
    first.start()
    second.start()
    moved = registered(first)
    until(lambda: at(second, moved)("GET", "/connect/systems/activations").status == 200, second.log)
    second.kill()
    lost = registered(first)
    assert moved("DELETE", "/connect/systems").status == 204
    second.start()
    until(lambda: at(second, lost)("GET", "/repo/debian/dists/trixie/InRelease").status == 200, first.log)
    until(lambda: at(second, moved)("GET", "/connect/systems/activations").status == 401, first.log)
    until(lambda: not waiting(first), first.log)

    # and an instance that moved deregisters there
    assert at(second, lost)("DELETE", "/connect/systems").status == 204
    until(lambda: lost("GET", "/connect/systems/activations").status == 401, second.log)
    login = first.asker().announce()["login"]
    done = first.factory("systems", "remove", login, "--config", "server.toml")
    assert done.returncode == 0, done.stderr
    until(lambda: not waiting(first), "also what a person removed is told")
    assert "a shared secret" not in first.log + second.log


def test_a_peer_with_a_foreign_certificate_hears_nothing(pair: tuple[Standalone, Standalone], tmp_path: Path) -> None:
    first, second = pair
    (tmp_path / "foreign").mkdir()
    authority(tmp_path / "foreign")
    (first.folder / "other-ca.pem").write_bytes((tmp_path / "foreign/ca.pem").read_bytes())
    first.toml.write_text(first.toml.read_text().replace('ca_path = "ca.pem"', 'ca_path = "other-ca.pem"'))
    first.start()
    second.start()
    instance = registered(first)
    until(lambda: "certificate verify failed" in first.log, first.log)
    assert at(second, instance)("GET", "/connect/systems/activations").status == 401
    assert len(waiting(first)) == 1
