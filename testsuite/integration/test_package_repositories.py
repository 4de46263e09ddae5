# SPDX-License-Identifier: Apache-2.0
"""Our own packages in the hands of the real programs: apt-get, dpkg, rpm and zypper, in folders of their own."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest

from factory.model import Region, RegionClient, Signing
from factory.region.certificates import issue
from factory.region.config import CLIENT_CONFIG
from factory.region.embedded import embedded_region
from factory.region.packages import Packages, PackageSigner, build_packages, payloads
from factory.region.packages.repository import write_apt_repository, write_rpm_repository
from factory.sign.keyring import signing_key
from factory.system.clock import now
from factory.system.files import sha256_file
from factory.system.state import State
from testsuite.conftest import type_factory
from testsuite.repository import mirror

CLIENT = RegionClient(provider="acme")
PEM = "usr/lib/regionService/certs/192.0.2.10.pem"
STATUS = """Package: {name}
Status: install ok installed
Priority: optional
Section: misc
Maintainer: nobody
Architecture: all
Version: 3.11
Description: stands for the real one

"""


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Region:
    return embedded_region(tmp_path_factory.mktemp("region"), now=now())


@pytest.fixture(scope="module")
def later(region: Region, tmp_path_factory: pytest.TempPathFactory) -> Region:
    """The region after its first server's certificate was renewed."""
    first = region.servers[0]
    issued = issue(first.name, now=now() + timedelta(days=1, hours=1), days=900, addresses=[first.ipv4])
    pem = tmp_path_factory.mktemp("renewed") / "a.pem"
    pem.write_bytes(first.pem.read_bytes() + issued.pem)
    return replace(region, servers=(replace(first, pem=pem), *region.servers[1:]))


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PackageSigner]:
    with a_signer(tmp_path_factory.mktemp("state")) as made:
        yield made


class a_signer:  # noqa: N801 a context manager
    """The throw-away key of a state folder, open."""

    def __init__(self, folder: Path) -> None:
        state, when = State(path=folder).prepare(), now()
        self.opened = signing_key(Signing(), state=state, keys=folder / "keys", now=when, log=folder / "log")
        self.when = when

    def __enter__(self) -> PackageSigner:
        home, key, _ = self.opened.__enter__()
        public = home.export(key.fingerprint)
        return PackageSigner(home=home.path, fingerprint=key.fingerprint, public_key=public, now=self.when)

    def __exit__(self, *what: object) -> None:
        self.opened.__exit__(*what)


def built(folder: Path, region: Region, signer: PackageSigner) -> Packages:
    record = folder / "record.json"
    wanted = payloads((region,), CLIENT)
    return build_packages(wanted, folder / "out", record=record, signer=signer, now=now(), say=lambda _: None)


@pytest.fixture(scope="module")
def first(region: Region, signer: PackageSigner, tmp_path_factory: pytest.TempPathFactory) -> Packages:
    return built(tmp_path_factory.mktemp("packages"), region, signer)


@pytest.fixture
def copy(first: Packages, tmp_path: Path) -> Packages:
    """The first packages, to spoil or to add to."""
    shutil.copytree(first.folder.parent, tmp_path / "packages")
    return replace(first, folder=tmp_path / "packages/out")


@dataclass(frozen=True)
class Machine:
    """A folder that apt-get and dpkg take for the root of a Debian system."""

    root: Path

    def apt(self, *words: str) -> subprocess.CompletedProcess[str]:
        options = {
            "Dir": self.root,
            "Dir::State::status": self.root / "var/lib/dpkg/status",
            "Dir::Bin::methods": "/usr/lib/apt/methods",
            "APT::Sandbox::User": "root",
            "APT::Architecture": "amd64",
            "Dpkg::Options::": f"--root={self.root}",
            "Acquire::Languages": "none",
        }
        argv = ["apt-get", "--assume-yes", "--quiet"]
        for name, value in options.items():
            argv += ["-o", f"{name}={value}"]
        argv += ["-o", "Dpkg::Options::=--force-script-chrootless", "-o", "Dpkg::Options::=--force-confold"]
        env = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
        return subprocess.run([*argv, *words], capture_output=True, text=True, check=False, env=env)

    def has(self, name: str) -> str:
        argv = ["dpkg-query", f"--admindir={self.root}/var/lib/dpkg", "--show", "--showformat=${Version}", name]
        return subprocess.run(argv, capture_output=True, text=True, check=False).stdout


@pytest.fixture
def machine(tmp_path: Path, signer: PackageSigner) -> Machine:
    root = tmp_path / "machine"
    for name in ("etc/apt/sources.list.d", "etc/apt/preferences.d", "etc/apt/apt.conf.d", "etc/apt/trusted.gpg.d"):
        (root / name).mkdir(parents=True)
    for name in ("var/lib/apt/lists/partial", "var/cache/apt/archives/partial", "var/lib/dpkg/updates", "var/log/apt"):
        (root / name).mkdir(parents=True)
    (root / "var/lib/dpkg/info").mkdir()
    status = "".join(STATUS.format(name=name) for name in ("python3", "ca-certificates"))
    (root / "var/lib/dpkg/status").write_text(status)
    (root / "usr/share/keyrings").mkdir(parents=True)
    (root / "usr/share/keyrings/acme.asc").write_text(signer.public_key)
    return Machine(root=root)


def use(machine: Machine, address: str) -> None:
    source = f"deb [signed-by={machine.root}/usr/share/keyrings/acme.asc] {address} stable main\n"
    (machine.root / "etc/apt/sources.list").write_text(source)


# -- apt --------------------------------------------------------------------------------------------------------------


@pytest.mark.needs_root
def test_apt_installs_from_the_repository_and_an_update_brings_the_renewed_certificate(
    machine: Machine, copy: Packages, later: Region, signer: PackageSigner
) -> None:
    with mirror(copy.folder / "apt") as (address, asked):
        use(machine, address)
        assert machine.apt("update").returncode == 0
        done = machine.apt("install", "acme-guestregister")
        assert done.returncode == 0, done.stderr
        assert machine.has("acme-region-config") == copy.versions["acme-region-config"]
        old = (machine.root / PEM).read_text()
        config = machine.root / CLIENT_CONFIG
        config.write_text(config.read_text() + "# the owner's\n")

        update = built(copy.folder.parent, later, signer)
        assert update.versions["acme-guestregister"] == copy.versions["acme-guestregister"]
        assert machine.apt("update").returncode == 0
        done = machine.apt("upgrade")
        assert done.returncode == 0, done.stderr
    assert machine.has("acme-region-config") == update.versions["acme-region-config"]
    renewed = (machine.root / PEM).read_text()
    assert renewed.startswith(old)
    assert renewed.count("BEGIN CERTIFICATE") == 2
    assert config.read_text().endswith("# the owner's\n")
    assert any("/by-hash/SHA256/" in path for path in asked)


def foreign(folder: Path) -> None:
    with a_signer(folder.parent / "other-state") as other:
        suite = folder / "dists/stable"
        text = (suite / "Release").read_text()
        (suite / "InRelease").write_bytes(other.clear(text))
        other.detached(suite / "Release").replace(suite / "Release.gpg")


def unsigned(folder: Path) -> None:
    (folder / "dists/stable/InRelease").unlink()
    (folder / "dists/stable/Release.gpg").unlink()


def other_list(folder: Path) -> None:
    for path in (folder / "dists/stable").rglob("*"):
        if path.is_file() and "by-hash" in path.parts:
            content = path.read_bytes()
            plain = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
            spoilt = plain.replace(b"Version: ", b"Version: 9")
            path.write_bytes(gzip.compress(spoilt) if content[:2] == b"\x1f\x8b" else spoilt)


def other_release(folder: Path) -> None:
    path = folder / "dists/stable/InRelease"
    path.write_text(path.read_text().replace("Origin: Image Factory", "Origin: Somebody Else"))


@pytest.mark.needs_root
@pytest.mark.parametrize("spoil", [foreign, unsigned, other_list, other_release])
def test_apt_refuses_a_repository_that_was_tampered_with(machine: Machine, copy: Packages, spoil) -> None:
    spoil(copy.folder / "apt")
    with mirror(copy.folder / "apt") as (address, _):
        use(machine, address)
        updated = machine.apt("update", "-o", "APT::Update::Error-Mode=any")
        assert updated.returncode != 0
        assert machine.apt("install", "acme-guestregister").returncode != 0
    assert machine.has("acme-region-config") == ""


@pytest.mark.needs_root
def test_apt_refuses_a_package_that_was_tampered_with(machine: Machine, copy: Packages) -> None:
    deb = next((copy.folder / "apt/pool/main").glob("acme-region-config_*.deb"))
    content = bytearray(deb.read_bytes())
    content[-100] ^= 1
    deb.write_bytes(content)
    with mirror(copy.folder / "apt") as (address, _):
        use(machine, address)
        assert machine.apt("update").returncode == 0
        refused = machine.apt("install", "acme-guestregister")
    assert refused.returncode != 0
    assert "Hash Sum mismatch" in refused.stderr
    assert machine.has("acme-region-config") == ""


def test_the_signature_beside_a_package_verifies_with_the_published_key(first: Packages, tmp_path: Path) -> None:
    ring = tmp_path / "ring.gpg"
    key = first.folder / "apt/repository-key.asc"
    subprocess.run(["gpg", "--homedir", tmp_path, "--batch", "--dearmor", "-o", ring, key], check=True)
    assert len(first.debs) == 2
    for deb in first.debs:
        subprocess.run(["gpgv", "--keyring", ring, f"{deb}.asc", deb], check=True, capture_output=True)


def test_nothing_is_written_when_nothing_changed(copy: Packages, region: Region, signer: PackageSigner) -> None:
    def seen() -> dict[Path, tuple[int, int]]:
        files = (path for path in copy.folder.rglob("*") if path.is_file() and path.name != "repository-key.asc")
        return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in files}

    before = seen()
    again = built(copy.folder.parent, region, replace(signer, now=now()))
    assert again.versions == copy.versions
    assert seen() == before


def test_a_half_written_apt_repository_is_finished(copy: Packages, signer: PackageSigner) -> None:
    """A crash between two files: the next run makes the repository whole again."""
    suite = copy.folder / "apt/dists/stable"
    whole = {path.relative_to(suite) for path in suite.rglob("*") if path.is_file()}
    for victim in sorted(whole):
        (suite / victim).unlink()
        write_apt_repository((), copy.folder / "apt", signer=signer, now=signer.now)
        assert {path.relative_to(suite) for path in suite.rglob("*") if path.is_file()} == whole, victim


def test_an_rpm_repository_cut_off_before_its_index_is_finished(copy: Packages, signer: PackageSigner) -> None:
    listed = copy.folder / "rpm/repodata/repomd.xml"
    before = listed.read_bytes()
    package = next((copy.folder / "rpm").glob("acme-guestregister-*.rpm"))
    subprocess.run(["rpmsign", "--delsign", package], check=True, capture_output=True)  # other bytes
    write_rpm_repository((), copy.folder / "rpm", signer=signer, now=now())
    assert listed.read_bytes() != before
    primary = next((copy.folder / "rpm/repodata").glob("*-primary.xml.gz"))
    assert sha256_file(package) in gzip.decompress(primary.read_bytes()).decode()


# -- rpm --------------------------------------------------------------------------------------------------------------


def rpm(database: Path, *words: str | Path, root: Path | None = None) -> subprocess.CompletedProcess[str]:
    place = ["--root", root] if root else ["--define", f"_dbpath {database}"]
    return subprocess.run(["rpm", *place, *words], capture_output=True, text=True, check=False)


def test_rpm_verifies_the_packages_with_our_key_only(copy: Packages, tmp_path: Path) -> None:
    packages = sorted((copy.folder / "rpm").glob("*.rpm"))
    assert len(packages) == 2
    unknown = rpm(tmp_path / "empty", "-Kv", *packages)
    assert unknown.returncode != 0
    assert "NOKEY" in unknown.stdout
    ours = tmp_path / "ours"
    assert rpm(ours, "--import", copy.folder / "rpm/repodata/repomd.xml.key").returncode == 0
    known = rpm(ours, "-Kv", *packages)
    assert known.returncode == 0, known.stdout
    assert known.stdout.count("Header V4 EdDSA/SHA512 Signature") == 2
    content = bytearray(packages[0].read_bytes())
    content[-100] ^= 1
    packages[0].write_bytes(content)
    spoilt = rpm(ours, "-Kv", packages[0])
    assert spoilt.returncode != 0
    assert "Payload SHA256 digest: BAD" in spoilt.stdout


@pytest.mark.needs_root
def test_an_rpm_update_brings_the_renewed_certificate_and_keeps_the_owners_configuration(
    copy: Packages, later: Region, signer: PackageSigner, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    install = ("-U", "--nodeps", "--noscripts", "--nosignature")
    (package,) = (copy.folder / "rpm").glob("acme-region-config-*.rpm")
    assert rpm(root, *install, package, root=root).returncode == 0
    config = root / CLIENT_CONFIG
    assert "packageBackend = zypper\n" in config.read_text()
    config.write_text(config.read_text() + "# the owner's\n")
    plugin = root / "usr/lib/python3.11/site-packages/cloudregister/openstackregion.py"
    assert plugin.is_symlink()
    update = built(copy.folder.parent, later, signer)
    newer = next(path for path in update.rpms if "region-config" in path.name)
    upgraded = rpm(root, *install, newer, root=root)
    assert upgraded.returncode == 0, upgraded.stderr
    assert (root / PEM).read_text().count("BEGIN CERTIFICATE") == 2
    assert config.read_text().endswith("# the owner's\n")
    assert "acme-region-config" in rpm(root, "-q", "--whatprovides", "regionsrv-certs", root=root).stdout


def zypper(root: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    argv = ["zypper", "--root", root, "--non-interactive", *words]
    env = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "HOME": str(root)}
    return subprocess.run(argv, capture_output=True, text=True, check=False, env=env, timeout=120)


@pytest.fixture
def suse(tmp_path: Path, copy: Packages) -> Path:
    """A folder that zypper takes for the root of a system that knows our repository and demands signatures."""
    root = tmp_path / "suse"
    (root / "etc/zypp/repos.d").mkdir(parents=True)
    (root / "etc/zypp/repos.d/acme.repo").write_text(
        f"[acme]\nname=acme\nenabled=1\nautorefresh=1\nbaseurl=dir:{copy.folder}/rpm\ntype=rpm-md\n"
        "gpgcheck=1\nrepo_gpgcheck=1\npkg_gpgcheck=1\n"
    )
    return root


@pytest.mark.needs_root
def test_zypper_reads_the_signed_repository(suse: Path) -> None:
    assert zypper(suse, "refresh").returncode != 0, "a key that nobody confirmed was trusted"
    done = zypper(suse, "--gpg-auto-import-keys", "refresh")
    assert done.returncode == 0, done.stdout + done.stderr
    found = zypper(suse, "search", "--provides", "--match-exact", "cloud-regionsrv-client-config")
    assert "acme-region-config" in found.stdout
    fetched = zypper(suse, "download", "acme-region-config")
    assert fetched.returncode == 0, fetched.stdout + fetched.stderr


@pytest.mark.needs_root
def test_zypper_refuses_a_tampered_repository(suse: Path, copy: Packages) -> None:
    assert zypper(suse, "--gpg-auto-import-keys", "refresh").returncode == 0
    listed = copy.folder / "rpm/repodata/repomd.xml"
    listed.write_text(listed.read_text().replace("<revision>", "<revision>9"))
    refused = zypper(suse, "refresh", "--force")
    assert refused.returncode != 0
    assert "ignature verification failed" in refused.stdout + refused.stderr


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_builds_both_repositories(tmp_path: Path) -> None:
    done = type_factory("region", "package", "--out", tmp_path / "out", state=tmp_path / "state", timeout_s=120)
    assert done.returncode == 0, done.stderr
    assert "(throw-away)" in done.stdout
    assert len(list((tmp_path / "out/apt/pool/main").glob("image-factory-*.deb"))) == 2
    assert len(list((tmp_path / "out/rpm").glob("image-factory-*.noarch.rpm"))) == 2
    assert (tmp_path / "state/region-packages.json").is_file()
    assert not list((tmp_path / "out").rglob(".*"))
