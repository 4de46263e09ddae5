# SPDX-License-Identifier: Apache-2.0
"""The embedded cloud: up, down, killed, half-made, and seen by the ordinary clients."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from factory import cloud
from factory.cloud.settings import Layout, Settings
from factory.errors import CloudError
from factory.system import daemon

pytestmark = pytest.mark.needs_glance

BIN = Path(sys.executable).parent
SERVICES = ("keystone", "glance")


def silent(_line: str) -> None:
    return


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cloud of its own for this module, as its processes get killed."""
    path = tmp_path_factory.mktemp("own") / "cloud"
    yield path
    cloud.down(path)


@pytest.fixture
def access(folder: Path) -> cloud.CloudAccess:
    return cloud.up(folder, say=silent)


def pids(folder: Path) -> dict[str, tuple[int, ...]]:
    return {name: daemon.holders(Layout(folder=folder).mark(name)) for name in SERVICES}


def client(access: cloud.CloudAccess, command: str, *, who: str = "factory") -> str:
    """Run a client as a person would, after ``eval "$(factory cloud env)"``."""
    script = cloud.env(access.clouds_yaml.parent, cloud=who) + f'PATH="{BIN}:$PATH"; exec {command}'
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, timeout=120).stdout


def test_a_first_up_killed_at_any_moment_is_started_afresh(folder: Path) -> None:
    """Killed while the databases are made: nothing of the half-made cloud is used."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            cloud.up(folder, say=silent)
        os._exit(0)
    partial = folder / ".data.part" / "keystone.sqlite"
    deadline = time.monotonic() + 120
    while not partial.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert partial.exists()
    assert not Layout(folder=folder).settings.exists()
    assert cloud.status(folder)["running"] is False
    cloud.up(folder, say=silent)
    assert cloud.status(folder)["running"] is True
    assert not partial.exists()


@pytest.mark.slow
def test_two_clouds_that_are_made_in_the_same_moment_have_ports_of_their_own(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    made: dict[Path, cloud.CloudAccess] = {}
    threads = [
        threading.Thread(target=lambda folder=folder: made.update({folder: cloud.up(folder, say=silent)}))
        for folder in folders
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(made) == set(folders)
        assert len({url for one in made.values() for url in (one.auth_url, one.image_url)}) == 4
    finally:
        for folder in folders:
            cloud.down(folder)


def test_the_ordinary_clients_work_with_what_env_prints(access: cloud.CloudAccess) -> None:
    assert "Name" in client(access, "glance image-list")
    assert client(access, "openstack image list -f json").strip() == "[]"
    plain = subprocess.run(
        [BIN / "openstack", "--os-cloud", "factory", "token", "issue", "-f", "value", "-c", "project_id"],
        env={"PATH": os.environ["PATH"], "OS_CLIENT_CONFIG_FILE": str(access.clouds_yaml)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert len(plain.stdout.strip()) == 32


def test_the_publisher_is_no_administrator_and_the_reader_only_reads(access: cloud.CloudAccess) -> None:
    for who, command in (
        ("factory", "openstack user list"),
        ("factory-reader", "openstack image create --container-format bare forbidden"),
        ("factory-reader", "openstack user list"),
    ):
        with pytest.raises(subprocess.CalledProcessError) as refused:
            client(access, command, who=who)
        assert "403" in refused.value.stderr
    assert "admin" in client(access, "openstack user list", who="factory-admin")


def test_up_twice_changes_nothing_and_is_quick(access: cloud.CloudAccess, folder: Path) -> None:
    before = pids(folder)
    started = time.monotonic()
    assert cloud.up(folder, say=silent) == access
    assert pids(folder) == before
    assert time.monotonic() - started < 5


def test_everything_is_private_and_below_the_folder(access: cloud.CloudAccess, folder: Path) -> None:
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    secret = [access.clouds_yaml, Layout(folder=folder).settings, *Layout(folder=folder).etc.rglob("*.conf")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in secret} == {0o600}
    passwords = Settings.parse(Layout(folder=folder).settings.read_text()).passwords
    for log in (folder / "log").iterdir():
        for password in (passwords.admin, passwords.publisher, passwords.reader, passwords.service):
            assert password not in log.read_text(errors="replace"), log
    for pid in {pid for found in pids(folder).values() for pid in found}:
        opened = {str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()}
        written = {path for path in opened if path.startswith("/") and not path.startswith(("/dev/", str(folder)))}
        assert not {path for path in written if path.startswith(("/tmp/", "/etc/")) and str(folder) not in path}


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("which", ["first", "last"])
def test_up_after_kill_9(access: cloud.CloudAccess, folder: Path, service: str, which: str) -> None:
    """The first process of a service, or its worker: the next up serves again at the same address."""
    before = pids(folder)
    os.kill(before[service][0 if which == "first" else -1], signal.SIGKILL)
    assert cloud.up(folder, say=silent) == access
    assert "Name" in client(access, "glance image-list")
    assert cloud.status(folder)["running"] is True
    other = next(name for name in SERVICES if name != service)
    assert pids(folder)[other] == before[other]


def test_down_ends_exactly_what_up_started(access: cloud.CloudAccess, folder: Path) -> None:
    mine = {pid for found in pids(folder).values() for pid in found}
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        assert cloud.down(folder) is True
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()
    assert {pid for pid in mine if daemon.start_ticks(pid) is not None} == set()
    assert cloud.down(folder) is False
    assert cloud.status(folder)["running"] is False
    assert cloud.up(folder, say=silent) == access


def test_a_taken_port_is_named(access: cloud.CloudAccess, folder: Path) -> None:
    cloud.down(folder)
    settings = Settings.parse(Layout(folder=folder).settings.read_text())
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.bind(("127.0.0.1", settings.image_port))
        thief.listen()
        with pytest.raises(CloudError, match=f"port {settings.image_port}") as told:
            cloud.up(folder, say=silent)
        assert "ss -ltnp" in told.value.hint
        assert told.value.exit_code == 3
    assert cloud.up(folder, say=silent) == access


def test_files_that_cannot_be_written_are_named(access: cloud.CloudAccess, folder: Path) -> None:
    layout = Layout(folder=folder)
    cloud.down(folder)
    kept = layout.images.rename(folder / "kept")
    layout.images.write_text("in the way")
    try:
        with pytest.raises(CloudError, match="could not write") as told:
            cloud.up(folder, say=silent)
        assert str(layout.folder) in "\n".join(told.value.lines())
    finally:
        layout.images.unlink()
        kept.rename(layout.images)
    assert cloud.up(folder, say=silent) == access


def test_a_service_that_dies_at_its_start_is_told_with_its_last_words(access: cloud.CloudAccess, folder: Path) -> None:
    layout = Layout(folder=folder)
    cloud.down(folder)
    stop = threading.Event()

    def kill_keystone() -> None:
        while not stop.is_set():
            for pid in daemon.holders(layout.mark("keystone")):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_keystone)
    killer.start()
    try:
        with pytest.raises(CloudError, match="keystone did not start") as told:
            cloud.up(folder, say=silent)
        assert str(layout.log("keystone-gunicorn")) in "\n".join(told.value.lines())
    finally:
        stop.set()
        killer.join()
    assert cloud.up(folder, say=silent) == access


@pytest.mark.needs_root
def test_a_full_disk_is_named_before_anything_is_made(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", small], check=True)
    try:
        with pytest.raises(CloudError, match="disk is full") as told:
            cloud.up(small / "cloud", say=silent)
        assert "make room" in told.value.hint
    finally:
        subprocess.run(["umount", small], check=True)
