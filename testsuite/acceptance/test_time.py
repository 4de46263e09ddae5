# SPDX-License-Identifier: Apache-2.0
"""The clock: whose time the guest takes, and that it has it."""

from __future__ import annotations

import time

import pytest

_DAY_S = 86400
SOURCES = "cat /etc/chrony/chrony.conf /etc/chrony/sources.d/*.sources /etc/chrony/conf.d/*.conf 2>/dev/null || true"


def _configured(guest):
    lines = [line.split() for line in guest.root(SOURCES).splitlines()]
    return {words[1] for words in lines if len(words) > 1 and words[0] in {"server", "pool", "peer"}}


def test_chrony_knows_exactly_the_sites_servers(guest, facts):
    """chrony asks the time servers that the site names, and no others."""
    if facts.ntp_servers is None:
        pytest.skip("this image came without the factory's own records: its time servers are not known")
    wanted = set(facts.ntp_servers)
    found = _configured(guest)
    assert found == wanted, f"chrony is configured with {sorted(found)}, the site names {sorted(wanted)}"


@pytest.mark.needs("time")
def test_the_clock_is_synchronised(guest, facts):
    """The guest, whose clock may have been far off when it started, has synchronised."""
    if facts.ntp_servers is None:
        pytest.skip("this image came without the factory's own records: its time servers are not known")
    found = guest.root("chronyc -n -c tracking").strip().split(",")
    assert found[-1] == "Normal", f"the clock is not synchronised: {found[-1]}"


@pytest.mark.needs("time")
def test_the_clock_is_right(guest, facts):
    """The guest's time is the host's, to two seconds and the length of one question."""
    before = time.time()
    found = float(guest.try_root("date +%s.%N").stdout)
    after = time.time()
    assert before - 2 <= found <= after + 2, f"the guest's clock is off by {found - before:+.0f} s"


def test_the_time_zone_is_utc(guest):
    """The guest's time zone is UTC."""
    found = guest.user("date +%Z").strip()
    assert found == "UTC", f"the guest's time zone is {found}"


def test_time_comes_back_after_a_reboot(guest):
    """chrony is enabled, steps a clock that is far off, and no second time service runs beside it."""
    found = guest.root(
        "systemctl is-enabled chrony; systemctl is-active chrony; systemctl is-active systemd-timesyncd || true;"
        "grep -h -E '^ *makestep' /etc/chrony/chrony.conf /etc/chrony/conf.d/*.conf 2>/dev/null || true"
    ).splitlines()
    assert found[:2] == ["enabled", "active"], f"chrony is {' and '.join(found[:2])}"
    assert found[2] != "active", "systemd-timesyncd runs beside chrony"
    assert any(line.strip().startswith("makestep") for line in found[3:]), (
        "chrony would not step a clock that is far off"
    )


@pytest.mark.needs("clock", "region")
def test_the_guest_registered_after_it_had_the_time(guest, facts):
    """A guest whose clock is a year off gets the time first and registers then."""
    mode = facts.description.registration.mode
    if mode != "on-demand" or facts.region is None:
        pytest.skip(f"registration mode is {mode!r}: the image does not register by itself")
    files = "grep -s -l -r -i -E '^ *(machine|login)' /etc/apt/auth.conf /etc/apt/auth.conf.d"
    found = guest.root(f"stat -c '%Y %n' $({files}) </dev/null 2>/dev/null || true").splitlines()
    assert found, "the guest did not register"
    early = [line for line in found if float(line.split()[0]) < time.time() - _DAY_S]
    assert not early, f"the guest registered before it had the time: {early}"
