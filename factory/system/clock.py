# SPDX-License-Identifier: Apache-2.0
"""The time, in one place; stages are given it and do not ask."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def now() -> datetime:
    """The present, aware, to the second."""
    return datetime.now(tz=UTC).replace(microsecond=0)


def uptime_s() -> float:
    """Seconds since this host was started, those included in which it was asleep (Linux's ``CLOCK_BOOTTIME``)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def stamp(moment: datetime) -> str:
    """``yyyymmdd-hhmmss``, as in the names of runs."""
    return moment.strftime("%Y%m%d-%H%M%S")
