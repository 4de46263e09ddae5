# SPDX-License-Identifier: Apache-2.0
"""The source tarball: the build tree, and what an image can be made from again with nothing else but its inputs.

Names, modes and contents alone decide its bytes. The folder ``rebuild`` beside the tree's files holds the manifest
(image, identifiers, parameters, tools, and the digests of what came out), the lock, the lists of files and packages,
and the keyrings that the repositories' signatures were verified with. No path and no address of the building host is
in it.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from factory.build.box import OUT, Box
from factory.build.identity import identity
from factory.errors import NotGood
from factory.model import Description, Recipe, Repository
from factory.system.files import appearing, sha256_file
from factory.system.values import adapter

SCHEMA = "factory/source/1"
REBUILD = "rebuild"
MANIFEST, LOCK, FILES, PACKAGES, KEYRINGS = "manifest.json", "inputs.lock", "files.list", "packages.json", "keyrings"
_KEYRING_SUFFIX = ".pgp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a source tarball says about the image that was made from it.

    ``identity`` are the identifiers that follow from image and epoch; ``results`` maps the names of what came out to
    SHA-256 digests, ``layers`` the parts of the disk inside the image; ``tools`` are the programs that shaped it, and
    ``tools_epoch`` is when the index that they come from was signed (0: they were the building host's).
    """

    image: str
    arch: str
    epoch: int
    identity: Mapping[str, str]
    description: Description
    repositories: tuple[Repository, ...]
    recipe_digest: str
    tree_sha256: str
    commit: str
    dirty: bool
    inputs_digest: str
    tools: Mapping[str, str]
    results: Mapping[str, str]
    layers: Mapping[str, str]
    size_bytes: int
    tools_epoch: int = 0

    @property
    def image_name(self) -> str:
        """The file name of the image."""
        return f"{self.image}.{self.arch}.qcow2"

    @property
    def image_sha256(self) -> str:
        """The SHA-256 of the image."""
        return self.results.get(self.image_name, "")

    def text(self) -> str:
        """The canonical text."""
        body = adapter(Manifest).dump_python(self, mode="json")
        return json.dumps({"schema": SCHEMA, **body}, indent=1, sort_keys=True) + "\n"


def manifest_of(
    recipe: Recipe,
    *,
    epoch: int,
    inputs_digest: str,
    tools: Mapping[str, str],
    results: Mapping[str, str],
    layers: Mapping[str, str],
    size_bytes: int,
    tools_epoch: int = 0,
) -> Manifest:
    """The manifest of an image that was just built."""
    marks = identity(recipe.description.name, epoch)
    return Manifest(
        image=recipe.description.name,
        arch=recipe.description.arch,
        epoch=epoch,
        identity={
            "root_uuid": marks.root_uuid,
            "hash_seed": marks.hash_seed,
            "disk_id": f"0x{marks.disk_id:08x}",
        },
        description=recipe.description,
        repositories=recipe.repositories,
        recipe_digest=recipe.digest,
        tree_sha256=recipe.tree_sha256,
        commit=recipe.commit,
        dirty=recipe.dirty,
        inputs_digest=inputs_digest,
        tools=dict(tools),
        results=dict(results),
        layers=dict(layers),
        size_bytes=size_bytes,
        tools_epoch=tools_epoch,
    )


def read_manifest(path: Path) -> Manifest:
    """Read a manifest back.

    Raises:
        NotGood: there is none, or it is of another form.
    """
    try:
        body = json.loads(path.read_text())
        if body.pop("schema") != SCHEMA:
            raise NotGood("the source tarball is of another version than this factory reads")
        return adapter(Manifest).validate_python(body)
    except FileNotFoundError:
        raise NotGood(
            "the source tarball holds a build tree and no manifest, so the image cannot be made from it again",
            hint="it is older than 'factory rebuild'; its create_appliance.sh makes a similar image",
        ) from None
    except (OSError, ValueError, KeyError, AttributeError, TypeError, ValidationError) as damaged:
        raise NotGood("the manifest in the source tarball is damaged", facts=(("said", str(damaged)[:300]),)) from None


def rebuild_files(folder: Path, recipe: Recipe, manifest: Manifest) -> dict[str, bytes]:
    """What stands beside the tree, by its path below ``rebuild/``; ``folder`` is where the build wrote its lists."""
    found = {name: (folder / name).read_bytes() for name in (LOCK, FILES, PACKAGES)}
    for alias in sorted(recipe.keyrings):
        found[f"{KEYRINGS}/{alias}{_KEYRING_SUFFIX}"] = recipe.keyrings[alias].read_bytes()
    return {MANIFEST: manifest.text().encode(), **found}


def keyrings_in(folder: Path) -> dict[str, Path]:
    """The keyrings of an unpacked tarball's ``rebuild`` folder, by repository."""
    return {path.name.removesuffix(_KEYRING_SUFFIX): path for path in sorted((folder / KEYRINGS).iterdir())}


def set_times(tree: Path, epoch: int) -> None:
    """Give every file of a tree the time that it has in the tarball: the overlay's times get into the image."""
    for path in [tree, *tree.rglob("*")]:
        os.utime(path, (epoch, epoch), follow_symlinks=False)


def write_tar(tree: Path, tar: Path, *, name: str, epoch: int, rebuild: Mapping[str, bytes] | None = None) -> None:
    """Put ``tree`` as ``name/`` into a plain tar file: sorted, no owner, every time the epoch.

    Args:
        rebuild: further files, in memory, by their path below ``rebuild/``.
    """

    def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        member.mtime = epoch
        return member

    paths = sorted(tree.rglob("*"), key=lambda path: path.relative_to(tree).as_posix().encode())
    with appearing(tar) as partial, tarfile.open(partial, "w", format=tarfile.PAX_FORMAT) as archive:
        for path in [tree, *paths]:
            inside = path.relative_to(tree).as_posix()
            archive.add(path, name if inside == "." else f"{name}/{inside}", recursive=False, filter=anonymous)
        for inside, content in _with_folders(rebuild or {}):
            member = anonymous(tarfile.TarInfo(f"{name}/{inside}"))
            member.type, member.mode = (tarfile.DIRTYPE, 0o755) if content is None else (tarfile.REGTYPE, 0o644)
            member.size = len(content or b"")
            archive.addfile(member, io.BytesIO(content or b""))


def compress(box: Box, tar: Path, tarball: Path) -> None:
    """Compress a tar file that stands in the box's outbox, by the box's own xz: every version of it packs in its way.

    Most of it are digests, which nothing makes smaller; higher presets take seconds for nothing.
    """
    with appearing(tarball) as partial:
        _xz(box, tar, preset=0).replace(partial)


def packed(box: Box, content: bytes) -> bytes:
    """A text compressed by the box's own xz, for the same reason."""
    plain = box.out / "packed"
    plain.write_bytes(content)
    return _xz(box, plain, preset=6).read_bytes()


def _xz(box: Box, file: Path, *, preset: int) -> Path:
    argv = ["xz", "--format=xz", "--check=crc64", f"-{preset}", "--threads=1", "--keep", "--force", "--no-sparse"]
    box.run([*argv, OUT / file.name])
    return file.with_name(f"{file.name}.xz")


def _with_folders(files: Mapping[str, bytes]) -> list[tuple[str, bytes | None]]:
    """Files below ``rebuild/`` after the folders that they lie in."""
    found: dict[str, bytes | None] = {REBUILD: None} if files else {}
    for inside in sorted(files):
        folder = inside.rpartition("/")[0]
        found |= {f"{REBUILD}/{folder}": None} if folder else {}
        found[f"{REBUILD}/{inside}"] = files[inside]
    return list(found.items())


def sums(paths: Mapping[str, Path]) -> dict[str, str]:
    """The SHA-256 of files by the names they go by."""
    return {name: sha256_file(path) for name, path in paths.items()}
