# SPDX-License-Identifier: Apache-2.0
"""Run the acceptance suite as a program of its own, and read back what it found."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.errors import VerifyError
from factory.model import Check, Outcome
from factory.system.files import write_whole
from factory.system.run import run

FACTS_SCHEMA = "acceptance/1"
RESULT_SCHEMA = "acceptance-result/1"
_NOTHING_COLLECTED = 5
_DONE = {0, 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteRun:
    """What one run of the suite found; ``junit`` is pytest's own report."""

    checks: tuple[Check, ...]
    phases: Mapping[str, str]
    junit: Path


def run_suite(
    suite: Path,
    *,
    facts: Mapping[str, Any],
    folder: Path,
    name: str,
    select: Sequence[str] = (),
    marks: str = "",
    secrets: Sequence[str] = (),
    log: Path,
    timeout_s: float = 900,
) -> SuiteRun:
    """Judge a guest.

    Args:
        facts: what to expect, and how to reach the guest (``docs/reference/checks.md``).
        folder: private; receives the facts (which may hold a throw-away password) and the results.
        select: check names (``test_ssh.py::test_...``); empty means all.
        marks: a pytest mark expression.
        secrets: texts that must not appear in any result; they are replaced.

    Raises:
        VerifyError: pytest could not run the suite, or there was nothing to run.
    """
    told, result, junit = folder / f"{name}-facts.json", folder / f"{name}.json", folder / f"{name}.xml"
    write_whole(told, json.dumps({"schema": FACTS_SCHEMA, **facts}, indent=1), mode=0o600)
    result.unlink(missing_ok=True)
    argv: list[str | Path] = [sys.executable, "-B", "-m", "pytest", "-q", "-c", suite / "pytest.ini"]
    argv += ["--rootdir", suite, "-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
    argv += ["--facts", told, "--result", result, f"--junitxml={junit}", "-o", "junit_suite_name=acceptance"]
    argv += ["-m", marks] if marks else []
    argv += [f"{suite}/{one}" for one in select] or [suite]
    try:
        done = run(argv, log=log, cwd=folder, timeout_s=timeout_s, check=False)
    finally:
        told.unlink(missing_ok=True)
        for path in (log, result, junit):
            _mask(path, secrets)
    if done.returncode == _NOTHING_COLLECTED:
        raise VerifyError("nothing was tested: the suite has no such check", facts=(("log", str(log)),))
    if done.returncode not in _DONE or not result.is_file():
        raise VerifyError(
            f"the acceptance suite could not be run (pytest ended with status {done.returncode})",
            facts=(("log", str(log)),),
            hint="read the end of the log; this is a fault of the suite or the factory, not of the image",
        )
    return _read(result, junit)


def _read(result: Path, junit: Path) -> SuiteRun:
    found = json.loads(result.read_text())
    if found.get("schema") != RESULT_SCHEMA:
        raise VerifyError(f"the suite's result has the schema {found.get('schema')!r}, not {RESULT_SCHEMA!r}")
    return SuiteRun(
        checks=tuple(
            Check(
                name=one["name"],
                guarantee=one["guarantee"],
                outcome=Outcome(one["outcome"]),
                message=one["message"],
                seconds=one["seconds"],
            )
            for one in found["checks"]
        ),
        phases={one["name"]: one["phase"] for one in found["checks"]},
        junit=junit,
    )


def _mask(path: Path, secrets: Sequence[str]) -> None:
    if not path.is_file():
        return
    text = path.read_bytes()
    masked = text
    for secret in secrets:
        if secret:
            masked = masked.replace(secret.encode(), b"********")
    if masked != text:
        write_whole(path, masked)


def merge_junit(parts: Sequence[Path], target: Path) -> None:
    """One JUnit file out of several runs' files."""
    from xml.etree import ElementTree as ET

    from defusedxml.ElementTree import parse

    whole = ET.Element("testsuites", name="acceptance")
    for part in parts:
        root = parse(part).getroot()
        if root is not None:
            whole.extend(root.iter("testsuite"))
    write_whole(target, ET.tostring(whole, encoding="utf-8", xml_declaration=True))
