# SPDX-License-Identifier: Apache-2.0
"""The frozen values that travel from stage to stage.

``Description → Recipe → Artifact → Verdict → Bundle → Release → RotationPlan``: each stage takes one and returns the
next, so the order of the pipeline is a matter of types. Nothing here does any input or output. Paths inside a run are
absolute while the program runs and relative in the stage's JSON file (:mod:`factory.system.state`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

STAGES = ("describe", "build", "verify", "sign", "publish", "rotate")
"""Folder = verb = Jenkins stage = ``stage`` in the ledger, in this order."""
BOOTED, RELEASE_NOTE, DIFFERENCE = "booted.json", "release-note.md", "difference.json"
"""Files about an image that are made after its build: what was seen of it, and what changed since the last one."""
_DAYS_A_MONTH = 31


# -- what people write ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """A package repository by alias.

    ``url`` is the address that an image carries; where builds read it from is ``[mirrors]`` in the site file. ``key``
    is the path, inside the image, of the keyring that signs it. Only Debian's repositories have suites.
    """

    alias: str
    url: str
    suites: tuple[str, ...]
    components: tuple[str, ...] = ("main",)
    key: str = ""

    @property
    def kind(self) -> str:
        """``apt-deb`` or ``rpm-md``."""
        return "apt-deb" if self.suites else "rpm-md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """The smallest disk the image is for, and how it is laid out."""

    min_gib: int = 4
    root_fs: str = "ext4"
    firmware: str = "bios"


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """Whether and as what an instance registers: ``mode`` is on-demand, byos or none; ``product`` NAME/VERSION/ARCH.

    ``client`` is the program that does it: ours (``guestregister``), or SUSE's (``registercloudguest``).
    """

    mode: str = "on-demand"
    product: str = "debian/13/x86_64"
    client: str = "guestregister"


@dataclass(frozen=True, slots=True, kw_only=True)
class Budgets:
    """Limits that the image must keep (``[verify]`` in image.toml).

    ``probe_package`` is one package, not in the image, that a guest installs in the sandbox to prove its update server.
    """

    boot_timeout_s: int = 420
    used_mib: int = 2048
    listening_ports: tuple[int, ...] = (22,)
    probe_package: str = "hello"


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long dated images stay: ``monthly`` first-of-month images by months, others by ``daily`` days.

    ``prev`` is how many older ones stay visible. With ``last``, exactly so many images of a line are kept instead,
    whatever their age. ``grace_days`` is how long an image that goes is deactivated before it is deleted.
    """

    monthly: int = 24
    daily: int = 7
    prev: int = 1
    last: int | None = None
    grace_days: int = 0

    @property
    def lifetime_days(self) -> int:
        """How long instances may be started from an image: as long as one is kept."""
        return max(self.monthly * _DAYS_A_MONTH, self.daily, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreign:
    """``[foreign]``: a vendor's image that is taken as it is.

    ``sha256`` and ``sha512`` pin its bytes, at least one of them; ``signature`` is the address of a detached signature
    by ``key``, a full fingerprint. ``max_mib`` is the most that is fetched.
    """

    url: str
    sha256: str = ""
    sha512: str = ""
    signature: str = ""
    key: str = ""
    max_mib: int = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Unmet:
    """A check that a foreign image is known not to pass, and why it is published all the same."""

    check: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """``descriptions/<name>/image.toml``, validated.

    ``ntp_servers`` are used where the site names none; ``declared_files`` are the files no package owns: globs;
    ``capabilities`` are words that flavors ask for and that ``[otc]`` of the site file turns into bits and flags.
    """

    name: str
    line: str
    builder: str = "kiwi"
    arch: str = "x86_64"
    publish: str = "every-night"
    login_user: str = "linux"
    console_password: bool = True
    disk: Disk = field(default_factory=Disk)
    metadata: Mapping[str, str] = field(default_factory=dict)
    update_repositories: tuple[Repository, ...] = ()
    registration: Registration = field(default_factory=Registration)
    budgets: Budgets = field(default_factory=Budgets)
    retention: Retention = field(default_factory=Retention)
    ntp_servers: tuple[str, ...] = ()
    declared_files: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    foreign: Foreign | None = None
    unmet: tuple[Unmet, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A region server or an update server, by the names and addresses that images and certificates carry.

    ``pem`` is the certificate images pin (region server) or the CA certificate (update server); ``key`` its private
    key where we hold it, outside the repository and outside every image.
    """

    name: str
    ipv4: str = ""
    ipv6: str = ""
    pem: Path
    key: Path | None = None
    registry: str = ""
    certificate: Path | None = None

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses that are set, IPv4 first."""
        return tuple(address for address in (self.ipv4, self.ipv6) if address)


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """One region of the cloud: who is in it, who tells instances so, and who updates them.

    ``embedded`` marks the throw-away region that the factory makes when no site file names one.
    """

    name: str
    networks: tuple[str, ...] = ()
    servers: tuple[Server, ...] = ()
    update_servers: tuple[Server, ...] = ()
    embedded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionClient:
    """``[region_client]``: the keys of ``/etc/regionserverclnt.cfg``; ``provider`` begins our packages' names."""

    api: str = "regionInfo"
    cert_location: str = "/usr/lib/regionService/certs"
    https_only: bool = True
    data_provider: str = "none"
    instance_args: str = "none"
    package_backend: str = ""
    metadata_server: str = ""
    provider: str = "image-factory"


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """What a bit of ``__image_capabilities`` means in one cloud, and the property that says the same, if any."""

    name: str
    bit: int
    flag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Otc:
    """``[otc]``: the Open Telekom Cloud's own properties; no table of its bits is public, so the site gives them.

    ``properties`` are set on every image, ``images`` on those named; ``exclusions`` are pairs of flags of which an
    image may carry one only, beyond the pairs that are publicly documented.
    """

    capabilities: tuple[Capability, ...] = ()
    properties: Mapping[str, str] = field(default_factory=dict)
    images: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    exclusions: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformSignature:
    """The key, by its file, with which Glance's own signature properties are made, and its certificate in the cloud."""

    key: Path
    certificate: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """``[sandbox]``: an ordinary tenant of an OpenStack, in which images are booted as users boot them.

    ``cloud`` is a name in clouds.yaml. Without ``flavor`` the smallest that fits is taken, without ``network`` one is
    made (which then needs ``external_network``, where floating addresses come from). ``own_project`` makes a project
    for each use, with an administrator's credentials. ``site_services`` is whether servers there reach the region,
    update and time servers that images name. What crashed runs leave is gone after ``lease_h`` at the latest;
    ``timeout_s`` is for a server to become ACTIVE, ``boot_timeout_s`` (0: the image's own) for its system to come up.
    """

    cloud: str
    region_name: str = ""
    flavor: str = ""
    network: str = ""
    external_network: str = ""
    config_drive: bool = False
    own_project: bool = False
    site_services: bool = True
    lease_h: int = 4
    timeout_s: int = 600
    boot_timeout_s: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A cloud to publish to: ``cloud`` is a name in clouds.yaml, or ``embedded``; ``policy`` shadow or overlap.

    ``aged_purpose`` is the ``os_purpose`` of a generic image that is not the latest any more (SCS-0102); ``canary`` is
    the tenant that boots ``<line>_latest`` by its name after each rotation, or None. ``without`` is what its Glance
    lacks: ``chosen-ids``, ``hidden``, ``together``. ``downloads`` is the address at which the site offers the download
    directory, where what an image's description leads to is.
    """

    cloud: str = "embedded"
    visibility: str = "public"
    policy: str = "shadow"
    region_name: str = ""
    vendor: str = "factory"
    aged_purpose: str = "oldgeneric"
    without: tuple[str, ...] = ()
    otc: Otc | None = None
    signature: PlatformSignature | None = None
    canary: Tenant | None = None
    downloads: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flavor:
    """A flavor of the cloud, for ``factory table``; ``disk_gib`` 0 is a flavor that boots from volumes.

    ``requires`` are capabilities that an image must have to run on it, ``live_migration_requires`` those that it must
    have besides to be moved while it runs. Empty ``firmware`` takes any.
    """

    name: str
    vcpus: int
    ram_mib: int
    disk_gib: int
    arch: str = "x86_64"
    firmware: tuple[str, ...] = ()
    hypervisor: str = ""
    requires: tuple[str, ...] = ()
    live_migration: bool = True
    live_migration_requires: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Freshness:
    """How far a repository's mirror may be behind (``[freshness.ALIAS]``); empty ``suites`` means each of its suites.

    ``upstream`` is the address of the archive that the mirror follows; without it the clock is the measure.
    """

    fresh_within_h: int
    upstream: str = ""
    suites: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Signing:
    """Which key signs, by full fingerprint, and the GnuPG home that holds it; empty means a throw-away key.

    ``builder`` is the URI by which provenance names who builds.
    """

    fingerprint: str = ""
    gnupg_home: Path | None = None
    builder: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notify:
    """Who hears of a red or broken night: a mail address (through the host's sendmail) and/or a webhook URL."""

    mail: str = ""
    webhook: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class VendorMirror:
    """Where one image's builds read one repository: ``user`` and ``password`` are references (``env:``, ``file:``)."""

    url: str
    user: str = ""
    password: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """``site.toml``, validated; every part is optional. ``path`` is the file, or None when there is none.

    ``repositories`` maps an image and an alias to the mirror that only this image's builds read; ``ledger`` is the
    address of the ledger's database, or a reference to it; ``sandbox`` is the tenant that images are verified in, or
    None for our own QEMU.
    """

    path: Path | None = None
    mirrors: Mapping[str, str] = field(default_factory=dict)
    update_repositories: Mapping[str, str] = field(default_factory=dict)
    repositories: Mapping[str, Mapping[str, VendorMirror]] = field(default_factory=dict)
    regions: tuple[Region, ...] = ()
    region_client: RegionClient = field(default_factory=RegionClient)
    targets: tuple[Target, ...] = (Target(),)
    signing: Signing = field(default_factory=Signing)
    ntp_servers: tuple[str, ...] = ()
    retention: Retention | None = None
    notify: Notify = field(default_factory=Notify)
    instance_verification: str = "none"
    ledger: str = ""
    flavors: tuple[Flavor, ...] = ()
    freshness: Mapping[str, Freshness] = field(default_factory=dict)
    sandbox: Tenant | None = None


# -- what the stages make ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A self-contained build tree and everything that was decided about it.

    ``tree`` is a folder that plain kiwi can build; ``tree_sha256`` the digest of its sorted contents; ``digest`` that
    of everything which shapes the output. ``commit`` is the descriptions' commit (empty outside git), ``dirty`` whether
    the checkout differed from it. ``mirrors`` maps a repository alias to the address the build reads it from;
    ``signers`` to the full fingerprints of the keys that must have signed it, where ``keys/`` names them.
    """

    description: Description
    tree: Path
    tree_sha256: str
    digest: str
    commit: str
    dirty: bool
    repositories: tuple[Repository, ...]
    mirrors: Mapping[str, str]
    keyrings: Mapping[str, Path]
    regions: tuple[Region, ...]
    region_client: RegionClient
    ntp_servers: tuple[str, ...]
    resolved_at: datetime
    signers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One installed package; ``source`` is its source package, ``origin`` the repository alias where known."""

    name: str
    version: str
    arch: str
    source: str = ""
    origin: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A built image: the file, its digests, and what went into it.

    ``epoch`` is the newest signed index date of the inputs, in seconds since 1970; ``tools`` maps builder programs to
    their versions; ``tarball`` is the source tarball, ``lock`` the list of inputs, ``files_list`` the image's files.
    ``sbom`` is the bill of materials, ``licences`` how many packages it knows the licences of, ``inventory`` what the
    image is set up to do, ``changelogs`` the newest entries of each source package; older runs have none of them.
    """

    recipe: Recipe
    path: Path
    sha256: str
    sha512: str
    size_bytes: int
    virtual_size_bytes: int
    epoch: int
    lock: Path
    lock_sha256: str
    inputs_digest: str
    packages: tuple[Package, ...]
    packages_list: Path
    files_list: Path
    tarball: Path
    tarball_sha256: str
    tools: Mapping[str, str]
    build_id: str
    built_at: datetime
    seconds: Mapping[str, float] = field(default_factory=dict)
    sbom: Path | None = None
    sbom_sha256: str = ""
    licences: Mapping[str, int] = field(default_factory=dict)
    inventory: Path | None = None
    changelogs: Path | None = None


SEEN = "; seen: "
"""In the message of an unmet check, between its description's reason and what the check said."""


class Outcome(StrEnum):
    """What became of one check."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    UNMET = "unmet"
    """Failed, and named in ``unmet`` of a foreign image's description: users are told, the image is no worse for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One guarantee that was looked at; ``message`` is what people read when it failed."""

    name: str
    guarantee: str
    outcome: Outcome
    message: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The result of the acceptance suite for exactly one file; ``booted`` is what was noted of the running guest."""

    artifact_sha256: str
    checks: tuple[Check, ...]
    accelerator: str
    boot_s: float
    judged_at: datetime
    sandbox: str = "qemu"
    console_log: Path | None = None
    report_digest: str = ""
    region_proof: str = ""
    booted: Path | None = None

    @property
    def passed(self) -> bool:
        """True when something was tested and nothing failed."""
        outcomes = {check.outcome for check in self.checks}
        return Outcome.PASSED in outcomes and Outcome.FAILED not in outcomes

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that failed, in the order they ran."""
        return tuple(check for check in self.checks if check.outcome is Outcome.FAILED)

    @property
    def unmet(self) -> tuple[Check, ...]:
        """What a foreign image does not keep, and its description says so."""
        return tuple(check for check in self.checks if check.outcome is Outcome.UNMET)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A signed image; only :mod:`factory.sign` makes one, and only from a passed verdict on the same bytes.

    ``statements`` are the types of what is attested about it, ``key_ends`` is when its key signs no more, if ever.
    """

    artifact: Artifact
    verdict: Verdict
    fingerprint: str
    throw_away_key: bool
    directory: Path
    files: tuple[str, ...]
    signed_at: datetime
    statements: tuple[str, ...] = ()
    key_ends: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """What ``publish`` did: a release per target, or none and the reason why the image is withheld.

    ``stale`` are the repositories whose mirror was too far behind to publish what was built from it.
    """

    releases: tuple[Release, ...]
    reason: str
    stale: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotations:
    """What ``rotate`` did, a rotation per release."""

    rotations: tuple[Rotation, ...]


class Role(StrEnum):
    """The role of an image in its line, as its ``imgfactory_role`` property says."""

    CANDIDATE = "candidate"
    LATEST = "latest"
    PREV = "prev"
    ARCHIVE = "archive"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredImage:
    """An image as the store shows it; ``properties`` holds every property that is not one of the fields."""

    id: str
    name: str
    status: str
    hidden: bool
    visibility: str
    protected: bool
    owner: str
    size_bytes: int | None
    virtual_size_bytes: int | None
    hash_algo: str
    hash_value: str
    created_at: datetime
    updated_at: datetime
    properties: Mapping[str, str]
    tags: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        return self.properties.get("imgfactory_line", "")

    @property
    def role(self) -> str:
        return self.properties.get("imgfactory_role", "")

    @property
    def generation(self) -> int:
        text = self.properties.get("imgfactory_generation", "")
        return int(text) if text.isdecimal() else 0

    @property
    def dated_name(self) -> str:
        return self.properties.get("imgfactory_dated_name", "")

    @property
    def tested(self) -> bool:
        return self.properties.get("imgfactory_tested", "").startswith("pass:")


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A bundle's image in one store: uploaded, read back, described, still hidden."""

    bundle: Bundle
    target: Target
    image_id: str
    generation: int
    dated_name: str
    published_at: datetime
    upload_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One request of a rotation: ``change`` is what a single PATCH sets on one image."""

    name: str
    image_id: str
    change: Mapping[str, object]
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RotationPlan:
    """The requests that make a candidate ``<line>_latest``, in order, and the images they were decided from."""

    line: str
    steps: tuple[Step, ...]
    latest: str
    prev: str | None
    seen: tuple[StoredImage, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """What a rotation did in one store; ``gap_s`` is how long plain listings missed ``_latest``.

    ``swept`` are the images of the line that had outlived their promise and went afterwards; ``differs`` is what the
    latest image's properties, read back, say other than was meant.
    """

    target: Target
    line: str
    latest: str
    prev: str | None
    archived: str | None
    steps: tuple[Step, ...]
    gap_s: float
    rotated_at: datetime
    swept: tuple[Step, ...] = ()
    differs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """How ``<line>_latest`` fared when an ordinary tenant booted it by its name.

    ``faults`` are what is wrong with it, none when it is green. ``rolled_back`` says that the image before is the
    latest again; ``note`` what there is to say besides, such as why it is not.
    """

    target: Target
    line: str
    image_id: str
    tenant: str
    faults: tuple[str, ...]
    boot_s: float
    judged_at: datetime
    rolled_back: bool = False
    note: str = ""

    @property
    def green(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults


@dataclass(frozen=True, slots=True, kw_only=True)
class Canaries:
    """The canaries of one run, one for each target that has a tenant for it."""

    canaries: tuple[Canary, ...]

    @property
    def green(self) -> bool:
        """Whether every one is."""
        return all(one.green for one in self.canaries)


def utc(seconds: float) -> datetime:
    """Seconds since 1970 as an aware time."""
    return datetime.fromtimestamp(seconds, tz=UTC)
