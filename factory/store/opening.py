# SPDX-License-Identifier: Apache-2.0
"""From a target of the site file to its image store."""

from __future__ import annotations

import contextlib
import hashlib
import uuid
from collections.abc import Iterator
from pathlib import Path

from factory.model import Target
from factory.store.protocol import ImageStore, Say
from factory.system.files import write_whole
from factory.system.state import State

_MACHINE_ID = Path("/etc/machine-id")


@contextlib.contextmanager
def open_store(target: Target, *, state: State, say: Say) -> Iterator[ImageStore]:
    """The image store of a target; the embedded cloud is brought up for it and stays up.

    Raises:
        CloudError: the embedded cloud does not come up.
        StoreError: the target's cloud is not in clouds.yaml.
    """
    from factory.cloud import up
    from factory.store.glance import connect_glance

    if target.cloud == "embedded":
        access = up(state.cloud, say=say)
        store = connect_glance(access.publisher, clouds_yaml=access.clouds_yaml, direct=True, holder=holder_of(state))
    else:
        store = connect_glance(
            target.cloud, region_name=target.region_name, holder=holder_of(state), without=target.without
        )
    try:
        yield store
    finally:
        store.close()


def holder_of(state: State) -> str:
    """Who we are to other factories: everybody who uses this state folder on this machine, and so shares its locks."""
    path = state.path / "holder"
    if not path.exists():
        write_whole(path, f"{uuid.uuid4()}\n")
    machine = _MACHINE_ID.read_text() if _MACHINE_ID.exists() else ""
    parts = (path.read_text(), machine, str(state.path.resolve()))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
