# SPDX-License-Identifier: Apache-2.0
"""Several factories on one state folder at once, and one that is killed: key, agent and ledger stand it."""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from factory.ledger import Ledger
from factory.model import Signing
from factory.sign import sign
from factory.sign.verify import verify_signatures
from factory.system.state import State
from testsuite import samples

NIGHT = samples.NIGHT


def at_once(work: Any, arguments: list[tuple[Any, ...]]) -> None:
    """Call ``work`` in a process of its own for each tuple of arguments, all starting together."""
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    workers = [context.Process(target=work, args=(*one, ready)) for one in arguments]
    for worker in workers:
        worker.start()
    ready.set()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0] * len(workers)


def record_nights(path: Path, image: str, ready: Any) -> None:
    ready.wait()
    with Ledger.open(path) as ledger:
        for day in range(1, 6):
            run_id = f"202611{day:02d}-020000-{image}"
            ledger.begin_run(run_id, image=image, line="L", started_at=NIGHT)
            ledger.record_stage(run_id, "build", outcome="done", started_at=NIGHT, seconds=1)
            ledger.end_run(run_id, outcome="published", ended_at=NIGHT)


def test_a_new_ledger_is_opened_and_written_by_all(tmp_path):
    """The very first opening makes the schema; that happens at the same time too."""
    images = [f"image{number}" for number in range(3)]
    at_once(record_nights, [(tmp_path / "ledger.sqlite", image) for image in images])
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        assert all(len(ledger.runs(image)) == 5 for image in images)


def sign_one(state: State, image: str, ready: Any) -> None:
    run = state.new_run(image, NIGHT)
    made = samples.artifact(run)
    ready.wait()
    now = NIGHT + timedelta(minutes=9)
    sign(made, samples.verdict(made), run=run, state=state, signing=Signing(), keys=state.path, now=now, say=print)


def test_lines_that_sign_together_share_one_throw_away_key(tmp_path):
    state = State(path=tmp_path / "state").prepare()
    images = [f"image{number}" for number in range(3)]
    at_once(sign_one, [(state, image) for image in images])
    public = list((state.keys / "public").iterdir())
    assert len(public) == 1
    for image in images:
        bundle = state.runs_of(image)[0].path / "bundle"
        found = verify_signatures(bundle, keys=state.path, trusted=state.keys / "public", now=NIGHT + timedelta(days=1))
        assert found.fingerprint == public[0].stem


def test_an_agent_does_not_outlive_a_killed_factory(tmp_path):
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    program = (
        "import sys, time; from pathlib import Path; from datetime import datetime, UTC\n"
        "from factory.sign.openpgp import own_home\n"
        "with own_home(Path(sys.argv[1]), now=datetime.now(tz=UTC), log=Path(sys.argv[2])):\n"
        "    print('ready', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(home), str(tmp_path / "log")], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        pattern = f"gpg-agent --homedir /proc/{child.pid}/"
        assert subprocess.run(["pgrep", "-f", pattern], capture_output=True, check=False).returncode == 0
        child.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 12
    while subprocess.run(["pgrep", "-f", pattern], capture_output=True, check=False).returncode == 0:
        assert time.monotonic() < deadline, "the agent is still there"
        time.sleep(0.2)
