# SPDX-License-Identifier: Apache-2.0
"""The command line as people meet it: what it prints and how it exits."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.programs

PROJECT = Path(__file__).parents[2]
FACTORY = Path(sys.executable).parent / "factory"


def factory(*words: str, state: Path, cwd: Path = PROJECT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [FACTORY, "--state", state, *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={k: v for k, v in os.environ.items() if not k.startswith("FACTORY_")},
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copytree(PROJECT / "descriptions", tmp_path / "descriptions", symlinks=True)
    shutil.copytree(PROJECT / "testsuite" / "acceptance", tmp_path / "testsuite" / "acceptance")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["bogus"], 2, "No such command 'bogus'"),
        (["describe"], 2, "Missing argument 'image'"),
        (["describe", "nosuch"], 2, "nosuch"),
        (["verify", "debian13"], 2, "no run of 'debian13'"),
        (["verify", "/nonexistent.qcow2"], 2, "/nonexistent.qcow2"),
        (["sign", "debian13", "--run", "20000101-000000-debian13"], 2, "20000101"),
        (["sign"], 2, "Missing argument 'image'"),
        (["sign", "debian13", "--request", "x"], 2, "--request goes with no image"),
        (["sign", "--request", "/nonexistent", "--dry-run"], 2, "/nonexistent"),
        (["sign", "--request", "x"], 2, "--request needs --signatures-out FILE, or --dry-run"),
        (["sign", "--request", "README.md", "--dry-run"], 1, "is not JSON"),
        (["sign", "debian13", "--request-out", "x", "--signatures", "y"], 2, "do not go together"),
        (["sign", "debian13", "--signatures-out", "x"], 2, "do not go together"),
        (["--site", "/nonexistent.toml", "list"], 2, "nonexistent.toml"),
        (["--project", "/", "list"], 2, "no 'descriptions' folder"),
        (["verify-signature", "/dev/null/none"], 2, "/dev/null/none"),
        (["nightly"], 2, "Missing argument 'image'"),
        (["nightly", "debian13", "--all"], 2, "--all goes with no image"),
        (["nightly", "debian13", "--jobs", "2"], 2, "--jobs goes with --all only"),
        (["nightly", "--all", "--jobs", "0"], 2, "--jobs"),
        (["doctor", "--image", "debain13"], 2, "did you mean 'debian13'?"),
        (["new", "web"], 2, "Missing option '--from'"),
        (["new", "web", "--from", "debain13"], 2, "did you mean 'debian13'?"),
        (["describe", "debain13"], 2, "did you mean 'debian13'?"),
    ],
)
def test_bad_input_is_one_clear_error_with_its_status(words, status, says, tmp_path: Path) -> None:
    done = factory(*words, state=tmp_path / "state")
    assert done.returncode == status, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_faults_of_a_description_come_all_at_once_with_their_places(project: Path) -> None:
    path = project / "descriptions" / "debian13" / "image.toml"
    changed = path.read_text().replace('publish = "every-night"', 'publish = "sometimes"')
    path.write_text(changed.replace("[image]", "[image]\nnosuchkey = 1"))
    lines = path.read_text().splitlines()
    done = factory("describe", "debian13", state=project / "state", cwd=project)
    assert done.returncode == 2
    for wrong in ("nosuchkey = 1", 'publish = "sometimes"'):
        assert f"image.toml:{lines.index(wrong) + 1}" in done.stderr


def test_list_and_version_and_help(tmp_path: Path) -> None:
    assert "debian13" in factory("list", state=tmp_path).stdout
    assert factory("--version", state=tmp_path).stdout.startswith("factory 0.")
    shown = factory("--help", state=tmp_path)
    assert shown.returncode == 0
    for verb in ("describe", "build", "verify", "sign", "publish", "rotate", "nightly", "doctor"):
        assert verb in shown.stdout


def test_derived_documents_are_current() -> None:
    done = subprocess.run(
        [sys.executable, PROJECT / "docs" / "generate.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
