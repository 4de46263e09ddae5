# SPDX-License-Identifier: Apache-2.0
"""What licences a package is under, as its own copyright file says.

Debian's machine-readable form (https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/) names a licence by a
short name; one that SPDX knows becomes an SPDX expression, any other stays the name that it is. Nothing is guessed from
prose: a file that is not machine-readable names no licence. Pure, and no text makes it fail.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

_LONGEST = 200
_MOST = 200
_FORMAT = re.compile(r"(?:copyright-format|dep5)\b", re.IGNORECASE)
_COMMON = re.compile(r"/usr/share/common-licenses/([A-Za-z0-9][A-Za-z0-9.+-]*[A-Za-z0-9+])")
_GNU = re.compile(r"(AGPL|LGPL|GPL|GFDL(?:-NIV)?)-(\d)(?:\.(\d))?(?:\.0)*(\+|-only|-or-later)?", re.IGNORECASE)
_VERSION = re.compile(r"(.+?)-(\d+(?:\.\d+)*)")
_SAME = {"expat": "MIT", "zope-2.1": "ZPL-2.1", "psf-2": "PSF-2.0", "bsd-0-clause": "0BSD"}
"""Short names of the format, or of its users, that mean what SPDX calls otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Licences:
    """What one copyright file says, sorted.

    ``spdx`` are SPDX expressions, ``named`` short names that SPDX does not know; a package is under all of them.
    ``refers_to`` are the texts in ``/usr/share/common-licenses`` that a file in prose points at: a hint, no licence.
    """

    spdx: tuple[str, ...] = ()
    named: tuple[str, ...] = ()
    refers_to: tuple[str, ...] = ()


def licences_of(text: str) -> Licences:
    """The licences that a copyright file declares for the files of its source package."""
    stanzas = list(_stanzas(text))
    if not stanzas or not _FORMAT.search(stanzas[0].get("format", stanzas[0].get("format-specification", ""))):
        return Licences(refers_to=tuple(sorted(set(_COMMON.findall(text)))[:_MOST]))
    declared = [stanza.get("license", "") for stanza in (stanzas[0], *(one for one in stanzas[1:] if "files" in one))]
    spdx, named = set(), set()
    for short in {" ".join(one.split()) for one in declared} - {""}:
        expression = spdx_expression(short)
        if expression:
            spdx.add(expression)
        else:
            named.add(_shown(short))
    return Licences(spdx=tuple(sorted(spdx)[:_MOST]), named=tuple(sorted(named)[:_MOST]))


def _shown(short: str) -> str:
    """A foreign name as one short printable line."""
    plain = "".join(char if char.isprintable() else "?" for char in short)
    return plain if len(plain) <= _LONGEST else f"{plain[: _LONGEST - 3]}..."


def _stanzas(text: str) -> Iterator[dict[str, str]]:
    """Each stanza's fields by lower-case name, with the first line of each value."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if not line.strip():
            if found:
                yield found
            found = {}
        elif line[0] not in " \t#":
            name, separator, value = line.partition(":")
            if separator:
                found.setdefault(name.strip().lower(), value.strip())
    if found:
        yield found


# -- short names as SPDX expressions ----------------------------------------------------------------------------------


@cache
def spdx_expression(short: str) -> str:
    """The SPDX expression that a short name of the format means; nothing when SPDX has no name for a part of it.

    ``and`` binds closer than ``or``, and a comma before either less than both, as the format says.
    """
    if len(short) > _LONGEST or "/" in short:
        return ""
    pieces = re.split(r", (and|or) ", short)
    parts, words = [_alternatives(one) for one in pieces[::2]], set(pieces[1::2])
    if len(words) > 1 or not all(parts):
        return ""
    return _joined(parts, words.pop().upper() if words else "AND")


def _alternatives(text: str) -> str:
    groups = [[_named(name) for name in re.split(r" and ", group)] for group in re.split(r" or ", text)]
    if not all(all(group) for group in groups):
        return ""
    return _joined([_joined(group, "AND") for group in groups], "OR")


def _joined(parts: Iterable[str], word: str) -> str:
    """Parts under one word, without repetition; what another word joins goes in brackets."""
    distinct = list(dict.fromkeys(parts))
    if len(distinct) == 1:
        return distinct[0]
    other = " OR " if word == "AND" else " AND "
    return f" {word} ".join(f"({one})" if other in one else one for one in distinct)


def _named(name: str) -> str:
    """One licence, with the exception that may go with it."""
    plain, separator, exception = name.strip().partition(" with ")
    licence = _identifier(plain.strip())
    if not separator or not licence:
        return licence
    words = exception.strip().lower()
    tries = (words, words.removesuffix(" exception"), words.replace(" exception", "-exception"))
    known = next((found for one in tries if (found := _exceptions().get(one, ""))), "")
    return f"{licence} WITH {known}" if known else ""


def _identifier(name: str) -> str:
    """The SPDX identifier of one short name, or nothing."""
    gnu = _GNU.fullmatch(name)
    if gnu:
        family, major, minor, later = gnu.groups()
        middle = "-no-invariants" if family.upper().endswith("-NIV") else ""
        ending = "or-later" if later in {"+", "-or-later"} else "only"
        name = f"{family.upper().removesuffix('-NIV')}-{major}.{minor or 0}{middle}-{ending}"
    name = _SAME.get(name.lower(), name)
    versioned = _VERSION.fullmatch(name)  # trailing zeros of a version are of no account
    tries = (name, f"{name}.0", re.sub(r"(?:\.0)+$", "", name)) if versioned else (name,)
    return next((known for one in tries if (known := _identifiers().get(one.lower(), ""))), "")


@cache
def _identifiers() -> dict[str, str]:
    """The licences that SPDX and CycloneDX both know, by lower-case identifier."""
    from cyclonedx.spdx import is_supported_id

    return {key.lower(): key for key, exception in _symbols() if not exception and is_supported_id(key)}


@cache
def _exceptions() -> dict[str, str]:
    return {key.lower(): key for key, exception in _symbols() if exception and not key.startswith("LicenseRef-")}


@cache
def _symbols() -> tuple[tuple[str, bool], ...]:
    from license_expression import get_spdx_licensing

    return tuple((key, bool(one.is_exception)) for key, one in get_spdx_licensing().known_symbols.items())
