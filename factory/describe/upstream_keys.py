# SPDX-License-Identifier: Apache-2.0
"""``keys/upstream.toml``: by alias, which keys sign the repositories we build from; and keyrings in ``keys/vendor``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, RootModel

from factory.describe.places import read_toml
from factory.inputs.signers import UPSTREAM_KEYS

VENDOR = "keys/vendor"
_SUFFIXES = (".gpg", ".pgp", ".asc")
_FINGERPRINT = re.compile(r"[0-9A-F]{40}([0-9A-F]{24})?")


def _fingerprint(text: str) -> str:
    plain = "".join(text.split()).upper()
    if not _FINGERPRINT.fullmatch(plain):
        raise ValueError("is no full fingerprint: 40 or 64 hexadecimal digits")
    return plain


class _Repository(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    fingerprints: list[Annotated[str, AfterValidator(_fingerprint)]] = Field(min_length=1)


class _Upstream(RootModel[dict[str, _Repository]]):
    """A table for each repository."""


def upstream_keys(project: Path) -> dict[str, tuple[str, ...]]:
    """The full fingerprints of the keys that must have signed a repository, by its alias; empty without the file.

    Raises:
        InputFault: the file has faults; all of them, with their lines.
    """
    file = project / UPSTREAM_KEYS
    if not file.is_file():
        return {}
    found = read_toml(file, _Upstream, shown=UPSTREAM_KEYS)
    return {alias: tuple(one.fingerprints) for alias, one in found.root.items()}


def vendor_keyring(project: Path, alias: str) -> Path | None:
    """The keyring that the project itself brings for a repository; it goes before the host's."""
    files = (project / VENDOR / f"{alias}{suffix}" for suffix in _SUFFIXES)
    return next((file for file in files if file.is_file()), None)
