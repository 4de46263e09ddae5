# SPDX-License-Identifier: Apache-2.0
"""What the shared night says is in its image, and what changed between it and another one."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.spdx import is_expression, is_supported_id
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

from factory.build.tarball import MANIFEST
from factory.diff import of_places
from factory.diff.read import read_side
from factory.inputs.lock import read_lock
from factory.model import BOOTED, RELEASE_NOTE, Artifact, Bundle
from factory.sign.checksums import NAME as SUMS
from factory.system.files import sha256_file
from testsuite.conftest import NightRun

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_mirror, pytest.mark.needs_image]
WRITTEN = ("sbom.cdx.json", "inventory.json", "changelogs.json.xz")


@pytest.fixture(scope="module")
def bundle(night: NightRun) -> Path:
    return night.run.read("sign", Bundle).directory


@pytest.fixture(scope="module")
def bill(bundle: Path) -> dict:
    text = (bundle / "sbom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    return json.loads(text)


@pytest.fixture(scope="module")
def packages(bill: dict) -> list[dict]:
    return [one for one in bill["components"] if one["type"] == "library"]


def test_every_installed_package_is_in_the_bill_with_its_file(artifact: Artifact, packages: list[dict]) -> None:
    found = {}
    for one in packages:
        purl = PackageURL.from_string(one["purl"])
        assert purl.type == "deb"
        assert purl.qualifiers["distro"] == "debian-13"
        found[(purl.name, purl.version, purl.qualifiers["arch"])] = one
    assert set(found) == {(one.name, one.version, one.arch) for one in artifact.packages}
    locked = {one.sha512 for one in read_lock(artifact.lock)}
    own = {sha256_file(path) for path in artifact.recipe.tree.rglob("*.deb")}
    for one in packages:
        sums = {found["alg"]: found["content"] for found in one["hashes"]}
        origin = {told["name"]: told["value"] for told in one["properties"]}["image-factory:repository"]
        if origin == "image-factory":
            assert sums["SHA-256"] in own
        else:
            assert sums["SHA-512"] in locked
            assert origin in {repository.alias for repository in artifact.recipe.repositories}


def test_both_digests_are_those_of_the_recorded_file(night: NightRun, packages: list[dict]) -> None:
    looked = 0
    for one in packages:
        sums = {found["alg"]: found["content"] for found in one["hashes"]}
        if (blob := night.state.blobs / sums["SHA-512"]).is_file():
            assert sha256_file(blob) == sums["SHA-256"]
            looked += 1
    assert looked > 200


def test_licences_are_counted_and_most_packages_name_theirs(artifact: Artifact, packages: list[dict]) -> None:
    assert sum(artifact.licences.values()) == len(packages)
    assert artifact.licences["missing"] == 0
    assert artifact.licences["spdx"] + artifact.licences["partly"] > 0.75 * len(packages)
    for one in packages:
        for choice in one["licenses"]:
            if "expression" in choice:
                assert is_expression(choice["expression"])
            elif "id" in choice["license"]:
                assert is_supported_id(choice["license"]["id"])
    by_name = {one["name"]: one for one in packages}
    assert {"GPL-3.0-or-later"} <= {choice["license"].get("id") for choice in by_name["bash"]["licenses"]}
    assert {choice.get("expression", "")[:3] for choice in by_name["apt"]["licenses"]} != {""}


def test_the_bill_is_about_the_image_and_signed_with_it(artifact: Artifact, bundle: Path, bill: dict) -> None:
    about = {one["alg"]: one["content"] for one in bill["metadata"]["component"]["hashes"]}
    assert about == {"SHA-256": artifact.sha256, "SHA-512": artifact.sha512}
    listed = dict(line.split("  ")[::-1] for line in (bundle / SUMS).read_text().splitlines())
    results = json.loads((bundle.parent / MANIFEST).read_text())["results"]
    for name in WRITTEN:
        assert listed[name] == results[name] == sha256_file(bundle / name)
    for name in (BOOTED, RELEASE_NOTE):
        assert listed[name] == sha256_file(bundle / name)


def test_what_was_seen_of_the_guest_is_what_the_image_promises(artifact: Artifact, bundle: Path) -> None:
    side = read_side(bundle)
    assert side.booted is not None
    assert side.inventory is not None
    outside = {one.port for one in side.booted.listening if one.protocol == "tcp" and one.reach == "any"}
    assert outside == set(artifact.recipe.description.budgets.listening_ports)
    assert dict(side.booted.sysctl)["kernel.kptr_restrict"] == dict(side.inventory.sysctl)["kernel.kptr_restrict"]
    enabled = {one.name for one in side.inventory.units if one.wanted_by and not one.masked}
    assert {"ssh.service", "systemd-networkd.service", "chrony.service"} <= enabled


def test_a_run_and_its_bundle_are_the_same_and_nothing_of_it_is_unknown(night: NightRun, bundle: Path) -> None:
    found = of_places(night.run.path, bundle, state=night.state)
    assert found.identical
    assert found.unknown == ()
    assert (found.packages, found.sources, found.services, found.listening, found.sysctl) == ((), (), (), (), ())
    assert found.files is not None
    assert (found.files.added, found.files.removed, found.files.changed) == (0, 0, 0)


def test_an_older_image_differs_by_what_its_packages_fixed_since(night: NightRun, bundle: Path, tmp_path: Path) -> None:
    """The night's own records, with the last entry of each changelog that names a fix taken back."""
    now = read_side(bundle)
    assert now.sources is not None
    fixed = {name: one for name, one in now.sources.items() if len(one.entries) > 1 and one.entries[0].fixes}
    assert fixed, "no package of this image has a security fix as its newest change"
    for name in (*WRITTEN, "packages.json", "inventory.json"):
        shutil.copy(bundle / name, tmp_path)
    body = json.loads((tmp_path / "packages.json").read_text())
    back = 0
    for package in body["packages"]:
        one = fixed.get(package["source"])
        if one is not None:
            package["version"], back = one.entries[1].version, back + 1
    (tmp_path / "packages.json").write_text(json.dumps(body))
    (tmp_path / "changelogs.json.xz").unlink()
    found = of_places(tmp_path, night.run.path, state=night.state)
    assert len(found.packages) == back
    named = {one.source: set(one.fixes) for one in found.sources}
    for name, one in fixed.items():
        if re.fullmatch(r"linux.*", name) is None:  # its binary packages are numbered otherwise
            assert set(one.entries[0].fixes) <= named[name], name
    assert replace(found, unknown=()).fixes
