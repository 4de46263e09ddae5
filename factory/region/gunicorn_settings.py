# SPDX-License-Identifier: Apache-2.0
"""How gunicorn runs the region and update servers (``gunicorn --config python:factory.region.gunicorn_settings``).

Threads, because a client that connects and says nothing must not keep others waiting; TLS 1.2 or better; an access log
without headers, so without credentials; workers that die with their parent even when it is killed.
"""

from __future__ import annotations

import ctypes
import signal
import ssl
from collections.abc import Callable
from typing import Any

_PR_SET_PDEATHSIG = 1

worker_class = "gthread"
workers = 1
threads = 16
keepalive = 5
timeout = 60
graceful_timeout = 2
control_socket_disable = True
accesslog = "-"
access_log_format = '%(t)s %(h)s "%(r)s" %(s)s %(B)s "%(a)s"'


def ssl_context(_config: object, default: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
    """The TLS context of a listening socket."""
    context = default()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def post_fork(_server: Any, _worker: Any) -> None:  # noqa: ANN401 - gunicorn's own types have no stubs
    """Let the kernel end the worker when its parent ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
