# SPDX-License-Identifier: Apache-2.0
"""Run the test groups of ``make test`` one after the other and print how long each took, file by file."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

BIN = Path(sys.executable).parent
# each of their tests has a project of its own and waits for a Glance that uses one processor: two clouds, side by side
CLOUD_FILES = tuple(
    f"testsuite/integration/test_{name}.py"
    for name in (
        "bad_clouds",
        "cloud_probe",
        "glance",
        "glance_killed",
        "metadata_glance",
        "narrow_clouds",
        "several_factories",
        "store",
    )
)
GROUPS = (
    ("lint", [BIN / "ruff", "check", "."]),
    ("format", [BIN / "ruff", "format", "--check", "."]),
    ("types", [BIN / "mypy"]),
    ("unit", [BIN / "pytest", "-q", "-m", "not slow", "-n", "auto", "--dist", "loadfile", "testsuite/unit"]),
    ("clouds", [BIN / "pytest", "-q", "-m", "not slow", "-n", "2", "--dist", "worksteal", *CLOUD_FILES]),
    (
        "tests",
        [
            *(BIN / "pytest", "-m", "not slow", "testsuite/integration", "testsuite/mutants"),
            *(f"--ignore={file}" for file in CLOUD_FILES),
        ],
    ),
)
NIGHT = "shared night"


@dataclass(slots=True)
class Row:
    """A line of the table."""

    name: str
    result: str
    seconds: float
    tests: int = 0


def main() -> int:
    """Run every group, also after a failure; the status is 0 only when all passed."""
    asked = set(sys.argv[1:])
    rows: list[Row] = []
    status = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, argv in GROUPS:
            if asked and name not in asked:
                continue
            junit = Path(folder) / f"{name}.xml"
            print(f"== {name}", flush=True)
            started = time.monotonic()
            more = [f"--junitxml={junit}"] if name in {"clouds", "tests"} else []
            env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
            ended = subprocess.run([*argv, *more], env=env, check=False).returncode
            status |= ended
            rows.append(Row(name, _result(ended), time.monotonic() - started))
            if junit.is_file():
                rows += parts(junit.read_text())
    print("\n" + table(rows))
    return int(status != 0)


def _result(status: int) -> str:
    return "passed" if status == 0 else f"FAILED ({status})"


def parts(junit: str) -> Iterator[Row]:
    """What a pytest run consists of, longest first: the shared night, all units, each integration file, all mutants."""
    whole = ET.fromstring(junit)
    seconds: dict[str, float] = defaultdict(float)
    tests: dict[str, int] = defaultdict(int)
    red: dict[str, int] = defaultdict(int)
    for case in whole.iter("testcase"):
        group = _group(case.get("classname", ""))
        seconds[group] += float(case.get("time", 0))
        tests[group] += 1
        red[group] += case.find("failure") is not None or case.find("error") is not None
    told = {one.get("name"): one.get("value", "") for one in whole.iter("property")}
    if told.get("night_seconds"):
        # pytest counts it for the test that asked first
        seconds[NIGHT] = float(told["night_seconds"])
        seconds[_group(told["night_asked_by"].removesuffix(".py").replace("/", "."))] -= seconds[NIGHT]
    for group in sorted(seconds, key=seconds.__getitem__, reverse=True):
        yield Row(f"  {group}", f"{red[group]} FAILED" if red[group] else "passed", seconds[group], tests[group])


def _group(module: str) -> str:
    """``testsuite.integration.test_cloud`` belongs to ``integration/test_cloud``, ``testsuite.unit.X`` to ``unit``."""
    kind, _, file = module.removeprefix("testsuite.").partition(".")
    return f"{kind}/{file.split('.')[0]}" if kind == "integration" else kind


def table(rows: list[Row]) -> str:
    """The rows as text."""
    width = max([5, *(len(row.name) for row in rows)])
    lines = [f"{'group':<{width}}  result        tests  seconds"]
    lines += [f"{row.name:<{width}}  {row.result:<13} {row.tests or '':>5}  {row.seconds:7.1f}" for row in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
