# SPDX-License-Identifier: Apache-2.0
"""Build: a recipe becomes an image, and everything that tells what is in it.

One function is the table of contents. The builder runs in a box whose only peer is the inputs server; then the tail
checks what must not be in an image, writes the file system anew so that its bytes follow from its files, and
compresses once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path

from factory import __version__
from factory.build import contents, disk, filesystem, honesty, kept, qcow2, tarball
from factory.build.attended import INPUTS_PORT
from factory.build.box import ROOT, TARGET, Box, available_memory_bytes, box, memory_for_target
from factory.build.dib import dib_build
from factory.build.evidence import Evidence, evidence_of, following
from factory.build.failure import full
from factory.build.foreign import take
from factory.build.halves import halves
from factory.build.identity import Identity, build_id, identity
from factory.build.kiwi import KIWI_TARGET, ROOT_TREE, Kiwi, prepare_command
from factory.build.layers import layers
from factory.build.leftovers import clean_leftovers
from factory.build.records import package_files, write_records
from factory.build.repository_keys import expect_keys_live
from factory.build.tidy import expect_tidy
from factory.build.tools import ToolsTree, tools_tree, versions
from factory.errors import BuildError, CommandFailed
from factory.inputs.answers import Inputs
from factory.inputs.lock import write_lock
from factory.inputs.recorder import Recorder, origins_of
from factory.inputs.server import serve
from factory.inputs.signers import Signers
from factory.inputs.upstream import Upstream
from factory.model import Artifact, Package, Recipe
from factory.system.files import digests, sha256_file, write_whole
from factory.system.namespaces import network_namespace
from factory.system.secrets import Login
from factory.system.state import Run, State

Say = Callable[[str], None]
_GIB = 1 << 30
_DISK = TARGET / "disk.raw"


def build(
    recipe: Recipe,
    *,
    run: Run,
    state: State,
    say: Say,
    now: datetime,
    logins: Mapping[str, Login] | None = None,
    inputs: Inputs | None = None,
    tools: ToolsTree | None = None,
    fresh: bool = False,
) -> Artifact:
    """Build ``recipe`` in ``run``.

    Args:
        logins: credentials by a mirror's address; they stay in the inputs server, outside the box.
        inputs: what the builder is given; without it, the recipe's mirrors are read and recorded.
        tools: what it builds with; without it, the tools that the mirror has now.
        fresh: install the packages although an earlier build's root tree with them is kept. What is built from
            ``inputs`` always does: whoever makes an image again wants to see all of it made.

    Raises:
        BuildError: names the package, command or space at fault and the log.
        InputsError: a mirror is away, or its signature is not good.
    """
    if recipe.description.foreign is not None:
        return take(recipe, run=run, state=state, say=say, now=now, logins=logins)
    clean_leftovers([state.runs, *state.runs.glob("*")], say)
    clock = _Clock()
    recorder = inputs or Recorder(
        origins=origins_of(recipe),
        blobs=state.blobs,
        now=now,
        upstream=Upstream(logins=logins),
        signers=Signers(state.signers),
    )
    with clock.measures("indexes"):
        recorder.read_indexes(recipe.repositories)
    with clock.measures("tools"):
        tree = tools or tools_tree(recipe, state=state, now=now, logins=logins, say=say)
    marks = identity(recipe.description.name, recorder.epoch)
    tarball.set_times(recipe.tree, marks.epoch)
    memory_bytes = memory_for_target(available_memory_bytes(), recipe.description.disk.min_gib)
    say(f"building in {'memory' if memory_bytes else 'the run folder'}, epoch {marks.epoch}")
    with (
        network_namespace() as network,
        serve(network.listen("127.0.0.1", INPUTS_PORT), recorder),
        box(
            root=tree.path,
            description=recipe.tree,
            folder=run.path,
            network=network,
            memory_bytes=memory_bytes,
            log=run.log("box"),
        ) as place,
    ):
        if recipe.description.builder == "diskimage-builder":
            with clock.measures("diskimage-builder"):
                made = dib_build(recipe, place, identity=marks, recorder=recorder, log=run.log("build"), say=say)
        else:
            kiwi = Kiwi(recipe=recipe, box=place, identity=marks, inputs=recorder, log=run.log("build"), say=say)
            with clock.measures("packages"):
                afterwards = _packages(kiwi, tree, keep=None if fresh or inputs else state.roots)
            with clock.measures("kiwi"):
                made = kiwi.make_disk(afterwards)
        image = run.path / f"{recipe.description.name}.{recipe.description.arch}.qcow2"
        with _space_is_named(recipe, run):
            found = _tail(recipe, place, made, marks, recorder, image=image, run=run, clock=clock, say=say)
        with clock.measures("records"):
            return _artifact(recipe, recorder, found, place, tree, image=image, run=run, now=now, seconds=clock.seconds)


def _packages(kiwi: Kiwi, tools: ToolsTree, *, keep: Path | None) -> str | None:
    """Install the packages, or take them from a root tree below ``keep``; returns the description of what is left."""
    recipe = kiwi.recipe
    parts = halves(recipe.tree)
    if parts is None:
        return None
    key = kept.key_of(
        tools=tools.digest,
        epoch=kiwi.identity.epoch,
        command=prepare_command(recipe),
        description=parts.packages,
        indexes=kiwi.inputs.inputs,
    )
    shelf = kept.Shelf(folder=keep, key=key, image=recipe.description.name) if keep else None
    kept.root_tree(
        shelf,
        kiwi.box,
        ROOT_TREE,
        inputs=kiwi.inputs,
        install=lambda: kiwi.install_packages(parts.packages),
        say=kiwi.say,
    )
    return parts.afterwards


@dataclass(slots=True)
class _Clock:
    """How long each step took."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measures(self, step: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[step] = round(time.monotonic() - started, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What the tail saw in the image."""

    dpkg_status: str
    files: str
    epoch: int
    layers: Mapping[str, str]
    evidence: Evidence


def _tail(
    recipe: Recipe,
    place: Box,
    made: Path,
    marks: Identity,
    inputs: Inputs,
    *,
    image: Path,
    run: Run,
    clock: _Clock,
    say: Say,
) -> _Found:
    """From the builder's raw disk to the qcow2: check, write the file system anew, compress.

    A thread of ours hashes what programs of others write and compress meanwhile.
    """
    say("checking and rewriting the file system")
    size_bytes = recipe.description.disk.min_gib * _GIB
    _expect_size(place.seen(made).stat().st_size, size_bytes)
    partition = disk.root_partition(disk.read_head(place.seen(made), disk.SECTOR_BYTES))
    head = disk.read_head(place.seen(made), partition.offset_bytes)
    disk.expect_embedded_grub(head)
    with ThreadPoolExecutor(max_workers=1) as beside:
        with clock.measures("filesystem"):
            device = filesystem.attach(place, made, partition)
            like = filesystem.read_format(place, device)
            filesystem.expect_identity(like, marks)
            filesystem.mount_root(place, device)
            place.run(["rm", "-rf", KIWI_TARGET / "build"])
            filesystem.note_disk_id(place, marks)
            filesystem.clamp_times(place, marks.epoch)
            tree = contents.Tree(place.seen(ROOT))
            expect_tidy(tree)
            status = tree.read("/var/lib/dpkg/status").decode(errors="replace")
            honest = beside.submit(_expect_locked, recipe, status, tree, inputs)
            trusting = beside.submit(expect_keys_live, recipe, following(tree), epoch=marks.epoch)
            files = beside.submit(_listed, place, tree)
            told = beside.submit(evidence_of, status, tree)
            place.run(["truncate", f"--size={size_bytes}", _DISK])
            with place.seen(_DISK).open("r+b") as file:
                file.write(disk.with_disk_id(head, marks.disk_id))
            filesystem.write_filesystem(place, _DISK, partition, like, marks)
            parts = beside.submit(layers, place.seen(_DISK), partition)
        honest.result()
        trusting.result()
        say("compressing")
        with clock.measures("qcow2"):
            qcow2.compress(place, _DISK, image, log=run.log("qcow2"))
        with clock.measures("digests"):
            return _Found(
                dpkg_status=status,
                files=files.result(),
                epoch=marks.epoch,
                layers=parts.result(),
                evidence=told.result(),
            )


def _listed(place: Box, tree: contents.Tree) -> str:
    """The list of files, which the box's own sha256sum reads; it is as quick as ours, and beside us."""
    argv: list[str | Path] = ["find", ROOT, "-xdev", "-type", "f", "-exec", "sha256sum", "--zero", "--", "{}", "+"]
    return contents.files_list(tree, contents.told_sums(place.run(argv).stdout, ROOT))


def _expect_locked(recipe: Recipe, status: str, tree: contents.Tree, inputs: Inputs) -> None:
    honesty.expect_locked(
        recipe.description.name,
        honesty.installed(status, tree.read),
        tree=recipe.tree,
        inputs=inputs,
        repositories=tuple(one.alias for one in recipe.repositories),
    )


def _expect_size(found: int, wanted: int) -> None:
    if found != wanted:
        raise BuildError(
            f"the builder made a disk of {found / _GIB:.2f} GiB, the description wants {wanted / _GIB:.0f} GiB",
            hint=f'write <size unit="G">{wanted // _GIB}</size> into config.xml, or change disk.min_gib in image.toml',
        )


@contextmanager
def _space_is_named(recipe: Recipe, run: Run) -> Iterator[None]:
    """A command of the tail that fails for want of space says so."""
    try:
        yield
    except (CommandFailed, OSError) as failed:
        raise full(recipe.description.name, failed, place=run.path) from failed


def _artifact(
    recipe: Recipe,
    recorder: Inputs,
    found: _Found,
    place: Box,
    tree: ToolsTree,
    *,
    image: Path,
    run: Run,
    now: datetime,
    seconds: dict[str, float],
) -> Artifact:
    origins = contents.package_origins((entry.repository, entry.path) for entry in recorder.inputs)
    packages = contents.installed_packages(found.dpkg_status, origins)
    probe = recipe.description.budgets.probe_package
    if probe:
        recorder.fetch_with_dependencies(probe, frozenset(package.name for package in packages))
    lock = run.path / "inputs.lock"
    inputs_digest = write_lock(lock, (*recorder.inputs, *tree.inputs))
    lists = _write_lists(run, packages, found.files)
    sums, tools = digests(image), {"image-factory": __version__, **versions(place, tree, recipe.description.builder)}
    records = write_records(
        run.path,
        image=image,
        name=recipe.description.name,
        sums=sums,
        epoch=found.epoch,
        build_id=build_id(recipe.digest, inputs_digest),
        tools=tools,
        packages=packages,
        files=package_files(packages, recorder.inputs, recorder.store, recipe.tree),
        found=found.evidence,
        pack=partial(tarball.packed, place),
    )
    results = {path.name: path for path in (*lists, lock, *records.paths)}
    manifest = tarball.manifest_of(
        recipe,
        epoch=found.epoch,
        inputs_digest=inputs_digest,
        tools=tools,
        results={image.name: sums.sha256, **tarball.sums(results)},
        layers=found.layers,
        size_bytes=sums.size_bytes,
        tools_epoch=tree.epoch,
    )
    write_whole(run.path / tarball.MANIFEST, manifest.text())
    name = f"{recipe.description.name}-{build_id(recipe.digest, inputs_digest)}"
    source = run.path / f"{name}-source.tar.xz"
    rebuild = tarball.rebuild_files(run.path, recipe, manifest)
    tar = place.out / f"{name}.tar"
    tarball.write_tar(recipe.tree, tar, name=name, epoch=found.epoch, rebuild=rebuild)
    tarball.compress(place, tar, source)
    return Artifact(
        recipe=recipe,
        path=image,
        sha256=sums.sha256,
        sha512=sums.sha512,
        size_bytes=sums.size_bytes,
        virtual_size_bytes=qcow2.virtual_size_bytes(image),
        epoch=found.epoch,
        lock=lock,
        lock_sha256=inputs_digest,
        inputs_digest=inputs_digest,
        packages=packages,
        packages_list=lists[1],
        files_list=lists[0],
        tarball=source,
        tarball_sha256=sha256_file(source),
        tools=tools,
        build_id=build_id(recipe.digest, inputs_digest),
        built_at=now,
        seconds=seconds,
        sbom=records.sbom,
        sbom_sha256=records.sbom_sha256,
        licences=records.licences,
        inventory=records.inventory,
        changelogs=records.changelogs,
    )


def _write_lists(run: Run, packages: tuple[Package, ...], files: str) -> tuple[Path, Path]:
    """Write the lists beside the image; returns those that programs read: of files, and of packages."""
    write_whole(run.path / "packages.txt", contents.packages_text(packages))
    listing, packed = run.path / tarball.FILES, run.path / tarball.PACKAGES
    write_whole(listing, files)
    write_whole(packed, contents.packages_json(packages))
    return listing, packed
