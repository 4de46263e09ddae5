# SPDX-License-Identifier: Apache-2.0
"""The region's configuration and the guest client in the build tree, as packages that ``config.sh`` installs.

The same files lie in the overlay, so that people and checks see in the tree what the image will have; installing the
packages makes them dpkg's, and a later version of the package can replace them.
"""

from __future__ import annotations

from pathlib import Path

from factory.errors import Fault, InputFault
from factory.model import Region, RegionClient, Registration
from factory.region.packages import build_deb, issue, payloads

FOLDER = "var/cache/image-factory"
"""Where the packages lie in the overlay; ``config.sh`` removes it."""


def pack(
    root: Path,
    regions: tuple[Region, ...],
    client: RegionClient,
    registration: Registration,
    *,
    apt: bool,
    record: Path | None,
) -> frozenset[str]:
    """Put the packages into the overlay; returns the files that belong to them, as paths in the image.

    Args:
        apt: whether the image is made of Debian packages: only these get ours.
        record: which versions were given out; without one a version follows from the content alone.

    Raises:
        InputFault: an overlay has something there, which the build would take for ours.
    """
    folder = root / FOLDER
    if folder.exists() or folder.is_symlink():
        fault = Fault(place=f"root/{FOLDER}", problem="is where the factory puts its own packages")
        raise InputFault("an overlay holds packages that would be installed as the factory's own", faults=(fault,))
    if registration.mode == "none" or not apt:
        return frozenset()
    folder.mkdir(parents=True)
    wanted = payloads(regions, client)
    versions = issue(wanted, record, published={}) if record else {one.name: one.base for one in wanted}
    for payload in wanted:
        build_deb(payload, versions[payload.name], folder)
    return frozenset(f"/{file.path}" for payload in wanted for file in payload.files)
