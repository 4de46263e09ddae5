# SPDX-License-Identifier: Apache-2.0
"""What a cloud's image service can do, found by trying with a throw-away image.

The image is private, tagged, a few hundred kilobytes large, and always deleted; one that a killed probe left is deleted
by the next. Everything that publishing and rotating rely on is tried, and what is missing is told with what it costs.
"""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from factory.errors import StoreError
from factory.model import StoredImage
from factory.store.glance import GlanceStore, parse, patch_body
from factory.store.narrow import CHOSEN_IDS, HIDDEN, TOGETHER, one_by_one
from factory.store.properties import NAME_LONGEST
from factory.store.protocol import NotWanted, Say
from factory.system.run import run

TAG = "imgfactory_probe"
"""Tag and property of every probe image."""
_LEASE = timedelta(hours=1)
_PROPERTIES = 64
_SKEW_S = 60.0
_ROOM = 3
_OK, _CREATED, _GONE, _CONFLICT = 200, 201, 204, 409
_KEYS = {
    "caller-chosen ids": CHOSEN_IDS,
    "hidden records": HIDDEN,
    "os_hidden": HIDDEN,
    "multi-operation PATCH": TOGETHER,
}
_INSTEAD = {
    CHOSEN_IDS: "the oldest record of a claim stays, which takes two seconds more",
    HIDDEN: "what is hidden is not public, and lookups by name miss the latest for one request of each swap",
    TOGETHER: "a request for each key, so readers may see halves of a change",
}
_PATCH = {"Content-Type": "application/openstack-images-v2.1-json-patch"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """One thing that was tried; ``degraded`` is what the factory does without it, ``needed`` when it cannot."""

    name: str
    ok: bool
    says: str
    degraded: str = ""
    needed: bool = False


@dataclass(slots=True, kw_only=True)
class _Probe:
    """The throw-away image on its way through the probes."""

    store: GlanceStore
    visibility: str
    now: datetime
    image_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    without: frozenset[str] = frozenset()
    made: set[str] = field(default_factory=set)
    uploaded: bool = False

    def ask(
        self,
        method: str,
        path: str,
        *,
        json: object = None,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, Any]:
        """The status of a request and its JSON, None where it has none; 599 when there is no answer."""
        try:
            answer = self.store.ask(method, path, json=json, data=data, headers=headers)
        except StoreError:
            return 599, None
        try:
            return answer.status_code, answer.json()
        except ValueError:
            return answer.status_code, None

    def patch(self, **change: object) -> int:
        wanted = {key: value for key, value in change.items() if key != "os_hidden" or HIDDEN not in self.without}
        status = _OK
        for part in one_by_one(wanted) if TOGETHER in self.without else [wanted]:
            status, _ = self.ask("PATCH", f"/images/{self.image_id}", data=patch_body(part), headers=_PATCH)
            if status != _OK:
                return status
        return status

    def image(self) -> StoredImage | None:
        status, found = self.ask("GET", f"/images/{self.image_id}")
        return parse(found) if status == _OK else None

    def create(self, image_id: str, **more: object) -> tuple[int, str]:
        """Make a record; its id is noted, so that it is deleted whatever happens next."""
        record = {
            "id": image_id,
            "name": f"{TAG}-{image_id[:8]}",
            "disk_format": "qcow2",
            "container_format": "bare",
            "visibility": "private",
            "tags": [TAG],
            TAG: "yes",
            "imgfactory_holder": self.store.holder,
            **more,
        }
        self.made |= {image_id} - {""}
        status, found = self.ask("POST", "/images", json={key: value for key, value in record.items() if value != ""})
        made = str(found["id"]) if status == _CREATED else ""
        self.made |= {made} - {""}
        return status, made


def probe(
    store: GlanceStore, *, visibility: str, now: datetime, say: Say, without: Sequence[str] = ()
) -> tuple[Probed, ...]:
    """Try everything that publishing relies on, and leave nothing.

    Args:
        visibility: what images of this target are to be.
        without: what the target says that this cloud lacks; that is done in another way, and is no fault then.

    Raises:
        StoreError: the cloud gives no access at all.
    """
    leftovers = clean(store, now=now, say=say)
    image = _Probe(store=store, visibility=visibility, now=now, without=frozenset(without))
    found = [Probed(name="access", ok=True, says=f"project {store.project_id}")]
    if leftovers:
        found.append(Probed(name="leftovers", ok=True, says=f"deleted {leftovers} image(s) of a probe that was killed"))
    try:
        for look in _PROBES:
            found += look(image)
    finally:
        left = [image_id for image_id in sorted(image.made) if not _delete(store, image_id)]
        for image_id in left:
            say(f"the probe image {image_id} could not be deleted; the next probe tries again")
    says = "the probe image is gone" if not left else f"{', '.join(left)} is still there"
    found.append(Probed(name="deletion", ok=not left, says=says, degraded="images that outlived their promise stay"))
    return tuple(_done_without(one, frozenset(without)) for one in found)


def _done_without(found: Probed, without: frozenset[str]) -> Probed:
    """What is missing, with the key of the site file that does without it, or with what is done then."""
    key = _KEYS.get(found.name, "")
    if found.ok or not key:
        return found
    if key in without:
        return replace(found, degraded=f"done without, as the target says: {_INSTEAD[key]}", needed=False)
    cure = f'without = ["{key}"] in its [[target]] does without: {_INSTEAD[key]}'
    return replace(found, degraded=f"{found.degraded}; {cure}")


def clean(store: GlanceStore, *, now: datetime, say: Say) -> int:
    """Delete what killed probes left: ours, and those of others that are old enough to be nobody's any more."""
    gone = 0
    for image in _leftovers(store):
        ours = image.properties.get("imgfactory_holder", "") == store.holder
        if not ours and now - image.created_at < _LEASE:
            say(f"image {image.id} belongs to another probe that may still run; it is left alone")
        elif _delete(store, image.id):
            gone += 1
            say(f"deleted image {image.id}, which a killed probe left")
    return gone


def _leftovers(store: GlanceStore) -> list[StoredImage]:
    """Probe images of our project, whether this cloud knows hidden images or not."""
    found: dict[str, StoredImage] = {}
    for hidden in ("", "&os_hidden=true"):
        answer = store.ask("GET", f"/images?{TAG}=yes&visibility=all&owner={store.project_id}&limit=100{hidden}")
        if answer.status_code != _OK and not hidden:
            raise StoreError(f"the image service gives no list of images (status {answer.status_code})")
        records = answer.json()["images"] if answer.status_code == _OK else []
        found |= {one["id"]: parse(one) for one in records if one.get(TAG) == "yes"}
    return [image for image in found.values() if image.owner in {"", store.project_id}]


def _delete(store: GlanceStore, image_id: str) -> bool:
    with contextlib.suppress(StoreError):
        image = store.get(image_id)
        if image is not None and image.protected:
            store.patch(image_id, {"protected": False})
        store.delete(image_id)
    try:
        return store.get(image_id) is None
    except StoreError:
        return False


# -- the probes, in the order they run ---------------------------------------------------------------------------------


def _ids(image: _Probe) -> Iterator[Probed]:
    """Caller-chosen ids: creating one twice has to fail, that is the lock on a line."""
    name, wanted = "caller-chosen ids", image.image_id
    status, made = image.create(wanted, os_hidden=True)
    if status != _CREATED:
        hidden_status = status
        status, made = image.create(wanted)
        if status == _CREATED:
            yield Probed(
                name="hidden records",
                ok=False,
                says=f"a record cannot be made hidden (status {hidden_status})",
                degraded="nothing can be published: a candidate would be in every list",
                needed=True,
            )
    if status != _CREATED:
        status, made = image.create("", os_hidden=True)
        image.image_id = made or wanted
        says = "a record with an id of ours is refused" if made else f"no record can be made (status {status})"
        yield Probed(name=name, ok=False, says=says, degraded="nothing can be published here", needed=True)
        return
    image.image_id = made
    if made != wanted:
        degraded = "nothing keeps two factories on one line apart: let one host only publish to this cloud"
        yield Probed(name=name, ok=False, says="the cloud chooses another id", degraded=degraded)
        return
    status, again = image.create(wanted)
    says = "the second record with one id is refused" if status == _CONFLICT else f"twice: status {status}"
    degraded = "nothing keeps two factories on one line apart: let one host only publish to this cloud"
    yield Probed(name=name, ok=status == _CONFLICT and not again, says=says, degraded=degraded)


def _hidden(image: _Probe) -> Iterator[Probed]:
    """``os_hidden``: out of the lists, in the list of hidden ones, there by its id."""
    image.patch(os_hidden=True)
    plain, hidden = (_listed(image, hidden=flag) for flag in (False, True))
    there = image.image()
    ok = plain is False and hidden is True and there is not None and there.hidden
    says = "out of plain lists, in the list of hidden ones, there by its id"
    if not ok:
        says = (
            f"plain lists: {_word(plain)}, lists of hidden ones: {_word(hidden)}, by its id: {_word(there is not None)}"
        )
    degraded = "candidates and dated images show in lists, and lookups of a name may find two images"
    yield Probed(name="os_hidden", ok=ok, says=says, degraded=degraded, needed=hidden is None)


def _listed(image: _Probe, *, hidden: bool) -> bool | None:
    """Whether a list by a property of ours has the image; None when there is no such list."""
    query = f"visibility=all&os_hidden={str(hidden).lower()}&{TAG}=yes&owner={image.store.project_id}&limit=100"
    status, body = image.ask("GET", f"/images?{query}")
    if status != _OK:
        return None
    return any(one["id"] == image.image_id for one in body["images"])


def _word(there: bool | None) -> str:  # noqa: FBT001 a word for it
    return {True: "there", False: "not there", None: "no answer"}[there]


def _patches(image: _Probe) -> Iterator[Probed]:
    """One PATCH changes name, flags and properties together, or nothing at all."""
    name = "multi-operation PATCH"
    status = image.patch(
        name=f"{TAG}-patched", os_hidden=True, min_ram=1, imgfactory_probe_a="1", imgfactory_probe_b="2"
    )
    found = image.image()
    together = (
        status == _OK
        and found is not None
        and found.name == f"{TAG}-patched"
        and [found.properties.get(key) for key in ("imgfactory_probe_a", "imgfactory_probe_b", "min_ram")]
        == ["1", "2", "1"]
    )
    if not together:
        degraded = "the swap needs a request for each property: readers see halves of it"
        yield Probed(name=name, ok=False, says=f"not all was set (status {status})", degraded=degraded, needed=True)
        return
    refused = image.patch(imgfactory_probe_a="changed", os_hash_value="0")
    after = image.image()
    whole = refused >= 400 and after is not None and after.properties.get("imgfactory_probe_a") == "1"  # noqa: PLR2004
    says = "all or nothing" if whole else f"a refused request left a part of itself (status {refused})"
    degraded = "a crash or a refusal can leave an image half described; 'factory reconcile' mends names and roles only"
    yield Probed(name=name, ok=whole, says=says, degraded=degraded)


def _properties(image: _Probe) -> Iterator[Probed]:
    """As many properties, and as long a name, as an image of ours has."""
    many = {f"imgfactory_probe_{number}": "x" * 255 for number in range(_PROPERTIES)}
    status = image.patch(**many)
    says = f"{_PROPERTIES} more of 255 characters fit" if status == _OK else f"{_PROPERTIES} more: status {status}"
    yield Probed(name="properties", ok=status == _OK, says=says, degraded="long descriptions may not fit a quota")
    status = image.patch(name=f"{TAG}-{'x' * NAME_LONGEST}"[:NAME_LONGEST])
    says = f"{NAME_LONGEST} characters" if status == _OK else f"{NAME_LONGEST} characters: status {status}"
    yield Probed(name="image names", ok=status == _OK, says=says, degraded="keep the names of lines short")


def _upload(image: _Probe) -> Iterator[Probed]:
    """The plain upload, and what the store tells about the bytes."""
    with tempfile.TemporaryDirectory(prefix="factory-probe-") as folder:
        file = Path(folder) / "probe.qcow2"
        run(["qemu-img", "create", "-q", "-f", "qcow2", file, "16M"], timeout_s=60)
        data = file.read_bytes()
        try:
            image.store.upload(image.image_id, file)
        except (NotWanted, StoreError) as refused:
            degraded = "nothing can be published: the factory sends bytes with the plain upload only"
            yield Probed(
                name="upload",
                ok=False,
                says="; ".join([refused.message, *(text for _, text in refused.facts)]),
                degraded=degraded,
                needed=True,
            )
            return
    found = image.image()
    if found is None or found.status != "active":
        says = f"the image is {found.status if found else 'gone'} afterwards"
        degraded = "nothing can be published: images do not become active by an upload"
        yield Probed(name="upload", ok=False, says=says, degraded=degraded, needed=True)
        return
    image.uploaded = True
    yield Probed(name="upload", ok=True, says=f"{len(data)} bytes, active at once")
    yield _digest(found, data)
    says = f"{found.virtual_size_bytes} bytes" if found.virtual_size_bytes else "not told"
    yield Probed(
        name="virtual size",
        ok=bool(found.virtual_size_bytes),
        says=says,
        degraded="a minimum disk that is too small shows only when an instance is made",
    )


def _digest(found: StoredImage, data: bytes) -> Probed:
    slow = "every image is downloaded after its upload to compare it"
    if not found.hash_value:
        return Probed(name="digest", ok=False, says="the store tells none", degraded=slow)
    if found.hash_algo not in hashlib.algorithms_available:
        return Probed(name="digest", ok=False, says=f"an unknown algorithm, {found.hash_algo[:20]}", degraded=slow)
    same = hashlib.new(found.hash_algo, data).hexdigest() == found.hash_value
    if not same:
        says = f"{found.hash_algo} of other bytes than were sent: this cloud converts images on import"
        return Probed(
            name="digest",
            ok=False,
            says=says,
            degraded="nothing can be published: users could not compare what they get with what was signed",
            needed=True,
        )
    if found.hash_algo != "sha512":
        return Probed(name="digest", ok=False, says=f"{found.hash_algo}, not sha512", degraded=slow)
    return Probed(name="digest", ok=True, says="sha512, of the bytes that were sent")


def _visibility(image: _Probe) -> Iterator[Probed]:
    """What the target asks for, and what there is instead; hidden all the while, so no list shows it."""
    for visibility in ("public", "community"):
        status = image.patch(visibility=visibility, os_hidden=True)
        found = image.image()
        ok = status == _OK and found is not None and found.visibility == visibility
        wanted = visibility == image.visibility
        degraded = "set the target's visibility to 'community' or 'private', or get a role that may publicize images"
        yield Probed(
            name=f"visibility {visibility}",
            ok=ok,
            says="allowed" if ok else f"refused (status {status})",
            degraded=degraded if wanted else "not asked for by this target",
            needed=wanted,
        )
    image.patch(visibility="private")


def _deactivated(image: _Probe) -> Iterator[Probed]:
    if not image.uploaded:
        return
    status, _ = image.ask("POST", f"/images/{image.image_id}/actions/deactivate")
    ok = status == _GONE
    degraded = "a dangerous image can be hidden, but its id stays usable: 'rollback --deactivate' does not work"
    yield Probed(name="deactivate", ok=ok, says="allowed" if ok else f"refused (status {status})", degraded=degraded)


def _protected(image: _Probe) -> Iterator[Probed]:
    """A protected image stays; the last probe, as it may cost the image."""
    image.patch(protected=True)
    status, _ = image.ask("DELETE", f"/images/{image.image_id}")
    there = image.image()
    ok = there is not None and there.protected
    says = "a protected image stays" if ok else f"a protected image was deleted or not protected (status {status})"
    degraded = "nothing but care keeps images from being deleted before their time"
    yield Probed(name="protection", ok=ok, says=says, degraded=degraded)
    image.patch(protected=False)


def _burnt(image: _Probe) -> Iterator[Probed]:
    if image.image() is None or not _delete(image.store, image.image_id):
        return
    status, _ = image.create(image.image_id)
    ok = status == _CONFLICT
    says = "a deleted id cannot be used again" if ok else f"a deleted id can be used again (status {status})"
    degraded = "an id alone proves nothing: owner and signature are to be looked at as well"
    yield Probed(name="deleted ids", ok=ok, says=says, degraded=degraded)


def _offers(image: _Probe) -> Iterator[Probed]:
    """Import methods, quotas, transport and clock: looked at, not tried."""
    status, body = image.ask("GET", "/info/import")
    methods = ", ".join((body or {}).get("import-methods", {}).get("value", [])) if status == _OK else ""
    yield Probed(name="import methods", ok=True, says=methods or "none; the plain upload is used anyway")
    status, body = image.ask("GET", "/info/usage")
    usage = (body or {}).get("usage", {}) if status == _OK else {}
    said = [f"{name} {one.get('usage')} of {one.get('limit')}" for name, one in sorted(usage.items())]
    room = [one["limit"] - one["usage"] for name, one in usage.items() if "count" in name and one["limit"] >= 0]
    yield Probed(
        name="limits",
        ok=not room or min(room) >= _ROOM,
        says=", ".join(said) or "none told",
        degraded=f"fewer than {_ROOM} more images fit: have the quota raised, or keep fewer",
    )
    address = image.store.address()
    secure = address.startswith("https://") or "//127." in address or "//localhost" in address
    degraded = "tokens and images travel in the clear"
    yield Probed(name="transport", ok=secure, says=address.split("?")[0], degraded=degraded)
    yield _clock(image)


def _clock(image: _Probe) -> Probed:
    try:
        text = image.store.ask("GET", "/images?limit=1").headers.get("Date", "")
        there = email.utils.parsedate_to_datetime(text)
    except (StoreError, ValueError):
        return Probed(name="clock", ok=True, says="the cloud tells no time")
    skew_s = abs((there.replace(tzinfo=there.tzinfo or UTC) - image.now).total_seconds())
    degraded = "leases of candidates are judged wrongly: set the clocks"
    return Probed(name="clock", ok=skew_s <= _SKEW_S, says=f"{skew_s:.0f} s apart", degraded=degraded)


_PROBES: tuple[Callable[[_Probe], Iterator[Probed]], ...] = (
    _offers,
    _ids,
    _hidden,
    _patches,
    _properties,
    _upload,
    _visibility,
    _deactivated,
    _protected,
    _burnt,
)
