# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import configparser
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import example, given, settings
from hypothesis import strategies as st

from factory.errors import InputFault
from factory.model import Region, RegionClient, Registration, Server
from factory.region import ini
from factory.region.certificates import Issued, issue
from factory.region.check import (
    Examination,
    Notes,
    check_config,
    check_pem,
    check_tree,
    examine,
    examine_site,
    mode_in,
    region_items,
    tree_subject,
)
from factory.region.check_config import examine_text
from factory.region.check_findings import RULES, Outcome, Severity
from factory.region.check_qcow2 import qcow2_root
from factory.region.check_root import FolderRoot, Root
from factory.region.config import client_config, guest_config, guest_files, install, items, region_data
from factory.region.region_rules import check_regions
from factory.region.server import parse_region_data
from factory.system.run import run
from testsuite.fakes.regions import (
    CERTIFICATES,
    CLIENT,
    REPOSITORY,
    make_own_root,
    make_region,
    make_suse_root,
    with_update_server,
)

NOW = datetime(2026, 3, 1, tzinfo=UTC)
LIFETIME_DAYS = 760
CONFIG = "etc/regionserverclnt.cfg"
PEM = f"{CERTIFICATES[1:]}/192.0.2.2.pem"
GOOD = """\
[server]
api = regionInfo
certLocation = /usr/lib/regionService/certs
regionsrv = 192.0.2.1,2001:db8::1,192.0.2.2,192.0.2.3

[instance]
dataProvider = /usr/bin/instance-data
instanceArgs = cloudhint
httpsOnly = true

[service]
packageBackend = zypper
"""


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Region:
    return make_region(tmp_path_factory.mktemp("region"), now=NOW)


@pytest.fixture(scope="module")
def suse(tmp_path_factory: pytest.TempPathFactory, region: Region) -> Path:
    return make_suse_root(tmp_path_factory.mktemp("suse"), region)


@pytest.fixture
def root(tmp_path: Path, suse: Path) -> Path:
    return shutil.copytree(suse, tmp_path / "root", symlinks=True)


def examined(
    root: Path, regions: Sequence[Region] | None, *, mode: str = "on-demand", client: RegionClient = CLIENT
) -> Examination:
    notes = Notes()
    subject = tree_subject(root, mode=mode, regions=regions, client=client)
    examine(subject, notes, now=NOW, lifetime_days=LIFETIME_DAYS)
    return notes.examination(subject.name, subject.kind)


# -- what the factory writes ------------------------------------------------------------------------------------------


def test_the_generated_config_is_the_expected_text(region: Region) -> None:
    registration = Registration(client="registercloudguest")
    files = {one.path: one for one in guest_files((region,), CLIENT, registration, ())}
    assert files[CONFIG].content.decode() == GOOD
    assert region_items(GOOD) == ("192.0.2.1", "2001:db8::1", "192.0.2.2", "192.0.2.3")
    assert {path for path in files if path.endswith(".pem")} == {
        f"usr/lib/regionService/certs/{item}.pem" for item in region_items(GOOD)
    }
    assert "packageBackend = apt" in client_config((region,), RegionClient())
    assert "packageBackend = dnf" in client_config((region,), RegionClient(package_backend="dnf"))


def test_on_demand_and_byos_images_differ_in_the_service_only(region: Region) -> None:
    for client in ("registercloudguest", "guestregister"):
        made = {}
        for mode in ("on-demand", "byos"):
            found = guest_files((region,), CLIENT, Registration(mode=mode, client=client), (REPOSITORY,))
            made[mode] = {one.path: one for one in found if one.path != "etc/guestregister.conf"}
        assert set(made["on-demand"]) - set(made["byos"]) == {
            "etc/systemd/system/multi-user.target.wants/guestregister.service"
        }
        assert all(made["on-demand"][path] == file for path, file in made["byos"].items())
    assert guest_files((region,), CLIENT, Registration(mode="none"), ()) == ()


def test_suse_images_get_no_client_of_ours(region: Region) -> None:
    paths = {one.path for one in guest_files((region,), CLIENT, Registration(client="registercloudguest"), ())}
    assert not any("guestregister" in path and "wants" not in path for path in paths)


def test_items_are_addresses_else_names_and_each_once() -> None:
    both = Server(name="a.invalid", ipv4="192.0.2.1", ipv6="2001:db8::1", pem=Path("a"))
    named = Server(name="b.invalid", pem=Path("b"))
    regions = [Region(name="one", servers=(both, named)), Region(name="two", servers=(both,))]
    assert list(items(regions)) == ["192.0.2.1", "2001:db8::1", "b.invalid"]


def test_the_guests_config_names_product_mode_and_repositories() -> None:
    parser = configparser.RawConfigParser()
    parser.read_string(guest_config(Registration(mode="byos"), (REPOSITORY,)))
    assert dict(parser["registration"]) == {"product": "debian/13/x86_64", "mode": "byos"}
    assert dict(parser["repository debian"]) == {
        "suites": "trixie",
        "components": "main",
        "signed-by": "/usr/k.gpg",
        "replaces": "https://mirror.example/debian",
    }


# -- every rule, red for exactly its fault ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """How a good image is spoiled, and what is then said."""

    rule: int
    place: str
    words: str
    spoil: Callable[[Path], None]
    severity: Severity = Severity.ERROR


def change(path: str, old: str, new: str) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        text = (root / path).read_text()
        assert old in text
        (root / path).write_text(text.replace(old, new, 1))

    return spoil


def write(path: str, text: str = "x\n") -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)

    return spoil


def remove(path: str) -> Callable[[Path], None]:
    return lambda root: (root / path).unlink()


def link(path: str, target: str) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).unlink(missing_ok=True)
        (root / path).symlink_to(target)

    return spoil


def pem(text: Callable[[], str]) -> Callable[[Path], None]:
    return lambda root: (root / PEM).write_text(text())


def both(*spoils: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda root: [spoil(root) for spoil in spoils][-1]


def cfg(old: str, new: str) -> Callable[[Path], None]:
    return change(CONFIG, old, new)


PLUGIN = "usr/lib/python3.11/site-packages/cloudregister/cloudhint.py"
WANTS = "etc/systemd/system/multi-user.target.wants"
W, A = Severity.WARNING, Severity.ADVICE
CASES = {
    # 1: it parses
    "duplicate section": Case(1, ":11", "is there twice", cfg("[service]\npackageBackend = zypper", "[instance]\n")),
    "text before a section": Case(1, ":1", "before the first [section]", cfg("[server]", "api = x\n[server]")),
    "duplicate option": Case(1, ":3", "is there twice", cfg("api = regionInfo", "api = regionInfo\napi = b")),
    "no option": Case(1, ":6", "neither a section nor", cfg("[instance]", "junk\n[instance]")),
    "no server section": Case(1, ":1", "no [server] section", cfg("[server]", "[servers]")),
    "no instance section": Case(
        1, ":1", "no [instance] section", lambda root: (root / CONFIG).write_text(_without(root, "[instance]", 4))
    ),
    "placeholder": Case(1, ":2 server.api", "placeholder", cfg("api = regionInfo", "api = REPLACE_API")),
    "metadata placeholder": Case(
        1, ":2 server.metadata_server", "not an http(s) address", cfg("api =", "metadata_server = no url\napi =")
    ),
    "unknown section": Case(1, "[Service]", "no client reads", cfg("[service]\npackageBackend", "[Service]\nx"), W),
    "unknown option": Case(1, "server.apis", "no client reads", cfg("api =", "apis = x\napi ="), W),
    # 2: region servers
    "no regionsrv": Case(2, ":1 server", "has no 'regionsrv'", lambda root: _only(root, "regionsrv")),
    "empty regionsrv": Case(2, ":4 server", "has no 'regionsrv'", lambda root: _only(root, "regionsrv", "")),
    "no api": Case(2, ":1 server", "has no 'api'", cfg("api = regionInfo\n", "")),
    "slash": Case(2, ":2 server.api", "begins with '/'", cfg("api = regionInfo", "api = /regionInfo")),
    "address as api": Case(2, ":2 server.api", "not a path", cfg("regionInfo", "https://x/regionInfo")),
    "scheme": Case(2, ":4 server.regionsrv", "has a scheme", cfg(",192.0.2.3", ",192.0.2.3,https://192.0.2.4")),
    "brackets": Case(2, ":4 server.regionsrv", "has brackets", cfg(",192.0.2.3", ",192.0.2.3,[2001:db8::2]")),
    "no address": Case(2, ":4 server.regionsrv", "neither an address", cfg(",192.0.2.3", ",192.0.2.3,192.0.2.999")),
    "port": Case(2, ":4 server.regionsrv", "neither an address", cfg(",192.0.2.3", ",192.0.2.3,192.0.2.3:443")),
    "twice": Case(2, ":4 server.regionsrv", "is there twice", cfg(",192.0.2.3", ",192.0.2.3,192.0.2.3")),
    # 3: httpsOnly
    "True": Case(3, ":9 instance.httpsOnly", "does not count as true", cfg("httpsOnly = true", "httpsOnly = True")),
    "no httpsOnly": Case(3, ":6 instance", "has no 'httpsOnly'", cfg("httpsOnly = true\n", "")),
    "false": Case(3, ":9 instance.httpsOnly", "port 80", cfg("httpsOnly = true", "httpsOnly = false"), W),
    # 4: data provider
    "bare provider": Case(4, ":7 instance.dataProvider", "not an absolute path", cfg("/usr/bin/inst", "inst")),
    "shell": Case(4, ":7 instance.dataProvider", "shell syntax", cfg("/usr/bin/instance-data", "/usr/bin/x | y")),
    "no provider": Case(4, ":7 instance.dataProvider", "not in the image", remove("usr/bin/instance-data")),
    "provider mode": Case(4, ":7", "not executable", lambda root: (root / "usr/bin/instance-data").chmod(0o644)),
    "provider of another kind": Case(
        4, ":7", "wants '/usr/bin/perl'", write("usr/bin/instance-data", "#!/usr/bin/perl\n")
    ),
    # 5: plugin
    "plugin name": Case(5, ":8 instance.instanceArgs", "not a module name", cfg("cloudhint", "cloudhint.py")),
    "no plugin": Case(5, ":8 instance.instanceArgs", "has no module", remove(PLUGIN)),
    "plugin for another Python": Case(
        5,
        ":8",
        "runs with Python 3.11",
        both(remove(PLUGIN), write(PLUGIN.replace("3.11", "3.6"), "def generateRegionSrvArgs():\n  pass\n")),
    ),
    "plugin without function": Case(5, PLUGIN, "generateRegionSrvArgs", write(PLUGIN, "def other():\n  pass\n")),
    # 6: backend
    "no backend": Case(6, ":11 service", "has no 'packageBackend'", cfg("packageBackend = zypper", "")),
    "dnf": Case(6, ":12 service.packageBackend", "never register", cfg("zypper", "dnf")),
    # 8: PEMs
    "relative": Case(8, ":3 server.certLocation", "not an absolute path", cfg("= /usr/lib/reg", "= usr/lib/reg")),
    "no PEM": Case(8, PEM, "no readable PEM", remove(PEM)),
    "PEM misspelled": Case(
        8,
        f"{CERTIFICATES[1:]}/2001:db8::1.pem",
        "there is '2001:db8:0::1.pem'",
        lambda root: _rename(root, "2001:db8::1", "2001:db8:0::1"),
    ),
    "orphan": Case(8, "old.pem", "pins no region server", write(f"{CERTIFICATES[1:]}/old.pem"), W),
    "PEM leads nowhere": Case(8, PEM, "no readable PEM", link(PEM, "/nonexistent")),
    "PEM of another": Case(
        8, PEM, "not the certificate that the site file names", pem(lambda: issued("192.0.2.2").pem.decode())
    ),
    # 16: packages
    "no SUSEConnect": Case(16, "usr/sbin/SUSEConnect", "missing or not executable", remove("usr/sbin/SUSEConnect")),
    "no dmidecode": Case(16, "usr/sbin/dmidecode", "missing", remove("usr/sbin/dmidecode")),
    "container-suseconnect": Case(16, "container-suseconnect", "is there", write("usr/bin/container-suseconnect")),
    "no base product": Case(16, "baseproduct", "not a link", remove("etc/products.d/baseproduct")),
    "base product no link": Case(
        16, "baseproduct", "not a link", both(remove("etc/products.d/baseproduct"), write("etc/products.d/baseproduct"))
    ),
    "base product dangles": Case(16, "baseproduct", "not a link", remove("etc/products.d/SLES.prod")),
    "product without arch": Case(
        16, "SLES.prod:1", "does not tell arch", change("etc/products.d/SLES.prod", "<arch>x86_64</arch>", "")
    ),
    "product with entities": Case(
        16,
        "SLES.prod:1",
        "not XML",
        write("etc/products.d/SLES.prod", '<!DOCTYPE p [<!ENTITY a "b">]><p><name>&a;</name></p>'),
    ),
    "read-only root": Case(16, "etc/fstab:1", "read-only", write("etc/fstab", "UUID=1 / btrfs ro,noatime 0 0\n")),
    # 17: services
    "not enabled": Case(17, "guestregister.service", "not enabled", remove(f"{WANTS}/guestregister.service")),
    "no unit": Case(17, "guestregister.service", "no unit", remove("usr/lib/systemd/system/guestregister.service")),
    "no network": Case(
        17,
        "network-online",
        "waits for the network",
        remove("etc/systemd/system/network-online.target.wants/wicked.service"),
    ),
    "no time": Case(17, "multi-user", "no time service", remove(f"{WANTS}/chronyd.service")),
    # 18: left-overs
    "credentials": Case(18, "SCCcredentials", "left from", write("etc/zypp/credentials.d/SCCcredentials")),
    "cache": Case(18, "currentSMTInfo.obj", "left from", write("var/cache/cloudregister/currentSMTInfo.obj")),
    "service": Case(
        18,
        "x.service:2",
        "of an update server",
        write("etc/zypp/services.d/x.service", "[x]\nurl=plugin:/susecloud?x\n"),
    ),
    "hosts": Case(18, "etc/hosts:3", "update server", write("etc/hosts", "127.0.0.1 a\n\n# Added by SMT x\n")),
    "anchor": Case(18, "registration_server", "left from", write("etc/pki/trust/anchors/registration_server_1.pem")),
    # 19: registry
    "profile": Case(
        19,
        "etc/profile.local:1",
        "REGISTRY_AUTH_FILE",
        write("etc/profile.local", "export REGISTRY_AUTH_FILE=a\nexport DOCKER_CONFIG=b\n"),
    ),
    "registry there": Case(
        19,
        "registries.conf:2",
        "registry already",
        write("etc/containers/registries.conf", '[[registry]]\nlocation = "registry-a.cloud.example"\n'),
    ),
    "registries no TOML": Case(19, "registries.conf:1", "not TOML", write("etc/containers/registries.conf", "[[\n")),
    "daemon no JSON": Case(19, "daemon.json:1", "not JSON", write("etc/docker/daemon.json", "{,}\n")),
    # 20: can be written
    "hosts in usr": Case(20, "etc/hosts", "cannot be written", both(write("usr/h"), link("etc/hosts", "/usr/h"))),
    "no anchors": Case(20, "anchors", "no folder", lambda root: (root / "etc/pki/trust/anchors").rmdir()),
    "own bundle": Case(20, "cacert.pem", "CA bundle", write("usr/lib/python3.11/site-packages/certifi/cacert.pem")),
    # 21: cloud-init
    "hosts rewritten": Case(
        21,
        "91.cfg:2 manage_etc_hosts",
        "rewrites",
        write("etc/cloud/cloud.cfg.d/91.cfg", "x: 1\nmanage_etc_hosts: true\n"),
    ),
    # 22: proxy
    "proxy unquoted": Case(
        22,
        "proxy:2",
        "not in double quotes",
        write(
            "etc/sysconfig/proxy",
            'PROXY_ENABLED="yes"\nHTTP_PROXY=http://p\nNO_PROXY="192.0.2.1,2001:db8::1,192.0.2.2,192.0.2.3,update-a.cloud.example,update-b.cloud.example,update-c.cloud.example"\n',
        ),
    ),
    "proxy hides": Case(
        22,
        "proxy:1",
        "NO_PROXY does not name",
        write("etc/sysconfig/proxy", 'PROXY_ENABLED="yes"\nHTTP_PROXY="http://p"\n'),
        W,
    ),
}


def _only(root: Path, name: str, value: str | None = None) -> None:
    """The config without an option, and no PEM that would then be an orphan."""
    lines = (root / CONFIG).read_text().splitlines()
    kept = [line if not line.startswith(name) else f"{name} = {value}" for line in lines]
    (root / CONFIG).write_text("\n".join(line for line in kept if line != f"{name} = None"))
    if value is None or not value:
        shutil.rmtree(root / CERTIFICATES[1:])


def _without(root: Path, header: str, lines: int) -> str:
    kept = (root / CONFIG).read_text().splitlines(keepends=True)
    start = kept.index(f"{header}\n")
    return "".join(kept[:start] + kept[start + lines :])


def _rename(root: Path, old: str, new: str) -> None:
    folder = root / CERTIFICATES[1:]
    (folder / f"{old}.pem").rename(folder / f"{new}.pem")


def test_a_good_root_has_no_finding_and_every_rule_has_a_result(suse: Path, region: Region) -> None:
    found = examined(suse, (region,))
    assert found.findings == ()
    assert found.kind == "root file system"
    outcomes = {result.rule: result.outcome for result in found.rules}
    assert set(outcomes) == set(RULES)
    assert {rule for rule, outcome in outcomes.items() if outcome is Outcome.NOT_APPLICABLE} == {10}
    assert all(result.not_looked_at for result in found.rules if result.outcome is Outcome.NOT_APPLICABLE)


@pytest.mark.parametrize("name", CASES)
def test_a_spoiled_root_is_red_for_exactly_that_fault(name: str, root: Path, region: Region) -> None:
    case = CASES[name]
    case.spoil(root)
    found = examined(root, (region,)).findings
    if case.severity is Severity.ERROR:
        found = [one for one in found if one.severity is Severity.ERROR]
    assert [one.rule for one in found] == [case.rule], [str(one) for one in found]
    (only,) = found
    assert case.place in str(only.at)
    assert case.words in only.problem
    assert only.why
    assert only.cure


def test_all_faults_are_told_at_once() -> None:
    found = check_config(
        GOOD.replace("true", "yes").replace("/usr/bin/instance-data", "x|y").replace("regionInfo", "/a")
    )
    assert len(found) >= 4
    assert all(fault.cure for fault in found)


def test_a_missing_config_is_rule_7_and_nothing_is_passed_silently(root: Path, region: Region) -> None:
    (root / CONFIG).unlink()
    found = examined(root, (region,))
    assert [(one.rule, str(one.at)) for one in found.errors] == [(7, CONFIG)]
    skipped = {result.rule for result in found.rules if result.outcome is Outcome.NOT_APPLICABLE}
    assert {1, 2, 3, 6, 8, 9, 10} <= skipped


def test_a_metadata_server_replaces_region_servers_with_a_warning(root: Path, region: Region) -> None:
    cfg("api =", "metadata_server = https://meta.cloud.example/x\napi =")(root)
    found = examined(root, (region,))
    assert [(one.rule, one.severity) for one in found.findings] == [(1, Severity.WARNING)]
    assert {8, 9} <= {one.rule for one in found.rules if one.outcome is Outcome.NOT_APPLICABLE}


def test_a_config_for_other_servers_is_seen(root: Path, region: Region) -> None:
    cfg("192.0.2.3", "203.0.113.9")(root)
    problems = {(one.rule, one.problem) for one in examined(root, (region,)).findings}
    assert (2, "does not name region server 192.0.2.3") in problems
    assert (2, "203.0.113.9 is no region server of this site") in problems
    assert (8, "pins no region server of the configuration") in problems


@pytest.mark.parametrize(
    ("listed", "severity"),
    [(1, Severity.WARNING), (2, Severity.ADVICE), (3, None)],
)
def test_servers_are_counted(root: Path, region: Region, listed: int, severity: Severity | None) -> None:
    """Error at none, warning below two, advice below three: for region servers and for update servers."""
    fewer = replace(region, servers=region.servers[:listed], update_servers=region.update_servers[:listed])
    notes = Notes()
    examine_site([fewer], CLIENT, notes, file="site.toml", now=NOW)
    assert [(one.rule, one.severity) for one in notes.findings] == ([(2, severity), (11, severity)] if severity else [])
    kept = ["192.0.2.2", "192.0.2.3", "192.0.2.1"][:listed]
    cfg("192.0.2.1,2001:db8::1,192.0.2.2,192.0.2.3", ",".join(kept))(root)
    counted = [one for one in examined(root, None).findings if "region server" in one.problem and one.rule == 2]
    assert [one.severity for one in counted] == ([severity] if severity else [])


def test_no_server_is_an_error(region: Region) -> None:
    notes = Notes()
    examine_site([replace(region, servers=(), update_servers=())], CLIENT, notes, file="site.toml", now=NOW)
    assert {one.rule for one in notes.findings if one.severity is Severity.ERROR} == {2, 11}
    notes = Notes()
    meta = replace(CLIENT, metadata_server="https://meta.cloud.example/x")
    examine_site([replace(region, servers=())], meta, notes, file="site.toml", now=NOW)
    assert notes.findings == []


def test_a_bring_your_own_image_is_not_enabled(suse: Path, root: Path, region: Region) -> None:
    found = examined(suse, (region,), mode="byos")
    assert [(one.rule, one.problem) for one in found.findings] == [(17, "guestregister.service is enabled")]
    (root / WANTS / "guestregister.service").unlink()
    assert examined(root, (region,), mode="byos").findings == ()
    link(f"{WANTS}/guestregister-lic-watcher.timer", "/usr/lib/x.timer")(root)
    found = examined(root, (region,), mode="byos")
    assert [(one.rule, one.severity) for one in found.findings] == [(17, Severity.WARNING)]


def test_an_image_that_never_registers_is_looked_at_for_leftovers_only(root: Path) -> None:
    (root / CONFIG).unlink()
    write("etc/SUSEConnect")(root)
    found = examined(root, None, mode="none")
    assert [(one.rule, str(one.at)) for one in found.findings] == [(18, "etc/SUSEConnect")]
    assert {one.rule for one in found.rules if one.outcome is Outcome.NOT_APPLICABLE} == set(RULES) - {18}


@pytest.mark.parametrize("mode", ["on-demand", "byos"])
def test_a_root_with_our_client_is_good(tmp_path: Path, region: Region, mode: str) -> None:
    root = make_own_root(tmp_path, region, mode=mode)
    found = examined(root, (region,), mode=mode, client=RegionClient())
    assert found.findings == ()
    assert {one.rule for one in found.rules if one.outcome is Outcome.NOT_APPLICABLE} == {10, 19, 22}
    assert mode_in(FolderRoot(root)) == mode
    (root / "usr/sbin/guestregister").unlink()
    spoiled = examined(root, (region,), mode=mode, client=RegionClient())
    assert [one.rule for one in spoiled.errors] == [16]


@pytest.mark.parametrize(
    ("text", "severity"),
    [
        ("PROXY_ENABLED=no\nHTTP_PROXY=x\n", None),
        ("PROXY_ENABLED=yes\nNO_PROXY=.cloud.example,192.0.2.0/24,2001:db8::/32\n", None),
        ("PROXY_ENABLED=yes\nNO_PROXY=*\n", None),
        ("PROXY_ENABLED=yes\nNO_PROXY=cloud.example,192.0.2.1\n", Severity.WARNING),
    ],
)
def test_our_client_takes_values_without_quotes(
    tmp_path: Path, region: Region, text: str, severity: Severity | None
) -> None:
    root = make_own_root(tmp_path, region)
    write("etc/sysconfig/proxy", text)(root)
    found = examined(root, (region,), client=RegionClient()).findings
    assert [(one.rule, one.severity) for one in found] == ([(22, severity)] if severity else [])


def build_tree(
    folder: Path, region: Region, *, packages: Sequence[str], script: str = "", mode: str = "on-demand"
) -> Path:
    listed = "".join(f'<package name="{name}"/>' for name in packages)
    write("config.xml", f"<image><packages type='image'>{listed}</packages></image>")(folder)
    write("config.sh", f"#!/bin/bash\n{script}\n")(folder)
    install(folder / "root", guest_files((region,), CLIENT, Registration(mode=mode, client="registercloudguest"), ()))
    return folder


def test_a_suse_build_tree_is_judged_by_its_description(tmp_path: Path, region: Region) -> None:
    """The fixture description: what a kiwi description installs and enables counts, as far as it can be seen."""
    needed = ["cloud-regionsrv-client", "zypper"]
    good = examined(build_tree(tmp_path / "good", region, packages=needed), (region,))
    assert good.findings == ()
    assert good.kind == "build tree"
    assert {one.rule for one in good.rules if one.outcome is Outcome.NOT_APPLICABLE} == {10, 20, 22}
    cases = {
        "no client": (["zypper"], "", "byos", 16),
        "conflict": ([*needed, "container-suseconnect"], "", "on-demand", 16),
        "enabled by script": (needed, "systemctl enable chronyd guestregister", "byos", 17),
        "enabled as suse does": (needed, "baseInsertService guestregister", "byos", 17),
    }
    for name, (packages, script, mode, rule) in cases.items():
        tree = build_tree(tmp_path / name, region, packages=packages, script=script, mode=mode)
        found = examined(tree, (region,), mode=mode)
        assert [one.rule for one in found.errors] == [rule], name
    tree = build_tree(
        tmp_path / "script", region, packages=needed, script="systemctl enable guestregister", mode="byos"
    )
    assert examined(tree, (region,), mode="on-demand").errors == ()


# -- certificates -----------------------------------------------------------------------------------------------------


def issued(item: str = "192.0.2.2", **changes: object) -> Issued:
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
    der = _sequence(to_be_signed + algorithm + bits)
    return x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM).decode()


def _sequence(body: bytes) -> bytes:
    return b"\x30" + _length(len(body)) + body


def _length(size: int) -> bytes:
    if size < 128:
        return bytes([size])
    return bytes([0x81, size]) if size < 256 else b"\x82" + size.to_bytes(2, "big")


def weak(bits: int, algorithm: hashes.HashAlgorithm) -> str:
    """A certificate for 192.0.2.2 as an old tool would make it."""
    import ipaddress

    key = rsa.generate_private_key(public_exponent=65537, key_size=bits)
    name = x509.Name([])
    address = x509.IPAddress(ipaddress.ip_address("192.0.2.2"))
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1000, NOW, NOW + timedelta(days=2000))
    made = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False).sign(key, algorithm)
    return made.public_bytes(Encoding.PEM).decode()


def sha1(made: Issued) -> str:
    """The certificate with the mark of a SHA-1 signature; nobody checks it before the mark is seen."""
    der = made.certificate.public_bytes(Encoding.DER)
    marked = der.replace(bytes.fromhex("06082a8648ce3d040302"), bytes.fromhex("06072a8648ce3d0401"))
    assert marked != der
    body = made.certificate.tbs_certificate_bytes.replace(
        bytes.fromhex("300a06082a8648ce3d040302"), bytes.fromhex("300906072a8648ce3d0401")
    )
    inner = body[4:] if body[1] == 0x82 else body[3:]
    signature = der[-(2 + der[::-1].index(0)) :] if False else made.certificate.signature
    bits = b"\x03" + _length(len(signature) + 1) + b"\0" + signature
    whole = _sequence(_sequence(inner) + bytes.fromhex("300906072a8648ce3d0401") + bits)
    return x509.load_der_x509_certificate(whole).public_bytes(Encoding.PEM).decode()


def pem_cases() -> dict[str, tuple[Callable[[], str], str]]:
    def good(**changes: object) -> str:
        return issued(**changes).pem.decode()

    old = good(days=100)
    new = good()
    expired = good(now=NOW - timedelta(days=50), days=40)
    later = good(now=NOW + timedelta(days=200))
    return {
        "good": (good, ""),
        "good RSA": (lambda: weak(2048, hashes.SHA256()), ""),
        "renewal": (lambda: old + new, ""),
        "renewal reversed": (lambda: new + old, "newer certificate first"),
        "renewal with a gap": (lambda: old + later, "the old one ends earlier"),
        "the same twice": (lambda: new + new, "the same certificate twice"),
        "three": (lambda: old + new + good(), "holds 3 certificates"),
        "empty": (str, "holds 0 certificates"),
        "garbage": (
            lambda: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "is not a certificate",
        ),
        "wrong name": (lambda: good(addresses=["203.0.113.1"]), "does not name 192.0.2.2"),
        "no name": (lambda: issue("192.0.2.2", now=NOW, days=2000).pem.decode(), "does not name 192.0.2.2"),
        "name, not address": (lambda: good(addresses=[], names=["192.0.2.2"]), "does not name 192.0.2.2"),
        "renewal for another": (lambda: old + good(addresses=["203.0.113.1"]), "does not name 192.0.2.2"),
        "expired": (lambda: expired, "expired on 2026-02-19"),
        "expires": (lambda: good(days=700), "expires on"),
        "future": (lambda: good(now=NOW + timedelta(days=9)), "not valid before"),
        "key": (lambda: new + issued().key_pem.decode(), "holds a private key"),
        "version 1": (lambda: version_1(issued()), "version 1"),
        "weak": (lambda: weak(1024, hashes.SHA256()), "weak key"),
        "SHA-1": (lambda: sha1(issued()), "signed with sha1"),
    }


@pytest.mark.parametrize("case", pem_cases())
def test_a_pem_is_good_or_exactly_its_fault_is_named(case: str) -> None:
    make, words = pem_cases()[case]
    found = check_pem(make(), "192.0.2.2", place="x.pem", now=NOW, lifetime_days=LIFETIME_DAYS)
    if words:
        (fault,) = found
        assert words in fault.problem
        assert fault.place.startswith("x.pem:")
        assert fault.cure
    else:
        assert found == ()


def test_the_line_of_the_second_certificate_is_told() -> None:
    old, new = issued(days=100).pem.decode(), issued(days=700).pem.decode()
    (fault,) = check_pem("# old\n" + old + new, "192.0.2.2", place="x.pem", now=NOW, lifetime_days=LIFETIME_DAYS)
    assert fault.place == f"x.pem:{old.count(chr(10)) + 2}"


def test_an_expired_old_certificate_in_a_renewal_is_a_warning(root: Path, region: Region) -> None:
    expired = issued(now=NOW - timedelta(days=50), days=40).pem.decode()
    (root / PEM).write_text(expired + (root / PEM).read_text())
    assert [(one.rule, one.severity) for one in examined(root, (region,)).findings] == [(9, Severity.WARNING)]


def test_an_image_from_before_a_renewal_is_a_warning(root: Path, region: Region, tmp_path: Path) -> None:
    first, second, *rest = region.servers
    renewed = tmp_path / "renewed.pem"
    renewed.write_text(second.pem.read_text() + issued(days=3500).pem.decode())
    regions = (replace(region, servers=(first, replace(second, pem=renewed), *rest)),)
    found = examined(root, regions)
    assert [(one.rule, one.severity, one.at.file) for one in found.findings] == [(8, Severity.WARNING, PEM)]


# -- regions ----------------------------------------------------------------------------------------------------------


def region_cases(region: Region, folder: Path) -> dict[str, tuple[Region, RegionClient, int, str]]:
    authority = folder / "ca.pem"
    ca, own = region.update_servers[0].pem.read_text(), region.update_servers[0].certificate
    assert own is not None
    other_ca = issue("other", now=NOW, days=2000, is_authority=True)
    (folder / "other.pem").write_bytes(other_ca.pem)
    authority.write_text(ca + other_ca.pem.decode())
    expired = issue("CA", now=NOW - timedelta(days=90), days=60, is_authority=True)
    (folder / "expired.pem").write_bytes(expired.pem)
    (folder / "key.pem").write_text(ca + other_ca.key_pem.decode())
    loop = with_update_server(region, ipv4="127.0.0.1", certificate=None)
    return {
        "name": (replace(region, name="a&b"), CLIENT, 11, "cannot carry"),
        "network": (replace(region, networks=("10.0.0.1/8",)), CLIENT, 11, "host bits"),
        "no update servers": (replace(region, update_servers=()), CLIENT, 11, "no update servers"),
        "family": (with_update_server(region, ipv4="2001:db8::5"), CLIENT, 11, "is not IPv4"),
        "pairing": (with_update_server(region, ipv6=""), CLIENT, 11, "only 2 of 3"),
        "registry": (with_update_server(region, registry="a b", certificate=None), CLIENT, 11, "not a DNS name"),
        "no CA": (with_update_server(region, pem=Path("/nonexistent")), CLIENT, 12, "not a CA certificate"),
        "two CAs": (with_update_server(region, pem=authority), CLIENT, 12, "holds 2 certificates"),
        "CA key": (with_update_server(region, pem=folder / "key.pem"), CLIENT, 12, "private key"),
        "expired CA": (
            with_update_server(region, pem=folder / "expired.pem", certificate=None),
            CLIENT,
            12,
            "is valid from",
        ),
        "foreign CA": (with_update_server(region, pem=folder / "other.pem"), CLIENT, 12, "does not chain"),
        "registry not covered": (with_update_server(region, registry="r.cloud.example"), CLIENT, 12, "r.cloud.example"),
        "nowhere": (replace(region, networks=()), RegionClient(), 13, "no networks"),
        "loopback": (loop, CLIENT, 14, "never be another host"),
        "loopback 6": (with_update_server(region, ipv6="::1", certificate=None), CLIENT, 14, "never be another host"),
        "domains": (
            with_update_server(region, name="update-a.other.example", certificate=None),
            CLIENT,
            15,
            "several domains",
        ),
    }


REGION_CASES = (
    "name",
    "network",
    "no update servers",
    "family",
    "pairing",
    "registry",
    "no CA",
    "two CAs",
    "CA key",
    "expired CA",
    "foreign CA",
    "registry not covered",
    "nowhere",
    "loopback",
    "loopback 6",
    "domains",
)


@pytest.mark.parametrize("case", REGION_CASES)
def test_a_region_is_red_for_exactly_its_fault(region: Region, tmp_path: Path, case: str) -> None:
    cases = region_cases(region, tmp_path)
    assert set(cases) == set(REGION_CASES)
    spoiled, client, rule, words = cases[case]
    notes = Notes()
    examine_site([spoiled], client, notes, file="site.toml", now=NOW)
    found = [one for one in notes.findings if one.severity is Severity.ERROR]
    assert {one.rule for one in found} == {rule}, [str(one) for one in found]
    assert any(words in one.problem for one in found)
    assert all(one.at.file == "site.toml" and one.why and one.cure for one in found)


def test_a_region_found_by_its_hint_only_is_advice(region: Region) -> None:
    notes = Notes()
    examine_site([replace(region, networks=())], CLIENT, notes, file="site.toml", now=NOW)
    assert [(one.rule, one.severity) for one in notes.findings] == [(13, Severity.ADVICE)]


def test_what_a_region_server_would_refuse_is_an_error(region: Region) -> None:
    """Two regions that claim the same network: each may be well by itself."""
    notes = Notes()
    examine_site([region, replace(region, name="south")], CLIENT, notes, file="site.toml", now=NOW)
    assert {(one.rule, one.severity) for one in notes.findings} == {(11, Severity.ERROR)}
    assert all("192.0.2.0/24" in one.problem or "2001:db8::/32" in one.problem for one in notes.findings)


def test_two_regions_that_differ_in_case_only_are_refused(region: Region) -> None:
    assert any("case does not count" in one.problem for one in check_regions([region, replace(region, name="NORTH")]))
    with pytest.raises(InputFault, match="cannot be served"):
        region_data([region, replace(region, name="NORTH")])


def test_generated_region_data_is_what_the_region_server_reads(region: Region) -> None:
    table = parse_region_data(region_data([region]), place="x")
    names = {server.name: server for server in table.regions["north"]}
    assert set(names) == {f"update-{letter}.cloud.example" for letter in "abc"}
    assert names["update-a.cloud.example"].registry == "registry-a.cloud.example"


# -- reading images ---------------------------------------------------------------------------------------------------


def test_links_are_followed_inside_the_image_only(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of the host\n")
    root = tmp_path / "root"
    for path, target in (
        ("etc/absolute", str(tmp_path / "secret")),
        ("etc/up", "../../secret"),
        ("etc/loop", "loop"),
        ("folder", "/etc"),
        ("etc/inside", "/usr/real"),
    ):
        link(path, target)(root)
    write("usr/real", "of the image\n")(root)
    seen: Root = FolderRoot(root)
    assert seen.text("etc/absolute") is None
    assert seen.text("etc/up") is None
    assert seen.text("etc/loop") is None
    assert seen.text("folder/inside") == "of the image\n"
    assert list(seen.glob("folder/in*")) == ["folder/inside"]
    assert seen.real("folder/inside") == "usr/real"
    assert seen.entry("etc/inside") is not None
    assert seen.find("etc/absolute") is None


@pytest.mark.parametrize("partitioned", [True, False])
def test_a_qcow2_is_read_without_root_and_says_the_same(
    root: Path, region: Region, tmp_path: Path, *, partitioned: bool
) -> None:
    """A disk made by mke2fs and sfdisk; no mount, and links of both lengths."""
    write("etc/SUSEConnect")(root)
    (root / PEM).rename(root / PEM.replace("192.0.2.2", "x" * 100))
    link(PEM, f"{CERTIFICATES}/{'x' * 100}.pem")(root)
    raw, image = tmp_path / "disk.raw", tmp_path / "disk.qcow2"
    offset = 1 << 20 if partitioned else 0
    with raw.open("wb") as file:
        file.truncate((8 << 20) + offset)
    if partitioned:
        run(["sfdisk", "--quiet", raw], stdin=b"start=2048,type=83\n", timeout_s=20)
    run(["mke2fs", "-q", "-F", "-t", "ext4", "-d", root, "-E", f"offset={offset}", raw, "8m"], timeout_s=30)
    run(["qemu-img", "convert", "-O", "qcow2", raw, image], timeout_s=30)
    notes = Notes()
    with qcow2_root(image) as seen:
        assert seen.text(CONFIG) == GOOD
        subject = tree_subject(root, regions=(region,), client=CLIENT)
        subject = replace(subject, content=replace(subject.content, root=seen))
        examine(subject, notes, now=NOW, lifetime_days=LIFETIME_DAYS)
    in_folder = examined(root, (region,)).findings
    assert notes.examination("x", "qcow2").findings == in_folder
    assert {one.rule for one in in_folder if one.severity is Severity.ERROR} == {18}


def test_a_qcow2_that_reads_other_files_is_refused(tmp_path: Path) -> None:
    from factory.errors import NotGood

    base, image = tmp_path / "base.qcow2", tmp_path / "image.qcow2"
    run(["qemu-img", "create", "-q", "-f", "qcow2", base, "8M"], timeout_s=20)
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", image], timeout_s=20)
    with pytest.raises(NotGood, match="refers to other files"), qcow2_root(image):
        pass
    with pytest.raises(NotGood, match="no root file system"), qcow2_root(base):
        pass
    base.write_text("no image")
    with pytest.raises(NotGood, match="not a sound qcow2"), qcow2_root(base):
        pass


# -- the ini reader ---------------------------------------------------------------------------------------------------

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


@settings(max_examples=60)
@given(st.text(max_size=200) | st.lists(st.sampled_from([*GOOD.splitlines(), "[", "=", "\0", "a" * 300]), max_size=20))
@example("[server]\nmetadata_server = http://[\n")
def test_any_text_is_examined_without_a_traceback_and_pythons_refusals_are_errors(text: str | list[str]) -> None:
    whole = text if isinstance(text, str) else "\n".join(text)
    notes = Notes()
    examine_text(whole, notes, file="x")
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(whole)
    except configparser.Error:
        assert any(one.rule == 1 and one.severity is Severity.ERROR for one in notes.findings)
    assert all(str(one).isprintable() for one in notes.findings)


@given(st.binary(max_size=300))
def test_any_pem_is_examined_without_a_traceback(content: bytes) -> None:
    assert check_pem(content.decode(errors="replace"), "a.example", place="x", now=NOW, lifetime_days=1)


def test_the_old_entrance_still_tells_faults(root: Path, region: Region) -> None:
    assert check_tree(root, (region,), now=NOW, lifetime_days=LIFETIME_DAYS, client=CLIENT) == ()
    (root / PEM).unlink()
    (fault,) = check_tree(root, (region,), now=NOW, lifetime_days=LIFETIME_DAYS, client=CLIENT)
    assert fault.place == PEM


def test_the_reference_page_tells_every_rule() -> None:
    page = (Path(__file__).parents[2] / "docs/reference/region.md").read_text()
    for rule, title in RULES.items():
        assert f"| {rule} | {title} |" in page
