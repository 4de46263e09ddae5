# SPDX-License-Identifier: Apache-2.0
"""What a foreign image is known not to keep: named with a reason in its description, told to users, and no more."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from factory.model import SEEN, Check, Outcome, Unmet


def settled(checks: Iterable[Check], unmet: Iterable[Unmet], *, say: Callable[[str], None]) -> tuple[Check, ...]:
    """The checks, of which those that failed and are named in ``unmet`` are told as that.

    A check that is named there and passes is said, so that its name goes; a name stands for all variants of a check.
    """
    reasons = {one.check: one.reason for one in unmet}
    found = tuple(_settled(one, reasons) for one in checks)
    for text in _stale(found, reasons):
        say(text)
    return found


def _settled(check: Check, reasons: dict[str, str]) -> Check:
    reason = _reason(check, reasons)
    if not reason or check.outcome is Outcome.SKIPPED:
        return check
    if check.outcome is Outcome.FAILED:
        message = f"{reason}{SEEN}{check.message}" if check.message else reason
        return replace(check, outcome=Outcome.UNMET, message=message)
    return replace(check, message=f"passes, although unmet names it: {reason}")


def _reason(check: Check, reasons: dict[str, str]) -> str:
    return reasons.get(check.name) or reasons.get(check.name.partition("[")[0], "")


def _stale(checks: tuple[Check, ...], reasons: dict[str, str]) -> Iterator[str]:
    used = {one.name for one in checks if one.outcome is Outcome.UNMET}
    for name in reasons:
        if name in used or any(one.partition("[")[0] == name for one in used):
            continue
        known = [one for one in checks if name in {one.name, one.name.partition("[")[0]}]
        how = "passes" if any(one.outcome is Outcome.PASSED for one in known) else "was not looked at"
        yield f"'{name}' {how}: take it out of [[unmet]] in image.toml"
