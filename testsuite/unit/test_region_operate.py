# SPDX-License-Identifier: Apache-2.0
"""What operators of update servers are told: mirrors, timers, peers, SMT exports, firewalls."""

from __future__ import annotations

import gzip
import io
import json
import re
import subprocess
import tarfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from factory.errors import InputFault, NotGood
from factory.model import Region, RegionClient, Server
from factory.region.certificates import issue
from factory.region.operate import smt_export
from factory.region.operate.documents import read_list
from factory.region.operate.firewall import Policy, nftables, openstack_commands, security_groups, walls
from factory.region.operate.mirrors import (
    ListedRepository,
    Need,
    RepositoryEntry,
    compare,
    config_text,
    product_config,
    read_listing,
    read_mirrors,
)
from factory.region.operate.peers import (
    normal_pin,
    pin_of,
    pinned,
    shared_secret,
    sharing,
    write_ca_folder,
    write_sharing,
)
from factory.region.operate.smt_export import Known, numbers, read_export, unpack_export
from factory.region.operate.timers import timers

NOW = datetime(2026, 6, 1, tzinfo=UTC)


def server(name: str, ipv4: str = "", ipv6: str = "", *, pem: Path = Path("ca.pem")) -> Server:
    return Server(name=name, ipv4=ipv4, ipv6=ipv6, pem=pem)


REGION = Region(
    name="Eu-West",
    networks=("198.51.100.0/25", "198.51.100.128/25", "2001:db8::/48"),
    servers=(server("region-a.example", "192.0.2.10"),),
    update_servers=(
        server("update-a.example", "192.0.2.20"),
        server("update-b.example", "198.51.100.20", "2001:db8::20"),
    ),
)

# -- mirrors: reading -------------------------------------------------------------------------------------------------

GOOD = {"comment": "c", "products": ["SLES"], "versions": ["15.7"], "arches": ["x86_64"], "additional_repos": []}
REPOSITORY = {"id": 7, "description": "d", "framework": None, "location": "/SUSE/Products/"}


def without(entry: dict, key: str) -> dict:
    return {name: value for name, value in entry.items() if name != key}


@pytest.mark.parametrize(
    ("entries", "place", "says"),
    [
        ([without(GOOD, "products")], "f:1 [0].products", "drops every later entry"),
        ([GOOD | {"versions": []}], "f:1 [0].versions", "is empty"),
        ([without(GOOD, "additional_repos")], "f:1 [0].additional_repos", "write []"),
        ([GOOD | {"arches": "x86_64"}], "f:1 [0].arches", "is not a list"),
        ([GOOD | {"arches": ["x86_64:"]}], "f:1 [0].arches[0]", "aarch64:ec2"),
        ([GOOD | {"arches": ["x86_64", 5]}], "f:1 [0].arches[1]", "5 is not a text"),
        ([GOOD | {"exclusions": [""]}], "f:1 [0].exclusions[0]", "match every repository"),
        ([GOOD | {"product": ["SLES"]}], "f:1 [0]", 'unknown key "product"'),
        ([GOOD | {"comment": 1}], "f:1 [0].comment", "is not a text"),
        ([GOOD, GOOD | {"products": ["sles"]}], "f:1 [1]", "sles/15.7/x86_64 stands in line 1 already"),
        (["SLES"], "f:1 [0]", "is not an object"),
        ([], "f", "describes nothing"),
        ([REPOSITORY | {"id": "7"}], "f:1 [0].id", "not SCC's number"),
        ([REPOSITORY | {"id": True}], "f:1 [0].id", "not SCC's number"),
        ([REPOSITORY, REPOSITORY], "f:1 [1]", "7 stands in line 1 already"),
        ([REPOSITORY | {"location": "/repo/SUSE/"}], "f:1 [0].location", "/repo/repo"),
        ([REPOSITORY | {"location": "SUSE/"}], "f:1 [0].location", "is no path below the mirror"),
        ([REPOSITORY | {"location": "/SUSE/../../etc"}], "f:1 [0].location", "leads out"),
        ([REPOSITORY | {"framework": ""}], "f:1 [0].framework", "null: every framework"),
        ([without(REPOSITORY, "framework")], "f:1 [0].framework", "null means"),
    ],
)
def test_a_description_s_faults_are_told_with_their_place(entries, place: str, says: str) -> None:
    found = read_mirrors(json.dumps(entries), shown="f").faults
    assert [fault.place for fault in found if says in str(fault)] == [place], found


@pytest.mark.parametrize(
    ("text", "place", "says"),
    [
        ("{}", "f:1:1", "a list is expected"),
        ("[{}\n{}]", "f:2:1", "a comma is missing"),
        ("[{}] x", "f:1:6", "something follows"),
        ("[{}", "f:1:4", "a comma is missing"),
        ('[{"id": 1, "id": 2}]', "f", "stands twice"),
        ("[NaN]", "f", "NaN is not a JSON value"),
        ("", "f:1:1", "a list is expected"),
    ],
)
def test_malformed_json_is_told_with_its_place(text: str, place: str, says: str) -> None:
    (fault,) = read_list(text, shown="f").faults
    assert (fault.place, says in str(fault)) == (place, True), fault


def test_all_faults_are_told_at_once_and_trailing_commas_hide_none() -> None:
    """As in the example that the reference ships: a comma too many, and generate-repos-config reads nothing."""
    text = """[
  {
    "comment": "SLES12, with a comma, ] in a text",
    "products": [ "SLES", "SLES_SAP" ],
    "versions": [ "12", "12.1",  ],
    "arches": [ "x86_64" ],
    "additional_repos": [ "Debuginfo"]
  },
  { "products": ["SLES"], "arches": ["x86_64"], "additional_repos": [], },
]"""
    found = read_mirrors(text, shown="product_config.json")
    assert [fault.place for fault in found.faults] == [
        "product_config.json:5",
        "product_config.json:9",
        "product_config.json:9",
        "product_config.json:9 [1].versions",
    ]
    assert [list(one.triples()) for one in found.products] == [
        ["sles/12/x86_64", "sles/12.1/x86_64", "sles_sap/12/x86_64", "sles_sap/12.1/x86_64"]
    ]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from([*GOOD, *REPOSITORY, "x"]), inner),
    max_leaves=12,
)


@given(entries=JSON)
def test_any_json_is_read_or_refused_with_faults(entries) -> None:
    found = read_mirrors(json.dumps(entries), shown="f")
    assert found.faults or found.products or found.repositories
    if not found.faults:
        again = json.dumps([entry for entry in entries if entry])
        assert read_mirrors(again, shown="f") == found


@given(text=st.text(alphabet='[]{},:" \n\\abc019.-', max_size=60))
def test_any_text_is_read_or_refused_with_faults(text: str) -> None:
    listing = read_list(text, shown="f")
    try:
        wanted = json.loads(text)
    except ValueError:
        wanted = None
    if isinstance(wanted, list) and not listing.faults:
        assert [entry.value for entry in listing.entries] == wanted
    else:
        assert listing.faults


# -- mirrors: made and compared ---------------------------------------------------------------------------------------


def test_the_description_follows_from_what_images_register_as() -> None:
    needs = [
        Need(image="sles15", product="SLES/15.7/x86_64"),
        Need(image="sap", product="SLES_SAP/15.7/x86_64"),
        Need(image="old", product="SLES/12.5/x86_64"),
        Need(image="sles16", product="SLES/16.0/aarch64"),
        Need(image="debian13", product="debian/13/x86_64"),
    ]
    made = product_config(needs, modules=["PackageHub"])
    assert [(one["versions"], one["products"]) for one in made] == [
        (["12"], ["sle-module-public-cloud"]),
        (["12.5"], ["PackageHub", "SLES"]),
        (
            ["15.7"],
            [
                "PackageHub",
                "SLES",
                "SLES_SAP",
                "sle-module-basesystem",
                "sle-module-public-cloud",
                "sle-module-sap-applications",
                "sle-module-server-applications",
            ],
        ),
        (["16.0"], ["PackageHub", "SLES"]),
    ]
    assert made[2]["comment"] == "for sap, sles15"
    assert read_mirrors(config_text(made), shown="f").faults == ()


def test_images_without_suse_products_need_no_mirror() -> None:
    assert product_config([Need(image="debian13", product="debian/13/x86_64")]) == []


LISTING = """SCC ID,Product,Description,Mandatory?,Mirror?,Last mirrored
1,SLES15-Pool,SLES 15 "Pool",true,true,2026-05-30 02:00:00 UTC
2,SLES15-Updates,Updates,true,false,
3,Extra,"Something, else",false,true,2026-05-30 02:00:00 UTC
4,SLES15-New,New,true,true,
5,Off,Off,false,false,
"""


def repository(number: int, framework: str | None = None) -> RepositoryEntry:
    return RepositoryEntry(id=number, description=f"r{number}", framework=framework, location="/x/")


def test_a_server_is_compared_with_the_description() -> None:
    listed, faults = read_listing(LISTING, shown="repos.csv")
    assert not faults
    assert listed[2] == ListedRepository(
        id=3, name="Something, else", enabled=True, last_mirrored="2026-05-30 02:00:00 UTC"
    )
    wanted = [repository(1), repository(2), repository(4), repository(9), repository(3, "ec2")]
    here = compare(wanted, listed, framework="openstack")
    assert [one.id for one in here.missing] == [9]
    assert [one.id for one in here.not_enabled] == [2]
    assert here.enable == (2,)
    assert [one.id for one in here.never_mirrored] == [4]
    assert [one.id for one in here.extra] == [3]
    assert not here.good
    assert compare([repository(1), repository(3, "ec2"), repository(4)], listed[:1] + listed[2:3], framework="ec2") == (
        replace(here, missing=(repository(4),), not_enabled=(), never_mirrored=(), extra=())
    )
    assert compare([repository(1)], listed[:1]).good


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", "repos.csv:1"),
        ("No repositories enabled.\n", "repos.csv:1"),
        (LISTING.replace("2,SLES15-Updates", "two,SLES15-Updates"), "repos.csv:3"),
        (LISTING.replace("true,false,", "true,perhaps,"), "repos.csv:3"),
        (LISTING + "6\n", "repos.csv:7"),
    ],
)
def test_other_output_is_no_list_of_repositories(text: str, place: str) -> None:
    assert [fault.place for fault in read_listing(text, shown="repos.csv")[1]] == [place]


# -- timers -----------------------------------------------------------------------------------------------------------


def many(count: int) -> Region:
    return replace(REGION, update_servers=tuple(server(f"update-{number}.example") for number in range(count)))


@given(count=st.integers(2, 24))
def test_the_servers_of_a_region_never_mirror_at_the_same_time(count: int) -> None:
    found = [one.minute for one in timers((many(count),)) if "mirror" in one.unit]
    gaps = [
        (later - earlier) % 1440 for earlier, later in zip(sorted(found), [*sorted(found)[1:], min(found)], strict=True)
    ]
    assert len(set(found)) == count
    assert min(gaps) >= 1440 // (2 * count)
    assert timers((many(count),)) == timers((many(count + 1),))[: 2 * count]


def test_the_list_of_products_comes_before_the_packages() -> None:
    found = timers((REGION,))
    sync, mirror = found[0], found[1]
    assert [one.unit for one in (sync, mirror)] == ["rmt-server-sync.timer", "rmt-server-mirror.timer"]
    assert (mirror.minute - sync.minute) % 1440 == 60
    assert (sync.delay, mirror.delay) == ("30min", "6h")
    assert mirror.path == "etc/systemd/system/rmt-server-mirror.timer.d/50-image-factory.conf"


def test_systemd_understands_the_drop_ins(tmp_path: Path) -> None:
    """systemd itself reads them over RMT's own timer: the packaged time is gone, ours and the delay are there."""
    for timer in timers((REGION,)):
        calendar = subprocess.run(
            ["systemd-analyze", "calendar", timer.calendar], capture_output=True, text=True, check=True
        )
        assert f"Normalized form: {timer.calendar}" in calendar.stdout
        units = tmp_path / timer.server / "units"
        units.mkdir(parents=True, exist_ok=True)
        name = timer.unit.removesuffix(".timer")
        (units / timer.unit).write_text("[Timer]\nOnCalendar=*-*-* 02:00:00\nRandomizedDelaySec=3h\n")
        (units / f"{name}.service").write_text("[Service]\nType=oneshot\nExecStart=/bin/true\n")
        drop_in = units / f"{timer.unit}.d/50-image-factory.conf"
        drop_in.parent.mkdir()
        drop_in.write_text(timer.text)
        env = {"SYSTEMD_UNIT_PATH": f"{units}:", "PATH": "/usr/bin:/bin"}
        argv = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", units / timer.unit]
        checked = subprocess.run(argv, capture_output=True, text=True, check=False, env=env)
        assert timer.unit not in checked.stderr, checked.stderr
        spoilt = timer.text.replace("OnCalendar=*", "OnCalendar=every*")
        drop_in.write_text(spoilt)
        checked = subprocess.run(argv, capture_output=True, text=True, check=False, env=env)
        assert "50-image-factory.conf" in checked.stderr


# -- peers ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = issue("CA", now=NOW, days=900, is_authority=True)
    return made.write(tmp_path_factory.mktemp("ca"), "ca")[0]


def test_every_server_shares_with_the_others_of_its_region() -> None:
    other = replace(REGION, name="us", update_servers=(server("update-x.example"),))
    found = sharing((REGION, other))
    assert [(one.server, [peer.name for peer in one.peers]) for one in found] == [
        ("update-a.example", ["update-b.example"]),
        ("update-b.example", ["update-a.example"]),
        ("update-x.example", []),
    ]
    assert yaml.safe_load(found[0].section("s" * 40)) == {
        "regsharing": {
            "peers": ["update-b.example"],
            "api_secret": "s" * 40,
            "data_dir": "/var/lib/rmt/regsharing",
            "ca_path": "/etc/rmt/ssl/peers",
        }
    }


def test_the_secret_is_made_once_and_kept_from_others(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    first = shared_secret(path)
    assert len(first) >= 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert shared_secret(path) == first
    path.chmod(0o640)
    with pytest.raises(InputFault, match="is no secret"):
        shared_secret(path)


@pytest.mark.parametrize("text", ["", "short", "a" * 129, "x" * 31, "with blank " * 5, "quote'" * 8])
def test_a_weak_or_odd_secret_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "secret"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(InputFault, match="cannot be used") as refused:
        shared_secret(path)
    assert not text or text not in "\n".join(refused.value.lines())


def test_the_files_of_sharing_are_for_each_server(tmp_path: Path, authority: Path) -> None:
    region = replace(REGION, update_servers=tuple(replace(one, pem=authority) for one in REGION.update_servers))
    made = write_sharing(sharing((region,)), tmp_path, secret="s" * 40, pins={}, offline=True, say=lambda _: None)
    sections = [path for path in made if path.name == "regsharing.yml"]
    assert [path.parent.name for path in sections] == ["update-a.example", "update-b.example"]
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in sections)
    (folder,) = {path.parent for path in made if "update-a" in str(path)} - {sections[0].parent}
    checked = subprocess.run(
        ["openssl", "verify", "-no-CAfile", "-CApath", folder, authority], capture_output=True, text=True, check=False
    )
    assert checked.stdout.endswith(": OK\n"), checked.stderr
    with pytest.raises(InputFault, match="elsewhere"):
        write_sharing(
            sharing((region,)),
            tmp_path,
            secret="s" * 40,
            pins={"elsewhere": "0" * 64},
            offline=True,
            say=lambda _: None,
        )


def test_two_authorities_of_one_name_are_both_kept(tmp_path: Path, authority: Path) -> None:
    other = issue("CA", now=NOW, days=900, is_authority=True).pem.decode()
    made = write_ca_folder(tmp_path, [authority.read_text(), other, other])
    assert sorted(path.name[-2:] for path in made) == [".0", ".1"]


def test_only_the_pinned_authority_is_taken(authority: Path) -> None:
    pem = authority.read_text()
    sha1 = subprocess.run(
        ["openssl", "x509", "-noout", "-fingerprint", "-sha1", "-in", authority],
        capture_output=True,
        text=True,
        check=True,
    )
    for pin in (pin_of(pem), normal_pin(sha1.stdout.partition("=")[2])):
        assert pinned(pem.encode(), pin, server="s") == pem
    other = issue("CA", now=NOW, days=900, is_authority=True).pem
    for body, says in (
        (other, "not the pinned one"),
        (b"", "no certificate"),
        (b"\xff", "no certificate"),
        (pem.encode() + other, "more than"),
    ):
        with pytest.raises(NotGood, match=says):
            pinned(body, pin_of(pem), server="s")


@pytest.mark.parametrize(
    "text", ["", "AA:BB", "g" * 40, "0" * 41, "sha1:" + "0" * 64, "sha256:" + "0" * 40, "md5:" + "0" * 32]
)
def test_what_is_no_fingerprint_pins_nothing(text: str) -> None:
    with pytest.raises(ValueError, match="neither"):
        normal_pin(text)


@pytest.mark.parametrize(
    "text", ["AA:" * 19 + "AA", "sha1:" + "aa" * 20, "SHA256:" + "AA" * 32, " " + "aa" * 32 + "\n"]
)
def test_fingerprints_are_read_as_people_write_them(text: str) -> None:
    assert set(normal_pin(text)) == {"a"}


# -- SMT --------------------------------------------------------------------------------------------------------------

EXPORT = {
    "enabled_repos.csv": "1\n2\n99\n",
    "enabled_custom_repos.csv": "5\tours\thttp://mirror.example/ours\n",
    "systems.csv": "a\tp\thost-a\t1600000000\nb\tp\thost-b\t1600000001\na\tp\thost-a\t1600000000\n",
    "activations.csv": "a\t5\na\t77\nz\t5\n",
    "hw_info.csv": 'a\tmachinedata\t{"hwinfo": {"cpus": 2}}\nb\tmachinedata\t{broken\na\tother\tx\n',
    "smt.conf": "[NU]\nNURegUrl = https://scc\nNUPass = secret\n",
    "hostname": "smt.example\n",
    "ssl/cacert.pem": "-----BEGIN CERTIFICATE-----\n",
    "ssl/cacert.key": "-----BEGIN PRIVATE KEY-----\n",
}
KNOWN = Known(repositories=frozenset({1, 2}), products=frozenset({5}))


def export(path: Path, files: dict[str, str], *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"smt-data-export/{name}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
        for member in members:
            archive.addfile(member, io.BytesIO(b"x" * member.size))
    return path


def test_an_export_is_read_and_counted(tmp_path: Path) -> None:
    found = read_export(export(tmp_path / "e.tar.gz", EXPORT), known=KNOWN)
    counted = {one.name: (one.imported, one.lines, dict(one.skipped)) for one in found.files}
    assert counted == {
        "enabled_repos.csv": (2, 3, {"unknown repository": 1}),
        "enabled_custom_repos.csv": (1, 1, {}),
        "systems.csv": (2, 3, {"duplicate": 1}),
        "activations.csv": (1, 3, {"unknown product": 1, "unknown system": 1}),
        "hw_info.csv": (1, 3, {"malformed": 1, "other key": 1}),
    }
    assert (found.unknown_repositories, found.unknown_products) == ((99,), (77,))
    assert [str(fault) for fault in found.faults] == [
        "hw_info.csv:2: machinedata is not JSON (the system comes without its hardware)"
    ]
    warned = "\n".join(map(str, found.warnings))
    for words in (
        "is a private key",
        "holds passwords",
        "adds a '/'",
        "1 activations are of systems",
        "1 systems have no",
    ):
        assert words in warned
    assert "secret" not in warned
    assert "jobs" in found.not_exported


@pytest.mark.parametrize("name", smt_export.COLUMNS)
def test_a_missing_file_is_told(tmp_path: Path, name: str) -> None:
    found = read_export(export(tmp_path / "e.tar.gz", without(EXPORT, name)), known=KNOWN)
    assert f"{name}: is missing" in "\n".join(map(str, found.faults))


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("enabled_repos.csv", "x\n", "'x' is not a number of a repository"),
        ("enabled_repos.csv", "1\t2\n", "has 2 columns"),
        ("enabled_repos.csv", "٣\n", "is not a number"),
        ("enabled_custom_repos.csv", "5\tn\tmirror\n", "is not an address"),
        ("systems.csv", "a\tp\thost\n", "has 3 columns"),
        ("systems.csv", "\tp\thost\t1\n", "has no login"),
        ("systems.csv", "a\tp\thost\tyesterday\n", "is not a time"),
        ("activations.csv", "a\tSLES\n", "is not a number of a product"),
        ("systems.csv", "a\x1b[2J\tp\thost\t1\n", "has no login"),
    ],
)
def test_malformed_lines_are_told_with_their_place(tmp_path: Path, name: str, text: str, says: str) -> None:
    found = read_export(export(tmp_path / "e.tar.gz", EXPORT | {name: text}))
    (fault,) = [fault for fault in found.faults if fault.place == f"{name}:1"]
    assert says in str(fault)
    assert str(fault).isprintable()


def test_a_thousand_faults_of_one_kind_are_counted(tmp_path: Path) -> None:
    found = read_export(export(tmp_path / "e.tar.gz", EXPORT | {"enabled_repos.csv": "x\n" * 1000}))
    assert len([fault for fault in found.faults if "enabled_repos" in fault.place]) == 21
    assert found.carried("enabled_repos.csv").skipped == {"malformed": 1000}
    assert "980 more lines" in "\n".join(map(str, found.faults))


def hostile(name: str, **what: object) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    for key, value in what.items():
        setattr(member, key, value)
    return member


@pytest.mark.parametrize(
    ("member", "says"),
    [
        (hostile("../../etc/cron.d/x", size=1), "leads out of the archive"),
        (hostile("/etc/passwd", size=1), "leads out of the archive"),
        (hostile("smt-data-export/link", type=tarfile.SYMTYPE, linkname="/etc/shadow"), "neither a file nor a folder"),
        (hostile("smt-data-export/hard", type=tarfile.LNKTYPE, linkname="../../x"), "neither a file nor a folder"),
        (hostile("smt-data-export/tty", type=tarfile.CHRTYPE, devmajor=5), "neither a file nor a folder"),
        (hostile("smt-data-export/pipe", type=tarfile.FIFOTYPE), "neither a file nor a folder"),
        (hostile("smt-data-export/systems.csv", size=1), "is there twice"),
    ],
)
def test_a_hostile_member_is_told_and_nothing_of_it_is_written(tmp_path: Path, member, says: str) -> None:
    archive = export(tmp_path / "e.tar.gz", EXPORT, member)
    assert says in "\n".join(map(str, read_export(archive).faults))
    folder = tmp_path / "deep" / "out"
    made = unpack_export(archive, folder)
    assert {path.name for path in made} == {*smt_export.COLUMNS, "smt.conf", "hostname"}
    assert {path.name for path in folder.rglob("*")} == {path.name for path in made}
    assert {path.name for path in tmp_path.iterdir()} == {"e.tar.gz", "deep"}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in made)
    assert (folder / "systems.csv").read_text() == EXPORT["systems.csv"]


def huge_header(path: Path) -> None:
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.XHDTYPE, 1 << 29
    with gzip.open(path, "wb") as packed:
        packed.write(member.tobuf())


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: path.write_bytes(b""), "cut off"),
        (lambda path: path.write_bytes(b"no archive"), "not an export"),
        (lambda path: path.write_bytes(gzip.compress(b"no archive")), "not an export"),
        (lambda path: path.write_bytes(export(path, EXPORT).read_bytes()[:200]), "not an export"),
        (huge_header, "larger than any header"),
    ],
    ids=["empty", "text", "gzip", "cut", "header"],
)
def test_what_is_no_export_is_refused(tmp_path: Path, make, says: str) -> None:
    path = tmp_path / "e.tar.gz"
    make(path)
    with pytest.raises(InputFault, match=says):
        read_export(path)


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smt_export, "MAX_BYTES", 1 << 24)
    path = tmp_path / "e.tar.gz"
    export(path, EXPORT | {"systems.csv": "a" * (1 << 25)})
    with pytest.raises(InputFault, match="unpacks to more than"):
        read_export(path)


CELLS = st.text(alphabet="a1\t\n\r\0\x1bé\"',{}:", max_size=30)


@given(lines=st.dictionaries(st.sampled_from(sorted(smt_export.COLUMNS)), CELLS))
def test_any_text_in_an_export_is_read_or_told(tmp_path_factory: pytest.TempPathFactory, lines) -> None:
    found = read_export(export(tmp_path_factory.mktemp("e") / "e.tar.gz", EXPORT | lines), known=KNOWN)
    for one in found.files:
        assert one.imported + sum(one.skipped.values()) == one.lines
        assert one.imported >= 0
    assert all(str(fault).isprintable() for fault in (*found.faults, *found.warnings))


def test_numbers_are_the_first_column() -> None:
    assert numbers('ID,Product\n1575,SLES\n"1576",x\n\nnone\n') == frozenset({1575, 1576})


# -- firewall ---------------------------------------------------------------------------------------------------------

POLICY = Policy(admin=("203.0.113.0/24",))
CLIENT = RegionClient()


@pytest.mark.parametrize(
    ("policy", "networks", "says"),
    [
        (replace(POLICY, sources="all"), REGION.networks, "open to all addresses"),
        (POLICY, ("0.0.0.0/0",), "open to all IPv4 addresses"),
        (POLICY, ("0.0.0.0/1", "128.0.0.0/1"), "open to all IPv4 addresses"),
        (POLICY, ("192.0.2.0/24", "::/0"), "open to all IPv6 addresses"),
        (POLICY, (), "has no networks"),
        (replace(POLICY, sources="segment"), REGION.networks, "--segment: is missing"),
        (replace(POLICY, sources="segment", segments=("10.0.0.1/8",)), REGION.networks, "is not a network"),
        (replace(POLICY, admin=()), REGION.networks, "nobody could log in"),
        (replace(POLICY, admin=("0.0.0.0/0",)), REGION.networks, "is everybody"),
        (replace(POLICY, ssh_port=443), REGION.networks, "cannot be the port of ssh"),
        (replace(POLICY, ssh_port=0), REGION.networks, "cannot be the port of ssh"),
    ],
)
def test_what_would_let_in_everybody_or_nobody_is_refused(policy: Policy, networks, says: str) -> None:
    with pytest.raises(InputFault) as refused:
        walls((replace(REGION, networks=networks),), CLIENT, policy)
    assert says in "\n".join(refused.value.lines())


@pytest.mark.parametrize("policy", [replace(POLICY, sources="all", verification="openstack")])
def test_with_instance_verification_all_addresses_may_come(policy: Policy) -> None:
    update = walls((REGION,), CLIENT, policy)[1]
    assert [str(one) for one in update.rules[0].networks] == ["0.0.0.0/0", "::/0"]


def listed(wall) -> list[tuple[int, str]]:
    return [(rule.port, str(network)) for rule in wall.rules for network in rule.networks]


@pytest.mark.parametrize(
    ("policy", "client", "wanted"),
    [
        (POLICY, CLIENT, [(443, "198.51.100.0/24"), (443, "2001:db8::/48")]),
        (replace(POLICY, sources="segment", segments=("10.9.0.0/16",)), CLIENT, [(443, "10.9.0.0/16")]),
        (
            POLICY,
            replace(CLIENT, https_only=False),
            [(443, "198.51.100.0/24"), (443, "2001:db8::/48"), (80, "198.51.100.0/24"), (80, "2001:db8::/48")],
        ),
    ],
)
def test_update_servers_let_in_instances_peers_and_administrators(policy, client, wanted) -> None:
    region, first, second = walls((REGION,), client, policy)
    assert listed(region) == [(443, "0.0.0.0/0"), (443, "::/0"), (22, "203.0.113.0/24")]
    assert listed(first) == [*wanted, (443, "198.51.100.20/32"), (443, "2001:db8::20/128"), (22, "203.0.113.0/24")]
    assert listed(second) == [*wanted, (443, "192.0.2.20/32"), (22, "203.0.113.0/24")]


def test_a_region_server_of_two_regions_has_one_wall() -> None:
    found = walls((REGION, replace(REGION, name="us")), CLIENT, POLICY)
    assert [wall.name for wall in found if wall.role == "region server"] == ["region-region-a.example"]


def test_security_groups_say_the_same_as_the_rules() -> None:
    all_walls = walls((REGION,), CLIENT, POLICY)
    groups = security_groups(all_walls)
    assert [
        [(rule["port_range_max"], rule["remote_ip_prefix"]) for rule in group["security_group_rules"]]
        for group in groups
    ] == [listed(wall) for wall in all_walls]
    families = {
        (rule["ethertype"], ":" in rule["remote_ip_prefix"]) for one in groups for rule in one["security_group_rules"]
    }
    assert families == {("IPv4", False), ("IPv6", True)}
    commands = openstack_commands(all_walls)
    assert commands.count("security group create") == 3
    assert commands.count("security group rule create") == sum(len(listed(wall)) for wall in all_walls)
    subprocess.run(["sh", "-n"], input=commands, text=True, check=True)


@pytest.mark.needs_root
def test_nft_accepts_the_rules() -> None:
    policy = replace(POLICY, sources="all", verification="openstack")
    for each in (POLICY, policy):
        for wall in walls((REGION,), replace(CLIENT, https_only=False), each):
            argv = ["unshare", "--net", "nft", "--check", "--file", "-"]
            checked = subprocess.run(argv, input=nftables(wall), text=True, capture_output=True, check=False)
            assert checked.returncode == 0, checked.stderr
            assert re.findall("flush ruleset", nftables(wall)) == []
