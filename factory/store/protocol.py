# SPDX-License-Identifier: Apache-2.0
"""What every image store can do, and the errors that callers tell apart.

Changes use Glance's own names (``os_hidden``, ``visibility``, ``protected``, ``min_disk``): booleans and integers where
Glance wants them, strings for every property. Images are named by id only; no call here resolves a name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Protocol

from factory.errors import StoreError
from factory.model import StoredImage
from factory.system.files import Digests

Say = Callable[[str], None]


class IdTaken(StoreError):
    """The chosen id cannot be used: an image has it, here or elsewhere, or a deleted one had it."""


class NotWanted(StoreError):
    """The store refused the bytes: not what ``disk_format`` says, or the image already has its bytes."""


class ImageStore(Protocol):
    """An image service, as one project sees it."""

    @property
    def project_id(self) -> str:
        """The project that owns what we create."""

    @property
    def holder(self) -> str:
        """Who we are to other factories; the same for every run that shares our local locks."""

    @property
    def clock(self) -> datetime | None:
        """The service's time at its last answer, None when it tells none: leases are counted from its times."""

    def list_line(self, line: str) -> tuple[StoredImage, ...]:
        """Every image of ours with this ``imgfactory_line``, hidden ones too, each once, newest generation first.

        Raises:
            StoreError: the images changed during each of several reads, or the store is away.
        """

    def list_all(self) -> tuple[StoredImage, ...]:
        """Every image of ours, of every line and of none."""

    def named(self, *names: str) -> tuple[StoredImage, ...]:
        """Every image that we can see under these names, whoever owns it: to report it, never to act on it."""

    def shown(self, properties: Mapping[str, str]) -> tuple[StoredImage, ...]:
        """Every image that lists show us and that has all these properties, whoever owns it: to compare with."""

    def create(self, image_id: str, attributes: Mapping[str, object]) -> StoredImage:
        """Make a record without bytes; of several callers with one id exactly one succeeds.

        Raises:
            IdTaken: the others, and whoever comes later.
        """

    def upload(self, image_id: str, path: Path) -> None:
        """Send a file's bytes into a queued record, in constant memory; returns when the store has them.

        Raises:
            NotWanted: see there.
        """

    def get(self, image_id: str) -> StoredImage | None:
        """An image by its id, None when there is none."""

    def patch(self, image_id: str, change: Mapping[str, object]) -> StoredImage:
        """Set all of ``change`` in one request, or nothing; setting what is already set is fine."""

    def prepare(self, image_id: str, change: Mapping[str, object]) -> Callable[[], StoredImage]:
        """A :meth:`patch` with everything done but the sending, to be retried hard when it is sent."""

    def deactivate(self, image_id: str) -> None:
        """Let nobody boot or download an image any more; servers that run from it stay. Twice is fine.

        Raises:
            StoreError: the cloud does not let us.
        """

    def delete(self, image_id: str) -> None:
        """Delete an image; one that is gone is fine.

        Raises:
            StoreError: it is protected or in use.
        """

    def read_back(self, image_id: str) -> Digests:
        """Download an image and return what its bytes are."""
