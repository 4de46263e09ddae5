# SPDX-License-Identifier: Apache-2.0
"""The region's configuration and the guest client as signed packages, in repositories that update servers can serve."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from factory.errors import RegionError
from factory.region.packages.contents import Payload, is_per_image, payloads
from factory.region.packages.deb import build_deb
from factory.region.packages.repository import published_debs, write_apt_repository, write_rpm_repository
from factory.region.packages.rpm import build_rpm
from factory.region.packages.signing import PackageSigner
from factory.region.packages.versions import issue
from factory.system.run import PATH

__all__ = [
    "PackageSigner",
    "Packages",
    "Payload",
    "build_deb",
    "build_packages",
    "build_rpm",
    "is_per_image",
    "issue",
    "payloads",
    "write_apt_repository",
    "write_rpm_repository",
]

APT, RPM = "apt", "rpm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Packages:
    """What was built: the version of each package, the files, and the key that signed them."""

    folder: Path
    versions: dict[str, str]
    debs: tuple[Path, ...]
    rpms: tuple[Path, ...]
    fingerprint: str


def build_packages(
    wanted: Sequence[Payload],
    folder: Path,
    *,
    record: Path,
    signer: PackageSigner,
    now: datetime,
    say: Callable[[str], None],
) -> Packages:
    """Build, sign and index the packages in ``folder``: ``apt/`` is an apt repository, ``rpm/`` an rpm-md one.

    Args:
        record: the file that remembers which versions were given out.

    Raises:
        RegionError: a tool is missing (nothing was written), or the packages cannot be signed.
    """
    _expect_tools()
    versions = issue(wanted, record, published=published_debs(folder / APT))
    with tempfile.TemporaryDirectory(prefix="factory-packages-") as scratch:
        debs, rpms = [], []
        for payload in wanted:
            say(f"{payload.name} {versions[payload.name]}")
            debs.append(build_deb(payload, versions[payload.name], Path(scratch)))
            rpms.append(build_rpm(payload, versions[payload.name], Path(scratch)))
        kept_debs = write_apt_repository(debs, folder / APT, signer=signer, now=now)
        kept_rpms = write_rpm_repository(rpms, folder / RPM, signer=signer, now=now)
    return Packages(
        folder=folder,
        versions={payload.name: versions[payload.name] for payload in wanted},
        debs=kept_debs,
        rpms=kept_rpms,
        fingerprint=signer.fingerprint,
    )


_TOOLS = {"dpkg-deb": "dpkg", "rpmbuild": "rpm", "rpmsign": "rpm", "createrepo_c": "createrepo-c"}


def _expect_tools() -> None:
    missing = {tool: package for tool, package in _TOOLS.items() if shutil.which(tool, path=PATH) is None}
    if missing:
        raise RegionError(
            f"packages cannot be built without {', '.join(missing)}",
            hint=f"apt-get install {' '.join(sorted(set(missing.values())))}",
        )
