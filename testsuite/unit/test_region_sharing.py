# SPDX-License-Identifier: Apache-2.0
"""Update servers tell their peers who is registered, whatever dies in between."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import settings as settings_of
from hypothesis import strategies as st
from werkzeug.serving import make_server

from factory.errors import InputFault
from factory.region import sharing
from factory.region.certificates import issue
from factory.region.products import products
from factory.region.registrations import Registrations, SharedSystem
from factory.region.sharing import PeerSilent, ReplayLog, Sender, sharing_api
from factory.region.sharing_settings import SharingSettings
from factory.system.clock import now

pytestmark = pytest.mark.programs

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SECRET = "0123456789abcdef"
PRODUCTS = products(("debian/13/x86_64", "SLES/15.6/x86_64"))
PRODUCT = PRODUCTS[0].triple


def app_of(registrations: Registrations, secret: str = SECRET) -> Flask:
    app = Flask("peer")
    app.register_blueprint(sharing_api(secret, registrations, PRODUCTS))
    return app


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Registrations]:
    made = Registrations(tmp_path / "there.sqlite")
    yield made
    made.close()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("ours", "foreign"):
        authority = issue(f"{name} CA", now=now(), days=2, is_authority=True)
        authority.write(folder, f"{name}-ca")
        made = issue(name, now=now(), days=2, names=["localhost"], addresses=["127.0.0.1"], authority=authority)
        made.write(folder, name)
    return folder


@pytest.fixture
def peer(there: Registrations, certificates: Path) -> Iterator[str]:
    """A real peer over TLS."""
    pair = (str(certificates / "ours.pem"), str(certificates / "ours.key"))
    server = make_server("127.0.0.1", 0, app_of(there), threaded=True, ssl_context=pair)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"127.0.0.1:{server.port}"
    server.shutdown()
    thread.join()
    server.server_close()


def settings(folder: Path, peers: Sequence[str], certificates: Path, *, ca: str = "ours-ca.pem") -> SharingSettings:
    secret = folder / "secret"
    secret.write_text(SECRET + "\n")
    secret.chmod(0o600)
    return SharingSettings(
        peers=tuple(peers),
        api_secret_file=str(secret),
        data_dir=str(folder / "regsharing"),
        ca_path=str(certificates / ca),
        interval_s=0.2,
    )


class Here:
    """One update server's registrations, its replay log, and who sends it."""

    def __init__(self, folder: Path, told: SharingSettings) -> None:
        told.secret()
        self.log = ReplayLog(Path(told.data_dir), told.peers)
        self.registrations = Registrations(folder / "here.sqlite", journal=self.log)
        self.sender = Sender(told, self.log, self.registrations, PRODUCTS)
        self.peer = told.peers[0]

    def announce(self) -> str:
        made = self.registrations.announce(hostname="h", instance_data="data", now=NOW)
        self.registrations.activate(made.id, PRODUCT, now=NOW)
        return made.login


@pytest.fixture
def here(tmp_path: Path, peer: str, certificates: Path) -> Iterator[Here]:
    made = Here(tmp_path, settings(tmp_path, [peer], certificates))
    yield made
    made.registrations.close()


def test_a_peer_hears_of_a_system_and_of_its_end(here: Here, there: Registrations) -> None:
    login = here.announce()
    assert here.log.pending(here.peer) == (login,)
    (file,) = (path for path in here.log.folder.glob("*/*") if path.name == login)
    assert float(file.read_text()) > 0
    assert here.sender.drain(here.peer) == 1
    assert here.log.pending(here.peer) == ()
    assert there.shared(login) == here.registrations.shared(login) != ()
    here.registrations.remove(login)
    assert here.sender.drain(here.peer) == 1
    assert there.systems() == ()
    assert here.sender.drain(here.peer) == 0


def test_a_changed_token_and_a_clone_are_the_same_systems_there(here: Here, there: Registrations) -> None:
    login = here.announce()
    here.sender.drain(here.peer)
    (system,) = here.registrations.systems()
    here.registrations.rotate_token(system.id)
    here.sender.drain(here.peer)
    here.registrations.rotate_token(system.id)
    (shared,) = here.registrations.shared(login)
    here.registrations.clone(login, shared.password, token="other", now=NOW + timedelta(days=1))
    here.sender.drain(here.peer)
    assert there.shared(login) == here.registrations.shared(login)
    assert len(there.systems()) == 2


def test_a_verified_instance_that_announced_itself_anew_has_one_password(here: Here, there: Registrations) -> None:
    for _ in range(2):
        here.registrations.announce(hostname="h", instance_data="", now=NOW, identifier="instance-1", proven=True)
        here.sender.drain(here.peer)
        assert there.shared("instance-1") == here.registrations.shared("instance-1") != ()
        assert len(there.systems()) == 1


def test_what_a_peer_told_is_not_told_on(tmp_path: Path, here: Here) -> None:
    client = app_of(here.registrations).test_client()
    assert client.post("/api/regsharing", json=message(), headers=bearer()).status_code == 204
    assert here.log.pending(here.peer) == ()
    assert client.delete("/api/regsharing", json={"login": "SCC_1"}, headers=bearer()).status_code == 204
    assert here.log.pending(here.peer) == ()
    assert here.registrations.systems() == ()


def test_a_change_while_it_is_sent_is_sent_again(here: Here) -> None:
    login = here.announce()
    unsent = here.log.read(here.peer, login, here.registrations.shared)
    assert unsent is not None
    here.registrations.rotate_token(here.registrations.systems()[0].id)
    here.log.done(here.peer, unsent)
    assert here.log.pending(here.peer) == (login,)
    again = here.log.read(here.peer, login, here.registrations.shared)
    assert again is not None
    assert again.systems != unsent.systems
    here.log.done(here.peer, again)
    assert here.log.pending(here.peer) == ()
    assert here.log.read(here.peer, login, here.registrations.shared) is None


def test_a_peer_that_is_away_loses_nothing(tmp_path: Path, certificates: Path, peer: str) -> None:
    gone = Here(tmp_path, settings(tmp_path, ["127.0.0.1:1"], certificates))
    login = gone.announce()
    with pytest.raises(PeerSilent, match=r"127\.0\.0\.1:1 cannot be told"):
        gone.sender.drain(gone.peer)
    assert gone.log.pending(gone.peer) == (login,)
    gone.registrations.close()


@pytest.mark.parametrize(
    ("peer_name", "ca", "words"),
    [
        ("127.0.0.1", "foreign-ca.pem", "certificate verify failed"),
        ("127.0.0.2", "ours-ca.pem", "(IP address mismatch|refused)"),
    ],
)
def test_a_peer_must_be_who_it_says(
    tmp_path: Path, certificates: Path, there: Registrations, peer: str, peer_name: str, ca: str, words: str
) -> None:
    address = peer.replace("127.0.0.1", peer_name)
    foreign = Here(tmp_path, settings(tmp_path, [address], certificates, ca=ca))
    foreign.announce()
    with pytest.raises(PeerSilent, match=words):
        foreign.sender.drain(address)
    assert there.systems() == ()
    foreign.registrations.close()


def test_a_peer_with_another_secret_gets_nothing(tmp_path: Path, here: Here, there: Registrations) -> None:
    login = here.announce()
    here.sender._secret = "other"
    with pytest.raises(PeerSilent, match="does not accept our secret"):
        here.sender.drain(here.peer)
    assert here.log.pending(here.peer) == (login,)
    assert there.systems() == ()


def test_a_refused_registration_does_not_keep_others_waiting(here: Here, there: Registrations) -> None:
    here.sender._ids = {PRODUCT: 77}
    refused = here.announce()
    here.sender.drain(here.peer)
    assert (here.log.pending(here.peer), there.systems()) == ((refused,), ())
    bare = here.registrations.announce(hostname="h", instance_data="", now=NOW)
    assert here.sender.drain(here.peer) == 1
    assert [system.login for system in there.systems()] == [bare.login]


def test_a_server_tells_by_itself(here: Here, there: Registrations) -> None:
    here.sender.start()
    login = here.announce()
    deadline = now() + timedelta(seconds=10)
    while here.log.pending(here.peer) and now() < deadline:
        threading.Event().wait(0.02)
    here.sender.stop()
    assert there.shared(login) == here.registrations.shared(login) != ()


# -- kill -9 at every line --------------------------------------------------------------------------------------------

TRACED = tuple(
    str(Path(sharing.__file__).parents[1] / name)
    for name in ("region/sharing.py", "region/registrations.py", "system/files.py")
)


def killed_at_line(number: int, work: Callable[[], None]) -> bool:
    """Run ``work`` in a process of its own and kill that before its Nth line of our code; False when it got through."""

    def child() -> None:
        left = number

        def trace(frame: FrameType, event: str, _argument: object) -> Any:
            nonlocal left
            if frame.f_code.co_filename not in TRACED:
                return None
            if event == "line":
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)
        work()
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode in {0, -signal.SIGKILL}
    return process.exitcode != 0


def steps() -> Iterator[int]:
    yield from range(0, 2000, 7)


def test_a_change_that_was_killed_anywhere_is_never_forgotten(tmp_path: Path) -> None:
    """Either nothing happened, or the peers still have to hear of it."""

    def work() -> None:
        log = ReplayLog(tmp_path / "log", ["peer"])
        registrations = Registrations(tmp_path / "r.sqlite", journal=log)
        made = registrations.announce(hostname="h", instance_data="", now=NOW)
        registrations.activate(made.id, PRODUCT, now=NOW)
        registrations.close()

    killed = 0
    for step in steps():
        if not killed_at_line(step, work):
            break
        killed += 1
        log = ReplayLog(tmp_path / "log", ["peer"])
        log.sweep()
        registrations = Registrations(tmp_path / "r.sqlite")
        assert {system.login for system in registrations.systems()} <= set(log.pending("peer"))
        registrations.close()
    assert killed > 15, "there are fewer lines to be killed at than the work has"


def test_sending_that_was_killed_anywhere_is_finished_by_the_next(
    tmp_path: Path, peer: str, certificates: Path, there: Registrations
) -> None:
    told = settings(tmp_path, [peer], certificates)
    here = Here(tmp_path, told)

    def work() -> None:
        again = Here(tmp_path, told)
        again.sender.drain(peer)

    killed = 0
    for step in range(0, 5000, 17):
        login = here.announce()
        here.registrations.close()
        cut = killed_at_line(step, work)
        here = Here(tmp_path, told)
        here.log.sweep()
        here.sender.drain(peer)
        assert here.log.pending(peer) == ()
        assert there.shared(login) == here.registrations.shared(login) != ()
        if not cut:
            break
        killed += 1
    here.registrations.close()
    assert killed > 8


def test_two_processes_at_once(tmp_path: Path) -> None:
    """Many announcements, activations and removals from several processes; nothing is lost, nobody fails."""

    def work() -> None:
        registrations = Registrations(tmp_path / "r.sqlite", journal=ReplayLog(tmp_path / "log", ["peer"]))
        for number in range(15):
            made = registrations.announce(hostname="h", instance_data="", now=NOW)
            registrations.activate(made.id, PRODUCT, now=NOW)
            assert registrations.find(made.login, made.password, token="", now=NOW) is not None
            if number % 3 == 0:
                registrations.remove(made.login)
        registrations.close()
        os._exit(0)

    started = [multiprocessing.get_context("fork").Process(target=work) for _ in range(3)]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [0, 0, 0]
    registrations = Registrations(tmp_path / "r.sqlite")
    assert len(registrations.systems()) == 3 * 10
    assert all(system.products == (PRODUCT,) for system in registrations.systems())
    assert len(ReplayLog(tmp_path / "log", ["peer"]).pending("peer")) == 3 * 15
    registrations.close()


# -- what peers are told ----------------------------------------------------------------------------------------------


def message(**changes: object) -> dict[str, object]:
    """As RMT sends it."""
    return {
        "login": "SCC_1",
        "password": "p",
        "hostname": "h",
        "proxy_byos_mode": "payg",
        "system_token": None,
        "registered_at": "2026-01-01T00:00:00.000Z",
        "created_at": "2026-01-01T00:00:00.000Z",
        "last_seen_at": None,
        "instance_data": "data",
        "pubcloud_reg_code": None,
        "activations": [{"product_id": 1, "created_at": "2026-01-02T00:00:00.000Z"}],
        **changes,
    }


def bearer(secret: str = SECRET) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


@pytest.fixture
def client(there: Registrations) -> FlaskClient:
    return app_of(there).test_client()


def test_a_registration_as_rmt_tells_it(client: FlaskClient, there: Registrations) -> None:
    assert client.post("/api/regsharing", json=message(), headers=bearer()).status_code == 204
    (system,) = there.shared("SCC_1")
    assert replace(system, uid="") == SharedSystem(
        login="SCC_1",
        password="p",
        token=None,
        hostname="h",
        instance_data="data",
        mode="payg",
        regcode="",
        registered_at="2026-01-01T00:00:00+00:00",
        last_seen_at=None,
        activations=(("debian/13/x86_64", "2026-01-02T00:00:00+00:00"),),
    )
    changed = message(system_token="t", activations=[{"product_id": "2", "created_at": None}])
    assert client.post("/api/regsharing", json=changed, headers=bearer()).status_code == 204
    (system,) = there.shared("SCC_1")
    assert (system.token, [one for one, _ in system.activations]) == ("t", ["SLES/15.6/x86_64"])
    found = there.find("SCC_1", "p", token="t", now=NOW)
    assert found is not None
    assert client.delete("/api/regsharing", json={"login": "SCC_1"}, headers=bearer()).status_code == 204
    assert there.systems() == ()
    assert client.delete("/api/regsharing", json={"login": "SCC_1"}, headers=bearer()).status_code == 204


@pytest.mark.parametrize(
    ("configured", "headers"),
    [
        (SECRET, {}),
        (SECRET, bearer("")),
        (SECRET, bearer("wrong")),
        (SECRET, {"Authorization": SECRET}),
        (SECRET, {"Authorization": f"Basic {SECRET}"}),
        ("", {}),
        ("", bearer("")),
        ("", bearer(SECRET)),
    ],
)
def test_without_the_secret_nobody_is_let_in(there: Registrations, configured: str, headers: dict[str, str]) -> None:
    """Also where no secret is configured, unlike RMT as it reads."""
    client = app_of(there, configured).test_client()
    for method in ("POST", "DELETE"):
        assert client.open("/api/regsharing", method=method, json=message(), headers=headers).status_code == 401
    assert client.post("/api/regsharing/center/regsvc", data="<x/>", headers=headers).status_code == 403
    assert there.systems() == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"login": "../../etc/passwd"},
        {"login": ".."},
        {"login": ""},
        {"login": 7},
        {"login": "a/b"},
        {"password": ""},
        {"password": None},
        {"proxy_byos_mode": "free"},
        {"activations": None},
        {"activations": [{"product_id": 99}]},
        {"activations": [{"product_id": True}]},
        {"activations": [{"product_id": "²"}]},
        {"activations": [7]},
        {"registered_at": "yesterday", "created_at": None},
    ],
    ids=str,
)
def test_what_a_peer_must_not_tell(client: FlaskClient, there: Registrations, changes: dict[str, object]) -> None:
    answer = client.post("/api/regsharing", json=message(**changes), headers=bearer())
    assert answer.status_code == 422
    assert answer.json is not None
    assert answer.json["error"]
    assert there.systems() == ()


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"[" * 100_000, b"\xff", b"7"])
def test_no_body_is_an_error_of_the_server(client: FlaskClient, body: bytes) -> None:
    for method in ("POST", "DELETE"):
        assert client.open("/api/regsharing", method=method, data=body, headers=bearer()).status_code == 422


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlaskClient]:
    registrations = Registrations(tmp_path_factory.mktemp("lasting") / "r.sqlite")
    yield app_of(registrations).test_client()
    registrations.close()


values = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.lists(st.integers(), max_size=2)
)


@settings_of(max_examples=60)
@given(changes=st.dictionaries(st.sampled_from([*message(), "uid"]), values, max_size=3))
def test_nothing_a_peer_tells_is_an_error_of_the_server(changes: dict[str, object], lasting: FlaskClient) -> None:
    sent = json.dumps(message(**changes))
    assert lasting.post("/api/regsharing", data=sent, headers=bearer()).status_code in {204, 422}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peers": ("https://a",)}, "is no peer"),
        ({"peers": ("a/../b",)}, "is no peer"),
        ({"api_secret_file": ""}, "need 'api_secret_file'"),
        ({"data_dir": ""}, "need 'api_secret_file' and 'data_dir'"),
        ({"api_secret_file": "/dev/null/none"}, "cannot be read"),
        ({"ca_path": "/dev/null/none"}, "holds no CA certificates"),
    ],
)
def test_settings_that_cannot_work_are_faults(
    tmp_path: Path, certificates: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputFault, match=words):
        Here(tmp_path, replace(settings(tmp_path, ["peer.test.invalid"], certificates), **changes))


def test_a_secret_that_others_can_read_is_a_fault(tmp_path: Path, certificates: Path) -> None:
    told = settings(tmp_path, ["peer.test.invalid", "[2001:db8::1]:8443"], certificates)
    assert told.secret() == SECRET
    (tmp_path / "secret").chmod(0o640)
    with pytest.raises(InputFault, match="can be read by others"):
        told.secret()
    (tmp_path / "secret").chmod(0o600)
    (tmp_path / "secret").write_text(" \n")
    with pytest.raises(InputFault, match="holds no secret"):
        told.secret()
