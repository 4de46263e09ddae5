# SPDX-License-Identifier: Apache-2.0
"""What is attested about an image: how it was made (SLSA provenance), and how it did in its tests.

Both are in-toto Statements (v1), made with the classes of in-toto-attestation, which hold the form. The same artifact
and verdict always give the same bytes, so that they can be made here and signed elsewhere. Repositories are named by
alias: no address of a mirror gets in.

Sources: https://slsa.dev/spec/v1.0/provenance, https://github.com/in-toto/attestation (spec/v1,
spec/predicates/test-result.md).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factory import __version__
from factory.inputs.lock import Input, read_lock
from factory.model import Artifact, Outcome, Recipe, Repository, Verdict

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from in_toto_attestation.v1.resource_descriptor_pb2 import ResourceDescriptor

PROVENANCE = "https://slsa.dev/provenance/v1"
TEST_RESULT = "https://in-toto.io/attestation/test-result/v0.1"
BUILD_TYPE = "https://image-factory.example/build/v1"
"""What the parameters of a provenance mean: docs/reference/provenance.md. The name leads nowhere (RFC 2606)."""
EMBEDDED_BUILDER = "https://image-factory.example/builder/embedded"
"""The builder of a site that gives itself no name."""
DESCRIPTIONS, TREE = "descriptions", "build-tree"
VERDICT_SCHEMA = "factory/verdict/2"
VERDICT_SCHEMA_BEFORE = "factory/verdict/1"
"""As written by factories that attested nothing yet."""


def provenance(
    artifact: Artifact,
    *,
    run_id: str,
    built: Mapping[str, str],
    lock: Path,
    detached: Sequence[str],
    builder_id: str,
) -> bytes:
    """The SLSA provenance of what a run built.

    Args:
        built: names and SHA-256 of every file that was built: the subjects.
        lock: the list of inputs: the materials.
        detached: the files that have a signature of their own beside the one over the checksums.
        builder_id: the URI of who builds, or nothing for the embedded default.
    """
    from in_toto_attestation.predicates.provenance.v1 import provenance_pb2

    recipe = artifact.recipe
    made = provenance_pb2.Provenance()
    definition, details = made.build_definition, made.run_details
    definition.build_type = BUILD_TYPE
    definition.external_parameters.update(_external(recipe))
    definition.internal_parameters.update(
        {
            "sourceDateEpoch": str(artifact.epoch),
            "buildId": artifact.build_id,
            "recipeDigest": recipe.digest,
            "inputsDigest": artifact.inputs_digest,
            "detachedSignatures": list(detached),
        }
    )
    definition.resolved_dependencies.extend([*_sources(recipe), *_materials(read_lock(lock))])
    details.builder.id = builder_id or EMBEDDED_BUILDER
    details.builder.version.update({"image-factory": __version__, **artifact.tools})
    details.metadata.invocation_id = run_id
    details.metadata.started_on.FromDatetime(_whole(recipe.resolved_at))
    ended = artifact.built_at + timedelta(seconds=sum(artifact.seconds.values()))
    details.metadata.finished_on.FromDatetime(_whole(ended))
    subjects = [_subject(name, digest, artifact) for name, digest in sorted(built.items())]
    return _statement(subjects, PROVENANCE, made)


def test_result(artifact: Artifact, verdict: Verdict, *, verdict_sha256: str) -> bytes:
    """The result of the acceptance suite about the image; ``verdict_sha256`` is that of ``verdict.json``."""
    from in_toto_attestation.predicates.test_result.v0 import test_result_pb2

    made = test_result_pb2.TestResult()
    made.result = ("WARNED" if verdict.unmet else "PASSED") if verdict.passed else "FAILED"
    made.passed_tests.extend(names_of(verdict, Outcome.PASSED))
    made.warned_tests.extend(names_of(verdict, Outcome.UNMET))
    made.failed_tests.extend(names_of(verdict, Outcome.FAILED))
    said = {
        "sandbox": verdict.sandbox,
        "accelerator": verdict.accelerator,
        "judgedAt": _whole(verdict.judged_at).isoformat(),
        "regionProof": verdict.region_proof,
        "reportDigest": verdict.report_digest,
        "skippedTests": names_of(verdict, Outcome.SKIPPED),
    }
    made.configuration.append(_descriptor("verdict.json", {"sha256": verdict_sha256}, said))
    return _statement([_subject(artifact.path.name, artifact.sha256, artifact)], TEST_RESULT, made)


def names_of(verdict: Verdict, outcome: Outcome) -> list[str]:
    """The checks that ended so, in the order they ran."""
    return [one.name for one in verdict.checks if one.outcome is outcome]


def verdict_json(artifact: Artifact, verdict: Verdict) -> str:
    """``verdict.json``: every check of the verdict on this image."""
    body = {
        "schema": VERDICT_SCHEMA,
        "image": artifact.path.name,
        "artifact_sha256": verdict.artifact_sha256,
        "passed": verdict.passed,
        "judged_at": verdict.judged_at.isoformat(),
        "sandbox": verdict.sandbox,
        "accelerator": verdict.accelerator,
        "region_proof": verdict.region_proof,
        "checks": [
            {
                "name": one.name,
                "guarantee": one.guarantee,
                "outcome": one.outcome.value,
                "message": one.message,
                "seconds": round(one.seconds, 3),
            }
            for one in verdict.checks
        ],
    }
    return json.dumps(body, indent=1) + "\n"


def material_name(entry: Input) -> str:
    """How an input is named as a material: by the alias of its repository and its path there."""
    return f"{entry.repository}/{entry.path}"


def _external(recipe: Recipe) -> dict[str, Any]:
    """What a person decided: the description's main choices, and which repositories are read."""
    description = recipe.description
    return {
        "image": description.name,
        "line": description.line,
        "arch": description.arch,
        "builder": description.builder,
        "firmware": description.disk.firmware,
        "repositories": {one.alias: _repository(one, recipe) for one in recipe.repositories},
    }


def _repository(one: Repository, recipe: Recipe) -> dict[str, list[str]]:
    """What is read of a repository, and the keys of which one must have signed it, where ``keys/`` names them."""
    signers = {"signers": list(recipe.signers[one.alias])} if one.alias in recipe.signers else {}
    return {"suites": list(one.suites), "components": list(one.components), **signers}


def _sources(recipe: Recipe) -> Iterable[ResourceDescriptor]:
    commit = {"gitCommit": recipe.commit} if recipe.commit else {}
    yield _descriptor(DESCRIPTIONS, commit, {"dirty": recipe.dirty})
    yield _descriptor(TREE, {"factoryTreeSha256": recipe.tree_sha256})


def _materials(inputs: Iterable[Input]) -> Iterable[ResourceDescriptor]:
    """Every file of the lock; an answer that there is no such file is no material."""
    for entry in sorted(inputs):
        if entry.found:
            yield _descriptor(material_name(entry), {"sha512": entry.sha512})


def _subject(name: str, sha256: str, artifact: Artifact) -> ResourceDescriptor:
    more = {"sha512": artifact.sha512} if name == artifact.path.name else {}
    return _descriptor(name, {"sha256": sha256, **more})


def _descriptor(
    name: str, digest: Mapping[str, str], annotations: Mapping[str, Any] | None = None
) -> ResourceDescriptor:
    from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor as Made

    return Made(name=name, digest=dict(digest), annotations=dict(annotations or {})).pb


def _statement(subjects: Sequence[ResourceDescriptor], predicate_type: str, predicate: Message) -> bytes:
    from google.protobuf.json_format import MessageToDict
    from in_toto_attestation.v1.statement import Statement

    made = Statement(list(subjects), predicate_type, MessageToDict(predicate))
    made.validate()
    return json.dumps(MessageToDict(made.pb), sort_keys=True, separators=(",", ":")).encode()


def _whole(moment: datetime) -> datetime:
    """To the second, as people read it."""
    return moment.replace(microsecond=0)
