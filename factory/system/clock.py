# SPDX-License-Identifier: Apache-2.0
"""The time, in one place; stages are given it and do not ask."""

from __future__ import annotations

from datetime import UTC, datetime


def now() -> datetime:
    """The present, aware, to the second."""
    return datetime.now(tz=UTC).replace(microsecond=0)


def stamp(time: datetime) -> str:
    """``yyyymmdd-hhmmss``, as in the names of runs."""
    return time.strftime("%Y%m%d-%H%M%S")
