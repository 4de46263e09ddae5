# SPDX-License-Identifier: Apache-2.0
"""The store of recorded files: content by SHA-512, and beside it ``by-sha256`` with links to the same files.

A file is written under a temporary name while it is hashed, then renamed to its digest, so a name is either absent or
complete as long as the host does not lose power. It is not synchronised to disk for each file; whoever trusts a file
of an earlier run reads it through :meth:`BlobStore.known`, which hashes it again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import posixpath
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from factory.errors import InputsError
from factory.system.files import Digests, sha256_file

_CHUNK_BYTES = 1 << 20


class Incoming:
    """A file on its way into the store."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self.path = path
        self._file = file
        self._sha256, self._sha512, self._size = hashlib.sha256(), hashlib.sha512(), 0

    def write(self, chunk: bytes) -> None:
        """Add to the file."""
        self._file.write(chunk)
        self._count(chunk)

    def _count(self, chunk: bytes) -> None:
        self._sha256.update(chunk)
        self._sha512.update(chunk)
        self._size += len(chunk)

    @property
    def size_bytes(self) -> int:
        """How much was written so far."""
        return self._size

    def take_in(self) -> None:
        """Count what stands in the file already."""
        self._file.seek(0)
        while chunk := self._file.read(_CHUNK_BYTES):
            self._count(chunk)

    def restart(self) -> None:
        """Forget what was written."""
        self._file.seek(0)
        self._file.truncate()
        self._sha256, self._sha512, self._size = hashlib.sha256(), hashlib.sha512(), 0

    @property
    def digests(self) -> Digests:
        """What was written so far."""
        self._file.flush()
        return Digests(sha256=self._sha256.hexdigest(), sha512=self._sha512.hexdigest(), size_bytes=self._size)


class BlobStore:
    """Recorded files below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._links = root / "by-sha256"
        self._locks = root / ".locks"

    def prepare(self) -> None:
        """Make the folders."""
        self._links.mkdir(parents=True, exist_ok=True, mode=0o700)

    def path(self, sha512: str) -> Path:
        """Where a file with this digest is, or would be."""
        return self.root / sha512

    @contextlib.contextmanager
    def incoming(self) -> Iterator[Incoming]:
        """A temporary file to fill and then :meth:`keep`; it is gone at the end of the block."""
        descriptor, name = tempfile.mkstemp(prefix=".incoming-", dir=self.root)
        path = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield Incoming(file, path)
        except OSError as full:
            raise InputsError(f"'{self.root}' cannot take a recorded file", facts=(("said", str(full)),)) from full
        finally:
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def resumed(self, sha256: str) -> Iterator[Incoming]:
        """A file that must come to have this SHA-256, with what an earlier try left of it; what is not kept is left.

        Only for who holds it :meth:`alone`.
        """
        path = self.root / f".partial-{sha256}"
        try:
            with path.open("a+b") as file:
                incoming = Incoming(file, path)
                incoming.take_in()
                yield incoming
        except OSError as full:
            raise InputsError(f"'{self.root}' cannot take a recorded file", facts=(("said", str(full)),)) from full

    @contextlib.contextmanager
    def alone(self, sha256: str) -> Iterator[None]:
        """Wait until nobody else on this host fetches the file with this SHA-256; the kernel frees it when we die."""
        self._locks.mkdir(exist_ok=True, mode=0o700)
        with (self._locks / sha256[:2]).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def keep(self, incoming: Incoming) -> Digests:
        """Give a complete file its name."""
        found = incoming.digests
        incoming.path.chmod(0o644)
        incoming.path.replace(self.path(found.sha512))
        self._link(found)
        return found

    def known(self, sha256: str) -> Digests | None:
        """The file with this SHA-256 when it is in the store and still has this content; a damaged one is dropped.

        Who asks knows the SHA-256 from a signed index, and that alone is computed again, from every byte. The SHA-512
        is the file's name, which it got from the same bytes; a replay, which knows files by it, computes it.
        """
        link = self._links / sha256
        try:
            path = self.path(link.readlink().name)
            size_bytes, found = path.stat().st_size, sha256_file(path)
        except OSError:
            return None
        if found == sha256:
            return Digests(sha256=sha256, sha512=path.name, size_bytes=size_bytes)
        path.unlink(missing_ok=True)
        link.unlink(missing_ok=True)
        return None

    def sha512_of(self, sha256: str) -> str | None:
        """The name in the store of the file with this SHA-256, without looking into it."""
        with contextlib.suppress(OSError):
            return (self._links / sha256).readlink().name
        return None

    def sha256_by_sha512(self) -> dict[str, str]:
        """Both digests of every file in the store, without looking into any."""
        found = {}
        with contextlib.suppress(OSError), os.scandir(self._links) as links:
            for link in links:
                with contextlib.suppress(OSError):
                    found[posixpath.basename(os.readlink(link.path))] = link.name  # noqa: PTH115 there are thousands
        return found

    def _link(self, found: Digests) -> None:
        link = self._links / found.sha256
        target = Path("..") / found.sha512
        with contextlib.suppress(FileExistsError):
            link.symlink_to(target)
