# SPDX-License-Identifier: Apache-2.0
"""When a green image is published: every night, monthly, or when security asks for it.

Purely decided from the image at hand and what the line published last. Whatever the policy, a line publishes at least
once a month: a calendar month without an image would leave a hole in the monthly archive that users are promised.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from factory.model import Package

BOOT_RELEVANT = ("linux-image", "grub", "shim", "dracut", "initramfs-tools", "systemd", "intel-microcode")
"""Source or binary package name prefixes whose change can keep an instance from booting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """The line's newest published image: when, and with which packages."""

    at: datetime
    packages: tuple[Package, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Whether to publish, and the reason as people read it."""

    publish: bool
    reason: str


def due(policy: str, packages: Iterable[Package], last: Published | None, *, now: datetime, force: bool) -> Decision:
    """Decide whether a green image is published.

    Args:
        policy: ``every-night``, ``monthly`` or ``on-security``.
        last: what the line published before, or None when it never did.
        force: the operator asked for this image.
    """
    if force:
        return Decision(publish=True, reason="asked for by the operator")
    if last is None:
        return Decision(publish=True, reason="the line has no published image yet")
    if (last.at.year, last.at.month) != (now.year, now.month):
        return Decision(publish=True, reason=f"nothing was published in {now:%Y-%m} yet")
    if policy == "every-night":
        return Decision(publish=True, reason="the line publishes every night")
    if policy == "monthly":
        return Decision(publish=False, reason=f"the line publishes monthly and did so on {last.at:%Y-%m-%d}")
    changed = changed_packages(last.packages, packages)
    urgent = sorted({p.name for p in changed if p.origin.endswith("-security") or p.name.startswith(BOOT_RELEVANT)})
    if urgent:
        return Decision(publish=True, reason=f"security or boot packages changed: {', '.join(urgent)}")
    return Decision(publish=False, reason="no security or boot package changed")


def changed_packages(before: Iterable[Package], after: Iterable[Package]) -> tuple[Package, ...]:
    """The packages of ``after`` that ``before`` lacks or has in another version."""
    known = {(package.name, package.arch): package.version for package in before}
    return tuple(package for package in after if known.get((package.name, package.arch)) != package.version)
