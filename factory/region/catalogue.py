# SPDX-License-Identifier: Apache-2.0
"""What one update server offers: products, services, repositories, in the words of the connect API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from factory.region.products import Product
from factory.region.repositories import ServedRepository


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """Products and repositories, and the addresses that instances get for them.

    ``plugin_urls`` gives addresses for zypper's resolver plugin, as update servers in public clouds do.
    """

    fqdn: str
    products: Sequence[Product]
    repositories: Sequence[ServedRepository]
    plugin_urls: bool = False

    def find(self, identifier: str, version: str, arch: str) -> Product | None:
        """The product asked for."""
        return next((product for product in self.products if product.answers(identifier, version, arch)), None)

    def of_service(self, number: int) -> Product | None:
        """The product of a service."""
        return next((product for product in self.products if product.id == number), None)

    def base(self, triples: Sequence[str]) -> Product | None:
        """The base product among these."""
        found = (one for one in self.products if one.triple in triples and one.product_type == "base")
        return next(found, None)

    def extensions(self, product: Product) -> list[Product]:
        """What can be added to a product directly."""
        return [one for one in self.products if product.triple in one.extends]

    def repositories_of(self, product: Product) -> list[ServedRepository]:
        """The repositories of a product."""
        wanted = product.repositories
        return [one for one in self.repositories if wanted is None or one.alias in wanted]

    def migrations(self, installed: Sequence[Product]) -> list[list[Product]]:
        """Where a system with these products can go: for each new base product, it and what follows the extensions."""
        base = next((one for one in installed if one.product_type == "base"), None)
        if base is None:
            return []
        paths = []
        for target in self.products:
            if base.triple not in target.predecessors:
                continue
            path, complete = [target], True
            for extension in (one for one in installed if one.product_type != "base"):
                after = self._successor(extension, {one.triple for one in path})
                complete = complete and after is not None
                path += [after] if after else []
            if complete:
                paths.append(path)
        return paths

    def _successor(self, extension: Product, parents: set[str]) -> Product | None:
        candidates = (one for one in self.products if set(one.extends) & parents)
        return next((one for one in candidates if extension.triple in (one.triple, *one.predecessors)), None)

    def url(self, path: str, credentials: str) -> str:
        """An address as instances get it: plain https, or for zypper's resolver plugin."""
        if self.plugin_urls:
            return f"plugin:/susecloud?credentials={quote(credentials)}&path={quote(path)}"
        return f"https://{self.fqdn}{quote(path)}"

    def zypper_url(self, path: str, credentials: str) -> str:
        """Such an address, which also says which credentials zypper has to send."""
        url = self.url(path, credentials)
        return url if self.plugin_urls else f"{url}?credentials={quote(credentials)}"

    def service_json(self, product: Product, *, obsoleted: str = "") -> dict[str, object]:
        """A service, with its product."""
        return {
            "id": product.id,
            "name": product.service,
            "url": self.zypper_url(f"/services/{product.id}", product.service),
            "obsoleted_service_name": obsoleted,
            "product": self.product_json(product),
        }

    def product_json(self, product: Product, *, root: Product | None = None) -> dict[str, object]:
        """A product, with its repositories and, recursively, what can be added to it."""
        root = root or product
        return {
            **self.product_name(product),
            "name": product.name or product.identifier,
            "former_identifier": product.identifier,
            "release_stage": "released",
            "product_class": product.product_class,
            "cpe": None,
            "free": product.free or product.product_type == "base" or not self.plugin_urls,
            "description": product.description or f"{product.friendly_name}, from a sandbox update server",
            "eula_url": "",
            "repositories": [self.repository_json(one, product.service) for one in self.repositories_of(product)],
            "product_type": product.product_type,
            "extensions": [self.product_json(one, root=root) for one in self.extensions(product)],
            "recommended": product.recommended,
            "available": all(one.mirrored() for one in self.repositories_of(product) if one.enabled),
        }

    def product_name(self, product: Product) -> dict[str, object]:
        """What names a product, as migration paths do."""
        return {
            "id": product.id,
            "identifier": product.identifier,
            "version": product.version,
            "arch": product.arch,
            "release_type": product.release_type,
            "friendly_name": product.friendly_name,
            "product_type": product.product_type,
            "base": product.product_type == "base",
            "free": product.free,
        }

    def repository_json(self, repository: ServedRepository, credentials: str) -> dict[str, object]:
        """A repository."""
        return {
            "id": repository.id,
            "name": repository.alias,
            "url": self.url(f"/repo/{repository.location}", credentials),
            "description": repository.description,
            "distro_target": None,
            "enabled": repository.enabled,
            "autorefresh": repository.autorefresh,
            "installer_updates": repository.installer,
        }
