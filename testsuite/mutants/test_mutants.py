# SPDX-License-Identifier: Apache-2.0
"""Each check turns red, with its own message, on a guest spoiled in just its way; and is green on the healthy one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest

from factory.model import Outcome, Verdict
from testsuite.conftest import NightRun

from .base import Base
from .runner import Found, mutants_looked_at
from .table import MUTANTS, Mutant

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_guest, pytest.mark.needs_image, pytest.mark.needs_mirror]


@pytest.fixture(scope="module")
def healthy(night: NightRun) -> dict[str, Outcome]:
    """What the suite said of the very same image when nobody had spoiled it."""
    return {check.name: check.outcome for check in night.run.read("verify", Verdict).checks}


@pytest.fixture(scope="module")
def found(healthy_guest: Base, request: pytest.FixtureRequest) -> Iterator[dict[str, Callable[[], Found]]]:
    """What the suite says of every mutant that this run asks for."""
    asked = [
        item.callspec.params["mutant"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.originalname == "test_the_check_turns_red"
    ]
    with mutants_looked_at(healthy_guest, asked or MUTANTS) as seen:
        yield seen


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda one: one.check.removeprefix("test_").replace(".py::test", ""))
def test_the_check_turns_red(
    mutant: Mutant, found: dict[str, Callable[[], Found]], healthy: dict[str, Outcome]
) -> None:
    seen = found[mutant.check]()
    assert healthy[mutant.check] is not Outcome.FAILED, "red on a healthy guest already: its red says nothing"
    assert seen.check.outcome is Outcome.FAILED, f"the check does not see the fault: {seen.check}"
    assert re.search(mutant.says, seen.check.message, re.DOTALL), f"red for another cause: {seen.check.message}"
    assert seen.phase == "call", f"red before the check began: {seen.check.message}"
