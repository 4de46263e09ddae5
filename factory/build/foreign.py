# SPDX-License-Identifier: Apache-2.0
"""A vendor's image, taken as it is: fetched, compared with its pins, signature verified, looked into, never changed.

Nothing is built, so nothing can be built again: a rebuild is the same bytes from the store. What is in the image is
what its own package database says, where that can be read without mounting it.
"""

from __future__ import annotations

import lzma
import shutil
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from factory import __version__
from factory.build import contents, qcow2, tarball
from factory.build.evidence import About, Evidence, Source
from factory.build.identity import build_id
from factory.build.inventory import inventory_of
from factory.build.records import Records, write_records
from factory.errors import BuildError, FactoryError, InputsError, NotGood
from factory.inputs.blobs import BlobStore
from factory.inputs.lock import Input, write_lock
from factory.inputs.pinned import fetch_pinned, fetched_small
from factory.inputs.signature import signers_of_detached
from factory.inputs.upstream import Upstream
from factory.model import Artifact, Foreign, Package, Recipe
from factory.region.check_qcow2 import qcow2_root
from factory.system.files import Digests, appearing, digests, remove, sha256_file, write_whole
from factory.system.secrets import Login
from factory.system.state import Run, State

VENDOR, VENDOR_SIGNATURE = "vendor", "vendor-signature"
_GIB, _MIB = 1 << 30, 1 << 20
_SIGNATURE_BYTES = 1 << 20
_STATUS, _RELEASES = "/var/lib/dpkg/status", ("/etc/os-release", "/usr/lib/os-release")
Say = Callable[[str], None]


def take(
    recipe: Recipe, *, run: Run, state: State, say: Say, now: datetime, logins: Mapping[str, Login] | None = None
) -> Artifact:
    """Fetch a vendor's image into ``run``, and write down what is known of it.

    Raises:
        InputsError: the vendor or its mirror is away, or serves something else than is pinned or signed.
        NotGood: it is not a qcow2 image that stands alone.
        BuildError: it is for larger disks than its description says.
    """
    foreign, store, upstream = recipe.description.foreign, BlobStore(state.blobs), Upstream(logins=logins)
    assert foreign is not None
    seconds: dict[str, float] = {}
    image = run.path / f"{recipe.description.name}.{recipe.description.arch}.qcow2"
    with _measured(seconds, "inputs"):
        taken = _fetched(recipe, foreign, store, upstream, say=say)
        _place(store.path(taken[0].sha512), image)
    with _measured(seconds, "looking"):
        _expect_fits(recipe, image)
        seen = _looked(image, scratch=run.path, say=say)
    with _measured(seconds, "records"):
        return _artifact(recipe, image, taken, seen, run=run, now=now, seconds=seconds)


@contextmanager
def _measured(seconds: dict[str, float], step: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    seconds[step] = round(time.monotonic() - started, 2)


def _fetched(recipe: Recipe, foreign: Foreign, store: BlobStore, upstream: Upstream, *, say: Say) -> list[Input]:
    """The image and, where there is one, its signature, verified and in the store."""
    say(f"taking {_name(foreign.url)} as it is")
    found = fetch_pinned(
        recipe.mirrors[VENDOR],
        sha256=foreign.sha256,
        sha512=foreign.sha512,
        limit_bytes=foreign.max_mib * _MIB,
        store=store,
        upstream=upstream,
    )
    taken = [_input(_name(foreign.url), found)]
    if foreign.signature:
        address = recipe.mirrors[VENDOR_SIGNATURE]
        with fetched_small(address, limit_bytes=_SIGNATURE_BYTES, store=store, upstream=upstream) as incoming:
            incoming.digests  # noqa: B018 writes what is still buffered
            _expect_signed(recipe, store.path(found.sha512), incoming.path)
            taken.append(_input(_name(foreign.signature), store.keep(incoming)))
        say(f"signed by {foreign.key}")
    else:
        say("no signature is named: its pins are all that says whose it is")
    return taken


def _expect_signed(recipe: Recipe, image: Path, signature: Path) -> None:
    what = f"'{_name(recipe.mirrors[VENDOR])}'"
    keyring, wanted = recipe.keyrings[VENDOR], recipe.signers[VENDOR]
    found = signers_of_detached(image, signature, keyring=keyring, what=what)
    if not set(found) & set(wanted):
        raise InputsError(
            f"{what} is signed by another key",
            facts=(*(("signed by", one) for one in found), *(("expected", one) for one in wanted)),
            hint="compare the fingerprint with the vendor's own word, by a second way, before you change foreign.key",
        )


def _name(address: str) -> str:
    return address.rpartition("/")[2]


def _input(name: str, found: Digests) -> Input:
    return Input(repository=VENDOR, path=name, sha512=found.sha512, size_bytes=found.size_bytes)


def _place(blob: Path, image: Path) -> None:
    """The stored file under the image's name: the same file where the file system allows it."""
    remove(image)  # a link to the same file would not be put in its own place
    with appearing(image) as partial:
        try:
            partial.hardlink_to(blob)
        except OSError:  # another file system
            shutil.copyfile(blob, partial)


def _expect_fits(recipe: Recipe, image: Path) -> None:
    wanted, name = recipe.description.disk.min_gib * _GIB, _name(recipe.mirrors[VENDOR])
    try:
        size = qcow2.virtual_size_bytes(image)
    except (BuildError, struct.error) as other:
        raise NotGood(f"'{name}' is not a qcow2 image", hint="pin the vendor's qcow2, not another format") from other
    if size > wanted:
        raise BuildError(
            f"'{name}' is for disks of {size / _GIB:.2f} GiB, the description says {wanted // _GIB}",
            hint=f"write min_gib = {-(-size // _GIB)} into [disk] of image.toml",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What an image's own files tell; nothing where they cannot be read."""

    status: str = ""
    releases: Mapping[str, bytes]


def _looked(image: Path, *, scratch: Path, say: Say) -> _Seen:
    """Read the package database out of the image, without mounting it."""
    folder = scratch / "look"
    remove(folder)
    folder.mkdir(mode=0o700)
    try:
        with qcow2_root(image, scratch=folder) as root:
            status = (root.read(_STATUS) or b"").decode(errors="replace")
            releases = {path: root.read(path) or b"" for path in _RELEASES}
    except FactoryError as unreadable:
        if "refers to other files" in unreadable.message:
            raise
        say(f"what is in it is not known: {unreadable.message}")
        return _Seen(releases={})
    finally:
        remove(folder)
    if not status:
        say("what is in it is not known: it has no package database of Debian's kind")
    return _Seen(status=status, releases=releases)


def _artifact(
    recipe: Recipe,
    image: Path,
    taken: list[Input],
    seen: _Seen,
    *,
    run: Run,
    now: datetime,
    seconds: dict[str, float],
) -> Artifact:
    epoch, sums, tools = int(now.timestamp()), digests(image), {"image-factory": __version__}
    packages = contents.installed_packages(seen.status, {})
    lock = run.path / "inputs.lock"
    inputs_digest = write_lock(lock, taken)
    identifier = build_id(recipe.digest, inputs_digest)
    listing, packed = run.path / tarball.FILES, run.path / tarball.PACKAGES
    write_whole(run.path / "packages.txt", contents.packages_text(packages))
    write_whole(listing, '{"schema": "factory/files/1"}\n')
    write_whole(packed, contents.packages_json(packages))
    records = _records(
        run,
        image=image,
        recipe=recipe,
        sums=sums,
        seen=seen,
        packages=packages,
        epoch=epoch,
        identifier=identifier,
        tools=tools,
    )
    results = {path.name: path for path in (listing, packed, lock, *(records.paths if records else ()))}
    source = _tarball(
        recipe, run, sums, results, epoch=epoch, inputs_digest=inputs_digest, name=identifier, tools=tools
    )
    return Artifact(
        recipe=recipe,
        path=image,
        sha256=sums.sha256,
        sha512=sums.sha512,
        size_bytes=sums.size_bytes,
        virtual_size_bytes=qcow2.virtual_size_bytes(image),
        epoch=epoch,
        lock=lock,
        lock_sha256=inputs_digest,
        inputs_digest=inputs_digest,
        packages=packages,
        packages_list=packed,
        files_list=listing,
        tarball=source,
        tarball_sha256=sha256_file(source),
        tools=tools,
        build_id=identifier,
        built_at=now,
        seconds=seconds,
        sbom=records.sbom if records else None,
        sbom_sha256=records.sbom_sha256 if records else "",
        licences=records.licences if records else {},
        inventory=records.inventory if records else None,
        changelogs=records.changelogs if records else None,
    )


def _records(
    run: Run,
    *,
    image: Path,
    recipe: Recipe,
    sums: Digests,
    seen: _Seen,
    packages: tuple[Package, ...],
    epoch: int,
    identifier: str,
    tools: Mapping[str, str],
) -> Records | None:
    """The bill of materials, of what the image's package database names; none without one."""
    if not packages:
        return None
    about = _about(contents.installed(seen.status))
    found = Evidence(
        about=about,
        sources={one.source: Source(version=one.source_version) for one in about.values()},
        inventory=inventory_of({}, lambda path: seen.releases.get(path, b"")),
    )
    return write_records(
        run.path,
        image=image,
        name=recipe.description.name,
        sums=sums,
        epoch=epoch,
        build_id=identifier,
        tools=tools,
        packages=packages,
        files={},
        found=found,
    )


def _about(installed: Iterable[Mapping[str, str]]) -> dict[tuple[str, str], About]:
    found = {}
    for fields in installed:
        source, _, version = fields.get("Source", fields["Package"]).partition(" ")
        found[(fields["Package"], fields["Architecture"])] = About(
            source=source,
            source_version=version.strip("() ") or fields["Version"],
            maintainer=fields.get("Maintainer", ""),
        )
    return found


def _tarball(
    recipe: Recipe,
    run: Run,
    sums: Digests,
    results: Mapping[str, Path],
    *,
    epoch: int,
    inputs_digest: str,
    name: str,
    tools: Mapping[str, str],
) -> Path:
    """What the image was taken by: pins, key, lock and lists; the image itself is no part of it."""
    image = f"{recipe.description.name}.{recipe.description.arch}.qcow2"
    manifest = tarball.manifest_of(
        recipe,
        epoch=epoch,
        inputs_digest=inputs_digest,
        tools=tools,
        results={image: sums.sha256, **tarball.sums(results)},
        layers={},
        size_bytes=sums.size_bytes,
    )
    write_whole(run.path / tarball.MANIFEST, manifest.text())
    tarball.set_times(recipe.tree, epoch)
    stem = f"{recipe.description.name}-{name}"
    tar, source = run.path / f"{stem}.tar", run.path / f"{stem}-source.tar.xz"
    tarball.write_tar(
        recipe.tree, tar, name=stem, epoch=epoch, rebuild=tarball.rebuild_files(run.path, recipe, manifest)
    )
    write_whole(source, lzma.compress(tar.read_bytes(), preset=0))
    tar.unlink()
    return source
