# SPDX-License-Identifier: Apache-2.0
"""kiwi's ``config.xml``: held against kiwi's own schema, and its repositories filled in by alias."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit
from xml.sax.saxutils import escape

from lxml import etree

from factory.errors import Fault, InputFault
from factory.model import Description

_PLACEHOLDER = ".example"
_SECONDARY = re.compile(r"failed to validate content|Extra element|Invalid sequence in interleave")
_SOURCE = re.compile(r'(?P<before><source\b[^>]*?\bpath=)(?P<quote>["\'])(?P<url>[^"\']*)(?P=quote)')


def read_config(path: Path, *, shown: str) -> str:
    """The text of a ``config.xml`` that is well formed and fits the schema of the kiwi that is installed.

    Raises:
        InputFault: with every fault and its line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as unreadable:
        raise InputFault(f"'{shown}' cannot be read: {unreadable}") from None
    faults = tuple(_schema_faults(parse(text, shown=shown), shown))
    if faults:
        raise InputFault(f"'{shown}' is not a kiwi description", faults=faults)
    return text


def parse(text: str, *, shown: str) -> etree._Element:
    """The root element; without entities, external files or network.

    Raises:
        InputFault: not well-formed XML.
    """
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        root = etree.fromstring(text.encode(), parser)
    except etree.XMLSyntaxError as malformed:
        line, column = malformed.position
        problem = re.sub(r", line \d+, column \d+.*$", "", str(malformed.msg))
        fault = Fault(place=f"{shown}:{line}:{column}", problem=problem)
        raise InputFault(f"'{shown}' is not XML", faults=(fault,)) from None
    if re.search(r"<!DOCTYPE\b", text):
        raise InputFault(
            f"'{shown}' is not a kiwi description",
            faults=(Fault(place=f"{shown}:1", problem="has a document type", cure="remove <!DOCTYPE ...>"),),
        )
    return root


def _schema_faults(root: etree._Element, shown: str) -> Iterator[Fault]:
    """What kiwi's schema refuses. Older descriptions are converted first, as kiwi does; lines are then unknown."""
    schema = _schema()
    if schema.validate(root):
        return
    entries = _entries(schema)
    if root.get("schemaversion") != _schema_version():
        if schema.validate(_converted(root)):
            return
        entries = [entry for entry in _entries(schema) if entry[0]] or _entries(schema)
    for line, problem in dict.fromkeys(entries):
        yield Fault(place=f"{shown}:{line or root.sourceline}", problem=problem)


def _entries(schema: etree.RelaxNG) -> list[tuple[int, str]]:
    """The findings that say something: libxml2 also tells every parent that it has a bad child."""
    found = [(error.line, error.message) for error in schema.error_log]
    telling = [entry for entry in found if not _SECONDARY.search(entry[1])]
    deepest = max((line for line, _ in found), default=0)
    return telling or [entry for entry in found if entry[0] == deepest]


@cache
def _schema() -> etree.RelaxNG:
    return etree.RelaxNG(file=str(_kiwi_folder() / "schema" / "kiwi.rng"))


@cache
def _schema_version() -> str:
    rules = etree.parse(str(_kiwi_folder() / "schema" / "kiwi.rng"))
    found = rules.xpath("string(//*[local-name()='attribute'][@name='schemaversion']/*[local-name()='value'])")
    return str(found)


def _converted(root: etree._Element) -> etree._Element:
    stylesheet = _kiwi_folder() / "xsl" / "master.xsl"
    return etree.XSLT(etree.parse(str(stylesheet)))(root).getroot()


def _kiwi_folder() -> Path:
    import kiwi

    return Path(kiwi.__file__).parent


def config_faults(root: etree._Element, description: Description, *, shown: str) -> Iterator[Fault]:
    """What the schema cannot say: aliases that ``image.toml`` knows, and an image that it describes."""
    aliases = {repository.alias for repository in description.update_repositories}
    known = ", ".join(sorted(aliases))
    if root.get("name") != description.name:
        yield Fault(
            place=f"{shown}:{root.sourceline} image.name",
            problem=f"is '{root.get('name')}'",
            cure=f"image.toml calls the image '{description.name}'",
        )
    for source in root.iter("source"):
        where = f"{shown}:{source.sourceline} repository.source"
        alias = placeholder_alias(source.get("path", ""))
        if alias is None:
            yield Fault(
                place=where, problem="names a real address", cure="write http://ALIAS.example/ for one of " + known
            )
        elif alias not in aliases:
            yield Fault(
                place=where, problem=f"'{alias}' is not in [update_repositories] of image.toml", cure=f"known: {known}"
            )
    yield from _suite_faults(root, description, shown)
    yield from _type_faults(root, description, shown)


def _suite_faults(root: etree._Element, description: Description, shown: str) -> Iterator[Fault]:
    """A build reads what an instance will: the factory builds from the suites of image.toml, plain kiwi from these."""
    wanted = {(one.alias, suite) for one in description.update_repositories for suite in one.suites or ("",)}
    found = {(alias, suite) for alias, suite, _ in build_suites(root)}
    aliases = {one.alias for one in description.update_repositories}
    for alias, suite in sorted(pair for pair in found - wanted if pair[0] in aliases):
        problem = f"reads suite '{suite}' of '{alias}', which image.toml does not name"
        yield Fault(place=f"{shown}:{root.sourceline} repository", problem=problem, cure="write both alike")


def _type_faults(root: etree._Element, description: Description, shown: str) -> Iterator[Fault]:
    types = list(root.iterfind("preferences/type"))
    if len(types) != 1:
        yield Fault(place=f"{shown}:{root.sourceline} preferences", problem=f"has {len(types)} types, not one")
    for kind in types:
        wanted = {"image": "oem", "filesystem": description.disk.root_fs, "firmware": description.disk.firmware}
        for name, value in wanted.items():
            if kind.get(name) != value:
                yield Fault(
                    place=f"{shown}:{kind.sourceline} type.{name}",
                    problem=f"is '{kind.get(name)}'",
                    cure=f"'{value}', as image.toml says" if name != "image" else "the factory needs a raw disk: 'oem'",
                )
        yield from _size_faults(kind, description, shown)


def _size_faults(kind: etree._Element, description: Description, shown: str) -> Iterator[Fault]:
    size = kind.find("size")
    wanted = description.disk.min_gib
    if size is None:
        yield Fault(
            place=f"{shown}:{kind.sourceline} type", problem="has no size", cure=f'<size unit="G">{wanted}</size>'
        )
        return
    text = (size.text or "").strip()
    mib = int(text) * (1024 if size.get("unit", "M") == "G" else 1) if text.isdecimal() else -1
    if mib != wanted * 1024 or size.get("additive") == "true":
        yield Fault(
            place=f"{shown}:{size.sourceline} type.size",
            problem=f"is '{text}' {size.get('unit', 'M')}",
            cure=f"image.toml says disk.min_gib = {wanted}",
        )


def placeholder_alias(url: str) -> str | None:
    """``debian`` for ``http://debian.example/...``; None for an address that is real."""
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return None
    return host.removesuffix(_PLACEHOLDER) if host.endswith(_PLACEHOLDER) else None


def with_addresses(text: str, addresses: Mapping[str, str]) -> str:
    """The description with the real address of each alias; nothing else changes."""

    def real(match: re.Match[str]) -> str:
        alias = placeholder_alias(match["url"])
        if alias is None:
            return match[0]
        address = escape(addresses[alias], {match["quote"]: "&quot;" if match["quote"] == '"' else "&apos;"})
        return f"{match['before']}{match['quote']}{address}{match['quote']}"

    return _SOURCE.sub(real, text)


def build_suites(root: etree._Element) -> tuple[tuple[str, str, str], ...]:
    """What the description reads from: (alias in ``[update_repositories]``, suite, components), in order."""
    found = []
    for repository in root.iter("repository"):
        for source in repository.iter("source"):
            alias = placeholder_alias(source.get("path", ""))
            if alias:
                found.append((alias, repository.get("distribution", ""), repository.get("components", "main")))
    return tuple(found)
