# SPDX-License-Identifier: Apache-2.0
"""The sandbox with real parts: dnsmasq, chronyd, QEMU, and the built image."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from factory.errors import CommandFailed, GuestSilent, GuestStopped, SandboxError
from factory.model import Artifact, Region, Server
from factory.sandbox import metadata
from factory.sandbox.accelerator import kernel_of, proven_accelerator, runs_under
from factory.sandbox.frozen import thaw
from factory.sandbox.guest import Guest
from factory.sandbox.network import NTP_ADDRESS, SandboxNetwork, sandbox_network
from factory.sandbox.qemu import boot, overlay
from factory.sandbox.seed import Datasource, Seed, fresh_key, seed_files
from factory.system.files import sha256_file
from testsuite.mutants.base import Base

PROJECT = Path(__file__).parents[2]
TIME_SERVERS = tuple(f"{number}.debian.pool.ntp.org" for number in range(4))
BOOT_TIMEOUT_S = 420
SECRET = "kept-in-no-log"
REGION = Region(
    name="test",
    servers=(Server(name="region-a.test.invalid", ipv4="192.0.2.10", ipv6="2001:db8::10", pem=Path("none")),),
    update_servers=(Server(name="update-a.test.invalid", ipv4="192.0.2.20", pem=Path("none")),),
)

ASK_NAME = """
import socket, struct, sys
name = b"".join(bytes([len(part)]) + part.encode() for part in sys.argv[1].split("."))
ask = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
ask.settimeout(5)
ask.sendto(struct.pack(">6H", 7, 0x0100, 1, 0, 0, 0) + name + b"\\0\\0\\1\\0\\1", ("127.0.0.1", 53))
answer = ask.recv(512)
print(answer[3] & 15, socket.inet_ntoa(answer[-4:]) if answer[7] else "-")
"""
ASK_TIME = """
import socket, struct, sys
ask = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
ask.settimeout(5)
ask.sendto(b"\\x23" + bytes(47), (sys.argv[1], 123))
answer = ask.recv(512)
print(answer[1], struct.unpack(">I", answer[40:44])[0] - 2208988800)
"""
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], 443), timeout=5)"


def silent(_line: str) -> None:
    pass


def inside(network: SandboxNetwork[None], program: str, *words: str) -> subprocess.CompletedProcess[str]:
    argv = network.namespace.inside([sys.executable, "-c", program, *words])
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)


def processes_naming(text: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if text in words and path.parent.name != str(os.getpid()):
                found.append(f"{path.parent.name} {words[:120]}")
    return found


def gone_soon(text: str, *, within_s: float = 8) -> list[str]:
    """Processes that name ``text`` in their command line and are still there after ``within_s``."""
    deadline = time.monotonic() + within_s
    while (left := processes_naming(text)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxNetwork[None]]:
    with sandbox_network(
        (REGION,),
        services=lambda _: contextlib.nullcontext(),
        ntp_servers=(*TIME_SERVERS, "198.51.100.123"),
        workdir=tmp_path_factory.mktemp("network"),
        say=silent,
    ) as made:
        yield made


@pytest.fixture
def blank(tmp_path: Path) -> Path:
    path = tmp_path / "blank.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "1G"], check=True)
    return path


@pytest.fixture(scope="module")
def image(request: pytest.FixtureRequest) -> Path:
    """The built image; at a desk FACTORY_TEST_IMAGE spares the build."""
    if given := os.environ.get("FACTORY_TEST_IMAGE"):
        return Path(given)
    path = request.getfixturevalue("artifact").path
    assert isinstance(path, Path)
    return path


# -- the network --------------------------------------------------------------------------------------------------


@pytest.mark.needs_root
@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("region-a.test.invalid", "0 192.0.2.10"),
        ("UPDATE-A.test.invalid", "0 192.0.2.20"),
        (TIME_SERVERS[2], f"0 {NTP_ADDRESS}"),
        ("sub.region-a.test.invalid", "3 -"),
        ("www.example.org", "3 -"),
        ("localdomain", "3 -"),
    ],
)
def test_our_names_resolve_and_no_others(network: SandboxNetwork[None], name: str, answer: str) -> None:
    assert inside(network, ASK_NAME, name).stdout.strip() == answer


@pytest.mark.needs_root
@pytest.mark.parametrize("address", [NTP_ADDRESS, "198.51.100.123"])
def test_time_is_served(network: SandboxNetwork[None], address: str) -> None:
    stratum, seconds = map(int, inside(network, ASK_TIME, address).stdout.split())
    assert 1 <= stratum <= 10
    assert abs(seconds - time.time()) < 5


@pytest.mark.needs_root
@pytest.mark.parametrize(
    ("address", "refusal"),
    [
        ("192.0.2.10", "Connection refused"),
        ("192.0.2.11", "Network is unreachable"),
        ("169.254.169.254", "Network is unreachable"),
        ("2001:db8::10", "Connection refused"),
        ("2001:db8::11", "Network is unreachable"),
    ],
)
def test_what_has_no_server_is_away_at_once(network: SandboxNetwork[None], address: str, refusal: str) -> None:
    started = time.monotonic()
    assert refusal in inside(network, CONNECT, address).stderr
    assert time.monotonic() - started < 5, "it waited for an answer"


@pytest.mark.needs_root
def test_the_metadata_service_is_there_for_its_block(network: SandboxNetwork[None], tmp_path: Path) -> None:
    seed = Seed(key=fresh_key(tmp_path), instance_id="i-1", datasource=Datasource.OPENSTACK)
    fetch = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())"
    url = f"http://{metadata.ADDRESS}/openstack/latest/meta_data.json"
    with metadata.metadata_service(network.namespace, seed_files(seed)):
        assert json.loads(inside(network, fetch, url).stdout)["hostname"] == "factory-guest"
        listing = inside(network, fetch, f"http://{metadata.ADDRESS}/latest/meta-data/").stdout
        assert listing.split() == ["hostname", "instance-id", "local-hostname"]
        assert "404" in inside(network, fetch, f"http://{metadata.ADDRESS}/openstack/2012-08-10/").stderr
        with pytest.raises(SandboxError, match="taken"), metadata.metadata_service(network.namespace, {}):
            pass
    assert "unreachable" in inside(network, fetch, url).stderr


@pytest.mark.needs_root
def test_a_server_that_does_not_start_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(SandboxError, match="'dnsmasq' did not start") as refused,
        sandbox_network(
            (),
            services=lambda _: contextlib.nullcontext(),
            names={"a" * 70: ["192.0.2.1"]},
            workdir=tmp_path,
            say=silent,
        ),
    ):
        pass
    assert [value for name, value in refused.value.facts if name == "said"]
    assert not gone_soon(str(tmp_path))


# -- guests that do not come up -----------------------------------------------------------------------------------


@contextlib.contextmanager
def booted_blank(
    network: SandboxNetwork[None], disk: Path, *, ready: str | None, timeout_s: float = 4
) -> Iterator[Guest]:
    folder = disk.parent
    with boot(
        disk,
        workdir=folder / "guest",
        namespace=network.namespace,
        seed=Seed(key=fresh_key(folder), instance_id="i-1"),
        accelerator="tcg",
        console_log=folder / "console.log",
        say=silent,
        timeout_s=timeout_s,
        memory_mib=64,
        ready=ready,
    ) as guest:
        yield guest


@pytest.mark.needs_root
def test_a_silent_guest_is_told_with_its_console(network: SandboxNetwork[None], blank: Path) -> None:
    before = sha256_file(blank)
    with pytest.raises(GuestSilent) as caught, booted_blank(network, blank, ready="login:"):
        pass
    assert "within 4 s" in caught.value.message
    assert ("it said", "nothing at all") in caught.value.facts
    assert ("console", str(blank.parent / "console.log")) in caught.value.facts
    assert (blank.parent / "console.log").exists()
    assert sha256_file(blank) == before
    assert not gone_soon(str(blank.parent))
    left = {path.name for path in (blank.parent / "guest").iterdir()}
    assert not left & {"disk.qcow2", "seed.img", "serial.raw", "master"}


@pytest.mark.needs_root
def test_a_guest_whose_qemu_dies_is_told(network: SandboxNetwork[None], blank: Path) -> None:
    with booted_blank(network, blank, ready=None) as guest:
        guest.qmp.send({"execute": "quit"})
        with pytest.raises(GuestStopped, match="QEMU ended"):
            guest.wait_for("never", timeout_s=20)


@pytest.mark.needs_root
def test_the_screen_can_be_dumped(network: SandboxNetwork[None], blank: Path) -> None:
    with booted_blank(network, blank, ready=None) as guest:
        picture = guest.screendump(blank.parent / "screen.ppm").read_bytes()
    assert picture.startswith(b"P6\n")


@pytest.mark.needs_root
@pytest.mark.parametrize(("content", "gib"), [(b"", None), (b"QFI\xfb\0\0\0\3" + b"\0" * 90, None)])
def test_what_is_not_an_image_is_refused(
    network: SandboxNetwork[None], tmp_path: Path, content: bytes, gib: int
) -> None:
    path = tmp_path / "broken.qcow2"
    path.write_bytes(content)
    with (
        pytest.raises(SandboxError, match=r"'broken\.qcow2' cannot be booted"),
        booted_blank(network, path, ready=None),
    ):
        pass


@pytest.mark.needs_root
def test_an_image_larger_than_the_disk_is_refused(tmp_path: Path) -> None:
    big = tmp_path / "big.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", big, "8G"], check=True)
    with pytest.raises(SandboxError, match="does not fit on a disk of 6 GiB"):
        overlay(big, tmp_path / "over.qcow2", disk_gib=6)


# -- nothing outlives us ------------------------------------------------------------------------------------------

HARNESS = """
import contextlib, pathlib, sys, time
from factory.sandbox.network import sandbox_network
from factory.sandbox.qemu import boot
from factory.sandbox.seed import Seed, fresh_key
folder = pathlib.Path(sys.argv[1])
say = lambda line: None
nothing = lambda _: contextlib.nullcontext()
with sandbox_network((), services=nothing, ntp_servers=("t.test",), workdir=folder, say=say) as net:
    with boot(folder / "blank.qcow2", workdir=folder / "guest", namespace=net.namespace, accelerator="tcg", say=say,
              seed=Seed(key=fresh_key(folder), instance_id="i"), console_log=folder / "c.log", timeout_s=9,
              memory_mib=64, ready=None, freezable=True):
        print(net.namespace.pid, flush=True)
        time.sleep(60)
"""


@pytest.mark.needs_root
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_nothing_outlives_the_harness(blank: Path, how: signal.Signals) -> None:
    folder = blank.parent
    # where the tests run in the background, children inherit an ignored SIGINT
    argv = ["env", "--default-signal=INT", sys.executable, "-c", HARNESS, folder]
    harness = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=PROJECT,
                               stderr=subprocess.DEVNULL)  # fmt: skip
    assert harness.stdout is not None
    holder = int(harness.stdout.readline())
    names = " ".join(processes_naming(str(folder)))
    assert "qemu-system-x86_64" in names
    assert "chronyd" in names
    # The resolver is told everything on its command line, which names no folder: look for it in the namespace.
    assert servers_in(holder) >= {"dnsmasq", "chronyd", "qemu-system-x86"}
    world = Path(f"/proc/{holder}/ns/net").stat().st_ino
    harness.send_signal(how)
    harness.wait(20)
    harness.stdout.close()
    assert not gone_soon(str(folder))
    # A process that is ending has no command line any more and is still in its namespace for a moment.
    deadline = time.monotonic() + 8
    while members_of(world) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not members_of(world)


def members_of(world: int) -> set[str]:
    """The names of the processes in a network namespace."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (path / "ns/net").stat().st_ino == world:
                found.add((path / "comm").read_text().strip())
    return found


def servers_in(pid: int) -> set[str]:
    return members_of(Path(f"/proc/{pid}/ns/net").stat().st_ino)


# -- the image ----------------------------------------------------------------------------------------------------


@pytest.mark.needs_image
def test_the_accelerator_is_proven_by_the_image_s_own_kernel(image: Path, tmp_path: Path) -> None:
    said: list[str] = []
    with kernel_of(image, tmp_path) as kernel:
        assert kernel is not None
        assert runs_under("tcg", kernel, timeout_s=60)
        assert not runs_under("tcg", kernel, timeout_s=0.2)
    assert list(tmp_path.iterdir()) == []
    found = proven_accelerator(tmp_path / "cache", said.append, artifact=image)
    started = time.monotonic()
    assert proven_accelerator(tmp_path / "cache", said.append) == found
    assert time.monotonic() - started < 4, "it was proven again"
    assert found in {"kvm", "tcg"}


def clone_of(base: Base, folder: Path, **more: Any) -> contextlib.AbstractContextManager[Guest]:
    log = folder.with_suffix(".log")
    return thaw(base.frozen, workdir=folder, namespace=base.network.namespace, console_log=log, say=silent, **more)


@pytest.fixture(scope="module")
def clone(healthy_guest: Base, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    with clone_of(healthy_guest, tmp_path_factory.mktemp("clone") / "shared") as guest:
        yield guest


@pytest.mark.needs_image
def test_a_guest_in_the_sandbox(healthy_guest: Base, clone: Guest) -> None:
    """It was booted with its hardware clock a year behind, on a larger disk, with OpenStack's config drive."""
    started = clone.ssh("sudo -n journalctl -b -k --no-pager | grep 'setting system clock to'").stdout
    assert f"to {datetime.now(tz=UTC).year - 1}-" in started, "its clock did not start a year behind"
    assert healthy_guest.clock_off_s < 5, "the guest did not take the sandbox's time"
    assert int(clone.ssh("lsblk -bdno SIZE /dev/vda").stdout) == healthy_guest.facts["disk_bytes"]
    host_key = clone.ssh("cat /etc/ssh/ssh_host_ed25519_key.pub").stdout.split()[1]
    assert f"ssh-ed25519 {host_key}" in healthy_guest.frozen.host_keys, "not the key that its console showed"


@pytest.mark.needs_image
@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("getent hosts region-a.factory.invalid", r"192\.0\.2\.10\s+region-a\.factory\.invalid"),
        ("getent hosts www.example.org || echo unknown", "^unknown$"),
        ("bash -c '</dev/tcp/192.0.2.10/81' 2>&1 || true", "refused"),
        ("bash -c '</dev/tcp/192.0.2.11/443' 2>&1 || true", "unreachable"),
    ],
)
def test_the_guest_sees_the_sandbox_and_nothing_else(clone: Guest, command: str, answer: str) -> None:
    assert re.search(answer, clone.ssh(command).stdout.strip())


@pytest.mark.needs_image
def test_the_kept_console_log_is_masked(healthy_guest: Base, tmp_path: Path) -> None:
    with clone_of(healthy_guest, tmp_path / "told", masked_secrets=[SECRET]) as guest:
        guest.ssh(f"echo 'so it is {SECRET}' | sudo -n tee /dev/ttyS0")
        guest.wait_for(SECRET, timeout_s=20)
    assert "Linux" in (healthy_guest.stage.log_dir / "console.log").read_text()
    log = (tmp_path / "told.log").read_text()
    assert "so it is [masked]" in log
    assert SECRET not in log


@pytest.mark.needs_image
def test_clones_are_quick_and_alone(healthy_guest: Base, artifact: Artifact, tmp_path: Path) -> None:
    with clone_of(healthy_guest, tmp_path / "a") as one, clone_of(healthy_guest, tmp_path / "b") as two:
        assert one.address != two.address
        one.ssh("echo changed | sudo -n tee /etc/motd /run/changed >/dev/null; sync")
        assert two.ssh("cat /etc/motd; ls /run/changed", check=False).returncode != 0
        assert "changed" not in two.ssh("cat /etc/motd", check=False).stdout
    with clone_of(healthy_guest, tmp_path / "c") as three:
        assert three.ssh("test -e /run/changed || grep -q changed /etc/motd", check=False).returncode == 1
        assert three.boot_s < 30
        # it was set within the thaw, which takes its time on a busy host
        assert abs(float(three.ssh("date +%s").stdout) - time.time()) < 5 + three.boot_s
    assert sha256_file(artifact.path) == artifact.sha256
    assert not (tmp_path / "a" / "disk.qcow2").exists()


@pytest.mark.needs_image
def test_many_commands_share_one_login(clone: Guest) -> None:
    ports = {clone.ssh("echo $SSH_CONNECTION").stdout for _ in range(5)}
    assert len(ports) == 1
    assert clone.ssh("cat", stdin=b"from here").stdout == "from here"
    with pytest.raises(CommandFailed, match="ended with status 3") as failed:
        clone.ssh("echo why >&2; exit 3")
    assert ("said", "why") in failed.value.facts


@pytest.mark.needs_image
def test_ssh_works_with_the_configuration_alone(clone: Guest) -> None:
    argv = ["ssh", "-F", clone.ssh_config, "-o", "ControlPath=none", clone.ssh_host, "id -un"]
    assert subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout == "linux\n"


@pytest.mark.needs_image
def test_the_vga_console_can_be_read_and_typed_on(clone: Guest) -> None:
    assert "login:" in clone.screen_text()
    clone.ssh("echo 'linux:Pass word-1!' | sudo -n chpasswd")
    clone.type_text("linux\n")
    deadline = time.monotonic() + 60
    while "Password:" not in clone.screen_text() and time.monotonic() < deadline:
        time.sleep(1)
    clone.type_text("Pass word-1!\n")
    while "linux@" not in clone.screen_text() and time.monotonic() < deadline:
        time.sleep(1)
    assert "linux@" in clone.screen_text()
    assert "tty1" in clone.ssh("who").stdout


@pytest.mark.needs_image
def test_ports_are_forwarded_for_probes(clone: Guest) -> None:
    clone.ssh(
        "nohup python3 -m http.server 8099 --bind 0.0.0.0 >/dev/null 2>&1 &"
        " until ss -H -l -n -t | grep -q ':8099 '; do sleep 0.2; done"
    )
    fetch = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=20).status)"
    with clone.forwarded((8099, clone.ssh_port)) as ports:
        assert ports == {8099: True, clone.ssh_port: False}
        argv = clone.login.namespace.inside([sys.executable, "-c", fetch, f"http://{clone.address}:8099/"])
        assert subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60).stdout.strip() == "200"
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert "refused" in done.stderr


@pytest.mark.needs_image
def test_the_clock_can_be_set(clone: Guest) -> None:
    clone.ssh("sudo -n systemctl stop chrony; sudo -n date -u -s 2001-01-01")
    assert clone.ssh("date +%Y").stdout.strip() == "2001"
    clone.set_clock()
    assert abs(float(clone.ssh("date +%s").stdout) - time.time()) < 5


THAW = """
import pathlib, pickle, sys, time
from factory.sandbox.frozen import thaw
frozen, namespace, folder = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())
with thaw(frozen, workdir=folder, namespace=namespace, console_log=folder / "c.log", say=lambda line: None) as guest:
    print(guest.ssh("echo up").stdout, flush=True)
    time.sleep(60)
"""


@pytest.mark.needs_image
def test_no_clone_outlives_the_harness(healthy_guest: Base, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    given = tmp_path / "given.pickle"
    given.write_bytes(pickle.dumps((healthy_guest.frozen, healthy_guest.network.namespace, folder)))
    harness = subprocess.Popen([sys.executable, "-c", THAW, given], stdout=subprocess.PIPE, text=True, cwd=PROJECT)
    assert harness.stdout is not None
    assert harness.stdout.readline() == "up\n"
    names = " ".join(processes_naming(str(folder)))
    assert "qemu-system-x86_64" in names
    assert "ssh -F" in names
    harness.kill()
    harness.wait(20)
    harness.stdout.close()
    assert not gone_soon(str(folder))


@pytest.mark.needs_image
def test_a_frozen_state_that_is_gone_is_told(healthy_guest: Base, tmp_path: Path) -> None:
    lost = replace(healthy_guest.frozen, state=tmp_path / "no-such-state")
    with (
        pytest.raises(SandboxError, match="nothing left to thaw"),
        thaw(
            lost,
            workdir=tmp_path / "clone",
            namespace=healthy_guest.network.namespace,
            console_log=tmp_path / "c.log",
            say=silent,
        ),
    ):
        pass
    (tmp_path / "no-such-state").write_bytes(b"not a state")
    with (
        pytest.raises((SandboxError, GuestStopped)),
        thaw(
            lost,
            workdir=tmp_path / "clone",
            namespace=healthy_guest.network.namespace,
            console_log=tmp_path / "c.log",
            say=silent,
        ),
    ):
        pass
    assert not gone_soon(str(tmp_path))


@pytest.mark.needs_image
@pytest.mark.slow
def test_a_reboot_keeps_host_keys_and_a_new_instance_makes_new_ones(
    image: Path, network: SandboxNetwork[None], tmp_path: Path
) -> None:
    key = fresh_key(tmp_path)
    seen = []
    accelerator = proven_accelerator(tmp_path / "cache", silent, artifact=image)
    disk: Path | None = None
    for number, source in enumerate((Datasource.CONFIG_DRIVE, Datasource.OPENSTACK)):
        with boot(
            image,
            workdir=tmp_path / "guest",
            namespace=network.namespace,
            seed=Seed(key=key, instance_id=f"i-{number}", datasource=source),
            accelerator=accelerator,
            console_log=tmp_path / f"console-{number}.log",
            say=silent,
            timeout_s=BOOT_TIMEOUT_S,
            disk=disk,
            keep_disk=True,
        ) as guest:
            seen.append(guest.host_keys)
            if number == 0:
                assert "ConfigDrive" in guest.ssh("cloud-init status --long").stdout
                before = guest.ssh("cat /proc/sys/kernel/random/boot_id").stdout
                guest.reboot(timeout_s=BOOT_TIMEOUT_S)
                assert guest.ssh("cat /proc/sys/kernel/random/boot_id").stdout != before
                guest.power_off()
            else:
                assert "OpenStack" in guest.ssh("cloud-init status --long").stdout
            disk = guest.disk
    assert seen[0]
    assert seen[1]
    assert not set(seen[0]) & set(seen[1])
