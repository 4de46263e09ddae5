# SPDX-License-Identifier: Apache-2.0
"""A place to sign in, with real keys: for tests of signatures and of what rests on them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from factory.model import Signing
from factory.sign import sign
from factory.sign.openpgp import own_home
from factory.sign.verify import verify_signatures
from factory.system.state import State
from testsuite import samples

NIGHT = samples.NIGHT
LATER = NIGHT + timedelta(minutes=10)


@dataclass(frozen=True)
class Place:
    """A state, a keys folder and a real key outside both."""

    state: State
    keys: Path
    gnupg_home: Path
    fingerprint: str

    @property
    def signing(self) -> Signing:
        return Signing(fingerprint=self.fingerprint, gnupg_home=self.gnupg_home)

    def list_key(self, *, in_use_from: str = "2026-01-01", extra: str = "") -> None:
        (self.keys / "keys.toml").write_text(
            f'[[key]]\nfingerprint = "{self.fingerprint}"\nuser_id = "Images <images@cloud.example>"\n'
            f'created = 2026-01-01\nin_use_from = {in_use_from}\nfile = "images.asc"\n{extra}'
        )

    def sign(self, *, signing: Signing | None = None, now: datetime = LATER, **change: object):
        run = self.state.new_run("debian13", now) if "run" not in change else change.pop("run")
        made = samples.artifact(run, built_at=now - timedelta(minutes=10))
        judged = change.pop("verdict", samples.verdict)(made)
        change.pop("spoil", lambda _: None)(made)
        return sign(
            made,
            judged,
            run=run,
            state=self.state,
            signing=signing or Signing(),
            keys=self.keys,
            now=now,
            say=lambda _: None,
        )

    def verify(self, directory: Path, *, now: datetime = LATER, public_keys: tuple[Path, ...] = ()):
        return verify_signatures(
            directory, keys=self.keys, public_keys=public_keys, trusted=self.state.keys / "public", now=now
        )


def make_key(home: Path, public: Path, *, made: datetime, days: int, log: Path) -> str:
    home.mkdir(mode=0o700)
    with own_home(home, now=made, log=log) as opened:
        fingerprint = opened.generate("Images <images@cloud.example>", days=days)
        public.write_text(opened.export(fingerprint))
    return fingerprint
