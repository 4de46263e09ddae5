# SPDX-License-Identifier: Apache-2.0
"""What a night costs, side by side with the bare tools, in one run; printed and kept in docs/explanation/measured.md.

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
from pathlib import Path

import inputs
import rotation

PROJECT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
KEPT = PROJECT / "docs" / "explanation" / "measured.md"


def timed(argv: list[str | Path], **options) -> tuple[float, subprocess.CompletedProcess[str]]:
    started = time.monotonic()
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=PROJECT, **options)
    return time.monotonic() - started, done


def help_s() -> float:
    """Median of seven ``factory --help``."""
    return statistics.median(timed([BIN / "factory", "--help"])[0] for _ in range(7))


def night(state: Path) -> dict:
    seconds, done = timed([BIN / "factory", "--state", state, "nightly", "debian13", "--allow-dirty", "--json"])
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


def main() -> None:
    scratch = Path(tempfile.mkdtemp(prefix="factory-bench-", dir="/dev/shm"))
    state = Path(tempfile.mkdtemp(prefix="factory-bench-", dir=PROJECT))
    try:
        made = night(state)
        run = Path(made["run"]["path"])
        recipe = json.loads((run / "describe.json").read_text().replace("$RUN", str(run)))["value"]
        kiwi = bare_kiwi_s(recipe, scratch)
        stages = {stage["stage"]: stage["seconds"] for stage in made["stages"]}
        rows = [
            ("a night with nothing cached", f"{made['seconds']:.0f} s", "under 600 s"),
            *((f"  {name}", f"{seconds:.1f} s", "") for name, seconds in stages.items()),
            ("the factory's own processor time in it", f"{made['own_cpu_s']:.1f} s", "under 3 s"),
            ("bare `kiwi-ng system build` of the same tree", f"{kiwi:.0f} s", ""),
            ("our build stage / bare kiwi", f"{stages['build'] / kiwi:.2f}", "at most 1"),
            ("`factory --help`", f"{help_s():.2f} s", "under 0.3 s"),
            *inputs.measure(state),
            *rotation.measure(),
        ]
    finally:
        subprocess.run([BIN / "factory", "--state", state, "cloud", "down"], cwd=PROJECT, check=False)
        shutil.rmtree(scratch)
        shutil.rmtree(state)
    table = "| what | measured | wanted |\n|---|---|---|\n" + "".join(f"| {a} | {b} | {c} |\n" for a, b, c in rows)
    head = (
        "# Measured\n\nWritten by `make benchmarks`; every line of one table is from one run on one host. "
        f"Host: {os.cpu_count()} CPUs, kernel {platform.release()}, Python {platform.python_version()}, "
        f"accelerator {made['verdict']['accelerator']}.\n\n"
    )
    KEPT.write_text(head + table)
    print(table)


if __name__ == "__main__":
    main()
