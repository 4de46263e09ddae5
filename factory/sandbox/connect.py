# SPDX-License-Identifier: Apache-2.0
"""Connect to ADDRESS PORT and hand the socket to ssh (``ProxyUseFdpass``); runs inside a network namespace."""

from __future__ import annotations

import socket
import sys

if __name__ == "__main__":
    made = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=20)
    made.setblocking(True)
    socket.send_fds(socket.socket(fileno=sys.stdout.fileno()), [b"\0"], [made.fileno()])
