# SPDX-License-Identifier: Apache-2.0
"""One running guest, looked at: the suite, the attack from outside, a reboot, and what only then can be judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.errors import FactoryError
from factory.model import BOOTED, Check, Outcome
from factory.sandbox.conversation import Conversation
from factory.sandbox.guest import Guest
from factory.system.files import remove, write_whole
from factory.verify import booted, boots
from factory.verify.boots import Noted
from factory.verify.outside import probe
from factory.verify.seen import console_login, seen, shown_password
from factory.verify.subject import Subject, expectations
from factory.verify.suite import SuiteRun, run_suite

Say = Callable[[str], None]
_TWICE = "The image boots on a second guest, and as another instance."


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What the guests gave."""

    checks: tuple[Check, ...]
    accelerator: str
    boot_s: float
    region_proof: str
    junit: tuple[Path, ...] = ()
    sandbox: str = "qemu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What is looked for, and where results go. ``folder`` is private and goes away, ``log_dir`` and ``notes`` stay."""

    subject: Subject
    suite: Path
    folder: Path
    log_dir: Path
    notes: Path
    timeout_s: float
    say: Say


def look(
    guest: Conversation, how: Look, *, facts: Mapping[str, Any], second: Callable[[], Noted] | None
) -> tuple[tuple[Check, ...], tuple[Path, ...]]:
    """Judge a guest that is up.

    Args:
        facts: how the suite reaches it, what it was told, and under ``not_tried`` what this sandbox cannot do.
        second: waits for what was seen of another guest of the same image; None where there is no other.

    Returns:
        The checks, and pytest's own reports.
    """
    noted = Noted()
    before = seen(guest)
    noted.secrets.append(password := shown_password(guest))
    told = {**expectations(how.subject), **facts}
    log = how.log_dir / "acceptance.log"
    remove(log)
    how.say("the suite looks at the guest")
    inside = _suite(how, told, "inside", marks="not later", secrets=noted.secrets, log=log)
    built = how.subject.artifact
    write_whole(how.notes / BOOTED, booted.note_booted(guest, booted.configured(built.inventory if built else None)))
    noted.facts["outside"] = _attack(guest, how, password=password)
    how.say("rebooting the guest")
    boots.reboot(guest, noted, before=before, timeout_s=how.timeout_s)
    noted.secrets.append("" if noted.trouble else shown_password(guest))
    other = second() if second else Noted()
    later = _suite(
        how,
        {**told, **other.facts, **noted.facts},
        "later",
        marks="later",
        secrets=[*noted.secrets, *other.secrets],
        log=log,
    )
    twice = _trouble("boots_twice", _TWICE, other.trouble) if second else _not_twice(told)
    checks = (boots_at_all(None), _trouble("reboots", "The image boots again after a reboot.", noted.trouble), twice)
    return (*checks, *inside.checks, *later.checks), (inside.junit, later.junit)


def _attack(guest: Conversation, how: Look, *, password: str) -> dict[str, Any]:
    user = how.subject.description.login_user
    outside = probe(guest, login_user=user, password=password, log=how.log_dir / "ssh-audit.log", say=how.say)
    if password and isinstance(guest, Guest):  # a keyboard of ours is needed
        outside["console_login"] = console_login(guest, user=user, password=password)
    return outside


def _suite(
    how: Look, facts: Mapping[str, Any], name: str, *, marks: str, secrets: Sequence[str], log: Path
) -> SuiteRun:
    folder = how.folder / "suite"
    folder.mkdir(exist_ok=True, mode=0o700)
    return run_suite(how.suite, facts=facts, folder=folder, name=name, marks=marks, secrets=secrets, log=log)


def boots_at_all(stopped: FactoryError | None) -> Check:
    """The check that comes before all others."""
    return Check(
        name="boot::the_image_boots",
        guarantee="The image boots within its budget, finishes cloud-init, and lets its user in with the injected key.",
        outcome=Outcome.PASSED if stopped is None else Outcome.FAILED,
        message="" if stopped is None else "\n".join(stopped.lines()),
    )


def _trouble(name: str, guarantee: str, trouble: str) -> Check:
    """What went wrong at a boot after the first one, as a failed check with the guest's last words."""
    return Check(
        name=f"boot::the_image_{name}",
        guarantee=guarantee,
        outcome=Outcome.FAILED if trouble else Outcome.PASSED,
        message=trouble,
    )


def _not_twice(facts: Mapping[str, Any]) -> Check:
    why = facts.get("not_tried", {}).get("other", "there was no second guest")
    return Check(
        name="boot::the_image_boots_twice",
        guarantee=_TWICE,
        outcome=Outcome.SKIPPED,
        message=f"not tried: {why}",
    )
