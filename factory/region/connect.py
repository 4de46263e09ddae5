# SPDX-License-Identifier: Apache-2.0
"""The connect API of an update server, as SUSEConnect and our guest client speak it.

Errors are JSON with ``type``, ``error`` and ``localized_error``, status 422 unless said otherwise. Missing or wrong
credentials are 401 with a Basic challenge and exactly the reason phrase ``Unauthorized``: zypper's resolver reads it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from flask import Blueprint, Response, jsonify, request
from werkzeug.exceptions import HTTPException

from factory.model import Repository
from factory.region.registrations import RegisteredSystem, Registrations
from factory.system.clock import now

REALM = "RMT API"
_TEXT_CHARACTERS = 65536


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A product the server has repositories for; its service has the same number."""

    id: int
    identifier: str
    version: str
    arch: str

    @property
    def triple(self) -> str:
        return f"{self.identifier}/{self.version}/{self.arch}"

    @property
    def service(self) -> str:
        return f"{self.identifier}_{self.version}_{self.arch}"

    def answers(self, identifier: str, version: str, arch: str) -> bool:
        """Whether this is the product asked for; in versions ``-`` counts as ``.``, a trailing ``.0`` as nothing."""
        asked = (identifier.lower(), _version(version), arch)
        return asked == (self.identifier.lower(), _version(self.version), self.arch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """What one update server offers, and the addresses it gives for it."""

    fqdn: str
    products: Sequence[Product]
    repositories: Sequence[Repository]
    plugin_urls: bool = False

    def url(self, path: str, credentials: str) -> str:
        """An address as instances get it: plain https, or for zypper's resolver plugin."""
        if self.plugin_urls:
            return f"plugin:/susecloud?credentials={quote(credentials)}&path={quote(path)}"
        return f"https://{self.fqdn}{quote(path)}"

    def service_json(self, product: Product) -> dict[str, object]:
        """A service, with its product."""
        url = self.url(f"/services/{product.id}", product.service)
        if not self.plugin_urls:
            url += f"?credentials={quote(product.service)}"
        return {
            "id": product.id,
            "name": product.service,
            "url": url,
            "obsoleted_service_name": "",
            "product": self.product_json(product),
        }

    def product_json(self, product: Product) -> dict[str, object]:
        """A product, with its repositories."""
        name = f"{product.identifier} {product.version} {product.arch}"
        return {
            "id": product.id,
            "name": product.identifier,
            "identifier": product.identifier,
            "former_identifier": product.identifier,
            "version": product.version,
            "release_type": None,
            "release_stage": "released",
            "arch": product.arch,
            "friendly_name": name,
            "product_class": None,
            "cpe": None,
            "free": True,
            "description": f"{name}, from a sandbox update server",
            "eula_url": "",
            "repositories": [
                {
                    "id": number,
                    "name": repository.alias,
                    "url": self.url(f"/repo/{repository.alias}", product.service),
                    "description": " ".join(repository.suites),
                    "distro_target": None,
                    "enabled": True,
                    "autorefresh": True,
                }
                for number, repository in enumerate(self.repositories, 1)
            ],
            "product_type": "base",
            "extensions": [],
            "recommended": False,
            "available": True,
        }


class Refused(HTTPException):
    """An answer with an error text."""

    def __init__(self, text: str, status: int = 422) -> None:
        super().__init__(text)
        response = jsonify(type="error", error=text, localized_error=text)
        response.status = "401 Unauthorized" if status == 401 else str(status)  # noqa: PLR2004
        if status == 401:  # noqa: PLR2004
            response.headers["WWW-Authenticate"] = f'Basic realm="{REALM}"'
        self.response = response


def authenticated(registrations: Registrations) -> RegisteredSystem:
    """The system whose Basic credentials came with the request; raises a 401 otherwise."""
    sent = request.authorization
    if sent is None or sent.type != "basic":
        raise Refused("Please provide valid credentials", 401)
    found = registrations.find(
        sent.username or "", sent.password or "", token=request.headers.get("System-Token"), now=now()
    )
    if found is None:
        raise Refused("Invalid system credentials", 401)
    return found


def connect_api(catalogue: Catalogue, registrations: Registrations) -> Blueprint:
    """The ``/connect`` routes."""
    api = Blueprint("connect", __name__, url_prefix="/connect")
    calls = _Calls(catalogue, registrations)
    for rule, method, call in (
        ("/subscriptions/systems", "POST", calls.announce),
        ("/systems", "PUT", calls.keepalive),
        ("/systems", "DELETE", calls.deregister),
        ("/systems/products", "GET", calls.product),
        ("/systems/products", "POST", calls.activate),
        ("/systems/products", "PUT", calls.activate),
        ("/systems/products", "DELETE", calls.deactivate),
        ("/systems/products/migrations", "POST", calls.migrations),
        ("/systems/products/offline_migrations", "POST", calls.migrations),
        ("/systems/products/synchronize", "POST", calls.synchronize),
        ("/systems/activations", "GET", calls.activations),
        ("/repositories/installer", "GET", calls.installer),
    ):
        api.add_url_rule(rule, endpoint=f"{method}{rule}".replace("/", "_"), view_func=call, methods=[method])
    return api


class _Calls:
    def __init__(self, catalogue: Catalogue, registrations: Registrations) -> None:
        self.catalogue = catalogue
        self.registrations = registrations

    def announce(self) -> Response:
        body = _body()
        made = self.registrations.announce(
            hostname=_text(body, "hostname"), instance_data=_text(body, "instance_data"), now=now()
        )
        return _json({"id": made.id, "login": made.login, "password": made.password, "last_seen_at": None}, 201)

    def keepalive(self) -> Response:
        system = authenticated(self.registrations)
        self.registrations.update(system.id, hostname=_text(_body(), "hostname") or system.hostname)
        return self._with_token(Response(status=204), system)

    def deregister(self) -> Response:
        system = authenticated(self.registrations)
        self.registrations.remove_system(system.id)
        return Response(status=204)

    def product(self) -> Response:
        system = authenticated(self.registrations)
        product = self._asked()
        if product.triple not in system.products:
            raise Refused(f"The requested product '{product.triple}' is not activated on this system.")
        return _json(self.catalogue.product_json(product))

    def activate(self) -> Response:
        system = authenticated(self.registrations)
        product = self._asked()
        self.registrations.activate(system.id, product.triple, now=now())
        return self._with_token(_json(self.catalogue.service_json(product), 201), system)

    def deactivate(self) -> Response:
        authenticated(self.registrations)
        product = self._asked()
        raise Refused(f"The product '{product.triple}' is a base product and cannot be deactivated")

    def migrations(self) -> Response:
        authenticated(self.registrations)
        if not _body().get("installed_products"):
            raise Refused("Required parameters are missing or empty: installed_products")
        return _json([])

    def synchronize(self) -> Response:
        system = authenticated(self.registrations)
        wanted = _body().get("products")
        if not isinstance(wanted, list):
            raise Refused("Required parameters are missing or empty: products")
        named = [self._find(one) for one in wanted if isinstance(one, dict)]
        kept = {product.triple for product in named if product}
        self.registrations.deactivate(system.id, [one for one in system.products if one not in kept])
        return _json([self.catalogue.product_json(one) for one in self.catalogue.products if one.triple in kept])

    def activations(self) -> Response:
        system = authenticated(self.registrations)
        return _json(
            [
                {
                    "id": product.id,
                    "system_id": system.id,
                    "service": self.catalogue.service_json(product),
                    **dict.fromkeys(("regcode", "name", "status", "starts_at", "expires_at", "type")),
                }
                for product in self.catalogue.products
                if product.triple in system.products
            ]
        )

    def installer(self) -> Response:
        raise Refused("Required parameters are missing or empty: identifier, version, arch")

    def _asked(self) -> Product:
        asked = {**request.args.to_dict(), **_body()}
        missing = [name for name in ("identifier", "version", "arch") if not asked.get(name)]
        if missing:
            raise Refused(f"Required parameters are missing or empty: {', '.join(missing)}")
        found = self._find(asked)
        if found is None:
            named = "/".join(_text(asked, name)[:60] for name in ("identifier", "version", "arch"))
            raise Refused(f"No product found: this server has nothing for {named}")
        return found

    def _find(self, asked: Mapping[str, Any]) -> Product | None:
        key = (_text(asked, "identifier"), _text(asked, "version"), _text(asked, "arch"))
        return next((product for product in self.catalogue.products if product.answers(*key)), None)

    def _with_token(self, response: Response, system: RegisteredSystem) -> Response:
        if "System-Token" in request.headers:
            response.headers["System-Token"] = self.registrations.rotate_token(system.id)
        return response


def _body() -> Mapping[str, Any]:
    """The request's JSON object, GET requests' too; an absent body is an empty object."""
    if not request.content_length:
        return {}
    found = request.get_json(force=True, silent=True)
    if not isinstance(found, dict):
        raise Refused("The request's body is not a JSON object")
    return found


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    return value[:_TEXT_CHARACTERS] if isinstance(value, str) else ""


def _json(value: object, status: int = 200) -> Response:
    response = jsonify(value)
    response.status_code = status
    return response


def _version(version: str) -> str:
    return version.replace("-", ".").removesuffix(".0")
