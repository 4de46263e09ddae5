# SPDX-License-Identifier: Apache-2.0
"""Reading the files of an image, in a folder or in a qcow2 file, without mounting and without ever leaving the image.

Links are followed as the image's own kernel would: an absolute target begins at the image's root, never at the host's.
"""

from __future__ import annotations

import fnmatch
import os
import posixpath
import re
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from factory.errors import NotGood
from factory.system.run import run

_LINKS_FOLLOWED = 40
_READ_BYTES = 4 << 20
_LISTED = re.compile(r"/(?P<inode>\d+)/(?P<mode>[0-7]+)/\d+/\d+/(?P<name>[^/]+)/(?P<size>\d*)/")
_FAST_LINK = re.compile(r'^Fast link dest: "(?P<target>.*)"$', re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One file of an image; ``mode`` holds the type too, as ``st_mode`` does."""

    mode: int
    size_bytes: int = 0
    target: str = ""

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def executable(self) -> bool:
        return self.is_file and bool(self.mode & 0o111)


class Root(ABC):
    """The root folder of an image; paths are relative to it, with or without a leading slash."""

    @abstractmethod
    def _look(self, path: str) -> Node | None:
        """The file at ``path``; none of its parent folders is a link."""

    @abstractmethod
    def _names(self, path: str) -> tuple[str, ...]:
        """What a folder holds, sorted."""

    @abstractmethod
    def _bytes(self, path: str, limit: int) -> bytes:
        """The first bytes of a plain file."""

    def real(self, path: str, *, last: bool = True) -> str | None:
        """``path`` with links followed (with ``last``, the last part's too); None when it leads nowhere."""
        todo, done, followed = [part for part in path.split("/") if part not in {"", "."}], "", 0
        while todo:
            part = todo.pop(0)
            if part == "..":
                done = posixpath.dirname(done)
                continue
            here = f"{done}/{part}".lstrip("/")
            node = self._look(here)
            if node is None or (todo and not (node.is_folder or node.is_link)):
                return None
            if node.is_link and (todo or last):
                followed += 1
                if followed > _LINKS_FOLLOWED:
                    return None
                done = "" if node.target.startswith("/") else done
                todo = [one for one in node.target.split("/") if one not in {"", "."}] + todo
                continue
            done = here
        return done

    def find(self, path: str) -> Node | None:
        """The file that ``path`` leads to, links followed."""
        real = self.real(path)
        return None if real is None else self._look(real)

    def entry(self, path: str) -> Node | None:
        """The file at ``path`` itself, be it a link."""
        real = self.real(path, last=False)
        return None if real is None else self._look(real)

    def read(self, path: str) -> bytes | None:
        """The content of a plain file (at most 4 MiB of it), or None when there is none."""
        real = self.real(path)
        node = None if real is None else self._look(real)
        if real is None or node is None or not node.is_file:
            return None
        return self._bytes(real, _READ_BYTES)

    def text(self, path: str) -> str | None:
        """Like :meth:`read`, as text; bytes that are not UTF-8 are replaced."""
        content = self.read(path)
        return None if content is None else content.decode(errors="replace")

    def glob(self, pattern: str) -> Iterator[str]:
        """The paths that match, links in parent folders followed; ``*`` does not cross a slash."""
        yield from self._glob("", pattern.strip("/").split("/"))

    def _glob(self, folder: str, parts: list[str]) -> Iterator[str]:
        head, *rest = parts
        if "*" in head or "?" in head:
            real = self.real(folder)
            names = [name for name in self._listed(real) if fnmatch.fnmatchcase(name, head)]
        else:
            names = [head]
        for name in names:
            path = f"{folder}/{name}".lstrip("/")
            if rest:
                yield from self._glob(path, rest)
            elif self.entry(path) is not None:
                yield path

    def _listed(self, real: str | None) -> tuple[str, ...]:
        if real is None:
            return ()
        node = self._look(real) if real else Node(mode=stat.S_IFDIR)
        return self._names(real) if node and node.is_folder else ()


class FolderRoot(Root):
    """A root file system, or an overlay, in a folder of the host."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _look(self, path: str) -> Node | None:
        try:
            status = (self.folder / path).lstat()
            target = os.readlink(self.folder / path) if stat.S_ISLNK(status.st_mode) else ""  # noqa: PTH115 byte for byte
        except (OSError, ValueError):
            return None
        return Node(mode=status.st_mode, size_bytes=status.st_size, target=target)

    def _names(self, path: str) -> tuple[str, ...]:
        try:
            return tuple(sorted(os.listdir(self.folder / path)))  # noqa: PTH208 names only
        except OSError:
            return ()

    def _bytes(self, path: str, limit: int) -> bytes:
        try:
            with (self.folder / path).open("rb") as file:
                return file.read(limit)
        except OSError:
            return b""


class Ext4Root(Root):
    """A root file system in a raw disk image, read with ``debugfs``; ``place`` is FILE?offset=BYTES.

    Files are asked for by inode number, so no name from the image is ever part of a command.
    """

    def __init__(self, place: str, scratch: Path) -> None:
        self.place = place
        self.scratch = scratch
        self._folders: dict[int, dict[str, tuple[int, Node]]] = {}

    def _ask(self, request: str) -> str:
        return run(["debugfs", "-R", request, self.place], timeout_s=120).stdout

    def _folder(self, inode: int) -> dict[str, tuple[int, Node]]:
        if inode not in self._folders:
            found = {}
            for line in self._ask(f"ls -p <{inode}>").splitlines():
                if (told := _LISTED.fullmatch(line)) and told["name"] not in {".", ".."}:
                    node = Node(mode=int(told["mode"], 8), size_bytes=int(told["size"] or 0))
                    found[told["name"]] = (int(told["inode"]), node)
            self._folders[inode] = found
        return self._folders[inode]

    def _inode(self, path: str) -> tuple[int, Node] | None:
        inode, node = 2, Node(mode=stat.S_IFDIR)
        for part in filter(None, path.split("/")):
            if not node.is_folder or part not in self._folder(inode):
                return None
            inode, node = self._folder(inode)[part]
        return inode, node

    def _look(self, path: str) -> Node | None:
        found = self._inode(path)
        if found is None:
            return None
        inode, node = found
        if not node.is_link:
            return node
        fast = _FAST_LINK.search(self._ask(f"stat <{inode}>"))
        target = fast["target"] if fast else self._dump(inode, node.size_bytes).decode(errors="surrogateescape")
        return Node(mode=node.mode, size_bytes=node.size_bytes, target=target)

    def _names(self, path: str) -> tuple[str, ...]:
        found = self._inode(path)
        return tuple(sorted(self._folder(found[0]))) if found else ()

    def _bytes(self, path: str, limit: int) -> bytes:
        found = self._inode(path)
        if found is None:
            return b""
        inode, node = found
        if node.size_bytes > limit:
            raise NotGood(f"'/{path}' in the image is {node.size_bytes} bytes long", hint="no region file is")
        return self._dump(inode, limit)

    def _dump(self, inode: int, limit: int) -> bytes:
        target = self.scratch / "dumped"
        self._ask(f'dump <{inode}> "{target}"')
        with target.open("rb") as file:
            content = file.read(limit)
        target.unlink()
        return content
