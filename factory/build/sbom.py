# SPDX-License-Identifier: Apache-2.0
"""The software bill of materials: CycloneDX 1.6 as JSON, one component for each installed package.

Every byte follows from the image and what it was made of: no clock, no random number, all sorted. Formats:
https://cyclonedx.org/specification/overview/ and https://github.com/package-url/purl-spec.
"""

from __future__ import annotations

import email.utils
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from factory.build.evidence import coverage
from factory.build.identity import serial_number
from factory.build.inventory import Inventory
from factory.build.licences import Licences
from factory.errors import BuildError
from factory.model import utc

if TYPE_CHECKING:
    from cyclonedx.model.component import Component
    from cyclonedx.model.license import DisjunctiveLicense, LicenseExpression
    from packageurl import PackageURL

NAME = "sbom.cdx.json"
PROPERTY = "image-factory"
_MAIL = re.compile(r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+")
_SIMPLE = re.compile(r"[A-Za-z0-9.+-]+")
_WORD = re.compile(r"[!-.0-~]+")
_LONGEST = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """An installed package as the bill names it.

    ``system`` is its packaging in the words of package URLs (``deb``, ``rpm``), ``vendor`` whose package it is;
    ``sha256`` and ``sha512`` are of the package file, ``origin`` is the repository that it came from.
    """

    system: str
    vendor: str
    name: str
    version: str
    arch: str
    distro: str = ""
    source: str = ""
    source_version: str = ""
    maintainer: str = ""
    origin: str = ""
    sha256: str = ""
    sha512: str = ""
    licences: Licences | None = None

    @property
    def upstream(self) -> str:
        """The source package, where it is another one or of another version."""
        if self.source in {"", self.name} and self.source_version in {"", self.version}:
            return ""
        of_other_version = self.source_version not in {"", self.version}
        return f"{self.source}@{self.source_version}" if of_other_version else self.source


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The image that a bill is about: its file, its digests, when its inputs are from, what it was made with."""

    file: str
    name: str
    build_id: str
    sha256: str
    sha512: str
    epoch: int
    inventory: Inventory
    tools: Mapping[str, str]


def package_url(part: Part) -> PackageURL:
    """The package URL of an installed package; an epoch goes where its packaging wants it.

    Raises:
        BuildError: no packaging knows packages of such a name or version.
    """
    from packageurl import PackageURL

    if not _WORD.fullmatch(part.name) or not _WORD.fullmatch(part.version):
        raise BuildError(f"the image holds a package that no package manager would install: {part.name[:80]!r}")
    version, qualifiers = part.version, {"arch": part.arch, "distro": part.distro, "upstream": part.upstream}
    if part.system == "rpm" and ":" in version:
        qualifiers["epoch"], _, version = version.partition(":")
    return PackageURL(
        type=part.system,
        namespace=part.vendor,
        name=part.name,
        version=version,
        qualifiers={key: value for key, value in qualifiers.items() if value},
    )


def sbom_text(subject: Subject, parts: Iterable[Part]) -> str:
    """The bill of an image, as text."""
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.model.tool import ToolRepository
    from cyclonedx.output.json import JsonV1Dot6

    parts = tuple(parts)
    components = [_component(one) for one in parts]
    image = Component(
        type=ComponentType.FILE,
        name=subject.file,
        version=subject.build_id,
        bom_ref=f"sha256:{subject.sha256}",
        description=f"{subject.name}, an image of {subject.inventory.title or 'an operating system'}"[:_LONGEST],
        hashes=[
            HashType(alg=HashAlgorithm.SHA_256, content=subject.sha256),
            HashType(alg=HashAlgorithm.SHA_512, content=subject.sha512),
        ],
    )
    tools = [
        Component(type=ComponentType.APPLICATION, name=name, version=version, bom_ref=f"tool:{name}")
        for name, version in subject.tools.items()
    ]
    bom = Bom(
        serial_number=serial_number(subject.sha256),
        metadata=BomMetaData(
            timestamp=utc(subject.epoch),
            component=image,
            tools=ToolRepository(components=tools),
            properties=_properties({f"licences:{name}": str(n) for name, n in counted(parts).items()}),
        ),
        components=[*components, *_system(subject.inventory)],
    )
    bom.register_dependency(image, bom.components)
    # written by ourselves: the library's own order of keys is not promised
    body: dict[str, Any] = json.loads(JsonV1Dot6(bom).output_as_string())
    return json.dumps(body, indent=1, sort_keys=True) + "\n"


def counted(parts: Iterable[Part]) -> dict[str, int]:
    """How many packages say what about their licences."""
    return coverage(one.licences for one in parts)


def _system(inventory: Inventory) -> list[Component]:
    """The distribution, by which scanners know whose advisories count."""
    from cyclonedx.model.component import Component, ComponentType

    if not inventory.distro:
        return []
    version = inventory.version or None
    reference = f"os:{inventory.distro}-{inventory.version}"
    return [
        Component(
            type=ComponentType.OPERATING_SYSTEM,
            name=inventory.distro,
            version=version,
            description=inventory.title or None,
            bom_ref=reference,
        )
    ]


def _component(part: Part) -> Component:
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component, ComponentType

    purl = package_url(part)
    known = ((HashAlgorithm.SHA_256, part.sha256), (HashAlgorithm.SHA_512, part.sha512))
    prose = part.licences.refers_to if part.licences else ()
    return Component(
        type=ComponentType.LIBRARY,
        name=part.name,
        version=part.version,
        purl=purl,
        bom_ref=purl.to_string(),
        hashes=[HashType(alg=alg, content=content) for alg, content in known if content],
        licenses=_licences(part),
        supplier=_supplier(part.maintainer),
        properties=_properties(
            {
                "repository": part.origin,
                "source": f"{part.source} {part.source_version}".strip(),
                "licence-texts-named": ", ".join(prose),
            }
        ),
    )


def _properties(values: Mapping[str, str]) -> list[Any]:
    from cyclonedx.model import Property

    return [Property(name=f"{PROPERTY}:{name}", value=value) for name, value in values.items() if value]


def _licences(part: Part) -> list[DisjunctiveLicense | LicenseExpression]:
    """An expression when SPDX has a name for everything, else each licence by its name."""
    from cyclonedx.model.license import DisjunctiveLicense, LicenseAcknowledgement, LicenseExpression

    declared = LicenseAcknowledgement.DECLARED
    if part.licences is None:
        return []
    spdx, named = part.licences.spdx, part.licences.named
    if len(spdx) == 1 and _SIMPLE.fullmatch(spdx[0]) and not named:
        return [DisjunctiveLicense(id=spdx[0], acknowledgement=declared)]
    if spdx and not named:
        joined = " AND ".join(f"({one})" if " OR " in one and len(spdx) > 1 else one for one in spdx)
        return [LicenseExpression(joined, acknowledgement=declared)]
    simple = [one for one in spdx if _SIMPLE.fullmatch(one)]
    others = [*(one for one in spdx if one not in simple), *named]
    others = others or [] if simple or others else [f"see /usr/share/doc/{part.name}/copyright"]
    return [
        *(DisjunctiveLicense(id=one, acknowledgement=declared) for one in simple),
        *(DisjunctiveLicense(name=one, acknowledgement=declared) for one in others),
    ]


def _supplier(maintainer: str) -> Any:  # noqa: ANN401 - an OrganizationalEntity, or None
    from cyclonedx.model.contact import OrganizationalContact, OrganizationalEntity

    if not maintainer:
        return None
    name, mail = email.utils.parseaddr(maintainer[:_LONGEST])
    mail = mail if _MAIL.fullmatch(mail) else ""
    contacts = [OrganizationalContact(name=name or None, email=mail)] if mail else []
    return OrganizationalEntity(name=name or maintainer[:_LONGEST], contacts=contacts)
