# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import configparser
import ipaddress
import string
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from defusedxml import ElementTree
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import example, given
from hypothesis import strategies as st

from factory.errors import InputFault
from factory.region import ini
from factory.region.certificates import issue
from factory.region.data import RegionEntry, UpdateServer, read_region_data, render
from factory.region.server import app_for, create_app, parse_region_data, peer_address, region_table
from factory.region.wsgi import AccessLog, Ready, Tls, _escaped, application, for_mod_wsgi, prepare

NOW = datetime(2026, 11, 21, 2, 0, tzinfo=UTC)

PRINT_A, PRINT_B = ":".join(["AA"] * 20), ":".join(["0B"] * 20)
DATA = f"""\
[Region-A]
public-ips = 10.0.0.0/8, 192.0.2.7
public-ipsv6 = 2001:db8:a::/48
smt-server-ip = 192.0.2.20, 192.0.2.21
smt-server-ipv6 = 2001:db8::20,2001:db8::21
smt-server-name = a.test.invalid,b.test.invalid
smt-registry-name = registry.test.invalid
smt-fingerprint = {PRINT_A}

[region-b]
public-ips = 10.1.0.0/16
public-ipsv6 = ::ffff:198.51.100.0/120
smt-server-ipv6 = 2001:db8::30
smt-server-name = c.test.invalid
smt-registry-name = registry.test.invalid
smt-fingerprint = {PRINT_B}
"""


@pytest.fixture
def client(tmp_path: Path) -> FlaskClient:
    path = tmp_path / "regionData.cfg"
    path.write_text(DATA)
    return create_app(path).test_client()


def regions_of(body: str) -> set[str]:
    return {element.get("region") for element in ElementTree.fromstring(body)}


@pytest.mark.parametrize(
    ("query", "peer", "region"),
    [
        ("", "10.0.0.1", "region-a"),
        ("", "10.1.2.3", "region-b"),
        ("", "192.0.2.7", "region-a"),
        ("", "192.0.2.8", None),
        ("", "2001:db8:a::9", "region-a"),
        ("", "2001:db8:b::9", None),
        ("", "::ffff:10.0.0.1", "region-a"),
        ("", "::ffff:10.1.0.1", "region-b"),
        ("", "::ffff:203.0.113.1", None),
        ("", "::ffff:198.51.100.4", "region-b"),
        ("", "fe80::1%eth0", None),
        ("?regionHint=region-b", "10.0.0.1", "region-b"),
        ("?regionHint=REGION-A", "203.0.113.1", "region-a"),
        ("?regionHint=", "10.1.0.1", "region-b"),
        ("?regionHint=unknown", "10.1.0.1", "region-b"),
        ("?regionHint=unknown", "203.0.113.1", None),
        ("?regionhint=region-b", "10.0.0.1", "region-a"),
        ("?other=1&regionHint=region-b", "10.0.0.1", "region-b"),
        ("?regionHint=region", "203.0.113.1", None),
    ],
)
def test_the_region_is_the_hints_or_the_longest_prefixs(
    client: FlaskClient, query: str, peer: str, region: str | None
) -> None:
    answer = client.get(f"/regionInfo{query}", environ_base={"REMOTE_ADDR": peer})
    if region is None:
        assert (answer.status_code, answer.text) == (404, "Not found")
    else:
        assert answer.status_code == 200
        assert regions_of(answer.text) == {region}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/regionInfo", 405),
        ("PUT", "/regionInfo", 405),
        ("GET", "/", 404),
        ("GET", "/regionInfo/", 404),
        ("GET", "/regioninfo", 404),
        ("GET", "/../etc/passwd", 404),
        ("HEAD", "/regionInfo", 200),
    ],
)
def test_anything_else_is_refused(client: FlaskClient, method: str, path: str, status: int) -> None:
    answer = client.open(path, method=method, environ_base={"REMOTE_ADDR": "10.0.0.1"})
    assert answer.status_code == status


def test_the_proxys_word_on_the_peer_is_not_taken(client: FlaskClient) -> None:
    answer = client.get(
        "/regionInfo", headers={"X-Forwarded-For": "10.0.0.1"}, environ_base={"REMOTE_ADDR": "203.0.113.1"}
    )
    assert answer.status_code == 404


def test_the_body_is_the_protocols_to_the_byte(client: FlaskClient) -> None:
    answer = client.get("/regionInfo?regionHint=region-b")
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert answer.text == (
        "<regionSMTdata>\n"
        '<smtInfo SMTserverIPv6="2001:db8::30" SMTserverName="c.test.invalid" SMTregistryName="registry.test.invalid" '
        f'fingerprint="{PRINT_B}" region="region-b"/>\n'
        "</regionSMTdata>"
    )
    first = client.get("/regionInfo?regionHint=region-a").text.split("\n")[1:3]
    assert (
        '<smtInfo SMTserverIP="192.0.2.20" SMTserverIPv6="2001:db8::20" SMTserverName="a.test.invalid" '
        f'SMTregistryName="registry.test.invalid" fingerprint="{PRINT_A}" region="region-a"/>'
    ) in first


def test_the_order_is_random(client: FlaskClient) -> None:
    seen = Counter(client.get("/regionInfo?regionHint=region-a").text.index("a.test.invalid") < 120 for _ in range(60))
    assert min(seen[True], seen[False]) > 5


@given(st.text(string.printable, max_size=60))
def test_whatever_is_in_a_value_the_reply_is_xml(text: str) -> None:
    server = UpdateServer(ipv4="192.0.2.1", ipv6="", name=text or "x", registry="r", fingerprint="f", region="r")
    if all(char >= " " or char in "\t\n\r" for char in text):
        assert ElementTree.fromstring(server.element).get("SMTserverName") == (text or "x")


def test_the_example_of_the_protocol_is_answered_to_the_byte() -> None:
    """The reply that is documented for SUSE's region server, made from the region data it would be made from."""
    print_of_ca = ":".join(["AA", "BB", *["CC"] * 18])
    table = parse_region_data(
        "[Region-A]\npublic-ips = 10.0.0.0/8\nsmt-server-ip = 192.0.2.10\nsmt-server-ipv6 = 2001:db8::10\n"
        "smt-server-name = rmt.example.net\nsmt-registry-name = registry.example.net\n"
        f"smt-fingerprint = {print_of_ca}\n",
        place="x",
    )
    answer = app_for(table).test_client().get("/regionInfo", environ_base={"REMOTE_ADDR": "10.1.1.1"})
    assert answer.data == (
        b"<regionSMTdata>\n"
        b'<smtInfo SMTserverIP="192.0.2.10" SMTserverIPv6="2001:db8::10" SMTserverName="rmt.example.net" '
        b'SMTregistryName="registry.example.net" fingerprint="' + print_of_ca.encode() + b'" region="region-a"/>\n'
        b"</regionSMTdata>"
    )


ADDRESSES = {
    4: st.integers(0, 2**32 - 1).map(ipaddress.IPv4Address),
    6: st.integers(0, 2**128 - 1).map(ipaddress.IPv6Address),
}


@st.composite
def crowded_networks(draw: Callable, version: int) -> list:
    """Networks that lie inside one another, because they share their first bits."""
    bits = 32 if version == 4 else 128
    base = int(draw(ADDRESSES[version]))
    kind = ipaddress.IPv4Network if version == 4 else ipaddress.IPv6Network
    found = []
    for flipped, length in draw(st.lists(st.tuples(st.integers(0, bits - 1), st.integers(0, bits)), max_size=25)):
        mask = (1 << bits) - (1 << (bits - length))
        found.append(kind(((base ^ (1 << flipped)) & mask, length)))
    return list(dict.fromkeys(found))


@pytest.mark.parametrize("version", [4, 6])
@given(data=st.data())
def test_the_longest_prefix_is_that_of_a_linear_scan(version: int, data: st.DataObject) -> None:
    networks = data.draw(crowded_networks(version))
    entries = [RegionEntry(name=f"r{number}", networks=(one,), servers=()) for number, one in enumerate(networks)]
    table = region_table(entries)
    edges = [address for one in networks for address in (one.network_address, one.broadcast_address)]
    for peer in [data.draw(ADDRESSES[version]), *edges]:
        around = [number for number, one in enumerate(networks) if peer in one]
        best = max(around, key=lambda number: networks[number].prefixlen, default=None)
        # a mapped IPv4 address is looked up as IPv4, of which there is none here, and then as it is
        assert table.region_of(str(peer)) == ("" if best is None else f"r{best}")
        assert table.network_of(peer) == (None if best is None else networks[best])


@given(peer=ADDRESSES[4], data=st.data())
def test_a_mapped_peer_is_found_where_its_ipv4_address_is(peer: ipaddress.IPv4Address, data: st.DataObject) -> None:
    networks = data.draw(crowded_networks(4))
    table = region_table([RegionEntry(name=str(one), networks=(one,), servers=()) for one in networks])
    assert table.region_of(f"::ffff:{peer}") == table.region_of(str(peer))


@given(st.text(max_size=80))
def test_no_hint_breaks_the_server(hint: str) -> None:
    table = parse_region_data(DATA, place="x")
    assert table.find(hint, "203.0.113.1") in {(), *table.regions.values()}
    assert table.find(hint, hint) in {(), *table.regions.values()}


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("10.0.0.0/8", "10.0.0.1/8", 2, "has host bits set"),
        ("10.0.0.0/8", "2001:db8::/32", 2, "is not IPv4"),
        ("10.0.0.0/8", "10.0.0.0/8,", 2, "empty list item"),
        ("10.1.0.0/16", "10.0.0.0/8", 11, "is there already, in [region-a]"),
        ("192.0.2.20, 192.0.2.21", "192.0.2.20", 1, "pairs 1 IPv4 with 2 IPv6"),
        ("192.0.2.20,", "None,", 4, "is not an IPv4 address"),
        ("a.test.invalid,b.test.invalid", "a.test.invalid,b.test.invalid,c.test.invalid", 6, "3 values for 2 servers"),
        ("smt-registry-name = registry.test.invalid\n", "", 1, "'smt-registry-name' is missing"),
        ("smt-server-ipv6 = 2001:db8::30\n", "", 10, "has neither smt-server-ip nor"),
        (PRINT_A, PRINT_A.lower(), 8, "is not a SHA-1 fingerprint"),
        (PRINT_A, ":".join(["AA"] * 32), 8, "is not a SHA-1 fingerprint"),
        ("a.test.invalid", "a&b.test.invalid", 6, "is not a DNS name"),
        ("[region-b]", "[REGION-A]", 10, "is there already"),
        ("[region-b]", "[region <b>]", 10, "is no region name"),
        ("[region-b]", "[Region-A]", 10, "is there twice"),
    ],
)
def test_a_problem_of_the_data_stops_the_server_with_its_line(old: str, new: str, line: int, words: str) -> None:
    with pytest.raises(InputFault) as caught:
        parse_region_data(DATA.replace(old, new, 1), place="data")
    assert any(fault.place.startswith(f"data:{line}") and words in fault.problem for fault in caught.value.faults), (
        caught.value.faults
    )


def test_all_problems_are_told_at_once() -> None:
    spoiled = DATA.replace("10.0.0.0/8", "x").replace("10.1.0.0/16", "y").replace(PRINT_B, "z")
    with pytest.raises(InputFault) as caught:
        parse_region_data(spoiled, place="data")
    assert len(caught.value.faults) == 3


@pytest.mark.parametrize("text", ["", "# only a comment\n"])
def test_empty_data_is_a_problem(text: str) -> None:
    with pytest.raises(InputFault):
        parse_region_data(text, place="data")


INI = st.lists(
    st.one_of(
        st.sampled_from(
            ["[a]", "[b]", "[DEFAULT]", "[A]", "x = 1", "X: 2", "y=", "  more", "# n", "; n", "", "  ", "]["]
        ),
        st.text("[]=:#;, \taxyDEFAULT%\n\u00e9", max_size=12),
    ),
    max_size=14,
).map("\n".join)


@given(INI)
@example("[DEFAULT]\nx = 1\n[a]\ny = 2\n[DEFAULT]\nz = 3")
@example("[a]\nx = 1\n[DEFAULT]\nx = 2")
@example("[a]\n x = 1\n  y = 2\n z = 3")
def test_files_are_read_as_python_reads_them(text: str) -> None:
    parser = configparser.RawConfigParser()
    read = ini.read(text, place="x")
    try:
        parser.read_string(text)
    except configparser.Error:
        assert read.faults
        return
    assert read.faults == ()
    assert {
        name: {key: one.value for key, one in section.options.items()} for name, section in read.sections.items()
    } == {name: dict(parser.items(name)) for name in parser.sections()}
    lines = text.split("\n")
    for section in read.sections.values():
        for key, option in section.options.items():
            assert lines[option.line - 1].strip().lower().startswith(key)


@given(st.text(max_size=300))
def test_no_text_breaks_the_reader(text: str) -> None:
    read = read_region_data(text, place="x")
    assert read.faults or read.entries


def test_default_options_count_in_every_region() -> None:
    text = f"[DEFAULT]\nsmt-registry-name = registry.test.invalid\nsmt-fingerprint = {PRINT_A}\n"
    for region in ("a", "b"):
        text += f"[{region}]\nsmt-server-ip = 192.0.2.20\nsmt-server-name = x.test.invalid\n"
    table = parse_region_data(text, place="x")
    assert {servers[0].registry for servers in table.regions.values()} == {"registry.test.invalid"}


def test_an_item_of_a_list_over_many_lines_is_named_by_its_own_line() -> None:
    text = DATA.replace("public-ips = 10.0.0.0/8, 192.0.2.7", "public-ips = 10.0.0.0/8,\n  192.0.2.7,\n  192.0.2.9/8")
    with pytest.raises(InputFault) as caught:
        parse_region_data(text, place="data")
    assert [fault.place for fault in caught.value.faults] == ["data:4 Region-A.public-ips"]


@pytest.mark.parametrize(
    ("old", "new", "kind", "line", "words"),
    [
        ("192.0.2.20, ", "192.0.2.20, ", "quirks", 4, "has blanks beside 1 commas"),
        ("10.1.0.0/16", "10.1.0.0/16,10.1.0.0/16", "notes", 11, "10.1.0.0/16 is there already"),
        ("10.1.0.0/16", "10.1.0.0/16\nregionName = x", "notes", 12, "is no option"),
        ("", "", "notes", 10, "has no smt-server-ip"),
        ("", "", "notes", 10, "has one update server only"),
        ("public-ips = 10.1", "public_ips = 10.1", "faults", 11, "is no option of region data"),
        ("192.0.2.20,", "127.0.0.1,", "faults", 4, "is each instance itself"),
        ("2001:db8::30", "::1", "faults", 13, "is each instance itself"),
        ("2001:db8::30", "ff02::1", "faults", 13, "can never be a server"),
        ("2001:db8::30", "fe80::1%eth0", "faults", 13, "is not an IPv6 address"),
        ("2001:db8:a::/48", "fe80::%eth0/64", "faults", 3, "does not appear to be"),
    ],
)
def test_what_is_found_in_the_data_says_how_bad_it_is(old: str, new: str, kind: str, line: int, words: str) -> None:
    read = read_region_data(DATA.replace(old, new, 1), place="data")
    assert any(one.place.startswith(f"data:{line} ") and words in one.problem for one in getattr(read, kind)), read
    assert (read.faults == ()) == (kind != "faults")


@pytest.mark.parametrize(
    ("remote", "forwarded", "peer"),
    [
        ("192.0.2.1", "", "192.0.2.1"),
        ("192.0.2.1", "10.0.0.1", "10.0.0.1"),
        ("192.0.2.1", "203.0.113.9, 10.0.0.1", "10.0.0.1"),
        ("192.0.2.1", "10.0.0.1, 192.0.2.2", "10.0.0.1"),
        ("::ffff:192.0.2.1", "10.0.0.1", "10.0.0.1"),
        ("2001:db8:f::1", "2001:db8:a::1", "2001:db8:a::1"),
        ("192.0.2.1", "nonsense", ""),
        ("192.0.2.1", "10.0.0.1, nonsense", ""),
        ("192.0.2.1", "192.0.2.9", "192.0.2.9"),
        ("203.0.113.5", "10.0.0.1", "203.0.113.5"),
        ("", "", ""),
    ],
)
def test_only_trusted_proxies_are_believed(remote: str, forwarded: str, peer: str) -> None:
    trusted = (ipaddress.ip_network("192.0.2.0/29"), ipaddress.ip_network("2001:db8:f::/64"))
    assert peer_address(remote, forwarded, trusted) == peer


@given(st.text(max_size=60), st.text(max_size=60))
def test_no_forwarded_header_breaks_the_server(remote: str, forwarded: str) -> None:
    trusted = (ipaddress.ip_network("0.0.0.0/0"),)
    assert isinstance(peer_address(remote, forwarded, trusted), str)


def test_the_health_path_is_beside_the_protocol(client: FlaskClient) -> None:
    assert client.get("/health").json == {"state": "online", "regions": 2, "networks": 5}


# -- the service around it --------------------------------------------------------------------------------------------


@pytest.fixture
def service(tmp_path: Path) -> Path:
    (tmp_path / "regionData.cfg").write_text(DATA)
    (tmp_path / "regionInfo.cfg").write_text(
        f"[server]\nlogFile = {tmp_path}/regionInfo.log\nregionConfig = {tmp_path}/regionData.cfg\n"
    )
    return tmp_path / "regionInfo.cfg"


def test_a_good_service_is_ready(service: Path) -> None:
    ready = prepare(service, now=NOW)
    assert ready.service.trusted_proxies == ()
    assert (len(ready.table.regions), ready.table.prefix_count) == (2, 5)
    assert any("blanks" in note.problem for note in ready.notes)
    assert not ready.service.log.exists(), "who checks may be another user than who serves"


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("[server]", "[service]", 1, "there is no [server] section"),
        ("[server]", "[other]\n[server]", 1, "[other] is unknown"),
        ("logFile = ", "logfiles = ", 2, "is no option"),
        ("logFile = ", "# ", 1, "is missing"),
        ("regionConfig = ", "regionConfig = here", 3, "is not an absolute path"),
        ("regionInfo.log", "none/regionInfo.log", "", "its folder does not exist"),
        ("/regionInfo.log", "", "", "it is a folder"),
        ("logFile = ", "logFile = here", 2, "is not an absolute path"),
        ("regionData.cfg", "none.cfg", "", "cannot be read"),
        ("[server]", "[server]\ntrustedProxies = 192.0.2.1, 192.0.2.1/8, x", 2, "has host bits set"),
        ("[server]", "[server]\nlogFile = x", 3, "is there twice"),
    ],
)
def test_a_problem_of_the_service_is_told_with_its_line(
    service: Path, old: str, new: str, line: int | str, words: str
) -> None:
    service.write_text(service.read_text().replace(old, new, 1))
    with pytest.raises(InputFault) as caught:
        prepare(service, now=NOW)
    place = f"{service}:{line}" if line else str(service.parent)
    assert any(one.place.startswith(place) and words in one.problem for one in caught.value.faults), caught.value.faults


def test_problems_of_all_files_are_told_at_once(service: Path, tmp_path: Path) -> None:
    service.write_text(service.read_text() + "trustedProxies = x\nodd = 1\n")
    (tmp_path / "regionData.cfg").write_text(DATA.replace("10.0.0.0/8", "x").replace(PRINT_B, "z"))
    tls = Tls(certificate=tmp_path / "none.pem", key=tmp_path / "none.key")
    with pytest.raises(InputFault) as caught:
        prepare(service, now=NOW, tls=tls)
    assert len(caught.value.faults) == 5


def test_options_win_over_the_file(service: Path, tmp_path: Path) -> None:
    (tmp_path / "other.cfg").write_text(DATA)
    service.write_text("[server]\nlogFile = /nonexistent/log\nregionConfig = /nonexistent/data\n")
    ready = prepare(service, now=NOW, log=tmp_path / "other.log", region_data=tmp_path / "other.cfg")
    assert (ready.service.log, ready.service.region_data) == (tmp_path / "other.log", tmp_path / "other.cfg")


def certified(folder: Path, **changes: object) -> Tls:
    wanted = {"now": NOW, "days": 30, "names": ["region.test.invalid"], **changes}
    certificate, key = issue("region.test.invalid", **wanted).write(folder, "server")
    return Tls(certificate=certificate, key=key)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"now": NOW - timedelta(days=40)}, "is not valid now"),
        ({"now": NOW + timedelta(days=40)}, "is not valid now"),
        ({"names": []}, "names nobody in subjectAltName"),
    ],
)
def test_a_certificate_that_no_client_would_accept_stops_the_server(
    service: Path, tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    tls = certified(tmp_path, **changes)
    if not words:
        assert prepare(service, now=NOW, tls=tls)
        return
    with pytest.raises(InputFault) as caught:
        prepare(service, now=NOW, tls=tls)
    assert [words in fault.problem for fault in caught.value.faults] == [True]


def test_the_key_must_be_the_certificates_and_private(service: Path, tmp_path: Path) -> None:
    tls = certified(tmp_path)
    tls.key.chmod(0o644)
    assert any("others may read" in note.problem for note in prepare(service, now=NOW, tls=tls).notes)
    _, other = issue("x", now=NOW, days=3).write(tmp_path, "other")
    with pytest.raises(InputFault) as caught:
        prepare(service, now=NOW, tls=Tls(certificate=tls.certificate, key=other))
    assert [fault.place for fault in caught.value.faults] == [str(tls.certificate)]


def served(service: Path) -> tuple[Flask, AccessLog, Ready]:
    ready = prepare(service, now=NOW)
    log = AccessLog(ready.service.log)
    return application(ready, log), log, ready


def test_with_a_trusted_proxy_the_forwarded_address_counts(service: Path) -> None:
    service.write_text(service.read_text() + "trustedProxies = 203.0.113.0/30\n")
    client = served(service)[0].test_client()
    asked = {"headers": {"X-Forwarded-For": "10.1.0.9"}}
    assert client.get("/regionInfo", **asked, environ_base={"REMOTE_ADDR": "203.0.113.1"}).status_code == 200
    assert client.get("/regionInfo", **asked, environ_base={"REMOTE_ADDR": "203.0.113.5"}).status_code == 404
    assert "10.1.0.9" in (service.parent / "regionInfo.log").read_text()


@given(st.text(max_size=600))
def test_whatever_a_request_holds_it_is_one_printable_line(text: str) -> None:
    shown = _escaped(text)
    assert (shown.isascii(), shown.isprintable() or not shown) == (True, True)
    assert '"' not in shown.replace('\\"', "")


def test_the_access_log_escapes_and_shortens_what_comes_from_outside(service: Path) -> None:
    app, _, ready = served(service)
    client = app.test_client()
    client.get("/regionInfo?x=" + "a" * 3000, environ_base={"REMOTE_ADDR": "10.0.0.1"})
    client.get("/x", headers={"User-Agent": 'a"b\\\x1b[31m\u20ac'.encode().decode("latin-1")})
    first, second = ready.service.log.read_text().splitlines()
    assert '"GET /regionInfo?x=aaa' in first
    assert " region-a " in first
    assert len(first) < 700
    assert second.isascii()
    assert second.isprintable()
    assert second.endswith('"a\\"b\\\\\\x1b[31m\\xe2\\x82\\xac"')


def test_a_log_that_is_moved_or_gone_stops_no_answer(
    service: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    service.write_text(service.read_text().replace("regionInfo.log", "logs/regionInfo.log"))
    (tmp_path / "logs").mkdir()
    app, _, ready = served(service)
    client = app.test_client()
    client.get("/first")
    ready.service.log.rename(tmp_path / "moved")
    client.get("/second")
    assert "/first" in (tmp_path / "moved").read_text()
    assert "/second" in ready.service.log.read_text()
    (tmp_path / "logs").rename(tmp_path / "gone")
    assert client.get("/regionInfo?regionHint=region-b").status_code == 200
    assert "No such file" in capfd.readouterr().err


def test_mod_wsgi_gets_every_problem_in_its_error_log(service: Path) -> None:
    assert isinstance(for_mod_wsgi(service), Flask)
    service.write_text("[server]\n")
    with pytest.raises(RuntimeError, match=r"server\.logFile: is missing"):
        for_mod_wsgi(service)


@given(st.lists(crowded_networks(4), max_size=4))
def test_what_is_written_is_read_back(groups: list[list[ipaddress.IPv4Network]]) -> None:
    owners = {network: number for number, networks in enumerate(groups) for network in networks}
    server = {"ipv4": "192.0.2.1", "ipv6": "", "name": "a.invalid", "registry": "r.invalid", "fingerprint": PRINT_A}
    entries = tuple(
        RegionEntry(
            name=f"r{number}",
            networks=tuple(one for one, owner in owners.items() if owner == number),
            servers=(UpdateServer(**server, region=f"r{number}"),) * 2,
        )
        for number in range(len(groups))
    )
    read = read_region_data(render(entries), place="x")
    assert read.entries == entries
    assert read.quirks == ()


def test_a_missing_file_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputFault, match="cannot be read"):
        create_app(tmp_path / "none")
