# SPDX-License-Identifier: Apache-2.0
"""A difference as people read it: on a terminal, and as a release note in Markdown; pure.

All text is of others: control characters are shown by their code, and nothing becomes markup.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator

from factory.build.compare import Difference
from factory.diff.model import Change, End, FileChanges, ImageDifference, PackageChange, SourceChange
from factory.report.text import size, size_change
from factory.system.text import visible

NAMED = 40
"""How many of a kind a terminal shows; ``--json`` has all."""
_WIDTH = 116
_MARKUP = re.compile(r"([\\`*_\[\]<>|~&])")
"""What is markup within a line; what is at its beginning only, our own words come before."""
_MARKS = {"added": "+", "removed": "-", "upgraded": "^", "downgraded": "v"}
_NOTE_ENTRIES, _NOTE_FILES = 3, 20


def marked(text: object) -> str:
    """One line for Markdown, nothing of it obeyed: no character of it is markup."""
    return _MARKUP.sub(r"\\\1", visible(text)).replace("\\<", "&lt;").replace("\\>", "&gt;").replace("\\&", "&amp;")


# -- on a terminal ----------------------------------------------------------------------------------------------------


def lines(found: ImageDifference) -> Iterator[str]:
    """A difference for a terminal."""
    yield f"old  {_end(found.old)}"
    yield f"new  {_end(found.new)}"
    if found.identical:
        yield "the same bytes"
        return
    if found.old.size_bytes and found.new.size_bytes:
        yield f"size {size_change(found.new.size_bytes - found.old.size_bytes)}"
    yield from _section(f"security fixes: {len(found.fixes)}", _fix_lines(found.sources), always=True)
    yield from _section(f"packages: {counted(found.packages)}", map(_package_line, found.packages), always=True)
    for title, changes in kinds(found):
        yield from _section(f"{title}: {len(changes)}", map(_change_line, changes))
    if found.files is not None:
        yield from _section(
            f"files: {files_counted(found.files)}", map(_file_line, found.files.unexplained), always=True
        )
    for one in found.unknown:
        yield f"not compared: {visible(one)}"


def _section(title: str, rows: Iterable[str], *, always: bool = False) -> Iterator[str]:
    shown = list(rows)
    if shown or always:
        yield ""
        yield title
    yield from (f"  {row}" for row in shown[:NAMED])
    if len(shown) > NAMED:
        yield f"  ... and {len(shown) - NAMED} more"


def _end(end: End) -> str:
    told = (end.image, end.made, f"{end.packages} packages", size(end.size_bytes) if end.size_bytes else "")
    return visible(f"{end.name}  {', '.join(filter(None, told))}{f'  sha256 {end.sha256[:16]}' if end.sha256 else ''}")


def kinds(found: ImageDifference) -> tuple[tuple[str, tuple[Change, ...]], ...]:
    """What is neither package nor file, by its title."""
    return ("services", found.services), ("listening ports", found.listening), ("kernel settings", found.sysctl)


def counted(packages: Iterable[PackageChange]) -> str:
    """How many packages changed in which way, in words."""
    words = [one.change for one in packages]
    return ", ".join(f"{words.count(kind)} {kind}" for kind in _MARKS if kind in words) or "the same"


def files_counted(files: FileChanges) -> str:
    """How many files changed in which way, in words."""
    if not (files.added or files.removed or files.changed):
        return "the same"
    classes = ", ".join(f"{name} {number}" for name, number in files.classes.items())
    words = f"{files.added} added, {files.removed} removed, {files.changed} changed" + (
        f" ({classes})" if classes else ""
    )
    more = len(files.unexplained) + files.left_out
    return f"{words}; {more} of them by no changed package" if more else words


def _fix_lines(sources: Iterable[SourceChange]) -> Iterator[str]:
    for one in sources:
        head = f"{one.source} {one.old} -> {one.new}:"
        if one.fixes:
            yield from textwrap.wrap(visible(f"{head} {', '.join(one.fixes)}"), _WIDTH, subsequent_indent="    ")
        if not one.complete:
            yield visible(f"{head} its changelog here does not reach back to {one.old}")


def _package_line(one: PackageChange) -> str:
    versions = " -> ".join(filter(None, (one.old, one.new)))
    return visible(f"{_MARKS[one.change]} {one.name}:{one.arch} {versions}")


def _change_line(one: Change) -> str:
    return visible(f"{one.name}: {one.old or 'not there'} -> {one.new or 'gone'}")


def _file_line(one: Difference) -> str:
    words = "/".join("removed" if word == "missing" else word for word in one.classes)
    return visible(f"{words:<8} {one.name}" + (f" ({one.package})" if one.package else ""))


# -- as a release note ------------------------------------------------------------------------------------------------


def release_note(found: ImageDifference | None, new: End, *, line: str) -> str:
    """What changed since the image that users had before, in Markdown.

    Args:
        found: None for the first image of a line.
    """
    body = [f"# {marked(line)}: what changed", ""]
    body += [f"Image `{_code(new.image)}`, SHA-256 `{_code(new.sha256)}`, packages as of {marked(new.made)}.", ""]
    if found is None:
        body += [f"The first image of this line, with {new.packages} packages."]
    else:
        body += [*_note_body(found)]
    return "\n".join(body) + "\n"


def _code(text: str) -> str:
    return visible(text).replace("`", "'")


def _note_body(found: ImageDifference) -> Iterator[str]:
    before = f"packages as of {marked(found.old.made)}, SHA-256 `{_code(found.old.sha256)}`"
    yield f"Compared with the image published before it: {before}."
    if found.identical:
        yield "\nBoth are the same bytes."
        return
    yield from _note_fixes(found)
    yield f"\n## Packages\n\n{len(found.packages)} changed: {counted(found.packages)}.\n"
    if found.packages:
        yield "| package | from | to | |\n| --- | --- | --- | --- |"
    for package in found.packages:
        cells = (package.name, package.old or "not there", package.new or "removed", package.change)
        yield f"| {' | '.join(marked(cell) for cell in cells)} |"
    for title, changes in kinds(found):
        if changes:
            yield f"\n## {title.capitalize()}\n"
        for one in changes:
            yield f"- `{_code(one.name)}`: {marked(one.old or 'not there')} → {marked(one.new or 'gone')}"
    change = size_change(found.new.size_bytes - found.old.size_bytes)
    yield f"\n## Size and files\n\nThe file is {size(found.new.size_bytes)}, {change} on the one before."
    if found.files is not None:
        yield f"\nFiles: {marked(files_counted(found.files))}."
        yield from ("",) if found.files.unexplained else ()
        yield from (f"- `{_code(one.name)}`" for one in found.files.unexplained[:_NOTE_FILES])
    yield from _note_entries(found.sources)
    if found.unknown:
        yield "\n## Not compared\n"
    yield from (f"- {marked(one)}" for one in found.unknown)


def _note_fixes(found: ImageDifference) -> Iterator[str]:
    yield f"\n## Security fixes\n\n{len(found.fixes)} named in the changelogs of the packages.\n"
    for one in found.sources:
        if one.fixes:
            yield f"- **{marked(one.source)}** {marked(one.old)} → {marked(one.new)}: {marked(', '.join(one.fixes))}"
        if not one.complete:
            yield f"- **{marked(one.source)}**: its changelog does not reach back to {marked(one.old)}; see there."


def _note_entries(sources: Iterable[SourceChange]) -> Iterator[str]:
    """The newest changelog entries of each source, as code blocks."""
    told = [one for one in sources if one.entries]
    if told:
        yield "\n## Changelogs"
    for one in told:
        yield f"\n### {marked(one.source)} {marked(one.new)}\n"
        for entry in one.entries[:_NOTE_ENTRIES]:
            source, version = visible(entry.source), visible(entry.version)
            yield f"    {source} ({version}) {visible(entry.urgency)} {visible(entry.date)}".rstrip()
            yield from (f"    {visible(row)}".rstrip() for row in entry.text.split("\n"))
        if len(one.entries) > _NOTE_ENTRIES:
            yield f"\n{len(one.entries) - _NOTE_ENTRIES} earlier entries are left out."
