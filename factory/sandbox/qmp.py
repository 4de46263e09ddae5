# SPDX-License-Identifier: Apache-2.0
"""Speaking JSON, a line at a time, with QEMU (QMP) and with the guest agent inside the guest.

Both talk over one half of a socket pair whose other half QEMU inherits: no socket files, nothing to find or to leave
behind. References: QEMU's "QMP Reference Manual" and "Guest Agent Protocol Reference".
"""

from __future__ import annotations

import json
import socket
import time
from typing import Any

from factory.errors import SandboxError

_KEYS = {
    "\n": "ret", " ": "spc", "\t": "tab", "-": "minus", "=": "equal", "[": "bracket_left", "]": "bracket_right",
    "\\": "backslash", ";": "semicolon", "'": "apostrophe", "`": "grave_accent", ",": "comma", ".": "dot", "/": "slash",
}  # fmt: skip
_SHIFTED = dict(zip('!@#$%^&*()_+{}|:"~<>?', "1234567890-=[]\\;'`,./", strict=True))


def keys_for(character: str) -> tuple[str, ...]:
    """The keys (QEMU key codes) that type a character on an English keyboard.

    Raises:
        SandboxError: the character is not on it.
    """
    if character in _SHIFTED or ("A" <= character <= "Z"):
        return ("shift", *keys_for(_SHIFTED.get(character, character.lower())))
    if character in _KEYS:
        return (_KEYS[character],)
    if character.isascii() and character.isalnum():
        return (character,)
    raise SandboxError(f"the character {character!r} cannot be typed on the guest's keyboard")


class JsonChannel:
    """Requests and answers as JSON lines over a connected socket; what is not an answer is kept in ``events``."""

    def __init__(self, ours: socket.socket, *, who: str) -> None:
        self._socket = ours
        self._who = who
        self._pending = b""
        self.events: list[dict[str, Any]] = []

    def send(self, message: dict[str, Any]) -> None:
        """Send one message."""
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError as gone:
            raise SandboxError(f"{self._who} no longer listens") from gone

    def receive(self, *, timeout_s: float) -> dict[str, Any]:
        """The next message.

        Raises:
            SandboxError: none within ``timeout_s``, or the other side ended.
        """
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._pending:
            self._socket.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                chunk = self._socket.recv(65536)
            except TimeoutError:
                raise SandboxError(f"{self._who} did not answer within {timeout_s:.0f} s") from None
            except OSError as gone:
                raise SandboxError(f"{self._who} no longer answers") from gone
            if not chunk:
                raise SandboxError(f"{self._who} no longer answers")
            self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        try:
            message = json.loads(line.lstrip(b"\xff"))
        except ValueError as garbled:
            raise SandboxError(f"{self._who} sent something that is not JSON") from garbled
        if not isinstance(message, dict):
            raise SandboxError(f"{self._who} sent something that is not an object")
        return message

    def ask(self, command: str, *, timeout_s: float, **arguments: object) -> Any:  # noqa: ANN401 - JSON is what it is
        """Send a command and return what it returned.

        Raises:
            SandboxError: refused, or no answer in time.
        """
        self.send({"execute": command, **({"arguments": arguments} if arguments else {})})
        deadline = time.monotonic() + timeout_s
        while True:
            message = self.receive(timeout_s=max(0.01, deadline - time.monotonic()))
            if "return" in message:
                return message["return"]
            if "error" in message:
                raise SandboxError(f"{self._who} refused '{command}'", facts=(("said", repr(message["error"])),))
            self.events.append(message)

    def close(self) -> None:
        """Close our half."""
        self._socket.close()


class Qmp(JsonChannel):
    """QEMU's control channel, ready for commands."""

    def __init__(self, ours: socket.socket) -> None:
        super().__init__(ours, who="QEMU")

    def greet(self, *, timeout_s: float = 30) -> None:
        """Wait for QEMU's greeting and start command mode."""
        self.receive(timeout_s=timeout_s)
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: object) -> Any:  # noqa: ANN401 - JSON is what it is
        """Run one QMP command."""
        return self.ask(command, timeout_s=60, **arguments)

    def monitor(self, line: str) -> str:
        """Run a command of the human monitor (for the few that QMP lacks)."""
        return str(self.execute("human-monitor-command", **{"command-line": line}))

    def type_text(self, text: str, *, pause_s: float = 0.06) -> None:
        """Type on the guest's keyboard; slowly, because its buffer holds sixteen bytes."""
        for character in text:
            keys = [{"type": "qcode", "data": key} for key in keys_for(character)]
            self.execute("send-key", keys=keys, **{"hold-time": 20})
            time.sleep(pause_s)


class Agent(JsonChannel):
    """The guest agent's channel; the agent may be absent, late, or restarted at any time."""

    def __init__(self, ours: socket.socket) -> None:
        super().__init__(ours, who="the guest agent")
        self._serial = 0

    def ping(self, *, timeout_s: float = 10) -> None:
        """Return when the agent answers.

        Raises:
            SandboxError: it does not, within ``timeout_s``.
        """
        self._serial += 1
        self.send({"execute": "guest-sync-delimited", "arguments": {"id": self._serial}})
        deadline = time.monotonic() + timeout_s
        while self.receive(timeout_s=max(0.01, deadline - time.monotonic())).get("return") != self._serial:
            pass  # answers to questions of an earlier, lost conversation
        self.ask("guest-ping", timeout_s=max(0.01, deadline - time.monotonic()))
