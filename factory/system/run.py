# SPDX-License-Identifier: Apache-2.0
"""The one door to other programs.

Argument lists only, a small clean environment, closed standard input, one line that can be pasted into a shell when
something fails. Children die with us: ``PR_SET_PDEATHSIG`` is set before they start, and a child that finds its parent
already gone does not start at all. (The signal follows the *thread* that started the child, so long-lived children are
started from threads that live as long.)
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from factory.errors import CommandFailed

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRONMENT = {"PATH": PATH, "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "TZ": "UTC", "HOME": "/nonexistent"}
_GUARD = ("setpriv", "--pdeathsig", "KILL", "--", "/bin/sh", "-c", 'test "$PPID" = "$0" || exit 125; exec "$@"')
_TAIL_LINES = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """A program that ended; ``stdout`` and ``stderr`` are empty when they went to a log."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str
    seconds: float


def guarded(argv: Sequence[str | Path]) -> list[str]:
    """``argv``, wrapped so that the program is killed when the calling thread's process ends."""
    return [*_GUARD, str(os.getpid()), *map(str, argv)]


def printable(argv: Sequence[str | Path]) -> str:
    """A command line that can be pasted into a shell."""
    return shlex.join(map(str, argv))


def run(
    argv: Sequence[str | Path],
    *,
    log: Path | None = None,
    timeout_s: float | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    check: bool = True,
    pass_fds: Sequence[int] = (),
    umask: int = -1,
) -> Completed:
    """Run a program to its end.

    Args:
        log: append stdout and stderr here instead of returning them.
        timeout_s: end it after this long.
        env: added to the clean environment (:data:`ENVIRONMENT`); nothing is inherited.
        stdin: bytes for its standard input, else empty.
        check: raise when its status is not 0.
        umask: of the program; ours by default.

    Raises:
        CommandFailed: not found, status not 0, ended by a signal, or too slow; names command, status, log, last lines.
    """
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        output: int | IO[bytes] = subprocess.PIPE
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            output = stack.enter_context(log.open("ab"))
        process = subprocess.Popen(
            guarded(argv),
            stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if log is not None else subprocess.PIPE,
            cwd=cwd,
            env={**ENVIRONMENT, **(env or {})},
            pass_fds=tuple(pass_fds),
            start_new_session=True,
            umask=umask,
        )
        try:
            out, err = _output(process, stdin, timeout_s)
        except subprocess.TimeoutExpired:
            _end_group(process)
            raise failure(argv, f"did not end within {timeout_s:.0f} s", log=log) from None
        except BaseException:
            _end_group(process)
            raise
    done = Completed(
        argv=tuple(map(str, argv)),
        returncode=process.returncode,
        stdout=(out or b"").decode(errors="replace"),
        stderr=(err or b"").decode(errors="replace"),
        seconds=time.monotonic() - started,
    )
    if check and done.returncode != 0:
        raise failure(argv, ending(done.returncode, done.seconds), log=log, output=done.stderr or done.stdout)
    return done


def _output(
    process: subprocess.Popen[bytes], stdin: bytes | None, timeout_s: float | None
) -> tuple[bytes | None, bytes | None]:
    """What a program said until it ended, where that comes to us; raises TimeoutExpired when it is too slow."""
    if timeout_s is None or stdin is not None or process.stdout is not None:
        return process.communicate(stdin, timeout=timeout_s)
    if ended(process, wait_s=timeout_s) is None:
        raise subprocess.TimeoutExpired(process.args, timeout_s)
    return None, None


def ending(returncode: int, seconds: float) -> str:
    """How a program ended, in words."""
    if returncode < 0:
        return f"was ended by {signal.Signals(-returncode).name} after {seconds:.0f} s"
    if returncode in {125, 126, 127}:
        return f"could not be started (status {returncode})"
    return f"exited with status {returncode} after {seconds:.0f} s"


def failure(argv: Sequence[str | Path], how: str, *, log: Path | None, output: str = "") -> CommandFailed:
    """The error for a program that failed, with its command line, log, and last words."""
    if log is not None and log.exists():
        output = last_lines(log)
    facts = [("command", printable(argv))]
    if log is not None:
        facts.append(("log", str(log)))
    facts += [("said", line) for line in output.strip().splitlines()[-_TAIL_LINES:]]
    return CommandFailed(f"'{Path(str(argv[0])).name}' {how}", facts=tuple(facts))


def last_lines(log: Path, *, size_bytes: int = 8192) -> str:
    """The end of a log, as text."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - size_bytes))
        return file.read().decode(errors="replace")


@contextlib.contextmanager
def running(
    argv: Sequence[str | Path],
    *,
    log: Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    grace_s: float = 5.0,
    umask: int = -1,
) -> Iterator[subprocess.Popen[bytes]]:
    """A program that runs beside us for the length of the block; its whole process group ends with the block."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            guarded(argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env={**ENVIRONMENT, **(env or {})},
            pass_fds=tuple(pass_fds),
            start_new_session=True,
            umask=umask,
        )
    try:
        yield process
    finally:
        _end_group(process, grace_s=grace_s)


def ended(process: subprocess.Popen[bytes], *, wait_s: float) -> int | None:
    """The status of a program that :func:`running` started, or None when it still runs after ``wait_s``.

    The kernel wakes us; ``Popen.wait`` with a limit looks twenty times a second instead.
    """
    if process.poll() is None:
        descriptor = os.pidfd_open(process.pid)
        try:
            ending_seen = select.poll()
            ending_seen.register(descriptor, select.POLLIN)
            ending_seen.poll(wait_s * 1000)
        finally:
            os.close(descriptor)
    return process.poll()


def _end_group(process: subprocess.Popen[bytes], *, grace_s: float = 2.0) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(grace_s)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
