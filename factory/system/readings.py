# SPDX-License-Identifier: Apache-2.0
"""What this process has read of large files, so that the next door to them need not read them again.

A night looks at its image at every door: before and after the guests, before the signature, before each upload, in the
download directory. Read again each time, the same bytes take more of the factory's own processor time than anything
else. A digest that this process found holds for as long as the file is the one that was read: same device and inode,
same size, same times. The kernel sets the time of the last change (``ctime``) at every write, and whoever is not root
cannot set it back. What is no older than the kernel's clock is coarse could be written again without a trace, so that
is not remembered; nor is a file whose times are whole seconds, as on file systems that keep no finer ones.

Nothing is kept on disk: another process, and so every stage that is called by hand, reads for itself. A door that must
not lean on an earlier reading says so (:func:`factory.system.files.expect_digest`, ``anew``): signing does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

SETTLED_NS = 100_000_000
"""How long ago a file must have changed last; the kernel's clock for files goes on every 1 to 10 ms."""
_SECOND_NS = 1_000_000_000
_MOST = 256

_Marks = tuple[int, int, int, int, int]
_read: dict[_Marks, str] = {}


def _marks(path: Path) -> _Marks:
    """What every change of a file changes."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _settled(marks: _Marks, now_ns: int) -> bool:
    """Whether another change would have to show in the marks."""
    changed_ns = marks[-1]
    return changed_ns % _SECOND_NS != 0 and changed_ns + SETTLED_NS < now_ns


def known_sha256(path: Path) -> str | None:
    """The SHA-256 of a file that this process has read and that did not change since."""
    return _read.get(_marks(path))


def reading(path: Path, sha256: Callable[[], str]) -> str:
    """Read a file's SHA-256 with a function, and remember it where no change meanwhile could have gone unseen."""
    before, started_ns = _marks(path), time.time_ns()
    found = sha256()
    if _settled(before, started_ns) and _marks(path) == before:
        _remember(before, found)
    return found


def link(path: Path, to: Path) -> None:
    """Give a file a second name; what was read of it holds on, although its ``ctime`` is now that of the link.

    Raises:
        OSError: the link cannot be made.
    """
    before = _marks(path)
    known = _read.pop(before, None)
    os.link(path, to)
    after = _marks(to)
    if known is not None and after[:-1] == before[:-1]:  # a write meanwhile would have left its own time
        _remember(after, known)


def _remember(marks: _Marks, sha256: str) -> None:
    if len(_read) >= _MOST:
        _read.pop(next(iter(_read)), None)
    _read[marks] = sha256
