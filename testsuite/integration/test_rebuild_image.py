# SPDX-License-Identifier: Apache-2.0
"""The shared night's image, made again by ``factory rebuild`` as a person elsewhere would type it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote

import pytest

from factory.inputs.lock import read_lock
from factory.model import Artifact, Bundle
from factory.system.files import sha256_file
from testsuite.conftest import FACTORY, PROJECT, NightRun

TIMEOUT_S = 1500


def published(night: NightRun, folder: Path) -> tuple[Path, Path]:
    """The night's tarball and public keys, as somebody who downloaded them has them."""
    bundle = night.run.read("sign", Bundle)
    folder.mkdir()
    for name in (bundle.artifact.tarball.name, f"{bundle.artifact.tarball.name}.asc"):
        shutil.copyfile(bundle.directory / name, folder / name)
    keys = night.state.keys / "public"
    return folder / bundle.artifact.tarball.name, keys / f"{bundle.fingerprint}.asc"


def rebuild(tarball: Path, key: Path, *words: str | Path, state: Path) -> subprocess.CompletedProcess[str]:
    """Typed in a network namespace without any route, so that nobody can be asked."""
    return subprocess.run(
        ["unshare", "--net", FACTORY, "--project", PROJECT, "--state", state, "rebuild", tarball, "--key", key, *words],
        cwd=tarball.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
        env={name: value for name, value in os.environ.items() if not name.startswith("FACTORY_")},
    )


@pytest.mark.needs_image
def test_an_image_is_made_again_bit_for_bit_without_a_network(night: NightRun, tmp_path: Path) -> None:
    artifact = night.run.read("build", Artifact)
    tarball, key = published(night, tmp_path / "elsewhere")
    out, state = tmp_path / "out", tmp_path / "another" / "state"
    done = rebuild(tarball, key, "--inputs", night.state.blobs, "--out", out, "--json", state=state)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    value = json.loads(done.stdout)["value"]
    assert (value["identical"], value["tarball_identical"]) == (True, True)
    assert value["sha256"] == artifact.sha256
    assert value["differences"] == value["unasked"] == []
    for path in (artifact.path, artifact.tarball, artifact.lock, artifact.files_list, artifact.packages_list):
        assert sha256_file(out / path.name) == sha256_file(path), path.name
    assert not list((state / "rebuilds").iterdir())


@pytest.mark.needs_image
def test_one_byte_of_one_stored_package_is_refused_by_name(night: NightRun, tmp_path: Path) -> None:
    artifact = night.run.read("build", Artifact)
    tarball, key = published(night, tmp_path / "elsewhere")
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for entry in read_lock(artifact.lock):
        if entry.found:
            (blobs / entry.sha512).symlink_to(night.state.blobs / entry.sha512)
    # one that the bootstrap needs, so that the refusal comes early
    entry = next(one for one in read_lock(artifact.lock) if "/base-files_" in one.path)
    content = bytearray((blobs / entry.sha512).read_bytes())
    content[len(content) // 2] ^= 1
    (blobs / entry.sha512).unlink()
    (blobs / entry.sha512).write_bytes(content)
    done = rebuild(tarball, key, "--inputs", blobs, state=tmp_path / "state")
    assert done.returncode == 3
    name = unquote(entry.path).rsplit("/", 1)[-1]
    assert f"'{name}' of repository '{entry.repository}' is not what was recorded" in done.stderr
    assert (tmp_path / "state" / "failed-rebuild" / "logs" / "build.log").is_file()
    assert not list((tmp_path / "state" / "rebuilds").iterdir())
