# SPDX-License-Identifier: Apache-2.0
"""An image's records, read from where they are: a run folder, a bundle, a download folder, or beside a qcow2 file.

Nothing is verified here and nothing is trusted: what is too large or of another form is an error, and what is not there
is not known.
"""

from __future__ import annotations

import json
import lzma
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from factory.build.changelog import changelog_text, entries_of
from factory.build.contents import package_of_file, without_epoch
from factory.build.deb import files_of_deb
from factory.build.evidence import CHANGELOGS, Source, read_changelogs
from factory.build.inventory import NAME as INVENTORY
from factory.build.inventory import read_inventory
from factory.build.tarball import FILES, MANIFEST, PACKAGES, REBUILD
from factory.diff.model import Booted, End, Side
from factory.errors import InputFault, InputsError, NotGood
from factory.inputs.lock import read_lock
from factory.model import BOOTED, Package, utc
from factory.system.values import adapter

_LARGEST_BYTES = 64 << 20
_INSIDE = (MANIFEST, PACKAGES, FILES)
_FOLDERS = ("", "verify", "bundle")
_MOST_ENTRIES = 400
_LOGS = ("changelog.Debian.gz", "changelog.gz")
Value = TypeVar("Value")


def read_side(place: Path, *, name: str = "") -> Side:
    """The records of an image.

    Args:
        place: a folder, or a qcow2 file in it.
        name: what to call the image; by default the name of the place.

    Raises:
        InputFault: no image is known there.
        NotGood: a record is damaged.
    """
    folder = place.parent if place.is_file() else place
    texts = _texts(folder)
    if PACKAGES not in texts:
        raise InputFault(
            f"'{place}' says nothing about the packages of an image",
            hint=f"name a run, a bundle or download folder, or an image with its '{PACKAGES}' beside it",
        )
    packages = _packages(texts[PACKAGES])
    sources = read_changelogs(texts[CHANGELOGS]) if CHANGELOGS in texts else None
    return Side(
        end=_end(name or place.name, folder, texts, packages),
        packages=packages,
        files=_files(texts[FILES]) if FILES in texts else None,
        inventory=read_inventory(texts[INVENTORY]) if INVENTORY in texts else None,
        sources=sources,
        booted=_booted(texts[BOOTED]) if BOOTED in texts else None,
    )


def longer_changelogs(side: Side, wanted: Mapping[str, str], *, lock: Path, blobs: Path) -> dict[str, Source]:
    """Sources with all that the recorded package files tell, where those are still there.

    Args:
        wanted: source packages whose changelogs at hand are too short, with the versions to reach back to.
    """
    try:
        files = {package_of_file(one.path): blobs / one.sha512 for one in read_lock(lock) if one.found}
    except InputsError:
        return {}
    found: dict[str, Source] = {}
    for package in side.packages:
        source = package.source or package.name
        known = (side.sources or {}).get(source)
        path = files.get((package.name, without_epoch(package.version), package.arch))
        if source not in wanted or source in found or known is None or path is None:
            continue
        inside = files_of_deb(path, [f"/usr/share/doc/{package.name}/{log}" for log in _LOGS])
        for content in inside.values():
            entries = entries_of(changelog_text(content), most=_MOST_ENTRIES)
            if entries and entries[0].source == source:
                found[source] = Source(version=known.version, entries=entries)
    return found


def _texts(folder: Path) -> dict[str, bytes]:
    """Every record by its name; those in a source tarball only where they are nowhere else."""
    found: dict[str, bytes] = {}
    for name in (*_INSIDE, INVENTORY, CHANGELOGS, BOOTED):
        for place in (folder / part / name for part in _FOLDERS):
            if place.is_file() and name not in found:
                if place.stat().st_size > _LARGEST_BYTES:
                    raise NotGood(f"'{place}' is much larger than any image's")
                found[name] = place.read_bytes()
    missing = [name for name in _INSIDE if name not in found]
    tarballs = sorted(folder.glob("*-source.tar.xz"))
    return {**(_in_tarball(tarballs[0], missing) if missing and len(tarballs) == 1 else {}), **found}


def _in_tarball(tarball: Path, names: list[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(tarball, "r|xz") as archive:
            for member in archive:
                inside = member.name.partition("/")[2]
                for name in names:
                    if inside == f"{REBUILD}/{name}" and member.isreg() and member.size <= _LARGEST_BYTES:
                        file = archive.extractfile(member)
                        found[name] = file.read() if file else b""
    except (tarfile.TarError, lzma.LZMAError, EOFError, OSError) as damaged:
        raise NotGood(f"'{tarball.name}' is damaged", facts=(("said", str(damaged)[:200]),)) from None
    return found


def _end(name: str, folder: Path, texts: Mapping[str, bytes], packages: tuple[Package, ...]) -> End:
    told = _parsed("manifest", lambda: json.loads(texts[MANIFEST])) if MANIFEST in texts else {}
    told = told if isinstance(told, dict) else {}
    images = sorted(path for path in folder.glob("*.qcow2") if path.is_file())
    image = f"{told['image']}.{told['arch']}.qcow2" if {"image", "arch"} <= told.keys() else ""
    results, size, epoch = told.get("results"), told.get("size_bytes"), told.get("epoch")
    return End(
        name=name,
        image=image or (images[0].name if images else ""),
        sha256=str(results.get(image, "")) if isinstance(results, dict) else "",
        size_bytes=size if isinstance(size, int) else images[0].stat().st_size if images else 0,
        made=_parsed("manifest", lambda: f"{utc(epoch):%Y-%m-%d}") if isinstance(epoch, int) else "",
        packages=len(packages),
    )


def _packages(text: bytes) -> tuple[Package, ...]:
    return _parsed(PACKAGES, lambda: adapter(tuple[Package, ...]).validate_python(json.loads(text)["packages"]))


def _booted(text: bytes) -> Booted:
    def parse() -> Booted:
        body = json.loads(text)
        return adapter(Booted).validate_python({key: body[key] for key in ("listening", "sysctl")})

    return _parsed(BOOTED, parse)


def _files(text: bytes) -> dict[str, dict[str, Any]]:
    def parse() -> dict[str, dict[str, Any]]:
        lines = b",".join(text.splitlines()[1:])  # ten thousands of them: read as one document, in a third of the time
        return {str(one["path"]): one for one in json.loads(b"[%b]" % lines)}

    return _parsed(FILES, parse)


def _parsed(what: str, parse: Callable[[], Value]) -> Value:
    """What a hostile text says.

    Raises:
        NotGood: it is of another form.
    """
    try:
        return parse()
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, ValidationError) as bad:
        raise NotGood(f"the record '{what}' of an image is damaged", facts=(("said", str(bad)[:200]),)) from None
