# SPDX-License-Identifier: Apache-2.0
"""``factory inputs``: what builds fetched, whether it is still whole, and how to carry it elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from factory.cli.edge import DryRun, Json, RunId, app, clock, installation, print_json, saying, table

inputs_app = typer.Typer(help="What builds fetched.", no_args_is_help=True)
app.add_typer(inputs_app, name="inputs")

Lock = Annotated[
    str, typer.Argument(metavar="IMAGE", help="A folder under descriptions/, or a lock file.", show_default=False)
]
Store = Annotated[
    Path | None, typer.Option("--store", metavar="DIR", help="Another folder of blobs than this factory's own.")
]


def lock_of(image: str, run: str | None) -> Path:
    """The lock of a run of an image, or the file named."""
    from factory.model import Artifact

    if image.endswith(".lock") or "/" in image:
        return Path(image)
    return installation().state.run_of(image, run).read("build", Artifact).lock


def store_of(named: Path | None) -> Path:
    """The folder of blobs named, or this factory's own."""
    return named or installation().state.blobs


@inputs_app.command("show")
def inputs_show(image: Lock, run: RunId = None, as_json: Json = False) -> None:
    """What a run's build fetched, by repository and path."""
    from factory.inputs.lock import read_lock

    entries = read_lock(lock_of(image, run))
    if as_json:
        print_json("inputs", entries)
        return
    for entry in entries:
        what = f"{entry.sha512[:16]} {entry.size_bytes:>11}" if entry.found else f"{'answer':<16} {entry.status:>11}"
        print(f"{what} {entry.repository}/{entry.path}")


@inputs_app.command("verify")
def inputs_verify(image: Lock, run: RunId = None, store: Store = None, as_json: Json = False) -> None:
    """Whether everything that a run's build fetched is still stored, byte for byte (exit 1 when not)."""
    from factory.inputs.export import contents, unsound
    from factory.inputs.lock import read_lock

    lock, blobs = read_lock(lock_of(image, run)), store_of(store)
    found = unsound(lock, blobs)
    if as_json:
        print_json("inputs-verify", found)
    else:
        for one in found:
            print(f"{one.repository}/{one.path} {one.problem} (sha512 {one.sha512[:16]})")
        print(f"{blobs}: {len(contents(lock)) - len(found)} files good, {len(found)} not")
    if found:
        raise typer.Exit(1)


@inputs_app.command("gc")
def inputs_gc(dry_run: DryRun = False, as_json: Json = False) -> None:
    """Remove stored inputs that no kept run names; 'factory gc' does this and more."""
    from factory.gc import collect_blobs

    found = collect_blobs(installation().state, now=clock(), dry_run=dry_run)
    if as_json:
        print_json("inputs-gc", found)
        return
    for path, why in found.removals:
        print(f"{'would remove' if dry_run else 'removed'} {path}: {why}")
    for path, why in found.skipped:
        print(f"left {path}: {why}")
    print(f"{found.freed_bytes / 1e6:.0f} MB {'would be ' if dry_run else ''}freed")


@inputs_app.command("export")
def inputs_export(
    image: Lock,
    to: Annotated[Path, typer.Option("--out", metavar="DIR|FILE.tar", help="Where to write; must not exist.")],
    *,
    run: RunId = None,
    store: Store = None,
    sources: Annotated[
        bool,
        typer.Option(
            "--sources",
            help="The source packages of what the image installs instead; DIR may exist, and is gone on with.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a run's lock and exactly the files it names to a folder or tar file, for 'factory rebuild --inputs'.

    With --sources, fetch the source packages of the image into a folder (exit 1 when the mirrors lack one).
    """
    if sources:
        _export_sources(image, run, to, as_json=as_json)
        return
    from factory.inputs.export import export_inputs

    moved = export_inputs(lock_of(image, run), blobs=store_of(store), to=to, say=saying("inputs"))
    if as_json:
        print_json("inputs-export", moved)
        return
    table(("exported", str(moved.place)), ("files", str(moved.files)), ("size", f"{moved.size_bytes / 1e6:.1f} MB"))


def _export_sources(image: str, run: str | None, out: Path, *, as_json: bool) -> None:
    from factory.errors import InputFault
    from factory.sources import export_sources_of

    if image.endswith(".lock") or "/" in image or out.suffix == ".tar":
        raise InputFault(
            "--sources wants an image and a folder", hint="factory inputs export debian13 --sources --out DIR"
        )
    here = installation()
    found = export_sources_of(here.state.run_of(image, run), here=here, out=out, now=clock(), say=saying("inputs"))
    if as_json:
        print_json("sources", found)
    else:
        for one in found.missing:
            print(f"missing: {one.name} {one.version} ({', '.join(one.binaries)}): {one.missing}")
        have = len(found.packages) - len(found.missing)
        table(
            ("sources", f"{have} of {len(found.packages)}, {found.size_bytes / 1e6:.1f} MB, in {found.place}"),
            ("ours", f"{', '.join(found.ours) or 'none'} (in the image's source tarball)"),
        )
    if found.missing:
        raise typer.Exit(1)


@inputs_app.command("import")
def inputs_import(
    source: Annotated[Path, typer.Argument(metavar="DIR|FILE.tar", help="What an export wrote.", show_default=False)],
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Take an export in, after comparing every file with the export's lock (exit 1 when one differs)."""
    from factory.inputs.export import import_inputs

    moved = import_inputs(source, blobs=store_of(store), say=saying("inputs"))
    if as_json:
        print_json("inputs-import", moved)
        return
    table(("imported to", str(moved.place)), ("files", str(moved.files)), ("new", str(moved.new)))
