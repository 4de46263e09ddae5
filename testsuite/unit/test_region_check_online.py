# SPDX-License-Identifier: Apache-2.0
"""What servers answer, over real TLS on loopback: each case is red for exactly its fault."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from factory.model import Region, RegionClient, Server
from factory.region import check_peers
from factory.region.certificates import Issued, fingerprint, issue
from factory.region.check_findings import At, Notes, Severity
from factory.region.check_http import Door, Unanswered
from factory.region.check_online import Asking, examine_region_servers, examine_update_servers, smt_info
from factory.region.check_peers import Probe, examine_peers, read_report
from factory.system.run import PATH, run
from testsuite.fakes.tls import Answer, Answers, tls_server

pytestmark = pytest.mark.programs

NOW = datetime.now(UTC)
CLIENT = RegionClient()
NAMES = ("update-a.cloud.example", "update-b.cloud.example")
ADDRESSES = ("127.0.0.1", "127.0.0.2")
HEALTHY = (200, b'{"state":"online"}')


@dataclass(frozen=True)
class Site:
    """Keys and certificates of a region on loopback."""

    folder: Path
    authority: Issued
    region: Region

    @property
    def ca(self) -> str:
        return self.authority.pem.decode()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("site")
    authority = issue("CA", now=NOW, days=30, is_authority=True)
    authority.write(folder, "ca")
    issue("other", now=NOW, days=30, is_authority=True).write(folder, "other-ca")
    issue("region", now=NOW, days=30, addresses=["127.0.0.1"]).write(folder, "region")
    servers = []
    for name, address in zip(NAMES, ADDRESSES, strict=True):
        issue(name, now=NOW, days=30, names=[name], authority=authority).write(folder, name)
        servers.append(Server(name=name, ipv4=address, pem=folder / "ca.pem"))
    issue(NAMES[0], now=NOW, days=30, names=[NAMES[0]]).write(folder, "foreign")
    past = NOW - timedelta(days=60)
    issue(NAMES[0], now=past, days=30, names=[NAMES[0]], authority=authority).write(folder, "expired")
    return Site(folder=folder, authority=authority, region=Region(name="North", update_servers=tuple(servers)))


def smt(site: Site, *, count: int = 2, **changes: str) -> bytes:
    lines = []
    for server in site.region.update_servers[:count]:
        told = {
            "SMTserverIP": server.ipv4,
            "SMTserverName": server.name,
            "SMTregistryName": server.name,
            "fingerprint": fingerprint(site.ca),
            "region": "north",
            **changes,
        }
        lines.append("<smtInfo " + " ".join(f'{name}="{text}"' for name, text in told.items() if text) + "/>")
    return "\n".join(["<regionSMTdata>", *lines, "</regionSMTdata>"]).encode()


HINTED = "/regionInfo?regionHint=North"
BOMB = b'<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]><regionSMTdata><x y="&b;"/></regionSMTdata>'
REGION_SERVERS: Mapping[str, tuple[Callable[[Site], Mapping[str, Answer]], int | None, str]] = {
    "good": (lambda site: {HINTED: (200, smt(site))}, None, ""),
    "known without hint": (lambda site: {"/regionInfo": (200, smt(site))}, None, ""),
    "broken": (lambda _: {"/regionInfo": (500, b"")}, 10, "answers 500"),
    "no XML": (lambda _: {"/regionInfo": (200, b"<a>&</a>")}, 10, "not XML"),
    "entities": (lambda _: {"/regionInfo": (200, BOMB)}, 10, "not XML"),
    "huge": (lambda _: {"/regionInfo": (200, b"<a>" + b" " * (2 << 20) + b"</a>")}, 10, "longer than"),
    "huge with a hint": (lambda _: {HINTED: (200, b" " * (2 << 20))}, 10, "longer than"),
    "None": (lambda site: {HINTED: (200, smt(site, SMTserverIP="None"))}, 11, "SMTserverIP='None'"),
    "blank": (lambda site: {HINTED: (200, smt(site, SMTserverIP=" 192.0.2.1"))}, 11, "SMTserverIP=' 192.0.2.1'"),
    "no registry": (lambda site: {HINTED: (200, smt(site, SMTregistryName=""))}, 11, "no SMTregistryName"),
    "other servers": (lambda site: {HINTED: (200, smt(site, count=1))}, 11, "instead of"),
    "lower case": (
        lambda site: {HINTED: (200, smt(site, fingerprint=fingerprint(site.ca).lower()))},
        11,
        "not SHA-1 in upper case",
    ),
    "other CA": (lambda site: {HINTED: (200, smt(site, fingerprint="AA:" * 19 + "AA"))}, 12, "announces the CA"),
    "unknown region": (lambda _: {}, 13, "answers 404"),
    "other region": (lambda site: {HINTED: (200, smt(site, region="south"))}, 13, "for region south"),
}


@pytest.mark.parametrize("case", REGION_SERVERS)
def test_a_region_server_is_red_for_exactly_its_fault(site: Site, case: str) -> None:
    paths, rule, words = REGION_SERVERS[case]
    notes = Notes()
    with tls_server(site.folder / "region.pem", site.folder / "region.key", Answers(paths(site))) as port:
        pems = {"127.0.0.1": (site.folder / "region.pem").read_text()}
        examine_region_servers(pems, [site.region], CLIENT, notes, asking=Asking(https=port, timeout_s=5))
    found = {one.rule for one in notes.findings}
    if case == "lower case":
        assert found == {11, 12}, "the form is wrong, and so it is another CA's"
    else:
        assert found == ({rule} if rule else set()), [str(one) for one in notes.findings]
    assert all(words in one.problem for one in notes.findings[:1])
    assert 10 in notes.looked_at


def test_nothing_is_trusted_but_the_pinned_certificate(site: Site) -> None:
    for pem, good in (("region.pem", True), ("foreign.pem", False), ("other-ca.pem", False)):
        notes = Notes()
        with tls_server(site.folder / "region.pem", site.folder / "region.key", Answers({})) as port:
            pems = {"127.0.0.1": (site.folder / pem).read_text()}
            examine_region_servers(pems, [], CLIENT, notes, asking=Asking(https=port, timeout_s=5))
        assert (notes.findings == []) == good
        assert all(one.rule == 10 and "does not answer" in one.problem for one in notes.findings)


def test_a_certificate_for_another_name_is_refused(site: Site, tmp_path: Path) -> None:
    made = issue("x", now=NOW, days=30, addresses=["127.0.0.9"])
    certificate, key = made.write(tmp_path, "x")
    notes = Notes()
    with tls_server(certificate, key, Answers({})) as port:
        pems = {"127.0.0.1": certificate.read_text()}
        examine_region_servers(pems, [], CLIENT, notes, asking=Asking(https=port, timeout_s=5))
    assert [one.rule for one in notes.findings] == [10]


def test_an_answer_that_is_cut_off_or_never_ends_is_none(site: Site) -> None:
    certificate, key = site.folder / "region.pem", site.folder / "region.key"
    with tls_server(certificate, key, Answers({"/x": (200, b"<a/>")}, headers={"Content-Length": "9"})) as port:
        door = Door(address="127.0.0.1", name="127.0.0.1", trust=certificate.read_text(), port=port, timeout_s=1)
        with pytest.raises(Unanswered):
            door.ask("/x")
    silent = socket.create_server(("127.0.0.1", 0))
    with contextlib.closing(silent), pytest.raises(Unanswered, match="timed out"):
        Door(address="127.0.0.1", name="a", tls=False, port=silent.getsockname()[1], timeout_s=0.2).ask("/")


@given(st.binary(max_size=300) | st.text(alphabet="<>/=\"'&;ab ", max_size=80).map(str.encode))
@example(BOMB)
@example(b'<a><b SMTserverIP="\xff"/></a>')
@example(b"<a>" * 5000)
def test_any_answer_is_read_without_a_traceback(body: bytes) -> None:
    smt_info(body, Notes(), At(file="x"))


# -- update servers ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Update:
    """How the first update server is spoiled."""

    rule: int | None
    words: str = ""
    paths: Mapping[str, Answer | None] = field(default_factory=dict)
    stem: str = NAMES[0]
    registry: str = ""
    address: str = "127.0.0.1"
    up: bool = True


def authority(site: Site, *stems: str) -> Answer:
    return 200, b"".join((site.folder / f"{stem}.pem").read_bytes() for stem in stems)


UPDATE_SERVERS: Mapping[str, Callable[[Site], Update]] = {
    "good": lambda _: Update(None),
    "only rmt.crt": lambda _: Update(None, paths={"/smt.crt": None}),
    "no health": lambda _: Update(None, paths={"/api/health/status": None}),
    "no CA": lambda _: Update(12, "neither /smt.crt nor", paths={"/smt.crt": None, "/rmt.crt": None}),
    "other CA": lambda site: Update(12, "is the CA", paths={"/smt.crt": authority(site, "other-ca")}),
    "two CAs": lambda site: Update(12, "holds 2", paths={"/rmt.crt": authority(site, "ca", "other-ca")}),
    "no certificate": lambda _: Update(12, "not a certificate", paths={"/rmt.crt": (200, b"<html>")}),
    "foreign": lambda _: Update(12, "does not chain", stem="foreign"),
    "registry": lambda _: Update(12, "does not name r.cloud.example", registry="r.cloud.example"),
    "expired": lambda _: Update(12, "TLS with the announced CA fails", stem="expired"),
    "endless health": lambda _: Update(15, "longer than", paths={"/api/health/status": (200, b" " * (2 << 20))}),
    "offline": lambda _: Update(15, "'offline'", paths={"/api/health/status": (200, b'{"state":"offline"}')}),
    "ill": lambda _: Update(15, "no JSON", paths={"/api/health/status": (200, b"[]")}),
    "error": lambda _: Update(15, "status 503", paths={"/api/health/status": (503, b"")}),
    "down": lambda _: Update(15, "does not answer", up=False),
    "IPv6": lambda _: Update(None, address="::1"),
    "IPv6 without smt.crt": lambda _: Update(14, "not served on IPv6", paths={"/smt.crt": None}, address="::1"),
    "IPv6 down": lambda _: Update(14, "does not answer", address="::1", up=False),
}


@pytest.mark.parametrize("case", UPDATE_SERVERS)
def test_an_update_server_is_red_for_exactly_its_fault(site: Site, case: str) -> None:
    spoiled = UPDATE_SERVERS[case](site)
    paths = {"/smt.crt": authority(site, "ca"), "/rmt.crt": authority(site, "ca"), "/api/health/status": HEALTHY}
    answers = Answers({path: answer for path, answer in {**paths, **spoiled.paths}.items() if answer})
    ipv6 = ":" in spoiled.address
    server = replace(
        site.region.update_servers[0],
        ipv4="" if ipv6 else spoiled.address,
        ipv6=spoiled.address if ipv6 else "",
        registry=spoiled.registry,
    )
    notes = Notes()
    certificate, key = site.folder / f"{spoiled.stem}.pem", site.folder / f"{spoiled.stem}.key"
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(tls_server(certificate, key, answers, address=spoiled.address))
        if not spoiled.up:
            stack.close()
        regions = [replace(site.region, update_servers=(server,))]
        examine_update_servers(regions, CLIENT, notes, asking=Asking(https=port, timeout_s=5))
    assert {one.rule for one in notes.findings} == ({spoiled.rule} if spoiled.rule else set()), notes.findings
    if spoiled.rule:
        assert any(spoiled.words in one.problem for one in notes.findings)
        assert all(one.why and one.cure for one in notes.findings)


@pytest.mark.parametrize("served", [True, False])
def test_port_80_is_looked_at_where_https_only_is_not_true(site: Site, *, served: bool) -> None:
    paths = {"/smt.crt": authority(site, "ca"), "/api/health/status": HEALTHY}
    certificate, key = site.folder / f"{NAMES[0]}.pem", site.folder / f"{NAMES[0]}.key"
    notes = Notes()
    with (
        tls_server(certificate, key, Answers(paths)) as https,
        tls_server(None, None, Answers(paths if served else {})) as plain,
    ):
        regions = [replace(site.region, update_servers=site.region.update_servers[:1])]
        asking = Asking(https=https, http=plain, timeout_s=5)
        examine_update_servers(regions, replace(CLIENT, https_only=False), notes, asking=asking)
    assert [one.rule for one in notes.findings] == ([] if served else [3])


# -- peers ------------------------------------------------------------------------------------------------------------


@dataclass
class Shared:
    """What two update servers share, as RMTs do; each field that is False spoils it."""

    announced: bool = True
    removed: bool = True
    accepts: bool = True
    activated: bool = True
    dies_at: str = ""
    repositories: Sequence[str] = ("/repo/a", "/repo/a")
    metadata: Sequence[bytes] = (b"one", b"one")
    behind: Sequence[float] = (0, 0)
    known: list[set[str]] = field(default_factory=lambda: [set(), set()])
    left: set[str] = field(default_factory=set)

    def answer(self, number: int, method: str, path: str, headers: Mapping[str, str], _body: bytes) -> Answer:
        who = headers.get("Authorization", "")
        if path == "/api/health/status":
            return HEALTHY
        if method == "POST" and path == "/connect/subscriptions/systems":
            if not self.accepts:
                return 422, b'{"error": "Instance verification failed"}'
            login = f"SCC_{len(self.left)}"
            token = "Basic " + base64.b64encode(f"{login}:secret".encode()).decode()
            self.left.add(token)
            for peer in (0, 1) if self.announced else (number,):
                self.known[peer].add(token)
            return 201, json.dumps({"login": login, "password": "secret"}).encode()
        if who not in self.known[number]:
            return 401, b'{"error": "Invalid system credentials"}'
        return self.known_answer(number, method, path, who)

    def known_answer(self, number: int, method: str, path: str, who: str) -> Answer:
        if self.dies_at == f"{method} {path}":
            self.dies_at = ""
            return 200, b" " * (2 << 20)
        if method == "POST":
            return 201, b"{}"
        if method == "DELETE":
            for peer in (0, 1) if self.removed else (number,):
                self.known[peer].discard(who)
            self.left.discard(who)
            return 204, b""
        if path.startswith("/connect/systems/products"):
            one = {"url": f"https://x{self.repositories[number]}", "description": "trixie"}
            return 200, json.dumps({"repositories": [one]}).encode()
        if path == "/connect/systems/activations":
            return 200, b'[{"id": 1}]' if self.activated else b"[]"
        return (200, self.metadata[number]) if path.endswith("InRelease") else (404, b"")


@contextlib.contextmanager
def peers(site: Site, shared: Shared) -> Iterator[int]:
    with contextlib.ExitStack() as stack:
        port = 0
        for number, (name, address) in enumerate(zip(NAMES, ADDRESSES, strict=True)):
            date = format_datetime(datetime.now(UTC) - timedelta(seconds=shared.behind[number]), usegmt=True)
            answers = Answers(
                {},
                headers={"Date": date} if shared.behind[number] else {},
                ask=lambda *asked, number=number: shared.answer(number, *asked),
            )
            certificate, key = site.folder / f"{name}.pem", site.folder / f"{name}.key"
            port = stack.enter_context(tls_server(certificate, key, answers, address=address, port=port))
        yield port


def report(number: int, **changes: object) -> dict[str, object]:
    return {
        "schema": "factory/region-peer/1",
        "server": NAMES[number],
        "ntp_synchronised": True,
        "resolves": {NAMES[1 - number]: [ADDRESSES[1 - number]]},
        "repositories": ["a"],
        "forwarding": False,
        **changes,
    }


E, W = Severity.ERROR, Severity.WARNING
PEERS: Mapping[str, tuple[Shared, dict[str, object], Severity | None, str]] = {
    "good": (Shared(), {}, None, ""),
    "not shared": (Shared(announced=False), {}, E, "does not know a registration"),
    "activation not shared": (Shared(activated=False), {}, E, "does not know a registration"),
    "not removed": (Shared(removed=False), {}, E, "still knows a registration"),
    "other repositories": (Shared(repositories=("/repo/a", "/repo/b")), {}, E, "same repositories"),
    "other state": (Shared(metadata=(b"one", b"two")), {}, W, "is not the same on"),
    "clock": (Shared(behind=(0, 60)), {}, E, "s apart"),
    "gone when activated": (Shared(dies_at="POST /connect/systems/products"), {}, E, "stopped answering"),
    "gone when removed": (Shared(dies_at="DELETE /connect/systems"), {}, E, "stopped answering"),
    "refused": (Shared(accepts=False), {}, W, "422 Instance verification failed"),
    "no NTP": (Shared(), {"ntp_synchronised": False}, E, "not set by NTP"),
    "NTP unknown": (Shared(), {"ntp_synchronised": None}, E, "not set by NTP"),
    "forwarding": (Shared(), {"forwarding": True}, E, "forwarded upstream"),
    "resolves nothing": (Shared(), {"resolves": {}}, E, "resolves update-b"),
    "resolves another": (Shared(), {"resolves": {NAMES[1]: ["203.0.113.1"]}}, E, "203.0.113.1"),
    "reported repositories": (Shared(), {"repositories": ["a", "b"]}, E, "name different repositories: b"),
}


def peers_are_red_for_exactly_their_fault(site: Site, case: str, examine: Callable[..., None]) -> None:
    made, changes, severity, words = PEERS[case]
    shared = replace(made, known=[set(), set()], left=set())
    reports = {NAMES[0]: report(0, **changes), NAMES[1]: report(1)}
    notes = Notes()
    with peers(site, shared) as port:
        examine(
            [site.region],
            notes,
            probe=Probe(product="debian/13/x86_64", within_s=0.3),
            reports=reports,
            asking=Asking(https=port, timeout_s=5),
            say=lambda _: None,
        )
    assert {(one.rule, one.severity) for one in notes.findings} == ({(15, severity)} if severity else set())
    assert all(words in one.problem for one in notes.findings)
    assert shared.known == [set(), set()], "a registration was left behind"
    if case == "good":
        assert sum("seen on all peers, and gone" in fact for fact in notes.facts) == 2
        assert sum("as its report says" in fact for fact in notes.facts) == 2


@pytest.mark.parametrize("case", PEERS)
def test_peers_are_red_for_exactly_their_fault_and_nothing_is_left(site: Site, case: str) -> None:
    peers_are_red_for_exactly_their_fault(site, case, examine_peers)


NO_END = "            with contextlib.suppress(Unanswered):\n                if peer.knows():\n"
WEAKENED: Sequence[tuple[str, str, str]] = (
    ("not shared", "until=lambda peer: peer.serves())", "until=lambda peer: True)"),
    ("not shared", "    others = [peer for peer in peers if peer is not origin]", "    others = [origin]"),
    ("activation not shared", "until=lambda peer: peer.serves())", "until=lambda peer: peer.knows())"),
    ("activation not shared", "== http.client.OK and bool(_list(reply.body))", "== http.client.OK"),
    ("not removed", "until=lambda peer: not peer.knows())", "until=lambda peer: True)"),
    (
        "not removed",
        "late = _wait(peers, probe.within_s, until=lambda peer: not",
        "late = _wait([origin], 1, until=lambda peer: not",
    ),
    ("not removed", NO_END, NO_END.replace("if peer.knows()", "if False")),
    ("other repositories", "        _same_repositories(peers, probe, notes)\n", ""),
    ("other repositories", "set(offered[first].items()) ^ set(offered[name].items())", "()"),
    (
        "other repositories",
        'parse_qs(parts.query).get("path", [""])[0] if parts.scheme == "plugin" else parts.path',
        '""',
    ),
    ("other state", "or len(set(seen.values())) > 1", "or False"),
    ("other state", "hashlib.sha256(reply.body).hexdigest()", '""'),
    ("clock", "if apart > _CLOCKS_S:", "if apart > 3600:"),
    ("clock", "        _clocks(peers, notes, at)\n", ""),
    (
        "gone when activated",
        'cure="see its log")\n        return False',
        'cure="see its log")\n        notes.findings.clear()\n        return False',
    ),
    (
        "gone when removed",
        "    except Unanswered as wrong:  # whatever is asked in the block, too",
        "    except ZeroDivisionError as wrong:",
    ),
    ("refused", '        _could_not(notes, at, f"takes no registration from here: {said}")\n', ""),
    (
        "refused",
        "    notes.warn(\n        15,\n        at,\n        problem,",
        "    notes.error(\n        15,\n        at,\n        problem,",
    ),
    ("no NTP", 'if report.get("ntp_synchronised") is not True:', "if False:"),
    ("NTP unknown", 'if report.get("ntp_synchronised") is not True:', 'if report.get("ntp_synchronised") is False:'),
    ("forwarding", 'if report.get("forwarding") is not False:', 'if report.get("forwarding") is None:'),
    ("resolves nothing", "if not isinstance(found, list) or", "if isinstance(found, list) and"),
    ("resolves another", "or not set(map(str, found)) & set(peer.addresses):", "or False:"),
    ("reported repositories", "    if len(set(mirrored.values())) > 1:", "    if False:"),
    ("reported repositories", "        _report(server, region, report, notes, at)\n", "        continue\n"),
    ("good", "        _reported(region, reports, notes)\n", "        _reported(region, {}, notes)\n"),
    ("good", "for origin in peers:\n            say", "for origin in peers[:1]:\n            say"),
)


@pytest.mark.parametrize("number", range(len(WEAKENED)))
def test_a_weakened_examination_of_peers_is_noticed(site: Site, number: int) -> None:
    """Each thing the examination looks at is taken away once; the case that is there for it must fail then."""
    case, strong, weak = WEAKENED[number]
    text = Path(str(check_peers.__file__)).read_text()
    assert text.count(strong) == 1, f"{strong!r} is not in the examination once"
    weakened = ModuleType("factory.region.weakened_peers")
    sys.modules[weakened.__name__] = weakened  # dataclasses look their module up
    try:
        exec(compile(text.replace(strong, weak), "weakened_peers.py", "exec"), weakened.__dict__)
        with pytest.raises((AssertionError, Unanswered)):
            peers_are_red_for_exactly_their_fault(site, case, weakened.examine_peers)
    finally:
        del sys.modules[weakened.__name__]


def test_without_reports_it_is_said_what_nobody_saw(site: Site) -> None:
    notes = Notes()
    with peers(site, Shared()) as port:
        probe = Probe(product="debian/13/x86_64", within_s=0.3)
        asking = Asking(https=port, timeout_s=5)
        examine_peers([site.region], notes, probe=probe, reports={}, asking=asking, say=lambda _: None)
    assert notes.findings == []
    assert [text.split(":")[0] for text in notes.skipped[15]] == [
        f"NTP, name resolution and forwarding on {name}" for name in NAMES
    ]


def test_one_server_has_no_peers(site: Site) -> None:
    notes = Notes()
    alone = replace(site.region, update_servers=site.region.update_servers[:1])
    probe = Probe(product="debian/13/x86_64")
    examine_peers([alone], notes, probe=probe, reports={}, asking=Asking(), say=lambda _: None)
    assert notes.skipped[15] == ["region North has no peers that can be asked"]


@given(
    st.binary(max_size=100)
    | st.dictionaries(st.text(max_size=9), st.none() | st.text(max_size=9)).map(json.dumps).map(str.encode)
)
def test_what_is_no_report_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="no peer report"):
        read_report(content, origin="x")


# -- the program that makes a report ----------------------------------------------------------------------------------

REPORTER = Path(__file__).parents[2] / "factory/region/guest/region-peer-report"


@pytest.mark.parametrize(
    ("config", "synchronised", "forwarding"),
    [
        ("scc:\n  username: u\n  sync_systems: false\n", "yes", False),
        ("database:\n  sync_systems: true\nscc:\n  username: u\n", "yes", False),
        ("scc:\n  username: u\n  sync_systems: true\nmirroring:\n  x: 1\n", "no", True),
        (None, None, None),
    ],
)
def test_the_report_of_a_peer_is_what_the_check_reads(
    tmp_path: Path, config: str | None, synchronised: str | None, *, forwarding: bool | None
) -> None:
    """Programs on PATH stand for timedatectl and rmt-cli, with the output that theirs has."""
    programs = tmp_path / "bin"
    programs.mkdir()
    listed = "ID,Product,Mirror?,Last mirrored\\n2,B,Mirror,x\\n1,A,Mirror,y\\n"
    clock, repositories = f"echo {synchronised}", f"printf '{listed}'"
    for name, line in (("timedatectl", clock), ("rmt-cli", repositories)):
        (programs / name).write_text(f"#!/bin/sh\n{line if synchronised else 'exit 1'}\n")
        (programs / name).chmod(0o755)
    if config is not None:
        (tmp_path / "rmt.conf").write_text(config)
    argv = [sys.executable, "-W", "error", REPORTER, "--server", NAMES[0], "--config", tmp_path / "rmt.conf"]
    done = run([*argv, "localhost", "nobody.invalid"], env={"PATH": f"{programs}:{PATH}"}, timeout_s=20)
    server, found = read_report(done.stdout.encode(), origin="x")
    assert server == NAMES[0]
    assert found["ntp_synchronised"] is ({"yes": True, "no": False}.get(synchronised or ""))
    assert found["forwarding"] is forwarding
    assert found["repositories"] == (["1 A", "2 B"] if synchronised else None)
    assert "127.0.0.1" in found["resolves"]["localhost"]
    assert found["resolves"]["nobody.invalid"] == []
