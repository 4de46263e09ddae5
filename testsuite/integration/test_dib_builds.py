# SPDX-License-Identifier: Apache-2.0
"""diskimage-builder in a build box: a disk without device-mapper, and failures by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from factory.build import filesystem
from factory.build.box import Box, box
from factory.build.dib import DIB_TARGET, dib_build
from factory.build.disk import SECTOR_BYTES, read_head, root_partition
from factory.build.identity import identity
from factory.build.leftovers import own_mark
from factory.build.tools import LISTS, ToolsTree, read_list, recorded_tree
from factory.describe.host_apt import host_keyring, host_repositories
from factory.errors import BuildError
from factory.inputs.recorder import Origin, Recorder
from factory.inputs.upstream import Upstream
from factory.model import Description, Disk, Recipe, RegionClient
from factory.system.clock import now
from factory.system.namespaces import network_namespace
from testsuite.integration.test_box import eventually_nothing

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_mirror]

SYSTEM = """#!/bin/bash
set -eu
sudo mkdir -p "$TARGET_ROOT"/{dev,etc,proc,root,sys,tmp,usr/lib,var/log}
echo hello | sudo tee "$TARGET_ROOT/etc/greeting" >/dev/null
sudo touch "$TARGET_ROOT/etc/resolv.conf"
"""


@pytest.fixture(scope="module")
def dib_tools(tools: ToolsTree, tmp_path_factory: pytest.TempPathFactory) -> ToolsTree:
    """The tools of this builder; of their packages most are in the store of the other's."""
    keyring = host_keyring()
    assert keyring is not None
    return recorded_tree(
        Origin(mirror=host_repositories()["debian"].url, keyring=keyring),
        (),
        folder=tmp_path_factory.mktemp("dib-tools"),
        blobs=tools.path.parents[1] / "blobs",
        upstream=Upstream(),
        now=now(),
        say=lambda _: None,
        wanted=read_list(LISTS["diskimage-builder"]),
    )


def tiny(folder: Path, hook: str = "") -> Recipe:
    """A recipe of one element that needs no package, and perhaps a hook of it."""
    element = folder / "tree/elements/tiny"
    (element / "root.d").mkdir(parents=True)
    (element / "element-deps").write_text("block-device-mbr\n")
    (element / "element-provides").write_text("operating-system\n")
    for name, text in (("root.d/10-tiny", SYSTEM), ("cleanup.d/70-tiny", hook)):
        if text:
            (element / name).parent.mkdir(exist_ok=True)
            (element / name).write_text(text)
            (element / name).chmod(0o755)
    return Recipe(
        description=Description(name="tiny", line="Tiny", builder="diskimage-builder", disk=Disk(min_gib=1)),
        tree=folder / "tree",
        tree_sha256="",
        digest="",
        commit="",
        dirty=True,
        repositories=(),
        mirrors={},
        keyrings={},
        regions=(),
        region_client=RegionClient(),
        ntp_servers=(),
        resolved_at=now(),
    )


@contextmanager
def a_box(root: ToolsTree, recipe: Recipe, folder: Path) -> Iterator[Box]:
    with (
        network_namespace() as network,
        box(
            root=root.path,
            description=recipe.tree,
            folder=folder,
            network=network,
            memory_bytes=512 << 20,
            log=folder / "box.log",
        ) as place,
    ):
        yield place


def made(recipe: Recipe, place: Box, folder: Path) -> Path:
    recorder = Recorder(origins={}, blobs=folder / "blobs", now=now())
    marks = identity("tiny", 1_700_000_000)
    return dib_build(recipe, place, identity=marks, recorder=recorder, log=folder / "log", say=lambda _: None)


def test_a_disk_is_made_without_device_mapper_and_nothing_is_left(tmp_path: Path, dib_tools: ToolsTree) -> None:
    recipe, marks = tiny(tmp_path), identity("tiny", 1_700_000_000)
    with a_box(dib_tools, recipe, tmp_path) as place:
        disk = made(recipe, place, tmp_path)
        assert disk.parent == DIB_TARGET
        assert place.seen(disk).stat().st_size == 1 << 30
        partition = root_partition(read_head(place.seen(disk), SECTOR_BYTES))
        assert (partition.number, partition.offset_bytes) == (1, 1 << 20)
        device = filesystem.attach(place, disk, partition)
        found = filesystem.read_format(place, device)
        filesystem.expect_identity(found, marks)
        assert found.label == "ROOT"
        assert found.inodes < (1 << 30) // 16384, "as many inodes as dib makes by itself take a sixteenth of the disk"
        said = place.run(["debugfs", "-R", "cat /etc/greeting", device]).stdout
        assert said == "hello\n"
        assert not place.run(["ls", "/dev/mapper"]).stdout
    eventually_nothing(tmp_path, own_mark())


def test_a_hook_that_fails_is_named_with_what_it_said(tmp_path: Path, dib_tools: ToolsTree) -> None:
    recipe = tiny(tmp_path, "#!/bin/bash\necho 'no such colour' >&2\nexit 3\n")
    with a_box(dib_tools, recipe, tmp_path) as place, pytest.raises(BuildError) as failed:
        made(recipe, place, tmp_path)
    assert failed.value.message == "the build of 'tiny' failed: the hook 'cleanup.d/70-tiny' failed"
    assert ("said", "no such colour") in failed.value.facts
    eventually_nothing(tmp_path, own_mark())
