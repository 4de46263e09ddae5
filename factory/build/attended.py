# SPDX-License-Identifier: Apache-2.0
"""A builder that runs in a box, looked after: what it does is told, and it ends when an input is missing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from factory.build.box import Box
from factory.inputs.answers import Inputs
from factory.system.run import ended, ending, failure, last_lines

INPUTS_PORT = 3142
"""Where the inputs server answers, in the box."""
_TIMEOUT_S = 5400.0
_SAY_EVERY_S = 10.0
_LOOK_EVERY_S = 1.0


def attended(
    argv: list[str],
    box: Box,
    environment: Mapping[str, str],
    *,
    name: str,
    doing: Callable[[str], str],
    recorder: Inputs,
    log: Path,
    say: Callable[[str], None],
) -> None:
    """Run a builder to its end.

    Args:
        name: how people call it.
        doing: what it does now, by the end of its log.

    Raises:
        CommandFailed: it failed, an input is missing, or it does not end.
    """
    started = said = time.monotonic()
    with box.running(argv, log=log, env=environment) as process:
        while (status := ended(process, wait_s=_LOOK_EVERY_S)) is None:
            present = time.monotonic()
            if recorder.faults:
                raise failure(argv, "was ended: an input is missing", log=log)
            if present - started > _TIMEOUT_S:
                raise failure(argv, f"did not end within {_TIMEOUT_S:.0f} s", log=log)
            if present - said >= _SAY_EVERY_S:
                said = present
                say(f"{name}, {present - started:.0f} s: {doing(last_lines(log, size_bytes=1 << 16))}")
    if status:
        raise failure(argv, ending(status, time.monotonic() - started), log=log)
