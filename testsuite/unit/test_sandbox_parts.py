# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import socket
import stat
import string
import subprocess
import threading
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.errors import SandboxError
from factory.model import Region, Server
from factory.sandbox.accelerator import kernel_of, newest_host_kernel, recall
from factory.sandbox.connection import Login, configuration
from factory.sandbox.console import MASK, Console, dead_end, host_keys, masked, plain
from factory.sandbox.guest import next_address
from factory.sandbox.machine import Machine, command_line
from factory.sandbox.metadata import answer
from factory.sandbox.network import NTP_ADDRESS, plan, resolver_arguments
from factory.sandbox.qmp import Agent, JsonChannel, Qmp, keys_for
from factory.sandbox.seed import MAC_ADDRESS, Datasource, Seed, fresh_key, seed_files, write_seed
from factory.system.namespaces import NetworkNamespace

# -- seed ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def seed(tmp_path: Path) -> Seed:
    return Seed(key=fresh_key(tmp_path), instance_id="i-1", hostname="h", meta={"factory_registration": "byos"})


def test_a_fresh_key_is_private_and_a_pair(tmp_path: Path) -> None:
    key = fresh_key(tmp_path)
    assert stat.S_IMODE(key.private.stat().st_mode) == 0o600
    derived = subprocess.run(["ssh-keygen", "-y", "-f", key.private], capture_output=True, text=True, check=True).stdout
    assert derived.split()[:2] == key.public.split()[:2]
    assert fresh_key(tmp_path).public != key.public


def test_nocloud_files(seed: Seed) -> None:
    files = seed_files(seed)
    meta = json.loads(files["meta-data"])
    assert meta["instance-id"] == "i-1"
    assert meta["public-keys"] == [seed.key.public]
    assert meta["factory_registration"] == "byos"
    card = json.loads(files["network-config"])["ethernets"]["eth0"]
    assert card["match"] == {"macaddress": MAC_ADDRESS}
    assert card["set-name"] == "eth0"
    assert card["dhcp6"] is False


def test_config_drive_files(seed: Seed, tmp_path: Path) -> None:
    drive = Seed(key=seed.key, instance_id="i-1", meta=seed.meta, datasource=Datasource.CONFIG_DRIVE)
    other = Seed(key=seed.key, instance_id="i-2", datasource=Datasource.CONFIG_DRIVE)
    meta, second = (json.loads(seed_files(one)["openstack/latest/meta_data.json"]) for one in (drive, other))
    assert uuid.UUID(meta["uuid"])
    assert meta["uuid"] != second["uuid"]
    assert meta["public_keys"] == {"factory": seed.key.public}
    assert meta["meta"] == {"factory_registration": "byos"}


@pytest.mark.parametrize(("source", "label"), [(Datasource.NOCLOUD, "CIDATA"), (Datasource.CONFIG_DRIVE, "config-2")])
def test_the_seed_disk_holds_the_files(seed: Seed, tmp_path: Path, source: Datasource, label: str) -> None:
    wanted = Seed(key=seed.key, instance_id="i-1", user_data="#cloud-config\nä: 1\n", datasource=source)
    disk = write_seed(wanted, tmp_path / "seed.img")
    assert stat.S_IMODE(disk.stat().st_mode) == 0o600  # user-data may hold a password
    for name, content in seed_files(wanted).items():
        read = subprocess.run(["mtype", "-i", disk, f"::/{name}"], capture_output=True, check=True).stdout
        assert read.decode() == content
    found = subprocess.run(["blkid", "-o", "value", "-s", "LABEL", disk], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == label


# -- console ------------------------------------------------------------------------------------------------------

KEYS = """\
[   45.1] cloud-init[700]: -----BEGIN SSH HOST KEY KEYS-----\r
ecdsa-sha2-nistp256 AAAAold root@h\r
-----END SSH HOST KEY KEYS-----\r
<14>Nov 21 cloud-init: -----BEGIN SSH HOST KEY KEYS-----\r
ecdsa-sha2-nistp256 AAAAE2Vj+/x= root@h\r
ssh-ed25519 AAAAC3Nz root@h\r
-----END SSH HOST KEY KEYS-----\r
"""


def test_host_keys_are_the_last_block() -> None:
    assert host_keys(KEYS) == ("ecdsa-sha2-nistp256 AAAAE2Vj+/x=", "ssh-ed25519 AAAAC3Nz")
    assert host_keys("") == ()
    assert host_keys(KEYS[:60]) == ()


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("\x1b[1;31mred\x1b[0m\r\n", "red\n"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b[?25l\x1b[H\x1b[Jmenu", "menu"),
        ("a\x00b\x08c\x7f", "abc"),
        ("tab\tstays\nline", "tab\tstays\nline"),
        ("\u202eevil", "evil"),
        ("50%\r100%", "50%\n100%"),
    ],
)
def test_plain_text(said: str, shown: str) -> None:
    assert plain(said) == shown


@given(st.text())
def test_plain_text_has_no_control_characters(said: str) -> None:
    assert not [character for character in plain(said) if ord(character) < 0x20 and character not in "\n\t"]
    assert "\x1b" not in plain(said)


@given(st.text(min_size=1), st.lists(st.text("abc", min_size=1, max_size=5), max_size=4))
def test_no_secret_survives_masking(text: str, secrets: list[str]) -> None:
    hidden = masked(text, tuple(secrets))
    assert not [secret for secret in secrets if secret in hidden.replace(MASK, "")]


def test_the_longest_secret_is_masked_first() -> None:
    assert masked("pass passphrase", ("pass", "passphrase", "")) == f"{MASK} {MASK}"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("Kernel panic - not syncing: Fatal exception", "its kernel panicked"),
        ("Starting dracut-emergency.service", "its initrd gave up"),
        ("grub rescue> ", "its boot loader gave up"),
        ("Reached target", ""),
    ],
)
def test_dead_ends(said: str, reason: str) -> None:
    assert dead_end(said) == reason


def test_the_kept_log_is_plain_and_masked(tmp_path: Path) -> None:
    console = Console(raw=tmp_path / "raw", kept=tmp_path / "kept.log")
    assert console.text() == ""
    console.raw.write_bytes(b"\x1b[1mlogin\x1b[0m with s3cr\x1b[0met\r\n\xff\r\n\r\nend \r\n")
    console.keep(("s3cret",))
    assert console.kept.read_text() == f"login with {MASK}\n\ufffd\n\nend \n"
    assert console.last_lines(2, secrets=("end",)) == ("\ufffd", MASK)
    assert console.text(since_bytes=console.size_bytes() - 6) == "end \r\n"


# -- channels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("character", "keys"),
    [("a", ("a",)), ("Z", ("shift", "z")), ("7", ("7",)), ("!", ("shift", "1")), ("_", ("shift", "minus")),
     ("\n", ("ret",)), ("~", ("shift", "grave_accent")), ('"', ("shift", "apostrophe")), ("/", ("slash",))],
)  # fmt: skip
def test_keys(character: str, keys: tuple[str, ...]) -> None:
    assert keys_for(character) == keys


def test_every_printable_character_has_its_own_keys() -> None:
    typed = [keys_for(character) for character in string.digits + string.ascii_letters + string.punctuation + " "]
    assert len(set(typed)) == len(typed)
    with pytest.raises(SandboxError, match="cannot be typed"):
        keys_for("ä")


class Peer(threading.Thread):
    """The other side of a channel: answers each line with the next prepared bytes."""

    def __init__(self, ours: socket.socket, answers: list[bytes]) -> None:
        super().__init__(daemon=True)
        self._socket, self._answers, self.heard = ours, answers, []
        self.start()

    def run(self) -> None:
        reader = self._socket.makefile("rb")
        for reply in self._answers:
            self.heard.append(json.loads(reader.readline()))
            self._socket.sendall(reply)


def channel(answers: list[bytes], kind: type[JsonChannel] | None = None) -> tuple[Any, Peer]:
    ours, theirs = socket.socketpair()
    return (kind(ours) if kind else JsonChannel(ours, who="the peer")), Peer(theirs, answers)


def test_asking_skips_events_and_keeps_them() -> None:
    asking, peer = channel([b'{"event": "STOP"}\n{"re', b'turn": {}}\n{"return": 7}\n'], Qmp)
    asking.send({"execute": "x"})
    assert asking.ask("query", timeout_s=5, name="n") == {}
    assert asking.events == [{"event": "STOP"}]
    assert peer.heard[1] == {"execute": "query", "arguments": {"name": "n"}}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b'{"error": {"desc": "no"}}\n', "refused 'stop'"),
        (b"not json\n", "not JSON"),
        (b"[1]\n", "not an object"),
        (b'{"return"', "did not answer within"),
    ],
)
def test_bad_answers(answer: bytes, message: str) -> None:
    asking, _ = channel([answer])
    with pytest.raises(SandboxError, match=message):
        asking.ask("stop", timeout_s=0.3)


def test_a_peer_that_left() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with pytest.raises(SandboxError, match=r"no longer (answers|listens)"):
        Qmp(ours).greet(timeout_s=1)


def test_pinging_the_agent_skips_old_answers() -> None:
    agent, peer = channel([b'{"return": 99}\n\xff{"return": 1}\n', b'{"return": {}}\n'], Agent)
    agent.ping(timeout_s=5)
    assert [message["execute"] for message in peer.heard] == ["guest-sync-delimited", "guest-ping"]


# -- command line and ssh -----------------------------------------------------------------------------------------


def machine(**changes: Any) -> Machine:
    given = {
        "accelerator": "tcg",
        "disk": Path("/d/disk.qcow2"),
        "seed": Path("/d/seed.img"),
        "serial": Path("/d/serial"),
        "address": "127.77.0.1",
    }
    return Machine(**{**given, **changes})


def value_of(argv: list[str], option: str) -> str:
    return argv[argv.index(option) + 1]


def test_tcg_avoids_the_instruction_that_qemu_gets_wrong() -> None:
    argv = command_line(machine(), control_fd=5, agent_fd=6)
    assert value_of(argv, "-cpu") == "qemu64,-cx16"
    assert value_of(argv, "-accel").startswith("tcg,thread=multi")
    assert value_of(argv, "-smp") == "1"
    assert "-object" not in argv
    assert "-incoming" not in argv


def test_other_choices() -> None:
    argv = command_line(
        machine(accelerator="kvm", rtc=datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC), disk=Path("/a,b/d"), memory_mib=2048),
        control_fd=5,
        agent_fd=6,
    )
    assert value_of(argv, "-cpu") == "host"
    assert value_of(argv, "-smp") == "2"
    assert value_of(argv, "-rtc") == "base=2025-01-02T03:04:05"
    assert value_of(argv, "-drive").startswith("file=/a,,b/d,if=virtio")
    assert value_of(argv, "-m") == "2048M"


def test_only_a_guest_with_the_metadata_service_is_nova_s() -> None:
    assert "OpenStack Nova" in value_of(command_line(machine(nova=True), control_fd=5, agent_fd=6), "-smbios")
    assert "-smbios" not in command_line(machine(), control_fd=5, agent_fd=6)


def test_a_clone_is_the_same_machine() -> None:
    first = machine(memory=Path("/proc/1/fd/3"))
    clone = machine(
        memory=first.memory, private=True, incoming=True, disk=Path("/c/d"), serial=Path("/c/s"), address="127.77.0.2"
    )
    one, two = (command_line(each, control_fd=5, agent_fd=6) for each in (first, clone))
    assert two[-2:] == ["-incoming", "defer"]
    differing = [(a, b) for a, b in zip(one, two, strict=False) if a != b]
    assert [a.split(",")[0] for a, _ in differing] == [
        "memory-backend-file",
        "file:/d/serial",
        "file=/d/disk.qcow2",
        "user",
    ]
    assert "share=on" in differing[0][0]
    assert "share=off" in differing[0][1]


def test_guests_have_addresses_of_their_own() -> None:
    assert len({next_address() for _ in range(300)}) == 300


@pytest.mark.parametrize(("strict", "checking"), [(True, "true"), (False, "accept-new")])
def test_ssh_reads_the_configuration(tmp_path: Path, *, strict: bool, checking: str) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    login = Login(
        namespace=NetworkNamespace(pid=1),
        address="127.77.0.9",
        port=22,
        user="linux",
        private_key=folder / "id",
        folder=folder,
    )
    login.config.write_text(configuration(login, control_folder="/proc/1/fd/9", strict=strict))
    said = subprocess.run(["ssh", "-G", "-F", login.config, "guest"], capture_output=True, text=True, check=True).stdout
    found = dict(line.split(" ", 1) for line in said.splitlines() if " " in line)
    assert found["hostname"] == "127.77.0.9"
    assert found["user"] == "linux"
    assert found["identityfile"].strip('"') == str(folder / "id")
    assert found["userknownhostsfile"].strip('"') == str(folder / "known_hosts")
    assert found["stricthostkeychecking"] == checking
    assert found["controlpath"] == "/proc/1/fd/9/master"
    assert found["proxyusefdpass"] == "yes"
    assert "nsenter --net=/proc/1/ns/net" in found["proxycommand"]


# -- network ------------------------------------------------------------------------------------------------------

HERE = Path("x.pem")
REGION = Region(
    name="a",
    servers=(Server(name="region-a.test.invalid", ipv4="192.0.2.10", ipv6="2001:db8::10", pem=HERE),),
    update_servers=(
        Server(name="Update-A.test.invalid", ipv4="192.0.2.20", pem=HERE, registry="registry.test.invalid"),
        Server(name="198.51.100.20", ipv4="198.51.100.20", pem=HERE),
    ),
)


@pytest.mark.parametrize(
    ("regions", "ntp", "addresses", "names"),
    [
        ((), (), (), {}),
        ((), ("203.0.113.7",), ("203.0.113.7",), {}),
        ((), ("Time.test", "b.test"), (NTP_ADDRESS,), {"time.test": (NTP_ADDRESS,), "b.test": (NTP_ADDRESS,)}),
        (
            (REGION, REGION),
            (),
            ("192.0.2.10", "2001:db8::10", "192.0.2.20", "198.51.100.20"),
            {
                "region-a.test.invalid": ("192.0.2.10", "2001:db8::10"),
                "update-a.test.invalid": ("192.0.2.20",),
                "registry.test.invalid": ("192.0.2.20",),
            },
        ),
    ],
)
def test_what_answers(regions: Any, ntp: Any, addresses: Any, names: Any) -> None:
    decided = plan(regions, ntp_servers=ntp)
    assert decided.addresses == addresses
    assert decided.names == names


def test_further_names_are_answered() -> None:
    decided = plan((), names={"x.test": ("192.0.2.99",), "here.test": ("127.0.0.1",)})
    assert decided.addresses == ("192.0.2.99",)
    assert set(decided.names) == {"x.test", "here.test"}


def test_the_resolver_knows_our_names_only() -> None:
    argv = resolver_arguments({"b.test": ("192.0.2.1", "2001:db8::1")})
    assert "--host-record=b.test,192.0.2.1,2001:db8::1" in argv
    assert "--local=/#/" in argv
    assert "--no-resolv" in argv


METADATA = {"openstack/latest/meta_data.json": "{}", "openstack/latest/user_data": "#!"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/openstack", "latest"),
        ("/openstack/", "latest"),
        ("/openstack/latest", "meta_data.json\nuser_data"),
        ("/openstack/latest/user_data?x=1", "#!"),
        ("/openstack/2020-10-14/user_data", None),
        ("/latest/meta-data/", None),
        ("/", "openstack"),
        ("/openstack/latest/../../etc/passwd", None),
    ],
)
def test_the_metadata_service_s_answers(path: str, body: str | None) -> None:
    assert answer(METADATA, path) == body


# -- accelerator --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kept", "answer"),
    [
        ('{"boot_id": "b", "qemu": "q", "accelerator": "kvm"}', "kvm"),
        ('{"boot_id": "b", "qemu": "q", "accelerator": "tcg"}', "tcg"),
        ('{"boot_id": "other", "qemu": "q", "accelerator": "kvm"}', ""),
        ('{"boot_id": "b", "qemu": "newer", "accelerator": "kvm"}', ""),
        ('{"boot_id": "b", "qemu": "q", "accelerator": "xen"}', ""),
        ('{"boot_id": "b", "qemu": "q"}', ""),
        ("[]", ""),
        ("{", ""),
        (None, ""),
    ],
)
def test_remembering_the_accelerator(tmp_path: Path, kept: str | None, answer: str) -> None:
    path = tmp_path / "accelerator.json"
    if kept is not None:
        path.write_text(kept)
    assert recall(path, {"boot_id": "b", "qemu": "q"}) == answer


def test_no_kernel_no_kvm(tmp_path: Path) -> None:
    assert newest_host_kernel(tmp_path) is None
    (tmp_path / "vmlinuz-1").touch()
    assert newest_host_kernel(tmp_path) == tmp_path / "vmlinuz-1"


def test_a_broken_image_has_no_kernel(tmp_path: Path) -> None:
    image = tmp_path / "broken.qcow2"
    image.write_bytes(b"QFI\xfb" + b"\0" * 100)
    with kernel_of(image, tmp_path) as kernel:
        assert kernel is None
    assert list(tmp_path.iterdir()) == [image]
