# SPDX-License-Identifier: Apache-2.0
"""Installed packages against what the lock offers: real packages, a real dpkg database, a really signed index."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from factory.build.debs import read_deb
from factory.build.honesty import OWN_PACKAGES, Installed, expect_locked, faults, installed
from factory.describe.region_packages import FOLDER, pack
from factory.errors import BuildError, InputFault
from factory.inputs.recorder import Origin, Recorder
from factory.inputs.stanzas import Offer, Stanzas, fields_of, offers, source_of
from factory.model import RegionClient, Registration, Repository
from testsuite.repository import NOW, Archive, make_key, mirror

DEBIAN = Repository(alias="debian", url="", suites=("trixie",))


def make_deb(
    folder: Path, name: str, *, version: str = "1.0", content: str = "as made", sums: bool = True, packing: str = "xz"
) -> Path:
    """A package with one file, as dpkg-deb makes it."""
    root = folder / f"{name}-{version}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
    file = root / "usr/share" / name / "file"
    file.parent.mkdir(parents=True)
    file.write_text(content)
    (root / "DEBIAN").mkdir()
    (root / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: nobody <nobody@images.example>\n"
        "Description: a package\n of a test\n"
    )
    if sums:
        digest = hashlib.md5(content.encode(), usedforsecurity=False).hexdigest()
        (root / "DEBIAN/md5sums").write_text(f"{digest}  usr/share/{name}/file\n")
    deb = folder / f"{root.name}.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", f"-Z{packing}", "--build", root, deb], check=True, capture_output=True
    )
    return deb


@dataclass
class Place:
    """An image's root file system, the tree it is built from, and a mirror that serves the package ``hello``."""

    folder: Path
    recorder: Recorder
    hello: Path

    @property
    def tree(self) -> Path:
        return self.folder / "tree"

    def install(self, *debs: Path) -> None:
        root = self.folder / "root"
        (root / "var/lib/dpkg/info").mkdir(parents=True, exist_ok=True)
        argv = ["dpkg", f"--root={root}", "--force-not-root", "--force-bad-path", "--log=/dev/null", "--install", *debs]
        subprocess.run(argv, check=True, capture_output=True)

    def read(self, path: str) -> bytes:
        file = self.folder / "root" / path.lstrip("/")
        return file.read_bytes() if file.is_file() else b""

    def judge(self, *repositories: str) -> None:
        packages = installed(self.read("/var/lib/dpkg/status").decode(), self.read)
        expect_locked(
            "debian13", packages, tree=self.tree, inputs=self.recorder, repositories=repositories or ("debian",)
        )

    def refused(self) -> str:
        with pytest.raises(BuildError, match="not from a locked, signed source") as told:
            self.judge()
        return "\n".join(told.value.lines())


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    return make_key(tmp_path_factory.mktemp("k"), "archive")


@pytest.fixture
def place(tmp_path: Path, key):
    archive = Archive(root=tmp_path / "mirror", key=key)
    hello = make_deb(tmp_path, "hello")
    path = archive.add("hello", hello.read_bytes())
    archive.add("unfetched", make_deb(tmp_path, "unfetched").read_bytes())
    archive.publish()
    with mirror(archive.root) as (address, _):
        origin = Origin(mirror=address, keyring=key.keyring)
        recorder = Recorder(origins={"debian": origin}, blobs=tmp_path / "blobs", now=NOW)
        recorder.read_indexes((DEBIAN,))
        recorder.get("debian", archive.index_path)
        recorder.get("debian", path)
        yield Place(tmp_path, recorder, hello)


def test_packages_of_the_lock_and_of_the_build_tree_are_good(place: Place) -> None:
    own = make_deb(place.folder, "region-config")
    (place.tree / OWN_PACKAGES).mkdir(parents=True)
    (place.tree / OWN_PACKAGES / own.name).write_bytes(own.read_bytes())
    place.install(place.hello, own)
    place.judge()


STRANGERS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "from nowhere": (lambda at: make_deb(at, "stranger"), "stranger 1.0 (all) is in no signed index of this build"),
    "another version": (
        lambda at: make_deb(at, "hello", version="2.0"),
        "hello 2.0 (all) is in no signed index of this build, which has 1.0 in debian",
    ),
    "the same name and version, and other files": (
        lambda at: make_deb(at, "hello", content="evil"),
        "hello 1.0 (all) has the name of the package that was fetched, and is another one",
    ),
    "the same name and version, without a list of digests": (
        lambda at: make_deb(at, "hello", content="evil", sums=False),
        "hello 1.0 (all) has the name of the package that was fetched, and is another one",
    ),
    "signed, but not fetched from there": (
        lambda at: make_deb(at, "unfetched", content="carried in"),
        "unfetched 1.0 (all) is in a signed index, but its file was not fetched from there",
    ),
}


@pytest.mark.parametrize("case", STRANGERS)
def test_a_package_from_elsewhere_is_named(place: Place, case: str) -> None:
    """As a line ``dpkg --install`` in config.sh, or a package in the overlay, would bring it in."""
    make, says = STRANGERS[case]
    place.install(make(place.folder))
    told = place.refused()
    assert says in told
    assert "install it from a repository of image.toml" in told


def test_a_package_of_ours_must_be_the_one_in_the_build_tree(place: Place) -> None:
    (place.tree / OWN_PACKAGES).mkdir(parents=True)
    ours = make_deb(place.folder, "region-config")
    (place.tree / OWN_PACKAGES / ours.name).write_bytes(ours.read_bytes())
    place.install(make_deb(place.folder, "region-config", content="evil"))
    assert "region-config 1.0 (all) has the name of a package of the build tree, and is another one" in place.refused()


def test_a_repository_that_is_not_the_images_offers_nothing(place: Place) -> None:
    place.install(place.hello)
    place.judge()
    with pytest.raises(BuildError, match="not from a locked"):
        place.judge("tools")


def test_a_damaged_package_in_the_build_tree_is_named(place: Place) -> None:
    (place.tree / OWN_PACKAGES).mkdir(parents=True)
    (place.tree / OWN_PACKAGES / "broken.deb").write_bytes(b"!<arch>\nnonsense")
    with pytest.raises(BuildError, match=r"'broken\.deb' is not a Debian package"):
        place.judge()


def test_an_overlay_cannot_add_to_the_factorys_own_packages(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir(parents=True)
    make_deb(tmp_path, "stranger").rename(tmp_path / FOLDER / "stranger.deb")
    with pytest.raises(InputFault, match="would be installed as the factory's own"):
        pack(tmp_path, (), RegionClient(), Registration(mode="none"), apt=False, record=None)


# -- purely


def package(state: str = "installed", *, version: str = "1") -> Installed:
    return Installed(name="a", version=version, arch="amd64", state=state, md5sums=b"x")


def offer(version: str = "1", repository: str = "debian") -> Offer:
    return Offer(repository=repository, name="a", version=version, arch="amd64", path="a.deb", sha256="0" * 64)


@pytest.mark.parametrize(
    ("packages", "offered", "problems"),
    [
        ((), (), []),
        ((package("half-installed"),), (offer(),), ["is half-installed"]),
        ((package("unpacked"),), (offer(),), ["is unpacked"]),
        ((package(""),), (offer(),), ["is in no known state"]),
        (
            (package(version="3"),),
            (offer("2"), offer("1", "other")),
            ["is in no signed index of this build, which has 1 in other, 2 in debian"],
        ),
        ((package(),), (offer("2"), offer()), ["is in a signed index, but its file was not fetched from there"]),
    ],
)
def test_why_a_package_is_not_good(packages, offered, problems) -> None:
    assert [fault.problem for fault in faults(packages, offered, (), lambda _: None)] == problems


def test_removed_packages_are_not_there_and_half_installed_ones_are() -> None:
    status = "".join(
        f"Package: {name}\nStatus: {state}\nVersion: 1\nArchitecture: all\nConffiles:\n /etc/{name} 0\n\n"
        for name, state in (
            ("a", "install ok installed"),
            ("b", "deinstall ok config-files"),
            ("c", "purge ok not-installed"),
            ("d", "install ok half-configured"),
        )
    )
    found = installed(status, lambda path: b"sums" if path.endswith("/a.md5sums") else b"")
    assert [(one.name, one.state, one.md5sums) for one in found] == [
        ("a", "installed", b"sums"),
        ("d", "half-configured", None),
    ]


@pytest.mark.parametrize("packing", ["xz", "gzip", "zstd", "none"])
def test_a_packages_records_are_read_however_they_are_packed(tmp_path: Path, packing: str) -> None:
    deb = read_deb(make_deb(tmp_path, "hello", version="1:2-3", packing=packing))
    assert (deb.name, deb.version, deb.arch) == ("hello", "1:2-3", "all")
    assert (deb.md5sums or b"").endswith(b"  usr/share/hello/file\n")


STANZAS = Stanzas(
    b"Package: a\nVersion: 1\nArchitecture: amd64\nSource: src (0.9)\nDescription: first\n more: text\n"
    b"Built-Using: gcc (= 12-1),rust-c++ (= 2.4), no version\nFilename: pool/a_1.deb\nSHA256: 11\n\n"
    b"Package: ab\nVersion: 5\nFilename: pool/ab.deb\nSHA256: 22\n\n"
    b"Version: 2\nPackage: a\nFilename: pool/a_2.deb\nSHA256: 33\n\nPackage: a\nVersion: 3\n"
)


def test_stanzas_are_found_by_name() -> None:
    assert [fields_of(one)["Version"] for one in STANZAS.named("a")] == ["1", "2", "3"]
    assert STANZAS.named("b") == ()
    assert fields_of(STANZAS.named("a")[0])["Description"] == "first\nmore: text"


def test_an_offer_has_a_file_and_a_digest() -> None:
    first, second = offers("debian", [STANZAS], ["a", "nonesuch"])
    assert (first.path, first.source, first.source_version) == ("pool/a_1.deb", "src", "0.9")
    assert first.built_using == (("gcc", "12-1"), ("rust-c++", "2.4"))
    assert (second.path, second.source, second.source_version) == ("pool/a_2.deb", "a", "2")


@pytest.mark.parametrize(
    ("said", "source"), [("", ("a", "1")), ("b", ("b", "1")), ("b (2:3)", ("b", "2:3")), ("b ( 2", ("a", "1"))]
)
def test_the_source_of_a_package(said, source) -> None:
    assert source_of("a", "1", said) == source
