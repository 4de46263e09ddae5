# SPDX-License-Identifier: Apache-2.0
"""``factory diff``: what changed between two images."""

from __future__ import annotations

from typing import Annotated

import typer

from factory.cli.edge import Json, app, installation, print_json
from factory.errors import InputFault


@app.command("diff")
def image_diff(
    old: Annotated[
        str,
        typer.Argument(
            help="A run, IMAGE, IMAGE@latest, IMAGE@prev, a bundle or download folder, or a qcow2 file in one.",
            show_default=False,
        ),
    ],
    new: Annotated[
        str, typer.Argument(help="The same (default: OLD is the newer one, of two that users had).", show_default=False)
    ] = "",
    markdown: Annotated[bool, typer.Option("--markdown", help="As a release note.")] = False,
    as_json: Json = False,
) -> None:
    """Say what changed between two images: packages, security fixes, files, size, services, ports, kernel settings.

    'factory diff IMAGE' compares the newest image with the one that was published before it.
    """
    from factory.diff import between
    from factory.diff.text import lines, release_note

    if markdown and as_json:
        raise InputFault("--markdown and --json exclude each other")
    found = between(old, new, state=installation().state)
    if as_json:
        print_json("diff", found)
    elif markdown:
        print(release_note(found, found.new, line=found.new.image.removesuffix(".qcow2")), end="")
    else:
        print("\n".join(lines(found)))
