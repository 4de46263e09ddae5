# SPDX-License-Identifier: Apache-2.0
"""What is written beside an image about what is in it: inventory, changelogs, and the bill of materials."""

from __future__ import annotations

import lzma
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from factory.build import evidence, inventory, sbom
from factory.build.contents import package_of_file, without_epoch
from factory.build.evidence import Evidence
from factory.inputs.blobs import BlobStore
from factory.inputs.lock import Input
from factory.model import Package
from factory.system.files import Digests, digests, sha256_file, write_whole

OURS = "image-factory"
"""Whose packages those are that the factory made itself."""
LATER = frozenset({sbom.NAME, inventory.NAME, evidence.CHANGELOGS})
"""Results that source tarballs of older factories do not name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """What was written; ``licences`` counts packages by what is known of their licences."""

    inventory: Path
    changelogs: Path
    sbom: Path
    sbom_sha256: str
    licences: Mapping[str, int]

    @property
    def paths(self) -> tuple[Path, ...]:
        """All of them."""
        return self.inventory, self.changelogs, self.sbom


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageFile:
    """The file that a package was installed from; ``ours`` when the factory made it."""

    path: Path
    sha256: str
    sha512: str
    ours: bool = False


Files = dict[tuple[str, str], PackageFile]


def package_files(packages: Iterable[Package], inputs: Iterable[Input], store: BlobStore, tree: Path) -> Files:
    """The files that packages were installed from, by name and architecture, as far as they are known."""
    by_name = {key: one for one in inputs if one.found and (key := package_of_file(one.path))}
    own = {key: path for path in sorted(tree.rglob("*.deb")) if (key := package_of_file(path.name))}
    sums = store.sha256_by_sha512()
    found = {}
    for package in packages:
        key = (package.name, without_epoch(package.version), package.arch)
        if key in by_name:
            path = store.path(by_name[key].sha512)
            sha256 = sums.get(by_name[key].sha512) or sha256_file(path)
            found[(package.name, package.arch)] = PackageFile(path=path, sha256=sha256, sha512=by_name[key].sha512)
        elif key in own:
            made = digests(own[key])
            file = PackageFile(path=own[key], sha256=made.sha256, sha512=made.sha512, ours=True)
            found[(package.name, package.arch)] = file
    return found


def write_records(
    folder: Path,
    *,
    image: Path,
    name: str,
    sums: Digests,
    epoch: int,
    build_id: str,
    tools: Mapping[str, str],
    packages: tuple[Package, ...],
    files: Files,
    found: Evidence,
    pack: evidence.Pack = lzma.compress,
) -> Records:
    """Write what is known of an image's packages into ``folder``.

    Args:
        files: what the packages were installed from.
        found: what the root tree told; what it left out is read from the packages' files.
        pack: compresses the changelogs.
    """
    found = evidence.with_package_files(found, {key: file.path for key, file in files.items()})
    parts = [_part(package, files.get((package.name, package.arch)), found) for package in packages]
    subject = sbom.Subject(
        file=image.name,
        name=name,
        build_id=build_id,
        sha256=sums.sha256,
        sha512=sums.sha512,
        epoch=epoch,
        inventory=found.inventory,
        tools=tools,
    )
    paths = folder / inventory.NAME, folder / evidence.CHANGELOGS, folder / sbom.NAME
    write_whole(paths[0], found.inventory.text())
    write_whole(paths[1], evidence.changelogs_bytes(found.sources, pack=pack))
    write_whole(paths[2], sbom.sbom_text(subject, parts))
    return Records(
        inventory=paths[0],
        changelogs=paths[1],
        sbom=paths[2],
        sbom_sha256=sha256_file(paths[2]),
        licences=sbom.counted(parts),
    )


def _part(package: Package, file: PackageFile | None, found: Evidence) -> sbom.Part:
    about, distro = found.about.get((package.name, package.arch)), found.inventory.distro
    release = "-".join(filter(None, (distro, found.inventory.version)))
    ours = file is not None and file.ours
    return sbom.Part(
        system="deb",
        vendor=OURS if ours else distro,
        name=package.name,
        version=package.version,
        arch=package.arch,
        distro=release,
        source=about.source if about else package.source,
        source_version=about.source_version if about else "",
        maintainer=about.maintainer if about else "",
        origin=OURS if ours else package.origin,
        sha256=file.sha256 if file else "",
        sha512=file.sha512 if file else "",
        licences=about.licences if about else None,
    )
