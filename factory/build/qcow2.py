# SPDX-License-Identifier: Apache-2.0
"""The image users get: one compressed qcow2."""

from __future__ import annotations

import json
from pathlib import Path

from factory.build.box import Box
from factory.errors import BuildError, CommandFailed
from factory.system.files import appearing
from factory.system.run import run


def compress(box: Box, disk: Path, image: Path, *, log: Path) -> None:
    """Write ``disk`` (in the box) as ``image``; the same bytes from the same disk.

    Never with ``-W``: clusters written out of order land where the scheduler put them.
    """
    argv = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd"]
    with appearing(image) as partial:
        box.run([*argv, str(disk), str(partial)], log=log)
        try:
            run(["qemu-img", "check", "-f", "qcow2", partial], log=log, timeout_s=300)
        except CommandFailed as failed:
            raise BuildError(f"'{image.name}' is not a sound qcow2 image", hint="is the disk full?") from failed


def virtual_size_bytes(image: Path) -> int:
    """The size of the disk that a guest sees."""
    answer = run(["qemu-img", "info", "-f", "qcow2", "--output=json", image], timeout_s=60)
    return int(json.loads(answer.stdout)["virtual-size"])
