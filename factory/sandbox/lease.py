# SPDX-License-Identifier: Apache-2.0
"""Leases: how everything that we make in a tenant says whose it is and until when, so that a crash leaves nothing.

The lease is the *name* of each thing (``factory-lease-ID-EXPIRES-HOST-PID-START``): a name is given in the very request
that makes a thing, every kind of thing has one, and lists can be searched for it. Kinds that can say more repeat it as
metadata (``factory_lease``), and only what says both is ever deleted.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from factory.model import utc

KEY = "factory_lease"
_NAME = re.compile(r"factory-lease-([0-9a-f]{8})-([0-9a-f]{8})-([0-9a-f]{8})-([0-9]{1,10})-([0-9a-f]{8})\Z", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """A running program: the machine and container (``host``), its number there, and when it started."""

    host: str
    pid: int
    start: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A right to have things in a tenant until ``expires``."""

    id: str
    expires: datetime
    owner: Owner

    @property
    def name(self) -> str:
        """What everything under this lease is called; short enough for a host name."""
        owner = self.owner
        return f"factory-lease-{self.id}-{int(self.expires.timestamp()):08x}-{owner.host}-{owner.pid}-{owner.start}"


def new_lease(*, now: datetime, hours: float) -> Lease:
    """A fresh lease of this very program."""
    return Lease(id=secrets.token_hex(4), expires=now + timedelta(hours=hours), owner=this_program())


def parse(name: str) -> Lease | None:
    """The lease that a name tells, or None when it is none of ours; pure."""
    found = _NAME.match(name)
    if found is None:
        return None
    lease, expires, host, pid, start = found.groups()
    return Lease(id=lease, expires=utc(int(expires, 16)), owner=Owner(host=host, pid=int(pid), start=start))


@dataclass(frozen=True, slots=True, kw_only=True)
class Leased:
    """A thing found in a tenant; ``tag`` is what its metadata says, or None for kinds that have none."""

    kind: str
    id: str
    name: str
    tag: str | None = None


def why_sweep(thing: Leased, *, now: datetime, host: str, alive: bool) -> str:
    """Why a thing may be deleted, or nothing; pure.

    Args:
        host: who we are; of programs elsewhere nobody knows whether they run.
        alive: whether the program that made it still runs, if it is one of this host.
    """
    lease = parse(thing.name)
    if lease is None or thing.tag not in {None, thing.name}:
        return ""
    if lease.expires <= now:
        return f"its lease ended at {lease.expires:%Y-%m-%d %H:%M} UTC"
    if lease.owner.host == host and not alive:
        return f"the factory that made it (process {lease.owner.pid}) is dead"
    return ""


# -- who runs ---------------------------------------------------------------------------------------------------------


def this_program() -> Owner:
    """Ourselves."""
    pid = os.getpid()
    return Owner(host=this_host(), pid=pid, start=_start_of(pid))


def this_host() -> str:
    """The machine and the container on it: process numbers are unique only there."""
    machine = Path("/etc/machine-id")
    text = machine.read_text() if machine.exists() else Path("/proc/sys/kernel/hostname").read_text()
    return _short(text, str(Path("/proc/self/ns/pid").readlink()))


def runs(owner: Owner) -> bool:
    """Whether this very program still runs on this host."""
    return _start_of(owner.pid) == owner.start


def _start_of(pid: int) -> str:
    """When a program started, to a hundredth of a second since that boot; nothing when there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return ""
    if fields[0] in {"Z", "X"}:
        return ""
    return _short(Path("/proc/sys/kernel/random/boot_id").read_text(), fields[19])


def _short(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]
