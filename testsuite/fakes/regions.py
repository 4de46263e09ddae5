# SPDX-License-Identifier: Apache-2.0
"""A site with three region servers and three update servers, and root file systems that can register there."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from factory.model import Region, RegionClient, Registration, Repository, Server
from factory.region.certificates import issue
from factory.region.config import guest_files, install

CERTIFICATES = "/usr/lib/regionService/certs"
REPOSITORY = Repository(alias="debian", url="https://mirror.example/debian", suites=("trixie",), key="/usr/k.gpg")
CLIENT = RegionClient(data_provider="/usr/bin/instance-data", instance_args="cloudhint")


def make_region(folder: Path, *, now: datetime, days: int = 3000) -> Region:
    """Three servers of each kind; the first ones have IPv6 too, as have all update servers."""
    folder.mkdir(parents=True, exist_ok=True)
    authority = issue("CA", now=now, days=days, is_authority=True)
    authority.write(folder, "ca")
    servers, update_servers = [], []
    for number, letter in enumerate("abc", 1):
        name = f"region-{letter}.cloud.example"
        ipv4, ipv6 = f"192.0.2.{number}", f"2001:db8::{number}" if number == 1 else ""
        made = issue(name, now=now, days=days, names=[name], addresses=[one for one in (ipv4, ipv6) if one])
        pem, key = made.write(folder, f"region-{letter}")
        servers.append(Server(name=name, ipv4=ipv4, ipv6=ipv6, pem=pem, key=key))
        name, other = f"update-{letter}.cloud.example", f"registry-{letter}.cloud.example"
        ipv4, ipv6 = f"198.51.100.{number}", f"2001:db8:1::{number}"
        made = issue(name, now=now, days=days, names=[name, other], addresses=[ipv4, ipv6], authority=authority)
        pem, key = made.write(folder, f"update-{letter}")
        update_servers.append(
            Server(name=name, ipv4=ipv4, ipv6=ipv6, pem=folder / "ca.pem", certificate=pem, key=key, registry=other)
        )
    return Region(
        name="north",
        networks=("192.0.2.0/24", "2001:db8::/32"),
        servers=tuple(servers),
        update_servers=tuple(update_servers),
    )


def write_site(path: Path, region: Region, *, more: str = "") -> Path:
    """The region as a site file; certificates and keys stay where they are."""
    lines = ["[[region]]", f'name = "{region.name}"', f"networks = {json.dumps(list(region.networks))}"]
    for kind, servers in (("servers", region.servers), ("update_servers", region.update_servers)):
        lines.append(f"{kind} = [")
        for one in servers:
            fields = {"name": one.name, "ipv4": one.ipv4, "ipv6": one.ipv6, "pem": str(one.pem)}
            fields["registry"] = one.registry
            told = ", ".join(f"{key} = {json.dumps(value)}" for key, value in fields.items() if value)
            lines.append(f"  {{{told}}},")
        lines.append("]")
    path.write_text("\n".join(lines) + "\n\n" + more)
    return path


def _program(root: Path, *paths: str, text: str = "#!/bin/sh\n") -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
        (root / path).chmod(0o755)


def _file(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def _link(root: Path, path: str, target: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).symlink_to(target)


def _system(root: Path) -> None:
    """What every system here has: name, network, time."""
    _file(root, "etc/os-release", "ID=test\n")
    _file(root, "etc/hosts", "127.0.0.1 localhost\n")
    _program(root, "usr/bin/sh", "usr/bin/python3.11")
    _link(root, "bin", "usr/bin")
    _link(root, "usr/bin/python3", "python3.11")
    wants = "etc/systemd/system"
    _link(root, f"{wants}/network-online.target.wants/wicked.service", "/usr/lib/systemd/system/wicked.service")
    _link(root, f"{wants}/multi-user.target.wants/chronyd.service", "/usr/lib/systemd/system/chronyd.service")
    _file(root, "etc/cloud/cloud.cfg", "users: []\nmanage_etc_hosts: false\n")


def make_own_root(root: Path, region: Region, *, mode: str = "on-demand") -> Path:
    """A root file system with our client."""
    _system(root)
    install(root, guest_files((region,), RegionClient(), Registration(mode=mode), (REPOSITORY,)))
    _program(root, "usr/sbin/update-ca-certificates")
    return root


def make_suse_root(root: Path, region: Region, *, mode: str = "on-demand") -> Path:
    """A root file system with SUSE's client, as its packages lay it out."""
    _system(root)
    registration = Registration(mode=mode, client="registercloudguest")
    install(root, guest_files((region,), CLIENT, registration, ()))
    _program(root, "usr/sbin/registercloudguest", text="#!/usr/bin/python3.11\n")
    _program(root, "usr/sbin/SUSEConnect", "usr/sbin/update-ca-certificates", "usr/bin/ping", "usr/sbin/lspci")
    _program(root, "usr/bin/ps", "usr/bin/sudo", "usr/bin/zypper", "usr/sbin/dmidecode", "usr/bin/instance-data")
    _program(root, "usr/lib64/ld-linux-x86-64.so.2")
    _link(root, "lib64", "usr/lib64")
    _file(root, "usr/lib/systemd/system/guestregister.service", "[Service]\n")
    plugin = "usr/lib/python3.11/site-packages/cloudregister/cloudhint.py"
    _file(root, plugin, "def generateRegionSrvArgs():\n    return 'regionHint=north'\n")
    product = "<product><name>SLES</name><version>15.7</version><arch>x86_64</arch></product>\n"
    _file(root, "etc/products.d/SLES.prod", product)
    _link(root, "etc/products.d/baseproduct", "SLES.prod")
    (root / "etc/pki/trust/anchors").mkdir(parents=True)
    _file(root, "etc/fstab", "UUID=1 / xfs defaults 0 1\n")
    _file(root, "etc/sysconfig/proxy", 'PROXY_ENABLED="no"\nHTTP_PROXY=""\n')
    _file(root, "etc/containers/registries.conf", 'unqualified-search-registries = ["registry.suse.com"]\n')
    return root


def with_update_server(region: Region, **changes: object) -> Region:
    """The region with its first update server changed."""
    first, *rest = region.update_servers
    return replace(region, update_servers=(replace(first, **changes), *rest))  # type: ignore[arg-type]
