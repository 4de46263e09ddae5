# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import string
from collections import Counter
from pathlib import Path

import pytest
from defusedxml import ElementTree
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st

from factory.errors import InputFault
from factory.region.data import UpdateServer
from factory.region.server import create_app, parse_region_data

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


def test_a_missing_file_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputFault, match="cannot be read"):
        create_app(tmp_path / "none")
