# SPDX-License-Identifier: Apache-2.0
"""The requests to a cloud that the sandbox makes as its tenant, and what the cloud's refusals mean.

Everything that is made is called by the lease's name (:mod:`factory.sandbox.lease`), and says so in its metadata where
its kind has any: what a crash leaves is found again by listing. openstacksdk is imported when a cloud is opened.
"""

from __future__ import annotations

import base64
import contextlib
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factory.errors import InputFault, SandboxError, StoreError
from factory.model import Tenant
from factory.sandbox.console import plain
from factory.sandbox.lease import KEY, Lease, Leased, parse
from factory.sandbox.nova_faults import Asked, told, too_slow
from factory.store.glance import GlanceStore
from factory.system.openstack import connect

if TYPE_CHECKING:
    from openstack.connection import Connection

_ACTIVE_POLL_S = 1.0
_SAID = 400
_MIN_RAM_MIB = 1024
Say = Callable[[str], None]


class ImageRefused(SandboxError):
    """The cloud started no server because of the image itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlavorFound:
    """A flavor as the cloud shows it."""

    id: str
    name: str
    vcpus: int
    ram_mib: int
    disk_gib: int


def choose(flavors: tuple[FlavorFound, ...], wanted: str, *, cloud: str, min_disk_gib: int) -> FlavorFound:
    """The flavor of this name or id, or the smallest that fits; pure.

    Raises:
        InputFault: there is none.
    """
    known = ", ".join(sorted(one.name for one in flavors)[:20]) or "none"
    if wanted:
        for one in flavors:
            if wanted in {one.name, one.id}:
                if one.disk_gib == 0:
                    raise InputFault(
                        f"flavor '{wanted}' has no disk of its own: it boots from volumes",
                        hint="name a flavor with a disk in [sandbox]",
                    )
                return one
        raise InputFault(f"'{cloud}' has no flavor '{wanted}'", hint=f"it has: {known}")
    fitting = [one for one in flavors if one.ram_mib >= _MIN_RAM_MIB and one.disk_gib >= max(1, min_disk_gib)]
    if not fitting:
        need = f"{_MIN_RAM_MIB} MiB of memory and {min_disk_gib} GiB of disk"
        raise InputFault(f"no flavor of '{cloud}' has {need} or more", hint=f"it has: {known}")
    return min(fitting, key=lambda one: (one.ram_mib, one.vcpus, one.disk_gib, one.name))


@contextlib.contextmanager
def opened(tenant: Tenant) -> Iterator[TenantCloud]:
    """The tenant's cloud.

    Raises:
        InputFault: it is not in clouds.yaml, or has no compute.
        SandboxError: it gives no access.
    """
    from openstack.exceptions import SDKException

    try:
        connection = connect(tenant.cloud, region_name=tenant.region_name)
    except SDKException as failed:
        raise InputFault(
            f"the cloud '{tenant.cloud}' is not in clouds.yaml", hint="see [sandbox] of the site file, or --cloud"
        ) from failed
    try:
        yield TenantCloud(connection, tenant)
    finally:
        connection.close()


class TenantCloud:
    """A cloud as one of its tenants."""

    def __init__(self, connection: Connection, tenant: Tenant) -> None:
        self.connection = connection
        self.tenant = tenant
        self.asked = Asked(cloud=tenant.cloud, flavor=tenant.flavor or "the smallest that fits")
        self.images = GlanceStore(connection, cloud=tenant.cloud)

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """Turn what the cloud refuses into one sentence, with the cloud's own words as a fact."""
        from keystoneauth1.exceptions import ClientException
        from openstack.exceptions import HttpException, SDKException

        try:
            yield
        except HttpException as refused:
            said = said_plainly(f"{refused.details or refused}")
            meaning = told(said, asked=self.asked, status=refused.status_code or 0)
            raise SandboxError(meaning.message, facts=(("said", said),), hint=meaning.hint) from None
        except (SDKException, ClientException) as failed:
            raise SandboxError(
                f"the cloud '{self.tenant.cloud}' does not answer as a cloud should",
                facts=(("said", said_plainly(str(failed))),),
                hint="check its address and credentials in clouds.yaml",
            ) from None

    @contextlib.contextmanager
    def of_images(self) -> Iterator[None]:
        """Trouble with images as trouble of the sandbox."""
        try:
            yield
        except StoreError as refused:
            raise SandboxError(refused.message, facts=refused.facts, hint=refused.hint) from refused.__cause__

    def expect_compute(self) -> None:
        """Raise InputFault if this cloud starts no servers, SandboxError if it gives no access at all."""
        with self.of_images(), self.telling():
            self.images.project_id  # noqa: B018 - a cloud that is away is not one without compute
            there = self.connection.has_service("compute")
        if not there:
            raise InputFault(
                f"the cloud '{self.tenant.cloud}' has no compute service", hint="name a cloud that starts servers"
            )

    # -- what is there --------------------------------------------------------------------------------------------

    def flavor(self, *, min_disk_gib: int) -> FlavorFound:
        """The flavor to use; see :func:`choose`."""
        with self.telling():
            found = tuple(
                FlavorFound(id=one.id, name=one.name, vcpus=one.vcpus, ram_mib=one.ram, disk_gib=one.disk)
                for one in self.connection.compute.flavors()
            )
        chosen = choose(found, self.tenant.flavor, cloud=self.tenant.cloud, min_disk_gib=min_disk_gib)
        self.asked = Asked(cloud=self.tenant.cloud, flavor=chosen.name)
        return chosen

    def network(self, wanted: str) -> str:
        """The id of the network with this name or id.

        Raises:
            InputFault: there is none, or there are several.
        """
        with self.telling():
            found = [one for one in self.connection.network.networks() if wanted in {one.name, one.id}]
        if len(found) != 1:
            how = "no network" if not found else f"{len(found)} networks"
            raise InputFault(f"'{self.tenant.cloud}' has {how} '{wanted}'", hint="give its id in [sandbox]")
        return str(found[0].id)

    def image_named(self, name: str) -> tuple[str, ...]:
        """The ids that a name leads to, as openstacksdk and the command line look it up: one, none, or too many."""
        from openstack.exceptions import DuplicateResource

        with self.telling():
            try:
                found = self.connection.image.find_image(name, ignore_missing=True)
            except DuplicateResource:
                return tuple(one.id for one in self.connection.image.images(name=name))
        return () if found is None else (str(found.id),)

    # -- what is made ---------------------------------------------------------------------------------------------

    def make_key(self, lease: Lease, public: str) -> None:
        """The key pair that servers of this lease let in."""
        with self.telling():
            self.connection.compute.create_keypair(name=lease.name, public_key=public)

    def make_group(self, lease: Lease) -> str:
        """A security group that lets in ssh and ICMP; nothing where the cloud has no such groups."""
        network = self.connection.network
        with self.telling():
            if network.find_extension("security-group", ignore_missing=True) is None:
                return ""
            group = network.create_security_group(name=lease.name, description=lease.name)
            for family, icmp in (("IPv4", "icmp"), ("IPv6", "ipv6-icmp")):
                common = {"security_group_id": group.id, "direction": "ingress", "ether_type": family}
                network.create_security_group_rule(**common, protocol="tcp", port_range_min=22, port_range_max=22)
                network.create_security_group_rule(**common, protocol=icmp)
        return str(group.id)

    def make_network(self, lease: Lease) -> str:
        """A network, its subnet, and a router to the external network."""
        external = self.network(self.tenant.external_network)
        network = self.connection.network
        named = {"name": lease.name, "description": lease.name}
        with self.telling():
            made = network.create_network(**named)
            cidr = f"10.77.{secrets.randbelow(256)}.0/24"
            subnet = network.create_subnet(**named, network_id=made.id, ip_version=4, cidr=cidr)
            router = network.create_router(**named, external_gateway_info={"network_id": external})
            network.add_interface_to_router(router, subnet=subnet.id)
        return str(made.id)

    def make_server(self, lease: Lease, wanted: Mapping[str, Any], *, user_data: str) -> str:
        """Ask for a server; its id. ``wanted`` is image_id, flavor_id, networks, metadata and the like."""
        drive = {"config_drive": True} if self.tenant.config_drive else {}
        with self.telling():
            server = self.connection.compute.create_server(
                name=lease.name,
                key_name=lease.name,
                user_data=base64.b64encode(user_data.encode()).decode(),
                **drive,
                **wanted,
            )
        return str(server.id)

    def make_address(self, lease: Lease, server_id: str) -> str:
        """A floating address for a server."""
        external = self.network(self.tenant.external_network)
        with self.telling():
            port = next(iter(self.connection.network.ports(device_id=server_id)))
            made = self.connection.network.create_ip(
                floating_network_id=external, port_id=port.id, description=lease.name
            )
        return str(made.floating_ip_address)

    # -- servers ----------------------------------------------------------------------------------------------------

    def await_active(self, server_id: str) -> None:
        """Wait until a server is ACTIVE, which is no proof that its system boots.

        Raises:
            SandboxError: it went to ERROR, in the user's words and with Nova's; or it took too long.
        """
        started = time.monotonic()
        while True:
            server = self._server(server_id)
            if server is None:
                raise SandboxError(f"the server in '{self.tenant.cloud}' was deleted while it was being built")
            if server.status == "ACTIVE":
                return
            if server.status == "ERROR":
                said = said_plainly((server.fault or {}).get("message", "nothing"))
                meaning = told(said, asked=self.asked)
                kind = ImageRefused if meaning.of_image else SandboxError
                raise kind(meaning.message, facts=(("nova said", said),), hint=meaning.hint)
            if time.monotonic() - started > self.tenant.timeout_s:
                state = f"{server.status}, {server.task_state or 'idle'}"
                meaning = too_slow(self.asked, state=said_plainly(state), seconds=self.tenant.timeout_s)
                raise SandboxError(meaning.message, hint=meaning.hint)
            time.sleep(_ACTIVE_POLL_S)

    def state(self, server_id: str) -> str:
        """A server's status, or ``gone``."""
        server = self._server(server_id)
        return "gone" if server is None else str(server.status)

    def fixed_address(self, server_id: str) -> str:
        """The first address that a server's ports have, IPv4 before IPv6."""
        server = self._server(server_id)
        entries = [one for group in (server.addresses if server else {}).values() for one in group]
        found = sorted(entries, key=lambda one: one.get("version", 0))
        if not found:
            raise SandboxError(
                f"the server in '{self.tenant.cloud}' has no address", hint="has the network in [sandbox] a subnet?"
            )
        return str(found[0]["addr"])

    def console(self, server_id: str) -> str:
        """What Nova shows of a server's serial console: usually its last 100 KB."""
        with self.telling():
            found = self.connection.compute.get_server_console_output(server_id) or {}
        return str(found.get("output") or "")

    def _server(self, server_id: str) -> Any:  # noqa: ANN401 - openstacksdk's own type
        from openstack.exceptions import NotFoundException

        with self.telling():
            try:
                return self.connection.compute.get_server(server_id)
            except NotFoundException:
                return None

    # -- what is ours -----------------------------------------------------------------------------------------------

    def leased(self) -> tuple[Leased, ...]:
        """Everything here that is called like a lease, in the order in which it can be deleted."""
        compute, network = self.connection.compute, self.connection.network
        found: list[Leased] = []
        with self.telling():
            for server in compute.servers(name="^factory-lease-"):
                tag = str((server.metadata or {}).get(KEY, ""))
                found.append(Leased(kind="server", id=server.id, name=server.name, tag=tag))
            found += self._described("floating address", network.ips, name="description")
            found += self._described("router", network.routers)
            found += self._described("network", network.networks)
            found += self._described("security group", network.security_groups)
            found += [Leased(kind="key pair", id=one.name, name=one.name) for one in compute.keypairs()]
        with self.of_images():
            for image in self.images.list_all():
                found.append(Leased(kind="image", id=image.id, name=image.name, tag=image.properties.get(KEY, "")))
        return tuple(one for one in found if parse(one.name) is not None)

    def _described(self, kind: str, listed: Callable[[], Any], *, name: str = "name") -> list[Leased]:
        """Things of Neutron; none where its extension for this kind is missing."""
        from openstack.exceptions import NotFoundException

        try:
            return [
                Leased(kind=kind, id=one.id, name=getattr(one, name) or "", tag=one.description or "")
                for one in listed()
            ]
        except NotFoundException:
            return []

    def delete(self, thing: Leased) -> None:
        """Delete one thing and wait until it is gone; one that is gone is fine.

        Raises:
            SandboxError: the cloud does not let us, or it takes too long.
        """
        compute, network = self.connection.compute, self.connection.network
        ways: dict[str, Callable[[str], object]] = {
            "server": self._delete_server,
            "floating address": network.delete_ip,
            "router": self._delete_router,
            "network": network.delete_network,
            "security group": network.delete_security_group,
            "key pair": compute.delete_keypair,
            "image": self._delete_image,
        }
        with self.telling():
            ways[thing.kind](thing.id)

    def _delete_server(self, server_id: str) -> None:
        self.connection.compute.delete_server(server_id)
        deadline = time.monotonic() + self.tenant.timeout_s
        while self._server(server_id) is not None:
            if time.monotonic() > deadline:
                raise SandboxError(f"server {server_id} is not gone {self.tenant.timeout_s} s after it was deleted")
            time.sleep(_ACTIVE_POLL_S)

    def _delete_router(self, router_id: str) -> None:
        network = self.connection.network
        for port in network.ports(device_id=router_id):
            for fixed in port.fixed_ips:
                network.remove_interface_from_router(router_id, subnet=fixed["subnet_id"])
        network.delete_router(router_id)

    def _delete_image(self, image_id: str) -> None:
        with self.of_images():
            self.images.delete(image_id)


def said_plainly(text: str) -> str:
    """What a cloud said, on one line."""
    return " ".join(plain(text).split())[:_SAID]


def expect_same(cloud: TenantCloud, image_id: str, path: Path, *, sha512: str) -> None:
    """Read the copy's size and digest back.

    Raises:
        SandboxError: the cloud holds other bytes than the file has.
    """
    stored = cloud.images.get(image_id)
    if stored is None or stored.status != "active":
        raise SandboxError(f"the copy of the image in '{cloud.tenant.cloud}' is {stored.status if stored else 'gone'}")
    size, found = stored.size_bytes, stored.hash_value
    if stored.hash_algo != "sha512" or not found:
        back = cloud.images.read_back(image_id)
        size, found = back.size_bytes, back.sha512
    if (size, found) != (path.stat().st_size, sha512):
        raise SandboxError(
            f"'{cloud.tenant.cloud}' holds other bytes than '{path.name}' has",
            facts=(("file", f"{sha512} ({path.stat().st_size} bytes)"), ("cloud", f"{found} ({size} bytes)")),
            hint="does this cloud convert images on import?",
        )
