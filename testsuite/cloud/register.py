# SPDX-License-Identifier: Apache-2.0
"""What an administrator makes in a fresh cloud: service users, the catalogue, a tenant, a network, flavors."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from factory.cloud.settings import REGION
from factory.errors import CloudError
from testsuite.cloud.network import GuestsNetwork
from testsuite.cloud.settings import OUTSIDE, OUTSIDE_SUBNET, PHYSICAL, SANDBOX, SERVICE_PROJECT, Settings

if TYPE_CHECKING:
    from openstack.connection import Connection

_DOMAIN = "default"
_USERS = {"placement": "placement", "network": "neutron", "compute": "nova"}
_COMPUTE_UP_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Flavors:
    """Names of flavors: one that an image boots in, one that no host can give, one beyond a project's quota."""

    small: str = "sandbox.small"
    too_large: str = "sandbox.too-large"
    over_quota: str = "sandbox.over-quota"


def register_identities(settings: Settings, admin: Connection) -> None:
    """Service users with their endpoints, and the tenant: a project with an ordinary member."""
    identity = admin.identity
    roles = {role.name: role for role in identity.roles()}
    service = identity.find_project(SERVICE_PROJECT, ignore_missing=False)
    for kind, name in _USERS.items():
        user = identity.create_user(name=name, password=settings.service, domain_id=_DOMAIN)
        for role in ("admin", "service"):
            identity.assign_project_role_to_user(service, user, roles[role])
        entry = identity.create_service(name=name, type=kind)
        for interface in ("public", "internal"):
            identity.create_endpoint(
                service_id=entry.id, interface=interface, region_id=REGION, url=settings.urls[kind]
            )
    project = identity.create_project(name=SANDBOX, domain_id=_DOMAIN)
    member = identity.create_user(
        name=SANDBOX, password=settings.sandbox, domain_id=_DOMAIN, default_project_id=project.id
    )
    identity.assign_project_role_to_user(project, member, roles["member"])


def register_network(admin: Connection, guests: GuestsNetwork) -> None:
    """One flat network that every project may use; its gateway and resolver is the guests' namespace.

    And one outside, from which projects may take addresses (those of RFC 5737); nothing carries it.
    """
    network = admin.network.create_network(
        name=SANDBOX, is_shared=True, provider_network_type="flat", provider_physical_network=PHYSICAL
    )
    admin.network.create_subnet(
        network_id=network.id,
        name=SANDBOX,
        ip_version=4,
        cidr=guests.subnet,
        gateway_ip=guests.gateway,
        dns_nameservers=[guests.gateway],
        is_dhcp_enabled=False,
        allocation_pools=[{"start": guests.first, "end": guests.last}],
    )
    outside = admin.network.create_network(name=OUTSIDE, is_router_external=True, provider_network_type="local")
    admin.network.create_subnet(
        network_id=outside.id, name=OUTSIDE, ip_version=4, cidr=OUTSIDE_SUBNET, is_dhcp_enabled=False
    )


def register_flavors(admin: Connection, flavors: Flavors) -> None:
    """The disk decides what no host can give: memory beyond the host's could still be below another host's."""
    admin.compute.create_flavor(name=flavors.small, ram=1024, vcpus=1, disk=8)
    admin.compute.create_flavor(name=flavors.too_large, ram=1024, vcpus=1, disk=1_000_000)
    admin.compute.create_flavor(name=flavors.over_quota, ram=1 << 20, vcpus=1, disk=8)


def await_compute(admin: Connection) -> None:
    """Wait for the hypervisor, which is listed once the scheduler has put its host into a cell, and the network agent.

    Raises:
        CloudError: they did not come up.
    """
    from keystoneauth1.exceptions import ClientException
    from openstack.exceptions import SDKException

    deadline = time.monotonic() + _COMPUTE_UP_S
    missing = ["everything"]
    while missing:
        if time.monotonic() > deadline:
            raise CloudError("the cloud's compute host did not come up", facts=(("missing", ", ".join(missing)),))
        time.sleep(0.5)
        try:
            missing = [] if any(agent.is_alive for agent in admin.network.agents()) else ["network agent"]
            missing += (
                []
                if any(one.binary == "nova-compute" and one.state == "up" for one in admin.compute.services())
                else ["nova-compute"]
            )
            missing += [] if list(admin.compute.hypervisors()) else ["hypervisor"]
        except (SDKException, ClientException) as not_yet:
            missing = [str(not_yet)]
