# SPDX-License-Identifier: Apache-2.0
"""A running guest: log in, look at its screen, type on its keyboard, reboot it, switch it off."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from factory.errors import CommandFailed, GuestSilent, GuestStopped, SandboxError
from factory.sandbox.connection import HOST, Login, connection, lost, remote
from factory.sandbox.console import FINISHED, LIMIT_BYTES, Console, dead_end, host_keys, masked, plain
from factory.sandbox.machine import Machine
from factory.sandbox.qmp import Agent, Qmp
from factory.system.clock import now
from factory.system.run import Completed, failure, last_lines

_POLL_S = 0.2
_OVERLAP_BYTES = 4096
"""More than what we look for takes on the console, so that nothing is missed where two looks meet."""
_READ_SCREEN = (
    'set -- $(sudo -n head -c 2 /dev/vcsa1 | od -An -tu1) && test -n "$2" && sudo -n fold -b -w "$2" /dev/vcs1'
)


class Guest:
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
        self.machine = machine
        self.login = login
        self.qmp = qmp
        self.agent = agent
        self.boot_s = 0.0
        self.frozen = False
        self._console = console
        self._qemu = qemu
        self._qemu_log = qemu_log
        self._say = say
        self._secrets = set(masked_secrets)
        self._connection = contextlib.ExitStack()
        self._known_host_keys: tuple[str, ...] = ()

    # -- where it is ----------------------------------------------------------------------------------------------

    @property
    def address(self) -> str:
        """Where, inside the namespace, the guest's forwarded ports listen."""
        return self.login.address

    @property
    def ssh_port(self) -> int:
        """The forwarded port of the guest's sshd, at :attr:`address`."""
        return self.login.port

    @property
    def ssh_config(self) -> Path:
        """For ``ssh -F`` and testinfra's ``ssh_config``; the host is :attr:`ssh_host`."""
        return self.login.config

    @property
    def ssh_host(self) -> str:
        return HOST

    @property
    def disk(self) -> Path:
        """The throw-away overlay."""
        return self.machine.disk

    @property
    def console_log(self) -> Path:
        """Where the masked serial log is kept."""
        return self._console.kept

    @property
    def host_keys(self) -> tuple[str, ...]:
        """The ssh host keys that the guest showed on its console, ``TYPE BASE64``."""
        return self._known_host_keys

    # -- what it says ---------------------------------------------------------------------------------------------

    def console_text(self) -> str:
        """What the guest said on its serial console so far, as it said it. Hostile text: escape before showing."""
        return self._console.text()

    def mask(self, secret: str) -> None:
        """Replace ``secret`` wherever this guest's words are kept or shown."""
        if secret:
            self._secrets.add(secret)

    def keep_console(self) -> None:
        """Write the kept console log as it stands."""
        self._console.keep(tuple(self._secrets))

    def mark(self) -> int:
        """The present end of the console, for ``since_bytes``."""
        return self._console.size_bytes()

    def wait_for(self, pattern: str, *, timeout_s: float, since_bytes: int = 0, what: str = "") -> float:
        """Wait until the serial console shows ``pattern`` (a regular expression, for less than 4 KiB of text).

        Returns:
            Seconds waited.

        Raises:
            GuestSilent: not within ``timeout_s``; the message tells what the guest said last.
            GuestStopped: QEMU ended, or the guest said that it cannot go on.
        """
        import re

        wanted, started, looked_bytes = re.compile(pattern), time.monotonic(), since_bytes
        while True:
            text, said_bytes = "", self._console.size_bytes()
            if said_bytes > looked_bytes:  # a boot is some hundred looks: only what is new is read, and what it ends
                text = plain(self._console.text(since_bytes=max(since_bytes, looked_bytes - _OVERLAP_BYTES)))
                looked_bytes = said_bytes
            if wanted.search(text):
                return time.monotonic() - started
            self.expect_running()
            if said_bytes > LIMIT_BYTES:
                raise self._trouble(GuestStopped, "the guest floods its console")
            if reason := dead_end(text):
                raise self._trouble(GuestStopped, f"the guest stopped: {reason}")
            if time.monotonic() - started > timeout_s:
                goal = what or f"'{pattern}' on its console"
                raise self._trouble(GuestSilent, f"the guest did not get to {goal} within {timeout_s:.0f} s")
            time.sleep(_POLL_S)

    def expect_running(self) -> None:
        """Raise GuestStopped if QEMU has ended."""
        if self._qemu.poll() is None:
            return
        error = self._trouble(GuestStopped, f"the guest's QEMU ended with status {self._qemu.returncode}")
        said = last_lines(self._qemu_log).strip().splitlines() if self._qemu_log.exists() else []
        error.facts += tuple(("QEMU said", masked(plain(line), tuple(self._secrets))) for line in said[-3:])
        raise error

    def _trouble(self, kind: type[SandboxError], message: str) -> SandboxError:
        self.keep_console()
        lines = self._console.last_lines(secrets=tuple(self._secrets))
        facts = tuple(("it said", line) for line in lines) or (("it said", "nothing at all"),)
        return kind(message, facts=(*facts, ("console", str(self._console.kept))))

    # -- logging in -----------------------------------------------------------------------------------------------

    def connect(self, *, timeout_s: float = 90, known_host_keys: tuple[str, ...] | None = None) -> None:
        """Log in and keep the connection, checking the host keys that the console showed (or those given)."""
        self._known_host_keys = host_keys(self._console.text()) if known_host_keys is None else known_host_keys
        self._connection.close()
        try:
            self._connection.enter_context(connection(self.login, host_keys=self._known_host_keys, timeout_s=timeout_s))
        except SandboxError as refused:
            self.expect_running()
            trouble = self._trouble(SandboxError, refused.message)
            raise SandboxError(refused.message, facts=refused.facts + trouble.facts, hint=refused.hint) from None

    def disconnect(self) -> None:
        """End the shared connection."""
        self._connection.close()

    def ssh(self, command: str, *, timeout_s: float = 120, check: bool = True, stdin: bytes | None = None) -> Completed:
        """Run a shell command in the guest as the login user.

        Raises:
            CommandFailed: with ``check``, its status is not 0; or it took longer than ``timeout_s``.
            GuestStopped: the guest is gone.
        """
        if self.frozen:
            raise SandboxError("this guest is frozen", hint="thaw a clone of it")
        done = remote(self.login, command, timeout_s=timeout_s, stdin=stdin)
        if lost(done):
            self.expect_running()
        if check and done.returncode != 0:
            raise self._command_failed(command, done)
        return done

    def _command_failed(self, command: str, done: Completed) -> CommandFailed:
        text = masked(plain(done.stderr or done.stdout), tuple(self._secrets))
        shown = masked(command, tuple(self._secrets))
        return failure(["ssh", HOST, shown], f"in the guest ended with status {done.returncode}", log=None, output=text)

    # -- screen and keyboard --------------------------------------------------------------------------------------

    def screen_text(self) -> str:
        """What the first virtual terminal (the VGA screen) shows, line by line.

        Read from ``/dev/vcs1`` inside the guest as root over ssh: it is the same text whether the screen is in text
        mode or drawn by a graphics driver. For a guest that nobody can log in to there is :meth:`screendump`.
        """
        lines = self.ssh(_READ_SCREEN, timeout_s=60).stdout.splitlines()
        return "\n".join(line.rstrip() for line in lines).rstrip()

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
        try:
            self._qemu.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise self._trouble(GuestSilent, f"the guest did not shut down within {timeout_s:.0f} s") from None


_numbers = itertools.count(1)


def next_address() -> str:
    """A loopback address that no other guest of this program uses; namespaces are not shared between programs."""
    number = next(_numbers) % 65_000
    return f"127.77.{number >> 8}.{number & 255}"
