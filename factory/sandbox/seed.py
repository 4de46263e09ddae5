# SPDX-License-Identifier: Apache-2.0
"""What cloud-init finds at first boot: a small vfat disk, or the content of a metadata service, with a fresh ssh key.

Formats: cloud-init documentation, "NoCloud" (label ``CIDATA``) and "Config drive" (label ``config-2``, the layout of
OpenStack's metadata service, :mod:`factory.sandbox.metadata`). The interface is named by its hardware address and
renamed to ``eth0``, so that the same seed works whether the guest uses ifupdown, systemd-networkd or netplan and
whatever it calls its interfaces. DHCPv6 is off: no server answers it here, and ifupdown would wait for one.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from factory.system.files import appearing, write_whole
from factory.system.run import run

MAC_ADDRESS = "52:54:00:12:34:56"
"""The hardware address of every guest's network card; each guest is alone on its virtual wire."""

_SIZE_BYTES = 4 << 20


class Datasource(StrEnum):
    """Which of cloud-init's datasources tells the guest: a seed disk, or OpenStack's metadata service."""

    NOCLOUD = "nocloud"
    CONFIG_DRIVE = "config-drive"
    OPENSTACK = "openstack"


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key pair to log in with: ``private`` is a file (0600), ``public`` one line for ``authorized_keys``."""

    private: Path
    public: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Seed:
    """What one instance is told: who it is, who may log in, and its user-data.

    A new ``instance_id`` on a disk that has booted before makes cloud-init treat it as a new instance. ``meta`` are the
    free metadata keys that a user sets on a server (``openstack server create --property``).
    """

    key: Key
    instance_id: str
    hostname: str = "factory-guest"
    user_data: str = "#cloud-config\n{}\n"
    meta: Mapping[str, str] = field(default_factory=dict)
    datasource: Datasource = Datasource.NOCLOUD


_LABELS = {Datasource.NOCLOUD: "CIDATA", Datasource.CONFIG_DRIVE: "config-2", Datasource.OPENSTACK: "EMPTY"}


def fresh_key(folder: Path) -> Key:
    """A new ed25519 key pair, its private half in ``folder``."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    made = Ed25519PrivateKey.generate()
    private = made.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = made.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    path = folder / "id_ed25519"
    write_whole(path, private, mode=0o600)
    return Key(private=path, public=f"{public.decode()} factory-sandbox")


def seed_files(seed: Seed) -> dict[str, str]:
    """What the guest can read, by path: the files of the seed disk, or of the metadata service. Pure."""
    if seed.datasource is Datasource.CONFIG_DRIVE:
        return _openstack(seed)
    if seed.datasource is Datasource.OPENSTACK:
        return {**_openstack(seed), **_ec2(seed)}
    meta = {
        "instance-id": seed.instance_id,
        "local-hostname": seed.hostname,
        "public-keys": [seed.key.public],
        **seed.meta,
    }
    return {
        "meta-data": json.dumps(meta, indent=1) + "\n",  # JSON is YAML
        "user-data": seed.user_data,
        "network-config": json.dumps(_network(), indent=1) + "\n",
    }


def _network() -> dict[str, object]:
    card = {"match": {"macaddress": MAC_ADDRESS}, "set-name": "eth0", "dhcp4": True, "dhcp6": False}
    return {"version": 2, "ethernets": {"eth0": card}}


def _openstack(seed: Seed) -> dict[str, str]:
    meta = {
        # cloud-init reads the instance id from "uuid"; OpenStack's are UUIDs, so any text is mapped to one.
        "uuid": str(uuid.uuid5(uuid.NAMESPACE_DNS, seed.instance_id)),
        "hostname": seed.hostname,
        "name": seed.hostname,
        "public_keys": {"factory": seed.key.public},
        "keys": [{"name": "factory", "type": "ssh", "data": seed.key.public}],
        "meta": dict(seed.meta),
    }
    link = {"id": "eth0", "type": "phy", "ethernet_mac_address": MAC_ADDRESS, "mtu": 1500}
    network = {"links": [link], "networks": [{"id": "network0", "type": "ipv4_dhcp", "link": "eth0"}], "services": []}
    return {
        "openstack/latest/meta_data.json": json.dumps(meta, indent=1) + "\n",
        "openstack/latest/user_data": seed.user_data,
        "openstack/latest/network_data.json": json.dumps(network, indent=1) + "\n",
    }


def _ec2(seed: Seed) -> dict[str, str]:
    """What Nova also serves for programs that know EC2; cloud-init calls itself degraded when it is missing."""
    values = {"instance-id": seed.instance_id, "hostname": seed.hostname, "local-hostname": seed.hostname}
    return {f"latest/meta-data/{name}": value for name, value in values.items()}


def write_seed(seed: Seed, path: Path) -> Path:
    """Write the seed disk to ``path`` (raw, vfat) and return it; with the metadata service it is there but empty.

    Raises:
        CommandFailed: mkfs.vfat (dosfstools) or mtools are missing or failed.
    """
    label = _LABELS[seed.datasource]
    files = {} if seed.datasource is Datasource.OPENSTACK else seed_files(seed)
    with appearing(path) as partial:
        partial.touch(mode=0o600)
        with partial.open("r+b") as file:
            file.truncate(_SIZE_BYTES)
        run(["mkfs.vfat", "-n", label, partial], timeout_s=30)
        made: set[str] = set()
        for name, content in files.items():
            for folder in reversed(Path(name).parents[:-1]):
                if str(folder) not in made:
                    made.add(str(folder))
                    run(["mmd", "-i", partial, f"::/{folder}"], timeout_s=30)
            run(["mcopy", "-i", partial, "-", f"::/{name}"], stdin=content.encode(), timeout_s=30)
    return path
