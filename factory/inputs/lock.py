# SPDX-License-Identifier: Apache-2.0
"""``inputs.lock``: every file that a build was given, by content.

JSON lines: the first names the schema, the others are inputs, sorted by repository and path. An answer of the mirror
other than 200 (a 404, say) is an input too: it has a ``status`` and no digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from factory.errors import InputsError
from factory.system.files import write_whole

SCHEMA = "factory/inputs/1"
TOOLS, WHEELS = "tools", "wheels"
"""The repositories of what builds the image, and is not in it: Debian packages, Python packages."""
TOOL_ALIASES = frozenset({TOOLS, WHEELS})
_OK = 200


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Input:
    """One answer of a repository: ``path`` is as requested (percent-encoded), without a leading slash."""

    repository: str
    path: str
    sha512: str = ""
    size_bytes: int = 0
    status: int = _OK

    @property
    def found(self) -> bool:
        """Whether the repository had such a file."""
        return self.status == _OK


def lock_text(inputs: Iterable[Input]) -> str:
    """The canonical text of a lock."""
    lines = [json.dumps({"schema": SCHEMA})]
    for entry in sorted(inputs):
        line: dict[str, object] = {"repository": entry.repository, "path": entry.path}
        line |= {"sha512": entry.sha512, "size": entry.size_bytes} if entry.found else {"status": entry.status}
        lines.append(json.dumps(line))
    return "\n".join(lines) + "\n"


def write_lock(path: Path, inputs: Iterable[Input]) -> str:
    """Write a lock; returns the SHA-256 of its text."""
    text = lock_text(inputs)
    write_whole(path, text)
    return hashlib.sha256(text.encode()).hexdigest()


def read_lock(path: Path) -> tuple[Input, ...]:
    """Read a lock back.

    Raises:
        InputsError: missing, damaged, or of another schema; names the line.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as missing:
        raise InputsError(f"the list of inputs '{path}' cannot be read") from missing
    return lock_entries(text, name=path)


def lock_entries(text: str, *, name: str | Path) -> tuple[Input, ...]:
    """The entries of a lock's text; ``name`` is what errors call it.

    Raises:
        InputsError: damaged, or of another schema; names the line.
    """
    lines = text.splitlines() or [""]
    return tuple(_parsed(name, number, line) for number, line in enumerate(lines, 1))[1:]


def _parsed(path: str | Path, number: int, line: str) -> Input:
    try:
        found = json.loads(line)
        if number == 1:
            if found != {"schema": SCHEMA}:
                raise InputsError(f"'{path}' is not a list of inputs that this version reads", hint="build again")
            return Input(repository="", path="")
        status = int(found.get("status", _OK))
        if status != _OK:
            return Input(repository=str(found["repository"]), path=str(found["path"]), status=status)
        digest = str(found["sha512"])
        if len(bytes.fromhex(digest)) != hashlib.sha512().digest_size:
            raise ValueError("not a SHA-512")  # noqa: TRY301 told below, with its line
        return Input(
            repository=str(found["repository"]), path=str(found["path"]), sha512=digest, size_bytes=int(found["size"])
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as damaged:
        raise InputsError(f"'{path}' is damaged in line {number}", facts=(("line", line[:200]),)) from damaged
