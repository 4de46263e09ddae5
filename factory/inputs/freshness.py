# SPDX-License-Identifier: Apache-2.0
"""Whether the mirrors still serve the package indexes that an earlier build used."""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from factory.errors import InputsError
from factory.inputs.lock import read_lock

_TIMEOUT_S = 30
_LIMIT_BYTES = 16 << 20


def indexes_changed(lock: Path, mirrors: Mapping[str, str]) -> bool:
    """Compare every ``InRelease`` of a lock with the mirror's present one, byte for byte.

    Raises:
        InputsError: a mirror does not answer.
    """
    entries = [entry for entry in read_lock(lock) if entry.path.rsplit("/", 1)[-1] == "InRelease"]
    return not entries or any(_fetched(mirrors[e.repository], e.path) != e.sha512 for e in entries)


def _fetched(mirror: str, path: str) -> str:
    address = f"{mirror.rstrip('/')}/{path.lstrip('/')}"
    try:
        with urllib.request.urlopen(address, timeout=_TIMEOUT_S) as answer:  # noqa: S310 the site's own mirror
            return hashlib.sha512(answer.read(_LIMIT_BYTES)).hexdigest()
    except (urllib.error.URLError, TimeoutError) as away:
        raise InputsError(
            f"the mirror does not serve '{address}'", facts=(("said", str(away)),), hint="check [mirrors] in site.toml"
        ) from away
