# SPDX-License-Identifier: Apache-2.0
"""The files that a tools tree is made of: Debian packages by a signed index, Python packages by pinned digests.

They are recorded and replayed like everything that a build is given, but by answers of their own: the date of their
index is no date of the image, and nobody in a build box can ask for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from factory.errors import InputsError
from factory.inputs.closure import DebianPackage, closure
from factory.inputs.lock import TOOLS, WHEELS, Input
from factory.inputs.recorder import Origin, Recorder
from factory.inputs.registry import Registries
from factory.inputs.replay import Replay
from factory.inputs.unpacking import index_text
from factory.inputs.upstream import Upstream

_PACKED = (".xz", ".gz", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinned:
    """One file of a Python registry, by its digest."""

    project: str
    file: str
    sha256: str

    @property
    def path(self) -> str:
        """Its name in a lock."""
        return f"{self.project}/{self.file}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """The part of a Debian archive that tools come from."""

    name: str
    components: tuple[str, ...]
    arch: str


class ToolsRecorder(Recorder):
    """Records tools from a Debian mirror."""

    def __init__(self, origin: Origin, *, blobs: Path, now: datetime, upstream: Upstream | None = None) -> None:
        super().__init__(origins={TOOLS: origin}, blobs=blobs, now=now, upstream=upstream)
        self._pins: dict[str, str] = {}

    def indexes(self, suite: Suite) -> tuple[Input, ...]:
        """Get the signed index of a suite and the package indexes it names; they are in this order.

        Raises:
            InputsError: the mirror is away, has no such suite, or its index is not good.
        """
        folder = f"dists/{suite.name}"
        found = [self._there(f"{folder}/InRelease")]
        release = self._releases[(TOOLS, folder)]
        for component in suite.components:
            names = [f"{component}/binary-{suite.arch}/Packages{ending}" for ending in _PACKED]
            name = next((name for name in names if name in release.files), None)
            if name is None:
                raise InputsError(f"the mirror of the tools has no {component} for {suite.arch} in '{suite.name}'")
            by_hash = f"{folder}/{name.rpartition('/')[0]}/by-hash/SHA256/{release.files[name]}"
            answer = self.get(TOOLS, by_hash)
            found.append(answer if answer.found else self._there(f"{folder}/{name}"))
        return tuple(found)

    def resolve(
        self, suite: Suite, indexes: Iterable[Input], wanted: Iterable[str], without: Iterable[str]
    ) -> tuple[DebianPackage, ...]:
        """The packages that ``wanted`` need, by the indexes that :meth:`indexes` got; pinned from now on."""
        packed = {str(release_name): entry for entry in indexes if (release_name := self._packages_name(suite, entry))}
        texts = [index_text(name, self.store.path(entry.sha512)) for name, entry in packed.items()]
        found = closure(wanted, texts, without=without)
        self._pins |= {one.path: one.sha256 for one in found}
        return found

    def get_package(self, package: DebianPackage) -> Input:
        """Get one Debian package."""
        return self._there(quote(package.path, safe="/~:+"))

    def _there(self, path: str) -> Input:
        answer = self.get(TOOLS, path)
        if not answer.found:
            raise InputsError(
                f"there is no '{path.rpartition('/')[2]}' where the tools come from",
                facts=(("address", self.address(TOOLS, path)), ("status", str(answer.status))),
                hint='name another mirror: tools = "http://..." under [mirrors] of site.toml',
            )
        return answer

    def _expected(self, repository: str, plain: str) -> str | None:
        return self._pins.get(plain) or super()._expected(repository, plain)

    def _packages_name(self, suite: Suite, entry: Input) -> str | None:
        return self._releases[(TOOLS, f"dists/{suite.name}")].is_packages(
            entry.path.removeprefix(f"dists/{suite.name}/")
        )


class WheelsRecorder(Recorder):
    """Records files of Python registries; only what was pinned is asked for."""

    def __init__(self, pins: Iterable[Pinned], registries: Registries, *, blobs: Path, now: datetime) -> None:
        nowhere = Origin(mirror="", keyring=Path())  # addresses come from the registries' pages
        super().__init__(origins={WHEELS: nowhere}, blobs=blobs, now=now, upstream=registries.upstream)
        self._registries = registries
        self._pins = {one.path: one for one in pins}

    def address(self, repository: str, path: str) -> str:  # noqa: ARG002 there is one
        pinned = self._pins[path]
        return self._registries.find(pinned.project, pinned.file)

    def _expected(self, repository: str, plain: str) -> str | None:  # noqa: ARG002
        return self._pins[plain].sha256

    def get_pinned(self, pinned: Pinned) -> Input:
        """Get one file."""
        answer = self.get(WHEELS, pinned.path)
        if not answer.found:
            raise InputsError(f"the Python registry names '{pinned.file}' and does not have it")
        return answer


def of_tools(lock: Iterable[Input]) -> tuple[Input, ...]:
    """The entries of a lock that its tools were made of, indexes first, so that packages are judged by them."""
    found = [entry for entry in lock if entry.repository in {TOOLS, WHEELS}]
    return tuple(
        sorted(found, key=lambda one: (one.repository, not one.path.startswith("dists/"), not _is_signed(one)))
    )


def _is_signed(entry: Input) -> bool:
    return entry.path.rpartition("/")[2] == "InRelease"


def replayed(replay: Replay, lock: Iterable[Input]) -> tuple[Input, ...]:
    """Everything that a lock names for its tools, compared with the lock and with the index in it."""
    return tuple(replay.get(entry.repository, entry.path) for entry in of_tools(lock))


def packages_only(entries: Iterable[Input]) -> Mapping[str, Input]:
    """Of tools' entries those that a tree is made of, by file name: no indexes."""
    return {
        entry.path.rpartition("/")[2]: entry
        for entry in entries
        if entry.found and (entry.repository == WHEELS or entry.path.endswith(".deb"))
    }
