# SPDX-License-Identifier: Apache-2.0
"""From an image to a verdict: the order of things, and what is written beside it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from factory.errors import FactoryError
from factory.model import BOOTED, Artifact, RegionClient, Tenant, Verdict
from factory.region import metadata_server
from factory.region.services import RegionServices, serve
from factory.sandbox.accelerator import proven_accelerator
from factory.sandbox.guest import Guest
from factory.sandbox.network import SandboxNetwork, sandbox_network
from factory.sandbox.qemu import boot
from factory.sandbox.seed import Seed, fresh_key
from factory.system.clock import stamp
from factory.system.files import expect_digest, remove, sha256_file, write_whole
from factory.system.namespaces import NetworkNamespace
from factory.system.state import Run, State
from factory.verify import boots
from factory.verify.boots import DOES_NOT_BOOT, Noted, Stage
from factory.verify.look import Judged, Look, boots_at_all, look
from factory.verify.subject import Subject, inspect, subject_of, subject_of_file
from factory.verify.suite import merge_junit
from factory.verify.tenant import judge_in_tenant
from factory.verify.unmet import settled

CHECKS_SCHEMA = "factory/checks/1"
Say = Callable[[str], None]
Network = SandboxNetwork[RegionServices | None]


def verify(
    artifact: Artifact, *, run: Run, state: State, suite: Path, say: Say, now: datetime, tenant: Tenant | None = None
) -> Verdict:
    """Boot an artifact in the sandbox (our own QEMU, or a tenant of a cloud) and judge it; the file stays as it is.

    Writes ``verify/checks.json`` and ``verify/junit.xml`` in the run, and the guests' masked console logs among its
    logs.

    Raises:
        FactoryError: the artifact is not the file that was built, or the sandbox or the suite is broken. A bad image is
            a red verdict, not an error.
    """
    expect_digest(artifact.path, artifact.sha256)
    subject = subject_of(artifact, state=state)
    verdict = _verdict(
        subject,
        artifact.sha256,
        folder=run.path / "verify",
        log_dir=run.path / "logs",
        state=state,
        suite=suite,
        say=say,
        now=now,
        tenant=tenant,
    )
    expect_digest(artifact.path, artifact.sha256)
    return verdict


def verify_file(
    path: Path,
    *,
    state: State,
    suite: Path,
    say: Say,
    now: datetime,
    login_user: str = "linux",
    tenant: Tenant | None = None,
) -> Verdict:
    """Boot any qcow2 file and judge it.

    A file that one of our runs built is judged by that run's records; of any other one only what holds for every image
    is expected. Results are written below ``verified/`` in the state folder.

    Raises:
        InputFault: there is no such file.
        NotGood: it is not qcow2, damaged, cut off, or refers to other files.
    """
    inspect(path)
    sha256 = sha256_file(path)
    known = _known(sha256, state)
    if known is None:
        say(f"'{path.name}' is not an image of this factory's: judging it by what holds for every image")
        subject = subject_of_file(path.resolve(), login_user=login_user)
    else:
        subject = subject_of(replace(known, path=path.resolve()), state=state)
    folder = state.path / "verified" / f"{stamp(now)}-{path.stem}"
    verdict = _verdict(
        subject,
        sha256,
        folder=folder,
        log_dir=folder / "logs",
        state=state,
        suite=suite,
        say=say,
        now=now,
        tenant=tenant,
    )
    expect_digest(path, sha256)
    return verdict


def _known(sha256: str, state: State) -> Artifact | None:
    """The artifact of ours that has this digest, if its records are still there."""
    for folder in sorted(state.runs.glob("*-*-*"), reverse=True):
        run = Run(path=folder)
        with contextlib.suppress(FactoryError):
            if run.has("build") and (found := run.read("build", Artifact)).sha256 == sha256 and found.lock.is_file():
                return found
    return None


def _verdict(
    subject: Subject,
    sha256: str,
    *,
    folder: Path,
    log_dir: Path,
    state: State,
    suite: Path,
    say: Say,
    now: datetime,
    tenant: Tenant | None,
) -> Verdict:
    remove(folder)
    work = folder / "work"
    work.mkdir(parents=True, mode=0o700)
    log_dir.mkdir(parents=True, exist_ok=True)
    try:
        if tenant is None:
            judged = _judge(subject, work=work, log_dir=log_dir, state=state, suite=suite, say=say, now=now)
        else:
            how = Look(
                subject=subject,
                suite=suite,
                folder=work,
                log_dir=log_dir,
                notes=folder,
                timeout_s=subject.description.budgets.boot_timeout_s,
                say=say,
            )
            judged = judge_in_tenant(tenant, how, now=now)
        judged = replace(judged, checks=settled(judged.checks, subject.description.unmet, say=say))
        if judged.junit:
            merge_junit(judged.junit, folder / "junit.xml")
    finally:
        remove(work)
    text = json.dumps(
        {
            "schema": CHECKS_SCHEMA,
            "artifact_sha256": sha256,
            "sandbox": judged.sandbox,
            "accelerator": judged.accelerator,
            "boot_s": round(judged.boot_s, 1),
            "region_proof": judged.region_proof,
            "judged_at": now.isoformat(),
            "checks": [asdict(one) for one in judged.checks],
        },
        indent=1,
    )
    write_whole(folder / "checks.json", text + "\n")
    noted = folder / BOOTED
    return Verdict(
        artifact_sha256=sha256,
        checks=judged.checks,
        accelerator=judged.accelerator,
        boot_s=judged.boot_s,
        judged_at=now,
        sandbox=judged.sandbox,
        console_log=log_dir / "console.log",
        report_digest=sha256_file(folder / "checks.json"),
        region_proof=judged.region_proof,
        booted=noted if noted.is_file() else None,
    )


def _judge(
    subject: Subject, *, work: Path, log_dir: Path, state: State, suite: Path, say: Say, now: datetime
) -> Judged:
    accelerator = proven_accelerator(state.path / "cache", say, artifact=subject.path)
    with sandbox_network(
        subject.regions if subject.registers else (),
        services=lambda namespace: _services(subject, namespace, work=work, log_dir=log_dir, say=say, now=now),
        ntp_servers=subject.ntp_servers,
        names=metadata_server.names(subject.region_client or RegionClient()),
        workdir=work / "network",
        say=say,
    ) as network:
        stage = Stage(
            subject=subject,
            namespace=network.namespace,
            accelerator=accelerator,
            cpus=0,  # as many as the accelerator handles well
            folder=work,
            log_dir=log_dir,
            now=now,
            say=say,
            replacement_pems=dict(network.services.replacement_pems) if network.services else {},
        )
        proof = network.services.region_proof if network.services else "no region: this image does not register here"
        with _beside(stage) as other:
            try:
                return _first(stage, network, other, suite=suite, proof=proof)
            except DOES_NOT_BOOT as stopped:
                check = boots_at_all(stopped)
                return Judged(checks=(check,), accelerator=accelerator, boot_s=0.0, region_proof="not tried")


def _services(
    subject: Subject, namespace: NetworkNamespace, *, work: Path, log_dir: Path, say: Say, now: datetime
) -> contextlib.AbstractContextManager[RegionServices | None]:
    """The region and update servers that the image knows, or none where it cannot register."""
    if subject.view is None or not subject.registers:
        return contextlib.nullcontext()
    return serve(
        namespace,
        subject.regions,
        view=subject.view,
        product=subject.description.registration.product,
        workdir=work / "region",
        log_dir=log_dir / "region",
        now=now,
        say=say,
        client=subject.region_client,
    )


def _first(stage: Stage, network: Network, other: Callable[[], Noted], *, suite: Path, proof: str) -> Judged:
    """Boot the first guest and look at it while the other one boots."""
    description, folder = stage.subject.description, stage.folder / "first"
    folder.mkdir(mode=0o700)
    seed = boots.first_seed(stage, fresh_key(folder))

    def second() -> Noted:
        noted = other()
        if network.services:
            held = [{"products": list(one.products)} for one in network.services.registrations()]
            noted.facts["registrations"] = held
        return noted

    with boot(
        stage.subject.path,
        workdir=folder,
        namespace=stage.namespace,
        seed=seed,
        accelerator=stage.accelerator,
        console_log=stage.log_dir / "console.log",
        say=stage.say,
        timeout_s=stage.timeout_s,
        user=description.login_user,
        cpus=stage.cpus,
        disk_gib=boots.FIRST_DISK_GIB,
        # an image whose time servers are not known would never get the time here
        rtc_base=stage.now - boots.CLOCK_OFF if stage.subject.artifact else None,
    ) as guest:
        boot_s = guest.boot_s
        how = Look(
            subject=stage.subject,
            suite=suite,
            folder=stage.folder,
            log_dir=stage.log_dir,
            notes=stage.folder.parent,
            timeout_s=stage.timeout_s,
            say=stage.say,
        )
        checks, junit = look(guest, how, facts=_reached(guest, seed), second=second)
    return Judged(checks=checks, accelerator=stage.accelerator, boot_s=boot_s, region_proof=proof, junit=junit)


def _reached(guest: Guest, seed: Seed) -> dict[str, Any]:
    """How the suite gets to this guest, and what this guest was told."""
    return {
        "ssh": {"config": str(guest.ssh_config), "host": guest.ssh_host},
        "injected_key": seed.key.public,
        "seed": boots.seed_facts(seed),
        "disk_bytes": boots.FIRST_DISK_GIB << 30,
        "console_logs": [str(guest.machine.serial)],
    }


@contextlib.contextmanager
def _beside(stage: Stage) -> Iterator[Callable[[], Noted]]:
    """The other guest, looked at in a thread of its own; yields what waits for its result.

    Programs die with the thread that started them, so all of that guest's life is in this one thread. When the block
    fails, the guest is ended at once, and the thread with it.
    """
    result: list[Noted] = []
    broken: list[BaseException] = []

    def work() -> None:
        try:
            result.append(boots.look_at_other(stage))
        except BaseException as error:  # noqa: BLE001 - raised again by the one who waits
            broken.append(error)

    thread = threading.Thread(target=work, name="other guest")
    thread.start()

    def wait() -> Noted:
        thread.join()
        if broken:
            raise broken[0]
        return result[0]

    try:
        yield wait
    finally:
        while thread.is_alive():
            _end_children(stage.folder / "other")
            thread.join(0.3)


def _end_children(folder: Path) -> None:
    """End programs that we started and that work in ``folder``."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            parent = int(status.read_text().rsplit(")", 1)[1].split()[1])
            command = (status.parent / "cmdline").read_bytes().decode(errors="replace")
            if parent == os.getpid() and f"{folder}/" in command:
                os.kill(int(status.parent.name), signal.SIGKILL)
