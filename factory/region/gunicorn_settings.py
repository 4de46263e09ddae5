# SPDX-License-Identifier: Apache-2.0
"""How gunicorn runs the region and update servers (``gunicorn --config python:factory.region.gunicorn_settings``).

Many threads and a limit on silence, because clients that connect and say nothing must not keep others waiting; TLS 1.2
or better; an access log without headers, so without credentials; workers that die with their parent even when it is
killed.
"""

from __future__ import annotations

import ctypes
import errno
import signal
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
_SILENCE_S = 20.0

worker_class = "gthread"
workers = 1
threads = 64
keepalive = 5
timeout = 60
graceful_timeout = 2
control_socket_disable = True
forwarded_allow_ips = ""
accesslog = "-"
access_log_format = '%(t)s %(h)s "%(r)s" %(s)s %(B)s "%(a)s"'


class _ImpatientSocket(ssl.SSLSocket):
    """Where gunicorn would wait for a client forever, wait for a while."""

    def settimeout(self, value: float | None) -> None:
        super().settimeout(_SILENCE_S if value is None else value)

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        try:
            return super().recv(buflen, flags)
        except TimeoutError:
            # closed here, because gunicorn would wait in its main thread for such a client to say goodbye
            self.close()
            raise ConnectionResetError(errno.ECONNRESET, "silent for too long") from None

    def setblocking(self, flag: bool) -> None:  # noqa: FBT001 - the socket's own signature
        self.settimeout(None if flag else 0.0)


_contexts: dict[tuple[object, ...], ssl.SSLContext] = {}


def ssl_context(config: Any, default: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:  # noqa: ANN401 - no stubs
    """The TLS context of a connection: one for all, until the certificate or its key is replaced."""
    files = tuple((name, Path(name).stat().st_mtime_ns) for name in (config.certfile, config.keyfile))
    if files not in _contexts:
        try:
            context = default()
        except (OSError, ssl.SSLError):
            if not _contexts:
                raise
            return next(iter(_contexts.values()))  # half replaced: the old pair goes on until the new one fits
        context.sslsocket_class = _ImpatientSocket
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        _contexts.clear()
        _contexts[files] = context
    return _contexts[files]


def post_fork(_server: Any, _worker: Any) -> None:  # noqa: ANN401 - gunicorn's own types have no stubs
    """Let the kernel end the worker when its parent ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
