# SPDX-License-Identifier: Apache-2.0
"""What a stranger on the network gets from the guest: ssh-audit, logins really tried, ports really knocked at.

A guest of our own QEMU is in QEMU's own network (slirp): a port can be reached from outside only while it is forwarded.
The scan therefore forwards ports for a moment each, in groups: the connection that the guest answers really comes over
its network card. That takes some milliseconds a port in emulation, so not all 65 535 TCP ports are knocked at, but the
privileged ones and those where something usually listens; what listens on any other port, TCP or UDP, the suite reads
inside the guest (``ss``).

OpenSSH 10 punishes a source that fails too often (PerSourcePenalties), so attempts are few and spaced.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from factory.errors import CommandFailed, VerifyError
from factory.sandbox.conversation import Conversation
from factory.sandbox.machine import SSH_PORT
from factory.system.files import write_whole
from factory.system.run import Completed, run

_OFTEN_USED_PORTS = (
    1025, 1080, 1099, 1194, 1433, 1434, 1521, 1701, 1723, 1883, 1900, 2049, 2082, 2083, 2181, 2222, 2375,
    2376, 2377, 2379, 2380, 2483, 3000, 3128, 3260, 3306, 3389, 3690, 4000, 4222, 4369, 4443, 4444, 4505,
    4506, 4646, 4789, 4848, 5000, 5001, 5044, 5060, 5061, 5222, 5269, 5353, 5355, 5357, 5432, 5555, 5601,
    5666, 5672, 5900, 5901, 5902, 5984, 5985, 5986, 6000, 6001, 6379, 6443, 6514, 6666, 6667, 7000, 7001,
    7070, 7077, 7474, 7687, 8000, 8008, 8009, 8020, 8042, 8069, 8080, 8081, 8086, 8088, 8089, 8096, 8123,
    8125, 8139, 8140, 8200, 8291, 8300, 8301, 8333, 8443, 8472, 8500, 8545, 8600, 8686, 8787, 8834, 8883,
    8888, 8983, 9000, 9001, 9042, 9043, 9060, 9080, 9090, 9091, 9092, 9093, 9100, 9160, 9200, 9300, 9389,
    9418, 9443, 9990, 9999, 10000, 10050, 10051, 10250, 10255, 10256, 11211, 11300, 15672, 16509, 17500,
    19531, 19532, 20000, 22222, 25565, 25672, 26257, 27017, 27018, 28015, 30000, 32400, 32768, 33060, 37777,
    41414, 44818, 47808, 49152, 50000, 50051, 50070, 51413, 51820, 54321, 55443, 60000, 61616, 61619, 62078,
    64738, 65000, 65535,
)  # fmt: skip
WELL_KNOWN_PORTS = (*range(1, 1025), *_OFTEN_USED_PORTS)
_GROUP = 256
_SPACING_S = 4.0
_AGENT_S = 20.0
_ANY_PASSWORD = "no-such-Passw0rd"  # noqa: S105 - of no account
_FAULT_LEVELS = ("fail", "warn")


def audit(guest: Conversation, *, log: Path) -> dict[str, Any]:
    """What ssh-audit finds: ``banner``, and ``faults`` as sentences."""
    program = Path(sys.executable).with_name("ssh-audit")
    argv: list[str | Path] = [
        program,
        "--json",
        "--skip-rate-test",
        "--port",
        str(guest.ssh_port),
        "--timeout",
        "20",
        guest.address,
    ]
    done = run(guest.login.namespace.inside(argv), timeout_s=180, check=False)
    write_whole(log, done.stdout + done.stderr)
    try:
        found = json.loads(done.stdout)
    except ValueError:
        return {"banner": "", "faults": [f"ssh-audit could not be run: {done.stderr.strip()[-300:]}"]}
    faults = []
    for kind in ("kex", "key", "enc", "mac"):
        for entry in found.get(kind, []):
            notes = entry.get("notes", {})
            told = [text for level in _FAULT_LEVELS for text in notes.get(level, [])]
            if told:
                faults.append(f"{kind} {entry['algorithm']}: {'; '.join(told)}")
    faults += [f"{entry['name']}: {entry.get('description', '')}" for entry in found.get("cves", [])]
    return {"banner": (found.get("banner") or {}).get("raw", ""), "faults": faults}


def try_key(guest: Conversation, *, user: str) -> dict[str, Any]:
    """Try to log in as ``user`` with the injected key."""
    return _try(["ssh", "-F", guest.ssh_config, *_fresh(), "-l", user, guest.ssh_host, "echo root-was-here"])


def try_password(guest: Conversation, *, user: str, password: str) -> dict[str, Any]:
    """Try to log in as ``user`` with a password, really typed when sshd asks."""
    with tempfile.TemporaryDirectory(prefix="factory-askpass-") as name:
        folder = Path(name)
        write_whole(folder / "password", password + "\n", mode=0o600)
        write_whole(folder / "ask", f"#!/bin/sh\nexec cat '{folder}/password'\n", mode=0o700)
        options = ["-o", "PubkeyAuthentication=no", "-o", "PreferredAuthentications=password,keyboard-interactive"]
        options += ["-o", "NumberOfPasswordPrompts=1", "-o", "BatchMode=no"]
        env = {"SSH_ASKPASS": str(folder / "ask"), "SSH_ASKPASS_REQUIRE": "force", "DISPLAY": ":none"}
        return _try(["ssh", *options, "-F", guest.ssh_config, *_fresh(), "-l", user, guest.ssh_host, "true"], env=env)


def _fresh() -> list[str]:
    return ["-v", "-o", "ControlPath=none", "-o", "ControlMaster=no", "-o", "ConnectTimeout=30"]


def _try(argv: Sequence[str | Path], *, env: dict[str, str] | None = None) -> dict[str, Any]:
    """One attempt: its status, what it printed, and which ways of logging in sshd offered.

    Raises:
        VerifyError: sshd gave no answer at all, so that nothing was tried.
    """
    done = run(argv, env=env, timeout_s=90, check=False)
    offered = _offered(done)
    if done.returncode != 0 and not offered:
        raise VerifyError(
            "a login could not be tried: the guest's sshd did not answer",
            facts=tuple(("said", line) for line in done.stderr.strip().splitlines()[-3:]),
        )
    return {"exit": done.returncode, "printed": done.stdout[:200], "offered": offered}


def _offered(done: Completed) -> list[str]:
    marker = "Authentications that can continue: "
    lines = [line.split(marker, 1)[1].strip() for line in done.stderr.splitlines() if marker in line]
    return lines[0].split(",") if lines else []


# -- ports ------------------------------------------------------------------------------------------------------------


def scan(guest: Conversation, *, ports: Sequence[int] = WELL_KNOWN_PORTS) -> list[int]:
    """Knock at the guest's TCP ports, and return those that are open.

    Raises:
        VerifyError: a port could not be forwarded, so that nothing was knocked at.
    """
    found: list[int] = []
    ports = [port for port in ports if port != SSH_PORT]
    for start in range(0, len(ports), _GROUP):
        with guest.forwarded(ports[start : start + _GROUP]) as forwarded:
            closed_to_us = [port for port, worked in forwarded.items() if not worked]
            if closed_to_us:
                raise VerifyError(f"the guest's ports {closed_to_us[:5]} could not be forwarded for the port scan")
            found += _knock(guest, list(forwarded))
    return sorted([*found, *_knock(guest, [SSH_PORT])])


def _knock(guest: Conversation, ports: Sequence[int]) -> list[int]:
    program = Path(__file__).with_name("knock.py")
    argv: list[str | Path] = [sys.executable, "-I", "-S", program, guest.address, ",".join(map(str, ports))]
    return [int(word) for word in run(guest.login.namespace.inside(argv), timeout_s=120).stdout.split()]


def probe(
    guest: Conversation, *, login_user: str, password: str, log: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """Everything that is tried from outside, spaced so that the guest does not punish us for it."""
    say(f"knocking at {len(WELL_KNOWN_PORTS)} ports")
    open_ports = scan(guest)
    say("trying to log in with passwords, and as root")
    password_login = try_password(guest, user=login_user, password=password or _ANY_PASSWORD)
    time.sleep(_SPACING_S)
    root_login = try_key(guest, user="root")
    time.sleep(_SPACING_S)
    root_password_login = try_password(guest, user="root", password=password or _ANY_PASSWORD)
    time.sleep(_SPACING_S)
    say("running ssh-audit")
    try:
        audited = audit(guest, log=log)
    except CommandFailed as failed:
        audited = {"banner": "", "faults": [failed.message]}
    return {
        "agent": guest.ask_agent(timeout_s=_AGENT_S),
        "audit": audited,
        "password_login": password_login,
        "root_login": root_login,
        "root_password_login": root_password_login,
        "open_ports": open_ports,
        "scanned_ports": len(WELL_KNOWN_PORTS),
    }
