# SPDX-License-Identifier: Apache-2.0
"""A vendor's image from its address to the release: the same bytes everywhere, and everything told of them.

The fast tests make a disk with a file system that nobody boots. The long one has mmdebstrap make a whole Debian, and
does its night.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest

from factory.build import build
from factory.describe import describe, load_site
from factory.describe.host_apt import host_repositories
from factory.diff.note import write_notes
from factory.errors import FactoryError, InputsError, NotGood
from factory.inputs.lock import read_lock
from factory.installation import Installation
from factory.ledger_detail import detail_of
from factory.model import Artifact, Check, Outcome, Recipe, Signing, Target, Unmet, Verdict
from factory.publish import publish
from factory.rebuild import Trust, rebuild
from factory.sign import sign
from factory.sign.verify import verify_signatures
from factory.store.directory import publish_directory
from factory.store.memory import MemoryGlance, MemoryStore
from factory.system.clock import now
from factory.system.state import Run, State
from factory.unchanged import compare_with
from factory.verify.unmet import settled
from testsuite.conftest import PROJECT, type_factory
from testsuite.repository import SigningKey, make_key, mirror
from testsuite.vendor_image import ran, vendor_image, write_disk

NAME = "vendor-1.qcow2"
STATUS = """\
Package: base-files
Status: install ok installed
Architecture: amd64
Maintainer: Vendor <v@vendor.example>
Version: 13.8

Package: openssh-server
Status: install ok installed
Architecture: amd64
Source: openssh (1:10.0p1-7)
Version: 1:10.0p1-7+b1
"""
OS_RELEASE = 'ID=debian\nVERSION_ID="13"\nPRETTY_NAME="Vendor Linux"\n'


@dataclass(frozen=True)
class Vendor:
    """A vendor: its folder, its key, the image in it, and the project that describes it."""

    folder: Path
    key: SigningKey
    fingerprint: str
    image: Path
    project: Path
    state: State

    def describe_with(self, address: str, *, min_gib: int = 1, unmet: str = "", **changed: str) -> Recipe:
        """Write ``image.toml``, with some of ``[foreign]`` changed, and describe it in a new run."""
        said = {
            "url": f"{address}/{NAME}",
            "sha256": hashlib.sha256(self.image.read_bytes()).hexdigest(),
            "signature": f"{address}/{NAME}.sig",
            "key": self.fingerprint,
            **changed,
        }
        pins = "\n".join(f'{name} = "{value}"' for name, value in said.items() if value)
        text = '[image]\nname = "vendor"\nline = "Community_Vendor_1"\nbuilder = "foreign"\nlogin_user = "debian"\n'
        text += f'[disk]\nmin_gib = {min_gib}\n[metadata]\nos_distro = "debian"\nos_version = "13"\n[foreign]\n{pins}\n'
        place = self.project / "descriptions" / "vendor" / "image.toml"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text + unmet)
        site = self.project / "site.toml"
        found = load_site(site) if site.is_file() else self.here.site
        return describe(self.project, "vendor", site=found, regions=(), run=self.run, now=now())

    @property
    def run(self) -> Run:
        path = self.state.runs / "20261121-020000-vendor"
        (path / "logs").mkdir(parents=True, exist_ok=True)
        return Run(path=path)

    @property
    def here(self) -> Installation:
        from factory.model import Site

        return Installation(project=self.project, state=self.state, site=Site())

    def take(self, recipe: Recipe) -> Artifact:
        return build(recipe, run=self.run, state=self.state, say=lambda _: None, now=now())


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small disk with one ext4 file system, in which a package database lies."""
    folder = tmp_path_factory.mktemp("vendor")
    tree = folder / "tree"
    for path, text in {"var/lib/dpkg/status": STATUS, "etc/os-release": OS_RELEASE, "usr/bin/x": "x"}.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(text)
    ran(["mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(folder / "root.ext4"), "16M"])
    return write_disk(folder, folder / "root.ext4", sectors=(17 << 20) // 512 + 2048)


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return make_key(tmp_path_factory.mktemp("key"), "vendor")


@pytest.fixture
def vendor(image: Path, key: SigningKey, tmp_path: Path) -> Vendor:
    return made_vendor(image, key, tmp_path)


def made_vendor(image: Path, key: SigningKey, folder: Path) -> Vendor:
    """Sign an image, put it where it can be fetched, and the key where the factory looks for it."""
    served, project = folder / "served", folder / "project"
    served.mkdir()
    shutil.copyfile(image, served / NAME)
    gpg = ["gpg", "--homedir", str(key.home), "--batch"]
    ran([*gpg, "--output", str(served / f"{NAME}.sig"), "--detach-sign", str(served / NAME)])
    listed = subprocess.run([*gpg, "--list-keys", "--with-colons"], capture_output=True, text=True, check=True).stdout
    (project / "keys" / "vendor").mkdir(parents=True)
    (project / "testsuite").mkdir()
    (project / "testsuite" / "acceptance").symlink_to(PROJECT / "testsuite" / "acceptance")
    shutil.copyfile(key.keyring, project / "keys" / "vendor" / "vendor.gpg")
    return Vendor(
        folder=served,
        key=key,
        fingerprint=next(line.split(":")[9] for line in listed.splitlines() if line.startswith("fpr")),
        image=image,
        project=project,
        state=State(path=folder / "state").prepare(),
    )


@pytest.fixture
def address(vendor: Vendor) -> Iterator[str]:
    with mirror(vendor.folder) as (found, _):
        yield found


def green(artifact: Artifact, unmet: tuple[Unmet, ...]) -> Verdict:
    """A verdict as the suite could give it, with one check that the image does not pass."""
    checks = (
        Check(name="boot::the_image_boots", guarantee="The image boots.", outcome=Outcome.PASSED),
        Check(name="test_ssh.py::test_x", guarantee="No old *ciphers*.", outcome=Outcome.FAILED, message="<aes128>"),
    )
    return Verdict(
        artifact_sha256=artifact.sha256,
        checks=settled(checks, unmet, say=lambda _: None),
        accelerator="tcg",
        boot_s=1.0,
        judged_at=artifact.built_at + timedelta(seconds=1),
    )


def test_the_bytes_go_unchanged_from_the_vendor_to_the_release(vendor: Vendor, address: str, tmp_path: Path) -> None:
    recipe = vendor.describe_with(address)
    artifact = vendor.take(recipe)
    vendor.run.write("describe", recipe)
    vendor.run.write("build", artifact)
    content = vendor.image.read_bytes()
    assert artifact.path.read_bytes() == content
    lock = read_lock(artifact.lock)
    assert {(one.repository, one.path, one.sha512) for one in lock} == {
        ("vendor", NAME, hashlib.sha512(content).hexdigest()),
        ("vendor", f"{NAME}.sig", hashlib.sha512((vendor.folder / f"{NAME}.sig").read_bytes()).hexdigest()),
    }
    assert [(one.name, one.version, one.source) for one in artifact.packages] == [
        ("base-files", "13.8", "base-files"),
        ("openssh-server", "1:10.0p1-7+b1", "openssh"),
    ]
    assert artifact.sbom is not None
    bill = json.loads(artifact.sbom.read_text())
    assert {one["name"] for one in bill["components"]} >= {"base-files", "openssh-server"}
    with tarfile.open(artifact.tarball) as tarball:
        names = {name.partition("/")[2] for name in tarball.getnames()}
    assert {"foreign.json", "vendor-key.gpg", "create_appliance.sh", "rebuild/inputs.lock"} <= names

    unmet = (Unmet(check="test_ssh.py::test_x", reason="the *vendor* chose <so>"),)
    verdict = green(artifact, unmet)
    vendor.run.write("verify", verdict)
    write_notes(vendor.run, line=recipe.description.line, say=lambda _: None)
    note = (vendor.run.path / "release-note.md").read_text()
    assert "## What this image does not keep" in note
    assert "- No old \\*ciphers\\*. the \\*vendor\\* chose &lt;so&gt;\n" in note
    assert detail_of(verdict)["checks"][1]["outcome"] == "unmet"

    later, keys = artifact.built_at + timedelta(minutes=1), vendor.project / "keys"
    say = [].append
    bundle = sign(
        artifact, verdict, run=vendor.run, state=vendor.state, signing=Signing(), keys=keys, now=later, say=say
    )
    assert (bundle.directory / artifact.path.name).read_bytes() == content
    seen = verify_signatures(bundle.directory, keys=keys, trusted=vendor.state.keys / "public", now=later)
    assert seen.evidence is not None
    assert (seen.evidence.passed, seen.evidence.unmet) == (1, ("test_ssh.py::test_x",))
    assert seen.evidence.materials == 2

    trust = Trust(keys=keys, trusted=vendor.state.keys / "public")
    (tarball_file,) = bundle.directory.glob("*-source.tar.xz")
    again = rebuild(tarball_file, trust=trust, state=vendor.state, now=later, say=say, out=tmp_path / "again")
    assert (again.identical, again.sha256) == (True, artifact.sha256)
    assert (tmp_path / "again" / artifact.path.name).read_bytes() == content
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputsError, match="is not kept in"):
        rebuild(tarball_file, trust=trust, state=vendor.state, now=later, say=say, inputs=str(tmp_path / "empty"))

    store = MemoryStore(MemoryGlance(), "project", holder="h")
    release = publish(bundle, store=store, target=Target(), now=later, say=say)
    kept = store.get(release.image_id)
    assert (kept.size_bytes, kept.hash_value) == (len(content), hashlib.sha512(content).hexdigest())
    assert kept.properties["image_original_user"] == "debian"
    folder = publish_directory(bundle, release.dated_name, dist=tmp_path / "dist", target=Target())
    assert folder.parent.name == "Community_Vendor_1"
    assert (folder / artifact.path.name).read_bytes() == content


def test_a_failure_that_is_not_named_is_red_and_signs_nothing(vendor: Vendor, address: str) -> None:
    artifact = vendor.take(vendor.describe_with(address))
    with pytest.raises(NotGood, match="a red image is not signed"):
        sign(
            artifact,
            green(artifact, ()),
            run=vendor.run,
            state=vendor.state,
            signing=Signing(),
            keys=vendor.project / "keys",
            now=now() + timedelta(minutes=1),
            say=lambda _: None,
        )


def test_the_same_pins_are_an_unchanged_night_and_the_store_needs_no_vendor(vendor: Vendor, address: str) -> None:
    recipe = vendor.describe_with(address)
    artifact = vendor.take(recipe)
    vendor.run.write("describe", recipe)
    vendor.run.write("build", artifact)
    found = compare_with(vendor.run, recipe, here=vendor.here, now=now(), say=lambda _: None)
    assert found.same
    (vendor.folder / NAME).unlink()
    again = vendor.take(recipe)
    assert (again.sha256, again.build_id) == (artifact.sha256, artifact.build_id)
    assert not list(vendor.run.path.glob(".*.part"))
    other = vendor.describe_with(address, sha256="ab" * 32)
    found = compare_with(vendor.run, other, here=vendor.here, now=now(), say=lambda _: None)
    assert not found.same


def damaged(vendor: Vendor) -> None:
    (vendor.folder / NAME).write_bytes(vendor.image.read_bytes()[:-1] + b"!")


def signed_by_another(vendor: Vendor) -> None:
    stranger = make_key(vendor.folder, "stranger")
    (vendor.folder / f"{NAME}.sig").unlink()
    gpg = ["gpg", "--homedir", str(stranger.home), "--batch"]
    ran([*gpg, "--output", str(vendor.folder / f"{NAME}.sig"), "--detach-sign", str(vendor.folder / NAME)])
    both = (vendor.project / "keys" / "vendor" / "vendor.gpg").read_bytes() + stranger.keyring.read_bytes()
    (vendor.project / "keys" / "vendor" / "vendor.gpg").write_bytes(both)


@pytest.mark.parametrize(
    ("spoil", "changed", "says"),
    [
        (damaged, {}, f"'{NAME}' is not the file that is pinned"),
        (lambda one: (one.folder / NAME).unlink(), {}, f"the vendor does not serve '{NAME}'"),
        (lambda one: (one.folder / f"{NAME}.sig").unlink(), {}, f"the vendor does not serve '{NAME}.sig'"),
        (lambda one: (one.folder / f"{NAME}.sig").write_bytes(b"x" * (2 << 20)), {}, "is larger than 1 MiB"),
        (lambda one: (one.folder / f"{NAME}.sig").write_bytes(b"x"), {}, f"the signature of '{NAME}' is not good"),
        (signed_by_another, {}, f"'{NAME}' is signed by another key"),
        (lambda _: None, {"key": "0" * 40}, f"'{NAME}' is signed by another key"),
        (lambda _: None, {"url": "http://127.0.0.1:9/x.qcow2"}, ""),
    ],
)
def test_what_is_not_the_vendors_own_stops_the_build_by_name(
    vendor: Vendor, address: str, spoil, changed, says, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("factory.inputs.upstream.time.sleep", lambda _: None)  # the clock
    recipe = vendor.describe_with(address, **changed)
    spoil(vendor)
    if spoil is signed_by_another:
        recipe = replace(recipe, keyrings={"vendor": vendor.project / "keys" / "vendor" / "vendor.gpg"})
    with pytest.raises(InputsError) as refused:
        vendor.take(recipe)
    assert says in refused.value.message
    assert not list(vendor.run.path.glob("*.qcow2"))


def test_a_disk_that_is_larger_than_described_or_no_image_at_all(vendor: Vendor, address: str, tmp_path: Path) -> None:
    for options, says in (
        (["-f", "qcow2", str(tmp_path / "x"), "2G"], "for disks of 2.00 GiB, the description says 1"),
        (["-f", "raw", str(tmp_path / "x"), "1M"], "is not a qcow2 image"),
        (["-f", "qcow2", "-F", "qcow2", "-b", str(vendor.image), str(tmp_path / "x")], "refers to other files"),
    ):
        (tmp_path / "x").unlink(missing_ok=True)
        ran(["qemu-img", "create", "-q", *options])
        shutil.copyfile(tmp_path / "x", vendor.folder / NAME)
        sha256 = hashlib.sha256((tmp_path / "x").read_bytes()).hexdigest()
        recipe = vendor.describe_with(address, sha256=sha256, signature="", key="")
        with pytest.raises(FactoryError, match=says):
            vendor.take(recipe)


def test_the_sites_mirror_is_read_instead_and_shows_nowhere(vendor: Vendor, address: str) -> None:
    (vendor.project / "site.toml").write_text(f'[repositories.vendor.vendor]\nurl = "{address}"\n')
    recipe = vendor.describe_with("https://vendor.example/images")
    artifact = vendor.take(recipe)
    assert artifact.path.read_bytes() == vendor.image.read_bytes()
    port = address.rpartition(":")[2]
    with tarfile.open(artifact.tarball) as tarball:
        for member in tarball.getmembers():
            file = tarball.extractfile(member)
            assert file is None or f":{port}".encode() not in file.read(), member.name
    assert f":{port}" not in artifact.lock.read_text()


@pytest.mark.slow
@pytest.mark.needs_root
@pytest.mark.needs_mirror
@pytest.mark.needs_glance
def test_the_night_of_a_debian_that_mmdebstrap_made(key: SigningKey, tmp_path: Path, progress) -> None:
    """Made, fetched, booted, judged; what it does not keep is then named, and it is released."""
    folder = tmp_path / "made"
    folder.mkdir()
    assert os.geteuid() == 0
    made = vendor_image(folder, mirror=host_repositories()["debian"].url)
    vendor = made_vendor(made, key, tmp_path)
    shutil.rmtree(folder / "tree")
    with mirror(vendor.folder) as (address, _):
        vendor.describe_with(address, min_gib=3)
        words = ("--project", vendor.project)
        first = type_factory(*words, "nightly", "vendor", "--allow-dirty", "--json", state=vendor.state.path)
        try:
            assert first.returncode == 1, first.stderr[-3000:]
            checks = json.loads(first.stdout)["value"]["verdict"]["checks"]
            failed = [one for one in checks if one["outcome"] == "failed"]
            assert "boot::the_image_boots" not in {one["name"] for one in failed}, failed
            progress(f"{len(failed)} of {len(checks)} guarantees are not kept by a plain Debian")
            unmet = "".join(
                f'\n[[unmet]]\ncheck = "{one}"\nreason = "as the vendor made it"\n'
                for one in sorted({one["name"].partition("[")[0] for one in failed})
            )
            vendor.describe_with(address, min_gib=3, unmet=unmet)
            second = type_factory(*words, "nightly", "vendor", "--allow-dirty", "--json", state=vendor.state.path)
            assert second.returncode == 0, second.stderr[-3000:]
        finally:
            type_factory("cloud", "down", state=vendor.state.path, timeout_s=120)
    night = json.loads(second.stdout)["value"]
    assert night["outcome"] == "published"
    assert sum(one["outcome"] == "unmet" for one in night["verdict"]["checks"]) >= len(failed) - 2
    (release,) = vendor.state.dist.glob("Community_Vendor_1/*")
    assert (release / "vendor.x86_64.qcow2").read_bytes() == made.read_bytes()
