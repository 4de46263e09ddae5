# SPDX-License-Identifier: Apache-2.0
"""Where a factory reads and keeps things."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from factory.describe.repositories import logins
from factory.model import Region, Site
from factory.region.embedded import embedded_region
from factory.system.secrets import REFERENCE, Login, Secrets
from factory.system.state import State


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """Where this factory reads and keeps things: descriptions and suite, state, site, and what secrets refer to."""

    project: Path
    state: State
    site: Site
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def suite(self) -> Path:
        """The acceptance suite."""
        return self.project / "testsuite" / "acceptance"

    @property
    def secrets(self) -> Secrets:
        """Where the references of the site file lead."""
        return Secrets(environment=self.environment, folder=self.site.path.parent if self.site.path else Path())

    @property
    def ledger(self) -> str | Path:
        """Where the ledger is: the site's database, or a file in the state folder."""
        site = self.site.ledger
        if REFERENCE.fullmatch(site):
            return self.secrets.read(site, place="site.toml ledger.url")
        return site or self.state.ledger

    def logins(self, image: str) -> dict[str, Login]:
        """The credentials for the mirrors of one image, by address."""
        return logins(image, self.site, self.secrets)

    def regions(self, now: datetime) -> tuple[Region, ...]:
        """The site's regions, or the embedded throw-away one."""
        return self.site.regions or (embedded_region(self.state.keys / "region", now=now),)
