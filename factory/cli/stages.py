# SPDX-License-Identifier: Apache-2.0
"""The six stages as verbs, and the night that runs them all."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from factory.cli.edge import (
    AllowDirty,
    AllowStale,
    DryRun,
    Image,
    InCloud,
    Json,
    RunId,
    announce,
    app,
    clock,
    installation,
    ledger,
    one_stage,
    page_of_night,
    print_json,
    say,
    saying,
    table,
)
from factory.errors import FactoryError, InputFault

if TYPE_CHECKING:
    from factory.installation import Installation
    from factory.model import Check
    from factory.pipeline import Night


_OBJECTS = 100_000
"""How many new objects Python waits for before it looks for dead cycles, in verbs that build. Most of what these make
are modules and records that live as long as they do: looking through them again and again took a tenth of their own
processor time. Servers, which live on, look as often as Python does by itself."""


@app.command()
def describe(image: Image, as_json: Json = False) -> None:
    """Resolve a description into a recipe: a build tree that plain kiwi can build."""
    with one_stage(image, None, fresh=True) as line:
        recipe = line.describe()
        line.begin()
    if as_json:
        print_json("describe", recipe)
        return
    description = recipe.description
    table(
        ("image", description.name),
        ("line", description.line),
        ("builder", f"{description.builder}, {description.arch}, {description.disk.firmware}"),
        ("publish", description.publish),
        ("commit", (recipe.commit or "not in git") + (" with uncommitted changes" if recipe.dirty else "")),
        *((f"repository {one.alias}", f"{one.url} {' '.join(one.suites)}") for one in recipe.repositories),
        *((f"mirror {alias}", url) for alias, url in recipe.mirrors.items()),
        *((f"region {one.name}", ", ".join(server.name for server in one.servers)) for one in recipe.regions),
        ("tree", str(recipe.tree)),
        ("tree digest", recipe.tree_sha256),
        ("recipe digest", recipe.digest),
        ("run", line.run.id),
    )


@app.command()
def build(
    image: Image,
    run: RunId = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Install every package anew, also when an earlier build's tree is kept.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Build the image from its recipe (describes first when the newest run is built already)."""
    gc.set_threshold(_OBJECTS)
    with one_stage(image, run, fresh=run is None and newest_stage(image) != "describe") as line:
        recipe = line.describe()
        line.begin()
        artifact = line.build(recipe, fresh=fresh)
    if as_json:
        print_json("build", artifact)
        return
    table(
        ("image", str(artifact.path)),
        ("sha256", artifact.sha256),
        ("size", f"{artifact.size_bytes / 1e6:.1f} MB, virtual {artifact.virtual_size_bytes >> 30} GiB"),
        ("packages", f"{len(artifact.packages)}, listed in {artifact.packages_list}"),
        ("source", str(artifact.tarball)),
        ("run", line.run.id),
    )


@app.command()
def verify(
    image: Annotated[str, typer.Argument(help="A folder under descriptions/, or a qcow2 file.", show_default=False)],
    run: RunId = None,
    cloud: InCloud = None,
    as_json: Json = False,
) -> None:
    """Boot the image in the sandbox, run the acceptance suite, and judge it (exit 1 when red)."""
    from factory.model import Artifact

    if image.endswith(".qcow2") or "/" in image:
        from factory.verify import verify_file

        here = installation(cloud)
        verdict = verify_file(
            Path(image),
            state=here.state,
            suite=here.suite,
            say=saying("verify"),
            now=clock(),
            tenant=here.site.sandbox,
        )
    else:
        with one_stage(image, run, cloud=cloud) as line:
            verdict = line.verify(line.run.read("build", Artifact))
    if as_json:
        print_json("verify", verdict)
    else:
        print_checks(verdict.checks)
    if not verdict.passed:
        raise typer.Exit(1)


@app.command()
def sign(
    image: Annotated[
        str, typer.Argument(help="A folder under descriptions/; none with --request.", show_default=False)
    ] = "",
    *,
    run: RunId = None,
    request_out: Annotated[
        Path | None, typer.Option("--request-out", metavar="FILE", help="Sign nothing; write what another host signs.")
    ] = None,
    request: Annotated[
        Path | None, typer.Option("--request", metavar="FILE", help="Sign what the host that built asks for.")
    ] = None,
    signatures_out: Annotated[
        Path | None, typer.Option("--signatures-out", metavar="FILE", help="With --request: where its answer goes.")
    ] = None,
    signatures: Annotated[
        Path | None, typer.Option("--signatures", metavar="FILE", help="Make the bundle of what another host signed.")
    ] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Sign a green image, its checksums, its source tarball, and statements of how it was made and tested.

    The key may be on another host: --request-out here, --request FILE --signatures-out there, --signatures here.
    """
    from factory.cli import signing

    modes = [name for name, one in (("--request-out", request_out), ("--signatures", signatures)) if one is not None]
    if request is not None:
        if image or modes or run:
            raise InputFault("--request goes with no image, and with --signatures-out or --dry-run only")
        signing.sign_for_another_host(request, signatures_out, dry_run=dry_run, as_json=as_json)
        return
    if not image:
        raise InputFault("Missing argument 'image'", hint="or --request FILE, to sign what another host built")
    if len(modes) > 1 or signatures_out is not None or (dry_run and modes):
        raise InputFault("these options do not go together", hint="see 'factory sign --help'")
    with one_stage(image, run) as line:
        if dry_run or request_out is not None:
            signing.ask_another_host(line, None if dry_run else request_out, as_json=as_json)
            return
        bundle = signing.take_answer(line, signatures) if signatures is not None else signing.sign_here(line)
    if as_json:
        print_json("sign", bundle)
        return
    table(
        ("bundle", str(bundle.directory)),
        ("key", bundle.fingerprint + (" (throw-away)" if bundle.throw_away_key else "")),
        *(("file", name) for name in bundle.files),
    )


@app.command()
def publish(
    image: Image,
    run: RunId = None,
    allow_dirty: AllowDirty = False,
    allow_stale: AllowStale = False,
    as_json: Json = False,
) -> None:
    """Upload a signed image, hidden, read its digest back, and fill the download directory."""
    from factory.model import Bundle

    with one_stage(image, run) as line:
        bundle = line.run.read("sign", Bundle)
        publication = line.publish(bundle, force=True, allow_dirty=allow_dirty, allow_stale=allow_stale)
    if as_json:
        print_json("publish", publication)
    else:
        releases = ((release.dated_name, release.image_id) for release in publication.releases)
        table(*releases, ("why", publication.reason))
    if publication.stale:
        raise typer.Exit(3)


@app.command()
def rotate(image: Image, run: RunId = None, as_json: Json = False) -> None:
    """Make a published image ``<line>_latest``; the one before becomes ``_prev``."""
    from factory.model import Publication

    with one_stage(image, run) as line:
        rotations = line.rotate(line.run.read("publish", Publication))
    if as_json:
        print_json("rotate", rotations)
    for one in rotations.rotations if not as_json else ():
        differs = (("differs", "; ".join(one.differs)),) if one.differs else ()
        table(("latest", one.latest), ("prev", one.prev or "-"), ("gap", f"{one.gap_s * 1000:.0f} ms"), *differs)
    if any(one.differs for one in rotations.rotations):
        raise typer.Exit(1)


@app.command()
def nightly(
    image: Annotated[
        str, typer.Argument(help="A folder under descriptions/; none with --all.", show_default=False)
    ] = "",
    *,
    every: Annotated[
        bool, typer.Option("--all", help="Every image, as many at once as memory and processors allow.")
    ] = False,
    jobs: Annotated[
        int | None, typer.Option("--jobs", metavar="N", min=1, help="With --all: at most N at once.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Make an image even though nothing changed.")] = False,
    allow_dirty: AllowDirty = False,
    allow_stale: AllowStale = False,
    cloud: InCloud = None,
    as_json: Json = False,
) -> None:
    """Describe, build, verify, sign, publish and rotate one image, and report; with --all every image."""
    from factory.cli.nights import expect_one_kind, nightly_all

    expect_one_kind(image, every=every, jobs=jobs)
    if every:
        nightly_all(
            force=force, allow_dirty=allow_dirty, allow_stale=allow_stale, cloud=cloud, jobs=jobs, as_json=as_json
        )
        return
    gc.set_threshold(_OBJECTS)
    from factory import pipeline
    from factory.describe import load_description
    from factory.doctor import require
    from factory.system.clock import now

    here = installation(cloud)
    load_description(here.project, image)
    here.logins(image)  # a secret that cannot be read is a fault of the site file, told before anything starts
    require(here, [image])  # another image's mirror is away: no reason to stop
    with ledger(here) as records:
        try:
            night = pipeline.nightly(
                image,
                here=here,
                ledger=records,
                now=now,
                say=say,
                force=force,
                allow_dirty=allow_dirty,
                allow_stale=allow_stale,
            )
        except FactoryError as broken:
            announce(here, image, "broken", broken.message)
            from factory.cli.releases import promises

            for one in promises(here, image, records) or ():
                say("promises", str(one))
            if records is not None and (runs := here.state.runs_of(image)):
                say("report", str(page_of_night(records, runs[0]) or "no page"))
            raise
        page = page_of_night(records, night.run) if records else None
    night = replace(night, own_cpu_s=time.process_time())  # from our start on, the page included
    if night.outcome == "red" or night.stale:
        announce(here, image, night.outcome, night.reason)
    if as_json:
        print_json("nightly", night)
    else:
        print_night(night, here, page)
    if night.stale:
        raise typer.Exit(3)
    if night.outcome == "red" or (night.rotations and any(one.differs for one in night.rotations.rotations)):
        raise typer.Exit(1)


def _canary(night: Night) -> str:
    """How the canaries of a night fared, in a few words."""
    if night.canaries is None:
        return "not configured"
    words = (
        "green" if one.green else "red, rolled back" if one.rolled_back else "red" for one in night.canaries.canaries
    )
    pairs = zip(night.canaries.canaries, words, strict=True)
    return ", ".join(f"{word} in {one.tenant}" for one, word in pairs)


def newest_stage(image: str) -> str:
    """The last finished stage of the image's newest run, or nothing."""
    runs = installation().state.runs_of(image)
    return (runs[0].stages() or ("",))[-1] if runs else ""


def print_checks(checks: Iterable[Check]) -> None:
    """Every check, failures last so that they are read."""
    for check in sorted(checks, key=lambda one: one.outcome == "failed"):
        print(f"{check.outcome.value:<8} {check.name}")
        if check.outcome == "failed":
            print(f"         {check.guarantee}\n         {check.message}")


def print_night(night: Night, here: Installation, page: Path | None) -> None:
    """The summary: stages with results and seconds, where the files are, and what the release is called."""
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True)
    title = f"{night.image}: {night.outcome} ({night.reason})"
    summary = Table("stage", "result", "seconds", "itself", "", title=title)
    for stage in night.stages:
        summary.add_row(stage.stage, stage.outcome, f"{stage.seconds:.1f}", f"{stage.own_cpu_s:.1f}", stage.note)
    console.print(summary)
    if night.verdict is not None and not night.verdict.passed:
        print_checks(night.verdict.failures)
    table(
        *((("canary", _canary(night)),) if night.rotations else ()),
        ("run", str(night.run.path)),
        ("itself", f"{night.own_cpu_s:.1f} s of processor time outside the programs it called"),
        *((("report", str(page)),) if page else ()),
        *((("download", str(here.state.dist)),) if night.rotations else ()),
    )
    if night.rotations and any(one.target.cloud == "embedded" for one in night.rotations.rotations):
        print(f'look:     eval "$({Path(sys.argv[0]).name} --state {here.state.path} cloud env)"; glance image-list')
