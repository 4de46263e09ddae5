# SPDX-License-Identifier: Apache-2.0
"""The image users get: one compressed qcow2."""

from __future__ import annotations

import struct
from pathlib import Path

from factory.build.box import OUT, Box
from factory.errors import BuildError, CommandFailed
from factory.system.files import appearing

_MAGIC = b"QFI\xfb"
_HEADER = struct.Struct(">4s I Q I I Q")


def compress(box: Box, disk: Path, image: Path, *, log: Path) -> None:
    """Write ``disk`` (in the box) as ``image``; the same bytes from the same disk.

    Never with ``-W``: clusters written out of order land where the scheduler put them.
    """
    argv: list[str | Path] = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd"]
    with appearing(image) as partial:
        box.run([*argv, disk, OUT / image.name], log=log)
        try:
            box.run(["qemu-img", "check", "-f", "qcow2", OUT / image.name], log=log, timeout_s=300)
        except CommandFailed as failed:
            raise BuildError(f"'{image.name}' is not a sound qcow2 image", hint="is the disk full?") from failed
        (box.out / image.name).replace(partial)


def virtual_size_bytes(image: Path) -> int:
    """The size of the disk that a guest sees (QEMU, docs/interop/qcow2: the header's first fields)."""
    with image.open("rb") as file:
        magic, _, _, _, _, size_bytes = _HEADER.unpack(file.read(_HEADER.size))
    if magic != _MAGIC:
        raise BuildError(f"'{image.name}' is no qcow2 image")
    return int(size_bytes)
