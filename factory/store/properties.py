# SPDX-License-Identifier: Apache-2.0
"""What the properties of an image may say: SCS-0102, Glance's own and those of the Open Telekom Cloud; pure.

Sources: the SovereignCloudStack standard SCS-0102 (image metadata, versions 1 and 2), "Useful image properties" and
"Image signature verification" of Glance's documentation, and the public reference of the Open Telekom Cloud's image
service.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType

from factory.errors import Fault

NAME_LONGEST = 128
"""Cap of the strictest public cloud we know of; Glance itself takes 255."""
AGED_PURPOSE = "oldgeneric"
CAPABILITIES = "__image_capabilities"
"""The bitmask in which the Open Telekom Cloud notes what an image can do."""
SIGNATURE = (
    "img_signature",
    "img_signature_hash_method",
    "img_signature_key_type",
    "img_signature_certificate_uuid",
)
"""All four or none: with them Glance verifies the bytes while they arrive."""
FREQUENCIES_DAYS: Mapping[str, int] = MappingProxyType(
    {"daily": 1, "weekly": 7, "monthly": 31, "quarterly": 92, "yearly": 366}
)
"""How long an image may be the newest, by its ``replace_frequency``; the others promise no date."""
_PROPERTY_LONGEST = 255
_DESCRIPTION_LONGEST = 1024

Places = Callable[[str], str]
"""From a key to where it stands, as ``FILE:LINE KEY``."""

MANDATORY = (
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
)
_PURPOSES = frozenset(["generic", AGED_PURPOSE, "minimal", "k8snode", "gpu", "network", "custom"])
_YES_NO = frozenset({"yes", "no"})
_TRUE_FALSE = frozenset({"true", "false"})
_ALLOWED: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "os_purpose": _PURPOSES,
        "hw_disk_bus": frozenset(["scsi", "virtio", "ide", "usb", "sata", "fdc", "uml", "xen"]),
        "hw_scsi_model": frozenset(
            ["virtio-scsi", "buslogic", "ibmvscsi", "lsilogic", "lsisas1068", "lsisas1078", "vmpvscsi"]
        ),
        "replace_frequency": frozenset([*FREQUENCIES_DAYS, "critical_bug", "never"]),
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
        "img_signature_hash_method": frozenset(["SHA-224", "SHA-256", "SHA-384", "SHA-512"]),
        "img_signature_key_type": frozenset(
            [
                "RSA-PSS",
                "DSA",
                "ECC_SECP384R1",
                "ECC_SECP521R1",
                "ECC_SECT409K1",
                "ECC_SECT409R1",
                "ECC_SECT571K1",
                "ECC_SECT571R1",
            ]
        ),
        "__os_bit": frozenset({"32", "64"}),
    }
)
_DATE = r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])"
_SHAPES: Mapping[str, str] = MappingProxyType(
    {
        "min_disk": r"[1-9]\d{0,5}",
        "min_ram": r"\d{1,7}",
        "os_distro": r"[a-z0-9][a-z0-9._-]*",
        "os_version": r"\d+([.-]\w+)*|rolling|tumbleweed|testing|unstable|stream-?\d*",
        "architecture": r"[a-z0-9_]+",
        "uuid_validity": rf"none|last-[1-9]\d*|notice|forever|{_DATE}",
        "provided_until": rf"none|notice|{_DATE}",
        "image_build_date": rf"{_DATE}( \d\d:\d\d(:\d\d)?)?",
        "image_source": r"private|https?://\S+",
        "image_original_user": r"[a-z_][a-z0-9_.-]*",
        "hotfix_hours": r"\d+",
        "maintained_until": rf"none|{_DATE}",
        "hw_video_ram": r"\d+",
        CAPABILITIES: r"\d{1,20}",
        "img_signature_certificate_uuid": r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
        "img_signature": r"[A-Za-z0-9+/]{20,253}={0,2}",
    }
)
_FREE = frozenset(
    [
        "image_description",
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
        "virtual_env_type",
    ]
)
EXCLUSIVE: tuple[tuple[str, str], ...] = (
    ("license_included", "license_required"),
    ("subscription_included", "subscription_required"),
    *(
        (special, plain)
        for special in ("__support_xen_gpu_type", "__support_kvm_gpu_type", "__support_xen_hana")
        for plain in ("__support_xen", "__support_kvm")
    ),
    ("__support_kvm_infiniband", "__support_xen"),
)
"""Pairs of which an image carries one only."""
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


def faults(
    properties: Mapping[str, str],
    *,
    place: str | Places,
    complete: bool = True,
    purposes: Iterable[str] = (),
    exclusive: Iterable[tuple[str, str]] = (),
) -> tuple[Fault, ...]:
    """Everything that is wrong with a set of properties.

    Args:
        place: where the reader has to look: what stands before each key, such as ``image.toml [metadata]``, or the
            place of each key.
        complete: also demand the mandatory keys (not for the part that a description adds).
        purposes: values of ``os_purpose`` that this cloud knows besides the standard's.
        exclusive: further pairs of keys of which an image carries one only.
    """
    where = place if callable(place) else lambda key: f"{place} {key}"
    further = {"os_purpose": _PURPOSES | set(purposes)}
    found = [_fault(where, key, value, further) for key, value in sorted(properties.items())]
    if complete:
        missing = (key for key in MANDATORY if key not in properties)
        found += [Fault(place=where(key), problem="is missing", cure="SCS-0102 demands it") for key in missing]
    found += _together(properties, where, (*EXCLUSIVE, *exclusive))
    return tuple(fault for fault in found if fault is not None)


def reserved(properties: Mapping[str, str], *, place: str | Places) -> tuple[Fault, ...]:
    """Keys that a description may not set: the factory's own and Glance's."""
    where = place if callable(place) else lambda key: f"{place} {key}"
    ours = {*_RECORD, *SIGNATURE, CAPABILITIES}
    keys = [key for key in sorted(properties) if key in ours or key.startswith(_OURS_ALONE)]
    return tuple(Fault(place=where(key), problem="is set by the factory or by Glance") for key in keys)


def unknown(properties: Mapping[str, str]) -> tuple[str, ...]:
    """Keys that no standard we know of names: a warning, as clouds may have their own."""
    known = {*MANDATORY, *_ALLOWED, *_SHAPES, *_FREE}
    return tuple(key for key in sorted(properties) if key not in known and not key.startswith(("imgfactory_", "__")))


def name_faults(name: str, *, place: str) -> tuple[Fault, ...]:
    """What is wrong with an image name, if anything."""
    found = []
    if len(name) > NAME_LONGEST:
        found.append(f"'{name}' has {len(name)} characters, at most {NAME_LONGEST} are portable")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        found.append(f"'{name}' has other characters than letters, digits, '-', '.' and '_'")
    return tuple(Fault(place=place, problem=problem) for problem in found)


def _fault(where: Places, key: str, value: object, further: Mapping[str, frozenset[str]]) -> Fault | None:
    if not isinstance(value, str):
        return Fault(place=where(key), problem=f"is not a string: {value!r}", cure=f'"{value}"')
    if len(key) > _PROPERTY_LONGEST:
        return Fault(place=where(key)[:80], problem=f"the key is longer than {_PROPERTY_LONGEST} characters")
    if not value.isprintable():
        return Fault(place=where(key), problem="has line breaks or control characters")
    allowed = further.get(key) or _ALLOWED.get(key)
    if allowed is not None and value not in allowed:
        return Fault(place=where(key), problem=f"'{value}' is no value of it", cure=", ".join(sorted(allowed)))
    if key in _SHAPES and not re.fullmatch(_SHAPES[key], value, re.ASCII):
        return Fault(place=where(key), problem=f"'{value}' does not look like it", cure=_SHAPES[key])
    if key == "__description" and (len(value) > _DESCRIPTION_LONGEST or set("<>") & set(value)):
        cure = f"at most {_DESCRIPTION_LONGEST} characters, no angle brackets"
        return Fault(place=where(key), problem="is longer or has other characters than that cloud takes", cure=cure)
    return None


def _together(properties: Mapping[str, str], where: Places, exclusive: Iterable[tuple[str, str]]) -> Iterator[Fault]:
    """What is wrong only because of another key."""
    for one, other in exclusive:
        if properties.get(one) == properties.get(other) == "true":
            yield Fault(place=where(one), problem=f"and {other} exclude each other")
    present = [key for key in SIGNATURE if key in properties]
    if present and len(present) < len(SIGNATURE):
        lacking = ", ".join(key for key in SIGNATURE if key not in properties)
        yield Fault(place=where(present[0]), problem=f"needs {lacking} beside it")
    if properties.get("os_secure_boot") == "required" and properties.get("hw_firmware_type", "uefi") != "uefi":
        yield Fault(place=where("os_secure_boot"), problem="is required, but hw_firmware_type is not uefi")
    if properties.get("os_require_quiesce") in {"yes", "true"} and properties.get("hw_qemu_guest_agent") == "no":
        yield Fault(place=where("os_require_quiesce"), problem="needs the guest agent, and hw_qemu_guest_agent is no")
    until = properties.get("maintained_until", "")
    if re.fullmatch(_DATE, until) and until < properties.get("image_build_date", "")[:10]:
        yield Fault(place=where("maintained_until"), problem=f"'{until}' is before the image was built")
