# SPDX-License-Identifier: Apache-2.0
"""What an rpm-md repository says: its signed list of indexes, and the packages; pure parsing, no input or output.

``repodata/repomd.xml`` names every index with its digest, ``primary`` among them every package with its own
(https://github.com/rpm-software-management/createrepo_c). A ``repomd.xml`` reaches this module only after its signature
was found good, and an index only after its digest was found in that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import IO
from xml.etree.ElementTree import Element, ParseError

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import fromstring, iterparse

from factory.errors import InputsError

REPOMD = "repodata/repomd.xml"
SIGNATURE, KEY = f"{REPOMD}.asc", f"{REPOMD}.key"
LIMIT_BYTES = 4 << 20
_REPO = "{http://linux.duke.edu/metadata/repo}"
_COMMON = "{http://linux.duke.edu/metadata/common}"
_RPM = "{http://linux.duke.edu/metadata/rpm}"
_BASE = "{http://www.w3.org/XML/1998/namespace}base"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SECONDS = re.compile(r"[0-9]{9,11}(\.[0-9]+)?")
_SOURCE = re.compile(r"(?P<name>.+)-(?P<version>[^-]+-[^-]+)\.(?:no)?src\.rpm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Repomd:
    """A verified ``repomd.xml``: ``files`` maps the path of each index to its SHA-256, ``primary`` is one of them.

    ``date`` is the newest time in it: of its revision, where that is a time, and of its indexes.
    """

    date: datetime
    files: Mapping[str, str]
    primary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RpmPackage:
    """A package that ``primary`` names: ``path`` is its file below the repository's address."""

    name: str
    epoch: str
    version: str
    release: str
    arch: str
    path: str
    sha256: str
    size_bytes: int
    source: str = ""

    @property
    def evr(self) -> str:
        """Epoch, version and release, as rpm writes them; an epoch of 0 is left out."""
        plain = f"{self.version}-{self.release}"
        return plain if self.epoch in {"", "0"} else f"{self.epoch}:{plain}"

    @property
    def made_of(self) -> tuple[str, str]:
        """Name and version of its source package; itself where the repository does not say."""
        found = _SOURCE.fullmatch(self.source)
        return (found["name"], found["version"]) if found else (self.name, self.evr)


class Malformed(ValueError):
    """What was read is not of the form that it must have."""


def parse_repomd(text: bytes) -> Repomd:
    """Read a ``repomd.xml``.

    Raises:
        InputsError: it is no such file, or names its indexes in a way that cannot be trusted.
    """
    try:
        if len(text) > LIMIT_BYTES:
            raise Malformed(f"is longer than {LIMIT_BYTES >> 20} MiB")  # noqa: TRY301 told below
        root = fromstring(text, forbid_dtd=True)
        if root.tag != f"{_REPO}repomd":
            raise Malformed("is of another kind")  # noqa: TRY301
        indexes = {one.get("type", ""): one for one in root.iter(f"{_REPO}data")}
        if "primary" not in indexes:
            raise Malformed("names no list of packages")  # noqa: TRY301
        files = {_place(one, _REPO): _sha256(one, _REPO) for one in root.iter(f"{_REPO}data")}
        times = [*_texts(root, f"{_REPO}revision"), *_texts(root, f"{_REPO}data/{_REPO}timestamp")]
        return Repomd(date=_newest(times), files=files, primary=_place(indexes["primary"], _REPO))
    except (Malformed, ParseError, DefusedXmlException, LookupError, ValueError) as wrong:
        raise InputsError("a signed repomd.xml cannot be used", facts=(("said", str(wrong)[:200]),)) from wrong


def parse_primary(file: IO[bytes]) -> Iterator[RpmPackage]:
    """The packages of an unpacked ``primary``, one after the other: such files may have hundreds of megabytes.

    Raises:
        InputsError: it is damaged, or names a file in a way that cannot be trusted.
    """
    try:
        root = None
        for event, element in iterparse(file, events=("start", "end"), forbid_dtd=True):
            if root is None:
                root = element
            if event == "end" and element.tag == f"{_COMMON}package":
                if element.get("type", "rpm") == "rpm":
                    yield _package(element)
                root.clear()
    except (Malformed, ParseError, DefusedXmlException, LookupError, ValueError, OSError, EOFError) as wrong:
        raise InputsError("a signed list of packages cannot be used", facts=(("said", str(wrong)[:200]),)) from wrong


def epoch(repomds: Iterable[Repomd]) -> int:
    """The newest date among signed indexes, in seconds since 1970."""
    return max(int(one.date.timestamp()) for one in repomds)


def _package(element: Element) -> RpmPackage:
    version, size = element.find(f"{_COMMON}version"), element.find(f"{_COMMON}size")
    if version is None or size is None:
        raise Malformed("a package has no version or size")
    return RpmPackage(
        name=_text(element, f"{_COMMON}name"),
        epoch=version.get("epoch", ""),
        version=version.get("ver", ""),
        release=version.get("rel", ""),
        arch=_text(element, f"{_COMMON}arch"),
        path=_place(element, _COMMON),
        sha256=_sha256(element, _COMMON),
        size_bytes=int(size.get("package", "")),
        source=element.findtext(f"{_COMMON}format/{_RPM}sourcerpm") or "",
    )


def _text(element: Element, name: str) -> str:
    found = (element.findtext(name) or "").strip()
    if not found:
        raise Malformed(f"a package has no {name.rpartition('}')[2]}")
    return found


def _texts(root: Element, path: str) -> list[str]:
    return [(one.text or "").strip() for one in root.iterfind(path)]


def _place(element: Element, space: str) -> str:
    """The path of a file, which must be below the repository."""
    location = element.find(f"{space}location")
    path = location.get("href", "") if location is not None else ""
    strange = not path.isprintable() or path.startswith("/") or ":" in path.partition("/")[0] or "\\" in path
    if not path or strange or {"", ".", ".."} & set(path.split("/")):
        raise Malformed(f"{path[:120]!r} is no path below the repository")
    if location is not None and (location.get(_BASE) or element.get(_BASE)):
        raise Malformed(f"'{path[:120]}' is said to be at another address")
    return path


def _sha256(element: Element, space: str) -> str:
    checksum = element.find(f"{space}checksum")
    kind = checksum.get("type", "") if checksum is not None else "no"
    digest = ((checksum.text if checksum is not None else "") or "").strip()
    if kind != "sha256" or not _SHA256.fullmatch(digest):
        raise Malformed(f"'{_place(element, space)}' is named by a {kind[:20]} checksum, not by SHA-256")
    return digest


def _newest(times: Iterable[str]) -> datetime:
    found = [float(text) for text in times if _SECONDS.fullmatch(text)]
    if not found:
        raise Malformed("has no date")
    return datetime.fromtimestamp(int(max(found)), UTC)
