# SPDX-License-Identifier: Apache-2.0
"""Our own packages: versions that only grow, and the same bytes for the same content."""

from __future__ import annotations

import gzip
import os
import subprocess
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.errors import FactoryError, InputFault
from factory.model import Region, RegionClient, Server
from factory.region.certificates import issue as issue_certificate
from factory.region.config import CLIENT_CONFIG
from factory.region.embedded import embedded_region
from factory.region.packages import Payload, build_deb, build_rpm, issue, payloads
from factory.region.packages.deb import gzipped
from factory.region.packages.repository import release_text
from factory.region.packages.versions import Issued, next_version, order
from factory.system.files import sha256_file

pytestmark = pytest.mark.programs

NOW = datetime(2026, 6, 1, 2, 3, 4, tzinfo=UTC)
CLIENT = RegionClient(provider="acme")
PEM = "usr/lib/regionService/certs/192.0.2.10.pem"


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Region:
    return embedded_region(tmp_path_factory.mktemp("region"), now=NOW)


@pytest.fixture(scope="module")
def config(region: Region) -> Payload:
    return payloads((region,), CLIENT)[0]


@pytest.fixture(scope="module")
def guest(region: Region) -> Payload:
    return payloads((region,), CLIENT)[1]


def renewed(region: Region, folder: Path, *, days: int) -> Region:
    """The region after the certificate of its first server was renewed: old and new in one PEM, the old one first."""
    first = region.servers[0]
    later = issue_certificate(first.name, now=NOW + timedelta(days=days), days=900, addresses=[first.ipv4])
    pem = folder / f"renewed-{days}.pem"
    pem.write_bytes(first.pem.read_bytes() + later.pem)
    return replace(region, servers=(replace(first, pem=pem), *region.servers[1:]))


def output(*argv: str | Path) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


# -- versions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "content", "known", "version"),
    [
        ("20260531.020304", "a", [], "20260531.020304"),
        ("20260531.020304", "a", [("20260531.020304", "a")], "20260531.020304"),
        ("20260531.020304", "b", [("20260531.020304", "a")], "20260531.020304+1"),
        ("20260531.020304", "b", [("20260531.020304+1", "b")], "20260531.020304+1"),
        ("20260531.020304", "c", [("20260531.020304+9", "b")], "20260531.020304+10"),
        ("20260601.000000", "b", [("20260531.020304+4", "a")], "20260601.000000"),
        # an old certificate came back: still an update
        ("20260501.000000", "a", [("20260531.020304", "b")], "20260531.020304+1"),
        # the record and a repository disagree about one version
        ("1.0", "a", [("1.0", "a"), ("1.0", "b")], "1.0+1"),
        # the record was lost, the repository was not
        ("1.0", "c", [("1.0", "a"), ("1.0+1", "b")], "1.0+2"),
        ("0.10.0", "b", [("0.9.0+3", "a")], "0.10.0"),
    ],
)
def test_a_version_follows_from_the_content_and_what_was_given_out(base, content, known, version) -> None:
    assert next_version(base, content, [Issued(version=one, content_sha256=of) for one, of in known]) == version


BASES = st.tuples(st.integers(1, 10**9), st.integers(0, 999999)).map(lambda two: f"{two[0]}.{two[1]:06d}")


@given(nights=st.lists(st.tuples(BASES, st.sampled_from("abc")), min_size=1, max_size=12))
def test_a_changed_content_is_always_newer_and_the_same_content_stays(nights) -> None:
    known: list[Issued] = []
    for base, content in nights:
        last = known[-1] if known else None
        version = next_version(base, content, known[-1:])
        if last is not None:
            assert order(version) >= order(last.version)
            assert version != last.version or content == last.content_sha256
        assert next_version(base, content, [Issued(version=version, content_sha256=content)]) == version
        known.append(Issued(version=version, content_sha256=content))


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("20260531.020304", "20260531.020304+1"),
        ("20260531.020304+9", "20260531.020304+10"),
        ("20260531.020304+99", "20260531.030000"),
        ("20260531.099999", "20260531.100000"),
        ("0.9.0+12", "0.10.0"),
        ("0.1.0", "0.1.0+1"),
    ],
)
def test_dpkg_and_rpm_order_versions_as_we_do(older: str, newer: str) -> None:
    assert order(older) < order(newer)
    subprocess.run(["dpkg", "--compare-versions", older, "lt", newer], check=True)
    assert output("rpm", "--eval", f'%{{lua:print(rpm.vercmp("{newer}", "{older}"))}}').strip() == "1"


@pytest.mark.parametrize("text", ["", "1.0-1", "1:2.0", "1.0+", "1..2", "v1", "1.0+1+1", "1.0\n", "٣"])
def test_versions_of_others_are_not_ordered(text: str) -> None:
    with pytest.raises(ValueError, match="is not a version"):
        order(text)


def test_the_record_makes_versions_stay_and_grow(region: Region, tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    first = issue(payloads((region,), CLIENT), record, published={})
    assert issue(payloads((region,), CLIENT), record, published={}) == first
    fewer = replace(region, servers=region.servers[:1])
    second = issue(payloads((fewer,), CLIENT), record, published={})
    assert second["acme-region-config"] == first["acme-region-config"] + "+1"
    assert second["acme-guestregister"] == first["acme-guestregister"]
    record.unlink()
    published = {"acme-region-config": [Issued(version=second["acme-region-config"], content_sha256="another")]}
    third = issue(payloads((region,), CLIENT), record, published=published)
    assert third["acme-region-config"] == first["acme-region-config"] + "+2"


def test_a_renewed_certificate_is_an_update_even_without_the_record(region: Region, tmp_path: Path) -> None:
    bases = [payloads((renewed(region, tmp_path, days=days),), CLIENT)[0].base for days in (100, 200)]
    bases.insert(0, payloads((region,), CLIENT)[0].base)
    assert bases == ["20260531.020304", "20260908.020304", "20261217.020304"]
    assert [order(base) for base in bases] == sorted(order(base) for base in bases)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"factory/region-packages/1": {"a": {"version": "x"}}}', "null"])
def test_a_damaged_record_is_told_and_not_overwritten(region: Region, tmp_path: Path, text: str) -> None:
    record = tmp_path / "record.json"
    record.write_text(text)
    with pytest.raises(FactoryError, match="is damaged"):
        issue(payloads((region,), CLIENT), record, published={})
    assert record.read_text() == text


# -- contents ---------------------------------------------------------------------------------------------------------


def test_the_configuration_and_the_client_are_two_packages(config: Payload, guest: Payload) -> None:
    assert {file.path for file in config.files} == {
        CLIENT_CONFIG,
        PEM,
        "usr/lib/regionService/certs/198.51.100.10.pem",
        "usr/lib/image-factory/openstackregion.py",
        "usr/lib/image-factory/instance-data",
    }
    assert config.keep == (CLIENT_CONFIG,)
    assert {file.path for file in guest.files} == {
        "usr/sbin/guestregister",
        "usr/lib/systemd/system/guestregister.service",
    }
    assert not any(
        "multi-user.target.wants" in file.path or file.path == "etc/guestregister.conf" for file in guest.files
    )


@pytest.mark.parametrize(
    ("client", "says"),
    [
        (RegionClient(provider="Acme"), "cannot begin a package name"),
        (RegionClient(provider="a"), "cannot begin a package name"),
        (RegionClient(provider="a b"), "cannot begin a package name"),
        (RegionClient(provider="acme\nEvil: yes"), "cannot begin a package name"),
        (RegionClient(cert_location="/usr/%{lua:os.exit()}/certs"), "cannot stand in a package"),
        (RegionClient(cert_location="/usr/certs*"), "cannot stand in a package"),
        (RegionClient(cert_location="/usr/../certs"), "cannot stand in a package"),
    ],
)
def test_names_that_a_package_cannot_have_are_told(region: Region, client: RegionClient, says: str) -> None:
    with pytest.raises(InputFault) as told:
        payloads((region,), client)
    assert says in "\n".join(told.value.lines())


def test_servers_known_by_ipv6_can_be_packed(region: Region, tmp_path: Path) -> None:
    server: Server = replace(region.servers[0], ipv6="2001:db8::10")
    payload = payloads((replace(region, servers=(server,)),), CLIENT)[0]
    rpm = build_rpm(payload, payload.base, tmp_path)
    assert "/usr/lib/regionService/certs/2001:db8::10.pem" in output("rpm", "-qpl", "--nosignature", rpm).split()


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [build_deb, build_rpm])
def test_the_same_content_makes_the_same_bytes(build, config: Payload, guest: Payload, tmp_path: Path) -> None:
    not_yet = replace(config, name="acme-future", epoch=int(datetime(2080, 1, 1, tzinfo=UTC).timestamp()))
    for payload in (config, guest, not_yet):
        found = []
        for number, mask in enumerate((0o022, 0o077)):
            before = os.umask(mask)
            try:
                folder = tmp_path / f"{payload.name}-{number}"
                found.append(sha256_file(build(payload, "1.0+1", folder)))
                time.sleep(1.1 if payload is not_yet and not number else 0)  # file times count seconds
            finally:
                os.umask(before)
        assert found[0] == found[1]
    other = build(replace(config, summary="another"), "1.0+1", tmp_path)
    assert sha256_file(other) != sha256_file(tmp_path / f"{config.name}-0" / other.name)


@given(st.binary(max_size=4000))
def test_every_python_packs_alike(content: bytes) -> None:
    """What differs between versions of Python is the header."""
    packed = gzipped(content)
    assert packed[:10] == bytes.fromhex("1f8b0800000000000203")
    assert gzip.decompress(packed) == content


def test_the_deb_is_one_that_dpkg_likes(config: Payload, guest: Payload, tmp_path: Path) -> None:
    deb = build_deb(config, "1.0", tmp_path)
    assert deb.name == "acme-region-config_1.0_all.deb"
    output("dpkg-deb", "--raw-extract", deb, tmp_path / "out")
    assert (tmp_path / "out/DEBIAN/conffiles").read_text() == "/etc/regionserverclnt.cfg\n"
    sums = (tmp_path / "out/DEBIAN/md5sums").read_text()
    assert PEM in sums
    assert "etc/" not in sums
    subprocess.run(["md5sum", "--check", "--quiet", "DEBIAN/md5sums"], cwd=tmp_path / "out", check=True)
    listing = output("dpkg-deb", "--contents", deb)
    assert all(line.split()[1] == "root/root" for line in listing.splitlines())
    assert {line.split()[0] for line in listing.splitlines()} == {"drwxr-xr-x", "-rw-r--r--", "-rwxr-xr-x"}
    programs = [line.split()[5] for line in listing.splitlines() if line.startswith("-rwx")]
    assert programs == ["./usr/lib/image-factory/instance-data"]
    assert output("dpkg-deb", "--field", deb, "Replaces").strip() == "acme-guestregister"
    depends = output("dpkg-deb", "--field", build_deb(guest, "1.0", tmp_path), "Depends")
    assert depends.strip() == "acme-region-config, python3 (>= 3.6), ca-certificates"


def test_the_rpm_is_what_suses_client_requires(config: Payload, tmp_path: Path) -> None:
    rpm = build_rpm(config, "1.0", tmp_path)
    asked = ("rpm", "-qp", "--nosignature")
    assert {"cloud-regionsrv-client-config", "regionsrv-certs"} <= set(output(*asked, "--provides", rpm).split())
    assert "otherproviders(cloud-regionsrv-client-config)" in output(*asked, "--conflicts", rpm)
    flags = dict(
        line.rsplit(" ", 1)[::-1]
        for line in output(*asked, "--queryformat", "[%{FILEFLAGS:fflags} %{FILENAMES}\n]", rpm).splitlines()
    )
    assert flags["/etc/regionserverclnt.cfg"] == "cn"  # %config(noreplace)
    assert flags[f"/{PEM}"] == ""
    links = output(*asked, "--queryformat", "[%{FILENAMES} %{FILELINKTOS}\n]", rpm)
    for minor in (6, 11, 13):
        folder = f"/usr/lib/python3.{minor}/site-packages/cloudregister"
        assert f"{folder}/openstackregion.py /usr/lib/image-factory/openstackregion.py\n" in links


@pytest.mark.parametrize(("backend", "theirs"), [("apt", "zypper"), ("dnf", "dnf"), ("zypper", "zypper")])
def test_the_rpm_names_the_backend_of_its_systems(region: Region, backend: str, theirs: str) -> None:
    payload = payloads((region,), replace(CLIENT, package_backend=backend))[0]
    texts = [
        next(file.content.decode() for file in files if file.path == CLIENT_CONFIG)
        for files in (payload.files, payload.all_rpm_files)
    ]
    assert f"packageBackend = {backend}\n" in texts[0]
    assert f"packageBackend = {theirs}\n" in texts[1]


def test_the_list_of_indexes_says_its_date_in_utc() -> None:
    text = release_text((), origin="Acme", date=NOW)
    assert "Date: Mon, 01 Jun 2026 02:03:04 UTC\n" in text
    assert "Acquire-By-Hash: yes\n" in text
