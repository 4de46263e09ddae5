# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import configparser
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import example, given
from hypothesis import strategies as st

from factory.errors import InputFault
from factory.model import Region, RegionClient, Registration, Repository, Server
from factory.region import ini
from factory.region.certificates import Issued, issue
from factory.region.check import check_config, check_pem, check_tree, region_items
from factory.region.config import client_config, guest_config, guest_files, install, items, region_data
from factory.region.embedded import embedded_region
from factory.region.region_rules import check_regions
from factory.region.server import parse_region_data

NOW = datetime(2026, 3, 1, tzinfo=UTC)
LIFETIME_DAYS = 760
GOOD = """\
[server]
api = regionInfo
certLocation = /usr/lib/regionService/certs
regionsrv = 192.0.2.10,198.51.100.10

[instance]
dataProvider = none
instanceArgs = none
httpsOnly = true

[service]
packageBackend = apt
"""
REPOSITORY = Repository(alias="debian", url="https://mirror.example/debian", suites=("trixie",), key="/usr/k.gpg")


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Region:
    return embedded_region(tmp_path_factory.mktemp("region"), now=NOW)


@pytest.fixture
def tree(tmp_path: Path, region: Region) -> Path:
    install(tmp_path, guest_files((region,), RegionClient(), Registration(), (REPOSITORY,)))
    return tmp_path


def test_the_generated_config_is_the_expected_text_and_has_no_fault(region: Region) -> None:
    text = client_config((region,), RegionClient())
    assert text == GOOD
    assert examine_config(text).faults == ()
    assert examine_config(text).warnings == ()
    assert region_items(text) == ("192.0.2.10", "198.51.100.10")


def test_items_are_addresses_else_names_and_each_once() -> None:
    both = Server(name="a.invalid", ipv4="192.0.2.1", ipv6="2001:db8::1", pem=Path("a"))
    named = Server(name="b.invalid", pem=Path("b"))
    regions = [Region(name="one", servers=(both, named)), Region(name="two", servers=(both,))]
    assert list(items(regions)) == ["192.0.2.1", "2001:db8::1", "b.invalid"]


def test_the_guests_config_names_product_and_repositories() -> None:
    parser = configparser.RawConfigParser()
    parser.read_string(guest_config(Registration(), (REPOSITORY,)))
    assert parser["registration"]["product"] == "debian/13/x86_64"
    assert dict(parser["repository debian"]) == {
        "suites": "trixie",
        "components": "main",
        "signed-by": "/usr/k.gpg",
        "replaces": "https://mirror.example/debian",
    }


@pytest.mark.parametrize(
    ("old", "new", "place", "words"),
    [
        ("[server]", "[servers]", ":1", "no [server] section"),
        ("regionsrv = 192.0.2.10,198.51.100.10", "", ":1 server", "has no 'regionsrv'"),
        ("192.0.2.10,", "https://192.0.2.10,", ":4 server.regionsrv", "has a scheme"),
        ("192.0.2.10,", "[2001:db8::1],", ":4 server.regionsrv", "has brackets"),
        ("192.0.2.10,", "192.0.2.999,", ":4 server.regionsrv", "neither an address nor a DNS name"),
        ("192.0.2.10,", "192.0.2.10:443,", ":4 server.regionsrv", "neither an address nor a DNS name"),
        ("198.51.100.10", "192.0.2.10", ":4 server.regionsrv", "is there twice"),
        ("192.0.2.10,198.51.100.10", "<SERVER>", ":4 server.regionsrv", "placeholder"),
        ("192.0.2.10,198.51.100.10", "REGION SERVER IPS", ":4 server.regionsrv", "placeholder"),
        ("api = regionInfo", "api = /regionInfo", ":2 server.api", "begins with '/'"),
        ("/usr/lib/regionService", "usr/lib", ":3 server.certLocation", "not an absolute path"),
        (
            "api = regionInfo",
            "api = regionInfo\nmetadata_server = SOME_URL",
            ":3 server.metadata_server",
            "not an http",
        ),
        ("httpsOnly = true", "httpsOnly = True", ":9 instance.httpsOnly", "does not count as true"),
        ("httpsOnly = true", "", ":6 instance", "has no 'httpsOnly'"),
        ("dataProvider = none", "dataProvider = provider", ":7 instance.dataProvider", "not an absolute path"),
        ("dataProvider = none", "dataProvider = /bin/a | /bin/b", ":7 instance.dataProvider", "shell syntax"),
        ("instanceArgs = none", "instanceArgs = plugin.py", ":8 instance.instanceArgs", "not a module name"),
        ("packageBackend = apt", "", ":11 service", "has no 'packageBackend'"),
        ("packageBackend = apt", "packageBackend = dnf", ":12 service.packageBackend", "never register"),
        ("[service]", "[instance]", ":11", "is there twice"),
        ("[server]", "api = x\n[server]", ":1", "before the first [section]"),
        ("api = regionInfo", "api = a\napi = b", ":3", "is there twice"),
        ("api = regionInfo", "api", ":2", "neither a section nor"),
    ],
)
def test_a_fault_of_the_config_is_named_with_its_line(old: str, new: str, place: str, words: str) -> None:
    found = check_config(GOOD.replace(old, new, 1))
    assert any(
        fault.place.startswith(f"etc/regionserverclnt.cfg{place}") and words in fault.problem and fault.cure
        for fault in found
    ), found


def test_all_faults_are_told_at_once() -> None:
    found = check_config(GOOD.replace("true", "yes").replace("none", "x|y").replace("regionInfo", "/a"))
    assert len(found) >= 4


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (",198.51.100.10", "", "one region server only"),
        ("httpsOnly = true", "httpsOnly = false", "port 80 must be served"),
        ("api =", "metadata_server = https://m.invalid/x\napi =", "replaces all region servers"),
    ],
)
def test_what_is_unwise_is_a_warning(old: str, new: str, words: str) -> None:
    found = examine_config(GOOD.replace(old, new))
    assert found.faults == ()
    assert any(words in warning.problem for warning in found.warnings)


def issued(item: str = "192.0.2.10", **changes: object) -> Issued:
    wanted: dict[str, object] = {"now": NOW, "days": 2000, "addresses": [item], **changes}
    return issue("server", **wanted)  # type: ignore[arg-type]


def version_1(made: Issued) -> str:
    """The certificate as version 1 although it has extensions, as SUSE's generator makes them."""
    assert isinstance(made.key, ec.EllipticCurvePrivateKey)
    version_3 = bytes.fromhex("a003020102")
    body = made.certificate.tbs_certificate_bytes
    to_be_signed = _sequence(body[body.index(version_3) + len(version_3) :])
    signature = made.key.sign(to_be_signed, ec.ECDSA(hashes.SHA256()))
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")
    bits = b"\x03" + _length(len(signature) + 1) + b"\0" + signature
    from cryptography import x509

    return (
        x509.load_der_x509_certificate(_sequence(to_be_signed + algorithm + bits)).public_bytes(Encoding.PEM).decode()
    )


def _sequence(body: bytes) -> bytes:
    return b"\x30" + _length(len(body)) + body


def _length(size: int) -> bytes:
    if size < 128:
        return bytes([size])
    return bytes([0x81, size]) if size < 256 else b"\x82" + size.to_bytes(2, "big")


def pem_cases() -> dict[str, tuple[str, str]]:
    good = issued().pem.decode()
    old = issued(days=100).pem.decode()
    return {
        "good": (good, ""),
        "renewal": (old + good, ""),
        "renewal-reversed": (good + old, "newer certificate first"),
        "three": (good * 3, "holds 3 certificates"),
        "empty": ("", "holds 0 certificates"),
        "garbage": ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "is not a certificate"),
        "wrong-name": (issued("203.0.113.1").pem.decode(), "does not name 192.0.2.10"),
        "no-name": (issue("192.0.2.10", now=NOW, days=2000).pem.decode(), "does not name 192.0.2.10"),
        "name-not-address": (
            issue("x", now=NOW, days=2000, names=["192.0.2.10"]).pem.decode(),
            "does not name 192.0.2.10",
        ),
        "expired": (issued(now=NOW - timedelta(days=50), days=40).pem.decode(), "expired on 2026-02-19"),
        "expires": (issued(days=700).pem.decode(), "expires on"),
        "future": (issued(now=NOW + timedelta(days=9)).pem.decode(), "not valid before"),
        "key": (good + issued().key_pem.decode(), "holds a private key"),
        "version-1": (version_1(issued()), "version 1"),
    }


@pytest.mark.parametrize("case", pem_cases())
def test_a_pem_is_good_or_its_fault_is_named(case: str) -> None:
    text, words = pem_cases()[case]
    found = check_pem(text, "192.0.2.10", place="x.pem", now=NOW, lifetime_days=LIFETIME_DAYS)
    if words:
        assert any(words in fault.problem for fault in found), found
        assert all(fault.place.startswith("x.pem:") for fault in found)
    else:
        assert found == ()


def test_the_tree_that_the_factory_writes_has_no_fault(tree: Path, region: Region) -> None:
    found = examine_tree(tree, (region,), now=NOW, lifetime_days=LIFETIME_DAYS)
    assert found.faults == ()
    assert found.warnings == ()
    assert (tree / "usr/sbin/guestregister").stat().st_mode & 0o777 == 0o755


SPOIL = {
    "usr/lib/regionService/certs/192.0.2.10.pem": ("remove", "no readable PEM"),
    "etc/regionserverclnt.cfg": ("remove", "cannot be read"),
    "etc/systemd/system/multi-user.target.wants/guestregister.service": ("remove", "not enabled"),
    "etc/guestregister/credentials": ("write", "left from a registration"),
    "var/cache/cloudregister/currentSMTInfo.obj": ("write", "left from a registration"),
    "etc/hosts": ("127.0.0.1 localhost\n\n# Added by SMT registration\n", "names an update server"),
    "etc/cloud/cloud.cfg.d/90.cfg": ("x: 1\nmanage_etc_hosts: true\n", "rewrites /etc/hosts"),
}


@pytest.mark.parametrize("path", SPOIL)
def test_a_spoiled_tree_is_named_by_its_path(tree: Path, region: Region, path: str) -> None:
    how, words = SPOIL[path]
    (tree / path).parent.mkdir(parents=True, exist_ok=True)
    if how == "remove":
        (tree / path).unlink()
    else:
        (tree / path).write_text(how)
    found = check_tree(tree, (region,), now=NOW, lifetime_days=LIFETIME_DAYS)
    assert any(fault.place.startswith(path) and words in fault.problem for fault in found), found


def test_a_config_for_other_servers_and_orphans_are_seen(tree: Path, region: Region) -> None:
    config = tree / "etc/regionserverclnt.cfg"
    config.write_text(config.read_text().replace("192.0.2.10", "203.0.113.9"))
    found = examine_tree(tree, (region,), now=NOW, lifetime_days=LIFETIME_DAYS)
    problems = [fault.problem for fault in found.faults]
    assert "does not name region server 192.0.2.10" in problems
    assert "203.0.113.9 is no region server of this site" in problems
    assert [warning.place for warning in found.warnings] == ["usr/lib/regionService/certs/192.0.2.10.pem"]


def test_a_bring_your_own_image_is_not_enabled(tree: Path, region: Region, tmp_path: Path) -> None:
    found = check_tree(tree, (region,), now=NOW, lifetime_days=LIFETIME_DAYS, mode="byos")
    assert [fault.problem for fault in found] == ["guestregister.service is enabled"]
    other = tmp_path / "byos"
    install(other, guest_files((region,), RegionClient(), Registration(mode="byos"), ()))
    assert check_tree(other, (region,), now=NOW, lifetime_days=LIFETIME_DAYS, mode="byos") == ()
    assert guest_files((region,), RegionClient(), Registration(mode="none"), ()) == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "a&b"}, "characters that the protocol cannot carry"),
        ({"networks": ("10.0.0.1/8",)}, "has host bits set"),
        ({"update_servers": ()}, "has no update servers"),
        ({"ipv4": "127.0.0.1"}, "can never be another host"),
        ({"ipv4": "2001:db8::1"}, "is not IPv4"),
        ({"ipv6": "2001:db8::1"}, "only 1 of 2 update servers have ipv6"),
        ({"name_of_server": "a b"}, "is not a DNS name"),
        ({"ipv4": ""}, "has no address"),
        ({"pem": Path("/nonexistent")}, "is not a CA certificate"),
    ],
)
def test_a_region_that_cannot_be_served_is_refused(region: Region, change: dict[str, object], words: str) -> None:
    fields = {key: value for key, value in change.items() if key in {"name", "networks", "update_servers"}}
    server = {key.removesuffix("_of_server"): value for key, value in change.items() if key not in fields}
    spoiled = replace(region, **fields)  # type: ignore[arg-type]
    if server:
        first, *rest = region.update_servers
        spoiled = replace(region, update_servers=(replace(first, **server), *rest))  # type: ignore[arg-type]
    assert any(words in fault.problem for fault in check_regions([spoiled]))
    with pytest.raises(InputFault, match="cannot be served"):
        region_data([spoiled])


def test_two_regions_that_differ_in_case_only_are_refused(region: Region) -> None:
    assert any(
        "case does not count" in fault.problem for fault in check_regions([region, replace(region, name="EMBEDDED")])
    )


def test_generated_region_data_is_what_the_region_server_reads(region: Region) -> None:
    table = parse_region_data(region_data([region]), place="x")
    names = {server.name: server for server in table.regions["embedded"]}
    assert set(names) == {"update-a.factory.invalid", "update-b.factory.invalid"}
    assert names["update-a.factory.invalid"].registry == "registry-update-a.factory.invalid"


INI_LINES = st.sampled_from(
    ["[a]", "[b]", "x = 1", "X: 2", "y=", "  more", "# note", "; note", "", "   ", "z = a = b", "q :: r", "\tdeep"]
)


@given(st.lists(INI_LINES, max_size=12))
@example(["[a]", "x = 1", "", "  more"])
@example(["[a]", "x = 1", "# note", "  more", "", ""])
def test_the_ini_reader_agrees_with_pythons(lines: list[str]) -> None:
    text = "\n".join(lines)
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(text)
    except configparser.Error:
        assert ini.read(text, place="x").faults
        return
    found = ini.read(text, place="x")
    assert found.faults == ()
    assert {
        name: {option: value.value for option, value in section.options.items()}
        for name, section in found.sections.items()
    } == {name: dict(parser[name]) for name in parser.sections()}
