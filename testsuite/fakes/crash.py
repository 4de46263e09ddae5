# SPDX-License-Identifier: Apache-2.0
"""A store that stops its caller before or after its N-th writing request, as SIGKILL would."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from factory.model import StoredImage
from factory.store.protocol import ImageStore
from factory.system.files import Digests

Answer = TypeVar("Answer")


class Killed(BaseException):
    """Not an Exception: no handler of ours may catch it, as none catches SIGKILL."""


class CrashingStore:
    """Delegates to a real store; ``kill_at`` counts writes from 1, ``before`` says on which side of it to stop."""

    def __init__(self, store: ImageStore, *, kill_at: int = 0, before: bool = True) -> None:
        self._store = store
        self._kill_at = kill_at
        self._before = before
        self.writes: list[str] = []

    @property
    def project_id(self) -> str:
        return self._store.project_id

    @property
    def holder(self) -> str:
        return self._store.holder

    @property
    def clock(self) -> datetime | None:
        return self._store.clock

    def list_line(self, line: str) -> tuple[StoredImage, ...]:
        return self._store.list_line(line)

    def list_all(self) -> tuple[StoredImage, ...]:
        return self._store.list_all()

    def named(self, *names: str) -> tuple[StoredImage, ...]:
        return self._store.named(*names)

    def shown(self, properties: Mapping[str, str]) -> tuple[StoredImage, ...]:
        return self._store.shown(properties)

    def get(self, image_id: str) -> StoredImage | None:
        return self._store.get(image_id)

    def read_back(self, image_id: str) -> Digests:
        return self._store.read_back(image_id)

    def create(self, image_id: str, attributes: Mapping[str, object]) -> StoredImage:
        return self._write("create", lambda: self._store.create(image_id, attributes))

    def upload(self, image_id: str, path: Path) -> None:
        self._write("upload", lambda: self._store.upload(image_id, path))

    def patch(self, image_id: str, change: Mapping[str, object]) -> StoredImage:
        return self._write("patch", lambda: self._store.patch(image_id, change))

    def prepare(self, image_id: str, change: Mapping[str, object]) -> Callable[[], StoredImage]:
        send = self._store.prepare(image_id, change)
        return lambda: self._write("patch", send)

    def deactivate(self, image_id: str) -> None:
        self._write("deactivate", lambda: self._store.deactivate(image_id))

    def delete(self, image_id: str) -> None:
        self._write("delete", lambda: self._store.delete(image_id))

    def _write(self, name: str, send: Callable[[], Answer]) -> Answer:
        self.writes.append(name)
        dies_here = len(self.writes) == self._kill_at
        if dies_here and self._before:
            raise Killed
        answer = send()
        if dies_here:
            raise Killed
        return answer
