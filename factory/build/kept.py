# SPDX-License-Identifier: Apache-2.0
"""Kept root trees: packages installed once, for every build that has the same ones.

A tree is kept as it is after its packages were installed and before anything of the description came in, in one
archive, by a key of everything that its bytes depend on: the signed indexes, the packages' half of the description, the
tools, and how a box is made. Beside it stands what the builder was given for it. A build that starts from it asks for
the same files again, so that each is verified, is in the store, and is in the lock as if it had been installed anew.

An archive that is not whole is no archive: it goes, and the packages are installed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from factory.build.box import OUT, Box
from factory.errors import CommandFailed
from factory.inputs.answers import Inputs
from factory.inputs.lock import Input
from factory.inputs.roots import NOTE, Root, read_root, surplus
from factory.system.files import appearing, remove, sha256_file, write_whole

VERSION = 1
"""Of how a tree is made and kept; another number makes another tree of the same packages."""
ARCHIVE = "root.tar.zst"
_FORMAT = ("--format=posix", "--numeric-owner", "--acls", "--xattrs", "--xattrs-include=*")
_READERS = 4
_MADE_BY = Path(__file__).parent / "inside"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shelf:
    """Where the tree of one key is kept; ``folder`` is that of all of them."""

    folder: Path
    key: str
    image: str

    @property
    def place(self) -> Path:
        """The folder of this tree."""
        return self.folder / self.key


def key_of(
    *, tools: str, epoch: int, command: Iterable[str], description: Mapping[str, str], indexes: Iterable[Input]
) -> str:
    """The name of a tree by all that its bytes depend on."""
    basis = {
        "version": VERSION,
        "box": {path.name: sha256_file(path) for path in sorted(_MADE_BY.rglob("*")) if path.is_file()},
        "tools": tools,
        "epoch": epoch,
        "command": list(command),
        "description": dict(description),
        "indexes": [asdict(one) for one in sorted(indexes)],
    }
    return hashlib.sha256(json.dumps(basis, sort_keys=True).encode()).hexdigest()


def root_tree(
    shelf: Shelf | None,
    place: Box,
    root: Path,
    *,
    inputs: Inputs,
    install: Callable[[], None],
    say: Callable[[str], None],
) -> None:
    """Make ``root``, in the box: from the shelf, or by ``install``, whose result is then kept there; without one, made.

    Raises:
        InputsError: a file that the tree was made of is not good, or a mirror is away.
    """
    if shelf is None:
        install()
        return
    if (kept := find(shelf)) and _unpacked(shelf, place, root):
        if answered_again(kept, inputs):
            say(f"its {len(kept.inputs)} inputs were installed before: starting from kept root tree {shelf.key[:12]}")
            return
        place.run(["rm", "-rf", root])
    install()
    try:
        keep(shelf, place, root, inputs=inputs.inputs)
    except (OSError, CommandFailed) as failed:  # for want of space, say: this build does not need it
        say(f"the root tree is not kept: {failed}")


def find(shelf: Shelf) -> Root | None:
    """The tree on the shelf, when all of it is there; one that is not goes."""
    if not shelf.place.is_dir():
        return None
    root = read_root(shelf.place)
    with contextlib.suppress(OSError):
        if root and sha256_file(shelf.place / ARCHIVE) == root.sha256:
            os.utime(shelf.place)  # 'factory gc' leaves alone what was used lately
            return root
    remove(shelf.place)
    return None


def _unpacked(shelf: Shelf, place: Box, root: Path) -> bool:
    """Unpack the shelf's archive in the box."""
    try:
        os.link(shelf.place / ARCHIVE, place.out / ARCHIVE)
        place.run(["mkdir", "-p", root])
        place.run(["tar", *_FORMAT, "--extract", "--preserve-permissions", "--zstd", "-f", OUT / ARCHIVE, "-C", root])
    except (OSError, CommandFailed):
        place.run(["rm", "-rf", root])
        return False
    finally:
        (place.out / ARCHIVE).unlink(missing_ok=True)
    return True


def answered_again(kept: Root, inputs: Inputs) -> bool:
    """Ask for all that a kept tree was made of, indexes first; whether the answers are the same.

    Raises:
        InputsError: one of them is not good, or a mirror is away.
    """

    def same(one: Input) -> bool:
        return inputs.get(one.repository, one.path) == one

    packages = [one for one in kept.inputs if one.path.endswith(".deb")]
    lists = sorted(set(kept.inputs) - set(packages), key=lambda one: not one.path.endswith("/InRelease"))
    if not all(same(one) for one in lists):
        return False
    with ThreadPoolExecutor(max_workers=_READERS) as pool:
        return all(pool.map(same, packages))


def keep(shelf: Shelf, place: Box, root: Path, *, inputs: tuple[Input, ...]) -> None:
    """Put a tree of the box on the shelf; it appears there whole, or not at all."""
    made = place.out / ARCHIVE
    archive = ["tar", *_FORMAT, "--create", "--sort=name", "--one-file-system", "-I", "zstd -1 -T0"]
    try:
        place.run([*archive, "-f", OUT / ARCHIVE, "-C", root, "."])
        with appearing(shelf.place) as partial:
            partial.mkdir()
            made.rename(partial / ARCHIVE)
            note = Root(image=shelf.image, sha256=sha256_file(partial / ARCHIVE), inputs=inputs)
            write_whole(partial / NOTE, json.dumps(asdict(note), indent=0) + "\n")
    finally:
        made.unlink(missing_ok=True)
    for old in surplus(shelf.folder):
        remove(old)
