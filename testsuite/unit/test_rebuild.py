# SPDX-License-Identifier: Apache-2.0
"""Rebuilding up to the build itself: what is refused, and how differences are told apart."""

from __future__ import annotations

import io
import json
import lzma
import os
import subprocess
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from factory.build.compare import Difference, content_class, differences
from factory.build.disk import RootPartition
from factory.build.layers import layers
from factory.build.tarball import FILES, LOCK, PACKAGES, Manifest, read_manifest, rebuild_files, write_tar
from factory.errors import FactoryError, InputFault, InputsError, NotGood
from factory.inputs.lock import Input, lock_text
from factory.model import Description, Recipe, RegionClient, Repository
from factory.rebuild import Trust, rebuild
from factory.system.clock import now
from factory.system.files import sha256_file, tree_digest
from factory.system.state import State
from testsuite.repository import NOW, SigningKey, make_key

DEBIAN = Repository(alias="debian", url="http://debian.example/debian", suites=("trixie",))
EPOCH = 1_700_000_000
FILES_TEXT = '{"schema": "factory/files/1"}\n'
PACKAGES_TEXT = json.dumps({"schema": "factory/packages/1", "packages": []}) + "\n"


@pytest.fixture(scope="module")
def key(tmp_path_factory) -> SigningKey:
    return make_key(tmp_path_factory.mktemp("k"), "factory")


def packed(tree: Path, tarball: Path, *, rebuild: Mapping[str, bytes] | None = None) -> None:
    tar = tarball.with_suffix("")
    write_tar(tree, tar, name="small-1", epoch=EPOCH, rebuild=rebuild)
    tarball.write_bytes(lzma.compress(tar.read_bytes(), preset=0))
    tar.unlink()


class Made:
    """A source tarball of a tree that no builder could build, signed or not."""

    def __init__(self, folder: Path, key: SigningKey) -> None:
        self.folder, self.key = folder, key
        self.tree, self.lists = folder / "tree", folder / "lists"
        self.tree.mkdir(parents=True)
        self.lists.mkdir()
        (self.tree / "config.xml").write_text("<image/>")
        for name, text in ((LOCK, lock_text([])), (FILES, FILES_TEXT), (PACKAGES, PACKAGES_TEXT)):
            (self.lists / name).write_text(text)
        self.state = State(path=folder / "state").prepare()
        self.state.blobs.mkdir()

    def manifest(self, **changes: object) -> Manifest:
        results = {name: sha256_file(self.lists / name) for name in (LOCK, FILES, PACKAGES)}
        made = Manifest(
            image="small",
            arch="x86_64",
            epoch=EPOCH,
            identity={},
            description=Description(name="small", line="Small"),
            repositories=(DEBIAN,),
            recipe_digest="0" * 64,
            tree_sha256=tree_digest(self.tree),
            commit="",
            dirty=False,
            inputs_digest="",
            tools={"kiwi": "1"},
            results={"small.x86_64.qcow2": "0" * 64, **results},
            layers={"partition table": "a", "boot code": "b", "file system": "c"},
            size_bytes=1,
            tools_epoch=EPOCH,
        )
        return replace(made, **changes)  # type: ignore[arg-type]

    def recipe(self) -> Recipe:
        return Recipe(
            description=Description(name="small", line="Small"), tree=self.tree, tree_sha256="", digest="", commit="",
            dirty=False, repositories=(DEBIAN,), mirrors={}, regions=(),
            keyrings={"debian": self.key.keyring, "tools": self.key.keyring}, region_client=RegionClient(),
            ntp_servers=(), resolved_at=NOW,
        )  # fmt: skip

    def pack(self, manifest: Manifest | None = None, *, signed: bool = True) -> Path:
        tarball = self.folder / "small-1-source.tar.xz"
        files = rebuild_files(self.lists, self.recipe(), manifest or self.manifest())
        packed(self.tree, tarball, rebuild=files)
        return self.sign(tarball) if signed else tarball

    def sign(self, tarball: Path) -> Path:
        signature = tarball.with_name(f"{tarball.name}.asc")
        signature.unlink(missing_ok=True)
        gpg = ["gpg", "--homedir", str(self.key.home), "--batch", "--quiet", "--armor", "--detach-sign"]
        subprocess.run([*gpg, "-o", signature, tarball], check=True)
        return tarball

    def rebuild(self, tarball: Path, *, trusted: Path | None = None, **names: object):
        public = self.folder / "public.asc"
        public.write_bytes((trusted or self.key.keyring).read_bytes())
        trust = Trust(keys=self.folder / "none", public_keys=(public,))
        return rebuild(tarball, trust=trust, state=self.state, now=now(), say=lambda _: None, **names)  # type: ignore[arg-type]

    def nothing_left(self) -> bool:
        return not list(self.state.rebuilds.glob("*"))


@pytest.fixture
def made(tmp_path, key) -> Made:
    return Made(tmp_path / "made", key)


def test_an_unsigned_tarball_is_refused(made) -> None:
    with pytest.raises(NotGood, match="is not signed"):
        made.rebuild(made.pack(signed=False))
    assert made.nothing_left()


def test_signed_checksums_beside_a_tarball_will_do(made) -> None:
    """As in a bundle that was signed on another host; what comes next is reached, or not."""
    tarball = made.pack(made.manifest(tree_sha256="0" * 64), signed=False)
    sums = tarball.with_name("SHA256SUMS")
    for digest, expected in (
        (sha256_file(tarball), "is not the one that its manifest names"),
        ("0" * 64, "not verify"),
    ):
        sums.write_text(f"{digest}  {tarball.name}\n")
        made.sign(sums)
        with pytest.raises(NotGood, match=expected):
            made.rebuild(tarball)
        assert made.nothing_left()
    made.sign(sums).write_text(f"{sha256_file(tarball)}  {tarball.name}\n")
    with pytest.raises(NotGood, match="does not verify"):
        made.rebuild(tarball)


def test_a_tarball_changed_after_it_was_signed_is_refused(made) -> None:
    tarball = made.pack()
    with tarball.open("r+b") as file:
        file.seek(100)
        byte = file.read(1)[0]
        file.seek(100)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(NotGood, match="does not verify"):
        made.rebuild(tarball)
    assert made.nothing_left()


def test_a_stranger_s_signature_is_refused(made, tmp_path) -> None:
    stranger = make_key(tmp_path, "stranger")
    with pytest.raises(NotGood, match="does not verify") as refused:
        made.rebuild(made.pack(), trusted=stranger.keyring)
    assert "not among the keys" in str(refused.value.facts) or "unknown" in str(refused.value.facts).lower()


@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [
        ("../../outside", tarfile.REGTYPE, "leads out"),
        ("small-1/hard", tarfile.LNKTYPE, "neither a plain file"),
        ("small-1/device", tarfile.CHRTYPE, "neither a plain file"),
    ],
)
def test_a_signed_tarball_that_would_do_harm_is_refused(made, name, kind, says) -> None:
    tarball = made.pack(signed=False)
    with tarfile.open(tarball) as archive:
        members = [(one, archive.extractfile(one).read() if one.isreg() else b"") for one in archive]
    with tarfile.open(tarball, "w:xz", preset=0) as archive:
        for member, content in members:
            archive.addfile(member, io.BytesIO(content))
        evil = tarfile.TarInfo(name)
        evil.type, evil.linkname = kind, "small-1/config.xml"
        archive.addfile(evil)
    with pytest.raises(NotGood, match=says):
        made.rebuild(made.sign(tarball))
    assert made.nothing_left()
    assert not (made.folder / "outside").exists()


def test_a_tarball_of_long_ago_says_what_it_lacks(made) -> None:
    tarball = made.folder / "old-source.tar.xz"
    packed(made.tree, tarball)
    with pytest.raises(NotGood, match="a build tree and no manifest"):
        made.rebuild(made.sign(tarball))


def test_parts_must_be_those_that_the_manifest_names(made) -> None:
    wrong = {
        "the build tree .* is not the one": {"tree_sha256": "1" * 64},
        "'inputs.lock' .* is not the one": {"results": {}},
        "names an image or a repository as none": {
            "image": "../evil",
            "description": Description(name="../evil", line=""),
        },
    }
    for says, change in wrong.items():
        with pytest.raises(NotGood, match=says):
            made.rebuild(made.pack(made.manifest(**change)))
    assert made.nothing_left()


def test_a_missing_input_is_named_before_anything_is_built(made) -> None:
    entry = Input(repository="tools", path="pool/main/k/kiwi_1_all.deb", sha512="ab" * 64, size_bytes=10)
    (made.lists / LOCK).write_text(lock_text([entry]))
    with pytest.raises(InputsError, match=r"'kiwi_1_all\.deb' of repository 'tools' is not in the store"):
        made.rebuild(made.pack())
    (made.state.blobs / entry.sha512).write_bytes(b"0123456789")
    with pytest.raises(InputsError, match=r"'kiwi_1_all\.deb' of repository 'tools' is not what was recorded"):
        made.rebuild(made.pack())
    assert made.nothing_left()


def test_an_image_made_with_its_host_s_tools_is_told_by_them(made) -> None:
    entry = Input(repository="debian", path="dists/trixie/InRelease", sha512="ab" * 64, size_bytes=10)
    (made.lists / LOCK).write_text(lock_text([entry]))
    with pytest.raises(NotGood, match="with the tools of the host that built it") as told:
        made.rebuild(made.pack())
    assert ("kiwi", "1") in told.value.facts
    assert made.nothing_left()


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ({"mirrors": {"nonesuch": "http://a.example"}}, "no repository 'nonesuch'"),
        ({"mirrors": {"debian": "file:///etc"}}, "no address of a mirror"),
        ({"inputs": "/nonexistent/folder"}, "no folder"),
    ],
)
def test_what_was_named_and_is_not_there_is_told(made, names, says) -> None:
    with pytest.raises(InputFault, match=says):
        made.rebuild(made.pack(), **names)


def test_a_file_is_no_place_for_a_new_image(made, tmp_path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    with pytest.raises(InputFault, match="is a file, and the new image needs a folder"):
        made.rebuild(made.pack(), out=taken)
    assert taken.read_text() == "mine"
    assert not list(made.state.rebuilds.glob("*")), "told before anything was done"


def test_what_a_killed_rebuild_left_is_removed(made) -> None:
    left = made.state.rebuilds / "factory-box-1-1"
    left.mkdir(parents=True)
    with pytest.raises(FactoryError):
        made.rebuild(made.pack())
    assert made.nothing_left()


def test_a_manifest_reads_back_and_knows_no_path_of_this_host(made, tmp_path) -> None:
    text = made.manifest().text()
    (tmp_path / "manifest.json").write_text(text)
    assert read_manifest(tmp_path / "manifest.json") == made.manifest()
    assert str(made.folder) not in text
    first = sha256_file(made.pack(signed=False))
    os.utime(made.tree / "config.xml", (1, 1))
    assert sha256_file(made.pack(signed=False)) == first


# -- what differs


def listing(*lines: dict[str, object]) -> bytes:
    common = {"kind": "file", "mode": "0644", "uid": 0, "gid": 0, "package": "generated", "mtime": 1, "size": 1}
    return "\n".join(json.dumps(one) for one in ({}, *({**common, **line} for line in lines))).encode()


def compared(made: Made, old: bytes, new: bytes, *, packages: tuple[str, str] = ("1", "1"), contents=lambda _: None):
    def listed(files: bytes, version: str) -> dict[str, bytes]:
        body = {"packages": [{"name": "hello", "arch": "all", "version": version}]}
        return {FILES: files, PACKAGES: json.dumps(body).encode(), LOCK: lock_text([]).encode()}

    recorded = made.manifest(results={"small.x86_64.qcow2": "old"})
    now = made.manifest(results={"small.x86_64.qcow2": "new"}, layers={**recorded.layers, "file system": "d"})
    found = differences(recorded, now, old=listed(old, packages[0]), new=listed(new, packages[1]), contents=contents)
    return {(one.what, one.name): one.classes for one in found if one.what != "layer"}


@pytest.mark.parametrize(
    ("old", "new", "classes"),
    [
        ({"mtime": 1}, {"mtime": 2}, ("time",)),
        ({"mode": "0644"}, {"mode": "0600"}, ("mode",)),
        ({"uid": 0}, {"uid": 7}, ("owner",)),
        ({"sha256": "a"}, {"sha256": "b"}, ("content",)),
        ({"sha256": "a", "mtime": 1}, {"sha256": "b", "mtime": 2}, ("content", "time")),
        ({"kind": "file"}, {"kind": "dir"}, ("kind",)),
        ({"kind": "link", "target": "a"}, {"kind": "link", "target": "b"}, ("content",)),
    ],
)
def test_a_difference_of_a_file_has_its_class(made, old, new, classes) -> None:
    found = compared(made, listing({"path": "/x", **old}), listing({"path": "/x", **new}))
    assert found == {("file", "/x"): classes}


def test_files_and_packages_come_and_go_and_change_version(made) -> None:
    old = listing({"path": "/gone"}, {"path": "/usr/bin/hello", "package": "hello", "sha256": "a"})
    new = listing({"path": "/new"}, {"path": "/usr/bin/hello", "package": "hello", "sha256": "b"})
    assert compared(made, old, new, packages=("1", "2")) == {
        ("package", "hello:all"): ("version",),
        ("file", "/gone"): ("missing",),
        ("file", "/new"): ("added",),
        ("file", "/usr/bin/hello"): ("version",),
    }


@pytest.mark.parametrize(
    ("path", "old", "new", "kind"),
    [
        ("/etc/ssh/ssh_host_ed25519_key", b"a", b"b", "key"),
        ("/x", b"a\nb\n", b"b\na\n", "order"),
        ("/x", b"made 2026-11-21 02:03:04 UTC", b"made 2026-11-22 12:13:14 UTC", "time"),
        ("/x", b"Sat Nov 21 02:03:04 UTC 2026", b"Sun Nov 22 02:03:05 UTC 2026", "time"),
        ("/x", b"SOURCE_DATE_EPOCH=1700000000", b"SOURCE_DATE_EPOCH=1700000001", "time"),
        ("/x", b"hello 1.2.3-4", b"hello 1.2.4-1", "version"),
        ("/x", b"-----BEGIN CERTIFICATE-----\nA", b"-----BEGIN CERTIFICATE-----\nB", "key"),
        ("/x", b"one", b"two", "content"),
    ],
)
def test_a_difference_of_content_is_told_apart(path, old, new, kind) -> None:
    assert content_class(path, (old, new)) == kind


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({}, ["qcow2"]),
        ({"file system": "x"}, ["file system"]),
        ({"partition table": "x", "boot code": "y"}, ["partition table", "boot code"]),
    ],
)
def test_a_difference_below_the_files_names_its_layer(made, change, names) -> None:
    lists = {FILES: listing(), PACKAGES: PACKAGES_TEXT.encode(), LOCK: lock_text([]).encode()}
    recorded = made.manifest(results={"small.x86_64.qcow2": "old"})
    now = made.manifest(results={"small.x86_64.qcow2": "new"}, layers={**recorded.layers, **change})
    assert [one.name for one in differences(recorded, now, old=lists, new=lists)] == names


def test_the_same_image_by_another_tool_names_the_tool_only(made) -> None:
    lists = {FILES: listing(), PACKAGES: PACKAGES_TEXT.encode(), LOCK: lock_text([]).encode()}
    assert differences(made.manifest(), made.manifest(tools={"kiwi": "2"}), old=lists, new=lists) == (
        Difference(what="tool", name="kiwi", classes=("version",), recorded="1", found="2"),
    )


def test_a_further_result_that_differs_is_told(made) -> None:
    lists = {FILES: listing(), PACKAGES: PACKAGES_TEXT.encode(), LOCK: lock_text([]).encode()}
    results = made.manifest().results
    found = differences(
        made.manifest(results={**results, "sbom.json": "1"}),
        made.manifest(results={**results, "sbom.json": "2"}),
        old=lists,
        new=lists,
    )
    assert [(one.what, one.name, one.classes) for one in found] == [("result", "sbom.json", ("content",))]


def test_holes_and_zeros_are_the_same_layer(tmp_path) -> None:
    partition = RootPartition(number=1, offset_bytes=1 << 20, size_bytes=4 << 20)
    found = []
    for name, fill in (("sparse", False), ("full", True)):
        disk = tmp_path / name
        disk.write_bytes(bytes(5 << 20) if fill else b"")
        with disk.open("r+b") as file:
            file.truncate(5 << 20)
            file.seek((2 << 20) + 70_000)
            file.write(b"content")
        found.append(layers(disk, partition))
    assert found[0] == found[1]
    with (tmp_path / "full").open("r+b") as file:
        file.seek(3 << 20)
        file.write(b"x")
    changed = layers(tmp_path / "full", partition)
    assert [name for name in changed if changed[name] != found[0][name]] == ["file system"]
