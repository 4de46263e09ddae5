# SPDX-License-Identifier: Apache-2.0
"""When a green image is published: every night, monthly, or when security asks for it.

Purely decided from the image at hand and what the line published last. Whatever the policy, a line publishes at least
once a month: a calendar month without an image would leave a hole in the monthly archive that users are promised. That
holds too when nothing changes: then an image is made all the same, every 28 days at the latest (no month is shorter).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from factory.model import Package, Repository

BOOT_RELEVANT = (
    "linux-image",
    "linux-modules",
    "linux-signed",
    "grub",
    "shim",
    "dracut",
    "initramfs-tools",
    "systemd",
    "udev",
    "kmod",
    "cloud-init",
    "intel-microcode",
    "amd64-microcode",
)
"""Source or binary package name prefixes whose change can keep an instance from booting, or from being reached."""
PUBLISHED_WITHIN = timedelta(days=28)
NIGHT = timedelta(days=1)
SECURITY = "security"
"""A repository is a security suite's when its alias or one of its suites ends so (``trixie-security``)."""


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


def due(
    policy: str,
    packages: Iterable[Package],
    last: Published | None,
    *,
    now: datetime,
    force: bool,
    repositories: Iterable[Repository] = (),
) -> Decision:
    """Decide whether a green image is published.

    Args:
        policy: ``every-night``, ``monthly`` or ``on-security``.
        last: what the line published before, or None when it never did.
        force: the operator asked for this image.
        repositories: where its packages come from.
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
    after = tuple(packages)
    secure = {package.name for package in security_changes(last.packages, after, repositories)}
    boots = {package.name for package in changed_packages(last.packages, after) if _boots(package)}
    boots |= {package.name for package in last.packages if _boots(package)} - {package.name for package in after}
    kinds = (("packages of a security suite", secure), ("boot packages", boots - secure))
    said = [f"{what} changed: {', '.join(sorted(names))}" for what, names in kinds if names]
    if said:
        return Decision(publish=True, reason="; ".join(said))
    return Decision(publish=False, reason=f"no security or boot package changed since {last.at:%Y-%m-%d}")


def overdue(policy: str, last: Published | None, *, now: datetime) -> str:
    """Why an image is made and published although nothing changed since the last one; else nothing.

    A line that publishes every night does so within 28 days; one that publishes by the month, or for security, once in
    each calendar month, as :func:`due` decides for images that exist.
    """
    if last is None:
        return ""
    if policy == "every-night":
        late = now + NIGHT - last.at > PUBLISHED_WITHIN
        return (
            f"the last image was published on {last.at:%Y-%m-%d}, and within 28 days there is a new one" if late else ""
        )
    month = (last.at.year, last.at.month) != (now.year, now.month)
    return f"nothing was published in {now:%Y-%m} yet" if month else ""


def changed_packages(before: Iterable[Package], after: Iterable[Package]) -> tuple[Package, ...]:
    """The packages of ``after`` that ``before`` lacks or has in another version."""
    known = {(package.name, package.arch): package.version for package in before}
    return tuple(package for package in after if known.get((package.name, package.arch)) != package.version)


def security_changes(
    before: Iterable[Package], after: Iterable[Package], repositories: Iterable[Repository] = ()
) -> tuple[Package, ...]:
    """The packages of ``after`` that are new or other than in ``before`` and come from a security suite."""
    aliases = {one.alias for one in repositories if any(suite.endswith(SECURITY) for suite in one.suites)}
    changed = changed_packages(before, after)
    return tuple(one for one in changed if one.origin in aliases or one.origin.endswith(SECURITY))


def _boots(package: Package) -> bool:
    return package.name.startswith(BOOT_RELEVANT) or package.source.startswith(BOOT_RELEVANT)
