# SPDX-License-Identifier: Apache-2.0
"""The root file system of a qcow2 image, read without mounting it and without being root."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from factory.errors import CommandFailed, FactoryError, NotGood
from factory.region.check_root import Ext4Root
from factory.system.files import free_bytes
from factory.system.run import run

_CONVERT_S = 900
_MARGIN_BYTES = 256 << 20


@contextlib.contextmanager
def qcow2_root(path: Path, *, scratch: Path | None = None) -> Iterator[Ext4Root]:
    """The root file system of an image, for the length of the block; a sparse raw copy of it is made meanwhile.

    Raises:
        NotGood: not a qcow2 image that stands alone, or no root file system that can be read in it.
        FactoryError: no space for the copy.
    """
    size = _stands_alone(path)
    with tempfile.TemporaryDirectory(prefix="factory-check-", dir=scratch) as folder:
        raw = Path(folder) / "disk.raw"
        if free_bytes(raw) < size + _MARGIN_BYTES:
            raise FactoryError(
                f"no space below '{folder}' for a copy of '{path.name}'", hint="set TMPDIR to a place with more"
            )
        # no backing file is opened even if the header should name one
        source = {"driver": "qcow2", "backing": None, "file": {"driver": "file", "filename": str(path.resolve())}}
        run(["qemu-img", "convert", "-O", "raw", f"json:{json.dumps(source)}", raw], timeout_s=_CONVERT_S)
        yield _root_in(raw, Path(folder), path)


def _stands_alone(path: Path) -> int:
    """Raise unless this is a qcow2 image without other files; returns the bytes that it takes on disk."""
    try:
        told = json.loads(run(["qemu-img", "info", "--output=json", "-f", "qcow2", path], timeout_s=60).stdout)
    except CommandFailed as failed:
        raise NotGood(f"'{path}' is not a sound qcow2 image", hint="compare its SHA-256; copy it again") from failed
    if told.get("backing-filename") or told.get("format-specific", {}).get("data", {}).get("data-file"):
        raise NotGood(f"'{path}' refers to other files and is no image of its own", hint="flatten it: qemu-img convert")
    mapped = json.loads(
        run(["qemu-img", "map", "--output=json", "-f", "qcow2", path], timeout_s=_CONVERT_S).stdout or "[]"
    )
    return sum(int(one["length"]) for one in mapped if one.get("data") and not one.get("zero"))


def _root_in(raw: Path, scratch: Path, shown: Path) -> Ext4Root:
    offsets = [0]
    done = run(["sfdisk", "--json", raw], timeout_s=60, check=False)
    if done.returncode == 0:
        table = json.loads(done.stdout)["partitiontable"]
        offsets = [int(one["start"]) * int(table.get("sectorsize", 512)) for one in table.get("partitions", ())]
    for offset in offsets:
        root = Ext4Root(f"{raw}?offset={offset}", scratch)
        with contextlib.suppress(CommandFailed):  # no ext file system there
            if root.entry("etc") is not None and root.entry("usr") is not None:
                return root
    raise NotGood(
        f"'{shown.name}' has no root file system that can be read without mounting",
        facts=(("partitions", str(len(offsets))), ("readable", "ext2, ext3, ext4")),
        hint="for another file system, mount it read-only and examine the folder",
    )
