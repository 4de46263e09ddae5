# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import pytest

from factory.model import Package, Repository
from factory.policy import Published, changed_packages, due, overdue, security_changes

NOW = datetime(2026, 11, 21, 2, tzinfo=UTC)
TODAY = datetime(2026, 11, 20, 2, tzinfo=UTC)
LAST_MONTH = datetime(2026, 10, 31, 2, tzinfo=UTC)
LAST_YEAR = datetime(2025, 11, 20, 2, tzinfo=UTC)


def package(name: str, version: str = "1", origin: str = "debian") -> Package:
    return Package(name=name, version=version, arch="amd64", origin=origin)


OLD = (package("bash"), package("openssl"), package("linux-image-amd64"))
UNTOUCHED = OLD
LEAF = (package("bash", "2"), *OLD[1:])
SECURITY = (OLD[0], package("openssl", "2", "debian-security"), OLD[2])
KERNEL = (*OLD[:2], package("linux-image-amd64", "2"))
VENDOR = (package("bash", "2", "updates"), *OLD[1:])
SIGNED_KERNEL = (*OLD, Package(name="vmlinuz", version="1", arch="amd64", source="linux-signed-amd64"))
REPOSITORIES = (
    Repository(alias="debian", url="", suites=("trixie", "trixie-updates")),
    Repository(alias="updates", url="", suites=("trixie-security",)),
)


@pytest.mark.parametrize(
    ("policy", "packages", "last", "force", "publish", "says"),
    [
        ("every-night", UNTOUCHED, TODAY, False, True, "every night"),
        ("monthly", UNTOUCHED, TODAY, False, False, "2026-11-20"),
        ("monthly", UNTOUCHED, TODAY, True, True, "operator"),
        ("monthly", UNTOUCHED, LAST_MONTH, False, True, "2026-11"),
        ("monthly", UNTOUCHED, LAST_YEAR, False, True, "2026-11"),
        ("monthly", UNTOUCHED, None, False, True, "no published image"),
        ("on-security", UNTOUCHED, TODAY, False, False, "no security"),
        ("on-security", LEAF, TODAY, False, False, "no security"),
        ("on-security", SECURITY, TODAY, False, True, "openssl"),
        ("on-security", KERNEL, TODAY, False, True, "linux-image-amd64"),
        ("on-security", LEAF, LAST_MONTH, False, True, "2026-11"),
        ("on-security", VENDOR, TODAY, False, True, "security suite changed: bash"),
        ("on-security", SIGNED_KERNEL, TODAY, False, True, "boot packages changed: vmlinuz"),
        ("on-security", OLD[:2], TODAY, False, True, "boot packages changed: linux-image-amd64"),
        ("on-security", (*SECURITY[:2], *KERNEL[2:]), TODAY, False, True, "openssl; boot packages changed"),
        ("on-security", UNTOUCHED, None, False, True, "no published image"),
    ],
)
def test_due(policy, packages, last, force, publish, says) -> None:
    before = None if last is None else Published(at=last, packages=OLD)
    decision = due(policy, packages, before, now=NOW, force=force, repositories=REPOSITORIES)
    assert decision.publish is publish
    assert says in decision.reason


def test_changed_packages_are_new_ones_and_other_versions() -> None:
    after = (package("bash", "2"), package("openssl"), package("zsh"))
    assert [one.name for one in changed_packages(OLD, after)] == ["bash", "zsh"]


@pytest.mark.parametrize("policy", ["every-night", "monthly", "on-security"])
def test_whatever_the_policy_each_month_has_an_image(policy: str) -> None:
    """A year of nights in which nothing ever changes."""
    last, published = None, []
    for day in range(365):
        night = datetime(2026, 1, 1, 2, tzinfo=UTC) + timedelta(days=day)
        if due(policy, OLD, last, now=night, force=False).publish:
            last = Published(at=night, packages=OLD)
            published.append(night)
    assert {one.month for one in published} == set(range(1, 13))
    assert len(published) == (365 if policy == "every-night" else 12)


def test_a_package_that_only_moved_into_the_security_suite_did_not_change() -> None:
    moved = (package("bash", "1", "debian-security"), *OLD[1:])
    assert security_changes(OLD, moved) == ()


@pytest.mark.parametrize(
    ("policy", "last", "says"),
    [
        ("every-night", None, ""),
        ("every-night", NOW - timedelta(days=26, hours=23), ""),
        ("every-night", NOW - timedelta(days=27), ""),
        ("every-night", NOW - timedelta(days=27, seconds=1), "within 28 days there is a new one"),
        ("every-night", LAST_MONTH, ""),
        ("monthly", NOW.replace(day=1), ""),
        ("monthly", LAST_MONTH, "nothing was published in 2026-11 yet"),
        ("on-security", LAST_YEAR, "nothing was published in 2026-11 yet"),
    ],
)
def test_when_an_equal_image_is_made_anew(policy, last, says) -> None:
    before = None if last is None else Published(at=last, packages=OLD)
    said = overdue(policy, before, now=NOW)
    assert said.endswith(says) if says else said == ""


@pytest.mark.parametrize("policy", ["every-night", "monthly", "on-security"])
def test_nights_without_any_change_leave_no_month_without_an_image(policy: str) -> None:
    last = Published(at=datetime(2026, 1, 1, 2, tzinfo=UTC), packages=OLD)
    published = [last.at]
    for day in range(1, 365):
        night = datetime(2026, 1, 1, 2, tzinfo=UTC) + timedelta(days=day)
        if overdue(policy, last, now=night):
            assert due(policy, OLD, last, now=night, force=False).publish
            last = Published(at=night, packages=OLD)
            published.append(night)
    assert {one.month for one in published} == set(range(1, 13))
    assert len(published) == {"every-night": 14, "monthly": 12, "on-security": 12}[policy]
    if policy == "every-night":
        assert max(b - a for a, b in itertools.pairwise(published)) <= timedelta(days=28)
