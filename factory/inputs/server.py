# SPDX-License-Identifier: Apache-2.0
"""The recorder as an HTTP server on a socket it was handed.

The socket was made inside a box, in whose network nothing else answers; it is served from the host's network, where the
mirrors are. ``/<alias>/<path>`` is a repository's file; only GET and HEAD; connections are kept. A file's entity tag is
its SHA-512, so that clients can ask on condition and for parts (RFC 9110, 13 and 14): one range at a time.
"""

from __future__ import annotations

import contextlib
import http.server
import re
import socket
import threading
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from urllib.parse import unquote

from factory.errors import FactoryError
from factory.inputs.answers import Inputs
from factory.inputs.lock import Input

_ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SEGMENT = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})+")
_REFUSED = re.compile(r"[/\\\x00-\x1f\x7f]")
_RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})")
_IDLE_S = 120
OUTSIDE = (-1, 0)
"""A range that begins behind the end of the file."""


def parse_target(target: str) -> tuple[str, str] | None:
    """Alias and path of a request target; None when it is not a plain path below an alias.

    Queries, empty and dot segments, and separators hidden in percent-encoding have no place in a repository.
    """
    if not target.startswith("/"):
        return None
    alias, *segments = target[1:].split("/")
    if not segments or not _ALIAS.fullmatch(alias):
        return None
    for segment in segments:
        plain = unquote(segment)
        if not _SEGMENT.fullmatch(segment) or plain in {".", ".."} or _REFUSED.search(plain):
            return None
    return alias, "/".join(segments)


def parse_range(text: str, size_bytes: int) -> tuple[int, int] | None:
    """Start and length that a Range header asks for; :data:`OUTSIDE`, or None when the whole file is the answer.

    Several ranges, other units and malformed ones are ignored, as RFC 9110 lets a server do.
    """
    asked = _RANGE.fullmatch(text.strip())
    if asked is None or not (asked[1] or asked[2]):
        return None
    if not asked[1]:
        length = min(int(asked[2]), size_bytes)
        return (size_bytes - length, length) if length else OUTSIDE
    start, last = int(asked[1]), int(asked[2]) if asked[2] else size_bytes - 1
    if asked[2] and last < start:
        return None
    return (start, min(last, size_bytes - 1) - start + 1) if start < size_bytes else OUTSIDE


def _names(condition: str, tag: str) -> bool:
    """Whether an If-None-Match header names this entity tag."""
    tags = [one.strip().removeprefix("W/") for one in condition.split(",")]
    return "*" in tags or tag in tags


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, listening: socket.socket, recorder: Inputs) -> None:
        super().__init__(listening.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.recorder = recorder

    def handle_error(self, request: object, client_address: object) -> None:
        """A build that was ended in the middle of a file is no event."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "image-factory-inputs"
    sys_version = ""
    wbufsize = 1 << 16
    disable_nagle_algorithm = True
    timeout = _IDLE_S
    server: _Server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 the name is the base class's
        """The lock is the log."""

    def do_GET(self) -> None:
        asked = parse_target(self.path)
        if asked is None:
            self._refuse(HTTPStatus.BAD_REQUEST, "not a path below a repository")
            return
        alias, path = asked
        if not self.server.recorder.has(alias):
            self._refuse(HTTPStatus.NOT_FOUND, f"no repository '{alias}'")
            return
        try:
            answer = self.server.recorder.get(alias, path)
        except FactoryError as fault:
            self._refuse(HTTPStatus.BAD_GATEWAY, fault.message)
            return
        if answer.found:
            self._send(answer)
        else:
            self._refuse(HTTPStatus(answer.status), "the mirror has no such file")

    do_HEAD = do_GET  # noqa: N815 the base class names it

    def _send(self, answer: Input) -> None:
        tag = f'"{answer.sha512}"'
        if _names(self.headers.get("If-None-Match", ""), tag):
            self.send_response(HTTPStatus.NOT_MODIFIED)
            self.send_header("ETag", tag)
            self.end_headers()
            return
        wanted = self.headers.get("Range", "")
        if self.headers.get("If-Range", tag) != tag or self.command == "HEAD":
            wanted = ""
        part = parse_range(wanted, answer.size_bytes) if wanted else None
        if part == OUTSIDE:
            self._refuse(
                HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
                "the file is shorter",
                headers={"Content-Range": f"bytes */{answer.size_bytes}"},
            )
            return
        start, length = part or (0, answer.size_bytes)
        with self.server.recorder.store.path(answer.sha512).open("rb") as file:
            self.send_response(HTTPStatus.PARTIAL_CONTENT if part else HTTPStatus.OK)
            if part:
                self.send_header("Content-Range", f"bytes {start}-{start + length - 1}/{answer.size_bytes}")
            self.send_header("Content-Length", str(length))
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", tag)
            self.end_headers()
            self.wfile.flush()
            if self.command != "HEAD" and length:
                self.connection.sendfile(file, start, length)

    def _refuse(self, status: HTTPStatus, why: str, *, headers: Mapping[str, str] | None = None) -> None:
        body = f"{why}\n".encode(errors="replace")
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextlib.contextmanager
def serve(listening: socket.socket, recorder: Inputs) -> Iterator[None]:
    """Answer on ``listening`` (bound, listening) for the length of the block; the socket is closed with it."""
    server = _Server(listening, recorder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.25}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
