# SPDX-License-Identifier: Apache-2.0
"""A package that comes from no repository, brought in by an overlay and a line in config.sh: the build names it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from testsuite.conftest import FACTORY, PROJECT, NightRun

CONTROL = (
    "Package: stranger\nVersion: 1.0\nArchitecture: all\nMaintainer: nobody <nobody@images.example>\nDescription: x\n"
)


def project_with_a_stranger(folder: Path) -> Path:
    project = folder / "project"
    shutil.copytree(PROJECT / "descriptions", project / "descriptions", symlinks=True)
    for name in ("keys", "testsuite"):
        (project / name).symlink_to(PROJECT / name)
    root, own = folder / "deb", project / "descriptions/debian13"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN/control").write_text(CONTROL)
    (root / "usr/share/stranger").mkdir(parents=True)
    (root / "usr/share/stranger/file").write_text("hello\n")
    (own / "root/opt").mkdir(parents=True, exist_ok=True)
    argv = ["dpkg-deb", "--root-owner-group", "--build", root, own / "root/opt/stranger.deb"]
    subprocess.run(argv, check=True, capture_output=True)
    with (own / "config.sh").open("a") as script:
        script.write("dpkg --install /opt/stranger.deb\nrm /opt/stranger.deb\n")
    return project


@pytest.mark.slow
@pytest.mark.needs_image
def test_a_package_from_elsewhere_fails_the_build_by_name(night: NightRun, tmp_path: Path) -> None:
    project, state = project_with_a_stranger(tmp_path), tmp_path / "state"
    state.mkdir()
    for name in ("blobs", "tools"):  # what the shared night fetched is not fetched again
        (state / name).symlink_to(night.state.path / name)
    typed = [FACTORY, "--project", project, "--state", state]
    subprocess.run([*typed, "describe", "debian13"], check=True, capture_output=True, timeout=120)
    done = subprocess.run([*typed, "build", "debian13"], capture_output=True, text=True, check=False, timeout=1500)
    assert done.returncode == 3, done.stderr[-3000:]
    assert "has what is not from a locked, signed source: stranger" in done.stderr
    assert "stranger 1.0 (all) is in no signed index of this build" in done.stderr
    assert "install it from a repository of image.toml" in done.stderr
    assert not list(state.glob("runs/*/*.qcow2"))
