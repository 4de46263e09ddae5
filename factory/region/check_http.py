# SPDX-License-Identifier: Apache-2.0
"""One request to one server: nothing is trusted but what the caller names, and no answer is longer than expected."""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass

HTTP, HTTPS = 80, 443
MAX_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 16


class Unanswered(Exception):
    """There is no usable answer; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a server said; ``certificate`` is what it showed, in DER."""

    status: int
    body: bytes
    headers: Mapping[str, str]
    certificate: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """How to reach a server: ``address`` is where to connect, ``name`` what its certificate must say.

    ``trust`` are the only certificates that are trusted, as PEM; None asks without verifying (as clients do before they
    know the CA). ``tls`` False is plain http.
    """

    address: str
    name: str
    trust: str | None = None
    tls: bool = True
    port: int | None = None
    timeout_s: float = 10.0

    def ask(
        self, path: str, *, method: str = "GET", headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> Reply:
        """Send one request and read the whole answer, within ``timeout_s``.

        Raises:
            Unanswered: no connection, TLS refused, not HTTP, too long, or too slow.
        """
        deadline = time.monotonic() + self.timeout_s
        try:
            connection = _Connection(self)
            try:
                connection.request(method, path, body=body, headers={"Accept": "*/*", **(headers or {})})
                answer = connection.getresponse()
                content = _content(answer, deadline)
                return Reply(
                    status=answer.status,
                    body=content,
                    headers={name.lower(): value for name, value in answer.getheaders()},
                    certificate=connection.shown,
                )
            finally:
                connection.close()
        except (OSError, http.client.HTTPException, ValueError) as wrong:
            raise Unanswered(str(wrong) or type(wrong).__name__) from wrong


class _Connection(http.client.HTTPConnection):
    """A connection to an address whose TLS certificate has to be for a name."""

    def __init__(self, door: Door) -> None:
        super().__init__(_host(door.name), door.port or (HTTPS if door.tls else HTTP), timeout=door.timeout_s)
        self.door = door
        self.shown = b""

    def connect(self) -> None:
        plain = socket.create_connection((self.door.address, self.port), self.door.timeout_s)
        try:
            if not self.door.tls:
                self.sock = plain
                return
            wrapped = _context(self.door.trust).wrap_socket(plain, server_hostname=self.door.name)
        except BaseException:
            plain.close()
            raise
        self.sock = wrapped
        self.shown = wrapped.getpeercert(binary_form=True) or b""


def _host(name: str) -> str:
    return f"[{name}]" if ":" in name else name


def _context(trust: str | None) -> ssl.SSLContext:
    """As strict as Python 3.13 is by default, on every Python."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if trust is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.load_verify_locations(cadata=trust)
    return context


def _content(answer: http.client.HTTPResponse, deadline: float) -> bytes:
    found = b""
    while chunk := answer.read1(_CHUNK_BYTES):
        found += chunk
        if len(found) > MAX_BYTES:
            raise Unanswered(f"the answer is longer than {MAX_BYTES} bytes")
        if time.monotonic() > deadline:
            raise Unanswered("the answer takes too long")
    expected = answer.getheader("Content-Length", "")
    if expected.isdecimal() and answer.status == http.client.OK and len(found) < int(expected):
        raise Unanswered(f"the answer was cut off after {len(found)} of {expected} bytes")
    return found
