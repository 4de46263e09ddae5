# SPDX-License-Identifier: Apache-2.0
"""The ini dialect of the region files, read with line numbers and all faults at once.

It understands what Python's ``RawConfigParser`` understands (SUSE's programs read the files with it): sections,
``option = value`` or ``option: value``, whole-line comments with ``#`` or ``;``, indented continuation lines, no
interpolation. Option names are case-insensitive, section names are not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from factory.errors import Fault

_SECTION = re.compile(r"\[(?P<name>.+)\]")
_OPTION = re.compile(r"(?P<name>.*?)\s*[=:]\s*(?P<value>.*)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A value and the line it starts on."""

    value: str
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """The options of one section by lower-cased name, and the line of its header."""

    name: str
    line: int
    options: Mapping[str, Option]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ini:
    """A file that was read; ``faults`` tells why SUSE's programs would refuse to load it."""

    sections: Mapping[str, Section]
    faults: tuple[Fault, ...]


class _Reader:
    def __init__(self, place: str) -> None:
        self.place = place
        self.sections: dict[str, tuple[int, dict[str, tuple[int, list[str]]]]] = {}
        self.faults: list[Fault] = []
        self.options: dict[str, tuple[int, list[str]]] | None = None
        self.lines: list[str] | None = None
        self.indent = 0

    def fault(self, line: int, problem: str, cure: str) -> None:
        self.faults.append(Fault(place=f"{self.place}:{line}", problem=problem, cure=cure))

    def take(self, number: int, raw: str) -> None:
        text = raw.strip()
        if text.startswith(("#", ";")) or not text:
            if not text and self.lines is not None:
                self.lines.append("")
            return
        indent = len(raw) - len(raw.lstrip())
        if self.lines is not None and indent > self.indent:
            self.lines.append(text)
            return
        self.indent = indent
        self.lines = None
        if header := _SECTION.match(text):
            self.open_section(number, header.group("name"))
        elif self.options is None:
            self.fault(number, "text before the first [section]", "start the file with a section header")
        elif (option := _OPTION.match(text)) and option.group("name"):
            self.add(number, option.group("name").rstrip().lower(), option.group("value").strip())
        else:
            self.fault(number, f"{text[:60]!r} is neither a section nor 'option = value'", "the whole file is refused")

    def open_section(self, number: int, name: str) -> None:
        if name in self.sections:
            self.fault(number, f"section [{name}] is there twice", f"first on line {self.sections[name][0]}")
            self.options = self.sections[name][1]
            return
        self.options = {}
        self.sections[name] = (number, self.options)

    def add(self, number: int, name: str, value: str) -> None:
        assert self.options is not None
        if name in self.options:
            self.fault(number, f"option '{name}' is there twice", f"first on line {self.options[name][0]}")
            return
        self.lines = [value]
        self.options[name] = (number, self.lines)


def read(text: str, *, place: str) -> Ini:
    """Read an ini text; ``place`` is what faults call the file."""
    reader = _Reader(place)
    for number, raw in enumerate(text.split("\n"), 1):
        reader.take(number, raw.rstrip("\r"))
    sections = {
        name: Section(
            name=name,
            line=line,
            options={
                option: Option(value="\n".join(lines).rstrip(), line=at) for option, (at, lines) in options.items()
            },
        )
        for name, (line, options) in reader.sections.items()
    }
    return Ini(sections=sections, faults=tuple(reader.faults))
