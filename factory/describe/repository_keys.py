# SPDX-License-Identifier: Apache-2.0
"""Whether instances can trust their repositories for as long as they may be started from an image."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

from factory.describe.repositories import Sources
from factory.errors import Fault
from factory.inputs.keyring import RepositoryKey, keys_in, that_sign, told
from factory.inputs.signers import UPSTREAM_KEYS
from factory.model import Description


def key_faults(description: Description, found: Sources, *, now: datetime, lifetime_days: int) -> Iterator[Fault]:
    """Repositories of which no key that may sign lives as long as images are kept.

    Judged is the keyring that the build verifies with; instances have it, or its like from a package. Of its keys those
    count that ``keys/upstream.toml`` names, or all where it names none.
    """
    until = now + timedelta(days=lifetime_days)
    known: dict[Path, tuple[RepositoryKey, ...]] = {}
    for repository in description.update_repositories:
        keyring = found.keyrings[repository.alias]
        place = f"descriptions/{description.name}/image.toml update_repositories.{repository.alias}.key"
        held = known.setdefault(keyring, keys_in(keyring))
        named = found.signers.get(repository.alias, ())
        counting = that_sign(held, named)
        if not held:
            yield Fault(place=place, problem=f"'{keyring.name}' holds no key", cure="take the vendor's keyring again")
        elif not counting:
            yield Fault(
                place=place,
                problem=f"'{keyring.name}' holds none of the keys that {UPSTREAM_KEYS} names for this repository",
                cure="take the vendor's present keyring, or compare the fingerprints with the vendor's own word",
            )
        elif all(key.ends < until for key in counting):
            yield Fault(
                place=place,
                problem=f"no key that signs lives until {until:%Y-%m-%d}, as long as images are kept: {told(counting)}",
                cure="take the vendor's newer keyring, or keep images for a shorter time ([retention] monthly)",
            )
