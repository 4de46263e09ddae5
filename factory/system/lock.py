# SPDX-License-Identifier: Apache-2.0
"""One writer at a time, on this host; the kernel drops the lock when its holder dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from factory.errors import LineHeld


@contextlib.contextmanager
def exclusive(path: Path, *, what: str) -> Iterator[None]:
    """Hold ``path`` for the length of the block.

    Raises:
        LineHeld: another process holds it; the message names ``what`` and that process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as held:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise LineHeld(
                f"another factory works on {what}",
                facts=(("process", owner),),
                hint="wait for it to end; nothing was changed",
            ) from held
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextlib.contextmanager
def waiting(path: Path, *, what: str, timeout_s: float) -> Iterator[None]:
    """Hold ``path`` for the length of the block, after waiting for whoever holds it.

    Raises:
        LineHeld: it was held for longer than ``timeout_s``.
    """
    deadline = time.monotonic() + timeout_s
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(exclusive(path, what=what))
                break
            except LineHeld:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        yield
