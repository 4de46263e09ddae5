# SPDX-License-Identifier: Apache-2.0
"""``factory region mirrors|timers|peers-config|smt-export|firewall``: for who operates real update servers."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from factory.cli.edge import DryRun, Json, installation, print_json, saying, table
from factory.cli.region import region_app
from factory.errors import Fault, InputFault

if TYPE_CHECKING:
    from factory.installation import Installation
    from factory.model import Region
    from factory.region.operate.mirrors import Comparison, Mirrors

OutFolder = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Write files, a folder for each server.")]


def site_regions(here: Installation) -> tuple[Region, ...]:
    """The site's regions: for the throw-away region there is nothing to operate."""
    if not here.site.regions:
        raise InputFault("the site file names no [[region]]", hint="see docs/how-to/operate-update-servers.md")
    return here.site.regions


def print_faults(faults: Iterable[Fault], word: str) -> None:
    """Faults as lines."""
    for fault in faults:
        print(f"{word:<8} {fault}")


def text_of(path: Path) -> str:
    """A text that somebody names; ``-`` is standard input."""
    try:
        return sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as unreadable:
        raise InputFault(f"'{path}' cannot be read: {unreadable}") from None


# -- mirrors ----------------------------------------------------------------------------------------------------------


@region_app.command("mirrors")
def region_mirrors(
    *,
    file: Annotated[
        Path | None, typer.Argument(help="A description to check; without one, make it from the images' products.")
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(
            "--compare", metavar="CSV", help="Output of 'rmt-cli repos list --all --csv' (- is standard input)."
        ),
    ] = None,
    framework: Annotated[str | None, typer.Option("--framework", help="The cloud that the server is in.")] = None,
    module: Annotated[
        list[str] | None, typer.Option("--module", help="One more product to mirror, by identifier (repeatable).")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write there, whole.")] = None,
    as_json: Json = False,
) -> None:
    """What RMT mirrors: make the description, check one, or compare one with a server (exit 1 when not good)."""
    if file is None:
        if compare is not None:
            raise InputFault("--compare needs the description to compare with", hint="name rmt_repository_config.json")
        make_mirrors(module or [], out)
        return
    from factory.region.operate.mirrors import read_mirrors

    found = read_mirrors(text_of(file), shown=file.name)
    if compare is not None and not found.faults:
        compare_mirrors(found, compare, framework, as_json=as_json)
        return
    if as_json:
        print_json("region-mirrors", found)
    else:
        print_faults(found.faults, "fault")
        if not found.faults:
            print(f"{file}: {len(found.products) + len(found.repositories)} {found.kind}, all good")
    if found.faults:
        raise typer.Exit(1)


def make_mirrors(modules: list[str], out: Path | None) -> None:
    """``product_config.json`` from the images of this project."""
    from factory.describe import images, load_description
    from factory.region.operate.mirrors import Need, config_text, is_suse, product_config
    from factory.system.files import write_whole

    here, say = installation(), saying("mirrors")
    loaded = [load_description(here.project, name) for name in images(here.project)]
    needs = [
        Need(image=one.name, product=one.registration.product) for one in loaded if one.registration.mode != "none"
    ]
    for need in needs:
        if not is_suse(need.product):
            say(f"{need.image}: {need.product} is no product of SUSE; RMT does not mirror it")
    text = config_text(product_config(needs, modules=modules))
    if out is None:
        print(text, end="")
    else:
        write_whole(out, text)
        print(out)


def compare_mirrors(wanted: Mirrors, listing: Path, framework: str | None, *, as_json: bool) -> None:
    """Print how a server differs from a description."""
    from factory.region.operate.mirrors import compare, read_listing

    if wanted.kind != "repositories":
        raise InputFault("only a description of repositories can be compared", hint="rmt_repository_config.json")
    listed, faults = read_listing(text_of(listing), shown=listing.name)
    if faults:
        raise InputFault("the list of repositories cannot be read", faults=faults)
    found = compare(wanted.repositories, listed, framework=framework)
    if as_json:
        print_json("region-mirrors-compare", found)
    else:
        print_comparison(found)
    if not found.good:
        raise typer.Exit(1)


def print_comparison(found: Comparison) -> None:
    """A line for each difference, and the command that cures those of one kind."""
    for word, ours in (
        ("missing", found.missing),
        ("disabled", found.not_enabled),
        ("empty", found.never_mirrored),
    ):
        for one in ours:
            print(f"{word:<8} {one.id} {ascii(one.description)[1:-1]} {one.location}")
    for extra in found.extra:
        print(f"{'extra':<8} {extra.id} {ascii(extra.name)[1:-1]}")
    if found.enable:
        print(f"cure:    rmt-cli repos enable {' '.join(map(str, found.enable))}")
    if found.good:
        print("the server mirrors what is described")


# -- timers -----------------------------------------------------------------------------------------------------------


@region_app.command("timers")
def region_timers(out: OutFolder = None, as_json: Json = False) -> None:
    """When each update server fetches: drop-ins for RMT's timers, apart from each other."""
    from factory.region.operate.timers import timers
    from factory.system.files import write_whole

    found = timers(site_regions(installation()))
    if out is not None:
        for timer in found:
            write_whole(out / timer.server / timer.path, timer.text)
    if as_json:
        print_json("region-timers", found)
        return
    table(*((f"{one.region} {one.server}", f"{one.calendar} +{one.delay} {one.unit}") for one in found))


# -- peers ------------------------------------------------------------------------------------------------------------


@region_app.command("peers-config")
def region_peers_config(
    *,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where to write, a folder each server.")
    ] = None,
    secret_file: Annotated[
        Path | None, typer.Option("--secret-file", metavar="FILE", help="The peers' secret (0600); made when missing.")
    ] = None,
    pin: Annotated[
        list[str] | None,
        typer.Option("--pin", metavar="SERVER=FINGERPRINT", help="Of its CA (default: of the site's PEM). Repeatable."),
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Take the CAs from the site, ask no server.")] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Sharing of registrations: each server's section of rmt.conf, and its peers' CA, fetched by fingerprint."""
    from factory.region.operate.peers import shared_secret, sharing, write_sharing

    here = installation()
    found = sharing(site_regions(here))
    if as_json or dry_run:
        if as_json:
            print_json("region-peers-config", found)
        else:
            table(*((one.server, ", ".join(peer.name for peer in one.peers) or "no peers") for one in found))
        return
    if out is None or secret_file is None:
        raise InputFault("--out and --secret-file are needed", hint="or --dry-run to see who shares with whom")
    for path in write_sharing(
        found, out, secret=shared_secret(secret_file), pins=pins(pin or []), offline=offline, say=saying("peers")
    ):
        print(path)


def pins(words: list[str]) -> dict[str, str]:
    """``--pin`` as a mapping."""
    from factory.region.operate.peers import normal_pin

    found = {}
    for word in words:
        server, _, fingerprint = word.partition("=")
        try:
            found[server] = normal_pin(fingerprint)
        except ValueError as wrong:
            raise InputFault(f"--pin {server}: {wrong}") from None
    return found


# -- SMT --------------------------------------------------------------------------------------------------------------


@region_app.command("smt-export")
def region_smt_export(
    archive: Annotated[Path, typer.Argument(help="What smt-data-export wrote.", show_default=False)],
    products: Annotated[
        Path | None, typer.Option("--products", metavar="CSV", help="Output of 'rmt-cli products list --all --csv'.")
    ] = None,
    repos: Annotated[
        Path | None, typer.Option("--repos", metavar="CSV", help="Output of 'rmt-cli repos list --all --csv'.")
    ] = None,
    unpack: Annotated[
        Path | None, typer.Option("--unpack", metavar="DIR", help="Write what rmt-data-import reads, when all is good.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Look into an SMT export before it is imported: what RMT will get, and what not (exit 1 on faults)."""
    from factory.region.operate.smt_export import Known, numbers, read_export, unpack_export

    known = Known(
        products=numbers(text_of(products)) if products else None,
        repositories=numbers(text_of(repos)) if repos else None,
    )
    found = read_export(archive, known=known)
    if as_json:
        print_json("region-smt-export", found)
    else:
        for one in found.files:
            skipped = "".join(f", {count} {why}" for why, count in one.skipped.items())
            print(f"{one.name:<25} {one.imported} of {one.lines} lines will be imported{skipped}")
        for what, unknown in (("repositories", found.unknown_repositories), ("products", found.unknown_products)):
            if unknown:
                print(f"unknown {what}: {', '.join(map(str, unknown))}")
        print(f"never in an export: {', '.join(found.not_exported)}")
        print_faults(found.warnings, "warning")
        print_faults(found.faults, "fault")
    if found.faults:
        raise typer.Exit(1)
    if unpack is not None:
        made = unpack_export(archive, unpack)
        saying("smt")(f"{len(made)} files in {unpack}: rmt-data-import -d {unpack}")


# -- firewall ---------------------------------------------------------------------------------------------------------


@region_app.command("firewall")
def region_firewall(
    *,
    admin: Annotated[list[str], typer.Option("--admin", metavar="NETWORK", help="Who may log in (repeatable).")],
    sources: Annotated[
        Literal["ranges", "segment", "all"],
        typer.Option("--sources", help="Whence instances come: the regions' networks, a private segment, anywhere."),
    ] = "ranges",
    segment: Annotated[
        list[str] | None, typer.Option("--segment", metavar="NETWORK", help="With --sources segment (repeatable).")
    ] = None,
    ssh_port: Annotated[int, typer.Option("--ssh-port")] = 22,
    form: Annotated[
        Literal["nftables", "openstack", "security-groups"],
        typer.Option("--format", help="nft files, openstack commands, or JSON for openstacksdk."),
    ] = "nftables",
    out: OutFolder = None,
    as_json: Json = False,
) -> None:
    """Who may reach region and update servers, as nftables or as security groups of OpenStack."""
    from factory.region.operate.firewall import Policy, nftables, openstack_commands, security_groups, walls

    here = installation()
    policy = Policy(
        sources=sources,
        segments=tuple(segment or ()),
        admin=tuple(admin),
        ssh_port=ssh_port,
        verification=here.site.instance_verification,
    )
    found = walls(site_regions(here), here.site.region_client, policy)
    if as_json or form == "security-groups":
        print_json("region-firewall", security_groups(found))
    elif form == "openstack":
        print(openstack_commands(found), end="")
    elif out is None:
        print("\n".join(nftables(wall) for wall in found), end="")
    else:
        from factory.system.files import write_whole

        for wall in found:
            write_whole(out / wall.name / "nftables.conf", nftables(wall))
            print(out / wall.name / "nftables.conf")
