# SPDX-License-Identifier: Apache-2.0
"""The tools tree: the root of a build box, made from locked packages, kept by what it is made of.

``tools.toml`` and its like beside this module name what belongs in it, one list a builder. A tree is made once for the
same packages, appears by one rename, and is never changed: boxes see it read-only. What it is made of is listed in
every lock of an image that it built, so that a rebuild makes the same tree from the lock alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import unquote

from pydantic import ValidationError

from factory.build import tools_root
from factory.build.box import Box
from factory.errors import BuildError, InputsError
from factory.inputs.blobs import BlobStore
from factory.inputs.lock import TOOLS, WHEELS, Input
from factory.inputs.recorder import Origin
from factory.inputs.registry import Registries, pip_registries
from factory.inputs.replay import Replay
from factory.inputs.tools import Pinned, Suite, ToolsRecorder, WheelsRecorder, packages_only, replayed
from factory.inputs.upstream import Upstream
from factory.model import Recipe
from factory.system.files import appearing, write_whole
from factory.system.lock import waiting
from factory.system.secrets import Login
from factory.system.state import State
from factory.system.values import adapter

Say = Callable[[str], None]
LIST = Path(__file__).parent / "tools.toml"
LISTS = {"kiwi": LIST, "diskimage-builder": LIST.with_name("tools-dib.toml")}
"""By builder what it works with: what one needs never changes the tree, and with it the bytes, of the other."""
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_FETCHERS = 4
_WAIT_S = 1800.0
_KEEP = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolsTree:
    """A root to build in: where it is, the digest of what it is made of, and what that was, indexes included.

    ``epoch`` is the date of the signed index that its packages were found by.
    """

    path: Path
    digest: str
    epoch: int
    inputs: tuple[Input, ...]

    def version(self, package: str) -> str:
        """The version of a package in it, by its file's name; empty when it is not in it."""
        for name, entry in packages_only(self.inputs).items():
            if entry.repository == TOOLS:
                found, version = (unquote(word) for word in name.split("_")[:2])
            else:
                found, _, rest = name.removesuffix(".tar.gz").partition("-")
                version = rest.partition("-")[0]
            if found == package:
                return version
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolList:
    """What ``tools.toml`` says; ``digest`` is that of its text."""

    suite: Suite
    packages: tuple[str, ...]
    without: tuple[str, ...]
    python: tuple[Pinned, ...]
    digest: str


def read_list(path: Path = LIST) -> ToolList:
    """Read the list of tools, for the architecture of this host."""
    text = path.read_bytes()
    found = tomllib.loads(text.decode())
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        raise BuildError(f"there are no tools for {machine}", hint="build on x86_64 or aarch64")
    debian = found["debian"]
    return ToolList(
        suite=Suite(name=debian["suite"], components=tuple(debian["components"]), arch=_ARCHITECTURES[machine]),
        packages=tuple(debian["packages"]),
        without=tuple(debian["without"]),
        python=tuple(Pinned(**one) for one in found["python"]),
        digest=hashlib.sha256(text).hexdigest(),
    )


def tools_tree(
    recipe: Recipe, *, state: State, now: datetime, say: Say, logins: Mapping[str, Login] | None = None
) -> ToolsTree:
    """The tree of the tools that a recipe is built with today; see :func:`recorded_tree`.

    A warm one takes a question to the mirror and no more; its digest tells whether the tools are those of another day.
    """
    if TOOLS not in recipe.mirrors or TOOLS not in recipe.keyrings:
        raise InputsError(
            "the recipe does not say where the tools come from", hint="it is of an older factory; describe it again"
        )
    return recorded_tree(
        Origin(mirror=recipe.mirrors[TOOLS], keyring=recipe.keyrings[TOOLS], signers=recipe.signers.get(TOOLS, ())),
        (recipe.mirrors[WHEELS],) if WHEELS in recipe.mirrors else (),
        folder=state.tools,
        blobs=state.blobs,
        upstream=Upstream(logins=logins),
        now=now,
        say=say,
        wanted=read_list(LISTS[recipe.description.builder]),
    )


def recorded_tree(
    origin: Origin,
    registries: Sequence[str],
    *,
    folder: Path,
    blobs: Path,
    upstream: Upstream,
    now: datetime,
    say: Say,
    wanted: ToolList | None = None,
) -> ToolsTree:
    """The tree of the tools that the mirror has now; made when it is not there yet.

    Args:
        origin: a Debian mirror, and who must have signed its index.
        registries: Python registries by address; pip's own when there is none.
        folder: where trees are kept.

    Raises:
        InputsError: a mirror or registry is away, or gives what was not signed or pinned.
        BuildError: the tree cannot be made.
    """
    tools = wanted or read_list()
    recorder = ToolsRecorder(origin, blobs=blobs, now=now, upstream=upstream)
    indexes = recorder.indexes(tools.suite)
    packages = indexes[1:]  # what InRelease alone changes is no other tool
    note = folder / note_name(tools, packages)
    files = _noted(note, recorder.store)
    if files is None:
        found = recorder.resolve(tools.suite, packages, tools.packages, tools.without)
        say(f"tools: {len(found)} Debian packages and {len(tools.python)} Python packages")
        pinned = WheelsRecorder(tools.python, Registries(registries or pip_registries()), blobs=blobs, now=now)
        with ThreadPoolExecutor(max_workers=_FETCHERS) as pool:
            files = tuple(sorted([*pool.map(recorder.get_package, found), *pool.map(pinned.get_pinned, tools.python)]))
        write_whole(note, json.dumps([asdict(one) for one in files], indent=0) + "\n")
        _forget(folder, keep=note)
    return _tree((*indexes, *files), folder=folder, store=recorder.store, epoch=recorder.epoch, say=say)


def replayed_tree(replay: Replay, lock: Iterable[Input], *, folder: Path, say: Say) -> ToolsTree:
    """The tree that a lock names, from the recorded files.

    Raises:
        InputsError: a file is not there, or not what the lock or the signed index in it names.
        BuildError: the tree cannot be made.
    """
    entries = replayed(replay, lock)
    return _tree(entries, folder=folder, store=replay.store, epoch=replay.epoch, say=say)


def note_name(tools: ToolList, indexes: Iterable[Input]) -> str:
    """The file that keeps what a list of tools came to by these package indexes."""
    basis = json.dumps([tools.digest, *(one.sha512 for one in indexes)])
    return f"found-{hashlib.sha256(basis.encode()).hexdigest()[:32]}.json"


def _noted(note: Path, store: BlobStore) -> tuple[Input, ...] | None:
    """What an earlier night found by the same list and indexes, when all of it is still in the store."""
    try:
        files = adapter(tuple[Input, ...]).validate_json(note.read_bytes())
    except (OSError, ValidationError):
        return None
    return files if all(store.path(one.sha512).is_file() for one in files) else None


def _forget(folder: Path, *, keep: Path) -> None:
    """Drop the oldest notes; what one of them said can be found again."""
    notes = sorted(
        (path for path in folder.glob("found-*.json") if path != keep), key=lambda path: path.stat().st_mtime
    )
    for path in notes[: max(0, len(notes) - _KEEP)]:
        path.unlink(missing_ok=True)


def tree_digest(files: Mapping[str, Input]) -> str:
    """The digest of a tree by what it is made of, and how."""
    parts = [f"image-factory tools {tools_root.VERSION}", *(f"{files[name].sha512} {name}" for name in sorted(files))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _tree(entries: tuple[Input, ...], *, folder: Path, store: BlobStore, epoch: int, say: Say) -> ToolsTree:
    files = packages_only(entries)
    digest = tree_digest(files)
    place = folder / digest
    if not place.is_dir():
        with waiting(folder / f"{digest}.lock", what="the tools tree", timeout_s=_WAIT_S):
            if not place.is_dir():  # somebody made it while we waited
                say(f"making the tools tree {digest[:12]} from {len(files)} packages")
                _make(place, {name: _verified(store, entry) for name, entry in files.items()})
    os.utime(place)  # 'factory gc' leaves alone what was used lately
    return ToolsTree(path=place, digest=digest, epoch=epoch, inputs=entries)


def _make(place: Path, files: Mapping[str, Path]) -> None:
    with appearing(place) as partial:
        partial.mkdir()
        tools_root.make_root(partial, files)


def _verified(store: BlobStore, entry: Input) -> Path:
    """A stored file that still has its digest: it may have been recorded on another night."""
    path = store.path(entry.sha512)
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha512").hexdigest() == entry.sha512:
            return path
    path.unlink(missing_ok=True)
    raise InputsError(
        f"'{entry.path.rpartition('/')[2]}' in the store of recorded inputs is damaged",
        hint="it was removed from there; the next night gets it again",
    )


def versions(place: Box, tree: ToolsTree, builder: str) -> dict[str, str]:
    """The programs whose versions shape an image's bytes, as the box has them."""
    mke2fs = place.run(["mke2fs", "-V"], timeout_s=20).stderr.splitlines()[0]
    image = place.run(["qemu-img", "--version"], timeout_s=20).stdout.splitlines()[0]
    return {
        builder: tree.version(builder.replace("-", "_")),
        "mke2fs": mke2fs.split()[1],
        "qemu-img": image.removeprefix("qemu-img version ").split()[0],
        "tools-tree": tree.digest,
    }
