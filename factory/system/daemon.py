# SPDX-License-Identifier: Apache-2.0
"""A program that stays when we end, and can be found again without trusting a pid.

A daemon inherits an open descriptor of its *mark*, a file of its own. Whoever has that file open is the daemon or a
child of it, and nobody else is: that holds after ``kill -9`` of us at any line, after its parent died, when it renamed
its command line, and when its pid was given to another program.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from factory.errors import FactoryError
from factory.system.files import write_whole
from factory.system.run import run

_BEHIND = 'umask 077; log=$1; shift; "$@" </dev/null >>"$log" 2>&1 & echo $!'
_POLL_S = 0.05


def start(
    argv: Sequence[str | Path],
    *,
    mark: Path,
    log: Path,
    env: Mapping[str, str],
    pass_fds: Sequence[int] = (),
) -> int:
    """Start a program that outlives us, in a session of its own, with no terminal, and return its pid.

    Raises:
        FactoryError: one with this mark runs already.
    """
    mark.parent.mkdir(parents=True, exist_ok=True)
    if holders(mark):
        raise FactoryError(f"'{mark.stem}' runs already", facts=(("mark", str(mark)),))
    with mark.open("ab") as held:
        descriptors = [held.fileno(), *pass_fds]
        # The shell ends at once, so the daemon is nobody's child; the death signal of run() does not pass a fork.
        done = run(["/bin/sh", "-c", _BEHIND, "sh", log, *argv], env=env, pass_fds=descriptors, timeout_s=30)
    pid = int(done.stdout)
    ticks = start_ticks(pid)
    write_whole(_record(mark), json.dumps({"pid": pid, "start_ticks": ticks}) + "\n", mode=0o600)
    return pid


def main_pid(mark: Path) -> int | None:
    """The pid that :func:`start` returned, if that very process is still alive and holds ``mark``."""
    try:
        record = json.loads(_record(mark).read_text())
        pid, ticks = int(record["pid"]), record["start_ticks"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    alive = ticks is not None and start_ticks(pid) == ticks and _has_open(pid, mark)
    return pid if alive else None


def holders(mark: Path) -> tuple[int, ...]:
    """The processes that have ``mark`` open: the daemon and its children (we ourselves do not count)."""
    if not mark.exists():
        return ()
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal())
    return tuple(sorted(pid for pid in pids if pid != os.getpid() and _has_open(pid, mark)))


def end(mark: Path, *, grace_s: float = 10.0) -> None:
    """End the daemon: TERM to its first process, after ``grace_s`` KILL to who is left; returns when all are gone."""
    first = main_pid(mark)
    if first is not None:
        _signal(first, mark, signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while holders(mark) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
    while found := holders(mark):
        for pid in found:
            _signal(pid, mark, signal.SIGKILL)
        time.sleep(_POLL_S)
    _record(mark).unlink(missing_ok=True)


def start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None when there is none (or only its exit status is left)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *fields = text.rpartition(")")[2].split()
    return None if state in {"Z", "X"} else int(fields[18])


def _record(mark: Path) -> Path:
    return mark.with_suffix(".json")


def _has_open(pid: int, mark: Path) -> bool:
    wanted = mark.stat()
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if os.path.samestat(entry.stat(), wanted):
                    return True
    return False


def _signal(pid: int, mark: Path, number: signal.Signals) -> None:
    """Signal a process through a descriptor, so that a pid which was given away meanwhile is not hit."""
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            if _has_open(pid, mark):
                signal.pidfd_send_signal(descriptor, number)
        finally:
            os.close(descriptor)
