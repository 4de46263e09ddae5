# SPDX-License-Identifier: Apache-2.0
"""Keep runs, blobs and logs within bounds.

What stays whole: an image's newest runs, its newest built one, and those whose image is ``_latest`` or ``_prev``. An
older run is thinned: its records, logs and report stay, its tree and images go. Much older runs go altogether. A blob
stays while a whole run's ``inputs.lock`` names it, and for a while after it was recorded; a tools tree stays while a
whole run was built with it, and for a while after it was used; a kept root tree for a while after it was used, while it
is one of the newest of its image.

The plan is made from a listing and nothing else. A run is taken away under its image's lock, by one rename; what a
crash leaves of that is removed by the next collection.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from factory.errors import FactoryError, LineHeld
from factory.inputs.lock import read_lock
from factory.inputs.roots import surplus
from factory.model import Artifact, Publication, Rotations, utc
from factory.system.files import free_bytes, remove
from factory.system.lock import exclusive
from factory.system.state import Run, State

_GONE = ".gone-"
_KEPT_NAMES = {"logs", "inputs.lock"}
_KEPT_SUFFIXES = {".json", ".html"}
_LINKS = "by-sha256"
_TEMPORARY_DAYS = 1
_GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much stays: runs are counted per image, newest first."""

    whole_runs: int = 3
    recorded_runs: int = 90
    blob_days: int = 14


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFolder:
    """A run as the collector sees it: what it made, what it needs, what taking it away would free."""

    run: Run
    built: bool = False
    image_ids: frozenset[str] = frozenset()
    current_ids: frozenset[str] = frozenset()
    blobs: frozenset[str] | None = frozenset()
    tools: str = ""
    bulk_bytes: int = 0
    rest_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """A recorded file, or a temporary one that was to become it."""

    path: Path
    size_bytes: int
    changed_at: datetime

    @property
    def temporary(self) -> bool:
        return self.path.name.startswith(".")


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What is in the state folder.

    ``trees`` are of tools and ``roots`` of images, with what crashes left of making them; newer roots made ``surplus``.
    """

    runs: tuple[RunFolder, ...]
    blobs: tuple[Blob, ...]
    trees: tuple[Blob, ...] = ()
    roots: tuple[Blob, ...] = ()
    surplus: frozenset[Path] = frozenset()
    gone: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """One thing to take away: a run's bulk, a whole run, a blob, or what an earlier collection left."""

    kind: str
    path: Path
    why: str
    size_bytes: int = 0
    image: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What was (or, in a dry run, would be) removed, and what was left alone although it could go."""

    removals: tuple[tuple[Path, str], ...]
    skipped: tuple[tuple[Path, str], ...]
    freed_bytes: int


def collect(
    state: State,
    *,
    now: datetime,
    dry_run: bool = False,
    limits: Limits | None = None,
    referenced: frozenset[str] = frozenset(),
) -> Collected:
    """Take away what nothing needs any more.

    Args:
        referenced: ids of runs, or of images in a store, to keep whole whatever their age.
    """
    return _carry_out(
        plan_gc(look(state), now=now, limits=limits or Limits(), referenced=referenced), state, dry_run=dry_run
    )


def collect_blobs(state: State, *, now: datetime, dry_run: bool = False, limits: Limits | None = None) -> Collected:
    """Take away recorded inputs that no run names which is whole still; runs stay as they are."""
    listing = look(state)
    whole = [one for one in listing.runs if one.bulk_bytes]
    return _carry_out(tuple(_blobs(listing, whole, now, limits or Limits())), state, dry_run=dry_run)


def _carry_out(plan: tuple[Removal, ...], state: State, *, dry_run: bool) -> Collected:
    skipped = () if dry_run else _apply(plan, state)
    left = {removal.path for removal, _ in skipped}
    done = [removal for removal in plan if removal.path not in left]
    return Collected(
        removals=tuple((one.path, one.why) for one in done),
        skipped=tuple((one.path, why) for one, why in skipped),
        freed_bytes=sum(one.size_bytes for one in done),
    )


def expect_space(state: State, needed_bytes: int) -> None:
    """Raise FactoryError unless this much can still be written below the state folder."""
    free = free_bytes(state.path)
    if free < needed_bytes:
        raise FactoryError(
            f"{(needed_bytes - free) / _GIB:.1f} GiB of free space are missing",
            facts=(
                ("where", str(state.path)),
                ("free", f"{free / _GIB:.1f} GiB"),
                ("needed", f"{needed_bytes / _GIB:.1f} GiB"),
            ),
            hint="'factory gc --dry-run' shows what can go, 'factory gc' removes it",
        )


# -- deciding ---------------------------------------------------------------------------------------------------------


def plan_gc(
    listing: Listing, *, now: datetime, limits: Limits, referenced: frozenset[str] = frozenset()
) -> tuple[Removal, ...]:
    """What goes, and why."""
    current = frozenset().union(*(one.current_ids for one in listing.runs)) | referenced
    removals = [Removal(kind="gone", path=path, why="left by an earlier collection") for path in listing.gone]
    whole: list[RunFolder] = []
    for image in sorted({one.run.image for one in listing.runs}):
        runs = sorted((one for one in listing.runs if one.run.image == image), key=lambda one: one.run.id, reverse=True)
        kept = [one for number, one in enumerate(runs) if _stays_whole(one, number, runs, limits, current)]
        whole += kept
        removals += (_run_removal(one, runs.index(one), limits) for one in runs if one not in kept)
    bulk = (one for one in removals if one.size_bytes or one.kind != "bulk")
    return (
        *bulk,
        *_blobs(listing, whole, now, limits),
        *_trees(listing, whole, now, limits),
        *_roots(listing, now, limits),
    )


def _stays_whole(one: RunFolder, number: int, runs: list[RunFolder], limits: Limits, current: frozenset[str]) -> bool:
    newest_built = next((other for other in runs if other.built), None)
    return number < max(1, limits.whole_runs) or one == newest_built or bool(current & {one.run.id, *one.image_ids})


def _run_removal(one: RunFolder, number: int, limits: Limits) -> Removal:
    if number >= limits.recorded_runs:
        why = f"older than the last {limits.recorded_runs} runs of {one.run.image}"
        size = one.bulk_bytes + one.rest_bytes
        return Removal(kind="run", path=one.run.path, why=why, size_bytes=size, image=one.run.image)
    why = f"tree and images of a run older than the last {limits.whole_runs}; its records and logs stay"
    return Removal(kind="bulk", path=one.run.path, why=why, size_bytes=one.bulk_bytes, image=one.run.image)


def _blobs(listing: Listing, whole: list[RunFolder], now: datetime, limits: Limits) -> Iterator[Removal]:
    needed: set[str] = set()
    readable = all(one.blobs is not None for one in whole)
    for one in whole:
        needed |= one.blobs or frozenset()
    for blob in listing.blobs:
        days = _TEMPORARY_DAYS if blob.temporary else limits.blob_days
        if now - blob.changed_at <= timedelta(days=days):
            continue
        if blob.temporary:
            yield Removal(kind="blob", path=blob.path, why="half a download", size_bytes=blob.size_bytes)
        elif readable and blob.path.name not in needed:
            why = f"no kept run's inputs name it, and it is older than {days} days"
            yield Removal(kind="blob", path=blob.path, why=why, size_bytes=blob.size_bytes)


def _trees(listing: Listing, whole: list[RunFolder], now: datetime, limits: Limits) -> Iterator[Removal]:
    needed = {one.tools for one in whole}
    readable = all(one.blobs is not None for one in whole)
    for tree in listing.trees:
        days = _TEMPORARY_DAYS if tree.temporary else limits.blob_days
        if now - tree.changed_at <= timedelta(days=days):
            continue
        if tree.temporary or (readable and tree.path.name not in needed):
            why = "half made" if tree.temporary else f"no kept run was built with it, for {days} days"
            yield Removal(kind="tools", path=tree.path, why=f"tools tree: {why}", size_bytes=tree.size_bytes)


def _roots(listing: Listing, now: datetime, limits: Limits) -> Iterator[Removal]:
    for root in listing.roots:
        days = _TEMPORARY_DAYS if root.temporary else limits.blob_days
        why = "half made" if root.temporary else f"no build started from it for {days} days"
        if now - root.changed_at <= timedelta(days=days):
            if root.path not in listing.surplus:
                continue
            why = "newer ones of its image took its place"
        yield Removal(kind="root", path=root.path, why=f"kept root tree: {why}", size_bytes=root.size_bytes)


# -- looking ----------------------------------------------------------------------------------------------------------


def look(state: State) -> Listing:
    """List the state folder."""
    found = sorted(state.runs.glob("*-*-*")) if state.runs.is_dir() else []
    runs = [Run(path=path) for path in found if path.is_dir() and not path.name.startswith(".")]
    newest = _newest_rotated(runs)
    return Listing(
        runs=tuple(_run_folder(run, current=run.id in newest) for run in runs),
        blobs=tuple(_blob_files(state.blobs)),
        trees=tuple(_folders(state.tools)),
        roots=tuple(_folders(state.roots)),
        surplus=frozenset(surplus(state.roots)),
        gone=tuple(sorted(state.runs.glob(f"{_GONE}*"))) if state.runs.is_dir() else (),
    )


def _newest_rotated(runs: Iterable[Run]) -> set[str]:
    """The newest run of each image that rotated: what it calls latest and prev is so until the next one."""
    newest: dict[str, str] = {}
    for run in runs:
        if run.has("rotate"):
            newest[run.image] = max(run.id, newest.get(run.image, ""))
    return set(newest.values())


def _run_folder(run: Run, *, current: bool) -> RunFolder:
    bulk, rest = _sizes(run.path)
    ids, current_ids, blobs = frozenset[str](), frozenset[str](), None if run.has("build") else frozenset[str]()
    tools = ""
    with contextlib.suppress(FactoryError):
        if run.has("publish"):
            ids = frozenset(one.image_id for one in run.read("publish", Publication).releases)
        if current:
            rotations = run.read("rotate", Rotations).rotations
            current_ids = frozenset(name for one in rotations for name in (one.latest, one.prev) if name)
    with contextlib.suppress(FactoryError, OSError, json.JSONDecodeError):
        if run.has("build"):
            artifact = run.read("build", Artifact)
            tools = artifact.tools.get("tools-tree", "")
            blobs = frozenset(one.sha512 for one in read_lock(artifact.lock) if one.sha512)
    return RunFolder(
        run=run,
        built=run.has("build"),
        image_ids=ids,
        current_ids=current_ids,
        blobs=blobs,
        tools=tools,
        bulk_bytes=bulk,
        rest_bytes=rest,
    )


def _is_bulk(path: Path) -> bool:
    return path.name not in _KEPT_NAMES and path.suffix not in _KEPT_SUFFIXES


def _sizes(folder: Path) -> tuple[int, int]:
    """Bytes that removing the bulk, and then the rest, would free: a file counts when its last link goes."""
    freed = {True: 0, False: 0}
    seen: dict[int, int] = {}
    for top in folder.iterdir():
        for path in (top, *(top.rglob("*") if top.is_dir() and not top.is_symlink() else ())):
            status = path.lstat()
            seen[status.st_ino] = seen.get(status.st_ino, 0) + 1
            if path.is_dir() or seen[status.st_ino] == status.st_nlink:
                freed[_is_bulk(top)] += status.st_blocks * 512
    return freed[True], freed[False]


def _blob_files(folder: Path) -> Iterator[Blob]:
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.is_symlink():
            status = path.stat()
            yield Blob(path=path, size_bytes=status.st_blocks * 512, changed_at=utc(status.st_mtime))


def _folders(folder: Path) -> Iterator[Blob]:
    """Trees and what is half one; used last when their folder was touched last."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            size_bytes = sum(one.lstat().st_blocks * 512 for one in path.rglob("*"))
            yield Blob(path=path, size_bytes=size_bytes, changed_at=utc(path.stat().st_mtime))


# -- acting -----------------------------------------------------------------------------------------------------------


def _apply(plan: tuple[Removal, ...], state: State) -> tuple[tuple[Removal, str], ...]:
    skipped: list[tuple[Removal, str]] = []
    for one in plan:
        if one.kind == "gone":
            remove(one.path)
        elif one.kind in {"tools", "root"}:
            aside = one.path.with_name(f".{one.path.name.lstrip('.')}.gone")
            remove(aside)
            one.path.rename(aside)  # never half a tree under its name
            remove(aside)
        elif one.kind in {"bulk", "run"}:
            try:
                with exclusive(_lock(state, one.image), what=f"image {one.image}"):
                    doomed = _put_aside(one, state)
            except LineHeld:
                skipped.append((one, f"a factory works on {one.image}"))
                continue
            for path in doomed:
                remove(path)
    return (*skipped, *_drop_blobs([one for one in plan if one.kind == "blob"], state))


def _lock(state: State, image: str) -> Path:
    return state.locks / f"{image}.lock"


def _put_aside(one: Removal, state: State) -> list[Path]:
    """Rename what goes, so that the run is whole, or thin, or not there, but never half of it."""
    tops = [one.path] if one.kind == "run" else [top for top in one.path.iterdir() if _is_bulk(top)]
    moved = []
    for top in tops:
        aside = state.runs / f"{_GONE}{one.path.name}-{top.name}"
        remove(aside)
        top.rename(aside)
        moved.append(aside)
    return moved


def _drop_blobs(blobs: list[Removal], state: State) -> list[tuple[Removal, str]]:
    """Remove blobs while no known image is being built: a build may count on any blob until its lock is written."""
    if not blobs:
        return []
    images = {path.stem for path in state.locks.glob("*.lock")} | {Run(path=path).image for path in _run_paths(state)}
    with contextlib.ExitStack() as held:
        try:
            for image in sorted(images):
                held.enter_context(exclusive(_lock(state, image), what=f"image {image}"))
        except LineHeld:
            return [(one, "a build is under way") for one in blobs]
        names = {one.path.name for one in blobs}
        links = state.blobs / _LINKS
        for link in links.iterdir() if links.is_dir() else ():
            if link.is_symlink() and link.readlink().name in names:
                link.unlink()
        for one in blobs:
            one.path.unlink(missing_ok=True)
    return []


def _run_paths(state: State) -> list[Path]:
    return [path for path in state.runs.glob("*-*-*") if path.is_dir() and not path.name.startswith(".")]
