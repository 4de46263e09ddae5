# SPDX-License-Identifier: Apache-2.0
"""What a repository's signed index says; pure parsing, no input or output.

Formats: https://wiki.debian.org/DebianRepository/Format. A ``Release`` text reaches this module only after its
signature was found good, and a ``Packages`` file only after its digest was found in such a text.
"""

from __future__ import annotations

import email.utils
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain

from factory.errors import InputsError
from factory.inputs.stanzas import Stanzas, fields_of

_SHA256_DIGITS = 64
_SHA256 = re.compile(r"[0-9a-f]{64}")
_BY_HASH = re.compile(r"(?:(?P<folder>.*)/)?by-hash/SHA256/(?P<digest>[0-9a-f]{64})")
_PACKAGES = re.compile(r"(?:.*/)?Packages(?:\.(?:xz|gz|bz2))?")
_FILE = re.compile(rb"\nFilename: *(\S+)\n(?:[^\n]+\n)*?SHA256: *(\S+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A verified ``InRelease``: ``files`` maps a name below ``dists/<suite>/`` to its SHA-256.

    ``fields`` are its fields of one line, by name.
    """

    codename: str
    suite: str
    date: datetime
    valid_until: datetime | None
    files: Mapping[str, str]
    fields: Mapping[str, str] = field(default_factory=dict)

    def expected(self, name: str) -> str | None:
        """The SHA-256 that the file with this name (or by-hash name) must have; None when the index does not say."""
        asked = _BY_HASH.fullmatch(name)
        if asked is None:
            return self.files.get(name)
        digest, folder = asked["digest"], asked["folder"] or ""
        same = any(known == digest and file.rpartition("/")[0] == folder for file, known in self.files.items())
        return digest if same else None

    def is_packages(self, name: str) -> str | None:
        """The plain name of a package index when ``name`` (or by-hash name) is one."""
        asked = _BY_HASH.fullmatch(name)
        names = [name] if asked is None else [file for file, known in self.files.items() if known == asked["digest"]]
        return next((found for found in names if _PACKAGES.fullmatch(found)), None)


def parse_release(text: str) -> Release:
    """Read the text of a Release file.

    Raises:
        InputsError: no date, or a malformed field.
    """
    fields: dict[str, str] = {}
    files: dict[str, str] = {}
    section = ""
    for line in text.splitlines():
        if line[:1] in {" ", "\t"}:
            if section == "SHA256":
                files |= _file_line(line)
        elif ":" in line:
            section, _, value = line.partition(":")
            fields[section] = value.strip()
    if "Date" not in fields:
        raise InputsError("a signed package index has no date")
    until = fields.get("Valid-Until")
    return Release(
        codename=fields.get("Codename", ""),
        suite=fields.get("Suite", ""),
        date=_time(fields["Date"]),
        valid_until=_time(until) if until else None,
        files=files,
        fields={name: value for name, value in fields.items() if value},
    )


def _file_line(line: str) -> dict[str, str]:
    parts = line.split()
    if len(parts) != 3 or not _SHA256.fullmatch(parts[0]):  # noqa: PLR2004 digest, size, name
        raise InputsError("a signed package index has a malformed line", facts=(("line", line[:200]),))
    return {parts[2]: parts[0]}


def _time(text: str) -> datetime:
    try:
        found = email.utils.parsedate_to_datetime(text)
    except ValueError as malformed:
        raise InputsError("a signed package index has a malformed date", facts=(("date", text[:80]),)) from malformed
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


def epoch(releases: Iterable[Release]) -> int:
    """The newest date among signed indexes, in seconds since 1970."""
    return max(int(release.date.timestamp()) for release in releases)


def package_digests(packages: bytes) -> dict[str, str]:
    """Every file that a ``Packages`` text names, with its SHA-256.

    Two fields are picked out of tens of megabytes by one expression: parsing every field would take as long as the
    build's whole download. ``Filename`` comes before ``SHA256`` in a stanza of every archive tool in use; a stanza in
    another order just has no entry, and its file is fetched and verified by apt alone.
    """
    text = b"\n" + packages if packages.startswith(b"Filename:") else packages
    found = b"\n".join(chain.from_iterable(_FILE.findall(text))).decode(errors="replace").split("\n")
    return {
        name: digest for name, digest in zip(found[::2], found[1::2], strict=False) if len(digest) == _SHA256_DIGITS
    }


def stanza(index: Stanzas, package: str) -> dict[str, str] | None:
    """The fields of one package, or None."""
    found = index.named(package)
    return fields_of(found[0]) if found else None


def with_dependencies(package: str, installed: frozenset[str], indexes: Iterable[Stanzas]) -> frozenset[str]:
    """The files that installing ``package`` needs beyond what is installed; versions are not weighed.

    Of alternatives the first that some index has is taken. A dependency that no index names is left out: it is virtual
    and provided by something installed, or the probe will tell.
    """
    known = tuple(indexes)
    wanted, seen, files = [package], set(installed), set[str]()
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        for found in filter(None, (stanza(index, name) for index in known)):
            files.add(found.get("Filename", ""))
            wanted += _dependencies(found, installed, known)
    return frozenset(files - {""})


def _dependencies(found: Mapping[str, str], installed: frozenset[str], indexes: tuple[Stanzas, ...]) -> list[str]:
    chosen = []
    for group in f"{found.get('Depends', '')},{found.get('Pre-Depends', '')}".split(","):
        names = [re.split(r"[\s(:\[]", choice.strip(), maxsplit=1)[0] for choice in group.split("|")]
        if any(name in installed for name in names):
            continue
        chosen += [name for name in names if name and any(stanza(index, name) for index in indexes)][:1]
    return chosen
