# SPDX-License-Identifier: Apache-2.0
"""Where a factory reads and keeps things."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from factory.model import Region, Site
from factory.region.embedded import embedded_region
from factory.system.state import State


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """Where this factory reads and keeps things: descriptions and suite, state, site."""

    project: Path
    state: State
    site: Site

    @property
    def suite(self) -> Path:
        """The acceptance suite."""
        return self.project / "testsuite" / "acceptance"

    def regions(self, now: datetime) -> tuple[Region, ...]:
        """The site's regions, or the embedded throw-away one."""
        return self.site.regions or (embedded_region(self.state.keys / "region", now=now),)
