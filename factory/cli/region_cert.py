# SPDX-License-Identifier: Apache-2.0
"""``factory region cert``: certificates of region servers, their renewal, and who carries them."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from factory.cli.edge import DryRun, Json, clock, installation, print_json, site_file, state_folder
from factory.cli.region import region_app
from factory.errors import FactoryError, InputFault

if TYPE_CHECKING:
    from datetime import datetime

    from factory.installation import Installation
    from factory.model import Server, Site
    from factory.region.issuing import Files, Made, Pin, Wanted


@region_app.command("cert")
def region_cert(  # noqa: PLR0917 the command line by name
    servers: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SERVER ...]", help="Region servers (default: all of the site file).", show_default=False
        ),
    ] = None,
    renew: Annotated[bool, typer.Option("--renew", help="Make successors; the PEMs hold old and new.")] = False,
    finish: Annotated[bool, typer.Option("--finish", help="End a renewal: the PEMs hold the new ones only.")] = False,
    listing: Annotated[
        bool, typer.Option("--list", help="Show when certificates expire, and who carries them.")
    ] = False,
    key: Annotated[
        str | None,
        typer.Option(
            "--key", metavar="KIND", help="rsa (4096; default), ecdsa (P-256), ecdsa-p384; renewals keep theirs."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Where ssl.crt/, ssl.key/ and regionServCert/ are (default: state)."),
    ] = None,
    days: Annotated[int, typer.Option("--days", min=1, help="How long they are valid.")] = 3650,
    san_dns: Annotated[list[str] | None, typer.Option("--san-dns", metavar="NAME", help="A further name.")] = None,
    san_ip: Annotated[list[str] | None, typer.Option("--san-ip", metavar="ADDRESS", help="A further address.")] = None,
    country: Annotated[str, typer.Option(help="Two letters.")] = "",
    state: Annotated[str, typer.Option(help="State or province.")] = "",
    location: Annotated[str, typer.Option(help="Town.")] = "",
    organization: Annotated[str, typer.Option(help="Organization.")] = "",
    department: Annotated[str, typer.Option(help="Department.")] = "",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Make the keys and certificates of region servers; nothing is overwritten unless --renew or --finish is given."""
    from factory.describe import load_site
    from factory.region.issuing import KEY_TYPES, Wanted

    if renew + finish + listing > 1:
        raise InputFault("--renew, --finish and --list exclude each other")
    if listing:
        _list(as_json=as_json)
        return
    if key is not None and key not in KEY_TYPES:
        raise InputFault(f"there is no key of the kind '{key}'", hint=f"one of {', '.join(KEY_TYPES)}")
    about = {
        "country": country,
        "state": state,
        "location": location,
        "organization": organization,
        "department": department,
    }
    site = load_site(site_file(), pems_exist=False)
    chosen = list(_chosen(servers or [], site, out, more=[*(san_dns or []), *(san_ip or [])]))
    wanted = [
        (Wanted(host=files.host, names=names, addresses=addresses, key_type=key or "", days=days, about=about), files)
        for files, names, addresses in chosen
    ]
    if dry_run:
        for one, files in wanted:
            print(f"{one.host}: {', '.join([*one.names, *one.addresses])} into {files.certificate()} and {files.pem}")
        return
    made = [_act(one, files, renew=renew, finish=finish) for one, files in wanted]
    if as_json:
        print_json("region-cert", tuple(made))
        return
    for result in made:
        print(f"{result.host}: certificate {result.certificate}, key {result.key}, for images {result.pem}")
        ends = " and ".join(f"{one:%Y-%m-%d}" for one in result.expires)
        print(f"{result.host}: expires {ends}" + (", the old one first" if len(result.expires) > 1 else ""))


def _act(wanted: Wanted, files: Files, *, renew: bool, finish: bool) -> Made:
    from factory.region import issuing

    if finish:
        return issuing.finish(files)
    return (issuing.renew if renew else issuing.make)(wanted, files, now=clock())


def _chosen(
    named: Sequence[str], site: Site, out: Path | None, *, more: Sequence[str]
) -> Iterator[tuple[Files, list[str], list[str]]]:
    """Each server's files, names and addresses; those of the site file know theirs."""
    from factory.region.issuing import Files

    known: dict[str, Server] = {server.name: server for region in site.regions for server in region.servers}
    by_address = {address: server for server in known.values() for address in server.addresses}
    folder = out or state_folder() / "keys" / "region-servers"
    if not named and not known:
        raise InputFault("there is no region server to make a certificate for", hint="name one, or write [[region]]")
    for name in dict.fromkeys(named or known):
        server = known.get(name) or by_address.get(name)
        host = server.name if server else name
        texts = list(dict.fromkeys([host, *(server.addresses if server else ()), *more]))
        addresses = [text for text in texts if _is_address(text)]
        yield (
            Files.of(host, folder, server.pem if server and out is None else None),
            [text for text in texts if text not in addresses],
            addresses,
        )


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


# -- expiry -----------------------------------------------------------------------------------------------------------


def _list(*, as_json: bool) -> None:
    from factory.region.issuing import expiries

    here, now = installation(), clock()
    found = expiries(list(_pins(here, now)), now=now)
    if as_json:
        print_json("region-cert-list", found)
    for row in found if not as_json else ():
        left = f"{row.days_left} days left" if row.days_left >= 0 else "EXPIRED"
        print(f"{row.expires:%Y-%m-%d}  {left}  {', '.join(row.items)}  sha256 {row.sha256[:16]}")
        print(f"            carried by {', '.join(row.carried_by)}")
        if row.outlived_by:
            print(f"            too early for {', '.join(row.outlived_by)}")
    if any(row.outlived_by for row in found):
        raise typer.Exit(1)


def _pins(here: Installation, now: datetime) -> Iterator[Pin]:
    """What descriptions will carry, and what the images of published runs carry."""
    from factory.describe import images, load_description
    from factory.describe.check import lifetime_days
    from factory.region.config import items
    from factory.region.issuing import Pin

    for image in images(here.project):
        description = load_description(here.project, image)
        if description.registration.mode == "none":
            continue
        until = now + timedelta(days=lifetime_days(description, here.site))
        for item, server in items(here.regions(now)).items():
            yield Pin(carrier=image, item=item, pem=server.pem.read_text(), until=until)
    yield from _published(here)


def _published(here: Installation) -> Iterator[Pin]:
    from factory.describe.check import lifetime_days
    from factory.model import Recipe
    from factory.region.check import pinned_in
    from factory.region.check_root import FolderRoot
    from factory.region.issuing import Pin
    from factory.system.state import Run

    for path in sorted(here.state.runs.glob("*-*-*")):
        run = Run(path=path)
        if not run.has("publish"):
            continue
        try:
            recipe = run.read("describe", Recipe)
        except FactoryError:
            continue
        until = recipe.resolved_at + timedelta(days=lifetime_days(recipe.description, here.site))
        for item, pem in pinned_in(FolderRoot(run.tree / "root")).items():
            yield Pin(carrier=run.id, item=item, pem=pem, until=until)
