# SPDX-License-Identifier: Apache-2.0
"""Texts of the embedded cloud, and daemons that are found again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from factory.cloud import down, env, status
from factory.cloud.settings import Layout, Settings, clouds_yaml, configuration, environment, new_settings
from factory.errors import CloudError, FactoryError, LineHeld
from factory.system import daemon
from factory.system.lock import exclusive, waiting

SETTINGS = new_settings(15000, 19292)


def test_settings_survive_their_file_and_hide_their_passwords() -> None:
    assert Settings.parse(SETTINGS.text()) == SETTINGS
    assert SETTINGS.passwords.admin not in repr(SETTINGS)
    passwords = (SETTINGS.passwords.admin, SETTINGS.passwords.publisher, SETTINGS.passwords.reader)
    assert len({*passwords, SETTINGS.passwords.service}) == 4


def test_clouds_yaml_names_three_clouds() -> None:
    clouds = yaml.safe_load(clouds_yaml(SETTINGS))["clouds"]
    assert {name: cloud["auth"]["username"] for name, cloud in clouds.items()} == {
        "factory": "publisher",
        "factory-reader": "reader",
        "factory-admin": "admin",
    }
    assert clouds["factory"]["auth"]["password"] == SETTINGS.passwords.publisher
    assert clouds["factory"]["auth"]["auth_url"] == "http://127.0.0.1:15000/v3"


def test_env_is_shell_that_sets_everything(tmp_path: Path) -> None:
    script = environment(Layout(folder=tmp_path / "with 'quotes'"), SETTINGS, "factory") + "env"
    done = subprocess.run(
        ["sh", "-c", script], capture_output=True, text=True, check=True, env={"PATH": "/bin:/usr/bin"}
    )
    assert f"OS_PASSWORD={SETTINGS.passwords.publisher}" in done.stdout.splitlines()
    assert f"OS_CLIENT_CONFIG_FILE={tmp_path}/with 'quotes'/clouds.yaml" in done.stdout.splitlines()
    assert "no_proxy=127.0.0.1" in done.stdout.splitlines()


def test_nothing_is_configured_outside_the_folder(tmp_path: Path) -> None:
    layout = Layout(folder=tmp_path)
    texts = configuration(layout, layout.data, SETTINGS, paste_ini=tmp_path / "paste.ini")
    for path, text in texts.items():
        assert path.is_relative_to(tmp_path)
        assert "/etc/keystone" not in text.replace(str(tmp_path), "")
        assert " = /" not in text.replace(f"= {tmp_path}", "")


def test_a_cloud_that_never_was_is_told_so(tmp_path: Path) -> None:
    assert status(tmp_path / "none")["running"] is False
    assert down(tmp_path / "none") is False
    with pytest.raises(CloudError, match="no embedded cloud yet"):
        env(tmp_path / "none")


# -- daemons ----------------------------------------------------------------------------------------------------------

SLEEPER = [sys.executable, "-c", "import time; time.sleep(60)"]
FAMILY = [
    sys.executable,
    "-c",
    "import os, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nos.fork()\ntime.sleep(60)",
]


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "run" / "sleeper.mark"
    yield path
    daemon.end(path, grace_s=0)


def start(mark: Path, argv: list[str]) -> int:
    return daemon.start(argv, mark=mark, log=mark.parent / "log", env={})


def test_a_daemon_outlives_its_starter_and_is_ended_by_its_mark(mark: Path) -> None:
    pid = start(mark, SLEEPER)
    assert daemon.main_pid(mark) == pid
    assert daemon.holders(mark) == (pid,)
    assert os.getsid(pid) != os.getsid(0)
    assert Path(f"/proc/{pid}/fd/0").readlink() == Path("/dev/null")
    with pytest.raises(FactoryError, match="runs already"):
        start(mark, SLEEPER)
    daemon.end(mark)
    assert daemon.holders(mark) == ()
    assert daemon.main_pid(mark) is None


def test_children_that_ignore_term_are_killed_also_when_their_parent_is_gone(mark: Path) -> None:
    pid = start(mark, FAMILY)
    deadline = time.monotonic() + 10
    while len(daemon.holders(mark)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    while daemon.main_pid(mark) is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(daemon.holders(mark)) == 1
    daemon.end(mark, grace_s=0.2)
    assert daemon.holders(mark) == ()


def test_a_daemon_whose_record_was_never_written_is_found(mark: Path) -> None:
    pid = start(mark, SLEEPER)
    mark.with_suffix(".json").unlink()
    assert daemon.main_pid(mark) is None
    assert daemon.holders(mark) == (pid,)
    daemon.end(mark)
    assert daemon.holders(mark) == ()


def test_a_pid_that_now_belongs_to_somebody_else_is_left_alone(mark: Path) -> None:
    stranger = subprocess.Popen(SLEEPER)
    try:
        mark.parent.mkdir()
        mark.touch()
        mark.with_suffix(".json").write_text(
            f'{{"pid": {stranger.pid}, "start_ticks": {daemon.start_ticks(stranger.pid)}}}'
        )
        assert daemon.main_pid(mark) is None
        daemon.end(mark)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_waiting_takes_its_turn_and_gives_up(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with exclusive(path, what="x"), pytest.raises(LineHeld), waiting(path, what="x", timeout_s=0.3):
        raise AssertionError
    with waiting(path, what="x", timeout_s=0.3):
        pass
