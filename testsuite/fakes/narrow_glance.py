# SPDX-License-Identifier: Apache-2.0
"""A proxy before a real Glance that takes one capability away; all else is the real Glance's word.

Compared with what it stands for: clouds that choose ids themselves, know no hidden images, take one change a request,
tell no digest, convert on import, or forbid public images. Each rule is that refusal or that silence and nothing more.
"""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import http.client
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "date"})
Refusal = tuple[int, dict[str, Any]]


@dataclass
class Rule:
    """``ask`` sees a request's JSON and may change it or refuse; ``tell`` changes each image in an answer."""

    ask: Callable[[str, str, Any], Refusal | None] = lambda *_: None
    tell: Callable[[dict[str, Any]], None] = lambda _: None
    one_by_one: bool = False
    late_s: int = 0
    uploaded: dict[str, str] = field(default_factory=dict)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    upstream: tuple[str, int]
    rule: Rule

    def log_message(self, *_: object) -> None:
        return

    def handle_any(self) -> None:
        data = self._body()
        body = json.loads(data) if data and "json" in self.headers.get("Content-Type", "") else None
        if self.path.endswith("/file") and self.command == "PUT":
            self.rule.uploaded["sha256"] = hashlib.sha256(data).hexdigest()
        refused = self.rule.ask(self.command, self.path, body)
        if refused is not None:
            self._answer(refused[0], [("Content-Type", "application/json")], json.dumps(refused[1]).encode())
            return
        parts = [[one] for one in body] if self.rule.one_by_one and isinstance(body, list) else [body]
        for part in parts:
            status, headers, content = self._forward(json.dumps(part).encode() if body is not None else data)
            if status >= 400:
                break
        self._answer(status, headers, self._told(content))

    do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = handle_any  # noqa: N815 (http.server's names)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _forward(self, data: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        upstream = http.client.HTTPConnection(*self.upstream, timeout=60)
        headers = {key: value for key, value in self.headers.items() if key.lower() not in _HOP}
        upstream.request(self.command, self.path, body=data or None, headers=headers)
        answer = upstream.getresponse()
        content = answer.read()
        upstream.close()
        return answer.status, [one for one in answer.getheaders() if one[0].lower() not in _HOP], content

    def _told(self, content: bytes) -> bytes:
        try:
            body = json.loads(content)
        except ValueError:
            return content
        for image in body.get("images", [body]) if isinstance(body, dict) else []:
            self.rule.tell(image)
        return json.dumps(body).encode()

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        self.send_response_only(status)
        now = email.utils.mktime_tz(email.utils.parsedate_tz(email.utils.formatdate()))  # type: ignore[arg-type]
        self.send_header("Date", email.utils.formatdate(now - self.rule.late_s, usegmt=True))
        for key, value in headers:
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextlib.contextmanager
def narrowed(endpoint: str, rule: Rule) -> Iterator[str]:
    """The address of a proxy before the Glance at ``endpoint``, as long as the block runs."""
    parts = urlsplit(endpoint)
    assert parts.hostname is not None
    assert parts.port is not None
    handler = type("Handler", (_Handler,), {"upstream": (parts.hostname, parts.port), "rule": rule})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()
