# SPDX-License-Identifier: Apache-2.0
"""The images there are, and a new one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from factory.cli.edge import DryRun, Json, app, clock, installation, ledger, print_json, table
from factory.errors import InputFault

if TYPE_CHECKING:
    from factory.overview import Listed, Overview


@app.command("list")
def list_images(as_json: Json = False) -> None:
    """The images there are: builder, line, how each last went, and what each lacks on this host."""
    from factory.describe import generic_twice
    from factory.overview import overview

    here = installation()
    with ledger(here) as records:
        found = overview(here, records, now=clock())
    if as_json:
        print_json("list", found)
    else:
        print_overview(found)
    if twice := generic_twice(here.project):
        raise InputFault("of these images only one of each pair can be generic", faults=twice)


def print_overview(found: Overview) -> None:
    """One line an image, then what is missing."""
    heads = ("image", "builder", "line", "in Glance", "last", "when", "misses")
    rows = [heads, *(_row(one) for one in found.images)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    told = (("every image", found.host), *((one.image, one.misses) for one in found.images))
    for name, misses in told:
        for number, one in enumerate(misses):
            print(f"{chr(10)}{name} misses" if number == 0 else "", end=chr(10) if number == 0 else "")
            print(f"  {one}")


def _row(one: Listed) -> tuple[str, ...]:
    name = f"{one.name} ({one.latest})" if one.latest else one.name
    when = f"{one.age} ago" if one.age else "-"
    return one.image, one.builder, one.line, name, one.outcome, when, str(len(one.misses) or "-")


@app.command()
def new(
    name: Annotated[
        str, typer.Argument(help="What the new image is called: a folder under descriptions/.", show_default=False)
    ],
    *,
    source: Annotated[str, typer.Option("--from", metavar="IMAGE", help="The description it starts from.")],
    line: Annotated[
        str, typer.Option("--line", metavar="LINE", help="What it rotates as (default: the source's prefix and NAME).")
    ] = "",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Make a description from one that is there; it can be built at once."""
    from factory.describe import scaffold

    made = scaffold(installation().project, name, source=source, line=line, dry_run=dry_run)
    if as_json:
        print_json("new", made)
        return
    table(
        ("folder", f"{made.folder}{' (not made)' if dry_run else ''}"),
        ("line", made.line),
        ("builder", made.builder),
        *(("changed", one) for one in made.changed),
        *(() if dry_run else (("next", f"factory describe {name}, then factory build {name}"),)),
    )
