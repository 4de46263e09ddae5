# SPDX-License-Identifier: Apache-2.0
"""The sources of an image, from a mirror that is really signed and moves on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest

from factory.errors import InputsError
from factory.inputs.lock import Input
from factory.inputs.recorder import Origin, Recorder
from factory.inputs.replay import Replay
from factory.inputs.source_packages import Mirrors, Sources, export_sources, sources_of
from factory.inputs.sources import BlobFolder
from factory.inputs.stanzas import Offer
from factory.inputs.upstream import Upstream
from factory.model import Package, Repository
from testsuite.repository import NOW, SIGNED, Archive, make_key, mirror

DEBIAN = Repository(alias="debian", url="", suites=("trixie",))
BIG = bytes(range(256)) * 400


def package(name: str, version: str = "1.0") -> Package:
    return Package(name=name, version=version, arch="all")


@dataclass
class Place:
    archive: Archive
    address: str
    asked: list[str]
    folder: Path
    lock: tuple[Input, ...] = ()
    said: list[str] = field(default_factory=list)

    def recorder(self, blobs: str) -> Recorder:
        origin = Origin(mirror=self.address, keyring=self.archive.key.keyring)
        patience = Upstream(pause_s=0.01)
        return Recorder(origins={"debian": origin}, blobs=self.folder / blobs, now=NOW, upstream=patience)

    def record(self) -> None:
        recorder = self.recorder("blobs")
        recorder.read_indexes((DEBIAN,))
        recorder.get("debian", self.archive.index_path)
        self.lock = recorder.inputs

    def export(self, *packages: Package) -> Sources:
        self.asked.clear()
        scratch = self.folder / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        locked = Replay(
            lock=self.lock,
            keyrings={"debian": self.archive.key.keyring},
            blobs=scratch,
            sources=(BlobFolder(self.folder / "blobs"),),
            epoch=int(SIGNED.timestamp()),
        )
        return export_sources(
            "debian13",
            packages or (package("hello"), package("libgreeting"), package("own")),
            repositories=(DEBIAN,),
            locked=locked,
            at=Mirrors(recorder=self.recorder("later"), upstream=Upstream(pause_s=0.01, attempts=1)),
            out=self.folder / "out",
            say=self.said.append,
        )

    def pool_asked(self) -> list[str]:
        return sorted(path.rpartition("/")[2] for path in self.asked if path.startswith("/pool/"))


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    return make_key(tmp_path_factory.mktemp("k"), "archive")


@pytest.fixture
def place(tmp_path: Path, key) -> Iterator[Place]:
    archive = Archive(root=tmp_path / "mirror", key=key)
    archive.add("hello", b"hello deb")
    archive.packages["hello"] += "Source: greetings (1:0.9)\nBuilt-Using: gcc (= 12)\n"
    archive.add("libgreeting", b"library deb")
    archive.packages["libgreeting"] += "Source: greetings (1:0.9)\n"
    archive.add_source("greetings", "1:0.9", dsc=b"the dsc", orig_tar_xz=BIG)
    archive.add_source("gcc", "12", dsc=b"compiler dsc")
    archive.add_source("unrelated", "3", dsc=b"another dsc")
    archive.publish()
    with mirror(archive.root) as (address, asked):
        made = Place(archive, address, asked, tmp_path)
        made.record()
        yield made


def test_the_sources_of_what_is_installed_and_of_what_was_built_in(place) -> None:
    found = place.export()
    assert [(one.name, one.version, one.binaries) for one in found.packages] == [
        ("gcc", "12", ("hello",)),
        ("greetings", "1:0.9", ("hello", "libgreeting")),
    ]
    assert (found.missing, found.ours) == ((), ("own",))
    out = place.folder / "out"
    assert (out / "greetings_1%3A0.9" / "greetings_0.9.orig.tar.xz").read_bytes() == BIG
    assert (out / "greetings_1%3A0.9" / "greetings_0.9.dsc").read_bytes() == b"the dsc"
    assert (out / "gcc_12" / "gcc_12.dsc").read_bytes() == b"compiler dsc"
    listed = json.loads((out / "sources.json").read_text())
    assert (listed["schema"], listed["ours"]) == ("factory/sources/1", ["own"])
    assert [file["path"] for one in listed["sources"] for file in one["files"]] == [
        "pool/main/g/gcc/gcc_12.dsc",
        "pool/main/g/greetings/greetings_0.9.dsc",
        "pool/main/g/greetings/greetings_0.9.orig.tar.xz",
    ]


def test_what_is_there_is_not_fetched_again_and_half_files_are_gone_on_with(place) -> None:
    place.export()
    big = place.folder / "out/greetings_1%3A0.9/greetings_0.9.orig.tar.xz"
    big.with_name(f"{big.name}.part").write_bytes(BIG[:1000])
    big.unlink()
    place.export()
    assert place.pool_asked() == ["greetings_0.9.orig.tar.xz"]
    assert big.read_bytes() == BIG
    assert not list((place.folder / "out").rglob("*.part"))


def test_a_file_that_was_changed_in_the_folder_is_fetched_again(place) -> None:
    place.export()
    (place.folder / "out/gcc_12/gcc_12.dsc").write_bytes(b"evil")
    place.export()
    assert place.pool_asked() == ["gcc_12.dsc"]
    assert (place.folder / "out/gcc_12/gcc_12.dsc").read_bytes() == b"compiler dsc"


def test_a_mirror_that_moved_on_is_asked_by_the_index_of_then(place) -> None:
    """Its present index has another version; old indexes and files are often kept for a while."""
    place.archive.sources.clear()
    place.archive.add_source("greetings", "2", dsc=b"newer dsc")
    place.archive.publish(signed=SIGNED + timedelta(hours=6))
    assert place.export().missing == ()


@pytest.mark.parametrize("gone", ["index", "files"])
def test_what_is_gone_from_the_mirror_is_told_by_name(place, gone) -> None:
    place.archive.sources.pop("greetings 1:0.9")
    if gone == "index":
        shutil.rmtree(place.archive.root / "dists/trixie/main/source")
        says = "no Sources index of debian has this version any more"
    else:
        (place.archive.root / "pool/main/g/greetings/greetings_0.9.dsc").unlink()
        says = "the mirror has no 'greetings_0.9.dsc' any more"
    place.archive.publish(signed=SIGNED + timedelta(hours=6))
    found = place.export()
    assert [(one.name, one.version, one.missing) for one in found.missing] == [("greetings", "1:0.9", says)]
    assert (place.folder / "out/gcc_12/gcc_12.dsc").is_file()
    big = place.folder / "out/greetings_1%3A0.9/greetings_0.9.orig.tar.xz"
    assert big.is_file() is (gone == "files")
    listed = json.loads((place.folder / "out/sources.json").read_text())
    assert [one.get("missing") for one in listed["sources"]] == [None, says]


def test_other_bytes_than_signed_get_no_name(place) -> None:
    (place.archive.root / "pool/main/g/gcc/gcc_12.dsc").write_bytes(b"evil")
    with pytest.raises(InputsError, match=r"another 'gcc_12\.dsc' than was signed"):
        place.export()
    assert not list((place.folder / "out").rglob("gcc_12.dsc*"))


def test_a_file_name_leads_nowhere_else(place) -> None:
    text = place.archive.sources["gcc 12"].replace("gcc_12.dsc", "../../../gcc_12.dsc")
    place.archive.sources["gcc 12"] = text
    place.archive.publish(signed=SIGNED + timedelta(hours=6))
    found = place.export()
    assert [(one.name, one.missing) for one in found.missing] == [("gcc", "its index names no files")]


def test_a_package_is_known_by_name_version_and_architecture() -> None:
    offer = Offer(
        repository="debian", name="a", version="1", arch="all", path="", sha256="", source="s", source_version="0"
    )
    assert sources_of([package("a", "1"), package("a", "2")], [offer]) == ({("s", "0"): {"a"}}, ("a",))
