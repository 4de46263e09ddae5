# SPDX-License-Identifier: Apache-2.0
"""Whether the source tarball of a bundle is the one of its image, by what stands in it; nothing is unpacked to disk.

Its manifest names what was built from it and by which digests, and it holds the lock: a tarball of another build, or
one whose tree was changed, would be signed as well, and everything would verify but that the image comes of it.
Format: docs/reference/source-tarball.md.
"""

from __future__ import annotations

import hashlib
import stat
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO

from pydantic import BaseModel, ConfigDict

from factory.errors import NotGood
from factory.sign.evidence import LOCK, Evidence
from factory.sign.strict_json import Malformed, parse, shaped
from factory.system.files import lines_digest, tree_line
from factory.system.unpack import look_into

SUFFIXES = (".tar", ".tar.gz", ".tar.xz", ".tar.zst")
_READ = (".tar", ".tar.xz")
_SCHEMA = "factory/source/1"
_REBUILD, _MANIFEST = "rebuild", PurePosixPath("rebuild/manifest.json")
_LOCK = PurePosixPath("rebuild") / LOCK
_LIMIT_BYTES = 16 << 20
_CHUNK_BYTES = 1 << 20


class _Manifest(BaseModel):
    model_config = ConfigDict(strict=True)

    image: str
    epoch: int
    tree_sha256: str
    recipe_digest: str
    commit: str
    dirty: bool
    inputs_digest: str
    results: dict[str, str]


class _Held:
    """What a tarball holds: its manifest's text, the digest of its lock, and the tree beside them, a line a file."""

    def __init__(self) -> None:
        self.manifest: bytes | None = None
        self.lock_sha256 = ""
        self.tree: dict[str, str] = {}

    def take(self, path: PurePosixPath, member: tarfile.TarInfo, content: IO[bytes] | None) -> None:
        """Take a member in; its mode is the one that it would be unpacked with."""
        inside = PurePosixPath(*path.parts[1:])
        if inside == _MANIFEST and content is not None:
            self.manifest = content.read(_LIMIT_BYTES + 1)
        elif inside == _LOCK and content is not None:
            self.lock_sha256 = _sha256(content)
        elif inside.parts and inside.parts[0] != _REBUILD:
            if content is not None:
                mode, said = stat.S_IFREG | (0o755 if member.mode & 0o100 else 0o644), _sha256(content)
            else:
                mode, said = stat.S_IFLNK if member.issym() else stat.S_IFDIR | 0o755, member.linkname
            self.tree[str(inside)] = tree_line(str(inside), mode, said)


def source_faults(tarball: Path, *, image: str, sums: Mapping[str, str], evidence: Evidence) -> Iterator[str]:
    """How a source tarball is not the one of an image, in words.

    Args:
        tarball: the bytes that the checksums list.
        sums: the checksums as ``SHA256SUMS`` lists them.
        evidence: what the provenance says.
    """
    if not tarball.name.endswith(_READ):
        yield "is packed in a way that is not read here"
        return
    held = _Held()
    try:
        look_into(tarball, held.take, links=True)
        manifest, tree_sha256 = _read(held.manifest), lines_digest(held.tree)
    except NotGood as refused:
        yield refused.message
        return
    except Malformed as wrong:
        yield f"its manifest {wrong}"
        return
    except UnicodeEncodeError:
        yield "holds a link to a name that is no text"
        return
    if tree_sha256 != manifest.tree_sha256:
        yield "holds another build tree than its manifest names"
    if held.lock_sha256 != sums.get(LOCK, ""):
        yield f"holds another '{LOCK}' than the bundle"
    if image not in manifest.results:
        yield f"is the source of another image, '{manifest.image}', not of '{image}'"
    for name, sha256 in sorted(manifest.results.items()):
        if name in sums and sums[name] != sha256:
            yield f"is the source of another '{name}' than the bundle's"
    yield from _unlike(manifest, evidence)


def _unlike(manifest: _Manifest, evidence: Evidence) -> Iterator[str]:
    """Where manifest and provenance tell of different builds."""
    for what, here, there in (
        ("epoch", str(manifest.epoch), evidence.epoch),
        ("recipe", manifest.recipe_digest, evidence.recipe_digest),
        ("inputs", manifest.inputs_digest, evidence.inputs_digest),
        ("build tree", manifest.tree_sha256, evidence.tree_sha256),
        ("commit", manifest.commit, evidence.commit),
        ("state of the checkout", manifest.dirty, evidence.dirty),
    ):
        if here != there:
            yield f"its manifest names another {what} than the provenance"


def _read(text: bytes | None) -> _Manifest:
    if text is None:
        raise Malformed("is missing: it says of nothing what it is the source of")
    body = parse(text, limit_bytes=_LIMIT_BYTES)
    if not isinstance(body, dict) or body.get("schema") != _SCHEMA:
        raise Malformed("is of another schema than this version reads")
    return shaped(_Manifest, body)


def _sha256(content: IO[bytes]) -> str:
    total = hashlib.sha256()
    while chunk := content.read(_CHUNK_BYTES):
        total.update(chunk)
    return total.hexdigest()
