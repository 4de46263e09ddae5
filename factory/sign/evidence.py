# SPDX-License-Identifier: Apache-2.0
"""Whether statements say what the files beside them say; no input, no output, every fault in words.

A signature proves who said something. Here it is judged what was said: that both statements are there, once each, and
about exactly the files that ``SHA256SUMS`` lists; that the materials are those of the lock; and that the verdict is
green and about these very bytes. Fields that we do not know are skipped, as in-toto asks of readers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from factory.errors import InputsError
from factory.inputs.lock import lock_entries
from factory.model import BOOTED, DIFFERENCE, RELEASE_NOTE
from factory.sign.dsse import LIMIT_BYTES, SUFFIX
from factory.sign.statements import (
    BUILD_TYPE,
    DESCRIPTIONS,
    PROVENANCE,
    TEST_RESULT,
    TREE,
    VERDICT_SCHEMA,
    VERDICT_SCHEMA_BEFORE,
    material_name,
)
from factory.sign.strict_json import Kind, Malformed, parse, shaped

IMAGE_SUFFIX = ".qcow2"
LOCK, VERDICT, JUNIT, PUBLIC_KEY = "inputs.lock", "verdict.json", "verdict.junit.xml", "throw-away-key.pub"
NOT_BUILT = frozenset({VERDICT, JUNIT, PUBLIC_KEY, BOOTED, RELEASE_NOTE, DIFFERENCE})
"""Files of a bundle that came after the build."""
_SHOWN = 3
_KINDS = {PROVENANCE: "provenance", TEST_RESULT: "test result"}

Fault = tuple[str, str]
"""The file, and what is wrong with it."""


class _Read(BaseModel):
    model_config = ConfigDict(strict=True, alias_generator=to_camel)


class _Descriptor(_Read):
    name: str = ""
    digest: dict[str, str] = {}
    annotations: dict[str, Any] = {}


class _Statement(_Read):
    type_: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: list[_Descriptor]
    predicate_type: str
    predicate: dict[str, Any]


class _Definition(_Read):
    build_type: str
    external_parameters: dict[str, Any]
    internal_parameters: dict[str, Any]
    resolved_dependencies: list[_Descriptor]


class _Builder(_Read):
    id: str
    version: dict[str, str] = {}


class _Metadata(_Read):
    invocation_id: str
    started_on: str = ""
    finished_on: str = ""


class _Details(_Read):
    builder: _Builder
    metadata: _Metadata


class _Provenance(_Read):
    build_definition: _Definition
    run_details: _Details


class _TestResult(_Read):
    result: str
    configuration: list[_Descriptor]
    passed_tests: list[str] = []
    warned_tests: list[str] = []
    failed_tests: list[str] = []


class _Check(_Read):
    name: str
    outcome: Literal["passed", "failed", "skipped", "unmet"]


class _Verdict(BaseModel):
    model_config = ConfigDict(strict=True)

    image: str
    artifact_sha256: str
    passed: bool
    judged_at: str
    checks: list[_Check]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is attested about an image, for people to read, and to compare its source tarball with."""

    run: str
    builder: str
    build_type: str
    commit: str
    dirty: bool
    materials: int
    subjects: int
    passed: int
    judged_at: str
    detached: tuple[str, ...]
    epoch: str = ""
    recipe_digest: str = ""
    inputs_digest: str = ""
    tree_sha256: str = ""
    unmet: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The statements of a bundle as they were found: every fault, and what they say where there is none."""

    faults: tuple[Fault, ...]
    evidence: Evidence | None


def name_of(image: str) -> str:
    """What the attestation bundle of an image is called."""
    return f"{image}{SUFFIX}"


def images_in(sums: Mapping[str, str]) -> list[str]:
    """The images that checksums list."""
    return sorted(name for name in sums if name.endswith(IMAGE_SUFFIX))


def made_before_statements(verdict: bytes) -> bool:
    """Whether a verdict was written by a factory that attested nothing yet (its checksums are signed)."""
    try:
        read = parse(verdict, limit_bytes=LIMIT_BYTES)
    except Malformed:
        return False
    return isinstance(read, dict) and read.get("schema") == VERDICT_SCHEMA_BEFORE


def judge(
    payloads: Sequence[bytes], *, sums: Mapping[str, str], verdict: bytes, lock: bytes, sha512: str | None
) -> Judged:
    """Compare the payloads of a bundle with what it lists and holds.

    Args:
        sums: the checksums as ``SHA256SUMS`` lists them.
        verdict: the text of ``verdict.json``.
        lock: the text of ``inputs.lock``.
        sha512: that of the image's bytes, or None where there are none to look at.
    """
    images = images_in(sums)
    if len(images) != 1:
        return Judged(faults=(("SHA256SUMS", f"lists {len(images)} images, not one"),), evidence=None)
    return _Judge(images[0], sums=sums, verdict=verdict, lock=lock, sha512=sha512).judged(payloads)


class _Judge:
    """One look at one bundle's statements."""

    def __init__(self, image: str, *, sums: Mapping[str, str], verdict: bytes, lock: bytes, sha512: str | None) -> None:
        self.image, self.sums, self.sha512 = image, sums, sha512
        self.verdict_text, self.lock_text = verdict, lock
        self.file = name_of(image)
        self.faults: list[Fault] = []

    def judged(self, payloads: Sequence[bytes]) -> Judged:
        verdict = self._verdict()
        found = self._by_type(payloads)
        made = self._shaped(found.get(PROVENANCE), _Provenance)
        tested = self._shaped(found.get(TEST_RESULT), _TestResult)
        if made is not None:
            self._subjects(found[PROVENANCE], self._built(), "provenance")
            self._provenance(made)
        if tested is not None:
            self._subjects(found[TEST_RESULT], {self.image: self.sums[self.image]}, "test result")
            self._test_result(tested, verdict)
        if self.faults or made is None or tested is None or verdict is None:
            return Judged(faults=tuple(self.faults), evidence=None)
        return Judged(faults=(), evidence=_evidence(made, found[PROVENANCE], verdict))

    def _by_type(self, payloads: Sequence[bytes]) -> dict[str, _Statement]:
        """The statement of each of the two types; what is missing, there twice, or of another type is a fault."""
        found: dict[str, list[_Statement]] = {kind: [] for kind in _KINDS}
        for number, payload in enumerate(payloads, start=1):
            try:
                one = shaped(_Statement, parse(payload, limit_bytes=LIMIT_BYTES))
            except Malformed as wrong:
                self._fault(self.file, f"statement {number} {wrong}")
                continue
            if one.predicate_type not in found:
                self._fault(self.file, f"holds a statement of another type, {one.predicate_type[:120]!r}")
            else:
                found[one.predicate_type].append(one)
        for kind, several in found.items():
            if not several:
                self._fault(self.file, f"has no {_KINDS[kind]}")
            elif len(several) > 1:
                self._fault(self.file, f"has {len(several)} statements of one type, {_KINDS[kind]}")
        return {kind: several[0] for kind, several in found.items() if len(several) == 1}

    def _shaped(self, statement: _Statement | None, kind: type[Kind]) -> Kind | None:
        if statement is None:
            return None
        try:
            return shaped(kind, statement.predicate)
        except Malformed as wrong:
            self._fault(self.file, f"{_KINDS[statement.predicate_type]} {wrong}")
            return None

    def _built(self) -> dict[str, str]:
        return {name: sha256 for name, sha256 in self.sums.items() if name not in NOT_BUILT | {self.file}}

    def _subjects(self, statement: _Statement, expected: Mapping[str, str], kind: str) -> None:
        """The subjects are these files by these digests, each once, and no others."""
        names = [one.name for one in statement.subject]
        for name in sorted({name for name in names if names.count(name) > 1}):
            self._fault(self.file, f"{kind} names the subject {name!r} twice")
        for name in sorted(set(names) - set(expected)):
            self._fault(self.file, f"{kind} is about {name!r}, which is none of its files")
        for name in sorted(set(expected) - set(names)):
            self._fault(self.file, f"{kind} is not about '{name}'")
        for one in statement.subject:
            if one.name in expected and one.digest.get("sha256") != expected[one.name]:
                self._fault(self.file, f"{kind} is about other bytes of '{one.name}' than SHA256SUMS")
            if one.name == self.image and self.sha512 and one.digest.get("sha512") != self.sha512:
                self._fault(self.file, f"{kind} has another SHA-512 of '{one.name}' than its bytes")

    def _provenance(self, made: _Provenance) -> None:
        definition = made.build_definition
        if definition.build_type != BUILD_TYPE:
            self._fault(self.file, f"provenance is of a build of type {definition.build_type[:120]!r}")
        if not made.run_details.builder.id or not made.run_details.metadata.invocation_id:
            self._fault(self.file, "provenance names no builder, or no run")
        detached = definition.internal_parameters.get("detachedSignatures")
        if not isinstance(detached, list) or not all(isinstance(one, str) and one in self.sums for one in detached):
            self._fault(self.file, "provenance does not say which files have a signature of their own")
        materials = definition.resolved_dependencies
        for name in (DESCRIPTIONS, TREE):
            if sum(one.name == name for one in materials) != 1:
                self._fault(self.file, f"provenance does not name its {name} once")
        self._materials([one for one in materials if one.name not in {DESCRIPTIONS, TREE}])

    def _materials(self, materials: Sequence[_Descriptor]) -> None:
        """The materials are the files of the lock, each once."""
        try:
            inputs = lock_entries(self.lock_text.decode(), name=LOCK)
        except (InputsError, ValueError) as damaged:
            self._fault(LOCK, f"cannot be read: {damaged}")
            return
        locked = {material_name(entry): entry.sha512 for entry in inputs if entry.found}
        named = {one.name: one.digest.get("sha512") for one in materials}
        if len(named) != len(materials) or len(locked) != sum(entry.found for entry in inputs):
            self._fault(self.file, "provenance or lock names one material twice")
        for which, names in (
            ("materials that the lock has not", set(named) - set(locked)),
            ("not the lock's", set(locked) - set(named)),
            ("other bytes than the lock", {name for name in set(named) & set(locked) if named[name] != locked[name]}),
        ):
            if names:
                shown = ", ".join(repr(name[:120]) for name in sorted(names)[:_SHOWN])
                self._fault(self.file, f"provenance names {which}: {len(names)}, such as {shown}")

    def _verdict(self) -> _Verdict | None:
        """The verdict, when it is one; that it is green and about the image is judged here."""
        try:
            read = parse(self.verdict_text, limit_bytes=LIMIT_BYTES)
            if not isinstance(read, dict) or read.get("schema") != VERDICT_SCHEMA:
                raise Malformed("is of another schema than this version reads")  # noqa: TRY301 told below
            verdict = shaped(_Verdict, read)
        except Malformed as wrong:
            self._fault(VERDICT, str(wrong))
            return None
        if verdict.artifact_sha256 != self.sums[self.image] or verdict.image != self.image:
            self._fault(VERDICT, f"is about other bytes than '{self.image}'")
        outcomes = [one.outcome for one in verdict.checks]
        if failed := outcomes.count("failed"):
            self._fault(VERDICT, f"is red: {failed} of {len(outcomes)} checks failed")
        elif "passed" not in outcomes:
            self._fault(VERDICT, "is not green: nothing was tested")
        if verdict.passed != ("passed" in outcomes and "failed" not in outcomes):
            self._fault(VERDICT, f"says passed: {verdict.passed}, which its checks do not".lower())
        return verdict

    def _test_result(self, tested: _TestResult, verdict: _Verdict | None) -> None:
        """The result is the verdict's, check by check."""
        unmet = [one.name for one in verdict.checks if one.outcome == "unmet"] if verdict else tested.warned_tests
        if tested.warned_tests != unmet:
            self._fault(self.file, f"test result names other unmet tests than {VERDICT}")
        if tested.result != ("WARNED" if unmet else "PASSED") or tested.failed_tests:
            self._fault(self.file, f"test result is {tested.result[:40]!r}, {len(tested.failed_tests)} failed")
        evidence = [one for one in tested.configuration if one.name == VERDICT]
        if len(evidence) != 1 or evidence[0].digest.get("sha256") != self.sums.get(VERDICT):
            self._fault(self.file, f"test result does not rest on this {VERDICT}")
        passed = [one.name for one in verdict.checks if one.outcome == "passed"] if verdict else tested.passed_tests
        if tested.passed_tests != passed:
            self._fault(self.file, f"test result names other passed tests than {VERDICT}")

    def _fault(self, name: str, problem: str) -> None:
        self.faults.append((name, problem))


def _evidence(made: _Provenance, statement: _Statement, verdict: _Verdict) -> Evidence:
    definition = made.build_definition
    source, tree = (_named(name, definition.resolved_dependencies) for name in (DESCRIPTIONS, TREE))
    parameters = definition.internal_parameters
    return Evidence(
        run=made.run_details.metadata.invocation_id,
        builder=made.run_details.builder.id,
        build_type=definition.build_type,
        commit=source.digest.get("gitCommit", ""),
        dirty=source.annotations.get("dirty") is not False,
        materials=len(definition.resolved_dependencies) - 2,
        subjects=len(statement.subject),
        passed=sum(one.outcome == "passed" for one in verdict.checks),
        unmet=tuple(one.name for one in verdict.checks if one.outcome == "unmet"),
        judged_at=verdict.judged_at,
        detached=tuple(parameters["detachedSignatures"]),
        epoch=str(parameters.get("sourceDateEpoch", "")),
        recipe_digest=str(parameters.get("recipeDigest", "")),
        inputs_digest=str(parameters.get("inputsDigest", "")),
        tree_sha256=tree.digest.get("factoryTreeSha256", ""),
    )


def _named(name: str, materials: Sequence[_Descriptor]) -> _Descriptor:
    return next(one for one in materials if one.name == name)


def judged_at(verdict: bytes) -> datetime | None:
    """When a verdict was given, or None where it does not say so."""
    try:
        found = datetime.fromisoformat(shaped(_Verdict, parse(verdict, limit_bytes=LIMIT_BYTES)).judged_at)
    except ValueError:
        return None
    return found if found.tzinfo else None
