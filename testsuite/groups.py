# SPDX-License-Identifier: Apache-2.0
"""Run the test groups of ``make test`` one after the other and print how long each took."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

BIN = Path(sys.executable).parent
GROUPS = (
    ("lint", [BIN / "ruff", "check", "."]),
    ("format", [BIN / "ruff", "format", "--check", "."]),
    ("types", [BIN / "mypy"]),
    ("tests", [BIN / "pytest", "-m", "not slow", "testsuite/unit", "testsuite/integration", "testsuite/mutants"]),
)


def main() -> int:
    """Run every group, also after a failure; the status is 0 only when all passed."""
    asked = set(sys.argv[1:])
    times: list[tuple[str, str, float]] = []
    for name, argv in GROUPS:
        if asked and name not in asked:
            continue
        print(f"== {name}", flush=True)
        started = time.monotonic()
        status = subprocess.run(argv, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}, check=False).returncode
        times.append((name, "passed" if status == 0 else f"FAILED ({status})", time.monotonic() - started))
    print("\ngroup     result        seconds")
    for name, result, seconds in times:
        print(f"{name:<9} {result:<13} {seconds:7.1f}")
    return int(any(result != "passed" for _, result, _ in times))


if __name__ == "__main__":
    sys.exit(main())
