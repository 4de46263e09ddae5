# SPDX-License-Identifier: Apache-2.0
"""Bundles about small, real qcow2 files: what ``publish`` takes, without a night.

Compared with what ``sign`` makes: the same fields and files; signatures are empty files, as nothing here reads them.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from factory.model import (
    Artifact,
    Bundle,
    Check,
    Description,
    Outcome,
    Package,
    Recipe,
    RegionClient,
    Verdict,
)
from factory.system.files import digests

BUILT = datetime(2026, 11, 21, 2, 10, tzinfo=UTC)
VIRTUAL_BYTES = 64 << 20


def make_qcow2(path: Path, *, data_bytes: int = 256 << 10) -> None:
    """A qcow2 of 64 MiB with some random data, so that no two are alike."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, str(VIRTUAL_BYTES)], check=True)
    raw = path.with_suffix(".data")
    raw.write_bytes(os.urandom(data_bytes))
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", f"write -q -s {raw} 0 {data_bytes}", path], check=True)
    raw.unlink()


def make_bundle(
    folder: Path,
    *,
    line: str = "Standard_Debian_13",
    built_at: datetime = BUILT,
    qcow2: Path | None = None,
    description: Description | None = None,
    data_bytes: int = 256 << 10,
) -> Bundle:
    """A bundle in ``folder``, of a fresh image or of the one given."""
    folder.mkdir(parents=True, exist_ok=True)
    image = folder / f"{line}.x86_64.qcow2"
    if qcow2 is None:
        make_qcow2(image, data_bytes=data_bytes)
    else:
        image.write_bytes(qcow2.read_bytes())
    others = [f"{image.name}.asc", "SHA256SUMS", "SHA256SUMS.asc", "source.tar.xz", "source.tar.xz.asc"]
    found = digests(image)
    for name in others:
        (folder / name).write_text(f"{found.sha256}  {image.name}\n" if name == "SHA256SUMS" else "")
    recipe = Recipe(
        description=description or Description(name="debian13", line=line, metadata={"os_version": "13"}),
        tree=folder / "tree",
        tree_sha256="0" * 64,
        digest="1" * 64,
        commit="2" * 40,
        dirty=False,
        repositories=(),
        mirrors={},
        keyrings={},
        regions=(),
        region_client=RegionClient(),
        ntp_servers=(),
        resolved_at=built_at,
    )
    artifact = Artifact(
        recipe=recipe,
        path=image,
        sha256=found.sha256,
        sha512=found.sha512,
        size_bytes=found.size_bytes,
        virtual_size_bytes=VIRTUAL_BYTES,
        epoch=1_795_000_000,
        lock=folder / "inputs.lock",
        lock_sha256="3" * 64,
        inputs_digest="4" * 64,
        packages=(
            Package(name="bash", version="5.2.37-2", arch="amd64"),
            Package(name="qemu-guest-agent", version="1:10.0.2", arch="amd64"),
        ),
        packages_list=folder / "packages",
        files_list=folder / "files",
        tarball=folder / "source.tar.xz",
        tarball_sha256="5" * 64,
        tools={},
        build_id=f"{int(built_at.timestamp()):x}",
        built_at=built_at,
    )
    verdict = Verdict(
        artifact_sha256=found.sha256,
        checks=(Check(name="boots", guarantee="it boots", outcome=Outcome.PASSED),),
        accelerator="tcg",
        boot_s=30.0,
        judged_at=built_at,
        report_digest="6" * 64,
    )
    return Bundle(
        artifact=artifact,
        verdict=verdict,
        fingerprint="A" * 40,
        throw_away_key=True,
        directory=folder,
        files=(image.name, *others),
        signed_at=built_at,
    )


def with_description(bundle: Bundle, **changes: object) -> Bundle:
    """The bundle with other words in its description."""
    recipe = bundle.artifact.recipe
    described = dataclasses.replace(recipe.description, **changes)  # type: ignore[arg-type]
    artifact = dataclasses.replace(bundle.artifact, recipe=dataclasses.replace(recipe, description=described))
    return dataclasses.replace(bundle, artifact=artifact)
