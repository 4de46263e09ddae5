# SPDX-License-Identifier: Apache-2.0
"""Signing with a key that the caller opened: detached, clear-signed, and inside RPM headers."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from factory.errors import CommandFailed, RegionError
from factory.system.files import write_whole
from factory.system.run import run

_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageSigner:
    """Our signing key: the GnuPG home that holds it, its full fingerprint, and the time that GnuPG shall believe in.

    ``agent`` tells that GnuPG may start an agent of its own there; otherwise one runs already.
    """

    home: Path
    fingerprint: str
    public_key: str
    now: datetime
    agent: bool = False

    @property
    def options(self) -> tuple[str, ...]:
        """What every call of gpg gets."""
        own = () if self.agent else ("--no-options", "--no-autostart")
        return ("--batch", "--no-tty", "--faked-system-time", f"{self.now:%Y%m%dT%H%M%S}!", *own)

    def detached(self, file: Path) -> Path:
        """Write ``FILE.asc`` beside ``file``, whole, and return its path."""
        signature = file.with_name(f"{file.name}.asc")
        write_whole(signature, self._sign(file.read_bytes(), "--detach-sign"))
        return signature

    def clear(self, text: str) -> bytes:
        """The text inside a signed message."""
        return self._sign(text.encode(), "--clear-sign")

    def verifies(self, file: Path, signature: Path) -> bool:
        """Whether ``signature`` is a good one of this key over ``file``."""
        if not (file.is_file() and signature.is_file()):
            return False
        with tempfile.TemporaryDirectory(prefix="factory-keys-") as folder:
            key = Path(folder) / "key.asc"
            key.write_text(self.public_key)
            head: list[str | Path] = ["gpg", "--homedir", folder, "--batch", "--no-tty", "--no-options"]
            head += ["--no-autostart", "--faked-system-time", f"{self.now:%Y%m%dT%H%M%S}!"]
            run([*head, "--import", key], check=False, timeout_s=_TIMEOUT_S)
            checked = run([*head, "--status-fd", "1", "--verify", signature, file], check=False, timeout_s=_TIMEOUT_S)
        return checked.returncode == 0 and "[GNUPG:] GOODSIG " in checked.stdout

    def _sign(self, content: bytes, how: str) -> bytes:
        with tempfile.TemporaryDirectory(prefix="factory-sign-") as folder:
            source, made = Path(folder) / "source", Path(folder) / "made"
            source.write_bytes(content)
            argv: list[str | Path] = ["gpg", "--homedir", self.home, *self.options, "--armor"]
            argv += ["--local-user", self.fingerprint, "--digest-algo", "SHA512", "--output", made, how, source]
            try:
                run(argv, timeout_s=_TIMEOUT_S)
            except CommandFailed as failed:
                raise RegionError(
                    f"the packages could not be signed with {self.fingerprint}",
                    hint="a passphrase must be with the gpg-agent already (gpg-preset-passphrase, or a smart card)",
                ) from failed
            return made.read_bytes()
