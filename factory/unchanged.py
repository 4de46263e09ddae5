# SPDX-License-Identifier: Apache-2.0
"""Whether a night has anything to do: what an earlier run was made from and for, against what there is now.

Compared are, in this order and until something differs: the recipe (description, build tree, site and versions that
shape the image), where it is published and who signs it, and what the mirrors have
(:mod:`factory.inputs.freshness`). In whatever is compared, doubt means that something changed.
"""

from __future__ import annotations

from datetime import datetime

from factory.inputs.freshness import Comparison, compare
from factory.inputs.recorder import Recorder, origins_of
from factory.inputs.upstream import Upstream
from factory.installation import Installation
from factory.model import Artifact, Bundle, Publication, Recipe, Site, Target
from factory.system.state import Run


def compare_with(run: Run, recipe: Recipe, *, here: Installation, now: datetime) -> Comparison:
    """Compare a built run with a fresh recipe of the same image, the site, and what the mirrors have now.

    Raises:
        InputsError: a mirror is away, or its index is not good.
    """
    if run.read("describe", Recipe).digest != recipe.digest:
        return Comparison(same=False, why="the description, the site's part in it, or a version that shapes it changed")
    if said := _site_difference(run, here.site):
        return Comparison(same=False, why=said)
    upstream = Upstream(logins=here.logins(run.image))
    recorder = Recorder(origins=origins_of(recipe), blobs=here.state.blobs, now=now, upstream=upstream)
    return compare(run.read("build", Artifact).lock, recorder, recipe.keyrings)


def _site_difference(run: Run, site: Site) -> str:
    """What the site file wants otherwise than when the run was signed and published."""
    wanted = site.signing.fingerprint.replace(" ", "").upper()
    if run.has("sign") and wanted and run.read("sign", Bundle).fingerprint.upper() != wanted:
        return "another key signs now"
    if run.has("publish") and (releases := run.read("publish", Publication).releases):
        new = {_place(target) for target in site.targets} - {_place(one.target) for one in releases}
        if new:
            return f"'{min(new)[0]}' is a new place to publish to, or is published to otherwise"
    return ""


def _place(target: Target) -> tuple[str, str, str, str]:
    return target.cloud, target.region_name, target.visibility, target.policy
