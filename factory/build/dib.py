# SPDX-License-Identifier: Apache-2.0
"""diskimage-builder, run in a box: a self-contained build tree in, a raw disk out.

It makes partitions by kpartx and is root by sudo; both are stand-ins in the box, so no device-mapper is needed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from factory.build.attended import INPUTS_PORT, attended
from factory.build.box import DESCRIPTION, TARGET, Box
from factory.build.failure import clean, explain
from factory.build.identity import Identity
from factory.errors import BuildError, CommandFailed
from factory.inputs.answers import Inputs
from factory.model import Recipe, Repository
from factory.system.files import free_bytes

DIB_TARGET = TARGET / "dib"
_DISK = "disk"
_STEP = re.compile(r"dib-run-parts Running \S*/(\S+/\S+)")
_PACKAGE = re.compile(r"(?:> )?((?:Get:\d+|Unpacking|Setting up|Preparing to unpack) .*)")


def sources(repositories: tuple[Repository, ...]) -> str:
    """The suites, each read from the inputs server, as dib's ``DIB_APT_SOURCES_CONF`` names them.

    Signatures are verified by the server, the only peer there is, so the box needs no keys.
    """
    return "".join(
        f"{repository.alias}-{suite}:deb [trusted=yes] http://127.0.0.1:{INPUTS_PORT}/{repository.alias} {suite} "
        f"{' '.join(repository.components)}\n"
        for repository in repositories
        for suite in repository.suites
    )


def block_device(identity: Identity) -> str:
    """The disk's layout, as dib's ``DIB_BLOCK_DEVICE_CONFIG`` has it: one partition, by the UUID it is to have."""
    return f"""\
- local_loop:
    name: image0
- partitioning:
    base: image0
    label: mbr
    partitions:
      - name: root
        flags: [boot, primary]
        size: 100%
        mkfs:
          name: mkfs_root
          label: ROOT
          uuid: {identity.root_uuid}
          mount:
            mount_point: /
"""


def command(recipe: Recipe) -> list[str]:
    """The command line: the image's own element says which others it needs, so not even dib's "base" is added."""
    size = ["--image-size", str(recipe.description.disk.min_gib), "--mkfs-options", "-i 16384", "--root-label", "ROOT"]
    place = ["--image-cache", str(TARGET / "cache"), "--no-tmpfs", "-o", str(DIB_TARGET / _DISK)]
    return ["/usr/bin/disk-image-create", "-n", "-t", "raw", *size, *place, recipe.description.name]


def environment(recipe: Recipe, identity: Identity) -> dict[str, str]:
    """What dib and its elements read from the environment."""
    return {
        "ARCH": "amd64",
        "DIB_APT_SOURCES_CONF": sources(recipe.repositories),
        "DIB_BLOCK_DEVICE_CONFIG": block_device(identity),
        "DIB_LOCKFILES": str(TARGET / "locks"),
        "DIB_NO_TIMESTAMP": "1",
        "ELEMENTS_PATH": str(DESCRIPTION / "elements"),
        "HOME": str(TARGET / "home"),
        "PYTHONHASHSEED": "0",
        "SOURCE_DATE_EPOCH": str(identity.epoch),
        "TMP_DIR": str(TARGET / "tmp"),
        "USER": "root",
    }


def dib_build(
    recipe: Recipe, box: Box, *, identity: Identity, recorder: Inputs, log: Path, say: Callable[[str], None]
) -> Path:
    """Build the tree; returns the raw disk's path in the box.

    Raises:
        BuildError: names the package, command or space at fault; the log stays.
    """
    box.run(["mkdir", "-p", TARGET / "tmp", TARGET / "home", DIB_TARGET])
    try:
        attended(
            command(recipe),
            box,
            environment(recipe, identity),
            name="diskimage-builder",
            doing=doing,
            recorder=recorder,
            log=log,
            say=say,
        )
    except CommandFailed as failed:
        free = free_bytes(box.seen(TARGET))
        raise explain(recipe.description.name, log, failed=failed, faults=recorder.faults, free_bytes=free) from None
    made = DIB_TARGET / f"{_DISK}.raw"
    if not box.seen(made).is_file():
        raise BuildError("diskimage-builder made no raw disk", facts=(("log", str(log)),))
    return made


def doing(log_end: str) -> str:
    """What diskimage-builder does now, from the end of its log."""
    steps, packages = _STEP.findall(log_end), _PACKAGE.findall(log_end)
    if packages and log_end.rfind(packages[-1]) > (log_end.rfind(steps[-1]) if steps else -1):
        return clean(packages[-1].removesuffix(" ..."))
    return clean(steps[-1]) if steps else "starting"
