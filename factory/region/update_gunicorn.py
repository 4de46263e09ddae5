# SPDX-License-Identifier: Apache-2.0
"""How gunicorn runs the sandbox update server: as the other servers, under a name that says what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gunicorn.http.wsgi  # type: ignore[import-untyped]
from gunicorn.app.base import BaseApplication  # type: ignore[import-untyped]

from factory import __version__
from factory.region import gunicorn_settings
from factory.region.gunicorn_settings import *  # noqa: F403 - gunicorn reads this module's names
from factory.region.update import app_of
from factory.region.update_settings import StandaloneSettings

gunicorn.http.wsgi.SERVER = f"ImageFactory/{__version__} (sandbox update server, not RMT)"


class _Standalone(BaseApplication):  # type: ignore[misc]
    def __init__(self, settings: StandaloneSettings, *, plain: bool) -> None:
        self._settings = settings
        self._plain = plain
        super().__init__()

    def load_config(self) -> None:
        given = vars(gunicorn_settings)
        for name in self.cfg.settings:
            if name in given:
                self.cfg.set(name, given[name])
        self.cfg.set("bind", list(self._settings.listen))
        if not self._plain:
            self.cfg.set("certfile", str(self._settings.certificate))
            self.cfg.set("keyfile", str(self._settings.key))

    def load(self) -> Any:  # noqa: ANN401 - a WSGI application
        return app_of(self._settings.update)


def serve_forever(settings: StandaloneSettings) -> None:
    """Answer until SIGTERM or Ctrl-C, in this process and a worker; never returns."""
    # what would stop the worker again and again is told once, before
    app_of(settings.update, send=False)
    _Standalone(settings, plain=settings.update.plain).run()


def database_of(settings: StandaloneSettings) -> Path:
    """Where the registrations of a server are."""
    return Path(settings.update.database)
