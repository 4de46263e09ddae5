# SPDX-License-Identifier: Apache-2.0
"""What an update server is told about its peers; apart from the sharing itself, which needs a web server."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from factory.errors import InputFault

_PEER = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?)(:[0-9]{1,5})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class SharingSettings:
    """``[regsharing]``: the peers (HOST or HOST:PORT), the file with the secret all of them know, the replay log.

    ``ca_path`` holds the CA certificates that peers' certificates are verified with (default: the system's).
    """

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    peers: tuple[str, ...] = ()
    api_secret_file: str = ""
    data_dir: str = ""
    ca_path: str = ""
    interval_s: float = 30.0

    def secret(self) -> str:
        """The secret; empty when there is none, and then nothing is taken from peers.

        Raises:
            InputFault: the file cannot be used, or peers are named without a secret.
        """
        for peer in self.peers:
            if not _PEER.fullmatch(peer):
                raise InputFault(f"{peer!r} is no peer", hint="write a host name or address, and :PORT where needed")
        if self.peers and not (self.api_secret_file and self.data_dir):
            raise InputFault("peers need 'api_secret_file' and 'data_dir'", hint="every peer must know the same secret")
        if not self.api_secret_file:
            return ""
        path = Path(self.api_secret_file)
        try:
            if path.stat().st_mode & 0o077:
                raise InputFault(f"'{path}' can be read by others", hint="chmod 600")
            found = path.read_text().strip()
        except (OSError, UnicodeDecodeError) as wrong:
            raise InputFault(f"'{path}' cannot be read", hint=str(wrong)) from wrong
        if not found or not found.isascii():
            raise InputFault(f"'{path}' holds no secret", hint="write one with 'openssl rand -hex 32'")
        return found
