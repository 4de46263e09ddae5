# SPDX-License-Identifier: Apache-2.0
"""Pages for people: one per run, and one that lists the nights. Everything on them comes from the ledger."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from jinja2 import UndefinedError

from factory.errors import InputFault, LedgerError
from factory.ledger import Ledger
from factory.report.page import index_page, page
from factory.system.files import write_whole
from factory.system.state import Run

PAGE = "report.html"
INDEX = "index.html"
INDEX_RUNS = 200


def report(ledger: Ledger, run: Run, *, now: datetime) -> Path:
    """Write the page of a run, and the list of nights beside the runs; returns the page's path.

    Raises:
        InputFault: the ledger knows no such run.
        LedgerError: the ledger cannot be read, or what it says cannot be shown.
    """
    record = ledger.run(run.id)
    if record is None:
        raise InputFault(f"the ledger has no run {run.id}", hint="runs that 'factory nightly' made have a page")
    path = run.path / PAGE
    previous = ledger.previous_green(run.image, run.id)
    try:
        text = page(record, previous, now=now, logs=_logs(run))
    except (UndefinedError, KeyError, TypeError, ValueError) as unfit:
        raise LedgerError(
            f"what the ledger says about run {run.id} cannot be shown",
            facts=(("said", str(unfit)),),
            hint="it may have been recorded by another version of the factory",
        ) from unfit
    write_whole(path, text)
    index(ledger, run.path.parent, now=now)
    return path


def index(ledger: Ledger, folder: Path, *, now: datetime) -> Path:
    """Write the page that lists the nights of all images; returns its path."""
    records = ledger.runs(limit=INDEX_RUNS)
    written = frozenset(one.id for one in records if (folder / one.id / PAGE).is_file())
    write_whole(folder / INDEX, index_page(records, now=now, written=written))
    return folder / INDEX


def _logs(run: Run) -> list[str]:
    """The run's log files, relative to its folder."""
    found = (path for path in (run.path / "logs").rglob("*") if path.is_file() and not path.is_symlink())
    return sorted(path.relative_to(run.path).as_posix() for path in found if path.stat().st_size)
