# SPDX-License-Identifier: Apache-2.0
"""The tables of the site file about clouds: targets, their own properties, flavors, and how fresh mirrors must be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from factory.describe.places import KeyPath, place
from factory.describe.schema import FlavorTable, FreshnessTable, OtcTable, SiteFile, TargetTable, TenantTable
from factory.errors import Fault
from factory.model import Capability, Flavor, Freshness, Otc, PlatformSignature, Target, Tenant


def targets(read: SiteFile, folder: Path) -> tuple[Target, ...]:
    """The clouds to publish to; without any, the embedded one. Paths are relative to ``folder``."""
    downloads = read.downloads.url if read.downloads else ""
    return tuple(_target(one, read, folder) for one in read.target) or (Target(downloads=downloads),)


def sandbox(read: SiteFile) -> Tenant | None:
    """The tenant that images are verified in, or None for our own QEMU."""
    return None if read.sandbox is None else _tenant(read.sandbox, read)


def flavors(read: SiteFile) -> tuple[Flavor, ...]:
    """The flavors of the cloud."""
    return tuple(_flavor(one) for one in read.flavor)


def freshness(read: SiteFile) -> dict[str, Freshness]:
    """How fresh each repository's mirror must be, by alias."""
    return {alias: _freshness(one) for alias, one in read.freshness.items()}


def table_faults(shown: str, read: SiteFile, lines: Mapping[KeyPath, int]) -> Iterator[Fault]:
    """What these tables say twice, and what they refer to that is not there."""
    unique: tuple[tuple[KeyPath, str, list[str]], ...] = (
        (("flavor",), "name", [one.name for one in read.flavor]),
        (("otc", "capability"), "name", [one.name for one in read.otc.capability]),
        (("otc", "capability"), "bit", [str(one.bit) for one in read.otc.capability]),
    )
    for table, key, values in unique:
        for number, value in enumerate(values):
            if value in values[:number]:
                where = place(shown, lines, (*table, number, key))
                yield Fault(place=where, problem=f"'{value}' is there twice", cure=f"give each {key} once")
    yield from _tenant_faults(shown, read, lines)
    empty = not (read.otc.capability or read.otc.properties or read.otc.image)
    for number, target in enumerate(read.target):
        if target.otc and empty:
            where = place(shown, lines, ("target", number, "otc"))
            yield Fault(place=where, problem="there is no [otc] table to set", cure="add one, or remove this key")


def _tenant_faults(shown: str, read: SiteFile, lines: Mapping[KeyPath, int]) -> Iterator[Fault]:
    """Tenants that no cloud is named for, or that nobody could reach."""
    tables: list[tuple[KeyPath, TenantTable]] = [(("sandbox",), read.sandbox)] if read.sandbox else []
    tables += [(("target", number, "canary"), one.canary) for number, one in enumerate(read.target) if one.canary]
    common = read.sandbox.model_dump(exclude_none=True) if read.sandbox else {}
    for number, target in enumerate(read.target):
        if target.canary and target.cloud == "embedded":
            where = place(shown, lines, ("target", number, "canary"))
            yield Fault(place=where, problem="is for the embedded cloud, which starts no servers", cure="remove it")
    for table, one in tables:
        said = {**common, **one.model_dump(exclude_none=True)}
        cloud = said.get("cloud", "")
        if not cloud:
            yield Fault(
                place=place(shown, lines, (*table, "cloud")), problem="is missing", cure="a name in clouds.yaml"
            )
        elif cloud == "embedded":
            where = place(shown, lines, (*table, "cloud"))
            yield Fault(place=where, problem="is 'embedded', which starts no servers", cure="name a cloud with compute")
        elif not (said.get("network") or said.get("external_network")):
            where = place(shown, lines, (*table, "network"))
            cure = "name one, or an external_network to make one behind it"
            yield Fault(place=where, problem="is missing, and so is external_network", cure=cure)


def _target(read: TargetTable, site: SiteFile, folder: Path) -> Target:
    signature = read.signature
    return Target(
        **read.model_dump(exclude={"otc", "signature", "canary", "without"}),
        without=tuple(read.without),
        downloads=site.downloads.url if site.downloads else "",
        otc=_otc(site.otc) if read.otc else None,
        canary=_tenant(read.canary, site) if read.canary else None,
        signature=PlatformSignature(key=folder / Path(signature.key).expanduser(), certificate=signature.certificate)
        if signature
        else None,
    )


def _tenant(read: TenantTable, site: SiteFile) -> Tenant:
    """A tenant; what its table does not say, ``[sandbox]`` says. A made-up region answers in our QEMU only."""
    common = site.sandbox.model_dump(exclude_none=True) if site.sandbox else {}
    return Tenant(**{"site_services": bool(site.region), **common, **read.model_dump(exclude_none=True)})


def _otc(read: OtcTable) -> Otc:
    return Otc(
        capabilities=tuple(Capability(**one.model_dump()) for one in read.capability),
        properties=dict(read.properties),
        images={image: dict(table) for image, table in read.image.items()},
        exclusions=tuple((one[0], one[1]) for one in read.exclusions),
    )


def _flavor(read: FlavorTable) -> Flavor:
    lists: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in read.model_dump().items()
    }
    return Flavor(**lists)


def _freshness(read: FreshnessTable) -> Freshness:
    return Freshness(fresh_within_h=read.fresh_within_h, upstream=read.upstream, suites=tuple(read.suites))
