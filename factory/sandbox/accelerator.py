# SPDX-License-Identifier: Apache-2.0
"""KVM or TCG: decided by running a guest, not by looking for ``/dev/kvm``.

There are hosts where the device exists, QEMU starts with ``-accel kvm``, the firmware runs, a boot sector that prints a
letter runs too, and yet no operating system ever comes up (nested virtualisation that emulates only some instructions).
So the guest that proves KVM is a real Linux kernel, the one in the image that is to be booted: started without a root
file system it goes through all of its start, finds nothing to mount, says so, and ends. That takes about a second under
KVM and four under TCG. The answer is kept for as long as the host runs (``/proc/sys/kernel/random/boot_id``) and QEMU
stays the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from factory.errors import CommandFailed
from factory.sandbox.machine import TCG_CPU
from factory.system.files import write_whole
from factory.system.run import run, running

_DEVICE = Path("/dev/kvm")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_HOST_KERNELS = Path("/boot")
_QEMU = "qemu-system-x86_64"
_PROOF_S = 8.0
_PROVEN = "Unable to mount root fs"
_KERNEL_NAME = re.compile(r"/(vmlinuz-[A-Za-z0-9.+_~-]+)/")


def proven_accelerator(cache: Path, say: Callable[[str], None], *, artifact: Path | None = None) -> str:
    """``kvm`` when a kernel really came up under it on this host since it was started, else ``tcg``.

    Args:
        cache: a folder where the answer is kept.
        artifact: an image whose kernel serves for the proof; without one, the newest kernel in the host's ``/boot``.
    """
    if not os.access(_DEVICE, os.R_OK | os.W_OK):
        return "tcg"
    host = {
        "boot_id": _BOOT_ID.read_text().strip(),
        "qemu": run([_QEMU, "--version"], timeout_s=20).stdout.split("\n")[0],
    }
    remembered = cache / "accelerator.json"
    if known := recall(remembered, host):
        return known
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    with contextlib.ExitStack() as stack:
        kernel = stack.enter_context(kernel_of(artifact, cache)) if artifact else None
        kernel = kernel or newest_host_kernel(_HOST_KERNELS)
        if kernel is None:
            say("KVM is not used: there is no kernel to prove it with")
            return "tcg"
        started = time.monotonic()
        proven = runs_under("kvm", kernel, timeout_s=_PROOF_S)
        seconds = time.monotonic() - started
    accelerator = "kvm" if proven else "tcg"
    say(
        f"KVM ran a kernel in {seconds:.1f} s"
        if proven
        else f"KVM is there but no kernel came up under it in {seconds:.0f} s: guests run under TCG, much slower"
    )
    write_whole(remembered, json.dumps({**host, "accelerator": accelerator}) + "\n")
    return accelerator


def recall(remembered: Path, host: dict[str, str]) -> str:
    """The answer found earlier for the same boot of the host and the same QEMU, or nothing."""
    try:
        found = json.loads(remembered.read_text())
    except (OSError, ValueError):
        return ""
    if not isinstance(found, dict) or any(found.get(name) != value for name, value in host.items()):
        return ""
    return found["accelerator"] if found.get("accelerator") in {"kvm", "tcg"} else ""


def runs_under(accelerator: str, kernel: Path, *, timeout_s: float) -> bool:
    """Whether ``kernel`` goes through its whole start under ``accelerator`` within ``timeout_s``."""
    argv = [
        _QEMU,
        *("-machine", "pc", "-accel", accelerator, "-cpu", "host" if accelerator == "kvm" else TCG_CPU),
        *("-m", "256M", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-serial", "stdio", "-kernel", str(kernel), "-append", "console=ttyS0 panic=-1"),
    ]
    with tempfile.TemporaryFile() as said:
        log = _path_of(said)
        deadline = time.monotonic() + timeout_s
        with running(argv, log=log, grace_s=0.5) as guest:
            while guest.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
        said.seek(0)
        return _PROVEN.encode() in said.read()


def newest_host_kernel(folder: Path) -> Path | None:
    """The host's own newest kernel, where there is one to read."""
    found = [path for path in folder.glob("vmlinuz-*") if os.access(path, os.R_OK)]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


@contextlib.contextmanager
def kernel_of(artifact: Path, scratch: Path) -> Iterator[Path | None]:
    """The kernel inside an image, for the length of the block; None when none is found.

    Everything lies in nameless files in the folder ``scratch``: nothing is left behind, however we end.
    """
    with tempfile.TemporaryFile(dir=scratch) as raw, tempfile.TemporaryFile(dir=scratch) as kernel:
        try:
            run(["qemu-img", "convert", "-O", "raw", artifact, _path_of(raw)], timeout_s=300)
            found = any(
                _dumped(f"{_path_of(raw)}?offset={start}", kernel) for start in _partition_starts(_path_of(raw))
            )
        except CommandFailed:
            found = False
        yield _path_of(kernel) if found else None


def _partition_starts(raw: Path) -> list[int]:
    """Where the partitions of a raw disk begin, in bytes."""
    table = json.loads(run(["sfdisk", "--json", raw], timeout_s=30).stdout)["partitiontable"]
    return [int(partition["start"]) * int(table.get("sectorsize", 512)) for partition in table.get("partitions", [])]


def _dumped(file_system: str, kernel: IO[bytes]) -> bool:
    for folder in ("/boot", "/"):
        listing = run(["debugfs", "-R", f"ls -p {folder}", file_system], timeout_s=30, check=False).stdout
        for name in sorted(_KERNEL_NAME.findall(listing), reverse=True):
            wanted = f"dump {Path(folder) / name} {_path_of(kernel)}"
            run(["debugfs", "-R", wanted, file_system], timeout_s=60, check=False)
            if os.fstat(kernel.fileno()).st_size:
                return True
    return False


def _path_of(file: IO[bytes]) -> Path:
    """A path by which other programs can open a nameless file of ours."""
    return Path(f"/proc/{os.getpid()}/fd/{file.fileno()}")
