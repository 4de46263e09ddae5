# SPDX-License-Identifier: Apache-2.0
"""Which keys may sign a repository, by full fingerprint: a keyring says who could, this says who does.

For a repository that ``keys/upstream.toml`` names, one of the fingerprints there must have signed. For any other, who
signed when a suite was first read is remembered in the state folder, and one of those must have signed from then on; a
new key that signs together with a known one is remembered too, which is how archives change their keys.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from factory.errors import InputsError
from factory.system.files import write_whole

UPSTREAM_KEYS = "keys/upstream.toml"


class Signers:
    """Who signed the suites that were read before; one file a suite, a fingerprint a line.

    Args:
        folder: where they are remembered; nobody is without one.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    def expect(self, repository: str, suite: str, *, pinned: Iterable[str], found: Iterable[str]) -> None:
        """Raise when none of the keys that signed a suite is one that is expected.

        Args:
            pinned: the fingerprints that a person named for the repository, if any.
            found: of the primary keys whose signature is good.

        Raises:
            InputsError: shows the fingerprints on both sides.
        """
        signed, named = frozenset(found), frozenset(pinned)
        known = named or self._remembered(repository, suite)
        if known and signed.isdisjoint(known):
            raise _another(repository, suite, signed=signed, known=known, named=bool(named))
        if not named and not signed <= known:
            self._remember(repository, suite, known | signed)

    def _file(self, repository: str, suite: str) -> Path | None:
        return self._folder / f"{repository}_{quote(suite, safe='')}" if self._folder else None

    def _remembered(self, repository: str, suite: str) -> frozenset[str]:
        file = self._file(repository, suite)
        with contextlib.suppress(FileNotFoundError):
            return frozenset(file.read_text().split()) if file else frozenset()
        return frozenset()

    def _remember(self, repository: str, suite: str, known: frozenset[str]) -> None:
        if (file := self._file(repository, suite)) is not None:
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_whole(file, "".join(f"{one}\n" for one in sorted(known)))


def _another(repository: str, suite: str, *, signed: frozenset[str], known: frozenset[str], named: bool) -> InputsError:
    expected = f"expected by {UPSTREAM_KEYS}" if named else "seen before"
    return InputsError(
        f"repository '{repository}' (suite {suite}) is signed by another key",
        facts=(*(("signed by", one) for one in sorted(signed)), *((expected, one) for one in sorted(known))),
        hint=f"compare the fingerprint with the archive's own word by a second way; if it is right, write it into "
        f"{UPSTREAM_KEYS} under [{repository}]; if not, do not trust this mirror",
    )
