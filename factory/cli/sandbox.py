# SPDX-License-Identifier: Apache-2.0
"""The tenant that images are booted in: what crashed runs left there."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from factory.cli.edge import DryRun, Json, app, clock, installation, print_json, saying
from factory.errors import FactoryError, InputFault

if TYPE_CHECKING:
    from factory.model import Site, Tenant
    from factory.sandbox.openstack import Swept

sandbox = typer.Typer(help="The tenant of a cloud that images are booted in.", no_args_is_help=True)
app.add_typer(sandbox, name="sandbox")


@sandbox.command()
def sweep(
    cloud: Annotated[
        str | None, typer.Option("--cloud", metavar="NAME", help="This tenant only (default: all of the site file).")
    ] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Delete what crashed runs left in tenants: what carries our mark and has outlived its lease or its run."""
    from factory.sandbox.openstack import sweep_leases
    from factory.sandbox.tenant_cloud import opened

    found: list[Swept] = []
    for tenant in _tenants(installation(cloud).site, cloud):
        with opened(tenant) as there:
            there.expect_compute()
            found += sweep_leases(there, now=clock(), say=saying("sweep"), dry_run=dry_run)
    if as_json:
        print_json("sandbox-sweep", found)
    elif not found:
        print("nothing to sweep")
    else:
        for one in found:
            what = f"not deleted: {one.trouble}" if one.trouble else "would be deleted" if dry_run else "deleted"
            print(f"{one.thing.kind} {one.thing.id}: {one.why}; {what}")
    if any(one.trouble for one in found):
        raise FactoryError("not everything could be deleted", hint="what was said above; run this again")


def _tenants(site: Site, cloud: str | None) -> list[Tenant]:
    """The tenants of the site file, each once, or the one that was named."""
    known = [site.sandbox, *(target.canary for target in site.targets)]
    places = {(one.cloud, one.region_name): one for one in reversed(known) if one is not None}
    if cloud is not None:
        assert site.sandbox is not None
        return [replace(site.sandbox, cloud=cloud)]
    if not places:
        raise InputFault("the site file names no tenant", hint="use --cloud NAME, or add [sandbox] to site.toml")
    return list(places.values())
