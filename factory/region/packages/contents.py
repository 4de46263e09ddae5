# SPDX-License-Identifier: Apache-2.0
"""What goes into the two packages: the region's configuration with its PEMs, and the guest client.

A payload is the same whatever the format; :mod:`.deb` and :mod:`.rpm` only wrap it. Files that differ from image to
image (what to register as, whether the service is enabled) are in neither: the image lays them beside.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.resources import files as resources
from pathlib import PurePosixPath

from factory import __version__
from factory.errors import Fault, InputFault
from factory.model import Region, RegionClient, Registration
from factory.region.certificates import certificates_in
from factory.region.config import (
    CLIENT_CONFIG,
    GUEST_CONFIG,
    GUEST_PROVIDER,
    GUEST_WANTED,
    GuestFile,
    client_config,
    guest_files,
)

PLUGIN = "openstackregion.py"
_PLUGIN_PATH = f"usr/lib/image-factory/{PLUGIN}"
PLUGIN_FOLDERS = tuple(f"usr/lib/python3.{minor}/site-packages/cloudregister" for minor in (6, 11, 13))
"""Where SUSE's client looks for plugins: the Python of SLE 15, of its Python module, and of SLES 16."""
LOGROTATE = "etc/logrotate.d/cloudregionsrvclient"
_LOGROTATE_TEXT = b"/var/log/cloudregister {\n    compress\n    missingok\n    monthly\n    rotate 4\n    size 1M\n}\n"
_RPM_BACKEND = "zypper"
_CLIENT_DATE = datetime(2026, 11, 21, tzinfo=UTC)
_PROVIDER_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,40}[a-z0-9]")
_SAFE_PATH = re.compile(r"[A-Za-z0-9/._:+@-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """A package before it has a format and a version.

    ``base`` is the version that the content itself gives (see :mod:`.versions`), ``epoch`` the time of every file in
    it, in seconds since 1970. ``keep`` names the files that belong to the machine's owner once they are installed.
    ``rpm_files`` are added to ``files`` in the rpm, or take the place of one with the same path.
    """

    name: str
    base: str
    epoch: int
    summary: str
    description: tuple[str, ...]
    files: tuple[GuestFile, ...]
    keep: tuple[str, ...] = ()
    rpm_files: tuple[GuestFile, ...] = ()
    rpm_provides: tuple[str, ...] = ()
    rpm_conflicts: tuple[str, ...] = ()
    deb_depends: tuple[str, ...] = ()
    deb_replaces: tuple[str, ...] = ()
    rpm_requires: tuple[str, ...] = ()
    unit: str = ""
    owned: tuple[str, ...] = field(default=())

    @property
    def all_rpm_files(self) -> tuple[GuestFile, ...]:
        """The files of the rpm."""
        instead = {file.path for file in self.rpm_files}
        return (*(file for file in self.files if file.path not in instead), *self.rpm_files)

    @property
    def content_sha256(self) -> str:
        """The digest of everything that is installed or decides about it; the version is not part of it."""
        total = hashlib.sha256()
        for part in (self.name, self.summary, *self.description, *self.keep, *self.deb_depends, *self.rpm_requires):
            total.update(part.encode() + b"\0")
        for part in (*self.rpm_provides, *self.rpm_conflicts, self.unit):
            total.update(part.encode() + b"\0")
        for file in (*self.files, *self.rpm_files):
            head = f"{file.path}\0{file.mode:o}\0{file.link}\0{len(file.content)}\0"
            total.update(head.encode() + file.content)
        return total.hexdigest()


def payloads(regions: Sequence[Region], client: RegionClient) -> tuple[Payload, ...]:
    """The configuration and the guest client of a site as packages; their names begin with its ``provider``.

    Raises:
        InputFault: the provider's name, or a path, cannot stand in a package.
    """
    shared = [file for file in guest_files(regions, client, Registration(), ()) if not is_per_image(file)]
    known = {file.path for file in shared}
    guest = resources("factory.region") / "guest"
    for path, mode in ((_PLUGIN_PATH, 0o644), (GUEST_PROVIDER, 0o755)):
        if path not in known:
            shared.append(GuestFile(path=path, content=(guest / path.rpartition("/")[2]).read_bytes(), mode=mode))
    faults = tuple(_faults(shared, client.provider))
    if faults:
        raise InputFault("the region's files cannot be packed", faults=faults)
    configuration = tuple(file for file in shared if _is_configuration(file, client))
    rest = tuple(file for file in shared if not _is_configuration(file, client))
    return (_configuration(configuration, regions, client), _guest_client(rest, client.provider))


def is_per_image(file: GuestFile) -> bool:
    """Whether a file differs from image to image, so that no shared package can hold it."""
    return file.path in {GUEST_CONFIG, GUEST_WANTED}


def _faults(shared: Sequence[GuestFile], provider: str) -> Iterator[Fault]:
    if not _PROVIDER_NAME.fullmatch(provider):
        yield Fault(
            place="site.toml region_client.provider",
            problem=f"{provider!r} cannot begin a package name",
            cure="lower-case letters, digits and '-'",
        )
    for file in shared:
        if not _SAFE_PATH.fullmatch(file.path) or ".." in PurePosixPath(file.path).parts:
            yield Fault(
                place="site.toml region_client",
                problem=f"the path {'/' + file.path!r} cannot stand in a package",
                cure="letters, digits and . _ : + @ - only",
            )


def _is_configuration(file: GuestFile, client: RegionClient) -> bool:
    """The hint plugin and the data provider are what the configuration names, and SUSE's client runs them too."""
    location = client.cert_location.strip("/")
    return file.path in {CLIENT_CONFIG, GUEST_PROVIDER, _PLUGIN_PATH} or file.path.startswith(f"{location}/")


def _configuration(files: tuple[GuestFile, ...], regions: Sequence[Region], client: RegionClient) -> Payload:
    born = newest_certificate(files)
    links = [GuestFile(path=f"{folder}/{PLUGIN}", link=f"/{_PLUGIN_PATH}") for folder in PLUGIN_FOLDERS]
    theirs = replace(client, package_backend=_RPM_BACKEND) if client.package_backend in {"", "apt"} else client
    config = GuestFile(path=CLIENT_CONFIG, content=client_config(regions, theirs).encode())
    return Payload(
        name=f"{client.provider}-region-config",
        base=f"{born:%Y%m%d.%H%M%S}",
        epoch=int(born.timestamp()),
        summary="region servers of this cloud and their certificates",
        description=(
            "The configuration of the registration client: which region servers this cloud has, and the certificate",
            "of each. An update of this package brings renewed certificates to running instances.",
        ),
        files=files,
        keep=tuple(file.path for file in files if file.path == CLIENT_CONFIG),
        rpm_files=(config, *links, GuestFile(path=LOGROTATE, content=_LOGROTATE_TEXT)),
        deb_replaces=(f"{client.provider}-guestregister",),  # the data provider was there before
        rpm_provides=("cloud-regionsrv-client-config", "regionsrv-certs"),
        rpm_conflicts=("otherproviders(cloud-regionsrv-client-config)",),
        owned=(*_own_folders(client.cert_location.strip("/")), "usr/lib/image-factory"),
    )


def _own_folders(location: str) -> Iterator[str]:
    """The folders of the certificates that no base system has: ``usr/lib/regionService`` and what is below it."""
    common = {"usr", "usr/lib", "usr/share", "etc", "var", "var/lib", "opt", "srv"}
    parts = location.split("/")
    for end in range(1, len(parts) + 1):
        if (folder := "/".join(parts[:end])) not in common:
            yield folder


def newest_certificate(files: Sequence[GuestFile]) -> datetime:
    """When the newest certificate among the files began to be valid: a renewal always makes this later."""
    found = [
        certificate.not_valid_before_utc
        for file in files
        if file.path.endswith(".pem")
        for certificate in certificates_in(file.content.decode())
    ]
    return max(found, default=_CLIENT_DATE)


def _guest_client(files: tuple[GuestFile, ...], provider: str) -> Payload:
    release = re.match(r"\d+(\.\d+)*", __version__)
    assert release is not None
    unit = next((file.path for file in files if file.path.endswith(".service")), "")
    return Payload(
        name=f"{provider}-guestregister",
        base=release[0],
        epoch=int(_CLIENT_DATE.timestamp()),
        summary="registers an instance with the update server of its region",
        description=(
            "At first boot the instance asks a region server, which it knows by certificate, for an update server,",
            "registers there, and takes its updates from it.",
        ),
        files=files,
        deb_depends=(f"{provider}-region-config", "python3 (>= 3.6)", "ca-certificates"),
        rpm_requires=("cloud-regionsrv-client-config", "python3 >= 3.6", "ca-certificates"),
        rpm_conflicts=("cloud-regionsrv-client",),
        unit=PurePosixPath(unit).name if unit else "",
        owned=("usr/lib/image-factory",),
    )
