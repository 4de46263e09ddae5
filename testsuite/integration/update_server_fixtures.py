# SPDX-License-Identifier: Apache-2.0
"""Sandbox update servers that a person could have started, and a client that shares no code with them."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from factory.region.certificates import issue
from factory.system.clock import now

FACTORY = Path(sys.executable).parent / "factory"
FQDN = "update-a.test.invalid"
START_S = 60.0


@dataclass(frozen=True)
class Answer:
    """What a server said."""

    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Asker:
    """http.client, written from the protocol's description."""

    address: str
    port: int
    ca: Path
    name: str = FQDN
    auth: dict[str, str] = field(default_factory=dict)

    def connect(self) -> http.client.HTTPSConnection:
        """TLS to the address, verified for the name."""
        context = ssl.create_default_context(cafile=self.ca)
        connection = http.client.HTTPSConnection(self.name, self.port, timeout=30, context=context)
        plain = socket.create_connection((self.address, self.port), 30)
        connection.sock = context.wrap_socket(plain, server_hostname=self.name)
        return connection

    def __call__(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        known: bool = True,
    ) -> Answer:
        connection = self.connect()
        sent = {**(self.auth if known else {}), **(headers or {})}
        data = None
        if body is not None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        try:
            connection.request(method, path, body=data, headers=sent)
            reply = connection.getresponse()
            found = reply.read()
            return Answer(reply.status, reply.reason, {name.title(): text for name, text in reply.getheaders()}, found)
        finally:
            connection.close()

    def announce(self, token: str = "") -> Any:
        """Register, and keep the credentials for what is asked next."""
        answer = self(
            "POST",
            "/connect/subscriptions/systems",
            {"hostname": "guest", "distro_target": "sle-15-x86_64", "hwinfo": {"cpus": 1}, "instance_data": "x"},
            headers={"Authorization": f"Token token={token}"},
        )
        assert answer.status == 201, answer.body
        login, password = answer.json["login"], answer.json["password"]
        self.auth = {"Authorization": "Basic " + base64.b64encode(f"{login}:{password}".encode()).decode()}
        return answer.json


@dataclass
class Standalone:
    """A folder with a server's files, and the process that runs it."""

    folder: Path
    address: str
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def toml(self) -> Path:
        return self.folder / "server.toml"

    @property
    def log(self) -> str:
        return (self.folder / "server.log").read_text(errors="replace")

    def asker(self) -> Asker:
        return Asker(self.address, self.port, self.folder / "ca.pem")

    def start(self, inside: Sequence[str] = ()) -> None:
        """Run it (in a namespace), and wait until it listens."""
        with (self.folder / "server.log").open("ab") as log:
            argv = [*inside, FACTORY, "region", "update-server", "--config", self.toml]
            self.process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=self.folder
            )
        before = self.log.count("Booting worker")
        deadline = time.monotonic() + START_S
        while self.log.count("Booting worker") <= before:
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL for the server and all its processes."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def factory(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command about this server."""
        argv = [FACTORY, "region", *words]
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, cwd=self.folder)


def free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def authority(folder: Path) -> Any:
    """A CA; its certificate is what instances pin."""
    made = issue("CA of a test", now=now(), days=2, is_authority=True)
    made.write(folder, "ca")
    return made


def described(
    folder: Path, ca: Any, *, address: str, port: int, products: str, more: str = "", server: str = "", name: str = FQDN
) -> Standalone:
    """A server as its owner would describe it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ca.pem").write_bytes(ca.pem)
    issue(name, now=now(), days=2, names=[name], addresses=[address], authority=ca).write(folder, "server")
    (folder / "server.toml").write_text(
        f'[server]\nfqdn = "{name}"\nlisten = ["{address}:{port}"]\ncertificate = "server.pem"\nkey = "server.key"\n'
        f'ca = "ca.pem"\ndatabase = "registrations.sqlite"\n{server}\n{products}\n{more}\n'
    )
    return Standalone(folder=folder, address=address, port=port)


@contextlib.contextmanager
def running_server(server: Standalone, inside: Sequence[str] = ()) -> Iterator[Standalone]:
    """The server, for the length of the block."""
    server.start(inside)
    try:
        yield server
    finally:
        server.kill()
