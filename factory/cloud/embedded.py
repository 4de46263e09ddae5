# SPDX-License-Identifier: Apache-2.0
"""Bring the embedded Keystone and Glance up and down.

Safe to be killed at any line: the databases appear whole by rename, everything else is written again by every
:func:`up`, and the processes are found by the mark that they hold open, not by what we remembered.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from factory.cloud import settings as texts
from factory.cloud.register import register
from factory.cloud.settings import ADMIN, HOST, PUBLISHER, READER, REGION, Layout, Settings, new_settings
from factory.errors import CloudError, CommandFailed
from factory.system import daemon
from factory.system.files import appearing, free_bytes, remove, write_whole
from factory.system.lock import waiting
from factory.system.run import last_lines, run

IDENTITY_PORT, IMAGE_PORT = 15000, 19292
"""First choices: below the ports that the kernel hands out to clients."""
_PORTS_TRIED = 200
_NEEDED_BYTES = 64 << 20
_START_S = 120.0
_ANSWER_S = 30.0
_MANAGE_S = 600.0
# Keystone takes one request at a time: two first logins of a user on one day both write the user's record, and with
# SQLite one of them would be answered 500 ("database is locked"). Glance needs a thread for the length of each upload.
_THREADS = {"keystone": 1, "glance": 16}
_SERVICES = {"keystone": "keystone.wsgi.api:application", "glance": "glance.wsgi.api:application"}
_PATHS = {"keystone": "/v3", "glance": "/healthcheck"}
# Both commands in one interpreter: importing Keystone takes longer than what they do.
_KEYSTONE_DATABASE = """
import sys
from keystone.cmd import cli
for command in ("db_sync", "bootstrap"):
    cli.CONF.clear()
    cli.main(argv=["keystone-manage", "--config-file", sys.argv[1], command])
"""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudAccess:
    """How to reach the embedded cloud: a clouds.yaml and the names of the clouds in it."""

    clouds_yaml: Path
    auth_url: str
    image_url: str
    publisher: str = PUBLISHER
    reader: str = READER
    admin: str = ADMIN


def up(folder: Path, *, say: Say) -> CloudAccess:
    """Start Keystone and Glance below ``folder``, unless they run, and wait until both answer.

    Raises:
        CloudError: not installed, port taken, disk full, or a service that did not answer (with its last log lines).
    """
    layout = Layout(folder=folder.absolute())
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
        with waiting(layout.lock, what="the embedded cloud", timeout_s=_START_S + _MANAGE_S):
            return _up(layout, say)
    except OSError as failed:
        raise CloudError(
            "the embedded cloud could not write its files",
            facts=(("folder", str(layout.folder)), ("free", f"{free_bytes(folder) >> 20} MiB")),
            hint="make room, or choose another --state",
        ) from failed


def down(folder: Path) -> bool:
    """End exactly the processes that :func:`up` started for this folder; True when there were any. Data stays."""
    layout = Layout(folder=folder.absolute())
    if not layout.folder.is_dir():
        return False
    with waiting(layout.lock, what="the embedded cloud", timeout_s=_START_S + _MANAGE_S):
        found = [service for service in reversed(_SERVICES) if daemon.holders(layout.mark(service))]
        for service in found:
            daemon.end(layout.mark(service))
    return bool(found)


def status(folder: Path) -> dict[str, object]:
    """What runs and answers, by name; ``running`` is true when everything does. Changes nothing."""
    layout = Layout(folder=folder.absolute())
    found: dict[str, object] = {"running": False, "folder": str(layout.folder)}
    try:
        settings = _read_settings(layout)
    except FileNotFoundError:
        return {**found, "note": "never brought up"}
    for name in _SERVICES:
        pid = daemon.main_pid(layout.mark(name))
        answers = pid is not None and _answers(settings, name, timeout_s=5)
        found |= {name: "answers" if answers else "silent" if pid else "stopped"}
        found |= {f"{name}_url": _url(settings, name), f"{name}_pid": pid}
    return found | {"running": all(found[name] == "answers" for name in _SERVICES)}


def env(folder: Path, *, cloud: str = PUBLISHER) -> str:
    """``export`` lines, with the password, for ``eval "$(factory cloud env)"``.

    Raises:
        CloudError: the cloud was never brought up.
    """
    layout = Layout(folder=folder.absolute())
    try:
        return texts.environment(layout, _read_settings(layout), cloud)
    except FileNotFoundError:
        raise CloudError("there is no embedded cloud yet", hint="run 'factory cloud up'") from None


# -- one up -----------------------------------------------------------------------------------------------------------


def _up(layout: Layout, say: Say) -> CloudAccess:
    _require_programs()
    with contextlib.ExitStack() as ports:
        if not layout.settings.exists():
            _make_data(layout, say, ports)
        settings = _read_settings(layout)
        _write_configuration(layout, layout.data, settings)
        starting = [name for name in _SERVICES if not _healthy(layout, settings, name)]
        if starting:
            say(f"embedded cloud: starting {' and '.join(starting)}")
        ports.close()
        for name in starting:
            daemon.end(layout.mark(name))
            _start(layout, settings, name)
    _await_answer(layout, settings, "keystone")
    if not layout.registered.exists():
        say("embedded cloud: making users, roles and endpoints")
        _register(layout, settings)
    _await_answer(layout, settings, "glance")
    if starting:
        say(f"embedded cloud: ready, Keystone at {settings.identity_url}, Glance at {settings.image_url}")
    return CloudAccess(clouds_yaml=layout.clouds_yaml, auth_url=settings.identity_url, image_url=settings.image_url)


def _require_programs() -> None:
    for package in ("keystone", "glance", "gunicorn"):
        try:
            metadata.distribution(package)
        except metadata.PackageNotFoundError:
            raise CloudError(
                f"'{package}' is not installed beside {sys.executable}",
                hint="install image-factory[cloud], or name a cloud of yours as [[target]] in site.toml",
            ) from None


def _make_data(layout: Layout, say: Say, ports: contextlib.ExitStack) -> None:
    """Databases, token keys and settings, under a temporary name until the last of them is there.

    The ports that are chosen here stay taken until ``ports`` is closed: another cloud may be made at the same time.
    """
    free = free_bytes(layout.folder)
    if free < _NEEDED_BYTES:
        raise CloudError(
            f"the disk is full: {free >> 20} MiB free, an empty embedded cloud needs {_NEEDED_BYTES >> 20} MiB",
            facts=(("folder", str(layout.folder)),),
            hint="make room, or choose another --state",
        )
    say("embedded cloud: making the databases of Keystone and Glance (once)")
    for name in _SERVICES:  # of an earlier cloud whose data was removed
        daemon.end(layout.mark(name))
    remove(layout.images)
    keystone, glance = (ports.enter_context(_taken(first)) for first in (IDENTITY_PORT, IMAGE_PORT))
    settings = new_settings(keystone.getsockname()[1], glance.getsockname()[1])
    with appearing(layout.data) as data:
        data.mkdir(mode=0o700)
        write_whole(data / "settings.json", settings.text(), mode=0o600)
        for repository in ("fernet", "credential"):
            _make_token_keys(data / repository)
        _write_configuration(layout, data, settings)
        with ThreadPoolExecutor(max_workers=2) as pool:  # both are bound by the processor
            jobs = [pool.submit(_glance_database, layout), pool.submit(_keystone_database, layout, settings)]
        for job in jobs:
            job.result()


def _make_token_keys(repository: Path) -> None:
    """What ``keystone-manage fernet_setup`` makes: a staged key 0 and a primary key 1."""
    from cryptography.fernet import Fernet

    repository.mkdir(mode=0o700)
    for name in ("0", "1"):
        write_whole(repository / name, Fernet.generate_key(), mode=0o600)


def _keystone_database(layout: Layout, settings: Settings) -> None:
    bootstrap = {
        "OS_BOOTSTRAP_PASSWORD": settings.passwords.admin,
        "OS_BOOTSTRAP_REGION_ID": REGION,
        **{f"OS_BOOTSTRAP_{kind}_URL": settings.identity_url for kind in ("ADMIN", "INTERNAL", "PUBLIC")},
    }
    _manage(layout, "keystone", ["-c", _KEYSTONE_DATABASE, layout.keystone_conf], bootstrap)


def _glance_database(layout: Layout) -> None:
    _manage(layout, "glance", ["-m", "glance.cmd.manage", "--config-file", layout.glance_conf, "db_sync"], {})


def _manage(layout: Layout, service: str, arguments: list[str | Path], extra: dict[str, str]) -> None:
    try:
        run(
            [sys.executable, *arguments],
            log=layout.log(f"{service}-database"),
            env={**_python_environment(layout), **extra},
            timeout_s=_MANAGE_S,
        )
    except CommandFailed as failed:
        raise CloudError(
            f"the database of {service} could not be made",
            facts=_last_words(layout.log(service)),
            hint=f"free space: {free_bytes(layout.folder) >> 20} MiB; the next 'factory cloud up' starts it afresh",
        ) from failed


def _write_configuration(layout: Layout, data: Path, settings: Settings) -> None:
    for folder in (layout.temporary, layout.log("x").parent, layout.etc / "glance" / "policy.d"):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for store in ("store", "staging", "tasks"):
        (layout.images / store).mkdir(parents=True, exist_ok=True, mode=0o700)
    wanted = dict(texts.configuration(layout, data, settings, paste_ini=_paste_ini()))
    wanted[layout.clouds_yaml] = texts.clouds_yaml(settings)
    for path, text in wanted.items():
        if not path.exists() or path.read_text() != text:
            write_whole(path, text, mode=0o600)


def _paste_ini() -> Path:
    for file in metadata.distribution("glance").files or ():
        if file.name == "glance-api-paste.ini":
            return Path(str(file.locate())).resolve()
    raise CloudError("Glance was installed without its 'glance-api-paste.ini'", hint="install it again")


def _read_settings(layout: Layout) -> Settings:
    try:
        return Settings.parse(layout.settings.read_text())
    except (ValueError, KeyError, TypeError) as damaged:
        raise CloudError(
            f"'{layout.settings}' is damaged", hint=f"remove '{layout.folder}' to start an empty cloud"
        ) from damaged


# -- services ---------------------------------------------------------------------------------------------------------


def _python_environment(layout: Layout) -> dict[str, str]:
    return {
        "OS_KEYSTONE_CONFIG_DIR": str(layout.keystone_conf.parent),
        "OS_GLANCE_CONFIG_DIR": str(layout.glance_conf.parent),
        "PYTHONWARNINGS": "ignore",
        "TMPDIR": str(layout.temporary),
        "HOME": str(layout.folder),
    }


def _start(layout: Layout, settings: Settings, name: str) -> None:
    with _listening(_port(settings, name), name) as listener:
        argv: list[str | Path] = [sys.executable, "-m", "gunicorn", _SERVICES[name]]
        argv += ["--config", layout.gunicorn_conf, "--bind", f"fd://{listener.fileno()}"]
        argv += ["--worker-class", "gthread", "--workers", "1", "--threads", str(_THREADS[name])]  # SQLite: one process
        argv += ["--timeout", "600", "--graceful-timeout", "5", "--keep-alive", "30"]
        argv += ["--worker-tmp-dir", layout.temporary, "--no-control-socket"]
        try:
            daemon.start(
                argv,
                mark=layout.mark(name),
                log=layout.log(f"{name}-gunicorn"),
                env=_python_environment(layout),
                pass_fds=[listener.fileno()],
            )
        except CommandFailed as killed:  # out of memory, say: the shell before it may be the one that is hit
            raise _not_started(layout, name) from killed


@contextlib.contextmanager
def _listening(port: int, name: str) -> Iterator[socket.socket]:
    """The socket, bound by us and handed on, so that a port which is taken is an error here and not in a log."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError as taken:
            raise CloudError(
                f"port {port}, where the embedded {name} has to answer, is taken by another program",
                hint=f"end that program ('ss -ltnp sport = :{port}' names it), then run 'factory cloud up' again",
            ) from taken
        listener.listen(128)
        yield listener


def _taken(first: int) -> socket.socket:
    """A free port, bound and not listened to; nobody else is given it while the socket is open.

    Without SO_REUSEADDR, with which Linux gives a port that is not listened to twice.
    """
    for port in range(first, first + _PORTS_TRIED):
        probe = socket.socket()
        try:
            probe.bind((HOST, port))
        except OSError:
            probe.close()
        else:
            return probe
    raise CloudError(f"all ports from {first} to {first + _PORTS_TRIED - 1} are taken on {HOST}")


def _healthy(layout: Layout, settings: Settings, name: str) -> bool:
    """Its first process lives (an orphaned worker would answer for another second) and it answers."""
    alive = daemon.main_pid(layout.mark(name)) is not None
    return alive and _answers(settings, name, timeout_s=_ANSWER_S)


def _await_answer(layout: Layout, settings: Settings, name: str) -> None:
    deadline = time.monotonic() + _START_S
    while not _answers(settings, name, timeout_s=_ANSWER_S):
        if daemon.main_pid(layout.mark(name)) is None or time.monotonic() > deadline:
            raise _not_started(layout, name)
        time.sleep(0.1)


def _not_started(layout: Layout, name: str) -> CloudError:
    return CloudError(
        f"the embedded {name} did not start",
        facts=_last_words(layout.log(f"{name}-gunicorn"), layout.log(name)),
        hint=f"free space: {free_bytes(layout.folder) >> 20} MiB; 'factory cloud down' ends what is left",
    )


def _last_words(*logs: Path) -> tuple[tuple[str, str], ...]:
    """Each log that is there, and its last lines."""
    facts = []
    for log in logs:
        if log.exists():
            facts.append(("log", str(log)))
            facts += [("said", line) for line in last_lines(log).splitlines()[-8:]]
    return tuple(facts)


def _answers(settings: Settings, name: str, *, timeout_s: float) -> bool:
    connection = http.client.HTTPConnection(HOST, _port(settings, name), timeout=timeout_s)
    try:
        connection.request("GET", _PATHS[name])
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _port(settings: Settings, name: str) -> int:
    return settings.identity_port if name == "keystone" else settings.image_port


def _url(settings: Settings, name: str) -> str:
    return settings.identity_url if name == "keystone" else settings.image_url


def _register(layout: Layout, settings: Settings) -> None:
    from keystoneauth1.exceptions import ClientException
    from openstack.exceptions import SDKException

    from factory.system.openstack import connect

    try:
        register(settings, connect(ADMIN, clouds_yaml=layout.clouds_yaml, direct=True))
    except (SDKException, ClientException) as failed:
        raise CloudError(
            "the embedded Keystone did not take its users",
            facts=(("log", str(layout.log("keystone"))),),
            hint=f"'factory cloud down', remove '{layout.data}', then 'factory cloud up'",
        ) from failed
    write_whole(layout.registered, "done\n")
