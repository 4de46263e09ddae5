# SPDX-License-Identifier: Apache-2.0
"""Which commit the descriptions are from, and whether somebody changed them since."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from factory.describe.load import DESCRIPTIONS
from factory.errors import CommandFailed
from factory.system.run import run

_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkout:
    """The commit that last touched the descriptions; empty when they are not in git."""

    commit: str = ""
    dirty: bool = False


def checkout(project: Path) -> Checkout:
    """The state of the project's descriptions in git."""
    try:
        if _git(project, "rev-parse", "--is-inside-work-tree").strip() != "true":
            return Checkout()
        changes = _git(project, "status", "--porcelain", "--untracked-files=all", "--", DESCRIPTIONS)
    except CommandFailed:
        return Checkout()
    try:
        commit = _git(project, "log", "-1", "--format=%H", "--", DESCRIPTIONS).strip()
    except CommandFailed:
        commit = ""  # nothing is committed yet
    return Checkout(commit=commit, dirty=bool(changes.strip()) or not commit)


def _git(project: Path, *words: str) -> str:
    # root builds from a user's clone: that is meant; and a clone does not get to name programs that we would run
    options = ["-c", f"safe.directory={project.resolve()}", "-c", "core.fsmonitor=false"]
    argv = ["git", "--no-optional-locks", *options, "-C", str(project), *words]
    return run(argv, timeout_s=_TIMEOUT_S, env={"GIT_CONFIG_NOSYSTEM": "1"}).stdout
