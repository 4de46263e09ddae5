# SPDX-License-Identifier: Apache-2.0
"""The promises of an image's line, on every target: what the stores, the runs and the ledger say together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from factory.canary import stands
from factory.errors import FactoryError, LedgerError
from factory.installation import Installation
from factory.ledger import Ledger
from factory.model import Artifact, Description, Role, Target
from factory.policy import security_changes
from factory.promises import SOON, Given, Promise, watch
from factory.store import open_store
from factory.store.protocol import Say

_RUNS = 120
"""How many recorded runs are asked for ids that were promised."""


def promises_of(
    description: Description,
    *,
    here: Installation,
    ledger: Ledger | None,
    now: datetime,
    say: Say,
    ahead: timedelta = SOON,
) -> tuple[Promise, ...] | None:
    """What is, or soon will be, broken of what the line promises; None when no target could be asked.

    The embedded cloud is not started for this. A target that is away is said; the others are still looked at.
    """
    try:
        waiting = unpublished_since(description.name, here=here)
    except FactoryError as damaged:
        say(f"{description.line}: whether a security fix waits is not known: {damaged.message}")
        waiting = None
    given = promised(description.name, ledger)
    found: list[Promise] = []
    asked = False
    for target in here.site.targets:
        if not _answers(target, here):
            say(f"{description.line}: the embedded cloud does not run; its promises are not looked at")
            continue
        try:
            with open_store(target, state=here.state, say=say) as store:
                images = store.list_line(description.line)
                own = [one for owner, one in given if owner == store.project_id]
        except FactoryError as away:
            say(f"{description.line}: promises in '{target.cloud}' are not looked at: {away.message}")
            continue
        asked = True
        found += watch(description.line, images, now=now, ahead=ahead, given=own, unpublished_since=waiting)
    return tuple(dict.fromkeys(found)) if asked else None


def unpublished_since(image: str, *, here: Installation) -> datetime | None:
    """Since when there is a build with a security fix that the newest published image lacks."""
    waiting: list[Artifact] = []
    for run in here.state.runs_of(image):
        if stands(run):
            before = run.read("build", Artifact).packages
            late = [one for one in waiting if security_changes(before, one.packages, one.recipe.repositories)]
            return min((one.built_at for one in late), default=None)
        if run.has("build"):
            waiting.append(run.read("build", Artifact))
    return None


def promised(image: str, ledger: Ledger | None) -> tuple[tuple[str, Given], ...]:
    """Every id that the ledger knows to have been published, with its owner; as it was seen last."""
    if ledger is None:
        return ()
    try:
        runs = ledger.runs(image, _RUNS)
    except LedgerError:
        return ()
    found: dict[str, tuple[str, Given]] = {}
    for run in runs:
        for owner, given in _given(run.detail.get("rotate", {}).get("images", [])):
            found.setdefault(given.image_id, (owner, given))
    return tuple(found.values())


def _given(images: Sequence[dict[str, object]]) -> Iterator[tuple[str, Given]]:
    for one in images:
        if one.get("uuid_validity") and one.get("role") != Role.CANDIDATE:
            given = Given(
                image_id=str(one["id"]),
                name=str(one["dated_name"]),
                uuid_validity=str(one["uuid_validity"]),
                generation=int(str(one.get("generation", 0))),
            )
            yield str(one.get("owner", "")), given


def _answers(target: Target, here: Installation) -> bool:
    if target.cloud != "embedded":
        return True
    from factory.cloud import status

    return bool(status(here.state.cloud)["running"])
