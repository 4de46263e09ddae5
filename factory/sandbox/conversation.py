# SPDX-License-Identifier: Apache-2.0
"""What a booted system says on its serial console and what it is told over ssh, wherever it runs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from factory.errors import CommandFailed, GuestSilent, GuestStopped, SandboxError
from factory.sandbox.connection import HOST, Login, connection, lost, remote
from factory.sandbox.console import LIMIT_BYTES, Console, dead_end, host_keys, masked, plain
from factory.system.run import Completed, failure

_OVERLAP_BYTES = 4096
"""More than what we look for takes on the console, so that nothing is missed where two looks meet."""
_RARELY_S = 2.0
_PART = 30
"""A pause between two looks is this part of the wait so far, and at most the above: each wakes a processor that the
guest could use, and a boot that took a minute need not be known a second sooner."""
_READ_SCREEN = (
    'set -- $(sudo -n head -c 2 /dev/vcsa1 | od -An -tu1) && test -n "$2" && sudo -n fold -b -w "$2" /dev/vcs1'
)


class Conversation:
    """A running system, by its console and its login: a virtual machine of ours, or a server in a cloud.

    Not for use by two threads at once.
    """

    poll_s = 0.1
    """How long to wait between two looks at the console, at least: the longer it lasted, the rarer the looks."""

    def __init__(
        self, *, login: Login, console: Console, say: Callable[[str], None], masked_secrets: Sequence[str] = ()
    ) -> None:
        self.login = login
        self.boot_s = 0.0
        self._console = console
        self._say = say
        self._secrets = set(masked_secrets)
        self._connection = contextlib.ExitStack()
        self._known_host_keys: tuple[str, ...] = ()

    def expect_running(self) -> None:
        """Raise GuestStopped if it has ended."""

    def listen(self) -> None:
        """Bring the console's text up to date, where it does not come by itself."""

    def ask_agent(self, *, timeout_s: float) -> str:  # noqa: ARG002
        """``answers``, why QEMU's guest agent did not, or nothing where nobody but the cloud can ask it."""
        return ""

    @contextlib.contextmanager
    def forwarded(self, ports: Sequence[int]) -> Iterator[dict[int, bool]]:
        """Make TCP ports reachable at :attr:`address`; yields which are. By default all of them are, as they are."""
        yield dict.fromkeys(ports, True)

    # -- where it is ----------------------------------------------------------------------------------------------

    @property
    def address(self) -> str:
        """Where its ports are reached."""
        return self.login.address

    @property
    def ssh_port(self) -> int:
        """The port of its sshd, at :attr:`address`."""
        return self.login.port

    @property
    def ssh_config(self) -> Path:
        """For ``ssh -F`` and testinfra's ``ssh_config``; the host is :attr:`ssh_host`."""
        return self.login.config

    @property
    def ssh_host(self) -> str:
        return HOST

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
            GuestStopped: it ended, or the guest said that it cannot go on.
        """
        import re

        wanted, started, looked_bytes = re.compile(pattern), time.monotonic(), since_bytes
        while True:
            self.listen()
            text, said_bytes = "", self._console.size_bytes()
            if said_bytes > looked_bytes:  # a boot is some hundred looks: only what is new is read, and what it ends
                text = plain(self._console.text(since_bytes=max(since_bytes, looked_bytes - _OVERLAP_BYTES)))
                looked_bytes = said_bytes
            if wanted.search(text):
                return time.monotonic() - started
            self.expect_running()
            if said_bytes > LIMIT_BYTES:
                raise self.trouble(GuestStopped, "the guest floods its console")
            if reason := dead_end(text):
                raise self.trouble(GuestStopped, f"the guest stopped: {reason}")
            waited_s = time.monotonic() - started
            if waited_s > timeout_s:
                goal = what or f"'{pattern}' on its console"
                raise self.trouble(GuestSilent, f"the guest did not get to {goal} within {timeout_s:.0f} s")
            time.sleep(max(self.poll_s, min(waited_s / _PART, _RARELY_S)))

    def trouble(self, kind: type[SandboxError], message: str) -> SandboxError:
        """An error that tells what the guest said last."""
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
            trouble = self.trouble(SandboxError, refused.message)
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

    def screen_text(self) -> str:
        """What the first virtual terminal (the VGA screen) shows, line by line.

        Read from ``/dev/vcs1`` inside the guest as root over ssh: it is the same text whether the screen is in text
        mode or drawn by a graphics driver. For a guest that nobody can log in to there is :meth:`screendump`.
        """
        lines = self.ssh(_READ_SCREEN, timeout_s=60).stdout.splitlines()
        return "\n".join(line.rstrip() for line in lines).rstrip()
