# SPDX-License-Identifier: Apache-2.0
"""What changed between two images: versions in order, what is decided, how it is read and said."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from factory.build.changelog import Entry
from factory.build.evidence import CHANGELOGS, Source, changelogs_bytes
from factory.build.inventory import Inventory, Unit
from factory.describe import load_site
from factory.diff import between, of_places
from factory.diff.decide import difference
from factory.diff.model import Booted, Change, End, ImageDifference, Side, Socket
from factory.diff.note import SCHEMA, difference_text, write_notes
from factory.diff.read import read_side
from factory.diff.text import lines, marked, release_note
from factory.diff.versions import compare, of_source
from factory.errors import InputFault, NotGood
from factory.ledger import RunRecord, StageRecord, detail_of
from factory.model import (
    BOOTED,
    DIFFERENCE,
    RELEASE_NOTE,
    Bundle,
    Package,
    Rotation,
    Rotations,
    Target,
)
from factory.report.page import page
from factory.store.directory import publish_directory
from factory.store.metadata import release_properties
from factory.system.files import sha256_file
from factory.system.state import Run, State
from factory.system.text import visible
from factory.verify.booted import listening, settings_of
from testsuite.fakes.bundles import make_bundle, with_description

PROJECT = Path(__file__).parents[2]


# -- versions


@pytest.mark.parametrize(
    ("old", "new", "order"),
    [
        ("1.0", "1.1", -1),
        ("1.9", "1.10", -1),
        ("1.0~rc1", "1.0", -1),
        ("1.0~~", "1.0~", -1),
        ("1.0", "1.0+deb13u1", -1),
        ("1.0a", "1.0+", -1),
        ("1:0.9", "2.0", 1),
        ("1.0-1", "1.0-1+b1", -1),
        ("1.0", "1.0-0", 0),
        ("1.0-0.1", "1.0-1", -1),
        ("0:1.0", "1.0", 0),
        ("1.007", "1.7", 0),
        ("6.12.48+deb13-1", "6.12.57+deb13-1", -1),
        ("9" * 5000, "1" + "0" * 5000, -1),
    ],
)
def test_versions_are_ordered_as_debian_orders_them(old: str, new: str, order: int) -> None:
    assert compare(old, new) == order
    assert compare(new, old) == -order


@settings(max_examples=60)
@given(
    *[
        st.from_regex(r"([0-9]{1,2}:)?[0-9][0-9a-zA-Z.+~]{0,7}(-[0-9a-zA-Z.+~]{1,4})?", fullmatch=True).filter(
            str.isascii
        )
        for _ in range(2)
    ]
)
def test_versions_are_ordered_as_dpkg_orders_them(one: str, other: str) -> None:
    found = compare(one, other)
    relation = {-1: "lt", 0: "eq", 1: "gt"}[found]
    asked = subprocess.run(["dpkg", "--compare-versions", one, relation, other], stderr=subprocess.DEVNULL, check=False)
    assert asked.returncode == 0


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20))
def test_any_text_has_its_place(a: str, b: str, c: str) -> None:
    assert compare(a, b) == -compare(b, a)
    if compare(a, b) <= 0 and compare(b, c) <= 0:
        assert compare(a, c) <= 0


def test_a_rebuild_is_of_the_same_source() -> None:
    assert [of_source(one) for one in ("1.2-3+b1", "1.2-3", "1.2-3+b1+x")] == ["1.2-3", "1.2-3", "1.2-3+b1+x"]


# -- what is decided


def package(name: str, version: str, source: str = "", arch: str = "amd64") -> Package:
    return Package(name=name, version=version, arch=arch, source=source or name, origin="debian")


def entry(version: str, *fixes: str) -> Entry:
    return Entry(source="openssl", version=version, urgency="high", date="2026-11-20", fixes=fixes, text="  * Fix.")


def file(path: str, sha256: str = "1", *, package: str = "openssl", mtime: int = 1, **more: object) -> dict:
    found = {"path": path, "kind": "file", "mode": "0644", "uid": 0, "gid": 0, "package": package, "mtime": mtime}
    return {**found, "size": 1, "sha256": sha256, **more}


def side(name: str, *packages: Package, **known: object) -> Side:
    end = End(name=name, image="small.x86_64.qcow2", sha256=name * 4, size_bytes=1000, made="2026-11-20")
    return Side(end=replace(end, packages=len(packages)), packages=packages, **known)


OLD = side(
    "old",
    package("libssl3", "3.5.1-1", "openssl"),
    package("openssl", "3.5.1-1"),
    package("bash", "5.3-2"),
    package("gone", "1"),
    sources={"openssl": Source(version="3.5.1-1"), "bash": Source(version="5.3-2"), "gone": Source(version="1")},
    files={one["path"]: one for one in (file("/usr/bin/openssl"), file("/etc/x", package="generated"), file("/gone"))},
    inventory=Inventory(units=(Unit(name="a.service", wanted_by=("x.target",)), Unit(name="b.timer", masked=True))),
    booted=Booted(
        listening=(Socket(protocol="tcp", port=22, reach="any", program="sshd"),), sysctl={"k": "1", "same": "1"}
    ),
)
NEW = side(
    "new",
    package("libssl3", "3.5.4-1~deb13u2", "openssl"),
    package("openssl", "3.5.4-1~deb13u2"),
    package("bash", "5.3-1"),
    package("fresh", "2"),
    sources={
        "openssl": Source(
            version="3.5.4-1~deb13u2",
            entries=(
                entry("3.5.5-1", "CVE-2026-9999"),
                entry("3.5.4-1~deb13u2", "CVE-2026-0002", "DSA-6000-1"),
                entry("3.5.4-1~deb13u1", "CVE-2026-0001", "CVE-2026-0002"),
                entry("3.5.1-1", "CVE-2020-0001"),
            ),
        ),
        "bash": Source(version="5.3-1", entries=()),
        "fresh": Source(version="2"),
    },
    files={
        one["path"]: one
        for one in (
            file("/usr/bin/openssl", "2"),
            file("/etc/x", "2", package="generated"),
            file("/etc/y", package="generated"),
        )
    },
    inventory=Inventory(units=(Unit(name="a.service", masked=True), Unit(name="c.service", wanted_by=("x.target",)))),
    booted=Booted(
        listening=(
            Socket(protocol="tcp", port=22, reach="any", program="sshd"),
            Socket(protocol="udp", port=68, reach="one address", program="networkd"),
        ),
        sysctl={"k": "2", "same": "1"},
    ),
)  # fmt: skip


def test_packages_go_up_and_down_come_and_go() -> None:
    found = {(one.name, one.change): (one.old, one.new) for one in difference(OLD, NEW).packages}
    assert found == {
        ("libssl3", "upgraded"): ("3.5.1-1", "3.5.4-1~deb13u2"),
        ("openssl", "upgraded"): ("3.5.1-1", "3.5.4-1~deb13u2"),
        ("bash", "downgraded"): ("5.3-2", "5.3-1"),
        ("gone", "removed"): ("1", ""),
        ("fresh", "added"): ("", "2"),
    }


def test_the_fixes_are_those_between_the_two_versions() -> None:
    bash, openssl = difference(OLD, NEW).sources
    assert openssl.fixes == ("CVE-2026-0002", "DSA-6000-1", "CVE-2026-0001")
    assert [one.version for one in openssl.entries] == ["3.5.4-1~deb13u2", "3.5.4-1~deb13u1"]
    assert openssl.complete
    assert (bash.fixes, bash.complete) == ((), True)
    assert difference(OLD, NEW).fixes == ("CVE-2026-0001", "CVE-2026-0002", "DSA-6000-1")


def test_a_changelog_that_does_not_reach_back_says_so() -> None:
    short = replace(NEW.sources["openssl"], entries=NEW.sources["openssl"].entries[:2])
    (found,) = difference(OLD, replace(NEW, sources={"openssl": short})).sources
    assert not found.complete
    assert "does not reach back to 3.5.1-1" in "\n".join(
        lines(difference(OLD, replace(NEW, sources={"openssl": short})))
    )


def test_packages_that_the_factory_makes_have_no_history(tmp_path: Path) -> None:
    old, new = (replace(package("image-factory-x", version), origin="") for version in ("1", "2"))
    sources = {"image-factory-x": Source(version="2", entries=(replace(entry("2"), source="image-factory-x"),))}
    (found,) = difference(side("old", old, sources={}), side("new", new, sources=sources)).sources
    assert found.complete


def test_versions_of_sources_follow_from_packages_where_nothing_else_tells() -> None:
    older = replace(OLD, sources=None, packages=(package("libssl3", "3.5.1-1+b2", "openssl"),))
    found = difference(older, NEW).sources
    assert [(one.source, one.old) for one in found] == [("openssl", "3.5.1-1")]
    same = replace(older, packages=NEW.packages)  # the binary package is numbered otherwise than its source
    assert (
        difference(same, replace(NEW, sources={"openssl": Source(version="7+1", entries=(entry("7+1"),))})).sources
        == ()
    )


def test_files_are_counted_by_class_and_named_when_no_package_explains_them() -> None:
    found = difference(OLD, NEW).files
    assert found is not None
    assert (found.added, found.removed, found.changed) == (1, 1, 2)
    assert found.classes == {"content": 1, "version": 1}
    assert [(one.name, one.classes) for one in found.unexplained] == [("/etc/x", ("content",)), ("/etc/y", ("added",))]


def test_times_alone_and_package_databases_are_not_news() -> None:
    old = {one["path"]: one for one in (file("/a", mtime=1), file("/var/lib/dpkg/status", package="generated"))}
    new = {one["path"]: one for one in (file("/a", mtime=2), file("/var/lib/dpkg/status", "2", package="generated"))}
    found = difference(replace(OLD, files=old), replace(NEW, files=new)).files
    assert found is not None
    assert found.unexplained == ()
    same = difference(replace(OLD, files=old), replace(OLD, files=new)).files
    assert same is not None
    assert [one.name for one in same.unexplained] == ["/var/lib/dpkg/status"]


def test_what_an_older_list_lacks_is_no_difference() -> None:
    plain = {path: {key: one[key] for key in one if key not in {"sha256", "mtime"}} for path, one in OLD.files.items()}
    found = difference(replace(OLD, files=plain), OLD).files
    assert found is not None
    assert (found.added, found.removed, found.changed) == (0, 0, 0)


def test_services_ports_and_settings_are_compared() -> None:
    found = difference(OLD, NEW)
    assert found.services == (
        Change(name="a.service", old="wanted by x.target", new="masked"),
        Change(name="b.timer", old="masked", new=""),
        Change(name="c.service", old="", new="wanted by x.target"),
    )
    assert found.listening == (Change(name="udp 68", old="", new="networkd on one address"),)
    assert found.sysctl == (Change(name="k", old="1", new="2"),)


def test_settings_of_files_count_where_an_image_was_not_booted() -> None:
    old = replace(OLD, booted=None, inventory=Inventory(sysctl={"k": "a"}))
    new = replace(NEW, inventory=Inventory(sysctl={"k": "b"}))
    found = difference(old, new)
    assert found.sysctl == (Change(name="k", old="a", new="b"),)
    assert found.unknown == ("listening ports: old does not say",)


def test_what_is_not_known_is_said_and_nothing_is_made_of_it() -> None:
    found = difference(side("old"), side("new"))
    assert (found.files, found.services, found.sources) == (None, (), ())
    assert len(found.unknown) == 7
    assert not found.identical
    assert difference(OLD, OLD).identical
    assert not difference(side("a"), replace(side("b"), end=End(name="b"))).identical


# -- hostile words

HOSTILE = "x\n# <script>alert(1)</script> [a](http://b.example) `c` | d \x1b[2J\u202e*e* &amp; <!--"


def test_words_of_others_are_neither_markup_nor_control() -> None:
    nasty = package(HOSTILE, HOSTILE)
    new = side(
        "new",
        nasty,
        sources={HOSTILE: Source(version="2", entries=(Entry(source=HOSTILE, version="2", text=HOSTILE),))},
    )
    found = difference(
        side("old", package(HOSTILE, "0")), replace(new, inventory=Inventory(units=(Unit(name=HOSTILE),)))
    )
    for text in ("\n".join(lines(found)), release_note(found, found.new, line=HOSTILE)):
        assert all(char == "\n" or char.isprintable() for char in text)
    note = release_note(found, found.new, line=HOSTILE)
    outside = [row for row in note.splitlines() if not row.startswith("    ")]
    assert not [row for row in outside if "<script" in row or "[a](" in row or "<!--" in row]
    assert not [row for row in note.splitlines() if row.startswith("# <")]


@given(st.text(max_size=60))
def test_marked_text_stays_one_line_without_markup(text: str) -> None:
    found = marked(text)
    assert "\n" not in found
    assert "<" not in found
    assert visible(text).isprintable()


# -- listening


def test_sockets_are_told_by_what_reaches_them() -> None:
    text = """tcp   LISTEN 0 128  0.0.0.0:22  0.0.0.0:*    users:(("sshd",pid=1,fd=3))
tcp   LISTEN 0 128  [::]:22  [::]:*    users:(("sshd",pid=1,fd=4))
udp   UNCONN 0 0  127.0.0.53%lo:53  0.0.0.0:*  users:(("systemd-resolve",pid=2,fd=1))
udp   UNCONN 0 0  [fe80::1%eth0]:546  [::]:*  users:(("systemd-network",pid=3,fd=1))
udp   UNCONN 0 0  10.0.2.15%eth0:68  0.0.0.0:*
udp   UNCONN 0 0  *:*  0.0.0.0:*
broken
"""
    assert [(one["protocol"], one["port"], one["reach"], one["program"]) for one in listening(text)] == [
        ("tcp", 22, "any", "sshd"),
        ("udp", 53, "loopback", "systemd-resolve"),
        ("udp", 68, "one address", ""),
        ("udp", 546, "link-local", "systemd-network"),
    ]
    assert settings_of("kernel.x = 1\nnet.y = 4096\t 1\nbroken\n") == {"kernel.x": "1", "net.y": "4096 1"}


@given(st.text(max_size=200))
def test_no_answer_of_a_guest_makes_the_reader_fail(text: str) -> None:
    assert isinstance(listening(text), list)
    assert isinstance(settings_of(text), dict)


# -- records in folders


def records(folder: Path, chosen: Side, *, digest: str = "1" * 64) -> Path:
    """What a build leaves in a run, of a side."""
    folder.mkdir(parents=True, exist_ok=True)
    body = [
        {"name": p.name, "version": p.version, "arch": p.arch, "source": p.source, "origin": p.origin}
        for p in chosen.packages
    ]
    (folder / "packages.json").write_text(json.dumps({"schema": "factory/packages/1", "packages": body}))
    rows = [{"schema": "factory/files/1"}, *(chosen.files or {}).values()]
    (folder / "files.list").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    manifest = {"image": "small", "arch": "x86_64", "epoch": 1_795_000_000, "size_bytes": 1000}
    (folder / "manifest.json").write_text(json.dumps({**manifest, "results": {"small.x86_64.qcow2": digest}}))
    if chosen.inventory:
        (folder / "inventory.json").write_text(chosen.inventory.text())
    if chosen.sources is not None:
        (folder / CHANGELOGS).write_bytes(changelogs_bytes(chosen.sources))
    if chosen.booted:
        (folder / "verify").mkdir(exist_ok=True)
        noted = TypeAdapter(Booted).dump_python(chosen.booted, mode="json")
        (folder / "verify" / BOOTED).write_text(json.dumps({"schema": "factory/booted/1", **noted}))
    return folder


def a_run(state: State, when: str, chosen: Side, *, published: bool = True, digest: str = "1" * 64) -> Run:
    run = Run(path=records(state.runs / f"{when}-small", chosen, digest=digest))
    run.file("build").write_text("{}")
    if published:
        at = datetime(2026, 11, 21, tzinfo=UTC)
        rotation = Rotation(
            target=Target(), line="L", latest="1", prev=None, archived=None, steps=(), gap_s=0.0, rotated_at=at
        )
        run.write("rotate", Rotations(rotations=(rotation,)))
    return run


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(path=tmp_path / "state").prepare()


def test_a_run_is_read_whole(tmp_path: Path) -> None:
    found = read_side(records(tmp_path / "run", NEW))
    assert (found.packages, found.files, found.inventory) == (NEW.packages, NEW.files, NEW.inventory)
    assert (found.sources, found.booted) == (NEW.sources, NEW.booted)
    assert (found.end.image, found.end.size_bytes, found.end.made) == ("small.x86_64.qcow2", 1000, "2026-11-18")


def test_a_bundle_holds_the_same_some_of_it_in_its_tarball(tmp_path: Path) -> None:
    run, bundle = records(tmp_path / "run", NEW), tmp_path / "bundle"
    bundle.mkdir()
    with tarfile.open(bundle / "small-source.tar.xz", "w:xz") as archive:
        for name in ("packages.json", "files.list", "manifest.json"):
            archive.add(run / name, f"small/rebuild/{name}")
    for name in ("packages.json", "inventory.json", CHANGELOGS):
        shutil.copy(run / name, bundle)
    shutil.copy(run / "verify" / BOOTED, bundle)
    (bundle / "small.x86_64.qcow2").write_bytes(b"image")
    for place in (bundle, bundle / "small.x86_64.qcow2"):
        found = read_side(place)
        assert replace(found, end=NEW.end) == replace(read_side(run), end=NEW.end)
        assert found.end.sha256 == "1" * 64


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("packages.json", b"{"),
        ("packages.json", b'{"packages": [{"name": 1}]}'),
        ("files.list", b"{}\n[]\n"),
        ("inventory.json", b"[]"),
        ("manifest.json", b"\xff"),
        (CHANGELOGS, b"x"),
        (f"verify/{BOOTED}", b'{"listening": [{"port": "x"}]}'),
    ],
)
def test_damaged_records_are_told(tmp_path: Path, name: str, content: bytes) -> None:
    run = records(tmp_path / "run", NEW)
    (run / name).write_bytes(content)
    with pytest.raises(NotGood):
        read_side(run)


def test_a_damaged_tarball_is_told(tmp_path: Path) -> None:
    run = records(tmp_path / "run", NEW)
    (run / "files.list").unlink()
    (run / "small-source.tar.xz").write_bytes(b"x")
    with pytest.raises(NotGood, match="damaged"):
        read_side(run)
    with tarfile.open(run / "small-source.tar.xz", "w:xz") as archive:
        member = tarfile.TarInfo("small/rebuild/files.list")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    assert read_side(run).files is None


def test_images_are_named_by_run_image_or_place(state: State, tmp_path: Path) -> None:
    first = a_run(state, "20261119-020000", OLD)
    second = a_run(state, "20261120-020000", NEW, digest="2" * 64)
    a_run(state, "20261120-120000", OLD, published=False)
    red = a_run(state, "20261121-020000", OLD, published=False)

    def ends(*names: str) -> tuple[str, str]:
        found = between(names[0], names[1] if len(names) > 1 else "", state=state)
        return found.old.name, found.new.name

    assert ends("small") == (second.id, red.id)
    assert ends(second.id) == (first.id, second.id)
    assert ends("small@prev", "small@latest") == (first.id, second.id)
    assert ends("small@latest", "small") == (second.id, red.id)
    assert ends(str(first.path), str(second.path)) == (first.id, second.id)
    place = records(tmp_path / "bundle", NEW)
    assert ends("small@prev", str(place)) == (first.id, "bundle")


@pytest.mark.parametrize(
    "names",
    [
        ("other",),
        ("small@newest",),
        ("20200101-000000-small",),
        ("/nowhere/x.qcow2", "small"),
        ("small@prev", "small"),
        ("small",),
    ],
)
def test_unknown_names_are_a_fault_of_who_asks(state: State, names: tuple[str, ...]) -> None:  # fmt: skip
    a_run(state, "20261119-020000", OLD)
    with pytest.raises(InputFault) as told:
        between(names[0], names[1] if len(names) > 1 else "", state=state)
    assert told.value.exit_code == 2


def test_a_place_without_records_is_a_fault(state: State, tmp_path: Path) -> None:
    with pytest.raises(InputFault, match="says nothing about the packages"):
        of_places(tmp_path, tmp_path, state=state)


def test_a_longer_changelog_is_read_from_the_recorded_package(state: State) -> None:
    from testsuite.unit.test_sbom import make_deb

    short = replace(NEW.sources["openssl"], entries=NEW.sources["openssl"].entries[:2])
    a_run(state, "20261119-020000", OLD)
    newer = a_run(state, "20261120-020000", replace(NEW, sources={"openssl": short}))
    assert "openssl" in [one.source for one in between("small", "", state=state).sources if not one.complete]
    fixed = (("3.5.4-1~deb13u2", "CVE-2026-0002"), ("3.5.4-1~deb13u1", "CVE-2026-0007"), ("3.5.1-1", "CVE-1999-0001"))
    trailer = " -- A <a@b.example>  Sat, 21 Nov 2026 02:00:00 +0000"
    text = "".join(
        f"openssl ({version}) trixie; urgency=high\n\n  * Fix {fix}.\n\n{trailer}\n\n" for version, fix in fixed
    )
    state.blobs.mkdir()
    deb = make_deb(
        state.blobs, {"/usr/share/doc/openssl/changelog.Debian.gz": gzip.compress(text.encode())}, name="a" * 128
    )
    line = {"repository": "debian", "path": "pool/o/openssl_3.5.4-1%7edeb13u2_amd64.deb", "sha512": deb.name, "size": 1}
    (newer.path / "inputs.lock").write_text(f'{{"schema": "factory/inputs/1"}}\n{json.dumps(line)}\n')
    (found,) = between("small", "", state=state).sources
    assert found.complete
    assert found.fixes == ("CVE-2026-0002", "CVE-2026-0007")


# -- the release note


def test_a_run_gets_its_note_once(state: State) -> None:
    said: list[str] = []
    first = a_run(state, "20261119-020000", OLD)
    write_notes(first, line="Standard_Debian_13", say=said.append)
    assert "first image of this line" in (first.path / RELEASE_NOTE).read_text()
    assert not (first.path / DIFFERENCE).exists()
    second = a_run(state, "20261120-020000", NEW, published=False, digest="2" * 64)
    write_notes(second, line="Standard_Debian_13", say=said.append)
    note = (second.path / RELEASE_NOTE).read_text()
    for expected in (
        "# Standard\\_Debian\\_13",
        "CVE-2026-0001",
        "| bash | 5.3-2 | 5.3-1 | downgraded |",
        "`a.service`",
        "\n\n- `/etc/x`\n- `/etc/y`\n",
    ):
        assert expected in note
    body = json.loads((second.path / DIFFERENCE).read_text())
    assert body["schema"] == SCHEMA
    (second.path / RELEASE_NOTE).write_text("kept")
    write_notes(second, line="x", say=said.append)
    assert (second.path / RELEASE_NOTE).read_text() == "kept"
    assert said == []


def test_an_earlier_image_that_cannot_be_read_stops_no_note(state: State) -> None:
    said: list[str] = []
    broken = a_run(state, "20261119-020000", OLD)
    (broken.path / "packages.json").write_text("{")
    second = a_run(state, "20261120-020000", NEW)
    write_notes(second, line="L", say=said.append)
    assert "first image" in (second.path / RELEASE_NOTE).read_text()
    assert "not compared with the image before" in said[0]


def noted(folder: Path, new: Side = NEW) -> Bundle:
    """A bundle with a release note."""
    made = make_bundle(folder, data_bytes=4096)
    found = difference(OLD, new)
    (folder / RELEASE_NOTE).write_text(release_note(found, found.new, line="L") + "\n<script>")
    (folder / DIFFERENCE).write_text(difference_text(found))
    return replace(made, files=(*made.files, RELEASE_NOTE, DIFFERENCE))


def test_the_download_page_tells_what_changed(tmp_path: Path) -> None:
    bundle = noted(tmp_path / "bundle")
    folder = publish_directory(bundle, "L_20261121", dist=tmp_path / "dist")
    page = (folder / "index.html").read_text()
    assert "What changed" in page
    assert "CVE-2026-0001" in page
    assert "<script>" not in page
    assert sha256_file(folder / RELEASE_NOTE) == sha256_file(bundle.directory / RELEASE_NOTE)
    plain = publish_directory(make_bundle(tmp_path / "plain", data_bytes=4096), "P", dist=tmp_path / "dist")
    assert "What changed" not in (plain / "index.html").read_text()


def test_the_ledger_keeps_what_the_page_shows(tmp_path: Path) -> None:
    found = detail_of(noted(tmp_path / "bundle"))["difference"]
    assert [one["source"] for one in found["sources"]] == ["openssl"]
    assert "entries" not in found["sources"][0]
    assert len(found["packages"]) == 5
    assert detail_of(make_bundle(tmp_path / "other", data_bytes=4096))["difference"] is None


def test_the_report_shows_what_changed_and_links_the_bill(tmp_path: Path) -> None:
    nasty = replace(NEW, packages=(*NEW.packages, package("<script>x", "1\u202e")))
    bundle = noted(tmp_path / "bundle", nasty)
    artifact = replace(bundle.artifact, sbom=tmp_path / "sbom.cdx.json", licences={"spdx": 1, "prose": 1})
    at = datetime(2026, 11, 21, tzinfo=UTC)
    stages = tuple(
        StageRecord(stage=name, outcome="done", started_at=at, seconds=1.0, detail=detail_of(value))
        for name, value in (("build", artifact), ("sign", bundle))
    )
    run = RunRecord(
        id="20261121-020000-small",
        image="small",
        line="L",
        started_at=at,
        ended_at=at,
        outcome="published",
        stages=stages,
    )
    text = page(run, None, now=at)
    for expected in ("since the last published image, old", "CVE-2026-0001", "udp 68: not there", "bash (downgraded)"):
        assert expected in text
    assert 'href="sbom.cdx.json"' in text
    assert "1 by SPDX names" in text
    assert "<script" not in text
    assert "\u202e" not in text


def test_the_first_files_are_enough_for_a_page(tmp_path: Path) -> None:
    many = {f"/{number}": file(f"/{number}", package="generated") for number in range(500)}
    bundle = noted(tmp_path / "bundle", replace(NEW, files=many))
    files = json.loads((bundle.directory / DIFFERENCE).read_text())["value"]["files"]
    assert (len(files["unexplained"]), files["left_out"]) == (400, 101)  # and /etc/x, which is gone
    assert len(detail_of(bundle)["difference"]["files"]["unexplained"]) == 40


def test_a_description_leads_to_the_release_where_the_site_offers_downloads(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", data_bytes=4096)
    there = Target(downloads="https://images.example/dist")
    said = release_properties(bundle, there, "Standard_Debian_13_20261121")["image_description"]
    assert said == "https://images.example/dist/Standard_Debian_13/Standard_Debian_13_20261121/index.html"
    folder = publish_directory(bundle, "Standard_Debian_13_20261121", dist=tmp_path / "dist", target=there)
    assert (tmp_path / "dist" / said.removeprefix("https://images.example/dist/")) == folder / "index.html"
    assert "tested and signed" in release_properties(bundle, Target(), "x")["image_description"]
    own = with_description(bundle, metadata={"os_version": "13", "image_description": "ours"})
    assert release_properties(own, there, "x")["image_description"] == "ours"


# -- as typed


def type_diff(state: State, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).parent / "factory", "--state", state.path, "diff", *words],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if not name.startswith("FACTORY_")},
    )


def test_diff_as_people_and_programs_read_it(state: State) -> None:
    a_run(state, "20261119-020000", OLD)
    a_run(state, "20261120-020000", NEW, digest="2" * 64)
    told = type_diff(state, "small")
    assert told.returncode == 0, told.stderr
    for expected in (
        "security fixes: 3",
        "^ openssl:amd64 3.5.1-1 -> 3.5.4-1~deb13u2",
        "udp 68: not there -> networkd",
    ):
        assert expected in told.stdout
    body = json.loads(type_diff(state, "small", "--json").stdout)
    assert body["schema"] == SCHEMA
    schema = TypeAdapter(ImageDifference).json_schema()
    jsonschema.validate(body["value"], {**schema, "additionalProperties": False})
    assert body == json.loads(json.dumps(body))
    assert type_diff(state, "small", "--markdown").stdout.startswith("# small.x86\\_64: what changed")
    unknown = type_diff(state, "nothing")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "Traceback" not in unknown.stderr


def test_a_site_offers_downloads_for_all_its_clouds(tmp_path: Path) -> None:
    site = tmp_path / "site.toml"
    site.write_text('[downloads]\nurl = "https://images.example/dist/"\n')
    assert [one.downloads for one in load_site(site).targets] == ["https://images.example/dist"]
    site.write_text(site.read_text() + '[[target]]\ncloud = "one"\n[[target]]\ncloud = "two"\n')
    assert {one.downloads for one in load_site(site).targets} == {"https://images.example/dist"}
    site.write_text('[downloads]\nurl = "https://user:secret@images.example/"\n')
    with pytest.raises(InputFault) as told:
        load_site(site)
    assert "secret" not in "\n".join(told.value.lines())
