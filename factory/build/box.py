# SPDX-License-Identifier: Apache-2.0
"""A box to build in: mount, PID, network, IPC and UTS namespaces in which only the inputs server answers.

The box is PID 1 of its own PID namespace and is killed when we die, so the kernel ends every process and drops every
mount in it, whatever a builder left behind. Loop devices belong to no namespace; the box's ``losetup`` makes them die
with it, and :mod:`factory.build.leftovers` finds the rest. It protects against accidents: root inside is still root.

Its root is a tree of our own (:mod:`factory.build.tools`), read-only; the host's is dropped before a builder starts, so
no program, setting or path of the host can get into an image.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

from factory.build.leftovers import detach_loops, own_mark
from factory.errors import BuildError
from factory.system.files import remove
from factory.system.namespaces import NetworkNamespace
from factory.system.run import PATH, Completed, last_lines, run, running

PLACE = Path("/run/factory")
"""Where a box keeps its own things, inside; always the same, so that no path of a host gets into an image."""
DESCRIPTION = PLACE / "description"
TARGET = PLACE / "target"
ROOT = PLACE / "root"
OUT = PLACE / "out"
_INSIDE = Path(__file__).parent / "inside"
_START_S = 30
_GIB = 1 << 30
_SPARE_BYTES = 2 * _GIB
_UMASK = 0o022


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A running box, by its PID 1 as seen from here.

    ``out`` is what the box knows as :data:`OUT`: what is made there outlives the box when it is moved away in time.
    """

    pid: int
    out: Path

    def inside(self, argv: Sequence[str | Path]) -> list[str]:
        """``argv``, to be run in the box."""
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--uts", "--ipc", "--net", "--pid"]
        return [*enter, "--", *map(str, argv)]

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        log: Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout_s: float = 600,
        stdin: bytes | None = None,
    ) -> Completed:
        """Run a program in the box to its end; see :func:`factory.system.run.run`."""
        return run(self.inside(argv), log=log, env=_environment(env), timeout_s=timeout_s, stdin=stdin, umask=_UMASK)

    def running(
        self, argv: Sequence[str | Path], *, log: Path, env: Mapping[str, str] | None = None
    ) -> contextlib.AbstractContextManager[Popen[bytes]]:
        """A program that runs in the box for the length of the block."""
        return running(self.inside(argv), log=log, env=_environment(env), umask=_UMASK)

    def seen(self, path: Path) -> Path:
        """A path of the box as we can open it; follow no links there, they lead into our own root."""
        return Path(f"/proc/{self.pid}/root") / path.relative_to("/")


def _environment(env: Mapping[str, str] | None) -> dict[str, str]:
    return {"PATH": f"{PLACE / 'bin'}:{PATH}", **(env or {})}


def memory_for_target(available_bytes: int, disk_gib: int) -> int | None:
    """How much memory a box's files may take, or None when they belong on a disk.

    Needed are the root tree, the raw disk and its rewritten file system, of which a small image fills about a third,
    and as much again; some memory stays free for the programs.
    """
    needed = max(6, 2 * disk_gib) * _GIB
    return needed if available_bytes >= needed + _SPARE_BYTES else None


def available_memory_bytes() -> int:
    """``MemAvailable`` of this host."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


@contextlib.contextmanager
def box(
    *, root: Path, description: Path, folder: Path, network: NetworkNamespace, memory_bytes: int | None, log: Path
) -> Iterator[Box]:
    """A box for the length of the block.

    Args:
        root: its root, seen read-only: a tools tree.
        description: seen in the box, read-only, as :data:`DESCRIPTION`.
        folder: the place of what leaves it, and of its files (:data:`TARGET` inside) when ``memory_bytes`` is None.
        network: the network it lives in.
        memory_bytes: keep the files in memory, up to this size.

    Raises:
        BuildError: this host cannot make one.
    """
    disk = folder / own_mark()
    disk.mkdir(parents=True)
    ours, theirs = os.pipe()
    size = "-" if memory_bytes is None else str(memory_bytes)
    init = (_INSIDE / "init.sh", theirs, root, description, size, disk, _INSIDE / "standins", own_mark())
    unshare = ["unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--", "/bin/bash"]
    try:
        # no grace: PID 1 of a namespace ignores SIGTERM, and nothing in the box has an end worth waiting for
        with running(network.inside([*unshare, *map(str, init)]), log=log, pass_fds=[theirs], grace_s=0):
            os.close(theirs)
            pid = _reported(ours, log)
            alive = os.pidfd_open(pid)
            try:
                yield Box(pid=pid, out=disk / "out")
            finally:
                _end(pid, alive)
                os.close(alive)
    finally:
        os.close(ours)
        # ended between attaching a device and holding it, as a builder that was stopped may be
        detach_loops(lambda file: own_mark() in file, lambda _: None)
        remove(disk)


def _reported(pipe: int, log: Path) -> int:
    ready, _, _ = select.select([pipe], [], [], _START_S)
    said = os.read(pipe, 64) if ready else b""
    if not said.strip().isdigit():
        raise BuildError(
            "no build box can be made here",
            facts=tuple(("said", line) for line in last_lines(log).strip().splitlines()[-5:]),
            hint="run as root on a kernel with namespaces; 'factory doctor' checks this",
        )
    return int(said)


def _end(pid: int, alive: int) -> None:
    """Kill a box and wait until the kernel has ended everything in it."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 9)
    select.select([alive], [], [], _START_S)
