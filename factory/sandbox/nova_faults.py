# SPDX-License-Identifier: Apache-2.0
"""What a cloud says when it makes no server, in the words of the person who reads it; pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SWEEP = "'factory sandbox sweep' removes what crashed runs left"
_FORBIDDEN, _TOO_LARGE = 403, 413


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A sentence and the way out; ``of_image`` when it is the image that is at fault, and not the cloud."""

    message: str
    hint: str
    of_image: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What was asked for."""

    cloud: str
    flavor: str


_WHAT = re.compile(r"(?:exceeded for|resources:?) (?:resources: )?\[?'?([a-z_, ']+?)'?\]?[:.]", re.IGNORECASE)
_NAMES = {
    "ram": "memory",
    "cores": "virtual processors",
    "instances": "servers",
    "key_pairs": "key pairs",
    "security_group": "security groups",
    "floatingip": "floating addresses",
    "port": "ports",
    "network": "networks",
    "subnet": "subnets",
    "router": "routers",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """A kind of refusal: how to know it, and the sentence with places for ``{cloud}``, ``{flavor}`` and ``{about}``."""

    known_by: re.Pattern[str]
    message: str
    hint: str
    of_image: bool = False

    def told(self, asked: Asked, said: str) -> Told:
        words = {"cloud": asked.cloud, "flavor": asked.flavor, "about": _about(said)}
        return Told(message=self.message.format(**words), hint=self.hint.format(**words), of_image=self.of_image)


def _about(said: str) -> str:
    """What a quota is of, as far as the cloud says."""
    found = _WHAT.search(said)
    words = re.split(r"[,' ]+", found.group(1).strip(" '")) if found else []
    named = [_NAMES.get(word, word) for word in words if word]
    return f" for {' and '.join(named)}" if named else ""


def _known_by(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


_NEVER = re.compile(r"(?!)")
_QUOTA = _Kind(
    known_by=_known_by(r"quota exceeded|exceeds? .*quota|over.?quota|quota .*exceeded|too many"),
    message="the quota of the tenant in '{cloud}'{about} is used up",
    hint=f"name a smaller flavor than '{{flavor}}' in [sandbox], or have the quota raised; {_SWEEP}",
)
_BUILD = _Kind(
    known_by=_NEVER,
    message="'{cloud}' could not build the server",
    hint="this is a fault of the cloud or of what the image's metadata asks of it: show its operator what was said",
)
_REFUSED = _Kind(
    known_by=_NEVER,
    message="'{cloud}' does not let this user do that",
    hint="the sandbox needs a user with the member role in its project; 'own_project' needs an administrator",
)
_KINDS = (
    _QUOTA,
    _Kind(
        known_by=_known_by(r"no valid host|noValidHost|not enough hosts"),
        message="no host of '{cloud}' has room for a server of flavor '{flavor}'",
        hint="name a smaller flavor in [sandbox], or ask the cloud's operator whether its hosts are full or away",
    ),
    _Kind(
        known_by=_known_by(r"too small|smaller than .*(min|size)|MemoryTooSmall|DiskTooSmall"),
        message="flavor '{flavor}' is too small for this image",
        hint="name a flavor in [sandbox] with at least the image's minimum disk and memory",
    ),
    _Kind(
        known_by=_known_by(r"still in use|still (?:has|have) |security group \S+ in use"),
        message="'{cloud}' still uses what was to be deleted",
        hint=f"whose it is, is in what was said; once that is gone, {_SWEEP}",
    ),
    _Kind(
        known_by=_known_by(r"network|port binding|vif|no more ip addresses|PortLimit"),
        message="'{cloud}' could not connect the server to its network",
        hint="is 'network' in [sandbox] one that this tenant may use, with free addresses?",
    ),
    _Kind(
        known_by=_known_by(r"image .*(unacceptable|invalid|not active|corrupt)|qemu-img|hw_|disk bus"),
        message="'{cloud}' could not make a disk from the image",
        hint="does the image's metadata ask for hardware that this cloud has not? See the host's log with its operator",
        of_image=True,
    ),
)


def told(said: str, *, asked: Asked, status: int = 0) -> Told:
    """The sentence for what Nova, Neutron or Glance said, as a fault of a server or as a refusal with a status."""
    by_status = {_TOO_LARGE: _QUOTA, _FORBIDDEN: _REFUSED}.get(status, _BUILD)
    return next((kind for kind in _KINDS if kind.known_by.search(said)), by_status).told(asked, said)


def too_slow(asked: Asked, *, state: str, seconds: float) -> Told:
    """The sentence for a server that does not become ACTIVE."""
    return Told(
        message=f"the server in '{asked.cloud}' was not ACTIVE within {seconds:.0f} s (it is {state})",
        hint="raise 'timeout_s' in [sandbox] if the cloud is only slow; else its operator can see what it waits for",
    )
