# SPDX-License-Identifier: Apache-2.0
"""What this host must have, found by trying rather than by guessing, before anything starts."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from factory.errors import FactoryError, InputFault, InputsError
from factory.system.files import free_bytes
from factory.system.namespaces import network_namespace
from factory.system.run import PATH, run

if TYPE_CHECKING:
    from factory.inputs.upstream import Upstream
    from factory.installation import Installation
    from factory.store.probe import Probed
    from factory.store.protocol import Say

PROGRAMS = (
    ("git", "git", "the commit of the descriptions"),
    ("gpg", "gpg", "signatures"),
    ("gpgv", "gpgv", "signatures of package indexes"),
    ("qemu-system-x86_64", "qemu-system-x86", "the sandbox"),
    ("qemu-img", "qemu-utils", "disks of the sandbox's guests"),
    ("ssh", "openssh-client", "logging in to the sandbox's guests"),
    ("ip", "iproute2", "network namespaces"),
    ("unshare", "util-linux", "the build box"),
    ("setpriv", "util-linux", "children that die with the factory"),
    ("losetup", "mount", "the builder's loop devices"),
    ("debugfs", "e2fsprogs", "looking into images"),
    ("sfdisk", "fdisk", "looking into images"),
    ("dnsmasq", "dnsmasq-base", "names in the sandbox"),
    ("mcopy", "mtools", "cloud-init seeds"),
    ("mkfs.vfat", "dosfstools", "cloud-init seeds"),
    ("xz", "xz-utils", "package indexes"),
)
"""Program, Debian package, what for."""

WANTED_MEMORY_BYTES = 4 << 30
WANTED_DISK_BYTES = 6 << 30
_MIRROR_TIMEOUT_S = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing looked at; ``needed`` when a night cannot do without."""

    name: str
    ok: bool
    says: str
    cure: str = ""
    needed: bool = True


def require(here: Installation, only: Sequence[str] | None = None) -> None:
    """Refuse to start where a needed thing is missing.

    Args:
        only: the images whose mirrors are wanted; every image's without it.

    Raises:
        FactoryError: names every missing thing with its reason and package.
    """
    missing = [finding for finding in examine(here, only=only) if finding.needed and not finding.ok]
    if missing:
        raise FactoryError(
            f"this host lacks {len(missing)} thing(s) a night needs",
            facts=tuple((one.name, f"{one.says}; {one.cure}") for one in missing),
            hint="'make setup' installs packages; 'factory doctor' shows everything",
        )


def examine(
    here: Installation, *, now: datetime | None = None, only: Sequence[str] | None = None
) -> tuple[Finding, ...]:
    """Look at programs, rights, kernel, memory, space, mirrors, keys' ends (at ``now``), and what is still embedded.

    Args:
        only: the images whose mirrors are asked; every image's without it.
    """
    return (
        *programs(),
        rights(),
        *kernel(),
        memory(),
        space(here),
        *mirrors(here, only),
        *embedded(here),
        *(signing_keys(here, now) if now is not None else ()),
    )


def programs() -> Iterator[Finding]:
    """Every program a night calls, with the package that has it."""
    search = f"{PATH}:{Path(sys.executable).parent}"
    for program, package, purpose in (*PROGRAMS, ("kiwi-ng", "kiwi (Python)", "checking descriptions")):
        found = shutil.which(program, path=search)
        cure = f"apt-get install {package}" if "(" not in package else "make setup"
        yield Finding(name=program, ok=found is not None, says=found or f"not found, needed for {purpose}", cure=cure)


def rights() -> Finding:
    """Builders make device nodes and mounts."""
    ok = os.geteuid() == 0
    return Finding(
        name="root", ok=ok, says="yes" if ok else "not root, needed for namespaces and loop devices", cure="use sudo"
    )


def kernel() -> Iterator[Finding]:
    """Namespaces and loop devices, by making one of each."""
    if os.geteuid() != 0:
        return
    try:
        with network_namespace():
            yield Finding(name="namespaces", ok=True, says="made one")
    except FactoryError as refused:
        yield Finding(name="namespaces", ok=False, says=refused.message, cure=refused.hint)
    free = run(["losetup", "--find"], check=False)
    yield Finding(
        name="loop devices",
        ok=free.returncode == 0,
        says=free.stdout.strip() or free.stderr.strip(),
        cure="load the kernel's loop module, or use a host that has it",
    )


def memory() -> Finding:
    """A guest, a builder's tree where possible on tmpfs, and the tools around them."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    return Finding(
        name="memory",
        ok=available >= WANTED_MEMORY_BYTES,
        says=f"{available / 2**30:.1f} GiB available, {WANTED_MEMORY_BYTES >> 30} GiB wanted",
        cure="builds then use the disk and take longer",
        needed=False,
    )


def space(here: Installation) -> Finding:
    """Room for a run and for the inputs."""
    free = free_bytes(here.state.path)
    return Finding(
        name="disk space",
        ok=free >= WANTED_DISK_BYTES,
        says=f"{free / 2**30:.1f} GiB free in {here.state.path}, {WANTED_DISK_BYTES >> 30} GiB wanted",
        cure="'factory gc' removes old runs, or use --state elsewhere",
    )


def mirrors(here: Installation, only: Sequence[str] | None = None) -> Iterator[Finding]:
    """Every mirror that the descriptions read from, by asking it for a signed index, with the credentials it wants."""
    from factory.describe import images

    asked: set[tuple[str, bool]] = set()
    for image in images(here.project) if only is None else only:
        try:
            for question in mirrors_of(here, image):
                if question.key not in asked:
                    asked.add(question.key)
                    yield question.ask()
        except InputFault as unread:
            yield from _unread(image, unread)


def _unread(image: str, fault: InputFault) -> Iterator[Finding]:
    """What kept an image's mirrors from being asked: a secret that cannot be read, or its description."""
    for one in fault.faults:
        of_site = not one.place.startswith("descriptions/")
        cure = "see site.toml" if of_site else f"see 'factory describe {image}'"
        yield Finding(name="secret" if of_site else f"image {image}", ok=False, says=str(one), cure=cure)
    if not fault.faults:
        yield Finding(name=f"image {image}", ok=False, says=fault.message, cure=fault.hint)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A mirror that is to be asked for a signed index; two with the same ``key`` have the same answer."""

    name: str
    alias: str
    address: str
    upstream: Upstream
    key: tuple[str, bool]
    needed: bool = True
    cure: str = ""

    def ask(self) -> Finding:
        """Whether it answers."""
        found = _mirror(self.name, self.address, self.upstream, alias=self.alias)
        return replace(found, needed=self.needed, cure=self.cure or found.cure)


def mirrors_of(here: Installation, image: str) -> Iterator[Question]:
    """The mirrors that builds of one image read from.

    Raises:
        InputFault: the description has faults, or a secret cannot be read.
    """
    from factory.describe import build_sources, load_description
    from factory.describe.foreign import VENDOR, mirror_of
    from factory.inputs.upstream import Upstream

    logins = here.logins(image)
    described = load_description(here.project, image)
    upstream = Upstream(timeout_s=_MIRROR_TIMEOUT_S, attempts=1, logins=logins)
    if described.foreign is not None:
        address = mirror_of(described, here.site)
        key = (address, bool(logins))
        # what was taken before is in the store, and needs no vendor
        yield Question(
            name="the vendor's image",
            alias=VENDOR,
            address=address,
            upstream=upstream,
            key=key,
            needed=False,
            cure=f"see foreign.url in image.toml, or name a mirror in [repositories.{image}.{VENDOR}] of site.toml",
        )
    for alias, mirror, suite in build_sources(here.project, image, site=here.site):
        signed = f"dists/{suite}/InRelease" if suite else "repodata/repomd.xml"
        address = f"{mirror.rstrip('/')}/{signed}" if mirror else ""
        yield Question(
            name=f"mirror {alias} {suite}".rstrip(),
            alias=alias,
            address=address,
            upstream=upstream,
            key=(address or alias, bool(logins)),
        )


def _mirror(name: str, address: str, upstream: Upstream, *, alias: str) -> Finding:
    cure = f"set {alias} under [mirrors] in site.toml to one that answers"
    if not address:
        cure = "'factory describe IMAGE' says which table of site.toml names it"
        return Finding(name=name, ok=False, says="nobody says where it is", cure=cure)
    try:
        with upstream.get(address) as (status, body):
            if status == HTTPStatus.OK and next(body, b""):
                return Finding(name=name, ok=True, says="answers")
            return Finding(name=name, ok=False, says=f"{address}: status {status}", cure=cure)
    except InputsError as away:
        said = "; ".join(text for key, text in away.facts if key == "said")
        return Finding(name=name, ok=False, says=f"{address}: {said or away.message}", cure=cure)


def embedded(here: Installation) -> Iterator[Finding]:
    """Which parts are the throw-away ones; each is replaced in site.toml."""
    parts = (
        ("region", not here.site.regions, "[[region]]"),
        ("signing key", not here.site.signing.fingerprint, "[signing]"),
        ("cloud", any(target.cloud == "embedded" for target in here.site.targets), "[[target]]"),
    )
    for name, throw_away, section in parts:
        yield Finding(
            name=name,
            ok=True,
            says=f"embedded, throw-away; replace it with {section} in site.toml" if throw_away else "the site's own",
            needed=False,
        )


def signing_keys(here: Installation, now: datetime) -> Iterator[Finding]:
    """Whether ``keys/keys.toml`` is sound, and how long its keys still sign."""
    from factory.sign.calendar import ending, key_states
    from factory.sign.keyring import key_dates

    cure = "see docs/how-to/change-signing-keys.md"
    try:
        dates = key_dates(here.project / "keys")
    except InputFault as faulty:
        yield Finding(name="keys.toml", ok=False, says="; ".join(map(str, faulty.faults)), cure=cure)
        return
    for one in ending(dates, now=now):
        says = f"{one.fingerprint} {one.says}".strip()
        needed = one.grave and bool(here.site.signing.fingerprint)
        yield Finding(name="signing keys", ok=False, says=says, cure=cure, needed=needed)
    if dates and not ending(dates, now=now):
        in_use = [one for one in key_states(dates, now=now) if one.state == "in use"]
        left = [one.days_left for one in in_use]
        last = "" if None in left else f", the last for {max(one or 0 for one in left)} days"
        says = f"{len(in_use)} in use{last}"
        yield Finding(name="signing keys", ok=True, says=says)


def probe_clouds(
    here: Installation, name: str, *, now: Callable[[], datetime], say: Say
) -> dict[str, tuple[Probed, ...]]:
    """What each target's image service can do, by its name; with ``name`` only that target, or a cloud of clouds.yaml.

    Raises:
        StoreError: a cloud gives no access.
        CloudError: the embedded one does not come up.
    """
    from factory.model import Target
    from factory.store import open_store
    from factory.store.glance import GlanceStore
    from factory.store.probe import probe

    targets = [one for one in here.site.targets if name in {"", one.cloud}] or [Target(cloud=name)]
    found = {}
    for target in targets:
        with open_store(target, state=here.state, say=say) as store:
            assert isinstance(store, GlanceStore)
            shown = f"{target.cloud} {target.region_name}".strip()
            found[shown] = probe(store, visibility=target.visibility, without=target.without, now=now(), say=say)
    return found
