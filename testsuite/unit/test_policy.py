# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from datetime import UTC, datetime

import pytest

from factory.model import Package
from factory.policy import Published, changed_packages, due

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
    ],
)
def test_due(policy, packages, last, force, publish, says) -> None:
    before = None if last is None else Published(at=last, packages=OLD)
    decision = due(policy, packages, before, now=NOW, force=force)
    assert decision.publish is publish
    assert says in decision.reason


def test_changed_packages_are_new_ones_and_other_versions() -> None:
    after = (package("bash", "2"), package("openssl"), package("zsh"))
    assert [one.name for one in changed_packages(OLD, after)] == ["bash", "zsh"]
