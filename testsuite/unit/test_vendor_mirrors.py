# SPDX-License-Identifier: Apache-2.0
"""[repositories.IMAGE]: a vendor's mirror behind a password, on a real TLS server; the password shows up nowhere."""

from __future__ import annotations

import base64
import contextlib
import http.server
import ssl
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from factory.describe.load import load_site
from factory.describe.repositories import logins
from factory.doctor import mirrors
from factory.errors import InputFault, InputsError
from factory.inputs.freshness import compare
from factory.inputs.lock import lock_text, write_lock
from factory.inputs.recorder import Origin, Recorder
from factory.inputs.upstream import Upstream
from factory.installation import Installation
from factory.model import Repository
from factory.region.certificates import issue
from factory.system.secrets import Login, Secrets
from factory.system.state import State
from testsuite.repository import NOW, Archive, make_key

USER, PASSWORD = "customer-4711", "s3cret: of the vendor"
DEBIAN = Repository(alias="debian", url="http://mirror.example/debian", suites=("trixie",))
SITE = """
[mirrors]
debian = "http://mirror.example/debian"

[repositories.debian13.debian]
url = "https://vendor.example/debian/"
user = "env:VENDOR_USER"
password = "file:vendor-password"
"""


class _Guarded(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, *rest, headers_seen: list, moved_to: list, **names) -> None:
        self.headers_seen, self.moved_to = headers_seen, moved_to
        super().__init__(*rest, **names)

    def do_GET(self) -> None:
        self.headers_seen.append(self.headers.get("Authorization"))
        expected = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if self.moved_to:
            self.send_response(302)
            self.send_header("Location", self.moved_to[0] + self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.headers_seen[-1] != expected:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="vendor"')
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            super().do_GET()

    def log_message(self, *rest) -> None:
        pass


@contextlib.contextmanager
def guarded(root: Path, chain: tuple[Path, Path], moved_to: tuple[str, ...] = ()):
    """A TLS mirror that wants the password; yields its address and the Authorization headers it saw."""
    seen: list[str | None] = []
    handler = partial(_Guarded, directory=str(root), headers_seen=seen, moved_to=list(moved_to))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*chain)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield f"https://127.0.0.1:{server.server_address[1]}", seen
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> tuple[Path, Path]:
    return issue("vendor", now=NOW, days=9999, addresses=["127.0.0.1"]).write(tmp_path_factory.mktemp("tls"), "vendor")


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Archive:
    folder = tmp_path_factory.mktemp("vendor")
    made = Archive(root=folder / "mirror", key=make_key(folder, "vendor"))
    made.add("hello", b"hello deb")
    made.publish()
    return made


@pytest.fixture
def vendor(archive, chain, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(chain[0]))
    with guarded(archive.root, chain) as served:
        yield served


def recorder(address: str, archive: Archive, blobs: Path, login: Login | None) -> Recorder:
    upstream = Upstream(pause_s=0.01, logins={address: login} if login else {})
    origin = Origin(mirror=address, keyring=archive.key.keyring)
    return Recorder(origins={"debian": origin}, blobs=blobs, now=NOW, upstream=upstream)


def test_inputs_come_from_behind_the_password_and_say_nothing_of_it(vendor, archive, tmp_path) -> None:
    address, _ = vendor
    login = Login(user=USER, password=PASSWORD)
    found = recorder(address, archive, tmp_path / "blobs", login)
    found.read_indexes((DEBIAN,))
    found.get("debian", archive.index_path)
    assert found.get("debian", "pool/main/h/hello/hello_1.0_all.deb").found
    write_lock(tmp_path / "inputs.lock", found.inputs)
    again = recorder(address, archive, tmp_path / "blobs", login)
    assert compare(tmp_path / "inputs.lock", again, {"debian": archive.key.keyring}).same
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    secret = base64.b64encode(f"{USER}:{PASSWORD}".encode())
    assert not any(word in text for text in written for word in (PASSWORD.encode(), USER.encode(), secret))
    assert PASSWORD not in f"{login!r} {login} {lock_text(found.inputs)}"


@pytest.mark.parametrize(
    ("login", "words"),
    [(None, "anybody without credentials"), (Login(user=USER, password="old"), "the credentials given")],
    ids=["none", "wrong"],
)
def test_a_mirror_that_lets_nobody_in_is_told(vendor, archive, tmp_path, login, words) -> None:
    address, _ = vendor
    found = recorder(address, archive, tmp_path / "blobs", login)
    with pytest.raises(InputsError, match=f"does not let {words} in") as caught:
        found.read_indexes((DEBIAN,))
    assert not any(secret in line for line in caught.value.lines() for secret in ("old", PASSWORD, USER))
    assert found.inputs == ()


def test_a_redirect_to_another_server_takes_no_password_along(vendor, archive, chain) -> None:
    elsewhere, seen_elsewhere = vendor
    with (
        guarded(archive.root, chain, moved_to=(elsewhere,)) as (address, seen),
        pytest.raises(InputsError, match="does not let anybody without credentials in"),
        Upstream(pause_s=0.01, logins={address: Login(user=USER, password=PASSWORD)}).get(f"{address}/x"),
    ):
        pytest.fail("the other server had the password")
    assert seen == ["Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()]
    assert seen_elsewhere == [None]


def test_a_password_goes_to_its_own_folder_of_a_server_only(vendor) -> None:
    address, seen = vendor
    upstream = Upstream(pause_s=0.01, logins={f"{address}/a": Login(user=USER, password=PASSWORD)})
    for path in ("/ab/x", "/b/x", "/ax"):
        with pytest.raises(InputsError), upstream.get(address + path):
            pass
    assert seen == [None, None, None]


def test_doctor_asks_the_mirror_with_its_password(vendor, archive, tmp_path) -> None:
    address, seen = vendor
    project(tmp_path / "project")
    text = SITE.replace("https://vendor.example/debian/", address)
    path = site(tmp_path, text)
    here = Installation(
        project=tmp_path / "project",
        state=State(path=tmp_path),
        site=load_site(path),
        environment={"VENDOR_USER": USER},
    )
    assert [(one.name, one.ok) for one in mirrors(here)] == [("mirror debian trixie", True)]
    (refused,) = mirrors(replace(here, environment={"VENDOR_USER": "stranger"}))
    assert not refused.ok
    assert "does not let the credentials given in" in refused.says
    (unread,) = mirrors(replace(here, environment={}))
    assert (unread.name, unread.ok) == ("secret", False)
    assert "repositories.debian13.debian.user" in unread.says
    assert len(seen) == 2


def project(folder: Path) -> None:
    """A project whose only image reads one suite of one repository."""
    described = folder / "descriptions" / "debian13"
    described.mkdir(parents=True)
    (described / "image.toml").write_text(
        '[image]\nname = "debian13"\nline = "L"\n'
        '[update_repositories.debian]\nurl = "http://mirror.example/debian"\nsuites = ["trixie"]\nkey = "/k.pgp"\n'
    )


# -- the site file -----------------------------------------------------------------------------------------------------


def site(folder: Path, text: str = SITE, *, password: str = f"{PASSWORD}\n", mode: int = 0o600) -> Path:
    (folder / "vendor-password").write_text(password)
    (folder / "vendor-password").chmod(mode)
    (folder / "site.toml").write_text(text)
    return folder / "site.toml"


def test_credentials_are_read_by_reference_for_their_image_alone(tmp_path) -> None:
    found = load_site(site(tmp_path))
    secrets = Secrets(environment={"VENDOR_USER": USER}, folder=tmp_path)
    assert logins("debian13", found, secrets) == {"https://vendor.example/debian": Login(user=USER, password=PASSWORD)}
    assert logins("other", found, secrets) == {}
    assert PASSWORD not in repr(found)
    assert PASSWORD not in repr(secrets)
    assert USER not in repr(secrets)


UNREAD = {
    "variable not set": ({}, {"env": {}}, "VENDOR_USER, which is not set", "user"),
    "variable empty": ({}, {"env": {"VENDOR_USER": ""}}, "is empty", "user"),
    "file for all": ({"mode": 0o640}, {}, "others may read or change", "password"),
    "file empty": ({"password": "\n"}, {}, "is empty", "password"),
    "file of two lines": ({"password": "one\ntwo\n"}, {}, "more than one printable line", "password"),
    "no file": ({}, {"gone": True}, "cannot be read", "password"),
}


@pytest.mark.parametrize("case", UNREAD)
def test_a_reference_that_leads_nowhere_is_told_with_its_place(tmp_path, case) -> None:
    written, there, words, key = UNREAD[case]
    found = load_site(site(tmp_path, **written))
    if there.get("gone"):
        (tmp_path / "vendor-password").unlink()
    secrets = Secrets(environment=there.get("env", {"VENDOR_USER": USER}), folder=tmp_path)
    with pytest.raises(InputFault) as caught:
        logins("debian13", found, secrets)
    told = "\n".join(caught.value.lines())
    assert f"site.toml repositories.debian13.debian.{key}" in told
    assert words in told
    assert "one" not in told.replace("more than one", "")
    assert PASSWORD not in told


WRONG = {
    "the secret itself": ('"env:VENDOR_USER"', '"customer-4711"', "is not a reference"),
    "only one of both": ('user = "env:VENDOR_USER"\n', "", "only one of user and password"),
    "plain http": ("https://vendor", "http://vendor", "plain text"),
    "password in the address": ("https://vendor", "https://u:p@vendor", "carries a user name or password"),
    "unknown key": ("password =", "passwort =", "password"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_in_the_table_is_told(tmp_path, case) -> None:
    old, new, words = WRONG[case]
    with pytest.raises(InputFault) as caught:
        load_site(site(tmp_path, SITE.replace(old, new)))
    assert "repositories.debian13.debian" in "\n".join(caught.value.lines())
    assert words in "\n".join(caught.value.lines())
    assert not any(secret in "\n".join(caught.value.lines()) for secret in ("customer-4711", "u:p@"))


# -- the address of the ledger, which may hold a password too ----------------------------------------------------------


LEDGERS = {
    "plain": ('"postgresql://factory@db.example/ledger"', "postgresql://factory@db.example/ledger"),
    "variable": ('"env:LEDGER"', "postgresql://f:s3cret@db.example/ledger"),
    "file": ('"file:vendor-password"', PASSWORD),
    "none": ("", "ledger.sqlite"),
}


@pytest.mark.parametrize("case", LEDGERS)
def test_the_ledger_is_where_the_site_says(tmp_path, case) -> None:
    written, expected = LEDGERS[case]
    path = site(tmp_path, f"[ledger]\nurl = {written}\n" if written else "")
    environment = {"LEDGER": "postgresql://f:s3cret@db.example/ledger"}
    here = Installation(project=tmp_path, state=State(path=tmp_path), site=load_site(path), environment=environment)
    assert str(here.ledger).endswith(expected)
    assert "s3cret" not in repr(here)


@pytest.mark.parametrize(
    "url", ["postgresql://f:s3cret@db.example/x", "postgresql://db.example/x?password=s3cret", "mysql://db/x", "db"]
)
def test_a_ledgers_address_with_a_password_or_of_another_kind_is_refused(tmp_path, url) -> None:
    with pytest.raises(InputFault) as caught:
        load_site(site(tmp_path, f'[ledger]\nurl = "{url}"\n'))
    assert "ledger.url" in "\n".join(caught.value.lines())
    assert "s3cret" not in "\n".join(caught.value.lines())
