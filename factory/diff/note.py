# SPDX-License-Identifier: Apache-2.0
"""The release note of a run: what changed since the image that users have, written once beside the image."""

from __future__ import annotations

import json
from collections.abc import Callable

from factory.diff import of_sides, published_before
from factory.diff.model import ImageDifference
from factory.diff.read import read_side
from factory.diff.text import marked, release_note
from factory.errors import FactoryError
from factory.model import DIFFERENCE, RELEASE_NOTE, SEEN, Verdict
from factory.system.files import write_whole
from factory.system.state import Run
from factory.system.values import adapter

SCHEMA = "factory/diff/1"


def write_notes(run: Run, *, line: str, say: Callable[[str], None]) -> None:
    """Write the release note of a run, and the same for programs; a run that has one is left alone.

    Records that cannot be read are said and stop nothing: without the earlier image's the note compares with none.
    """
    if (run.path / RELEASE_NOTE).is_file():
        return
    found = None
    try:
        new = read_side(run.path)
    except FactoryError as unknown:
        say(f"no release note: {unknown.message}")
        return
    before = published_before(run)
    try:
        found = of_sides(read_side(before.path), new, place=run.path, state=run.state) if before else None
    except FactoryError as unknown:
        say(f"not compared with the image before: {unknown.message}")
    if found is not None:
        write_whole(run.path / DIFFERENCE, difference_text(found))
    write_whole(run.path / RELEASE_NOTE, release_note(found, new.end, line=line) + unmet_note(run))


def unmet_note(run: Run) -> str:
    """What a foreign image does not keep, in Markdown; nothing where all is kept."""
    unmet = run.read("verify", Verdict).unmet if run.has("verify") else ()
    if not unmet:
        return ""
    head = "\n## What this image does not keep\n\nIt was made by others and is published as it is.\n\n"
    return head + "".join(
        f"- {marked(one.guarantee or one.name)} {marked(one.message.partition(SEEN)[0])}\n" for one in unmet
    )


def difference_text(found: ImageDifference) -> str:
    """What ``factory diff --json`` prints."""
    body = adapter(ImageDifference).dump_python(found, mode="json")
    return json.dumps({"schema": SCHEMA, "value": body}, indent=1, sort_keys=True) + "\n"
