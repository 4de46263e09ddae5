# SPDX-License-Identifier: Apache-2.0
"""No check without a mutant, no mutant without a check, no check without a sentence."""

from __future__ import annotations

import re
from collections import Counter

from testsuite.acceptance import catalogue
from testsuite.mutants.table import MUTANTS

CHECKS = {f"{file}::{name}": guarantee for file, _, functions in catalogue.checks() for name, guarantee in functions}


def test_every_check_has_a_mutant():
    assert sorted(set(CHECKS) - {mutant.function for mutant in MUTANTS}) == []


def test_every_mutant_names_a_check():
    assert sorted({mutant.function for mutant in MUTANTS} - set(CHECKS)) == []


def test_a_check_has_one_mutant_only():
    assert [check for check, count in Counter(mutant.check for mutant in MUTANTS).items() if count > 1] == []


def test_every_mutant_does_something():
    """A mutant at a later boot may live on another one's fault; one that is seen at once needs its own."""
    idle = [one.check for one in MUTANTS if one.at == "now" and not (one.spoil or one.facts)]
    assert idle == []


def test_every_mutant_expects_a_message():
    assert [one.check for one in MUTANTS if len(one.says) < 5 or not re.compile(one.says)] == []


def test_every_check_says_what_it_guarantees():
    broken = {name: text for name, text in CHECKS.items() if not re.fullmatch(r"\S.{20,}[.?]", text)}
    assert broken == {}


def test_guarantees_are_different():
    assert [text for text, count in Counter(CHECKS.values()).items() if count > 1] == []


def test_the_page_of_checks_is_up_to_date():
    page = catalogue.FOLDER.parents[1] / "docs" / "reference" / "checks.md"
    assert page.read_text() == catalogue.page(), "python testsuite/acceptance/catalogue.py >docs/reference/checks.md"


def test_the_suite_imports_nothing_of_the_factory():
    used = [
        path.name
        for path in catalogue.FOLDER.glob("*.py")
        if re.search(r"^\s*(from|import) factory", path.read_text(), re.MULTILINE)
    ]
    assert used == []
