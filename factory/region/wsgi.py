# SPDX-License-Identifier: Apache-2.0
"""The region server as it is deployed: service configuration, access log, gunicorn or mod_wsgi around the application.

``regionInfo.cfg`` is the file of SUSE's ``cloud-regionsrv``, with one option more: ``trustedProxies``. Everything that
keeps the server from serving is found before it listens, and told at once.
"""

from __future__ import annotations

import logging
import os
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from ipaddress import ip_network
from logging.handlers import WatchedFileHandler
from pathlib import Path

from cryptography import x509
from flask import Flask, Response, request
from gunicorn.app.base import BaseApplication  # type: ignore[import-untyped]

from factory.errors import Fault, InputFault, RegionError
from factory.region import gunicorn_settings, ini
from factory.region.certificates import certificates_in
from factory.region.data import Network, RegionEntry, read_file, read_region_data
from factory.region.server import RegionTable, app_for, region_table

SERVICE_CONFIG = Path("/etc/regionService/regionInfo.cfg")
_LOG, _DATA, _PROXIES = "logfile", "regionconfig", "trustedproxies"
_SPELLED = {_LOG: "logFile", _DATA: "regionConfig", _PROXIES: "trustedProxies"}
_SHOWN_CHARACTERS = 400
_OPEN_TO_OTHERS = 0o077


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What a ``regionInfo.cfg`` says."""

    region_data: Path
    log: Path
    trusted_proxies: tuple[Network, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """The server's certificate (chain) and its private key."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A region server that was found to be in order; ``notes`` is worth knowing but stops nothing."""

    service: Service
    table: RegionTable
    notes: tuple[Fault, ...]


def prepare(
    file: Path, *, now: datetime, log: Path | None = None, region_data: Path | None = None, tls: Tls | None = None
) -> Ready:
    """Read and check everything that a region server needs.

    Args:
        file: the service configuration.
        log: instead of ``logFile``.
        region_data: instead of ``regionConfig``.

    Raises:
        InputFault: with every problem of all files.
    """
    faults: list[Fault] = []
    notes: list[Fault] = []
    service = _service(file, log=log, region_data=region_data, faults=faults)
    entries: tuple[RegionEntry, ...] = ()
    if service.log.name and (unwritable := _unwritable(service.log)):
        faults.append(Fault(place=str(service.log), problem=unwritable, cure="the server has to write its log there"))
    if service.region_data.name:
        try:
            read = read_region_data(read_file(service.region_data), place=str(service.region_data))
        except InputFault as unreadable:
            faults += unreadable.faults
        else:
            faults += read.faults
            notes += (*read.quirks, *read.notes)
            entries = read.entries
    if tls is not None:
        _check_tls(tls, now, faults=faults, notes=notes)
    if faults:
        raise InputFault("the region server cannot start", faults=tuple(faults))
    return Ready(service=service, table=region_table(entries), notes=tuple(notes))


def application(ready: Ready, log: AccessLog) -> Flask:
    """The WSGI application of a server that is in order."""
    return app_for(ready.table, trusted_proxies=ready.service.trusted_proxies, observe=log.answered)


def for_mod_wsgi(file: Path | str = SERVICE_CONFIG) -> Flask:
    """The WSGI application for Apache, which ends TLS itself.

    Raises:
        RuntimeError: with every problem in its text, for Apache's error log.
    """
    from factory.system.clock import now

    try:
        ready = prepare(Path(file), now=now())
    except InputFault as faulty:
        raise RuntimeError("\n".join(faulty.lines())) from None
    log = AccessLog(ready.service.log)
    log.started(ready)
    return application(ready, log)


def serve(
    read: Callable[[], Ready], *, bind: Sequence[str], tls: Tls | None, workers: int, say: Callable[[str], None]
) -> None:
    """Serve until a signal ends it. SIGHUP reads everything anew, and keeps the old when the new has faults.

    Args:
        read: gives what to serve; called at start and at each SIGHUP.
        bind: addresses as gunicorn writes them, such as ``[::]:443``.

    Raises:
        InputFault: the files have faults.
        RegionError: gunicorn gave up, such as on an address that is taken.
    """
    ready = read()
    log = AccessLog(ready.service.log)
    log.started(ready)
    say(f"{len(ready.table.regions)} regions, {ready.table.prefix_count} networks; access log '{ready.service.log}'")
    for note in ready.notes:
        say(str(note))
    options = {"bind": list(bind), "workers": workers, "accesslog": None, "preload_app": True, "proc_name": "region"}
    if tls is not None:
        options |= {"certfile": str(tls.certificate), "keyfile": str(tls.key)}
    parent = os.getpid()
    try:
        _Gunicorn(read, ready, log, options).run()
    except SystemExit as ended:
        if ended.code and os.getpid() == parent:
            raise RegionError(
                f"the region server could not go on (gunicorn's status {ended.code})",
                facts=(("bind", ", ".join(bind)),),
                hint="gunicorn's own lines above say why; is another server on that address?",
            ) from None
        raise


class _Gunicorn(BaseApplication):  # type: ignore[misc]
    def __init__(self, read: Callable[[], Ready], ready: Ready, log: AccessLog, options: dict[str, object]) -> None:
        self._read, self._ready, self._access_log, self._options = read, ready, log, options
        super().__init__()

    def load_config(self) -> None:
        settings = {**vars(gunicorn_settings), **self._options}
        for name, value in settings.items():
            if name in self.cfg.settings:
                self.cfg.set(name, value)

    def load(self) -> Flask:
        return application(self._ready, self._access_log)

    def reload(self) -> None:
        super().reload()
        try:
            ready = self._read()
        except InputFault as faulty:
            for line in faulty.lines():
                self._access_log.message(f"not taken over: {line}")
            return
        if ready.service.log != self._ready.service.log:
            self._access_log = AccessLog(ready.service.log)
        self._ready = ready
        self.callable = None
        self._access_log.started(ready)


class AccessLog:
    """One line for each answer, in a file that may be moved away or replaced at any time.

    Text from outside is escaped, so that a request is one line whatever it holds. A log that cannot be written to is
    told on standard error and stops no answer.
    """

    def __init__(self, path: Path) -> None:
        self._handler = _Watched(path, encoding="utf-8")
        formatter = logging.Formatter("%(asctime)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%SZ")
        formatter.converter = time.gmtime
        self._handler.setFormatter(formatter)

    def answered(self, peer: str, response: Response, region: str) -> None:
        """The line of one answer: peer, request, status, size, region (or ``-``), user agent."""
        target = request.environ.get("RAW_URI") or request.environ.get("REQUEST_URI") or request.full_path
        asked = _escaped(f"{request.method} {target}")
        size = response.calculate_content_length() or 0
        agent = _escaped(request.headers.get("User-Agent", "-"))
        self.message(f'{_escaped(peer)} "{asked}" {response.status_code} {size} {region or "-"} "{agent}"')

    def message(self, text: str) -> None:
        """A line of the server itself."""
        self._handler.handle(logging.LogRecord("region-server", logging.INFO, "", 0, text, None, None))

    def started(self, ready: Ready) -> None:
        """What is served from now on."""
        self.message(f"serving {len(ready.table.regions)} regions, {ready.table.prefix_count} networks")
        for note in ready.notes:
            self.message(f"note: {note}")


class _Watched(WatchedFileHandler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)


def _escaped(text: str) -> str:
    shown = text[:_SHOWN_CHARACTERS].encode("unicode_escape").decode().replace('"', '\\"')
    return shown + ("..." if len(text) > _SHOWN_CHARACTERS else "")


def _service(file: Path, *, log: Path | None, region_data: Path | None, faults: list[Fault]) -> Service:
    """What the service configuration says; a path without a name where it says nothing usable."""
    options = _server_options(file, faults)

    def path(option: str, given: Path | None) -> Path:
        if given is not None:
            return given
        found = options.get(option)
        if found is None or not found.value:
            where = f"{file}:{found.line if found else 1} server.{_SPELLED[option]}"
            if options or found:
                faults.append(Fault(place=where, problem="is missing", cure="name the file with its whole path"))
            return Path()
        if not Path(found.value).is_absolute():
            where = f"{file}:{found.line} server.{_SPELLED[option]}"
            faults.append(Fault(place=where, problem="is not an absolute path", cure="a service starts in no folder"))
            return Path()
        return Path(found.value)

    return Service(
        region_data=path(_DATA, region_data),
        log=path(_LOG, log),
        trusted_proxies=tuple(_proxies(file, options.get(_PROXIES), faults)),
    )


def _server_options(file: Path, faults: list[Fault]) -> dict[str, ini.Option]:
    try:
        read = ini.read(read_file(file), place=str(file))
    except InputFault as unreadable:
        faults += unreadable.faults
        return {}
    faults += read.faults
    for section in read.sections.values():
        if section.name != "server":
            cure = "everything belongs to [server]"
            faults.append(Fault(place=f"{file}:{section.line}", problem=f"[{section.name}] is unknown", cure=cure))
    server = read.sections.get("server")
    if server is None:
        cure = "add it, with logFile and regionConfig"
        faults.append(Fault(place=f"{file}:1", problem="there is no [server] section", cure=cure))
        return {}
    for name, option in server.options.items():
        if name not in _SPELLED:
            where = f"{file}:{option.line} server.{name}"
            faults.append(Fault(place=where, problem="is no option", cure=f"there are {', '.join(_SPELLED.values())}"))
    return {**server.options} or {_LOG: ini.Option(value="", line=server.line)}


def _proxies(file: Path, option: ini.Option | None, faults: list[Fault]) -> list[Network]:
    found = []
    for line, item in option.items() if option is not None and option.value else ():
        try:
            found.append(ip_network(item.strip()))
        except ValueError as wrong:
            where = f"{file}:{line} server.{_SPELLED[_PROXIES]}"
            faults.append(Fault(place=where, problem=str(wrong), cure="write addresses or networks of your proxies"))
    return found


def _unwritable(path: Path) -> str:
    """Why a log cannot be written, found without making it: who checks may be another user than who serves."""
    if path.is_dir():
        return "cannot be written: it is a folder"
    if path.exists():
        return "" if os.access(path, os.W_OK) else "cannot be written"
    if not path.parent.is_dir():
        return "cannot be written: its folder does not exist"
    return "" if os.access(path.parent, os.W_OK | os.X_OK) else "cannot be written: its folder may not be written"


def _check_tls(tls: Tls, now: datetime, *, faults: list[Fault], notes: list[Fault]) -> None:
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(tls.certificate, tls.key)
        (certificate, *_) = certificates_in(tls.certificate.read_text())
        if tls.key.stat().st_mode & _OPEN_TO_OTHERS:
            notes.append(Fault(place=str(tls.key), problem="is a private key that others may read", cure="chmod 600"))
    except (OSError, ValueError) as wrong:
        cure = f"clients would get no TLS; '{tls.key}' must be its key"
        faults.append(Fault(place=str(tls.certificate), problem=f"cannot be used: {wrong}", cure=cure))
        return
    if not certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc:
        ends = f"{certificate.not_valid_after_utc:%Y-%m-%d}"
        faults.append(Fault(place=str(tls.certificate), problem=f"is not valid now (ends {ends})", cure="renew it"))
    try:
        certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        faults.append(
            Fault(place=str(tls.certificate), problem="names nobody in subjectAltName", cure="no client accepts it")
        )
