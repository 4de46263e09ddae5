# SPDX-License-Identifier: Apache-2.0
"""Pages from records: what they say, that they hold together, and that nobody else's text becomes markup."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.errors import InputFault, LedgerError, SandboxError
from factory.installation import Installation
from factory.ledger import Ledger, RunRecord, StageRecord, detail_of
from factory.model import STAGES, Artifact, Check, Outcome, Site, Verdict
from factory.pipeline import Line
from factory.promises import Promise, promises_detail
from factory.promises import State as PromiseState
from factory.report import report
from factory.report.changes import changes
from factory.report.page import headline, index_page, package_changes, page, stage_line, tiles, topics
from factory.report.text import duration, moment, size, size_change, visible
from factory.system.state import Run, State
from testsuite import samples

NIGHT = samples.NIGHT
RUN_ID = "20261121-020000-debian13"


def record(outcome: str, *stages: StageRecord, message: str = "why", run_id: str = RUN_ID) -> RunRecord:
    return RunRecord(
        id=run_id,
        image="debian13",
        line="Standard_Debian_13",
        started_at=NIGHT,
        ended_at=NIGHT + timedelta(minutes=8),
        outcome=outcome,
        message=message,
        stages=stages,
    )


def stage(name: str, value: object = None, *, outcome: str = "done", seconds: float = 10.0, **detail) -> StageRecord:
    return StageRecord(
        stage=name, outcome=outcome, started_at=NIGHT, seconds=seconds, detail={**detail_of(value), **detail}
    )


@pytest.fixture
def made(tmp_path: Path) -> Artifact:
    return samples.artifact(Run(path=tmp_path / RUN_ID))


class Tags(HTMLParser):
    """Every element must be closed, in order, by somebody."""

    VOID = frozenset({"meta", "br", "img", "link", "input", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(text: str) -> Tags:
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    return tags


HEADLINES = {
    "published": ("good", "Published as Standard_Debian_13_latest"),
    "withheld": ("warn", "Good, but withheld"),
    "unchanged": ("idle", "Nothing changed"),
    "red": ("bad", "Red: 1 of 4 checks failed"),
    "broken": ("bad", "Broken in verify"),
    "running": ("idle", "Under way, or cut off after verify"),
}


@pytest.mark.parametrize("outcome", HEADLINES)
def test_every_outcome_has_its_headline_and_a_sound_page(made, outcome):
    run = record(outcome, stage("build", made), stage("verify", samples.verdict(made, red=True)))
    found = headline(run)
    assert (found.tone, found.title) == HEADLINES[outcome]
    text = page(run, None, now=NIGHT)
    parsed(text)
    assert f'<body class="{found.tone}">' in text
    assert f"<h1>{found.title}</h1>" in text


def test_a_page_loads_and_runs_nothing(made):
    text = page(record("red", stage("build", made), stage("verify", samples.verdict(made, red=True))), None, now=NIGHT)
    tags = parsed(text)
    assert not tags.seen & {"script", "img", "link", "iframe", "object", "form", "base"}
    assert not any(name.startswith("on") or name in {"src", "style"} for name in tags.attributes)
    assert "default-src &#39;none&#39;" in text
    assert not re.search(r"url\(|@import|https?:", text.split("</style>")[0])


def test_failed_checks_come_first_and_passed_ones_by_topic(made):
    judged = replace(
        samples.verdict(made, red=True),
        checks=(
            Check(name="ssh::keys_only", guarantee="Keys only", outcome=Outcome.PASSED),
            Check(name="boot::boots", guarantee="It boots", outcome=Outcome.PASSED),
            Check(name="ssh::modern", guarantee="Modern algorithms", outcome=Outcome.FAILED, message="ssh-rsa"),
        ),
    )
    text = page(record("red", stage("verify", judged)), None, now=NIGHT)
    assert (
        text.index("Modern algorithms") < text.index("<h3>ssh</h3>") < text.index("Keys only") < text.index("It boots")
    )


def test_what_a_vendors_image_does_not_keep_is_listed_with_its_reason(made):
    judged = replace(
        samples.verdict(made),
        checks=(
            Check(
                name="ssh::keys_only", guarantee="Keys only", outcome=Outcome.PASSED, message="passes, although unmet"
            ),
            Check(name="ssh::modern", guarantee="Modern <b>", outcome=Outcome.UNMET, message="as <made>; seen: sha1"),
        ),
    )
    run = record("published", stage("verify", judged))
    text = page(run, None, now=NIGHT)
    parsed(text)
    assert "What this image does not keep" in text
    assert "as &lt;made&gt;; seen: sha1" in text
    assert "Modern &lt;b&gt;" in text
    assert "1 unmet" in text
    assert "passes, although unmet" in text
    (tile,) = [one for one in tiles(run, None, None) if one.name == "guarantees kept"]
    assert (tile.value, tile.note) == ("1 of 2", "1 unmet as described")
    clean = page(record("published", stage("verify", samples.verdict(made))), None, now=NIGHT)
    assert "does not keep" not in clean


NAMES = {
    "ssh::keys": "ssh",
    "test_ssh.py::test_keys": "ssh",
    "acceptance.test_cloud_init.test_user": "cloud init",
    "testsuite/acceptance/test_disk.py::test_grows": "disk",
    "plain_name": "",
}


@pytest.mark.parametrize("name", NAMES)
def test_topics_are_read_off_the_names_of_checks(name):
    assert list(topics([{"name": name}])) == [NAMES[name]]


def test_checks_that_run_several_times_say_about_what(made):
    checks = [
        Check(name=f"test_boot.py::test_has[{about}]", guarantee="The driver is there.", outcome=Outcome.PASSED)
        for about in ("virtio_blk", "<xen>")
    ]
    plain = Check(name="test_boot.py::test_boots", guarantee="It boots.", outcome=Outcome.PASSED)
    judged = replace(samples.verdict(made), checks=(*checks, plain))
    text = page(record("published", stage("verify", judged)), None, now=NIGHT)
    assert text.count("The driver is there. <em") == 2
    assert ">virtio_blk</em>" in text
    assert ">&lt;xen&gt;</em>" in text
    assert "It boots.</li>" in text


def test_a_broken_run_shows_error_and_console():
    error = SandboxError("the guest is silent", hint="look at its console", facts=(("last said", "\x1b[0mlogin:"),))
    broken = stage("verify", error, outcome="broken", console=["Kernel panic <0>", "end"])
    text = page(record("broken", broken), None, now=NIGHT)
    assert "look at its console" in text
    assert '<span class="ctl">ESC</span>[0mlogin:' in text
    assert "Kernel panic &lt;0&gt;" in text


def test_an_old_image_is_compared_by_package(made):
    old = record("published", stage("build", made), run_id="20261120-020000-debian13")
    newer = samples.updated(samples.PACKAGES, "apt", "3.0.4")[:2]
    new = record("published", stage("build", replace(made, packages=newer, size_bytes=made.size_bytes + 2048)))
    changed = package_changes(new, old)
    assert changed is not None
    assert changed.rows == (("apt", "3.0.3", "3.0.4"), ("openssh-server", "1:10.0p1-7", ""))
    found = {tile.name: (tile.value, tile.note) for tile in tiles(new, old, changed)}
    assert found["packages"] == ("2", "2 changed")
    assert found["image"][1] == "+2.0 KiB on the previous"
    assert package_changes(new, None) is None
    same = page(old, old, now=NIGHT)
    assert "The same packages in the same versions." in same


def test_packages_of_several_architectures_and_versions_are_told_apart():
    old = [("libc6", "2.41-1", "amd64"), ("libc6", "2.41-1", "i386"), ("kernel", "6.1", "x86_64"), ("a", "1", "all")]
    new = [
        ("libc6", "2.41-1", "amd64"),
        ("libc6", "2.41-2", "i386"),
        ("kernel", "6.1", "x86_64"),
        ("kernel", "6.2", "x86_64"),
    ]
    found = changes(old, new)
    assert found.updated == (("kernel", "6.1", "6.1, 6.2"), ("libc6:i386", "2.41-1", "2.41-2"))
    assert found.removed == (("a", "1"),)
    assert found.added == ()


PACKAGES = st.dictionaries(st.text("abc", min_size=1, max_size=2), st.text("123", min_size=1, max_size=2))


@settings(deadline=None)
@given(PACKAGES, PACKAGES)
def test_changes_lead_from_the_old_list_to_the_new(old, new):
    found = changes([(name, old[name], "all") for name in old], [(name, new[name], "all") for name in new])
    result = {name: version for name, version in old.items() if name not in dict(found.removed)}
    result |= {name: version for name, _, version in found.updated} | dict(found.added)
    assert result == new
    assert (
        found.count == len(found.rows) == sum(1 for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    )


@settings(deadline=None)
@given(st.lists(st.one_of(st.just(0.0), st.floats(0.001, 1e6)), min_size=6, max_size=6))
def test_the_bar_is_filled_exactly_and_no_stage_vanishes(seconds):
    run = record("published", *(stage(name, seconds=one) for name, one in zip(STAGES, seconds, strict=True)))
    found = stage_line(run)
    total = sum(one.width for one in found)
    assert total == pytest.approx(1000 if any(seconds) else 0, abs=0.1)
    assert all((one.width >= 3) == (took > 0) for one, took in zip(found, seconds, strict=True))
    order = sorted(zip(seconds, (one.width for one in found), strict=True))
    assert [width for _, width in order] == sorted(width for _, width in order)


@settings(deadline=None)
@given(st.text())
def test_other_peoples_text_never_becomes_markup(text):
    shown = str(visible(text))
    assert not re.search(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\u2028\u2029]", shown)
    plain = re.sub(r'<span class="ctl">(\w+)</span>', "", shown)
    assert "<" not in plain
    assert ">" not in plain
    assert '"' not in plain
    assert "".join(html.unescape(plain).split()) == "".join(
        "".join(c for c in text if visible(c) and "ctl" not in visible(c)).split()
    )


EXPECTED_TAGS = frozenset(
    re.findall(
        r"\w+",
        "html head meta title style body header p a span div h1 main section ol li b small svg rect h2 h3 article pre "
        "details summary ul em footer",
    )
)


@settings(max_examples=30, deadline=None)
@given(st.text(), st.text(), st.text())
def test_a_page_full_of_strange_text_stays_sound(message, guarantee, line):
    check = Check(name=message, guarantee=guarantee, outcome=Outcome.FAILED, message=line)
    judged = Verdict(artifact_sha256=line, checks=(check,), accelerator=message, boot_s=1, judged_at=NIGHT)
    run = record("red", stage("verify", judged, console=[line, message], error=[guarantee]), message=message)
    text = page(run, None, now=NIGHT, logs=[f"logs/{line}"])
    text.encode()
    assert parsed(text).seen <= EXPECTED_TAGS
    parsed(index_page([run], now=NIGHT, written=frozenset({run.id})))


WORDS = [
    (duration(0.04), "0.0 s"),
    (duration(9.96), "10.0 s"),
    (duration(59.6), "1 min 0 s"),
    (duration(3599.7), "1 h 0 min"),
    (duration(7260), "2 h 1 min"),
    (size(None), "\u2013"),
    (size(1023), "1023 B"),
    (size(1536), "1.5 KiB"),
    (size(5 << 40), "5.0 TiB"),
    (size_change(-2048), "\u22122.0 KiB"),
    (size_change(0), "+0 B"),
    (moment("2026-11-21T02:00:00+00:00"), "2026-11-21 02:00:00 UTC"),
    (moment("yesterday"), "yesterday"),
    (moment(None), "\u2013"),
]


@pytest.mark.parametrize(("found", "expected"), WORDS)
def test_numbers_read_well(found, expected):
    assert found == expected


# -- written to disk --------------------------------------------------------------------------------------------------


@pytest.fixture
def ledger(tmp_path: Path):
    with Ledger.open(tmp_path / "ledger.sqlite") as opened:
        yield opened


def test_report_writes_the_page_and_the_list_of_nights(ledger, tmp_path):
    run = State(path=tmp_path).new_run("debian13", NIGHT)
    run.log("build <1>").write_text("x")
    run.log("empty").write_text("")
    ledger.begin_run(run.id, image="debian13", line="L", started_at=NIGHT)
    ledger.begin_run("20261120-020000-debian13", image="debian13", line="L", started_at=NIGHT - timedelta(days=1))
    path = report(ledger, run, now=NIGHT)
    assert path == run.path / "report.html"
    text = path.read_text()
    assert 'href="logs/build%20%3C1%3E.log">logs/build &lt;1&gt;.log<' in text
    assert "empty.log" not in text
    listed = (tmp_path / "runs" / "index.html").read_text()
    assert f'href="{run.id}/report.html"' in listed
    assert "20261120-020000-debian13/report.html" not in listed
    assert sorted(one.name for one in run.path.iterdir()) == ["logs", "report.html"]


def test_a_run_that_the_ledger_does_not_know_is_a_usage_error(ledger, tmp_path):
    with pytest.raises(InputFault, match="the ledger has no run"):
        report(ledger, Run(path=tmp_path / "runs" / RUN_ID), now=NIGHT)


def test_a_record_of_another_shape_is_told_and_writes_nothing(ledger, tmp_path):
    run = State(path=tmp_path).new_run("debian13", NIGHT)
    ledger.begin_run(run.id, image="debian13", line="L", started_at=NIGHT)
    ledger.record_stage(run.id, "verify", outcome="done", started_at=NIGHT, seconds=1, detail={"checks": [{"x": 1}]})
    with pytest.raises(LedgerError, match="cannot be shown"):
        report(ledger, run, now=NIGHT)
    assert not (run.path / "report.html").exists()


def test_promises_at_risk_and_what_the_store_shows_otherwise_stand_on_the_page():
    at_risk = Promise(
        line="L",
        image_id="id-1",
        name="L_latest",
        promise="replace_frequency monthly",
        state=PromiseState.BREACHED,
        says="is <41> days old",
    )
    rotation = {"cloud": "c", "latest": "id-1", "prev": "", "archived": "", "gap_s": 0.1, "differs": ["min_disk <4>"]}
    release = {"cloud": "c", "visibility": "private", "upload_s": 1.0, "dated_name": "L_1", "image_id": "id-1"}
    run = record(
        "published",
        stage("publish", releases=[release], reason="due"),
        stage("rotate", rotations=[rotation]),
        stage("promises", **promises_detail([at_risk])),
    )
    text = page(run, None, now=NIGHT)
    parsed(text)
    for told in ("replace_frequency monthly", "is &lt;41&gt; days old", "breached", "min_disk &lt;4&gt;"):
        assert told in text
    assert "Promises to users" not in page(record("published", *run.stages[:2]), None, now=NIGHT)


def test_a_night_keeps_its_promises_at_risk_for_the_page(ledger, tmp_path):
    run = State(path=tmp_path).new_run("debian13", NIGHT)
    here = Installation(project=tmp_path, state=State(path=tmp_path), site=Site())
    line = Line(run=run, here=here, ledger=ledger, now=lambda: NIGHT, say=lambda _stage, _text: None)
    ledger.begin_run(run.id, image="debian13", line="L", started_at=NIGHT)
    line.keep_promises(())
    assert "promises" not in ledger.run(run.id).detail
    at_risk = Promise(line="L", image_id="i", name="L_latest", promise="p", state=PromiseState.WARNING, says="is old")
    line.keep_promises((at_risk,))
    text = page(ledger.run(run.id), None, now=NIGHT)
    assert "Promises to users" in text
    assert "L_latest: is old" in text


KEY_ENDS = {
    "long before": ("2027-11-21T02:00:00+00:00", "365 days more", False),
    "a month before": ("2026-12-20T02:00:00+00:00", "29 days more", True),
    "afterwards": ("2026-11-01T02:00:00+00:00", "0 days more", True),
    "never": (None, "", False),
}


@pytest.mark.parametrize("case", KEY_ENDS)
def test_a_page_tells_what_is_attested_and_how_long_the_key_signs(case):
    ends, expected, warned = KEY_ENDS[case]
    signed = {"fingerprint": "A" * 40, "throw_away_key": False, "signed_at": NIGHT.isoformat(), "files": [], "sums": {}}
    attested = {"statements": ["https://slsa.dev/provenance/v1"], "key_ends": ends}
    shown = page(record("published", stage("sign", **signed, **attested)), None, now=NIGHT)
    assert "https://slsa.dev/provenance/v1" in shown
    assert not expected or expected in shown
    assert ("signs until" in shown, "change keys now" in shown) == (bool(expected), warned)
    older = page(record("published", stage("sign", **signed)), None, now=NIGHT)
    assert "no provenance" in older
