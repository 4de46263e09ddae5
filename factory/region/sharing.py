# SPDX-License-Identifier: Apache-2.0
"""Update servers tell their peers who is registered, so that an instance can move to another server.

As in RMT, a change leaves a file ``FOLDER/PEER/LOGIN`` for each peer, holding the time of the change: the replay log. A
thread per peer sends the *current* state of each login and removes its file when nothing changed meanwhile; so the log
may be cut off or repeated anywhere. What a peer told is not told on.

Two locks make that hold against a kill at any line and against other processes on the same files. Whoever changes a
registration holds the shared lock from before the file is written until the change is committed; reading the state to
send, and comparing and removing the file, happen under the exclusive one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hmac
import http.client
import json
import logging
import os
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from flask import Blueprint, Response, jsonify, request

from factory import __version__
from factory.errors import InputFault, RegionError
from factory.region.bodies import body_bytes
from factory.region.products import Product
from factory.region.registrations import MODES, PAYG, Registrations, SharedSystem
from factory.region.sharing_settings import SharingSettings
from factory.system.files import write_whole

LOGIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_PATH = "/api/regsharing"
_TIMEOUT_S = 25.0
_REPLY_BYTES = 65536
_TEXT_CHARACTERS = 65536
_UNAUTHORIZED = 401
_log = logging.getLogger("factory.region.sharing")


class ReplayLog:
    """Which peers have not heard of which logins."""

    def __init__(self, folder: Path, peers: Sequence[str]) -> None:
        self.folder = folder
        self.peers = tuple(peers)
        self.changed = {peer: threading.Event() for peer in peers}
        for peer in peers:
            self._of(peer).mkdir(parents=True, exist_ok=True, mode=0o700)

    @contextlib.contextmanager
    def changing(self, login: str) -> Iterator[None]:
        """A block in which the registrations of ``login`` change; every peer is told afterwards."""
        if not self.peers:
            yield
            return
        with self._locked(fcntl.LOCK_SH):
            for peer in self.peers:
                write_whole(self._of(peer) / quote(login, safe=""), f"{time.time():.6f}\n", mode=0o600)
            yield
        for event in self.changed.values():
            event.set()

    def pending(self, peer: str) -> tuple[str, ...]:
        """The logins this peer has still to hear of."""
        return tuple(sorted(unquote(path.name) for path in self._of(peer).iterdir() if not path.name.startswith(".")))

    def read(self, peer: str, login: str, state: Callable[[str], Sequence[SharedSystem]]) -> Unsent | None:
        """What to send of a login; None when another process did it."""
        with self._locked(fcntl.LOCK_EX):
            mark = _mark(self._of(peer) / quote(login, safe=""))
            return Unsent(login=login, mark=mark, systems=tuple(state(login))) if mark else None

    def done(self, peer: str, sent: Unsent) -> None:
        """Strike a login out, unless it changed since it was read."""
        path = self._of(peer) / quote(sent.login, safe="")
        with self._locked(fcntl.LOCK_EX):
            if _mark(path) == sent.mark:
                path.unlink()

    def sweep(self) -> None:
        """Remove what killed processes left half written."""
        with self._locked(fcntl.LOCK_EX):
            for peer in self.peers:
                for path in self._of(peer).glob(".*"):
                    path.unlink()

    @contextlib.contextmanager
    def sender(self, peer: str) -> Iterator[bool]:
        """Whether we are the only one who sends to this peer now."""
        with (self.folder / f".sending-{quote(peer, safe='')}").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    @contextlib.contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        with (self.folder / ".changing").open("a") as file:
            fcntl.flock(file, kind)
            yield

    def _of(self, peer: str) -> Path:
        return self.folder / quote(peer, safe="")


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsent:
    """The state of a login as one peer has to hear it; no systems: it is gone."""

    login: str
    mark: tuple[object, ...]
    systems: tuple[SharedSystem, ...]


class PeerSilent(RegionError):
    """A peer cannot be reached, or its certificate is not accepted."""


class PeerRefused(RegionError):
    """A peer answered, but does not take this registration."""


class Sender:
    """Sends the replay log to the peers."""

    def __init__(
        self, settings: SharingSettings, log: ReplayLog, registrations: Registrations, products: Sequence[Product]
    ) -> None:
        self._settings = settings
        self._secret = settings.secret()
        self._log = log
        self._registrations = registrations
        self._ids = {product.triple: product.id for product in products}
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()
        try:
            self._tls = ssl.create_default_context(cafile=settings.ca_path or None)
        except (OSError, ssl.SSLError) as wrong:
            raise InputFault(f"'{settings.ca_path}' holds no CA certificates", hint=str(wrong)) from wrong

    def start(self) -> None:
        """Send from threads of this process, after every change and once an interval, until it ends or :meth:`stop`."""
        self._log.sweep()
        for peer in self._log.peers:
            thread = threading.Thread(target=self._forever, args=(peer,), name=f"peer {peer}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """Send no more."""
        self._stopping.set()
        for event in self._log.changed.values():
            event.set()
        for thread in self._threads:
            thread.join()

    def drain(self, peer: str) -> int:
        """Send this peer everything it has not heard of; returns how many logins it took.

        A refused login stays for the next time and does not keep others waiting.

        Raises:
            PeerSilent: the peer is away; everything it has not taken stays.
        """
        sent = 0
        with self._log.sender(peer) as alone:
            for login in self._log.pending(peer) if alone else ():
                unsent = self._log.read(peer, login, self._registrations.shared)
                if unsent is None:
                    continue
                try:
                    for method, body in self._messages(unsent):
                        self._send(peer, method, body)
                except PeerRefused as refused:
                    _log.warning("%s", refused.message)
                    continue
                self._log.done(peer, unsent)
                sent += 1
        return sent

    def _forever(self, peer: str) -> None:
        while not self._stopping.is_set():
            self._log.changed[peer].clear()
            try:
                if count := self.drain(peer):
                    _log.info("told %s of %d registrations", peer, count)
            except PeerSilent as silent:
                _log.warning("%s", silent.message)
                self._stopping.wait(self._settings.interval_s)
                continue
            except Exception:  # noqa: BLE001 - the thread must go on, whatever it was
                _log.exception("cannot tell %s of registrations", peer)
            self._log.changed[peer].wait(self._settings.interval_s)

    def _messages(self, unsent: Unsent) -> list[tuple[str, Mapping[str, object]]]:
        if not unsent.systems:
            return [("DELETE", {"login": unsent.login})]
        return [("POST", self._message(system)) for system in unsent.systems]

    def _message(self, system: SharedSystem) -> Mapping[str, object]:
        return {
            "login": system.login,
            "password": system.password,
            "hostname": system.hostname,
            "proxy_byos_mode": system.mode,
            "system_token": system.token,
            "registered_at": system.registered_at,
            "created_at": system.registered_at,
            "last_seen_at": system.last_seen_at,
            "instance_data": system.instance_data,
            "pubcloud_reg_code": system.regcode or None,
            "uid": system.uid,
            "activations": [
                {"product_id": self._ids[product], "created_at": created_at}
                for product, created_at in system.activations
                if product in self._ids
            ],
        }

    def _send(self, peer: str, method: str, body: Mapping[str, object]) -> None:
        headers = {
            "Authorization": f"Bearer {self._secret}",
            "Content-Type": "application/json",
            "User-Agent": f"ImageFactory::Regsharing/{__version__}",
        }
        connection = http.client.HTTPSConnection(peer, timeout=_TIMEOUT_S, context=self._tls)
        try:
            connection.request(method, _PATH, body=json.dumps(body), headers=headers)
            reply = connection.getresponse()
            said = reply.read(_REPLY_BYTES).decode(errors="replace")
        except (OSError, http.client.HTTPException) as wrong:
            raise PeerSilent(f"peer {peer} cannot be told of registrations: {wrong}") from wrong
        finally:
            connection.close()
        if reply.status == _UNAUTHORIZED:
            raise PeerSilent(f"peer {peer} does not accept our secret")
        if not 200 <= reply.status < 300:  # noqa: PLR2004
            line = " ".join(said.split())[:200]
            raise PeerRefused(f"peer {peer} answers {reply.status} to the registration of {body['login']}: {line}")


def sharing_api(secret: str, registrations: Registrations, products: Sequence[Product]) -> Blueprint:
    """The ``/api/regsharing`` routes; without a secret they refuse everybody."""
    api = Blueprint("regsharing", __name__, url_prefix=_PATH)
    by_id = {product.id: product.triple for product in products}

    def allowed() -> bool:
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        given = token.strip().encode(errors="replace")
        return bool(secret) and kind.lower() == "bearer" and hmac.compare_digest(given, secret.encode())

    @api.before_request
    def guard() -> Response | None:
        if request.path.startswith(f"{_PATH}/center"):
            return _error("Forbidden", 403)  # RMT lets old SMT servers in by address; we let none in
        return None if allowed() else _error("HTTP Token: Access denied.", _UNAUTHORIZED)

    @api.post("")
    def take() -> Response:
        try:
            registrations.take(_read(body_bytes(), by_id))
        except ValueError as wrong:
            return _error(str(wrong), 422)
        return Response(status=204)

    @api.delete("")
    def forget() -> Response:
        try:
            registrations.take_away(_login(_object(body_bytes())))
        except ValueError as wrong:
            return _error(str(wrong), 422)
        return Response(status=204)

    @api.post("/center/regsvc")
    def center() -> Response:
        return _error("Forbidden", 403)

    return api


def _read(body: bytes, products: Mapping[int, str]) -> SharedSystem:
    told = _object(body)
    password, mode = _text(told, "password"), _text(told, "proxy_byos_mode") or PAYG
    if not password or mode not in MODES:
        raise ValueError("Required parameters are missing or wrong: password, proxy_byos_mode")
    activations = told.get("activations")
    if not isinstance(activations, list):
        raise ValueError("Required parameters are missing or empty: activations")  # noqa: TRY004 - it is the caller's text
    registered = _time(told, "registered_at") or _time(told, "created_at")
    if registered is None:
        raise ValueError("Required parameters are missing or empty: registered_at")
    return SharedSystem(
        login=_login(told),
        password=password,
        token=_text(told, "system_token")[:255] or None,
        hostname=_text(told, "hostname"),
        instance_data=_text(told, "instance_data"),
        mode=mode,
        regcode=_text(told, "pubcloud_reg_code"),
        registered_at=registered,
        last_seen_at=_time(told, "last_seen_at"),
        activations=tuple((_product(one, products), _time(one, "created_at") or registered) for one in activations),
        uid=_text(told, "uid")[:64],
    )


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError("The request's body is not a JSON object") from None
    if not isinstance(found, dict):
        raise ValueError("The request's body is not a JSON object")  # noqa: TRY004 - it is the caller's text
    return found


def _login(told: Mapping[str, Any]) -> str:
    login = told.get("login")
    if not isinstance(login, str) or not LOGIN.fullmatch(login):
        raise ValueError("Required parameters are missing or wrong: login")
    return login


def _product(one: object, products: Mapping[int, str]) -> str:
    number = one.get("product_id") if isinstance(one, dict) else None
    found = products.get(int(number)) if isinstance(number, int | str) and str(number).isdecimal() else None
    if found is None:
        raise ValueError(f"Product {str(number)[:20]} not found")
    return found


def _text(told: Mapping[str, Any], name: str) -> str:
    value = told.get(name)
    return value[:_TEXT_CHARACTERS].encode(errors="replace").decode() if isinstance(value, str) else ""


def _time(told: object, name: str) -> str | None:
    value = told.get(name) if isinstance(told, dict) else None
    if not isinstance(value, str):
        return None
    try:
        found = datetime.fromisoformat(value)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError):
        return None


def _mark(path: Path) -> tuple[object, ...]:
    """What tells one writing of a file from another."""
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            return found.st_ino, found.st_mtime_ns, file.read()
    except FileNotFoundError:
        return ()


def _error(text: str, status: int) -> Response:
    response = jsonify(type="error", error=text, localized_error=text)
    response.status_code = status
    if status == _UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = 'Bearer realm="regsharing"'
    return response
