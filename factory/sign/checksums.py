# SPDX-License-Identifier: Apache-2.0
"""``SHA256SUMS``, as coreutils' ``sha256sum --check`` reads it: one ``digest  name`` per line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath

NAME = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64}) [ *]([^\\\0]+)")


class MalformedSums(ValueError):
    """A line that does not belong in such a file."""


def sums_text(digests: Mapping[str, str]) -> str:
    """The file's text for names and their SHA-256, sorted by name."""
    return "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))


def parse_sums(text: str) -> dict[str, str]:
    """Names and digests.

    Raises:
        MalformedSums: another form, a name that is not that of a file in the same folder, or a name given twice.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(text.split("\n")[:-1] if text.endswith("\n") else text.split("\n"), start=1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise MalformedSums(f"line {number} is not 'digest  name'")
        digest, name = match.groups()
        if not is_plain(name):
            raise MalformedSums(f"line {number} names {name!r}, not a file of this folder")
        if name in found:
            raise MalformedSums(f"line {number} names {name!r} again")
        found[name] = digest
    if not found:
        raise MalformedSums("no file is listed")
    return found


def is_plain(name: str) -> bool:
    """Whether a name stays in its folder and can be printed."""
    return name.isprintable() and PurePosixPath(name).name == name and name not in {".", ".."}
