# SPDX-License-Identifier: Apache-2.0
"""``factory rebuild``: the same bytes again, or what differs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from factory.cli.edge import Json, app, clock, installation, print_json, saying, table
from factory.errors import InputFault
from factory.system.text import visible

if TYPE_CHECKING:
    from factory.build.compare import Difference

_SHOWN = 60


@app.command()
def rebuild(
    tarball: Annotated[
        Path, typer.Argument(help="A source tarball, with its signature beside it.", show_default=False)
    ],
    *,
    inputs: Annotated[
        str,
        typer.Option(
            "--inputs", metavar="DIR|URL", help="Where the recorded inputs are (default: this factory's own store)."
        ),
    ] = "",
    repo: Annotated[
        list[str] | None,
        typer.Option(
            "--repo", metavar="ALIAS=URL", help="Ask this mirror first for a repository's files (repeatable)."
        ),
    ] = None,
    key: Annotated[list[Path] | None, typer.Option("--key", help="A public key file to trust (repeatable).")] = None,
    image: Annotated[
        Path | None,
        typer.Option("--image", metavar="FILE", help="The published image, to look into (default: beside TARBALL)."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Keep the new image, its lists and its logs there.")
    ] = None,
    diffoscope: Annotated[
        bool, typer.Option("--diffoscope", help="Compare images that differ with diffoscope as well.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make an image again from its signed source tarball, offline, and compare (exit 1 when it differs)."""
    from factory.rebuild import Trust
    from factory.rebuild import rebuild as again

    here = installation()
    found = again(
        tarball,
        trust=Trust(keys=here.project / "keys", public_keys=tuple(key or ()), trusted=here.state.keys / "public"),
        state=here.state,
        now=clock(),
        say=saying("rebuild"),
        inputs=inputs,
        mirrors=dict(_pair(one) for one in repo or ()),
        image=image,
        out=out,
        diffoscope=diffoscope,
    )
    if as_json:
        print_json("rebuild", found)
    else:
        print(f"{found.image}: {'identical' if found.identical else 'NOT identical'}")
        table(
            ("sha256", found.sha256),
            *((("recorded", found.recorded),) if found.sha256 != found.recorded else ()),
            ("tarball", "identical" if found.tarball_identical else "differs"),
            ("signed by", found.signed_by + (" (throw-away)" if found.throw_away_key else "")),
            *((("kept", str(found.kept)),) if found.kept else ()),
            *((("diffoscope", str(found.diffoscope)),) if found.diffoscope else ()),
        )
        print_differences(found.differences)
        for name in found.unasked:
            print(f"input    not asked for: {name}")
    if not found.identical:
        raise typer.Exit(1)


def print_differences(found: tuple[Difference, ...]) -> None:
    """One line a difference, the first of them with what was recorded and what was found."""
    for one in found[:_SHOWN]:
        package = f" ({one.package})" if one.package else ""
        print(f"{one.what:<8} {','.join(one.classes):<16} {visible(one.name)}{package}")
        if one.recorded or one.found:
            print(f"         recorded: {visible(one.recorded)}\n         found:    {visible(one.found)}")
    if len(found) > _SHOWN:
        print(f"and {len(found) - _SHOWN} more; --json lists all")


def _pair(text: str) -> tuple[str, str]:
    alias, equals, address = text.partition("=")
    if not alias or not equals or not address:
        raise InputFault(f"--repo needs ALIAS=URL, not '{text}'")
    return alias, address
