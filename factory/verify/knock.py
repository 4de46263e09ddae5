# SPDX-License-Identifier: Apache-2.0
"""Knock at ports of ADDRESS and print those that are open; runs where the guest is reached.

QEMU accepts every connection to a forwarded port and passes on the guest's refusal by ending it at once. So a port is
open when the guest says something or when the connection is still there after a while.
"""

from __future__ import annotations

import contextlib
import select
import socket
import sys

_QUIET_S = 2.0


def knock(address: str, ports: list[int]) -> list[int]:
    """The open ones; all are tried at the same time."""
    waiting = {}
    for port in ports:
        made = socket.socket()
        made.setblocking(False)
        made.connect_ex((address, port))
        waiting[made] = port
    found = []
    while waiting:
        ready, _, _ = select.select(list(waiting), [], [], _QUIET_S)
        if not ready:
            break
        for one in ready:
            port = waiting.pop(one)
            try:
                said = one.recv(1)
            except OSError:
                said = b""
            if said:
                found.append(port)
            one.close()
    for one, port in waiting.items():
        with contextlib.suppress(OSError):  # nobody ever answered: a packet filter dropped our knocking
            one.getpeername()
            found.append(port)
        one.close()
    return sorted(found)


if __name__ == "__main__":
    open_ports = knock(sys.argv[1], [int(word) for word in sys.argv[2].split(",")])
    sys.stdout.write(" ".join(map(str, open_ports)) + "\n")
