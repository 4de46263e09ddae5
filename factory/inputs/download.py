# SPDX-License-Identifier: Apache-2.0
"""One file from a mirror into a folder: gone on with where it stopped, named only when it is what was signed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from factory.errors import InputsError
from factory.inputs.upstream import Upstream
from factory.system.files import sha256_file

_OK, _PARTIAL, _NOT_THAT_LONG = 200, 206, 416
_PART = ".part"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A file, where it is, and what it must be; a size of 0 is not known."""

    name: str
    address: str
    sha256: str
    size_bytes: int = 0


def fetch(wanted: Wanted, to: Path, upstream: Upstream) -> bool:
    """Have a file at ``to``; False when the mirror has none.

    Raises:
        InputsError: the mirror is away, or has another file than was signed.
    """
    if to.is_file() and sha256_file(to) == wanted.sha256:
        return True
    part = to.with_name(f"{to.name}{_PART}")
    to.parent.mkdir(parents=True, exist_ok=True)
    resumed = part.is_file() and part.stat().st_size > 0
    if not _receive(wanted, part, upstream):
        return False
    if resumed and sha256_file(part) != wanted.sha256:  # the half was of something else
        part.unlink()
        if not _receive(wanted, part, upstream):
            return False
    found = sha256_file(part)
    if found != wanted.sha256:
        part.unlink()
        raise InputsError(
            f"the mirror serves another '{wanted.name}' than was signed",
            facts=(("address", wanted.address), ("signed", f"sha256 {wanted.sha256}"), ("served", f"sha256 {found}")),
            hint="the mirror is damaged or in the middle of an update; try again, or use another one",
        )
    part.replace(to)
    return True


def _receive(wanted: Wanted, part: Path, upstream: Upstream) -> bool:
    """Add what the mirror has to what is there."""
    start = part.stat().st_size if part.is_file() else 0
    with upstream.get(wanted.address, start=start) as (status, body):
        if status in {_OK, _PARTIAL}:
            with part.open("ab" if status == _PARTIAL else "wb") as file:
                for chunk in body:
                    file.write(chunk)
            return True
    if status == _NOT_THAT_LONG and start:
        if sha256_file(part) == wanted.sha256:
            return True
        part.unlink()
        return _receive(wanted, part, upstream)
    return False
