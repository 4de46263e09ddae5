# SPDX-License-Identifier: Apache-2.0
"""A proxy before a real Glance that does one wrong thing at one request: kill the sender, fail, reset, or dawdle.

A program of its own (``python -m testsuite.fakes.glance_proxy HOST PORT``; it prints its port), so that tests may fork
without threads. ``PUT /__fault`` sets what goes wrong and counts anew; ``GET /__fault`` tells what was asked since. It
answers nothing itself but the fault: everything else is the real Glance's word, byte for byte.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import struct
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length"})
_DELAY_S = 1.0


@dataclass
class State:
    """What goes wrong at which request, and what was asked."""

    upstream: tuple[str, int]
    fault: dict[str, Any] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, request: str) -> str:
        """Note a request; the fault it meets, or nothing."""
        with self.lock:
            self.requests.append(request)
            return str(self.fault["kind"]) if len(self.requests) == self.fault.get("number") else ""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: State

    def log_message(self, *_: object) -> None:
        return

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/__fault":
            self.control(body)
            return
        kind = self.state.count(f"{self.command} {self.path.partition('?')[0]}")
        after = self.state.fault.get("moment") == "after"
        if kind and not after and not self.spoil(kind):
            return
        status, headers, content = self.upstream(body)
        if kind and after and not self.spoil(kind):
            return
        self.answer(status, headers, content)

    do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = do_HEAD = handle_any  # noqa: N815 (http.server's names)

    def spoil(self, kind: str) -> bool:
        """Do the wrong thing; True when the request then goes on."""
        if kind == "delay":
            time.sleep(_DELAY_S)
            return True
        if kind == "kill":
            os.kill(self.state.fault["victim"], signal.SIGKILL)
        if kind in {"kill", "reset"}:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
            return False
        self.answer(int(kind), [("Content-Type", "text/plain")], b"injected by a test\n")
        return False

    def upstream(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(*self.state.upstream, timeout=60)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
            connection.request(self.command, self.path, body=body or None, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in _HOP:
                self.send_header(name, value)
        if status != http.HTTPStatus.NO_CONTENT:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD" and status != http.HTTPStatus.NO_CONTENT:
            self.wfile.write(content)

    def control(self, body: bytes) -> None:
        told = json.dumps(self.state.requests).encode()
        if self.command == "PUT":
            with self.state.lock:
                self.state.fault = json.loads(body)
                self.state.requests = []
        self.answer(200, [("Content-Type", "application/json")], told)


def main() -> None:
    Handler.state = State(upstream=(sys.argv[1], int(sys.argv[2])))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
