# SPDX-License-Identifier: Apache-2.0
"""What a cloud stands on: its folder, its box, its guests' network, libvirt; and what is left when it has ended."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from factory.errors import CloudError
from factory.system import daemon
from factory.system.files import remove, write_whole
from factory.system.lock import exclusive
from factory.system.run import run
from testsuite.cloud.box import Box, box
from testsuite.cloud.network import GuestsNetwork, guests_network
from testsuite.cloud.settings import LIBVIRTD_CONF, QEMU_CONF

_MARK = "compute-cloud"
_KEPT = {_MARK, "lock", "holder.log", "run"}
_FOLDERS = ("log", "tmp", "locks", "instances", "nova", "neutron", "broker", "etc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """Where services and guests run."""

    folder: Path
    box: Box
    guests: GuestsNetwork


@contextlib.contextmanager
def ground(folder: Path) -> Iterator[Ground]:
    """An emptied folder, a box and a network for the length of the block.

    Raises:
        CloudError: the folder is something else's, or this host cannot do it.
        LineHeld: a cloud is up in this folder.
    """
    claim(folder)
    with contextlib.ExitStack() as stack:
        stack.enter_context(exclusive(folder / "lock", what=f"the cloud in '{folder}'"))
        _empty(folder)
        write_whole(folder / "etc" / "qemu.conf", QEMU_CONF, mode=0o600)
        write_whole(folder / "etc" / "libvirtd.conf", LIBVIRTD_CONF, mode=0o600)
        guests = stack.enter_context(guests_network(folder))
        running = stack.enter_context(box(folder, log=folder / "log" / "box.log"))
        yield Ground(folder=folder, box=running, guests=guests)


def start_libvirt(on: Ground) -> None:
    """Start libvirtd and wait until it answers."""
    log = on.folder / "log" / "libvirtd.log"
    pid = on.box.start(["libvirtd", "--config", on.folder / "etc" / "libvirtd.conf"], log=log)
    on.box.await_start(
        "libvirt", pid, log, lambda: on.box.succeeds(["virsh", "--connect", "qemu:///system", "version"])
    )


def claim(folder: Path) -> None:
    """Make the folder, and mark it as a cloud's: only such a folder is ever emptied."""
    mark = folder / _MARK
    if folder.exists() and not mark.exists() and any(folder.iterdir()):
        raise CloudError(f"'{folder}' is not empty, and no cloud of the tests was there", hint="name another folder")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    mark.touch()


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name not in _KEPT:
            remove(path)
    for name in _FOLDERS:
        (folder / name).mkdir(mode=0o700)


class Leaving(Protocol):
    """What :func:`left_of` looks at."""

    @property
    def folder(self) -> Path: ...
    @property
    def box(self) -> Box: ...
    @property
    def guests(self) -> GuestsNetwork: ...


def left_of(cloud: Leaving, *, wait_s: float = 0) -> list[str]:
    """What is still there of a cloud that has ended (after ``wait_s``): processes, devices, routes, mounts."""
    deadline = time.monotonic() + wait_s
    while (left := _left(cloud)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


def _left(cloud: Leaving) -> list[str]:
    holders = (cloud.box.pid, cloud.guests.namespace.pid)
    left = [f"process {pid}" for pid in holders if daemon.start_ticks(pid) is not None]
    left += [f"process {pid} holds {cloud.folder}" for pid in _users(cloud.folder)]
    devices = (cloud.guests.device, cloud.guests.link)
    left += [f"device {name}" for name in devices if Path("/sys/class/net", name).exists()]
    left += [f"route {line}" for line in _routes(cloud.guests.subnet)]
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return left + [f"mount {line}" for line in mounts if str(cloud.folder) in line]


def _users(folder: Path) -> list[int]:
    """Processes that have a file below ``folder`` open, run from it, or name it on their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            opened = [str(one.readlink()) for one in (entry / "fd").iterdir()]
            said = (entry / "cmdline").read_bytes().decode(errors="replace")
            if any(path.startswith(f"{folder}/") for path in opened) or f"{folder}/" in said:
                found.append(int(entry.name))
    return found


def _routes(subnet: str) -> list[str]:
    return run(["ip", "-4", "route", "show", "root", subnet], timeout_s=20).stdout.splitlines()
