# SPDX-License-Identifier: Apache-2.0
"""Versions that only grow, and stay when nothing changed.

A version begins with what the content itself tells: the start of validity of the newest certificate
(``20261121.030405``), or the factory's release. A renewed certificate is therefore an update even when this record is
lost. Any other change of the content adds a counter (``20261121.030405+1``), which both dpkg and rpm take for newer
(deb-version(7), rpm-version(7)).
"""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from factory.errors import FactoryError
from factory.region.packages.contents import Payload
from factory.system.files import write_whole

_SCHEMA = "factory/region-packages/1"
_VERSION = re.compile(r"\d{1,18}(?:\.\d{1,18})*(?:\+\d{1,9})?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A version of a package, and the digest of the content that it stands for."""

    version: str
    content_sha256: str


def order(version: str) -> tuple[tuple[int, ...], int]:
    """A key that sorts versions of ours as dpkg and rpm do.

    Raises:
        ValueError: it is not a version of ours.
    """
    if not _VERSION.fullmatch(version):
        raise ValueError(f"{version!r} is not a version of this factory")
    base, _, counter = version.partition("+")
    return tuple(map(int, base.split("."))), int(counter or 0)


def next_version(base: str, content_sha256: str, known: Iterable[Issued]) -> str:
    """The version for a content, given every version that was issued before."""
    ordered = sorted(known, key=lambda one: order(one.version))
    if not ordered:
        return base
    last = ordered[-1]
    newest = [one for one in ordered if order(one.version) == order(last.version)]
    if all(one.content_sha256 == content_sha256 for one in newest) and order(last.version) >= order(base):
        return last.version
    if order(base)[0] > order(last.version)[0]:
        return base
    head, _, counter = last.version.partition("+")
    return f"{head}+{int(counter or 0) + 1}"


def issue(payloads: Iterable[Payload], record: Path, *, published: Mapping[str, Iterable[Issued]]) -> dict[str, str]:
    """The version of each package by its name; new ones are written to ``record`` before anything is built.

    Args:
        published: what a repository already offers, by package: a lost record cannot lead back behind it.
    """
    record.parent.mkdir(parents=True, exist_ok=True)
    with record.with_name(f".{record.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = _read(record)
        found = dict(before)
        for payload in payloads:
            known = [*published.get(payload.name, ())]
            known += [found[payload.name]] if payload.name in found else []
            version = next_version(payload.base, payload.content_sha256, known)
            found[payload.name] = Issued(version=version, content_sha256=payload.content_sha256)
        if found != before:
            write_whole(record, _text(found))
    return {name: one.version for name, one in found.items()}


def _text(found: Mapping[str, Issued]) -> str:
    body = {name: {"version": one.version, "content_sha256": one.content_sha256} for name, one in found.items()}
    return json.dumps({_SCHEMA: body}, indent=1, sort_keys=True) + "\n"


def _read(record: Path) -> dict[str, Issued]:
    try:
        body = json.loads(record.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as damaged:
        raise _damaged(record) from damaged
    try:
        found = {name: Issued(**one) for name, one in body[_SCHEMA].items()}
        for one in found.values():
            order(one.version)
    except (KeyError, TypeError, ValueError, AttributeError) as damaged:
        raise _damaged(record) from damaged
    return found


def _damaged(record: Path) -> FactoryError:
    return FactoryError(
        f"'{record}' is damaged",
        hint="it remembers which package versions were given out; bring it back, or remove it and build into the"
        " folder that was published last (--out), whose versions count too",
    )
