# SPDX-License-Identifier: Apache-2.0
"""The connect API of an update server, as SUSEConnect and our guest client speak it.

Errors are JSON with ``type``, ``error`` and ``localized_error``, status 422 unless said otherwise. Missing or wrong
credentials are 401 with a Basic challenge and exactly the reason phrase ``Unauthorized``: zypper's resolver reads it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flask import Blueprint, Response, jsonify, request

from factory.region.access import TOKEN_HEADER, Gate, Refused
from factory.region.bodies import body_bytes
from factory.region.catalogue import Catalogue
from factory.region.products import Product
from factory.region.registrations import BYOS, PAYG, RegisteredSystem
from factory.system.clock import now

__all__ = ["Catalogue", "Product", "Refused", "connect_api"]

_TEXT_CHARACTERS = 65536
_ACCEPTED = re.compile(r"vnd\.scc\.suse\.com\.v([0-9]{1,9})\+json")
_VERSIONS = (3, _NEWEST := 4)
_NEW_IN_V4 = frozenset({"deactivate", "synchronize", "installer"})
_TRIPLE = ("identifier", "version", "arch")


def connect_api(catalogue: Catalogue, gate: Gate) -> Blueprint:
    """The ``/connect`` routes."""
    api = Blueprint("connect", __name__, url_prefix="/connect")
    calls = _Calls(catalogue, gate)
    for rule, method, call in (
        ("/subscriptions/systems", "POST", calls.announce),
        ("/systems", "PUT", calls.keepalive),
        ("/systems", "DELETE", calls.deregister),
        ("/systems/products", "GET", calls.product),
        ("/systems/products", "POST", calls.activate),
        ("/systems/products", "PUT", calls.upgrade),
        ("/systems/products", "DELETE", calls.deactivate),
        ("/systems/products/migrations", "POST", calls.migrations),
        ("/systems/products/offline_migrations", "POST", calls.offline_migrations),
        ("/systems/products/synchronize", "POST", calls.synchronize),
        ("/systems/activations", "GET", calls.activations),
        ("/repositories/installer", "GET", calls.installer),
    ):
        endpoint = f"{method}{rule}".replace("/", "_")
        api.add_url_rule(rule, endpoint=endpoint, view_func=_versioned(call), methods=[method])
    return api


def _versioned(call: Callable[[], Response]) -> Callable[[], Response]:
    """The call, for the version of the API that ``Accept`` asks for (4 when it asks for none)."""

    def answer() -> Response:
        asked = [int(number) for number in _ACCEPTED.findall(request.headers.get("Accept", ""))]
        known = [number for number in asked if number in _VERSIONS]
        if asked and not known:
            raise Refused("Unsupported API version requested", 406)
        if known and max(known) < _NEWEST and call.__name__ in _NEW_IN_V4:
            raise Refused("There is no such call in this version of the API", 404)
        return call()

    return answer


class _Calls:
    def __init__(self, catalogue: Catalogue, gate: Gate) -> None:
        self.catalogue = catalogue
        self.gate = gate
        self.registrations = gate.registrations

    def announce(self) -> Response:
        body = _body()
        regcode = _regcode()
        if regcode and not self.gate.knows_regcode(regcode):
            raise Refused("Unknown Registration Code.", 401)
        mode = BYOS if regcode else PAYG
        instance_data = _text(body, "instance_data")
        who = self.gate.announcing(instance_data, mode=mode)
        made = self.registrations.announce(
            hostname=_text(body, "hostname"),
            hwinfo=_hardware(body) or "{}",
            instance_data=instance_data,
            mode=mode,
            regcode=regcode,
            identifier=who.identifier,
            proven=who.proven,
            now=now(),
        )
        return _json({"id": made.id, "login": made.login, "password": made.password, "last_seen_at": None}, 201)

    def keepalive(self) -> Response:
        system = self.gate.system()
        body = _body()
        self.registrations.update(system.id, hostname=_text(body, "hostname") or None, hwinfo=_hardware(body))
        return self._with_token(Response(status=204), system)

    def deregister(self) -> Response:
        self.registrations.remove_system(self.gate.system().id)
        return Response(status=204)

    def product(self) -> Response:
        system = self.gate.system()
        product = self._asked()
        self._require_repositories(product)
        if product.triple not in system.products:
            raise Refused(f"The requested product '{product.friendly_name}' is not activated on this system.")
        return _json(self.catalogue.product_json(product, root=self._base(system)))

    def activate(self) -> Response:
        system = self.gate.system()
        product = self._asked()
        token = _text(_asked_with(), "token")
        self._require_repositories(product)
        self._require_parent(product, system)
        if token and product.product_type != "base" and not self.gate.knows_regcode(token):
            raise Refused("No subscription with this Registration Code found")
        self.gate.activating(system, product, self._base(system), token=token)
        regcode = token if self.gate.knows_regcode(token) else ""
        self.registrations.activate(system.id, product.triple, regcode=regcode, now=now())
        return self._with_token(_json(self.catalogue.service_json(product), 201), system)

    def upgrade(self) -> Response:
        system = self.gate.system()
        product = self._asked()
        self._require_repositories(product)
        before = self._replaced_by(product, system)
        if before is None:
            raise Refused(f"No activation with product '{product.friendly_name}' was found.")
        if product.product_type == "base" and self.gate.verifies and before.identifier != product.identifier:
            raise Refused("Migration target not allowed on this instance type")
        self._require_parent(product, system)
        self.registrations.activate(system.id, product.triple, replacing=(before.triple,), now=now())
        obsoleted = before.service if before != product else ""
        return self._with_token(_json(self.catalogue.service_json(product, obsoleted=obsoleted), 201), system)

    def deactivate(self) -> Response:
        system = self.gate.system()
        product = self._asked()
        if product.product_type == "base":
            raise Refused(f"The product '{product.friendly_name}' is a base product and cannot be deactivated")
        if product.triple not in system.products:
            raise Refused(f"{product.friendly_name} is not yet activated on the system.")
        if any(one.triple in system.products for one in self.catalogue.extensions(product)):
            raise Refused(
                f"Cannot deactivate the product '{product.friendly_name}'. Other activated products depend upon it."
            )
        self.registrations.deactivate(system.id, [product.triple])
        return self._with_token(_json(self.catalogue.service_json(product)), system)

    def migrations(self) -> Response:
        return self._paths(("installed_products",))

    def offline_migrations(self) -> Response:
        return self._paths(("installed_products", "target_base_product"))

    def synchronize(self) -> Response:
        system = self.gate.system()
        wanted = _body().get("products")
        if not isinstance(wanted, list):
            raise Refused("Required parameters are missing or empty: products")
        kept = {product.triple for product in self._named(wanted)}
        self.registrations.deactivate(system.id, [one for one in system.products if one not in kept])
        left = [one for one in self.catalogue.products if one.triple in kept and one.triple in system.products]
        return _json([self.catalogue.product_json(one) for one in left])

    def activations(self) -> Response:
        system = self.gate.system()
        bought = dict.fromkeys(("regcode", "name", "status", "starts_at", "expires_at", "type"))
        if system.regcode:
            bought.update(regcode=system.regcode, name="sandbox", status="ACTIVE", type="full")
        return _json(
            [
                {
                    "id": product.id,
                    "system_id": system.id,
                    "service": self.catalogue.service_json(product),
                    **bought,
                }
                for product in self.catalogue.products
                if product.triple in system.products
            ]
        )

    def installer(self) -> Response:
        """Without parameters this is how clients tell a modern server: it answers 422."""
        found = [one for one in self.catalogue.repositories_of(self._asked()) if one.installer]
        return _json([self.catalogue.repository_json(one, "") for one in found])

    def _paths(self, required: Sequence[str]) -> Response:
        """Migration paths: each base product that replaces the present one, and the extensions that follow it."""
        system = self.gate.system()
        body = _body()
        missing = [name for name in required if not body.get(name)]
        if missing:
            raise Refused(f"Required parameters are missing or empty: {', '.join(missing)}")
        named = body["installed_products"]
        installed = self._named(named if isinstance(named, list) else [named])
        foreign = [product.friendly_name for product in installed if product.triple not in system.products]
        if foreign:
            raise Refused(f"The requested products '{', '.join(foreign)}' are not activated on the system.")
        target = self._find(body["target_base_product"]) if len(required) > 1 else None
        if len(required) > 1 and target is None:
            raise Refused("No product found")
        paths = [path for path in self.catalogue.migrations(installed) if target is None or path[0] == target]
        return _json([[self.catalogue.product_name(one) for one in path] for path in paths])

    def _asked(self) -> Product:
        asked = _asked_with()
        missing = [name for name in _TRIPLE if not asked.get(name)]
        if missing:
            raise Refused(f"Required parameters are missing or empty: {', '.join(missing)}")
        found = self._find(asked)
        if found is None:
            named = "/".join(_text(asked, name)[:60] for name in _TRIPLE)
            raise Refused(f"No product found: this server has nothing for {named}")
        return found

    def _find(self, asked: object) -> Product | None:
        if not isinstance(asked, dict):
            return None
        return self.catalogue.find(*(_text(asked, name) for name in _TRIPLE))

    def _named(self, asked: Sequence[object]) -> list[Product]:
        return [product for one in asked if (product := self._find(one))]

    def _base(self, system: RegisteredSystem) -> Product | None:
        return self.catalogue.base(system.products)

    def _require_repositories(self, product: Product) -> None:
        repositories = self.catalogue.repositories_of(product)
        if not repositories:
            raise Refused(f"No repositories found for product: {product.friendly_name}")
        if not all(one.mirrored() for one in repositories if one.enabled):
            raise Refused(f"Not all mandatory repositories are mirrored for product {product.friendly_name}")

    def _require_parent(self, product: Product, system: RegisteredSystem) -> None:
        if product.extends and not set(product.extends) & set(system.products):
            parents = [one.friendly_name for one in self.catalogue.products if one.triple in product.extends]
            raise Refused(
                f"The product you are attempting to activate ({product.friendly_name}) requires one of these products "
                f"to be activated first: {', '.join(parents)}"
            )

    def _replaced_by(self, product: Product, system: RegisteredSystem) -> Product | None:
        """The active product that this one takes the place of; itself when it is active already."""
        active = [one for one in self.catalogue.products if one.triple in system.products]
        if product in active:
            return product
        return next(
            (one for one in active if one.triple in product.predecessors or product.triple in one.predecessors), None
        )

    def _with_token(self, response: Response, system: RegisteredSystem) -> Response:
        """Instances that are verified are known by their identifier; the token of all others rotates."""
        if TOKEN_HEADER in request.headers and not self.gate.verifies:
            response.headers[TOKEN_HEADER] = self.registrations.rotate_token(system.id)
        return response


def _body() -> Mapping[str, Any]:
    """The request's JSON object, GET requests' too; an absent body is an empty object."""
    sent = body_bytes()
    if not sent:
        return {}
    try:
        found = json.loads(sent)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Refused("The request's body is not a JSON object")
    return found


def _asked_with() -> dict[str, Any]:
    return {**request.args.to_dict(), **_body()}


def _regcode() -> str:
    """The registration code of ``Authorization: Token token=CODE``."""
    kind, _, rest = request.headers.get("Authorization", "").partition(" ")
    if kind.lower() != "token":
        return ""
    return rest.partition("=")[2].partition(",")[0].strip().strip('"')


def _hardware(body: Mapping[str, Any]) -> str | None:
    """What a system says of its hardware, as text that is kept; None when it says nothing, or too much."""
    found = body.get("hwinfo")
    try:
        text = json.dumps(found) if isinstance(found, dict) else ""
    except (ValueError, RecursionError):
        return None
    return text if 0 < len(text) <= _TEXT_CHARACTERS else None


def _text(body: Mapping[str, Any], name: str) -> str:
    """A text of the body, such that it can be stored; empty when it is none."""
    value = body.get(name)
    return value[:_TEXT_CHARACTERS].encode(errors="replace").decode() if isinstance(value, str) else ""


def _json(value: object, status: int = 200) -> Response:
    response = jsonify(value)
    response.status_code = status
    return response
