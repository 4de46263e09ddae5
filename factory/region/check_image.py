# SPDX-License-Identifier: Apache-2.0
"""The content of an image that registration depends on (rules 4, 5, 16, 17 and 20)."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from enum import StrEnum

from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from factory.region import ini
from factory.region.check_config import OFF, SHELL, option
from factory.region.check_findings import At, Notes
from factory.region.check_root import Root
from factory.region.config import CLIENT_CONFIG, GUEST_PROGRAM, GUEST_WANTED

SUSE_PROGRAM = "usr/sbin/registercloudguest"
_UNIT = "guestregister.service"
_SUSE_NEEDS = {
    "cloud-regionsrv-client": (SUSE_PROGRAM,),
    "SUSEConnect": ("usr/sbin/SUSEConnect",),
    "ca-certificates": ("usr/sbin/update-ca-certificates",),
    "iputils": ("usr/bin/ping", "usr/sbin/ping"),
    "pciutils": ("usr/sbin/lspci", "usr/bin/lspci"),
    "procps": ("usr/bin/ps",),
    "sudo": ("usr/bin/sudo",),
    "zypper": ("usr/bin/zypper",),
}
_OWN_NEEDS = {
    "python3": ("usr/bin/python3",),
    "ca-certificates": ("usr/sbin/update-ca-certificates", "usr/bin/update-ca-trust"),
}
_ONLINE = ("systemd-networkd-wait-online", "NetworkManager-wait-online", "wicked", "ifupdown-wait-online", "networking")
_TIME = ("chrony", "chronyd", "systemd-timesyncd", "ntpd", "ntp", "ntpsec")
_PLUGIN = re.compile(r"^def\s+generateRegionSrvArgs\s*\(", re.MULTILINE)
_ENABLES = re.compile(
    rf"^[^#\n]*\b(systemctl\b[^\n#]*\benable\b[^\n#]*|(base|suse)InsertService\s+){_UNIT.removesuffix('.service')}\b",
    re.MULTILINE,
)
_LATER = "the packages are not installed yet; examine the built image"


class Client(StrEnum):
    """Which program registers the instance."""

    OURS = "guestregister"
    SUSE = "registercloudguest"
    NONE = "no client"


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """An image's files: ``complete`` when packages are installed, else an overlay that a build lays over them.

    ``config_xml`` and ``scripts`` are what a kiwi description does besides its overlay.
    """

    root: Root
    complete: bool
    mode: str = "on-demand"
    config_xml: str = ""
    scripts: str = ""

    @property
    def packages(self) -> frozenset[str]:
        """The packages that the kiwi description names."""
        try:
            found = ElementTree.fromstring(self.config_xml.encode()) if self.config_xml else ()
        except (ElementTree.ParseError, DefusedXmlException, LookupError, ValueError):
            return frozenset()
        return frozenset(one.get("name", "") for part in found for one in part.iter("package"))

    @property
    def client(self) -> Client:
        """The client that the image has or will have."""
        if self.root.find(SUSE_PROGRAM) or "cloud-regionsrv-client" in self.packages:
            return Client.SUSE
        if self.root.find(GUEST_PROGRAM) or any(name.endswith("-guestregister") for name in self.packages):
            return Client.OURS
        backend = option(ini.read(self.root.text(CLIENT_CONFIG) or "", place=""), "service", "packagebackend")
        return Client.SUSE if not self.complete and backend and backend.value == "zypper" else Client.NONE


def examine_content(content: Content, read: ini.Ini, notes: Notes, *, file: str) -> None:
    """Look at programs, packages and services."""
    _provider(content, read, notes, file)
    _plugin(content, read, notes, file)
    _installed(content, notes)
    _service(content, notes)
    if content.complete:
        _around(content.root, notes)
        _writable(content, notes)
    else:
        notes.skip((16, 20), _LATER)
        notes.skip(17, f"network and time: {_LATER}")


# -- programs the client runs -----------------------------------------------------------------------------------------


def _provider(content: Content, read: ini.Ini, notes: Notes, file: str) -> None:
    found = option(read, "instance", "dataprovider")
    if found is None or found.value in OFF:
        notes.skip(4, "there is no data provider")
        return
    notes.skip(4, "what it prints is seen only by running it in a guest")
    if not found.value.startswith("/") or SHELL.search(found.value):
        return
    program = found.value.split()[0]
    at = At(file=file, line=found.line, key="instance.dataProvider")
    node = content.root.find(program)
    if node is None and not content.complete:
        notes.skip(4, f"'{program}' is not in the overlay; a package must bring it: {_LATER}")
    elif node is None:
        notes.error(4, at, f"'{program}' is not in the image", why="instances send no instance data", cure="install it")
    elif not node.executable:
        notes.error(4, at, f"'{program}' is not executable", why="the client cannot run it", cure="give it mode 0755")
    elif content.complete:
        _interpreter(content.root, program, at, notes)


def _interpreter(root: Root, program: str, at: At, notes: Notes) -> None:
    head = (root.read(program) or b"")[:200].split(b"\n", 1)[0]
    if not head.startswith(b"#!"):
        return
    words = head[2:].decode(errors="replace").split()
    wanted = words[0] if words else ""
    if posixpath.basename(wanted) == "env" and len(words) > 1:
        known = any(root.find(f"{folder}/{words[1]}") for folder in ("usr/local/bin", "usr/bin", "usr/sbin", "bin"))
    else:
        known = root.find(wanted) is not None
    if not known:
        notes.error(
            4,
            at,
            f"'{program}' wants '{' '.join(words)}', which is not in the image",
            why="the client cannot run it",
            cure="install the interpreter",
        )


def _plugin(content: Content, read: ini.Ini, notes: Notes, file: str) -> None:
    found = option(read, "instance", "instanceargs")
    if found is None or found.value in OFF:
        notes.skip(5, "there is no region hint plugin")
        return
    if not found.value.isidentifier():
        return
    at = At(file=file, line=found.line, key="instance.instanceArgs")
    places = [
        *content.root.glob(f"usr/lib*/python3*/*-packages/cloudregister/{found.value}.py"),
        *content.root.glob(f"usr/lib/image-factory/{found.value}.py"),
        *content.root.glob(f"usr/lib/image-factory/cloudregister/{found.value}.py"),
    ]
    if not places:
        if content.complete:
            notes.error(
                5,
                at,
                f"the image has no module '{found.value}' in cloudregister",
                why="the client asks without a region hint",
                cure="install the plugin",
            )
        else:
            notes.skip(5, f"the plugin is not in the overlay; a package must bring it: {_LATER}")
        return
    version = _python(content.root, SUSE_PROGRAM) if content.client is Client.SUSE else ""
    right = [path for path in places if f"/python{version}/" in path] if version else places
    if not right:
        notes.error(
            5,
            at,
            f"'{found.value}' is installed as {places[0]}, but the client runs with Python {version}",
            why="the client cannot import it and asks without a region hint",
            cure=f"install the plugin for Python {version}",
        )
        return
    if not _PLUGIN.search(content.root.text(right[0]) or ""):
        notes.error(
            5,
            At(file=right[0], line=1),
            "does not define generateRegionSrvArgs",
            why="the client takes the function for missing and asks without a region hint",
            cure="define generateRegionSrvArgs()",
        )


def _python(root: Root, program: str) -> str:
    """The version of Python that a script names or leads to, such as ``3.11``; empty when it cannot be told."""
    head = (root.read(program) or b"")[:200].split(b"\n", 1)[0].decode(errors="replace")
    words = head.removeprefix("#!").split()
    if not head.startswith("#!") or not words:
        return ""
    interpreter = f"usr/bin/{words[1]}" if posixpath.basename(words[0]) == "env" and len(words) > 1 else words[0]
    found = re.search(r"python(3\.\d+)\Z", root.real(interpreter) or interpreter)
    return found[1] if found else ""


# -- packages ---------------------------------------------------------------------------------------------------------


def _installed(content: Content, notes: Notes) -> None:
    client, root = content.client, content.root
    if not content.complete:
        if client is Client.SUSE and content.config_xml:
            _described(content, notes)
        return
    notes.look(16)
    if client is Client.NONE:
        notes.error(
            16,
            At(file=GUEST_PROGRAM),
            f"there is neither '{SUSE_PROGRAM}' nor '{GUEST_PROGRAM}'",
            why="nothing can register the instance",
            cure="install the registration client",
        )
        return
    needs = dict(_SUSE_NEEDS if client is Client.SUSE else _OWN_NEEDS)
    if client is Client.SUSE and root.find("lib64/ld-linux-x86-64.so.2"):
        needs["dmidecode"] = ("usr/sbin/dmidecode",)
    for package, paths in needs.items():
        if not any((node := root.find(path)) and node.executable for path in paths):
            notes.error(
                16,
                At(file=paths[0]),
                "is missing or not executable",
                why=f"{client} cannot do its work without {package}",
                cure=f"install {package}",
            )
    if client is Client.SUSE:
        notes.skip(16, "packages are seen by the programs they bring, not by their version")
        _suse(root, notes)
    else:
        notes.skip(16, "SUSEConnect, base product and transactional-update: the image has our client, which needs none")


def _described(content: Content, notes: Notes) -> None:
    """What a kiwi description for SUSE's client installs."""
    notes.look(16)
    at = At(file="config.xml", key="packages")
    wanted = content.packages
    if "namedCollection" not in content.config_xml and "cloud-regionsrv-client" not in wanted:
        notes.error(
            16, at, "does not install cloud-regionsrv-client", why="nothing can register the instance", cure="add it"
        )
    if "container-suseconnect" in wanted:
        _no_container_client(at, notes)


def _no_container_client(at: At, notes: Notes) -> None:
    notes.error(
        16,
        at,
        "container-suseconnect is there",
        why="it conflicts with cloud-regionsrv-client",
        cure="leave it out of the image",
    )


def _suse(root: Root, notes: Notes) -> None:
    if root.entry("usr/bin/container-suseconnect"):
        _no_container_client(At(file="usr/bin/container-suseconnect"), notes)
    link, at = "etc/products.d/baseproduct", At(file="etc/products.d/baseproduct")
    entry, leads = root.entry(link), root.real(link)
    product = root.read(link)
    if entry is None or not entry.is_link or product is None or not str(leads).endswith(".prod"):
        notes.error(
            16,
            at,
            "is not a link to an existing .prod file",
            why="the client does not know its base product and exits with 1",
            cure="link it to the product's file, such as SLES.prod",
        )
    elif missing := _missing_in_product(product):
        notes.error(
            16,
            At(file=str(leads), line=1),
            f"does not tell {missing}",
            why="the client does not know its base product and exits with 1",
            cure="install the release package again",
        )
    for number, line in enumerate((root.text("etc/fstab") or "").splitlines(), 1):
        fields = line.split()
        read_only = len(fields) > 3 and fields[1] == "/" and "ro" in fields[3].split(",")  # noqa: PLR2004 options
        if read_only and not root.find("usr/sbin/transactional-update"):
            notes.error(
                16,
                At(file="etc/fstab", line=number),
                "mounts the root read-only, and there is no transactional-update",
                why="SUSEConnect cannot write its files",
                cure="install transactional-update",
            )


def _missing_in_product(content: bytes) -> str:
    try:
        found = ElementTree.fromstring(content)
    except (ElementTree.ParseError, DefusedXmlException, LookupError, ValueError):
        return "anything: it is not XML"
    return ", ".join(name for name in ("name", "version", "arch") if not (found.findtext(name) or "").strip())


# -- services ---------------------------------------------------------------------------------------------------------


def _service(content: Content, notes: Notes) -> None:
    notes.look(17)
    links = [path for path in content.root.glob(f"etc/systemd/system/*.wants/{_UNIT}") if content.root.entry(path)]
    script = _ENABLES.search(content.scripts)
    if content.mode == "on-demand" and not links and not script:
        notes.error(
            17,
            At(file=GUEST_WANTED),
            f"{_UNIT} is not enabled",
            why="nothing registers the instance at first boot",
            cure=f"systemctl enable {_UNIT} (or mode = 'byos' in image.toml)",
        )
    if content.mode == "byos" and (links or script):
        line = content.scripts[: script.start()].count("\n") + 1 if script and not links else 0
        notes.error(
            17,
            At(file=links[0] if links else "config.sh", line=line),
            f"{_UNIT} is enabled",
            why="a bring-your-own-subscription image would register as on-demand",
            cure=f"systemctl disable {_UNIT}",
        )
    if content.mode == "byos":
        for path in content.root.glob("etc/systemd/system/*.wants/guestregister-lic-watcher.timer"):
            notes.warn(
                17,
                At(file=path),
                "watches licences in a bring-your-own-subscription image",
                why="it looks every minute for an on-demand registration that never is",
                cure="disable it",
            )
    for path in links:
        if content.complete and content.root.find(path) is None:
            notes.error(
                17,
                At(file=path),
                "leads to no unit",
                why="systemd starts nothing",
                cure="install the client's package, which brings the unit",
            )


def _around(root: Root, notes: Notes) -> None:
    enabled = {posixpath.basename(path) for path in root.glob("etc/systemd/system/*.wants/*.service")}
    enabled |= {posixpath.basename(path) for path in root.glob("usr/lib/systemd/system/*.wants/*.service")}
    if not enabled & {f"{name}.service" for name in _ONLINE}:
        notes.error(
            17,
            At(file="etc/systemd/system/network-online.target.wants"),
            "no service waits for the network",
            why="registration starts before the instance has an address, and fails",
            cure=f"enable one of {', '.join(_ONLINE[:3])}",
        )
    if not enabled & {f"{name}.service" for name in _TIME}:
        notes.error(
            17,
            At(file="etc/systemd/system/multi-user.target.wants"),
            "no time service is enabled",
            why="with a wrong clock, every certificate is expired or not yet valid",
            cure="enable chronyd or systemd-timesyncd",
        )


def _writable(content: Content, notes: Notes) -> None:
    notes.look(20)
    root = content.root
    hosts, leads = root.entry("etc/hosts"), root.real("etc/hosts")
    if hosts is not None and (hosts.is_folder or leads is None or leads.startswith(("usr/", "nix/", "proc/", "sys/"))):
        notes.error(
            20,
            At(file="etc/hosts"),
            f"cannot be written at boot: it leads to {'/' + leads if leads else 'nowhere'}",
            why="the client cannot note its update server",
            cure="make it a plain file",
        )
    if content.client is not Client.SUSE:
        notes.skip(
            20, "trust anchors and Python's certificates: our client trusts the CA it was told, and nothing else"
        )
        return
    anchors = root.find("etc/pki/trust/anchors")
    if anchors is None or not anchors.is_folder or str(root.real("etc/pki/trust/anchors")).startswith("usr/"):
        notes.error(
            20,
            At(file="etc/pki/trust/anchors"),
            "is no folder that can be written at boot",
            why="the update server's CA cannot be imported",
            cure="install ca-certificates; the folder must be below /etc",
        )
    notes.skip(20, "whether update-ca-certificates works is seen only by running it in a guest")
    _bundles(root, notes)


def _bundles(root: Root, notes: Notes) -> None:
    override = any(
        re.search(r"^[^#\n]*\b(REQUESTS_CA_BUNDLE|SSL_CERT_FILE)=", root.text(path) or "", re.MULTILINE)
        for path in ("etc/environment", *root.glob(f"etc/systemd/system/{_UNIT}.d/*.conf"))
    )
    for path in root.glob("usr/lib*/python3*/*-packages/certifi/cacert.pem"):
        entry = root.entry(path)
        if entry is not None and entry.is_file and entry.size_bytes and not override:
            notes.error(
                20,
                At(file=path),
                "is a CA bundle of its own",
                why="Python's requests trusts it instead of the system, so requests to the update server fail",
                cure="use the distribution's certifi, or set REQUESTS_CA_BUNDLE for the service",
            )
