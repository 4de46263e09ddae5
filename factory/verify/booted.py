# SPDX-License-Identifier: Apache-2.0
"""What is noted of a guest that is up, for whoever compares two images: where it listens, and its kernel settings.

Nothing here is judged; the suite does that by itself.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from factory.sandbox.conversation import Conversation
from factory.verify.seen import as_root

SCHEMA = "factory/booted/1"
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/-]*")
_PROGRAM = re.compile(r'users:\(\("([^"]{1,64})"')
_COLUMNS = 5


def note_booted(guest: Conversation, keys: Iterable[str]) -> str:
    """What a running guest tells, as text.

    Args:
        keys: the kernel settings that its image makes.
    """
    wanted = shlex.join(sorted(key for key in keys if _KEY.fullmatch(key)))
    script = f"export LC_ALL=C\nss -H -l -n -t -u -p\necho =\nsysctl -e {wanted or '-V'} 2>/dev/null\nexit 0\n"
    sockets, _, settings = as_root(guest, script).stdout.partition("\n=\n")
    body = {"schema": SCHEMA, "listening": listening(sockets), "sysctl": settings_of(settings)}
    return json.dumps(body, indent=1, sort_keys=True) + "\n"


def configured(inventory: Path | None) -> tuple[str, ...]:
    """The kernel settings that an image's inventory names; none where there is no inventory."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return tuple(map(str, json.loads(inventory.read_text())["sysctl"])) if inventory else ()
    return ()


def listening(text: str) -> list[dict[str, Any]]:
    """Sockets that wait for others, from ``ss -H -l -n -t -u -p``, sorted; addresses by what can reach them."""
    found = set()
    for line in text.splitlines():
        columns = line.split(maxsplit=_COLUMNS)
        if len(columns) < _COLUMNS:
            continue
        address, _, port = columns[4].rpartition(":")
        program = _PROGRAM.search(line)
        if port.isdecimal():
            found.add((columns[0], int(port), _reach(address), program[1] if program else ""))
    names = ("protocol", "port", "reach", "program")
    return [dict(zip(names, one, strict=True)) for one in sorted(found)]


def _reach(address: str) -> str:
    """From where a socket can be reached: ``any``, ``loopback``, ``link-local``, or ``one address``."""
    plain = address.strip("[]").partition("%")[0].strip("[]")
    if plain in {"*", "0.0.0.0", "::"}:
        return "any"
    try:
        found = ipaddress.ip_address(plain)
    except ValueError:
        return "one address"
    return "loopback" if found.is_loopback else "link-local" if found.is_link_local else "one address"


def settings_of(text: str) -> Mapping[str, str]:
    """Settings from ``sysctl KEY...``."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {key.strip(): " ".join(value.split()) for key, _, value in pairs}
