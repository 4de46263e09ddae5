# SPDX-License-Identifier: Apache-2.0
"""The verdict from a tenant of a cloud: the same suite, and for what a tenant cannot do the reason in its place."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any

from factory.model import Package, Tenant
from factory.sandbox.openstack import Session, TenantGuest, session
from factory.sandbox.seed import Datasource, Key, Seed, fresh_key
from factory.store.metadata import hardware
from factory.verify import boots
from factory.verify.boots import DOES_NOT_BOOT
from factory.verify.look import Judged, Look, boots_at_all, look
from factory.verify.subject import Subject

NEVER = MappingProxyType(
    {
        "agent": "in a cloud only the hypervisor speaks to QEMU's guest agent",
        "clock": "a tenant cannot start a server with a clock that is off",
        "keyboard": "a tenant has no keyboard at the server's VGA console",
        "other": "one server is booted in a tenant, so there is no other one to compare with",
        "registrations": "a tenant cannot look into the update servers",
    }
)
"""What no tenant can do, and why."""

ALONE = MappingProxyType(
    {
        "region": "servers in this tenant do not reach the region and update servers (site_services is off)",
        "time": "servers in this tenant do not reach the site's time servers (site_services is off)",
    }
)
"""What cannot be tried besides where the site's own servers are not reached."""

_TOLD = ("hw_", "os_", "hypervisor_", "img_", "vm_mode", "architecture")


def not_tried(tenant: Tenant) -> dict[str, str]:
    """What is not tried in a tenant, with the reasons; pure."""
    return {**NEVER, **({} if tenant.site_services else ALONE)}


def properties(subject: Subject) -> dict[str, str]:
    """What the copy's metadata says, so that the cloud gives it the hardware that it will give the release; pure."""
    packages: tuple[Package, ...] = subject.artifact.packages if subject.artifact else ()
    described = {
        key: value
        for key, value in subject.description.metadata.items()
        if key.startswith(_TOLD) and key != "os_purpose"
    }
    if subject.artifact is None:
        return described
    wanted = {**hardware(packages, subject.description), **described}
    if wanted["hw_disk_bus"] != "scsi" and "hw_scsi_model" not in described:
        del wanted["hw_scsi_model"]
    return wanted


def judge_in_tenant(tenant: Tenant, how: Look, *, now: datetime) -> Judged:
    """Boot a copy of the image in a tenant and judge it.

    Raises:
        InputFault: the tenant is not configured as its cloud is.
        SandboxError: the cloud made no server, or the sandbox is broken. A bad image is a red verdict, not an error.
    """
    subject, description = how.subject, how.subject.description
    where = f"openstack:{tenant.cloud}"
    folder = how.folder / "server"
    folder.mkdir(mode=0o700)
    key = fresh_key(folder)
    registers = subject.registers and tenant.site_services
    user_data = boots.first_user_data(package_update=registers)
    with session(tenant, now=now, say=how.say) as used:
        gib = max(description.disk.min_gib, -(-subject.virtual_size_bytes >> 30))
        image_id = used.copy(subject.path, properties=properties(subject), min_disk_gib=gib)
        try:
            with used.boot(
                image_id,
                workdir=folder,
                key=key,
                user=description.login_user,
                user_data=user_data,
                console_log=how.log_dir / "console.log",
                timeout_s=how.timeout_s,
                min_disk_gib=gib,
                metadata={} if registers else {"factory_registration": "byos"},
            ) as guest:
                facts = _reached(used, guest, key=key, user_data=user_data)
                checks, junit = look(guest, how, facts=facts, second=None)
                accelerator, booted = f"flavor {guest.flavor.name}", guest.boot_s
        except DOES_NOT_BOOT as stopped:
            return Judged(
                checks=(boots_at_all(stopped),),
                accelerator="nova",
                boot_s=0.0,
                region_proof="not tried",
                sandbox=where,
            )
    return Judged(
        checks=checks,
        accelerator=accelerator,
        boot_s=booted,
        region_proof=_proof(subject, registers=registers),
        junit=junit,
        sandbox=where,
    )


def _reached(used: Session, guest: TenantGuest, *, key: Key, user_data: str) -> Mapping[str, Any]:
    """How the suite gets to this server, and what it was told."""
    seed = Seed(
        key=key,
        instance_id=guest.server_id,
        hostname=guest.hostname,
        user_data=user_data,
        datasource=Datasource.OPENSTACK,
    )
    return {
        "ssh": {"config": str(guest.ssh_config), "host": guest.ssh_host},
        "injected_key": key.public,
        "seed": boots.seed_facts(seed),
        "disk_bytes": guest.flavor.disk_gib << 30,
        "console_logs": [str(guest.serial)],
        "not_tried": not_tried(used.tenant),
    }


def _proof(subject: Subject, *, registers: bool) -> str:
    if not subject.registers:
        return "no region: this image does not register here"
    if not registers:
        return "registration was not tried: servers in this tenant do not reach the site's servers"
    names = ", ".join(server.name for region in subject.regions for server in region.servers)
    return f"registration with the servers that answer in the tenant under the names {names}"
