# SPDX-License-Identifier: Apache-2.0
"""Boot an image in QEMU from a throw-away overlay, inside a network namespace, and end it whatever happens.

QEMU has the namespace of the sandbox's servers as its whole world: its user-mode network turns the guest's connections
into connections made there. Its name server is the sandbox's: QEMU sees a ``resolv.conf`` of its own that names only
127.0.0.1. The artifact is a backing file, which QEMU opens for reading only.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

from factory.errors import CommandFailed, SandboxError
from factory.sandbox.connection import Login
from factory.sandbox.console import FINISHED, Console
from factory.sandbox.guest import Guest, next_address
from factory.sandbox.machine import SSH_PORT, Machine, command_line
from factory.sandbox.metadata import metadata_service
from factory.sandbox.qmp import Agent, Qmp
from factory.sandbox.seed import Datasource, Seed, seed_files, write_seed
from factory.system.files import remove, write_whole
from factory.system.namespaces import NetworkNamespace
from factory.system.run import run, running

_OWN_RESOLVER = 'mount --bind "$0" "$(readlink -f /etc/resolv.conf)" && exec "$@"'


def overlay(backing: Path, path: Path, *, disk_gib: int | None = None) -> Path:
    """Make a throw-away qcow2 at ``path`` on top of ``backing``, as large as it or ``disk_gib``.

    Raises:
        SandboxError: ``backing`` is not a qcow2 that QEMU can read, or is larger than ``disk_gib``.
    """
    backing = backing.resolve()
    remove(path)
    try:
        found = run(["qemu-img", "info", "--output=json", "-U", "-f", "qcow2", backing], timeout_s=60).stdout
        has_bytes = int(json.loads(found)["virtual-size"])
        if disk_gib and disk_gib << 30 < has_bytes:
            raise SandboxError(f"'{backing.name}' does not fit on a disk of {disk_gib} GiB: it has {has_bytes} bytes")
        size = [f"{disk_gib}G"] if disk_gib else []
        run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", backing, path, *size], timeout_s=60)
    except CommandFailed as failed:
        raise SandboxError(
            f"'{backing.name}' cannot be booted: it is not a qcow2 image that QEMU can read",
            hint="was the file copied completely?",
        ) from failed
    return path


@contextlib.contextmanager
def boot(
    artifact_path: Path,
    *,
    workdir: Path,
    namespace: NetworkNamespace,
    seed: Seed,
    accelerator: str,
    console_log: Path,
    say: Callable[[str], None],
    timeout_s: float,
    user: str = "linux",
    memory_mib: int = 1024,
    cpus: int = 0,
    cpu: str = "",
    disk_gib: int | None = None,
    disk: Path | None = None,
    keep_disk: bool = False,
    rtc_base: datetime | None = None,
    freezable: bool = False,
    ready: str | None = FINISHED,
    login: bool = True,
    masked_secrets: Sequence[str] = (),
) -> Iterator[Guest]:
    """Boot an image and log in; the guest and its files are gone after the block, ``console_log`` stays.

    Args:
        artifact_path: the image; never written.
        workdir: a folder of this guest alone (0700).
        seed: what cloud-init is told; its key is the one we log in with.
        timeout_s: from QEMU's start until ``ready``.
        user: whom to log in as.
        cpus: 0 means as many as the accelerator handles well (one under TCG, two under KVM).
        disk_gib: the size of the guest's disk, when larger than the image.
        disk: go on with this overlay (of an earlier boot with ``keep_disk``) instead of a fresh one.
        keep_disk: leave the overlay, ``workdir/disk.qcow2``.
        rtc_base: the time that the guest's hardware clock shows, when not the host's.
        freezable: keep the guest's memory where :func:`factory.sandbox.frozen.freeze` can use it.
        ready: wait for this on the serial console; None: do not wait, nor log in.
        login: whether to log in.
        masked_secrets: never kept in logs or shown in messages.

    Raises:
        GuestSilent, GuestStopped: it did not come up; both tell what the guest said last, and name the console log.
        SandboxError: it came up but let nobody log in, or QEMU could not be started.
    """
    workdir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with contextlib.ExitStack() as stack:
        used_disk = disk or overlay(artifact_path, workdir / "disk.qcow2", disk_gib=disk_gib)
        if not (keep_disk or disk):
            stack.callback(remove, used_disk)
        seed_disk = write_seed(seed, workdir / "seed.img")
        stack.callback(remove, seed_disk)
        machine = Machine(
            accelerator=accelerator,
            disk=used_disk,
            seed=seed_disk,
            serial=workdir / "serial.raw",
            address=next_address(),
            cpu=cpu,
            cpus=cpus,
            memory_mib=memory_mib,
            memory=stack.enter_context(memory_file(memory_mib)) if freezable else None,
            rtc=rtc_base,
            nova=seed.datasource is Datasource.OPENSTACK,
        )
        if machine.nova:
            stack.enter_context(metadata_service(namespace, seed_files(seed)))
        started = stack.enter_context(
            started_guest(
                machine,
                namespace=namespace,
                workdir=workdir,
                private_key=seed.key.private,
                user=user,
                console_log=console_log,
                say=say,
                masked_secrets=masked_secrets,
            )
        )
        if ready is not None:
            say(f"booting '{artifact_path.name}' under {accelerator}")
            started.boot_s = started.wait_for(ready, timeout_s=timeout_s, what="the end of its boot")
            say(f"the guest was up after {started.boot_s:.0f} s")
            started.keep_console()
            if login:
                started.connect()
        yield started


@contextlib.contextmanager
def memory_file(size_mib: int) -> Iterator[Path]:
    """A file in memory that has a path while this block lasts and leaves nothing behind when we are killed."""
    descriptor = os.memfd_create("factory-guest")
    try:
        os.truncate(descriptor, size_mib << 20)
        yield Path(f"/proc/{os.getpid()}/fd/{descriptor}")
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def started_guest(
    machine: Machine,
    *,
    namespace: NetworkNamespace,
    workdir: Path,
    private_key: Path,
    user: str,
    console_log: Path,
    say: Callable[[str], None],
    masked_secrets: Sequence[str],
) -> Iterator[Guest]:
    """QEMU running ``machine``, its control channel greeted; both gone after the block and the console log kept."""
    remove(machine.serial)
    machine.serial.touch(mode=0o600)  # before QEMU, whose umask would let others read it
    resolver = workdir / "resolv.conf"
    write_whole(resolver, "nameserver 127.0.0.1\n")
    console = Console(raw=machine.serial, kept=console_log)
    with contextlib.ExitStack() as stack:
        stack.callback(remove, machine.serial)
        process, control, agent = stack.enter_context(_qemu(machine, namespace, resolver, workdir / "qemu.log"))
        guest = Guest(
            machine=machine,
            login=Login(
                namespace=namespace,
                address=machine.address,
                port=SSH_PORT,
                user=user,
                private_key=private_key,
                folder=workdir,
            ),
            console=console,
            qmp=Qmp(control),
            agent=Agent(agent),
            qemu=process,
            qemu_log=workdir / "qemu.log",
            say=say,
            masked_secrets=masked_secrets,
        )
        stack.callback(guest.keep_console)
        stack.callback(guest.disconnect)
        try:
            guest.qmp.greet()
        except SandboxError:
            guest.expect_running()
            raise
        yield guest


@contextlib.contextmanager
def _qemu(
    machine: Machine, namespace: NetworkNamespace, resolver: Path, log: Path
) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket, socket.socket]]:
    remove(log)
    control, control_theirs = socket.socketpair()
    agent, agent_theirs = socket.socketpair()
    with contextlib.ExitStack() as stack:
        stack.enter_context(control)
        stack.enter_context(agent)
        # Our copies of QEMU's halves are closed once it runs, so that its end shows as the end of the connection.
        with control_theirs, agent_theirs:
            descriptors = (control_theirs.fileno(), agent_theirs.fileno())
            argv = command_line(machine, control_fd=descriptors[0], agent_fd=descriptors[1])
            own = [
                "unshare",
                "--mount",
                "--propagation",
                "private",
                "/bin/sh",
                "-c",
                _OWN_RESOLVER,
                str(resolver),
                *argv,
            ]
            process = stack.enter_context(running(namespace.inside(own), log=log, pass_fds=descriptors, grace_s=3.0))
        yield process, control, agent
