# SPDX-License-Identifier: Apache-2.0
"""The guest's serial console: a file that QEMU writes and we read.

What a guest says is hostile text: it is stripped of control sequences before people see it, and secrets are replaced
before it is kept.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from factory.system.files import write_whole

FINISHED = r"Cloud-init v\. \S+ finished"
"""cloud-init's last line of a boot; sshd is up by then."""

_DEAD_ENDS = (
    ("its kernel panicked", re.compile(r"Kernel panic - not syncing")),
    ("its initrd gave up", re.compile(r"dracut-emergency|Entering emergency mode\. Exit the shell")),
    ("its boot loader gave up", re.compile(r"grub rescue>|No bootable device")),
)
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b\n]*(?:\x07|\x1b\\)|[()][0-9A-B]|[@-Z\\-_])")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_HOST_KEYS = re.compile(r"-----BEGIN SSH HOST KEY KEYS-----(.*?)-----END SSH HOST KEY KEYS-----", re.DOTALL)
_HOST_KEY = re.compile(r"(ssh-[a-z0-9-]+|ecdsa-sha2-nistp[0-9]+) ([A-Za-z0-9+/]+=*)")
MASK = "[masked]"
LIMIT_BYTES = 16 << 20
"""No boot says this much; a guest that does is flooding us."""


def plain(text: str) -> str:
    """``text`` without terminal control sequences and control characters (newline and tab stay)."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text.replace("\r\n", "\n").replace("\r", "\n")))


def masked(text: str, secrets: tuple[str, ...]) -> str:
    """``text`` with every secret replaced; the longest first, so that none shows through another."""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, MASK)
    return text


def host_keys(text: str) -> tuple[str, ...]:
    """The ssh host keys that cloud-init printed last, each as ``TYPE BASE64``."""
    blocks = _HOST_KEYS.findall(plain(text))
    if not blocks:
        return ()
    return tuple(f"{kind} {body}" for kind, body in _HOST_KEY.findall(blocks[-1]))


def dead_end(text: str) -> str:
    """Why the guest cannot get any further, or nothing."""
    return next((reason for reason, pattern in _DEAD_ENDS if pattern.search(text)), "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Console:
    """A serial console: ``raw`` is what QEMU writes (0600, goes with the guest), ``kept`` what stays, masked."""

    raw: Path
    kept: Path

    def size_bytes(self) -> int:
        """How much the guest has said so far; a mark for :meth:`text`."""
        return self.raw.stat().st_size if self.raw.exists() else 0

    def text(self, *, since_bytes: int = 0) -> str:
        """What the guest said, unaltered, from a mark on."""
        if not self.raw.exists():
            return ""
        with self.raw.open("rb") as file:
            file.seek(since_bytes)
            return file.read(LIMIT_BYTES).decode(errors="replace")

    def last_lines(self, count: int = 6, *, secrets: tuple[str, ...] = ()) -> tuple[str, ...]:
        """The last lines with something on them, safe to show."""
        lines = [line.strip() for line in plain(self.text()).split("\n")]
        return tuple(masked(line, secrets)[:200] for line in lines if line)[-count:]

    def keep(self, secrets: tuple[str, ...]) -> None:
        """Write the kept log: control sequences gone, secrets masked."""
        write_whole(self.kept, masked(plain(self.text()), secrets))
