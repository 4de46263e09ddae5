# SPDX-License-Identifier: Apache-2.0
"""The sandbox update server: enough of SUSE's RMT for real registrations, and the recorded inputs to install from.

It is not RMT and says so. Below ``/repo/ALIAS/`` it gives exactly the files that the image's build recorded, signed by
their distributor, to registered systems only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote
from xml.sax.saxutils import quoteattr

from flask import Flask, Response, redirect, request, send_file
from werkzeug.exceptions import NotFound
from werkzeug.wrappers import Response as WerkzeugResponse

from factory.errors import InputFault
from factory.inputs.view import open_view
from factory.model import Repository
from factory.region.connect import Catalogue, Product, Refused, authenticated, connect_api
from factory.region.registrations import Registrations
from factory.system.files import write_whole

SELF = "Image Factory sandbox update server; not RMT"
_MAX_BODY_BYTES = 1 << 20
_TTL_S = 86400
_TRIPLE_PARTS = 3


class RecordedFiles(Protocol):
    """What the server gives out; :class:`factory.inputs.view.RepositoryView` is one."""

    @property
    def repositories(self) -> tuple[Repository, ...]: ...

    def open(self, alias: str, path: str) -> tuple[Path, int] | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateSettings:
    """What one server process needs to know; written to a file, because the server is a process of its own.

    ``plain`` makes the server of port 80, which only gives the CA certificate and sends ``/repo`` to https.
    """

    fqdn: str
    ca: str
    database: str
    products: tuple[str, ...]
    lock: str
    blobs: str
    repositories: tuple[Repository, ...]
    plugin_urls: bool = False
    plain: bool = False

    def write(self, path: Path) -> None:
        """Keep the settings in a file."""
        write_whole(path, json.dumps(asdict(self), indent=1), mode=0o600)


def read_settings(path: Path) -> UpdateSettings:
    """Read what :meth:`UpdateSettings.write` wrote.

    Raises:
        InputFault: the file is not that.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(UpdateSettings).validate_json(path.read_bytes())
    except (OSError, ValidationError) as wrong:
        raise InputFault(f"'{path}' holds no settings of an update server", hint=str(wrong)) from wrong


def create_app(settings: Path | str) -> Flask:
    """The WSGI application for a settings file."""
    read = read_settings(Path(settings))
    if read.plain:
        return plain_app(read.fqdn, Path(read.ca))
    view = open_view(Path(read.lock), blobs=Path(read.blobs), repositories=read.repositories)
    catalogue = Catalogue(
        fqdn=read.fqdn,
        products=products(read.products),
        repositories=view.repositories,
        plugin_urls=read.plugin_urls,
    )
    return make_app(catalogue, Registrations(Path(read.database)), view, ca=Path(read.ca))


def products(triples: Sequence[str]) -> tuple[Product, ...]:
    """Products from NAME/VERSION/ARCH texts, numbered from 1.

    Raises:
        InputFault: a text is not such a triple.
    """
    found = []
    for number, triple in enumerate(triples, 1):
        parts = triple.split("/")
        if len(parts) != _TRIPLE_PARTS or not all(parts):
            raise InputFault(f"{triple!r} is no product", hint="write NAME/VERSION/ARCH, such as debian/13/x86_64")
        found.append(Product(id=number, identifier=parts[0], version=parts[1], arch=parts[2]))
    return tuple(found)


def plain_app(fqdn: str, ca: Path) -> Flask:
    """What answers on port 80: the CA certificate, and the way to https."""
    app = _bare_app(ca)

    @app.get("/repo/<path:path>")
    def to_https(path: str) -> WerkzeugResponse:
        return redirect(f"https://{fqdn}/repo/{path}", code=301)

    return app


def make_app(catalogue: Catalogue, registrations: Registrations, view: RecordedFiles, *, ca: Path) -> Flask:
    """The WSGI application for values at hand."""
    app = _bare_app(ca)
    app.register_blueprint(connect_api(catalogue, registrations))
    serving = _Serving(catalogue, registrations, view)
    app.add_url_rule("/api/health/status", view_func=serving.health)
    app.add_url_rule("/services/<int:number>", view_func=serving.service)
    app.add_url_rule("/services/<int:number>/repo/repoindex.xml", view_func=serving.service, endpoint="service_index")
    app.add_url_rule("/repo/repoindex.xml", view_func=serving.index)
    app.add_url_rule("/repo/<alias>/<path:path>", view_func=serving.file)
    return app


def _bare_app(ca: Path) -> Flask:
    app = Flask("update-server", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = _MAX_BODY_BYTES

    def authority() -> Response:
        return Response(ca.read_bytes(), content_type="application/x-x509-ca-cert")

    def about() -> Response:
        return Response(SELF + "\n", content_type="text/plain; charset=utf-8")

    def signed(response: Response) -> Response:
        response.headers["X-Sandbox"] = SELF
        return response

    app.add_url_rule("/", view_func=about)
    app.add_url_rule("/smt.crt", view_func=authority, endpoint="smt")
    app.add_url_rule("/rmt.crt", view_func=authority, endpoint="rmt")
    app.after_request(signed)
    return app


class _Serving:
    def __init__(self, catalogue: Catalogue, registrations: Registrations, view: RecordedFiles) -> None:
        self.catalogue = catalogue
        self.registrations = registrations
        self.view = view

    def health(self) -> dict[str, str]:
        return {"state": "online"}

    def service(self, number: int) -> Response:
        system = authenticated(self.registrations)
        product = next((one for one in self.catalogue.products if one.id == number), None)
        if product is None:
            raise NotFound
        if product.triple not in system.products:
            return Response("Product is not registered", status=403, content_type="text/plain; charset=utf-8")
        return self._repoindex([product], ttl=f' ttl="{_TTL_S}"')

    def index(self) -> Response:
        system = authenticated(self.registrations)
        return self._repoindex([one for one in self.catalogue.products if one.triple in system.products], ttl="")

    def file(self, alias: str, path: str) -> Response:
        system = authenticated(self.registrations)
        if not system.products:
            raise Refused("Product is not registered", 403)
        found = None
        if all(part not in {"", ".", ".."} and "\\" not in part and "\0" not in part for part in path.split("/")):
            # recorded names are percent-encoded the way the distributor's client asked for them
            raw = str(request.environ.get("RAW_URI", request.path)).partition("?")[0]
            prefix = f"/repo/{alias}/"
            candidates = [raw.removeprefix(prefix)] if raw.startswith(prefix) else []
            candidates.append(path)
            found = next(
                (one for name in candidates if unquote(name) == path and (one := self.view.open(alias, name))), None
            )
        if found is None:
            raise NotFound
        return send_file(found[0], mimetype="application/octet-stream", conditional=True, download_name=None)

    def _repoindex(self, chosen: Sequence[Product], *, ttl: str) -> Response:
        lines = [f"<repoindex{ttl}>"]
        for product in chosen:
            for repository in self.catalogue.repositories:
                attributes = {
                    "url": self.catalogue.url(f"/repo/{repository.alias}", product.service),
                    "alias": repository.alias,
                    "name": repository.alias,
                    "autorefresh": "true",
                    "enabled": "true",
                }
                lines.append(
                    "<repo " + " ".join(f"{name}={quoteattr(text)}" for name, text in attributes.items()) + "/>"
                )
        return Response("\n".join([*lines, "</repoindex>"]) + "\n", content_type="application/xml")
