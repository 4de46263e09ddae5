# SPDX-License-Identifier: Apache-2.0
"""Secrets by reference: a site file says ``env:NAME`` or ``file:PATH``, and the secret is read where it is used.

What is read is never written: not into stage files, trees, locks, logs or reports. Values that hold a secret do not
show it when they are printed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from factory.errors import Fault, InputFault

REFERENCE = re.compile(r"env:[A-Za-z_][A-Za-z0-9_]*|file:[^\x00-\x1f\x7f]+")
_OTHERS = 0o077
_LIMIT_BYTES = 16384


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """A user name and password, as they are."""

    user: str = field(repr=False)
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Secrets:
    """Where references lead: the environment of the command, and files relative to ``folder``."""

    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    folder: Path = field(default_factory=Path)

    def read(self, reference: str, *, place: str) -> str:
        """The secret that a reference names.

        Args:
            place: where the reference stands, for the error.

        Raises:
            InputFault: it leads nowhere, or to a file that others may read; the secret is never told.
        """
        kind, _, name = reference.partition(":")
        try:
            secret = self._variable(name) if kind == "env" else self._file(name)
        except _NoSecretError as problem:
            fault = Fault(place=place, problem=str(problem))
            raise InputFault("a secret that the site file refers to cannot be read", faults=(fault,)) from None
        return secret

    def _variable(self, name: str) -> str:
        if name not in self.environment:
            raise _NoSecretError(f"refers to the environment variable {name}, which is not set")
        return _one_line(self.environment[name], f"the environment variable {name}")

    def _file(self, name: str) -> str:
        path = self.folder / Path(name).expanduser()
        try:
            with path.open("rb") as file:
                mode, content = path.stat().st_mode, file.read(_LIMIT_BYTES)
        except OSError as missing:
            raise _NoSecretError(f"refers to '{path}', which cannot be read: {missing.strerror}") from None
        if mode & _OTHERS:
            raise _NoSecretError(f"refers to '{path}', which others may read or change; chmod 0600 it")
        return _one_line(content.decode(errors="replace"), f"'{path}'")


class _NoSecretError(Exception):
    """Why there is no secret."""


def _one_line(text: str, source: str) -> str:
    found = text.removesuffix("\n").removesuffix("\r")
    if not found or not found.isprintable():
        raise _NoSecretError(f"refers to {source}, which is empty or holds more than one printable line")
    return found
