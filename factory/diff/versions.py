# SPDX-License-Identifier: Apache-2.0
"""Which of two versions of a package is the later one, as its packaging orders them; pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

_PIECE = re.compile(r"([^0-9]*)([0-9]*)")
_REBUILT = re.compile(r"\+b\d+\Z")
Key = tuple[Any, ...]


def deb_key(version: str) -> Key:
    """A key that sorts as dpkg does: Debian Policy 5.6.12. Any text has one."""
    epoch, colon, rest = version.partition(":")
    if not colon or not epoch.isascii() or not epoch.isdecimal():
        epoch, rest = "0", version
    upstream, _, revision = rest.rpartition("-") if "-" in rest else (rest, "", "")
    return (_number(epoch), _pieces(upstream), _pieces(revision or "0"))


def _pieces(text: str) -> Key:
    """Text and number in turns; the end of a text comes before everything but a tilde."""
    found: list[Any] = []
    for letters, digits in _PIECE.findall(text):
        if letters or digits:
            found += [(*map(_weight, letters), 0), _number(digits)]
    return (*found, (0,))


def _weight(char: str) -> int:
    if char == "~":
        return -1
    return ord(char) if char.isascii() and char.isalpha() else ord(char) + 256


def _number(digits: str) -> tuple[int, str]:
    """A number of any length."""
    plain = digits.lstrip("0")
    return len(plain), plain


_KEYS: Mapping[str, Callable[[str], Key]] = MappingProxyType({"deb": deb_key})


def compare(old: str, new: str, *, packaging: str = "deb") -> int:
    """Less than, equal to or greater than 0, as ``old`` is earlier than, the same as or later than ``new``."""
    key = _KEYS[packaging]
    before, after = key(old), key(new)
    return (before > after) - (before < after)


def of_source(version: str) -> str:
    """A binary package's version without the mark of a rebuild that changed no source (``+b1``)."""
    return _REBUILT.sub("", version)
