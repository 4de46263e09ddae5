# SPDX-License-Identifier: Apache-2.0
"""The ledger: a record of runs and their stages, for reports, for status, and for deciding what is the previous image.

Glance is the truth about releases and the run folders are the truth about files; the ledger may be lost, and then only
history is. SQLite by default, PostgreSQL by its URL; the schema is brought up to date when the ledger is opened.
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import OperationalError, ProgrammingError, SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, selectinload

from factory.errors import LedgerError
from factory.ledger_detail import detail_of
from factory.model import STAGES, Recipe

__all__ = ["Ledger", "RunRecord", "StageRecord", "detail_of", "summary"]

_BUSY_MS = 30_000
_MIGRATION_LOCK = 0x1F2A_C7
_NEWEST_SCHEMA = "0001"
_DRIVERS = {"postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}
_CONNECT_S = 10
_GOOD = ("published", "withheld")
_LOST = "move it away: only history is lost, and the next night starts a new one"


class _Time(sa.types.TypeDecorator[datetime]):
    """An aware time, kept as UTC also where the database knows no time zones."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        plain = value.astimezone(UTC)
        return plain.replace(tzinfo=None) if dialect.name == "sqlite" else plain

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:  # noqa: ARG002
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class _Base(DeclarativeBase):
    type_annotation_map = {datetime: _Time, dict[str, Any]: sa.JSON}  # noqa: RUF012 -- read by SQLAlchemy


class _Run(_Base):
    __tablename__ = "runs"

    id: Mapped[str] = mapped_column(primary_key=True)
    image: Mapped[str]
    line: Mapped[str] = mapped_column(default="")
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    outcome: Mapped[str] = mapped_column(default="running")
    message: Mapped[str] = mapped_column(default="")
    trigger: Mapped[str] = mapped_column(default="")
    host: Mapped[str] = mapped_column(default="")
    recipe_digest: Mapped[str] = mapped_column(default="")
    inputs_digest: Mapped[str] = mapped_column(default="")
    stages: Mapped[list[_Stage]] = relationship(cascade="all, delete-orphan")


class _Stage(_Base):
    __tablename__ = "stages"

    run_id: Mapped[str] = mapped_column(sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    stage: Mapped[str] = mapped_column(primary_key=True)
    outcome: Mapped[str]
    started_at: Mapped[datetime]
    seconds: Mapped[float]
    digest: Mapped[str] = mapped_column(default="")
    message: Mapped[str] = mapped_column(default="")
    detail: Mapped[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecord:
    """How one stage of one run went; ``detail`` is what :func:`detail_of` says about its value."""

    stage: str
    outcome: str
    started_at: datetime
    seconds: float
    digest: str = ""
    message: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One run: ``outcome`` is running, published, withheld, unchanged, red or broken; ``stages`` are in their order."""

    id: str
    image: str
    line: str
    started_at: datetime
    ended_at: datetime | None
    outcome: str
    message: str = ""
    trigger: str = ""
    host: str = ""
    recipe_digest: str = ""
    inputs_digest: str = ""
    stages: tuple[StageRecord, ...] = ()

    @property
    def detail(self) -> Mapping[str, Mapping[str, Any]]:
        """What each recorded stage left, by its name."""
        return {stage.stage: stage.detail for stage in self.stages}

    @property
    def last_stage(self) -> str:
        """How far the run got, or nothing."""
        return next((one.stage for one in reversed(self.stages) if one.stage != "promises"), "")

    @property
    def seconds(self) -> float:
        """Time spent in stages."""
        return sum(stage.seconds for stage in self.stages)


class Ledger:
    """An open ledger; a ``with`` block. Every method raises LedgerError when the database cannot do it."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    @classmethod
    def open(cls, url: str | Path) -> Ledger:
        """Open, or make, the ledger at an SQLAlchemy URL or at the path of an SQLite file.

        Raises:
            LedgerError: damaged, not reachable, or written by a newer factory.
        """
        with _told("its address"):
            made = sa.URL.create("sqlite", database=str(url)) if isinstance(url, Path) else sa.make_url(url)
            made = made.set(drivername=_DRIVERS.get(made.drivername, made.drivername))
        with _told(made.render_as_string()):
            engine = _engine(made)
            try:
                _migrate(engine)
            except BaseException:
                engine.dispose()
                raise
        return cls(engine)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the database back."""
        self._engine.dispose()

    def begin_run(
        self,
        run_id: str,
        *,
        image: str,
        line: str,
        started_at: datetime,
        recipe: Recipe | None = None,
        trigger: str = "",
    ) -> None:
        """Say that a run works; one that was cut off keeps the time at which it first started."""
        with self._writing() as session:
            run = _run_row(session, run_id, image)
            run.line, run.outcome, run.message, run.ended_at = line, "running", "", None
            run.started_at = run.started_at or started_at
            run.trigger, run.host = trigger or run.trigger, platform.node()
            run.recipe_digest = recipe.digest if recipe else run.recipe_digest

    def record_stage(
        self,
        run_id: str,
        stage: str,
        *,
        outcome: str,
        started_at: datetime,
        seconds: float,
        digest: str = "",
        message: str = "",
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        """Record a stage, in place of an earlier attempt; a broken one ends its run as broken."""
        kept = dict(detail or {})
        with self._writing() as session:
            run = _run_row(session, run_id, run_id.split("-", 2)[-1])
            row = next((one for one in run.stages if one.stage == stage), None)
            if row is None:
                row = _Stage(stage=stage)
                run.stages.append(row)
            row.outcome, row.started_at, row.seconds = outcome, started_at, seconds
            row.message, row.detail = _storable(message), kept
            row.digest = digest or str(kept.get("sha256") or kept.get("digest") or "")
            run.inputs_digest = str(kept.get("inputs_digest") or run.inputs_digest)
            if outcome == "broken":
                run.outcome, run.message = outcome, row.message
                run.ended_at = datetime.fromtimestamp(started_at.timestamp() + seconds, tz=UTC)

    def end_run(self, run_id: str, *, outcome: str, ended_at: datetime, message: str = "") -> None:
        """Say how a run ended."""
        with self._writing() as session:
            run = _run_row(session, run_id, run_id.split("-", 2)[-1])
            run.outcome, run.ended_at, run.message = outcome, ended_at, _storable(message)

    def forget(self, run_ids: Sequence[str]) -> None:
        """Drop runs and their stages."""
        with self._writing() as session:
            for run_id in run_ids:
                if (run := session.get(_Run, run_id)) is not None:
                    session.delete(run)

    def runs(self, image: str | None = None, limit: int = 30) -> tuple[RunRecord, ...]:
        """Runs that have begun, newest first."""
        wanted = sa.select(_Run).where(_Run.started_at.is_not(None)).order_by(_Run.id.desc()).limit(limit)
        if image is not None:
            wanted = wanted.where(_Run.image == image)
        return self._read(wanted)

    def run(self, run_id: str) -> RunRecord | None:
        """One run, also one that was only described."""
        found = self._read(sa.select(_Run).where(_Run.id == run_id))
        return found[0] if found else None

    def previous_green(self, image: str, before: str) -> RunRecord | None:
        """The newest earlier run with a good image: a published one if there is any, else one that was withheld."""
        for outcome in _GOOD:
            wanted = sa.select(_Run).where(_Run.image == image, _Run.id < before, _Run.outcome == outcome)
            found = self._read(wanted.order_by(_Run.id.desc()).limit(1))
            if found:
                return found[0]
        return None

    def last_published(self, image: str) -> RunRecord | None:
        """The newest run whose image became ``_latest``."""
        wanted = sa.select(_Run).where(_Run.image == image, _Run.outcome == "published")
        found = self._read(wanted.order_by(_Run.id.desc()).limit(1))
        return found[0] if found else None

    def _read(self, wanted: sa.Select[_Run]) -> tuple[RunRecord, ...]:
        with _told(self._engine.url.render_as_string()), Session(self._engine) as session:
            return tuple(_record(row) for row in session.scalars(wanted.options(selectinload(_Run.stages))))

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Session]:
        with _told(self._engine.url.render_as_string()):
            writing = self._engine.execution_options(factory_writes=True)
            with Session(writing) as session, session.begin():
                yield session


def _engine(url: sa.URL) -> sa.Engine:
    options: dict[str, Any] = {}
    if url.get_backend_name() == "sqlite":
        options = {"connect_args": {"timeout": _BUSY_MS / 1000}}
    elif url.drivername == "postgresql+psycopg":
        # between two stages lie minutes: a connection that a firewall or a restart ended meanwhile is made anew
        options = {
            "pool_pre_ping": True,
            "connect_args": {"connect_timeout": _CONNECT_S, "application_name": "factory"},
        }
    engine = sa.create_engine(url, **options)
    if engine.dialect.name == "sqlite":
        if url.database and url.database != ":memory:":
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: object) -> None:  # noqa: ANN401 -- a DB-API connection
    connection.isolation_level = None  # transactions are ours: the driver would not cover schema changes with one
    for pragma in (f"busy_timeout = {_BUSY_MS}", "journal_mode = WAL", "foreign_keys = ON", "synchronous = FULL"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: sa.Connection) -> None:
    # A transaction that reads first and writes later cannot wait for another writer in SQLite: it fails at once. So
    # writers say at the beginning that they will write, and then wait for each other as long as the busy timeout.
    writes = connection.get_execution_options().get("factory_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _migrate(engine: sa.Engine) -> None:
    """Bring the schema up to date; Alembic is loaded only when it is not."""
    if _schema(engine) == _NEWEST_SCHEMA:
        return
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("ledger_migrations")).replace("%", "%%"))
    config.set_main_option("version_path_separator", "os")
    with engine.execution_options(factory_writes=True).begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})"))
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as unknown:
            raise LedgerError(
                f"the ledger '{_shown(engine.url.render_as_string())}' was written by another version of the factory",
                facts=(("said", str(unknown)),),
                hint=f"use that version, or {_LOST}",
            ) from unknown


def _schema(engine: sa.Engine) -> str:
    """The schema's version, or nothing where there is no ledger yet."""
    try:
        with engine.connect() as connection:
            return str(connection.scalar(sa.text("SELECT version_num FROM alembic_version")) or "")
    except (OperationalError, ProgrammingError):
        return ""


def _shown(url: str) -> str:
    return url.removeprefix("sqlite:///")


@contextlib.contextmanager
def _told(url: str) -> Iterator[None]:
    """Turn what the database layers raise into one sentence."""
    shown = _shown(url)
    try:
        yield
    except SQLAlchemyError as trouble:
        said = str(getattr(trouble, "orig", None) or trouble).strip().splitlines()
        raise LedgerError(
            f"the ledger '{shown}' cannot be used",
            facts=(("said", said[0] if said else ""),),
            hint=f"repair or {_LOST}",
        ) from None
    except (OSError, ImportError) as trouble:
        raise LedgerError(
            f"the ledger '{shown}' cannot be used", facts=(("said", str(trouble)),), hint=f"repair or {_LOST}"
        ) from None


def _storable(text: str) -> str:
    """Text as every database takes it: PostgreSQL refuses NUL, and no database stores half a surrogate pair."""
    return text.replace("\0", "\u2400").encode(errors="replace").decode()


def _run_row(session: Session, run_id: str, image: str) -> _Run:
    run = session.get(_Run, run_id)
    if run is None:
        run = _Run(id=run_id, image=image, stages=[])
        session.add(run)
    return run


def _record(row: _Run) -> RunRecord:
    order = {stage: number for number, stage in enumerate(STAGES)}
    stages = sorted(row.stages, key=lambda one: (order.get(one.stage, len(order)), one.stage))
    started = row.started_at or min((one.started_at for one in stages), default=datetime.fromtimestamp(0, tz=UTC))
    return RunRecord(
        id=row.id,
        image=row.image,
        line=row.line,
        started_at=started,
        ended_at=row.ended_at,
        outcome=row.outcome,
        message=row.message,
        trigger=row.trigger,
        host=row.host,
        recipe_digest=row.recipe_digest,
        inputs_digest=row.inputs_digest,
        stages=tuple(
            StageRecord(
                stage=one.stage,
                outcome=one.outcome,
                started_at=one.started_at,
                seconds=one.seconds,
                digest=one.digest,
                message=one.message,
                detail=one.detail,
            )
            for one in stages
        ),
    )


def summary(ledger: Ledger, images: Sequence[str], *, now: datetime) -> list[dict[str, Any]]:
    """What ``factory status`` shows: for each image its last run, how it went, and what is published."""
    return [
        status_of(image, next(iter(ledger.runs(image, 1)), None), ledger.last_published(image), now=now)
        for image in images
    ]


def status_of(image: str, last: RunRecord | None, published: RunRecord | None, *, now: datetime) -> dict[str, Any]:
    """One image's line of status, plain values only."""
    found: dict[str, Any] = {"image": image, "line": "", "outcome": "never built", "run": "", "stage": ""}
    if last is not None:
        ended = last.ended_at or last.started_at
        found |= {"line": last.line, "outcome": last.outcome, "run": last.id}
        found |= {"stage": last.last_stage}
        found |= {"message": last.message, "age": age(now - ended), "at": ended.isoformat()}
    rotations = published.detail.get("rotate", {}).get("rotations", []) if published else []
    releases = published.detail.get("publish", {}).get("releases", []) if published else []
    if published is not None:
        found |= {"latest": ", ".join(dict.fromkeys(str(one["dated_name"]) for one in releases))}
        found |= {"prev": ", ".join(dict.fromkeys(str(one["prev"]) for one in rotations if one["prev"]))}
        found |= {"published": published.id, "published_age": age(now - (published.ended_at or published.started_at))}
    return found


def age(span: Any) -> str:  # noqa: ANN401
    """How long ago, in the largest unit that says enough."""
    minutes = max(0, int(span.total_seconds() // 60))
    if minutes < 120:  # noqa: PLR2004 -- up to two hours in minutes, up to two days in hours
        return f"{minutes} min"
    return f"{minutes // 60} h" if minutes < 48 * 60 else f"{minutes // 1440} days"
