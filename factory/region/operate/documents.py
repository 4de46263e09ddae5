# SPDX-License-Identifier: Apache-2.0
"""JSON lists that people write, read with the line of each entry, and with every trailing comma told."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from factory.errors import Fault

_MAX_DEPTH = 64
_STRING_OR_COMMA = re.compile(r'"(?:[^"\\]|\\.)*"|,(?=\s*[\]}])', re.DOTALL)
_SPACE = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry of the list: its number, from 0, its line, from 1, and what stands there."""

    number: int
    line: int
    value: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The entries that could be read, and what is wrong with the text itself."""

    entries: tuple[Entry, ...] = ()
    faults: tuple[Fault, ...] = ()


class _Twice(ValueError):
    """A key stands twice in one object."""


def read_list(text: str, *, shown: str) -> Listing:
    """Read a JSON document that has to be a list.

    Trailing commas, which JSON does not know and people leave, are told and read over, so that one run tells all
    faults; other malformed text ends the reading at its place.
    """
    faults = []
    spoilt = list(text.removeprefix("\ufeff"))
    for found in _STRING_OR_COMMA.finditer("".join(spoilt)):
        if found[0] == ",":
            spoilt[found.start()] = " "
            place = f"{shown}:{text.count(chr(10), 0, found.start()) + 1}"
            faults.append(Fault(place=place, problem="a comma stands before the closing bracket", cure="remove it"))
    clean = "".join(spoilt)
    try:
        entries = tuple(_entries(clean))
    except json.JSONDecodeError as malformed:
        place = f"{shown}:{malformed.lineno}:{malformed.colno}"
        faults.append(Fault(place=place, problem=f"is not JSON: {malformed.msg.lower()}", cure="see RFC 8259"))
        return Listing(faults=tuple(faults))
    except (_Twice, RecursionError) as odd:
        faults.append(Fault(place=shown, problem=str(odd) or "is nested too deeply"))
        return Listing(faults=tuple(faults))
    return Listing(entries=entries, faults=tuple(faults))


def _entries(text: str) -> Iterator[Entry]:
    at = _after_space(text, 0)
    if text[at : at + 1] != "[":
        raise json.JSONDecodeError("a list is expected: [...]", text, at)
    decoder = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_constant)
    at = _after_space(text, at + 1)
    number = 0
    while text[at : at + 1] != "]":
        line = text.count("\n", 0, at) + 1
        value, at = decoder.raw_decode(text, at)
        yield Entry(number=number, line=line, value=value)
        number += 1
        at = _after_space(text, at)
        if text[at : at + 1] == ",":
            at = _after_space(text, at + 1)
        elif text[at : at + 1] != "]":
            raise json.JSONDecodeError("a comma is missing between two entries", text, at)
    at = _after_space(text, at + 1)
    if at != len(text):
        raise json.JSONDecodeError("something follows the list", text, at)


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _Twice(f"the key {key!r} stands twice in one entry")
        found[key] = value
    return found


def _no_constant(name: str) -> Any:  # noqa: ANN401 json's own signature
    raise _Twice(f"{name} is not a JSON value")
