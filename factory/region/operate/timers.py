# SPDX-License-Identifier: Apache-2.0
"""When each update server fetches: drop-ins for RMT's timers that keep servers apart, and SCC from a herd.

The times of a region's servers are spread over the day by the van der Corput sequence: 0, 1/2, 1/4, 3/4, 1/8 ... Any
number of servers is well apart, and a server that is added at the end moves no other. On top comes a random delay of
six hours, the same every day on a machine (``FixedRandomDelay``, systemd.timer(5)), so that a fleet of regions does not
ask at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from factory.model import Region

DELAY_H = 6
DROP_IN = "50-image-factory.conf"
_DAY_MIN = 24 * 60
_PHASE_MIN = 90
_SYNC_FIRST_MIN = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Timer:
    """One drop-in for one server: the unit, and when it starts, in minutes after midnight UTC."""

    server: str
    region: str
    unit: str
    minute: int
    delay: str

    @property
    def path(self) -> str:
        """Where the drop-in goes on the server, without the leading slash."""
        return f"etc/systemd/system/{self.unit}.d/{DROP_IN}"

    @property
    def calendar(self) -> str:
        """The time as systemd writes it (systemd.time(7))."""
        return f"*-*-* {self.minute // 60:02d}:{self.minute % 60:02d}:00 UTC"

    @property
    def text(self) -> str:
        """The drop-in: the packaged time is put away, ours takes its place."""
        return (
            f"# {self.server} in region {self.region}; made by 'factory region timers'\n"
            "[Timer]\n"
            "OnCalendar=\n"
            f"OnCalendar={self.calendar}\n"
            f"RandomizedDelaySec={self.delay}\n"
            "FixedRandomDelay=true\n"
        )


def timers(regions: Sequence[Region]) -> tuple[Timer, ...]:
    """The drop-ins of every update server: first the list of products, an hour later the packages."""
    return tuple(timer for region in regions for timer in _of_region(region))


def _of_region(region: Region) -> Iterator[Timer]:
    digest = hashlib.sha256(region.name.lower().encode()).digest()
    phase = int.from_bytes(digest[:4], "big") % _PHASE_MIN
    for number, server in enumerate(region.update_servers):
        sync = (phase + round(_spread(number) * _DAY_MIN)) % _DAY_MIN
        for unit, minute, delay in (
            ("rmt-server-sync.timer", sync, "30min"),
            ("rmt-server-mirror.timer", (sync + _SYNC_FIRST_MIN) % _DAY_MIN, f"{DELAY_H}h"),
        ):
            yield Timer(server=server.name, region=region.name, unit=unit, minute=minute, delay=delay)


def _spread(number: int) -> float:
    """The van der Corput sequence in base 2."""
    found, part = 0.0, 0.5
    while number:
        found += part * (number & 1)
        number >>= 1
        part /= 2
    return found
