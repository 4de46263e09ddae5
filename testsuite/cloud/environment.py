# SPDX-License-Identifier: Apache-2.0
"""The Python environment of the compute services: the lock, and Debian's binding for Debian's libvirt."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from factory.errors import CloudError
from factory.system.files import remove, sha256_file, write_whole
from factory.system.lock import waiting

PROJECT = Path(__file__).parents[2]
LOCK = PROJECT / "locks" / "compute.txt"
FOLDER = PROJECT / ".venv-compute"
PYTHON = Path("/usr/bin/python3")
"""Debian's own: its libvirt binding is compiled for this version, and building another would need a compiler."""
_BINDING = Path("/usr/lib/python3/dist-packages")
_INSTALL_S = 900


def environment(say: Callable[[str], None], *, folder: Path = FOLDER) -> Path:
    """The environment, with exactly what the lock says; installed when it is not there.

    Raises:
        CloudError: it cannot be installed.
    """
    wanted = sha256_file(LOCK)
    record, found = folder / "installed", folder / "python"
    with waiting(folder / "lock", what="the compute services' environment", timeout_s=_INSTALL_S):
        if record.exists() and record.read_text() == wanted:
            return found
        started = time.monotonic()
        remove(record)
        remove(found)
        _tool("uv", "venv", "--quiet", "--python", PYTHON, found)
        _install(found / "bin" / "python")
        _link_binding(found)
        write_whole(record, wanted)
        say(f"cloud: the compute services were installed in {time.monotonic() - started:.0f} s")
    return found


def _install(python: Path) -> None:
    exact = ["--no-deps", "--require-hashes", "--requirement", str(LOCK)]
    try:
        _tool("uv", "pip", "install", "--quiet", "--python", python, *exact)
    except CloudError:  # a host whose index only pip is told of
        _tool("pip", "--python", python, "install", "--quiet", "--no-compile", *exact)


def _tool(module: str, *words: str | Path) -> None:
    # the caller's environment: proxies and indexes are said there
    done = subprocess.run(
        [sys.executable, "-m", module, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=_INSTALL_S,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
    )
    if done.returncode != 0:
        raise CloudError(
            f"the compute services cannot be installed ({module})",
            facts=tuple(("said", line) for line in done.stderr.strip().splitlines()[-8:]),
            hint="run 'make setup-tests'",
        )


def _link_binding(folder: Path) -> None:
    """Debian's modules, without opening the environment to all of Debian's Python packages."""
    found = [*_BINDING.glob("libvirt*.py"), *_BINDING.glob("libvirtmod*.so")]
    if not found:
        raise CloudError("python3-libvirt is not installed", hint="run 'make setup-tests'")
    (packages,) = (folder / "lib").glob("python3*/site-packages")
    for module in found:
        (packages / module.name).symlink_to(module)
