# SPDX-License-Identifier: Apache-2.0
"""The table of ``make test``: who took how long, with the shared night as a line of its own."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest

from testsuite.groups import GROUPS, NIGHT, STEPS, WAITED, main, parts, table

JUNIT = """<?xml version="1.0" encoding="utf-8"?><testsuites name="pytest tests"><testsuite name="pytest">
<properties><property name="night_seconds" value="400.0"/><property name="night_made" value="here"/>
<property name="night_asked_by" value="testsuite/integration/test_glance.py"/></properties>
<testcase classname="testsuite.unit.test_cli" name="test_a" time="1.5"/>
<testcase classname="testsuite.unit.test_gc.TestGc" name="test_b" time="2.0"/>
<testcase classname="testsuite.integration.test_glance" name="test_c" time="410.0"/>
<testcase classname="testsuite.integration.test_glance" name="test_d" time="1.0"><failure message="no"/></testcase>
<testcase classname="testsuite.mutants.test_mutants" name="test_e[x]" time="30.0"/>
</testsuite></testsuites>"""


def test_each_part_has_its_time():
    found = {row.name.strip(): (row.result, row.tests, row.seconds) for row in parts(JUNIT)}
    assert found == {
        NIGHT: ("passed", 0, 400.0),
        "mutants": ("passed", 1, 30.0),
        "integration/test_glance": ("1 FAILED", 2, 11.0),
        "unit": ("passed", 2, 3.5),
    }


def test_without_a_night_of_its_own_there_is_no_line_for_it():
    kept = JUNIT.replace("night_seconds", "x").replace("night_asked_by", "y")
    assert NIGHT not in {row.name.strip() for row in parts(kept)}


def test_the_longest_comes_first_and_columns_line_up():
    lines = table(list(parts(JUNIT))).splitlines()
    assert [line.split()[0] for line in lines] == ["group", "shared", "mutants", "integration/test_glance", "unit"]
    assert len({len(line) for line in lines}) == 1


def test_who_waited_for_the_night_of_another_group_says_so():
    rows = {row.name.strip(): row.seconds for row in parts(JUNIT.replace('"here"', '"beside"'))}
    assert NIGHT not in rows
    assert rows[WAITED] == 400.0
    assert rows["integration/test_glance"] == 11.0


def test_every_group_is_run_once():
    assert sorted(name for step in STEPS for name in step) == sorted(GROUPS)


def test_a_red_group_beside_a_green_one_is_seen(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    script = "import sys; print('words of', sys.argv[1]); sys.exit(int(sys.argv[2]))"
    for name, status in (("night", "0"), ("beside", "3")):
        monkeypatch.setitem(GROUPS, name, [sys.executable, "-c", script, name, status])
    monkeypatch.setattr(sys, "argv", ["groups.py", "night", "beside"])
    assert main() == 1
    said = capfd.readouterr().out
    assert said.index("words of night") < said.index("== beside") < said.index("words of beside")
    assert [line.split()[:2] for line in said[said.rindex("group ") :].splitlines()[1:3]] == [
        ["night", "passed"],
        ["beside", "FAILED"],
    ]
    monkeypatch.setattr(sys, "argv", ["groups.py", "night"])
    assert main() == 0
