# SPDX-License-Identifier: Apache-2.0
"""The table of ``make test``: who took how long, with the shared night as a line of its own."""

from __future__ import annotations

from testsuite.groups import NIGHT, parts, table

JUNIT = """<?xml version="1.0" encoding="utf-8"?><testsuites name="pytest tests"><testsuite name="pytest">
<properties><property name="night_seconds" value="400.0"/>
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
