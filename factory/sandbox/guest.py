# SPDX-License-Identifier: Apache-2.0
"""A running guest: log in, look at its screen, type on its keyboard, reboot it, switch it off."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from factory.errors import CommandFailed, GuestSilent, GuestStopped, SandboxError
from factory.sandbox.connection import Login
from factory.sandbox.console import FINISHED, Console, masked, plain
from factory.sandbox.conversation import Conversation
from factory.sandbox.machine import Machine
from factory.sandbox.qmp import Agent, Qmp
from factory.system.clock import now
from factory.system.run import Completed, ended, last_lines


class Guest(Conversation):
    """A virtual machine and the ways to it; made by :func:`factory.sandbox.qemu.boot` and ``frozen.thaw``.

    Not for use by two threads at once.
    """

    def __init__(
        self,
        *,
        machine: Machine,
        login: Login,
        console: Console,
        qmp: Qmp,
        agent: Agent,
        qemu: subprocess.Popen[bytes],
        qemu_log: Path,
        say: Callable[[str], None],
        masked_secrets: Sequence[str] = (),
    ) -> None:
        super().__init__(login=login, console=console, say=say, masked_secrets=masked_secrets)
        self.machine = machine
        self.qmp = qmp
        self.agent = agent
        self.frozen = False
        self._qemu = qemu
        self._qemu_log = qemu_log

    @property
    def disk(self) -> Path:
        """The throw-away overlay."""
        return self.machine.disk

    def expect_running(self) -> None:
        """Raise GuestStopped if QEMU has ended."""
        if self._qemu.poll() is None:
            return
        error = self.trouble(GuestStopped, f"the guest's QEMU ended with status {self._qemu.returncode}")
        said = last_lines(self._qemu_log).strip().splitlines() if self._qemu_log.exists() else []
        error.facts += tuple(("QEMU said", masked(plain(line), tuple(self._secrets))) for line in said[-3:])
        raise error

    def ssh(self, command: str, *, timeout_s: float = 120, check: bool = True, stdin: bytes | None = None) -> Completed:
        if self.frozen:
            raise SandboxError("this guest is frozen", hint="thaw a clone of it")
        return super().ssh(command, timeout_s=timeout_s, check=check, stdin=stdin)

    def ask_agent(self, *, timeout_s: float) -> str:
        try:
            self.agent.ping(timeout_s=timeout_s)
        except SandboxError as silent:
            return silent.message
        return "answers"

    # -- screen and keyboard --------------------------------------------------------------------------------------

    def screendump(self, path: Path) -> Path:
        """Save a picture (PPM) of the VGA screen; needs nothing from the guest."""
        self.qmp.execute("screendump", filename=str(path))
        return path

    def type_text(self, text: str) -> None:
        """Type on the guest's keyboard, as somebody at the VGA console would; a newline is the Enter key."""
        self.qmp.type_text(text)

    # -- network --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def forwarded(self, ports: Sequence[int]) -> Iterator[dict[int, bool]]:
        """Forward TCP ports of the guest to the same numbers at :attr:`address`; for probes from outside.

        Yields a mapping of port to whether it could be forwarded. QEMU accepts every connection and then passes on the
        guest's refusal: a closed port shows as a connection that ends at once, not as a refused one.
        """
        made: dict[int, bool] = {}
        try:
            for port in ports:
                said = self.qmp.monitor(f"hostfwd_add net0 tcp:{self.address}:{port}-:{port}")
                made[port] = not said.strip()
            yield made
        finally:
            for port in (port for port, worked in made.items() if worked):
                self.qmp.monitor(f"hostfwd_remove net0 tcp:{self.address}:{port}")

    # -- time and power -------------------------------------------------------------------------------------------

    def set_clock(self) -> None:
        """Set the guest's clock to the host's; a thawed clone goes on from the moment of the freeze."""
        self.ssh(f"sudo -n date -u -s @{now().timestamp():.0f}")

    def reboot(self, *, timeout_s: float, ready: str = FINISHED) -> float:
        """Reboot from inside, wait until ``ready`` shows on the console, log in again.

        Returns:
            Seconds until ``ready``.
        """
        before = self.mark()
        self.ssh("sudo -n systemctl reboot", check=False)
        self.disconnect()
        seconds = self.wait_for(ready, timeout_s=timeout_s, since_bytes=before, what="the end of its reboot")
        self.connect(known_host_keys=self._known_host_keys)
        return seconds

    def power_off(self, *, timeout_s: float = 120) -> None:
        """Shut the guest down in order and wait until QEMU has ended; its disk can then be booted again.

        Raises:
            GuestSilent: it did not shut down in time.
        """
        with contextlib.suppress(CommandFailed):
            self.ssh("sudo -n systemctl poweroff", check=False, timeout_s=30)
        self.disconnect()
        self._await_end(timeout_s=timeout_s)

    def quit(self, *, timeout_s: float = 30) -> None:
        """End QEMU as if the plug were pulled, but with all of its files closed properly."""
        self.disconnect()
        self.qmp.execute("quit")
        self._await_end(timeout_s=timeout_s)

    def _await_end(self, *, timeout_s: float) -> None:
        if ended(self._qemu, wait_s=timeout_s) is None:
            raise self.trouble(GuestSilent, f"the guest did not shut down within {timeout_s:.0f} s")


_numbers = itertools.count(1)


def next_address() -> str:
    """A loopback address that no other guest of this program uses; namespaces are not shared between programs."""
    number = next(_numbers) % 65_000
    return f"127.77.{number >> 8}.{number & 255}"
