# SPDX-License-Identifier: Apache-2.0
"""After the swap: ``<line>_latest`` started by its name, as any tenant does it, and looked at for the least there is.

The name leads to the released image, the server becomes ACTIVE, its console shows the end of cloud-init, the injected
key opens it, and inside is what was released. What the cloud itself cannot do (no host, no quota) is no fault of the
image and is raised; the rollback after a red canary is the pipeline's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path

from factory.errors import GuestSilent, GuestStopped, InputFault
from factory.model import Canaries, Canary, Package, Release, Tenant
from factory.sandbox.conversation import Conversation
from factory.sandbox.openstack import Session, session
from factory.sandbox.seed import fresh_key
from factory.sandbox.tenant_cloud import ImageRefused
from factory.store.line import latest_name
from factory.system.files import remove
from factory.system.state import Run

STAGE = "canary"
_SEEN = r"""
. /etc/os-release && echo "ID $ID" && echo "VERSION_ID $VERSION_ID"
dpkg-query -W -f '${db:Status-Abbrev} ${Package} ${Version} ${Architecture}\n' 2>/dev/null | sed -n 's/^ii */PACKAGE /p'
"""
_SHOWN = 5
Say = Callable[[str], None]


def stands(run: Run) -> bool:
    """Whether a run's image was published and not taken back by its canary."""
    return run.has("rotate") and not (run.has(STAGE) and not run.read(STAGE, Canaries).green)


def boot_by_name(
    release: Release, tenant: Tenant, *, workdir: Path, console_log: Path, say: Say, now: datetime
) -> Canary:
    """Start the latest image of a release's line and judge it.

    Args:
        workdir: private; gone afterwards.

    Raises:
        InputFault: the tenant is not configured as its cloud is, or cannot see images of this visibility by name.
        SandboxError: the cloud started no server, for a reason that is not the image's.
    """
    remove(workdir)
    workdir.mkdir(parents=True, mode=0o700)
    try:
        with session(tenant, now=now, say=say) as used:
            faults, boot_s = _judge(release, used, workdir=workdir, console_log=console_log, say=say)
    finally:
        remove(workdir)
    return Canary(
        target=release.target,
        line=_line(release),
        image_id=release.image_id,
        tenant=tenant.cloud,
        faults=tuple(faults),
        boot_s=round(boot_s, 1),
        judged_at=now,
    )


def _line(release: Release) -> str:
    return release.bundle.artifact.recipe.description.line


def _judge(release: Release, used: Session, *, workdir: Path, console_log: Path, say: Say) -> tuple[list[str], float]:
    name, description = latest_name(_line(release)), release.bundle.artifact.recipe.description
    found = used.cloud.image_named(name)
    if not found and release.target.visibility != "public":
        raise InputFault(
            f"the tenant '{used.tenant.cloud}' sees no image '{name}': it is {release.target.visibility}",
            hint="let the canary of this target be a tenant of the publishing project, or make the target public",
        )
    if found != (release.image_id,):
        what = f"{len(found)} images ({', '.join(found)})" if len(found) != 1 else f"image {found[0]}"
        return [f"'{name}' leads to {what if found else 'no image'}, not to the released {release.image_id}"], 0.0
    key = fresh_key(workdir)
    try:
        with used.boot(
            found[0],
            workdir=workdir,
            key=key,
            user=description.login_user,
            user_data="#cloud-config\n{}\n",
            console_log=console_log,
            timeout_s=description.budgets.boot_timeout_s,
            min_disk_gib=description.disk.min_gib,
            metadata={"factory_registration": "byos"},
        ) as guest:
            say("the guest lets its user in; comparing what is inside with what was released")
            return list(_inside(guest, release)), guest.boot_s
    except (GuestSilent, GuestStopped, ImageRefused) as stopped:
        return ["\n".join(stopped.lines())], 0.0


def _inside(guest: Conversation, release: Release) -> Iterable[str]:
    artifact = release.bundle.artifact
    told = [line.split(" ", 1) for line in guest.ssh("sh -s", stdin=_SEEN.encode()).stdout.splitlines() if " " in line]
    metadata = artifact.recipe.description.metadata
    wanted = {"ID": metadata.get("os_distro", ""), "VERSION_ID": metadata.get("os_version", "")}
    yield from differing({name: value for name, value in told if name != "PACKAGE"}, wanted)
    yield from other_packages({value for name, value in told if name == "PACKAGE"}, artifact.packages)


def differing(found: Mapping[str, str], wanted: Mapping[str, str]) -> Iterable[str]:
    """What the guest's os-release says other than the release's metadata; pure."""
    for key, value in wanted.items():
        if value and found.get(key) != value:
            yield f"the guest's os-release says {key}={found.get(key, '')!r}, released was {value!r}"


def other_packages(found: set[str], released: Iterable[Package]) -> Iterable[str]:
    """Whether the guest has other packages (``NAME VERSION ARCH``) than the released image; pure.

    A guest without dpkg is not asked.
    """
    wanted = {f"{one.name} {one.version} {one.arch}" for one in released}
    if not found or found == wanted:
        return
    missing, more = sorted(wanted - found), sorted(found - wanted)
    shown = [f"not {one}" for one in missing[:_SHOWN]] + [f"but {one}" for one in more[:_SHOWN]]
    yield f"the guest is another build: of {len(wanted)} packages {len(missing)} differ ({'; '.join(shown)})"
