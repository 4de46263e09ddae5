# SPDX-License-Identifier: Apache-2.0
"""What an image must not carry, and files whose content stops registration (rules 18, 19, 21 and 22)."""

from __future__ import annotations

import ipaddress
import json
import re
import tomllib
from collections.abc import Sequence

from factory.region.check_findings import At, Notes
from factory.region.check_root import Root

LEFTOVERS = (
    "var/cache/cloudregister/*",
    "var/lib/cloudregister",
    "var/lib/guestregister/*",
    "etc/guestregister/credentials",
    "etc/apt/auth.conf.d/*guestregister*",
    "etc/apt/sources.list.d/guestregister.sources",
    "etc/apt/sources.list.d/*.guestregister.disabled",
    "etc/yum.repos.d/guestregister.repo",
    "etc/yum.repos.d/*.guestregister.disabled",
    "etc/zypp/credentials.d/*",
    "etc/SUSEConnect",
    "etc/pki/trust/anchors/registration_server_*",
    "etc/pki/ca-trust/source/anchors/registration_server_*",
    "usr/local/share/ca-certificates/registration_server_*",
    "run/suseconnect",
    "var/log/cloudregister",
)
"""What a registration leaves; an image that carries any of it was made from a registered instance."""
_CLOUD_REGISTRY = re.compile(r"\bregistry-[a-z0-9.-]*susecloud\.net\b")
_REWRITES_HOSTS = re.compile(r"^manage_etc_hosts\s*:\s*['\"]?(?P<value>[A-Za-z]+)", re.IGNORECASE)
_PROXY_LINE = re.compile(r"^\s*(?P<name>PROXY_ENABLED|HTTPS?_PROXY|NO_PROXY)\s*=\s*(?P<value>.*?)\s*$")
_STALE = "the client believes that the instance is registered, or announces it with credentials of another"


def examine_leftovers(root: Root, notes: Notes) -> None:
    """Rule 18: nothing is left from a registration."""
    notes.look(18)
    for pattern in LEFTOVERS:
        for path in root.glob(pattern):
            notes.error(18, At(file=path), "is left from a registration", why=_STALE, cure="remove it from the image")
    for pattern in ("etc/zypp/services.d/*.service", "etc/zypp/repos.d/*.repo"):
        for path in root.glob(pattern):
            for number, line in enumerate((root.text(path) or "").splitlines(), 1):
                if "susecloud" in line:
                    at = At(file=path, line=number)
                    notes.error(
                        18, at, "is a service or repository of an update server", why=_STALE, cure="remove the file"
                    )
                    break
    for number, line in enumerate((root.text("etc/hosts") or "").splitlines(), 1):
        if "# Added by SMT" in line:
            notes.error(
                18,
                At(file="etc/hosts", line=number),
                "names an update server",
                why="the client believes that the instance is registered there",
                cure="remove the block",
            )


# -- registry ---------------------------------------------------------------------------------------------------------


def examine_registry(root: Root, notes: Notes, registries: Sequence[str]) -> None:
    """Rule 19, for SUSE's client: what it writes for a container registry is not there yet, and can be merged."""
    notes.look(19)
    refused = "the client takes 'nothing to change' for a failure, undoes everything, and exits with 1"
    profile = root.text("etc/profile.local") or ""
    lines = [
        (name, number)
        for name in ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG")
        for number, line in enumerate(profile.splitlines(), 1)
        if re.match(rf"\s*(export\s+)?{name}=", line)
    ]
    if {name for name, _ in lines} == {"REGISTRY_AUTH_FILE", "DOCKER_CONFIG"}:
        at = At(file="etc/profile.local", line=lines[0][1])
        notes.error(
            19, at, "sets REGISTRY_AUTH_FILE and DOCKER_CONFIG already", why=refused, cure="leave them to the client"
        )
    for path in ("etc/containers/registries.conf", "etc/docker/daemon.json", "etc/containers/config.json"):
        text = root.text(path)
        if text is None:
            continue
        _parses(path, text, notes)
        for number, line in enumerate(text.splitlines(), 1):
            if _CLOUD_REGISTRY.search(line) or any(name and name in line for name in registries):
                notes.error(
                    19,
                    At(file=path, line=number),
                    "holds the cloud's registry already",
                    why=refused,
                    cure="leave the entry to the client",
                )
                break


def _parses(path: str, text: str, notes: Notes) -> None:
    try:
        if path.endswith(".conf"):
            tomllib.loads(text)
        else:
            json.loads(text)
    except (ValueError, RecursionError) as wrong:
        place = re.search(r"line (\d+)", str(wrong))
        notes.error(
            19,
            At(file=path, line=int(place[1]) if place else 1),
            f"is not {'TOML' if path.endswith('.conf') else 'JSON'}: {wrong}",
            why="the client cannot merge the registry into it, and registration fails",
            cure="correct the file",
        )


# -- /etc/hosts and the proxy -----------------------------------------------------------------------------------------


def examine_cloud_init(root: Root, notes: Notes) -> None:
    """Rule 21: the last word on ``manage_etc_hosts`` in cloud-init's configuration is not true."""
    notes.look(21)
    last: tuple[At, str] | None = None
    for path in ("etc/cloud/cloud.cfg", *sorted(root.glob("etc/cloud/cloud.cfg.d/*.cfg"))):
        for number, line in enumerate((root.text(path) or "").splitlines(), 1):
            if found := _REWRITES_HOSTS.match(line):
                last = (At(file=path, line=number, key="manage_etc_hosts"), found["value"].lower())
    if last is not None and last[1] in {"true", "yes", "on", "template"}:
        notes.error(
            21,
            last[0],
            "rewrites /etc/hosts on each boot",
            why="the update server's entry is lost after a reboot, and updates with it",
            cure="set it to false",
        )


def examine_proxy(root: Root, notes: Notes, servers: Sequence[str], *, quoted: bool) -> None:
    """Rule 22: ``/etc/sysconfig/proxy`` can be read, and does not hide the servers.

    Args:
        quoted: whether values must be in double quotes, as for SUSE's client.
    """
    text = root.text("etc/sysconfig/proxy")
    if text is None:
        notes.skip(22, "there is no /etc/sysconfig/proxy")
        return
    notes.look(22)
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        if told := _PROXY_LINE.match(line):
            found[told["name"]] = (number, told["value"])
    if found.get("PROXY_ENABLED", (0, ""))[1] == '"no"':
        return
    for name, (number, value) in found.items() if quoted else ():
        if not re.fullmatch(r'"[^"]*"', value):
            notes.error(
                22,
                At(file="etc/sysconfig/proxy", line=number, key=name),
                f"{value[:60]!r} is not in double quotes",
                why="the client's reader crashes on it",
                cure='write every value as NAME="value", or PROXY_ENABLED="no"',
            )
    direct = [one.strip() for one in _bare(found.get("NO_PROXY", (0, ""))[1]).split(",")]
    hidden = [server for server in servers if not any(_excepts(one, server) for one in direct)]
    if _bare(found.get("PROXY_ENABLED", (0, ""))[1]).lower() == "yes" and hidden:
        notes.warn(
            22,
            At(file="etc/sysconfig/proxy", line=found["PROXY_ENABLED"][0], key="PROXY_ENABLED"),
            f"a proxy is set, and NO_PROXY does not name {', '.join(hidden[:4])}",
            why="registration works only when the proxy reaches these servers",
            cure="name region and update servers in NO_PROXY, or make sure the proxy reaches them",
        )


def _bare(value: str) -> str:
    return value.strip().strip("\"'")


def _excepts(exception: str, server: str) -> bool:
    """Whether an entry of NO_PROXY means this server: itself, its domain, or a network around its address."""
    bare = exception.lstrip("*").lstrip(".").lower()
    if exception == "*" or (bare and bare == server.lower()):
        return True
    try:
        address = ipaddress.ip_address(server)
    except ValueError:
        return bool(bare) and server.lower().endswith(f".{bare}")
    try:
        return address in ipaddress.ip_network(exception, strict=False)
    except ValueError:
        return False
