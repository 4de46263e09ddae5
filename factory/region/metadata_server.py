# SPDX-License-Identifier: Apache-2.0
"""A metadata server as ``metadata_server`` of ``/etc/regionserverclnt.cfg`` names one, played for the sandbox.

It takes the place of region servers: one address, whose answer is a JSON object that names one update server
(``fingerprint``, ``SMTserverIP``, ``SMTserverName``). Each answer names any of them, so that whoever asks again
may find another. A cloud's own metadata server does this in the cloud; the sandbox only plays it over http, because
over https clients trust public authorities alone.
"""

from __future__ import annotations

import ipaddress
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from factory.errors import InputFault
from factory.model import RegionClient, Server
from factory.region.certificates import fingerprint

if TYPE_CHECKING:
    from flask import Flask, Response

ADDRESS = "203.0.113.124"
"""Where a metadata server that the image knows by name is played (an address kept for documentation, RFC 5737)."""
_PORT = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where clients ask."""

    host: str
    address: str
    port: int
    path: str


def place(client: RegionClient) -> Place | None:
    """Where the metadata server has to answer, or None when there is none.

    Raises:
        InputFault: it cannot be played.
    """
    if not client.metadata_server:
        return None
    parts = urlsplit(client.metadata_server)
    host = parts.hostname or ""
    if parts.scheme != "http" or not host:
        raise InputFault(
            f"the sandbox cannot play the metadata server {client.metadata_server}",
            hint="over https clients accept public authorities only; name it by http, or name region servers",
        )
    try:
        address = str(ipaddress.ip_address(host))
    except ValueError:
        address = ADDRESS
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Place(host=host, address=address, port=parts.port or _PORT, path=path)


def names(client: RegionClient) -> Mapping[str, tuple[str, ...]]:
    """The name that has to resolve in the sandbox, if the metadata server is known by one."""
    try:
        found = place(client)
    except InputFault:
        return {}
    return {found.host: (found.address,)} if found and found.host != found.address else {}


def settings(path: str, servers: Sequence[Server]) -> str:
    """What :func:`create_app` reads: the path with its query, and the answers."""
    answers = [
        {"fingerprint": fingerprint(server.pem.read_text()), "SMTserverIP": server.ipv4, "SMTserverName": server.name}
        for server in servers
        if server.ipv4
    ]
    return json.dumps({"path": path, "answers": answers})


def create_app(file: Path | str) -> Flask:
    """The WSGI application that answers as its settings file says; everything else is 404."""
    from flask import Flask, Response, request

    app = Flask("metadata-server", static_folder=None)
    read: Mapping[str, Any] = json.loads(Path(file).read_text())
    choose = random.SystemRandom().choice

    @app.get("/")
    @app.get("/<path:_rest>")
    def answer(_rest: str = "") -> Response:
        asked = request.full_path if request.query_string else request.path
        if asked != read["path"] or not read["answers"]:
            return Response("Not found", status=404)
        return Response(json.dumps(choose(read["answers"])), content_type="application/json")

    return app
