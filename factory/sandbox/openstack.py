# SPDX-License-Identifier: Apache-2.0
"""A tenant of an OpenStack as the sandbox: a leased copy of the image, a server from it, and nothing left afterwards.

ACTIVE is no proof of a boot: a guest is handed out when its console shows cloud-init's last line and its login works.
Deleting is the same whether a block ends or somebody sweeps after a crash: list what carries the lease, delete it.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from factory.errors import GuestStopped, InputFault, SandboxError
from factory.model import Tenant
from factory.sandbox.connection import Login
from factory.sandbox.console import FINISHED, Console
from factory.sandbox.conversation import Conversation
from factory.sandbox.lease import KEY, Lease, Leased, new_lease, parse, runs, this_host, why_sweep
from factory.sandbox.seed import Key
from factory.sandbox.tenant_cloud import FlavorFound, TenantCloud, expect_same, opened
from factory.system.files import digests, remove
from factory.system.namespaces import OwnNetwork

SSH_PORT = 22
_TAIL = 2000
_RUNNING = frozenset({"ACTIVE", "REBOOT", "HARD_REBOOT"})
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """A thing that was deleted (or, in a dry run, would be), and why; ``trouble`` when the cloud did not let us."""

    thing: Leased
    why: str
    trouble: str = ""


class TenantGuest(Conversation):
    """A server in a tenant; made by :meth:`Session.boot`."""

    poll_s = 2.0

    def __init__(
        self,
        *,
        cloud: TenantCloud,
        server_id: str,
        hostname: str,
        flavor: FlavorFound,
        raw: Path,
        kept: Path,
        login: Login,
        say: Say,
    ) -> None:
        super().__init__(login=login, console=Console(raw=raw, kept=kept), say=say)
        self.server_id = server_id
        self.hostname = hostname
        self.flavor = flavor
        self.serial = raw
        self._cloud = cloud
        self._heard = ""

    def listen(self) -> None:
        more = continuation(self._heard, self._cloud.console(self.server_id))
        if more:
            self._heard += more
            with self.serial.open("ab") as file:
                file.write(more.encode(errors="replace"))

    def expect_running(self) -> None:
        state = self._cloud.state(self.server_id)
        if state not in _RUNNING:
            raise self.trouble(GuestStopped, f"the server is {state}")


def continuation(known: str, shown: str) -> str:
    """What is new in a window on a growing text; pure.

    Nova shows the end of the console only, and a server that was rebooted may begin a new one.
    """
    shown = shown.rstrip("\ufffd")  # half a character, where the window ends
    if not known or shown.startswith(known):
        return shown[len(known) :]
    tail = known[-_TAIL:]
    at = shown.rfind(tail)
    return shown[at + len(tail) :] if at >= 0 else shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """The use of a tenant under one lease."""

    cloud: TenantCloud
    lease: Lease
    say: Say

    @property
    def tenant(self) -> Tenant:
        return self.cloud.tenant

    def copy(self, path: Path, *, properties: Mapping[str, str], min_disk_gib: int) -> str:
        """Upload a private copy of an image under the lease and read its digest back; its id.

        Raises:
            SandboxError: the cloud does not take it, or holds other bytes.
        """
        image_id = str(uuid.uuid4())
        self.say(f"uploading a private copy to '{self.tenant.cloud}' ({path.stat().st_size / 1e6:.0f} MB)")
        said = {
            "name": self.lease.name,
            "visibility": "private",
            "min_disk": min_disk_gib,
            KEY: self.lease.name,
            **properties,
        }
        with self.cloud.of_images():
            self.cloud.images.create(image_id, said)
            self.cloud.images.upload(image_id, path)
            expect_same(self.cloud, image_id, path, sha512=digests(path).sha512)
        return image_id

    @contextlib.contextmanager
    def boot(
        self,
        image_id: str,
        *,
        workdir: Path,
        key: Key,
        user: str,
        user_data: str,
        console_log: Path,
        timeout_s: float,
        min_disk_gib: int,
        metadata: Mapping[str, str] | None = None,
    ) -> Iterator[TenantGuest]:
        """A server of this image, up and logged in to; its console's text stays in ``console_log``, masked.

        Raises:
            GuestSilent, GuestStopped: it is ACTIVE, but its system did not come up.
            SandboxError: the cloud made no server, or it lets nobody in.
        """
        cloud, lease = self.cloud, self.lease
        flavor = cloud.flavor(min_disk_gib=min_disk_gib)
        network = cloud.network(self.tenant.network) if self.tenant.network else cloud.make_network(lease)
        cloud.make_key(lease, key.public)
        group = cloud.make_group(lease)
        self.say(f"asking '{self.tenant.cloud}' for a server of flavor {flavor.name}")
        wanted: dict[str, object] = {
            "image_id": image_id,
            "flavor_id": flavor.id,
            "networks": [{"uuid": network}],
            "metadata": {KEY: lease.name, **(metadata or {})},
            **({"security_groups": [{"name": lease.name}]} if group else {}),
        }
        server_id = cloud.make_server(lease, wanted, user_data=user_data)
        cloud.await_active(server_id)
        address = cloud.make_address(lease, server_id) if self.tenant.external_network else ""
        guest = TenantGuest(
            cloud=cloud,
            server_id=server_id,
            hostname=lease.name,
            flavor=flavor,
            raw=workdir / "serial.raw",
            kept=console_log,
            login=Login(
                namespace=OwnNetwork(),
                address=address or cloud.fixed_address(server_id),
                port=SSH_PORT,
                user=user,
                private_key=key.private,
                folder=workdir,
            ),
            say=self.say,
        )
        remove(guest.serial)
        guest.serial.touch(mode=0o600)
        self.say(f"server {server_id} is ACTIVE at {guest.address}; waiting for its system")
        try:
            limit_s = self.tenant.boot_timeout_s or timeout_s
            guest.boot_s = guest.wait_for(FINISHED, timeout_s=limit_s, what="the end of its boot")
            self.say(f"the guest was up {guest.boot_s:.0f} s after the server was ACTIVE")
            guest.keep_console()
            guest.connect()
            yield guest
        finally:
            guest.disconnect()
            with contextlib.suppress(SandboxError):
                guest.listen()
            guest.keep_console()
            remove(guest.serial)


@contextlib.contextmanager
def session(tenant: Tenant, *, now: datetime, say: Say) -> Iterator[Session]:
    """The use of a tenant: what crashed runs left is swept first, and everything of ours is gone after the block.

    Raises:
        InputFault: the cloud is not in clouds.yaml, has no compute, or its servers could not be reached.
        SandboxError: the cloud gives no access.
    """
    if not (tenant.network or tenant.external_network):
        raise InputFault(
            f"no network is named for servers in '{tenant.cloud}'",
            hint="set network in [sandbox] of the site file, or external_network to make one behind it",
        )
    lease = new_lease(now=now, hours=tenant.lease_h)
    with opened(tenant) as outer:
        outer.expect_compute()
        sweep_leases(outer, now=now, say=say)
        with _project(outer, lease) as cloud:
            try:
                yield Session(cloud=cloud, lease=lease, say=say)
            finally:
                _give_back(cloud, lease, say)


def _give_back(cloud: TenantCloud, lease: Lease, say: Say) -> None:
    """Delete all that a lease made; a cloud that does not answer now is swept when it is used next."""
    try:
        things = [one for one in cloud.leased() if one.name == lease.name and one.tag in {None, lease.name}]
    except SandboxError as away:
        say(f"what is left in '{cloud.tenant.cloud}' could not be looked up: {away.message}")
        return
    for thing in things:
        _delete(cloud, thing, say)


def _delete(cloud: TenantCloud, thing: Leased, say: Say) -> str:
    """Delete a thing; what keeps it from going is said, and returned: the next sweep tries again."""
    try:
        cloud.delete(thing)
    except SandboxError as refused:
        trouble = "; ".join([refused.message, *(text for _, text in refused.facts)])
        say(f"the {thing.kind} {thing.id} could not be deleted: {trouble}")
        return trouble
    return ""


# -- sweeping ---------------------------------------------------------------------------------------------------------


def sweep_leases(cloud: TenantCloud, *, now: datetime, say: Say, dry_run: bool = False) -> tuple[Swept, ...]:
    """Delete what crashed runs left in a tenant: only what carries our mark and whose lease ended or whose run is dead.

    Raises:
        SandboxError: the cloud gives no access. What it does not let us delete is in the result.
    """
    swept = list(_sweep(cloud, cloud.leased(), now=now, say=say, dry_run=dry_run))
    if cloud.tenant.own_project:
        for project in _projects(cloud):
            if why := _why(project, now):
                with _entered(cloud, project.id) as inside:
                    swept += _sweep(inside, inside.leased(), now=now, say=say, dry_run=dry_run)
                if not dry_run:
                    _drop_project(cloud, project.id)
                swept.append(Swept(thing=project, why=why))
    return tuple(swept)


def _sweep(
    cloud: TenantCloud, things: tuple[Leased, ...], *, now: datetime, say: Say, dry_run: bool
) -> Iterator[Swept]:
    for thing in things:
        if why := _why(thing, now):
            say(f"{'would delete' if dry_run else 'deleting'} the {thing.kind} {thing.id}: {why}")
            yield Swept(thing=thing, why=why, trouble="" if dry_run else _delete(cloud, thing, say))


def _why(thing: Leased, now: datetime) -> str:
    lease = parse(thing.name)
    alive = lease is not None and runs(lease.owner)
    return why_sweep(thing, now=now, host=this_host(), alive=alive)


# -- a project for each use -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _project(cloud: TenantCloud, lease: Lease) -> Iterator[TenantCloud]:
    """The tenant's own project, or a fresh one in which the administrator is an ordinary member."""
    if not cloud.tenant.own_project:
        yield cloud
        return
    with cloud.telling():
        made = cloud.connection.identity.create_project(name=lease.name, description=lease.name, domain_id="default")
    try:
        with _entered(cloud, made.id) as inside:
            yield inside
    finally:
        _drop_project(cloud, made.id)


@contextlib.contextmanager
def _entered(cloud: TenantCloud, project_id: str) -> Iterator[TenantCloud]:
    with cloud.telling():
        identity = cloud.connection.identity
        member = identity.find_role("member", ignore_missing=False)
        identity.assign_project_role_to_user(project_id, cloud.connection.current_user_id, member.id)
        inside = cloud.connection.connect_as_project(identity.get_project(project_id))
    try:
        yield TenantCloud(inside, cloud.tenant)
    finally:
        inside.close()


def _projects(cloud: TenantCloud) -> tuple[Leased, ...]:
    with cloud.telling():
        found = [
            Leased(kind="project", id=one.id, name=one.name, tag=one.description or "")
            for one in cloud.connection.identity.projects()
        ]
    return tuple(one for one in found if parse(one.name) is not None)


def _drop_project(cloud: TenantCloud, project_id: str) -> None:
    """Delete a project with the security group that Neutron makes in each."""
    network = cloud.connection.network
    with cloud.telling():
        for group in cloud._described("group", lambda: network.security_groups(project_id=project_id)):  # noqa: SLF001
            network.delete_security_group(group.id)
        cloud.connection.identity.delete_project(project_id)
