# SPDX-License-Identifier: Apache-2.0
"""What a killed build may have left, found by its mark and by nothing else.

A mark is ``factory-box-<process id>-<start time of that process>``: it names the factory that made the thing, and tells
for certain whether that factory still lives, although process ids are used again.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from factory.errors import CommandFailed
from factory.system.files import remove
from factory.system.run import run

_MARK = re.compile(r"factory-box-(\d+)-(\d+)")


def start_time(pid: int) -> str | None:
    """When a process started, in clock ticks since the host's boot; None when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text.rpartition(")")[2].split()[19]


def own_mark() -> str:
    """The mark of this process."""
    pid = os.getpid()
    return f"factory-box-{pid}-{start_time(pid)}"


def is_dead(name: str, started: Callable[[int], str | None] = start_time) -> bool:
    """Whether ``name`` carries the mark of a factory that is gone."""
    found = _MARK.search(name)
    return found is not None and started(int(found[1])) != found[2]


def detach_loops(belongs: Callable[[str], bool], say: Callable[[str], None]) -> None:
    """Detach every loop device whose backing file ``belongs``; one in use is detached by its last close."""
    for backing in sorted(Path("/sys/block").glob("loop*/loop/backing_file")):
        with contextlib.suppress(OSError, CommandFailed):
            if belongs(backing.read_text().strip()):
                device = f"/dev/{backing.parents[1].name}"
                say(f"detaching {device}, which a killed build left")
                run(["losetup", "-d", device], timeout_s=60)


def clean_leftovers(folders: Iterable[Path], say: Callable[[str], None]) -> None:
    """Detach loop devices of dead boxes, and remove their files below ``folders``."""
    detach_loops(is_dead, say)
    for folder in folders:
        for left in sorted(folder.glob("factory-box-*")):
            if is_dead(left.name):
                say(f"removing {left}, which a killed build left")
                remove(left)
