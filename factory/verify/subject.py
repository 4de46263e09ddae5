# SPDX-License-Identifier: Apache-2.0
"""What is examined, and what is expected of it: an artifact with all its records, or just a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from factory.errors import CommandFailed, InputFault, NotGood
from factory.inputs.view import RepositoryView, open_view
from factory.model import Artifact, Description, Region, RegionClient, Registration, Server
from factory.system.run import run
from factory.system.state import State

_DAYS_A_MONTH = 31


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """An image to examine. Without the factory's records ``view`` is None, and less is expected."""

    path: Path
    virtual_size_bytes: int
    description: Description
    regions: tuple[Region, ...] = ()
    region_client: RegionClient | None = None
    ntp_servers: tuple[str, ...] = ()
    view: RepositoryView | None = None
    artifact: Artifact | None = None

    @property
    def registers(self) -> bool:
        """Whether an instance can register, so that the region has to answer."""
        return self.view is not None and self.description.registration.mode != "none"


def subject_of(artifact: Artifact, *, state: State) -> Subject:
    """An artifact of ours, with everything its recipe decided."""
    recipe = artifact.recipe
    if recipe.description.foreign is not None:  # made by others: of it, only what holds for every image is expected
        return Subject(path=artifact.path, virtual_size_bytes=inspect(artifact.path), description=recipe.description)
    return Subject(
        path=artifact.path,
        virtual_size_bytes=artifact.virtual_size_bytes,
        description=recipe.description,
        regions=recipe.regions,
        region_client=recipe.region_client,
        ntp_servers=recipe.ntp_servers,
        view=open_view(artifact.lock, blobs=state.blobs, repositories=recipe.repositories),
        artifact=artifact,
    )


def subject_of_file(path: Path, *, login_user: str) -> Subject:
    """Any qcow2 file; what only the factory's own records could tell is not expected."""
    size = inspect(path)
    description = Description(
        name=path.stem,
        line=path.stem,
        login_user=login_user,
        registration=Registration(mode="none"),
    )
    return Subject(path=path, virtual_size_bytes=size, description=description)


def inspect(path: Path) -> int:
    """The virtual size of a sound qcow2 image that stands alone.

    Raises:
        InputFault: there is no such file.
        NotGood: it is not qcow2, damaged, cut off, or refers to other files.
    """
    if not path.is_file():
        raise InputFault(f"there is no file '{path}'", hint="name an image of descriptions/, or a .qcow2 file")
    try:
        told = json.loads(run(["qemu-img", "info", "--output=json", path], timeout_s=60).stdout)
    except CommandFailed as failed:
        raise _not_sound(path) from failed
    if told.get("format") != "qcow2":
        raise NotGood(
            f"'{path}' is not a qcow2 image",
            facts=(("format", str(told.get("format"))),),
            hint="convert it: qemu-img convert -O qcow2",
        )
    special = told.get("format-specific", {}).get("data", {})
    if told.get("backing-filename") or special.get("data-file"):
        raise NotGood(f"'{path}' refers to other files and is no image of its own", hint="flatten it: qemu-img convert")
    checked = run(["qemu-img", "check", "--output=json", path], timeout_s=600, check=False)
    if checked.returncode in {1, 2} or _cut_off(path, checked.stdout):
        raise _not_sound(path)
    return int(told["virtual-size"])


def _not_sound(path: Path) -> NotGood:
    return NotGood(
        f"'{path}' is not a sound qcow2 image: it is damaged or cut off", hint="compare its SHA-256; copy it again"
    )


def _cut_off(path: Path, checked: str) -> bool:
    """Whether the file ends before the last cluster that it says it uses."""
    try:
        end = int(json.loads(checked)["image-end-offset"])
    except (ValueError, KeyError):
        return True
    return path.stat().st_size < end


# -- facts for the suite ----------------------------------------------------------------------------------------------


def expectations(subject: Subject) -> dict[str, Any]:
    """What the suite is told about the image; the rest of its facts is what was seen."""
    artifact = subject.artifact
    told: dict[str, Any] = {
        "description": _plain(asdict(subject.description)),
        "image": {"virtual_size_bytes": subject.virtual_size_bytes},
        "ntp_servers": list(subject.ntp_servers),
        "lifetime_days": subject.description.retention.monthly * _DAYS_A_MONTH,
    }
    if artifact is None:
        told["description"]["update_repositories"] = None
        told["ntp_servers"] = None
        return told
    told["description"]["update_repositories"] = _plain([asdict(one) for one in artifact.recipe.repositories])
    told["epoch"] = artifact.epoch
    told["packages"] = _plain([asdict(one) for one in artifact.packages])
    told["region"] = _region(subject)
    return told


def _region(subject: Subject) -> dict[str, Any]:
    return {
        "client": asdict(subject.region_client or RegionClient()),
        "servers": [_server(one) for region in subject.regions for one in region.servers],
        "update_servers": [_server(one) for region in subject.regions for one in region.update_servers],
    }


def _server(server: Server) -> dict[str, Any]:
    """A server as the image knows it; ``ours`` tells whether the sandbox can answer with its own certificate."""
    return {
        "name": server.name,
        "ipv4": server.ipv4,
        "ipv6": server.ipv6,
        "pem": server.pem.read_text(),
        "ours": server.key is not None,
    }


def _plain(value: Any) -> Any:  # noqa: ANN401 - whatever JSON can hold
    """Tuples, mappings and paths as JSON has them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value
