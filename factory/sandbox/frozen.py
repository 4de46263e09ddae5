# SPDX-License-Identifier: Apache-2.0
"""Freeze a booted guest and thaw clones of it in seconds.

The guest's memory lies in a file in memory (``boot(..., freezable=True)``). Freezing stops the guest, saves its
devices' state (QEMU's migration with ``x-ignore-shared``: under a megabyte) and ends it. A clone maps the same memory
privately, has its own overlay on the frozen disk, and goes on where the guest stopped; nothing of it reaches the
frozen guest or another clone.

Clones share machine-id, host keys and random seed, and connections that were open at the freeze are dead. They serve
to try checks on spoiled guests; the verdict on a release always comes from a cold boot.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from factory.errors import SandboxError
from factory.sandbox.guest import Guest, next_address
from factory.sandbox.machine import Machine
from factory.sandbox.qemu import overlay, started_guest
from factory.system.files import remove
from factory.system.namespaces import NetworkNamespace

_BANDWIDTH = 10**11


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """A frozen guest: valid while the :func:`freeze` block and the boot block around it last."""

    machine: Machine
    state: Path
    user: str
    private_key: Path
    host_keys: tuple[str, ...]


@contextlib.contextmanager
def freeze(guest: Guest) -> Iterator[Frozen]:
    """Stop a guest for good and yield what clones are made from; call it inside the guest's boot block.

    Raises:
        SandboxError: the guest was not booted with ``freezable=True``, or QEMU could not save it.
    """
    if guest.machine.memory is None:
        raise SandboxError("this guest cannot be frozen", hint="boot it with freezable=True")
    guest.ssh("sync")
    guest.disconnect()
    state = guest.login.folder / "frozen.state"
    try:
        guest.qmp.execute("stop")
        _prepare(guest)
        guest.qmp.execute("migrate", uri=f"exec:cat > {_shell_quoted(state)}")
        _await_migration(guest, timeout_s=60)
        guest.quit()
        guest.frozen = True
        guest.keep_console()
        yield Frozen(
            machine=guest.machine,
            state=state,
            user=guest.login.user,
            private_key=guest.login.private_key,
            host_keys=guest.host_keys,
        )
    finally:
        remove(state)


@contextlib.contextmanager
def thaw(
    frozen: Frozen,
    *,
    workdir: Path,
    namespace: NetworkNamespace,
    console_log: Path,
    say: Callable[[str], None],
    login: bool = True,
    masked_secrets: Sequence[str] = (),
) -> Iterator[Guest]:
    """A clone of the frozen guest, logged in to and with its clock set; gone after the block.

    Several clones may run at once, in one namespace or in several with the same addresses.

    Raises:
        SandboxError: the frozen guest is gone, its state damaged, or the clone let nobody log in.
    """
    if not frozen.state.is_file():
        raise SandboxError("there is nothing left to thaw", hint="clones live inside the block of freeze()")
    workdir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with contextlib.ExitStack() as stack:
        disk = overlay(frozen.machine.disk, workdir / "disk.qcow2")
        stack.callback(remove, disk)
        machine = replace(
            frozen.machine,
            disk=disk,
            serial=workdir / "serial.raw",
            address=next_address(),
            private=True,
            incoming=True,
        )
        clone = stack.enter_context(
            started_guest(
                machine,
                namespace=namespace,
                workdir=workdir,
                private_key=frozen.private_key,
                user=frozen.user,
                console_log=console_log,
                say=say,
                masked_secrets=masked_secrets,
            )
        )
        started = time.monotonic()
        _prepare(clone)
        clone.qmp.execute("migrate-incoming", uri=f"exec:cat {_shell_quoted(frozen.state)}")
        _await_migration(clone, timeout_s=60)
        clone.qmp.execute("cont")
        if login:
            clone.connect(known_host_keys=frozen.host_keys)
            clone.set_clock()
        clone.boot_s = time.monotonic() - started
        yield clone


def _prepare(guest: Guest) -> None:
    capability = {"capability": "x-ignore-shared", "state": True}
    guest.qmp.execute("migrate-set-capabilities", capabilities=[capability])
    guest.qmp.execute("migrate-set-parameters", **{"max-bandwidth": _BANDWIDTH})


def _await_migration(guest: Guest, *, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        guest.expect_running()
        found = guest.qmp.execute("query-migrate")
        status = found.get("status", "none")
        if status == "completed":
            return
        if status in {"failed", "cancelled"} or time.monotonic() > deadline:
            raise SandboxError(
                f"QEMU could not save or restore the guest's state ({status})",
                facts=(("said", str(found.get("error-desc", "nothing"))),),
            )
        time.sleep(0.02)


def _shell_quoted(path: Path) -> str:
    import shlex

    return shlex.quote(str(path))
