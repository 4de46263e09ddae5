# SPDX-License-Identifier: Apache-2.0
"""Whether the mirrors still serve the package indexes that an earlier build used."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from factory.errors import InputsError
from factory.inputs.lock import read_lock
from factory.inputs.upstream import Upstream
from factory.system.secrets import Login

_OK = 200


def indexes_changed(lock: Path, mirrors: Mapping[str, str], *, logins: Mapping[str, Login] | None = None) -> bool:
    """Compare every ``InRelease`` of a lock with the mirror's present one, byte for byte.

    Args:
        logins: credentials by a mirror's address.

    Raises:
        InputsError: a mirror does not answer, or no longer has an index.
    """
    entries = [entry for entry in read_lock(lock) if entry.path.rsplit("/", 1)[-1] == "InRelease"]
    upstream = Upstream(logins=logins)
    return not entries or any(_fetched(upstream, mirrors[e.repository], e.path) != e.sha512 for e in entries)


def _fetched(upstream: Upstream, mirror: str, path: str) -> str:
    address, digest = f"{mirror.rstrip('/')}/{path.lstrip('/')}", hashlib.sha512()
    with upstream.get(address) as (status, body):
        if status != _OK:
            raise InputsError(
                f"the mirror does not serve '{address}'",
                facts=(("status", str(status)),),
                hint="check [mirrors] in site.toml",
            )
        for chunk in body:
            digest.update(chunk)
    return digest.hexdigest()
