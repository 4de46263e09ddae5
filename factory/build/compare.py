# SPDX-License-Identifier: Apache-2.0
"""Two builds of one recipe: what differs, and of what class each difference is.

Pure functions over what the builds recorded. Classes: ``time``, ``key``, ``version``, ``order``, ``content``, ``mode``,
``owner``, ``kind``, ``missing``, ``added``, and for layers of the disk ``layer``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from factory.build.records import LATER
from factory.build.sbom import NAME as SBOM
from factory.build.tarball import FILES, LOCK, PACKAGES, Manifest

Contents = Callable[[str], tuple[bytes, bytes] | None]
"""The old and the new content of a path, where both are at hand."""
_LAYERS = ("partition table", "boot code", "file system")
_KEY_PATH = re.compile(
    r"/etc/ssh/ssh_host_.*|.*\.(?:key|pem|crt|gpg|pgp|asc)|/etc/machine-id|/var/lib/dbus/machine-id"
    r"|/var/lib/systemd/(?:random-seed|credential\.secret)|/etc/shadow-?|.*/authorized_keys"
)
_KEY_TEXT = re.compile(rb"-----BEGIN [A-Z ]+-----|^(?:ssh-|ecdsa-sha2-)", re.MULTILINE)
_MONTH = rb"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
_TIME = re.compile(
    rb"\b1\d{9}(?:\.\d+)?\b|(?:19|20)\d\d-?\d\d-?\d\d(?:[T ]?\d\d:?\d\d(?::?\d\d(?:\.\d+)?)?)?(?:Z|[+-]\d\d:?\d\d)?"
    rb"|(?:(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun),? +)?(?:\d{1,2} +"
    + _MONTH
    + rb"|"
    + _MONTH
    + rb" +\d{1,2})(?: +\d{4})?(?: +\d\d:\d\d:\d\d)?(?: +[A-Z]{3,4})?(?: +\d{4})?"
    rb"|\b\d\d:\d\d(?::\d\d)?\b"
)
_VERSION = re.compile(rb"\b\d+(?:[.:~+-][0-9A-Za-z]+)+\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One thing that differs: a file of the image, a layer of its disk, a record of the build, or a tool.

    ``recorded`` is what the source tarball says, ``found`` what this build made.
    """

    what: str
    name: str
    classes: tuple[str, ...]
    recorded: str = ""
    found: str = ""
    package: str = ""


def differences(
    recorded: Manifest,
    made: Manifest,
    *,
    old: Mapping[str, bytes],
    new: Mapping[str, bytes],
    contents: Contents = lambda _: None,
) -> tuple[Difference, ...]:
    """Everything that differs between the image of a manifest and the one made now.

    Args:
        old: the recorded lists by name: of files, of packages, of inputs.
        new: the same of this build.
        contents: what files held, to class differences of content.
    """
    packages = _packages(old[PACKAGES], new[PACKAGES])
    changed = {one.name.partition(":")[0] for one in packages}
    before, after = ({str(one["path"]): one for one in _lines(text)} for text in (old[FILES], new[FILES]))
    files = file_differences(before, after, changed, contents)
    layers = tuple(_layers(recorded, made))
    found = (*_tools(recorded, made), *_lock(old[LOCK], new[LOCK]), *packages, *files, *layers)
    found += tuple(_results(recorded, made))
    if recorded.results == made.results:
        return tuple(one for one in found if one.what == "tool")
    return found


def _results(recorded: Manifest, made: Manifest) -> Iterable[Difference]:
    """What came out otherwise, beyond what is looked into: a result that differs is never passed over.

    An older factory did not make every record, and a bill of materials names the tools, which are compared already.
    """
    known = {recorded.image_name, FILES, PACKAGES, LOCK, *(LATER - recorded.results.keys())}
    known |= {SBOM} if recorded.tools != made.tools else set()
    for name in sorted({*recorded.results, *made.results} - known):
        old, new = recorded.results.get(name, ""), made.results.get(name, "")
        if old != new:
            classes = ("content",) if old and new else ("missing",) if old else ("added",)
            yield Difference(what="result", name=name, classes=classes, recorded=old, found=new)


def _tools(recorded: Manifest, made: Manifest) -> Iterable[Difference]:
    for name in sorted({*recorded.tools, *made.tools}):
        old, new = recorded.tools.get(name, ""), made.tools.get(name, "")
        if old != new:
            yield Difference(what="tool", name=name, classes=("version",), recorded=old or "none", found=new or "none")


def _lines(text: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()[1:]]


def _lock(old: bytes, new: bytes) -> Iterable[Difference]:
    before, after = ({(one["repository"], one["path"]): one for one in _lines(text)} for text in (old, new))
    for repository, path in sorted({*before, *after}):
        one, other = before.get((repository, path)), after.get((repository, path))
        if one != other:
            yield Difference(
                what="input",
                name=f"{repository}/{path}",
                classes=("missing" if other is None else "added" if one is None else "content",),
                recorded=str((one or {}).get("sha512", ""))[:32],
                found=str((other or {}).get("sha512", ""))[:32],
            )


def _packages(old: bytes, new: bytes) -> tuple[Difference, ...]:
    before, after = (
        {f"{one['name']}:{one['arch']}": one["version"] for one in json.loads(text)["packages"]} for text in (old, new)
    )
    return tuple(
        Difference(
            what="package",
            name=name,
            classes=("missing" if name not in after else "added" if name not in before else "version",),
            recorded=before.get(name, ""),
            found=after.get(name, ""),
        )
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    )


def file_differences(
    before: Mapping[str, Mapping[str, Any]],
    after: Mapping[str, Mapping[str, Any]],
    changed: set[str],
    contents: Contents = lambda _: None,
) -> tuple[Difference, ...]:
    """What differs between two lists of files by path.

    Args:
        changed: packages whose files differ because their versions do.
        contents: what files held, to class differences of content.
    """
    found = []
    for path in sorted({*before, *after}):
        one, other = before.get(path), after.get(path)
        if one == other:
            continue
        if one is None or other is None:
            kind, there = ("missing" if other is None else "added",), one or other or {}
            found.append(Difference(what="file", name=path, classes=kind, package=str(there.get("package", ""))))
        else:
            found.append(_file(path, one, other, changed, contents))
    return tuple(found)


def _file(
    path: str, one: Mapping[str, Any], other: Mapping[str, Any], changed: set[str], contents: Contents
) -> Difference:
    def differ(*keys: str) -> bool:
        return any(one.get(key) != other.get(key) for key in keys)

    package = str(other.get("package", ""))
    classes = []
    if differ("kind"):
        classes.append("kind")
    elif differ("sha256", "target", "size"):
        classes.append("version" if package in changed else content_class(path, contents(path)))
    classes += ["mode"] if differ("mode") else []
    classes += ["owner"] if differ("uid", "gid", "package") else []
    classes += ["time"] if differ("mtime") and "time" not in classes else []
    shown = [key for key in sorted({*one, *other}) if differ(key)]
    return Difference(
        what="file",
        name=path,
        classes=tuple(classes),
        recorded=", ".join(f"{key} {str(one.get(key, ''))[:64]}" for key in shown),
        found=", ".join(f"{key} {str(other.get(key, ''))[:64]}" for key in shown),
        package=package,
    )


def content_class(path: str, both: tuple[bytes, bytes] | None) -> str:
    """Of what class a difference of content is, by the file's name and, where they are known, its two contents."""
    if _KEY_PATH.fullmatch(path):
        return "key"
    if both is None:
        return "content"
    old, new = both
    if sorted(old.splitlines()) == sorted(new.splitlines()):
        return "order"
    for kind, pattern in (("time", _TIME), ("version", _VERSION)):
        if pattern.sub(b"", old) == pattern.sub(b"", new):
            return kind
    return "key" if _KEY_TEXT.search(old) and _KEY_TEXT.search(new) else "content"


def _layers(recorded: Manifest, made: Manifest) -> Iterable[Difference]:
    same = True
    for name in _LAYERS:
        old, new = recorded.layers.get(name, ""), made.layers.get(name, "")
        if old != new:
            same = False
            yield Difference(what="layer", name=name, classes=("layer",), recorded=old, found=new)
    old, new = recorded.image_sha256, made.image_sha256
    if same and old != new:  # the disk inside is the same: how it was packed differs
        yield Difference(what="layer", name="qcow2", classes=("layer",), recorded=old, found=new)
