# SPDX-License-Identifier: Apache-2.0
"""The ini dialect of the region files, read with line numbers and all faults at once.

It understands what Python's ``RawConfigParser`` understands (SUSE's programs read the files with it): sections,
``option = value`` or ``option: value``, whole-line comments with ``#`` or ``;``, indented continuation lines, no
interpolation. Option names are case-insensitive, section names are not. Options of ``[DEFAULT]`` count everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from factory.errors import Fault

_SECTION = re.compile(r"\[(?P<name>.+)\]")
_OPTION = re.compile(r"(?P<name>.*?)\s*[=:]\s*(?P<value>.*)$")


_DEFAULTS = "DEFAULT"


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A value and the line it starts on; ``numbers`` has the line in the file for each line of the value."""

    value: str
    line: int
    numbers: tuple[int, ...] = ()

    def items(self) -> Iterator[tuple[int, str]]:
        """The value split at its commas, untrimmed, each item with the line in the file on which it starts."""
        passed = 0
        for item in self.value.split(","):
            index = passed + item[: len(item) - len(item.lstrip())].count("\n")
            yield (self.numbers[index] if index < len(self.numbers) else self.line), item
            passed += item.count("\n")


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


_Options = dict[str, list[tuple[int, str]]]


class _Reader:
    def __init__(self, place: str) -> None:
        self.place = place
        self.defaults: _Options = {}
        self.sections: dict[str, tuple[int, _Options]] = {}
        self.faults: list[Fault] = []
        self.options: _Options | None = None
        self.lines: list[tuple[int, str]] | None = None
        self.indent = 0

    def fault(self, line: int, problem: str, cure: str) -> None:
        self.faults.append(Fault(place=f"{self.place}:{line}", problem=problem, cure=cure))

    def take(self, number: int, raw: str) -> None:
        text = raw.strip()
        if text.startswith(("#", ";")) or not text:
            if not text and self.lines is not None:
                self.lines.append((number, ""))
            return
        indent = len(raw) - len(raw.lstrip())
        if self.lines is not None and indent > self.indent:
            self.lines.append((number, text))
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
        if name == _DEFAULTS:
            self.options = self.defaults
            return
        if name in self.sections:
            self.fault(number, f"section [{name}] is there twice", f"first on line {self.sections[name][0]}")
            self.options = self.sections[name][1]
            return
        self.options = {}
        self.sections[name] = (number, self.options)

    def add(self, number: int, name: str, value: str) -> None:
        assert self.options is not None
        if name in self.options:
            self.fault(number, f"option '{name}' is there twice", f"first on line {self.options[name][0][0]}")
            return
        self.lines = [(number, value)]
        self.options[name] = self.lines


def read(text: str, *, place: str) -> Ini:
    """Read an ini text; ``place`` is what faults call the file."""
    reader = _Reader(place)
    for number, raw in enumerate(text.split("\n"), 1):
        reader.take(number, raw.rstrip("\r"))
    sections = {
        name: Section(name=name, line=line, options=_options({**reader.defaults, **options}))
        for name, (line, options) in reader.sections.items()
    }
    return Ini(sections=sections, faults=tuple(reader.faults))


def _options(read: _Options) -> Mapping[str, Option]:
    return {
        name: Option(
            value="\n".join(text for _, text in lines).rstrip(),
            line=lines[0][0],
            numbers=tuple(number for number, _ in lines),
        )
        for name, lines in read.items()
    }
