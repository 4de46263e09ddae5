# SPDX-License-Identifier: Apache-2.0
"""How frozen values are written as JSON and read back: one pydantic adapter per type, made when it is first needed.

Making one takes longer than reading most values; a night reads the same few types again and again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, cast

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Value = TypeVar("Value")


_made: dict[object, object] = {}


def adapter(kind: type[Value]) -> TypeAdapter[Value]:
    """The adapter of a type."""
    if kind not in _made:
        from pydantic import TypeAdapter

        _made[kind] = TypeAdapter(kind)
    return cast("TypeAdapter[Value]", _made[kind])
