# SPDX-License-Identifier: Apache-2.0
"""What an image carries to find its region, and what a region server reads: both made from the same regions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from factory.errors import InputFault
from factory.model import Region, RegionClient, Registration, Repository, Server
from factory.region.data import entries_of, render
from factory.region.region_rules import check_regions
from factory.system.files import write_whole

CLIENT_CONFIG = "etc/regionserverclnt.cfg"
GUEST_PROGRAM = "usr/sbin/guestregister"
GUEST_CONFIG = "etc/guestregister.conf"
GUEST_PROVIDER = "usr/lib/image-factory/instance-data"
OWN_PROVIDER = f"/{GUEST_PROVIDER}"
"""The ``dataProvider`` that our packages bring."""
GUEST_PLUGIN = "usr/lib/image-factory/openstackregion.py"
GUEST_UNIT = "usr/lib/systemd/system/guestregister.service"
OWN_CLIENT = "guestregister"
_BACKENDS = {OWN_CLIENT: "apt", "registercloudguest": "zypper"}
GUEST_WANTED = "etc/systemd/system/multi-user.target.wants/guestregister.service"


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestFile:
    """A file that an image needs, by its path without the leading slash; ``link`` makes it a symbolic link."""

    path: str
    content: bytes = b""
    mode: int = 0o644
    link: str = ""


def items(regions: Sequence[Region]) -> Mapping[str, Server]:
    """What ``regionsrv`` lists, in order: each region server's addresses, or its name where it has none."""
    found: dict[str, Server] = {}
    for region in regions:
        for server in region.servers:
            for item in server.addresses or (server.name,):
                found.setdefault(item, server)
    return found


def client_config(regions: Sequence[Region], client: RegionClient) -> str:
    """The text of ``/etc/regionserverclnt.cfg``: the same for on-demand and bring-your-own-subscription images."""
    return "\n".join(_client_lines(regions, client)) + "\n"


def _client_lines(regions: Sequence[Region], client: RegionClient) -> Iterator[str]:
    yield "[server]"
    yield f"api = {client.api}"
    yield f"certLocation = {client.cert_location}"
    yield f"regionsrv = {','.join(items(regions))}"
    if client.metadata_server:
        yield f"metadata_server = {client.metadata_server}"
    yield ""
    yield "[instance]"
    yield f"dataProvider = {client.data_provider}"
    yield f"instanceArgs = {client.instance_args}"
    yield f"httpsOnly = {'true' if client.https_only else 'false'}"
    yield ""
    yield "[service]"
    yield f"packageBackend = {client.package_backend or _BACKENDS[OWN_CLIENT]}"


def for_image(client: RegionClient, registration: Registration) -> RegionClient:
    """The site's settings for one image: the package backend follows from its client where the site names none."""
    return replace(client, package_backend=client.package_backend or _BACKENDS[registration.client])


def certificate_files(regions: Sequence[Region], client: RegionClient) -> Mapping[str, Path]:
    """The PEM of each ``regionsrv`` item, by its path in the image (without the leading slash)."""
    location = client.cert_location.strip("/")
    return {f"{location}/{item}.pem": server.pem for item, server in items(regions).items()}


def guest_config(registration: Registration, repositories: Sequence[Repository]) -> str:
    """The text of ``/etc/guestregister.conf``: what to register as, and what to take from the update server.

    ``mode`` tells people, and 'factory region check', which kind of image it is; the client does not read it.
    Suites, components and keyrings come from here and never from the server, so that the image decides whom it trusts;
    ``replaces`` tells which of the image's own apt sources are put away while it is registered.
    """
    lines = [
        "# What 'guestregister' registers this instance as.",
        "[registration]",
        f"product = {registration.product}",
        f"mode = {registration.mode}",
    ]
    for repository in repositories:
        lines += [
            "",
            f"[repository {repository.alias}]",
            f"suites = {' '.join(repository.suites)}",
            f"components = {' '.join(repository.components)}",
            f"signed-by = {repository.key}",
            f"replaces = {repository.url}",
        ]
    return "\n".join(lines) + "\n"


def guest_files(
    regions: Sequence[Region],
    client: RegionClient,
    registration: Registration,
    repositories: Sequence[Repository],
) -> tuple[GuestFile, ...]:
    """Everything an image needs to register: configuration, PEMs, and without SUSE's client ours and its unit.

    With ``mode = none`` that is nothing. With ``byos`` all of it is there, and only the unit is not enabled: an owner
    who brings a subscription registers by hand, at the same servers.
    """
    if registration.mode == "none":
        return ()
    client = for_image(client, registration)
    found = [
        GuestFile(path=CLIENT_CONFIG, content=client_config(regions, client).encode()),
        *(
            GuestFile(path=path, content=pem.read_bytes())
            for path, pem in sorted(certificate_files(regions, client).items())
        ),
    ]
    if registration.client == OWN_CLIENT:
        found += own_client_files(registration, repositories)
    if registration.mode == "on-demand":
        found.append(GuestFile(path=GUEST_WANTED, link=f"/{GUEST_UNIT}"))
    return tuple(found)


def own_client_files(registration: Registration, repositories: Sequence[Repository]) -> tuple[GuestFile, ...]:
    """The guest client for images without SUSE's, its configuration and its unit."""
    guest = files("factory.region") / "guest"
    return (
        GuestFile(path=GUEST_CONFIG, content=guest_config(registration, repositories).encode()),
        GuestFile(path=GUEST_PROGRAM, content=(guest / "guestregister").read_bytes(), mode=0o755),
        GuestFile(path=GUEST_PROVIDER, content=(guest / "instance-data").read_bytes(), mode=0o755),
        GuestFile(path=GUEST_PLUGIN, content=(guest / "openstackregion.py").read_bytes()),
        GuestFile(path=GUEST_UNIT, content=(guest / "guestregister.service").read_bytes()),
    )


def install(root: Path, wanted: Sequence[GuestFile]) -> None:
    """Write guest files below ``root``."""
    for file in wanted:
        path = root / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        if file.link:
            path.unlink(missing_ok=True)
            path.symlink_to(file.link)
        else:
            write_whole(path, file.content, mode=file.mode)


def region_data(regions: Sequence[Region]) -> str:
    """The text of ``regionData.cfg`` for a region server.

    Raises:
        InputFault: the regions cannot be written so that servers and clients understand them.
    """
    faults = check_regions(regions)
    if faults:
        raise InputFault("the regions cannot be served", faults=faults)
    return render(entries_of(regions))


def registry(server: Server) -> str:
    """The registry name to announce: SUSE's clients need one, and the server's certificate covers its own name."""
    return server.registry or server.name
