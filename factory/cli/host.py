# SPDX-License-Identifier: Apache-2.0
"""The host the factory works on: what is missing, what can go."""

from __future__ import annotations

from typing import Annotated

import typer

from factory.cli.edge import DryRun, Json, app, clock, installation, print_json, saying
from factory.errors import InputFault


@app.command()
def doctor(
    name: Annotated[
        str, typer.Argument(help="With --cloud: a target of site.toml or a cloud of clouds.yaml.", show_default=False)
    ] = "",
    cloud: Annotated[
        bool, typer.Option("--cloud", help="Try what the clouds of site.toml can do, or the one named.")
    ] = False,
    image: Annotated[
        str | None, typer.Option("--image", metavar="IMAGE", help="Ask only the mirrors of this image.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what is missing on this host, why it is needed, and what is still embedded (exit 3 when something is).

    With --cloud: try a cloud's image service with a throw-away image, and say what will be degraded and why.
    """
    from factory.describe import load_description
    from factory.doctor import examine

    if cloud or name:
        examine_clouds(name, cloud=cloud, as_json=as_json)
        return
    here = installation()
    if image is not None:
        load_description(here.project, image)  # one that is there, and without faults
    found = examine(here, now=clock(), only=None if image is None else [image])
    if as_json:
        print_json("doctor", found)
    else:
        for finding in found:
            print(f"{'ok     ' if finding.ok else 'MISSING'} {finding.name}: {finding.says}")
            if not finding.ok and finding.cure:
                print(f"        {finding.cure}")
    if any(finding.needed and not finding.ok for finding in found):
        raise typer.Exit(3)


def examine_clouds(name: str, *, cloud: bool, as_json: bool) -> None:
    """Probe the targets of the site file, or the cloud named."""
    from factory.doctor import probe_clouds

    if not cloud:
        raise InputFault(f"'{name}' is no option", hint="'factory doctor --cloud NAME' looks at a cloud")
    found = probe_clouds(installation(), name, now=clock, say=saying("doctor"))
    if as_json:
        print_json("doctor-cloud", found)
    for target, probes in found.items() if not as_json else ():
        print(target)
        for one in probes:
            print(f"  {'ok      ' if one.ok else 'MISSING ' if one.needed else 'degraded'} {one.name}: {one.says}")
            if not one.ok and one.degraded:
                print(f"           {one.degraded}")
    if any(one.needed and not one.ok for probes in found.values() for one in probes):
        raise typer.Exit(3)


@app.command()
def gc(dry_run: DryRun = False, as_json: Json = False) -> None:
    """Remove old runs, blobs and logs that nothing needs any more."""
    from factory.gc import collect

    found = collect(installation().state, now=clock(), dry_run=dry_run)
    if as_json:
        print_json("gc", found)
        return
    for path, why in found.removals:
        print(f"{'would remove' if dry_run else 'removed'} {path}: {why}")
    print(f"{found.freed_bytes / 1e6:.0f} MB {'would be ' if dry_run else ''}freed")
