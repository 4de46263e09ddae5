# SPDX-License-Identifier: Apache-2.0
"""What the ledger keeps about each stage's value: plain JSON, enough for the report, nothing secret.

Private build mirrors and the passwords in addresses stay out. The end of a guest's console is kept when a run is red,
because people want to read it where they read the failed check.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from factory.errors import FactoryError
from factory.model import (
    DIFFERENCE,
    Artifact,
    Bundle,
    Canaries,
    Canary,
    Publication,
    Recipe,
    Release,
    Rotation,
    Rotations,
    StoredImage,
    Verdict,
)

CONSOLE_LINES = 40
SHOWN_FILES = 40
_CONSOLE_BYTES = 32 << 10

Detail = dict[str, Any]


def detail_of(value: object, *, images: Sequence[StoredImage] = (), console_log: Path | None = None) -> Detail:
    """The JSON to record for a stage's value.

    Args:
        value: what the stage returned, or the FactoryError that ended it, or None.
        images: for a rotation, the line's images as the store shows them afterwards.
        console_log: for an error, the console of the guest that was running.
    """
    for kind, describe in _KINDS.items():
        if isinstance(value, kind):
            found = describe(value)
            break
    else:
        return {}
    if images:
        found["images"] = [_image(one) for one in images]
    if console_log is not None:
        found["console"] = console_end(console_log)
    return found


def console_end(path: Path) -> list[str]:
    """The last lines of a console log, as text; none when there is no such file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _CONSOLE_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line.rstrip("\r") for line in text.rstrip("\n").split("\n")[-CONSOLE_LINES:]]


def _recipe(value: Recipe) -> Detail:
    description = value.description
    return {
        "image": description.name,
        "line": description.line,
        "builder": description.builder,
        "arch": description.arch,
        "publish": description.publish,
        "min_disk_gib": description.disk.min_gib,
        "digest": value.digest,
        "tree_sha256": value.tree_sha256,
        "commit": value.commit,
        "dirty": value.dirty,
        "repositories": [
            {"alias": one.alias, "url": without_password(one.url), "suites": list(one.suites)}
            for one in value.repositories
        ],
        "regions": [{"name": one.name, "embedded": one.embedded} for one in value.regions],
        "registration": description.registration.mode,
    }


def without_password(url: str) -> str:
    """An address without the user and password that may stand in it."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _artifact(value: Artifact) -> Detail:
    return {
        "file": value.path.name,
        "sha256": value.sha256,
        "sha512": value.sha512,
        "size_bytes": value.size_bytes,
        "virtual_size_bytes": value.virtual_size_bytes,
        "epoch": value.epoch,
        "lock_sha256": value.lock_sha256,
        "inputs_digest": value.inputs_digest,
        "tarball": value.tarball.name,
        "tarball_sha256": value.tarball_sha256,
        "packages": [[one.name, one.version, one.arch] for one in value.packages],
        "tools": dict(value.tools),
        "sbom": value.sbom.name if value.sbom else "",
        "licences": dict(value.licences),
        "build_id": value.build_id,
        "built_at": value.built_at.isoformat(),
        "seconds": {name: round(seconds, 1) for name, seconds in value.seconds.items()},
    }


def _verdict(value: Verdict) -> Detail:
    found: Detail = {
        "artifact_sha256": value.artifact_sha256,
        "passed": value.passed,
        "checks": [
            {
                "name": one.name,
                "guarantee": one.guarantee,
                "outcome": one.outcome.value,
                "message": one.message,
                "seconds": round(one.seconds, 2),
            }
            for one in value.checks
        ],
        "accelerator": value.accelerator,
        "sandbox": value.sandbox,
        "boot_s": round(value.boot_s, 1),
        "judged_at": value.judged_at.isoformat(),
        "region_proof": value.region_proof,
    }
    if not value.passed and value.console_log is not None:
        found["console"] = console_end(value.console_log)
    return found


def _bundle(value: Bundle) -> Detail:
    return {
        "fingerprint": value.fingerprint,
        "throw_away_key": value.throw_away_key,
        "signed_at": value.signed_at.isoformat(),
        "files": [{"name": name, "size_bytes": _size(value.directory / name)} for name in value.files],
        "sums": _sums(value.directory / "SHA256SUMS"),
        "difference": _difference(value.directory / DIFFERENCE),
        "statements": list(value.statements),
        "key_ends": value.key_ends.isoformat() if value.key_ends else None,
    }


def _difference(path: Path) -> Detail | None:
    """What changed since the image before, without changelogs and with the first files only."""
    try:
        found = json.loads(path.read_text())["value"]
        sources = [{key: one[key] for key in ("source", "old", "new", "fixes", "complete")} for one in found["sources"]]
        files = found["files"] and {**found["files"], "unexplained": found["files"]["unexplained"][:SHOWN_FILES]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return {**found, "sources": [one for one in sources if one["fixes"] or not one["complete"]], "files": files}


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _sums(path: Path) -> dict[str, str]:
    lines = path.read_text().splitlines() if path.is_file() else []
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def _release(value: Release) -> Detail:
    return {
        "cloud": value.target.cloud,
        "visibility": value.target.visibility,
        "image_id": value.image_id,
        "generation": value.generation,
        "dated_name": value.dated_name,
        "published_at": value.published_at.isoformat(),
        "upload_s": round(value.upload_s, 1),
    }


def _rotation(value: Rotation) -> Detail:
    return {
        "cloud": value.target.cloud,
        "line": value.line,
        "latest": value.latest,
        "prev": value.prev,
        "archived": value.archived,
        "steps": [one.name for one in value.steps],
        "gap_s": round(value.gap_s, 3),
        "rotated_at": value.rotated_at.isoformat(),
        "differs": list(value.differs),
    }


def _image(value: StoredImage) -> Detail:
    return {
        "id": value.id,
        "name": value.name,
        "role": value.role,
        "hidden": value.hidden,
        "visibility": value.visibility,
        "dated_name": value.dated_name,
        "generation": value.generation,
        "owner": value.owner,
        "uuid_validity": value.properties.get("uuid_validity", ""),
        "size_bytes": value.size_bytes,
        "created_at": value.created_at.isoformat(),
    }


def _canary(value: Canary) -> Detail:
    return {
        "cloud": value.target.cloud,
        "line": value.line,
        "image_id": value.image_id,
        "tenant": value.tenant,
        "green": value.green,
        "faults": list(value.faults),
        "boot_s": value.boot_s,
        "judged_at": value.judged_at.isoformat(),
        "rolled_back": value.rolled_back,
        "note": value.note,
    }


def _error(value: FactoryError) -> Detail:
    return {"error": value.lines(), "exit_code": value.exit_code}


_KINDS: Mapping[type[Any], Callable[[Any], Detail]] = {
    Recipe: _recipe,
    Artifact: _artifact,
    Verdict: _verdict,
    Bundle: _bundle,
    Publication: lambda value: {"releases": [_release(one) for one in value.releases], "reason": value.reason},
    Rotations: lambda value: {"rotations": [_rotation(one) for one in value.rotations]},
    Canaries: lambda value: {"canaries": [_canary(one) for one in value.canaries]},
    Release: lambda value: {"releases": [_release(value)], "reason": ""},
    Rotation: lambda value: {"rotations": [_rotation(value)]},
    FactoryError: _error,
}
