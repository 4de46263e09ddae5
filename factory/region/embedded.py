# SPDX-License-Identifier: Apache-2.0
"""The region the factory makes for itself when no site file names one.

Throw-away keys, on addresses reserved for documentation (RFC 5737) and names that never resolve (RFC 6761), so that an
image built with it by mistake reaches nobody.
"""

from __future__ import annotations

import fcntl
import tempfile
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from factory.errors import RegionError
from factory.model import Region, Server, Site
from factory.region.certificates import Issued, certificates_in, issue
from factory.region.config import OWN_PROVIDER
from factory.system.clock import stamp
from factory.system.files import remove, write_whole

REGION = "embedded"
NETWORKS = ("192.0.2.0/24", "198.51.100.0/24", "10.0.0.0/8")
LIFETIME_DAYS = 760
"""How long an image may live: two years of monthly images, and a month."""
_VALID_DAYS = 5 * 365
_DOMAIN = "factory.invalid"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seat:
    stem: str
    ipv4: str

    @property
    def name(self) -> str:
        return f"{self.stem}.{_DOMAIN}"

    @property
    def registry(self) -> str:
        return f"registry-{self.stem}.{_DOMAIN}"


_REGION_SEATS = (_Seat(stem="region-a", ipv4="192.0.2.10"), _Seat(stem="region-b", ipv4="198.51.100.10"))
_UPDATE_SEATS = (_Seat(stem="update-a", ipv4="192.0.2.20"), _Seat(stem="update-b", ipv4="198.51.100.20"))


def embedded_region(folder: Path, *, now: datetime, lifetime_days: int = LIFETIME_DAYS) -> Region:
    """The throw-away region whose keys are kept below ``folder``, made on first use.

    Certificates are made anew, under a new folder, when one of them would expire within ``lifetime_days`` from ``now``;
    older ones stay, because images that pin them still have to be verified.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _sweep(folder)
        for generation in sorted((path for path in folder.iterdir() if path.is_dir()), reverse=True):
            if _lasts(generation, now=now, lifetime_days=lifetime_days):
                return _region(generation)
        return _region(_make(folder, now=now))


def with_embedded_client(site: Site) -> Site:
    """The site as its images are built: for the embedded region they also say which instance they are, so that every
    night proves that they do.
    """
    client = site.region_client
    if site.regions or client.metadata_server or client.data_provider != "none":
        return site
    return replace(site, region_client=replace(client, data_provider=OWN_PROVIDER))


def _sweep(folder: Path) -> None:
    """Remove what a crash left half made; the lock tells that nobody is still at it."""
    for path in folder.glob(".new-*"):
        remove(path)


def _lasts(generation: Path, *, now: datetime, lifetime_days: int) -> bool:
    until = now + timedelta(days=lifetime_days)
    for path in generation.glob("*.pem"):
        for certificate in certificates_in(path.read_text()):
            if certificate.not_valid_before_utc > now or certificate.not_valid_after_utc < until:
                return False
    return (generation / "complete").is_file()


def _make(folder: Path, *, now: datetime) -> Path:
    new = Path(tempfile.mkdtemp(prefix=".new-", dir=folder))
    authority = issue(f"CA of {_DOMAIN}", now=now, days=_VALID_DAYS, is_authority=True, throw_away=True)
    authority.write(new, "ca")
    for seat in _REGION_SEATS:
        _issue(seat, now=now, authority=None).write(new, seat.stem)
    for seat in _UPDATE_SEATS:
        _issue(seat, now=now, authority=authority).write(new, seat.stem)
    write_whole(new / "complete", "throw-away keys; see docs/reference/region.md\n")
    target = folder / stamp(now)
    if target.exists():
        raise RegionError(f"'{target}' is damaged", hint="remove it; its keys are throw-away and are made again")
    return new.rename(target)


def _issue(seat: _Seat, *, now: datetime, authority: Issued | None) -> Issued:
    names = [seat.name] if authority is None else [seat.name, seat.registry]
    return issue(
        seat.name,
        now=now,
        days=_VALID_DAYS,
        names=names,
        addresses=[seat.ipv4],
        authority=authority,
        throw_away=True,
    )


def _region(generation: Path) -> Region:
    return Region(
        name=REGION,
        networks=NETWORKS,
        servers=tuple(
            Server(
                name=seat.name, ipv4=seat.ipv4, pem=generation / f"{seat.stem}.pem", key=generation / f"{seat.stem}.key"
            )
            for seat in _REGION_SEATS
        ),
        update_servers=tuple(
            Server(
                name=seat.name,
                ipv4=seat.ipv4,
                pem=generation / "ca.pem",
                certificate=generation / f"{seat.stem}.pem",
                key=generation / f"{seat.stem}.key",
                registry=seat.registry,
            )
            for seat in _UPDATE_SEATS
        ),
        embedded=True,
    )
