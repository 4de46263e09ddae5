# SPDX-License-Identifier: Apache-2.0
"""What is in a root file system: every file with its owner, and the installed packages."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from factory.model import Package

GENERATED = "generated"
_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "link",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}
_LINKS_FOLLOWED = 16
_READ_BYTES = 1 << 20
_SHA256_DIGITS = 64
_LOST = "\ufffd"
"""What stands in a program's words where they were no UTF-8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One file of an image; ``path`` is absolute in the image, ``target`` what a link says."""

    path: str
    kind: str
    mode: int
    uid: int
    gid: int
    size_bytes: int
    target: str = ""
    mtime: int = 0


def entries(root: Path) -> Iterator[Entry]:
    """Every file below ``root``, sorted within each folder; follows no link and leaves no file system."""
    device = root.lstat().st_dev
    folders = [(str(root), "")]
    while folders:
        folder, inside = folders.pop()
        with os.scandir(folder) as listing:
            found = sorted(listing, key=lambda item: item.name)
        for item in found:
            status = item.stat(follow_symlinks=False)
            path = f"{inside}/{item.name}"
            link = stat.S_ISLNK(status.st_mode)
            yield Entry(
                path=path,
                kind=_KINDS[stat.S_IFMT(status.st_mode)],
                mode=stat.S_IMODE(status.st_mode),
                uid=status.st_uid,
                gid=status.st_gid,
                size_bytes=status.st_size if stat.S_ISREG(status.st_mode) else 0,
                target=os.readlink(item.path) if link else "",  # noqa: PTH115 bytes for bytes
                mtime=int(status.st_mtime),
            )
            if stat.S_ISDIR(status.st_mode) and status.st_dev == device:
                folders.append((item.path, path))


class Tree:
    """A root file system: its entries by path, and the content of single files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.entries = {entry.path: entry for entry in entries(root)}

    def read(self, path: str) -> bytes:
        """The content of a plain file, found without following a link; empty when there is none."""
        entry = self.entries.get(path)
        if entry is None or entry.kind != "file":
            return b""
        return (self.root / path.lstrip("/")).read_bytes()

    def sha256(self, path: str) -> str:
        """The SHA-256 of a plain file's content; there are ten thousands of them, most of them small."""
        descriptor = os.open(f"{self.root}{path}", os.O_RDONLY | os.O_NOFOLLOW)
        try:
            asked = min(self.entries[path].size_bytes + 1, _READ_BYTES)
            total = hashlib.sha256(chunk := os.read(descriptor, asked))
            while chunk:
                total.update(chunk := os.read(descriptor, asked))
            return total.hexdigest()
        finally:
            os.close(descriptor)

    def canonical(self, path: str) -> str:
        """``path`` with the links among its parent folders followed, inside the image."""
        folder, name = posixpath.split(path)
        for _ in range(_LINKS_FOLLOWED):
            resolved = self._one_link(folder)
            if resolved == folder:
                break
            folder = resolved
        return posixpath.join(folder, name)

    def _one_link(self, folder: str) -> str:
        parts = folder.strip("/").split("/")
        for end in range(1, len(parts) + 1):
            entry = self.entries.get("/" + "/".join(parts[:end]))
            if entry is not None and entry.kind == "link":
                parent = posixpath.dirname(entry.path)
                return posixpath.normpath(posixpath.join(parent, entry.target, *parts[end:]))
        return folder

    def matching(self, folder: str) -> list[Entry]:
        """The entries below ``folder``."""
        return [entry for path, entry in self.entries.items() if path.startswith(f"{folder}/")]


def owners(tree: Tree) -> dict[str, str]:
    """Which package each path belongs to, as dpkg recorded it; diversions count for who diverted."""
    found: dict[str, str] = {}
    canonical: dict[str, str] = {}
    for entry in tree.matching("/var/lib/dpkg/info"):
        if not entry.path.endswith(".list"):
            continue
        package = posixpath.basename(entry.path).removesuffix(".list").partition(":")[0]
        for line in tree.read(entry.path).decode(errors="surrogateescape").splitlines():
            folder, _, name = line.rpartition("/")
            if folder not in canonical:
                canonical[folder] = posixpath.dirname(tree.canonical(f"{folder}/x")).rstrip("/")
            found.setdefault(f"{canonical[folder]}/{name}", package)
    lines = tree.read("/var/lib/dpkg/diversions").decode(errors="surrogateescape").splitlines()
    for original, moved, package in zip(lines[::3], lines[1::3], lines[2::3], strict=False):
        if package != ":":
            found.setdefault(tree.canonical(moved), package)
            found.setdefault(tree.canonical(original), package)
    return found


def told_sums(said: str, root: Path) -> dict[str, str]:
    """What ``sha256sum --zero`` said of the files below ``root``, by their paths in the image.

    A name that is no UTF-8 does not come through; :func:`files_list` reads such a file itself.
    """
    pairs = (line.split("  ", 1) for line in said.split("\0") if line and _LOST not in line)
    return {path.removeprefix(str(root)): digest for digest, path in pairs if len(digest) == _SHA256_DIGITS}


def files_list(tree: Tree, sums: Mapping[str, str] | None = None) -> str:
    """JSON lines, sorted by path: path, kind, mode, uid, gid, package (or ``generated``), time, content or target.

    Args:
        sums: the SHA-256 of files by path, where they are known already.
    """
    known = sums or {}
    owner = owners(tree)
    lines = [json.dumps({"schema": "factory/files/1"})]
    for path in sorted(tree.entries):
        entry = tree.entries[path]
        # written by hand: json.dumps makes an encoder anew for each of ten thousands of lines
        line = f'{{"path": {json.dumps(path)}, "kind": "{entry.kind}", "mode": "{entry.mode:04o}", "uid": {entry.uid}'
        line += f', "gid": {entry.gid}, "package": {json.dumps(owner.get(path, GENERATED))}, "mtime": {entry.mtime}'
        if entry.kind == "file":
            line += f', "size": {entry.size_bytes}, "sha256": "{known.get(path) or tree.sha256(path)}"'
        elif entry.kind == "link":
            line += f', "target": {json.dumps(entry.target)}'
        lines.append(f"{line}}}")
    return "\n".join(lines) + "\n"


def installed(status: str) -> Iterator[dict[str, str]]:
    """The fields of every installed package in a dpkg status text; of a value with several lines the first."""
    for stanza in status.split("\n\n"):
        fields = {
            key: value.strip()
            for key, separator, value in (line.partition(":") for line in stanza.splitlines() if line[:1] != " ")
            if separator
        }
        if fields.get("Status", "").endswith(" installed"):
            yield fields


def installed_packages(status: str, origins: Mapping[tuple[str, str, str], str]) -> tuple[Package, ...]:
    """The installed packages of a dpkg status text, sorted; ``origins`` maps name, version, arch to a repository."""
    found = []
    for fields in installed(status):
        name, version, arch = fields["Package"], fields["Version"], fields["Architecture"]
        source = fields.get("Source", name).partition(" ")[0]
        origin = origins.get((name, without_epoch(version), arch), "")
        found.append(Package(name=name, version=version, arch=arch, source=source, origin=origin))
    return tuple(sorted(found, key=lambda package: (package.name, package.arch)))


def package_origins(paths: Iterable[tuple[str, str]]) -> dict[tuple[str, str, str], str]:
    """Which repository a package came from, by name, version (without epoch) and arch, from recorded file names."""
    return {package: repository for repository, path in paths if (package := package_of_file(path)) is not None}


def package_of_file(path: str) -> tuple[str, str, str] | None:
    """Name, version (without epoch) and architecture of a package, by the name of its file."""
    parts = posixpath.basename(unquote(path)).removesuffix(".deb").split("_")
    if not path.endswith(".deb") or len(parts) != 3:  # noqa: PLR2004 name, version, arch
        return None
    return parts[0], without_epoch(parts[1]), parts[2]


def without_epoch(version: str) -> str:
    """A version as file names have it."""
    return version.rpartition(":")[2]


def packages_text(packages: tuple[Package, ...]) -> str:
    """One line a package, for people and for diff."""
    return "".join(f"{p.name} {p.version} {p.arch} {p.source} {p.origin or '-'}\n" for p in packages)


def packages_json(packages: tuple[Package, ...]) -> str:
    """The packages as one JSON document."""
    body = [
        {"name": p.name, "version": p.version, "arch": p.arch, "source": p.source, "origin": p.origin} for p in packages
    ]
    return json.dumps({"schema": "factory/packages/1", "packages": body}, indent=1) + "\n"
