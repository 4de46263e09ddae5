# SPDX-License-Identifier: Apache-2.0
"""Who may have what at an update server: credentials, registration codes, and whether the instance is one of ours."""

from __future__ import annotations

import base64
import binascii
import hmac
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from flask import jsonify, request
from werkzeug.exceptions import HTTPException

from factory.region.products import Product
from factory.region.registrations import BYOS, RegisteredSystem, Registrations
from factory.region.verification import (
    InstanceRefused,
    NoVerification,
    RememberedInstances,
    Verification,
    Verified,
)
from factory.system.clock import now

REALM = "RMT API"
INSTANCE_HEADER = "X-Instance-Data"
TOKEN_HEADER = "System-Token"  # noqa: S105 - the name of a header
_TOKEN_CHARACTERS = 255
_UNAUTHORIZED = 401
_log = logging.getLogger("factory.region.access")


class Refused(HTTPException):
    """An answer with an error text."""

    def __init__(self, text: str, status: int = 422) -> None:
        super().__init__(text)
        response = jsonify(type="error", error=text, localized_error=text)
        response.status = "401 Unauthorized" if status == _UNAUTHORIZED else str(status)
        if status == _UNAUTHORIZED:
            response.headers["WWW-Authenticate"] = f'Basic realm="{REALM}"'
        self.response = response


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What is asked of whoever comes.

    ``header_required`` refuses repositories to verified instances that send no ``X-Instance-Data``; without it, and
    for package managers that cannot send one, what the instance said when it announced itself is verified again.
    """

    registrations: Registrations
    verification: Verification
    remembered: RememberedInstances | None = None
    header_required: bool = False
    regcodes: Sequence[str] = ()

    @property
    def verifies(self) -> bool:
        """Whether instances are verified; then their identifiers tell clones, and system tokens do not rotate."""
        return not isinstance(self.verification, NoVerification)

    def system(self) -> RegisteredSystem:
        """The system whose Basic credentials came with the request; raises a 401 otherwise."""
        try:
            sent = request.authorization
        except ValueError:  # not in ASCII
            sent = None
        if sent is None or sent.type != "basic":
            raise Refused("Please provide valid credentials", _UNAUTHORIZED)
        token = None if self.verifies else request.headers.get(TOKEN_HEADER)
        found = self.registrations.find(
            sent.username or "",
            sent.password or "",
            token=None if token is None else token[:_TOKEN_CHARACTERS],
            now=now(),
        )
        if found is None:
            raise Refused("Invalid system credentials", _UNAUTHORIZED)
        return found

    def knows_regcode(self, code: str) -> bool:
        """Whether this is a registration code that owners may bring."""
        given = code.encode(errors="replace")
        return any(hmac.compare_digest(given, known.encode()) for known in self.regcodes)

    def announcing(self, instance_data: str, *, mode: str) -> Verified:
        """Who announces itself; raises a 422 with the provider's text, except for BYOS systems."""
        try:
            return self.verification.identify(instance_data, now=now())
        except InstanceRefused as refused:
            if mode == BYOS:
                return Verified()
            raise Refused(str(refused)) from refused
        except Exception as wrong:
            _log.exception("the instance verification provider failed")
            raise Refused("Unexpected instance verification error has occurred") from wrong

    def activating(self, system: RegisteredSystem, product: Product, base: Product | None, *, token: str) -> None:
        """Whether the system may have the product; raises a 403 or a 422."""
        allowed, covered = True, True
        try:
            if product.product_type == "base":
                self.verification.verify(system.instance_data, product, now=now())
            else:
                allowed = self.verification.allows(system.instance_data, product)
                if self.verifies and not product.free and not token and base:
                    found = self.verification.verify(system.instance_data, base, now=now())
                    covered = product.triple in found.products
        except InstanceRefused as refused:
            if system.mode != BYOS:
                raise Refused(f"Instance verification failed: {refused}") from refused
        except Exception as wrong:
            _log.exception("the instance verification provider failed")
            raise Refused("Unexpected instance verification error has occurred") from wrong
        if not allowed:
            raise Refused("Product not supported for this instance", 403)
        if not covered and system.mode != BYOS:
            raise Refused("Instance verification failed: The product is not available for this instance")

    def using(self, system: RegisteredSystem, base: Product | None) -> None:
        """Whether the instance may use repositories now.

        Raises:
            InstanceRefused: it may not.
        """
        if system.mode == BYOS:
            if self.regcodes and not self.knows_regcode(system.regcode):
                raise InstanceRefused("the registration code is not good any more")
            return
        if not self.verifies:
            return
        if base is None:
            raise InstanceRefused("no base product is activated")
        instance_data, sent = self._instance_data(system)
        key = (system.login, str(system.id), base.triple, instance_data)
        if self.remembered and self.remembered.knows(key, now=now()):
            return
        try:
            verified = self.verification.verify(instance_data, base, now=now())
        except InstanceRefused:
            raise
        except Exception as wrong:
            _log.exception("the instance verification provider failed")
            raise InstanceRefused("unexpected error") from wrong
        if sent and verified.identifier and verified.identifier != system.token:
            self._cloned(verified)
        if self.remembered:
            self.remembered.keep(key, verified, mode=system.mode, now=now())

    def _instance_data(self, system: RegisteredSystem) -> tuple[str, bool]:
        """What the instance says of itself, and whether it said it with this request."""
        header = request.headers.get(INSTANCE_HEADER, "")
        if not header:
            if self.header_required:
                raise InstanceRefused(f"the header {INSTANCE_HEADER} is missing")
            return system.instance_data, False
        try:
            return base64.b64decode(header, validate=True).decode(), True
        except (binascii.Error, ValueError):
            raise InstanceRefused(f"the header {INSTANCE_HEADER} cannot be read") from None

    def _cloned(self, verified: Verified) -> None:
        """Another instance uses these credentials: it was cloned, and becomes a system of its own."""
        sent = request.authorization
        assert sent is not None
        self.registrations.clone(sent.username or "", sent.password or "", token=verified.identifier, now=now())
