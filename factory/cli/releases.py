# SPDX-License-Identifier: Apache-2.0
"""What is published: look at it, mend it, take it back, check its signatures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from factory.cli.edge import (
    DryRun,
    Image,
    Json,
    RunId,
    announce,
    app,
    clock,
    installation,
    ledger,
    print_json,
    report_page,
    saying,
    table,
)
from factory.errors import FactoryError, InputFault

if TYPE_CHECKING:
    from factory.installation import Installation
    from factory.ledger import Ledger
    from factory.model import Step
    from factory.promises import Promise


@app.command()
def status(as_json: Json = False) -> None:
    """Each image's last run, its outcome, what is published, and which promises about it are at risk."""
    from factory.describe import images
    from factory.ledger import summary

    here = installation()
    with ledger(here) as records:
        found = [] if records is None else summary(records, images(here.project), now=clock())
        for row in found:
            row["promises"] = promises(here, str(row["image"]), records)
    if as_json:
        print_json("status", found)
        return
    for row in found:
        broken = row.pop("promises")
        table(*((name, "-" if value in {None, ""} else str(value)) for name, value in row.items()))
        table(("promises", "not known" if broken is None else "kept" if not broken else f"{len(broken)} at risk"))
        for one in broken or ():
            print(f"  {one}")
        print()


def promises(here: Installation, image: str, records: Ledger | None) -> tuple[Promise, ...] | None:
    """The promises of an image's line that are at risk; None when nobody can tell."""
    from factory.describe import load_description
    from factory.watch import promises_of

    try:
        description = load_description(here.project, image)
    except InputFault as faulty:
        saying("promises")(faulty.message)
        return None
    return promises_of(description, here=here, ledger=records, now=clock(), say=saying("promises"))


@app.command("table")
def flavor_table(
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write one self-contained page there.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Which image runs on which flavor of [[flavor]] in the site file, which can move while it runs, and why not."""
    from factory.describe import images, load_description
    from factory.system.files import write_whole
    from factory.table import page
    from factory.table import table as judged

    here = installation()
    if not here.site.flavors:
        raise InputFault("the site file names no flavor", hint="add [[flavor]] tables to site.toml")
    found = judged([load_description(here.project, name) for name in images(here.project)], here.site.flavors)
    if html is not None:
        write_whole(html, page(found, now=clock()))
    if as_json:
        rows = [
            {"image": one.image, "line": one.line, "flavor": one.flavor, "runs": one.runs, "why_not": one.why_not}
            | {"live_migration": one.moves, "stays": one.stays if one.runs else ()}
            for one in found.cells
        ]
        print_json("table", rows)
        return
    for one in found.cells:
        words = "; ".join(one.why_not) or ("moves while it runs" if one.moves else f"stays: {'; '.join(one.stays)}")
        table((f"{one.image} {one.flavor}", f"{'runs' if one.runs else 'does not run'}, {words}"))


@app.command()
def report(
    image: Image,
    run: RunId = None,
    tell: Annotated[bool, typer.Option("--notify", help="Tell whom [notify] in the site file names.")] = False,
) -> None:
    """Write a run's page, one self-contained HTML file, and print its path."""
    here = installation()
    found = here.state.run_of(image, run)
    with ledger(here) as records:
        if records is None:
            raise FactoryError("there is no ledger to report from", hint="run 'factory nightly' first")
        page = report_page(records, found)
    print(page)
    if tell:
        announce(here, image, "ended", f"run {found.id} finished {', '.join(found.stages()) or 'nothing'}; see {page}")


@app.command()
def reconcile(image: Image, dry_run: DryRun = False, as_json: Json = False) -> None:
    """Finish or undo what a crash left in Glance, and delete images that have outlived their promise."""
    from factory.describe import load_description
    from factory.retention import sweep
    from factory.rotate import reconcile as mend
    from factory.store import open_store
    from factory.system.lock import exclusive

    here = installation()
    description = load_description(here.project, image)
    line, grace = description.line, (here.site.retention or description.retention).grace_days
    steps: list[Step] = []
    with exclusive(here.state.locks / f"{image}.lock", what=f"image {image}"):
        for target in here.site.targets:
            with open_store(target, state=here.state, say=saying("reconcile")) as store:
                told = saying("reconcile")
                steps += mend(line, store=store, now=clock(), say=told, dry_run=dry_run)
                steps += sweep(line, store=store, now=clock(), say=told, grace_days=grace, dry_run=dry_run).steps
    if as_json:
        print_json("reconcile", steps)
        return
    for step in steps:
        print(f"{step.name}: {step.why}\n  image {step.image_id}: {dict(step.change)}")
    if not steps:
        print(f"{line}: nothing to do")


@app.command()
def rollback(
    image: Image,
    deactivate: Annotated[
        bool, typer.Option("--deactivate", help="Also let nobody start the withdrawn image by its id.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Withdraw ``<line>_latest`` in favour of ``_prev``, on every target."""
    from factory.describe import load_description
    from factory.rotate import rollback as withdraw
    from factory.store import open_store
    from factory.system.lock import exclusive

    here = installation()
    line = load_description(here.project, image).line
    done = []
    with exclusive(here.state.locks / f"{image}.lock", what=f"image {image}"):
        for target in here.site.targets:
            with open_store(target, state=here.state, say=saying("rollback")) as store:
                told = saying("rollback")
                done.append(withdraw(line, store=store, target=target, now=clock(), say=told, deactivate=deactivate))
    if as_json:
        print_json("rollback", done)
        return
    for one in done:
        table(("cloud", one.target.cloud), ("latest", one.latest), ("prev", one.prev or "-"))


@app.command("verify-signature")
def verify_signature(
    directory: Annotated[Path, typer.Argument(help="A bundle or download directory.", show_default=False)],
    key: Annotated[list[Path] | None, typer.Option("--key", help="A public key file to trust (repeatable).")] = None,
    as_json: Json = False,
) -> None:
    """Check checksums, signatures and statements of a bundle, with public keys only (exit 1 when not good)."""
    from factory.sign.verify import verify_signatures

    here = installation()
    found = verify_signatures(
        directory,
        keys=here.project / "keys",
        public_keys=tuple(key or ()),
        trusted=here.state.keys / "public",
        now=clock(),
    )
    if as_json:
        print_json("verify-signature", found)
        return
    print(f"{directory}: good")
    signer = found.fingerprint + (" (throw-away: proves nothing to others)" if found.throw_away else "")
    table(("signed by", signer), ("files", str(len(found.files))))
    if (said := found.evidence) is None:
        table(("provenance", "none: made by a factory that attested nothing yet"))
        return
    from factory.system.text import visible

    commit = (said.commit or "not in git") + (" with uncommitted changes" if said.dirty else "")
    table(
        ("provenance", visible(f"run {said.run} of {said.builder}")),
        ("commit", visible(commit)),
        ("materials", f"{said.materials} inputs, those of the lock"),
        ("verdict", f"green, {said.passed} checks passed, {visible(said.judged_at)}"),
        *(("unmet", visible(one)) for one in said.unmet),
    )
