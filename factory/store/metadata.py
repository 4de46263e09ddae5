# SPDX-License-Identifier: Apache-2.0
"""What an image says about itself in Glance: SCS-0102, hardware and guest properties, and our own keys.

Pure: a bundle and a target in, strings out; and a validator for what descriptions add. Keys and values are those of
the SovereignCloudStack standard SCS-0102 (image metadata) and of Glance's "useful image properties".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from types import MappingProxyType

from factory.errors import Fault
from factory.model import Bundle, Description, Retention, Target, utc

GIB = 1 << 30
NAME_LONGEST = 128
"""Cap of the strictest public cloud we know of; Glance itself takes 255."""
_PROPERTY_LONGEST = 255
_REPLACE_FREQUENCY = MappingProxyType({"every-night": "daily", "monthly": "monthly", "on-security": "critical_bug"})
_INTEGERS = ("min_disk", "min_ram")
_MIN_RAM_MIB = "512"

_MANDATORY = [
    "architecture",
    "min_disk",
    "min_ram",
    "os_distro",
    "os_version",
    "os_purpose",
    "hw_disk_bus",
    "replace_frequency",
    "uuid_validity",
    "provided_until",
    "image_source",
    "image_description",
    "image_build_date",
    "image_original_user",
]
_YES_NO = frozenset({"yes", "no"})
_TRUE_FALSE = frozenset({"true", "false"})
_ALLOWED: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "os_purpose": frozenset(["generic", "oldgeneric", "minimal", "k8snode", "gpu", "network", "custom"]),
        "hw_disk_bus": frozenset(["scsi", "virtio", "ide", "usb", "sata", "fdc", "uml", "xen"]),
        "hw_scsi_model": frozenset(
            ["virtio-scsi", "buslogic", "ibmvscsi", "lsilogic", "lsisas1068", "lsisas1078", "vmpvscsi"]
        ),
        "replace_frequency": frozenset(["yearly", "quarterly", "monthly", "weekly", "daily", "critical_bug", "never"]),
        "hw_qemu_guest_agent": _YES_NO,
        "os_require_quiesce": _YES_NO | _TRUE_FALSE,
        "hw_rng_model": frozenset({"virtio"}),
        "hw_firmware_type": frozenset({"bios", "uefi"}),
        "os_secure_boot": frozenset({"required", "optional", "disabled"}),
        "hw_vif_multiqueue_enabled": _TRUE_FALSE,
        "hw_watchdog_action": frozenset(["disabled", "reset", "poweroff", "pause", "none"]),
        "hw_mem_encryption": _TRUE_FALSE,
        "hw_pmu": _TRUE_FALSE,
        "img_config_drive": frozenset({"mandatory", "optional"}),
        "hypervisor_type": frozenset(["qemu", "kvm", "lxc", "uml", "vmware", "hyperv", "ironic", "xen"]),
        "license_included": _TRUE_FALSE,
        "license_required": _TRUE_FALSE,
        "subscription_included": _TRUE_FALSE,
        "subscription_required": _TRUE_FALSE,
    }
)
_DATE = r"\d{4}-\d\d-\d\d"
_SHAPES: Mapping[str, str] = MappingProxyType(
    {
        "min_disk": r"[1-9]\d{0,5}",
        "min_ram": r"\d{1,7}",
        "os_distro": r"[a-z0-9][a-z0-9._-]*",
        "architecture": r"[a-z0-9_]+",
        "uuid_validity": rf"none|last-[1-9]\d*|notice|forever|{_DATE}",
        "provided_until": rf"none|notice|{_DATE}",
        "image_build_date": rf"{_DATE}( \d\d:\d\d(:\d\d)?)?",
        "hotfix_hours": r"\d+",
        "maintained_until": rf"none|{_DATE}",
        "hw_video_ram": r"\d+",
    }
)
_FREE = frozenset(
    [
        "os_version",
        "image_source",
        "image_description",
        "image_original_user",
        "patchlevel",
        "l1_support_contact",
        "hw_machine_type",
        "hw_vif_model",
        "os_type",
        "os_admin_user",
        "hw_video_model",
        "hw_time_hpet",
        "hw_boot_menu",
        "os_command_line",
        "img_signature",
        "img_signature_hash_method",
        "img_signature_key_type",
        "img_signature_certificate_uuid",
    ]
)
_EXCLUSIVE = (("license_included", "license_required"), ("subscription_included", "subscription_required"))
_OURS_ALONE = ("imgfactory_", "os_glance", "os_hash_", "owner_specified.")
_RECORD = frozenset(
    [
        "id",
        "name",
        "status",
        "size",
        "checksum",
        "visibility",
        "os_hidden",
        "protected",
        "tags",
        "disk_format",
        "container_format",
    ]
)


def metadata(bundle: Bundle, target: Target) -> dict[str, str]:
    """Every property that follows from the bundle and the target alone; what the description says wins.

    Not in it, as they depend on the store: name, role, generation, dated name, holder, ``imgfactory_keep_until``.
    """
    artifact, description = bundle.artifact, bundle.artifact.recipe.description
    wanted = {
        **_scs(bundle, description),
        **_hardware(bundle, description),
        **description.metadata,
    }
    return {
        **wanted,
        "os_purpose": "oldgeneric" if wanted["os_purpose"] == "generic" else wanted["os_purpose"],
        "imgfactory_purpose": wanted["os_purpose"],
        "imgfactory_line": description.line,
        "imgfactory_build_id": artifact.build_id,
        "imgfactory_sha512": artifact.sha512,
        "imgfactory_inputs": artifact.inputs_digest,
        "imgfactory_tested": f"pass:{bundle.verdict.report_digest}",
        "imgfactory_signed_by": bundle.fingerprint + (" (throw-away key)" if bundle.throw_away_key else ""),
        "imgfactory_vendor": target.vendor,
    }


def tags(bundle: Bundle, target: Target) -> tuple[str, ...]:
    """The tags that SCS-0102 recommends."""
    wanted = metadata(bundle, target)
    return (f"managed_by_{target.vendor}", f"os:{wanted['os_distro']}")


def wire(properties: Mapping[str, str]) -> dict[str, object]:
    """The properties as Glance takes them: minimum disk and memory are its only integers."""
    return {key: int(value) if key in _INTEGERS else value for key, value in properties.items()}


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


def faults(properties: Mapping[str, str], *, place: str, complete: bool = True) -> tuple[Fault, ...]:
    """Everything that is wrong with a set of properties.

    Args:
        place: where the reader has to look, such as ``image.toml [metadata]``.
        complete: also demand the mandatory keys (not for the part that a description adds).
    """
    found = [_fault(place, key, value) for key, value in sorted(properties.items())]
    if complete:
        missing = (key for key in _MANDATORY if key not in properties)
        found += [Fault(place=f"{place} {key}", problem="is missing", cure="SCS-0102 demands it") for key in missing]
    for included, required in _EXCLUSIVE:
        if properties.get(included) == properties.get(required) == "true":
            found.append(Fault(place=f"{place} {included}", problem=f"and {required} exclude each other"))
    return tuple(fault for fault in found if fault is not None)


def reserved(properties: Mapping[str, str], *, place: str) -> tuple[Fault, ...]:
    """Keys that a description may not set: the factory's own and Glance's."""
    keys = [key for key in sorted(properties) if key in _RECORD or key.startswith(_OURS_ALONE)]
    return tuple(Fault(place=f"{place} {key}", problem="is set by the factory or by Glance") for key in keys)


def unknown(properties: Mapping[str, str]) -> tuple[str, ...]:
    """Keys that no standard we know of names: a warning, as clouds may have their own."""
    known = {*_MANDATORY, *_ALLOWED, *_SHAPES, *_FREE}
    return tuple(key for key in sorted(properties) if key not in known and not key.startswith(("imgfactory_", "__")))


def name_faults(name: str, *, place: str) -> tuple[Fault, ...]:
    """What is wrong with an image name, if anything."""
    found = []
    if len(name) > NAME_LONGEST:
        found.append(f"'{name}' has {len(name)} characters, at most {NAME_LONGEST} are portable")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        found.append(f"'{name}' has other characters than letters, digits, '-', '.' and '_'")
    return tuple(Fault(place=place, problem=problem) for problem in found)


def _fault(place: str, key: str, value: object) -> Fault | None:
    where = f"{place} {key}"
    if not isinstance(value, str):
        return Fault(place=where, problem=f"is not a string: {value!r}", cure=f'"{value}"')
    if len(key) > _PROPERTY_LONGEST:
        return Fault(place=where[:80], problem=f"the key is longer than {_PROPERTY_LONGEST} characters")
    if not value.isprintable():
        return Fault(place=where, problem="has line breaks or control characters")
    if key in _ALLOWED and value not in _ALLOWED[key]:
        return Fault(place=where, problem=f"'{value}' is no value of it", cure=", ".join(sorted(_ALLOWED[key])))
    if key in _SHAPES and not re.fullmatch(_SHAPES[key], value, re.ASCII):
        return Fault(place=where, problem=f"'{value}' does not look like it", cure=_SHAPES[key])
    return None


def _scs(bundle: Bundle, description: Description) -> dict[str, str]:
    distro, version, *_ = (*description.registration.product.split("/"), "", "")
    snapshot = utc(bundle.artifact.epoch)
    years_kept = keep_until(bundle.artifact.built_at, description.retention, first_of_month=False)
    return {
        "architecture": description.arch,
        "min_disk": str(description.disk.min_gib),
        "min_ram": _MIN_RAM_MIB,
        "os_distro": distro,
        "os_version": version,
        "os_purpose": "generic",
        "replace_frequency": _REPLACE_FREQUENCY.get(description.publish, "never"),
        "uuid_validity": years_kept.isoformat(),
        "provided_until": "none",
        "image_source": "private",
        "image_description": f"{description.line}, tested and signed; packages as of {snapshot:%Y-%m-%d}",
        "image_build_date": f"{snapshot:%Y-%m-%d %H:%M:%S}",
        "image_original_user": description.login_user,
        "patchlevel": f"{snapshot:%Y%m%dT%H%M%SZ}",
    }


def _hardware(bundle: Bundle, description: Description) -> dict[str, str]:
    installed = {package.name for package in bundle.artifact.packages}
    wanted = {
        "hw_disk_bus": "scsi",
        "hw_scsi_model": "virtio-scsi",
        "hw_rng_model": "virtio",
        "hw_vif_model": "virtio",
        "hw_firmware_type": description.disk.firmware,
        "hw_qemu_guest_agent": "yes" if "qemu-guest-agent" in installed else "no",
        "os_type": "linux",
        "os_admin_user": description.login_user,
    }
    if description.disk.firmware == "uefi" and description.arch == "x86_64":
        wanted["hw_machine_type"] = "q35"
    return wanted
