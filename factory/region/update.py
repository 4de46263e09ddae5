# SPDX-License-Identifier: Apache-2.0
"""The sandbox update server: enough of SUSE's RMT for real registrations, and repositories to install from.

It is not RMT and says so. Below ``/repo/`` it gives the files that an image's build recorded, or plain folders (apt or
rpm-md trees), to registered systems only.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit
from xml.sax.saxutils import escape, quoteattr

from flask import Flask, Response, redirect, request, send_file
from sqlalchemy.exc import OperationalError
from werkzeug.exceptions import HTTPException, NotFound
from werkzeug.wrappers import Response as WerkzeugResponse

from factory.inputs.view import open_view
from factory.region.access import Gate, Refused
from factory.region.catalogue import Catalogue
from factory.region.connect import connect_api
from factory.region.products import Product
from factory.region.registrations import Gone, RegisteredSystem, Registrations
from factory.region.repositories import FREE_FOLDER, ServedRepository, folders, is_plain, locate, recorded
from factory.region.sharing import ReplayLog, Sender, sharing_api
from factory.region.update_settings import UpdateSettings, read_settings
from factory.region.verification import InstanceRefused, RememberedInstances, load
from factory.system.clock import now

SELF = "Image Factory sandbox update server; not RMT"
_MAX_BODY_BYTES = 1 << 20
_TTL_S = 86400
_TEXT, _XML = "text/plain; charset=utf-8", "application/xml; charset=utf-8"


def create_app(settings: Path | str) -> Flask:
    """The WSGI application for a settings file."""
    return app_of(read_settings(Path(settings)))


def app_of(settings: UpdateSettings, *, send: bool = True) -> Flask:
    """The WSGI application for settings; ``send`` starts telling the peers.

    Raises:
        InputFault: the settings cannot be used.
        RegionError: the database is not one of ours.
    """
    ca = Path(settings.ca)
    if settings.plain:
        return plain_app(settings.fqdn, ca)
    catalogue = Catalogue(
        fqdn=settings.fqdn,
        products=settings.products,
        repositories=served(settings),
        plugin_urls=settings.plugin_urls,
    )
    key = settings.verification.public_key
    database = Path(settings.database)
    verification = load(settings.verification.provider, Path(key) if key else None)
    secret = settings.sharing.secret()
    log = replay_log(settings)
    gate = Gate(
        registrations=Registrations(database, journal=log),
        verification=verification,
        remembered=RememberedInstances(
            Path(settings.verification.cache_dir or database.with_name(f"{database.name}.verified"))
        ),
        header_required=settings.verification.header_required,
        regcodes=settings.regcodes,
    )
    if log and send:
        Sender(settings.sharing, log, gate.registrations, settings.products).start()
    return make_app(catalogue, gate, ca=ca, secret=secret)


def served(settings: UpdateSettings) -> tuple[ServedRepository, ...]:
    """The repositories of the settings."""
    found: tuple[ServedRepository, ...] = ()
    if source := settings.recorded:
        found = recorded(open_view(Path(source.lock), blobs=Path(source.blobs), repositories=source.repositories))
    return (*found, *folders(settings.folders, first_id=len(found) + 1))


def replay_log(settings: UpdateSettings) -> ReplayLog | None:
    """What is to be told to peers, or None when there are none.

    Raises:
        InputFault: the settings cannot be used; no folder is made for them.
    """
    sharing = settings.sharing
    sharing.secret()
    return ReplayLog(Path(sharing.data_dir), sharing.peers) if sharing.peers else None


def plain_app(fqdn: str, ca: Path) -> Flask:
    """What answers on port 80: the CA certificate, and the way to https."""
    app = _bare_app(ca)

    @app.get("/repo/<path:path>")
    def to_https(path: str) -> WerkzeugResponse:
        return redirect(f"https://{fqdn}/repo/{path}", code=301)

    return app


def make_app(catalogue: Catalogue, gate: Gate, *, ca: Path, secret: str = "") -> Flask:
    """The WSGI application for values at hand; ``secret`` is what peers must know."""
    app = _bare_app(ca)
    app.register_blueprint(connect_api(catalogue, gate))
    app.register_blueprint(sharing_api(secret, gate.registrations, catalogue.products))
    serving = _Serving(catalogue, gate)
    app.add_url_rule("/api/health/status", view_func=serving.health)
    app.add_url_rule("/api/instance/check", view_func=serving.flavour)
    app.add_url_rule("/api/auth/check", view_func=serving.check)
    app.add_url_rule("/services/<int:number>", view_func=serving.service)
    app.add_url_rule("/services/<int:number>/repo/repoindex.xml", view_func=serving.service, endpoint="service_index")
    app.add_url_rule("/repo/repoindex.xml", view_func=serving.index)
    app.add_url_rule("/repo/<path:path>", view_func=serving.file)
    app.register_error_handler(Gone, lambda _: Refused("Invalid system credentials", 401).get_response())
    app.register_error_handler(OperationalError, _busy)
    app.register_error_handler(HTTPException, _in_json)
    return app


def _in_json(wrong: HTTPException) -> WerkzeugResponse:
    """Errors of the framework as clients of the API can read them; elsewhere as they are."""
    answer = wrong.get_response()
    if wrong.response is None and request.path.startswith(("/connect/", "/api/")):
        told = Refused(wrong.description or wrong.name, wrong.code or 500).get_response()
        told.headers.extend((name, text) for name, text in answer.headers if name == "Allow")
        return told
    return answer


def _busy(wrong: Exception) -> WerkzeugResponse:
    logging.getLogger(__name__).error("the database: %s", wrong)
    answer = Refused("The server is busy, try again", 503).get_response()
    answer.headers["Retry-After"] = "5"
    return answer


def _bare_app(ca: Path) -> Flask:
    app = Flask("update-server", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = _MAX_BODY_BYTES

    def authority() -> Response:
        return Response(ca.read_bytes(), content_type="application/x-x509-ca-cert")

    def about() -> Response:
        return Response(SELF + "\n", content_type=_TEXT)

    def signed(response: Response) -> Response:
        response.headers["X-Sandbox"] = SELF
        return response

    app.add_url_rule("/", view_func=about)
    app.add_url_rule("/smt.crt", view_func=authority, endpoint="smt")
    app.add_url_rule("/rmt.crt", view_func=authority, endpoint="rmt")
    app.after_request(signed)
    return app


class _Serving:
    def __init__(self, catalogue: Catalogue, gate: Gate) -> None:
        self.catalogue = catalogue
        self.gate = gate

    def health(self) -> dict[str, str]:
        return {"state": "online", "server": SELF}

    def flavour(self) -> tuple[dict[str, str], int]:
        """What an instance pays for, by its instance data (bare or base64)."""
        metadata = request.args.get("metadata", "")
        with contextlib.suppress(binascii.Error, ValueError):
            metadata = base64.b64decode(metadata, validate=True).decode()
        wanted = request.args.get("identifier", "")
        product = next((one for one in self.catalogue.products if one.identifier.lower() == wanted.lower()), None)
        if product is None or not metadata:
            return {"flavor": "BYOS"}, 422
        candidates = [one for one in self.catalogue.products if one.identifier == product.identifier]
        for one in candidates:
            try:
                payg = self.gate.verification.verify(metadata, one, now=now()).payg
            except Exception:  # noqa: BLE001, S112 - whatever a provider raises, it is not this product
                continue
            return {"flavor": "PAYG" if payg else "BYOS"}, 200
        return {"flavor": "BYOS"}, 422

    def check(self) -> Response:
        """Whether the caller may have the path in ``X-Original-URI``, for a web server in front of the files."""
        asked = urlsplit(request.headers.get("X-Original-URI", "")).path.removeprefix("/repo/")
        self._allowed(asked)
        return Response(status=200)

    def service(self, number: int) -> Response:
        system = self.gate.system()
        product = self.catalogue.of_service(number)
        if product is None:
            return _xml_error("Requested service not found", 404)
        if product.triple not in system.products:
            return Response("Product is not registered", status=403, content_type=_TEXT)
        try:
            self.gate.using(system, self.catalogue.base(system.products))
        except InstanceRefused:
            return _xml_error("Instance verification failed", 403)
        return self._repoindex([product], ttl=f' ttl="{_TTL_S}"')

    def index(self) -> Response:
        system = self.gate.system()
        try:
            self.gate.using(system, self.catalogue.base(system.products))
        except InstanceRefused:
            return _xml_error("Instance verification failed", 403)
        return self._repoindex([one for one in self.catalogue.products if one.triple in system.products], ttl="")

    def file(self, path: str) -> Response:
        raw = str(request.environ.get("RAW_URI", request.path)).partition("?")[0]
        asked = raw.removeprefix("/repo/") if raw.startswith("/repo/") and unquote(raw) == f"/repo/{path}" else path
        found = self._allowed(asked)
        content = None
        if found and is_plain(unquote(found[1])):
            content = found[0].files(found[1])
        if content is None:
            raise NotFound
        return send_file(content, mimetype="application/octet-stream", conditional=True, download_name=None)

    def _allowed(self, asked: str) -> tuple[ServedRepository, str] | None:
        """The repository and file of a path below /repo/, where the caller may have it; raises a 401 or 403."""
        found = locate(self.catalogue.repositories, asked)
        parts = unquote(asked).split("/")
        if found and FREE_FOLDER in parts[:-1] and is_plain(unquote(asked)):
            return found
        system = self.gate.system()
        active = [one for one in self.catalogue.products if one.triple in system.products]
        if not active or (found and not self._covered(found[0], active)):
            raise Refused("Product is not registered", 403)
        self._using(system)
        return found

    def _covered(self, repository: ServedRepository, active: Sequence[Product]) -> bool:
        return any(repository in self.catalogue.repositories_of(product) for product in active)

    def _using(self, system: RegisteredSystem) -> None:
        try:
            self.gate.using(system, self.catalogue.base(system.products))
        except InstanceRefused as refused:
            raise Refused(f"Instance verification failed: {refused}", 403) from refused

    def _repoindex(self, chosen: Sequence[Product], *, ttl: str) -> Response:
        lines = [f"<repoindex{ttl}>"]
        for product in chosen:
            for repository in self.catalogue.repositories_of(product):
                attributes = {
                    "url": self.catalogue.zypper_url(f"/repo/{repository.location}", product.service),
                    "alias": repository.alias,
                    "name": repository.alias,
                    "autorefresh": str(repository.autorefresh).lower(),
                    "enabled": str(repository.enabled).lower(),
                }
                lines.append(
                    "<repo " + " ".join(f"{name}={quoteattr(text)}" for name, text in attributes.items()) + "/>"
                )
        return Response("\n".join([*lines, "</repoindex>"]) + "\n", content_type=_XML)


def _xml_error(text: str, status: int) -> Response:
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<hash>\n  <error>{escape(text)}</error>\n</hash>\n'
    return Response(body, status=status, content_type=_XML)
