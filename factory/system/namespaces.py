# SPDX-License-Identifier: Apache-2.0
"""A network namespace that has only a loopback device, kept by a process that dies with us.

Programs run inside it with ``nsenter``; a listening socket can be made inside and served from outside, because a
socket keeps the namespace it was made in. Nothing root-wide is created and nothing has to be deleted afterwards.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from factory.errors import FactoryError
from factory.system.run import ENVIRONMENT, guarded, run

_LISTEN = """
import socket, sys
kind = socket.SOCK_DGRAM if sys.argv[4] == "udp" else socket.SOCK_STREAM
family = socket.AF_INET6 if ":" in sys.argv[2] else socket.AF_INET
made = socket.socket(family, kind)
made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
made.bind((sys.argv[2], int(sys.argv[3])))
if sys.argv[4] != "udp":
    made.listen(128)
socket.send_fds(socket.socket(fileno=int(sys.argv[1])), [b"x"], [made.fileno()])
"""


class Network(Protocol):
    """Where a program finds its network."""

    def inside(self, argv: Sequence[str | Path]) -> list[str]:
        """``argv``, to be run there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnNetwork:
    """The network that we are in ourselves."""

    def inside(self, argv: Sequence[str | Path]) -> list[str]:
        return [str(word) for word in argv]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkNamespace:
    """A network namespace by the process that holds it open."""

    pid: int

    def inside(self, argv: Sequence[str | Path]) -> list[str]:
        """``argv``, to be run in this namespace (the file systems stay the caller's)."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", "--", *map(str, argv)]

    def add_address(self, address: str) -> None:
        """Give the loopback device one more address (IPv4 or IPv6, without a prefix length)."""
        length = "128" if ":" in address else "32"
        extra = ["nodad"] if ":" in address else []
        run(self.inside(["ip", "address", "add", f"{address}/{length}", "dev", "lo", *extra]), timeout_s=20)

    def drop_address(self, address: str) -> None:
        """Take an address away again: it becomes unreachable."""
        length = "128" if ":" in address else "32"
        run(self.inside(["ip", "address", "del", f"{address}/{length}", "dev", "lo"]), timeout_s=20)

    def listen(self, address: str, port: int, *, kind: str = "tcp") -> socket.socket:
        """A bound (and, for tcp, listening) socket of this namespace, to be served from outside it."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            argv = [sys.executable, "-c", _LISTEN, str(theirs.fileno()), address, str(port), kind]
            run(self.inside(argv), pass_fds=[theirs.fileno()], timeout_s=20)
            theirs.close()
            _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
        return socket.socket(fileno=descriptors[0])


@contextlib.contextmanager
def network_namespace(addresses: Sequence[str] = ()) -> Iterator[NetworkNamespace]:
    """A fresh network namespace with loopback up and ``addresses`` on it, for the length of the block."""
    holder = subprocess.Popen(
        guarded(["unshare", "--net", "/bin/sh", "-c", "ip link set lo up && echo ready && exec cat"]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stderr is not None
        if holder.stdout.readline() != "ready\n":
            raise FactoryError(
                "no network namespace can be made here",
                facts=(("said", holder.stderr.read().strip()),),
                hint="run as root on a kernel with network namespaces; 'factory doctor' checks this",
            )
        namespace = NetworkNamespace(pid=holder.pid)
        for address in addresses:
            namespace.add_address(address)
        yield namespace
    finally:
        holder.kill()
        holder.wait()
        for stream in (holder.stdin, holder.stdout, holder.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def own_network() -> str:
    """The identity of this process's network namespace, to compare with another's."""
    return str(Path("/proc/self/ns/net").readlink())
