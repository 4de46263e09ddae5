# SPDX-License-Identifier: Apache-2.0
"""TOML files that people write: read, held against a schema, and every fault told with its line and key path."""

from __future__ import annotations

import difflib
import inspect
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import AliasChoices, BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from factory.errors import Fault, InputFault

Table = TypeVar("Table", bound=BaseModel)
KeyPath = tuple[str | int, ...]

_HEADER = re.compile(r"^\s*(?P<open>\[\[?)(?P<keys>[^\[\]]+)\]\]?\s*(#.*)?$")
_KEY = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*')"""
_ASSIGNMENT = re.compile(rf"^\s*(?P<keys>{_KEY}(?:\s*\.\s*{_KEY})*)\s*=")
_INLINE = re.compile(rf"(?P<key>{_KEY})\s*=")
_TOML_PLACE = re.compile(r" \(at line (\d+), column (\d+)\)$")
_QUOTES = ('"""', "'''")


class HoldsSecret(ValueError):
    """What is wrong with a value that may hold a secret, and so is not shown."""


def read_toml(path: Path, schema: type[Table], *, shown: str) -> Table:
    """Read ``path`` and hold it against ``schema``.

    Args:
        shown: how faults name the file.

    Raises:
        InputFault: not readable, not TOML, or not what the schema allows; all faults at once.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputFault(f"'{shown}' does not exist") from None
    except (OSError, UnicodeDecodeError) as unreadable:
        raise InputFault(f"'{shown}' cannot be read: {unreadable}") from None
    return parse_toml(text, schema, shown=shown)


def parse_toml(text: str, schema: type[Table], *, shown: str) -> Table:
    """As :func:`read_toml`, from text."""
    try:
        body = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as malformed:
        raise InputFault(f"'{shown}' is not TOML", faults=(_malformed(str(malformed), shown),)) from None
    try:
        return schema.model_validate(body)
    except ValidationError as invalid:
        lines = key_lines(text)
        found = [_fault(error, schema, body, lines, shown) for error in _told(invalid)]
    raise InputFault(f"'{shown}' has {count(len(found), 'fault')}", faults=tuple(_once(found)))


def count(number: int, noun: str) -> str:
    """``1 fault``, ``2 faults``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def place(shown: str, lines: Mapping[KeyPath, int], path: KeyPath) -> str:
    """``FILE:LINE key.path``; the line is that of the nearest key the file has."""
    line = next((lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in lines), 1)
    return f"{shown}:{line} {dotted(path)}".rstrip()


def dotted(path: KeyPath) -> str:
    """``region[0].servers[1].pem``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else repr(part)
            text += f".{name}" if text else name
    return text


def key_lines(text: str) -> Mapping[KeyPath, int]:
    """The line of every table and key of a TOML text that :mod:`tomllib` accepts.

    tomllib tells no places. This reads headers, assignments and inline tables; a key it cannot see (in odd layouts)
    is told by the line of its table.
    """
    found: dict[KeyPath, int] = {}
    counts: dict[KeyPath, int] = {}
    here: KeyPath = ()
    value: tuple[KeyPath, list[int]] = ((), [])
    closing, depth = "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        if closing:
            closing = "" if line.count(closing) % 2 else closing
            continue
        if depth > 0:
            depth += _inline(line, value, number, found)
            continue
        header = _HEADER.match(line)
        if header is not None:
            here = _table(header, counts)
            for end in range(1, len(here) + 1):
                found.setdefault(here[:end], number)
            continue
        assigned = _ASSIGNMENT.match(line)
        if assigned is None:
            continue
        path = (*here, *_parts(assigned["keys"]))
        for end in range(len(here) + 1, len(path) + 1):
            found.setdefault(path[:end], number)
        rest = line[assigned.end() :]
        closing = next((quote for quote in _QUOTES if rest.count(quote) % 2), "")
        value = (path, [])
        depth = 0 if closing else _inline(rest, value, number, found)
    return found


def _inline(text: str, value: tuple[KeyPath, list[int]], number: int, found: dict[KeyPath, int]) -> int:
    """Note the keys of inline tables in an array; returns by how much brackets stay open."""
    path, seen = value
    bare = re.sub(r'"(?:[^"\\]|\\.)*"|\'[^\']*\'', lambda quoted: "x" * len(quoted[0]), text)
    bare = bare.split("#", 1)[0]
    for part in re.finditer(r"\{|" + _INLINE.pattern, bare):
        if part[0] == "{":
            seen.append(number)
            found.setdefault((*path, len(seen) - 1), number)
        elif seen:
            found.setdefault((*path, len(seen) - 1, part["key"]), number)
            found.setdefault((*path, part["key"]), number)
    return bare.count("[") + bare.count("{") - bare.count("]") - bare.count("}")


def _table(header: re.Match[str], counts: dict[KeyPath, int]) -> KeyPath:
    keys, path = _parts(header["keys"]), []
    for position, key in enumerate(keys):
        path.append(key)
        last = position == len(keys) - 1
        if last and header["open"] == "[[":
            counts[tuple(path)] = counts.get(tuple(path), -1) + 1
        if tuple(path) in counts:
            path.append(counts[tuple(path)])  # type: ignore[arg-type]
    return tuple(path)


def _parts(text: str) -> list[str]:
    return [key[1:-1] if key[0] in "\"'" else key for key in re.findall(_KEY, text)]


def _malformed(message: str, shown: str) -> Fault:
    at = _TOML_PLACE.search(message)
    where = f"{shown}:{at[1]}:{at[2]}" if at else shown
    return Fault(place=where, problem=_TOML_PLACE.sub("", message) or "is malformed", cure="see https://toml.io")


# -- pydantic's findings, in our words --------------------------------------------------------------------------------


def _told(invalid: ValidationError) -> list[ErrorDetails]:
    return invalid.errors(include_url=False, include_context=True)


def _once(faults: Sequence[Fault]) -> Iterator[Fault]:
    """One fault per place: a union tells one for each of its members."""
    seen: set[str] = set()
    for fault in sorted(faults, key=_line):
        if fault.place not in seen:
            seen.add(fault.place)
            yield fault


def _line(fault: Fault) -> int:
    found = re.search(r":(\d+)", fault.place)
    return int(found[1]) if found else 0


def _fault(
    error: ErrorDetails, schema: type[BaseModel], body: Mapping[str, Any], lines: Mapping[KeyPath, int], shown: str
) -> Fault:
    path = _real(error["loc"], body)
    kind, given, context = error["type"], error.get("input"), error.get("ctx", {})
    where = place(shown, lines, path)
    if kind == "extra_forbidden":
        return _unknown_key(schema, path, where)
    if kind == "missing":
        return Fault(place=where, problem="is missing", cure=_MISSING.get(str(path[-1]), "it has no default"))
    if error["loc"][-1:] == ("[key]",):
        return Fault(place=where, problem="is not an allowed name", cure=f"use a name like {_sample(context)}")
    if kind == "literal_error":
        return Fault(place=where, problem=f"{_quoted(given)} is not allowed", cure=f"one of {context.get('expected')}")
    if kind == "value_error":
        shown = "" if isinstance(context.get("error"), HoldsSecret) else f"{_quoted(given)}: "
        return Fault(place=where, problem=f"{shown}{context.get('error')}")
    if kind.endswith("_type") and kind.removesuffix("_type") in _KINDS:
        wanted = _KINDS[kind.removesuffix("_type")]
        return Fault(place=where, problem=f"is {_kind(given)}", cure=f"write {wanted}")
    if kind == "string_pattern_mismatch":
        return Fault(
            place=where, problem=f"{_quoted(given)} has the wrong form", cure=f"it must match {context.get('pattern')}"
        )
    return Fault(place=where, problem=f"{_quoted(given)}: {error['msg'].lower()}")


_MISSING = {
    "pem": "without its certificate no instance could trust this server; name the PEM file",
    "key": "the path, inside the image, of the keyring that signs this repository",
    "suites": 'for example ["trixie", "trixie-updates"]',
}
_KINDS = {
    "string": 'a text: "..."',
    "int": "a whole number",
    "bool": "true or false",
    "list": "a list: [...]",
    "dict": "a table",
    "model": "a table",
    "model_attributes": "a table",
}


def _real(loc: tuple[str | int, ...], body: object) -> KeyPath:
    """The part of pydantic's location that is in the file: without its markers for keys and for members of unions."""
    path: list[str | int] = []
    found = body
    for position, part in enumerate(loc):
        if part == "[key]":
            continue
        if isinstance(found, Mapping) and (part in found or position == len(loc) - 1 or not path):
            path.append(part)
            found = found.get(part)
        elif isinstance(found, list) and isinstance(part, int) and part < len(found):
            path.append(part)
            found = found[part]
        else:
            break
    return tuple(path)


def _unknown_key(schema: type[BaseModel], path: KeyPath, where: str) -> Fault:
    known = _keys(schema, path[:-1])
    near = difflib.get_close_matches(str(path[-1]), known, n=1)
    cure = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(known)}"
    return Fault(place=where, problem="is not a known key", cure=cure)


def _keys(schema: type[BaseModel], path: KeyPath) -> list[str]:
    current: type[BaseModel] | None = schema
    for part in path:
        if isinstance(part, str) and current is not None and part in current.model_fields:
            current = _table_in(current.model_fields[part].annotation)
    return sorted(_spelled(name, field) for name, field in current.model_fields.items()) if current else []


def _spelled(name: str, field: FieldInfo) -> str:
    """How people write a key: the first spelling where there are two."""
    both = field.validation_alias
    return str(both.choices[0]) if isinstance(both, AliasChoices) else name


def _table_in(annotation: object) -> type[BaseModel] | None:
    """The table type in an annotation: itself, or inside ``list[T]``, ``dict[K, T]``, ``T | None``."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for member in get_args(annotation) if (found := _table_in(member))), None)


def _sample(context: Mapping[str, Any]) -> str:
    return str(context.get("pattern", "lower-case letters, digits and '-'"))


def _quoted(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."  # noqa: PLR2004 one line of a terminal


def _kind(value: object) -> str:
    names = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "a table"}
    return names.get(type(value), "a date or time") + (f" ({_quoted(value)})" if not isinstance(value, dict) else "")
