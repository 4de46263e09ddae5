# SPDX-License-Identifier: Apache-2.0
"""What an image says about itself in Glance: SCS-0102, hardware and guest properties, and our own keys.

Pure: a bundle and a target in, strings out; :mod:`factory.store.properties` judges them. Keys and values are those of
the SovereignCloudStack standard SCS-0102 (image metadata) and of Glance's "useful image properties".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from types import MappingProxyType

from factory.model import Bundle, Description, Otc, Package, Retention, Role, StoredImage, Target, utc
from factory.store.properties import AGED_PURPOSE, CAPABILITIES, SIGNATURE

GIB = 1 << 30
_DATE = r"\d{4}-\d\d-\d\d"
_REPLACE_FREQUENCY = MappingProxyType({"every-night": "daily", "monthly": "monthly", "on-security": "critical_bug"})
_INTEGERS = ("min_disk", "min_ram")
MIN_RAM_MIB = "512"
GENERIC = "generic"
GUEST_AGENT = "qemu-guest-agent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a user who asks for "Debian 13 for x86_64" gets: at most one image may answer (SCS-0102)."""

    distro: str
    version: str
    arch: str

    def __str__(self) -> str:
        return f"{self.distro} {self.version} on {self.arch}"


def identity(description: Description) -> Identity | None:
    """What a line's latest is the generic image of, or None when it is not generic."""
    said = {**_identity(description), **description.metadata}
    if said.get("os_purpose", GENERIC) != GENERIC:
        return None
    return Identity(distro=said["os_distro"], version=said["os_version"], arch=said["architecture"])


def metadata(bundle: Bundle, target: Target) -> dict[str, str]:
    """Every property that follows from the bundle and the target alone; what the description says wins.

    Not in it, as they depend on the store: name, role, generation, dated name, holder, ``imgfactory_keep_until``.
    """
    artifact, description = bundle.artifact, bundle.artifact.recipe.description
    wanted = {
        **_scs(bundle, description),
        **hardware(artifact.packages, description),
        **description.metadata,
        **(otc_properties(description, target.otc) if target.otc else {}),
    }
    if wanted["hw_disk_bus"] != "scsi" and "hw_scsi_model" not in description.metadata:
        del wanted["hw_scsi_model"]
    aged = {} if target.aged_purpose == AGED_PURPOSE else {"imgfactory_aged_purpose": target.aged_purpose}
    return {
        **wanted,
        **aged,
        "os_purpose": target.aged_purpose if wanted["os_purpose"] == GENERIC else wanted["os_purpose"],
        "imgfactory_purpose": wanted["os_purpose"],
        "imgfactory_line": description.line,
        "imgfactory_build_id": artifact.build_id,
        "imgfactory_sha512": artifact.sha512,
        "imgfactory_inputs": artifact.inputs_digest,
        "imgfactory_tested": f"pass:{bundle.verdict.report_digest}",
        "imgfactory_signed_by": bundle.fingerprint + (" (throw-away key)" if bundle.throw_away_key else ""),
        "imgfactory_vendor": target.vendor,
    }


def release_properties(bundle: Bundle, target: Target, dated_name: str) -> dict[str, str]:
    """The properties of one release: where the site offers downloads, its description leads to what is told there."""
    found, description = metadata(bundle, target), bundle.artifact.recipe.description
    if target.downloads and "image_description" not in description.metadata:
        found["image_description"] = f"{target.downloads}/{description.line}/{dated_name}/index.html"
    return found


def tags(bundle: Bundle, target: Target) -> tuple[str, ...]:
    """The tags that SCS-0102 recommends."""
    wanted = metadata(bundle, target)
    return (f"managed_by_{target.vendor}", f"os:{wanted['os_distro']}")


def wire(properties: Mapping[str, str]) -> dict[str, object]:
    """The properties as Glance takes them: minimum disk and memory are its only integers."""
    return {key: int(value) if key in _INTEGERS else value for key, value in properties.items()}


def otc_properties(description: Description, otc: Otc) -> dict[str, str]:
    """The bitmask and the flags of an image's capabilities, and the site's properties for it."""
    has = [one for one in otc.capabilities if one.name in description.capabilities]
    mask = {CAPABILITIES: str(sum(1 << one.bit for one in has))} if otc.capabilities else {}
    flags = {one.flag: "true" for one in has if one.flag}
    return {**otc.properties, **otc.images.get(description.name, {}), **flags, **mask}


def with_unknown_bits(wanted: Mapping[str, str], found: Mapping[str, str], otc: Otc | None) -> dict[str, str]:
    """The properties to write, with the bits that the cloud has set itself and that the site file does not name."""
    text = found.get(CAPABILITIES, "")
    if CAPABILITIES not in wanted or otc is None or not re.fullmatch(r"\d{1,20}", text, re.ASCII):
        return dict(wanted)
    known = sum(1 << one.bit for one in otc.capabilities)
    return {**wanted, CAPABILITIES: str(int(text) & ~known | int(wanted[CAPABILITIES]))}


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A property of which the store holds something else than was meant."""

    key: str
    meant: str
    held: str | None

    def __str__(self) -> str:
        return f"{self.key} is {'missing' if self.held is None else repr(self.held)}, meant was {self.meant!r}"


def differs(image: StoredImage, bundle: Bundle, target: Target) -> tuple[Difference, ...]:
    """What the store says about the latest image of a line other than was meant."""
    meant = release_properties(bundle, target, image.dated_name)
    if "uuid_validity" not in bundle.artifact.recipe.description.metadata:
        meant["uuid_validity"] = image.properties.get("imgfactory_keep_until", "")
    meant |= {"os_purpose": meant["imgfactory_purpose"], "imgfactory_role": Role.LATEST.value}
    meant = {**with_unknown_bits(meant, image.properties, target.otc), "visibility": target.visibility}
    held = {**image.properties, "visibility": image.visibility}
    found = [Difference(key=key, meant=meant[key], held=held.get(key)) for key in sorted(meant)]
    if target.signature:  # it was made anew for each claim, so only its presence can be compared
        lacking = [key for key in SIGNATURE if key not in image.properties]
        found += [Difference(key=key, meant="a signature", held=None) for key in lacking]
    return tuple(one for one in found if one.held != one.meant)


def unmet(bundle: Bundle) -> tuple[str, ...]:
    """What the description promises of the image and the image does not hold."""
    description = bundle.artifact.recipe.description
    installed = {package.name for package in bundle.artifact.packages}
    if description.metadata.get("hw_qemu_guest_agent") == "yes" and GUEST_AGENT not in installed:
        return (f"hw_qemu_guest_agent is 'yes', but {GUEST_AGENT} is not in the image",)
    return ()


def rivals(line: str, generic: Identity, images: Iterable[StoredImage]) -> tuple[StoredImage, ...]:
    """Visible public images of other lines, or of others, that are generic for the same thing."""
    wanted = {"os_distro": generic.distro, "os_version": generic.version, "architecture": generic.arch}
    return tuple(
        image
        for image in images
        if not image.hidden
        and image.visibility == "public"
        and image.line != line
        and image.properties.get("os_purpose") == GENERIC
        and all(image.properties.get(key) == value for key, value in wanted.items())
    )


def keep_until(built_at: datetime, retention: Retention, *, first_of_month: bool) -> date:
    """Until when an image may not be deleted: the month's first image by months, any other by days."""
    if not first_of_month:
        return built_at.date() + timedelta(days=retention.daily)
    months = built_at.year * 12 + built_at.month - 1 + retention.monthly
    year, month = divmod(months, 12)
    first_of_next = date(year + (month + 1) // 12, (month + 1) % 12 + 1, 1)
    last_day = (first_of_next - timedelta(days=1)).day
    return date(year, month + 1, min(built_at.day, last_day))


def promise(built_at: datetime, retention: Retention, *, first_of_month: bool, advertised: str = "") -> str:
    """What ``imgfactory_keep_until`` says: a date, ``last-N`` or ``forever``; never less than is advertised.

    Args:
        advertised: the ``uuid_validity`` that the description itself gives (SCS-0102), or nothing.
    """
    if advertised == "forever" or advertised.startswith("last-"):
        return advertised
    if retention.last is not None:
        return f"last-{retention.last}"
    until = keep_until(built_at, retention, first_of_month=first_of_month).isoformat()
    return max(until, advertised) if re.fullmatch(_DATE, advertised) else until


def _identity(description: Description) -> dict[str, str]:
    distro, version, *_ = (*description.registration.product.split("/"), "", "")
    return {"os_distro": distro, "os_version": version, "architecture": description.arch}


def _scs(bundle: Bundle, description: Description) -> dict[str, str]:
    snapshot = utc(bundle.artifact.epoch)
    years_kept = keep_until(bundle.artifact.built_at, description.retention, first_of_month=False)
    return {
        **_identity(description),
        "min_disk": str(description.disk.min_gib),
        "min_ram": MIN_RAM_MIB,
        "os_purpose": GENERIC,
        "replace_frequency": _REPLACE_FREQUENCY.get(description.publish, "never"),
        "uuid_validity": years_kept.isoformat(),
        "provided_until": "none",
        "image_source": "private",
        "image_description": f"{description.line}, tested and signed; packages as of {snapshot:%Y-%m-%d}",
        "image_build_date": f"{snapshot:%Y-%m-%d %H:%M:%S}",
        "image_original_user": description.login_user,
        "patchlevel": f"{snapshot:%Y%m%dT%H%M%SZ}",
    }


def hardware(packages: Iterable[Package], description: Description) -> dict[str, str]:
    """The hardware that an image is for, where its description says nothing else."""
    installed = {package.name for package in packages}
    wanted = {
        "hw_disk_bus": "scsi",
        "hw_scsi_model": "virtio-scsi",
        "hw_rng_model": "virtio",
        "hw_vif_model": "virtio",
        "hw_firmware_type": description.disk.firmware,
        "hw_qemu_guest_agent": "yes" if GUEST_AGENT in installed else "no",
        "os_type": "linux",
        "os_admin_user": description.login_user,
    }
    if description.disk.firmware == "uefi" and description.arch == "x86_64":
        wanted["hw_machine_type"] = "q35"
    return wanted
