# SPDX-License-Identifier: Apache-2.0
"""Whether a region server that is not ours accepts the certificate that images pin: one request, no registration."""

from __future__ import annotations

import http.client
import ssl

from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

_HTTPS = 443
_MAX_BYTES = 1 << 20


def handshake_problem(item: str, pem: str, api: str, *, timeout_s: float) -> str:
    """Why an instance could not ask this region server, or an empty text when it could.

    Args:
        item: the server as ``regionsrv`` names it.
        pem: the certificate images pin for it; nothing else is trusted.
        api: the path to ask; 200 with XML and 404 are both good answers.
    """
    try:
        context = ssl.create_default_context(cadata=pem)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        connection = http.client.HTTPSConnection(item, _HTTPS, timeout=timeout_s, context=context)
        try:
            connection.request("GET", f"/{api}")
            reply = connection.getresponse()
            body = reply.read(_MAX_BYTES)
        finally:
            connection.close()
        if reply.status == http.client.NOT_FOUND:
            return ""
        if reply.status != http.client.OK:
            return f"answers {reply.status}"
        ElementTree.fromstring(body)
    except (
        *(OSError, http.client.HTTPException, ValueError, LookupError),
        *(ElementTree.ParseError, DefusedXmlException),
    ) as wrong:
        return str(wrong) or type(wrong).__name__
    return ""
