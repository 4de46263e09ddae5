# SPDX-License-Identifier: Apache-2.0
"""One healthy guest of the shared night's image, booted once, frozen, and cloned for all tests that want a guest.

It boots as the first guest of a verdict does: OpenStack's config drive, a clock a year off, a region to register with.
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
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from factory.model import Artifact
from factory.region.services import RegionServices, serve
from factory.sandbox.accelerator import proven_accelerator
from factory.sandbox.frozen import Frozen, freeze, thaw
from factory.sandbox.guest import Guest
from factory.sandbox.network import SandboxNetwork, sandbox_network
from factory.sandbox.qemu import boot
from factory.sandbox.seed import fresh_key
from factory.system.clock import now as clock
from factory.system.state import State
from factory.verify import boots
from factory.verify.boots import Stage
from factory.verify.seen import as_root, seen
from factory.verify.subject import expectations, subject_of
from factory.verify.suite import SuiteRun, run_suite

from .table import Facts

DISK_GIB = 8


@dataclass(kw_only=True)
class Base:
    """A healthy guest, frozen, and everything the suite was told about it."""

    stage: Stage
    network: SandboxNetwork[RegionServices]
    frozen: Frozen
    clock_off_s: float
    facts: Facts
    suite: Path
    words: dict[str, str]
    say: Callable[[str], None]
    numbers: Iterator[int] = field(default_factory=itertools.count)

    @contextlib.contextmanager
    def clone(self, spoil: str = "") -> Iterator[tuple[Guest, Facts]]:
        """A clone, its clock set and then spoiled by a script that root runs; and the facts that reach it."""
        folder = self.stage.folder / f"clone-{next(self.numbers)}"
        folder.mkdir(mode=0o700)
        try:
            with thaw(
                self.frozen,
                workdir=folder,
                namespace=self.stage.namespace,
                console_log=folder / "console.log",
                say=self.stage.say,
                login=False,
            ) as guest:
                guest.connect(known_host_keys=self.frozen.host_keys)
                # one session for both: in emulation each takes a second
                as_root(guest, f"date -u -s @{clock().timestamp():.0f} >/dev/null\n{spoil}")
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
        return "set -e\n" + text.replace("{{", "{").replace("}}", "}")

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
def healthy_base(
    artifact: Artifact, *, state: State, suite: Path, folder: Path, say: Callable[[str], None], now: datetime
) -> Iterator[Base]:
    """Boot the image once, wait until it has settled, and freeze it."""
    started = time.monotonic()
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
                    say=quiet,
                    client=subject.region_client,
                ),
                ntp_servers=subject.ntp_servers,
                workdir=folder / "network",
                say=quiet,
            )
        )
        stage = Stage(
            subject=subject,
            namespace=network.namespace,
            accelerator=proven_accelerator(state.path / "cache", say, artifact=artifact.path),
            cpus=1,
            folder=folder,
            log_dir=log_dir,
            now=now,
            say=quiet,
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
                say=quiet,
                timeout_s=stage.timeout_s,
                user=subject.description.login_user,
                cpus=1,
                disk_gib=DISK_GIB,
                rtc_base=now - boots.CLOCK_OFF,
                freezable=True,
            )
        )
        guest.ssh("sudo -n systemctl is-system-running --wait", check=False, timeout_s=stage.timeout_s)
        clock_off_s = abs(float(guest.ssh("date +%s").stdout) - time.time())
        before = seen(guest)
        console = folder / "console-of-the-base.raw"
        console.write_text(guest.console_text())
        facts: Facts = {
            **expectations(subject),
            "injected_key": seed.key.public,
            "seed": boots.seed_facts(seed),
            "disk_bytes": DISK_GIB << 30,
            "console_logs": [str(console)],
            "registrations": [{"products": list(one.products)} for one in network.services.registrations()],
            "reboot": {"before": before, "after": {**before, "boot_id": "another"}},
        }
        words = {
            "user": subject.description.login_user,
            "epoch": str(artifact.epoch),
            "certificates": artifact.recipe.region_client.cert_location,
            "update_servers": " ".join(one.name for one in artifact.recipe.regions[0].update_servers),
            "short_lived_key": short_lived_key(folder),
        }
        frozen = stack.enter_context(freeze(guest))
        say(f"the healthy guest was booted and frozen after {time.monotonic() - started:.1f} s")
        yield Base(
            stage=stage,
            network=network,
            frozen=frozen,
            clock_off_s=clock_off_s,
            facts=facts,
            suite=suite,
            words=words,
            say=say,
        )


def quiet(text: str) -> None:
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
