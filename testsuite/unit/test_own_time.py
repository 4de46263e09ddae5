# SPDX-License-Identifier: Apache-2.0
"""What a stage costs of our own processor time: all threads of ours, and none of the programs we call."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from pathlib import Path

from factory.model import Rotations
from factory.record import Record
from factory.system.run import run
from factory.system.state import State

NOW = datetime(2026, 11, 21, 2, 3, 4, tzinfo=UTC)
SPENT_S = 0.2
BUSY = "import time\nwhile time.process_time() < 0.5: pass"


def spend() -> None:
    while time.thread_time() < SPENT_S:
        pass


def cost_of(tmp_path: Path, work) -> float:
    record = Record(run=State(path=tmp_path).new_run("small", NOW), ledger=None, now=lambda: NOW, say=lambda *_: None)

    def made() -> Rotations:
        work()
        return Rotations(rotations=())

    record.stage("rotate", Rotations, made)
    return record.results[-1].own_cpu_s


def test_a_stage_counts_every_thread_of_ours(tmp_path: Path) -> None:
    def beside() -> None:
        thread = threading.Thread(target=spend)
        thread.start()
        thread.join()

    assert cost_of(tmp_path, beside) >= SPENT_S


def test_a_program_that_is_called_is_not_ours(tmp_path: Path) -> None:
    assert cost_of(tmp_path, lambda: run(["python3", "-c", BUSY])) < SPENT_S
