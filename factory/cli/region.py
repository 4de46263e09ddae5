# SPDX-License-Identifier: Apache-2.0
"""``factory region``: what images carry to find their region servers, and those servers."""

from __future__ import annotations

import typer

from factory.cli.edge import Image, app, clock, installation

region_app = typer.Typer(help="Region servers: what images carry to find them.", no_args_is_help=True)
app.add_typer(region_app, name="region")


@region_app.command("check")
def region_check(image: Image) -> None:
    """Check what an image will carry to find its region servers (exit 1 on faults)."""
    from factory.describe import check_image

    here = installation()
    faults = check_image(here.project, image, site=here.site, regions=here.regions(clock()), now=clock())
    for fault in faults:
        print(fault)
    if faults:
        raise typer.Exit(1)
    print(f"{image}: region configuration and certificates are good")
