# SPDX-License-Identifier: Apache-2.0
"""When newer indexes count as unchanged: tables of edges, and a really signed mirror that counts requests."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from factory.errors import InputsError
from factory.inputs.freshness import Comparison, compare
from factory.inputs.index import parse_release
from factory.inputs.lock import write_lock
from factory.inputs.recorder import Origin, Recorder
from factory.inputs.sameness import (
    Pair,
    changed_folders,
    fetched_packages,
    package_difference,
    release_difference,
    watched,
)
from factory.inputs.stanzas import Stanzas
from factory.inputs.upstream import Upstream
from factory.model import Repository
from testsuite.repository import NOW, SIGNED, Archive, SigningKey, make_key, mirror

# -- purely: packages

BASE = {
    "bash": "Version: 5\nDepends: libc6 (>= 2), base-files | other-files\nConflicts: old-shell\nPriority: optional\n",
    "libc6": "Version: 2\nRecommends: libidn2 [amd64]\n",
    "mawk": "Version: 1\nProvides: awk (= 1)\n",
    "base-files": "Version: 13\nEssential: yes\nPre-Depends: awk\n",
    "dracut-kiwi": "Version: 9\n",
    "chromium": "Version: 100\nDepends: libc6\nSection: web\nDescription: a browser\n",
    "old-shell": "Version: 1\n",
}
FETCHED = ("bash", "libc6", "mawk", "base-files", "dracut-kiwi")


def index(packages: dict[str, str]) -> Stanzas:
    stanzas = (f"Package: {name}\n{text}Filename: pool/{name}.deb\nSHA256: 00\n" for name, text in packages.items())
    return Stanzas("\n".join(stanzas).encode())


def difference(**changes: str | None) -> str:
    after = {name: text for name, text in {**BASE, **changes}.items() if text is not None}
    old = index(BASE)
    return package_difference([Pair(name="debian trixie", old=old, new=index(after))], watched(FETCHED, [old]))


def test_what_is_watched_is_what_was_taken_and_what_that_names() -> None:
    assert watched(FETCHED, [index(BASE)]) == {*FETCHED, "other-files", "old-shell", "libidn2", "awk"}


UNCHANGED = {
    "the same": {},
    "a new version of an unrelated package": {"chromium": "Version: 101\nDepends: libc6, libnew\n"},
    "an unrelated package is gone": {"chromium": None},
    "a new unrelated package": {"firefox": "Version: 1\nDepends: libc6\nProvides: www-browser\n"},
    "an unrelated package of another priority": {"chromium": "Version: 100\nPriority: standard\n"},
    "only another description": {"bash": f"{BASE['bash']}Description: a shell\n of some kind\nTag: role::program\n"},
}
CHANGED = {
    "a newer version of an installed package": ({"libc6": "Version: 3\n"}, "libc6 was 2 and is 3"),
    "the same version with another content": (
        {"mawk": f"{BASE['mawk']}MD5sum: 1\n"},
        "mawk 1 is described otherwise (MD5sum)",
    ),
    "other dependencies": (
        {"dracut-kiwi": "Version: 9\nDepends: x\n"},
        "dracut-kiwi 9 is described otherwise (Depends)",
    ),
    "a package that only the build needs": ({"dracut-kiwi": "Version: 10\n"}, "dracut-kiwi was 9 and is 10"),
    "an installed package is gone": ({"bash": None}, "bash 5 is gone"),
    "another priority of an installed one": (
        {"bash": BASE["bash"].replace("optional", "required")},
        "bash 5 is described otherwise (Priority)",
    ),
    "a new essential package": ({"extra": "Version: 1\nEssential: yes\n"}, "extra 1 is new"),
    "an unrelated package becomes essential": (
        {"chromium": f"{BASE['chromium']}Essential: yes\n"},
        "chromium 100 is described otherwise (Essential)",
    ),
    "a new package that every system has": ({"extra": "Version: 1\nPriority: required\n"}, "extra 1 is new"),
    "a new provider of a name that was resolved": ({"gawk": "Version: 1\nProvides: x, awk\n"}, "gawk 1 is new"),
    "a new provider of a package's own name": ({"zsh": "Version: 1\nProvides: bash\n"}, "zsh 1 is new"),
    "another package becomes a provider": (
        {"chromium": f"{BASE['chromium']}Provides: awk\n"},
        "chromium 100 is described otherwise (Provides)",
    ),
    "an alternative that was not there": ({"other-files": "Version: 1\n"}, "other-files 1 is new"),
    "a recommended package that was not there": ({"libidn2": "Version: 1\n"}, "libidn2 1 is new"),
    "a package in conflict with an installed one": ({"old-shell": "Version: 2\n"}, "old-shell was 1 and is 2"),
    "a package in conflict is gone": ({"old-shell": None}, "old-shell 1 is gone"),
}


@pytest.mark.parametrize("case", UNCHANGED)
def test_what_no_build_would_notice(case) -> None:
    assert difference(**UNCHANGED[case]) == ""


@pytest.mark.parametrize("case", CHANGED)
def test_what_a_build_could_notice(case) -> None:
    changes, says = CHANGED[case]
    assert difference(**{name.replace("_", "-"): text for name, text in changes.items()}) == f"debian trixie: {says}"


def test_a_second_version_beside_an_installed_one_is_a_change() -> None:
    """As when a suite for updates begins to offer a package that the image has from another one."""
    empty, updates = Stanzas(b""), index({"libc6": "Version: 2.1\n"})
    names = watched(FETCHED, [index(BASE), empty])
    assert package_difference([Pair(name="updates", old=empty, new=updates)], names) == "updates: libc6 2.1 is new"
    assert package_difference([Pair(name="updates", old=updates, new=empty)], names) == "updates: libc6 2.1 is gone"


def test_the_order_of_an_index_says_nothing() -> None:
    turned = index(dict(reversed(BASE.items())))
    assert package_difference([Pair(name="x", old=index(BASE), new=turned)], watched(FETCHED, [turned])) == ""


def test_the_packages_of_a_lock_are_known_by_their_files() -> None:
    paths = ("pool/main/g/g++/g%2b%2b-12_12.2.0-14_amd64.deb", "dists/trixie/InRelease", "pool/a/a_1%3a2_all.deb")
    assert fetched_packages(paths) == {"g++-12", "a"}


# -- purely: signed indexes

RELEASE = (
    "Origin: Debian\nSuite: stable\nCodename: trixie\nVersion: 13.1\nDate: Fri, 20 Nov 2026 20:00:00 UTC\n"
    "Valid-Until: Fri, 27 Nov 2026 20:00:00 UTC\nArchitectures: amd64\nComponents: main contrib\nSHA256:\n"
    f" {'1' * 64} 1 main/binary-amd64/Packages.xz\n {'2' * 64} 1 main/i18n/Translation-en.xz\n"
    f" {'3' * 64} 1 contrib/binary-amd64/Packages.xz\n {'4' * 64} 1 main/Contents-amd64.gz\n"
)
FOLDERS = ("main/binary-amd64",)


@pytest.mark.parametrize(
    ("old", "new", "says", "folders"),
    [
        ("Nothing", "Nothing", "", ()),
        ("20 Nov 2026 20:00:00", "21 Nov 2026 02:00:00", "", ()),
        ("27 Nov 2026", "28 Nov 2026", "", ()),
        ("2" * 64, "5" * 64, "", ()),
        ("3" * 64, "5" * 64, "", ()),
        ("4" * 64, "5" * 64, "", ()),
        ("1" * 64, "5" * 64, "", FOLDERS),
        ("Version: 13.1", "Version: 13.2", "Version was '13.1' and is '13.2'", ()),
        ("Suite: stable", "Suite: oldstable", "Suite was 'stable' and is 'oldstable'", ()),
        ("Components: main", "Components: main new", "Components was 'main contrib' and is 'main new contrib'", ()),
        ("Origin: Debian", "Origin: Debian\nNotAutomatic: yes", "NotAutomatic was '' and is 'yes'", ()),
        (" 1 main/Contents-amd64.gz", " 1 main/binary-all/Packages.xz", "other package indexes: main/binary-all/", ()),
        (" 1 contrib/binary-amd64/Packages.xz", " 1 contrib/binary-amd64/other", "", ()),
    ],
)
def test_what_a_newer_signed_index_says(old, new, says, folders) -> None:
    before, after = parse_release(RELEASE), parse_release(RELEASE.replace(old, new))
    said = release_difference(before, after, FOLDERS)
    assert said.startswith(says) if says else said == ""
    assert changed_folders(before, after, FOLDERS) == folders


# -- with a mirror

DEBIAN = Repository(alias="debian", url="", suites=("trixie",))


@dataclass
class Nights:
    """A mirror, and nights that read it."""

    archive: Archive
    folder: Path
    address: str
    asked: list[str]

    def recorder(self, **names: str) -> Recorder:
        origin = Origin(mirror=self.address, keyring=self.archive.key.keyring)
        origins = {names.get("alias", "debian"): origin}
        patience = Upstream(pause_s=0.01)
        return Recorder(origins=origins, blobs=self.folder / "blobs", now=NOW + timedelta(days=1), upstream=patience)

    def build(self, *packages: str) -> None:
        """What a build does with the inputs server; asks for what it needs and writes the lock."""
        recorder = self.recorder()
        recorder.read_indexes((DEBIAN,))
        recorder.get("debian", self.archive.index_path)
        for name in packages:
            assert recorder.get("debian", f"pool/main/{name[0]}/{name}/{name}_1.0_all.deb").found
        write_lock(self.folder / "inputs.lock", recorder.inputs)

    def compare(self, **names: str) -> Comparison:
        self.asked.clear()
        keyrings = {"debian": self.archive.key.keyring}
        return compare(self.folder / "inputs.lock", self.recorder(**names), keyrings)

    def later(self, **names: object) -> None:
        self.archive.publish(signed=SIGNED + timedelta(hours=6), **names)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def key(tmp_path_factory) -> SigningKey:
    return make_key(tmp_path_factory.mktemp("k"), "archive")


@pytest.fixture
def nights(tmp_path: Path, key: SigningKey) -> Iterator[Nights]:
    archive = Archive(root=tmp_path / "mirror", key=key)
    archive.add("hello", b"hello deb", depends="libgreeting (>= 1)")
    archive.add("libgreeting", b"library deb")
    archive.add("unrelated", b"another deb")
    archive.publish()
    with mirror(archive.root) as (address, asked):
        made = Nights(archive, tmp_path, address, asked)
        made.build("hello", "libgreeting")
        yield made


def test_the_same_index_is_asked_for_on_condition_and_not_sent_again(nights) -> None:
    assert nights.compare() == Comparison(same=True, why="all 1 signed indexes are the same")
    assert nights.asked == ["/dists/trixie/InRelease -> 304"]


def test_a_newer_date_alone_changes_nothing(nights) -> None:
    nights.later()
    found = nights.compare()
    assert found == Comparison(same=True, why="newer signed indexes (debian trixie) name the same package indexes")
    assert nights.asked == ["/dists/trixie/InRelease"]


def test_a_package_that_the_build_did_not_take_changes_nothing(nights) -> None:
    nights.archive.add("unrelated", b"another deb, newer")
    nights.later()
    found = nights.compare()
    assert found.same
    assert "change none of the 2 packages that the build took" in found.why
    assert nights.asked == ["/dists/trixie/InRelease", f"/{nights.archive.index_path}"]


def test_a_mirror_that_went_back_is_no_news(nights) -> None:
    """As when one of its servers is behind the others: built from that, an image would lose updates."""
    nights.archive.add("libgreeting", b"library deb, older")
    nights.archive.publish(signed=SIGNED - timedelta(hours=6))
    shutil.rmtree(nights.folder / "blobs/.validators")  # a server that is asked by time says that nothing is newer
    found = nights.compare()
    assert found == Comparison(same=True, why="no signed index is newer than those that the build used")


def test_after_one_changed_package_nothing_is_downloaded_twice(nights) -> None:
    nights.archive.add("libgreeting", b"library deb, mended")
    nights.later()
    found = nights.compare()
    assert found == Comparison(same=False, why="debian trixie: libgreeting 1.0 is described otherwise (SHA256, Size)")
    nights.build("hello", "libgreeting")
    sent = [path for path in nights.asked if not path.endswith(" -> 304")]
    assert sorted(sent) == sorted(
        [
            "/dists/trixie/InRelease",
            f"/{nights.archive.index_path}",
            "/pool/main/l/libgreeting/libgreeting_1.0_all.deb",
        ]
    )
    assert nights.compare().same
    assert nights.asked == ["/dists/trixie/InRelease -> 304"]


def test_what_is_compared_is_the_last_build_not_the_last_night(nights) -> None:
    """Steps that change nothing by themselves do not add up to a change that nobody saw."""
    for number in range(1, 4):
        nights.archive.add("unrelated", b"%d" % number)
        nights.archive.publish(signed=SIGNED + timedelta(hours=number))
        assert nights.compare().same
    nights.archive.add("hello", b"hello deb, mended", depends="libgreeting (>= 1)")
    nights.later()
    assert not nights.compare().same


DOUBTS: dict[str, tuple[Callable[[Nights], object], str]] = {
    "another field of the signed index": (
        lambda at: at.later(more=("NotAutomatic: yes",)),
        "debian trixie: NotAutomatic was '' and is 'yes'",
    ),
    "the old package index is not stored any more": (
        lambda at: [
            blob.unlink()
            for blob in (at.folder / "blobs").iterdir()
            if blob.is_file() and blob.read_bytes()[:3] == b"\xfd7z"
        ],
        "of the earlier build is not stored any more",
    ),
    "the old package index is damaged": (
        lambda at: [
            blob.write_bytes(b"\xfd7z")
            for blob in (at.folder / "blobs").iterdir()
            if blob.is_file() and blob.read_bytes()[:3] == b"\xfd7z"
        ],
        "of the earlier build is damaged in the store",
    ),
    "a lock without an index": (
        lambda at: write_lock(at.folder / "inputs.lock", ()),
        "the earlier build's lock names no signed index",
    ),
}


@pytest.mark.parametrize("case", DOUBTS)
def test_doubt_means_that_something_changed(nights, case) -> None:
    spoil, says = DOUBTS[case]
    nights.archive.add("unrelated", b"another deb, newer")
    nights.later()
    spoil(nights)
    found = nights.compare()
    assert not found.same
    assert says in found.why


def test_a_repository_that_is_read_no_more_is_a_change(nights) -> None:
    assert nights.compare(alias="other").why == "the earlier build read from 'debian', which this one does not know"


def test_an_index_that_is_not_good_is_an_error_and_no_change(nights, tmp_path) -> None:
    nights.later(key=make_key(tmp_path, "stranger"))
    with pytest.raises(InputsError, match="signature of repository 'debian'"):
        nights.compare()
    nights.archive.publish()
    assert nights.compare().same


def test_a_suite_that_is_gone_is_an_error(nights) -> None:
    (nights.archive.root / "dists/trixie/InRelease").unlink()
    with pytest.raises(InputsError, match="the mirror does not serve"):
        nights.compare()


def test_a_stored_index_that_was_damaged_is_fetched_anew(nights) -> None:
    content = (nights.archive.root / "dists/trixie/InRelease").read_bytes()
    (nights.folder / "blobs" / hashlib.sha512(content).hexdigest()).write_bytes(b"evil")
    recorder = nights.recorder()
    nights.asked.clear()
    answer = recorder.get("debian", "dists/trixie/InRelease")
    assert recorder.store.path(answer.sha512).read_bytes() == content
    assert nights.asked == ["/dists/trixie/InRelease"]


@pytest.mark.parametrize("text", ["", "{}", "[]", "nonsense", '{"address": "x", "sha256": "../../etc"}'])
def test_a_damaged_memory_of_a_mirror_costs_a_download(nights, text) -> None:
    for path in (nights.folder / "blobs/.validators").iterdir():
        path.write_text(text)
    assert nights.compare().same
    assert nights.asked == ["/dists/trixie/InRelease"]
