# SPDX-License-Identifier: Apache-2.0
"""The closed schemas of ``image.toml`` and ``site.toml``: what people may write, and nothing else."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, model_validator

from factory.describe.places import HoldsSecret
from factory.system.secrets import REFERENCE

_ADDRESS = re.compile(r"https?://[^\s/?#\"'<>\\]+(/[^\s?#\"'<>\\]*)?")
_HOST = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*")


def _web_address(text: str) -> str:
    if not _ADDRESS.fullmatch(text):
        raise ValueError("is not an http or https address")
    if "@" in text.split("/")[2]:
        raise HoldsSecret("carries a user name or password: it would end up in images, logs and reports")
    return text.rstrip("/")


def _ipv4(text: str) -> str:
    ipaddress.IPv4Address(text)
    return text


def _ipv6(text: str) -> str:
    ipaddress.IPv6Address(text)
    return text


def _network(text: str) -> str:
    ipaddress.ip_network(text)
    return text


def _host(text: str) -> str:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        if not _HOST.fullmatch(text):
            raise ValueError("is neither a host name nor an address") from None
    return text


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("holds a line break or another control character")
    return text


def _image_path(text: str) -> str:
    if not re.fullmatch(r"/[^\s\x00-\x1f]+", text) or "/../" in f"{text}/":
        raise ValueError("is not an absolute path")
    return text


WebAddress = Annotated[str, AfterValidator(_web_address)]
Host = Annotated[str, AfterValidator(_host)]
Text = Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_one_line)]
Alias = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", max_length=63)]
Suite = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")]
Component = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")]
ImageName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9._-]*[a-z0-9])?$", max_length=63)]
ImagePath = Annotated[str, AfterValidator(_image_path)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
Property = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:-]*$", max_length=255)]
OtcProperty = Annotated[str, Field(pattern=r"^(__[a-z][a-z0-9_]*|virtual_env_type)$", max_length=255)]
OtcText = Annotated[str, Field(min_length=1, max_length=1024), AfterValidator(_one_line)]
Word = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", max_length=63)]
Port = Annotated[int, Field(ge=1, le=65535)]
Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]


class Closed(BaseModel):
    """A table that knows its keys."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, defer_build=True)


# -- image.toml -------------------------------------------------------------------------------------------------------


class ImageTable(Closed):
    """``[image]``."""

    name: ImageName
    line: Name
    builder: Literal["kiwi", "diskimage-builder", "foreign"] = "kiwi"
    arch: Literal["x86_64"] = "x86_64"
    publish: Literal["every-night", "monthly", "on-security"] = "every-night"
    login_user: Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_-]{0,31}$")] = "linux"
    console_password: bool = True
    declared_files: list[ImagePath] = []
    capabilities: list[Word] = []


class DiskTable(Closed):
    """``[disk]``."""

    min_gib: Annotated[int, Field(ge=1, le=1024)] = 4
    root_fs: Literal["ext4"] = "ext4"
    firmware: Literal["bios"] = "bios"


class RepositoryTable(Closed):
    """``[update_repositories.ALIAS]``."""

    type: Literal["apt-deb", "rpm-md"] = "apt-deb"
    url: WebAddress | None = None
    suites: Annotated[list[Suite], Field(min_length=1)] = []
    components: Annotated[list[Component], Field(min_length=1)] = ["main"]
    key: ImagePath

    @model_validator(mode="after")
    def _of_one_kind(self) -> Self:
        if self.type == "apt-deb" and not self.suites:
            raise ValueError("names no suites")
        if self.type == "rpm-md" and not {"suites", "components"}.isdisjoint(self.model_fields_set):
            raise ValueError("names suites or components, which a repository of type 'rpm-md' does not have")
        return self


class RegistrationTable(Closed):
    """``[registration]``."""

    mode: Literal["on-demand", "byos", "none"] = "on-demand"
    product: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+/[A-Za-z0-9_]+$")] = "debian/13/x86_64"
    client: Literal["guestregister", "registercloudguest"] = "guestregister"


class NtpTable(Closed):
    """``[ntp]``."""

    servers: Annotated[list[Host], Field(min_length=1)]


class VerifyTable(Closed):
    """``[verify]``."""

    boot_timeout_s: Positive = 420
    used_mib: Positive = 2048
    listening_ports: list[Port] = [22]
    probe_package: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+.-]+$")] = "hello"


class RetentionTable(Closed):
    """``[retention]``."""

    monthly: NotNegative = 24
    daily: NotNegative = 7
    prev: NotNegative = 1
    last: Annotated[int, Field(ge=2)] | None = None
    grace_days: NotNegative = 0


class ForeignImageTable(ImageTable):
    """``[image]`` of a vendor's image."""

    builder: Literal["foreign"]
    console_password: Literal[False] = False


def _file_address(text: str) -> str:
    found = _web_address(text)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+~-]*", found.rpartition("/")[2]) or found.count("/") < _WITH_PATH:
        raise ValueError("does not end in the name of a file")
    return found


def _fingerprint(text: str) -> str:
    plain = "".join(text.split()).upper()
    if not re.fullmatch(r"[0-9A-F]{40}([0-9A-F]{24})?", plain):
        raise ValueError("is no full fingerprint: 40 or 64 hexadecimal digits")
    return plain


_WITH_PATH = 3
"""Slashes of an address that names a file."""


class ForeignTable(Closed):
    """``[foreign]``."""

    url: Annotated[str, AfterValidator(_file_address)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] = ""
    sha512: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")] = ""
    signature: Annotated[str, AfterValidator(_file_address)] | None = None
    key: Annotated[str, AfterValidator(_fingerprint)] | None = None
    max_mib: Annotated[int, Field(ge=1, le=1 << 20)] = 4096

    @model_validator(mode="after")
    def _pinned(self) -> Self:
        if not self.sha256 and not self.sha512:
            raise ValueError("pins no bytes: write the vendor's sha256 or sha512")
        if (self.signature is None) != (self.key is None):
            raise ValueError("names only one of signature and key")
        return self


class UnmetTable(Closed):
    """``[[unmet]]``."""

    check: Annotated[str, Field(pattern=r"^[A-Za-z0-9_./-]+::[^\s].*$", max_length=255), AfterValidator(_one_line)]
    reason: Text


class ForeignFile(Closed):
    """``image.toml`` of a vendor's image, which is taken as it is."""

    image: ForeignImageTable
    foreign: ForeignTable
    unmet: list[UnmetTable] = []
    disk: DiskTable = DiskTable()
    metadata: dict[Property, Text] = {}
    verify: VerifyTable = VerifyTable()
    retention: RetentionTable = RetentionTable()


class ImageFile(Closed):
    """``image.toml``."""

    image: ImageTable
    disk: DiskTable = DiskTable()
    metadata: dict[Property, Text] = {}
    update_repositories: Annotated[dict[Alias, RepositoryTable], Field(min_length=1)]
    registration: RegistrationTable = RegistrationTable()
    ntp: NtpTable | None = None
    verify: VerifyTable = VerifyTable()
    retention: RetentionTable = RetentionTable()


# -- site.toml --------------------------------------------------------------------------------------------------------


class ServerTable(Closed):
    """One entry of ``servers`` or ``update_servers``."""

    name: Host
    ipv4: Annotated[str, AfterValidator(_ipv4)] = ""
    ipv6: Annotated[str, AfterValidator(_ipv6)] = ""
    pem: Text
    registry: Host | Literal[""] = ""


class RegionTable(Closed):
    """``[[region]]``; ``servers`` may only be missing where a ``metadata_server`` replaces them."""

    name: Name
    networks: list[Annotated[str, AfterValidator(_network)]] = []
    servers: list[ServerTable] = []
    update_servers: Annotated[list[ServerTable], Field(min_length=1)]


def _api(text: str) -> str:
    if text.startswith("/"):
        raise ValueError("begins with '/': clients would ask https://SERVER//...")
    if not re.fullmatch(r"[A-Za-z0-9._~/-]+", text):
        raise ValueError("is not a path below https://SERVER/")
    return text


def _provider(text: str) -> str:
    if text == "none":
        return text
    if not text.startswith("/"):
        raise ValueError("is neither 'none' nor an absolute path: clients never run a bare name")
    if re.search(r"[|;&$`<>(){}*?~\"'\\]", text):
        raise ValueError("uses shell syntax: clients split it at blanks and run it without a shell")
    return text


def _plugin(text: str) -> str:
    if not text.isidentifier():
        raise ValueError("is not the name of a Python module (without .py), nor 'none'")
    return text


def _both(snake: str, protocol: str) -> AliasChoices:
    """The spelling of ``/etc/regionserverclnt.cfg``, and that of the other keys of the site file."""
    return AliasChoices(protocol, snake)


class RegionClientTable(Closed):
    """``[region_client]``."""

    api: Annotated[Text, AfterValidator(_api)] = "regionInfo"
    cert_location: ImagePath = Field(
        default="/usr/lib/regionService/certs", validation_alias=_both("cert_location", "certLocation")
    )
    https_only: bool = Field(default=True, validation_alias=_both("https_only", "httpsOnly"))
    data_provider: Annotated[Text, AfterValidator(_provider)] = Field(
        default="none", validation_alias=_both("data_provider", "dataProvider")
    )
    instance_args: Annotated[Text, AfterValidator(_plugin)] = Field(
        default="none", validation_alias=_both("instance_args", "instanceArgs")
    )
    package_backend: Literal["", "apt", "zypper", "dnf"] = Field(
        default="", validation_alias=_both("package_backend", "packageBackend")
    )
    metadata_server: WebAddress | Literal[""] = ""
    provider: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=40)] = "image-factory"


class SignatureTable(Closed):
    """``signature`` of a target."""

    key: Text
    certificate: Annotated[str, Field(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]


class TenantTable(Closed):
    """``[sandbox]``, and ``canary`` of a target, which takes what it does not say from ``[sandbox]``."""

    cloud: Name | None = None
    region_name: Text | None = None
    flavor: Text | None = None
    network: Text | None = None
    external_network: Text | None = None
    config_drive: bool | None = None
    own_project: bool | None = None
    site_services: bool | None = None
    lease_h: Annotated[int, Field(ge=1, le=168)] | None = None
    timeout_s: Positive | None = None
    boot_timeout_s: Positive | None = None


class TargetTable(Closed):
    """``[[target]]``."""

    cloud: Name = "embedded"
    visibility: Literal["public", "community", "shared", "private"] = "public"
    policy: Literal["shadow", "overlap"] = "shadow"
    region_name: Text | Literal[""] = ""
    vendor: Name = "factory"
    aged_purpose: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")] = "oldgeneric"
    without: list[Literal["chosen-ids", "hidden", "together"]] = Field(default_factory=list)
    otc: bool = False
    signature: SignatureTable | None = None
    canary: TenantTable | None = None


class UpdateServerTable(Closed):
    """``[update_server]``: what the real update servers do, for what is decided about them."""

    verification: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")] = "none"


class CapabilityTable(Closed):
    """``[[otc.capability]]``."""

    name: Word
    bit: Annotated[int, Field(ge=0, le=63)]
    flag: OtcProperty | Literal[""] = ""


class OtcTable(Closed):
    """``[otc]``."""

    capability: list[CapabilityTable] = []
    properties: dict[OtcProperty, OtcText] = {}
    image: dict[Name, dict[OtcProperty, OtcText]] = {}
    exclusions: list[Annotated[list[OtcProperty], Field(min_length=2, max_length=2)]] = []


class FlavorTable(Closed):
    """``[[flavor]]``."""

    name: Name
    vcpus: Positive
    ram_mib: Positive
    disk_gib: NotNegative
    arch: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")] = "x86_64"
    firmware: list[Literal["bios", "uefi"]] = []
    hypervisor: Word | Literal[""] = ""
    requires: list[Word] = []
    live_migration: bool = True
    live_migration_requires: list[Word] = []


class FreshnessTable(Closed):
    """``[freshness.ALIAS]``."""

    fresh_within_h: Positive
    upstream: WebAddress | Literal[""] = ""
    suites: list[Suite] = []


class SigningTable(Closed):
    """``[signing]``."""

    fingerprint: Annotated[str, Field(pattern=r"^([0-9A-Fa-f]{40}|[0-9A-Fa-f]{64})$")] = ""
    gnupg_home: Text | None = None
    builder: Annotated[str, Field(pattern=r"^$|^[a-z][a-z0-9+.-]*:[!-~]+$")] = ""


class DownloadsTable(Closed):
    """``[downloads]``: where the download directory can be read."""

    url: WebAddress


class NotifyTable(Closed):
    """``[notify]``."""

    mail: Annotated[str, Field(pattern=r"^$|^[^\s@<>,;]+@[^\s@<>,;]+$")] = ""
    webhook: WebAddress | Literal[""] = ""


def _reference(text: str) -> str:
    if not REFERENCE.fullmatch(text):
        raise HoldsSecret("is not a reference: write 'env:NAME' or 'file:PATH', never the secret itself")
    return text


class VendorMirrorTable(Closed):
    """``[repositories.IMAGE.ALIAS]``."""

    url: WebAddress
    user: Annotated[Text, AfterValidator(_reference)] | None = None
    password: Annotated[Text, AfterValidator(_reference)] | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.user is None) != (self.password is None):
            raise ValueError("names only one of user and password")
        if self.user is not None and not self.url.startswith("https:"):
            raise ValueError("would send its password in plain text: use an https address")
        return self


def _ledger_address(text: str) -> str:
    if REFERENCE.fullmatch(text):
        return text
    if not re.match(r"(postgresql|postgresql\+psycopg|sqlite)://", text):
        raise HoldsSecret("is neither a postgresql:// address nor a reference ('env:NAME', 'file:PATH') to one")
    if re.match(r"[a-z+]+://[^/@]*:[^/@]*@", text) or "password=" in text:
        raise HoldsSecret("carries a password: keep the whole address in a variable or file and refer to it")
    return text


class LedgerTable(Closed):
    """``[ledger]``."""

    url: Annotated[Text, AfterValidator(_ledger_address)]


class SiteFile(Closed):
    """``site.toml``."""

    mirrors: dict[Alias, WebAddress] = {}
    update_repositories: dict[Alias, WebAddress] = {}
    repositories: dict[ImageName, dict[Alias, VendorMirrorTable]] = {}
    region: list[RegionTable] = []
    region_client: RegionClientTable = RegionClientTable()
    target: list[TargetTable] = []
    signing: SigningTable = SigningTable()
    ntp: NtpTable | None = None
    retention: RetentionTable | None = None
    notify: NotifyTable = NotifyTable()
    update_server: UpdateServerTable = UpdateServerTable()
    ledger: LedgerTable | None = None
    otc: OtcTable = OtcTable()
    flavor: list[FlavorTable] = []
    freshness: dict[Alias, FreshnessTable] = {}
    sandbox: TenantTable | None = None
    downloads: DownloadsTable | None = None
