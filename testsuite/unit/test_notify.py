# SPDX-License-Identifier: Apache-2.0
"""Notices over a real HTTP server on loopback, and through a sendmail that writes down what it was given."""

from __future__ import annotations

import contextlib
import email
import email.policy
import http.server
import json
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from factory.model import Notify
from factory.notify import notify
from factory.system.run import PATH


class Receiver(http.server.BaseHTTPRequestHandler):
    """Keeps what was posted; the path says how to answer."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.posted.append((self.path, self.headers["Content-Type"], json.loads(body)))  # type: ignore[attr-defined]
        if "hang-up" in self.path:
            self.connection.close()
            return
        self.send_response(302 if "moved" in self.path else 500 if "broken" in self.path else 204)
        self.send_header("Location", "http://127.0.0.1:9/")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def receiver(context: ssl.SSLContext | None = None) -> Iterator[http.server.ThreadingHTTPServer]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    server.posted = []  # type: ignore[attr-defined]
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def self_signed(folder: Path) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(tz=UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    made = builder.not_valid_before(now).not_valid_after(now + timedelta(days=1)).sign(key, hashes.SHA256())
    (folder / "server.pem").write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    return context


def send(site: Notify, *, path: str = PATH, subject: str = "debian13: red", text: str = "2 checks failed", **facts):
    said: list[str] = []
    found = notify(site, subject=subject, text=text, say=said.append, facts=facts, path=path)
    assert len(said) == len(found)
    return found, said


def test_a_webhook_gets_one_json_document():
    with receiver() as server:
        port = server.server_address[1]
        found, said = send(Notify(webhook=f"http://127.0.0.1:{port}/hook?token=s3cret"), run="20261121-020000-debian13")
    assert [(one.way, one.to, one.fault) for one in found] == [("webhook", "127.0.0.1", "")]
    assert server.posted == [
        (
            "/hook?token=s3cret",
            "application/json",
            {
                "schema": "factory/notice/1",
                "subject": "debian13: red",
                "text": "debian13: red\n2 checks failed",
                "run": "20261121-020000-debian13",
            },
        )
    ]
    assert "s3cret" not in "".join(said)


FAILING = {
    "status 500": ("/broken", "answered with status 500"),
    "a redirect is not followed": ("/moved", "answered with status 302"),
    "the server hangs up": ("/hang-up", "RemoteDisconnected"),
}


@pytest.mark.parametrize("case", FAILING)
def test_a_webhook_that_fails_is_said_and_forgotten(case):
    path, expected = FAILING[case]
    with receiver() as server:
        found, said = send(Notify(webhook=f"http://127.0.0.1:{server.server_address[1]}{path}"))
    assert expected in found[0].fault
    assert expected in said[0]


UNUSABLE = {
    "plain http to elsewhere": ("http://192.0.2.7/hook", "must start with https://"),
    "another scheme": ("file:///etc/passwd", "must start with https://"),
    "no address": ("hook", "must start with https://"),
    "a port that is none": ("https://127.0.0.1:99999999/", "ort"),
    "nobody listens": ("http://127.0.0.1:9/", "Connection refused"),
    "a space": ("http://127.0.0.1:9/a b", "ValueError: no answer|InvalidURL"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_an_address_that_cannot_be_used_is_said(case):
    url, expected = UNUSABLE[case]
    found, _ = send(Notify(webhook=url))
    assert any(part in found[0].fault for part in expected.split("|"))


def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path):
    with receiver(self_signed(tmp_path)) as server:
        found, _ = send(Notify(webhook=f"https://127.0.0.1:{server.server_address[1]}/hook?token=s3cret"))
    assert "SSLCertVerificationError" in found[0].fault
    assert server.posted == []


@pytest.fixture
def mailbox(tmp_path: Path) -> Path:
    """A sendmail, first on PATH, that keeps its arguments and the message; it fails when told so."""
    program = tmp_path / "bin" / "sendmail"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\ncat > {tmp_path}/mail\ntest ! -e {tmp_path}/fail\n'
    )
    program.chmod(0o755)
    return tmp_path


def test_a_mail_is_handed_to_sendmail(mailbox):
    site = Notify(mail="images@cloud.example")
    found, _ = send(
        site, path=f"{mailbox}/bin:{PATH}", subject="debian13: röd\nBcc: x@example", text="two checks\n.\nfailed"
    )
    assert found[0].fault == ""
    assert (mailbox / "arguments").read_text() == "-i -t\n"
    message = email.message_from_bytes((mailbox / "mail").read_bytes(), policy=email.policy.default)
    assert message["To"] == "images@cloud.example"
    assert message["Subject"] == "[image factory] debian13: röd Bcc: x@example"
    assert message["Bcc"] is None
    assert message["Auto-Submitted"] == "auto-generated"
    assert message.get_content() == "two checks\n.\nfailed\n"


def test_mail_that_cannot_be_sent_is_said(mailbox, tmp_path):
    site = Notify(mail="images@cloud.example")
    (mailbox / "fail").touch()
    found, _ = send(site, path=f"{mailbox}/bin:{PATH}")
    assert "'sendmail' exited with status 1" in found[0].fault
    found, _ = send(Notify(mail="a@b.example\nBcc: c@d.example"), path=f"{mailbox}/bin:{PATH}")
    assert "not a mail address" in found[0].fault


def test_without_a_sendmail_it_is_said(tmp_path):
    for name in ("setpriv", "sh", "test"):
        (tmp_path / name).symlink_to(f"/usr/bin/{name}")
    found, said = send(Notify(mail="images@cloud.example"), path=str(tmp_path))
    assert "sendmail" in found[0].fault
    assert said


def test_one_way_failing_does_not_stop_the_other(mailbox):
    (mailbox / "fail").touch()
    with receiver() as server:
        site = Notify(mail="images@cloud.example", webhook=f"http://127.0.0.1:{server.server_address[1]}/")
        found, _ = send(site, path=f"{mailbox}/bin:{PATH}")
    assert [bool(one.fault) for one in found] == [True, False]


def test_nobody_to_tell_is_fine():
    assert send(Notify()) == ((), [])
