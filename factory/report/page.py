# SPDX-License-Identifier: Apache-2.0
"""From ledger records to what the templates show; no input, no output, and every word of it plain text."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from factory import __version__
from factory.ledger import RunRecord, StageRecord
from factory.model import STAGES
from factory.report import text
from factory.report.changes import Changes, changes

_HERE = Path(__file__).parent
_TONES = {
    "done": "good",
    "kept": "good",
    "published": "good",
    "withheld": "warn",
    "red": "bad",
    "broken": "bad",
    "passed": "good",
    "failed": "bad",
    "unmet": "warn",
}
_MARKS = {"good": "\u2713", "warn": "!", "bad": "\u2717", "idle": "\u00b7"}
_WIDTH = 1000.0
_NARROWEST = 4.0
_WARN_DAYS = 30
_NO_END_DAYS = 9999


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """The verdict in a few words, the reason in one sentence, and how it looks."""

    tone: str
    title: str
    reason: str

    @property
    def mark(self) -> str:
        return _MARKS[self.tone]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageView:
    """One stage of the line; ``x`` and ``width`` place it on the bar of times (thousandths of the whole)."""

    name: str
    tone: str
    outcome: str
    seconds: float | None
    message: str
    x: float = 0.0
    width: float = 0.0

    @property
    def mark(self) -> str:
        return _MARKS[self.tone]

    @property
    def number(self) -> int:
        """Its place in the line, from 1."""
        return STAGES.index(self.name) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One number that people look for first."""

    name: str
    value: str
    note: str = ""


def headline(run: RunRecord) -> Headline:
    """What to say about a run first."""
    checks = run.detail.get("verify", {}).get("checks", [])
    failed = sum(1 for one in checks if one["outcome"] == "failed")
    last = run.last_stage or "its start"
    fallen = [one for one in run.detail.get("canary", {}).get("canaries", []) if not one["green"]]
    titles = {
        "published": f"Published as {run.line}_latest",
        "withheld": "Good, but withheld",
        "unchanged": "Nothing changed",
        "red": "Red: the canary did not stand" if fallen else f"Red: {failed} of {len(checks)} checks failed",
        "broken": f"Broken in {last}",
        "running": f"Under way, or cut off after {last}",
    }
    return Headline(
        tone=_TONES.get(run.outcome, "idle"), title=titles.get(run.outcome, run.outcome), reason=run.message
    )


def stage_line(run: RunRecord) -> tuple[StageView, ...]:
    """All six stages, also those that were not reached, and their share of the time."""
    records = {one.stage: one for one in run.stages}
    shares = _shares([records[name].seconds if name in records else 0.0 for name in STAGES])
    found, x = [], 0.0
    for name, width in zip(STAGES, shares, strict=True):
        found.append(_stage_view(name, records.get(name), x=x, width=width))
        x += width
    return tuple(found)


def _stage_view(name: str, record: StageRecord | None, *, x: float, width: float) -> StageView:
    if record is None:
        return StageView(name=name, tone="idle", outcome="not reached", seconds=None, message="")
    return StageView(
        name=name,
        tone=_TONES.get(record.outcome, "idle"),
        outcome=record.outcome,
        seconds=record.seconds,
        message=record.message,
        x=round(x, 2),
        width=round(width, 2),
    )


def _shares(seconds: Sequence[float]) -> list[float]:
    """Widths in proportion, though none that took any time is too thin to be seen."""
    total = sum(seconds)
    wide = [max(_NARROWEST, one / total * _WIDTH) if one > 0 else 0.0 for one in seconds] if total > 0 else []
    scale = _WIDTH / sum(wide) if wide else 0.0
    return [one * scale for one in wide] if wide else [0.0] * len(seconds)


def package_changes(run: RunRecord, previous: RunRecord | None) -> Changes | None:
    """Against the previous image, when both have a package list."""
    old = previous.detail.get("build", {}).get("packages") if previous else None
    new = run.detail.get("build", {}).get("packages")
    return changes(old, new) if old is not None and new is not None else None


def tiles(run: RunRecord, previous: RunRecord | None, changed: Changes | None) -> tuple[Tile, ...]:
    """The numbers of a run."""
    build, verify = run.detail.get("build", {}), run.detail.get("verify", {})
    found = [Tile(name="time", value=text.duration(run.seconds), note="in its stages")]
    if "size_bytes" in build:
        before = previous.detail.get("build", {}).get("size_bytes") if previous else None
        note = f"{text.size_change(build['size_bytes'] - before)} on the previous" if before is not None else ""
        found.append(Tile(name="image", value=text.size(build["size_bytes"]), note=note))
        note = "" if changed is None else f"{changed.count} changed" if changed.count else "none changed"
        found.append(Tile(name="packages", value=str(len(build["packages"])), note=note))
    if "checks" in verify:
        passed = sum(1 for one in verify["checks"] if one["outcome"] == "passed")
        skipped = sum(1 for one in verify["checks"] if one["outcome"] == "skipped")
        unmet = sum(1 for one in verify["checks"] if one["outcome"] == "unmet")
        value = f"{passed} of {len(verify['checks']) - skipped}"
        told = ((unmet, "unmet as described"), (skipped, "not looked at"))
        note = ", ".join(f"{number} {words}" for number, words in told if number)
        found.append(Tile(name="guarantees kept", value=value, note=note))
        found.append(Tile(name="boot", value=text.duration(verify["boot_s"]), note=verify["accelerator"]))
    gaps = [one["gap_s"] for one in run.detail.get("rotate", {}).get("rotations", [])]
    if gaps:
        found.append(Tile(name="gap", value=text.duration(max(gaps)), note="without _latest in listings"))
    return tuple(found)


def topics(checks: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Checks by what they are about: what stands before ``::`` or ``.`` in their names."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for one in checks:
        head, separator, _ = str(one["name"]).replace("::", ".").rpartition(".")
        words = head.rpartition("/")[2].removesuffix(".py").rpartition(".")[2].removeprefix("test_")
        found.setdefault(words.replace("_", " ") if separator else "", []).append(one)
    return found


def hidden_images(rotate: Mapping[str, Any]) -> int:
    """How many images of the line the store keeps out of plain listings."""
    return sum(1 for one in rotate.get("images", []) if one["hidden"])


def days_left(run: RunRecord, *, now: datetime) -> int:
    """For how many days the key that signed this run still signs; many where it has no end."""
    ends = run.detail.get("sign", {}).get("key_ends")
    return (datetime.fromisoformat(ends) - now).days if ends else _NO_END_DAYS


def page(run: RunRecord, previous: RunRecord | None, *, now: datetime, logs: Sequence[str] = ()) -> str:
    """A run's page: one HTML document that needs nothing else.

    Args:
        previous: the run whose image this one is compared with.
        logs: log files, relative to where the page will be.
    """
    changed = package_changes(run, previous)
    return _render(
        "page.html.j2",
        run=run,
        previous=previous,
        now=now,
        logs=logs,
        head=headline(run),
        stages=stage_line(run),
        tiles=tiles(run, previous, changed),
        changed=changed,
        recipe=run.detail.get("describe", {}),
        build=run.detail.get("build", {}),
        verify=run.detail.get("verify", {}),
        sign=run.detail.get("sign", {}),
        days_left=days_left(run, now=now),
        warn_days=_WARN_DAYS,
        publish=run.detail.get("publish", {}),
        rotate=run.detail.get("rotate", {}),
        canaries=run.detail.get("canary", {}).get("canaries", []),
        promises=run.detail.get("promises", {}).get("promises", []),
        hidden=hidden_images(run.detail.get("rotate", {})),
        errors=[line for one in run.stages for line in one.detail.get("error", [])],
        console=next((one.detail["console"] for one in run.stages if one.detail.get("console")), ()),
    )


def index_page(runs: Sequence[RunRecord], *, now: datetime, written: frozenset[str]) -> str:
    """A page that lists nights, newest first; ``written`` are the runs that have a page of their own."""
    return _render(
        "index.html.j2", rows=[(run, headline(run), stage_line(run)) for run in runs], now=now, written=written
    )


def _render(template: str, **values: object) -> str:
    style, policy = _style()
    return _environment().get_template(template).render(style=style, policy=policy, version=__version__, **values)


@cache
def _style() -> tuple[Markup, str]:
    """The style sheet, and a policy that lets a browser use exactly it and load nothing."""
    style = (_HERE / "style.css").read_text().strip()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return Markup(style), policy  # noqa: S704 -- our own file


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "visible": text.visible,
        "visible_lines": text.visible_lines,
        "variant": text.variant,
        "duration": text.duration,
        "size": text.size,
        "size_change": text.size_change,
        "moment": text.moment,
        "grouped": text.grouped,
        "link": lambda path: quote(str(path), errors="surrogateescape"),
        "tone": lambda outcome: _TONES.get(outcome, "idle"),
        "mark": lambda outcome: _MARKS[_TONES.get(outcome, "idle")],
        "topics": topics,
    }
    return environment
