# SPDX-License-Identifier: Apache-2.0
"""What an update server gives out below ``/repo/``: recorded inputs, and plain folders (apt or rpm-md trees)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

from factory.model import Repository

OpenFile = Callable[[str], Path | None]
FREE_FOLDER = "product.license"
"""Licence texts must be readable before anybody registered."""


class RecordedFiles(Protocol):
    """Files by alias and recorded path; :class:`factory.inputs.view.RepositoryView` is one."""

    @property
    def repositories(self) -> tuple[Repository, ...]: ...

    def open(self, alias: str, path: str) -> tuple[Path, int] | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedRepository:
    """A repository at ``/repo/LOCATION/``; ``files`` finds a file by the path below it, as it was asked for."""

    id: int
    alias: str
    location: str
    files: OpenFile
    description: str = ""
    enabled: bool = True
    autorefresh: bool = True
    installer: bool = False
    mirrored: Callable[[], bool] = lambda: True


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderRepository:
    """A folder that is served as it is; ``location`` is its place below ``/repo/`` (default: the alias)."""

    alias: str
    folder: str
    location: str = ""
    description: str = ""
    enabled: bool = True
    autorefresh: bool = True
    installer: bool = False


def recorded(view: RecordedFiles) -> tuple[ServedRepository, ...]:
    """The repositories of a view of recorded inputs."""

    def opener(alias: str) -> OpenFile:
        def find(path: str) -> Path | None:
            # recorded names are percent-encoded the way the distributor's client asked for them
            for name in dict.fromkeys((path, unquote(path))):
                if found := view.open(alias, name):
                    return found[0]
            return None

        return find

    return tuple(
        ServedRepository(
            id=number,
            alias=one.alias,
            location=one.alias,
            files=opener(one.alias),
            description=" ".join(one.suites),
        )
        for number, one in enumerate(view.repositories, 1)
    )


def folders(found: Sequence[FolderRepository], *, first_id: int = 1) -> tuple[ServedRepository, ...]:
    """The repositories that are plain folders."""
    return tuple(
        ServedRepository(
            id=number,
            alias=one.alias,
            location=(one.location or one.alias).strip("/"),
            files=_folder(Path(one.folder)),
            description=one.description,
            enabled=one.enabled,
            autorefresh=one.autorefresh,
            installer=one.installer,
            mirrored=_mirrored(Path(one.folder)),
        )
        for number, one in enumerate(found, first_id)
    )


def locate(repositories: Sequence[ServedRepository], path: str) -> tuple[ServedRepository, str] | None:
    """The repository that a path below ``/repo/`` (as it was asked for) is in, and the rest of the path."""
    for one in sorted(repositories, key=lambda repository: -len(repository.location)):
        prefix = one.location + "/"
        if path.startswith(prefix):
            return one, path.removeprefix(prefix)
    return None


def is_plain(path: str) -> bool:
    """Whether a decoded path leads downwards only, name by name."""
    return all(part not in {"", ".", ".."} and not set(part) & {"\\", "\0"} for part in path.split("/"))


def _mirrored(root: Path) -> Callable[[], bool]:
    return lambda: any((root / name).exists() for name in ("repodata/repomd.xml", "dists", "Release", "InRelease"))


def _folder(root: Path) -> OpenFile:
    def find(path: str) -> Path | None:
        name = unquote(path)
        if not is_plain(name):
            return None
        try:
            found = (root / name).resolve(strict=True)
            inside = found.is_relative_to(root.resolve(strict=True)) and found.is_file()
        except (OSError, ValueError, RuntimeError):  # absent, a name too long, no name; a loop of links (Python 3.11)
            return None
        return found if inside else None

    return find
