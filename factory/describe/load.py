# SPDX-License-Identifier: Apache-2.0
"""``image.toml`` and ``site.toml``, from files to frozen values: every fault at once, each with its place."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

from factory.describe.foreign import FOREIGN, foreign_faults
from factory.describe.metadata import generic_faults, metadata_faults
from factory.describe.places import count, key_lines, place, read_toml
from factory.describe.schema import ForeignFile, ImageFile, RegionTable, ServerTable, SiteFile, VerifyTable
from factory.describe.site_tables import flavors, freshness, sandbox, table_faults, targets
from factory.errors import Fault, InputFault
from factory.model import (
    Budgets,
    Description,
    Disk,
    Foreign,
    Notify,
    Region,
    RegionClient,
    Registration,
    Repository,
    Retention,
    Server,
    Signing,
    Site,
    Unmet,
    VendorMirror,
)

DESCRIPTIONS = "descriptions"
COMMON = "common"
IMAGE_FILE = "image.toml"


def images(project: Path) -> tuple[str, ...]:
    """The images that the project describes, by name."""
    folder = project / DESCRIPTIONS
    found = folder.iterdir() if folder.is_dir() else ()
    return tuple(sorted(entry.name for entry in found if (entry / IMAGE_FILE).is_file() and entry.name != COMMON))


def load_description(project: Path, image: str) -> Description:
    """Read ``descriptions/<image>/image.toml``.

    Raises:
        InputFault: there is no such image, or the file has faults.
    """
    known = images(project)
    if image not in known:
        raise unknown_image(project, image)
    shown = f"{DESCRIPTIONS}/{image}/{IMAGE_FILE}"
    path = project / shown
    read: ForeignFile | ImageFile = (
        read_toml(path, ForeignFile, shown=shown) if _is_foreign(path) else read_toml(path, ImageFile, shown=shown)
    )
    if read.image.name != image:
        where = place(shown, key_lines(path.read_text()), ("image", "name"))
        fault = Fault(place=where, problem=f"is '{read.image.name}'", cure=f"the folder is called '{image}'")
        raise InputFault(f"'{shown}' has 1 fault", faults=(fault,))
    description = _foreign(read) if isinstance(read, ForeignFile) else _description(read)
    lines = key_lines(path.read_text())
    wrong = (*metadata_faults(shown, description, lines), *foreign_faults(project, shown, description, lines))
    if wrong:
        raise InputFault(f"'{shown}' has {count(len(wrong), 'fault')}", faults=wrong)
    return description


def unknown_image(project: Path, image: str) -> InputFault:
    """The fault that there is no such image: with the nearest name, and all there are."""
    known = images(project)
    if not known:
        return InputFault(f"there is no image '{image}'", hint=f"'{project / DESCRIPTIONS}' holds no {IMAGE_FILE}")
    near = difflib.get_close_matches(image, known, n=1)
    meant = f"did you mean '{near[0]}'? " if near else ""
    return InputFault(f"there is no image '{image}'", hint=f"{meant}known: {', '.join(known)}")


def generic_twice(project: Path, image: str = "") -> tuple[Fault, ...]:
    """Pairs of descriptions of which only one may be generic; a description with faults of its own is left out.

    Args:
        image: only the pairs that this one is in.
    """
    found = {}
    for name in images(project):
        shown = f"{DESCRIPTIONS}/{name}/{IMAGE_FILE}"
        try:
            found[name] = (shown, load_description(project, name), key_lines((project / shown).read_text()))
        except (InputFault, OSError):
            continue
    own = f"{DESCRIPTIONS}/{image}/{IMAGE_FILE}:" if image else ""
    return tuple(fault for fault in generic_faults(found) if own in f"{fault.place} {fault.problem}")


def _is_foreign(path: Path) -> bool:
    """Whether an image.toml says so; one that cannot be read is told by whoever reads it for good."""
    try:
        image = tomllib.loads(path.read_text()).get("image")
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(image, dict) and image.get("builder") == FOREIGN


def _foreign(read: ForeignFile) -> Description:
    """A vendor's image: it brings its own sources, knows no region, and cannot register."""
    return Description(
        name=read.image.name,
        line=read.image.line,
        builder=read.image.builder,
        arch=read.image.arch,
        publish=read.image.publish,
        login_user=read.image.login_user,
        console_password=read.image.console_password,
        disk=Disk(**read.disk.model_dump()),
        metadata=dict(read.metadata),
        registration=Registration(mode="none"),
        budgets=_budgets(read.verify),
        retention=Retention(**read.retention.model_dump()),
        capabilities=tuple(read.image.capabilities),
        foreign=Foreign(**read.foreign.model_dump(exclude_none=True)),
        unmet=tuple(Unmet(check=one.check, reason=one.reason) for one in read.unmet),
    )


def _budgets(read: VerifyTable) -> Budgets:
    return Budgets(
        boot_timeout_s=read.boot_timeout_s,
        used_mib=read.used_mib,
        listening_ports=tuple(read.listening_ports),
        probe_package=read.probe_package,
    )


def _description(read: ImageFile) -> Description:
    return Description(
        name=read.image.name,
        line=read.image.line,
        builder=read.image.builder,
        arch=read.image.arch,
        publish=read.image.publish,
        login_user=read.image.login_user,
        console_password=read.image.console_password,
        disk=Disk(**read.disk.model_dump()),
        metadata=dict(read.metadata),
        update_repositories=tuple(
            Repository(
                alias=alias,
                url=table.url or "",
                suites=tuple(table.suites),
                components=tuple(table.components),
                key=table.key,
            )
            for alias, table in sorted(read.update_repositories.items())
        ),
        registration=Registration(**read.registration.model_dump()),
        budgets=_budgets(read.verify),
        retention=Retention(**read.retention.model_dump()),
        ntp_servers=tuple(read.ntp.servers) if read.ntp else (),
        declared_files=tuple(read.image.declared_files),
        capabilities=tuple(read.image.capabilities),
    )


def load_site(path: Path | None, *, pems_exist: bool = True) -> Site:
    """Read a site file; without one, every part is the embedded default. Paths in it are relative to it.

    Args:
        pems_exist: whether the PEMs that it names must be there already (not while they are made).

    Raises:
        InputFault: the file has faults, or names a PEM that is not there.
    """
    if path is None:
        return Site()
    read = read_toml(path, SiteFile, shown=path.name)
    faults = [*_server_faults(path, read), *(_pem_faults(path, read) if pems_exist else [])]
    faults += table_faults(path.name, read, key_lines(path.read_text()))
    if faults:
        raise InputFault(f"'{path.name}' has {count(len(faults), 'fault')}", faults=tuple(faults))
    signing = Signing(
        fingerprint=read.signing.fingerprint.upper(),
        gnupg_home=path.parent / Path(read.signing.gnupg_home).expanduser() if read.signing.gnupg_home else None,
        builder=read.signing.builder,
    )
    return Site(
        path=path,
        mirrors=dict(read.mirrors),
        update_repositories=dict(read.update_repositories),
        repositories={
            image: {alias: VendorMirror(**table.model_dump(exclude_none=True)) for alias, table in tables.items()}
            for image, tables in read.repositories.items()
        },
        regions=tuple(_region(region, path.parent) for region in read.region),
        region_client=RegionClient(**read.region_client.model_dump()),
        targets=targets(read, path.parent),
        signing=signing,
        ntp_servers=tuple(read.ntp.servers) if read.ntp else (),
        retention=Retention(**read.retention.model_dump()) if read.retention else None,
        notify=Notify(**read.notify.model_dump()),
        instance_verification=read.update_server.verification,
        ledger=read.ledger.url if read.ledger else "",
        flavors=flavors(read),
        freshness=freshness(read),
        sandbox=sandbox(read),
    )


def _region(read: RegionTable, folder: Path) -> Region:
    return Region(
        name=read.name,
        networks=tuple(read.networks),
        servers=_servers(read.servers, folder),
        update_servers=_servers(read.update_servers, folder),
    )


def _servers(read: Sequence[ServerTable], folder: Path) -> tuple[Server, ...]:
    return tuple(
        Server(name=one.name, ipv4=one.ipv4, ipv6=one.ipv6, pem=folder / one.pem, registry=one.registry) for one in read
    )


def _server_faults(path: Path, read: SiteFile) -> Iterator[Fault]:
    """Regions without region servers, and names or addresses that two servers cannot share."""
    lines = key_lines(path.read_text())
    seen: dict[str, str] = {}
    if read.region_client.metadata_server and not read.region:
        yield Fault(
            place=place(path.name, lines, ("region_client", "metadata_server")),
            problem="nobody says which update servers its answers name",
            cure="describe them in [[region]]; only its 'servers' may then be missing",
        )
    for number, region in enumerate(read.region):
        if not region.servers and not read.region_client.metadata_server:
            yield Fault(
                place=place(path.name, lines, ("region", number, "servers")),
                problem="is missing or empty",
                cure="name two region servers or more; only a metadata_server replaces them",
            )
        for kind, servers in (("servers", region.servers), ("update_servers", region.update_servers)):
            for position, server in enumerate(servers):
                at = place(path.name, lines, ("region", number, kind, position))
                if kind == "update_servers" and not (server.ipv4 or server.ipv6):
                    yield Fault(place=at, problem=f"'{server.name}' has no address", cure="set ipv4 and/or ipv6")
                for address in filter(None, (server.ipv4, server.ipv6)):
                    if seen.setdefault(address, server.name) != server.name:
                        problem = f"{address} belongs to '{seen[address]}' already"
                        yield Fault(place=at, problem=problem, cure="an address is one server's")


def _pem_faults(path: Path, read: SiteFile) -> list[Fault]:
    lines = key_lines(path.read_text())
    found = []
    for number, region in enumerate(read.region):
        for kind, servers in (("servers", region.servers), ("update_servers", region.update_servers)):
            for position, server in enumerate(servers):
                if not (path.parent / server.pem).is_file():
                    where = place(path.name, lines, ("region", number, kind, position, "pem"))
                    problem = f"'{server.pem}', the certificate of '{server.name}', does not exist"
                    found.append(Fault(place=where, problem=problem, cure="the path is relative to the site file"))
    return found
