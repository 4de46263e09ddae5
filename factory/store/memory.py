# SPDX-License-Identifier: Apache-2.0
"""An image service in memory that answers as Glance does; it passes the same tests as the real one.

For state machines that need thousands of steps. What it models was measured on Glance 33: names that are not unique,
listings without hidden images, ids that stay burnt, patches that apply whole or not at all, protected images, bytes
that are not what was declared.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from factory.errors import StoreError
from factory.model import StoredImage
from factory.store.line import changed
from factory.store.protocol import IdTaken, NotWanted
from factory.system.files import Digests, digests

_QCOW2 = b"QFI\xfb"
_READ_ONLY = frozenset(
    {"id", "status", "size", "virtual_size", "checksum", "created_at", "updated_at", "self", "schema"}
)
_VISIBILITIES = frozenset({"public", "community", "shared", "private"})
_LONGEST = 255


@dataclass(slots=True)
class MemoryGlance:
    """The service: images of every project, ids that were ever used, and a clock that moves with each change."""

    images: dict[str, StoredImage] = field(default_factory=dict)
    bytes_of: dict[str, Digests] = field(default_factory=dict)
    burnt: set[str] = field(default_factory=set)
    now: datetime = datetime(2026, 1, 1, tzinfo=UTC)

    def tick(self) -> datetime:
        """The time of the next change."""
        self.now += timedelta(seconds=1)
        return self.now


class MemoryStore:
    """An :class:`factory.store.ImageStore` of one project in a :class:`MemoryGlance`."""

    def __init__(self, service: MemoryGlance, project_id: str, *, holder: str = "") -> None:
        self.service = service
        self._project_id = project_id
        self._holder = holder

    @property
    def holder(self) -> str:
        return self._holder

    @property
    def project_id(self) -> str:
        return self._project_id

    @property
    def clock(self) -> datetime | None:
        return None

    def list_line(self, line: str) -> tuple[StoredImage, ...]:
        return tuple(image for image in self.list_all() if image.line == line)

    def list_all(self) -> tuple[StoredImage, ...]:
        return self._sorted(lambda image: image.owner == self._project_id)

    def named(self, *names: str) -> tuple[StoredImage, ...]:
        return self._sorted(lambda image: image.name in names and self._sees(image))

    def shown(self, properties: Mapping[str, str]) -> tuple[StoredImage, ...]:
        wanted = properties.items()
        return self._sorted(lambda image: not image.hidden and self._sees(image) and wanted <= image.properties.items())

    def get(self, image_id: str) -> StoredImage | None:
        image = self.service.images.get(image_id)
        return image if image is not None and self._sees(image) else None

    def create(self, image_id: str, attributes: Mapping[str, object]) -> StoredImage:
        if image_id in self.service.burnt:
            raise IdTaken(f"the image id {image_id} is taken or burnt")
        time = self.service.tick()
        empty = StoredImage(
            id=image_id,
            name="",
            status="queued",
            hidden=False,
            visibility="shared",
            protected=False,
            owner=self._project_id,
            size_bytes=None,
            virtual_size_bytes=None,
            hash_algo="",
            hash_value="",
            created_at=time,
            updated_at=time,
            properties={"min_disk": "0", "min_ram": "0", "disk_format": "qcow2", "container_format": "bare"},
        )
        wanted = dict(attributes)
        tags = wanted.pop("tags", ())
        assert isinstance(tags, list | tuple)
        image = dataclasses.replace(_checked(empty, wanted), tags=tuple(sorted(map(str, tags))))
        self.service.burnt.add(image_id)
        self.service.images[image_id] = image
        return image

    def upload(self, image_id: str, path: Path) -> None:
        image = self._own(image_id)
        head = path.open("rb").read(32)
        if image.status != "queued":
            raise NotWanted(f"the image is {image.status}")
        if not head.startswith(_QCOW2):
            raise NotWanted(f"the bytes of '{path.name}' are not qcow2")
        found = digests(path)
        self.service.bytes_of[image_id] = found
        self.service.images[image_id] = dataclasses.replace(
            image,
            status="active",
            size_bytes=found.size_bytes,
            virtual_size_bytes=int.from_bytes(head[24:32], "big"),
            hash_algo="sha512",
            hash_value=found.sha512,
            updated_at=self.service.tick(),
        )

    def patch(self, image_id: str, change: Mapping[str, object]) -> StoredImage:
        image = dataclasses.replace(_checked(self._own(image_id), change), updated_at=self.service.tick())
        self.service.images[image_id] = image
        return image

    def prepare(self, image_id: str, change: Mapping[str, object]) -> Callable[[], StoredImage]:
        return lambda: self.patch(image_id, change)

    def deactivate(self, image_id: str) -> None:
        image = self._own(image_id)
        _demand(image.status in {"active", "deactivated"}, f"the image is {image.status}")
        self.service.images[image_id] = dataclasses.replace(image, status="deactivated", updated_at=self.service.tick())

    def delete(self, image_id: str) -> None:
        if self.get(image_id) is None:
            return
        if self._own(image_id).protected:
            raise StoreError("the image is protected")
        del self.service.images[image_id]
        self.service.bytes_of.pop(image_id, None)

    def read_back(self, image_id: str) -> Digests:
        self._own(image_id)
        if image_id not in self.service.bytes_of:
            empty = b""
            return Digests(
                sha256=hashlib.sha256(empty).hexdigest(), sha512=hashlib.sha512(empty).hexdigest(), size_bytes=0
            )
        return self.service.bytes_of[image_id]

    def _own(self, image_id: str) -> StoredImage:
        image = self.service.images.get(image_id)
        if image is None or image.owner != self._project_id:
            raise StoreError(f"there is no image {image_id} of ours")
        return image

    def _sees(self, image: StoredImage) -> bool:
        return image.owner == self._project_id or image.visibility in {"public", "community"}

    def _sorted(self, wanted: Callable[[StoredImage], bool]) -> tuple[StoredImage, ...]:
        found = [image for image in self.service.images.values() if wanted(image)]
        return tuple(sorted(found, key=lambda image: (image.generation, image.created_at, image.id), reverse=True))


def _checked(image: StoredImage, change: Mapping[str, object]) -> StoredImage:
    """The image with every key of ``change`` set; raises before anything is changed when one of them may not be."""
    for key, value in change.items():
        if key in {"os_hidden", "protected"}:
            _demand(isinstance(value, bool), f"'{key}' must be a boolean")
        elif key in {"min_disk", "min_ram"}:
            _demand(isinstance(value, int) and not isinstance(value, bool), f"'{key}' must be an integer")
        else:
            _demand(isinstance(value, str), f"'{key}' must be a string")
            _demand(key not in _READ_ONLY and not key.startswith(("os_hash_", "os_glance")), f"'{key}' is read-only")
            _demand(key != "visibility" or value in _VISIBILITIES, f"no such visibility: {value}")
            _demand(len(key) <= _LONGEST and (key != "name" or len(str(value)) <= _LONGEST), f"'{key}' is too long")
    return changed(image, change)


def _demand(condition: bool, problem: str) -> None:  # noqa: FBT001  (an assertion by another name)
    if not condition:
        raise StoreError("the image service refused a request", facts=(("said", problem),))
