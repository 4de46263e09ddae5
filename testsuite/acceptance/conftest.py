# SPDX-License-Identifier: Apache-2.0
"""The acceptance suite: judges a running guest over ssh, and imports nothing of the factory that built it.

What to expect comes from one JSON file (``--facts``): the description, the region, the lists the build left, how to
reach the guest, and what was seen from outside and at other boots. What is right in general (kernel settings,
algorithms, ...) is written in the checks themselves. ``--result FILE`` receives every check as JSON.

A guest in emulation needs about half a second for a command, so :class:`Guest` asks each question once a session.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import testinfra

SCHEMA = "acceptance/1"
_DETAIL_CHARACTERS = 4000
_TOLD = pytest.StashKey()


def pytest_addoption(parser):
    parser.addoption("--facts", help="JSON file with what to expect (see docs/reference/checks.md)")
    parser.addoption("--result", help="write every check to this JSON file")


class Guest:
    """The guest, as the login user or root sees it; the same question is asked only once."""

    def __init__(self, host):
        self.host = host
        self._root = {}
        self._user = {}

    def root(self, script):
        """What a shell script prints that root runs; the script has to succeed."""
        if script not in self._root:
            done = self.host.run("sudo -n env LC_ALL=C sh -c %s", script)
            assert done.rc == 0, f"root could not look into the guest: {done.stderr.strip()[-500:] or done.rc}"
            self._root[script] = done.stdout
        return self._root[script]

    def user(self, script):
        """What a shell script prints that the login user runs; the script has to succeed."""
        if script not in self._user:
            done = self.host.run("env LC_ALL=C sh -c %s", script)
            assert done.rc == 0, f"the login user could not look around: {done.stderr.strip()[-500:] or done.rc}"
            self._user[script] = done.stdout
        return self._user[script]

    def try_root(self, script):
        """Status, output and errors of a script that may fail; never remembered."""
        return self.host.run("sudo -n env LC_ALL=C sh -c %s", script)


def pytest_configure(config):
    name = config.getoption("--facts")
    if not name:
        raise pytest.UsageError("--facts FILE is missing: the suite has to know what to expect")
    found = json.loads(Path(name).read_text(), object_hook=_Facts)
    if found.schema != SCHEMA:
        raise pytest.UsageError(f"{name} has the schema {found.schema!r}, not {SCHEMA!r}")
    config.stash[_TOLD] = found


@pytest.fixture(scope="session")
def facts(pytestconfig):
    """Everything the checks may expect, as attributes; absent parts are None."""
    return pytestconfig.stash[_TOLD]


class _Facts(SimpleNamespace):
    """A JSON object; what it does not name is None."""

    def __init__(self, found):
        super().__init__(**found)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)


def _skip_untried(told, abilities):
    """Skip what this sandbox cannot do; its harness says why. What is skipped is never a pass."""
    for ability in abilities:
        if reason := getattr(told.not_tried, ability, None):
            pytest.skip(f"not tried: {reason}")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    for marker in item.iter_markers("needs"):
        _skip_untried(item.config.stash[_TOLD], marker.args)


@pytest.fixture
def tried(facts):
    """Skips when the sandbox cannot do one of these."""
    return lambda *abilities: _skip_untried(facts, abilities)


@pytest.fixture(scope="session")
def description(facts):
    """The image's description."""
    return facts.description


@pytest.fixture(scope="session")
def host(facts):
    """The guest, through testinfra."""
    return testinfra.get_host(f"ssh://{facts.ssh.host}", ssh_config=facts.ssh.config, controlpersist=0, timeout=60)


@pytest.fixture(scope="session")
def guest(host):
    """The guest, with a memory."""
    return Guest(host)


# -- the result -------------------------------------------------------------------------------------------------------

_checks = {}


def pytest_collection_modifyitems(items):
    for item in items:
        if not (item.function.__doc__ or "").strip():
            raise pytest.UsageError(f"{item.nodeid} does not say what it guarantees")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    name = f"{Path(item.nodeid.split('::')[0]).name}::{item.name}"
    known = _checks.setdefault(
        name,
        {
            "name": name,
            "guarantee": " ".join(item.function.__doc__.split()),
            "outcome": "passed",
            "message": "",
            "seconds": 0.0,
            "phase": "",
        },
    )
    known["seconds"] = round(known["seconds"] + report.duration, 3)
    if report.failed:
        known.update(outcome="failed", phase=call.when, message=_message(call.excinfo))
    elif report.skipped:
        known.update(outcome="skipped", phase=call.when, message=str(call.excinfo.value))


def _message(excinfo):
    """What people read: the check's own sentence, without the comparison that pytest adds below it."""
    text = str(excinfo.value) or excinfo.typename
    sentence = re.split(r"\nassert ", text, maxsplit=1)[0]
    if not isinstance(excinfo.value, (AssertionError, pytest.fail.Exception)):
        sentence = f"the check could not be made: {excinfo.typename}: {sentence}"
    return sentence[:_DETAIL_CHARACTERS]


def pytest_sessionfinish(session, exitstatus):
    name = session.config.getoption("--result")
    if name:
        found = {"schema": "acceptance-result/1", "exit": int(exitstatus), "checks": list(_checks.values())}
        partial = Path(name + ".part")
        partial.write_text(json.dumps(found, indent=1) + "\n")
        partial.replace(name)
