# SPDX-License-Identifier: Apache-2.0
"""What the tests share: one state folder, one night, its image, and the cloud that night left up.

A test says by marker what it needs. At a desk a missing tool is a skip with its reason; in CI it is a failure.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from factory.model import Artifact, Site
from factory.system.clock import now
from factory.system.files import write_whole
from factory.system.lock import waiting
from factory.system.state import Run, State

if TYPE_CHECKING:
    from factory.build.tools import ToolsTree
    from testsuite.cloud import ComputeCloud
    from testsuite.mutants.base import Base

PROJECT = Path(__file__).parents[1]
FACTORY = Path(sys.executable).parent / "factory"
SUITE = PROJECT / "testsuite" / "acceptance"
NIGHT_TIMEOUT_S = 1800
OF_THE_NIGHT = frozenset({"night", "artifact", "shared_state", "tools", "healthy_guest"})
"""Fixtures for which the shared night has to be made, or which it makes cheaper."""
CLOUD_PROGRAMS = (
    "mariadbd",
    "libvirtd",
    "virsh",
    "rabbitmq-server",
    "genisoimage",
    "qemu-system-x86_64",
    "qemu-img",
    "nft",
)

settings.register_profile("factory", deadline=None)  # a busy host is no fault of the code
settings.load_profile("factory")

pytest_plugins = ["testsuite.integration.cloud_fixtures"]


@dataclass(frozen=True)
class NightRun:
    """A night that a person could have typed: its output, its run, how long it took."""

    status: int
    stdout: str
    stderr: str
    seconds: float
    state: State
    run: Run


def type_factory(
    *words: str | Path, state: Path, timeout_s: float = NIGHT_TIMEOUT_S
) -> subprocess.CompletedProcess[str]:
    """Run the real command from the clone, as people do."""
    return subprocess.run(
        [FACTORY, "--state", state, *words],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
        env={name: value for name, value in os.environ.items() if not name.startswith("FACTORY_")},
    )


def missing(need: str) -> str:
    """Why a need cannot be met here, or nothing."""
    if need == "needs_root" and os.geteuid() != 0:
        return "not root"
    if need in {"needs_image", "needs_guest"}:
        if os.geteuid() != 0:
            return "not root"
        absent = [name for name in ("qemu-system-x86_64", "qemu-img", "gpg") if shutil.which(name) is None]
        return f"{', '.join(absent)} not installed" if absent else ""
    if need == "needs_nova":
        if os.geteuid() != 0:
            return "not root"
        absent = [name for name in CLOUD_PROGRAMS if shutil.which(name) is None]
        return f"{', '.join(absent)} not installed" if absent else ""
    if need == "needs_mirror":
        from factory.describe import build_sources

        _, mirror, suite = next(iter(build_sources(PROJECT, "debian13", site=Site())))
        try:
            urllib.request.urlopen(f"{mirror}/dists/{suite}/InRelease", timeout=15).close()
        except (OSError, ValueError) as away:
            return f"no Debian mirror: {away}"
    return ""


@pytest.hookimpl(tryfirst=True)  # before marks choose
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # a cloud with compute takes memory and time from whatever runs beside it
    items.sort(key=lambda item: item.get_closest_marker("needs_nova") is not None)
    reasons: dict[str, str] = {}
    for item in items:
        named = {marker.name for marker in item.iter_markers()} & {"needs_image", "needs_guest"}
        if named or OF_THE_NIGHT & set(getattr(item, "fixturenames", ())):
            item.add_marker("night")
        for marker in item.iter_markers():
            if not marker.name.startswith("needs_"):
                continue
            reason = reasons.setdefault(marker.name, missing(marker.name))
            if reason and not os.environ.get("CI"):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def shared_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[State]:
    """The state folder of the shared night; its cloud is taken down at the end.

    At a desk, FACTORY_TEST_STATE names one whose newest published night is used instead of making another. Programs
    that run parts of the tests side by side are given one folder for all by FACTORY_TEST_LANES.
    """
    if kept := os.environ.get("FACTORY_TEST_STATE"):
        yield State(path=Path(kept))
        return
    lanes = os.environ.get("FACTORY_TEST_LANES")
    folder = Path(lanes) / "state" if lanes else tmp_path_factory.mktemp("state")
    state = State(path=folder).prepare()
    yield state
    if not lanes:
        end_cloud_of(state)


def end_cloud_of(state: State) -> None:
    """Take down the cloud that a night left up."""
    type_factory("cloud", "down", state=state.path, timeout_s=120)


@pytest.fixture(scope="session")
def tools(shared_state: State, tmp_path_factory: pytest.TempPathFactory) -> ToolsTree:
    """The tools tree that builds use today; the shared night finds it made."""
    from factory.build.tools import recorded_tree
    from factory.describe.host_apt import host_keyring, host_repositories
    from factory.inputs.recorder import Origin
    from factory.inputs.upstream import Upstream

    keyring = host_keyring()
    assert keyring is not None
    kept = os.environ.get("FACTORY_TEST_STATE")  # only read
    state = State(path=tmp_path_factory.mktemp("tools")).prepare() if kept else shared_state
    if kept and shared_state.tools.is_dir():
        for name in ("tools", "blobs"):
            shutil.copytree(shared_state.path / name, state.path / name, symlinks=True, copy_function=os.link)
    return recorded_tree(
        Origin(mirror=host_repositories()["debian"].url, keyring=keyring),
        (),
        folder=state.tools,
        blobs=state.blobs,
        upstream=Upstream(),
        now=now(),
        say=lambda _: None,
    )


@pytest.fixture(scope="session")
def night(shared_state: State, record_testsuite_property: Callable[[str, object], None]) -> NightRun:
    """``factory nightly debian13``, once, with nothing configured."""
    if os.environ.get("FACTORY_TEST_STATE"):
        run = next(run for run in shared_state.runs_of("debian13") if run.has("rotate"))
        return NightRun(status=0, stdout="", stderr="", seconds=0.0, state=shared_state, run=run)
    asked = time.monotonic()
    made, whose = the_night(shared_state, os.environ.get("FACTORY_TEST_LANES"))
    # for groups.py: pytest counts the night, or waiting for it, as time of the test that asked first
    record_testsuite_property("night_seconds", round(time.monotonic() - asked, 1))
    record_testsuite_property("night_made", whose)
    record_testsuite_property("night_asked_by", os.environ["PYTEST_CURRENT_TEST"].split("::")[0])
    return made


def the_night(state: State, lanes: str | None) -> tuple[NightRun, str]:
    """Make the shared night, or take the one that a program beside us has made or is making; and who made it."""
    if not lanes:
        return a_night(state), "here"
    kept = Path(lanes) / "night"
    with waiting(Path(lanes) / "night.lock", what="the shared night", timeout_s=NIGHT_TIMEOUT_S):
        if kept.exists():
            found: NightRun = pickle.loads(kept.read_bytes())
            return found, "beside"
        made = a_night(state)
        write_whole(kept, pickle.dumps(made))
    return made, "here"


def a_night(state: State, *words: str) -> NightRun:
    started = time.monotonic()
    done = type_factory("nightly", "debian13", "--allow-dirty", *words, state=state.path)
    return NightRun(
        status=done.returncode,
        stdout=done.stdout,
        stderr=done.stderr,
        seconds=time.monotonic() - started,
        state=state,
        run=state.run_of("debian13"),
    )


@pytest.fixture(scope="session")
def artifact(night: NightRun) -> Artifact:
    """The image that the shared night built."""
    assert night.run.has("build"), night.stderr[-3000:]
    return night.run.read("build", Artifact)


@pytest.fixture(scope="session")
def healthy_guest(
    artifact: Artifact, shared_state: State, tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[Base]:
    """The shared night's image, booted once more and frozen: clones of it are there in seconds."""
    from testsuite.mutants.base import healthy_base

    folder = tmp_path_factory.mktemp("healthy")
    folder.chmod(0o700)
    say = pytestconfig.stash[_PROGRESS].say
    with healthy_base(artifact, state=shared_state, suite=SUITE, folder=folder, say=say, now=now()) as found:
        yield found


@pytest.fixture(scope="session")
def compute_cloud(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[ComputeCloud]:
    """A whole OpenStack with Nova on this host, brought up once: that takes minutes.

    At a desk, FACTORY_TEST_CLOUD names the folder of one that 'python -m testsuite.cloud up' holds.
    """
    from testsuite import cloud

    if kept := os.environ.get("FACTORY_TEST_CLOUD"):
        yield cloud.attached(Path(kept))
        return
    folder = tmp_path_factory.mktemp("compute-cloud")
    with cloud.compute_cloud(folder, say=pytestconfig.stash[_PROGRESS].say) as found:
        yield found
    assert not cloud.left_of(found, wait_s=30)


class Progress:
    """Lines that long tests say, from any thread; shown past pytest's capture when the next test ends."""

    def __init__(self, reporter: pytest.TerminalReporter) -> None:
        self._reporter = reporter
        self._lines: SimpleQueue[str] = SimpleQueue()

    def say(self, text: str) -> None:
        self._lines.put(text)

    @pytest.hookimpl
    def pytest_runtest_logfinish(self) -> None:
        with contextlib.suppress(Empty):
            while line := self._lines.get_nowait():
                self._reporter.ensure_newline()
                self._reporter.write_line(line)

    @pytest.hookimpl
    def pytest_terminal_summary(self) -> None:
        self.pytest_runtest_logfinish()  # what fixtures said at their end


_PROGRESS = pytest.StashKey[Progress]()


@pytest.fixture(scope="session")
def progress(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """Says a line past pytest's capture."""
    return pytestconfig.stash[_PROGRESS].say


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    config.stash[_PROGRESS] = Progress(reporter)
    config.pluginmanager.register(config.stash[_PROGRESS])
