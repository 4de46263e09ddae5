# SPDX-License-Identifier: Apache-2.0
"""A description in two halves: what installs the packages, and what is done to them afterwards.

kiwi installs the packages before it takes in the overlay, the users, the settings and ``config.sh``. So a first
description that has nothing but packages, and then a second without any, on the root tree of the first
(``--allow-existing-root``), do step by step what the whole one does. The first needs most of the time, and changes
only when packages do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, tostring

from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

CONFIG = "config.xml"
_BOOTSTRAP_SCRIPT = "post_bootstrap.sh"
_PARTS = {"description", "preferences", "users", "repository", "packages"}
_PACKAGES = {"bootstrap", "image"}
_AFTERWARDS = {"timezone", "locale", "keytable"}
# what kiwi decides by the names of packages, or does to the tree before they are installed
_TYPE_NEEDS_WHOLE = {"overlayroot", "delta_root", "derived_from", "bootstrap_package", "installiso", "installpxe"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Halves:
    """The first description by file name, and what the second has for a ``config.xml``."""

    packages: Mapping[str, str]
    afterwards: str


def halves(tree: Path) -> Halves | None:
    """The halves of a build tree's description; None when it has something that is known to work only as a whole."""
    try:
        image = ElementTree.parse(tree / CONFIG).getroot()
    except (OSError, ValueError, LookupError, ElementTree.ParseError, DefusedXmlException):
        return None  # kiwi says better what is wrong with it
    if image is None or not _can_be_halved(image):
        return None
    first = {CONFIG: _text(image, without={"users", "repository"}, preferences_without=_AFTERWARDS)}
    script = tree / _BOOTSTRAP_SCRIPT
    if script.is_file():
        first[_BOOTSTRAP_SCRIPT] = script.read_text()
    return Halves(packages=first, afterwards=_text(image, without={"packages"}))


def _can_be_halved(image: Element) -> bool:
    parts = list(image)
    managers = [one.text for one in image.iter("packagemanager")]
    types = list(image.iter("type"))
    return (
        {one.tag for one in parts} <= _PARTS
        and managers == ["apt"]
        and len(types) == 1
        and types[0].get("image") == "oem"
        and not _TYPE_NEEDS_WHOLE & set(types[0].attrib)
        and all(_only_names(one) for one in parts if one.tag == "packages")
        and {one.get("type") for one in parts if one.tag == "packages"} == _PACKAGES
        and not any("profiles" in one.attrib for one in image.iter())
    )


def _only_names(packages: Element) -> bool:
    return set(packages.attrib) <= {"type", "patternType"} and all(
        one.tag == "package" and set(one.attrib) == {"name"} for one in packages
    )


def _text(image: Element, *, without: set[str], preferences_without: frozenset[str] | set[str] = frozenset()) -> str:
    """The description's canonical text without some of its parts; comments and spaces do not count."""
    found = Element(image.tag, image.attrib)
    for part in image:
        if part.tag not in without:
            left = preferences_without if part.tag == "preferences" else frozenset[str]()
            found.append(_copied(part, without=left))
    return tostring(found, encoding="unicode") + "\n"


def _copied(element: Element, *, without: set[str] | frozenset[str] = frozenset()) -> Element:
    found = Element(element.tag, element.attrib)
    found.text = (element.text or "").strip()
    found.extend(_copied(one) for one in element if one.tag not in without)
    return found
