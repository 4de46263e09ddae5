# SPDX-License-Identifier: Apache-2.0
"""Whether a night has anything to do: what an earlier run was made from and for, against what there is now.

Compared are, in this order and until something differs: the recipe (description, build tree, site and versions that
shape the image), where it is published and who signs it, what the mirrors have for the image
(:mod:`factory.inputs.freshness`), and the tools that would build it now (:mod:`factory.build.tools`; the same packages
make the same tree, whatever else is new where they come from). Doubt means that something changed.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from factory.build.tools import tools_tree
from factory.inputs.freshness import Comparison, compare
from factory.inputs.recorder import Recorder, origins_of
from factory.inputs.signers import Signers
from factory.inputs.upstream import Upstream
from factory.installation import Installation
from factory.model import Artifact, Bundle, Publication, Recipe, Site, Target
from factory.system.state import Run


def compare_with(
    run: Run, recipe: Recipe, *, here: Installation, now: datetime, say: Callable[[str], None]
) -> Comparison:
    """Compare a built run with a fresh recipe of the same image, the site, and what the mirrors have now.

    Raises:
        InputsError: a mirror is away, or its index is not good.
    """
    if run.read("describe", Recipe).digest != recipe.digest:
        return Comparison(same=False, why="the description, the site's part in it, or a version that shapes it changed")
    if said := _site_difference(run, here.site):
        return Comparison(same=False, why=said)
    if recipe.description.foreign is not None:  # its pins are part of the recipe
        return Comparison(same=True, why="the vendor's image is pinned, and its pins are the same")
    recorder = Recorder(
        origins=origins_of(recipe),
        blobs=here.state.blobs,
        now=now,
        upstream=Upstream(logins=here.logins(run.image)),
        signers=Signers(here.state.signers),
    )
    artifact = run.read("build", Artifact)
    found = compare(artifact.lock, recorder, recipe.keyrings)
    if not found.same:
        return found
    tools = tools_tree(recipe, state=here.state, now=now, logins=here.logins(run.image), say=say)
    if artifact.tools.get("tools-tree") != tools.digest:
        return Comparison(same=False, why=f"the tools are others now: tree {tools.digest[:12]}")
    return Comparison(same=True, why=f"{found.why}; so are the tools")


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
