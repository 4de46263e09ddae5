# SPDX-License-Identifier: Apache-2.0
"""Rules that an image's region files must keep: an overlay, a build tree, a root file system or a qcow2 image.

Every finding says where, why an instance would fail at its first boot, and the cure. Only errors stop a build. Rules
that do not apply to a subject are named as such, never silently passed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from factory.errors import Fault
from factory.model import Region, RegionClient
from factory.region import ini
from factory.region.check_config import count_servers, examine_text, item_problem, option, region_items, split
from factory.region.check_findings import At, Examination, Finding, Notes, Outcome, Severity, faults
from factory.region.check_image import Client, Content, examine_content
from factory.region.check_leftovers import (
    LEFTOVERS,
    examine_cloud_init,
    examine_leftovers,
    examine_proxy,
    examine_registry,
)
from factory.region.check_pems import examine_pem, examine_pems
from factory.region.check_regions import examine_regions
from factory.region.check_root import FolderRoot, Root
from factory.region.config import CLIENT_CONFIG, GUEST_CONFIG, items, registry

__all__ = [
    "LEFTOVERS",
    "At",
    "Client",
    "Content",
    "Examination",
    "Finding",
    "Notes",
    "Outcome",
    "Severity",
    "Subject",
    "check_config",
    "check_pem",
    "check_tree",
    "client_in",
    "examine",
    "examine_site",
    "item_problem",
    "mode_in",
    "pinned_in",
    "region_items",
    "tree_subject",
]
_IMAGE_RULES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 16, 17, 19, 20, 21, 22)
_SITE_RULES = (11, 12, 13, 14, 15)
_SYSTEM_FILES = ("etc/os-release", "usr/lib/os-release")


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is examined: an image's content, and the regions it is meant for (None: nobody says)."""

    name: str
    kind: str
    content: Content
    regions: tuple[Region, ...] | None = None
    client: RegionClient = RegionClient()  # noqa: RUF009 frozen
    site_file: str = "site.toml"


def tree_subject(
    folder: Path,
    *,
    mode: str = "on-demand",
    regions: Sequence[Region] | None = None,
    client: RegionClient | None = None,
) -> Subject:
    """A folder as a subject: a build tree (with ``config.xml`` or ``elements``), a root file system, or an overlay."""
    config, elements = folder / "config.xml", folder / "elements"
    build_tree = (config.is_file() or elements.is_dir()) and (folder / "root").is_dir()
    root = FolderRoot(folder / "root" if build_tree else folder)
    complete = not build_tree and any(root.find(path) for path in _SYSTEM_FILES)
    scripts = [folder / "config.sh", *sorted(elements.glob("*/scripts/config.sh"))]
    script = next((path for path in scripts if path.is_file()), None)
    content = Content(
        root=root,
        complete=complete,
        mode=mode,
        config_xml=config.read_text(errors="replace") if build_tree and config.is_file() else "",
        scripts=script.read_text(errors="replace") if build_tree and script is not None else "",
    )
    return Subject(
        name=str(folder),
        kind="build tree" if build_tree else "root file system" if complete else "overlay",
        content=content,
        regions=None if regions is None else tuple(regions),
        client=client or RegionClient(),
    )


def examine(subject: Subject, notes: Notes, *, now: datetime, lifetime_days: int) -> None:
    """Apply every rule that can be applied without asking a server.

    Args:
        lifetime_days: how long instances of the image may boot for the first time; certificates must last.
    """
    content = subject.content
    examine_leftovers(content.root, notes)
    if content.mode == "none":
        notes.skip((*_IMAGE_RULES, *_SITE_RULES), "the image never registers (mode = 'none')")
        return
    examine_cloud_init(content.root, notes)
    if subject.regions is None:
        notes.skip(_SITE_RULES, "nobody says which regions it is for: there is no [[region]] in a site file")
    else:
        examine_site(subject.regions, subject.client, notes, file=subject.site_file, now=now)
    notes.look(7)
    text = content.root.text(CLIENT_CONFIG)
    read = ini.Ini(sections={}, faults=())
    if text is None:
        notes.error(
            7,
            At(file=CLIENT_CONFIG),
            "cannot be read",
            why="the client reads exactly this path and exits with 1",
            cure="the factory writes it from [[region]] and [region_client]; an overlay must not remove it",
        )
        notes.skip((1, 2, 3, 6, 8, 9), f"there is no {CLIENT_CONFIG}")
    else:
        read = examine_text(text, notes, file=CLIENT_CONFIG)
        until = now + timedelta(days=lifetime_days)
        expected = None if subject.regions is None else _expected(subject.regions)
        examine_pems(content.root, read, notes, file=CLIENT_CONFIG, expected=expected, now=now, until=until)
        if subject.regions is None:
            _count_items(read, notes)
    examine_content(content, read, notes, file=CLIENT_CONFIG)
    _by_client(subject, notes)
    notes.skip(10, "region servers are asked with --online only")


def examine_site(regions: Sequence[Region], client: RegionClient, notes: Notes, *, file: str, now: datetime) -> None:
    """Apply the rules for the regions of a site, without asking a server."""
    examine_regions(regions, client, notes, file=file, now=now)


def _by_client(subject: Subject, notes: Notes) -> None:
    content, regions = subject.content, subject.regions or ()
    update_servers = [server for region in regions for server in region.update_servers]
    listed = region_items(content.root.text(CLIENT_CONFIG) or "")
    theirs = content.client is Client.SUSE
    examine_proxy(content.root, notes, (*listed, *(server.name for server in update_servers)), quoted=theirs)
    if theirs:
        examine_registry(content.root, notes, [registry(server) for server in update_servers])
    else:
        notes.skip(19, "only SUSE's client has a registry set-up")


def _count_items(read: ini.Ini, notes: Notes) -> None:
    found = option(read, "server", "regionsrv")
    if found is None or not found.value or option(read, "server", "metadata_server") is not None:
        return
    number = len(set(split(found.value)))
    count_servers(
        notes, 2, At(file=CLIENT_CONFIG, line=found.line, key="server.regionsrv"), number, what="region server"
    )


def pinned_in(root: Root) -> Mapping[str, str]:
    """The PEM by region server, as an image has them; empty where a metadata server replaces region servers."""
    read = ini.read(root.text(CLIENT_CONFIG) or "", place=CLIENT_CONFIG)
    location, servers = option(read, "server", "certlocation"), option(read, "server", "regionsrv")
    if location is None or servers is None or option(read, "server", "metadata_server") is not None:
        return {}
    found = {item: root.text(f"{location.value}/{item}.pem") for item in split(servers.value)}
    return {item: pem for item, pem in found.items() if pem is not None}


def client_in(root: Root) -> RegionClient:
    """How an image's client asks: ``api`` and ``httpsOnly``; everything else is not read back."""
    read = ini.read(root.text(CLIENT_CONFIG) or "", place=CLIENT_CONFIG)
    api, https = option(read, "server", "api"), option(read, "instance", "httpsonly")
    plugin = option(read, "instance", "instanceargs")
    return RegionClient(
        api=api.value if api else "regionInfo",
        https_only=https is not None and https.value == "true",
        instance_args=plugin.value if plugin else "none",
    )


def mode_in(root: Root) -> str:
    """The kind of image, as our client's configuration tells it; on-demand where nobody says."""
    read = ini.read(root.text(GUEST_CONFIG) or "", place=GUEST_CONFIG)
    found = option(read, "registration", "mode")
    return found.value if found and found.value in {"on-demand", "byos", "none"} else "on-demand"


def _expected(regions: Sequence[Region]) -> Mapping[str, str]:
    found = {}
    for item, server in items(regions).items():
        try:
            found[item] = server.pem.read_text(errors="replace")
        except OSError:
            found[item] = ""
    return found


# -- faults only, for those who stop at the first error ---------------------------------------------------------------


def check_config(text: str, *, place: str = CLIENT_CONFIG) -> tuple[Fault, ...]:
    """The faults of a ``regionserverclnt.cfg`` by itself."""
    notes = Notes()
    examine_text(text, notes, file=place)
    return faults(notes.findings)


def check_pem(text: str, item: str, *, place: str, now: datetime, lifetime_days: int) -> tuple[Fault, ...]:
    """The faults of the PEM file that pins the region server ``item``."""
    notes = Notes()
    examine_pem(text, item, notes, file=place, now=now, until=now + timedelta(days=lifetime_days))
    return faults(notes.findings)


def check_tree(
    root: Path,
    regions: Sequence[Region],
    *,
    now: datetime,
    lifetime_days: int,
    mode: str = "on-demand",
    client: RegionClient | None = None,
) -> tuple[Fault, ...]:
    """The faults of the region files below ``root``: a build tree, an overlay or a root file system."""
    notes = Notes()
    subject = tree_subject(root, mode=mode, regions=regions, client=client)
    examine(subject, notes, now=now, lifetime_days=lifetime_days)
    return faults(notes.findings)
