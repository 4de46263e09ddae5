# SPDX-License-Identifier: Apache-2.0
"""A signed source tarball becomes the same image again, or a list of what differs.

In this order: the signature is verified; the tarball is unpacked where nothing in it can do harm; its tree and lock are
compared with its manifest; the recorded inputs are replayed into a build in the box, which has no other network; and
what came out is compared with what the manifest says. Everything happens on a copy below ``rebuilds/`` in the state
folder, which goes with us; what a crash leaves there, the next rebuild removes.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from factory.build import build
from factory.build import tarball as source
from factory.build.compare import Contents, Difference, differences
from factory.build.leftovers import clean_leftovers, own_mark
from factory.build.peek import Peek
from factory.build.tools import ToolsTree, replayed_tree
from factory.errors import BuildError, InputFault, InputsError, NotGood
from factory.inputs.blobs import BlobStore
from factory.inputs.lock import TOOL_ALIASES, TOOLS, Input, read_lock
from factory.inputs.replay import Replay
from factory.inputs.sources import Mirror, Source, source_named
from factory.inputs.tools import of_tools, packages_only
from factory.inputs.upstream import Upstream
from factory.model import Artifact, Recipe, RegionClient
from factory.sign.checksums import NAME as SUMS
from factory.sign.verify import GoodSignature, verify_file
from factory.system.files import remove, sha256_file, tree_digest
from factory.system.run import run as run_program
from factory.system.state import Run, State
from factory.system.unpack import unpack

Say = Callable[[str], None]
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_PEEKED = 200
_REPORT_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """What became of a rebuild.

    ``recorded`` and ``sha256`` are the image's digests, then and now; ``tarball_identical`` says whether the source
    tarball that this build made is the one that was given, too. ``differences`` may name tools of other versions
    although the image is identical.
    """

    image: str
    identical: bool
    recorded: str
    sha256: str
    tarball_identical: bool
    signed_by: str
    throw_away_key: bool
    differences: tuple[Difference, ...]
    unasked: tuple[str, ...]
    seconds: Mapping[str, float]
    kept: Path | None = None
    diffoscope: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Whose signatures count, as for ``factory verify-signature``."""

    keys: Path
    public_keys: Sequence[Path] = ()
    trusted: Path | None = None


def rebuild(
    tarball: Path,
    *,
    trust: Trust,
    state: State,
    now: datetime,
    say: Say,
    inputs: str = "",
    mirrors: Mapping[str, str] | None = None,
    image: Path | None = None,
    out: Path | None = None,
    diffoscope: bool = False,
) -> Rebuilt:
    """Make the image of a source tarball again.

    Args:
        inputs: a folder or the address of a store with the recorded inputs; by default this factory's own store.
        mirrors: by alias, mirrors to ask first; what they give must be what the lock names.
        image: the published image, to look into when the new one differs; by default the one beside the tarball.
        out: a folder in which to keep the new image and its lists.
        diffoscope: compare two images that differ with diffoscope as well.

    Raises:
        NotGood: the tarball is not signed by whom we trust, or not a source tarball.
        InputFault: a file, a folder or an alias that was named does not exist.
        InputsError: an input is not there, or not what the lock names.
        BuildError: the build failed.
    """
    if diffoscope and shutil.which("diffoscope") is None:
        raise InputFault("diffoscope is not installed", hint="install it, or leave --diffoscope out")
    if out is not None and out.exists() and not out.is_dir():
        raise InputFault(f"'{out}' is a file, and the new image needs a folder", hint="name another one with --out")
    with _scratch(state, say) as scratch:
        signatures = _verified(tarball, scratch.path, trust=trust, now=now)
        say(f"signed by {signatures[0].fingerprint}" + (", a throw-away key" if signatures[0].throw_away else ""))
        given = _unpacked(scratch.path / tarball.name, scratch.path / "source")
        expected = given.manifest.image_sha256
        say(f"{given.manifest.image}, epoch {given.manifest.epoch}, {len(given.lock)} inputs, image {expected[:16]}")
        where, instead = source_named(inputs or str(_own(state))), _mirrors(mirrors or {}, given.manifest)
        if given.manifest.description.foreign is not None:
            return _taken_again(given, where, scratch, signed=signatures[0], out=out, say=say)
        tools = _tools(given, scratch, where, keep=state, say=say)
        replay = Replay(
            lock=(one for one in given.lock if one.repository not in TOOL_ALIASES),
            keyrings={alias: path for alias, path in given.keyrings.items() if alias not in TOOL_ALIASES},
            blobs=scratch.blobs,
            sources=(where,),
            instead=instead,
            epoch=given.manifest.epoch,
        )
        run = scratch.new_run(given.manifest.image, now)
        with _logs_kept(run, out or state.path / "failed-rebuild"):
            made = build(given.recipe(run, now), run=run, state=scratch, say=say, now=now, inputs=replay, tools=tools)
        _expect_identity(given.manifest, made)
        say("comparing")
        beside = image or tarball.absolute().parent / made.path.name
        contents = _contents(beside, made, expected=expected, scratch=scratch.path, say=say)
        found = _differences(given, run, contents)
        report = None
        if diffoscope and made.sha256 != expected and beside.is_file():
            report = _diffoscope(beside, made.path, (out or Path.cwd()) / "diffoscope.txt", say)
        return Rebuilt(
            image=given.manifest.image,
            identical=all(one.what == "tool" for one in found),
            recorded=expected,
            sha256=made.sha256,
            tarball_identical=made.tarball_sha256 == sha256_file(scratch.path / tarball.name),
            signed_by=signatures[0].fingerprint,
            throw_away_key=signatures[0].throw_away,
            differences=found,
            unasked=tuple(f"{one.repository}/{one.path}" for one in replay.unasked),
            seconds=made.seconds,
            kept=_keep(run, made, out) if out else None,
            diffoscope=report,
        )


def _taken_again(
    given: _Given, where: Source, scratch: State, *, signed: GoodSignature, out: Path | None, say: Say
) -> Rebuilt:
    """A vendor's image was never built: again are the same bytes, where the inputs are kept."""
    started, store = time.monotonic(), BlobStore(scratch.blobs)
    foreign, expected = given.manifest.description.foreign, given.manifest.image_sha256
    assert foreign is not None
    entry = next((one for one in given.lock if one.path == foreign.url.rpartition("/")[2] and one.found), None)
    if entry is None:
        raise NotGood("the lock in the source tarball does not name the vendor's image")
    say("this image is a vendor's, taken as it was: looking for the same bytes")
    store.prepare()
    kept = None
    with store.incoming() as incoming:
        if not where.copy(entry, incoming):
            raise InputsError(
                f"the vendor's image is not kept in {where.place(entry)}",
                hint="name another store with --inputs; nothing else than its bytes makes this image again",
            )
        found = incoming.digests
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            kept = out
            shutil.copyfile(incoming.path, out / given.manifest.image_name)
    return Rebuilt(
        image=given.manifest.image,
        identical=found.sha256 == expected and found.sha512 == entry.sha512,
        recorded=expected,
        sha256=found.sha256,
        tarball_identical=True,  # nothing was made, so nothing of it could come out otherwise
        signed_by=signed.fingerprint,
        throw_away_key=signed.throw_away,
        differences=(),
        unasked=(),
        seconds={"inputs": round(time.monotonic() - started, 2)},
        kept=kept,
    )


def _tools(given: _Given, scratch: State, where: Source, *, keep: State, say: Say) -> ToolsTree:
    """The tools that the lock names, kept with this factory's other trees: the next rebuild finds them there."""
    if TOOLS not in given.keyrings or not packages_only(of_tools(given.lock)):
        raise NotGood(
            "the image was made with the tools of the host that built it, which its tarball does not hold",
            facts=tuple(sorted(given.manifest.tools.items())),
            hint="a factory of that version makes it again on such a host; create_appliance.sh makes a similar image",
        )
    replay = Replay(
        lock=given.lock,
        keyrings={TOOLS: given.keyrings[TOOLS]},
        blobs=scratch.blobs,
        sources=(where,),
        epoch=given.manifest.tools_epoch,
    )
    return replayed_tree(replay, given.lock, folder=keep.tools, say=say)


def _own(state: State) -> Path:
    if not state.blobs.is_dir():
        raise InputFault(
            "this factory has no recorded inputs", hint="name a folder or a store that has them with --inputs"
        )
    return state.blobs


@contextlib.contextmanager
def _scratch(state: State, say: Say) -> Iterator[State]:
    """A state folder of our own for the length of the block, by a name that tells whether we still live."""
    clean_leftovers([state.rebuilds], say)
    folder = state.rebuilds / own_mark()
    remove(folder)
    try:
        yield State(path=folder).prepare()
    finally:
        remove(folder)


def _verified(tarball: Path, scratch: Path, *, trust: Trust, now: datetime) -> tuple[GoodSignature, ...]:
    """Copy the tarball and verify the copy, so that what is unpacked is what was signed."""
    if not tarball.is_file():
        raise InputFault(f"there is no file '{tarball}'", hint="name a source tarball (*-source.tar.xz)")
    signatures = [tarball.with_name(f"{tarball.name}.asc")]
    if not signatures[0].is_file():  # a bundle that was signed from digests alone has none
        signatures = [tarball.with_name(name) for name in (SUMS, f"{SUMS}.asc")]
    if not all(path.is_file() for path in signatures):
        raise NotGood(
            f"'{tarball.name}' is not signed: there is no '{tarball.name}.asc' beside it, and no signed {SUMS}",
            hint="take the tarball from a bundle or a download directory, with its signature",
        )
    for path in (tarball, *signatures):
        shutil.copyfile(path, scratch / path.name)
    return verify_file(
        scratch / tarball.name, keys=trust.keys, public_keys=trust.public_keys, trusted=trust.trusted, now=now
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Given:
    """What an unpacked tarball holds."""

    tree: Path
    records: Path
    manifest: source.Manifest
    lock: tuple[Input, ...]
    keyrings: Mapping[str, Path]

    def recipe(self, run: Run, now: datetime) -> Recipe:
        """The recipe of the tarball, with its tree in ``run``; it knows no mirror."""
        self.tree.rename(run.tree)
        return Recipe(
            description=self.manifest.description,
            tree=run.tree,
            tree_sha256=self.manifest.tree_sha256,
            digest=self.manifest.recipe_digest,
            commit=self.manifest.commit,
            dirty=self.manifest.dirty,
            repositories=self.manifest.repositories,
            mirrors={},
            keyrings=self.keyrings,
            regions=(),
            region_client=RegionClient(),
            ntp_servers=(),
            resolved_at=now,
        )


def _unpacked(tarball: Path, folder: Path) -> _Given:
    """Unpack a verified tarball, and compare its parts with its manifest."""
    folder.mkdir()
    tree = unpack(tarball, folder, links=True)
    records = folder / ".records"
    if not (tree / source.REBUILD).is_dir() or (tree / source.REBUILD).is_symlink():
        records.mkdir()
    else:
        (tree / source.REBUILD).rename(records)
    manifest = source.read_manifest(records / source.MANIFEST)
    names = {manifest.image, manifest.arch, manifest.description.name, *(one.alias for one in manifest.repositories)}
    if not all(_NAME.fullmatch(name) for name in names) or manifest.description.name != manifest.image:
        raise NotGood("the manifest in the source tarball names an image or a repository as none is named")
    if tree_digest(tree) != manifest.tree_sha256:
        raise NotGood("the build tree in the source tarball is not the one that its manifest names")
    for name in (source.LOCK, source.FILES, source.PACKAGES):
        if not (records / name).is_file() or sha256_file(records / name) != manifest.results.get(name, ""):
            raise NotGood(f"'{name}' in the source tarball is not the one that its manifest names")
    keyrings = source.keyrings_in(records)
    if missing := [one.alias for one in manifest.repositories if one.alias not in keyrings]:
        raise NotGood(f"the source tarball has no keyring of repository '{missing[0]}'")
    wanted = {*(one.alias for one in manifest.repositories), TOOLS}
    ordered = {alias: path for alias, path in keyrings.items() if alias in wanted}
    return _Given(
        tree=tree, records=records, manifest=manifest, lock=read_lock(records / source.LOCK), keyrings=ordered
    )


@contextlib.contextmanager
def _logs_kept(run: Run, folder: Path) -> Iterator[None]:
    """The logs of a build that fails outlive the scratch folder, and its error names where they are."""
    try:
        yield
    except BuildError as failed:
        shutil.copytree(run.path / "logs", folder / "logs", dirs_exist_ok=True)
        moved = (str(run.path / "logs"), str(folder / "logs"))
        facts = tuple((name, value.replace(*moved)) for name, value in failed.facts)
        raise BuildError(failed.message, facts=facts, hint=failed.hint) from failed.__cause__


def _mirrors(given: Mapping[str, str], manifest: source.Manifest) -> dict[str, Source]:
    known = [one.alias for one in manifest.repositories]
    for alias, address in given.items():
        if alias not in known:
            raise InputFault(f"there is no repository '{alias}'", hint=f"known: {', '.join(known)}")
        if not address.startswith(("http://", "https://")):
            raise InputFault(f"'{address}' is no address of a mirror", hint="--repo ALIAS=http://...")
    upstream = Upstream()
    return {alias: Mirror(address, upstream) for alias, address in given.items()}


def _expect_identity(manifest: source.Manifest, made: Artifact) -> None:
    if made.epoch != manifest.epoch:
        raise NotGood(
            "the signed indexes in the lock are of another time than the manifest says",
            facts=(("manifest", str(manifest.epoch)), ("lock", str(made.epoch))),
        )


def _contents(beside: Path, made: Artifact, *, expected: str, scratch: Path, say: Say) -> Contents:
    """How to read files of both images; of neither when they are the same, or the published one is not at hand."""
    if made.sha256 == expected or not beside.is_file():
        return lambda _: None
    if sha256_file(beside) != expected:
        say(f"'{beside}' is not the image of this tarball, and is not looked into")
        return lambda _: None
    folders = scratch / "recorded", scratch / "made"
    for folder in folders:
        folder.mkdir()
    old, new = Peek(beside, folders[0]), Peek(made.path, folders[1])
    left = [_PEEKED]

    def both(path: str) -> tuple[bytes, bytes] | None:
        left[0] -= 1
        if left[0] < 0:
            return None
        before, after = old.read(path), new.read(path)
        return None if before is None or after is None else (before, after)

    return both


def _differences(given: _Given, run: Run, contents: Contents) -> tuple[Difference, ...]:
    names = (source.FILES, source.PACKAGES, source.LOCK)
    return differences(
        given.manifest,
        source.read_manifest(run.path / source.MANIFEST),
        old={name: (given.records / name).read_bytes() for name in names},
        new={name: (run.path / name).read_bytes() for name in names},
        contents=contents,
    )


def _diffoscope(old: Path, new: Path, report: Path, say: Say) -> Path:
    say("comparing with diffoscope, which takes its time")
    report.parent.mkdir(parents=True, exist_ok=True)
    run_program(["diffoscope", "--text", report, old, new], check=False, timeout_s=7200)
    if report.is_file() and report.stat().st_size > _REPORT_BYTES:
        # of disks whose files it cannot read it prints every byte, whatever its own limits
        os.truncate(report, _REPORT_BYTES)
    return report


def _keep(run: Run, made: Artifact, out: Path) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    lists = (made.lock, made.files_list, made.packages_list, made.sbom, made.inventory, made.changelogs)
    for path in (made.path, made.tarball, *filter(None, lists), run.path / source.MANIFEST):
        shutil.move(path, out / path.name)
    shutil.copytree(run.path / "logs", out / "logs", dirs_exist_ok=True)
    return out
