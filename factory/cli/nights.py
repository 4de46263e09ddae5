# SPDX-License-Identifier: Apache-2.0
"""``factory nightly --all``: a process for each image, one summary."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from factory.cli.edge import installation, print_json, site_file, state_folder, table
from factory.errors import InputFault
from factory.system.text import visible

if TYPE_CHECKING:
    from factory.installation import Installation
    from factory.model import Description
    from factory.nights import Nights, Resources


def expect_one_kind(image: str, *, every: bool, jobs: int | None) -> None:
    """Raise InputFault unless one image is named, or all are meant."""
    if every and image:
        raise InputFault("--all goes with no image")
    if not every and not image:
        raise InputFault("Missing argument 'image'", hint="or --all, for every image")
    if not every and jobs is not None:
        raise InputFault("--jobs goes with --all only")


def nightly_all(
    *, force: bool, allow_dirty: bool, allow_stale: bool, cloud: str | None, jobs: int | None, as_json: bool
) -> None:
    """Do the night of every image of the project, and sum up; the status is the gravest of all."""
    from factory.describe import images
    from factory.doctor import require
    from factory.nights import all_nights, needs

    here = installation(cloud)
    names = images(here.project)
    if not names:
        raise InputFault("there is no image", hint=f"'{here.project / 'descriptions'}' holds no image.toml")
    require(here, [])  # what every image needs; each night asks for its own mirrors
    free = free_resources(here)
    wanted = {name: needs(description(here, name), free) for name in names}
    given = (("--force", force), ("--allow-dirty", allow_dirty), ("--allow-stale", allow_stale))
    words = [*(name for name, asked in given if asked), *(("--cloud", cloud) if cloud else ())]
    width = max(map(len, names))
    found = all_nights(
        wanted,
        lambda image: [sys.executable, "-m", "factory.cli", *before_verb(here), "nightly", image, "--json", *words],
        free=free,
        env=here.environment,
        said=lambda image, line: print(f"{image:<{width}} {visible(line)}", file=sys.stderr, flush=True),
        seconds=time.monotonic,
        jobs=jobs,
    )
    if as_json:
        print_json("nightly-all", found)
    else:
        print_nights(found)
    if found.status:
        raise typer.Exit(found.status)


def free_resources(here: Installation) -> Resources:
    """What this host has free now."""
    from factory.build.box import available_memory_bytes
    from factory.nights import Resources
    from factory.system.files import free_bytes

    return Resources(
        memory_bytes=available_memory_bytes(),
        disk_bytes=free_bytes(here.state.path),
        cpus=len(os.sched_getaffinity(0)),
    )


def before_verb(here: Installation) -> list[str | Path]:
    """The options before the verb, as this process understood them."""
    site = site_file()
    named: list[str | Path] = ["--project", here.project, "--state", state_folder()]
    return [*named, *(("--site", site) if site else ())]


def description(here: Installation, image: str) -> Description | None:
    """A description; the faults of one are told by its own night."""
    from factory.describe import load_description

    try:
        return load_description(here.project, image)
    except InputFault:
        return None


def print_nights(found: Nights) -> None:
    """A line for each image, then the sum."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    summary = Table("image", "result", "exit", "seconds", "", title="all images")
    for one in found.nights:
        cells = (one.image, one.outcome, str(one.status), f"{one.seconds:.0f}", visible(one.reason))
        summary.add_row(*map(Text, cells))
    Console(soft_wrap=True).print(summary)
    good = sum(one.status == 0 for one in found.nights)
    table(
        ("nights", f"{good} of {len(found.nights)} good, at most {found.at_once} at once, {found.seconds:.0f} s"),
        *((one.image, str(one.night["run"]["path"])) for one in found.nights if one.night),
    )
