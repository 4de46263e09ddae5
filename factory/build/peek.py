# SPDX-License-Identifier: Apache-2.0
"""Single files out of an image, without mounting it."""

from __future__ import annotations

from pathlib import Path

from factory.build.disk import SECTOR_BYTES, read_head, root_partition
from factory.errors import CommandFailed
from factory.system.run import run

_MAX_BYTES = 4 << 20


class Peek:
    """The files of a qcow2 image's root file system.

    Args:
        scratch: a folder in which the raw disk and what is read are put.
    """

    def __init__(self, image: Path, scratch: Path) -> None:
        self._scratch = scratch
        disk = scratch / f"{image.name}.raw"
        run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, disk], timeout_s=600)
        partition = root_partition(read_head(disk, SECTOR_BYTES))
        self._place = f"{disk}?offset={partition.offset_bytes}"

    def read(self, path: str) -> bytes | None:
        """The content of a plain file; None when it is large, or has a name that debugfs cannot be told."""
        if '"' in path or not path.isprintable():
            return None
        out = self._scratch / "peek"
        out.unlink(missing_ok=True)
        try:
            run(["debugfs", "-R", f'dump "{path}" {out}', self._place], timeout_s=60)
        except CommandFailed:
            return None
        if not out.is_file() or out.stat().st_size > _MAX_BYTES:
            return None
        return out.read_bytes()
