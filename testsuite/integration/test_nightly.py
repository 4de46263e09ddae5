# SPDX-License-Identifier: Apache-2.0
"""The main job, typed as people type it, against the real parts."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from factory.model import STAGES, Publication, Rotations, Verdict
from testsuite.conftest import FACTORY, PROJECT, NightRun, a_night, type_factory

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_mirror, pytest.mark.needs_image]

BIN = Path(sys.executable).parent


def shell_environment(night: NightRun) -> dict[str, str]:
    shown = type_factory("cloud", "env", state=night.state.path).stdout
    pairs = (line.removeprefix("export ").split("=", 1) for line in shown.splitlines() if "=" in line)
    return {**os.environ, **{name: value.strip("'\"") for name, value in pairs}}


def names_in_cloud(night: NightRun, *words: str) -> list[str]:
    done = subprocess.run(
        [BIN / words[0], *words[1:]], env=shell_environment(night), capture_output=True, text=True, check=True
    )
    return [
        line.split("|")[2].strip() for line in done.stdout.splitlines() if line.startswith("|") and "ID" not in line
    ]


def test_a_night_with_nothing_configured_is_green_and_published(night: NightRun) -> None:
    assert night.status == 0, night.stderr[-4000:]
    assert night.run.stages() == STAGES
    assert night.run.read("verify", Verdict).passed
    for stage in STAGES:
        assert stage in night.stdout
    assert str(night.run.path / "report.html") in night.stdout


def test_people_see_one_latest_with_both_clients(night: NightRun) -> None:
    for words in (("openstack", "image", "list"), ("glance", "image-list")):
        names = names_in_cloud(night, *words)
        assert names.count("Standard_Debian_13_latest") == 1, names


def test_the_stored_bytes_are_the_tested_ones(night: NightRun) -> None:
    release = night.run.read("publish", Publication).releases[0]
    verdict = night.run.read("verify", Verdict)
    assert release.bundle.artifact.sha256 == verdict.artifact_sha256
    shown = subprocess.run(
        [BIN / "openstack", "image", "show", release.image_id, "-f", "json"],
        env=shell_environment(night),
        capture_output=True,
        text=True,
        check=True,
    )
    properties = json.loads(shown.stdout)["properties"]
    assert properties["os_hash_value"] == release.bundle.artifact.sha512


def test_the_bundle_verifies_with_public_keys_only(night: NightRun) -> None:
    done = type_factory("verify-signature", night.run.path / "bundle", state=night.state.path)
    assert done.returncode == 0, done.stderr


def test_an_unchanged_night_makes_nothing(night: NightRun) -> None:
    """Also the second one, which follows a night without a build."""
    for _ in range(2):
        again = a_night(night.state)
        assert again.status == 0, again.stderr[-3000:]
        assert "nothing changed" in again.stdout
        assert again.seconds < 60
        assert not again.run.has("build")


def test_a_night_cut_off_before_its_end_goes_on(night: NightRun) -> None:
    """As after a kill between the last request to Glance and the record of it."""
    before = night.run.read("rotate", Rotations)
    night.run.file("rotate").unlink()
    again = a_night(night.state)
    assert again.status == 0, again.stderr[-3000:]
    assert f"going on with run {night.run.id}" in again.stderr
    assert night.run.read("rotate", Rotations).rotations[0].latest == before.rotations[0].latest
    assert names_in_cloud(night, "glance", "image-list") == ["Standard_Debian_13_latest"]


def test_an_interrupted_night_leaves_nothing(tmp_path: Path) -> None:
    """Ctrl-C in the middle of a real build."""
    command = ["env", "--default-signal=INT", FACTORY, "--state", tmp_path, "nightly", "debian13", "--allow-dirty"]
    with subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = next((line for line in iter(process.stderr.readline, "") if "kiwi" in line), "the build did not start")
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(60) == 130, rest
    assert "interrupted" in rest
    assert "Traceback" not in said + rest
    assert_nothing_left(tmp_path)


def test_the_host_is_as_it_was(night: NightRun) -> None:
    """No guest, mount or loop device of the night is left."""
    assert_nothing_left(night.state.path, words=str(night.run.path))


def assert_nothing_left(state: Path, *, words: str = "") -> None:
    assert str(state) not in Path("/proc/self/mountinfo").read_text()
    loops = subprocess.run(
        ["losetup", "--list", "--noheadings", "--output", "BACK-FILE"], capture_output=True, text=True, check=True
    )
    assert str(state) not in loops.stdout
    deadline = time.monotonic() + 20  # tests beside us may copy what we look for
    while (left := processes_naming(words or str(state))) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left, "still running"


def processes_naming(words: str) -> list[bytes]:
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(process.read_bytes())
    return [said for said in found if words.encode() in said]


@pytest.mark.slow
def test_a_forced_second_and_third_night_rotate(night: NightRun) -> None:
    second, third = a_night(night.state, "--force"), a_night(night.state, "--force")
    assert (second.status, third.status) == (0, 0), third.stderr[-3000:]
    first_id = night.run.read("rotate", Rotations).rotations[0].latest
    rotation = third.run.read("rotate", Rotations).rotations[0]
    assert rotation.archived == first_id
    names = names_in_cloud(night, "glance", "image-list")
    assert sorted(names) == ["Standard_Debian_13_latest", "Standard_Debian_13_prev"]
