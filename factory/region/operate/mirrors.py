# SPDX-License-Identifier: Apache-2.0
"""What update servers mirror: descriptions validated, made from what images need, compared with what a server has.

Two files, both of SUSE's update-infra-utils (github.com/SUSE-Enceladus/update-infra-utils): ``product_config.json``,
which its ``generate-repos-config`` turns with SCC's help into ``rmt_repository_config.json``, which its
``enable-rmt-repos`` and the monitoring read. ``generate-repos-config`` stops silently at the first incomplete entry;
here every fault is told with its line.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from factory.errors import Fault
from factory.region.operate.documents import Entry, read_list

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*", re.ASCII)
_ARCH = re.compile(r"[A-Za-z0-9_]+(:[A-Za-z0-9_-]+)?", re.ASCII)
_LOCATION = re.compile(r"/[A-Za-z0-9._+~%@=,:/-]+", re.ASCII)
_SUSE = re.compile(r"(SLE|SUSE|SL-|Leap|openSUSE)", re.IGNORECASE)
_SHOWN = 60
_TRUE, _FALSE = {"true", "mirror", "1"}, {"false", "don't mirror", "0"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductEntry:
    """One entry of ``product_config.json``: every product in every version for every architecture."""

    comment: str
    products: tuple[str, ...]
    versions: tuple[str, ...]
    arches: tuple[str, ...]
    additional_repos: tuple[str, ...] = ()
    exclusions: tuple[str, ...] = ()

    def triples(self) -> Iterator[str]:
        """``name/version/arch`` with the framework as ``arch:framework``, in lower case, as they are compared."""
        for product in self.products:
            for version in self.versions:
                for arch in self.arches:
                    yield f"{product}/{version}/{arch}".lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryEntry:
    """One entry of ``rmt_repository_config.json``: a repository to mirror, on every framework or on one."""

    id: int
    description: str
    framework: str | None
    location: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirrors:
    """A description that was read: of products or of repositories, and what is wrong with it."""

    kind: str
    products: tuple[ProductEntry, ...] = ()
    repositories: tuple[RepositoryEntry, ...] = ()
    faults: tuple[Fault, ...] = ()


def read_mirrors(text: str, *, shown: str) -> Mirrors:
    """Read either description; which one it is follows from the keys of its entries.

    Args:
        shown: how faults name the file.
    """
    listing = read_list(text, shown=shown)
    faults = list(listing.faults)
    kind = "repositories" if any("id" in one.value for one in listing.entries if _is_object(one)) else "products"
    if not listing.entries and not faults:
        faults.append(Fault(place=shown, problem="describes nothing", cure="add an entry"))
    products, repositories = [], []
    for entry in listing.entries:
        place = f"{shown}:{entry.line} [{entry.number}]"
        if not _is_object(entry):
            faults.append(Fault(place=place, problem="is not an object", cure="write {...}"))
        elif kind == "products":
            found = list(_product_faults(entry.value, place))
            faults += found
            products += [] if found else [_product(entry.value)]
        else:
            found = list(_repository_faults(entry.value, place))
            faults += found
            repositories += [] if found else [_repository(entry.value)]
    faults += _repeated(listing.entries, shown, kind)
    return Mirrors(kind=kind, products=tuple(products), repositories=tuple(repositories), faults=tuple(faults))


def _is_object(entry: Entry) -> bool:
    return isinstance(entry.value, dict)


# -- products ---------------------------------------------------------------------------------------------------------

_PRODUCT_KEYS = ("comment", "products", "versions", "arches", "additional_repos", "exclusions")
_WHY = {
    "products": "generate-repos-config stops here, and drops every later entry without a failure",
    "versions": "generate-repos-config stops here, and drops every later entry without a failure",
    "arches": "generate-repos-config stops here, and drops every later entry without a failure",
    "additional_repos": "generate-repos-config fails at the first repository that is not enabled; write []",
}


def _product_faults(value: Mapping[str, Any], place: str) -> Iterator[Fault]:
    yield from _unknown(value, _PRODUCT_KEYS, place)
    for key, cure in _WHY.items():
        if key not in value:
            yield Fault(place=f"{place}.{key}", problem="is missing", cure=cure)
    forms = {"products": _NAME, "versions": _NAME, "arches": _ARCH, "additional_repos": None, "exclusions": None}
    for key, form in forms.items():
        if key in value:
            yield from _texts_faults(value[key], form, f"{place}.{key}", may_be_empty=form is None)
    if not isinstance(value.get("comment", ""), str):
        yield Fault(place=f"{place}.comment", problem="is not a text", cure='write "..."')


def _texts_faults(value: object, form: re.Pattern[str] | None, place: str, *, may_be_empty: bool) -> Iterator[Fault]:
    if not isinstance(value, list):
        yield Fault(place=place, problem=f"is not a list but {_quoted(value)}", cure="write [...]")
        return
    if not value and not may_be_empty:
        yield Fault(place=place, problem="is empty", cure=_WHY["products"])
    for number, text in enumerate(value):
        if not isinstance(text, str):
            yield Fault(place=f"{place}[{number}]", problem=f"{_quoted(text)} is not a text", cure='write "..."')
        elif form is not None and not form.fullmatch(text):
            cure = "such as x86_64, or aarch64:ec2 for one framework only" if form is _ARCH else "such as SLES or 15.7"
            yield Fault(place=f"{place}[{number}]", problem=f"{_quoted(text)} has the wrong form", cure=cure)
        elif form is None and not text:
            yield Fault(
                place=f"{place}[{number}]", problem="is empty: it would match every repository", cure="name one"
            )


def _product(value: Mapping[str, Any]) -> ProductEntry:
    return ProductEntry(
        comment=value.get("comment", ""),
        products=tuple(value["products"]),
        versions=tuple(value["versions"]),
        arches=tuple(value["arches"]),
        additional_repos=tuple(value["additional_repos"]),
        exclusions=tuple(value.get("exclusions", ())),
    )


# -- repositories -----------------------------------------------------------------------------------------------------

_REPOSITORY_KEYS = ("id", "description", "framework", "location", "url")


def _repository_faults(value: Mapping[str, Any], place: str) -> Iterator[Fault]:
    yield from _unknown(value, _REPOSITORY_KEYS, place)
    for key in ("id", "description", "framework", "location"):
        if key not in value:
            yield Fault(
                place=f"{place}.{key}", problem="is missing", cure="null means: on every framework" * (key[0] == "f")
            )
    number = value.get("id", 1)
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        yield Fault(place=f"{place}.id", problem=f"{_quoted(number)} is not SCC's number of a repository")
    if not isinstance(value.get("description", ""), str):
        yield Fault(place=f"{place}.description", problem="is not a text", cure='write "..."')
    framework = value.get("framework")
    if framework is not None and not (isinstance(framework, str) and _NAME.fullmatch(framework)):
        yield Fault(
            place=f"{place}.framework", problem=f"{_quoted(framework)} is no name", cure="null: every framework"
        )
    if "location" in value:
        yield from _location_faults(value["location"], f"{place}.location")


def _location_faults(location: object, place: str) -> Iterator[Fault]:
    if not isinstance(location, str) or not _LOCATION.fullmatch(location):
        yield Fault(
            place=place, problem=f"{_quoted(location)} is no path below the mirror", cure="such as /SUSE/Products/"
        )
    elif ".." in location.split("/"):
        yield Fault(place=place, problem="leads out of the mirror", cure="remove '..'")
    elif location.startswith("/repo/"):
        yield Fault(
            place=place,
            problem="begins with /repo",
            cure="the path begins below it: monitoring would look for /repo/repo",
        )


def _repository(value: Mapping[str, Any]) -> RepositoryEntry:
    return RepositoryEntry(
        id=value["id"], description=value["description"], framework=value["framework"], location=value["location"]
    )


def _unknown(value: Mapping[str, Any], known: Sequence[str], place: str) -> Iterator[Fault]:
    for key in value:
        if key not in known:
            yield Fault(place=place, problem=f"has an unknown key {_quoted(key)}", cure=f"known: {', '.join(known)}")


def _repeated(entries: Sequence[Entry], shown: str, kind: str) -> Iterator[Fault]:
    seen: dict[object, int] = {}
    for entry in entries:
        if not _is_object(entry):
            continue
        place = f"{shown}:{entry.line} [{entry.number}]"
        if kind == "repositories":
            number = entry.value.get("id")
            keys: list[object] = [number] if isinstance(number, int) else []
        else:
            keys = [] if any(_product_faults(entry.value, place)) else list(_product(entry.value).triples())
        for key in keys:
            if key in seen:
                yield Fault(place=place, problem=f"{key} stands in line {seen[key]} already", cure="keep one of them")
            seen.setdefault(key, entry.line)


def _quoted(value: object) -> str:
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


# -- made from what images need ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What an image registers as."""

    image: str
    product: str


def is_suse(product: str) -> bool:
    """Whether a product (NAME/VERSION/ARCH) is one that RMT can mirror."""
    return bool(_SUSE.match(product))


def product_config(needs: Sequence[Need], *, modules: Sequence[str] = ()) -> list[dict[str, Any]]:
    """``product_config.json`` for the SUSE products among ``needs``; with their modules, for SLE 12 and 15.

    Args:
        modules: further products to mirror in every version, by identifier.
    """
    wanted: dict[tuple[str, tuple[str, ...]], set[str]] = {}
    images: dict[tuple[str, tuple[str, ...]], set[str]] = {}
    for need in needs:
        if not is_suse(need.product):
            continue
        name, version, arch = need.product.split("/")
        for product, in_version in ((name, version), *_modules(name, version), *((one, version) for one in modules)):
            key = (in_version, (arch,))
            wanted.setdefault(key, set()).add(product)
            images.setdefault(key, set()).add(need.image)
    return [
        {
            "comment": f"for {', '.join(sorted(images[key]))}",
            "products": sorted(products, key=lambda one: (one.startswith("sle-module"), one.lower())),
            "versions": [key[0]],
            "arches": list(key[1]),
            "additional_repos": [],
            "exclusions": ["Debuginfo", "Source"],
        }
        for key, products in sorted(wanted.items())
    ]


def _modules(name: str, version: str) -> Iterator[tuple[str, str]]:
    """The modules that an instance in a cloud needs: all of them are products of their own."""
    major = version.partition(".")[0]
    if major == "12":
        yield "sle-module-public-cloud", "12"
    elif major == "15" and name.lower().startswith("sle"):
        for module in ("basesystem", "server-applications", "public-cloud"):
            yield f"sle-module-{module}", version
        if "sap" in name.lower():
            yield "sle-module-sap-applications", version


def config_text(entries: Sequence[Mapping[str, Any]]) -> str:
    """A description as a file."""
    return json.dumps(list(entries), indent=4, ensure_ascii=False) + "\n"


# -- compared with what a server has ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedRepository:
    """A line of ``rmt-cli repos list --csv``."""

    id: int
    name: str
    enabled: bool
    last_mirrored: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How a server differs from the description; ``good`` when it does not."""

    missing: tuple[RepositoryEntry, ...]
    not_enabled: tuple[RepositoryEntry, ...]
    never_mirrored: tuple[RepositoryEntry, ...]
    extra: tuple[ListedRepository, ...]

    @property
    def good(self) -> bool:
        return not (self.missing or self.not_enabled or self.never_mirrored or self.extra)

    @property
    def enable(self) -> tuple[int, ...]:
        """What ``rmt-cli repos enable`` has to be given."""
        return tuple(sorted(one.id for one in self.not_enabled))


def read_listing(text: str, *, shown: str) -> tuple[tuple[ListedRepository, ...], tuple[Fault, ...]]:
    """Read the output of ``rmt-cli repos list [--all] --csv``."""
    rows = list(csv.reader(io.StringIO(text.removeprefix("\ufeff"))))
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    try:
        columns = {name: header.index(title) for name, title in _COLUMNS.items()}
    except ValueError:
        cure = "save the output of 'LANG=C rmt-cli repos list --all --csv'"
        return (), (Fault(place=f"{shown}:1", problem="has not the columns of rmt-cli", cure=cure),)
    found: list[ListedRepository] = []
    faults = []
    for number, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        cells = {name: row[at].strip() if at < len(row) else "" for name, at in columns.items()}
        enabled = cells["enabled"].lower()
        if not (cells["id"].isascii() and cells["id"].isdecimal()) or enabled not in _TRUE | _FALSE:
            faults.append(Fault(place=f"{shown}:{number}", problem=f"{_quoted(','.join(row))} is no repository"))
            continue
        one = ListedRepository(
            id=int(cells["id"]), name=cells["name"], enabled=enabled in _TRUE, last_mirrored=cells["last_mirrored"]
        )
        found.append(one)
    return tuple(found), tuple(faults)


_COLUMNS = {"id": "scc id", "name": "description", "enabled": "mirror?", "last_mirrored": "last mirrored"}


def compare(
    wanted: Sequence[RepositoryEntry], listed: Sequence[ListedRepository], *, framework: str | None = None
) -> Comparison:
    """Hold a server's list against the description.

    Args:
        framework: the cloud that the server is in: entries for another one are not for it.
    """
    ours = {one.id: one for one in wanted if one.framework in {None, framework}}
    there = {one.id: one for one in listed}
    known = sorted(ours.keys() & there.keys())
    return Comparison(
        missing=tuple(ours[number] for number in sorted(ours.keys() - there.keys())),
        not_enabled=tuple(ours[number] for number in known if not there[number].enabled),
        never_mirrored=tuple(ours[n] for n in known if there[n].enabled and not there[n].last_mirrored),
        extra=tuple(there[n] for n in sorted(there.keys() - ours.keys()) if there[n].enabled),
    )
