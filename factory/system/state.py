# SPDX-License-Identifier: Apache-2.0
"""Where things are kept: the state folder and the runs in it.

Layout (mode 0700)::

    runs/<UTC yyyymmdd-hhmmss>-<image>/   describe.json ... rotate.json, logs/, tree/, artifacts
    blobs/   inputs by SHA-512            keys/    throw-away GnuPG home and region keys
    cloud/   embedded Keystone, Glance    dist/    the download directory
    tools/   roots of build boxes          roots/   root trees with their packages
    ledger.sqlite                         locks/
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from factory.errors import FactoryError, InputFault
from factory.model import STAGES
from factory.system.clock import stamp
from factory.system.files import write_whole
from factory.system.values import adapter

SCHEMA_VERSION = 1
_RUN = "$RUN"
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The folder of one night of one image."""

    path: Path

    @property
    def id(self) -> str:
        """The run's name, ``yyyymmdd-hhmmss-image``."""
        return self.path.name

    @property
    def image(self) -> str:
        """The image this run is of."""
        return self.id.split("-", 2)[2]

    @property
    def state(self) -> State:
        """The state folder that the run is in."""
        return State(path=self.path.parents[1])

    @property
    def tree(self) -> Path:
        """The self-contained build tree."""
        return self.path / "tree"

    def log(self, name: str) -> Path:
        """The path of a log file of this run."""
        return self.path / "logs" / f"{name}.log"

    def file(self, stage: str) -> Path:
        """The path of a stage's frozen value."""
        return self.path / f"{stage}.json"

    def write(self, stage: str, value: object) -> None:
        """Keep a stage's value; paths below the run become relative, so that the folder can travel."""
        body = adapter(type(value)).dump_python(value, mode="json")
        text = json.dumps({"schema": f"factory/{stage}/{SCHEMA_VERSION}", "value": body}, indent=1, sort_keys=True)
        write_whole(self.file(stage), text.replace(json.dumps(str(self.path))[1:-1] + "/", f"{_RUN}/") + "\n")

    def read(self, stage: str, kind: type[Value]) -> Value:
        """Read a stage's value back.

        Raises:
            InputFault: the stage has not finished in this run.
            FactoryError: the file is damaged or of another version.
        """
        from pydantic import ValidationError

        path = self.file(stage)
        try:
            text = path.read_text()
        except FileNotFoundError:
            raise InputFault(
                f"run {self.id} has no finished '{stage}'", hint=f"run 'factory {stage} {self.image}' first"
            ) from None
        try:
            body: dict[str, Any] = json.loads(text.replace(f"{_RUN}/", json.dumps(str(self.path))[1:-1] + "/"))
            if body["schema"] != f"factory/{stage}/{SCHEMA_VERSION}":
                raise FactoryError(f"'{path}' has the schema {body['schema']!r}, not one this version reads")
            return adapter(kind).validate_python(body["value"])
        except (ValidationError, ValueError, KeyError, TypeError) as damaged:
            raise FactoryError(f"'{path}' is damaged", hint="start a new run") from damaged

    def has(self, stage: str) -> bool:
        """Whether the stage finished."""
        return self.file(stage).is_file()

    def stages(self) -> tuple[str, ...]:
        """The finished stages, in order."""
        return tuple(stage for stage in STAGES if self.has(stage))


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The state folder."""

    path: Path

    def prepare(self) -> State:
        """Make the folder, readable by its owner only."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path.chmod(0o700)
        return self

    @property
    def runs(self) -> Path:
        return self.path / "runs"

    @property
    def blobs(self) -> Path:
        return self.path / "blobs"

    @property
    def keys(self) -> Path:
        return self.path / "keys"

    @property
    def signers(self) -> Path:
        """Who signed the repositories that nobody named keys for, when they were first read."""
        return self.keys / "upstream"

    @property
    def cloud(self) -> Path:
        return self.path / "cloud"

    @property
    def dist(self) -> Path:
        return self.path / "dist"

    @property
    def region_packages(self) -> Path:
        """The record of which versions of our own packages were given out."""
        return self.path / "region-packages.json"

    @property
    def rebuilds(self) -> Path:
        """Where images are made again from their source tarballs; nothing stays there."""
        return self.path / "rebuilds"

    @property
    def tools(self) -> Path:
        """Roots of build boxes, by what they are made of."""
        return self.path / "tools"

    @property
    def roots(self) -> Path:
        """Root trees of images after their packages were installed, by what they are made of."""
        return self.path / "roots"

    @property
    def locks(self) -> Path:
        return self.path / "locks"

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.sqlite"

    def new_run(self, image: str, now: datetime) -> Run:
        """A new, empty run folder."""
        run = Run(path=self.runs / f"{stamp(now)}-{image}")
        try:
            run.path.mkdir(parents=True)
        except FileExistsError:
            raise FactoryError(f"run {run.id} exists already", hint="wait a second and try again") from None
        (run.path / "logs").mkdir()
        return run

    def runs_of(self, image: str) -> tuple[Run, ...]:
        """The image's runs, newest first."""
        found = [Run(path=path) for path in self.runs.glob("*-*-*") if path.is_dir()]
        return tuple(sorted((run for run in found if run.image == image), key=lambda run: run.id, reverse=True))

    def run_of(self, image: str, run_id: str | None = None) -> Run:
        """The run with this id, or the image's newest.

        Raises:
            InputFault: there is none.
        """
        for run in self.runs_of(image):
            if run_id in {None, run.id}:
                return run
        wanted = f"run {run_id!r}" if run_id else "run"
        raise InputFault(
            f"there is no {wanted} of '{image}'", hint=f"see 'factory status', or start one: 'factory describe {image}'"
        )
