# SPDX-License-Identifier: Apache-2.0
"""Fetching from mirrors: one connection kept per thread and host, TLS verified, redirects followed."""

from __future__ import annotations

import base64
import contextlib
import http.client
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from email.utils import parsedate_to_datetime
from functools import cache
from urllib.parse import SplitResult, urljoin, urlsplit

from factory.errors import InputsError
from factory.system.secrets import Login

_HOPS = 5
_MOVED = frozenset({301, 302, 303, 307, 308})
_UNAUTHORIZED = 401
_PARTIAL, _NOT_MODIFIED = 206, 304
_SERVER_FAULT = 500
_CHUNK_BYTES = 1 << 18
_CLOCK_TICK = timedelta(seconds=2)
_HEADERS = {"User-Agent": "image-factory", "Accept-Encoding": "identity"}


@cache
def _tls() -> ssl.SSLContext:
    """How mirrors prove who they are; read once, and only where one speaks TLS: the host's authorities are many."""
    return ssl.create_default_context()


class Upstream:
    """A client for mirrors. Connections belong to the thread that made them.

    Args:
        attempts: how often a mirror that does not answer is asked.
        logins: credentials by a mirror's address; sent to addresses below it and, after a redirect, to no other.
    """

    def __init__(
        self,
        *,
        pause_s: float = 1.0,
        timeout_s: float = 60.0,
        attempts: int = 3,
        logins: Mapping[str, Login] | None = None,
    ) -> None:
        self._local = threading.local()
        self._pause_s = pause_s
        self._timeout_s = timeout_s
        self._attempts = attempts
        self._logins = dict(logins or {})

    @contextlib.contextmanager
    def get(self, address: str, *, start: int = 0) -> Iterator[tuple[int, Iterator[bytes]]]:
        """The status of an address, and its body in pieces.

        A body that is cut is gone on with where it was cut, as long as the mirror says that the file is still the same
        (RFC 9110, 13.1.5 and 14.2); one that ends early all the same raises while it is read.

        Args:
            start: leave out so many bytes at the beginning. The status is 206 when the mirror does, and 200 or 416
                when it does not.

        Raises:
            InputsError: no answer after several attempts, an error of the server, a redirect we do not follow, or
                credentials that the mirror does not take.
        """
        with self._asked(address, {"Range": f"bytes={start}-"} if start else {}, start=start) as (answer, body):
            yield answer.status, body

    @contextlib.contextmanager
    def get_unless(
        self, address: str, conditions: Mapping[str, str]
    ) -> Iterator[tuple[int, Iterator[bytes], Mapping[str, str]]]:
        """As :meth:`get`, asked on condition: the status is 304 when the mirror still has what the conditions name.

        Yields the mirror's marks of its version of the file too (``ETag``, ``Last-Modified``; empty when not given).
        """
        with self._asked(address, conditions) as (answer, body):
            if answer.status == _NOT_MODIFIED:
                answer.read()  # there is nothing to read; the connection is free again
            yield answer.status, body, _marks(answer)

    @contextlib.contextmanager
    def _asked(
        self, address: str, headers: Mapping[str, str], *, start: int = 0
    ) -> Iterator[tuple[http.client.HTTPResponse, Iterator[bytes]]]:
        for _ in range(_HOPS):
            answer = self._ask(address, headers)
            if answer.status == _UNAUTHORIZED:
                self._drop(urlsplit(address))
                raise self._no_entry(address)
            if answer.status not in _MOVED:
                latest = [answer]
                try:
                    yield answer, self._body(latest, address, start if answer.status == _PARTIAL else 0)
                finally:
                    if not latest[0].isclosed():
                        self._drop(urlsplit(address))
                return
            answer.read()
            address = _moved(address, answer.getheader("Location") or "")
        raise InputsError("a mirror redirects without end", facts=(("address", address),))

    def _ask(self, address: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        parts = urlsplit(address)
        said = ""
        for attempt in range(self._attempts):
            if attempt:
                time.sleep(self._pause_s * attempt)
            try:
                connection = self._connection(parts)
                target = parts.path + (f"?{parts.query}" if parts.query else "")
                connection.request("GET", target, headers={**_HEADERS, **self._authorization(address), **headers})
                answer = connection.getresponse()
            except (http.client.HTTPException, OSError) as away:
                self._drop(parts)
                said = str(away) or type(away).__name__
                continue
            if answer.status < _SERVER_FAULT:
                return answer
            said = f"{answer.status} {answer.reason}"
            self._drop(parts)
        raise InputsError(
            f"the mirror '{parts.netloc}' does not answer",
            facts=(("address", address), ("said", said[:300]), ("tried", f"{self._attempts} times")),
            hint="check the network and [mirrors] in site.toml",
        )

    def _authorization(self, address: str) -> dict[str, str]:
        for below, login in self._logins.items():
            if address.startswith(f"{below.rstrip('/')}/"):
                both = base64.b64encode(f"{login.user}:{login.password}".encode()).decode()
                return {"Authorization": f"Basic {both}"}
        return {}

    def _no_entry(self, address: str) -> InputsError:
        tried = "the credentials given" if self._authorization(address) else "anybody without credentials"
        return InputsError(
            f"the mirror '{urlsplit(address).netloc}' does not let {tried} in",
            facts=(("address", address),),
            hint="check user and password of this mirror under [repositories.IMAGE] in site.toml",
        )

    def _body(self, latest: list[http.client.HTTPResponse], address: str, start: int) -> Iterator[bytes]:
        """The body from ``start`` on; asked for again from where it was cut while the mirror has the same file.

        ``latest`` always holds the answer that is being read.
        """
        (answer,) = latest
        length = answer.getheader("Content-Length", "")
        end = start + int(length) if length.isdecimal() else None
        mark = _validator(answer)
        at, said = start, ""
        for _ in range(self._attempts):
            try:
                while chunk := answer.read(_CHUNK_BYTES):
                    at += len(chunk)
                    yield chunk
            except (http.client.HTTPException, OSError) as cut:
                said = str(cut) or type(cut).__name__
            if not said and (end is None or at == end):
                return
            self._drop(urlsplit(address))
            if end is None or at > end or not mark:
                break
            latest[0] = answer = self._ask(address, {"Range": f"bytes={at}-", "If-Range": mark})
            if answer.status != _PARTIAL or not answer.getheader("Content-Range", "").startswith(f"bytes {at}-"):
                self._drop(urlsplit(address))
                break
            said = ""
        facts = [("address", address), ("expected", str(end)), ("received", str(at)), ("said", said)]
        raise InputsError(
            "a mirror cut a file short",
            facts=tuple(fact for fact in facts if fact[1] not in {"", "None"}),
            hint="try again",
        )

    def _connection(self, parts: SplitResult) -> http.client.HTTPConnection:
        kept: dict[str, http.client.HTTPConnection] = self._local.__dict__
        key = f"{parts.scheme}://{parts.netloc}"
        if key not in kept:
            if parts.scheme == "https":
                kept[key] = http.client.HTTPSConnection(parts.netloc, timeout=self._timeout_s, context=_tls())
            else:
                kept[key] = http.client.HTTPConnection(parts.netloc, timeout=self._timeout_s)
        return kept[key]

    def _drop(self, parts: SplitResult) -> None:
        kept: dict[str, http.client.HTTPConnection] = self._local.__dict__
        connection = kept.pop(f"{parts.scheme}://{parts.netloc}", None)
        if connection is not None:
            connection.close()


def _marks(answer: http.client.HTTPResponse) -> dict[str, str]:
    """By what a mirror tells this version of a file from another (RFC 9110, 8.8): its entity tag, and its time.

    A time counts seconds: of a file that was changed just now it could be that of two versions, and is left out.
    """
    found = {mark: answer.getheader(mark, "") for mark in ("ETag", "Last-Modified")}
    try:
        modified, date = (
            parsedate_to_datetime(text) for text in (found["Last-Modified"], answer.getheader("Date", ""))
        )
        sure = date - modified >= _CLOCK_TICK
    except (ValueError, TypeError):
        sure = False
    return found if sure else found | {"Last-Modified": ""}


def _validator(answer: http.client.HTTPResponse) -> str:
    """What tells a file from a later one of the same name: a strong entity tag, else the time it was changed."""
    tag = answer.getheader("ETag", "")
    return tag if tag.startswith('"') else answer.getheader("Last-Modified", "")


def _moved(address: str, location: str) -> str:
    """Where a redirect leads; never from TLS back to plain text, never to another kind of address."""
    found = urljoin(address, location)
    allowed = {"https"} if address.startswith("https:") else {"http", "https"}
    if not location or urlsplit(found).scheme not in allowed or not urlsplit(found).netloc:
        raise InputsError("a mirror redirects to a place we do not follow", facts=(("from", address), ("to", location)))
    return found
