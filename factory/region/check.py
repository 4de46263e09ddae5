# SPDX-License-Identifier: Apache-2.0
"""Rules that an image's region files must keep, looked at before anything is built.

Each fault says where, why an instance would fail at its first boot, and the cure. Warnings do not stop a build.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from factory.errors import Fault
from factory.model import Region
from factory.region import ini
from factory.region.certificates import certificates_in, covers, pem_blocks
from factory.region.config import CLIENT_CONFIG, GUEST_WANTED, items
from factory.region.region_rules import NAME, check_regions

_PLACEHOLDER = re.compile(
    r"<[^>]*>|\b(REPLACE|SUBSTITUTE|PLACEHOLDER|CHANGE_?ME|YOUR_)\w*|\A[A-Z]{3,}(?:[_ -][A-Z]+)+\Z"
)
_SHELL = re.compile(r"[|;&$`<>(){}*?~\"'\\]")
_REWRITES_HOSTS = re.compile(r"^\s*manage_etc_hosts\s*:\s*['\"]?(true|yes|on|template)\b", re.IGNORECASE)
_MIN_RSA_BITS = 2048
_MIN_EC_BITS = 256
_MAX_CERTIFICATES = 2
_RECOMMENDED_SERVERS = 2
LEFTOVERS = (
    "var/cache/cloudregister/*",
    "var/lib/cloudregister",
    "var/lib/guestregister/*",
    "etc/guestregister/credentials",
    "etc/apt/auth.conf.d/*guestregister*",
    "etc/apt/sources.list.d/guestregister.sources",
    "etc/apt/sources.list.d/*.guestregister.disabled",
    "etc/zypp/credentials.d/*",
    "etc/SUSEConnect",
    "etc/pki/trust/anchors/registration_server_*",
    "usr/local/share/ca-certificates/registration_server_*",
    "run/suseconnect",
    "var/log/cloudregister",
)
"""What a registration leaves; an image that carries any of it was made from a registered instance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What is wrong, and what is only unwise."""

    faults: tuple[Fault, ...] = ()
    warnings: tuple[Fault, ...] = ()


class _Notes:
    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.warnings: list[Fault] = []

    def fault(self, place: str, problem: str, cure: str) -> None:
        self.faults.append(Fault(place=place, problem=problem, cure=cure))

    def warn(self, place: str, problem: str, cure: str) -> None:
        self.warnings.append(Fault(place=place, problem=problem, cure=cure))

    def findings(self) -> Findings:
        return Findings(faults=tuple(self.faults), warnings=tuple(self.warnings))


def check_config(text: str, *, place: str = CLIENT_CONFIG) -> tuple[Fault, ...]:
    """The faults of a ``regionserverclnt.cfg`` by itself."""
    return examine_config(text, place=place).faults


def check_tree(
    root: Path, regions: Sequence[Region], *, now: datetime, lifetime_days: int, mode: str = "on-demand"
) -> tuple[Fault, ...]:
    """The faults of the region files below ``root`` (an overlay or a root file system); see :func:`examine_tree`."""
    return examine_tree(root, regions, now=now, lifetime_days=lifetime_days, mode=mode).faults


def check_pem(text: str, item: str, *, place: str, now: datetime, lifetime_days: int) -> tuple[Fault, ...]:
    """The faults of the PEM file that pins the region server ``item``."""
    return tuple(_pem_faults(text, item, place=place, now=now, until=now + timedelta(days=lifetime_days)))


def examine_config(text: str, *, place: str = CLIENT_CONFIG) -> Findings:
    """Faults and warnings of a ``regionserverclnt.cfg``."""
    notes = _Notes()
    read = ini.read(text, place=place)
    notes.faults += read.faults
    for section in read.sections.values():
        for name, option in section.options.items():
            if _PLACEHOLDER.search(option.value):
                notes.fault(
                    f"{place}:{option.line} {section.name}.{name}",
                    f"{option.value!r} is a placeholder that nobody filled in",
                    "the client would take it literally; write the real value",
                )
    _server_section(read, place, notes)
    _instance_section(read, place, notes)
    _service_section(read, place, notes)
    return notes.findings()


def region_items(text: str) -> tuple[str, ...]:
    """The region servers a ``regionserverclnt.cfg`` lists, trimmed."""
    option = _option(ini.read(text, place=""), "server", "regionsrv")
    return _split(option.value) if option else ()


def _split(value: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in value.split(",") if item.strip())


def _option(read: ini.Ini, section: str, name: str) -> ini.Option | None:
    found = read.sections.get(section)
    return found.options.get(name) if found else None


def _server_section(read: ini.Ini, place: str, notes: _Notes) -> None:
    if "server" not in read.sections:
        notes.fault(
            f"{place}:1", "there is no [server] section", "the client stops at once; name the region servers there"
        )
        return
    metadata = _option(read, "server", "metadata_server")
    if metadata is not None:
        at = f"{place}:{metadata.line} server.metadata_server"
        if urlsplit(metadata.value).scheme not in {"http", "https"} or not urlsplit(metadata.value).hostname:
            notes.fault(
                at, f"{metadata.value!r} is not an http(s) address", "the client exits with 'Invalid URL'; remove it"
            )
        notes.warn(at, "replaces all region servers", "remove it unless it is meant")
    for name in ("api", "certlocation", "regionsrv"):
        option = _option(read, "server", name)
        if (option is None or not option.value) and metadata is None:
            notes.fault(
                f"{place}:{read.sections['server'].line} server", f"has no '{name}'", "the client cannot ask any server"
            )
    api, location = _option(read, "server", "api"), _option(read, "server", "certlocation")
    if api and api.value.startswith("/"):
        notes.fault(
            f"{place}:{api.line} server.api",
            "begins with '/'",
            "the client would ask https://SERVER//...; drop the slash",
        )
    if location and location.value and not location.value.startswith("/"):
        notes.fault(
            f"{place}:{location.line} server.certLocation",
            "is not an absolute path",
            "PEMs are looked up from the client's folder",
        )
    _regionsrv(read, place, notes)


def _regionsrv(read: ini.Ini, place: str, notes: _Notes) -> None:
    option = _option(read, "server", "regionsrv")
    if option is None:
        return
    at = f"{place}:{option.line} server.regionsrv"
    found = _split(option.value)
    for item in found:
        if problem := item_problem(item):
            notes.fault(at, f"{item!r} {problem}", "write a bare address or a DNS name")
    for item in sorted({item for item in found if found.count(item) > 1}):
        notes.fault(at, f"{item!r} is there twice", "name each server once")
    if len(set(found)) == 1:
        notes.warn(at, "names one region server only", f"with {_RECOMMENDED_SERVERS} or more, one may fail")


def item_problem(item: str) -> str:
    """Why ``item`` cannot stand in ``regionsrv``, or an empty text."""
    if "://" in item:
        return "has a scheme; the client adds https://"
    if item.startswith("["):
        return "has brackets; the client adds them"
    try:
        ipaddress.ip_address(item)
    except ValueError:
        if re.fullmatch(r"[\d.]+", item) or not NAME.fullmatch(item):
            return "is neither an address nor a DNS name"
    return ""


def _instance_section(read: ini.Ini, place: str, notes: _Notes) -> None:
    if "instance" not in read.sections:
        notes.fault(
            f"{place}:1",
            "there is no [instance] section",
            "the client would fetch the CA over plain http; set httpsOnly = true",
        )
        return
    head = f"{place}:{read.sections['instance'].line} instance"
    https = _option(read, "instance", "httpsonly")
    if https is None:
        notes.fault(
            head, "has no 'httpsOnly'", "the CA is then fetched over plain http on port 80; write httpsOnly = true"
        )
    elif https.value == "false":
        notes.warn(
            f"{place}:{https.line} instance.httpsOnly", "is false: port 80 must be served", "write httpsOnly = true"
        )
    elif https.value != "true":
        notes.fault(
            f"{place}:{https.line} instance.httpsOnly",
            f"{https.value!r} does not count as true",
            "only the exact text 'true' does; otherwise the CA is fetched over plain http on port 80",
        )
    provider = _option(read, "instance", "dataprovider")
    if provider and provider.value not in {"", "none"}:
        at = f"{place}:{provider.line} instance.dataProvider"
        if not provider.value.startswith("/"):
            notes.fault(
                at, f"{provider.value!r} is not an absolute path", "the client never runs it; write the full path"
            )
        if _SHELL.search(provider.value):
            notes.fault(at, "uses shell syntax", "it is split at blanks and run without a shell; put it into a script")
    plugin = _option(read, "instance", "instanceargs")
    if plugin and plugin.value not in {"", "none"} and not plugin.value.isidentifier():
        notes.fault(
            f"{place}:{plugin.line} instance.instanceArgs",
            f"{plugin.value!r} is not a module name",
            "name a module of the client's cloudregister package, without .py",
        )


def _service_section(read: ini.Ini, place: str, notes: _Notes) -> None:
    if "service" not in read.sections:
        return
    backend = _option(read, "service", "packagebackend")
    if backend is None:
        notes.fault(
            f"{place}:{read.sections['service'].line} service",
            "has no 'packageBackend'",
            "the client ends with an uncaught error; add the option or drop the section",
        )
    elif backend.value == "dnf":
        notes.fault(
            f"{place}:{backend.line} service.packageBackend",
            "'dnf' means: never register",
            "the client would stop after choosing a server, with exit 0",
        )


# -- a tree -----------------------------------------------------------------------------------------------------------


def examine_tree(
    root: Path, regions: Sequence[Region], *, now: datetime, lifetime_days: int, mode: str = "on-demand"
) -> Findings:
    """Faults and warnings of the region files below ``root``.

    Args:
        regions: what the image is meant for; the files must say the same.
        lifetime_days: how long instances of the image may boot for the first time; certificates must last.
        mode: ``on-demand``, ``byos`` (never enabled by itself) or ``none`` (nothing to look at but left-overs).
    """
    notes = _Notes()
    _leftovers(root, notes)
    _hosts(root, notes)
    if mode == "none":
        return notes.findings()
    notes.faults += check_regions(regions)
    _enabled(root, mode, notes)
    path = root / CLIENT_CONFIG
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as missing:
        notes.fault(
            CLIENT_CONFIG, f"cannot be read: {missing}", "the client reads exactly this path; there is no other"
        )
        return notes.findings()
    found = examine_config(text)
    notes.faults += found.faults
    notes.warnings += found.warnings
    _pems(root, text, regions, notes, now=now, lifetime_days=lifetime_days)
    _provider(root, text, notes)
    return notes.findings()


def _pems(
    root: Path, text: str, regions: Sequence[Region], notes: _Notes, *, now: datetime, lifetime_days: int
) -> None:
    read = ini.read(text, place=CLIENT_CONFIG)
    location, servers = _option(read, "server", "certlocation"), _option(read, "server", "regionsrv")
    if location is None or servers is None or not location.value.startswith("/"):
        return
    at = f"{CLIENT_CONFIG}:{servers.line} server.regionsrv"
    found = [item for item in _split(servers.value) if not item_problem(item)]
    for item in sorted(set(items(regions)) - set(found)):
        notes.fault(
            at, f"does not name region server {item}", "the description or the overlay says otherwise; drop that file"
        )
    for item in sorted(set(found) - set(items(regions))):
        notes.fault(
            at, f"{item} is no region server of this site", "instances would ask a stranger; drop the overlay's file"
        )
    folder = root / location.value.strip("/")
    for item in found:
        path = folder / f"{item}.pem"
        place = path.relative_to(root).as_posix()
        try:
            pem = path.read_text()
        except (OSError, UnicodeDecodeError):
            notes.fault(
                place, f"region server {item} has no readable PEM", "the client skips a server without one; add it"
            )
            continue
        notes.faults += check_pem(pem, item, place=place, now=now, lifetime_days=lifetime_days)
    for orphan in sorted(folder.glob("*.pem")) if folder.is_dir() else ():
        if orphan.stem not in found:
            notes.warn(orphan.relative_to(root).as_posix(), "pins no region server of the configuration", "remove it")


def _pem_faults(text: str, item: str, *, place: str, now: datetime, until: datetime) -> Iterator[Fault]:
    if "PRIVATE KEY-----" in text:
        line = text[: text.index("PRIVATE KEY-----")].count("\n") + 1
        yield Fault(
            place=f"{place}:{line}",
            problem="holds a private key",
            cure="everybody with the image could play the server; remove it, and renew the key",
        )
    blocks = pem_blocks(text)
    if not 1 <= len(blocks) <= _MAX_CERTIFICATES:
        yield Fault(
            place=f"{place}:1",
            problem=f"holds {len(blocks)} certificates",
            cure="write the server's, or two during a renewal, the old one first",
        )
        return
    try:
        certificates = certificates_in(text)
    except ValueError as wrong:
        yield Fault(
            place=f"{place}:1",
            problem=f"is not a certificate: {wrong}",
            cure="TLS to the server would fail; write its PEM",
        )
        return
    lines = [text[: text.index(block.strip())].count("\n") + 1 for block in blocks]
    for certificate, line in zip(certificates, lines, strict=True):
        yield from _certificate_faults(certificate, item, place=f"{place}:{line}")
    newest, line = certificates[-1], lines[-1]
    if len(certificates) > 1 and certificates[0].not_valid_after_utc > newest.not_valid_after_utc:
        yield Fault(
            place=f"{place}:1",
            problem="holds the newer certificate first",
            cure="during a renewal the old one comes first",
        )
    if newest.not_valid_before_utc > now and len(certificates) == 1:
        yield Fault(
            place=f"{place}:{line}",
            problem=f"is not valid before {newest.not_valid_before_utc:%Y-%m-%d}",
            cure="TLS fails until then",
        )
    if newest.not_valid_after_utc <= now:
        yield Fault(
            place=f"{place}:{line}",
            problem=f"expired on {newest.not_valid_after_utc:%Y-%m-%d}",
            cure="TLS to the server fails; renew the certificate",
        )
    elif newest.not_valid_after_utc < until:
        yield Fault(
            place=f"{place}:{line}",
            problem=f"expires on {newest.not_valid_after_utc:%Y-%m-%d}; the image may live until {until:%Y-%m-%d}",
            cure="instances started later cannot register; renew the certificate first",
        )


def _certificate_faults(certificate: x509.Certificate, item: str, *, place: str) -> Iterator[Fault]:
    if certificate.version is not x509.Version.v3:
        yield Fault(
            place=place,
            problem="is X.509 version 1",
            cure="Python 3.13 and later refuse it; make a version 3 certificate",
        )
    try:
        covered = covers(certificate, item)
    except ValueError:
        covered = False
    if not covered:
        yield Fault(
            place=place,
            problem=f"does not name {item} in subjectAltName",
            cure="TLS checks the name and fails; make one that names it",
        )
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        weak = key.key_size < _MIN_RSA_BITS
    else:
        weak = isinstance(key, ec.EllipticCurvePublicKey) and key.curve.key_size < _MIN_EC_BITS
    if weak:
        yield Fault(
            place=place, problem="has a weak key", cure="use RSA with 2048 bits or more, or ECDSA P-256 or better"
        )
    if isinstance(certificate.signature_hash_algorithm, (hashes.SHA1, hashes.MD5)):
        yield Fault(
            place=place,
            problem=f"is signed with {certificate.signature_hash_algorithm.name}",
            cure="clients refuse it; use SHA-256",
        )


def _provider(root: Path, text: str, notes: _Notes) -> None:
    option = _option(ini.read(text, place=CLIENT_CONFIG), "instance", "dataprovider")
    if option is None or not option.value.startswith("/") or _SHELL.search(option.value):
        return
    program = root / option.value.split()[0].lstrip("/")
    at = f"{CLIENT_CONFIG}:{option.line} instance.dataProvider"
    if not program.exists():
        notes.warn(
            at,
            f"'{option.value.split()[0]}' is not in the overlay",
            "a package must bring it, or instance data is empty",
        )
    elif not program.stat().st_mode & 0o111:
        notes.fault(at, f"'{option.value.split()[0]}' is not executable", "chmod 0755")


def _enabled(root: Path, mode: str, notes: _Notes) -> None:
    enabled = (root / GUEST_WANTED).is_symlink()
    if mode == "on-demand" and not enabled:
        notes.fault(
            GUEST_WANTED, "guestregister.service is not enabled", "nothing would register the instance at first boot"
        )
    if mode == "byos" and enabled:
        notes.fault(
            GUEST_WANTED, "guestregister.service is enabled", "a bring-your-own image must not register by itself"
        )


def _leftovers(root: Path, notes: _Notes) -> None:
    for pattern in LEFTOVERS:
        for path in sorted(root.glob(pattern)):
            notes.fault(
                path.relative_to(root).as_posix(),
                "is left from a registration",
                "instances would believe they are registered; remove it",
            )
    hosts = root / "etc/hosts"
    if hosts.is_file():
        for number, line in enumerate(hosts.read_text(errors="replace").splitlines(), 1):
            if "# Added by SMT" in line:
                notes.fault(
                    f"etc/hosts:{number}", "names an update server", "left from a registration; remove the block"
                )


def _hosts(root: Path, notes: _Notes) -> None:
    cloud = root / "etc/cloud"
    for path in (cloud / "cloud.cfg", *sorted(cloud.glob("cloud.cfg.d/*.cfg"))):
        if not path.is_file():
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if _REWRITES_HOSTS.match(line):
                notes.fault(
                    f"{path.relative_to(root).as_posix()}:{number} manage_etc_hosts",
                    "rewrites /etc/hosts on each boot",
                    "the update server's entry is lost; set it to false",
                )
