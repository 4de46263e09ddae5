# SPDX-License-Identifier: Apache-2.0
"""The tests' own cloud with compute: an ordinary member boots an image in it, and nothing of it stays."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import secrets
import shlex
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from factory.errors import CloudError
from factory.model import Artifact
from factory.sandbox.seed import fresh_key
from factory.system.namespaces import NetworkNamespace
from factory.system.openstack import connect
from testsuite import cloud as clouds
from testsuite.cloud.box import Box
from testsuite.cloud.ground import Ground, left_of
from testsuite.cloud.network import GuestsNetwork

if TYPE_CHECKING:
    from openstack.connection import Connection

    from testsuite.cloud import ComputeCloud

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_nova]

PROJECT = Path(__file__).parents[2]
BOOT_S = 600.0
USER = "debian"
ON_ITS_WAY = "192.0.2.10"
"""An address as images know it, which the host's own network may use for something else."""

USER_DATA = """\
#!/bin/sh
echo marker-{marker} | tee /run/marker >/dev/console
grep -h ^nameserver /etc/resolv.conf /run/systemd/resolve/resolv.conf 2>/dev/null >/run/nameservers
"""
# A line from a server of the tests on an address of the guests' world; then the host itself, which must not answer.
ASK = """
import socket
print(socket.create_connection(("{address}", 8080), timeout=20).makefile().readline().strip())
try:
    socket.create_connection(("{host}", {port}), timeout=4)
except OSError as refused:
    print("host:", type(refused).__name__)
"""


def connection(cloud: ComputeCloud, name: str) -> Connection:
    return connect(name, clouds_yaml=cloud.clouds_yaml, direct=True)


@pytest.fixture
def member(compute_cloud: ComputeCloud) -> Connection:
    return connection(compute_cloud, compute_cloud.sandbox)


@pytest.fixture
def given_back(member: Connection) -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def delete_server(member: Connection, server: Any) -> None:
    member.compute.delete_server(server.id)
    member.compute.wait_for_delete(server, wait=120)


@pytest.mark.slow
def test_a_member_boots_the_image_and_logs_in(
    compute_cloud: ComputeCloud,
    member: Connection,
    given_back: contextlib.ExitStack,
    artifact: Artifact,
    tmp_path: Path,
) -> None:
    marker = secrets.token_hex(16)
    key = fresh_key(tmp_path)
    pair = member.compute.create_keypair(name=f"test-{marker[:8]}", public_key=key.public)
    given_back.callback(member.compute.delete_keypair, pair.name)
    image = member.create_image(
        f"test-{marker[:8]}",
        filename=str(artifact.path),
        disk_format="qcow2",
        container_format="bare",
        allow_duplicates=True,
        wait=True,
    )
    given_back.callback(member.image.delete_image, image.id)
    group = member.network.create_security_group(name=f"test-{marker[:8]}")
    given_back.callback(member.network.delete_security_group, group.id)
    server = member.compute.create_server(
        name=f"test-{marker[:8]}",
        image_id=image.id,
        flavor_id=member.compute.find_flavor(compute_cloud.flavors.small).id,
        networks=[{"uuid": member.network.find_network(compute_cloud.network).id}],
        key_name=pair.name,
        security_groups=[{"name": group.name}],
        config_drive=True,
        metadata={"factory_registration": "byos"},  # nobody here answers a registration, which would be waited for
        user_data=base64.b64encode(USER_DATA.format(marker=marker).encode()).decode(),
    )
    given_back.callback(delete_server, member, server)
    server = member.compute.wait_for_server(server, wait=180)
    ((interface,),) = server.addresses.values()
    assert interface["addr"].startswith("10.214.")

    expect_on_console(member, server, rf"marker-{marker}")

    with line_server(compute_cloud, ON_ITS_WAY) as said, line_server(None, host_end(compute_cloud)) as forbidden:
        ask = ASK.format(address=ON_ITS_WAY, host=host_end(compute_cloud), port=forbidden.port)
        told = ssh(key.private, interface["addr"], f"cat /run/marker; hostname; cat /run/nameservers; {python(ask)}")
    lines = told.splitlines()
    assert lines[0] == f"marker-{marker}"
    assert lines[1] == server.name
    assert f"nameserver {compute_cloud.host_address}" in lines
    assert lines[-2] == said.text
    assert lines[-1] == "host: TimeoutError"


def test_a_flavor_that_no_host_can_give_is_told_by_nova(
    compute_cloud: ComputeCloud, member: Connection, given_back: contextlib.ExitStack
) -> None:
    server = empty_server(compute_cloud, member, given_back, compute_cloud.flavors.too_large)
    deadline = time.monotonic() + 120
    while server.status in {None, "BUILD"} and time.monotonic() < deadline:
        time.sleep(1)
        server = member.compute.get_server(server.id)
    assert server.status == "ERROR"
    assert "No valid host was found" in server.fault["message"]


def test_a_flavor_beyond_the_quota_is_refused(
    compute_cloud: ComputeCloud, member: Connection, given_back: contextlib.ExitStack
) -> None:
    from openstack.exceptions import ForbiddenException

    with pytest.raises(ForbiddenException, match="Quota exceeded"):
        empty_server(compute_cloud, member, given_back, compute_cloud.flavors.over_quota)


def empty_server(cloud: ComputeCloud, member: Connection, given_back: contextlib.ExitStack, flavor: str) -> Any:
    name = f"test-{secrets.token_hex(4)}"
    image = member.create_image(name, data=empty_disk(), disk_format="qcow2", container_format="bare", wait=True)
    given_back.callback(member.image.delete_image, image.id)
    server = member.compute.create_server(
        name=name,
        image_id=image.id,
        flavor_id=member.compute.find_flavor(flavor).id,
        networks=[{"uuid": member.network.find_network(cloud.network).id}],
    )
    given_back.callback(delete_server, member, server)
    return server


def empty_disk() -> bytes:
    made = subprocess.run(
        ["sh", "-c", 'f=$(mktemp) && qemu-img create -q -f qcow2 "$f" 1M && cat "$f"; rm -f "$f"'],
        capture_output=True,
        check=True,
    )
    return made.stdout


def test_the_tenant_is_an_ordinary_member(compute_cloud: ComputeCloud, member: Connection) -> None:
    from openstack.exceptions import ForbiddenException

    with pytest.raises(ForbiddenException):
        member.compute.create_flavor(name="forbidden", ram=1, vcpus=1, disk=1)
    with pytest.raises(ForbiddenException):
        member.network.create_network(name="forbidden", is_shared=True)
    names = {flavor.name for flavor in connection(compute_cloud, compute_cloud.reader).compute.flavors()}
    assert names == {compute_cloud.flavors.small, compute_cloud.flavors.too_large, compute_cloud.flavors.over_quota}
    publisher = connection(compute_cloud, compute_cloud.publisher)
    assert list(publisher.image.images(owner=member.current_project_id)) == []


def test_everything_is_private(compute_cloud: ComputeCloud) -> None:
    folder = compute_cloud.folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    settings = [path for path in (folder / "etc").rglob("*") if path.suffix in {".conf", ".ini"} and path.is_file()]
    secret = {word for path in settings for word in re.findall(r"(?:password|default_pass) = (\S+)", path.read_text())}
    assert len(secret) == 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in (*settings, compute_cloud.clouds_yaml)} == {0o600}
    for log in (folder / "log").iterdir():
        text = log.read_text(errors="replace")
        assert not [word for word in secret if word in text], log
    listening = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True).stdout.splitlines()
    ours = {str(pid) for pid in members(compute_cloud)}
    addresses = [line.split()[3] for line in listening if ours & set(re.findall(r"pid=(\d+)", line))]
    assert len(addresses) >= 6
    assert not [address for address in addresses if not address.startswith(("127.0.0.1:", "[::1]:"))]


def test_a_folder_of_something_else_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(CloudError, match="is not empty"), clouds.compute_cloud(tmp_path, say=print):
        pass
    assert (tmp_path / "mine").read_text() == "kept"


@pytest.mark.parametrize(("words", "status", "said"), [((), 2, "up DIR"), (("env", "absent"), 3, "no cloud is up")])
def test_the_command_tells_what_it_cannot_do(tmp_path: Path, words: tuple[str, ...], status: int, said: str) -> None:
    argv = [
        sys.executable,
        "-m",
        "testsuite.cloud",
        *(str(tmp_path / word) if word == "absent" else word for word in words),
    ]
    done = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == status
    assert said in done.stderr


# -- what stays when its maker is killed ------------------------------------------------------------------------------

GUEST = """
<domain type="qemu"><name>left</name><memory unit="MiB">64</memory><os><type arch="x86_64">hvm</type></os>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<interface type="direct"><source dev="{device}" mode="bridge"/></interface></devices></domain>
"""
HOLD = """
import sys
from pathlib import Path
from testsuite.cloud.ground import ground, start_libvirt
with ground(Path(sys.argv[1])) as on:
    start_libvirt(on)
    guest = sys.argv[2].format(device=on.guests.device)
    on.box.run(["virsh", "--connect", "qemu:///system", "create", "/dev/stdin"], stdin=guest.encode())
    print(on.box.pid, on.guests.namespace.pid, on.guests.device, on.guests.link, on.guests.subnet, flush=True)
    sys.stdin.read()
"""


def test_a_guest_and_its_host_die_with_a_killed_maker(tmp_path: Path) -> None:
    """The ground that a cloud stands on, with libvirt and a guest of it; the rest runs in the same box."""
    folder = tmp_path / "cloud"
    etc = listing(Path("/etc"))
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder, GUEST],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        box, namespace, device, link, subnet = holder.stdout.readline().split()
        on = Ground(
            folder=folder,
            box=Box(pid=int(box)),
            guests=GuestsNetwork(
                namespace=NetworkNamespace(pid=int(namespace)),
                device=device,
                link=link,
                subnet=subnet,
                gateway="",
                first="",
                last="",
            ),
        )
        guests = [pid for pid in members(on) if b"qemu-system" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert len(guests) == 1
        assert carried(device)
        kinds = {line.split()[0] for line in left_of(on)}
        assert {"process", "device", "route"} <= kinds
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert left_of(on, wait_s=30) == []
    assert not Path(f"/proc/{guests[0]}").exists()
    assert not carried(device)
    assert listing(Path("/etc")) == etc


def members(on: Ground | ComputeCloud) -> list[int]:
    """The processes in the box."""
    ours = Path(f"/proc/{on.box.pid}/ns/pid").readlink()
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and (entry / "ns" / "pid").readlink() == ours:
                found.append(int(entry.name))
    return found


def carried(device: str) -> list[str]:
    """Interfaces of guests on this device."""
    shown = subprocess.run(
        ["ip", "-oneline", "link", "show", "type", "macvtap"], capture_output=True, text=True, check=True
    )
    return [line for line in shown.stdout.splitlines() if f"@{device}" in line]


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below, with its size and time of change."""
    found = {}
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            known = path.lstat()
            found[str(path)] = (known.st_size, known.st_mtime_ns)
    return found


# -- guests -----------------------------------------------------------------------------------------------------------


def expect_on_console(member: Connection, server: Any, pattern: str) -> str:
    deadline = time.monotonic() + BOOT_S
    while True:
        console = member.compute.get_server_console_output(server)["output"]
        if re.search(pattern, console):
            return console
        assert time.monotonic() < deadline, console[-3000:]
        time.sleep(2)


def host_end(cloud: ComputeCloud) -> str:
    """The host's own address towards the guests' network."""
    shown = subprocess.run(
        ["ip", "-json", "-4", "address", "show", "dev", cloud.guests.link], capture_output=True, check=True
    )
    return json.loads(shown.stdout)[0]["addr_info"][0]["local"]


@dataclass(frozen=True)
class Line:
    """What a server says, and where it listens."""

    text: str
    port: int


@contextlib.contextmanager
def line_server(cloud: ComputeCloud | None, address: str) -> Iterator[Line]:
    """Says one random line to everybody who connects: in the guests' world, or on the host."""
    text = secrets.token_hex(8)
    if cloud is None:
        listener = socket.create_server((address, 0))
    else:
        cloud.namespace.add_address(address)
        listener = cloud.namespace.listen(address, 8080)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                asked, _ = listener.accept()
                with asked:
                    asked.sendall(f"{text}\n".encode())

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield Line(text=text, port=listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)
        if cloud is not None:
            cloud.namespace.drop_address(address)


def ssh(private: Path, address: str, command: str) -> str:
    """What a command says in the guest; sshd may be some seconds behind the console."""
    options = [
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
        "BatchMode=yes",
        "ConnectTimeout=20",
        "LogLevel=ERROR",
    ]
    argv = [
        "ssh",
        "-i",
        str(private),
        *(word for option in options for word in ("-o", option)),
        f"{USER}@{address}",
        command,
    ]
    deadline = time.monotonic() + 120
    while True:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
        if done.returncode == 0:
            return done.stdout
        assert time.monotonic() < deadline, done.stderr
        time.sleep(1)


def python(script: str) -> str:
    return f"python3 -c {shlex.quote(script)}"
