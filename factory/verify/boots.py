# SPDX-License-Identifier: Apache-2.0
"""The boots behind a verdict: what each guest is told, what is tried on it, and what is noted.

Two guests of the same bytes run side by side, each on its own throw-away overlay:

* the *first* one: OpenStack's config drive, a clock a year behind, 8 GiB. The suite judges it; then it is attacked from
  outside, its console password is typed, and it is rebooted.
* the *other* one: NoCloud, 6 GiB, a password in its user-data, and the choice not to register. Its disk is then
  started again as another instance.
"""

from __future__ import annotations

import base64
import json
import secrets
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from factory.errors import GuestSilent, GuestStopped, SandboxError
from factory.sandbox.console import FINISHED
from factory.sandbox.conversation import Conversation
from factory.sandbox.guest import Guest
from factory.sandbox.qemu import boot
from factory.sandbox.seed import Datasource, Key, Seed, fresh_key, seed_files
from factory.system.namespaces import NetworkNamespace
from factory.verify.outside import try_password
from factory.verify.seen import console_login, seen, shown_password
from factory.verify.subject import Subject

FIRST_DISK_GIB = 8
OTHER_DISK_GIB = 6
CLOCK_OFF = timedelta(days=365)
MARKER = "/etc/factory-acceptance"
KEPT_PEMS = "/var/lib/factory-acceptance"
"""Where a guest keeps the image's own region certificates when stand-ins take their place."""

DOES_NOT_BOOT = (GuestSilent, GuestStopped)
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Where guests run: the network, the accelerator, and a private folder."""

    subject: Subject
    namespace: NetworkNamespace
    accelerator: str
    cpus: int
    folder: Path
    log_dir: Path
    now: datetime
    say: Say
    replacement_pems: dict[str, str] = field(default_factory=dict)

    @property
    def timeout_s(self) -> float:
        return self.subject.description.budgets.boot_timeout_s


@dataclass(slots=True, kw_only=True)
class Noted:
    """What was seen; ``secrets`` are throw-away passwords that no result may show."""

    facts: dict[str, Any] = field(default_factory=dict)
    secrets: list[str] = field(default_factory=list)
    trouble: str = ""


# -- what a guest is told ---------------------------------------------------------------------------------------------


def first_seed(stage: Stage, key: Key) -> Seed:
    """What the first guest finds: as an OpenStack cloud would say it."""
    return Seed(
        key=key,
        instance_id=f"factory-first-{secrets.token_hex(4)}",
        hostname="first-guest",
        user_data=first_user_data(package_update=stage.subject.registers, stand_ins=_stand_ins(stage)),
        datasource=Datasource.CONFIG_DRIVE,
    )


def first_user_data(*, package_update: bool, stand_ins: dict[str, Any] | None = None) -> str:
    """What the guest that is judged is told to do, in our sandbox as in a tenant."""
    entropy = base64.b64encode(secrets.token_bytes(64)).decode()
    config = {
        "package_update": package_update,
        "random_seed": {"encoding": "base64", "data": entropy},
        "write_files": [{"path": MARKER, "content": "the user-data was carried out\n"}],
        **(stand_ins or {}),
    }
    return _cloud_config(config)


def other_seed(stage: Stage, key: Key, *, password: str) -> Seed:
    """What the other guest finds: its owner sets a password and brings a licence."""
    config = {"password": password, "chpasswd": {"expire": False}, **_stand_ins(stage)}
    return Seed(
        key=key,
        instance_id=f"factory-other-{secrets.token_hex(4)}",
        hostname="other-guest",
        user_data=_cloud_config(config),
        meta={"factory_registration": "byos"},
    )


def new_seed(stage: Stage, key: Key) -> Seed:
    """What the other guest's disk finds when it is started as another instance."""
    return Seed(
        key=key,
        instance_id=str(
            uuid.uuid4()
        ),  # it registers, and update servers want an instance to be named as OpenStack does
        hostname="new-guest",
        user_data=_cloud_config(_stand_ins(stage)),
    )


def _cloud_config(config: dict[str, Any]) -> str:
    return "#cloud-config\n" + json.dumps(config, indent=1) + "\n"  # JSON is YAML


def _stand_ins(stage: Stage) -> dict[str, Any]:
    """Commands that put stand-in certificates in place before the guest registers, and keep the image's own."""
    commands = []
    for path, pem in stage.replacement_pems.items():
        kept = f"{KEPT_PEMS}/{Path(path).name}"
        content = base64.b64encode(pem.encode()).decode()
        commands.append(["mkdir", "-p", KEPT_PEMS])
        commands.append(
            ["sh", "-c", f'test -e "{kept}" || cp "{path}" "{kept}"; echo {content} | base64 -d > "{path}"']
        )
    return {"bootcmd": commands} if commands else {}


def seed_facts(seed: Seed) -> dict[str, Any]:
    """What the suite is told about a seed."""
    instance_id = seed.instance_id
    if seed.datasource is Datasource.CONFIG_DRIVE:
        instance_id = json.loads(seed_files(seed)["openstack/latest/meta_data.json"])["uuid"]
    return {
        "instance_id": instance_id,
        "hostname": seed.hostname,
        "marker": {"path": MARKER, "content": "the user-data was carried out"},
        "files": [MARKER, f"{KEPT_PEMS}/*"],
        "package_update": '"package_update": true' in seed.user_data,
    }


# -- the other guest --------------------------------------------------------------------------------------------------


def look_at_other(stage: Stage) -> Noted:
    """Boot the image a second time, and its disk again as another instance; note what was seen.

    A guest that does not come up is noted as trouble, not raised: it is the image that is judged.
    """
    noted = Noted()
    folder = stage.folder / "other"
    folder.mkdir(parents=True, mode=0o700)
    key = fresh_key(folder)
    password = f"C7-{secrets.token_hex(8)}"
    noted.secrets.append(password)
    try:
        disk = _other_boot(stage, noted, key=key, password=password, folder=folder)
        _new_instance(stage, noted, key=key, disk=disk, folder=folder)
    except DOES_NOT_BOOT as stopped:
        noted.trouble = "\n".join(stopped.lines())
    return noted


def _other_boot(stage: Stage, noted: Noted, *, key: Key, password: str, folder: Path) -> Path:
    seed = other_seed(stage, key, password=password)
    user = stage.subject.description.login_user
    with boot(
        stage.subject.path,
        workdir=folder,
        namespace=stage.namespace,
        seed=seed,
        accelerator=stage.accelerator,
        console_log=stage.log_dir / "console-other.log",
        say=_named(stage.say, "other guest"),
        timeout_s=stage.timeout_s,
        user=user,
        cpus=stage.cpus,
        disk_gib=OTHER_DISK_GIB,
        keep_disk=True,
        masked_secrets=[password],
    ) as guest:
        note_other(guest, noted, user=user, password=password)
        guest.power_off()
        return guest.disk


def note_other(guest: Guest, noted: Noted, *, user: str, password: str) -> None:
    """Note what the other guest is, and try the password that its owner set."""
    found = seen(guest)
    noted.secrets.append(shown := shown_password(guest))
    found["byos"] = {"guestregister_status": found.get("guestregister_status")}
    found["user_data_password"] = {
        "shown": bool(shown),
        "ssh": try_password(guest, user=user, password=password),
        "console": console_login(guest, user=user, password=password),
    }
    noted.facts["other"] = found


def _new_instance(stage: Stage, noted: Noted, *, key: Key, disk: Path, folder: Path) -> None:
    with boot(
        stage.subject.path,
        workdir=folder,
        namespace=stage.namespace,
        seed=new_seed(stage, key),
        accelerator=stage.accelerator,
        console_log=stage.log_dir / "console-new-instance.log",
        say=_named(stage.say, "new instance"),
        timeout_s=stage.timeout_s,
        user=stage.subject.description.login_user,
        cpus=stage.cpus,
        disk=disk,
        masked_secrets=noted.secrets,
    ) as guest:
        noted.secrets.append(shown_password(guest))
        noted.facts["new_instance"] = {"before": noted.facts["other"], "after": seen(guest)}


def _named(say: Say, name: str) -> Say:
    return lambda text: say(f"{name}: {text}")


def reboot(guest: Conversation, noted: Noted, *, before: dict[str, Any], timeout_s: float) -> None:
    """Reboot the first guest and note what it is now. Host keys may have changed: that is for the suite to judge."""
    mark = guest.mark()
    try:
        guest.ssh("sudo -n systemctl reboot", check=False)
        guest.disconnect()
        guest.wait_for(FINISHED, timeout_s=timeout_s, since_bytes=mark, what="the end of its reboot")
        guest.connect(known_host_keys=())
        noted.facts["reboot"] = {"before": before, "after": seen(guest)}
    except SandboxError as stopped:
        noted.trouble = "\n".join(stopped.lines())
