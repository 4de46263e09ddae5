# SPDX-License-Identifier: Apache-2.0
"""describe: a description, the site and the regions become a recipe.

The recipe's tree is self-contained: plain kiwi can build it, and it is the signed source tarball.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from factory import __version__
from factory.describe.blueprint import Blueprint, read_blueprint
from factory.describe.check import (
    carried,
    lifetime_days,
    located,
    ntp_servers,
    region_faults,
    secret_faults,
    secrets,
    site_name,
    tree_faults,
    unused,
)
from factory.describe.checkout import checkout
from factory.describe.foreign import (
    VENDOR,
    VENDOR_SIGNATURE,
    key_file,
    mirror_of,
    under_mirror,
    write_foreign_tree,
)
from factory.describe.host_apt import host_repositories
from factory.describe.load import DESCRIPTIONS, generic_twice, images, load_description, load_site
from factory.describe.repositories import Sources, address, mirror, sources
from factory.describe.repository_keys import key_faults
from factory.describe.resolve import made_later, overlay_files, write_tree
from factory.describe.scaffold import scaffold
from factory.errors import Fault, InputFault
from factory.model import Description, Recipe, Region, Site
from factory.region.check import examine, examine_site, tree_subject
from factory.region.check_findings import Notes, faults
from factory.region.config import for_image
from factory.system.files import appearing, tree_digest
from factory.system.state import Run

__all__ = [
    "build_sources",
    "check_image",
    "describe",
    "examine_image",
    "generic_twice",
    "image_faults",
    "images",
    "load_description",
    "load_site",
    "scaffold",
]


def describe(project: Path, image: str, *, site: Site, regions: tuple[Region, ...], run: Run, now: datetime) -> Recipe:
    """Resolve an image's description into ``run.tree`` and the recipe of it.

    Args:
        regions: the site's, or the embedded region.

    Raises:
        InputFault: the description or the site file has faults; all that could be found are told.
    """
    if (taken := load_description(project, image)).foreign is not None:
        return _foreign(project, taken, site=site, run=run, now=now)
    made = _resolve(project, image, site=site, regions=regions, now=now)
    with appearing(run.tree) as partial:
        found = _write(project, made, partial, site=site, regions=regions, now=now, record=run.state.region_packages)
    tree_sha256 = tree_digest(run.tree)
    declared = (*made.description.declared_files, *found, *made_later(project, image))
    described = replace(
        made.description, declared_files=declared, retention=site.retention or made.description.retention
    )
    at = checkout(project)
    return Recipe(
        description=described,
        tree=run.tree,
        tree_sha256=tree_sha256,
        digest=_digest(described, tree_sha256),
        commit=at.commit,
        dirty=at.dirty,
        repositories=made.sources.repositories,
        mirrors=made.sources.mirrors,
        keyrings=made.sources.keyrings,
        regions=regions,
        region_client=for_image(site.region_client, made.description.registration),
        ntp_servers=ntp_servers(made.description, site),
        resolved_at=now,
        signers=made.sources.signers,
    )


def _foreign(project: Path, description: Description, *, site: Site, run: Run, now: datetime) -> Recipe:
    """The recipe of a vendor's image: nothing is resolved but where it is fetched from."""
    _expect_foreign(project, description, site)
    foreign = description.foreign
    assert foreign is not None
    key = key_file(project, description.name) if foreign.key else None
    with appearing(run.tree) as partial:
        write_foreign_tree(partial, description, key=key)
    tree_sha256 = tree_digest(run.tree)
    described = replace(description, retention=site.retention or description.retention)
    at = checkout(project)
    signature = {VENDOR_SIGNATURE: under_mirror(foreign.signature, description.name, site)} if key else {}
    return Recipe(
        description=described,
        tree=run.tree,
        tree_sha256=tree_sha256,
        digest=_digest(described, tree_sha256),
        commit=at.commit,
        dirty=at.dirty,
        repositories=(),
        mirrors={VENDOR: mirror_of(description, site), **signature},
        keyrings={VENDOR: key} if key else {},
        regions=(),
        region_client=for_image(site.region_client, description.registration),
        ntp_servers=(),
        resolved_at=now,
        signers={VENDOR: (foreign.key,)} if key else {},
    )


def _expect_foreign(project: Path, description: Description, site: Site) -> None:
    """Raise InputFault unless the project and the site fit a vendor's image."""
    known = {name: _quietly(project, name) for name in images(project)}
    wrong = (*generic_twice(project, description.name), *unused(site, {k: one for k, one in known.items() if one}))
    if wrong:
        raise InputFault(f"image '{description.name}' cannot be taken as it is described", faults=wrong)


def check_image(
    project: Path, image: str, *, site: Site, regions: tuple[Region, ...], now: datetime
) -> tuple[Fault, ...]:
    """The faults of what an image will carry to find its region servers; nothing is kept.

    Raises:
        InputFault: the description itself has faults.
    """
    return faults(examine_image(project, image, site=site, regions=regions, now=now).findings)


def examine_image(project: Path, image: str, *, site: Site, regions: tuple[Region, ...], now: datetime) -> Notes:
    """Everything that can be said of what an image will carry to find its region servers; nothing is kept.

    Raises:
        InputFault: the description itself has faults.
    """
    notes = Notes()
    description = load_description(project, image)
    client = for_image(site.region_client, description.registration)
    if description.foreign is not None:
        notes.skip(range(1, 23), "a vendor's image is taken as it is: nothing of the region is laid into it")
        return notes
    if not carried(description, site, regions, notes):
        examine_site(regions, client, notes, file=site_name(site), now=now)
        notes.skip(range(1, 23), "the build tree cannot be written while certificates are missing")
        return located(notes, site, regions, client)
    made = _resolve(project, image, site=site, regions=regions, now=now, judge=False)
    with tempfile.TemporaryDirectory(prefix="factory-check-") as folder:
        tree = Path(folder) / "tree"
        _write(project, made, tree, site=site, regions=regions, now=now, judge=False)
        mode = description.registration.mode
        subject = replace(
            tree_subject(tree, mode=mode, regions=regions, client=client), name=image, site_file=site_name(site)
        )
        examine(subject, notes, now=now, lifetime_days=lifetime_days(description, site))
        secrets(tree, notes)
    return located(notes, site, regions, client)


def image_faults(project: Path, image: str, *, site: Site, now: datetime) -> tuple[Fault, ...]:
    """Why an image could not be described on this host, so far as can be told without writing or asking anybody."""
    try:
        if (taken := load_description(project, image)).foreign is not None:
            _expect_foreign(project, taken, site)
            return ()
        _resolve(project, image, site=site, regions=site.regions, now=now, judge=bool(site.regions))
    except InputFault as wrong:
        return wrong.faults or (Fault(place=f"{DESCRIPTIONS}/{image}", problem=wrong.message, cure=wrong.hint),)
    return ()


def build_sources(project: Path, image: str, *, site: Site) -> Iterator[tuple[str, str, str]]:
    """What a build of the image reads: (alias, address, suite, if any); an empty address when nobody names one."""
    host = host_repositories()
    for repository in load_description(project, image).update_repositories:
        read_from = mirror(image, repository.alias, site) or address(repository, site, host)
        for suite in repository.suites or ("",):
            yield repository.alias, read_from, suite


@dataclass(frozen=True, slots=True, kw_only=True)
class _Resolved:
    """What is known before anything is written."""

    description: Description
    sources: Sources
    blueprint: Blueprint


def _resolve(
    project: Path, image: str, *, site: Site, regions: tuple[Region, ...], now: datetime, judge: bool = True
) -> _Resolved:
    description = load_description(project, image)
    wrong_parts: list[Fault] = []
    blueprint, found = None, None
    try:
        blueprint = read_blueprint(project, description)
    except InputFault as wrong:
        wrong_parts += wrong.faults or (Fault(place=f"{DESCRIPTIONS}/{image}", problem=wrong.message),)
    try:
        found = sources(description, site, project=project)
        wrong_parts += key_faults(description, found, now=now, lifetime_days=lifetime_days(description, site))
    except InputFault as wrong:
        wrong_parts += wrong.faults
    known = {name: _quietly(project, name) for name in images(project)}
    wrong_parts += generic_twice(project, image)
    wrong_parts += unused(site, {name: one for name, one in known.items() if one is not None})
    wrong_parts += region_faults(description, site, regions, now=now) if judge else ()
    if wrong_parts or found is None or blueprint is None:
        raise InputFault(f"image '{image}' cannot be built as it is described", faults=tuple(wrong_parts))
    return _Resolved(description=description, sources=found, blueprint=blueprint)


def _quietly(project: Path, image: str) -> Description | None:
    """Another image's description; its faults are told when it is built."""
    try:
        return load_description(project, image)
    except InputFault:
        return None


def _write(
    project: Path,
    made: _Resolved,
    tree: Path,
    *,
    site: Site,
    regions: tuple[Region, ...],
    now: datetime,
    judge: bool = True,
    record: Path | None = None,
) -> tuple[str, ...]:
    """Write the tree, and judge it; returns the files it lays into the image beside those of packages."""
    packaged = write_tree(
        project,
        tree,
        made.description,
        blueprint=made.blueprint,
        repositories=made.sources.repositories,
        regions=regions,
        client=site.region_client,
        ntp_servers=ntp_servers(made.description, site),
        record=record,
    )
    found = (*secret_faults(tree), *tree_faults(tree, made.description, site, regions, now=now)) if judge else ()
    if found:
        raise InputFault(f"the build tree of '{made.description.name}' is not good", faults=found)
    return overlay_files(tree, packaged=packaged)


def _digest(description: Description, tree_sha256: str) -> str:
    """The digest of everything that shapes the output, but for the inputs."""
    described = dataclasses.asdict(description)
    shaping = {
        # what only vendors' images have says nothing about others
        "description": {key: value for key, value in described.items() if value or key not in {"foreign", "unmet"}},
        "tree": tree_sha256,
        "factory": __version__,
        **({} if description.foreign else {description.builder: version(description.builder)}),
    }
    return hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()
