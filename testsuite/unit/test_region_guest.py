# SPDX-License-Identifier: Apache-2.0
"""The parts of the guest client that read what others wrote."""

from __future__ import annotations

import ast
import contextlib
import importlib.machinery
import importlib.util
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

PROGRAM = Path(__file__).parents[2] / "factory/region/guest/guestregister"
PRINT = ":".join(["AB"] * 20)
GOOD = (
    f'<smtInfo SMTserverIP="192.0.2.20" SMTserverName="a.test.invalid" SMTregistryName="r.test.invalid" '
    f'fingerprint="{PRINT}" region="one"/>'
)


def load() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("guestregister", str(PROGRAM))
    spec = importlib.util.spec_from_loader("guestregister", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


guest = load()


def reply(*elements: str) -> bytes:
    return ("<regionSMTdata>\n" + "\n".join(elements) + "\n</regionSMTdata>").encode()


def test_it_is_python_3_6() -> None:
    ast.parse(PROGRAM.read_text(), feature_version=(3, 6))


def test_it_needs_the_standard_library_only() -> None:
    tree = ast.parse(PROGRAM.read_text())
    names = {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    names |= {node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    assert names <= sys.stdlib_module_names


def test_a_good_reply_is_understood() -> None:
    (server,) = guest.region_reply(reply(GOOD))
    assert (server.name, server.ipv4, server.ipv6, server.region) == ("a.test.invalid", "192.0.2.20", "", "one")
    assert server.addresses() == ["192.0.2.20"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("a.test.invalid", "a.test.invalid&#10;198.51.100.1 deb.example"),
        ("a.test.invalid", "a test"),
        ("a.test.invalid", "-a.test"),
        ("a.test.invalid", "localhost"),
        ("a.test.invalid", ""),
        ("192.0.2.20", "None"),
        ("192.0.2.20", "127.0.0.1"),
        ("192.0.2.20", "0.0.0.0"),
        ("192.0.2.20", "a.invalid"),
        ("r.test.invalid", "r&#9;evil"),
        (PRINT, PRINT.lower()),
        (PRINT, PRINT + ":AB"),
        (PRINT, ""),
        ('region="one"', 'region="../one"'),
    ],
)
def test_a_server_with_a_bad_value_is_not_taken_but_the_others_are(old: str, new: str) -> None:
    bad = GOOD.replace(old, new)
    with pytest.raises(guest.NoAnswer, match="no usable update server"):
        guest.region_reply(reply(bad))
    assert [one.name for one in guest.region_reply(reply(bad, GOOD.replace("a.test", "b.test")))] == ["b.test.invalid"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<regionSMTdata>",
        b"Not found",
        b"<a/><b/>",
        b'<!DOCTYPE a [<!ENTITY x "y">]><a>&x;</a>',
        b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>',
        b'<!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;&a;">]><r><s SMTserverName="&b;"/></r>',
        '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a [<!ENTITY x "y">]><a>&x;</a>'.encode("utf-16"),
        b'<?xml version="1.0" encoding="none"?><a/>',
        b"<r>" + b"<a>" * 5000,
        b"\xff\xfe\x00",
        b"<regionSMTdata></regionSMTdata>",
    ],
)
def test_hostile_xml_is_one_clear_failure(body: bytes) -> None:
    with pytest.raises(guest.NoAnswer):
        guest.region_reply(body)


@given(st.binary(max_size=300))
def test_no_reply_raises_anything_else(body: bytes) -> None:
    try:
        guest.region_reply(body)
    except guest.Failure:
        return
    pytest.fail("taken")


def server(**changes: str) -> object:
    wanted = {
        "name": "a.test.invalid",
        "ipv4": "192.0.2.20",
        "ipv6": "",
        "fingerprint": PRINT,
        "region": "one",
        "registry": "r.test.invalid",
    }
    return guest.UpdateServer(**{**wanted, **changes})


HOSTS_LINE = st.sampled_from(
    ["127.0.0.1\tlocalhost", "192.0.2.20\ta.test.invalid\ta", "192.0.2.9\tx", "# note", "", "10.0.0.1 b b.test.invalid"]
)


@given(st.lists(HOSTS_LINE, max_size=6), st.sampled_from(["", "r.test.invalid"]))
def test_the_hosts_block_comes_and_goes_and_nothing_else_changes(lines: list[str], registry: str) -> None:
    text = "".join(line + "\n" for line in lines)
    added = guest.with_block(text, server(registry=registry), "192.0.2.20")
    assert added.startswith(text)
    assert "\n192.0.2.20\ta.test.invalid\ta\n" in added
    assert guest.with_block(added, server(registry=registry), "192.0.2.20") == added
    assert guest.without_block(added) == text


def test_lines_written_after_the_block_stay() -> None:
    added = guest.with_block("127.0.0.1\tlocalhost\n", server(), "192.0.2.20") + "10.0.0.9\tmine.test.invalid\tmine\n"
    assert guest.without_block(added) == "127.0.0.1\tlocalhost\n10.0.0.9\tmine.test.invalid\tmine\n"
    moved = guest.with_block(added, server(name="b.test.invalid", registry=""), "192.0.2.21")
    assert moved.count("# Added by SMT") == 1
    assert "a.test.invalid" not in moved


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Types: deb\nURIs: https://a.example/debian/\nSuites: x\n", {"https://a.example/debian"}),
        (
            "URIs: https://a.example/x\n https://b.example/y\nSuites: x\n",
            {"https://a.example/x", "https://b.example/y"},
        ),
        ("# URIs: no\nURIs: https://a.example/x https://b.example/y\n", {"https://a.example/x", "https://b.example/y"}),
        ("deb [signed-by=/a.gpg arch=amd64] https://a.example/x trixie main\n", {"https://a.example/x"}),
        ("deb-src https://a.example/x trixie main\n# deb https://c.example z\n", {"https://a.example/x"}),
        ("", set()),
    ],
)
def test_apt_sources_of_both_formats_are_read(text: str, found: set[str]) -> None:
    assert guest.source_addresses(text) == found


def test_only_the_first_certificate_is_compared_and_only_that_one_is_trusted() -> None:
    from datetime import UTC, datetime

    from factory.region.certificates import fingerprint, issue

    ours, foreign = (issue(name, now=datetime(2026, 1, 1, tzinfo=UTC), days=9).pem for name in ("ours", "foreign"))
    wanted = server(fingerprint=fingerprint(ours.decode()))
    assert guest.checked_authority(wanted, b"junk\n" + ours + foreign) == ours.decode()
    for body in (foreign + ours, b"", b"junk", b"-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----"):
        with pytest.raises(guest.NoAnswer):
            guest.checked_authority(wanted, body)


@pytest.mark.parametrize(
    ("files", "choice"),
    [
        ({}, ""),
        ({guest.INSTANCE_FILES[1]: '{"ds": {"meta_data": {"meta": {"factory_registration": "byos"}}}}'}, "byos"),
        ({guest.INSTANCE_FILES[1]: '{"ds": {"meta_data": {"factory_registration": " BYOL "}}}'}, "byos"),
        ({guest.INSTANCE_FILES[0]: '{"ds": {"meta_data": {"factory_registration": "on-demand"}}}'}, "on-demand"),
        ({guest.INSTANCE_FILES[0]: "{"}, ""),
        ({guest.INSTANCE_FILES[0]: '{"ds": []}'}, ""),
        ({guest.INSTANCE_FILES[0]: '{"ds": {"meta_data": {"meta": ["x"]}}}'}, ""),
        ({guest.CLOUD_CONFIG: "#cloud-config\nfactory_registration: 'byos'  # mine\n"}, "byos"),
        ({guest.CLOUD_CONFIG: "write_files:\n- content: |\n    factory_registration: byos\n"}, ""),
        ({guest.CLOUD_CONFIG: "# factory_registration: byos\n"}, ""),
    ],
)
def test_the_owners_choice_is_found(tmp_path: Path, files: dict[str, str], choice: str) -> None:
    for name, text in files.items():
        (tmp_path / name.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name.lstrip("/")).write_text(text)
    assert guest.chosen_registration(guest.Files(str(tmp_path))) == choice


@pytest.mark.parametrize(
    ("repositories", "found"),
    [
        ([{"name": "d", "url": "https://a.test.invalid/repo/d"}], {"d": "https://a.test.invalid/repo/d"}),
        (
            [{"name": "d", "url": "plugin:/susecloud?credentials=x&path=/repo/d"}],
            {"d": "https://a.test.invalid/repo/d"},
        ),
        ([{"name": "d", "url": "https://evil.invalid/repo/d"}], {}),
        ([{"name": "d", "url": "http://a.test.invalid/repo/d"}], {}),
        ([{"name": "d", "url": "https://a.test.invalid/repo/../x"}], {}),
        ([{"name": "d", "url": "https://a.test.invalid/repo/d\nTrusted: yes"}], {}),
    ],
)
def test_repositories_elsewhere_are_not_taken(repositories: list[dict[str, str]], found: dict[str, str]) -> None:
    taken = guest.offered_repositories({"product": {"repositories": repositories}}, server())
    assert taken == found


@pytest.mark.parametrize("service", [None, [], {}, {"product": None}, {"product": {"repositories": [7]}}])
def test_a_service_that_is_none_is_one_clear_failure(service: object) -> None:
    with pytest.raises(guest.NoAnswer, match="did not answer with a service"):
        guest.offered_repositories(service, server())


@pytest.mark.parametrize("value", ["", "a b", "a\nb", "a" * 200, "ä"])
def test_credentials_that_would_break_a_file_are_not_taken(value: str) -> None:
    with pytest.raises(guest.NoAnswer):
        guest.Credentials(value, "password")
    with pytest.raises(guest.NoAnswer):
        guest.Credentials("user", value)


def test_a_file_appears_whole_with_its_mode(tmp_path: Path) -> None:
    files = guest.Files(str(tmp_path))
    files.write("/a/b", "secret", 0o600)
    assert (tmp_path / "a/b").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    files.remove("/a/b")
    files.remove("/a/b")
    assert files.read("/a/b") is None


def test_region_servers_are_asked_addresses_first_and_ipv6_only_when_it_answers() -> None:
    for _ in range(5):
        found = guest.ordered(["name.invalid", "192.0.2.2", "::1", "192.0.2.1"])
        assert sorted(found[:2]) == ["192.0.2.1", "192.0.2.2"]
        assert found[2:] == ["name.invalid"]


def test_foreign_text_cannot_forge_a_line_of_the_log() -> None:
    assert guest.printable("a\nb\x1b[31m\u202ec") == "a?b?[31m?c"
    assert len(guest.printable("x" * 9999)) == 300


# -- talking ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pem", ["", "\n", "junk", "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n"])
def test_a_pem_that_is_none_is_not_everybodys(pem: str) -> None:
    with pytest.raises((ValueError, OSError)):
        guest.verified(pem)


@pytest.mark.parametrize(
    ("item", "found"),
    [
        ("192.0.2.1", ("192.0.2.1", None)),
        ("2001:db8::1", ("2001:db8::1", None)),
        ("region.test.invalid", ("region.test.invalid", None)),
        ("region.test.invalid:8443", ("region.test.invalid", 8443)),
        ("192.0.2.1:443", ("192.0.2.1", 443)),
    ],
)
def test_an_item_may_have_a_port(item: str, found: tuple[str, int | None]) -> None:
    assert guest.endpoint(item) == found


@pytest.mark.parametrize("item", ["a:", "a:b", "a:0", "a:65536", "a:-1"])
def test_a_port_that_is_none_is_one_clear_failure(item: str) -> None:
    with pytest.raises(guest.NoAnswer, match="has no port"):
        guest.endpoint(item)


def served(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server for one connection on loopback; gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            client, _ = listening.accept()
            with client, contextlib.suppress(OSError):
                client.recv(65536)
                answer(client)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        thread.join(10)


def trickle_head(client: socket.socket) -> None:
    client.sendall(b"HTTP/1.1 200 OK\r\n")
    for _ in range(100):
        client.sendall(b"X-A: b\r\n")
        time.sleep(0.1)


def trickle_body(client: socket.socket) -> None:
    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
    for _ in range(100):
        client.sendall(b"x")
        time.sleep(0.1)


@pytest.mark.parametrize("answer", [trickle_head, trickle_body, lambda _: time.sleep(1)])
def test_who_trickles_is_cut_off(answer: Callable[[socket.socket], None]) -> None:
    for port in served(answer):
        started = time.monotonic()
        with pytest.raises(guest.NoAnswer, match=r"too slow|timed out"):
            guest.fetch("GET", "127.0.0.1", "127.0.0.1", "/", None, 0.4, port=port)
        assert time.monotonic() - started < 4


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"junk\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 999,
    ],
)
def test_an_answer_that_is_none_is_one_clear_failure(content: bytes) -> None:
    for port in served(lambda client: client.sendall(content)):
        with pytest.raises(guest.NoAnswer):
            guest.fetch("GET", "127.0.0.1", "127.0.0.1", "/", None, 5.0, port=port)


@pytest.mark.parametrize("content", [b"[" * 100000, b"{" * 9, b"\xff", "[" * 100000, ""])
def test_json_that_is_none_is_one_kind_of_error(content: bytes | str) -> None:
    with pytest.raises(ValueError):
        guest.json_in(content)


# -- proxies ----------------------------------------------------------------------------------------------------------

PROXY = "http://192.0.2.99:3128"


def proxies(tmp_path: Path, environment: dict[str, str], sysconfig: str = "") -> Any:
    (tmp_path / "etc/sysconfig").mkdir(parents=True)
    (tmp_path / "etc/sysconfig/proxy").write_text(sysconfig)
    return guest.Proxies.read(guest.Files(str(tmp_path)), environment)


@pytest.mark.parametrize(
    ("environment", "sysconfig", "by_proxy"),
    [
        ({}, "", False),
        ({"https_proxy": PROXY}, "", True),
        ({"HTTPS_PROXY": PROXY}, "", True),
        ({"http_proxy": PROXY}, "", False),
        ({}, f'PROXY_ENABLED="yes"\nHTTPS_PROXY="{PROXY}"\n', True),
        ({}, f"PROXY_ENABLED=yes\nHTTPS_PROXY={PROXY}  # unquoted\n", True),
        ({}, f'PROXY_ENABLED="no"\nHTTPS_PROXY="{PROXY}"\n', False),
        ({}, f'HTTPS_PROXY="{PROXY}"\n', False),
        ({}, 'PROXY_ENABLED="yes"\nHTTPS_PROXY="unbalanced\n', False),
        ({"http_proxy": PROXY, "https_proxy": ""}, f'PROXY_ENABLED="yes"\nHTTPS_PROXY="{PROXY}"\n', True),
        ({"http_proxy": PROXY, "https_proxy": PROXY}, 'PROXY_ENABLED="yes"\nNO_PROXY="*"\n', True),
        ({"https_proxy": PROXY, "no_proxy": "*"}, "", False),
    ],
)
def test_where_proxies_come_from(
    tmp_path: Path, environment: dict[str, str], sysconfig: str, *, by_proxy: bool
) -> None:
    assert bool(proxies(tmp_path, environment, sysconfig).way("https", "a.test.invalid", "192.0.2.20")) is by_proxy


@pytest.mark.parametrize(
    ("without", "host", "excepted"),
    [
        ("test.invalid", "a.test.invalid", True),
        (".test.invalid", "A.Test.invalid", True),
        ("*.test.invalid", "a.test.invalid", True),
        ("est.invalid", "a.test.invalid", False),
        ("a.test.invalid.", "a.test.invalid", True),
        ("192.0.2.0/24, x", "192.0.2.20", True),
        ("192.0.2.0/24", "198.51.100.1", False),
        ("192.0.2.20", "192.0.2.20", True),
        ("2.20", "192.0.2.20", False),
        ("2001:db8::/32", "2001:db8::1", True),
        ("", "127.0.0.1", True),
        ("", "169.254.169.254", True),
        ("", "a.test.invalid", False),
    ],
)
def test_what_goes_without_a_proxy(without: str, host: str, *, excepted: bool) -> None:
    assert guest.Proxies({"https": PROXY, "no": without}).excepted(host) is excepted


@pytest.mark.parametrize("url", ["https://a", "socks5://a:1", "http://:1", "http://a:port", "http://[::1"])
def test_a_proxy_of_another_kind_is_one_clear_failure(url: str) -> None:
    with pytest.raises(guest.Failure, match="of the form") as told:
        guest.Proxy(url)
    assert url not in str(told.value)


# -- what is kept between runs ----------------------------------------------------------------------------------------


def test_the_state_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    files, first, second = guest.Files(str(tmp_path)), server(), server(name="b.test.invalid")
    guest.State(first, True, [first, second], guest.Place("qemu", "p", "regionHint=a")).save(files, "debian/13/x86_64")
    assert (tmp_path / "var/lib/guestregister/state.json").stat().st_mode & 0o777 == 0o600
    found = guest.State.load(files)
    assert (found.server.state(), found.complete) == (first.state(), True)
    assert [one.name for one in found.servers] == ["a.test.invalid", "b.test.invalid"]
    assert (found.place.framework, found.place.region) == ("qemu", "regionHint=a")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "7",
        "null",
        '{"server": {}}',
        '{"server": 7, "complete": true}',
        "[" * 100000,
        '{"server": null}',
    ],
)
def test_a_state_that_is_none_is_no_state(tmp_path: Path, text: str) -> None:
    (tmp_path / "var/lib/guestregister").mkdir(parents=True)
    (tmp_path / "var/lib/guestregister/state.json").write_text(text)
    found = guest.State.load(guest.Files(str(tmp_path)))
    assert (found.server, found.complete, found.servers) == (None, False, [])


def test_servers_in_the_state_are_checked_as_those_of_region_servers(tmp_path: Path) -> None:
    files = guest.Files(str(tmp_path))
    guest.State(server(), True, [server()], guest.Place()).save(files, "x")
    path = tmp_path / "var/lib/guestregister/state.json"
    path.write_text(path.read_text().replace("a.test.invalid", "a.b\\n203.0.113.9 deb.example"))
    assert guest.State.load(files).server is None


def test_dnf_sources_are_read() -> None:
    text = "[a]\nbaseurl=https://a.example/x/\n https://b.example/y\n[b]\nmetalink=https://c.example/?a=1\n"
    assert guest.repository_addresses(text) == {"https://a.example/x", "https://b.example/y", "https://c.example/?a=1"}
    assert guest.repository_addresses("no ini") == set()


def test_a_program_that_takes_too_long_ends_with_what_it_started(tmp_path: Path) -> None:
    """Whoever a program started also holds its output: ending the program alone would wait for that one."""
    script = f"sh -c 'echo $$ > {tmp_path}/child; exec sleep 30' & wait"
    started = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        guest.called(["/bin/sh", "-c", script], 1.0)
    assert time.monotonic() - started < 15
    child = int((tmp_path / "child").read_text())
    while runs(child) and time.monotonic() < started + 15:
        time.sleep(0.05)
    assert not runs(child)


def runs(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in {"Z", "X"}
    return False


def test_a_trust_store_that_is_not_done_in_time_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Registration has to end, undone, before the unit's limit: a second try would take as long as the first."""
    tool = tmp_path / "usr/sbin/update-ca-certificates"
    tool.parent.mkdir(parents=True)
    tool.write_text(f"#!/bin/sh\necho once >>{tmp_path}/tries\nsleep 30\n")
    tool.chmod(0o755)
    monkeypatch.setattr(guest, "TRUST_TIMEOUT_S", 1.0)
    with pytest.raises(guest.Failure, match="not done within 1 s"):
        guest.System(guest.Files(str(tmp_path)), None).refresh_trust(("/usr/sbin/update-ca-certificates",))
    assert (tmp_path / "tries").read_text() == "once\n"
    unit = (Path(guest.__file__).parent / "guestregister.service").read_text()
    assert "TimeoutStartSec=900\n" in unit
