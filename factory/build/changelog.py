# SPDX-License-Identifier: Apache-2.0
"""A package's changelog: its newest entries, and the security fixes that they name.

The form is deb-changelog(5). Pure, and no text makes it fail: what does not look like an entry is passed over.
"""

from __future__ import annotations

import email.utils
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC

ENTRIES = 12
TEXT_LONGEST = 800
_READ_BYTES = 2 << 20
_HEADER = re.compile(r"([a-z0-9][a-z0-9+.-]*) \(([^\s()]{1,100})\)((?:\s+[\w.+-]+)+);(.{0,200})", re.IGNORECASE)
_TRAILER = re.compile(r" -- .{0,300}?  ?(\w{3},? .{10,40})")
_FIX = re.compile(r"\b(?:CVE-\d{4}-\d{4,7}|(?:DSA|DLA|USN)-\d{1,5}(?:-\d{1,3})?|GHSA(?:-[0-9a-z]{4}){3})\b")
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One version of a source package: ``fixes`` are the security fixes its text names, ``text`` its beginning."""

    source: str
    version: str
    urgency: str = ""
    date: str = ""
    fixes: tuple[str, ...] = ()
    text: str = ""


def changelog_text(content: bytes) -> str:
    """A changelog file as text, plain or compressed by gzip; the beginning of it, when it is long."""
    if content[:2] == _GZIP:
        try:
            content = zlib.decompressobj(wbits=31).decompress(content, _READ_BYTES)
        except zlib.error:
            return ""
    return content[:_READ_BYTES].decode(errors="replace")


def entries_of(text: str, *, most: int = ENTRIES) -> tuple[Entry, ...]:
    """The newest entries of a changelog, newest first."""
    found = []
    for header, lines, trailer in _blocks(text.splitlines()):
        found.append(_entry(header, lines, trailer))
        if len(found) == most:
            break
    return tuple(found)


def _blocks(lines: Iterable[str]) -> Iterator[tuple[re.Match[str], list[str], str]]:
    header, body = None, list[str]()
    for line in lines:
        if header is not None and line.startswith(" -- "):
            yield header, body, line
            header, body = None, []
        elif line[:1].strip():
            began = _HEADER.fullmatch(line.rstrip())
            if began is not None:
                header, body = began, []
        elif header is not None:
            body.append(line.rstrip())


def _entry(header: re.Match[str], lines: list[str], trailer: str) -> Entry:
    text = "\n".join(lines).strip("\n")
    urgency = re.search(r"urgency=(\w{1,20})", header[4])
    return Entry(
        source=header[1],
        version=header[2],
        urgency=urgency[1].lower() if urgency else "",
        date=_date(trailer),
        fixes=fixes_in(text),
        text=_beginning(text),
    )


def fixes_in(text: str) -> tuple[str, ...]:
    """The security fixes that a text names, in their order."""
    return tuple(dict.fromkeys(_FIX.findall(text)))


def _beginning(text: str) -> str:
    """Whole lines up to a limit, without what could not be shown."""
    plain = text[: TEXT_LONGEST + 1].replace("\t", " ")
    if not plain.replace("\n", "").isprintable():
        plain = "".join(char if char == "\n" or char.isprintable() else "?" for char in plain)
    if len(plain) <= TEXT_LONGEST:
        return plain
    return plain[:TEXT_LONGEST].rpartition("\n")[0] + "\n  ..."


def _date(trailer: str) -> str:
    """The day of an entry, in UTC."""
    told = _TRAILER.match(trailer)
    try:
        when = email.utils.parsedate_to_datetime(told[1]) if told else None
    except (ValueError, IndexError, OverflowError):
        return ""
    try:
        return f"{when.astimezone(UTC):%Y-%m-%d}" if when is not None and when.tzinfo else ""
    except (ValueError, OverflowError):
        return ""
