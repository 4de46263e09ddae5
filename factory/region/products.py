# SPDX-License-Identifier: Apache-2.0
"""The products an update server knows, their extensions, and how clients name them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from factory.errors import Fault, InputFault

_TRIPLE_PARTS = 3
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A product the server has repositories for; its service has the same number.

    ``extends`` names the products (NAME/VERSION/ARCH) it can be added to, ``predecessors`` those it can replace;
    ``repositories`` are aliases, None means every repository of the server.
    """

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    identifier: str
    version: str
    arch: str
    id: int = 0
    name: str = ""
    product_type: Literal["base", "module", "extension"] = "base"
    release_type: str | None = None
    product_class: str | None = None
    description: str = ""
    free: bool = True
    recommended: bool = False
    extends: tuple[str, ...] = ()
    predecessors: tuple[str, ...] = ()
    repositories: tuple[str, ...] | None = None

    @property
    def triple(self) -> str:
        return f"{self.identifier}/{self.version}/{self.arch}"

    @property
    def service(self) -> str:
        return "_".join(
            part.replace(" ", "_") for part in (self.identifier, self.version, self.release_type, self.arch) if part
        )

    @property
    def friendly_name(self) -> str:
        return f"{self.name or self.identifier} {self.version} {self.arch}"

    def answers(self, identifier: str, version: str, arch: str) -> bool:
        """Whether this is the product asked for; in versions ``-`` counts as ``.``, a trailing ``.0`` as nothing."""
        asked = (identifier.lower(), _version(version), arch)
        return asked == (self.identifier.lower(), _version(self.version), self.arch)


def products(triples: Sequence[str]) -> tuple[Product, ...]:
    """Base products from NAME/VERSION/ARCH texts, numbered from 1.

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


def faults(found: Sequence[Product], *, aliases: Sequence[str], place: str) -> tuple[Fault, ...]:
    """What is wrong with a list of products that a person wrote."""
    triples = [product.triple for product in found]
    problems: list[tuple[str, str]] = []
    for product in found:
        problems += [
            (product.triple, f"has the {name} {text!r}: use letters, digits and '._+-'")
            for name, text in (("identifier", product.identifier), ("version", product.version), ("arch", product.arch))
            if not _WORD.fullmatch(text)
        ]
        if triples.count(product.triple) > 1:
            problems.append((product.triple, "is there twice"))
        if sum(other.id == product.id for other in found) > 1:
            problems.append((product.triple, f"has the id {product.id}, as another product has"))
        problems += [
            (product.triple, f"extends '{parent}', which is not there")
            for parent in product.extends
            if parent not in triples
        ]
        problems += [
            (product.triple, f"names the repository '{alias}', which is not there")
            for alias in product.repositories or ()
            if alias not in aliases
        ]
        if (product.product_type == "base") is bool(product.extends):
            problems.append((product.triple, "must extend a product unless it is a base product, and only then"))
        if product.triple in _ancestors(product, found):
            problems.append((product.triple, "extends itself"))
    return tuple(Fault(place=f"{place} product {triple}", problem=problem) for triple, problem in problems)


def _ancestors(product: Product, found: Sequence[Product]) -> set[str]:
    by_triple = {one.triple: one for one in found}
    above: set[str] = set()
    left = list(product.extends)
    while left:
        triple = left.pop()
        if triple not in above:
            above.add(triple)
            left += by_triple[triple].extends if triple in by_triple else ()
    return above


def _version(version: str) -> str:
    return version.replace("-", ".").removesuffix(".0")
