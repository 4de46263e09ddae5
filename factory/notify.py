# SPDX-License-Identifier: Apache-2.0
"""Tell people that a night is red or broken: by mail through the host's sendmail, by a webhook, or both.

Telling is worth a try and no more: whatever goes wrong here is said and forgotten, it never changes a night's result.
A webhook's address often contains a secret, so only its host is ever shown.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import make_msgid
from urllib.parse import urlsplit

from factory.errors import CommandFailed
from factory.model import Notify
from factory.system.run import PATH, run

_TIMEOUT_S = 15.0
_TEXT_MAX = 20_000
_HTTP_OK = range(200, 300)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One attempt: ``way`` is mail or webhook, ``to`` whom (never a secret), ``fault`` why it failed or nothing."""

    way: str
    to: str
    fault: str = ""


def notify(
    site: Notify,
    *,
    subject: str,
    text: str,
    say: Callable[[str], None],
    facts: Mapping[str, object] | None = None,
    path: str = PATH,
) -> tuple[Delivery, ...]:
    """Send ``subject`` and ``text`` to everybody whom the site file names; never raises for a failed delivery.

    Args:
        facts: further JSON values for the webhook (run, stage, outcome ...).
        path: where to look for ``sendmail``.
    """
    subject, text = _one_line(subject), text[:_TEXT_MAX]
    tried = []
    if site.mail:
        tried.append(Delivery(way="mail", to=site.mail, fault=_mail(site.mail, subject, text, path=path)))
    if site.webhook:
        host = urlsplit(site.webhook).hostname or "an address without a host"
        tried.append(Delivery(way="webhook", to=host, fault=_post(site.webhook, subject, text, facts or {})))
    for one in tried:
        say(f"{one.way} to {one.to}: {one.fault or 'sent'}")
    return tuple(tried)


def _one_line(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)[:200]


def _mail(to: str, subject: str, text: str, *, path: str) -> str:
    """Hand a message to sendmail; returns why not, or nothing."""
    message = EmailMessage()
    try:
        message["To"] = to
        message["Subject"] = f"[image factory] {subject}"
        message["Message-ID"] = make_msgid(domain="factory.invalid")
        message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office answers, please
        message.set_content(text + "\n")
        run(["sendmail", "-i", "-t"], stdin=message.as_bytes(), env={"PATH": path}, timeout_s=_TIMEOUT_S)
    except CommandFailed as failed:
        return failed.message
    except ValueError as refused:
        return f"not a mail address: {refused}"
    return ""


def _post(url: str, subject: str, text: str, facts: Mapping[str, object]) -> str:
    """Post JSON; returns why not, or nothing. TLS is verified, redirects and proxies are not followed."""
    body = json.dumps({"schema": "factory/notice/1", "text": f"{subject}\n{text}", "subject": subject, **facts})
    try:
        parts = urlsplit(url)
        connection = _connection(parts.scheme, parts.hostname or "", parts.port)
    except ValueError as refused:
        return str(refused)
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("POST", target, body.encode(), {"Content-Type": "application/json"})
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException, ValueError) as failed:
        return f"{type(failed).__name__}: {getattr(failed, 'strerror', None) or 'no answer'}"
    finally:
        connection.close()
    return "" if status in _HTTP_OK else f"answered with status {status}"


def _connection(scheme: str, host: str, port: int | None) -> http.client.HTTPConnection:
    if scheme == "https" and host:
        return http.client.HTTPSConnection(host, port, timeout=_TIMEOUT_S, context=ssl.create_default_context())
    if scheme == "http" and _is_loopback(host):
        return http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    raise ValueError("the address must start with https:// (http:// only to this host)")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
