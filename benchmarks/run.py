# SPDX-License-Identifier: Apache-2.0
"""What a night costs, side by side with the bare tools, in one run; printed and kept in docs/explanation/benchmarks.md.

``benchmarks/run.py [night] [glance] [inputs]`` measures some of it; inputs needs the night.

Ratios are what counts: the same host, the same disk, the same run. Nothing here is asserted.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import inputs
import rotation

PROJECT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
Row = tuple[str, str, str]
OWN_SHOWN_S = 0.05
KEPT = PROJECT / "docs" / "explanation" / "benchmarks.md"


def timed(argv: list[str | Path], **options) -> tuple[float, subprocess.CompletedProcess[str]]:
    started = time.monotonic()
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=PROJECT, **options)
    return time.monotonic() - started, done


def help_s() -> float:
    """Median of seven ``factory --help``."""
    return statistics.median(timed([BIN / "factory", "--help"])[0] for _ in range(7))


def night(state: Path, *words: str) -> dict:
    argv = [BIN / "factory", "--state", state, "nightly", "debian13", "--allow-dirty", "--json", *words]
    seconds, done = timed(argv)
    if done.returncode != 0:
        sys.exit(done.stderr)
    return {"seconds": seconds, **json.loads(done.stdout)["value"]}


def bare_kiwi_s(recipe: dict, scratch: Path) -> float:
    """``kiwi-ng system build`` of the same tree straight from the mirrors, into the same kind of place."""
    config = scratch / "kiwi.yml"
    config.write_text("mapper:\n  part_mapper: partx\n")
    repositories = []
    for one in recipe["repositories"]:
        for suite in one["suites"]:
            fields = [recipe["mirrors"][one["alias"]], "apt-deb", f"{one['alias']}-{suite}", "", "false", "false", ""]
            repositories += ["--add-repo", ",".join([*fields, " ".join(one["components"]), suite, "false"])]
    argv = [BIN / "kiwi-ng", "--config", config, "--shared-cache-dir", scratch / "cache", "system", "build"]
    argv += ["--description", recipe["tree"], "--target-dir", scratch / "target", "--ignore-repos-used-for-build"]
    seconds, done = timed([*argv, *repositories], env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"})
    if done.returncode != 0:
        sys.exit(done.stdout[-2000:] + done.stderr[-2000:])
    return seconds


def own_row(made: dict, what: str) -> Row:
    """The processor time of the factory's process (getrusage, all threads), and where most of it went."""
    most = sorted(made["stages"], key=lambda stage: -stage["own_cpu_s"])
    stages = ", ".join(
        f"{stage['stage']} {stage['own_cpu_s']:.1f}" for stage in most if stage["own_cpu_s"] > OWN_SHOWN_S
    )
    return what, f"{made['own_cpu_s']:.1f} s" + (f" ({stages})" if stages else ""), "under 3 s"


def night_rows(state: Path) -> Iterator[Row]:
    """A night from nothing, and bare kiwi for the same tree."""
    made = night(state)
    stages = {stage["stage"]: stage["seconds"] for stage in made["stages"]}
    yield "a night with nothing cached", f"{made['seconds']:.0f} s", "under 600 s"
    for name, seconds in stages.items():
        yield f"  {name}", f"{seconds:.1f} s", ""
    yield own_row(made, "the factory's own processor time in it, the tools tree made")
    run = Path(made["run"]["path"])
    recipe = json.loads((run / "describe.json").read_text().replace("$RUN", str(run)))["value"]
    with tempfile.TemporaryDirectory(prefix="factory-bench-", dir="/dev/shm") as scratch:
        kiwi = bare_kiwi_s(recipe, Path(scratch))
    yield "bare `kiwi-ng system build` of the same tree", f"{kiwi:.0f} s", ""
    yield "our build stage / bare kiwi", f"{stages['build'] / kiwi:.2f}", "at most 1"
    yield "`factory --help`", f"{help_s():.2f} s", "under 0.3 s"
    again = night(state, "--force")
    yield "the next night, forced", f"{again['seconds']:.0f} s", ""
    yield own_row(again, "the factory's own processor time in it")
    idle = night(state)
    yield "a night in which nothing changed", f"{idle['seconds']:.1f} s", ""
    yield own_row(idle, "the factory's own processor time in it")


def main(wanted: list[str]) -> None:
    """Measure; what is known is written down at once, so that a run which is cut off was not for nothing."""
    state = Path(tempfile.mkdtemp(prefix="factory-bench-", dir=PROJECT))
    groups: dict[str, Callable[[], Iterable[Row]]] = {
        "night": lambda: night_rows(state),
        "glance": rotation.measure,
        "inputs": lambda: (row for name in inputs.MEASURES for row in inputs.measure(state, [name])),
    }
    host = f"Host: {os.cpu_count()} processors, kernel {platform.release()}, Python {platform.python_version()}."
    text = f"# Benchmarks\n\nWritten by `make benchmarks`; every line is from one run on one host. {host}\n\n"
    text += "| what | measured | wanted |\n|---|---|---|\n"
    try:
        for name, measure in groups.items():
            if wanted and name not in wanted:
                continue
            for row in measure():
                line = "| " + " | ".join(row) + " |\n"
                print(line, end="", flush=True)
                text += line
                KEPT.write_text(text)
    finally:
        subprocess.run([BIN / "factory", "--state", state, "cloud", "down"], cwd=PROJECT, check=False)
        shutil.rmtree(state)


if __name__ == "__main__":
    main(sys.argv[1:])
