# SPDX-License-Identifier: Apache-2.0
"""The layers of a disk, each by a digest: partition table, boot code, file system; the qcow2 around them has its own.

Two images that differ although their files are the same differ in one of these, and so people know where to look.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from factory.build.disk import SECTOR_BYTES, RootPartition, read_head

_BLOCK_BYTES = 1 << 16
_ZEROS = bytes(_BLOCK_BYTES)


def layers(disk: Path, partition: RootPartition) -> dict[str, str]:
    """The SHA-256 of each layer of a raw disk."""
    head = read_head(disk, partition.offset_bytes)
    return {
        "partition table": hashlib.sha256(head[:SECTOR_BYTES]).hexdigest(),
        "boot code": hashlib.sha256(head[SECTOR_BYTES:]).hexdigest(),
        "file system": _sparse_digest(disk, partition.offset_bytes, partition.offset_bytes + partition.size_bytes),
    }


def _sparse_digest(disk: Path, start: int, end: int) -> str:
    """The digest of a part of a disk by its blocks that are not zero: holes count as zeros, and cost nothing."""
    total = hashlib.sha256()
    descriptor = os.open(disk, os.O_RDONLY)
    try:
        end = min(end, os.fstat(descriptor).st_size)
        at = _data_from(descriptor, start, start)
        while at < end:
            block = os.pread(descriptor, min(_BLOCK_BYTES, end - at), at)
            if block == _ZEROS[: len(block)]:
                at = _data_from(descriptor, at + len(block), start)
                continue
            total.update((at - start).to_bytes(8))
            total.update(block)
            at += len(block)
    finally:
        os.close(descriptor)
    return total.hexdigest()


def _data_from(descriptor: int, at: int, start: int) -> int:
    """Where the next data is, at a border of blocks."""
    try:
        found = os.lseek(descriptor, at, os.SEEK_DATA)
    except OSError:  # only a hole is left
        return 1 << 62
    return max(at, start + (found - start) // _BLOCK_BYTES * _BLOCK_BYTES)
