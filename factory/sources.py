# SPDX-License-Identifier: Apache-2.0
"""The source packages of an image that a run made, from the repositories that it was built from."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from factory.inputs.lock import read_lock
from factory.inputs.recorder import Recorder, origins_of
from factory.inputs.replay import Replay
from factory.inputs.signers import Signers
from factory.inputs.source_packages import Mirrors, Sources, export_sources
from factory.inputs.sources import BlobFolder
from factory.inputs.upstream import Upstream
from factory.installation import Installation
from factory.model import Artifact
from factory.system.state import Run


def export_sources_of(run: Run, *, here: Installation, out: Path, now: datetime, say: Callable[[str], None]) -> Sources:
    """Fetch the sources of everything that a run's image has installed into ``out``; what is there already stays.

    Raises:
        InputsError: a mirror is away, gives other files than were signed, or the run's lock cannot be read any more.
    """
    artifact = run.read("build", Artifact)
    recipe, blobs = artifact.recipe, here.state.blobs
    upstream = Upstream(logins=here.logins(run.image))
    recorder = Recorder(
        origins=origins_of(recipe), blobs=blobs, now=now, upstream=upstream, signers=Signers(here.state.signers)
    )
    with tempfile.TemporaryDirectory(prefix=".factory-sources-", dir=here.state.path) as scratch:
        locked = Replay(
            lock=read_lock(artifact.lock),
            keyrings=recipe.keyrings,
            blobs=Path(scratch),
            sources=(BlobFolder(blobs),),
            epoch=artifact.epoch,
        )
        return export_sources(
            recipe.description.name,
            artifact.packages,
            repositories=recipe.repositories,
            locked=locked,
            at=Mirrors(recorder=recorder, upstream=upstream),
            out=out,
            say=say,
        )
