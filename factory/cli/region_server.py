# SPDX-License-Identifier: Apache-2.0
"""``factory region serve`` and ``factory region data``: the region server, and the file it answers from."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from factory.cli.edge import Json, clock, installation, print_json, saying, site_file
from factory.cli.region import region_app
from factory.errors import Fault, InputFault, RegionError

if TYPE_CHECKING:
    from factory.region.compare import Comparison
    from factory.region.data import RegionEntry
    from factory.region.networks import Generated
    from factory.region.wsgi import Ready

data_app = typer.Typer(help="The region server's data: which networks have which update servers.", no_args_is_help=True)
region_app.add_typer(data_app, name="data")

SERVICE_CONFIG = Path("/etc/regionService/regionInfo.cfg")
_MOST_WORKERS = 8

Networks = Annotated[
    Path | None,
    typer.Option("--networks", metavar="TABLE", help="Networks from a table (CSV or JSON): region, network."),
]
Servers = Annotated[
    Path | None,
    typer.Option(
        "--servers",
        metavar="TABLE",
        help="Regions and update servers from a table: region, name, ipv4, ipv6, registry, fingerprint or ca.",
    ),
]


@data_app.command("generate")
def data_generate(
    networks: Networks = None,
    servers: Servers = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write there, whole.")] = None,
    as_json: Json = False,
) -> None:
    """Make regionData.cfg from the site file or from tables (exit 2 with all faults)."""
    from factory.system.files import write_whole

    made = _generated(networks, servers)
    for note in made.notes:
        saying("region")(str(note))
    if out is not None:
        write_whole(out, made.text)
    if as_json:
        print_json("region-data-generate", made)
    elif out is None:
        print(made.text, end="")
    else:
        print(f"{out}: {len(made.entries)} regions, {sum(len(entry.networks) for entry in made.entries)} networks")


@data_app.command("validate")
def data_validate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A regionData.cfg.", show_default=False)],
    hint: Annotated[
        list[str] | None, typer.Option("--hint", metavar="NAME", help="A hint that instances send (repeatable).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a regionData.cfg for our region server and for SUSE's (exit 1 on faults, each with its line)."""
    from factory.describe import load_site
    from factory.region.validate import validate

    found = validate(file, hints=tuple(hint or ()), regions=load_site(site_file()).regions)
    if as_json:
        print_json("region-data-validate", found)
    else:
        _print_faults(found.faults, found.notes)
        if not found.faults:
            print(f"{file}: {found.regions} regions, {found.networks} networks are good")
    if found.faults:
        raise typer.Exit(1)


@data_app.command("diff")
def data_diff(  # noqa: PLR0917 - options of a command line
    others: Annotated[
        list[str],
        typer.Argument(metavar="FILE|URL...", help="What servers have: files, or https://HOST.", show_default=False),
    ],
    file: Annotated[
        Path | None, typer.Option("--file", metavar="FILE", help="Our regionData.cfg (default: made as by 'generate').")
    ] = None,
    networks: Networks = None,
    servers: Servers = None,
    ca: Annotated[
        Path | None,
        typer.Option("--ca", metavar="PEM", help="The certificate to trust (default: the site's, else the host's)."),
    ] = None,
    hints_only: Annotated[
        bool, typer.Option("--hints-only", help="Do not ask a running server for addresses of every network.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare our region data with other files, or with what running servers answer (exit 1 on differences)."""
    from factory.region.data import read_file, served_entries

    ours = served_entries(read_file(file), place=str(file)) if file else _generated(networks, servers).entries
    found = [_compared(ours, other, ca, hints_only=hints_only) for other in others]
    if as_json:
        print_json("region-data-diff", found)
    else:
        for one in found:
            _print_comparison(one)
    if any(one.differences for one in found):
        raise typer.Exit(1)
    if missing := [one for one in found if one.left_out and not hints_only]:
        raise RegionError(f"'{missing[0].other}' was not compared in full", hint=missing[0].left_out)


@region_app.command("serve")
def region_serve(  # noqa: PLR0917 - options of a command line
    file: Annotated[
        Path, typer.Option("--file", "-f", metavar="FILE", help="The service configuration.")
    ] = SERVICE_CONFIG,
    log: Annotated[Path | None, typer.Option("--log", "-l", metavar="FILE", help="Instead of its logFile.")] = None,
    region_data: Annotated[
        Path | None, typer.Option("--regiondata", "-r", metavar="FILE", help="Instead of its regionConfig.")
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option("--certificate", metavar="PEM", help="The server's certificate.")
    ] = None,
    key: Annotated[Path | None, typer.Option("--key", metavar="PEM", help="Its private key.")] = None,
    plain_http: Annotated[bool, typer.Option("--plain-http", help="No TLS: a proxy in front ends it.")] = False,
    bind: Annotated[
        list[str] | None, typer.Option("--bind", metavar="ADDRESS:PORT", help="Where to listen (default: [::]:443).")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, metavar="N", help="Processes (default: one for each CPU).")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Only check all files (exit 1 on faults).")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --check: one JSON document.")] = False,
) -> None:
    """Run the region server: tells instances the update servers of their region."""
    from factory.region.wsgi import Tls, prepare, serve

    tls = Tls(certificate=certificate, key=key) if certificate and key else None
    settled = tls is not None or (certificate is None and key is None)
    if not settled or ((tls is None) != plain_http and not check):
        raise InputFault("TLS is not settled", hint="give --certificate and --key, or --plain-http behind a proxy")

    def read() -> Ready:
        return prepare(file, now=clock(), log=log, region_data=region_data, tls=tls)

    if check:
        _check_service(read, file, tls=tls is not None, as_json=as_json)
        return
    count = workers or min(os.cpu_count() or 1, _MOST_WORKERS)
    serve(read, bind=bind or ["[::]:443"], tls=tls, workers=count, say=saying("region"))


def _generated(networks: Path | None, servers: Path | None) -> Generated:
    from factory.describe import load_site
    from factory.describe.places import key_lines
    from factory.region.networks import generate

    if servers is not None:
        return generate((), networks=networks, servers=servers)
    path = site_file()
    site = load_site(path)
    if not site.regions:
        saying("region")("the site file names no [[region]]: this is the embedded throw-away region")
        return generate(installation().regions(clock()), networks=networks, place="the embedded region")
    assert path is not None
    return generate(site.regions, networks=networks, place=path.name, lines=key_lines(path.read_text()))


def _compared(ours: Sequence[RegionEntry], other: str, ca: Path | None, *, hints_only: bool) -> Comparison:
    from factory.region.compare import compare_files, compare_running, running_server
    from factory.region.data import read_file, served_entries

    if "://" not in other:
        return compare_files(ours, served_entries(read_file(Path(other)), place=other), other=other)
    with running_server(other, pem=ca or _pinned(other)) as server:
        return compare_running(ours, server, hints_only=hints_only)


def _pinned(url: str) -> Path | None:
    """The certificate that the site's images pin for a server at this address."""
    from urllib.parse import urlsplit

    from factory.describe import load_site
    from factory.region.config import items

    host = urlsplit(url).hostname or ""
    regions = load_site(site_file()).regions
    named = {server.name: server for region in regions for server in region.servers}
    server = {**named, **items(regions)}.get(host)
    return server.pem if server else None


def _check_service(read: Callable[[], Ready], file: Path, *, tls: bool, as_json: bool) -> None:
    faults: tuple[Fault, ...] = ()
    notes: tuple[Fault, ...] = ()
    good = ""
    try:
        ready = read()
    except InputFault as faulty:
        faults = faulty.faults
    else:
        notes = ready.notes
        about = "" if tls else "; no certificate was given to check"
        good = f"{file}: {len(ready.table.regions)} regions, {ready.table.prefix_count} networks can be served{about}"
    if as_json:
        print_json("region-serve-check", {"faults": list(faults), "notes": list(notes), "tls_checked": tls})
    else:
        _print_faults(faults, notes)
        if good:
            print(good)
    if faults:
        raise typer.Exit(1)


def _print_faults(faults: Sequence[Fault], notes: Sequence[Fault]) -> None:
    for fault in faults:
        print(fault)
    for note in notes:
        print(f"note: {note}")


def _print_comparison(one: Comparison) -> None:
    for difference in one.differences:
        print(difference)
    verdict = f"{len(one.differences)} differences" if one.differences else "no difference"
    print(f"{one.other}: {verdict}, by {one.how}" + (f"; left out {one.left_out}" if one.left_out else ""))
