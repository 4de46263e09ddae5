# SPDX-License-Identifier: Apache-2.0
"""ssh into a guest: one configuration file, one patient login, one connection that everybody shares.

OpenSSH from 9.8 on punishes a source that connects and leaves (``PerSourcePenalties``), so nothing here ever tries
whether a port answers: the console tells when the guest is ready, then one master connection logs in, and all commands
go through it. Sockets live in the guest's network namespace; ``connect.py`` makes them there and hands them to ssh.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from factory.errors import SandboxError
from factory.system.files import write_whole
from factory.system.namespaces import Network
from factory.system.run import Completed, last_lines, run, running

HOST = "guest"
"""The name of the guest in its ssh configuration."""

_ATTEMPTS = 3
_PAUSE_S = 4.0
_CONNECTION_LOST = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """How to reach a guest: its address in a network, which may be a namespace, and whom to log in as."""

    namespace: Network
    address: str
    port: int
    user: str
    private_key: Path
    folder: Path

    @property
    def config(self) -> Path:
        """The ssh configuration file; ``ssh -F FILE guest`` works from anywhere on this host."""
        return self.folder / "ssh_config"

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"


def configuration(login: Login, *, control_folder: str, strict: bool) -> str:
    """The text of the ssh configuration; pure. ``strict`` when the host keys are known beforehand."""
    connect = [sys.executable, "-I", "-S", str(Path(__file__).with_name("connect.py")), login.address, str(login.port)]
    options = {
        "HostName": login.address,
        "Port": str(login.port),
        "User": login.user,
        "IdentityFile": f'"{login.private_key}"',
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "BatchMode": "yes",
        "HostKeyAlias": HOST,
        "UserKnownHostsFile": f'"{login.known_hosts}"',
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes" if strict else "accept-new",
        "UpdateHostKeys": "no",
        "ForwardAgent": "no",
        "ConnectTimeout": "60",
        "ServerAliveInterval": "20",
        "ServerAliveCountMax": "6",
        "LogLevel": "ERROR",
        "ControlPath": f"{control_folder}/master",
        "ProxyCommand": shlex.join(login.namespace.inside(connect)).replace("%", "%%"),
        "ProxyUseFdpass": "yes",
    }
    return f"Host {HOST}\n" + "".join(f"  {name} {value}\n" for name, value in options.items())


@contextlib.contextmanager
def connection(login: Login, *, host_keys: tuple[str, ...], timeout_s: float) -> Iterator[None]:
    """Log in once and keep the connection for the length of the block.

    Raises:
        SandboxError: the guest refused the login, or did not answer.
    """
    descriptor = os.open(login.folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # A socket's path may have 107 bytes; through the open folder it is always short.
        control_folder = f"/proc/{os.getpid()}/fd/{descriptor}"
        write_whole(login.known_hosts, "".join(f"{HOST} {key}\n" for key in host_keys), mode=0o600)
        write_whole(login.config, configuration(login, control_folder=control_folder, strict=bool(host_keys)))
        with contextlib.ExitStack() as stack:
            _log_in(login, stack, timeout_s=timeout_s)
            yield
    finally:
        os.close(descriptor)
        (login.folder / "master").unlink(missing_ok=True)


def _log_in(login: Login, stack: contextlib.ExitStack, *, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    log = login.folder / "ssh.log"
    control = login.folder / "master"
    log.unlink(missing_ok=True)
    for attempt in range(_ATTEMPTS):
        control.unlink(missing_ok=True)
        attempt_stack = contextlib.ExitStack()
        argv = ["ssh", "-F", str(login.config), "-M", "-N", HOST]
        master = attempt_stack.enter_context(running(argv, log=log, grace_s=1.0))
        while master.poll() is None and time.monotonic() < deadline:
            if control.exists():
                stack.push(attempt_stack)
                return
            time.sleep(0.05)
        attempt_stack.close()
        if time.monotonic() >= deadline or "Permission denied" in last_lines(log):
            break
        if attempt + 1 < _ATTEMPTS:
            time.sleep(_PAUSE_S)
    raise SandboxError(
        f"the guest let nobody log in as '{login.user}' with the key of its seed",
        facts=tuple(("ssh said", line) for line in last_lines(log).strip().splitlines()[-4:]),
        hint="look at the console log: was cloud-init given the seed, and does sshd run?",
    )


def remote(login: Login, command: str, *, timeout_s: float, stdin: bytes | None) -> Completed:
    """Run a shell command in the guest over the shared connection; never raises for its status."""
    argv = ["ssh", "-F", str(login.config), HOST, command]
    return run(argv, timeout_s=timeout_s, stdin=stdin, check=False)


def lost(done: Completed) -> bool:
    """Whether ssh itself failed (a command that really ended with 255 looks the same)."""
    return done.returncode == _CONNECTION_LOST
