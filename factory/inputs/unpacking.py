# SPDX-License-Identifier: Apache-2.0
"""Package indexes, unpacked."""

from __future__ import annotations

import bz2
import gzip
import os
import secrets
from pathlib import Path

from factory.errors import CommandFailed, InputsError
from factory.system.run import run

_TIMEOUT_S = 300.0
_UNPACK = {".gz": gzip.decompress, ".bz2": bz2.decompress}


def index_text(name: str, file: Path) -> bytes:
    """The text of a stored index; ``name`` ends as the repository's file does, and so tells how it is packed.

    Debian's large indexes are xz files of several blocks. ``xz`` unpacks them side by side, in half the time that
    Python's module takes, which knows one block after the other; the build waits for it.

    Raises:
        InputsError: the file is damaged.
    """
    try:
        if name.endswith(".xz"):
            return _unxz(file)
        unpack = next((unpack for ending, unpack in _UNPACK.items() if name.endswith(ending)), bytes)
        return unpack(file.read_bytes())
    except (CommandFailed, OSError, EOFError, ValueError) as damaged:
        raise InputsError(f"the package index '{name}' is damaged") from damaged


def _unxz(file: Path) -> bytes:
    text = file.with_name(f".incoming-{secrets.token_hex(8)}")  # what a crash leaves under such a name is collected
    packed = text.with_name(f"{text.name}.xz")
    try:
        os.link(file, packed)  # xz goes by the name, and --force lets it read a file of several names
        run(["xz", "--decompress", "--keep", "--force", "--threads=0", packed], timeout_s=_TIMEOUT_S)
        return text.read_bytes()
    finally:
        for path in (packed, text):
            path.unlink(missing_ok=True)
