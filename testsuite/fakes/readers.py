# SPDX-License-Identifier: Apache-2.0
"""What readers of each class get for a name, and the invariants of a line, judged from a list of images.

Written from the rotation protocol, not from the code under test: visible images first, hidden ones only if there is no
visible one (openstacksdk's ``find_image``), lists without hidden images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from factory.model import StoredImage


def sdk_lookup(images: Sequence[StoredImage], name: str) -> list[StoredImage]:
    """The images a lookup by name is left with: one is right, none or several is an error for the user."""
    visible = [image for image in images if image.name == name and not image.hidden]
    return visible or [image for image in images if image.name == name]


def plain_list(images: Sequence[StoredImage], name: str) -> list[StoredImage]:
    return [image for image in images if image.name == name and not image.hidden]


def expect_never_broken(images: Sequence[StoredImage], line: str, *, prev: bool) -> None:
    """I1, I2, I4: hold after every single request, also before any recovery."""
    for name in (f"{line}_latest", f"{line}_prev"):
        assert len(plain_list(images, name)) <= 1, f"several visible {name}"
    for name in (f"{line}_latest", *([f"{line}_prev"] if prev else [])):
        found = sdk_lookup(images, name)
        assert len(found) == 1, f"{name} resolves to {[image.id for image in found]}"
        assert found[0].status == "active"
    for image in images:
        if image.name == f"{line}_latest":
            assert image.tested
            assert image.properties["imgfactory_sha512"] == image.hash_value


def expect_order(images: Sequence[StoredImage], line: str, *, prev: bool) -> None:
    """What holds in every line that is in order: each name once and visible, the rest hidden under dated names."""
    expect_never_broken(images, line, prev=prev)
    roles = Counter(image.role for image in images)
    assert roles["latest"] == 1
    assert roles["prev"] == (1 if prev else 0)
    shown = {image.name: image for image in images if not image.hidden}
    assert set(shown) == {f"{line}_latest", *([f"{line}_prev"] if prev else [])}
    assert shown[f"{line}_latest"].role == "latest"
    generic = [image for image in shown.values() if image.properties["os_purpose"] == "generic"]
    assert [image.name for image in generic] == [f"{line}_latest"]
    for image in images:
        if image.hidden:
            assert image.name == image.dated_name
            assert image.role in {"archive", "withdrawn", "candidate"}
        if image.tested:
            assert image.protected
    assert len({image.generation for image in images}) == len(images)
