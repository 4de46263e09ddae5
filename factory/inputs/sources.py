# SPDX-License-Identifier: Apache-2.0
"""Where replayed bytes come from: a folder of blobs, a store reached by HTTP, or a mirror.

The store's protocol is the shacache one of slapos.libnetworkcache: ``GET <store>/<sha512>`` is the content. Nobody here
is trusted: whoever copies from a source compares what came with the digest that the lock gives.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Protocol

from factory.errors import InputFault
from factory.inputs.blobs import Incoming
from factory.inputs.lock import Input
from factory.inputs.upstream import Upstream

_OK = 200
_CHUNK_BYTES = 1 << 20


class Source(Protocol):
    """A place that may have an input's bytes."""

    def copy(self, entry: Input, into: Incoming) -> bool:
        """Write the bytes that are there for ``entry``, unverified; False when there are none.

        Raises:
            InputsError: the place cannot be reached.
        """

    def place(self, entry: Input) -> str:
        """Where that is, for people."""


class BlobFolder:
    """A folder of files that are named by their SHA-512."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def copy(self, entry: Input, into: Incoming) -> bool:
        file = self._folder / entry.sha512
        if not file.is_file():
            return False
        with file.open("rb") as stored:
            left = entry.size_bytes + 1  # one more than expected is enough to refuse it
            while left and (chunk := stored.read(min(_CHUNK_BYTES, left))):
                into.write(chunk)
                left -= len(chunk)
        return True

    def place(self, entry: Input) -> str:
        return str(self._folder / entry.sha512)


class _Remote(ABC):
    def __init__(self, address: str, upstream: Upstream) -> None:
        self._address = address.rstrip("/")
        self._upstream = upstream

    @abstractmethod
    def place(self, entry: Input) -> str:
        """Its address."""

    def copy(self, entry: Input, into: Incoming) -> bool:
        with self._upstream.get(self.place(entry)) as (status, body):
            if status != _OK:
                return False
            left = entry.size_bytes + 1
            for chunk in body:
                into.write(chunk[:left])
                left -= len(chunk)
                if left <= 0:
                    break
            return True


class BlobStoreServer(_Remote):
    """A store that speaks the shacache protocol."""

    def place(self, entry: Input) -> str:
        return f"{self._address}/{entry.sha512}"


class Mirror(_Remote):
    """A package repository; it may have moved on since the lock was written."""

    def place(self, entry: Input) -> str:
        return f"{self._address}/{entry.path}"


def source_named(name: str, upstream: Upstream | None = None) -> Source:
    """The source that a person named: a folder, or the address of a store.

    Raises:
        InputFault: it is neither.
    """
    if name.startswith(("http://", "https://")):
        return BlobStoreServer(name, upstream or Upstream())
    if not Path(name).is_dir():
        raise InputFault(
            f"there is no folder '{name}' with recorded inputs",
            hint="name a folder ('factory inputs export' makes one), or the address of a store",
        )
    folder = Path(name)
    return BlobFolder(folder / "blobs" if (folder / "blobs").is_dir() else folder)
