# SPDX-License-Identifier: Apache-2.0
"""Each check turns red, with its own message, on a guest spoiled in just its way; and is green on the healthy one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from factory.model import Artifact, Outcome, Verdict
from factory.system.clock import now
from factory.system.state import State
from testsuite.conftest import NightRun

from .runner import Base, Found, healthy_base, look_at_mutants
from .table import MUTANTS, Mutant

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_guest, pytest.mark.needs_image, pytest.mark.needs_mirror]
SUITE = Path(__file__).parents[1] / "acceptance"

NOT_YET_RED = frozenset(
    {
        "test_disk.py::test_there_is_one_disk_layout",
        "test_registration.py::test_it_stays_registered_at_a_reboot",
        "test_first_boot.py::test_the_journal_begins_at_the_first_boot",
        "test_first_boot.py::test_the_console_password_is_made_here",
    }
)
"""Mutants that do not yet turn their check red; README says so. They run with the long tests, where they fail."""
CASES = [
    pytest.param(one, marks=pytest.mark.slow if one.check in NOT_YET_RED else ())  # type: ignore[arg-type]
    for one in MUTANTS
]


@pytest.fixture(scope="module")
def base(artifact: Artifact, shared_state: State, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Base]:
    """The healthy guest, frozen."""
    folder = tmp_path_factory.mktemp("mutants")
    folder.chmod(0o700)
    with healthy_base(artifact, state=shared_state, suite=SUITE, folder=folder, now=now()) as found:
        yield found


@pytest.fixture(scope="module")
def healthy(night: NightRun) -> dict[str, Outcome]:
    """What the suite said of the very same image when nobody had spoiled it."""
    return {check.name: check.outcome for check in night.run.read("verify", Verdict).checks}


@pytest.fixture(scope="module")
def found(base: Base, request: pytest.FixtureRequest) -> dict[str, Callable[[], Found]]:
    """What the suite says of every mutant that this run asks for."""
    asked = [
        item.callspec.params["mutant"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.originalname == "test_the_check_turns_red"
    ]
    return look_at_mutants(base, asked or MUTANTS)


@pytest.mark.parametrize("mutant", CASES, ids=lambda one: one.check.removeprefix("test_").replace(".py::test", ""))
def test_the_check_turns_red(
    mutant: Mutant, found: dict[str, Callable[[], Found]], healthy: dict[str, Outcome]
) -> None:
    seen = found[mutant.check]()
    assert healthy[mutant.check] is not Outcome.FAILED, "red on a healthy guest already: its red says nothing"
    assert seen.check.outcome is Outcome.FAILED, f"the check does not see the fault: {seen.check}"
    assert re.search(mutant.says, seen.check.message, re.DOTALL), f"red for another cause: {seen.check.message}"
    assert seen.phase == "call", f"red before the check began: {seen.check.message}"
