# SPDX-License-Identifier: Apache-2.0
"""Recorded inputs, to read: what the sandbox's update server offers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from factory.inputs.blobs import BlobStore
from factory.inputs.lock import Input, read_lock
from factory.model import Repository

_BY_HASH = re.compile(r".*/by-hash/SHA256/([0-9a-f]{64})")


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryView:
    """The files of one lock, and the repositories they came from."""

    repositories: tuple[Repository, ...]
    inputs: Mapping[tuple[str, str], Input]
    blobs: Path

    def open(self, alias: str, path: str) -> tuple[Path, int] | None:
        """File and size of a recorded path (percent-encoded as requested, no leading slash); None when not recorded.

        A by-hash name is also found when the same content was recorded under its plain name.
        """
        entry = self.inputs.get((alias, path))
        if entry is None and (asked := _BY_HASH.fullmatch(path)) is not None:
            sha512 = BlobStore(self.blobs).sha512_of(asked[1])
            same = (found for found in self.inputs.values() if found.repository == alias and found.sha512 == sha512)
            entry = next(same, None) if sha512 else None
        if entry is None or not entry.found:
            return None
        return self.blobs / entry.sha512, entry.size_bytes


def open_view(lock: Path, *, blobs: Path, repositories: tuple[Repository, ...]) -> RepositoryView:
    """The view of a lock.

    Raises:
        InputsError: the lock cannot be read.
    """
    inputs = {(entry.repository, entry.path): entry for entry in read_lock(lock)}
    return RepositoryView(repositories=repositories, inputs=inputs, blobs=blobs)
