# SPDX-License-Identifier: Apache-2.0
"""Spoil clones of one frozen guest, each in its own way, and let the suite look at them.

A spoiled clone and its check take three to four seconds; two run side by side, because each uses one CPU. Faults that
show only at a later boot share two further boots: a reboot, and a start of the disk as another instance. Where only the
expectations are spoiled, one healthy clone serves for all.
"""

from __future__ import annotations

import contextlib
import copy
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from factory.model import Check, Outcome
from factory.sandbox.qemu import boot
from factory.sandbox.seed import fresh_key
from factory.verify import boots
from factory.verify.boots import Noted
from factory.verify.suite import SuiteRun

from .base import Base, quiet
from .table import MUTANTS, PASSWORD, Facts, Mutant

CLONES = 2
_LARGER_DISK_GIB = 9


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the suite said of one spoiled guest."""

    check: Check
    phase: str


# -- the mutants ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def mutants_looked_at(base: Base, mutants: Sequence[Mutant]) -> Iterator[dict[str, Callable[[], Found]]]:
    """What the suite says of each mutant, by its check; a call waits for it, and raises what went wrong."""
    found: dict[str, Callable[[], Found]] = {}
    with ThreadPoolExecutor(CLONES) as pool:
        try:
            for look in (_at_reboot, _at_other, _expected_otherwise):  # the boots first: they take longest
                if together := [one for one in mutants if _together(one) is look]:
                    looked = pool.submit(look, base, together)
                    found |= {one.check: partial(_one_of, looked, one.check) for one in together}
            for one in mutants:
                if _together(one) is None:
                    found[one.check] = pool.submit(_now, base, one).result
            yield found
        finally:
            pool.shutdown(cancel_futures=True)


def _one_of(looked: Future[dict[str, Found]], check: str) -> Found:
    return looked.result()[check]


Look = Callable[[Base, Sequence[Mutant]], dict[str, Found]]


def _together(mutant: Mutant) -> Look | None:
    """How mutants are looked at that may share a guest; None for those that need a clone each."""
    if mutant.at == "now":
        return None if mutant.spoil or mutant.probe else _expected_otherwise
    return _at_reboot if mutant.at == "reboot" else _at_other


def _now(base: Base, mutant: Mutant) -> Found:
    started = time.monotonic()
    with base.clone(base.script(mutant.spoil)) as (guest, facts):
        if mutant.facts is not None:
            mutant.facts(facts)
        if mutant.probe is not None:
            facts["outside"] = mutant.probe(guest)
        found = _found(base.look(facts, mutant.check))
    return _told(base, found, started)[mutant.check]


def _expected_otherwise(base: Base, mutants: Sequence[Mutant]) -> dict[str, Found]:
    """Look at one healthy clone, each time with other expectations."""
    found: dict[str, Found] = {}
    with base.clone() as (_, healthy):
        for one in mutants:
            started = time.monotonic()
            facts = copy.deepcopy(healthy)
            assert one.facts is not None
            one.facts(facts)
            found |= _told(base, _found(base.look(facts, one.check)), started)
    return found


def _found(run: SuiteRun) -> dict[str, Found]:
    return {check.name: Found(check=check, phase=run.phases[check.name]) for check in run.checks}


def _told(base: Base, found: dict[str, Found], started: float, what: str = "") -> dict[str, Found]:
    said = ", ".join(
        f"{name} {'red' if one.check.outcome is Outcome.FAILED else one.check.outcome}" for name, one in found.items()
    )
    base.say(f"{what}{said}: {time.monotonic() - started:.1f} s")
    return found


# -- at later boots ---------------------------------------------------------------------------------------------------


def _spoils(base: Base, at: str) -> str:
    return "\n".join(base.script(one.spoil) for one in MUTANTS if one.at == at and one.spoil)


def _at_reboot(base: Base, mutants: Sequence[Mutant]) -> dict[str, Found]:
    """Reboot one clone that has every fault of this kind."""
    noted, started = Noted(), time.monotonic()
    with base.clone(_spoils(base, "reboot")) as (guest, facts):
        boots.reboot(guest, noted, before=base.facts["reboot"]["before"], timeout_s=base.stage.timeout_s)
        assert not noted.trouble, noted.trouble
        facts.update(noted.facts)
        found = _found(base.look(facts, *(one.check for one in mutants)))
    return _told(base, found, started, "after a reboot: ")


def _at_other(base: Base, mutants: Sequence[Mutant]) -> dict[str, Found]:
    """Start the disk of one clone, with every fault of this kind, as another instance, and compare it with the base."""
    started = time.monotonic()
    noted = _other_boot(base)
    with base.clone() as (_, facts):
        facts.update(noted)
        found = _found(base.look(facts, *(one.check for one in mutants)))
    return _told(base, found, started, "after a boot as another instance: ")


def _other_boot(base: Base) -> Facts:
    """What is noted of a spoiled disk that starts as another instance, whose owner chose otherwise."""
    noted, user = Noted(), base.stage.subject.description.login_user
    with base.clone(_spoils(base, "other")) as (guest, _):
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
            say=quiet,
            timeout_s=base.stage.timeout_s,
            user=user,
            cpus=1,
            disk=guest.disk,
        ) as again:
            boots.note_other(again, noted, user=user, password=PASSWORD)
    return {**noted.facts, "new_instance": {"before": base.facts["reboot"]["before"], "after": noted.facts["other"]}}
