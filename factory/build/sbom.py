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
    from packageurl import PackageURL

NAME = "sbom.cdx.json"
PROPERTY = "image-factory"
_MAIL = re.compile(r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+")
_SIMPLE = re.compile(r"[A-Za-z0-9.+-]+")
_WORD = re.compile(r"[!-.0-~]+")
_LONGEST = 200

Json = dict[str, Any]


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
    """The bill of an image, as text.

    Written by ourselves: a library's order of lists and keys is not promised, and its objects, which are compared with
    each other to be sorted, take ten times as long. That the library reads it, and writes the same, is tested.
    """
    parts = tuple(parts)
    image = {
        "type": "file",
        "name": subject.file,
        "version": subject.build_id,
        "bom-ref": f"sha256:{subject.sha256}",
        "description": f"{subject.name}, an image of {subject.inventory.title or 'an operating system'}"[:_LONGEST],
        "hashes": _hashes(subject.sha256, subject.sha512),
    }
    tools = [
        {"type": "application", "name": name, "version": version, "bom-ref": f"tool:{name}"}
        for name, version in sorted(subject.tools.items())
    ]
    components = [*map(_component, parts), *_system(subject.inventory)]
    references = sorted(one["bom-ref"] for one in components)
    body = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "serialNumber": serial_number(subject.sha256).urn,
        "metadata": {
            "timestamp": utc(subject.epoch).isoformat(),
            "component": image,
            "tools": {"components": tools},
            "properties": _properties({f"licences:{name}": str(n) for name, n in counted(parts).items()}),
        },
        "components": sorted(components, key=lambda one: (one["type"], one["name"], one["version"], one["bom-ref"])),
        "dependencies": sorted(
            ({"ref": image["bom-ref"], "dependsOn": references}, *({"ref": one} for one in references)),
            key=lambda one: str(one["ref"]),
        ),
    }
    return json.dumps(_told(body), indent=1, sort_keys=True) + "\n"


def counted(parts: Iterable[Part]) -> dict[str, int]:
    """How many packages say what about their licences."""
    return coverage(one.licences for one in parts)


def _told(value: Any) -> Any:  # noqa: ANN401 - JSON is what it is
    """A value without what is not known: empty texts and lists have no place in a bill."""
    if isinstance(value, dict):
        return {key: _told(one) for key, one in value.items() if one not in ("", [])}
    return [_told(one) for one in value] if isinstance(value, list) else value


def _system(inventory: Inventory) -> list[Json]:
    """The distribution, by which scanners know whose advisories count."""
    if not inventory.distro:
        return []
    return [
        {
            "type": "operating-system",
            "name": inventory.distro,
            "version": inventory.version,
            "description": inventory.title,
            "bom-ref": f"os:{inventory.distro}-{inventory.version}",
        }
    ]


def _component(part: Part) -> Json:
    purl = package_url(part).to_string()
    prose = part.licences.refers_to if part.licences else ()
    told = {
        "repository": part.origin,
        "source": f"{part.source} {part.source_version}".strip(),
        "licence-texts-named": ", ".join(prose),
    }
    return {
        "type": "library",
        "name": part.name,
        "version": part.version,
        "purl": purl,
        "bom-ref": purl,
        "hashes": _hashes(part.sha256, part.sha512),
        "licenses": _licences(part),
        "supplier": _supplier(part.maintainer),
        "properties": _properties(told),
    }


def _hashes(sha256: str, sha512: str) -> list[Json]:
    known = (("SHA-256", sha256), ("SHA-512", sha512))
    return [{"alg": alg, "content": content} for alg, content in known if content]


def _properties(values: Mapping[str, str]) -> list[Json]:
    return [{"name": f"{PROPERTY}:{name}", "value": value} for name, value in sorted(values.items()) if value]


def _licences(part: Part) -> list[Json]:
    """An expression when SPDX has a name for everything, else each licence by its name."""
    declared = {"acknowledgement": "declared"}
    if part.licences is None:
        return []
    spdx, named = part.licences.spdx, part.licences.named
    if len(spdx) == 1 and _SIMPLE.fullmatch(spdx[0]) and not named:
        return [{"license": {"id": spdx[0], **declared}}]
    if spdx and not named:
        joined = " AND ".join(f"({one})" if " OR " in one and len(spdx) > 1 else one for one in spdx)
        return [{"expression": joined, **declared}]
    simple = [one for one in spdx if _SIMPLE.fullmatch(one)]
    others = [*(one for one in spdx if one not in simple), *named]
    others = others or ([] if simple else [f"see /usr/share/doc/{part.name}/copyright"])
    found = [("id", one) for one in sorted(set(simple))] + [("name", one) for one in sorted(set(others))]
    return [{"license": {kind: one, **declared}} for kind, one in found]


def _supplier(maintainer: str) -> Json | str:
    """Who maintains a package, as far as that is told."""
    if not maintainer:
        return ""
    name, mail = email.utils.parseaddr(maintainer[:_LONGEST])
    contact = [{"name": name, "email": mail}] if _MAIL.fullmatch(mail) else []
    return {"name": name or maintainer[:_LONGEST], "contact": contact}
