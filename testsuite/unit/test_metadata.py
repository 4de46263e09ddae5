# SPDX-License-Identifier: Apache-2.0
"""What an image says about itself in Glance."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from factory.errors import InputFault
from factory.model import Bundle, Description, Disk, Retention, Target
from factory.publish import publish
from factory.store.memory import MemoryGlance, MemoryStore
from factory.store.metadata import keep_until, metadata, tags, wire
from factory.store.properties import faults, name_faults, reserved, unknown
from testsuite.fakes.bundles import BUILT, make_bundle, with_description

GOLDEN = Path(__file__).parent / "golden" / "Standard_Debian_13.metadata.json"
TARGET = Target(vendor="example")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    made = make_bundle(tmp_path_factory.mktemp("bundle"), data_bytes=4096)
    return dataclasses.replace(made, artifact=dataclasses.replace(made.artifact, sha512="7" * 128))


def test_golden(bundle: Bundle) -> None:
    """To accept a wanted change: write what the failure shows into the golden file, and read the difference."""
    assert metadata(bundle, TARGET) == json.loads(GOLDEN.read_text())
    assert tags(bundle, TARGET) == ("managed_by_example", "os:debian")


def test_the_golden_metadata_is_complete_and_known(bundle: Bundle) -> None:
    found = metadata(bundle, TARGET)
    assert faults(found, place="x") == ()
    assert unknown(found) == ()
    assert all(isinstance(value, str) for value in found.values())
    assert {key: type(value) for key, value in wire(found).items() if not isinstance(value, str)} == {
        "min_disk": int,
        "min_ram": int,
    }


def test_the_description_wins_and_the_image_waits_with_an_aged_purpose(bundle: Bundle) -> None:
    plain = metadata(bundle, TARGET)
    assert (plain["os_purpose"], plain["imgfactory_purpose"]) == ("oldgeneric", "generic")
    other = metadata(with_description(bundle, metadata={"os_purpose": "minimal", "os_version": "14"}), TARGET)
    assert (other["os_purpose"], other["imgfactory_purpose"], other["os_version"]) == ("minimal", "minimal", "14")


def test_the_guest_agent_is_promised_only_when_it_is_in_the_image(bundle: Bundle) -> None:
    without = dataclasses.replace(bundle, artifact=dataclasses.replace(bundle.artifact, packages=()))
    assert metadata(bundle, TARGET)["hw_qemu_guest_agent"] == "yes"
    assert metadata(without, TARGET)["hw_qemu_guest_agent"] == "no"


def test_uefi_on_x86_asks_for_the_machine_that_has_it(bundle: Bundle) -> None:
    uefi = metadata(with_description(bundle, disk=Disk(firmware="uefi")), TARGET)
    assert (uefi["hw_firmware_type"], uefi["hw_machine_type"]) == ("uefi", "q35")
    assert "hw_machine_type" not in metadata(bundle, TARGET)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("hw_disk_bus", "virto", "no value of it"),
        ("hw_qemu_guest_agent", True, "not a string"),
        ("os_purpose", "general", "no value of it"),
        ("min_disk", "0", "does not look like it"),
        ("min_disk", "four", "does not look like it"),
        ("min_ram", "-1", "does not look like it"),
        ("uuid_validity", "last-0", "does not look like it"),
        ("uuid_validity", "2028-1-1", "does not look like it"),
        ("provided_until", "soon", "does not look like it"),
        ("image_build_date", "2026-11-21T02:00", "does not look like it"),
        ("image_description", "two\nlines", "line breaks"),
        ("replace_frequency", "nightly", "no value of it"),
        ("os_distro", "Debian", "does not look like it"),
        ("x" * 256, "y", "longer than 255"),
    ],
)
def test_wrong_values_are_faults_with_their_place(bundle: Bundle, key: str, value: str, expected: str) -> None:
    (fault,) = faults({**metadata(bundle, TARGET), key: value}, place="image.toml [metadata]")
    assert expected in fault.problem
    assert fault.place.startswith("image.toml [metadata]")


def test_missing_keys_and_exclusive_ones_are_told_together() -> None:
    found = faults({"subscription_included": "true", "subscription_required": "true"}, place="x")
    assert {fault.place for fault in found} >= {"x os_distro", "x hw_disk_bus", "x subscription_included"}
    assert faults({"hw_disk_bus": "scsi"}, place="x", complete=False) == ()


def test_our_own_keys_and_record_fields_are_not_for_descriptions() -> None:
    found = reserved({"imgfactory_role": "latest", "os_hidden": "true", "name": "x", "os_distro": "debian"}, place="x")
    assert [fault.place for fault in found] == ["x imgfactory_role", "x name", "x os_hidden"]
    assert unknown({"my_own": "1", "__support_kvm": "true", "hw_rng_model": "virtio"}) == ("my_own",)


def test_names_are_portable() -> None:
    assert name_faults("Standard_Debian_13_20261121", place="x") == ()
    assert "129 characters" in name_faults("x" * 129, place="x")[0].problem
    assert "other characters" in name_faults("a/b", place="x")[0].problem


@pytest.mark.parametrize(
    ("built", "first", "expected"),
    [
        ("2026-11-21", True, "2028-11-21"),
        ("2026-11-21", False, "2026-11-28"),
        ("2024-02-29", True, "2026-02-28"),
        ("2026-12-31", True, "2028-12-31"),
        ("2026-12-28", False, "2027-01-04"),
    ],
)
def test_a_months_first_image_is_kept_for_two_years(built: str, expected: str, *, first: bool) -> None:
    at = datetime.fromisoformat(built).replace(tzinfo=UTC)
    assert keep_until(at, Retention(), first_of_month=first) == date.fromisoformat(expected)


def test_publish_tells_every_fault_at_once_before_it_writes_anything(bundle: Bundle) -> None:
    service = MemoryGlance()
    wrong = with_description(bundle, metadata={"hw_disk_bus": "virto", "imgfactory_role": "latest", "os_purpose": "x"})
    with pytest.raises(InputFault) as refused:
        publish(wrong, store=MemoryStore(service, "p"), target=TARGET, now=BUILT, say=lambda _line: None)
    assert len(refused.value.faults) == 3
    assert refused.value.exit_code == 2
    assert service.images == {}


def test_a_disk_that_does_not_hold_the_image_is_refused(tmp_path: Path) -> None:
    made = make_bundle(tmp_path, data_bytes=4096)
    large = dataclasses.replace(made, artifact=dataclasses.replace(made.artifact, virtual_size_bytes=(4 << 30) + 1))
    with pytest.raises(InputFault, match="5 GiB"):
        publish(large, store=MemoryStore(MemoryGlance(), "p"), target=TARGET, now=BUILT, say=lambda _line: None)


def test_a_product_gives_distribution_and_version(bundle: Bundle) -> None:
    found = metadata(with_description(bundle, metadata={}), TARGET)
    assert (found["os_distro"], found["os_version"]) == ("debian", "13")
    assert isinstance(bundle.artifact.recipe.description, Description)
