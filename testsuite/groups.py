# SPDX-License-Identifier: Apache-2.0
"""Run the test groups of ``make test`` and print how long each took, file by file.

One after the other, but for the last two: what needs the shared night and boots guests of it, and everything else that
starts real programs, the cloud with compute last. Either of them alone leaves a processor idle for much of its time.
What a server does under load on all processors is looked at alone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
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
LOAD_FILE = "testsuite/integration/test_region_server_load.py"
PYTEST = BIN / "pytest"
REAL = [*("testsuite/integration", "testsuite/mutants"), *(f"--ignore={file}" for file in (*CLOUD_FILES, LOAD_FILE))]
GROUPS: dict[str, list[str | Path]] = {
    "lint": [BIN / "ruff", "check", "."],
    "format": [BIN / "ruff", "format", "--check", "."],
    "types": [BIN / "mypy"],
    "unit": [PYTEST, "-q", "-m", "not slow", "-n", "auto", "--dist", "loadfile", "testsuite/unit"],
    "clouds": [PYTEST, "-q", "-m", "not slow", "-n", "2", "--dist", "worksteal", *CLOUD_FILES],
    "load": [PYTEST, "-q", "-m", "not slow", LOAD_FILE],
    "night": [PYTEST, "-m", "not slow and night and not needs_nova", *REAL],
    "beside": [PYTEST, "-m", "not slow and (not night or needs_nova)", *REAL],
}
"""Name → command. The last two share one night, which the first that wants it makes."""
STEPS = (("lint",), ("format",), ("types",), ("unit",), ("clouds",), ("load",), ("night", "beside"))
"""What runs side by side."""
TOLD = frozenset({"clouds", "load", "night", "beside"})
NIGHT = "shared night"
WAITED = "waiting for the night"


@dataclass(slots=True)
class Row:
    """A line of the table."""

    name: str
    result: str
    seconds: float
    tests: int = 0


def main() -> int:
    """Run every group, also after a failure; the status is 0 only when all passed."""
    asked = set(sys.argv[1:]) or set(GROUPS)
    rows: list[Row] = []
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="tests-"))
    try:
        for step in STEPS:
            rows += side_by_side([name for name in step if name in asked], folder)
    finally:
        end_cloud(folder / "state")
    rows.append(Row("all", "", time.monotonic() - started))
    failed = any(row.result.startswith("FAILED") for row in rows)
    if failed and any(folder.iterdir()):
        print(f"\nwhat the tests left is in {folder}")
    else:
        shutil.rmtree(folder)
    print("\n" + table(rows))
    return int(failed)


@dataclass(slots=True, kw_only=True)
class Running:
    """A group that was started; ``output`` is where its words go, None for ours."""

    name: str
    program: subprocess.Popen[bytes]
    started: float
    junit: Path
    output: Path | None
    seconds: float = 0.0


def side_by_side(names: Sequence[str], folder: Path) -> list[Row]:
    """Run groups at once. The first one's words are seen at once, those of the others when all are done."""
    with contextlib.ExitStack() as stack:
        started = [start(name, folder, stack, hidden=number > 0) for number, name in enumerate(names)]
        while any(not one.seconds for one in started):
            for one in started:
                if not one.seconds and one.program.poll() is not None:
                    one.seconds = time.monotonic() - one.started
            time.sleep(0.1)
    rows: list[Row] = []
    for one in started:
        if one.output is not None:
            print(f"== {one.name}, beside the group above", flush=True)
            sys.stdout.buffer.write(one.output.read_bytes())
            sys.stdout.flush()
        rows.append(Row(one.name, _result(one.program.returncode), one.seconds))
        if one.junit.is_file():
            rows += parts(one.junit.read_text())
    return rows


def start(name: str, folder: Path, stack: contextlib.ExitStack, *, hidden: bool) -> Running:
    """Start a group; it is ended when the stack is."""
    junit, output = folder / f"{name}.xml", folder / f"{name}.log" if hidden else None
    if output is None:
        print(f"== {name}", flush=True)
    words = stack.enter_context(output.open("wb")) if output else None
    more = [f"--junitxml={junit}"] if name in TOLD else []
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "FACTORY_TEST_LANES": str(folder)}
    program = subprocess.Popen([*GROUPS[name], *more], env=env, stdout=words, stderr=subprocess.STDOUT)
    stack.callback(program.wait)
    stack.callback(program.terminate)
    return Running(name=name, program=program, started=time.monotonic(), junit=junit, output=output)


def end_cloud(state: Path) -> None:
    """Take down the cloud that the shared night left up."""
    if state.is_dir():
        subprocess.run([BIN / "factory", "--state", state, "cloud", "down"], check=False, timeout=120)


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
        name = NIGHT if told["night_made"] == "here" else WAITED
        seconds[name] = float(told["night_seconds"])
        seconds[_group(told["night_asked_by"].removesuffix(".py").replace("/", "."))] -= seconds[name]
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
