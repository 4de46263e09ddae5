# SPDX-License-Identifier: Apache-2.0
"""Real builds: what the shared night's image is made of, builds that fail, builds that are killed."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import unquote

import pytest

from factory.build import build
from factory.build.leftovers import clean_leftovers
from factory.build.tools import ToolsTree
from factory.describe.host_apt import host_repositories
from factory.errors import BuildError, FactoryError, InputsError
from factory.gc import Limits, look, plan_gc
from factory.inputs.index import parse_release
from factory.inputs.lock import TOOL_ALIASES, read_lock
from factory.inputs.signature import signed_text
from factory.model import Artifact, Description, Recipe, RegionClient, Repository
from factory.system.clock import now
from factory.system.files import digests, expect_digest, tree_digest
from factory.system.state import Run, State
from testsuite.integration.test_box import eventually_nothing

CONFIG = """<?xml version="1.0" encoding="utf-8"?>
<image schemaversion="8.3" name="small">
  <description type="system">
    <author>A</author><contact>a@images.example</contact><specification>S</specification>
  </description>
  <preferences>
    <version>1.0.0</version>
    <packagemanager>apt</packagemanager>
    <type image="oem" filesystem="ext4" firmware="bios" initrd_system="dracut"><size unit="M">1024</size>
      <oemconfig><oem-resize>false</oem-resize></oemconfig></type>
  </preferences>
  <users><user name="root" password="!" pwdformat="encrypted" home="/root" shell="/bin/bash"/></users>
  <packages type="image"><package name="{image}"/></packages>
  <packages type="bootstrap"><package name="base-files"/><package name="{bootstrap}"/></packages>
</image>
"""
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


@dataclass(frozen=True)
class Small:
    """A recipe that is just enough for kiwi to start, and where it is built."""

    state: State
    run: Run
    recipe: Recipe

    def build(self, recipe: Recipe | None = None) -> Artifact:
        return build(recipe or self.recipe, run=self.run, state=self.state, say=lambda _: None, now=now())


def small(
    folder: Path, *, image: str = "passwd", bootstrap: str = "bash", script: str = "", when: datetime | None = None
) -> Small:
    state = State(path=folder / "state").prepare()
    run = state.new_run("small", when or now())
    run.tree.mkdir()
    (run.tree / "config.xml").write_text(CONFIG.format(image=image, bootstrap=bootstrap))
    if script:
        (run.tree / "config.sh").write_text(f"#!/bin/bash\n{script}\n")
        (run.tree / "config.sh").chmod(0o755)
    debian = Repository(alias="debian", url="http://debian.example/debian", suites=("trixie",))
    recipe = Recipe(
        description=Description(name="small", line="Small"),
        tree=run.tree,
        tree_sha256=tree_digest(run.tree),
        digest="0" * 64,
        commit="",
        dirty=True,
        repositories=(debian,),
        mirrors=dict.fromkeys(("debian", "tools"), host_repositories()["debian"].url),
        keyrings=dict.fromkeys(("debian", "tools"), KEYRING),
        regions=(),
        region_client=RegionClient(),
        ntp_servers=(),
        resolved_at=now(),
    )
    return Small(state=state, run=run, recipe=recipe)


# -- builds that fail


@pytest.fixture
def a_small(tmp_path: Path, tools: ToolsTree):
    """Builds with the tools and the store of the shared state, so that nothing is fetched or made twice."""

    def make(**what: str) -> Small:
        made = small(tmp_path, **what)
        made.state.tools.symlink_to(tools.path.parent)
        made.state.blobs.symlink_to(tools.path.parents[1] / "blobs")
        return made

    return make


@pytest.mark.needs_root
@pytest.mark.needs_mirror
@pytest.mark.parametrize(
    ("what", "says"),
    [
        ({"bootstrap": "no-such-package-here"}, "no repository has the package 'no-such-package-here'"),
        ({"bootstrap": '"/></packages><nonsense/><packages type="image"><package name="x'}, "kiwi's schema"),
    ],
    ids=["package", "schema"],
)
def test_a_failed_build_names_what_is_at_fault_and_keeps_its_log(a_small, what, says) -> None:
    made = a_small(**what)
    with pytest.raises(BuildError) as failed:
        made.build()
    assert failed.value.message.startswith("the build of 'small' failed: ")
    assert says in failed.value.message
    assert Path(dict(failed.value.facts)["log"]).read_text()
    assert failed.value.hint
    assert not list(made.run.path.glob("*.qcow2"))
    assert not list(made.run.path.glob("factory-box-*"))


def on_disk(made: Small) -> Small:
    """The same, but the host is asked for more memory than it has, so that files go to the run's folder."""
    description = replace(made.recipe.description, disk=replace(made.recipe.description.disk, min_gib=1 << 20))
    return replace(made, recipe=replace(made.recipe, description=description))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[None]:
    """A file system of 120 MiB where the state goes."""
    (tmp_path / "state").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=120m", "tmpfs", str(tmp_path / "state")], check=True)
    yield
    subprocess.run(["umount", str(tmp_path / "state")], check=True)


@pytest.mark.needs_root
@pytest.mark.needs_mirror
@pytest.mark.usefixtures("small_disk")
def test_want_of_space_is_named(a_small) -> None:
    with pytest.raises(BuildError, match="there was no space left") as failed:
        on_disk(a_small()).build()
    assert "MiB" in dict(failed.value.facts)["free"]


@pytest.mark.slow
@pytest.mark.needs_root
@pytest.mark.needs_mirror
def test_a_failing_script_is_named_with_its_line(a_small) -> None:
    with pytest.raises(BuildError, match=r"the description's 'config\.sh' failed") as failed:
        a_small(script="set -e\nno-such-command --now").build()
    assert any("line 3: no-such-command" in value for key, value in failed.value.facts if key == "said")


@pytest.mark.needs_root
@pytest.mark.parametrize(
    ("mirror", "keyring", "says"),
    [
        ("http://127.0.0.1:9", KEYRING, "the mirror '127.0.0.1:9' does not answer"),
        (None, Path("/usr/share/keyrings/none.gpg"), "keyring of repository 'debian' is missing"),
    ],
)
def test_inputs_that_cannot_be_had_end_the_build_before_it_starts(a_small, mirror, keyring, says) -> None:
    made = a_small()
    mirrors = {"debian": mirror} if mirror else made.recipe.mirrors
    with pytest.raises(InputsError) as failed:
        made.build(replace(made.recipe, mirrors=mirrors, keyrings={"debian": keyring}))
    assert says in failed.value.message


@pytest.mark.needs_root
def test_a_repository_without_a_mirror_is_named(a_small) -> None:
    made = a_small()
    with pytest.raises(FactoryError, match="repository 'debian' has no mirror"):
        made.build(replace(made.recipe, mirrors={}))


# -- builds that are killed

BUILD = """
import sys
from datetime import datetime, timedelta
from pathlib import Path
from factory.model import Recipe
from factory.build import build
from factory.system.state import Run, State

run = Run(path=Path(sys.argv[1]))
recipe = run.read("describe", Recipe)
build(recipe, run=run, state=State(path=run.path.parents[1]), say=lambda text: print(text, flush=True),
      now=datetime.fromisoformat(sys.argv[2]))
"""


def killed_after(made: Small, *, words: str, after_s: float) -> int:
    """Start a build, kill it ``after_s`` after its log shows ``words``; returns its process id."""
    made.run.write("describe", made.recipe)
    argv = [sys.executable, "-c", BUILD, str(made.run.path), now().isoformat()]
    started = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    log, deadline = made.run.log("build"), time.monotonic() + 300
    while not (log.is_file() and words in log.read_text(errors="replace")):
        assert started.poll() is None, log.read_text(errors="replace")[-2000:]
        assert time.monotonic() < deadline, f"{words!r} never came"
        time.sleep(0.05)
    time.sleep(after_s)
    started.send_signal(signal.SIGKILL)
    started.wait()
    return started.pid


@pytest.mark.needs_root
@pytest.mark.needs_mirror
@pytest.mark.parametrize("in_memory", [True, False], ids=["memory", "disk"])
@pytest.mark.parametrize(
    ("words", "after_s"), [("Preparing new root system", 0.2), ("Installing bootstrap packages", 2.0)]
)
def test_a_killed_build_leaves_nothing(a_small, tmp_path, words, after_s, in_memory) -> None:
    made = a_small()
    made = made if in_memory else on_disk(made)
    pid = killed_after(made, words=words, after_s=after_s)
    time.sleep(0.3)
    clean_leftovers([made.run.path], lambda _: None)
    eventually_nothing(tmp_path, f"factory-box-{pid}-")
    assert not list(made.run.path.glob("factory-box-*"))
    assert not list(made.run.path.glob("*.qcow2"))
    # what was being read lies in the store, by names that no build takes for files of a mirror, until it is collected
    halves = set(made.state.blobs.glob(".incoming-*"))
    later = now() + timedelta(days=2)
    assert halves <= {one.path for one in plan_gc(look(made.state), now=later, limits=Limits())}


@pytest.mark.slow
@pytest.mark.needs_image
@pytest.mark.parametrize(
    ("words", "after_s"),
    [("Creating raw disk image", 0.1), ("Syncing system to image", 0.5), ("Installing grub2 on disk", 0.5)],
)
def test_a_build_killed_while_it_writes_the_disk_leaves_nothing(artifact: Artifact, tmp_path, words, after_s) -> None:
    state = State(path=tmp_path / "state").prepare()
    for name in ("blobs", "tools"):
        (state.path / name).symlink_to(artifact.path.parents[2] / name)
    run = state.new_run("debian13", now())
    made = Small(state=state, run=run, recipe=artifact.recipe)
    pid = killed_after(made, words=words, after_s=after_s)
    time.sleep(1)
    clean_leftovers([run.path], lambda _: None)
    eventually_nothing(tmp_path, f"factory-box-{pid}-")


# -- the image of the shared night


@pytest.mark.needs_image
def test_the_artifact_is_the_file(artifact: Artifact) -> None:
    expect_digest(artifact.path, artifact.sha256)
    found = digests(artifact.path)
    assert (found.sha512, found.size_bytes) == (artifact.sha512, artifact.size_bytes)
    answer = subprocess.run(
        ["qemu-img", "info", "--output=json", str(artifact.path)], stdout=subprocess.PIPE, check=True
    )
    told = json.loads(answer.stdout)
    assert told["virtual-size"] == artifact.virtual_size_bytes == artifact.recipe.description.disk.min_gib << 30
    assert told["format-specific"]["data"]["compression-type"] == "zstd"
    assert "backing-filename" not in told
    subprocess.run(["qemu-img", "check", str(artifact.path)], stdout=subprocess.DEVNULL, check=True)


@pytest.fixture(scope="module")
def filesystem(artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The root file system of the image, as a file."""
    folder = tmp_path_factory.mktemp("fs")
    image = {"driver": "qcow2", "file": {"driver": "file", "filename": str(artifact.path)}}
    part = "json:" + json.dumps({"driver": "raw", "offset": 1 << 20, "file": image})
    subprocess.run(["qemu-img", "convert", "-O", "raw", part, str(folder / "root")], check=True)
    yield folder / "root"
    (folder / "root").unlink()


def debugfs(filesystem: Path, request: str) -> str:
    argv = ["debugfs", "-R", request, str(filesystem)]
    return subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True).stdout


@pytest.mark.needs_image
def test_the_file_system_is_sound_and_no_newer_than_the_epoch(artifact: Artifact, filesystem: Path) -> None:
    subprocess.run(["e2fsck", "-f", "-n", str(filesystem)], stdout=subprocess.DEVNULL, check=True)
    for name in ("/", "/etc/fstab", "/boot/grub/grub.cfg", "/etc/machine-id", "/usr/bin/dpkg"):
        times = re.findall(r"^ ?(c|a|m|cr)time: 0x([0-9a-f]+)", debugfs(filesystem, f"stat {name}"), re.MULTILINE)
        assert len(times) == 4
        for kind, value in times:
            assert int(value, 16) <= artifact.epoch, (name, kind)


@pytest.mark.needs_image
def test_boot_loader_and_fstab_name_the_file_system_that_is_there(filesystem: Path) -> None:
    told = subprocess.run(["dumpe2fs", "-h", str(filesystem)], capture_output=True, text=True, check=True).stdout
    found = re.search(r"Filesystem UUID: +(\S+)", told)
    assert found is not None
    assert f"UUID={found[1]} / ext4" in debugfs(filesystem, "cat /etc/fstab")
    assert f"root=UUID={found[1]}" in debugfs(filesystem, "cat /boot/grub/grub.cfg")


def own_packages(artifact: Artifact) -> set[str]:
    """The region's packages: they are in the build tree, so no repository and no lock names them."""
    found = {path.name.split("_")[0] for path in artifact.recipe.tree.glob("root/var/cache/image-factory/*.deb")}
    assert found
    return found


@pytest.mark.needs_image
def test_the_lists_tell_what_is_in_the_image(artifact: Artifact, filesystem: Path) -> None:
    schema, *files = map(json.loads, artifact.files_list.read_text().splitlines())
    assert schema == {"schema": "factory/files/1"}
    by_path = {file["path"]: file for file in files}
    assert by_path["/usr/bin/dpkg"]["package"] == "dpkg"
    assert by_path["/etc/machine-id"]["package"] == "generated"
    assert f"Size: {by_path['/usr/bin/dpkg']['size']}\n" in debugfs(filesystem, "stat /usr/bin/dpkg")
    status = debugfs(filesystem, "cat /var/lib/dpkg/status")
    names = {package.name for package in artifact.packages}
    installed = [stanza for stanza in status.split("\n\n") if "\nStatus: install ok installed\n" in stanza]
    assert names == {stanza.splitlines()[0].removeprefix("Package: ") for stanza in installed}
    listed = json.loads(artifact.packages_list.read_text())["packages"]
    assert {package["name"] for package in listed} == names
    unknown = {package.name for package in artifact.packages if not package.origin}
    assert unknown == own_packages(artifact), "every other package came from a repository we know"


@pytest.mark.needs_image
def test_the_lock_names_every_byte_that_went_in(artifact: Artifact) -> None:
    inputs = read_lock(artifact.lock)
    assert hashlib.sha256(artifact.lock.read_bytes()).hexdigest() == artifact.lock_sha256
    blobs = artifact.path.parents[2] / "blobs"
    for entry in inputs:
        if entry.found:
            found = digests(blobs / entry.sha512)
            assert (found.sha512, found.size_bytes) == (entry.sha512, entry.size_bytes)
    debs = {unquote(entry.path).rsplit("/", 1)[-1].split("_")[0] for entry in inputs if entry.path.endswith(".deb")}
    assert {package.name for package in artifact.packages} <= debs | own_packages(artifact)
    assert artifact.recipe.description.budgets.probe_package in debs


@pytest.mark.needs_image
def test_the_epoch_is_the_newest_signed_index(artifact: Artifact) -> None:
    blobs = artifact.path.parents[2] / "blobs"
    dates = []
    for entry in read_lock(artifact.lock):
        if entry.path.endswith("/InRelease") and entry.repository not in TOOL_ALIASES:  # no part of the image
            keyring = artifact.recipe.keyrings[entry.repository]
            text = signed_text(blobs / entry.sha512, keyring=keyring, repository=entry.repository, suite="")
            dates.append(int(parse_release(text).date.timestamp()))
    suites = [suite for repository in artifact.recipe.repositories for suite in repository.suites]
    assert len(dates) == len(suites)
    assert artifact.epoch == max(dates)


@pytest.mark.needs_image
def test_the_source_tarball_is_the_tree(artifact: Artifact, tmp_path) -> None:
    expect_digest(artifact.tarball, artifact.tarball_sha256)
    with tarfile.open(artifact.tarball) as archive:
        archive.extractall(tmp_path, filter="fully_trusted")
    (top,) = tmp_path.iterdir()
    assert top.name == f"{artifact.recipe.description.name}-{artifact.build_id}"
    assert artifact.tarball.name == f"{top.name}-source.tar.xz"
    records = tmp_path / "records"
    (top / "rebuild").rename(records)
    assert (records / "inputs.lock").read_bytes() == artifact.lock.read_bytes()
    assert (records / "files.list").read_bytes() == artifact.files_list.read_bytes()
    manifest = json.loads((records / "manifest.json").read_text())
    assert manifest["results"][artifact.path.name] == artifact.sha256
    assert str(artifact.path.parents[2]) not in (records / "manifest.json").read_text()
    assert tree_digest(top) == artifact.recipe.tree_sha256
    for file in top.rglob("*"):
        if file.is_file():
            assert b"127.0.0.1:3142" not in file.read_bytes(), file


@pytest.mark.slow
@pytest.mark.needs_image
def test_a_second_build_of_the_same_inputs_is_the_same_file(artifact: Artifact, tmp_path) -> None:
    state = State(path=tmp_path / "state").prepare()
    for name in ("blobs", "tools"):
        (state.path / name).symlink_to(artifact.path.parents[2] / name)
    run = state.new_run("debian13", now())
    again = build(artifact.recipe, run=run, state=state, say=lambda _: None, now=now())
    if again.inputs_digest != artifact.inputs_digest:
        pytest.skip("the mirror moved on between the two builds")
    assert again.files_list.read_text() == artifact.files_list.read_text()
    assert again.sha256 == artifact.sha256
