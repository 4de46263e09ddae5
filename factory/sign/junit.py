# SPDX-License-Identifier: Apache-2.0
"""A verdict as JUnit XML, for the tools that read that."""

from __future__ import annotations

from xml.sax.saxutils import escape, quoteattr

from factory.model import Check, Outcome, Verdict

_NOT_JUDGED = (Outcome.SKIPPED, Outcome.UNMET)
"""JUnit knows no third word: what is unmet by its description's word is told with the reason as a skip."""


def junit(verdict: Verdict) -> str:
    """One test suite with a test case per check; the same verdict always gives the same text."""
    skipped = sum(1 for one in verdict.checks if one.outcome in _NOT_JUDGED)
    head = (
        f'<testsuite name="acceptance" tests="{len(verdict.checks)}" failures="{len(verdict.failures)}" '
        f'errors="0" skipped="{skipped}" time="{sum(one.seconds for one in verdict.checks):.3f}" '
        f'timestamp="{verdict.judged_at:%Y-%m-%dT%H:%M:%S}">\n'
        f'<properties><property name="artifact_sha256" value={_attribute(verdict.artifact_sha256)}/></properties>\n'
    )
    cases = "".join(_case(one) for one in verdict.checks)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{head}{cases}</testsuite>\n'


def _case(check: Check) -> str:
    inner = ""
    if check.outcome is Outcome.FAILED:
        inner = f"<failure message={_attribute(check.message)}>{escape(_clean(check.guarantee))}</failure>"
    elif check.outcome in _NOT_JUDGED:
        inner = f"<skipped message={_attribute(check.message)}/>"
    head = f'<testcase classname="acceptance" name={_attribute(check.name)} time="{check.seconds:.3f}">'
    return f"{head}{inner}</testcase>\n"


def _attribute(text: str) -> str:
    return quoteattr(_clean(text))


def _clean(text: str) -> str:
    """Characters that XML 1.0 does not allow (section 2.2), made visible."""
    return "".join(char if _allowed(ord(char)) else f"\\x{ord(char):02x}" for char in text)


def _allowed(code: int) -> bool:
    in_planes = 0x20 <= code <= 0xD7FF or 0xE000 <= code <= 0xFFFD or 0x10000 <= code <= 0x10FFFF  # noqa: PLR2004
    return in_planes or code in {0x9, 0xA, 0xD}
