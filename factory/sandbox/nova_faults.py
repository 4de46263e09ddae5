# SPDX-License-Identifier: Apache-2.0
"""What a cloud says when it makes no server, in the words of the person who reads it; pure."""

from __future__ import annotations

import re
from collections.abc import Callable
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


_QUOTA = re.compile(r"quota exceeded|exceeds? .*quota|over.?quota|overquota|quota .*exceeded|too many", re.IGNORECASE)
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


def _quota(asked: Asked, said: str) -> Told:
    found = _WHAT.search(said)
    words = re.split(r"[,' ]+", found.group(1).strip(" '")) if found else []
    named = [_NAMES.get(word, word) for word in words if word]
    about = f" for {' and '.join(named)}" if named else ""
    return Told(
        message=f"the quota of the tenant in '{asked.cloud}'{about} is used up",
        hint=f"name a smaller flavor than '{asked.flavor}' in [sandbox], or have the quota raised; {_SWEEP}",
    )


def _no_host(asked: Asked, _said: str) -> Told:
    return Told(
        message=f"no host of '{asked.cloud}' has room for a server of flavor '{asked.flavor}'",
        hint="name a smaller flavor in [sandbox], or ask the cloud's operator whether its hosts are full or away",
    )


def _too_small(asked: Asked, _said: str) -> Told:
    return Told(
        message=f"flavor '{asked.flavor}' is too small for this image",
        hint="name a flavor in [sandbox] with at least the image's minimum disk and memory",
    )


def _network(asked: Asked, _said: str) -> Told:
    return Told(
        message=f"'{asked.cloud}' could not connect the server to its network",
        hint="is 'network' in [sandbox] one that this tenant may use, with free addresses?",
    )


def _image(asked: Asked, _said: str) -> Told:
    return Told(
        message=f"'{asked.cloud}' could not make a disk from the image",
        hint="does the image's metadata ask for hardware that this cloud has not? See the host's log with its operator",
        of_image=True,
    )


def _build(asked: Asked, _said: str) -> Told:
    return Told(
        message=f"'{asked.cloud}' could not build the server",
        hint="this is a fault of the cloud or of what the image's metadata asks of it: show its operator what was said",
    )


def _forbidden(asked: Asked, _said: str) -> Told:
    return Told(
        message=f"'{asked.cloud}' does not let this user do that",
        hint="the sandbox needs a user with the member role in its project; 'own_project' needs an administrator",
    )


_KINDS: tuple[tuple[re.Pattern[str], Callable[[Asked, str], Told]], ...] = (
    (_QUOTA, _quota),
    (re.compile(r"no valid host|noValidHost|not enough hosts", re.IGNORECASE), _no_host),
    (re.compile(r"too small|smaller than .*(min|size)|MemoryTooSmall|DiskTooSmall", re.IGNORECASE), _too_small),
    (re.compile(r"network|port binding|vif|no more ip addresses|PortLimit", re.IGNORECASE), _network),
    (re.compile(r"image .*(unacceptable|invalid|not active|corrupt)|qemu-img|hw_|disk bus", re.IGNORECASE), _image),
)


def told(said: str, *, asked: Asked, status: int = 0) -> Told:
    """The sentence for what Nova, Neutron or Glance said, as a fault of a server or as a refusal with a status."""
    for pattern, tell in _KINDS:
        if pattern.search(said):
            return tell(asked, said)
    if status == _TOO_LARGE:
        return _quota(asked, said)
    if status == _FORBIDDEN:
        return _forbidden(asked, said)
    return _build(asked, said)


def too_slow(asked: Asked, *, state: str, seconds: float) -> Told:
    """The sentence for a server that does not become ACTIVE."""
    return Told(
        message=f"the server in '{asked.cloud}' was not ACTIVE within {seconds:.0f} s (it is {state})",
        hint="raise 'timeout_s' in [sandbox] if the cloud is only slow; else its operator can see what it waits for",
    )
