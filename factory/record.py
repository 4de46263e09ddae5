# SPDX-License-Identifier: Apache-2.0
"""One run as it is done: each stage once, its value kept in the run's folder, how it went in the ledger.

What a stage has made, the next call finds and does not make again; an exception is a broken factory and is recorded as
such. A ledger that cannot be written is said, and stops nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

from factory.canaries import taken_back
from factory.errors import FactoryError, LedgerError
from factory.ledger import Ledger, detail_of
from factory.model import Artifact, Bundle, Canaries, Outcome, Publication, Recipe, Rotations, StoredImage, Verdict
from factory.promises import Promise, promises_detail
from factory.system.state import Run

PROMISES = "promises"
Say = Callable[[str, str], None]
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult:
    """One line of the summary table: ``outcome`` is done, kept, red, withheld or broken.

    ``own_cpu_s`` is the processor time of the factory itself in it, without the programs it called.
    """

    stage: str
    outcome: str
    seconds: float
    note: str = ""
    own_cpu_s: float = 0.0


@dataclass(kw_only=True)
class Record:
    """What is kept of one run; ``images`` are those of the lines it rotated, as the stores show them now."""

    run: Run
    ledger: Ledger | None
    now: Callable[[], datetime]
    say: Say
    results: list[StageResult] = field(default_factory=list)
    images: tuple[StoredImage, ...] = ()

    def stage(self, name: str, kind: type[Value], work: Callable[[], Value]) -> Value:
        """Do a stage once, keep its value, and record how it went."""
        if self.run.has(name):
            if name not in {result.stage for result in self.results}:
                self.results.append(StageResult(stage=name, outcome="kept", seconds=0.0))
            return self.run.read(name, kind)
        started, clock, own = self.now(), time.monotonic(), time.process_time()
        self.say(name, "starts")
        try:
            value = work()
        except FactoryError as broken:
            detail = detail_of(broken, console_log=self.run.log("console"))
            self.note(name, "broken", started, time.monotonic() - clock, note=broken.message, detail=detail)
            raise
        self.run.write(name, value)
        outcome, note = judged(value)
        detail = detail_of(value, images=self.images)
        seconds, own_cpu_s = time.monotonic() - clock, time.process_time() - own
        self.note(name, outcome, started, seconds, note=note, detail=detail, own_cpu_s=own_cpu_s)
        self.say(name, f"{outcome}{': ' if note else ''}{note}")
        return value

    def saying(self, stage: str) -> Callable[[str], None]:
        """The progress line of one stage."""
        return lambda text: self.say(stage, text)

    def begin(self) -> None:
        """Open the record of the run."""
        recipe = self.run.read("describe", Recipe)
        self.recorded(
            lambda ledger: ledger.begin_run(
                self.run.id, image=self.run.image, line=recipe.description.line, started_at=self.now(), recipe=recipe
            )
        )

    def note(
        self,
        stage: str,
        outcome: str,
        started: datetime,
        seconds: float,
        *,
        note: str,
        detail: Mapping[str, object],
        own_cpu_s: float = 0.0,
    ) -> None:
        result = StageResult(stage=stage, outcome=outcome, seconds=seconds, note=note, own_cpu_s=own_cpu_s)
        self.results.append(result)
        self.recorded(
            lambda ledger: ledger.record_stage(
                self.run.id,
                stage,
                outcome=outcome,
                started_at=started,
                seconds=seconds,
                message=note,
                detail=detail,
            )
        )

    def recorded(self, write: Callable[[Ledger], None]) -> None:
        """Write to the ledger; one that cannot be written is said and stops nothing."""
        if self.ledger is None:
            return
        try:
            write(self.ledger)
        except LedgerError as lost:
            self.say("ledger", f"not recorded: {lost.message}")

    def close(self, outcome: str, reason: str) -> None:
        """Close the record of the run."""
        self.recorded(lambda ledger: ledger.end_run(self.run.id, outcome=outcome, ended_at=self.now(), message=reason))

    def keep_promises(self, found: tuple[Promise, ...]) -> None:
        """Record promises at risk, for the page; where all are kept there is nothing to record."""
        if found:
            detail, at = promises_detail(found), self.now()
            self.recorded(
                lambda ledger: ledger.record_stage(
                    self.run.id, PROMISES, outcome="at risk", started_at=at, seconds=0.0, detail=detail
                )
            )


def judged(value: object) -> tuple[str, str]:
    """How a finished stage reads in the summary: its outcome and a few words."""
    match value:
        case Artifact():
            return "done", f"{value.size_bytes / 1e6:.0f} MB, {len(value.packages)} packages"
        case Verdict() if not value.passed:
            return "red", f"{len(value.failures)} of {len(value.checks)} checks failed"
        case Verdict():
            passed = sum(check.outcome is Outcome.PASSED for check in value.checks)
            where = "" if value.sandbox == "qemu" else f"{value.sandbox}, "
            unmet = f", {len(value.unmet)} unmet as described" if value.unmet else ""
            return "done", f"{passed} checks passed{unmet}, {where}{value.accelerator}"
        case Bundle():
            return "done", f"key {value.fingerprint[-16:]}" + (" (throw-away)" if value.throw_away_key else "")
        case Publication() if not value.releases:
            return "withheld", value.reason
        case Publication():
            return "done", ", ".join(release.dated_name for release in value.releases)
        case Rotations():
            return "done", ", ".join(f"{one.line}_latest in {one.target.cloud}" for one in value.rotations)
        case Canaries() if not value.green:
            return "red", "; ".join(taken_back(one) for one in value.canaries if not one.green)
        case Canaries():
            return "done", ", ".join(f"{one.line}_latest stands in {one.tenant}" for one in value.canaries)
        case _:
            return "done", ""
