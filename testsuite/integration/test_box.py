# SPDX-License-Identifier: Apache-2.0
"""The build box: what it can reach, and what is left after ``kill -9``."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from factory.build.box import PLACE, TARGET, Box, box
from factory.build.leftovers import clean_leftovers
from factory.build.tools import ToolsTree
from factory.errors import BuildError, CommandFailed
from factory.system.namespaces import network_namespace

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_mirror]

MIB = 1 << 20
BOX = """
import sys, time
from pathlib import Path
from factory.build.box import box
from factory.system.namespaces import network_namespace

folder, root = Path(sys.argv[1]), Path(sys.argv[5])
memory_bytes = int(sys.argv[2]) or None
with network_namespace() as network, box(
    root=root, description=folder, folder=folder, network=network, memory_bytes=memory_bytes, log=folder / "box.log"
) as made:
    print("ready", flush=True)
    made.run(["bash", "-c", sys.argv[3], sys.argv[4]], log=folder / "inside.log", timeout_s=300)
"""
DISK_WORK = """
set -e
disk=$0 # named for this test alone: a device that kept another name than the box's mark must be noticed too
cd /run/factory/target
while :; do
    truncate -s 64M $disk
    printf 'label: dos\\nstart=2048, type=83\\n' | sfdisk --quiet --no-reread $disk
    dev=$(losetup -f --show "$disk")
    echo "$dev" >>/run/factory/target/devices
    partx --add "$dev"
    mkfs.ext4 -q -F "${dev}p1"
    mkdir -p mnt && mount "${dev}p1" mnt
    dd if=/dev/zero of=mnt/file bs=1M count=20 status=none
    umount mnt
    partx --delete "$dev"
    losetup -d "$dev"
done
"""


@pytest.fixture
def a_box(tmp_path: Path, tools: ToolsTree) -> Iterator[Box]:
    (tmp_path / "config.xml").write_text("<image/>")
    with (
        network_namespace() as network,
        box(
            root=tools.path,
            description=tmp_path,
            folder=tmp_path,
            network=network,
            memory_bytes=256 * MIB,
            log=tmp_path / "box.log",
        ) as made,
    ):
        yield made


# -- what a builder can reach


def test_only_loopback_is_there(a_box: Box) -> None:
    assert a_box.run(["ls", "/sys/class/net"]).stdout.split() == ["lo"]
    assert a_box.run(["grep", "-c", ":", "/proc/net/dev"]).stdout == "1\n"


@pytest.mark.parametrize("address", ["192.0.2.1", "198.51.100.7", "169.254.169.254", "::ffff:192.0.2.1", "2001:db8::1"])
def test_no_other_address_answers_or_hangs(a_box: Box, address: str) -> None:
    code = f"import socket; socket.create_connection(({address!r}, 80), timeout=5)"
    started = time.monotonic()
    with pytest.raises(CommandFailed) as failed:
        a_box.run(["python3", "-c", code])
    assert "unreachable" in str(failed.value.facts) or "Cannot assign" in str(failed.value.facts)
    assert time.monotonic() - started < 5, "it waited for an answer"


def test_the_hosts_own_services_do_not_answer(a_box: Box) -> None:
    with socket.create_server(("127.0.0.1", 0)) as service:
        port = service.getsockname()[1]
        with pytest.raises(CommandFailed) as failed:
            a_box.run(["python3", "-c", f"import socket; socket.create_connection(('127.0.0.1', {port}))"])
    assert "refused" in str(failed.value.facts)


HOSTS_OWN = ("/etc/machine-id", "/etc/fstab", "/etc/shadow", "/root/.bashrc", "/var/lib/dpkg/info/bash.list", "/opt")


def test_no_path_of_the_host_is_seen(a_box: Box, tmp_path: Path, tools: ToolsTree) -> None:
    (tmp_path / "beside").write_text("the host's\n")
    places = [sys.executable, __file__, tmp_path / "beside", tools.path, Path.home() / ".ssh", *HOSTS_OWN]
    found = a_box.run(["bash", "-c", 'for place; do test -e "$place" && echo "$place"; done; true', "x", *places])
    assert found.stdout == ""
    assert a_box.run(["cat", "/etc/hostname"]).stdout == "localhost\n"
    # neither by the root of PID 1, nor by what a process of the box has open
    assert "beside" not in a_box.run(["ls", "/proc/1/root", "/proc/1/cwd", "/proc/self/cwd/"]).stdout
    held = a_box.run(["bash", "-c", "readlink /proc/[0-9]*/exe /proc/[0-9]*/root"]).stdout.split()
    assert held
    assert all(one == "/" or one.startswith("/usr/") for one in held), held


def test_the_root_cannot_be_changed(a_box: Box) -> None:
    for place in ("/file", "/usr/bin/file", "/etc/file", "/usr/bin/mke2fs"):
        with pytest.raises(CommandFailed) as refused:
            a_box.run(["touch", place])
        assert "Read-only file system" in str(refused.value.facts)


def test_programs_are_those_of_the_tools_tree(a_box: Box, tools: ToolsTree) -> None:
    assert a_box.run(["mke2fs", "-V"]).stderr.split()[1] in tools.version("e2fsprogs")
    assert a_box.run(["qemu-img", "--version"]).stdout.split()[2] in tools.version("qemu-utils")
    assert tools.version("kiwi") in a_box.run(["kiwi-ng", "--version"]).stdout


def test_sockets_below_run_are_hidden(a_box: Box) -> None:
    found = a_box.run(["find", "/run", "-mindepth", "1", "-maxdepth", "1"]).stdout.split()
    assert set(found) <= {"/run/factory", "/run/lock", "/run/mount"}


def test_no_process_of_the_host_is_seen_even_below_the_mounts(a_box: Box) -> None:
    count = "ls -d /proc/[0-9]* 2>/dev/null | wc -l"
    assert int(a_box.run(["sh", "-c", count]).stdout) < 10
    assert a_box.run(["sh", "-c", f"umount -l /proc; {count}"]).stdout.strip() == "0"


def test_the_hosts_settings_are_no_inputs(a_box: Box) -> None:
    assert a_box.run(["cat", "/etc/resolv.conf"]).stdout == "nameserver 127.0.0.1\n"
    assert a_box.run(["cat", "/etc/hosts"]).stdout == "127.0.0.1 localhost\n::1 localhost\n"
    assert a_box.run(["hostname"]).stdout == "localhost\n"
    assert a_box.run(["find", "/etc/apt", "-type", "f"]).stdout == ""
    before = os.umask(0o077)
    try:
        assert a_box.run(["sh", "-c", "umask"]).stdout == "0022\n"
    finally:
        os.umask(before)
    environment = a_box.run(["env"]).stdout
    assert "proxy" not in environment.lower()
    assert f"PATH={PLACE}/bin:" in environment


def test_the_description_cannot_be_changed(a_box: Box) -> None:
    with pytest.raises(CommandFailed):
        a_box.run(["touch", PLACE / "description" / "config.xml"])


def test_files_are_seen_from_outside(a_box: Box) -> None:
    a_box.run(["sh", "-c", f"echo here >{TARGET}/file"])
    assert a_box.seen(TARGET / "file").read_text() == "here\n"
    assert not (TARGET / "file").exists()


def test_the_root_file_system_gets_the_uuid_it_was_given(a_box: Box) -> None:
    wanted = "7d60393f-4180-5141-a549-a6509089b75d"
    make = f"cd {TARGET} && truncate -s 8M fs && mkfs.ext4 -q -F -L ROOT -U 00000000-0000-4000-8000-000000000000 fs"
    a_box.run(["sh", "-c", make], env={"FACTORY_ROOT_UUID": wanted})
    assert wanted in a_box.run(["dumpe2fs", "-h", TARGET / "fs"]).stdout


def test_a_host_that_cannot_make_a_box_says_so(tmp_path: Path, tools: ToolsTree) -> None:
    missing, log = tmp_path / "missing", tmp_path / "log"
    with (
        network_namespace() as network,
        pytest.raises(BuildError, match="no build box can be made here") as told,
        box(root=tools.path, description=missing, folder=tmp_path, network=network, memory_bytes=MIB, log=log),
    ):
        pass
    assert any(key == "said" for key, _ in told.value.facts)


# -- kill -9


def disk_name(folder: Path) -> str:
    return f"{folder.parent.name}-{folder.name}.raw"


def loop_files() -> dict[str, str]:
    found = {}
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            found[backing.parents[1].name] = backing.read_text().strip()
        except OSError:
            continue
    return found


def processes_with(mark: str) -> list[str]:
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = line.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if mark in text and str(os.getpid()) != line.parent.name:
            found.append(text)
    return found


def start_box(folder: Path, work: str, tools: ToolsTree, *, memory_bytes: int) -> subprocess.Popen[str]:
    argv = [sys.executable, "-c", BOX, str(folder), str(memory_bytes), work, disk_name(folder), str(tools.path)]
    started = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    return started


def eventually_nothing(folder: Path, mark: str) -> None:
    deadline = time.monotonic() + 20
    while True:
        left = {
            "processes": processes_with(mark),
            "loops": {name: file for name, file in loop_files().items() if mark in file or disk_name(folder) in file},
            "mounts": [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(folder) in line],
        }
        if not any(left.values()) or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    assert not any(left.values()), left


@pytest.mark.parametrize("memory_bytes", [512 * MIB, 0], ids=["memory", "disk"])
@pytest.mark.parametrize("after_s", [0.05, 0.3, 0.7, 1.1, 1.6])
def test_nothing_outlives_a_killed_factory(tmp_path: Path, tools: ToolsTree, after_s: float, memory_bytes: int) -> None:
    started = start_box(tmp_path, DISK_WORK, tools, memory_bytes=memory_bytes)
    time.sleep(after_s)
    started.send_signal(signal.SIGKILL)
    started.wait()
    mark = f"factory-box-{started.pid}-"
    said: list[str] = []
    time.sleep(0.3)
    clean_leftovers([tmp_path], said.append)
    eventually_nothing(tmp_path, mark)
    assert list(tmp_path.glob("factory-box-*")) == []


def test_a_killed_factory_leaves_no_process_without_any_help(tmp_path: Path, tools: ToolsTree) -> None:
    started = start_box(tmp_path, "sleep 1000", tools, memory_bytes=MIB)
    started.send_signal(signal.SIGKILL)
    started.wait()
    eventually_nothing(tmp_path, f"factory-box-{started.pid}-")


def test_a_device_attached_but_not_yet_held_is_cleaned_at_the_next_start(tmp_path: Path) -> None:
    """A kill in the milliseconds between attaching a loop device and holding it."""
    ours, theirs = tmp_path / "factory-box-1-1.77", tmp_path / "somebody-elses"
    devices = {}
    for file in (ours, theirs):
        file.write_bytes(bytes(MIB))
        argv = ["losetup", "-f", "--show", str(file)]
        devices[file] = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    try:
        said: list[str] = []
        clean_leftovers([], said.append)
        left = loop_files().values()
        assert str(ours) not in left
        assert str(theirs) in left
        assert said == [f"detaching {devices[ours]}, which a killed build left"]
    finally:
        subprocess.run(["losetup", "-d", devices[theirs]], check=True)


def test_a_box_that_ends_by_itself_leaves_nothing(tmp_path: Path, tools: ToolsTree) -> None:
    work = "cd /run/factory/target && truncate -s 8M $0 && losetup -f --show $0 && sleep 1000 & disown; exit 0"
    started = start_box(tmp_path, work, tools, memory_bytes=64 * MIB)
    assert started.wait(timeout=30) == 0
    eventually_nothing(tmp_path, f"factory-box-{started.pid}-")
