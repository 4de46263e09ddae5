# SPDX-License-Identifier: Apache-2.0
"""The guest client fails closed: whatever a server is or says, nothing half-registered is left.

The very file that images carry, in a network namespace, against the real region and update servers; an impostor takes
a server's address where it has to misbehave. Every case is also run with a weakened client, which must be noticed.
"""

from __future__ import annotations

import base64
import contextlib
import json
import random
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from factory.inputs.blobs import BlobStore
from factory.inputs.lock import Input
from factory.inputs.view import RepositoryView
from factory.model import Region, RegionClient, Repository
from factory.region.certificates import Issued, PrivateKey, fingerprint, issue
from factory.region.config import GUEST_PROGRAM
from factory.region.embedded import embedded_region
from factory.region.services import RegionServices, serve
from factory.region.update_settings import VerificationSettings
from factory.sandbox.metadata import metadata_service
from factory.system.clock import now
from factory.system.namespaces import NetworkNamespace, network_namespace
from factory.system.run import Completed, run
from testsuite.integration.region_fixtures import Instance, Recorded, make_instance, record_repository
from testsuite.integration.test_region import killed_before

pytestmark = [pytest.mark.needs_root, pytest.mark.timeout(300)]

PRODUCT = "debian/13/x86_64"
REGION_A, REGION_B, UPDATE_A, UPDATE_B = "192.0.2.10", "198.51.100.10", "192.0.2.20", "198.51.100.20"
NAME_A = "update-a.factory.invalid"
STATE = "var/lib/guestregister/state.json"
CREDENTIALS = "etc/guestregister/credentials"
PYTHON = str(
    [sys.executable, *sorted((Path.home() / ".pyenv/versions").glob("3.13.*/bin/python3.13"))][-1],
)
"""A Python with strict X.509 checks where there is one."""
ANNOUNCE, ACTIVATE = "POST /connect/subscriptions/systems", "POST /connect/systems/products"
QUERY = "/connect/systems/products?identifier=debian&version=13&arch=x86_64"
Answer = Callable[[BaseHTTPRequestHandler], None]


# -- the servers, and impostors ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return record_repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Region:
    return embedded_region(tmp_path_factory.mktemp("keys") / "region", now=now())


@pytest.fixture(scope="module")
def running_services(
    region: Region, recorded: Recorded, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RegionServices]:
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
        ) as services,
    ):
        yield services


@contextlib.contextmanager
def impostor(
    namespace: NetworkNamespace, address: str, certificate: Path, key: Path, answer: Answer
) -> Iterator[list[str]]:
    """A TLS server at an address of the namespace; gives the requests it got, as METHOD PATH."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 20

        def do_GET(self) -> None:
            seen.append(f"{self.command} {self.path}")
            self.close_connection = True
            with contextlib.suppress(OSError):
                answer(self)

        do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 - the names that the base class looks for

        def log_message(self, *_words: object) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = ThreadingHTTPServer((address, 443), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = context.wrap_socket(namespace.listen(address, 443), server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def says(body: bytes, status: int = 200, **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers.get("Content-Length") or 0)
        handler.rfile.read(length)
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def says_json(value: object, status: int = 200) -> Answer:
    return says(json.dumps(value).encode(), status)


def routes(found: dict[str, Answer]) -> Answer:
    """Answers by METHOD PATH; whatever else is asked is 404."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        found.get(f"{handler.command} {handler.path}", says(b"", 404))(handler)

    return answer


def hangs_up(handler: BaseHTTPRequestHandler) -> None:
    """Close the connection without an answer."""


# -- one case ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """What a case needs."""

    services: RegionServices
    region: Region
    recorded: Recorded
    folder: Path
    weaken: tuple[str, str] | None = None

    @property
    def namespace(self) -> NetworkNamespace:
        return self.services.namespace

    def instance(self, *, product: str = PRODUCT, client: RegionClient | None = None) -> Instance:
        guest = make_instance(
            self.folder / "root",
            (self.region,),
            self.namespace,
            self.recorded,
            python=PYTHON,
            product=product,
            client=client,
        )
        if self.weaken:
            program = guest.root / GUEST_PROGRAM
            text = program.read_text()
            if text.count(self.weaken[0]) != 1:
                pytest.fail(f"{self.weaken[0]!r} is not in the client once")
            program.write_text(text.replace(*self.weaken))
        # the bundle of authorities is there before, as in an image
        (guest.root / "etc/ssl/certs/ca-certificates.crt").touch(0o644)
        config = guest.root / "etc/guestregister.conf"
        config.write_text(config.read_text().replace("round_pauses_s = 0.1 0.1", "round_pauses_s = 0.01 0.01"))
        return guest

    def only(self, *addresses: str) -> None:
        """Let exactly these servers answer, with nobody registered."""
        for address in (REGION_A, REGION_B, UPDATE_A, UPDATE_B):
            if address in addresses:
                self.services.start(address)
            else:
                self.services.stop(address)
        for system in self.services.registrations():
            self.services.forget(system.login)

    def as_region(self, answer: Answer, *, item: Issued | None = None) -> contextlib.AbstractContextManager[list[str]]:
        """An impostor in the place of the first region server, with its key or another."""
        server = self.region.servers[0]
        assert server.key
        certificate, key = item.write(self.folder, "impostor") if item else (server.pem, server.key)
        return impostor(self.namespace, REGION_A, certificate, key, answer)

    def as_update(self, answer: Answer, *, item: Issued | None = None) -> contextlib.AbstractContextManager[list[str]]:
        """An impostor in the place of the first update server, with its key or another."""
        server = self.region.update_servers[0]
        assert server.certificate
        assert server.key
        certificate, key = item.write(self.folder, "impostor") if item else (server.certificate, server.key)
        return impostor(self.namespace, UPDATE_A, certificate, key, answer)

    def ca(self) -> Issued:
        """The update servers' authority, with its key."""
        pem = self.region.update_servers[0].pem
        key = load_pem_private_key(pem.with_suffix(".key").read_bytes(), None)
        assert isinstance(key, PrivateKey)
        return Issued(certificate=x509.load_pem_x509_certificate(pem.read_bytes()), key=key)


def with_authorities(guest: Instance) -> Instance:
    """Let the instance trust others already, as images do: Debian makes no bundle of none, and links one of one."""
    for number in range(2):
        other = issue(f"authority {number}", now=now(), days=300, is_authority=True)
        (guest.root / f"usr/share/ca-certificates/other-{number}.crt").write_bytes(other.pem)
    (guest.root / "etc/ca-certificates.conf").write_text("other-0.crt\nother-1.crt\n")
    run(["/bin/sh", guest.root / "usr/sbin/update-ca-certificates"], timeout_s=60)
    return guest


def everything(guest: Instance) -> dict[str, str]:
    """Every file of the instance but log and lock: mode, and content or target."""
    found = {}
    for path in sorted(guest.root.rglob("*")):
        name = path.relative_to(guest.root).as_posix()
        if name.startswith(("var/log/", "run/lock/", "var/lib/apt/", "var/cache/")) or name.endswith(".log"):
            continue
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = f"{path.stat().st_mode:o} {path.read_text(errors='replace')}"
    return found


def assert_closed(guest: Instance, before: dict[str, str], done: Completed, words: str) -> None:
    """It failed with one clear line, and left the instance as it was."""
    assert done.returncode == 1, done.stdout
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, f"not one line: {done.stderr}"
    assert words in done.stderr
    assert "Traceback" not in done.stderr + guest.read("var/log/cloudregister")
    after = everything(guest)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert not changed, f"left behind: {sorted(changed)}"


def refused(stage: Stage, guest: Instance, words: str) -> None:
    """Registering fails closed, and no server knows the instance."""
    before = everything(guest)
    assert_closed(guest, before, guest.guestregister(), words)
    assert stage.services.registrations() == ()


# -- who region servers are -------------------------------------------------------------------------------------------


def wrong_pem(stage: Stage) -> None:
    stage.only(REGION_A, REGION_B, UPDATE_A, UPDATE_B)
    guest = stage.instance()
    for item in (REGION_A, REGION_B):
        other = issue("other", now=now(), days=30, names=["other.invalid"], addresses=[item])
        (guest.root / f"usr/lib/regionService/certs/{item}.pem").write_bytes(other.pem)
    refused(stage, guest, "is not accepted")


def empty_pem(stage: Stage) -> None:
    """An empty file must not mean the system's own authorities."""
    stage.only(REGION_A, REGION_B, UPDATE_A, UPDATE_B)
    guest = stage.instance()
    for item in (REGION_A, REGION_B):
        (guest.root / f"usr/lib/regionService/certs/{item}.pem").write_text("")
    refused(stage, guest, "cannot be used: there is no certificate in it")


def other_servers_pem(stage: Stage) -> None:
    stage.only(REGION_A, REGION_B, UPDATE_A, UPDATE_B)
    guest = stage.instance()
    pems = [guest.root / f"usr/lib/regionService/certs/{item}.pem" for item in (REGION_A, REGION_B)]
    texts = [pem.read_text() for pem in pems]
    for pem, text in zip(pems, reversed(texts), strict=True):
        pem.write_text(text)
    refused(stage, guest, "is not accepted")


def expired_region_server(stage: Stage) -> None:
    """The very certificate is pinned, and still its dates count."""
    stage.only(UPDATE_A)
    old = issue("region-a", now=now() - timedelta(days=100), days=30, names=["region-a.x"], addresses=[REGION_A])
    guest = stage.instance()
    (guest.root / f"usr/lib/regionService/certs/{REGION_A}.pem").write_bytes(old.pem)
    with stage.as_region(says(reply(stage)), item=old):
        refused(stage, guest, "is not accepted")


def region_server_of_another_name(stage: Stage) -> None:
    stage.only(UPDATE_A)
    other = issue("region-a", now=now(), days=30, names=["region-a.x"], addresses=["203.0.113.9"])
    guest = stage.instance()
    (guest.root / f"usr/lib/regionService/certs/{REGION_A}.pem").write_bytes(other.pem)
    with stage.as_region(says(reply(stage)), item=other):
        refused(stage, guest, "is not accepted")


# -- what region servers say ------------------------------------------------------------------------------------------


def reply(stage: Stage, **changes: str) -> bytes:
    """A region server's answer that names the first update server."""
    wanted = {
        "SMTserverIP": UPDATE_A,
        "SMTserverName": NAME_A,
        "SMTregistryName": "registry.factory.invalid",
        "fingerprint": fingerprint(stage.region.update_servers[0].pem.read_text()),
        "region": "embedded",
        **changes,
    }
    attributes = " ".join(f'{name}="{value}"' for name, value in wanted.items())
    return f"<regionSMTdata>\n<smtInfo {attributes}/>\n</regionSMTdata>".encode()


def endless(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(b"<regionSMTdata>")
    for _ in range(4000):
        handler.wfile.write(b"<smtInfo/>" * 1000)


def cut_off(body: bytes) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[:-40])

    return answer


ENTITY = b'<!DOCTYPE r [<!ENTITY n "update-a.factory.invalid">]>'
LAUGHS = (
    b'<!DOCTYPE r [<!ENTITY a0 "a">'
    + b"".join(b'<!ENTITY a%d "%s">' % (number, b"&a%d;" % (number - 1) * 10) for number in range(1, 9))
    + b']><r><smtInfo SMTserverName="&a8;"/></r>'
)
EXTERNAL = b'<!DOCTYPE r [<!ENTITY x SYSTEM "file:///etc/passwd">]><r>&x;</r>'


def said(words: str, make: Callable[[Stage], Answer]) -> Callable[[Stage], None]:
    """A case: the region server is genuine, and says something hostile."""

    def case(stage: Stage) -> None:
        stage.only(UPDATE_A)
        guest = stage.instance()
        with stage.as_region(make(stage)):
            refused(stage, guest, words)

    return case


SAID = {
    "entities": said("document type", lambda stage: says(ENTITY + reply(stage, SMTserverName="&n;"))),
    "billion-laughs": said("document type", lambda _: says(LAUGHS)),
    "external-entity": said("document type", lambda _: says(EXTERNAL)),
    "utf-16": said("document type", lambda _: says(b"\xff\xfe" + EXTERNAL.decode().encode("utf-16-le"))),
    "huge": said("more than 1048576 bytes", lambda stage: says(reply(stage) + b" " * (1 << 21))),
    "endless": said("more than 1048576 bytes", lambda _: endless),
    "truncated-xml": said("is not XML", lambda stage: says(reply(stage)[:-10])),
    "truncated-body": said("cut its answer off", lambda stage: cut_off(reply(stage) + b" " * 40)),
    "no-xml": said("is not XML", lambda _: says(b"\x00\xff<<<")),
    "no-servers": said("no usable update server", lambda _: says(b"<regionSMTdata></regionSMTdata>")),
    "not-found": said("answered 404", lambda _: says(b"Not found", 404)),
    "elsewhere": said("answered 302", lambda _: says(b"", 302, Location="https://203.0.113.9/regionInfo")),
    "hangs-up": said("does not answer", lambda _: hangs_up),
    "line-in-a-name": said(
        "no usable update server", lambda stage: says(reply(stage, SMTserverName="a.b&#10;203.0.113.9 deb.example"))
    ),
    "loopback": said("no usable update server", lambda stage: says(reply(stage, SMTserverIP="127.0.0.1"))),
    "wrong-fingerprint": said(
        "another fingerprint", lambda stage: says(reply(stage, fingerprint=":".join(["AB"] * 20)))
    ),
    "lower-case-fingerprint": said(
        "no usable update server",
        lambda stage: says(
            reply(stage, fingerprint=fingerprint(stage.region.update_servers[0].pem.read_text()).lower())
        ),
    ),
}


# -- who update servers are -------------------------------------------------------------------------------------------


def an_update_server(stage: Stage, **changes: Answer) -> dict[str, Answer]:
    """What a good update server answers, changed."""
    service = {"product": {"repositories": [{"name": "debian", "url": f"https://{NAME_A}/repo/debian"}]}}
    return {
        "GET /api/health/status": says_json({"state": "online"}),
        "GET /smt.crt": says(stage.region.update_servers[0].pem.read_bytes()),
        "POST /connect/subscriptions/systems": says_json({"id": 1, "login": "SCC_1", "password": "secret"}, 201),
        "POST /connect/systems/products": says_json(service, 201),
        f"GET {QUERY}": says_json(service["product"]),
        "DELETE /connect/systems": says(b"", 204),
        **changes,
    }


def a_good_impostor(stage: Stage) -> None:
    """What the other cases are compared with: unchanged, it is good enough to register at."""
    stage.only(REGION_A, REGION_B)
    guest = stage.instance()
    with stage.as_update(routes(an_update_server(stage))):
        done = guest.guestregister()
        assert (done.returncode, done.stderr) == (0, "")
        assert guest.guestregister("--status").returncode == 0


def foreign_ca(stage: Stage) -> None:
    """The authority is the right one, and the server's certificate is not from it."""
    stage.only(REGION_A, REGION_B)
    foreign = issue("foreign CA", now=now(), days=30, is_authority=True)
    theirs = issue(NAME_A, now=now(), days=30, names=[NAME_A], authority=foreign)
    guest = stage.instance()
    with stage.as_update(routes(an_update_server(stage)), item=theirs) as seen:
        refused(stage, guest, "is not accepted")
    assert not any("/connect" in request for request in seen)


def foreign_ca_given(stage: Stage) -> None:
    """The server gives the authority that its certificate is from, and the region server named another."""
    stage.only(REGION_A, REGION_B)
    foreign = issue("foreign CA", now=now(), days=30, is_authority=True)
    theirs = issue(NAME_A, now=now(), days=30, names=[NAME_A], authority=foreign)
    guest = stage.instance()
    given = an_update_server(stage, **{"GET /smt.crt": says(foreign.pem)})
    with stage.as_update(routes(given), item=theirs) as seen:
        refused(stage, guest, "another fingerprint")
    assert not any("/connect" in request for request in seen)


def foreign_ca_behind(stage: Stage) -> None:
    """The right authority comes first, and behind it the one that the server's certificate is from."""
    stage.only(REGION_A, REGION_B)
    foreign = issue("foreign CA", now=now(), days=30, is_authority=True)
    theirs = issue(NAME_A, now=now(), days=30, names=[NAME_A], authority=foreign)
    guest = stage.instance()
    both = stage.region.update_servers[0].pem.read_bytes() + foreign.pem
    with stage.as_update(routes(an_update_server(stage, **{"GET /smt.crt": says(both)})), item=theirs) as seen:
        refused(stage, guest, "is not accepted")
    assert not any("/connect" in request for request in seen)


def expired_update_server(stage: Stage) -> None:
    stage.only(REGION_A, REGION_B)
    old = issue(NAME_A, now=now() - timedelta(days=100), days=30, names=[NAME_A], authority=stage.ca())
    guest = stage.instance()
    with stage.as_update(routes(an_update_server(stage)), item=old) as seen:
        refused(stage, guest, "is not accepted")
    assert not any("/connect" in request for request in seen)


def update_server_of_another_name(stage: Stage) -> None:
    stage.only(REGION_A, REGION_B)
    other = issue(
        "b", now=now(), days=30, names=["update-b.factory.invalid"], addresses=[UPDATE_A], authority=stage.ca()
    )
    guest = stage.instance()
    with stage.as_update(routes(an_update_server(stage)), item=other) as seen:
        refused(stage, guest, "is not accepted")
    assert not any("/connect" in request for request in seen)


def nobody_online(stage: Stage) -> None:
    stage.only(REGION_A, REGION_B)
    refused(stage, stage.instance(), "none of 2 update servers is online")


# -- what update servers say ------------------------------------------------------------------------------------------


def refused_activation(stage: Stage) -> None:
    """A real update server takes the announcement, and refuses the product with 422."""
    stage.only(REGION_A, REGION_B, UPDATE_A, UPDATE_B)
    refused(stage, stage.instance(product="debian/99/x86_64"), "refused (422): No product found")


def a_file_that_cannot_be_written(stage: Stage) -> None:
    """As with a full disk: the server has the instance, the system's files are half written."""
    stage.only(REGION_A, REGION_B, UPDATE_A, UPDATE_B)
    guest = with_authorities(stage.instance())
    (guest.root / "etc/apt/auth.conf.d").rmdir()
    (guest.root / "etc/apt/auth.conf.d").write_text("in the way")
    refused(stage, guest, "auth.conf.d")


def answered(words: str, changes: dict[str, Answer], *, told: bool = True) -> Callable[[Stage], None]:
    """A case: the update server is genuine, and misbehaves; ``told``: it knew the instance and is told to forget it."""

    def case(stage: Stage) -> None:
        stage.only(REGION_A, REGION_B)
        guest = stage.instance()
        with stage.as_update(routes(an_update_server(stage, **changes))) as seen:
            refused(stage, guest, words)
        assert ("DELETE /connect/systems" in seen) is told

    return case


VERIFIED = {"type": "error", "error": "x", "localized_error": "Instance verification failed: wrong\nproduct \x1b[31m"}
ANSWERED = {
    "instance-verification": answered(
        "Instance verification failed: wrong?product", {ACTIVATE: says_json(VERIFIED, 422)}
    ),
    "dies-at-announcement": answered("does not answer", {ANNOUNCE: hangs_up}, told=False),
    "dies-at-activation": answered("does not answer", {ACTIVATE: hangs_up}),
    "breaks-at-activation": answered("refused (503)", {ACTIVATE: says(b"", 503)}),
    "no-service": answered("did not answer with a service", {ACTIVATE: says_json([], 201)}),
    "no-json": answered("did not answer in JSON", {ACTIVATE: says(b"<html>", 201)}),
    "deep-json": answered("did not answer in JSON", {ACTIVATE: says(b"[" * 500000, 201)}),
    "huge-json": answered("more than 1048576 bytes", {ACTIVATE: says(b" " * (1 << 21), 201)}),
    "no-repository-of-ours": answered(
        "offers none of this image's repositories",
        {
            ACTIVATE: says_json(
                {"product": {"repositories": [{"name": "debian", "url": "https://evil.invalid/repo/debian"}]}}, 201
            )
        },
    ),
    "credentials-with-a-line": answered(
        "credentials that cannot be stored",
        {ANNOUNCE: says_json({"login": "a", "password": "b\nmachine evil"}, 201)},
        told=False,
    ),
    "no-credentials": answered(
        "did not answer with credentials", {ANNOUNCE: says_json({"login": "a"}, 201)}, told=False
    ),
    "announcement-refused": answered("refused (422): no", {ANNOUNCE: says_json({"error": "no"}, 422)}, told=False),
    "offline": answered(
        "none of 2 update servers is online", {"GET /api/health/status": says_json({"state": "x"})}, told=False
    ),
}

CASES: dict[str, Callable[[Stage], None]] = {
    "wrong-pem": wrong_pem,
    "other-servers-pem": other_servers_pem,
    "empty-pem": empty_pem,
    "422-on-activation": refused_activation,
    "a-file-that-cannot-be-written": a_file_that_cannot_be_written,
    "expired-region-server": expired_region_server,
    "region-server-of-another-name": region_server_of_another_name,
    **SAID,
    "a-good-impostor": a_good_impostor,
    "foreign-ca": foreign_ca,
    "foreign-ca-given": foreign_ca_given,
    "foreign-ca-behind": foreign_ca_behind,
    "expired-update-server": expired_update_server,
    "update-server-of-another-name": update_server_of_another_name,
    "nobody-online": nobody_online,
    **ANSWERED,
}


@pytest.mark.parametrize("name", CASES)
def test_it_fails_closed(
    running_services: RegionServices, region: Region, recorded: Recorded, tmp_path: Path, name: str
) -> None:
    CASES[name](Stage(running_services, region, recorded, tmp_path))


TRUSTS_ALL = ("    return modern(context)\n\n\ndef unverified", "    return unverified()\n\n\ndef unverified")
ANY_DATE = (
    "    return modern(context)\n\n\ndef unverified",
    "    context.check_hostname = False\n    return modern(context)\n\n\ndef unverified",
)
NO_UNDO = ("            self.undo()\n            raise\n", "            raise\n")
TAKES_DOCTYPE = ("    parser.StartDoctypeDeclHandler = refuse\n    parser.EntityDeclHandler = refuse\n", "")
ANY_PRINT = ("!= server.fingerprint.replace", "== server.fingerprint + server.fingerprint.replace")
NO_LIMIT = ('            raise NoAnswer("%s sent more than %d bytes" % (name, limit))\n', "            pass\n")
WEAKENED: dict[str, Sequence[tuple[str, str]]] = {
    "wrong-pem": [TRUSTS_ALL],
    "other-servers-pem": [TRUSTS_ALL],
    "empty-pem": [
        ("    if not CERTIFICATE.search(pem):\n", "    if not CERTIFICATE.search(pem):\n        return unverified()\n")
    ],
    "expired-region-server": [TRUSTS_ALL],
    "region-server-of-another-name": [ANY_DATE],
    "422-on-activation": [NO_UNDO],
    "a-file-that-cannot-be-written": [NO_UNDO],
    "entities": [TAKES_DOCTYPE],
    "huge": [NO_LIMIT],
    "truncated-body": [('raise NoAnswer("%s cut its answer off" % name)', "pass")],
    "truncated-xml": [("        parser.Parse(body, True)\n", "        parser.Parse(body, False)\n")],
    "line-in-a-name": [('if not NAME.match(name) or "." not in name:', "if not name:")],
    "loopback": [("if found.is_loopback or", "if")],
    "wrong-fingerprint": [ANY_PRINT],
    "lower-case-fingerprint": [("if not FINGERPRINT.match(fingerprint):", "if not fingerprint:")],
    "foreign-ca": [TRUSTS_ALL],
    "foreign-ca-given": [ANY_PRINT],
    "foreign-ca-behind": [('return block.group() + "\\n"', "return body.decode()")],
    "expired-update-server": [TRUSTS_ALL],
    "update-server-of-another-name": [ANY_DATE],
    "dies-at-activation": [NO_UNDO],
    "deep-json": [("    except RecursionError:\n", "    except ZeroDivisionError:\n")],
    "no-repository-of-ours": [
        ('elif parts.scheme != "https" or parts.hostname != server.name.lower():', "elif False:")
    ],
    "credentials-with-a-line": [("if not (WORD.match(username) and WORD.match(password)):", "if not username:")],
    "instance-verification": [('"".join(char if char.isprintable() else "?" for char in text)[:length]', "text")],
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "number"), [(name, at) for name, ways in WEAKENED.items() for at in range(len(ways))])
def test_a_weakened_client_is_noticed(
    running_services: RegionServices, region: Region, recorded: Recorded, tmp_path: Path, name: str, number: int
) -> None:
    with pytest.raises(AssertionError):
        CASES[name](Stage(running_services, region, recorded, tmp_path, weaken=WEAKENED[name][number]))


# -- one server dead --------------------------------------------------------------------------------------------------


@pytest.fixture
def stage(running_services: RegionServices, region: Region, recorded: Recorded, tmp_path: Path) -> Stage:
    return Stage(running_services, region, recorded, tmp_path)


def registered(guest: Instance, *options: str) -> dict[str, str]:
    """Run the client, which must end registered; gives the update server it is at."""
    done = guest.guestregister(*options)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert guest.guestregister("--status").returncode == 0
    return json.loads(guest.read(STATE))["server"]


@pytest.mark.parametrize("dead", [REGION_A, REGION_B])
def test_with_one_region_server_dead_it_registers_by_the_other(stage: Stage, dead: str) -> None:
    stage.only(*{REGION_A, REGION_B, UPDATE_A} - {dead})
    assert registered(stage.instance())["ipv4"] == UPDATE_A
    (system,) = stage.services.registrations()
    assert system.products == (PRODUCT,)


def test_it_moves_to_the_sibling_even_when_no_region_server_answers_any_more(stage: Stage) -> None:
    stage.only(REGION_A, UPDATE_A, UPDATE_B)
    guest = stage.instance()
    first = registered(guest)
    credentials = guest.read(CREDENTIALS).splitlines()[:2]
    other = UPDATE_B if first["ipv4"] == UPDATE_A else UPDATE_A
    stage.services.stop(REGION_A)
    stage.services.stop(first["ipv4"])
    assert registered(guest)["ipv4"] == other
    assert guest.read(CREDENTIALS).splitlines()[:2] == credentials
    assert first["name"] not in guest.read("etc/hosts") + guest.read("etc/apt/sources.list.d/guestregister.sources")
    assert len(stage.services.registrations()) == 1
    before = everything(guest)
    stage.services.stop(other)
    done = guest.guestregister()
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "is dead and no other took over; nothing was changed" in done.stderr
    assert everything(guest) == before


def test_a_sibling_that_does_not_know_it_is_not_moved_to(stage: Stage) -> None:
    stage.only(REGION_A, UPDATE_B)
    guest = stage.instance()
    registered(guest)
    before = everything(guest)
    stage.services.stop(UPDATE_B)
    unknown = {"error": "Invalid system credentials"}
    stranger = an_update_server(stage, **{f"GET {QUERY}": says_json(unknown, 401)})
    with stage.as_update(routes(stranger)):
        done = guest.guestregister()
    assert done.returncode == 1
    assert "Invalid system credentials" in done.stderr
    assert everything(guest) == before


def test_it_registers_anew_with_the_servers_it_knows(stage: Stage) -> None:
    stage.only(REGION_A, UPDATE_A)
    guest = stage.instance()
    registered(guest)
    stage.services.forget(stage.services.registrations()[0].login)
    stage.services.stop(REGION_A)
    registered(guest)
    assert len(stage.services.registrations()) == 1


def test_when_it_cannot_take_its_place_back_nothing_is_left(stage: Stage) -> None:
    stage.only(REGION_A, UPDATE_A)
    guest = with_authorities(stage.instance())
    before = everything(guest)
    registered(guest)
    stage.only(REGION_A, UPDATE_A)  # nobody is registered now
    config = guest.root / "etc/guestregister.conf"
    config.write_text(config.read_text().replace(PRODUCT, "debian/99/x86_64"))
    before["etc/guestregister.conf"] = before["etc/guestregister.conf"].replace(PRODUCT, "debian/99/x86_64")
    assert_closed(guest, before, guest.guestregister(), "refused (422)")


# -- where the instance is, and who it is -----------------------------------------------------------------------------


def hint(guest: Instance, region: str) -> None:
    folder = guest.root / "usr/lib/image-factory"
    (folder / "hinter.py").write_text(
        f"def generateRegionSrvArgs():\n    return {region and f'regionHint={region}'!r}\n"
    )
    (guest.root / "run/cloud-init").mkdir(parents=True, exist_ok=True)
    (guest.root / "run/cloud-init/instance-data.json").write_text('{"v1": {"platform": "nocloud"}}')


def test_an_instance_that_was_moved_registers_in_its_new_region(stage: Stage) -> None:
    stage.only(REGION_A, UPDATE_A)
    guest = stage.instance(client=RegionClient(instance_args="hinter"))
    hint(guest, "embedded")
    registered(guest)
    assert "GET /regionInfo?regionHint=embedded " in stage.services.access_log(REGION_A)
    (old,) = stage.services.registrations()

    hint(guest, "")  # nobody tells: that is no other region
    assert guest.guestregister().stdout.startswith("guestregister: already registered")
    hint(guest, "EMBEDDED")
    assert guest.guestregister().stdout.startswith("guestregister: already registered")

    hint(guest, "elsewhere")
    before = everything(guest)
    stage.services.stop(REGION_A)
    done = guest.guestregister()
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert everything(guest) == before, "without the new region's servers the old registration stays"

    stage.services.start(REGION_A)
    done = guest.guestregister()
    assert done.returncode == 0, done.stderr
    assert f"registered {PRODUCT} at {NAME_A}, moved from regionHint=" in done.stdout
    (new,) = stage.services.registrations()
    assert new.login != old.login
    assert json.loads(guest.read(STATE))["place"]["region"] == "regionHint=elsewhere"


def test_the_data_provider_is_asked(stage: Stage) -> None:
    stage.only(REGION_A, UPDATE_A)
    provider = f"/usr/lib/image-factory/instance-data --root {stage.folder}/root"
    guest = stage.instance(client=RegionClient(data_provider=provider))
    hint(guest, "")
    (guest.root / "run/cloud-init/instance-data.json").write_text(
        '{"v1": {"platform": "nocloud", "instance_id": "factory-1"}}'
    )
    registered(guest)
    document, line, rest = stage.services.registrations()[0].instance_data.split("\n")
    assert json.loads(document)["instance_id"] == "factory-1"
    assert json.loads(document)["product"] == PRODUCT
    assert (line, rest) == ("<repoformat>plugin:susecloud</repoformat>", "")


INSTANCE = "11111111-2222-4333-8444-555555555555"


def vouched(key: ed25519.Ed25519PrivateKey, **changes: str) -> dict[str, str]:
    """What a cloud that signs says of an instance, in its vendordata."""
    until = (now() + timedelta(days=1)).isoformat()
    claims = {"instance_id": INSTANCE, "project_id": "p1", "product": PRODUCT, "not_after": until, **changes}
    document = json.dumps(claims).encode()
    return {
        "document": base64.b64encode(document).decode(),
        "signature": base64.b64encode(key.sign(document)).decode(),
        "algorithm": "ed25519",
    }


def test_the_clouds_word_comes_from_the_metadata_service_to_the_update_server(
    region: Region, recorded: Recorded, tmp_path: Path
) -> None:
    """Real parts all the way: metadata service, dataProvider, announcement, verification, signature."""
    ours, foreign = ed25519.Ed25519PrivateKey.generate(), ed25519.Ed25519PrivateKey.generate()
    public = tmp_path / "cloud.pem"
    public.write_bytes(ours.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    altered = {**vouched(ours), "document": base64.b64encode(b'{"instance_id": "x"}').decode()}
    past = (now() - timedelta(hours=1)).isoformat()
    cases = {
        "unsigned": ({}, "refused (422)"),
        "foreign": ({"image_factory": vouched(foreign)}, "refused (422)"),
        "altered": ({"image_factory": altered}, "refused (422)"),
        "expired": ({"image_factory": vouched(ours, not_after=past)}, "refused (422)"),
        "another-instance": ({"image_factory": vouched(ours, instance_id=INSTANCE[::-1])}, "refused (422)"),
        "another-product": ({"image_factory": vouched(ours, product="debian/12/x86_64")}, "refused (422)"),
    }
    metadata = json.dumps({"uuid": INSTANCE, "project_id": "p1", "availability_zone": "eu-1a", "meta": {}})
    files = {"openstack/latest/meta_data.json": metadata}
    with (
        network_namespace() as namespace,
        metadata_service(namespace, files),
        serve(
            namespace,
            (region,),
            view=recorded.view,
            product=PRODUCT,
            workdir=tmp_path / "work",
            log_dir=tmp_path / "logs",
            now=now(),
            say=lambda _: None,
            verification=VerificationSettings(provider="openstack", public_key=str(public)),
        ) as services,
    ):
        stage = Stage(services, region, recorded, tmp_path)
        provider = f"/usr/lib/image-factory/instance-data --root {tmp_path}/root"
        guest = stage.instance(client=RegionClient(data_provider=provider, instance_args="openstackregion"))
        for case, (vendor, words) in cases.items():
            files["openstack/latest/vendor_data2.json"] = json.dumps(vendor)
            before = everything(guest)
            done = guest.guestregister()
            assert (done.returncode, words in done.stderr) == (1, True), f"{case}: {done.stdout} {done.stderr}"
            assert everything(guest) == before, case
            assert services.registrations() == (), case
        files["openstack/latest/vendor_data2.json"] = json.dumps({"image_factory": vouched(ours)})
        registered(guest)
        assert services.registrations()[0].products == (PRODUCT,)
        assert "GET /regionInfo?regionHint=eu-1 " in services.access_log(REGION_A) + services.access_log(REGION_B)


# -- package tools ----------------------------------------------------------------------------------------------------


def with_rpm(guest: Instance) -> None:
    """Make the image's repository one of rpm packages, which it has as a .repo file of its own."""
    config = guest.root / "etc/guestregister.conf"
    config.write_text(config.read_text().replace("suites = trixie", "suites ="))
    (guest.root / "etc/yum.repos.d").mkdir()
    (guest.root / "etc/yum.repos.d/own.repo").write_text(
        "[own]\nname=own\nbaseurl=https://deb.mirror.example/debian/\n"
    )
    (guest.root / "etc/yum.repos.d/others.repo").write_text("[others]\nname=x\nbaseurl=https://others.example/\n")


def test_dnf_gets_a_repo_file_with_credentials(stage: Stage) -> None:
    stage.only(REGION_A, UPDATE_A)
    guest = with_authorities(stage.instance())
    with_rpm(guest)
    before = everything(guest)
    registered(guest)
    text = guest.read("etc/yum.repos.d/guestregister.repo")
    assert (guest.root / "etc/yum.repos.d/guestregister.repo").stat().st_mode & 0o777 == 0o600
    username, password = (line.split("=")[1] for line in guest.read(CREDENTIALS).splitlines()[:2])
    for line in (
        "[guestregister-debian]",
        f"baseurl=https://{NAME_A}/repo/debian",
        f"username={username}",
        f"password={password}",
        "gpgcheck=1",
        "sslverify=1",
        "gpgkey=file:///usr/share/keyrings/archive.gpg",
    ):
        assert f"{line}\n" in text
    assert not guest.has("etc/yum.repos.d/own.repo")
    assert guest.has("etc/yum.repos.d/others.repo")
    assert not guest.has("etc/apt/sources.list.d/guestregister.sources")
    assert guest.guestregister("--clean").returncode == 0
    assert everything(guest) == before


SPEC = """
Name: probe
Version: 1.0
Release: 1
Summary: probe
License: none
BuildArch: noarch
%description
probe
%files
"""


@pytest.fixture(scope="module")
def rpms(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """One rpm package in a repository, stored as the inputs server stores it."""
    folder = tmp_path_factory.mktemp("rpms")
    (folder / "probe.spec").write_text(SPEC)
    (folder / "repository").mkdir()
    define = ["--define", f"_topdir {folder}/top", "--define", f"_rpmdir {folder}/repository"]
    run(["rpmbuild", "-bb", *define, folder / "probe.spec"], env={"HOME": str(folder)}, timeout_s=60)
    run(["createrepo_c", "--quiet", folder / "repository"], timeout_s=60)
    store = BlobStore(folder / "blobs")
    store.prepare()
    inputs = {}
    for path in sorted(one for one in (folder / "repository").rglob("*") if one.is_file()):
        name = path.relative_to(folder / "repository").as_posix()
        with store.incoming() as incoming:
            incoming.write(path.read_bytes())
            kept = store.keep(incoming)
        inputs["rpms", name] = Input(repository="rpms", path=name, sha512=kept.sha512, size_bytes=kept.size_bytes)
    repository = Repository(alias="rpms", url="https://rpms.example/", suites=(), key="/usr/share/keys/rpms.asc")
    view = RepositoryView(repositories=(repository,), inputs=inputs, blobs=folder / "blobs")
    return Recorded(view=view, keyring=b"")


def dnf(guest: Instance, *words: str) -> Completed:
    """dnf as in the instance: its repositories with their credentials, its trust store and /etc/hosts."""
    root = guest.root
    options = {
        "reposdir": root / "etc/yum.repos.d",
        "cachedir": root / "var/cache/dnf",
        "persistdir": root / "var/lib/dnf",
        "logdir": root / "var/log",
        "sslcacert": root / "etc/ssl/certs/ca-certificates.crt",
        "pluginpath": root / "none",
    }
    flags = [f"--setopt={name}={value}" for name, value in options.items()]
    (root / "dnf.conf").touch()
    flags += [
        f"--config={root}/dnf.conf",
        "--releasever=1",
        f"--installroot={root}/installed",
        "--assumeyes",
        "--nogpgcheck",
    ]
    script = 'mount --bind "$0" /etc/hosts && exec "$@"'
    argv = ["unshare", "--mount", "/bin/sh", "-c", script, root / "etc/hosts", "dnf", *flags, *words]
    return run(guest.namespace.inside(argv), env={"HOME": str(root)}, check=False, timeout_s=120)


def test_dnf_installs_from_the_update_server_until_the_registration_ends(
    region: Region, rpms: Recorded, tmp_path: Path
) -> None:
    with (
        network_namespace() as namespace,
        serve(
            namespace,
            (region,),
            view=rpms.view,
            product=PRODUCT,
            workdir=tmp_path / "work",
            log_dir=tmp_path / "logs",
            now=now(),
            say=lambda _: None,
        ) as services,
    ):
        guest = Stage(services, region, rpms, tmp_path).instance()
        (guest.root / "etc/yum.repos.d").mkdir()
        registered(guest)
        done = dnf(guest, "install", "--downloadonly", "probe")
        assert done.returncode == 0, done.stdout + done.stderr
        assert list((guest.root / "var/cache/dnf").rglob("probe-1.0-1.noarch.rpm")), done.stdout
        services.forget(services.registrations()[0].login)
        done = dnf(guest, "--refresh", "makecache")
        assert done.returncode != 0
        assert "401" in done.stdout + done.stderr


def test_package_backend_dnf_finds_a_server_and_registers_nothing(stage: Stage) -> None:
    stage.only(REGION_A, UPDATE_A)
    guest = stage.instance(client=RegionClient(package_backend="dnf"))
    done = guest.guestregister()
    assert (done.returncode, done.stderr) == (0, "")
    assert f"packageBackend is dnf: nothing to register; update server {NAME_A}" in done.stdout
    assert stage.services.registrations() == ()
    assert guest.guestregister("--status").returncode == 69
    assert not guest.has(CREDENTIALS)
    stage.services.stop(UPDATE_A)
    assert guest.guestregister().returncode == 1


# -- the way there ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def proxy(namespace: NetworkNamespace, address: str) -> Iterator[list[str]]:
    """A proxy that knows CONNECT, in front of the servers; gives the requests' first lines."""
    seen: list[str] = []
    listening = namespace.listen(address, 3128)
    listening.settimeout(0.1)
    done = threading.Event()

    def serve_one(client: socket.socket) -> None:
        with client:
            client.settimeout(20)
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += client.recv(1)
            seen.append(head.decode())
            host, _, port = head.split()[1].decode().rpartition(":")
            script = [sys.executable, "-c", CONNECTS, host.strip("[]"), port, str(client.fileno())]
            client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            run(namespace.inside(script), check=False, pass_fds=[client.fileno()], timeout_s=30)

    def accept() -> None:
        while not done.is_set():
            with contextlib.suppress(OSError):
                client, _ = listening.accept()
                threading.Thread(target=serve_one, args=(client,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()
        listening.close()


CONNECTS = """
import select, socket, sys
there = socket.create_connection((sys.argv[1], int(sys.argv[2])), 20)
here = socket.socket(fileno=int(sys.argv[3]))
pairs = {here: there, there: here}
while True:
    for ready in select.select(list(pairs), [], [], 20)[0]:
        found = ready.recv(65536)
        if not found:
            sys.exit(0)
        pairs[ready].sendall(found)
"""


@pytest.mark.parametrize("how", ["environment", "sysconfig"])
def test_it_goes_by_the_proxy(stage: Stage, how: str) -> None:
    stage.only(REGION_A, UPDATE_A)
    guest = stage.instance()
    url = "http://user:pass%21@192.0.2.99:3128"
    environment = [f"https_proxy={url}", f"http_proxy={url}", f"no_proxy=192.0.2.0/28,{REGION_B}"]
    if how == "sysconfig":
        environment = []
        (guest.root / "etc/sysconfig").mkdir()
        (guest.root / "etc/sysconfig/proxy").write_text(
            f'PROXY_ENABLED=yes\nHTTP_PROXY="{url}"\nHTTPS_PROXY={url}\nNO_PROXY="192.0.2.0/28, {REGION_B}"\n'
        )
    stage.namespace.add_address("192.0.2.99")
    try:
        with proxy(stage.namespace, "192.0.2.99") as seen:
            done = run(["env", *environment, *guest.command()], check=False, timeout_s=60)
    finally:
        stage.namespace.drop_address("192.0.2.99")
    assert (done.returncode, done.stderr) == (0, "")
    assert {one.splitlines()[0] for one in seen} <= {
        f"CONNECT {UPDATE_A}:443 HTTP/1.1",
        f"CONNECT {UPDATE_B}:443 HTTP/1.1",
    }
    assert all("Proxy-Authorization: Basic dXNlcjpwYXNzIQ==\r\n" in one for one in seen)
    assert seen
    assert "pass!" not in guest.read("var/log/cloudregister")


def test_a_proxy_that_is_dead_is_named(stage: Stage) -> None:
    stage.only(REGION_A, UPDATE_A)
    guest = stage.instance()
    before = everything(guest)
    settings = ["https_proxy=http://user:secret@127.0.0.9:1", "http_proxy=http://127.0.0.9:1"]
    done = run(["env", *settings, *guest.command()], check=False, timeout_s=60)
    assert_closed(guest, before, done, "refused")
    done = run(["env", "https_proxy=socks5://user:secret@127.0.0.9:1", *guest.command()], check=False, timeout_s=60)
    assert_closed(guest, before, done, "the proxy that is configured is not of the form")
    assert "secret" not in done.stderr + guest.read("var/log/cloudregister")


# -- cut off ----------------------------------------------------------------------------------------------------------


def test_a_signal_to_end_undoes_what_was_begun(stage: Stage) -> None:
    stage.only(REGION_A, REGION_B)
    guest = stage.instance()
    before = everything(guest)
    reached = threading.Event()

    def stays_silent(handler: BaseHTTPRequestHandler) -> None:
        reached.set()
        time.sleep(2)

    with stage.as_update(routes(an_update_server(stage, **{ACTIVATE: stays_silent}))) as seen:
        with guest.started() as process:
            assert reached.wait(30)
            assert guest.has(CREDENTIALS)
            process.terminate()
            assert process.wait(30) == 1
        assert "DELETE /connect/systems" in seen
    assert everything(guest) == before
    assert "stopped by signal 15" in (guest.root / "started.log").read_text()


STEPS = range(1, 60)


@pytest.mark.parametrize("steps", [STEPS[::9], pytest.param(STEPS, marks=pytest.mark.slow)], ids=["some", "all"])
def test_killed_anywhere_and_then_refused_it_leaves_nothing(stage: Stage, steps: Sequence[int]) -> None:
    """The other end of being cut off: the next run cannot register, so it cleans up."""
    stage.only(REGION_A, UPDATE_A)
    guest = with_authorities(stage.instance())
    before = everything(guest)
    config = guest.root / "etc/guestregister.conf"
    good, bad = config.read_text(), config.read_text().replace(PRODUCT, "debian/99/x86_64")
    for step in steps:
        cut = killed_before(guest, step)
        (guest.root / "killer.py").unlink()
        login = guest.read(CREDENTIALS).splitlines()[0].partition("=")[2] if guest.has(CREDENTIALS) else ""
        config.write_text(bad)
        done = guest.guestregister()
        config.write_text(good)
        if not cut:
            assert step > 15, "the client does more than that"
            break
        assert_closed(guest, before, done, "refused (422)")
        assert login not in {system.login for system in stage.services.registrations()}, f"killed before step {step}"
    else:
        pytest.fail("more steps than tried")


@pytest.mark.parametrize("steps", [STEPS[::9], pytest.param(STEPS, marks=pytest.mark.slow)], ids=["some", "all"])
def test_a_move_that_was_killed_anywhere_is_finished_by_the_next_run(stage: Stage, steps: Sequence[int]) -> None:
    stage.only(REGION_A, UPDATE_A, UPDATE_B)
    guest = stage.instance()
    current = registered(guest)["ipv4"]
    for step in steps:
        stage.namespace.drop_address(current)
        cut = killed_before(guest, step)
        moved = registered(guest)["ipv4"]
        assert moved != current, f"killed before step {step}"
        assert not [path for path in everything(guest) if "/.guestregister." in path], "unfinished files are left"
        name = json.loads(guest.read(STATE))["server"]["name"]
        assert f"\t{name}\t" in guest.read("etc/hosts")
        assert guest.read("etc/hosts").count("# Added by SMT") == 1
        for path in ("etc/apt/sources.list.d/guestregister.sources", "etc/apt/auth.conf.d/90guestregister.conf"):
            assert f"https://{name}/" in guest.read(path), f"killed before step {step}"
        stage.namespace.add_address(current)
        current = moved
        if not cut:
            assert step > 8, "the client does more than that"
            break
    else:
        pytest.fail("more steps than tried")
    assert len(stage.services.registrations()) == 1


CUT = """#!/bin/sh
{real} "$@"
rm -f {root}/etc/ssl/certs/*.0
kill -9 $PPID
"""


def test_killed_while_the_trust_store_is_made_it_is_made_again(stage: Stage) -> None:
    """The links that OpenSSL looks authorities up by are made last; Debian's program does not notice missing ones."""
    stage.only(REGION_A, UPDATE_A)
    guest = with_authorities(stage.instance())
    registered(guest)
    whole = everything(guest)
    assert guest.guestregister("--clean").returncode == 0
    program = guest.root / "usr/sbin/update-ca-certificates"
    text = program.read_text()
    real = program.with_name("real")
    real.write_text(text)
    program.write_text(CUT.format(real=f"/bin/sh {real}", root=guest.root))
    assert guest.guestregister().returncode in {-9, 137}
    program.write_text(text)
    real.unlink()
    registered(guest)
    assert set(everything(guest)) == set(whole)


def test_killed_at_any_time_the_next_run_registers(stage: Stage) -> None:
    """As from outside: a signal at a random moment, and no help from within."""
    stage.only(REGION_A, UPDATE_A)
    guest = with_authorities(stage.instance())
    fresh = everything(guest)
    started = time.monotonic()
    registered(guest)
    length_s = time.monotonic() - started
    whole = set(everything(guest))
    chance = random.Random(7)
    for _ in range(3):
        assert guest.guestregister("--clean").returncode == 0
        assert set(everything(guest)) == set(fresh)
        with guest.started() as process:
            time.sleep(chance.uniform(0.05, length_s))
            process.kill()
            process.wait()
        registered(guest)
        assert set(everything(guest)) == whole
