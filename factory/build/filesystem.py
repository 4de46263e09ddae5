# SPDX-License-Identifier: Apache-2.0
"""The root file system, written anew so that its bytes follow from its files alone.

The builder's file system was written by the kernel: blocks, times and counters in it depend on how busy the host was.
It is mounted in the box, checked, and copied by ``mke2fs -d`` into a fresh file system with the same identifiers and
features, at the same place of a fresh disk. Times are clamped to the epoch (as
https://reproducible-builds.org/docs/source-date-epoch/ asks); what mke2fs takes from the clock is set afterwards.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from factory.build.box import ROOT, Box
from factory.build.disk import RootPartition
from factory.build.identity import Identity
from factory.errors import BuildError

_KEY = re.compile(r"^([A-Z][^:\n]*): *(.*)$", re.MULTILINE)
_FREE = re.compile(r"^ +Free inodes: (.*)$", re.MULTILINE)
_RUN_TIME_FEATURES = frozenset({"needs_recovery", "orphan_present"})
_TIME_FIELDS = ("atime", "ctime", "crtime")
_SUPERBLOCK, _SUPERBLOCK_BYTES, _CHECKSUM, _WRITE_TIME = 1024, 1024, 0x3FC, 0x30
_METADATA_CSUM = 0x400
_FEATURES_RO_COMPAT = 0x64
_CRC32C = 0x82F63B78


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """What a new file system takes over from the builder's."""

    uuid: str
    label: str
    features: tuple[str, ...]
    block_bytes: int
    blocks: int
    inode_bytes: int
    inodes: int
    reserved_blocks: int


def parse_format(text: str) -> Format:
    """Read the output of ``dumpe2fs -h``."""
    found = dict(_KEY.findall(text))
    try:
        return Format(
            uuid=found["Filesystem UUID"],
            label="" if found["Filesystem volume name"] == "<none>" else found["Filesystem volume name"],
            features=tuple(name for name in found["Filesystem features"].split() if name not in _RUN_TIME_FEATURES),
            block_bytes=int(found["Block size"]),
            blocks=int(found["Block count"]),
            inode_bytes=int(found["Inode size"]),
            inodes=int(found["Inode count"]),
            reserved_blocks=int(found["Reserved block count"]),
        )
    except (KeyError, ValueError) as unknown:
        raise BuildError("the builder's root file system is not ext4", facts=(("missing", str(unknown)),)) from unknown


def attach(box: Box, disk: Path, partition: RootPartition) -> str:
    """A device, in the box, that is the partition."""
    offset, size = f"--offset={partition.offset_bytes}", f"--sizelimit={partition.size_bytes}"
    return box.run(["losetup", "-f", offset, size, "--show", disk]).stdout.strip()


def read_format(box: Box, device: str) -> Format:
    """What the builder's file system looks like."""
    return parse_format(box.run(["dumpe2fs", "-h", device]).stdout)


def expect_identity(found: Format, identity: Identity) -> None:
    """Raise unless the builder took the identifiers it was given: GRUB and fstab name them."""
    if found.uuid != identity.root_uuid:
        raise BuildError(
            "the builder gave the root file system another UUID than it was told",
            facts=(("found", found.uuid), ("expected", identity.root_uuid)),
            hint="the description must not make file systems by itself",
        )


def mount_root(box: Box, device: str) -> None:
    """Mount the builder's root file system at :data:`~factory.build.box.ROOT`, in the box."""
    box.run(["mount", "-t", "ext4", "-o", "noatime", device, ROOT])


def clamp_times(box: Box, epoch: int) -> None:
    """No file of the mounted root is newer than ``epoch`` afterwards."""
    touch = ["touch", "--no-dereference", "--date", f"@{epoch}", "{}", "+"]
    box.run(["find", ROOT, "-xdev", "-newermt", f"@{epoch}", "-exec", *touch])


def note_disk_id(box: Box, identity: Identity) -> None:
    """Keep the builder's own record of the disk identifier, where the image has one, in step with the disk."""
    note = box.seen(ROOT / "boot" / "mbrid")
    if note.is_file() and not note.is_symlink():
        note.write_text(f"0x{identity.disk_id:08x}\n")


def write_filesystem(box: Box, disk: Path, partition: RootPartition, like: Format, identity: Identity) -> None:
    """Write the mounted root into a fresh file system on ``disk``, a file that is as long as the disk and empty."""
    fixed = {"SOURCE_DATE_EPOCH": str(identity.epoch), "E2FSPROGS_FAKE_TIME": str(identity.epoch)}
    options = f"root_owner=0:0,hash_seed={identity.hash_seed},assume_storage_prezeroed=1,nodiscard"
    argv: list[str | Path] = ["mke2fs", "-q", "-F", "-t", "ext4", "-d", ROOT, "-U", like.uuid]
    argv += ["-O", ",".join(("none", *like.features)), "-b", str(like.block_bytes), "-I", str(like.inode_bytes)]
    argv += ["-N", str(like.inodes), "-m", f"{100 * like.reserved_blocks / like.blocks:.4f}"]
    argv += ["-E", f"{options},offset={partition.offset_bytes}"]
    argv += ["-L", like.label] if like.label else []
    box.run([*argv, disk, str(like.blocks)], env=fixed)
    # dumpe2fs takes a file's name with an offset for a "TOKEN=value" since 1.47.1, and finds nothing
    device = attach(box, disk, partition)
    used = used_inodes(box.run(["dumpe2fs", device]).stdout, like.inodes)
    box.run(["losetup", "-d", device])
    place = f"{disk}?offset={partition.offset_bytes}"
    box.run(["debugfs", "-w", "-f", "-", place], env=fixed, stdin=_batch(used, identity.epoch))
    with box.seen(disk).open("r+b") as file:
        file.seek(partition.offset_bytes + _SUPERBLOCK)
        superblock = file.read(_SUPERBLOCK_BYTES)
        file.seek(partition.offset_bytes + _SUPERBLOCK)
        file.write(with_write_time(superblock, identity.epoch))


def _batch(inodes: Iterable[int], epoch: int) -> bytes:
    lines = "".join(f"set_inode_field <%d> {field} @{epoch}\n" for field in _TIME_FIELDS)
    return "".join([lines % ((inode,) * len(_TIME_FIELDS)) for inode in inodes]).encode()


def used_inodes(text: str, inodes: int) -> Iterator[int]:
    """The numbers of the files' inodes (not of the file system's own), from the output of ``dumpe2fs``."""
    reserved = 10
    free = set[int]()
    for ranges in _FREE.findall(text):
        for item in filter(None, (part.strip() for part in ranges.split(","))):
            first, _, last = item.partition("-")
            free.update(range(int(first), int(last or first) + 1))
    root = 2
    yield root
    yield from (inode for inode in range(reserved + 1, inodes + 1) if inode not in free)


def with_write_time(superblock: bytes, epoch: int) -> bytes:
    """``superblock`` as if it had been written at ``epoch``; its checksum follows where the file system has any."""
    body = bytearray(superblock)
    struct.pack_into("<I", body, _WRITE_TIME, epoch & 0xFFFFFFFF)
    if struct.unpack_from("<I", body, _FEATURES_RO_COMPAT)[0] & _METADATA_CSUM:
        struct.pack_into("<I", body, _CHECKSUM, crc32c(bytes(body[:_CHECKSUM])))
    return bytes(body)


def crc32c(content: bytes) -> int:
    """CRC-32C (RFC 3720, B.4) without the final inversion, as ext4 stores it."""
    remainder = 0xFFFFFFFF
    for byte in content:
        remainder ^= byte
        for _ in range(8):
            remainder = remainder >> 1 ^ (_CRC32C if remainder & 1 else 0)
    return remainder
