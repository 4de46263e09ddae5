#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""kiwi for a build box: reads what programs print as soon as it is there, and sleeps until then.

kiwi itself asks for every single byte whether there is one, and for a tenth of a millisecond whether there is an error
as well. That is five kilobytes in a second: apt and dpkg print eighty, wait until room is made for them, and share the
processors with who asks. Here the same lines come out of the same streams; no step of kiwi's is another one.
"""

import os
import select
from typing import BinaryIO

from kiwi import command_process
from kiwi.command import CommandCallT
from kiwi.kiwi import main

_CHUNK_BYTES = 1 << 16


class Lines(command_process.CommandIterator):  # type: ignore[misc]
    """The lines of a program's two streams, in the order they came in each."""

    def __init__(self, command: CommandCallT) -> None:
        super().__init__(command)
        self._unread: dict[BinaryIO, bytes] = {command.output: b"", command.error: b""}
        self._open: list[BinaryIO] = [command.output, command.error]

    def __next__(self) -> command_process.PollT:
        """The next line of either stream; the other is empty unless it has one as well."""
        while self._open and not any(b"\n" in unread for unread in self._unread.values()):
            for stream in select.select(self._open, [], [])[0]:
                self._read(stream)
        if not self._open and not any(b"\n" in unread for unread in self._unread.values()):
            self.command.process.wait()
            raise StopIteration
        return command_process.PollT(
            stdout_line=self._line(self.command.output), stderr_line=self._line(self.command.error)
        )

    def _read(self, stream: BinaryIO) -> None:
        chunk = os.read(stream.fileno(), _CHUNK_BYTES)
        if not chunk:
            self._open.remove(stream)
        if stream is self.command.error:
            self.command_error_output += chunk
        self._unread[stream] += chunk

    def _line(self, stream: BinaryIO) -> str:
        line, newline, rest = self._unread[stream].partition(b"\n")
        if not newline:
            return ""
        self._unread[stream] = rest
        return str(command_process.Codec.decode(line))


if __name__ == "__main__":
    command_process.CommandIterator = Lines
    raise SystemExit(main())
