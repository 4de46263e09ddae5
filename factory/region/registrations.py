# SPDX-License-Identifier: Apache-2.0
"""Who is registered at a sandbox update server, in one SQLite file that several processes may share.

Passwords stay readable because update servers hand registrations to their peers with them; the file is 0600. Every
change is one transaction that takes the write lock at once, so writers wait for each other instead of failing, and a
process that is killed leaves the old state or the new one.
"""

from __future__ import annotations

import contextlib
import hmac
import secrets
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

from sqlalchemy import Connection, ForeignKey, UniqueConstraint, create_engine, delete, event, select
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry

from factory.errors import RegionError

SCHEMA_VERSION = 2
PAYG, BYOS, HYBRID = "payg", "byos", "hybrid"
MODES = (PAYG, BYOS, HYBRID)
_BUSY_S = 20
_SEEN_EVERY = timedelta(minutes=1)


class _Base(DeclarativeBase):
    pass


class _System(_Base):
    __tablename__ = "systems"
    id: Mapped[int] = mapped_column(primary_key=True)
    uid: Mapped[str] = mapped_column(unique=True)
    login: Mapped[str] = mapped_column(index=True)
    password: Mapped[str]
    token: Mapped[str | None]
    hostname: Mapped[str]
    hwinfo: Mapped[str] = mapped_column(default="{}")
    instance_data: Mapped[str]
    mode: Mapped[str] = mapped_column(default=PAYG)
    regcode: Mapped[str] = mapped_column(default="")
    registered_at: Mapped[str]
    last_seen_at: Mapped[str | None]
    activations: Mapped[list[_Activation]] = relationship(cascade="all, delete-orphan", order_by="_Activation.id")


class _Activation(_Base):
    __tablename__ = "activations"
    __table_args__ = (UniqueConstraint("system_id", "product"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    system_id: Mapped[int] = mapped_column(ForeignKey("systems.id", ondelete="CASCADE"))
    product: Mapped[str]
    created_at: Mapped[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredSystem:
    """A registered instance, without its password; ``products`` are NAME/VERSION/ARCH.

    ``token`` is its rotating system token, or the identifier of the instance where a provider verifies instances.
    """

    id: int
    login: str
    hostname: str
    instance_data: str
    products: tuple[str, ...]
    registered_at: str
    last_seen_at: str | None
    mode: str = PAYG
    regcode: str = ""
    token: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What a system got when it announced itself."""

    id: int
    login: str
    password: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedSystem:
    """A system with its password and activations (product, time), as peers tell each other.

    ``uid`` is the same on every peer and survives a change of token; other servers than ours do not send it.
    """

    login: str
    password: str
    token: str | None
    hostname: str
    instance_data: str
    mode: str
    regcode: str
    registered_at: str
    last_seen_at: str | None
    activations: tuple[tuple[str, str], ...]
    uid: str = ""


class Journal(Protocol):
    """Who wants to know which logins change (:class:`factory.region.sharing.ReplayLog`)."""

    def changing(self, login: str) -> AbstractContextManager[None]:
        """A block in which the registrations of ``login`` change."""
        ...


class Registrations:
    """The registrations kept in one file.

    Raises:
        RegionError: the file is damaged, or of a version this factory does not know.
    """

    def __init__(self, path: Path, *, journal: Journal | None = None) -> None:
        self._journal = journal
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.touch(mode=0o600)
            self._engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": _BUSY_S})
            event.listen(self._engine, "connect", _connected)
            event.listen(self._engine, "begin", _begun)
            immediate = self._engine.execution_options(immediate=True)
            with immediate.begin() as connection:
                _prepare(connection, path)
        except (SQLAlchemyError, OSError) as wrong:
            raise RegionError(
                f"'{path}' holds no registrations", hint=f"move it away, and instances register anew: {wrong}"
            ) from wrong
        self._reading = sessionmaker(self._engine)
        self._changing = sessionmaker(immediate)

    def announce(
        self,
        *,
        hostname: str,
        instance_data: str,
        now: datetime,
        hwinfo: str = "{}",
        mode: str = PAYG,
        regcode: str = "",
        identifier: str = "",
        proven: bool = False,
    ) -> Credentials:
        """Register a system that has no credentials yet.

        ``identifier`` is the instance's, from a provider. When it is ``proven`` it becomes the login, and what the same
        instance had registered before is forgotten: it announces itself anew because it lost its credentials.
        """
        login = identifier if identifier and proven else f"SCC_{uuid.uuid4().hex}"
        system = _System(
            uid=uuid.uuid4().hex,
            login=login,
            password=secrets.token_hex(8),
            token=identifier or None,
            hostname=hostname,
            hwinfo=hwinfo,
            instance_data=instance_data,
            mode=mode,
            regcode=regcode,
            registered_at=now.isoformat(),
        )
        with self._change(login) as session:
            for before in session.scalars(select(_System).where(_System.login == login)):
                session.delete(before)
            session.flush()
            session.add(system)
            session.flush()
            return Credentials(id=system.id, login=system.login, password=system.password)

    def find(self, login: str, password: str, *, token: str | None, now: datetime) -> RegisteredSystem | None:
        """The system with these credentials, or None.

        ``token`` is its ``System-Token`` header (None when it sent none, or when tokens do not count). A token that
        none of the systems with these credentials has means that the system was cloned: the clone becomes a system of
        its own.
        """
        with self._reading() as session:
            found = _with_credentials(session, login, password)
            if not found:
                return None
            chosen = found[0] if token is None else next((one for one in found if (one.token or "") == token), None)
            if chosen is not None and not _seen_long_ago(chosen, now):
                return _public(chosen)
        if chosen is None:
            return self.clone(login, password, token=token or "", now=now)
        with self._changing.begin() as session:  # being seen is no news for peers
            again = session.get(_System, chosen.id)
            if again is None:
                return None
            again.last_seen_at = now.isoformat()
            return _public(again)

    def clone(self, login: str, password: str, *, token: str, now: datetime) -> RegisteredSystem | None:
        """The system with these credentials and this token, made from its original when there is none yet."""
        with self._change(login) as session:
            found = _with_credentials(session, login, password)
            if not found:
                return None
            same = next((one for one in found if (one.token or "") == token), None)
            chosen = same or _clone(session, found[-1], token, now)
            chosen.last_seen_at = now.isoformat()
            session.flush()
            return _public(chosen)

    def update(self, system_id: int, *, hostname: str | None = None, hwinfo: str | None = None) -> None:
        """Keep what a system says of itself."""
        with self._change_of(system_id) as (_, system):
            system.hostname = system.hostname if hostname is None else hostname
            system.hwinfo = system.hwinfo if hwinfo is None else hwinfo

    def rotate_token(self, system_id: int) -> str:
        """Give the system a new token."""
        token = str(uuid.uuid4())
        with self._change_of(system_id) as (_, system):
            system.token = token
        return token

    def activate(
        self, system_id: int, product: str, *, now: datetime, replacing: Sequence[str] = (), regcode: str = ""
    ) -> None:
        """Activate a product, in place of others; again is harmless. A ``regcode`` makes a PAYG system hybrid."""
        with self._change_of(system_id) as (session, system):
            for one in list(system.activations):
                if one.product in replacing and one.product != product:
                    system.activations.remove(one)
            session.flush()
            if product not in {one.product for one in system.activations}:
                system.activations.append(_Activation(product=product, created_at=now.isoformat()))
            if regcode:
                system.regcode = regcode
                system.mode = HYBRID if system.mode == PAYG else system.mode

    def deactivate(self, system_id: int, products: Sequence[str]) -> None:
        """Take activations away."""
        with self._change_of(system_id) as (session, _):
            chosen = (_Activation.system_id == system_id, _Activation.product.in_(products))
            session.execute(delete(_Activation).where(*chosen))

    def remove(self, login: str) -> int:
        """Forget every system with this login; returns how many there were."""
        with self._change(login) as session:
            return _forget(session, login)

    def remove_system(self, system_id: int) -> None:
        """Forget one system (a clone of it stays)."""
        with self._change_of(system_id) as (session, system):
            session.delete(system)

    def systems(self) -> tuple[RegisteredSystem, ...]:
        """Everybody who is registered, oldest first."""
        with self._reading() as session:
            return tuple(_public(one) for one in session.scalars(select(_System).order_by(_System.id)))

    def shared(self, login: str) -> tuple[SharedSystem, ...]:
        """What peers are to know of a login; nothing when it is gone."""
        with self._reading() as session:
            found = session.scalars(select(_System).where(_System.login == login).order_by(_System.id))
            return tuple(_shared(one) for one in found)

    def take(self, told: SharedSystem) -> None:
        """Keep what a peer told of a system; it is not told to others."""
        with self._changing.begin() as session:
            known = _same_system(session, told)
            uid_is_free = bool(told.uid) and session.scalar(select(_System.id).where(_System.uid == told.uid)) is None
            system = known or _System(uid=uuid.uuid4().hex, login=told.login)
            if uid_is_free:
                system.uid = told.uid
            system.password, system.token, system.hostname = told.password, told.token, told.hostname
            system.instance_data, system.mode, system.regcode = told.instance_data, told.mode, told.regcode
            system.registered_at = told.registered_at
            system.last_seen_at = max(filter(None, (told.last_seen_at, system.last_seen_at)), default=None)
            session.add(system)
            system.activations.clear()
            session.flush()
            for product, created_at in dict(told.activations).items():
                system.activations.append(_Activation(product=product, created_at=created_at))

    def take_away(self, login: str) -> None:
        """Forget a login because a peer says so; others are not told."""
        with self._changing.begin() as session:
            _forget(session, login)

    def close(self) -> None:
        """Close the file."""
        self._engine.dispose()

    @contextlib.contextmanager
    def _change(self, login: str) -> Iterator[Session]:
        noted = self._journal.changing(login) if self._journal else contextlib.nullcontext()
        with noted, self._changing.begin() as session:
            yield session

    @contextlib.contextmanager
    def _change_of(self, system_id: int) -> Iterator[tuple[Session, _System]]:
        """Change one system.

        Raises:
            Gone: it vanished meanwhile.
        """
        with self._reading() as session:
            there = session.get(_System, system_id)
            login = there.login if there else ""
        if not login:
            raise Gone
        with self._change(login) as session:
            system = session.get(_System, system_id)
            if system is None:
                raise Gone
            yield session, system


class Gone(Exception):
    """The system was removed while its request was being answered."""


def _connected(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # transactions begin where _begun() says so
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "foreign_keys=ON", "synchronous=FULL"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begun(connection: Connection) -> None:
    immediate = connection.get_execution_options().get("immediate")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _prepare(connection: Connection, path: Path) -> None:
    """Make the tables, in the transaction that holds the write lock; or see that they are ours."""
    version = int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())
    there = connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar_one()
    if version == SCHEMA_VERSION:
        return
    if version or there:
        raise RegionError(
            f"'{path}' has registrations of version {version}, this factory reads version {SCHEMA_VERSION}",
            hint="move it away, and instances register anew",
        )
    _Base.metadata.create_all(connection)
    connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _with_credentials(session: Session, login: str, password: str) -> list[_System]:
    return [
        system
        for system in session.scalars(select(_System).where(_System.login == login).order_by(_System.id))
        if hmac.compare_digest(system.password.encode(), password.encode(errors="replace"))
    ]


def _seen_long_ago(system: _System, now: datetime) -> bool:
    return system.last_seen_at is None or datetime.fromisoformat(system.last_seen_at) < now - _SEEN_EVERY


def _clone(session: Session, original: _System, token: str, now: datetime) -> _System:
    clone = _System(
        uid=uuid.uuid4().hex,
        login=original.login,
        password=original.password,
        token=token or None,
        hostname=original.hostname,
        hwinfo=original.hwinfo,
        instance_data=original.instance_data,
        mode=original.mode,
        regcode=original.regcode,
        registered_at=now.isoformat(),
        activations=[_Activation(product=one.product, created_at=one.created_at) for one in original.activations],
    )
    session.add(clone)
    return clone


def _forget(session: Session, login: str) -> int:
    found = list(session.scalars(select(_System).where(_System.login == login)))
    for system in found:
        session.delete(system)
    return len(found)


def _same_system(session: Session, told: SharedSystem) -> _System | None:
    """The system a peer speaks of: by uid where it says one, else by credentials and token, else one without token."""
    candidates = list(session.scalars(select(_System).where(_System.login == told.login).order_by(_System.id)))
    if told.uid:
        known = next((one for one in candidates if one.uid == told.uid), None)
        if known is not None:
            return known
    if told.token and told.token == told.login:  # a verified instance that announced itself anew
        return next((one for one in candidates if one.token == told.token), None)
    same = [one for one in candidates if one.password == told.password]
    by_token = next((one for one in same if (one.token or "") == (told.token or "")), None)
    return by_token or (None if told.uid else next((one for one in same if not one.token), None))


def _shared(system: _System) -> SharedSystem:
    return SharedSystem(
        login=system.login,
        password=system.password,
        token=system.token,
        hostname=system.hostname,
        instance_data=system.instance_data,
        mode=system.mode,
        regcode=system.regcode,
        registered_at=system.registered_at,
        last_seen_at=system.last_seen_at,
        activations=tuple((one.product, one.created_at) for one in system.activations),
        uid=system.uid,
    )


def _public(system: _System) -> RegisteredSystem:
    return RegisteredSystem(
        id=system.id,
        login=system.login,
        hostname=system.hostname,
        instance_data=system.instance_data,
        products=tuple(one.product for one in system.activations),
        registered_at=system.registered_at,
        last_seen_at=system.last_seen_at,
        mode=system.mode,
        regcode=system.regcode,
        token=system.token,
    )
