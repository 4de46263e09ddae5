# SPDX-License-Identifier: Apache-2.0
"""Users, roles, projects and Glance's endpoints in the embedded Keystone; running it again changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from factory.cloud.settings import PROJECT, PUBLISHER_ROLE, READER_PROJECT, REGION, Settings

if TYPE_CHECKING:
    from openstack.connection import Connection

_DOMAIN = "default"


def register(settings: Settings, connection: Connection) -> None:
    """Bring Keystone to the state that the settings say, through an administrator's ``connection``."""
    identity = connection.identity
    roles = {role.name: role for role in identity.roles()}
    for name in ("service", PUBLISHER_ROLE):
        if name not in roles:
            roles[name] = identity.create_role(name=name)
    wanted = (
        ("service", "glance", settings.passwords.service, ("service",)),
        (PROJECT, "publisher", settings.passwords.publisher, ("member", PUBLISHER_ROLE)),
        (READER_PROJECT, "reader", settings.passwords.reader, ("reader",)),
    )
    for project_name, user_name, password, role_names in wanted:
        project = identity.find_project(project_name) or identity.create_project(name=project_name, domain_id=_DOMAIN)
        user = identity.find_user(user_name) or identity.create_user(
            name=user_name, password=password, domain_id=_DOMAIN, default_project_id=project.id
        )
        for role_name in role_names:
            identity.assign_project_role_to_user(project, user, roles[role_name])
    service = identity.find_service("glance") or identity.create_service(name="glance", type="image")
    present = {endpoint.interface: endpoint for endpoint in identity.endpoints(service_id=service.id)}
    for interface in ("public", "internal", "admin"):
        if interface not in present:
            identity.create_endpoint(
                service_id=service.id, interface=interface, region_id=REGION, url=settings.image_url
            )
