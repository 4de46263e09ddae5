# SPDX-License-Identifier: Apache-2.0
"""Frozen values as the stages would make them, about small real files: for tests of what comes after."""

from __future__ import annotations

import hashlib
import io
import lzma
import stat
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from factory.build.tarball import Manifest, manifest_of
from factory.inputs.lock import Input, lock_text
from factory.model import (
    Artifact,
    Bundle,
    Check,
    Description,
    Outcome,
    Package,
    Recipe,
    Region,
    RegionClient,
    Release,
    Repository,
    Role,
    Rotation,
    StoredImage,
    Target,
    Verdict,
)
from factory.system.files import digests, lines_digest, tree_line
from factory.system.state import Run

NIGHT = datetime(2026, 11, 21, 2, 0, tzinfo=UTC)
PACKAGES = (
    Package(name="apt", version="3.0.3", arch="amd64"),
    Package(name="cloud-init", version="25.1.4-1", arch="all"),
    Package(name="openssh-server", version="1:10.0p1-7", arch="amd64"),
)
INPUTS = (
    Input(repository="debian", path="dists/trixie/InRelease", sha512="6" * 128, size_bytes=140421),
    Input(repository="debian", path="dists/trixie/main/i18n/Translation-de", status=404),
    Input(repository="debian", path="pool/main/a/apt/apt_3.0.3_amd64.deb", sha512="7" * 128, size_bytes=1400000),
)


TREE = {"config.xml": b"<image/>\n", "config.sh": b"#!/bin/sh\n"}
TREE_SHA256 = lines_digest(
    {name: tree_line(name, stat.S_IFREG | 0o644, hashlib.sha256(body).hexdigest()) for name, body in TREE.items()}
)


def recipe(run: Run, *, dirty: bool = False) -> Recipe:
    return Recipe(
        description=Description(name=run.image, line="Standard_Debian_13"),
        tree=run.tree,
        tree_sha256=TREE_SHA256,
        digest="2" * 64,
        commit="3" * 40,
        dirty=dirty,
        repositories=(Repository(alias="debian", url="https://user:secret@mirror.example/debian", suites=("trixie",)),),
        mirrors={"debian": "http://private-mirror.example/debian"},
        keyrings={},
        regions=(Region(name="embedded", embedded=True),),
        region_client=RegionClient(),
        ntp_servers=(),
        resolved_at=NIGHT,
    )


def artifact(
    run: Run,
    *,
    content: bytes = b"the image's bytes",
    packages: tuple[Package, ...] = PACKAGES,
    built_at: datetime = NIGHT,
) -> Artifact:
    """An artifact whose files really are in the run's folder."""
    run.path.mkdir(parents=True, exist_ok=True)
    files = {
        f"{run.image}.qcow2": content,
        f"{run.image}.source.tar.xz": b"",
        "inputs.lock": lock_text(INPUTS).encode(),
        f"{run.image}.packages": "".join(f"{one.name} {one.version}\n" for one in packages).encode(),
        f"{run.image}.files": b"/etc/os-release\n",
    }
    for name, body in files.items():
        (run.path / name).write_bytes(body)
    image, tarball, lock, listing, names = (run.path / name for name in files)
    found = digests(image)
    epoch, inputs_digest, tools = int((built_at - timedelta(hours=6)).timestamp()), "4" * 64, {"kiwi": "11.1.6"}
    manifest = manifest_of(
        recipe(run),
        epoch=epoch,
        inputs_digest=inputs_digest,
        tools=tools,
        results={image.name: found.sha256, lock.name: digests(lock).sha256, listing.name: digests(listing).sha256},
        layers={},
        size_bytes=found.size_bytes,
    )
    tarball.write_bytes(source_tarball(manifest, lock=lock.read_bytes()))
    return Artifact(
        recipe=recipe(run),
        path=image,
        sha256=found.sha256,
        sha512=found.sha512,
        size_bytes=found.size_bytes,
        virtual_size_bytes=4 << 30,
        epoch=epoch,
        lock=lock,
        lock_sha256=digests(lock).sha256,
        inputs_digest=inputs_digest,
        packages=packages,
        packages_list=listing,
        files_list=names,
        tarball=tarball,
        tarball_sha256=digests(tarball).sha256,
        tools={**tools, "qemu-img": "7.2.22"},
        build_id="00000000-0000-4000-8000-000000000001",
        built_at=built_at,
        seconds={"kiwi": 171.0, "tail": 22.0},
    )


def source_tarball(manifest: Manifest, *, lock: bytes, tree: Mapping[str, bytes] = TREE) -> bytes:
    """A source tarball as a build makes it, about a small tree."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        records = {"rebuild/manifest.json": manifest.text().encode(), "rebuild/inputs.lock": lock}
        for name, body in {**tree, **records}.items():
            member = tarfile.TarInfo(f"{manifest.image}-0/{name}")
            member.size = len(body)
            archive.addfile(member, io.BytesIO(body))
    return lzma.compress(plain.getvalue(), preset=0)


GREEN = (
    Check(name="test_root_login_is_refused", guarantee="Nobody logs in as root over ssh", outcome=Outcome.PASSED),
    Check(name="test_only_ssh_listens", guarantee="Only sshd listens", outcome=Outcome.PASSED, seconds=0.4),
    Check(name="test_xen_initrd", guarantee="Xen drivers are in the initrd", outcome=Outcome.SKIPPED, message="no xen"),
)
RED = Check(
    name="test_machine_id_is_empty",
    guarantee="No two instances share a machine-id",
    outcome=Outcome.FAILED,
    message="/etc/machine-id holds 32 characters",
)


def verdict(made: Artifact, *, red: bool = False, console_log: Path | None = None) -> Verdict:
    return Verdict(
        artifact_sha256=made.sha256,
        checks=(*GREEN, RED) if red else GREEN,
        accelerator="tcg",
        boot_s=48.2,
        judged_at=made.built_at + timedelta(minutes=5),
        console_log=console_log,
        region_proof="registered with the embedded region server",
    )


def release(bundle: Bundle, *, generation: int = 7) -> Release:
    return Release(
        bundle=bundle,
        target=Target(),
        image_id=f"00000000-0000-4000-8000-{generation:012d}",
        generation=generation,
        dated_name=f"Standard_Debian_13_{bundle.signed_at:%Y%m%d}-{generation}",
        published_at=bundle.signed_at + timedelta(seconds=20),
        upload_s=3.5,
    )


def rotation(made: Release) -> Rotation:
    return Rotation(
        target=made.target,
        line="Standard_Debian_13",
        latest=made.image_id,
        prev=f"00000000-0000-4000-8000-{made.generation - 1:012d}",
        archived=f"00000000-0000-4000-8000-{made.generation - 2:012d}",
        steps=(),
        gap_s=0.31,
        rotated_at=made.published_at + timedelta(seconds=5),
    )


def stored(generation: int, *, role: Role, name: str, hidden: bool = False) -> StoredImage:
    at = NIGHT - timedelta(days=7 - generation)
    return StoredImage(
        id=f"00000000-0000-4000-8000-{generation:012d}",
        name=name,
        status="active",
        hidden=hidden,
        visibility="public",
        protected=True,
        owner="factory",
        size_bytes=310_000_000,
        virtual_size_bytes=4 << 30,
        hash_algo="sha512",
        hash_value="5" * 128,
        created_at=at,
        updated_at=at,
        properties={
            "imgfactory_line": "Standard_Debian_13",
            "imgfactory_role": role.value,
            "imgfactory_generation": str(generation),
            "imgfactory_dated_name": f"Standard_Debian_13_{at:%Y%m%d}-{generation}",
        },
    )


def updated(packages: tuple[Package, ...], name: str, version: str) -> tuple[Package, ...]:
    """The packages with one of them at another version."""
    return tuple(replace(one, version=version) if one.name == name else one for one in packages)
