# SPDX-License-Identifier: Apache-2.0
"""Region data: made from the site or from tables, checked, and compared with what servers have or answer."""

from __future__ import annotations

import csv
import ipaddress
import json
import os
import signal
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.serving import make_server

from factory.cli import main
from factory.describe import load_site
from factory.errors import Fault, InputFault, RegionError
from factory.model import Region, Server
from factory.region.certificates import fingerprint, issue
from factory.region.compare import compare_files, compare_running, running_server, sample_addresses
from factory.region.config import region_data
from factory.region.data import RegionEntry, served_entries
from factory.region.networks import NETWORKS, SERVERS, Columns, generate, read_table
from factory.region.server import app_for, region_table
from factory.region.validate import validate

NOW = datetime(2026, 11, 21, 2, 0, tzinfo=UTC)
PRINT_A, PRINT_B = ":".join(["AA"] * 20), ":".join(["0B"] * 20)
SERVERS_CSV = f"""\
region,name,ipv4,ipv6,registry,fingerprint
North,a.test.invalid,192.0.2.20,2001:db8::20,registry.test.invalid,{PRINT_A}
North,b.test.invalid,192.0.2.21,2001:db8::21,,{PRINT_A}
south,c.test.invalid,192.0.2.30,,,{PRINT_B}
"""
NETWORKS_CSV = """\
region,network
north,198.51.100.0/24
north,2001:db8:a::/48

South,198.51.100.128/25
south,203.0.113.7
"""
MADE = f"""\
[north]
public-ips = 198.51.100.0/24
public-ipsv6 = 2001:db8:a::/48
smt-server-ip = 192.0.2.20,192.0.2.21
smt-server-ipv6 = 2001:db8::20,2001:db8::21
smt-server-name = a.test.invalid,b.test.invalid
smt-registry-name = registry.test.invalid,b.test.invalid
smt-fingerprint = {PRINT_A},{PRINT_A}

[south]
public-ips = 198.51.100.128/25,203.0.113.7/32
smt-server-ip = 192.0.2.30
smt-server-name = c.test.invalid
smt-registry-name = c.test.invalid
smt-fingerprint = {PRINT_B}
"""


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    (tmp_path / "servers.csv").write_text(SERVERS_CSV)
    (tmp_path / "networks.csv").write_text(NETWORKS_CSV)
    (tmp_path / "regionData.cfg").write_text(MADE)
    return tmp_path


@pytest.fixture
def region(tmp_path: Path) -> Region:
    pem, _ = issue("CA", now=NOW, days=30, is_authority=True).write(tmp_path, "ca")
    servers = tuple(
        Server(name=f"{name}.test.invalid", ipv4=f"192.0.2.{number}", pem=pem)
        for name, number in (("a", 20), ("b", 21))
    )
    return Region(name="North", networks=("198.51.100.0/24", "2001:db8:a::/48"), update_servers=servers)


def made(tables: Path) -> tuple[RegionEntry, ...]:
    return served_entries((tables / "regionData.cfg").read_text(), place="made")


# -- generate ---------------------------------------------------------------------------------------------------------


def test_tables_become_region_data(tables: Path) -> None:
    found = generate((), networks=tables / "networks.csv", servers=tables / "servers.csv")
    assert found.text == MADE
    assert [note.problem for note in found.notes] == ["has one update server only"]


def test_json_tables_say_the_same_as_csv(tables: Path) -> None:
    for name in ("networks", "servers"):
        rows = list(csv.DictReader((tables / f"{name}.csv").open()))
        (tables / f"{name}.json").write_text(json.dumps(rows, indent=1))
    found = generate((), networks=tables / "networks.json", servers=tables / "servers.json")
    assert found.text == MADE


def test_the_site_becomes_region_data(region: Region, tables: Path) -> None:
    found = generate((region,))
    assert found.text == region_data((region,))
    (entry,) = found.entries
    assert {server.fingerprint for server in entry.servers} == {fingerprint(region.update_servers[0].pem.read_text())}
    assert [str(network) for network in entry.networks] == list(region.networks)


def test_a_table_of_networks_takes_the_place_of_the_sites(region: Region, tmp_path: Path) -> None:
    (tmp_path / "networks.csv").write_text("network,region\n203.0.113.0/24,NORTH\n10.0.0.0/8,north\n")
    (entry,) = generate((region,), networks=tmp_path / "networks.csv").entries
    assert [str(network) for network in entry.networks] == ["10.0.0.0/8", "203.0.113.0/24"]


def test_a_ca_file_gives_the_fingerprint(region: Region, tmp_path: Path) -> None:
    (tmp_path / "servers.csv").write_text("region,name,ipv4,ca\nn,a.test.invalid,192.0.2.1,ca.pem\n")
    (entry,) = generate((), servers=tmp_path / "servers.csv").entries
    assert entry.servers[0].fingerprint == fingerprint(region.update_servers[0].pem.read_text())


@pytest.mark.parametrize(
    ("table", "old", "new", "line", "words"),
    [
        ("networks", "198.51.100.0/24", "198.51.100.1/24", 2, "has host bits set"),
        ("networks", "198.51.100.0/24", "fe80::%1/64", 2, "does not appear to be"),
        ("networks", "198.51.100.0/24", "", 2, "has no network"),
        ("networks", "south,203.0.113.7", "east,203.0.113.7", 6, "there is no region 'east'"),
        ("networks", "203.0.113.7", "198.51.100.0/24", 6, "198.51.100.0/24 is in two regions"),
        ("networks", "south,203.0.113.7", "south,203.0.113.7,x", 6, "has 3 cells where the header has 2"),
        ("networks", "region,network", "region,net", 1, "has no column 'network'"),
        ("networks", "region,network", "region,network,region", 1, "has column 'region' twice"),
        ("networks", "south,203.0.113.7", '"south,203', 6, "is not CSV"),
        ("servers", "192.0.2.20", "192.0.2.300", 2, "is not an IPv4 address"),
        ("servers", "192.0.2.20", "127.0.0.1", 2, "is each instance itself"),
        ("servers", "192.0.2.30", "", 4, "has no address"),
        ("servers", "192.0.2.20", "", 3, "has other address families"),
        ("servers", "a.test.invalid", "a b", 2, "is not a DNS name"),
        ("servers", "south", "so uth", 4, "is no region name"),
        ("servers", PRINT_B, PRINT_B.lower(), 4, "is not a SHA-1 fingerprint"),
        ("servers", PRINT_B, "", 4, "needs either fingerprint or ca"),
        ("servers", "fingerprint\n", "ca\n", 2, "is not a CA certificate"),
    ],
)
def test_a_fault_of_a_table_is_told_with_its_line(
    tables: Path, table: str, old: str, new: str, line: int, words: str
) -> None:
    path = tables / f"{table}.csv"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(InputFault) as caught:
        generate((), networks=tables / "networks.csv", servers=tables / "servers.csv")
    assert any(one.place == f"{path}:{line}" and words in one.problem for one in caught.value.faults), (
        caught.value.faults
    )


def test_faults_of_both_tables_and_of_the_site_come_at_once(tables: Path, region: Region) -> None:
    networks = tables / "networks.csv"
    networks.write_text(NETWORKS_CSV.replace("198.51.100.0/24", "x").replace("203.0.113.7", "y"))
    (tables / "servers.csv").write_text(SERVERS_CSV.replace("192.0.2.30", "z"))
    with pytest.raises(InputFault) as caught:
        generate((), networks=networks, servers=tables / "servers.csv")
    assert len(caught.value.faults) == 3
    spoiled = Region(name="no name", networks=("x",), update_servers=region.update_servers)
    with pytest.raises(InputFault) as caught:
        generate((spoiled,), networks=networks)
    assert len(caught.value.faults) == 4


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("", 1, "is not JSON"),
        ("[", 1, "is not JSON"),
        ('[\n{"region": "a"\n"network": 1}]', 3, "is not JSON"),
        ("{}", 1, "is not a list"),
        ('[\n{"region": "a", "network": "x"},\n\n 5]', 4, "is not an object"),
        ('[\n\n{"region": "a", "network": 5}]', 3, "'network' is not a text"),
        ('[\n{"region": "a", "region": "b", "network": "10.0.0.0/8"}]', 2, "has 'region' twice"),
        ('[\n{"region": "a", "net": "b", "network": "10.0.0.0/8"}]', 2, "'net' is no column"),
        ('[\n{"region": "a"}]', 2, "has no network"),
        ("[" * 100000, 1, "is nested too deeply"),
    ],
)
def test_a_fault_of_a_json_table_is_told_with_its_line(tmp_path: Path, text: str, line: int, words: str) -> None:
    faults: list[Fault] = []
    (tmp_path / "t.json").write_text(text)
    read_table(tmp_path / "t.json", NETWORKS, faults)
    assert any(one.place == f"{tmp_path}/t.json:{line}" and words in one.problem for one in faults), faults


@given(
    rows=st.lists(st.tuples(st.text("ab,]}[{\"'\n \\", min_size=1, max_size=6), st.integers(0, 3)), max_size=8),
    tail=st.sampled_from(["", "\n", " \n "]),
)
def test_rows_of_json_know_their_lines(tmp_path_factory: pytest.TempPathFactory, rows, tail: str) -> None:
    text, wanted = "[", []
    for number, (value, blank_lines) in enumerate(rows):
        text += ("," if number else "") + "\n" * blank_lines
        if value.strip():
            wanted.append((text.count("\n") + 1, value.strip()))
        text += json.dumps({"region": "a", "network": value}, indent=number % 2 or None)
    path = tmp_path_factory.getbasetemp() / "rows.json"
    path.write_text(text + tail + "]" + tail)
    found = read_table(path, NETWORKS, [])
    assert [(row.place, row.values["network"]) for row in found] == [
        (f"{path}:{line}", value) for line, value in wanted
    ]


@given(
    st.one_of(st.text(max_size=200), st.text('region,network\n"10.0/8 \x00[]{}:', max_size=60)),
    st.sampled_from(["csv", "json"]),
)
def test_no_table_breaks_the_reader(tmp_path_factory: pytest.TempPathFactory, text: str, kind: str) -> None:
    path = tmp_path_factory.getbasetemp() / f"t.{kind}"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    faults: list[Fault] = []
    for columns in (NETWORKS, SERVERS, Columns(required=("x",))):
        rows = read_table(path, columns, faults)
        assert all(row.values[name] for row in rows for name in columns.required)
    assert faults or text.strip() in {"[]", ""} or rows == []


# -- validate ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("192.0.2.20,192.0.2.21", "192.0.2.20, 192.0.2.21", 4, "has blanks"),
        ("192.0.2.20,192.0.2.21", "192.0.2.20", 1, "pairs 1 IPv4 with 2 IPv6"),
        ("192.0.2.30", "None", 12, "'None' is not an IPv4 address"),
        ("192.0.2.30", "127.0.0.1", 12, "is each instance itself"),
        (PRINT_B, PRINT_B.lower(), 15, "is not a SHA-1 fingerprint"),
        (PRINT_B, ":".join(["AA"] * 32), 15, "is not a SHA-1 fingerprint"),
        ("[south]", "[NORTH]", 10, "is there already"),
        ("c.test.invalid", "c<test", 13, "is not a DNS name"),
        ("smt-registry-name = c.test.invalid\n", "", 10, "'smt-registry-name' is missing"),
        ("203.0.113.7/32", "203.0.113.7/8", 11, "has host bits set"),
    ],
)
def test_validate_tells_each_fault_with_its_line(tables: Path, old: str, new: str, line: int, words: str) -> None:
    path = tables / "regionData.cfg"
    path.write_text(MADE.replace(old, new, 1))
    faults = validate(path).faults
    assert any(one.place.startswith(f"{path}:{line} ") and words in one.problem for one in faults), faults


def test_hints_must_lead_somewhere(tables: Path) -> None:
    path = tables / "regionData.cfg"
    found = validate(path, hints=("NORTH", "east"))
    assert found.faults == ()
    assert any("'east'" in note.problem for note in found.notes)
    path.write_text("".join(line for line in MADE.splitlines(keepends=True) if not line.startswith("public")))
    assert [fault.problem for fault in validate(path, hints=("South", "east")).faults] == ["no region is called 'east'"]


def test_a_fingerprint_must_be_that_of_the_sites_ca(tables: Path, region: Region) -> None:
    path = tables / "regionData.cfg"
    found = validate(path, regions=(region,)).faults
    assert [(fault.place, "the site's CA has" in fault.problem) for fault in found] == [
        (f"{path}:8 north.smt-fingerprint", True)
    ] * 2
    path.write_text(MADE.replace(PRINT_A, fingerprint(region.update_servers[0].pem.read_text())))
    assert validate(path, regions=(region,)).faults == ()


# -- diff -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("198.51.100.0/24", "198.51.100.0/25", {"network: ours 198.51.100.0/24", "network: ours nothing"}),
        ("192.0.2.30", "192.0.2.31", {"server: ours 192.0.2.30 c.test", "server: ours nothing, theirs 192.0.2.31"}),
        ("[south]", "[east]", {"[south] region: ours 2 networks, 1 servers, theirs nothing", "[east] region: ours no"}),
        ("[north]", "[NORTH]", set()),
        ("192.0.2.20,192.0.2.21", "192.0.2.20, 192.0.2.21", set()),
    ],
)
def test_files_are_compared_by_what_they_say(tables: Path, old: str, new: str, said: set[str]) -> None:
    theirs = served_entries(MADE.replace(old, new), place="theirs")
    found = [str(one) for one in compare_files(made(tables), theirs, other="x").differences]
    assert len(found) == len(said)
    assert all(any(words in line for line in found) for words in said), found


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(24, 30)), max_size=12))
def test_the_address_asked_for_a_network_is_its_own(drawn: list[tuple[int, int]]) -> None:
    networks = {
        ipaddress.ip_network((int(ipaddress.ip_address("198.51.100.0")) + (at << (32 - length)) % 256, length))
        for at, length in drawn
    }
    entries = [RegionEntry(name=f"r{number}", networks=(one,), servers=()) for number, one in enumerate(networks)]
    table = region_table(entries)
    asked = list(sample_addresses(entries, table))
    for network in networks:
        inside = [other for other in networks if other != network and other.subnet_of(network)]
        free = [address for address in network if not any(address in other for other in inside)]
        wanted = dict.fromkeys([free[0], free[-1]]) if free else ()
        assert [address for one, address in asked if one == network] == list(wanted)


@contextmanager
def region_server(text: str, *, trusted: str = "", tls: tuple[Path, Path] | None = None) -> Iterator[str]:
    """A real server on loopback."""
    proxies = (ipaddress.ip_network(trusted),) if trusted else ()
    context = None
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
    app = app_for(region_table(served_entries(text, place="x")), trusted_proxies=proxies)
    server = make_server("127.0.0.1", 0, app, threaded=True, ssl_context=context)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("", "", []),
        ("198.51.100.128/25", "198.51.100.128/26", ["[south] network 198.51.100.128/25"]),
        ("192.0.2.30", "192.0.2.31", ["[south] server: ours nothing", "[south] server: ours 192.0.2.30"]),
        ("203.0.113.7/32", "203.0.113.8/32", ["network 203.0.113.7/32 (asked for 203.0.113.7): ours south, theirs no"]),
        ("[south]", "[east]", ["[south] region", "network 198.51.100.128/25", "network 203.0.113.7/32"]),
    ],
)
def test_a_running_server_that_trusts_us_is_asked_for_every_network(
    tables: Path, old: str, new: str, said: list[str]
) -> None:
    with (
        region_server(MADE.replace(old, new) if old else MADE, trusted="127.0.0.1/32") as url,
        running_server(url, pem=None) as server,
    ):
        found = compare_running(made(tables), server)
    assert "the first and last address of each of 4 networks" in found.how
    assert found.left_out == ""
    expected = sorted(said)
    assert len(found.differences) >= len(expected)
    assert all(any(words in str(one) for one in found.differences) for words in expected), found.differences
    if not said:
        assert found.differences == ()


def test_a_network_that_no_address_gets_is_nothing_left_out(tables: Path) -> None:
    text = MADE.replace("203.0.113.7/32", "203.0.113.6/31,203.0.113.6/32,203.0.113.7/32")
    ours = served_entries(text, place="x")
    with region_server(text, trusted="127.0.0.1/32") as url, running_server(url, pem=None) as server:
        found = compare_running(ours, server)
    assert (found.left_out, found.differences) == ("", ())
    assert "(1 more are covered wholly by longer prefixes)" in found.how


def test_a_server_that_does_not_trust_us_is_compared_by_hints_and_says_so(tables: Path) -> None:
    with region_server(MADE) as url, running_server(url, pem=None) as server:
        found = compare_running(made(tables), server)
    assert (found.how, found.differences) == ("its answers to hints", ())
    assert "trustedProxies" in found.left_out


def test_a_running_server_is_verified(tables: Path, tmp_path: Path) -> None:
    tls = issue("x", now=datetime.now(UTC), days=2, addresses=["127.0.0.1"]).write(tmp_path, "server")
    other, _ = issue("y", now=datetime.now(UTC), days=2, addresses=["127.0.0.1"]).write(tmp_path, "other")
    with region_server(MADE, tls=tls) as url:
        with running_server(url, pem=tls[0]) as server:
            assert compare_running(made(tables), server).differences == ()
        with running_server(url, pem=other) as server, pytest.raises(RegionError, match="certificate verify failed"):
            server.answer()


@pytest.mark.parametrize("url", ["http://192.0.2.1/", "ftp://x", "https://", "https://x:99999/", "https://x:0"])
def test_only_addresses_that_can_be_verified_are_asked(url: str) -> None:
    with pytest.raises(InputFault, match="is no address"):
        running_server(url, pem=None)


# -- as people type it ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def factory(tables: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The command line, in this process and in the folder of the tables."""
    monkeypatch.chdir(tables)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    for name in [name for name in os.environ if name.startswith("FACTORY_")]:
        monkeypatch.delenv(name)

    def typed(*words: str | Path) -> Done:
        monkeypatch.setattr(sys, "argv", ["factory", "--state", "state", "region", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capfd.readouterr()
        return Done(int(ended.value.code or 0), said.out, said.err)

    return typed


def test_the_commands_say_by_their_status_what_they_found(tables: Path, factory: Callable[..., Done]) -> None:
    both = ("--servers", "servers.csv", "--networks", "networks.csv")
    done = factory("data", "generate", *both, "--out", "new.cfg", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["schema"] == "factory/region-data-generate/1"
    assert (tables / "new.cfg").read_text() == MADE
    assert factory("data", "diff", "new.cfg", "regionData.cfg", *both).returncode == 0
    (tables / "new.cfg").write_text(MADE.replace("203.0.113.7", "203.0.113.8"))
    differs = factory("data", "diff", "new.cfg", *both, "--json")
    assert differs.returncode == 1
    (comparison,) = json.loads(differs.stdout)["value"]
    assert comparison["how"] == "file with file"
    assert len(comparison["differences"]) == 2
    (tables / "new.cfg").write_text(MADE.replace("192.0.2.30", "None").replace("203.0.113.7/32", "x"))
    wrong = factory("data", "validate", "new.cfg")
    assert wrong.returncode == 1
    assert [line.split(" ")[0] for line in wrong.stdout.splitlines()[:2]] == ["new.cfg:11", "new.cfg:12"]
    assert factory("data", "validate", "nosuch.cfg").returncode == 2
    assert factory("data", "diff", "http://127.0.0.1:1/", *both).returncode == 3


def test_faults_of_the_site_file_are_told_with_their_lines(
    tables: Path, region: Region, factory: Callable[..., Done]
) -> None:
    block = (
        '[[region]]\nname = "{name}"\nnetworks = ["198.51.100.0/24"]\n'
        'servers = [{{name = "r.test.invalid", ipv4 = "192.0.2.1", pem = "ca.pem"}}]\n'
        'update_servers = [\n  {{name = "a.test.invalid", ipv4 = "{ipv4}", pem = "ca.pem"}},\n]\n'
    )
    site = tables / "site.toml"
    site.write_text(block.format(name="one", ipv4="192.0.2.2") + block.format(name="two", ipv4="127.0.0.1"))
    done = factory("data", "generate")
    assert done.returncode == 2
    assert "site.toml:10 region.two.networks: 198.51.100.0/24 is in 'one' too" in done.stderr
    assert "site.toml:13 region.two server a.test.invalid: 127.0.0.1 can never" in done.stderr
    site.write_text(block.format(name="one", ipv4="192.0.2.2"))
    good = factory("data", "generate")
    assert (good.returncode, good.stdout) == (0, region_data(load_site(site).regions))


def test_serve_checks_before_it_listens(tables: Path, factory: Callable[..., Done]) -> None:
    (tables / "regionInfo.cfg").write_text(
        f"[server]\nlogFile = {tables}/log\nregionConfig = {tables}/regionData.cfg\n"
    )
    good = factory("serve", "-f", "regionInfo.cfg", "--check")
    assert (good.returncode, "2 regions, 4 networks can be served" in good.stdout) == (0, True)
    assert factory("serve", "-f", "regionInfo.cfg").returncode == 2, "no TLS, and not said so"
    (tables / "regionData.cfg").write_text(MADE.replace("192.0.2.30", "x"))
    told = factory("serve", "-f", "regionInfo.cfg", "--check", "--json")
    assert (told.returncode, len(json.loads(told.stdout)["value"]["faults"])) == (1, 1)
    checked = factory("serve", "-f", "regionInfo.cfg", "--check")
    assert checked.returncode == 1
    assert f"{tables}/regionData.cfg:12 south.smt-server-ip: 'x' is not an IPv4 address" in checked.stdout
    started = factory("serve", "-f", "regionInfo.cfg", "--plain-http", "--bind", "127.0.0.1:0")
    assert started.returncode == 2
    assert "Traceback" not in started.stderr
