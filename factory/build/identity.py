# SPDX-License-Identifier: Apache-2.0
"""Identifiers that would be random: made from the image and its epoch, and given to the builder before it starts."""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "image-factory.invalid")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The identifiers of one image: of its root file system, of the seed of its directory hashes, and of its disk."""

    epoch: int
    root_uuid: str
    hash_seed: str
    disk_id: int


def identity(image: str, epoch: int) -> Identity:
    """The identifiers of ``image`` at ``epoch`` (seconds since 1970)."""
    return Identity(
        epoch=epoch,
        root_uuid=str(uuid.uuid5(_NAMESPACE, f"{image}/{epoch}/root")),
        hash_seed=str(uuid.uuid5(_NAMESPACE, f"{image}/{epoch}/hash-seed")),
        # never 0: that means "no identifier"
        disk_id=int.from_bytes(hashlib.sha256(f"{image}/{epoch}/disk".encode()).digest()[:4]) | 1,
    )


def serial_number(sha256: str) -> uuid.UUID:
    """The number of an image's bill of materials: another one for other bytes, and only then."""
    return uuid.uuid5(_NAMESPACE, f"{sha256}/sbom")


def build_id(recipe_digest: str, inputs_digest: str) -> str:
    """A short name for what a recipe and its inputs make: the same for the same bytes."""
    return hashlib.sha256(f"{recipe_digest}/{inputs_digest}".encode()).hexdigest()[:12]
