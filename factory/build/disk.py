# SPDX-License-Identifier: Apache-2.0
"""The raw disk that a builder made, read as bytes: partition table and boot code.

Layouts: UEFI specification 5.2 (MBR); GNU GRUB's ``boot.h`` and ``diskboot.S`` for the place of its second stage.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from factory.errors import BuildError

SECTOR_BYTES = 512
_SIGNATURE = b"\x55\xaa"
_TABLE, _ENTRY_BYTES, _ENTRIES = 446, 16, 4
_DISK_ID = 440
_LINUX, _PROTECTIVE = 0x83, 0xEE
_GRUB_KERNEL_SECTOR = 0x5C
_GRUB_BLOCK_LIST = 0x1F4


@dataclass(frozen=True, slots=True, kw_only=True)
class RootPartition:
    """Where the root file system lies on a disk."""

    number: int
    offset_bytes: int
    size_bytes: int


def root_partition(table: bytes) -> RootPartition:
    """The one Linux partition of an MBR.

    Raises:
        BuildError: no MBR, or a layout with other partitions.
    """
    if len(table) < SECTOR_BYTES or table[510:512] != _SIGNATURE:
        raise BuildError("the builder's disk has no partition table")
    found = []
    for index in range(_ENTRIES):
        entry = table[_TABLE + index * _ENTRY_BYTES :][:_ENTRY_BYTES]
        kind, start, sectors = entry[4], *struct.unpack("<II", entry[8:16])
        if kind:
            found.append((index + 1, kind, start, sectors))
    if len(found) != 1 or found[0][1] != _LINUX:
        kinds = ", ".join(f"{number}: type {kind:02x}" for number, kind, _, _ in found)
        raise BuildError(
            "the builder's disk has a layout that the factory cannot finish",
            facts=(("found", kinds or "no partition"),),
            hint='one root partition on a BIOS disk is supported: firmware="bios", no boot, swap or spare partition',
        )
    number, _, start, sectors = found[0]
    return RootPartition(number=number, offset_bytes=start * SECTOR_BYTES, size_bytes=sectors * SECTOR_BYTES)


def expect_embedded_grub(head: bytes) -> None:
    """Raise unless GRUB's second stage lies whole in ``head``, the space before the first partition.

    Were it a file of the root file system, its place would be written into the boot sector as block numbers, and these
    are others once the file system is written anew.
    """
    kernel = struct.unpack_from("<Q", head, _GRUB_KERNEL_SECTOR)[0]
    start = length = 0
    if 0 < kernel * SECTOR_BYTES < len(head) - SECTOR_BYTES:
        start, length = struct.unpack_from("<QH", head, kernel * SECTOR_BYTES + _GRUB_BLOCK_LIST)
        more = struct.unpack_from("<H", head, kernel * SECTOR_BYTES + _GRUB_BLOCK_LIST - 12 + 8)[0]
        if start == kernel + 1 and length and not more and (start + length) * SECTOR_BYTES <= len(head):
            return
    raise BuildError(
        "the boot loader is not embedded before the first partition",
        facts=(("boot", f"second stage at sector {kernel}, its rest at {start} + {length}"),),
        hint="leave at least 1 MiB before the first partition, and let the builder install GRUB for BIOS",
    )


def with_disk_id(head: bytes, disk_id: int) -> bytes:
    """``head`` with another disk identifier."""
    return head[:_DISK_ID] + struct.pack("<I", disk_id) + head[_DISK_ID + 4 :]


def read_head(disk: Path, size_bytes: int) -> bytes:
    """The first bytes of a disk."""
    with disk.open("rb") as file:
        return file.read(size_bytes)
