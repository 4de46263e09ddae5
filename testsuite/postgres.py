# SPDX-License-Identifier: Apache-2.0
"""A real PostgreSQL for the length of a test session: its own folder, a Unix socket, no network, not root.

It gets SIGINT (PostgreSQL's fast shutdown) when the session ends, however that is.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_START_S = 30.0
_QUICK = ("-c", "fsync=off", "-c", "listen_addresses=", "-c", "max_connections=40", "-c", "log_min_messages=fatal")


def programs() -> Path | None:
    """The folder of the newest PostgreSQL here (Debian keeps them apart by version)."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


def _user() -> str:
    """PostgreSQL refuses to be root: its package's user then, else who we are."""
    return "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name


@contextlib.contextmanager
def server() -> Iterator[Path]:
    """A running server; yields the folder of its socket."""
    folder = programs()
    assert folder is not None
    place = Path(tempfile.mkdtemp(prefix="factory-pg-", dir="/tmp"))
    account = pwd.getpwnam(_user())
    log = (place / "log").open("wb")
    try:
        if os.geteuid() == 0:
            os.chown(place, account.pw_uid, account.pw_gid)
        environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "HOME": str(place)}
        initdb = [
            folder / "initdb",
            "-D",
            place / "db",
            "--auth=trust",
            "--no-sync",
            "--encoding=UTF8",
            "-U",
            "factory",
        ]
        subprocess.run([*_as(account), *initdb], env=environment, cwd=place, check=True, stdout=log, stderr=log)
        postgres = [folder / "postgres", "-D", place / "db", "-k", place, *_QUICK]
        running = subprocess.Popen([*_as(account), *postgres], env=environment, cwd=place, stdout=log, stderr=log)
        try:
            _await(folder, place, running)
            yield place
        finally:
            running.send_signal(signal.SIGINT)
            running.wait(_START_S)
    finally:
        log.close()
        shutil.rmtree(place)


def _as(account: pwd.struct_passwd) -> list[str]:
    ids = [f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"] if os.geteuid() == 0 else []
    return ["setpriv", *ids, "--pdeathsig", "INT", "--"]


def _await(folder: Path, place: Path, running: subprocess.Popen) -> None:
    deadline = time.monotonic() + _START_S
    while subprocess.run([folder / "pg_isready", "-q", "-h", place], check=False).returncode != 0:
        assert running.poll() is None, (place / "log").read_text()
        assert time.monotonic() < deadline, (place / "log").read_text()
        time.sleep(0.05)


def database(socket: Path, name: str) -> str:
    """A new, empty database; returns its SQLAlchemy address."""
    import psycopg

    with psycopg.connect(host=str(socket), user="factory", dbname="postgres", autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return f"postgresql://factory@/{name}?host={socket}"
