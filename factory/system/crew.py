# SPDX-License-Identifier: Apache-2.0
"""Programs that run side by side: their lines as they say them, their ends as they come, and none left behind."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Self

from factory.errors import CommandFailed
from factory.system.run import guarded

_PIECE_BYTES = 1 << 16
_LONGEST_LINE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A program of the crew that ended; a negative ``returncode`` is the signal that ended it."""

    name: str
    returncode: int
    stdout: str
    seconds: float


@dataclass(slots=True, kw_only=True, eq=False)
class _Member:
    name: str
    process: subprocess.Popen[bytes]
    pidfd: int
    started: float
    stdout: bytearray = field(default_factory=bytearray)
    line: bytearray = field(default_factory=bytearray)


class Crew:
    """Started programs; a ``with`` block, at whose end those that still run are ended.

    Args:
        said: is told each line that a program writes to standard error, with the program's name.
        grace_s: how long a program may take to end, once asked to (SIGTERM).
    """

    def __init__(self, said: Callable[[str, str], None], *, grace_s: float = 60.0) -> None:
        self._said = said
        self._grace_s = grace_s
        self._members: list[_Member] = []
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            for member in self._members:
                _signal(member, signal.SIGTERM)
            deadline = time.monotonic() + self._grace_s
            while self._members and (left := deadline - time.monotonic()) > 0:
                self._read(left)
        finally:  # also when somebody is impatient
            for member in self._members:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(member.process.pid, signal.SIGKILL)
                member.process.wait()
                self._close(member)
            self._selector.close()

    def start(self, name: str, argv: Sequence[str | Path], *, env: Mapping[str, str], cwd: Path | None = None) -> None:
        """Start a program in a session of its own, so that a terminal's Ctrl-C reaches us alone; it dies with us.

        Args:
            env: the whole environment.

        Raises:
            CommandFailed: it cannot be started.
        """
        try:
            process = subprocess.Popen(
                guarded(argv),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=cwd,
                env=dict(env),
                start_new_session=True,
            )
        except OSError as refused:
            raise CommandFailed(f"'{name}' cannot be started: {refused}") from refused
        member = _Member(name=name, process=process, pidfd=os.pidfd_open(process.pid), started=time.monotonic())
        self._members.append(member)
        for pipe in _pipes(member):
            os.set_blocking(pipe.fileno(), False)
            self._selector.register(pipe, selectors.EVENT_READ, member)
        self._selector.register(member.pidfd, selectors.EVENT_READ, member)

    def wait(self) -> Ended:
        """Wait until a program has ended, passing on meanwhile what all of them say."""
        while True:
            if ended := self._read(None):
                return ended

    def _read(self, timeout_s: float | None) -> Ended | None:
        """What came next: perhaps lines, perhaps the end of a program."""
        for key, _ in self._selector.select(timeout_s):
            member: _Member = key.data
            if key.fileobj == member.pidfd:
                return self._end(member)
            assert not isinstance(key.fileobj, int)
            self._take(member, key.fileobj)  # type: ignore[arg-type]
        return None

    def _take(self, member: _Member, pipe: IO[bytes]) -> bool:
        """Read what is there; False when there is nothing more."""
        try:
            piece = os.read(pipe.fileno(), _PIECE_BYTES)
        except BlockingIOError:
            return False
        if not piece:
            with contextlib.suppress(KeyError):
                self._selector.unregister(pipe)
            return False
        if pipe is member.process.stdout:
            member.stdout += piece
            return True
        member.line += piece
        *lines, rest = member.line.split(b"\n")
        if len(rest) > _LONGEST_LINE_BYTES:
            lines, rest = [*lines, rest], bytearray()
        member.line = bytearray(rest)
        for line in lines:
            self._said(member.name, line.decode(errors="replace"))
        return True

    def _end(self, member: _Member) -> Ended:
        status = member.process.wait()
        # a program that it left behind may hold the pipes open: only what is in them now counts
        for pipe in _pipes(member):
            while self._take(member, pipe):
                pass
        if member.line:
            self._said(member.name, member.line.decode(errors="replace"))
        self._members.remove(member)
        self._close(member)
        return Ended(
            name=member.name,
            returncode=status,
            stdout=member.stdout.decode(errors="replace"),
            seconds=time.monotonic() - member.started,
        )

    def _close(self, member: _Member) -> None:
        watched: tuple[IO[bytes] | int, ...] = (*_pipes(member), member.pidfd)
        for one in watched:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(one)
        for pipe in _pipes(member):
            pipe.close()
        os.close(member.pidfd)


def _pipes(member: _Member) -> Iterator[IO[bytes]]:
    for pipe in (member.process.stderr, member.process.stdout):
        assert pipe is not None
        yield pipe


def _signal(member: _Member, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(member.pidfd, number)
