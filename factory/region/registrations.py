# SPDX-License-Identifier: Apache-2.0
"""Who is registered at the sandbox update servers, in one SQLite file that siblings share.

Passwords stay readable because update servers hand registrations to their peers with them; the file is 0600, and its
secrets are worth nothing outside a sandbox.
"""

from __future__ import annotations

import hmac
import secrets
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import ForeignKey, UniqueConstraint, create_engine, delete, event, select
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry


class _Base(DeclarativeBase):
    pass


class _System(_Base):
    __tablename__ = "systems"
    id: Mapped[int] = mapped_column(primary_key=True)
    login: Mapped[str] = mapped_column(index=True)
    password: Mapped[str]
    token: Mapped[str | None]
    hostname: Mapped[str]
    instance_data: Mapped[str]
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
    """A registered instance, without its password; ``products`` are NAME/VERSION/ARCH."""

    id: int
    login: str
    hostname: str
    instance_data: str
    products: tuple[str, ...]
    registered_at: str
    last_seen_at: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What a system got when it announced itself."""

    id: int
    login: str
    password: str


class Registrations:
    """The registrations kept in one file."""

    def __init__(self, path: Path) -> None:
        path.touch(mode=0o600)
        self._engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 20})
        event.listen(self._engine, "connect", _pragmas)
        _Base.metadata.create_all(self._engine)
        self._session = sessionmaker(self._engine)

    def announce(self, *, hostname: str, instance_data: str, now: datetime) -> Credentials:
        """Register a system that has no credentials yet."""
        with self._session.begin() as session:
            system = _System(
                login=f"SCC_{uuid.uuid4().hex}",
                password=secrets.token_hex(8),
                hostname=hostname,
                instance_data=instance_data,
                registered_at=now.isoformat(),
            )
            session.add(system)
            session.flush()
            return Credentials(id=system.id, login=system.login, password=system.password)

    def find(self, login: str, password: str, *, token: str | None, now: datetime) -> RegisteredSystem | None:
        """The system with these credentials, or None.

        ``token`` is its ``System-Token`` header (None when it sent none). A token that none of the systems with these
        credentials has means that the system was cloned: the clone becomes a system of its own.
        """
        with self._session.begin() as session:
            found = [
                system
                for system in session.scalars(select(_System).where(_System.login == login).order_by(_System.id))
                if hmac.compare_digest(system.password.encode(), password.encode())
            ]
            if not found:
                return None
            chosen = found[0] if token is None else next((one for one in found if (one.token or "") == token), None)
            if chosen is None:
                chosen = _clone(session, found[-1], now)
            chosen.last_seen_at = now.isoformat()
            session.flush()
            return _public(chosen)

    def update(self, system_id: int, *, hostname: str) -> None:
        """Keep what a system says of itself."""
        with self._session.begin() as session:
            session.get_one(_System, system_id).hostname = hostname

    def rotate_token(self, system_id: int) -> str:
        """Give the system a new token."""
        with self._session.begin() as session:
            token = str(uuid.uuid4())
            session.get_one(_System, system_id).token = token
            return token

    def activate(self, system_id: int, product: str, *, now: datetime) -> None:
        """Activate a product; again is harmless."""
        with self._session.begin() as session:
            system = session.get_one(_System, system_id)
            if product not in {one.product for one in system.activations}:
                system.activations.append(_Activation(product=product, created_at=now.isoformat()))

    def deactivate(self, system_id: int, products: Sequence[str]) -> None:
        """Take activations away."""
        with self._session.begin() as session:
            chosen = (_Activation.system_id == system_id, _Activation.product.in_(products))
            session.execute(delete(_Activation).where(*chosen))

    def remove(self, login: str) -> None:
        """Forget every system with this login."""
        with self._session.begin() as session:
            for system in session.scalars(select(_System).where(_System.login == login)):
                session.delete(system)

    def remove_system(self, system_id: int) -> None:
        """Forget one system (a clone of it stays)."""
        with self._session.begin() as session:
            session.delete(session.get_one(_System, system_id))

    def systems(self) -> tuple[RegisteredSystem, ...]:
        """Everybody who is registered, oldest first."""
        with self._session() as session:
            return tuple(_public(one) for one in session.scalars(select(_System).order_by(_System.id)))

    def close(self) -> None:
        """Close the file."""
        self._engine.dispose()


def _pragmas(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _clone(session: Session, original: _System, now: datetime) -> _System:
    clone = _System(
        login=original.login,
        password=original.password,
        hostname=original.hostname,
        instance_data=original.instance_data,
        registered_at=now.isoformat(),
        activations=[_Activation(product=one.product, created_at=one.created_at) for one in original.activations],
    )
    session.add(clone)
    return clone


def _public(system: _System) -> RegisteredSystem:
    return RegisteredSystem(
        id=system.id,
        login=system.login,
        hostname=system.hostname,
        instance_data=system.instance_data,
        products=tuple(one.product for one in system.activations),
        registered_at=system.registered_at,
        last_seen_at=system.last_seen_at,
    )
