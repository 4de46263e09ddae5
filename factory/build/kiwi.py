# SPDX-License-Identifier: Apache-2.0
"""kiwi, run in a box: a self-contained build tree in, a raw disk out."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

from factory.build.box import DESCRIPTION, PLACE, TARGET, Box
from factory.build.failure import clean, explain
from factory.build.identity import Identity
from factory.errors import BuildError, CommandFailed
from factory.inputs.answers import Inputs
from factory.model import Recipe, Repository
from factory.system.files import free_bytes
from factory.system.run import ended, ending, failure, last_lines

INPUTS_PORT = 3142
KIWI_TARGET = TARGET / "kiwi"
_TIMEOUT_S = 5400.0
_SAY_EVERY_S = 10.0
_LOOK_EVERY_S = 1.0
_STEP = re.compile(r"\[ INFO +\]: [\d:]{8} \| (?!-->)(\S.*)")
_PACKAGE = re.compile(r"\| (?:bootstrap|system|image): ((?:Get:\d+|Unpacking|Setting up|Preparing to unpack) .*)")
_FETCHED = re.compile(r"Get:\d+ \S+ (?:\S+/\S+ \S+|\S+) (\S+)")


def repository_options(repositories: tuple[Repository, ...]) -> list[str]:
    """The ``--add-repo`` options that make kiwi read each suite from the inputs server.

    Fields: source, type, alias, priority, imageinclude, package_gpgcheck, {keys}, components, distribution,
    repo_gpgcheck. Signatures are verified by the server, the only peer there is, so the box needs no keys.
    """
    options = []
    for repository in repositories:
        source = f"http://127.0.0.1:{INPUTS_PORT}/{repository.alias}"
        components = " ".join(repository.components)
        for suite in repository.suites:
            alias = re.sub(r"[^a-z0-9]+", "-", f"inputs-{repository.alias}-{suite}".lower())
            options += ["--add-repo", f"{source},apt-deb,{alias},,false,false,,{components},{suite},false"]
    return options


def command(recipe: Recipe) -> list[str]:
    """The command line: the tools tree's own kiwi, an empty cache, no repository but ours, and a raw disk out."""
    general = ["--debug", "--config", str(PLACE / "etc" / "kiwi.yml"), "--shared-cache-dir", str(TARGET / "cache")]
    place = ["--description", str(DESCRIPTION), "--target-dir", str(KIWI_TARGET)]
    build = ["system", "build", *place, "--ignore-repos-used-for-build", "--set-type-attr", "format="]
    return [
        "/usr/bin/kiwi-ng",
        *general,
        "--temp-dir",
        str(TARGET / "tmp"),
        *build,
        *repository_options(recipe.repositories),
    ]


def kiwi_build(
    recipe: Recipe, box: Box, *, identity: Identity, recorder: Inputs, log: Path, say: Callable[[str], None]
) -> Path:
    """Build the tree; returns the raw disk's path in the box.

    Raises:
        BuildError: names the package, command or space at fault; the log stays.
    """
    box.run(["mkdir", "-p", TARGET / "tmp", KIWI_TARGET])
    environment = {
        "SOURCE_DATE_EPOCH": str(identity.epoch),
        "FACTORY_ROOT_UUID": identity.root_uuid,
        "FACTORY_DISK_ID": f"0x{identity.disk_id:08x}",
        "PYTHONHASHSEED": "0",
    }
    try:
        _run(command(recipe), box, environment, recorder=recorder, log=log, say=say)
    except CommandFailed as failed:
        image = recipe.description.name
        free = free_bytes(box.seen(TARGET))
        raise explain(image, log, failed=failed, faults=recorder.faults, free_bytes=free) from None
    disks = [path.name for path in box.seen(KIWI_TARGET).glob("*.raw")]
    if len(disks) != 1:
        raise BuildError(
            f"kiwi made {len(disks)} raw disks, not one", facts=(("log", str(log)),), hint='config.xml: image="oem"'
        )
    return KIWI_TARGET / disks[0]


def _run(
    argv: list[str], box: Box, environment: dict[str, str], *, recorder: Inputs, log: Path, say: Callable[[str], None]
) -> None:
    started = said = time.monotonic()
    with box.running(argv, log=log, env=environment) as process:
        while (status := ended(process, wait_s=_LOOK_EVERY_S)) is None:
            present = time.monotonic()
            if recorder.faults:
                raise failure(argv, "was ended: an input is missing", log=log)
            if present - started > _TIMEOUT_S:
                raise failure(argv, f"did not end within {_TIMEOUT_S:.0f} s", log=log)
            if present - said >= _SAY_EVERY_S:
                said = present
                say(f"kiwi, {present - started:.0f} s: {doing(last_lines(log, size_bytes=1 << 16))}")
    if status:
        raise failure(argv, ending(status, time.monotonic() - started), log=log)


def doing(log_end: str) -> str:
    """What kiwi does now, from the end of its log."""
    steps, packages = _STEP.findall(log_end), _PACKAGE.findall(log_end)
    if packages and log_end.rfind(packages[-1]) > (log_end.rfind(steps[-1]) if steps else -1):
        fetched = _FETCHED.match(packages[-1])
        return clean(f"fetching {fetched[1]}" if fetched else packages[-1].removesuffix(" ..."))
    if steps:
        return clean(steps[-1])
    lines = [line for line in log_end.splitlines() if line.strip()]
    return clean(lines[-1])[:100] if lines else "starting"
