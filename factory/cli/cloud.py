# SPDX-License-Identifier: Apache-2.0
"""``factory cloud``: the embedded Keystone and Glance on loopback."""

from __future__ import annotations

import typer

from factory.cli.edge import Json, app, installation, print_json, saying, table

cloud_app = typer.Typer(help="The embedded Keystone and Glance on loopback.", no_args_is_help=True)
app.add_typer(cloud_app, name="cloud")


@cloud_app.command("up")
def cloud_up() -> None:
    """Start it (installing nothing); it stays up until 'factory cloud down'."""
    from factory.cloud import up

    access = up(installation().state.cloud, say=saying("cloud"))
    table(("clouds.yaml", str(access.clouds_yaml)), ("keystone", access.auth_url), ("try", "factory cloud env"))


@cloud_app.command("down")
def cloud_down() -> None:
    """End exactly the processes that 'up' started; images stay."""
    from factory.cloud import down

    down(installation().state.cloud)


@cloud_app.command("status")
def cloud_status(as_json: Json = False) -> None:
    """Whether it runs (exit 1 when it does not)."""
    from factory.cloud import status as cloud_state

    found = cloud_state(installation().state.cloud)
    if as_json:
        print_json("cloud-status", found)
    else:
        table(*((name, str(value)) for name, value in found.items()))
    if not found["running"]:
        raise typer.Exit(1)


@cloud_app.command("env")
def cloud_env() -> None:
    """Shell lines that point 'openstack' and 'glance' at it (use with eval)."""
    from factory.cloud import env

    print(env(installation().state.cloud), end="")
