# SPDX-License-Identifier: Apache-2.0
"""What the shared night attests, typed as people type it: checked offline, spoilt, and signed on another host."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from factory.inputs.lock import read_lock
from factory.model import Artifact, Bundle, Publication, Verdict
from factory.store.directory import publish_directory
from testsuite.conftest import FACTORY, NightRun, type_factory

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_image]


@pytest.fixture(scope="module")
def bundle(night: NightRun) -> Bundle:
    assert night.run.has("sign"), night.stderr[-3000:]
    return night.run.read("sign", Bundle)


def copied(bundle: Bundle, to: Path) -> Path:
    """A copy of a bundle that shares the bytes of its files: replace them, never write into them."""
    shutil.copytree(bundle.directory, to, copy_function=os.link)
    return to


def verified(night: NightRun, folder: Path) -> tuple[int, dict[str, str], str]:
    """Exit status, faults by file, and the document."""
    done = type_factory("verify-signature", folder, "--json", state=night.state.path, timeout_s=120)
    assert "Traceback" not in done.stderr
    facts = re.findall(r"^  (\S+?): *(.*)$", done.stderr, re.MULTILINE)
    return done.returncode, {name: text for name, text in facts if name != "hint"}, done.stdout


def statements(bundle: Bundle) -> list[dict]:
    text = (bundle.directory / f"{bundle.artifact.path.name}.intoto.jsonl").read_text()
    return [json.loads(base64.b64decode(json.loads(line)["payload"])) for line in text.splitlines()]


def test_the_night_attests_how_the_image_was_made_and_tested(night: NightRun, bundle: Bundle) -> None:
    artifact, verdict = night.run.read("build", Artifact), night.run.read("verify", Verdict)
    made, tested = statements(bundle)
    names = {one["name"] for one in made["subject"]}
    assert {artifact.path.name, artifact.tarball.name, "inputs.lock"} <= names
    beside = {"SHA256SUMS", "verdict.json", "verdict.junit.xml", "throw-away-key.pub"}
    beside |= {"booted.json", "release-note.md", "difference.json"}  # what came after the build
    listed = {name for name in bundle.files if not name.endswith((".asc", ".intoto.jsonl"))}
    assert names == listed - beside
    dependencies = made["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert len(dependencies) == 2 + sum(entry.found for entry in read_lock(artifact.lock))
    passed = [check.name for check in verdict.checks if check.outcome == "passed"]
    assert tested["predicate"]["passedTests"] == passed
    assert len(passed) > 50


def test_the_download_directory_verifies_with_everything_attested(
    night: NightRun, bundle: Bundle, tmp_path: Path
) -> None:
    name = night.run.read("publish", Publication).releases[0].dated_name
    folder = publish_directory(bundle, name, dist=tmp_path)
    status, faults, shown = verified(night, folder)
    assert (status, faults) == (0, {})
    value = json.loads(shown)["value"]
    assert value["unsigned"] == ["index.html"]
    assert value["evidence"]["run"] == night.run.id
    assert value["evidence"]["passed"] > 50
    assert value["evidence"]["materials"] > 100


def test_one_byte_of_any_file_is_found(night: NightRun, bundle: Bundle, tmp_path: Path) -> None:
    """All of them at once, each named; then those alone on which the others rest."""
    alone = [name for name in bundle.files if name.startswith("SHA256SUMS")]
    together = [name for name in bundle.files if name not in alone]
    for number, names in enumerate((together, *([name] for name in alone))):
        folder = copied(bundle, tmp_path / str(number))
        for name in names:
            flipped = bytearray((folder / name).read_bytes())
            flipped[len(flipped) // 2] ^= 1
            (folder / name).unlink()
            (folder / name).write_bytes(flipped)
        status, faults, _ = verified(night, folder)
        assert status == 1
        for name in names:
            if name == "SHA256SUMS":  # a digit that is none, a digest that is another, or just its signature
                assert faults.keys() & {"SHA256SUMS", "SHA256SUMS.asc"}
            else:
                assert name in faults, (name, faults)
        shutil.rmtree(folder)


def test_a_file_less_and_a_file_more_are_found(night: NightRun, bundle: Bundle, tmp_path: Path) -> None:
    folder = copied(bundle, tmp_path / "less")
    left_out = [name for name in bundle.files if name.endswith((".intoto.jsonl", ".lock", ".qcow2.asc"))]
    for name in left_out:
        (folder / name).unlink()
    (folder / "evil.intoto.jsonl").write_text("{}\n")
    status, faults, _ = verified(night, folder)
    assert status == 1
    expected = {name.removesuffix(".asc") for name in left_out} - {bundle.artifact.path.name}
    assert expected <= faults.keys()  # which files have signatures of their own is read from the statements
    assert faults["evil.intoto.jsonl"] == "is not listed in SHA256SUMS"


def test_the_image_is_signed_on_a_host_that_has_only_digests(night: NightRun, bundle: Bundle, tmp_path: Path) -> None:
    """Three commands; the host that built trusts the other's key because its public part was put there."""
    build, signer, post = tmp_path / "build", tmp_path / "signer", tmp_path / "post"
    run = build / "runs" / night.run.id
    shutil.copytree(
        night.run.path, run, copy_function=os.link, ignore=shutil.ignore_patterns("bundle", "tree", "logs", "*.html")
    )
    for stage in ("sign", "publish", "rotate", "canary"):
        (run / f"{stage}.json").unlink(missing_ok=True)
    (run / "logs").mkdir()
    post.mkdir()
    request, answer = post / "request.json", post / "signatures.json"

    def typed(*words: str | Path, state: Path) -> str:
        done = type_factory(*words, state=state, timeout_s=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    shown = typed("sign", "debian13", "--request-out", request, state=build)
    assert bundle.artifact.sha256 in shown
    assert not (run / "bundle").exists()
    assert typed("sign", "--request", request, "--dry-run", state=signer) == shown
    assert not answer.exists()
    typed("sign", "--request", request, "--signatures-out", answer, state=signer)
    assert max(path.stat().st_size for path in post.iterdir()) < 4 << 20
    assert not (signer / "runs").exists()

    refused = type_factory("sign", "debian13", "--signatures", answer, state=build, timeout_s=120)
    assert (refused.returncode, "no public key to verify with" in refused.stderr) == (2, True)
    assert not (run / "bundle").exists()
    shutil.copytree(signer / "keys" / "public", build / "keys" / "public")
    typed("sign", "debian13", "--signatures", answer, state=build)
    assert sorted(path.name for path in (run / "bundle").glob("*.asc")) == ["SHA256SUMS.asc"]
    assert "materials" in typed("verify-signature", run / "bundle", state=build)


def test_the_report_says_what_is_attested_and_how_long_the_key_signs(night: NightRun, bundle: Bundle) -> None:
    page = (night.run.path / "report.html").read_text()
    for one in bundle.statements:
        assert one in page
    assert re.search(r"it signs until \d{4}-\d\d-\d\d [\d:]+ UTC, \d+ days more", page)


def test_statements_need_no_network_to_be_checked(night: NightRun, bundle: Bundle) -> None:
    done = subprocess.run(
        ["unshare", "--net", FACTORY, "--state", night.state.path, "verify-signature", bundle.directory],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "those of the lock" in done.stdout
