# SPDX-License-Identifier: Apache-2.0
"""Bundle → Release: claim a generation, upload, read the digest back, describe; still hidden from every list.

Three requests write: the claim (S1), the bytes (S2) and, after the stored bytes were proven to be the signed ones (S3),
everything that is said about them (S4 and S5) in one PATCH. Killed anywhere, the next call goes on with its own
candidate. Only :mod:`factory.rotate` changes what users see.
"""

from __future__ import annotations

import time
from datetime import datetime

from factory.errors import Fault, InputFault, LineHeld, StoreError
from factory.model import Artifact, Bundle, Release, Role, StoredImage, Target
from factory.store.holding import refuse_if_held
from factory.store.line import LEASE_S, claim_id, free_dated_name
from factory.store.metadata import (
    GIB,
    Identity,
    identity,
    metadata,
    promise,
    release_properties,
    rivals,
    tags,
    unmet,
    wire,
    with_unknown_bits,
)
from factory.store.platform_signature import signature_properties
from factory.store.properties import SIGNATURE, faults, name_faults, reserved, unknown
from factory.store.protocol import IdTaken, ImageStore, NotWanted, Say
from factory.store.recovery import foreign, recover
from factory.system.files import expect_digest

_CLAIMS = 16
_SAVING_S = 30.0


def publish(
    bundle: Bundle, *, store: ImageStore, target: Target, now: datetime, say: Say, lease_s: float = LEASE_S
) -> Release:
    """Bring a signed image into a store, proven and described, but hidden.

    The caller has the local lock of the line. The same bundle again does nothing; a bundle that was cut off goes on.

    Args:
        lease_s: how long another factory's silent candidate keeps the line.

    Raises:
        InputFault: the metadata cannot be published.
        LineHeld: another factory holds the line; nothing was changed.
        StoreError: the store is away, refuses, or holds other bytes than were signed.
    """
    artifact, line = bundle.artifact, bundle.artifact.recipe.description.line
    expect_digest(artifact.path, artifact.sha256)
    _check(bundle, target, say)
    images = recover(store, line, now=now, say=say, lease_s=lease_s, keep=(artifact.sha512,)).images
    for image in foreign(store, line):
        say(f"ALARM: '{image.name}' is also the name of {image.id}, owned by {image.owner}; it is left alone")
    _only_generic(bundle, store, target, images, say)
    present = _present(images, artifact)
    if present is not None and (present.role != Role.CANDIDATE or present.tested):
        say(f"{line}: this build is image {present.id} already ({present.role})")
        if present.role == Role.CANDIDATE:
            present = _renewed(store, present)
        return _release(bundle, target, present, at=present.updated_at, upload_s=0.0)
    resumed = _resumable(store, present, artifact, say) if present is not None else None
    image = resumed or _claim(bundle, store, target, images, now=now, say=say, lease_s=lease_s)
    if image.status == "queued" and (missing := _signed(image, bundle, target)):
        image = store.patch(image.id, missing)
    upload_s = _upload(store, image, artifact, say)
    stored = _proven(store, image.id, artifact, say)
    released = _describe(store, stored, bundle, target, images)
    say(f"{line}: image {released.id} is published, hidden as '{released.name}'")
    return _release(bundle, target, released, at=now, upload_s=upload_s)


def _check(bundle: Bundle, target: Target, say: Say) -> None:
    description, artifact = bundle.artifact.recipe.description, bundle.artifact
    place = f"{description.name}/image.toml [metadata]"
    exclusive = target.otc.exclusions if target.otc else ()
    found = [*reserved(description.metadata, place=place)]
    found += faults(metadata(bundle, target), place=place, purposes=(target.aged_purpose,), exclusive=exclusive)
    found += [Fault(place=place, problem=problem) for problem in unmet(bundle)]
    longest = f"{description.line}_{artifact.built_at:%Y%m%d_%H%M}"
    found += name_faults(longest, place=f"{description.name}/image.toml image.line")
    if found:
        raise InputFault(f"the metadata of '{description.name}' cannot be published", faults=tuple(found))
    if target.signature:
        signature_properties(target.signature, artifact.sha512)  # a wrong key is told before anything is sent
    needed_gib = -(-artifact.virtual_size_bytes // GIB)
    if needed_gib > int(metadata(bundle, target)["min_disk"]):
        raise InputFault(
            f"'{description.name}' needs a disk of {needed_gib} GiB, more than its minimum disk",
            hint=f"set disk.min_gib = {needed_gib} in its image.toml",
        )
    for key in unknown(metadata(bundle, target)):
        say(f"warning: no standard we know of names the property '{key}'")


def _only_generic(bundle: Bundle, store: ImageStore, target: Target, images: tuple[StoredImage, ...], say: Say) -> None:
    """At most one visible public image is the generic one of a distribution, version and architecture.

    A line that is so already goes on, or its users would miss updates because of somebody else's image.

    Raises:
        InputFault: this line would become the second one.
    """
    description = bundle.artifact.recipe.description
    generic = identity(description)
    if generic is None or target.visibility != "public":
        return
    established = any(image.role == Role.LATEST and not image.hidden for image in images)
    found = rivals(description.line, generic, _alike(store, generic))
    ours = [rival for rival in found if rival.owner == store.project_id]
    for rival in ours:
        whose = f"line '{rival.line}'" if rival.line else "another hand"
        if not established:
            raise InputFault(
                f"'{description.line}' would be a second generic image of {generic}",
                faults=(Fault(place=f"image {rival.id}", problem=f"'{rival.name}' of {whose} is it already"),),
                hint="set os_purpose under [metadata] of one of them to another purpose, or hide the old image",
            )
        say(f"ALARM: '{rival.name}' ({rival.id}, {whose}) is generic for {generic} too")
    if others := len(found) - len(ours):
        first = next(rival for rival in found if rival not in ours)
        say(f"warning: {others} public image(s) of others are generic for {generic} too, such as {first.id}")


def _alike(store: ImageStore, generic: Identity) -> tuple[StoredImage, ...]:
    return store.shown(
        {
            "os_distro": generic.distro,
            "os_version": generic.version,
            "architecture": generic.arch,
            "os_purpose": "generic",
        }
    )


def _present(images: tuple[StoredImage, ...], artifact: Artifact) -> StoredImage | None:
    """The image of this very build, or else a candidate with the same bytes that a crash left."""
    same = [image for image in images if image.properties.get("imgfactory_sha512") == artifact.sha512]
    built_at = artifact.built_at.isoformat()
    for image in same:
        if image.properties.get("imgfactory_built_at") == built_at:
            return image
    unfinished = [image for image in same if image.role == Role.CANDIDATE and not image.tested]
    return unfinished[0] if unfinished else None


def _resumable(store: ImageStore, image: StoredImage, artifact: Artifact, say: Say) -> StoredImage | None:
    """The candidate of an earlier, killed run, if its record can still become ours; else it is deleted."""
    deadline = time.monotonic() + _SAVING_S
    current = store.get(image.id)
    while current is not None and current.status == "saving" and time.monotonic() < deadline:
        time.sleep(0.5)  # Glance notices that the sender is gone and puts it back to queued
        current = store.get(image.id)
    if current is not None and (current.status == "queued" or _same_bytes(current, artifact)):
        say(f"going on with candidate {current.id} ({current.status})")
        return _renewed(store, current)
    if current is not None:
        say(f"deleting candidate {current.id}, which a cut-off upload left {current.status}")
        store.delete(current.id)
    return None


def _renewed(store: ImageStore, image: StoredImage) -> StoredImage:
    """The candidate, as one that we work on now: its lease may have ended since."""
    return store.patch(image.id, {"imgfactory_holder": store.holder})


def _same_bytes(image: StoredImage, artifact: Artifact) -> bool:
    known = image.hash_algo != "sha512" or image.hash_value == artifact.sha512
    return image.status == "active" and image.size_bytes == artifact.size_bytes and known


def _claim(
    bundle: Bundle,
    store: ImageStore,
    target: Target,
    images: tuple[StoredImage, ...],
    *,
    now: datetime,
    say: Say,
    lease_s: float,
) -> StoredImage:
    """S1: make the record of the next generation under the id that everybody derives for it."""
    artifact, line = bundle.artifact, bundle.artifact.recipe.description.line
    taken = {name for image in images for name in (image.name, image.dated_name)}
    dated = free_dated_name(line, artifact.built_at, taken)
    first = 1 + max((image.generation for image in images), default=0)
    for generation in range(first, first + _CLAIMS):
        image_id = claim_id(store.project_id, line, generation)
        claim = {
            "name": dated,
            "visibility": "private",
            "os_hidden": True,
            "tags": list(tags(bundle, target)),
            "imgfactory_line": line,
            "imgfactory_role": Role.CANDIDATE.value,
            "imgfactory_generation": str(generation),
            "imgfactory_dated_name": dated,
            "imgfactory_build_id": artifact.build_id,
            "imgfactory_built_at": artifact.built_at.isoformat(),
            "imgfactory_sha512": artifact.sha512,
            "imgfactory_holder": store.holder,
            **(signature_properties(target.signature, artifact.sha512) if target.signature else {}),
        }
        try:
            return _out_of_lists(store.create(image_id, claim), store)
        except IdTaken:
            holder = store.get(image_id)
            if holder is not None and holder.owner == store.project_id and holder.line == line:
                if _is_claim(holder, claim):  # our own, whose answer was lost
                    return holder
                refuse_if_held([holder], line=line, now=now, lease_s=lease_s, holder=store.holder)
                raise LineHeld(
                    f"another factory has published generation {generation} of '{line}' just now",
                    hint="nothing was changed; run this again",
                ) from None
            say(f"ALARM: the id of generation {generation} is burnt or somebody else's; trying the next")
    raise StoreError(
        f"none of {_CLAIMS} generations of '{line}' could be claimed",
        hint="did somebody delete images of this line, or take its ids on purpose?",
    )


def _out_of_lists(image: StoredImage, store: ImageStore) -> StoredImage:
    """The record, if it is hidden as was asked for.

    Raises:
        StoreError: this cloud hides nothing; the record was deleted.
    """
    if not image.hidden:
        store.delete(image.id)
        raise StoreError(
            "this cloud knows no hidden images; the candidate was deleted",
            hint="set without = [\"hidden\"] in its [[target]]; 'factory doctor --cloud' tells what else it lacks",
        )
    return image


def _is_claim(image: StoredImage, claim: dict[str, object]) -> bool:
    ours = ("imgfactory_holder", "imgfactory_built_at", "imgfactory_sha512")
    return all(image.properties.get(key) == claim[key] for key in ours)


def _signed(image: StoredImage, bundle: Bundle, target: Target) -> dict[str, str]:
    """The platform signature, where a candidate of an earlier run still lacks it."""
    if target.signature is None or all(key in image.properties for key in SIGNATURE):
        return {}
    return signature_properties(target.signature, bundle.artifact.sha512)


def _upload(store: ImageStore, image: StoredImage, artifact: Artifact, say: Say) -> float:
    """S2: the bytes, unless they are there."""
    if image.status == "active":
        return 0.0
    started = time.monotonic()
    try:
        store.upload(image.id, artifact.path)
    except NotWanted as refused:
        store.delete(image.id)
        raise StoreError(
            f"the store does not take '{artifact.path.name}' for a qcow2 image",
            hint="the image is damaged: build it again",
        ) from refused
    seconds = time.monotonic() - started
    say(f"uploaded {artifact.size_bytes / 1e6:.0f} MB in {seconds:.1f} s")
    return seconds


def _proven(store: ImageStore, image_id: str, artifact: Artifact, say: Say) -> StoredImage:
    """S3: the stored bytes are the signed ones; a candidate with others is deleted."""
    stored = store.get(image_id)
    if stored is None or stored.status != "active":
        state = "gone" if stored is None else stored.status
        raise StoreError(f"image {image_id} is {state} after its upload", hint="run this again")
    size_bytes, sha512 = stored.size_bytes, stored.hash_value
    if stored.hash_algo != "sha512" or not sha512 or size_bytes is None:
        say("the store tells no SHA-512; downloading the image to compare it")
        found = store.read_back(image_id)
        size_bytes, sha512 = found.size_bytes, found.sha512
    if (size_bytes, sha512) != (artifact.size_bytes, artifact.sha512):
        store.delete(image_id)
        raise StoreError(
            "the store holds other bytes than were signed; the candidate was deleted",
            facts=(
                ("signed", f"{artifact.sha512} ({artifact.size_bytes} bytes)"),
                ("stored", f"{sha512} ({size_bytes} bytes)"),
            ),
            hint="does this cloud convert images on import? The factory needs its direct upload to be left alone",
        )
    virtual = stored.virtual_size_bytes
    if virtual and virtual != artifact.virtual_size_bytes:
        store.delete(image_id)
        raise StoreError(
            f"the store sees a disk of {virtual} bytes; the candidate was deleted",
            facts=(("built", f"{artifact.virtual_size_bytes} bytes"),),
            hint="build the image again",
        )
    return stored


def _describe(
    store: ImageStore, image: StoredImage, bundle: Bundle, target: Target, images: tuple[StoredImage, ...]
) -> StoredImage:
    """S4 and S5: tested, described, public and protected in one request; hidden until the swap."""
    artifact = bundle.artifact
    description = artifact.recipe.description
    published = [other for other in images if other.role != Role.CANDIDATE and other.id != image.id]
    month = artifact.built_at.strftime("%Y-%m")
    first = all(other.properties.get("imgfactory_built_at", "")[:7] != month for other in published)
    advertised = description.metadata.get("uuid_validity", "")
    until = promise(artifact.built_at, description.retention, first_of_month=first, advertised=advertised)
    said = release_properties(bundle, target, image.dated_name)
    if "uuid_validity" not in description.metadata:
        said["uuid_validity"] = until
    change = {
        **wire(with_unknown_bits(said, image.properties, target.otc)),
        **_signed(image, bundle, target),
        "imgfactory_keep_until": until,
        "imgfactory_built_at": artifact.built_at.isoformat(),
        "imgfactory_holder": store.holder,
        "visibility": target.visibility,
        "protected": True,
        "os_hidden": True,
    }
    return store.patch(image.id, change)


def _release(bundle: Bundle, target: Target, image: StoredImage, *, at: datetime, upload_s: float) -> Release:
    return Release(
        bundle=bundle,
        target=target,
        image_id=image.id,
        generation=image.generation,
        dated_name=image.dated_name,
        published_at=at,
        upload_s=upload_s,
    )
