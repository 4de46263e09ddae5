# SPDX-License-Identifier: Apache-2.0
"""The canaries of a run, one for each target that has a tenant for it, and the rollback of what does not stand.

Killed anywhere, the next call goes on: each verdict is kept before anything is done about it, and before each judgement
the store is asked whether the image is the latest at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from functools import partial

from factory.canary import STAGE, boot_by_name
from factory.errors import StoreError
from factory.installation import Installation
from factory.model import Canaries, Canary, Publication, Release, Role, Site, StoredImage, Tenant
from factory.rotate import plan_rollback, reconcile, rollback
from factory.store import open_store
from factory.store.protocol import ImageStore, Say
from factory.system.state import Run

Clock = Callable[[], datetime]


def canary_of(release: Release, site: Site) -> Tenant | None:
    """The tenant for a release's canary, as the site file has it now; None where it was released without one."""
    where = (release.target.cloud, release.target.region_name)
    found = [one.canary for one in site.targets if (one.cloud, one.region_name) == where]
    return found[0] if found and release.target.canary else None


def wanted(publication: Publication, site: Site) -> bool:
    """Whether any release of a run is to be started by its name."""
    return any(canary_of(release, site) for release in publication.releases)


def judge_all(
    publication: Publication, *, run: Run, here: Installation, now: Clock, say: Say
) -> tuple[Canaries, tuple[StoredImage, ...]]:
    """Judge every release that has a tenant, and take back what is red.

    Returns:
        The canaries, and the images of lines that were rolled back as they are now.

    Raises:
        SandboxError: a cloud started no server, for a reason that is not the image's.
        StoreError: a store is away; what is half done, the next call finishes.
    """
    found: list[Canary] = []
    images: tuple[StoredImage, ...] = ()
    for number, release in enumerate(publication.releases):
        if (tenant := canary_of(release, here.site)) is None:
            continue
        kept, folder = f"{STAGE}-{number}", run.path / STAGE
        boot = partial(boot_by_name, release, tenant, workdir=folder, console_log=run.log(kept), say=say)
        with open_store(release.target, state=here.state, say=say) as store:
            one = settle(release, store=store, run=run, kept=kept, boot=partial(boot, now=now()), now=now(), say=say)
            images += store.list_line(one.line) if one.rolled_back else ()
            found.append(one)
    return Canaries(canaries=tuple(found)), images


def settle(
    release: Release, *, store: ImageStore, run: Run, kept: str, boot: Callable[[], Canary], now: datetime, say: Say
) -> Canary:
    """Judge one release by ``boot``, unless that was done before a crash, and take it back when it is red.

    An image that is not the latest is let alone: it was withdrawn, by us before a crash or by hand, or replaced.
    """
    line = release.bundle.artifact.recipe.description.line
    known = run.read(kept, Canary) if run.has(kept) else None
    reconcile(line, store=store, now=now, say=say)
    image = store.get(release.image_id)
    if image is None or image.role != Role.LATEST:
        return _gone(release, known, image, now=now)
    if known is None:
        known = boot()
        run.write(kept, known)
    for fault in known.faults:
        say(f"ALARM: {line}: {fault}")
    return known if known.green else _take_back(known, store, now=now, say=say)


def _gone(release: Release, known: Canary | None, image: StoredImage | None, *, now: datetime) -> Canary:
    withdrawn = image is None or image.role == Role.WITHDRAWN
    found = known or Canary(
        target=release.target,
        line=release.bundle.artifact.recipe.description.line,
        image_id=release.image_id,
        tenant=release.target.canary.cloud if release.target.canary else "",
        faults=(f"image {release.image_id} was withdrawn before its canary",) if withdrawn else (),
        boot_s=0.0,
        judged_at=now,
    )
    return replace(found, rolled_back=withdrawn, note="" if withdrawn else "another image is the latest already")


def _take_back(judged: Canary, store: ImageStore, *, now: datetime, say: Say) -> Canary:
    """Make the image before the latest again, if there is one."""
    try:
        plan_rollback(store.list_line(judged.line), line=judged.line)
    except StoreError as none:
        say(f"ALARM: {judged.line}: not rolled back: {none.message}")
        return replace(judged, note=f"not rolled back: {none.message}")
    rollback(judged.line, store=store, target=judged.target, now=now, say=say)
    say(f"{judged.line}: rolled back")
    return replace(judged, rolled_back=True)


def taken_back(canary: Canary) -> str:
    """What became of a red canary, in one line."""
    first = canary.faults[0].splitlines()[0]
    return f"{first}; {f'{canary.line}_latest is the image before again' if canary.rolled_back else canary.note}"
