# SPDX-License-Identifier: Apache-2.0
"""``factory region check``: the rules of docs/reference/region.md, for images, folders, qcow2 files and servers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from factory.cli.edge import Json, clock, installation, print_json, saying, site_file
from factory.cli.region import region_app
from factory.errors import FactoryError, InputFault

if TYPE_CHECKING:
    from factory.model import Recipe, Region, RegionClient, Site
    from factory.region.check import Examination, Subject
    from factory.region.check_peers import Probe

_IMAGE_MODES = ("on-demand", "byos", "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """Servers to ask: what images pin for them, and what the site says of them."""

    pems: Mapping[str, str]
    regions: tuple[Region, ...]
    client: RegionClient
    product: str


@region_app.command("check")
def region_check(  # noqa: PLR0917 the command line by name
    subject: Annotated[
        str | None,
        typer.Argument(
            metavar="[IMAGE|TREE|QCOW2]",
            help="An image's description, a build tree or root file system, or a qcow2 file (default: all images).",
            show_default=False,
        ),
    ] = None,
    online: Annotated[bool, typer.Option("--online", help="Ask region and update servers too.")] = False,
    peers: Annotated[
        bool, typer.Option("--peers", help="Register at each update server, and look for it at its peers.")
    ] = False,
    mode: Annotated[
        str | None,
        typer.Option("--mode", metavar="MODE", help="What a TREE or QCOW2 is: on-demand, byos or none."),
    ] = None,
    lifetime_days: Annotated[
        int | None,
        typer.Option("--lifetime-days", metavar="DAYS", min=0, help="How long a TREE or QCOW2 is kept."),
    ] = None,
    product: Annotated[
        str | None, typer.Option("--product", metavar="N/V/A", help="What --peers registers (default: the image's).")
    ] = None,
    instance_data: Annotated[
        Path | None, typer.Option("--instance-data", metavar="FILE", help="Instance data that --peers sends.")
    ] = None,
    peer_report: Annotated[
        list[str] | None,
        typer.Option("--peer-report", metavar="FILE|URL", help="What an update server's administrator reports of it."),
    ] = None,
    within: Annotated[
        float, typer.Option("--within", metavar="SECONDS", min=0.1, help="By when peers must know a registration.")
    ] = 90.0,
    as_json: Json = False,
) -> None:
    """Check what images carry to find their region servers, and with --online and --peers the servers (exit 1)."""
    if mode is not None and mode not in _IMAGE_MODES:
        raise InputFault(f"there is no mode '{mode}'", hint=f"one of {', '.join(_IMAGE_MODES)}")
    found, asked = _subjects(subject, mode=mode, lifetime_days=lifetime_days)
    if online or peers:
        from factory.region.check_peers import Probe

        data = instance_data.read_text() if instance_data else ""
        for one in asked:
            probe = Probe(product=product or one.product, instance_data=data, within_s=within)
            found.append(
                _servers(one, probe if peers else None, online=online, reports=_reports(peer_report or [], one))
            )
    if as_json:
        print_json("region-check", tuple(found))
    else:
        for examination in found:
            _print(examination)
    if not all(examination.good for examination in found):
        raise typer.Exit(1)


def _subjects(
    name: str | None, *, mode: str | None, lifetime_days: int | None
) -> tuple[list[Examination], list[_Asked]]:
    """What is examined without asking anybody, and whom to ask; the same servers are asked once."""
    from factory.describe import images, load_site

    path = Path(name) if name else None
    if path is not None and (path.is_dir() or path.is_file()) and not _is_image(path):
        site = load_site(site_file())
        examination, asked = _path(path, site, mode=mode, lifetime_days=lifetime_days)
        return [examination], [asked]
    here = installation()
    chosen = (name,) if name else images(here.project)
    if not chosen:
        raise InputFault("there is no image to check", hint=f"'{here.project}/descriptions' holds no image.toml")
    return _images(chosen)


def _is_image(path: Path) -> bool:
    """A bare name of a description is that image, even where a folder has the same name."""
    from factory.describe import images

    try:
        return len(path.parts) == 1 and path.name in images(installation().project)
    except FactoryError:
        return False


def _images(names: tuple[str, ...]) -> tuple[list[Examination], list[_Asked]]:
    from factory.describe import examine_image, load_description
    from factory.region.check_online import pinned
    from factory.region.config import for_image

    here, now = installation(), clock()
    regions = here.regions(now)
    found, asked = [], []
    for name in names:
        notes = examine_image(here.project, name, site=here.site, regions=regions, now=now)
        found.append(notes.examination(name, "image"))
        registration = load_description(here.project, name).registration
        if registration.mode != "none":
            pems = {} if here.site.region_client.metadata_server else pinned(regions, lambda one: one.pem.read_text())
            client = for_image(here.site.region_client, registration)
            one = _Asked(
                pems=pems,
                regions=regions,
                client=replace(client, package_backend=""),
                product=registration.product,
            )
            if one not in asked:
                asked.append(one)
    return found, asked


def _path(path: Path, site: Site, *, mode: str | None, lifetime_days: int | None) -> tuple[Examination, _Asked]:
    from factory.describe.check import lifetime_days as kept_days
    from factory.model import Description
    from factory.region.check import Notes, client_in, examine, pinned_in

    recipe, now = _recipe(path), clock()
    with _opened(path, site, recipe, mode) as subject:
        if lifetime_days is None:
            description = recipe.description if recipe else Description(name="", line="")
            born = recipe.resolved_at if recipe else now
            lifetime_days = max(0, (born + timedelta(days=kept_days(description, site)) - now).days)
        notes = Notes()
        examine(subject, notes, now=now, lifetime_days=lifetime_days)
        asked = _Asked(
            pems=pinned_in(subject.content.root),
            regions=subject.regions or (),
            client=client_in(subject.content.root),
            product=recipe.description.registration.product if recipe else "debian/13/x86_64",
        )
        return notes.examination(subject.name, subject.kind), asked


@contextlib.contextmanager
def _opened(path: Path, site: Site, recipe: Recipe | None, mode: str | None) -> Iterator[Subject]:
    from factory.region.check import Content, Subject, mode_in, tree_subject
    from factory.region.check_qcow2 import qcow2_root

    regions = recipe.regions if recipe else site.regions or None
    client = recipe.region_client if recipe else site.region_client
    told = mode or (recipe.description.registration.mode if recipe else None)
    shown = site.path.name if site.path else "site.toml"
    if path.is_dir():
        subject = tree_subject(path, regions=regions, client=client)
        kind = told or mode_in(subject.content.root)
        yield replace(subject, content=replace(subject.content, mode=kind), site_file=shown)
        return
    with qcow2_root(path) as root:
        content = Content(root=root, complete=True, mode=told or mode_in(root))
        yield Subject(name=str(path), kind="qcow2", content=content, regions=regions, client=client, site_file=shown)


def _recipe(path: Path) -> Recipe | None:
    """What the run that made this tree or image decided, where it is still beside it."""
    from factory.model import Recipe
    from factory.system.state import Run

    run = Run(path=path.resolve().parent)
    if not run.has("describe"):
        return None
    try:
        found = run.read("describe", Recipe)
    except FactoryError:
        return None
    readable = all(server.pem.is_file() for region in found.regions for server in region.servers)
    return found if readable else None


# -- servers ----------------------------------------------------------------------------------------------------------


def _servers(
    asked: _Asked, probe: Probe | None, *, online: bool, reports: Mapping[str, Mapping[str, Any]]
) -> Examination:
    from factory.region.check import Notes
    from factory.region.check_online import Asking, examine_region_servers, examine_update_servers
    from factory.region.check_peers import examine_peers

    if any(region.embedded for region in asked.regions):
        raise InputFault(
            "there are no servers to ask: the embedded region exists in the sandbox only",
            hint="name your servers in [[region]] of a site file",
        )
    notes, asking = Notes(), Asking()
    notes.skip((1, 2, 4, 5, 6, 7, 8, 9, *range(16, 23)), "a rule for images, not for servers")
    notes.skip(3, "httpsOnly is true")
    notes.skip(13, "no [[region]] says which regions there should be")
    if online:
        examine_region_servers(asked.pems, asked.regions, asked.client, notes, asking=asking)
        examine_update_servers(asked.regions, asked.client, notes, asking=asking)
        if asked.regions:
            notes.look(11, 13)
    if probe is not None:
        notes.look(15)
        examine_peers(asked.regions, notes, probe=probe, reports=reports, asking=asking, say=saying("region"))
    return notes.examination("servers", "servers")


def _reports(named: list[str], asked: _Asked) -> Mapping[str, Mapping[str, Any]]:
    """The peers' reports by server; one that lies on an update server is fetched with that server's CA."""
    from factory.region.check_peers import fetch_report, read_report

    found = {}
    for origin in named:
        try:
            content = fetch_report(origin, asked.regions) if "://" in origin else Path(origin).read_bytes()
            server, report = read_report(content, origin=origin)
        except (OSError, ValueError) as wrong:
            raise InputFault(f"the peer report '{origin}' cannot be read", hint=str(wrong)) from wrong
        found[server] = report
    return found


def _print(examination: Examination) -> None:
    for finding in examination.findings:
        print(f"{examination.subject}: {finding}")
    for fact in examination.facts:
        print(f"{examination.subject}: {fact}")
    for rule in examination.rules:
        if rule.outcome == "not applicable":
            print(f"{examination.subject}: rule {rule.rule} not applied ({'; '.join(rule.not_looked_at)})")
    applied = sum(rule.outcome != "not applicable" for rule in examination.rules)
    counted = {"error": 0, "warning": 0, "advice": 0}
    for finding in examination.findings:
        counted[finding.severity] += 1
    verdict = "good" if examination.good else "not good"
    print(
        f"{examination.subject} ({examination.kind}): {verdict}; {applied} of {len(examination.rules)} rules applied, "
        f"{counted['error']} errors, {counted['warning']} warnings, {counted['advice']} pieces of advice"
    )
