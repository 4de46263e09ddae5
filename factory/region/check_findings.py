# SPDX-License-Identifier: Apache-2.0
"""What an examination of region files says: findings by rule, and for every rule whether it was looked at at all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from factory.errors import Fault

RULES = {
    1: "the configuration parses, and no placeholder is left in it",
    2: "region servers are named so that the client can ask them",
    3: "httpsOnly is exactly 'true', or port 80 is served",
    4: "the data provider can run in the image",
    5: "the region hint plugin is a module the client finds",
    6: "the package backend lets the client register",
    7: "the configuration is at the client's default path",
    8: "every region server has its PEM, and no PEM is left over",
    9: "every pinned certificate is one that clients accept, for as long as the image lives",
    10: "region servers accept what images pin, and answer",
    11: "the region data can be written so that servers and clients understand it",
    12: "update servers show the CA that region data announces, and chain to it",
    13: "every region is found, by hint or by address",
    14: "update servers have addresses that instances can use",
    15: "update servers are healthy, and siblings share region, domain and registrations",
    16: "what registration needs is installed",
    17: "the service is enabled as the kind of image wants it, with network and time before it",
    18: "nothing is left from a registration",
    19: "the files of the registry set-up are as the client expects them",
    20: "what registration writes can be written, and the CA it installs is used",
    21: "cloud-init does not rewrite /etc/hosts",
    22: "the proxy's configuration does not stop registration",
}
"""The rules by number, as the reference page explains them."""


class Severity(StrEnum):
    """How bad a finding is; only errors make an examination red."""

    ERROR = "error"
    WARNING = "warning"
    ADVICE = "advice"


class Outcome(StrEnum):
    """What became of a rule; the gravest finding counts."""

    ERROR = "error"
    WARNING = "warning"
    ADVICE = "advice"
    GOOD = "good"
    NOT_APPLICABLE = "not applicable"


_GRAVITY = (Severity.ERROR, Severity.WARNING, Severity.ADVICE)


@dataclass(frozen=True, slots=True, kw_only=True)
class At:
    """Where a finding is: a file, a line (0: the file as a whole), and the key or block in it."""

    file: str
    line: int = 0
    key: str = ""

    def __str__(self) -> str:
        line = f":{self.line}" if self.line else ""
        return f"{self.file}{line} {self.key}".rstrip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is not as it should be.

    ``why`` is what happens at an instance's first boot, ``cure`` what to do instead.
    """

    rule: int
    severity: Severity
    at: At
    problem: str
    why: str
    cure: str

    def fault(self) -> Fault:
        """As a fault of a file that a person wrote."""
        return Fault(place=str(self.at), problem=self.problem, cure=f"{self.why}; {self.cure}")

    def __str__(self) -> str:
        return f"{self.severity} {self.at}: {self.problem}; {self.why} (rule {self.rule}; cure: {self.cure})"


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleResult:
    """One rule; ``not_looked_at`` are the parts of it that this examination could not see, and why."""

    rule: int
    title: str
    outcome: Outcome
    not_looked_at: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """Everything that was found about one subject."""

    subject: str
    kind: str
    findings: tuple[Finding, ...]
    rules: tuple[RuleResult, ...]
    facts: tuple[str, ...] = ()

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(one for one in self.findings if one.severity is Severity.ERROR)

    @property
    def good(self) -> bool:
        """Whether nothing would fail."""
        return not self.errors


@dataclass(slots=True)
class Notes:
    """Collects findings while rules are looked at; :meth:`examination` closes it."""

    findings: list[Finding] = field(default_factory=list)
    looked_at: set[int] = field(default_factory=set)
    skipped: dict[int, list[str]] = field(default_factory=dict)
    facts: list[str] = field(default_factory=list)

    def look(self, *rules: int) -> None:
        """These rules were applied, whatever comes of it."""
        self.looked_at.update(rules)

    def skip(self, rules: int | Iterable[int], reason: str) -> None:
        """These rules, or the part of them that ``reason`` names, do not apply here or cannot be seen."""
        for rule in [rules] if isinstance(rules, int) else rules:
            reasons = self.skipped.setdefault(rule, [])
            if reason not in reasons:
                reasons.append(reason)

    def error(self, rule: int, at: At, problem: str, *, why: str, cure: str) -> None:
        """Registration would fail."""
        self._add(Finding(rule=rule, severity=Severity.ERROR, at=at, problem=problem, why=why, cure=cure))

    def warn(self, rule: int, at: At, problem: str, *, why: str, cure: str) -> None:
        """Registration may fail."""
        self._add(Finding(rule=rule, severity=Severity.WARNING, at=at, problem=problem, why=why, cure=cure))

    def advise(self, rule: int, at: At, problem: str, *, why: str, cure: str) -> None:
        """Registration works; more would be better."""
        self._add(Finding(rule=rule, severity=Severity.ADVICE, at=at, problem=problem, why=why, cure=cure))

    def _add(self, told: Finding) -> None:
        self.looked_at.add(told.rule)
        safe = replace(told, problem=shown(told.problem), why=shown(told.why), cure=shown(told.cure))
        if safe not in self.findings:
            self.findings.append(safe)

    def examination(self, subject: str, kind: str) -> Examination:
        """What was found, with a result for every rule."""
        return Examination(
            subject=subject,
            kind=kind,
            findings=tuple(sorted(self.findings, key=lambda one: (_GRAVITY.index(one.severity), one.rule))),
            rules=tuple(self._result(rule) for rule in RULES),
            facts=tuple(self.facts),
        )

    def _result(self, rule: int) -> RuleResult:
        severities = {one.severity for one in self.findings if one.rule == rule}
        outcome = next((Outcome(one.value) for one in _GRAVITY if one in severities), Outcome.GOOD)
        if rule not in self.looked_at:
            outcome = Outcome.NOT_APPLICABLE
        reasons = self.skipped.get(rule, [])
        if outcome is Outcome.NOT_APPLICABLE and not reasons:
            reasons = ["not asked for"]
        return RuleResult(rule=rule, title=RULES[rule], outcome=outcome, not_looked_at=tuple(reasons))


def shown(text: str) -> str:
    """Text from elsewhere without control characters, cut to a few lines."""
    safe = "".join(character if character.isprintable() else f"\\x{ord(character):02x}" for character in text)
    return safe if len(safe) <= 400 else f"{safe[:397]}..."  # noqa: PLR2004 a few lines of a terminal


def faults(findings: Sequence[Finding]) -> tuple[Fault, ...]:
    """The errors among findings, as faults of files that people wrote."""
    return tuple(one.fault() for one in findings if one.severity is Severity.ERROR)
