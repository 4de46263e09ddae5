# SPDX-License-Identifier: Apache-2.0
"""kiwi, run in a box: a self-contained build tree in, a raw disk out.

Where the description can be halved (:mod:`factory.build.halves`), kiwi runs twice on one root tree: for the packages,
which an earlier build may have installed (:mod:`factory.build.kept`), and for everything else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from factory.build.attended import INPUTS_PORT, attended
from factory.build.box import DESCRIPTION, PLACE, TARGET, Box
from factory.build.failure import clean, explain
from factory.build.halves import CONFIG
from factory.build.identity import Identity
from factory.errors import BuildError, CommandFailed
from factory.inputs.answers import Inputs
from factory.model import Recipe, Repository
from factory.system.files import free_bytes

KIWI_TARGET = TARGET / "kiwi"
ROOT_TREE = KIWI_TARGET / "build" / "image-root"
"""Where kiwi has the root tree of an image while it builds it."""
_PACKAGES, _AFTERWARDS = TARGET / "packages", TARGET / "afterwards"
# the tools tree's own kiwi with its stand-in for reading, and an empty cache
_GENERAL = (
    *(str(PLACE / "bin" / "kiwi-ng"), "--debug", "--config", str(PLACE / "etc" / "kiwi.yml")),
    *("--shared-cache-dir", str(TARGET / "cache"), "--temp-dir", str(TARGET / "tmp")),
)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Kiwi:
    """kiwi in a box, for one image."""

    recipe: Recipe
    box: Box
    identity: Identity
    inputs: Inputs
    log: Path
    say: Callable[[str], None]

    def install_packages(self, description: Mapping[str, str]) -> None:
        """Make the root tree from a description that has nothing but packages.

        Raises:
            BuildError: names the package, command or space at fault; the log stays.
        """
        self.box.run(["mkdir", "-p", _PACKAGES])
        for name, text in description.items():
            self.box.seen(_PACKAGES / name).write_text(text)
        self._kiwi(prepare_command(self.recipe), environment(self.identity))
        # what kiwi keeps there for itself, and makes anew; and files that the store has
        own = ("image", ".kconfig", ".profile")
        self.box.run(["rm", "-rf", *(ROOT_TREE / name for name in own)])
        self.box.run(["find", ROOT_TREE, "-maxdepth", "1", "-name", "kiwi_apt.config*", "-delete"])
        self.box.run(["find", ROOT_TREE / "var" / "cache" / "apt", "-type", "f", "-delete"])

    def make_disk(self, afterwards: str | None) -> Path:
        """Make the raw disk; returns its path in the box.

        Args:
            afterwards: the ``config.xml`` of a description whose packages are installed; None to build the whole.

        Raises:
            BuildError: names the package, command or space at fault; the log stays.
        """
        description = DESCRIPTION
        if afterwards is not None:
            description = _AFTERWARDS
            self.box.run(["cp", "-a", DESCRIPTION, description])
            self.box.run(["rm", "-f", description / "post_bootstrap.sh", description / CONFIG])
            self.box.seen(description / CONFIG).write_text(afterwards)
        marks = {
            "FACTORY_ROOT_UUID": self.identity.root_uuid,
            "FACTORY_DISK_ID": f"0x{self.identity.disk_id:08x}",
        }
        argv = build_command(self.recipe, description, on_a_root=afterwards is not None)
        self._kiwi(argv, {**environment(self.identity), **marks})
        disks = [path.name for path in self.box.seen(KIWI_TARGET).glob("*.raw")]
        if len(disks) != 1:
            raise BuildError(
                f"kiwi made {len(disks)} raw disks, not one",
                facts=(("log", str(self.log)),),
                hint='config.xml: image="oem"',
            )
        return KIWI_TARGET / disks[0]

    def _kiwi(self, argv: list[str], env: Mapping[str, str]) -> None:
        self.box.run(["mkdir", "-p", TARGET / "tmp", KIWI_TARGET])
        try:
            attended(argv, self.box, env, name="kiwi", doing=doing, recorder=self.inputs, log=self.log, say=self.say)
        except CommandFailed as failed:
            image = self.recipe.description.name
            free = free_bytes(self.box.seen(TARGET))
            raise explain(image, self.log, failed=failed, faults=self.inputs.faults, free_bytes=free) from None


def environment(identity: Identity) -> dict[str, str]:
    """What kiwi, and what it runs in the root tree, always see."""
    return {"SOURCE_DATE_EPOCH": str(identity.epoch), "PYTHONHASHSEED": "0"}


def prepare_command(recipe: Recipe) -> list[str]:
    """The command line that installs the packages of a first half."""
    verb = ["system", "prepare", "--description", str(_PACKAGES), "--root", str(ROOT_TREE)]
    return [*_GENERAL, *verb, *repository_options(recipe.repositories)]


def build_command(recipe: Recipe, description: Path, *, on_a_root: bool) -> list[str]:
    """The command line that makes a raw disk: of a whole description, or on a root tree that is there."""
    verb = ["system", "build", "--description", str(description), "--target-dir", str(KIWI_TARGET)]
    verb += ["--allow-existing-root"] if on_a_root else []
    verb += ["--ignore-repos-used-for-build", "--set-type-attr", "format="]
    return [*_GENERAL, *verb, *repository_options(recipe.repositories)]


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
