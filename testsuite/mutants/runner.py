# SPDX-License-Identifier: Apache-2.0
"""Spoil clones of one frozen guest, each in its own way, and let the suite look at them.

The guest boots once. A clone needs about three seconds; two run side by side, because each uses one CPU. Faults that
show only at a later boot share two further boots: a reboot, and a start of the disk as another instance.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import itertools
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from factory.model import Artifact, Check
from factory.region.services import RegionServices, serve
from factory.sandbox.accelerator import proven_accelerator
from factory.sandbox.frozen import Frozen, freeze, thaw
from factory.sandbox.guest import Guest
from factory.sandbox.network import sandbox_network
from factory.sandbox.qemu import boot
from factory.sandbox.seed import fresh_key
from factory.system.state import State
from factory.verify import boots
from factory.verify.boots import Noted, Stage
from factory.verify.seen import as_root, seen, shown_password
from factory.verify.subject import expectations, subject_of
from factory.verify.suite import SuiteRun, run_suite

from .table import MUTANTS, PASSWORD, Facts, Mutant

CLONES = 2
_BASE_DISK_GIB = 8
_LARGER_DISK_GIB = 9


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the suite said of one spoiled guest."""

    check: Check
    phase: str


@dataclass(kw_only=True)
class Base:
    """A healthy guest, frozen, and everything the suite was told about it."""

    stage: Stage
    frozen: Frozen
    facts: Facts
    suite: Path
    services: RegionServices
    words: dict[str, str]
    password: str
    numbers: Iterator[int] = field(default_factory=itertools.count)

    @contextlib.contextmanager
    def clone(self) -> Iterator[tuple[Guest, Facts]]:
        """A clone with the facts that reach it."""
        folder = self.stage.folder / f"clone-{next(self.numbers)}"
        folder.mkdir(mode=0o700)
        try:
            with thaw(
                self.frozen,
                workdir=folder,
                namespace=self.stage.namespace,
                console_log=folder / "console.log",
                say=self.stage.say,
            ) as guest:
                facts = copy.deepcopy(self.facts)
                facts["ssh"] = {"config": str(guest.ssh_config), "host": guest.ssh_host}
                facts["console_logs"].append(str(guest.machine.serial))
                yield guest, facts
        finally:
            shutil.rmtree(folder)

    def script(self, text: str) -> str:
        """A spoil script with its ``{words}`` filled in; ``{{`` stands for a brace."""
        for word, value in self.words.items():
            text = text.replace("{" + word + "}", value)
        return text.replace("{{", "{").replace("}}", "}")

    def look(self, facts: Facts, *select: str, marks: str = "") -> SuiteRun:
        """Run checks."""
        with tempfile.TemporaryDirectory(dir=self.stage.folder) as name:
            folder = Path(name)
            return run_suite(
                self.suite,
                facts=facts,
                folder=folder,
                name="mutant",
                select=select,
                marks=marks,
                log=self.stage.log_dir / f"{threading.get_ident()}.log",
                timeout_s=900,
            )


@contextlib.contextmanager
def healthy_base(artifact: Artifact, *, state: State, suite: Path, folder: Path, now: datetime) -> Iterator[Base]:
    """Boot the image once, wait until it has settled, and freeze it."""
    subject = subject_of(artifact, state=state)
    log_dir = folder / "logs"
    log_dir.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(
            sandbox_network(
                subject.regions,
                services=lambda namespace: serve(
                    namespace,
                    subject.regions,
                    view=subject.view,
                    product=subject.description.registration.product,
                    workdir=folder / "region",
                    log_dir=log_dir,
                    now=now,
                    say=_quiet,
                    client=subject.region_client,
                ),
                ntp_servers=subject.ntp_servers,
                workdir=folder / "network",
                say=_quiet,
            )
        )
        stage = Stage(
            subject=subject,
            namespace=network.namespace,
            accelerator=proven_accelerator(state.path / "cache", _quiet),
            cpus=1,
            folder=folder,
            log_dir=log_dir,
            now=now,
            say=_quiet,
        )
        (folder / "first").mkdir(mode=0o700)
        seed = boots.first_seed(stage, fresh_key(folder / "first"))
        guest = stack.enter_context(
            boot(
                artifact.path,
                workdir=folder / "first",
                namespace=stage.namespace,
                seed=seed,
                accelerator=stage.accelerator,
                console_log=log_dir / "console.log",
                say=_quiet,
                timeout_s=stage.timeout_s,
                user=subject.description.login_user,
                cpus=1,
                disk_gib=_BASE_DISK_GIB,
                rtc_base=now - boots.CLOCK_OFF,
                freezable=True,
            )
        )
        guest.ssh("sudo -n systemctl is-system-running --wait", check=False)
        before, password = seen(guest), shown_password(guest)
        console = folder / "console-of-the-base.raw"
        console.write_text(guest.console_text())
        facts: Facts = {
            **expectations(subject),
            "injected_key": seed.key.public,
            "seed": boots.seed_facts(seed),
            "disk_bytes": _BASE_DISK_GIB << 30,
            "console_logs": [str(console)],
            "registrations": [{"products": list(one.products)} for one in network.services.registrations()],
            "reboot": {"before": before, "after": {**before, "boot_id": "another"}},
        }
        words = {
            "user": subject.description.login_user,
            "epoch": str(artifact.epoch),
            "certificates": artifact.recipe.region_client.cert_location,
            "update_server": artifact.recipe.regions[0].update_servers[0].name,
            "short_lived_key": short_lived_key(folder),
        }
        yield Base(
            stage=stage,
            frozen=stack.enter_context(freeze(guest)),
            facts=facts,
            suite=suite,
            services=network.services,
            words=words,
            password=password,
        )


def _quiet(text: str) -> None:
    del text


def short_lived_key(folder: Path) -> str:
    """A public key that expires tomorrow, as Base64."""
    home = folder / "gnupg"
    home.mkdir(mode=0o700)
    gpg = ["gpg", "--homedir", home, "--batch", "--quiet", "--passphrase", "", "--pinentry-mode", "loopback"]
    subprocess.run([*gpg, "--quick-generate-key", "spoiled@example.org", "ed25519", "sign", "1d"], check=True)
    key = subprocess.run([*gpg, "--export"], check=True, capture_output=True).stdout
    subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=True)
    return base64.b64encode(key).decode()


# -- now --------------------------------------------------------------------------------------------------------------


def look_at_mutants(base: Base, mutants: Sequence[Mutant]) -> dict[str, Callable[[], Found]]:
    """What the suite says of each mutant, by its check; a call waits for, and raises, as a future does."""
    shared: dict[str, Facts] = {}
    at_reboot = [one for one in mutants if one.at == "reboot"]
    at_other = [one for one in mutants if one.at == "other"]
    found: dict[str, Callable[[], Found]] = {}
    with ThreadPoolExecutor(CLONES) as pool:
        rebooted = pool.submit(_at_reboot, base, at_reboot) if at_reboot else None
        other = pool.submit(_at_other, base, shared) if at_other else None
        for one in mutants:
            if one.at == "now":
                found[one.check] = pool.submit(_now, base, one).result
        if other is not None:
            other.exception()
            for one in at_other:
                found[one.check] = pool.submit(_compared, base, one, shared, other.result).result
        for one in at_reboot:
            assert rebooted is not None
            found[one.check] = lambda one=one: rebooted.result()[one.check]  # type: ignore[misc]
    return found


def _now(base: Base, mutant: Mutant) -> Found:
    with base.clone() as (guest, facts):
        if mutant.spoil:
            as_root(guest, base.script(mutant.spoil))
        if mutant.facts is not None:
            mutant.facts(facts)
        if mutant.probe is not None:
            facts["outside"] = mutant.probe(guest)
        return _found(base.look(facts, mutant.check))


def _found(run: SuiteRun) -> Found:
    (check,) = run.checks
    return Found(check=check, phase=run.phases[check.name])


# -- at later boots ---------------------------------------------------------------------------------------------------


def _spoils(base: Base, at: str) -> str:
    return "\n".join(base.script(one.spoil) for one in MUTANTS if one.at == at and one.spoil)


def _at_reboot(base: Base, mutants: Sequence[Mutant]) -> dict[str, Found]:
    """Reboot one clone that has every fault of this kind."""
    noted = Noted()
    with base.clone() as (guest, facts):
        as_root(guest, _spoils(base, "reboot"))
        boots.reboot(guest, noted, before=base.facts["reboot"]["before"], timeout_s=base.stage.timeout_s)
        assert not noted.trouble, noted.trouble
        facts.update(noted.facts)
        run = base.look(facts, *(one.check for one in mutants))
        return {check.name: Found(check=check, phase=run.phases[check.name]) for check in run.checks}


def _at_other(base: Base, shared: dict[str, Facts]) -> None:
    """Start the disk of one clone, with every fault of this kind, as another instance whose owner chose otherwise."""
    noted, user = Noted(), base.stage.subject.description.login_user
    with base.clone() as (guest, _):
        as_root(guest, _spoils(base, "other"))
        guest.power_off()
        subprocess.run(["qemu-img", "resize", "-q", guest.disk, f"{_LARGER_DISK_GIB}G"], check=True)
        folder = base.stage.folder / "other"
        folder.mkdir(mode=0o700)
        with boot(
            base.stage.subject.path,
            workdir=folder,
            namespace=base.stage.namespace,
            seed=boots.other_seed(base.stage, fresh_key(folder), password=PASSWORD),
            accelerator=base.stage.accelerator,
            console_log=base.stage.log_dir / "console-other.log",
            say=_quiet,
            timeout_s=base.stage.timeout_s,
            user=user,
            cpus=1,
            disk=guest.disk,
        ) as again:
            boots.note_other(again, noted, user=user, password=PASSWORD)
    shared.update(noted.facts)
    before = base.facts["reboot"]["before"]
    shared["new_instance"] = {"before": before, "after": noted.facts["other"]}


def _compared(base: Base, mutant: Mutant, shared: dict[str, Any], booted: Callable[[], None]) -> Found:
    """Look at a healthy clone beside what was noted of the spoiled one."""
    booted()
    with base.clone() as (_, facts):
        facts.update(shared)
        return _found(base.look(facts, mutant.check))
