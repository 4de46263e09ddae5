# SPDX-License-Identifier: Apache-2.0
"""The keys that an image trusts for its repositories, as they lie in it: a package may bring others than we know."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from factory.build.evidence import Read
from factory.errors import BuildError
from factory.inputs.keyring import keys_in, that_sign, told
from factory.model import Recipe


def expect_keys_live(recipe: Recipe, read: Read, *, epoch: int) -> None:
    """Raise when no key that signs one of the image's repositories lives as long as the image is kept.

    An image without such a file trusts nobody; that updates can be had is judged in the booted guest. Time is counted
    from ``epoch``, the newest date of a signed index: a rebuild comes to the same.

    Raises:
        BuildError: names the repository, its keys, and the dates.
    """
    until = datetime.fromtimestamp(epoch, UTC) + timedelta(days=recipe.description.retention.lifetime_days)
    for alias, path in sorted({(one.alias, one.key) for one in recipe.repositories if one.key}):
        content = read(path)
        with tempfile.TemporaryDirectory(prefix="factory-keyring-") as folder:
            file = Path(folder) / "keyring"
            file.write_bytes(content)
            keys = that_sign(keys_in(file), recipe.signers.get(alias, ())) if content else ()
        if keys and all(key.ends < until for key in keys):
            raise BuildError(
                f"instances could not update from '{alias}' for as long as the image is kept",
                facts=(("keyring in the image", path), ("kept until", f"{until:%Y-%m-%d}"), ("keys", told(keys))),
                hint="install the vendor's newer keyring, or keep images for a shorter time ([retention] monthly)",
            )
