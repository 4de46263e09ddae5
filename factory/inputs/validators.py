# SPDX-License-Identifier: Apache-2.0
"""What a mirror calls the version of an index that it gave us, so that the next night asks on condition.

One small file an address, beside the stored files. Nothing is trusted on its word: a mirror that says "not modified"
(RFC 9110, 15.4.5) leads to a stored file whose digest is compared first, and whose signature is verified again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from factory.inputs.blobs import BlobStore
from factory.system.files import Digests, write_whole

_CONDITIONS = {"ETag": "If-None-Match", "Last-Modified": "If-Modified-Since"}
_LIMIT_CHARACTERS = 512


class Validators:
    """The entity tags and times of files by address."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._folder = store.root / ".validators"

    def known(self, address: str) -> tuple[dict[str, str], Digests | None]:
        """The headers that ask for an address on condition, and the stored file that is meant; nothing without it."""
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            kept = json.loads(self._file(address).read_text())
            found = self._store.known(str(kept["sha256"])) if kept["address"] == address else None
            if found is not None:
                return {condition: str(kept[mark]) for mark, condition in _CONDITIONS.items() if kept.get(mark)}, found
        return {}, None

    def note(self, address: str, marks: Mapping[str, str], found: Digests) -> None:
        """Keep what a mirror called the file that it gave."""
        kept = {mark: value for mark, value in marks.items() if value and len(value) <= _LIMIT_CHARACTERS}
        self._folder.mkdir(exist_ok=True, mode=0o700)
        if kept:
            write_whole(self._file(address), json.dumps({"address": address, "sha256": found.sha256, **kept}) + "\n")
        else:
            self._file(address).unlink(missing_ok=True)

    def _file(self, address: str) -> Path:
        return self._folder / hashlib.sha256(address.encode()).hexdigest()
