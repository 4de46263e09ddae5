# SPDX-License-Identifier: Apache-2.0
"""What went wrong in a build, in one sentence: the package, the command or the space at fault.

A builder's log ends with what it noticed last, which is seldom the cause. The table below is read from top to bottom:
the first cause whose words are in the log is told, with the lines that say so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from factory.errors import BuildError, FactoryError
from factory.system.files import free_bytes

_PREFIX = re.compile(
    r"^(?:\[ [A-Z]+ *\]: )?(?:Processing: \[[# ]*\] \d+%)?(?:\[ [A-Z]+ *\]: )?(?:[\d:]{8} \| )?(?:> )?"
)
_HOOK = re.compile(r"dib-run-parts Running \S*/(\w[\w-]*\.d/\S+)$")
_CLEANS_UP = re.compile(r"Unmount |INFO diskimage_builder|\*\*\* /")
_SHOWN = 6
_LINE_CHARACTERS = 300
_LIMIT_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """One way to fail: what to look for, what to tell (``{0}`` is the first group), and what to do about it."""

    pattern: re.Pattern[str]
    message: str
    hint: str
    before: int = 0
    after: int = 0


def _cause(pattern: str, message: str, hint: str, *, before: int = 0, after: int = 0) -> Cause:
    return Cause(pattern=re.compile(pattern), message=message, hint=hint, before=before, after=after)


_SPACE = _cause(
    r"No space left on device",
    "there was no space left",
    "make disk.min_gib larger if the image is full; free space or memory on this host if the build was",
)
CAUSES: tuple[Cause, ...] = (
    _SPACE,
    _cause(
        r"E: Unable to locate package (\S+)",
        "no repository has the package '{0}'",
        "check its name in config.xml or package-installs.yaml, and the suites and components in image.toml",
    ),
    _cause(
        r"E: Package '([^']+)' has no installation candidate",
        "no repository offers the package '{0}' for installation",
        "check its name in config.xml or package-installs.yaml, and the suites and components in image.toml",
    ),
    _cause(
        r"E: Version '[^']+' for '([^']+)' was not found",
        "no repository has the package '{0}' in the version asked for",
        "ask for another version, or none",
    ),
    _cause(
        r"The following packages have unmet dependencies",
        "packages in the description cannot be installed together",
        "the lines above name them; a suite may be missing in image.toml",
        after=5,
    ),
    _cause(
        r"E: Failed to fetch (\S+) +(.*)",
        "the file '{0}' could not be fetched",
        "check [mirrors] in site.toml; the mirror may be in the middle of an update",
    ),
    _cause(
        r"dpkg: error processing (?:package|archive) (\S+)",
        "the package '{0}' could not be installed",
        "the lines above say why; the log has its script's output",
        before=3,
        after=2,
    ),
    _cause(
        r"KiwiScriptFailed: (\S+) failed",
        "the description's '{0}' failed",
        "the log has everything it said",
        after=2,
    ),
    _cause(
        r"RELAXNGV?:(.*)",
        "the description is not what kiwi's schema allows: {0}",
        "check config.xml against the kiwi documentation",
    ),
    _cause(
        r"Kiwi\w*: .*(?:Failed to (?:download|open)|could not be loaded)(.*)",
        "kiwi could not read its description: {0}",
        "check config.xml",
    ),
    _cause(
        r"KiwiRuntimeError: *(.*)",
        "kiwi refuses the description: {0}",
        "the lines above say what is missing",
        after=8,
    ),
    _cause(
        r"Kiwi(?:Command(?:NotFound|Error)|Runtime\w*): (.*)",
        "a command of the builder failed: {0}",
        "the log has its output; 'factory doctor' names missing programs",
    ),
    _cause(r"\| (Kiwi\w+: .*)", "the builder failed: {0}", "the log has more"),
)


def explain(
    image: str, log: Path, *, failed: FactoryError, faults: tuple[FactoryError, ...], free_bytes: int
) -> BuildError:
    """The error of a failed build.

    Args:
        failed: how the builder ended.
        faults: what the inputs server could not get; the cause, when there is one.
        free_bytes: what is left where the build works.
    """
    ended = [("builder", failed.message), *(fact for fact in failed.facts if fact[0] == "command"), ("log", str(log))]
    if faults:
        return _error(image, faults[0].message, facts=(*faults[0].facts, *ended), hint=faults[0].hint)
    lines = _lines(log)
    for cause in CAUSES:
        for number, line in enumerate(lines):
            if (match := cause.pattern.search(line)) is None:
                continue
            said = lines[max(0, number - cause.before) : number + cause.after + 1]
            facts = [("said", clean(line)) for line in said if clean(line)]
            if cause is _SPACE:
                facts.append(("free", f"{free_bytes >> 20} MiB where the build works"))
            after = next((text for text in map(clean, lines[number + 1 :]) if text), "")
            message = cause.message.format(*(clean(group or "") or after for group in match.groups()))
            return _error(image, message, facts=(*facts, *ended), hint=cause.hint)
    said = _of_hook(lines)
    message = f"the hook '{said[0]}' failed" if said else failed.message
    facts = [("said", clean(line)) for line in (said or lines)[-_SHOWN:] if clean(line)]
    return _error(image, message, facts=(*facts, *ended), hint=_killed(failed.message))


def _of_hook(lines: list[str]) -> list[str]:
    """The hook of a diskimage-builder element that did not come to its end, and what was said since it began."""
    for number in range(len(lines) - 1, -1, -1):
        if (found := _HOOK.search(lines[number])) is not None:
            done = any(line.endswith(f"{found[1].rpartition('/')[2]} completed") for line in lines[number:])
            return [] if done else [found[1], *(line for line in lines[number + 1 :] if not _CLEANS_UP.match(line))]
    return []


def _error(image: str, message: str, *, facts: tuple[tuple[str, str], ...], hint: str) -> BuildError:
    return BuildError(f"the build of '{image}' failed: {message}", facts=facts, hint=hint)


def _killed(message: str) -> str:
    if "SIGKILL" in message or "status 137" in message:
        return "something killed it; if that was the kernel, this host has too little memory"
    return "the log has more"


def clean(line: str) -> str:
    """A line of a builder's log without its prefixes and without anything a terminal would obey."""
    text = "".join(character if character.isprintable() else " " for character in _PREFIX.sub("", line.strip()))
    return text.strip()[:_LINE_CHARACTERS]


def _lines(log: Path) -> list[str]:
    if not log.is_file():
        return []
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LIMIT_BYTES))
        return re.split(r"[\r\n]+", file.read().decode(errors="replace"))


def full(image: str, failed: Exception, *, place: Path) -> BuildError:
    """The error of a step after the builder's: for want of space when its last words say so."""
    said = [str(failed), *(value for _, value in getattr(failed, "facts", ()))]
    if any("No space left on device" in line for line in said):
        return BuildError(
            f"the build of '{image}' failed: there was no space left",
            facts=(("free", f"{free_bytes(place) >> 20} MiB at {place}"),),
            hint="free space on this host, and build again",
        )
    return BuildError(f"the build of '{image}' failed after the builder had ended")
