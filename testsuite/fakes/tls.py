# SPDX-License-Identifier: Apache-2.0
"""HTTP servers on loopback that say exactly what a test wants, over real TLS or plain."""

from __future__ import annotations

import contextlib
import http.server
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

Answer = tuple[int, bytes]


@dataclass
class Answers:
    """What a server answers by path (without the query where it is not named); ``ask`` may decide by itself."""

    paths: Mapping[str, Answer]
    headers: Mapping[str, str] = field(default_factory=dict)
    ask: Callable[[str, str, Mapping[str, str], bytes], Answer | None] | None = None

    def find(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        decided = self.ask(method, path, headers, body) if self.ask else None
        return decided or self.paths.get(path) or self.paths.get(path.partition("?")[0]) or (404, b"Not found")


@contextlib.contextmanager
def tls_server(
    certificate: Path | None, key: Path | None, answers: Answers, *, address: str = "127.0.0.1", port: int = 0
) -> Iterator[int]:
    """A server for the length of the block; without a certificate it speaks plain http. Gives its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, content = answers.find(self.command, self.path, self.headers, body)
            self.send_response_only(status)
            told = {"Date": self.date_time_string(), "Content-Length": str(len(content)), **answers.headers}
            for name, value in told.items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(content)

        do_GET = do_POST = do_DELETE = do_PUT = do_HEAD = _answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass

        def get_request(self) -> tuple[socket.socket, object]:
            plain, peer = super().get_request()
            plain.settimeout(5)
            return (context.wrap_socket(plain, server_side=True) if context else plain), peer

    context = None
    if certificate and key:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
    server = Server((address, port), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
