# SPDX-License-Identifier: Apache-2.0
"""Kept root trees: all of a tree comes back, what is not whole is made anew, and the image is the same to the bit."""

from __future__ import annotations

import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import unquote

import pytest

from factory.build import build, kept
from factory.build.box import TARGET, Box, box
from factory.build.tarball import MANIFEST, read_manifest
from factory.build.tools import ToolsTree, replayed_tree
from factory.inputs.lock import TOOL_ALIASES, TOOLS, read_lock
from factory.inputs.recorder import Origin, Recorder
from factory.inputs.replay import Replay
from factory.model import Artifact, Recipe
from factory.system.clock import now
from factory.system.files import tree_digest
from factory.system.namespaces import network_namespace
from factory.system.state import State
from testsuite.conftest import NightRun

MIB = 1 << 20
ROOT = TARGET / "root"
# one of each: what a package's files have, and names that a list by lines would lose
TREE = r"""
import os, sys
root = sys.argv[1]
os.makedirs(root + "/usr/bin")
os.chdir(root)
files = ("usr/bin/su", 0o4755, 0), ("usr/bin/ping", 0o755, 0), ("of\nnobody", 0o640, 65534), (" ", 0, 7)
for name, mode, owner in files:
    with open(name, "w") as file:
        file.write(name * 1000)
    os.chown(name, owner, owner)
    os.chmod(name, mode)
os.setxattr("usr/bin/ping", "security.capability", bytes.fromhex("0100000200200000000000000000000000000000"))
os.link("usr/bin/su", "usr/bin/su-too")
os.symlink("/nowhere", "dangling")
os.mkfifo("fifo")
os.mkdir("sticky")
os.chmod("sticky", 0o1777)
os.chmod(".", 0o755)
for number, (folder, folders, files) in enumerate(sorted(os.walk("."), reverse=True)):
    for name in [*files, *folders, "."]:
        os.utime(os.path.join(folder, name), ns=(1, 987654321012345678 + number), follow_symlinks=False)
"""
LISTED = r"""
import hashlib, os, stat, sys
os.chdir(sys.argv[1])
for folder, folders, files in sorted(os.walk(".")):
    for name in sorted([".", *folders, *files]):
        path = os.path.join(folder, name)
        found = os.lstat(path)
        content = hashlib.sha256(open(path, "rb").read()).hexdigest() if stat.S_ISREG(found.st_mode) else ""
        target = os.readlink(path) if stat.S_ISLNK(found.st_mode) else ""
        names = os.listxattr(path, follow_symlinks=False)
        marks = {one: os.getxattr(path, one, follow_symlinks=False) for one in names}
        links = 0 if stat.S_ISDIR(found.st_mode) else found.st_nlink
        print(repr((path, found.st_mode, found.st_uid, found.st_gid, links, found.st_mtime_ns, content, target, marks)))
"""


@pytest.fixture
def a_box(tmp_path: Path, tools: ToolsTree) -> Iterator[Box]:
    (tmp_path / "description").mkdir()
    with (
        network_namespace() as network,
        box(
            root=tools.path,
            description=tmp_path / "description",
            folder=tmp_path,
            network=network,
            memory_bytes=256 * MIB,
            log=tmp_path / "box.log",
        ) as made,
    ):
        yield made


class Packages:
    """Stands for the builder that installs: makes a tree, and counts how often it was asked to."""

    def __init__(self, place: Box, folder: Path) -> None:
        self.place, self.asked, self.said = place, 0, list[str]()
        self.shelf = kept.Shelf(folder=folder, key="a" * 64, image="small")
        self.inputs = Replay(lock=(), keyrings={}, blobs=folder / "blobs", sources=(), epoch=0)

    def install(self) -> None:
        self.asked += 1
        self.place.run(["python3", "-c", TREE, ROOT])

    def tree(self) -> str:
        """Make the tree, as a build does, and tell all that there is in it."""
        self.place.run(["rm", "-rf", ROOT])
        kept.root_tree(self.shelf, self.place, ROOT, inputs=self.inputs, install=self.install, say=self.said.append)
        return self.place.run(["python3", "-c", LISTED, ROOT]).stdout


@pytest.mark.needs_root
@pytest.mark.needs_mirror
def test_a_kept_tree_comes_back_whole(a_box: Box, tmp_path: Path) -> None:
    packages = Packages(a_box, tmp_path / "roots")
    first = packages.tree()
    assert "security.capability" in first
    assert packages.tree() == first
    assert packages.asked == 1
    assert {path.name for path in packages.shelf.place.iterdir()} == {kept.ARCHIVE, kept.NOTE}
    assert not list(a_box.out.iterdir())


def _short(place: Path) -> None:
    os.truncate(place / kept.ARCHIVE, 100)


def _half_made(place: Path) -> None:
    """As kill -9 between two lines of keeping leaves it."""
    (place / kept.NOTE).unlink()
    place.rename(place.with_name(f".{place.name}.part"))


def _damaged_before_it_was_noted(place: Path) -> None:
    """Whatever the note says of it: tar and zstd have the last word."""
    _short(place)
    note = place / kept.NOTE
    root = kept.read_root(place)
    assert root is not None
    note.write_text(note.read_text().replace(root.sha256, kept.sha256_file(place / kept.ARCHIVE)))


@pytest.mark.needs_root
@pytest.mark.needs_mirror
@pytest.mark.parametrize("spoil", [_short, _half_made, _damaged_before_it_was_noted])
def test_a_tree_that_is_not_whole_is_made_anew(a_box: Box, tmp_path: Path, spoil) -> None:
    packages = Packages(a_box, tmp_path / "roots")
    first = packages.tree()
    spoil(packages.shelf.place)
    assert packages.tree() == first
    assert packages.asked == 2
    assert packages.tree() == first
    assert packages.asked == 2
    assert [path.name for path in packages.shelf.folder.iterdir() if path.name.startswith(".")] == []


@pytest.mark.needs_root
@pytest.mark.needs_mirror
def test_without_a_shelf_nothing_is_kept(a_box: Box, tmp_path: Path) -> None:
    packages = Packages(a_box, tmp_path / "roots")
    packages.shelf = None
    assert packages.tree() == packages.tree()
    assert packages.asked == 2
    assert not list((tmp_path / "roots").glob("a*"))


@pytest.mark.needs_root
@pytest.mark.needs_mirror
def test_a_tree_that_cannot_be_kept_stops_no_build(a_box: Box, tmp_path: Path) -> None:
    packages = Packages(a_box, tmp_path / "roots")
    packages.shelf = replace(packages.shelf, folder=tmp_path / "file")
    (tmp_path / "file").write_text("in the way\n")
    assert "usr/bin/ping" in packages.tree()
    assert packages.said[-1].startswith("the root tree is not kept: ")
    assert not list(a_box.out.iterdir())


# -- the image


class Elsewhere:
    """The shared night's recipe and inputs in a state folder of their own, with a mirror as it was that night."""

    def __init__(self, night: NightRun, folder: Path) -> None:
        self.artifact = night.run.read("build", Artifact)
        self.state = State(path=folder / "state").prepare()
        self.lock = read_lock(self.artifact.lock)
        self.said: list[str] = []
        self.state.tools.symlink_to(night.state.tools)
        for name in ("blobs", "roots"):
            if (night.state.path / name).is_dir():
                source, target = night.state.path / name, self.state.path / name
                shutil.copytree(source, target, symlinks=True, copy_function=os.link)
        self.mirror = folder / "mirror"
        for one in self.lock:
            path = self.mirror / one.repository / unquote(one.path)
            if one.found and not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.symlink_to(self.state.blobs / one.sha512)
        self.tools = replayed_tree(
            Replay(
                lock=(one for one in self.lock if one.repository in TOOL_ALIASES),
                keyrings={TOOLS: self.artifact.recipe.keyrings[TOOLS]},
                blobs=self.state.blobs,
                sources=(),
                epoch=read_manifest(night.run.path / MANIFEST).tools_epoch,
            ),
            self.lock,
            folder=self.state.tools,
            say=lambda _: None,
        )

    def recorder(self, address: str) -> Recorder:
        """Of a new build."""
        recipe = self.artifact.recipe
        origins = {
            one.alias: Origin(mirror=f"{address}/{one.alias}", keyring=recipe.keyrings[one.alias])
            for one in recipe.repositories
        }
        made = Recorder(origins=origins, blobs=self.state.blobs, now=now())
        made.read_indexes(recipe.repositories)
        return made

    def build(self, address: str, *, fresh: bool = False, overlay: str = "") -> Artifact:
        recipe = self.artifact.recipe
        run = self.state.new_run("debian13", now().replace(year=2000 + len(self.said)))
        shutil.copytree(recipe.tree, run.tree, symlinks=True)
        if overlay:
            (run.tree / "root" / "etc" / "motd").write_text(overlay)
        mine: Recipe = replace(
            recipe,
            tree=run.tree,
            tree_sha256=tree_digest(run.tree),
            mirrors={alias: f"{address}/{alias}" for alias in recipe.mirrors},
        )
        return build(mine, run=run, state=self.state, say=self.said.append, now=now(), tools=self.tools, fresh=fresh)

    @property
    def started_from_a_kept_tree(self) -> bool:
        """Whether the last build did."""
        whole = "\n".join(self.said)
        self.said.append("")
        return "starting from kept root tree" in whole.rpartition("building in ")[2]


@pytest.fixture
def elsewhere(night: NightRun, tmp_path: Path) -> Elsewhere:
    return Elsewhere(night, tmp_path)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address(elsewhere: Elsewhere) -> Iterator[str]:
    handler = partial(_Quiet, directory=str(elsewhere.mirror))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def made(artifact: Artifact) -> dict[str, str]:
    """What must be the same of two builds."""
    return {
        "image": artifact.sha256,
        "tarball": artifact.tarball_sha256,
        "bill of materials": artifact.sbom_sha256,
        "lock": artifact.lock_sha256,
    }


@pytest.mark.needs_image
def test_an_image_from_a_kept_tree_is_the_same_to_the_bit(elsewhere: Elsewhere, address: str) -> None:
    if not elsewhere.state.roots.is_dir():  # a night of before trees were kept
        assert made(elsewhere.build(address)) == made(elsewhere.artifact)
        assert not elsewhere.started_from_a_kept_tree
    again = elsewhere.build(address)
    assert elsewhere.started_from_a_kept_tree
    assert made(again) == made(elsewhere.artifact)


@pytest.mark.needs_image
@pytest.mark.slow
def test_a_changed_overlay_is_built_from_the_kept_tree_as_from_nothing(elsewhere: Elsewhere, address: str) -> None:
    elsewhere.build(address)
    elsewhere.said.append("")
    quick = elsewhere.build(address, overlay="changed\n")
    assert elsewhere.started_from_a_kept_tree
    slow = elsewhere.build(address, overlay="changed\n", fresh=True)
    assert not elsewhere.started_from_a_kept_tree
    assert quick.sha256 == slow.sha256 != elsewhere.artifact.sha256
    assert quick.lock_sha256 == slow.lock_sha256


@pytest.mark.needs_image
def test_a_kept_tree_counts_only_while_all_that_it_was_made_of_can_be_had(elsewhere: Elsewhere, address: str) -> None:
    """Neither in the store nor at the mirror: the lock would name what nobody has."""
    inputs = tuple(one for one in elsewhere.lock if one.repository not in TOOL_ALIASES)
    root = kept.Root(image="debian13", sha256="", inputs=inputs)
    assert kept.answered_again(root, elsewhere.recorder(address))
    gone = next(one for one in inputs if "/perl-base_" in one.path)
    (elsewhere.mirror / gone.repository / unquote(gone.path)).unlink()
    assert kept.answered_again(root, elsewhere.recorder(address))  # from the store
    (elsewhere.state.blobs / gone.sha512).unlink()
    recorder = elsewhere.recorder(address)
    assert not kept.answered_again(root, recorder)
    assert recorder.get(gone.repository, gone.path).status == 404


@pytest.mark.needs_image
def test_what_a_kept_tree_was_made_of_is_in_the_lock_again(elsewhere: Elsewhere, address: str) -> None:
    """And where the store lost a file, it is fetched: whoever has the lock finds all of it."""
    inputs = tuple(one for one in elsewhere.lock if one.repository not in TOOL_ALIASES)
    gone = next(one for one in inputs if "/perl-base_" in one.path)
    (elsewhere.mirror / gone.repository / unquote(gone.path)).unlink()
    shutil.move(elsewhere.state.blobs / gone.sha512, elsewhere.mirror / gone.repository / unquote(gone.path))
    recorder = elsewhere.recorder(address)
    assert kept.answered_again(kept.Root(image="debian13", sha256="", inputs=inputs), recorder)
    assert recorder.inputs == tuple(sorted(inputs))
    assert recorder.faults == ()
    assert (elsewhere.state.blobs / gone.sha512).is_file()
