# SPDX-License-Identifier: Apache-2.0
"""JSON from elsewhere, read so that no two readers can understand it differently.

A name that stands twice in one object, numbers that JSON does not have, bytes that are not UTF-8, and whatever is
nested or long beyond reason are refused (RFC 8259 leaves all of these to the reader).
"""

from __future__ import annotations

import json
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

Kind = TypeVar("Kind", bound=BaseModel)


class Malformed(ValueError):
    """What was read is not of the form that it must have."""


def parse(text: bytes, *, limit_bytes: int) -> object:
    """The value that ``text`` stands for.

    Raises:
        Malformed: says why.
    """
    if len(text) > limit_bytes:
        raise Malformed(f"is longer than {limit_bytes >> 20} MiB")
    try:
        return json.loads(text.decode(), object_pairs_hook=_once_each, parse_constant=_no_constant)
    except Malformed:
        raise
    except RecursionError:
        raise Malformed("is nested too deeply") from None
    except ValueError as wrong:
        raise Malformed(f"is not JSON: {str(wrong)[:200]}") from None


def shaped(kind: type[Kind], value: object) -> Kind:
    """``value`` as a model.

    Raises:
        Malformed: says where it is of another form.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as invalid:
        first = invalid.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"]))[:120]
        raise Malformed(f"is of another form: {where or 'it'}: {first['msg'][:120]}") from None


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Malformed(f"names {twice[:60]!r} twice in one object")
    return found


def _no_constant(name: str) -> NoReturn:
    raise Malformed(f"holds {name}, which is no number of JSON")
