# SPDX-License-Identifier: Apache-2.0
"""A box for a whole cloud: its own PIDs, and private upper layers over ``/etc``, ``/var`` and ``/run``.

The box is PID 1 of its PID namespace and is killed when we die, so the kernel ends every service and guest in it, and
drops every mount, however we end. The network is the caller's: services listen on the host's loopback device.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from factory.errors import CloudError, CommandFailed
from factory.system.run import Completed, last_lines, run, running

_INIT = Path(__file__).with_name("init.sh")
_START_S = 30
_ANSWER_S = 180.0
_BEHIND = 'umask 077; log=$1; shift; "$@" </dev/null >>"$log" 2>&1 & echo $!'


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A running box, by its PID 1 as seen from here."""

    pid: int

    def inside(self, argv: Sequence[str | Path]) -> list[str]:
        """``argv``, to be run in the box."""
        return ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--", *map(str, argv)]

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        log: Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout_s: float = 900,
        stdin: bytes | None = None,
        check: bool = True,
    ) -> Completed:
        """Run a program in the box to its end; see :func:`factory.system.run.run`."""
        return run(self.inside(argv), log=log, env=env, timeout_s=timeout_s, stdin=stdin, check=check)

    def start(
        self,
        argv: Sequence[str | Path],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> int:
        """Start a program that stays for as long as the box does; returns its PID inside."""
        shell = self.inside(["/bin/sh", "-c", _BEHIND, "sh", log, *argv])
        return int(run(shell, env=env, pass_fds=pass_fds, timeout_s=60).stdout)

    def succeeds(self, argv: Sequence[str | Path]) -> bool:
        """Whether a short program in the box ends well."""
        try:
            return self.run(argv, check=False, timeout_s=20).returncode == 0
        except CommandFailed:
            return False

    def await_start(self, name: str, pid: int, log: Path, answers: Callable[[], bool]) -> None:
        """Wait until what :meth:`start` started answers.

        Raises:
            CloudError: it ended, or took too long.
        """
        deadline = time.monotonic() + _ANSWER_S
        while not answers():
            if not self.alive(pid) or time.monotonic() > deadline:
                said = last_lines(log).strip().splitlines()[-8:] if log.exists() else []
                raise CloudError(
                    f"the cloud's {name} did not start",
                    facts=(("log", str(log)), *(("said", line) for line in said)),
                )
            time.sleep(0.2)

    def alive(self, pid: int) -> bool:
        """Whether a process lives, by its PID inside."""
        try:
            state = Path(f"/proc/{self.pid}/root/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        return state not in {"Z", "X"}


@contextlib.contextmanager
def box(folder: Path, *, log: Path) -> Iterator[Box]:
    """A box for the length of the block; ``folder`` is the one place that it shares with the host for writing.

    Raises:
        CloudError: this host cannot make one.
    """
    ours, theirs = os.pipe()
    unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--", "/bin/bash", _INIT, theirs, folder]
    try:
        # no grace: PID 1 of a namespace ignores SIGTERM
        with running(list(map(str, unshare)), log=log, pass_fds=[theirs], grace_s=0):
            os.close(theirs)
            pid = _reported(ours, log)
            alive = os.pidfd_open(pid)
            try:
                yield Box(pid=pid)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
                select.select([alive], [], [], _START_S)  # the kernel has ended everything in it by then
                os.close(alive)
    finally:
        os.close(ours)


def _reported(pipe: int, log: Path) -> int:
    ready, _, _ = select.select([pipe], [], [], _START_S)
    said = os.read(pipe, 64) if ready else b""
    if not said.strip().isdigit():
        raise CloudError(
            "no box for a cloud can be made here",
            facts=tuple(("said", line) for line in last_lines(log).strip().splitlines()[-5:]),
            hint="run as root on a kernel with namespaces and overlayfs",
        )
    return int(said)
