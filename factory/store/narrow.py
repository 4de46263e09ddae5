# SPDX-License-Identifier: Apache-2.0
"""Glance on clouds that lack something the rotation relies on: the same calls, done in another way.

What a target's ``without`` names is done without: ``chosen-ids`` (the cloud chooses ids itself: of several records for
one claim the oldest stays), ``hidden`` (no ``os_hidden``: what is hidden is not public, so lists of others miss it and
nobody resolves it by name), ``together`` (one change a request: sent in an order that never shows two images).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from openstack.connection import Connection

from factory.errors import StoreError
from factory.model import StoredImage
from factory.store.glance import GlanceStore, Observer, unobserved
from factory.store.protocol import IdTaken

CHOSEN_IDS, HIDDEN, TOGETHER = "chosen-ids", "hidden", "together"
WITHOUT = (CHOSEN_IDS, HIDDEN, TOGETHER)
CLAIM, FLAG, SHOWN_AS = "imgfactory_claim", "imgfactory_hidden", "imgfactory_shown_as"
SETTLE_S = 2.0
"""Longer than the second in which a cloud tells the time of a creation."""
_OUT_OF_LISTS = MappingProxyType({"public": "community"})
_SHOWN_NAMES = ("_latest", "_prev")


class NarrowGlance(GlanceStore):
    """A :class:`GlanceStore` that does without some of what Glance offers."""

    def __init__(
        self,
        connection: Connection,
        *,
        cloud: str,
        without: Iterable[str],
        holder: str = "",
        observer: Observer = unobserved,
        settle_s: float = SETTLE_S,
    ) -> None:
        super().__init__(connection, cloud=cloud, holder=holder, observer=observer)
        self._without = frozenset(without)
        self._settle_s = settle_s

    # -- ids --------------------------------------------------------------------------------------------------------

    def create(self, image_id: str, attributes: Mapping[str, object]) -> StoredImage:
        wanted = self._translated(attributes, None)
        if CHOSEN_IDS not in self._without:
            return self._seen(super().create(image_id, wanted))
        if self._claims(image_id):
            raise IdTaken(f"the claim {image_id} is taken in '{self._cloud}'")
        made = self._seen(super().create("", {**wanted, CLAIM: image_id}))
        time.sleep(self._settle_s)  # whoever made one in the same second is listed now, to both of us
        first = min(self._claims(image_id), key=lambda image: (image.created_at, image.id))
        if first.id != made.id:
            self.delete(made.id)
            raise IdTaken(f"the claim {image_id} was somebody else's first in '{self._cloud}'")
        return made

    def get(self, image_id: str) -> StoredImage | None:
        found = super().get(image_id)
        if found is None and CHOSEN_IDS in self._without:
            claims = self._claims(image_id)
            return min(claims, key=lambda image: (image.created_at, image.id)) if claims else None
        return self._seen(found) if found else None

    def _claims(self, image_id: str) -> tuple[StoredImage, ...]:
        return tuple(image for image in self._settled({CLAIM: image_id, "owner": self.project_id}))

    # -- hidden -----------------------------------------------------------------------------------------------------

    def shown(self, properties: Mapping[str, str]) -> tuple[StoredImage, ...]:
        found = super().shown(properties)
        return tuple(image for image in map(self._seen, found) if not image.hidden)

    def _settled(self, filters: Mapping[str, str]) -> tuple[StoredImage, ...]:
        if HIDDEN not in self._without:
            return super()._settled(filters)
        return tuple(map(self._seen, self._list(filters, hidden=None).values()))

    def _list(self, filters: Mapping[str, str], *, hidden: bool | None) -> dict[str, StoredImage]:
        return super()._list(filters, hidden=None if HIDDEN in self._without else hidden)

    def _seen(self, image: StoredImage) -> StoredImage:
        """The image as one that knows ``os_hidden`` would be told."""
        if HIDDEN not in self._without or FLAG not in image.properties:
            return image
        hidden = image.properties[FLAG] == "true"
        return dataclasses.replace(image, hidden=hidden, visibility=image.properties.get(SHOWN_AS, image.visibility))

    def _translated(self, change: Mapping[str, object], image: StoredImage | None) -> dict[str, object]:
        """The change without ``os_hidden``: what is hidden is not public instead."""
        told = dict(change)
        if HIDDEN not in self._without or not {"os_hidden", "visibility"} & told.keys():
            return told
        hidden = told.pop("os_hidden", image.hidden if image else False)
        if not isinstance(hidden, bool):
            raise StoreError(
                f"the image service of '{self._cloud}' refused a request: os_hidden is {hidden!r}, not a boolean"
            )
        shown_as = str(told.pop("visibility", image.visibility if image else "shared"))
        visibility = _OUT_OF_LISTS.get(shown_as, "private") if hidden else shown_as
        return {**told, "visibility": visibility, FLAG: str(hidden).lower(), SHOWN_AS: shown_as}

    # -- changes ----------------------------------------------------------------------------------------------------

    def patch(self, image_id: str, change: Mapping[str, object]) -> StoredImage:
        image: StoredImage | None = None
        for part in self._parts(image_id, change):
            image = super().patch(image_id, part)
        return self._known(image, image_id)

    def prepare(self, image_id: str, change: Mapping[str, object]) -> Callable[[], StoredImage]:
        pending = [super(NarrowGlance, self).prepare(image_id, part) for part in self._parts(image_id, change)]

        def send() -> StoredImage:
            image: StoredImage | None = None
            for one in pending:
                image = one()
            return self._known(image, image_id)

        return send

    def _known(self, image: StoredImage | None, image_id: str) -> StoredImage:
        if image is None:
            raise StoreError(f"nothing was to be changed on image {image_id}")
        return self._seen(image)

    def _parts(self, image_id: str, change: Mapping[str, object]) -> list[dict[str, object]]:
        """The requests that make a change, in order."""
        image = self.get(image_id) if HIDDEN in self._without else None
        if TOGETHER not in self._without:
            return [self._translated(change, image)]
        parts = []
        for one in one_by_one(change):
            translated = self._translated(one, image)
            parts += [{key: translated[key]} for key in sorted(translated, key=lambda key: key != "visibility")]
            if image is not None and one.keys() <= {"os_hidden", "visibility"}:
                image = dataclasses.replace(
                    image,
                    hidden=bool(one.get("os_hidden", image.hidden)),
                    visibility=str(one.get("visibility", image.visibility)),
                )
        return parts


def one_by_one(change: Mapping[str, object]) -> list[dict[str, object]]:
    """A change as single ones, in an order in which no two images are shown under one name, and none before its time.

    An image is hidden before it gets a name that another one has, it leaves such a name before it is hidden, it is
    shown last of all, and its test mark, which makes it fit to be anything, comes after all that it is a mark of.
    """
    name = str(change.get("name", ""))

    def rank(key: str) -> int:
        if key == "os_hidden":
            if not change[key]:
                return 5
            return 4 if name and not name.endswith(_SHOWN_NAMES) else 0
        return {"protected": 2, "visibility": 2, "name": 3, "imgfactory_tested": 6}.get(key, 1)

    return [{key: change[key]} for key in sorted(change, key=lambda key: (rank(key), key))]
