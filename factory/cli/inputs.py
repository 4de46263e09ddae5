# SPDX-License-Identifier: Apache-2.0
"""``factory inputs``: what builds fetched."""

from __future__ import annotations

import typer

from factory.cli.edge import Image, Json, RunId, app, installation, print_json

inputs_app = typer.Typer(help="What builds fetched.", no_args_is_help=True)
app.add_typer(inputs_app, name="inputs")


@inputs_app.command("show")
def inputs_show(image: Image, run: RunId = None, as_json: Json = False) -> None:
    """What a run's build fetched, by repository and path."""
    from factory.inputs.lock import read_lock
    from factory.model import Artifact

    artifact = installation().state.run_of(image, run).read("build", Artifact)
    entries = read_lock(artifact.lock)
    if as_json:
        print_json("inputs", entries)
        return
    for entry in entries:
        print(f"{entry.sha512[:16]} {entry.size_bytes:>11} {entry.repository}/{entry.path}")
