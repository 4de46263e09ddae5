# SPDX-License-Identifier: Apache-2.0
"""The Jenkinsfile, read by the parser of the Groovy that Jenkins runs: a cell for each image, a stage per verb."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from factory.describe.load import images
from factory.model import STAGES

pytestmark = pytest.mark.programs

PROJECT = Path(__file__).parents[2]
JENKINSFILE = PROJECT / "Jenkinsfile"
READER = PROJECT / "testsuite" / "jenkinsfile.groovy"
GROOVY = Path("/usr/share/java/groovy-all.jar")
# https://www.jenkins.io/doc/book/pipeline/syntax/
SECTIONS = {"agent", "environment", "options", "parameters", "triggers", "tools", "libraries", "stages", "post"}
OF_STAGE = {
    "agent",
    "environment",
    "input",
    "matrix",
    "options",
    "parallel",
    "post",
    "stages",
    "steps",
    "tools",
    "when",
}
OF_MATRIX = {"agent", "axes", "environment", "excludes", "input", "options", "post", "stages", "tools", "when"}
OF_POST = {"always", "changed", "fixed", "regression", "aborted", "failure", "success", "unstable", "cleanup"}


def read(path: Path) -> subprocess.CompletedProcess[str]:
    if shutil.which("java") is None or not GROOVY.is_file():
        assert not os.environ.get("CI"), "Groovy is not installed (packages/apt.txt)"
        pytest.skip("Groovy is not installed: apt-get install groovy")
    quick = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
    argv = ["java", *quick, "-cp", GROOVY, "groovy.ui.GroovyMain", READER, path]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture(scope="module")
def pipeline() -> dict:
    done = read(JENKINSFILE)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)
    assert found["call"] == "pipeline"
    return found


def part(of: dict, *names: str) -> dict:
    for name in names:
        (of,) = [one for one in of["body"] if one.get("call") == name]
    return of


def matrix_of(pipeline: dict) -> dict:
    return part(pipeline, "stages", "stage", "matrix")


def called(of: dict, name: str) -> Iterator[dict]:
    for one in of.get("body", ()):
        if one.get("call") == name:
            yield one
        yield from called(one, name)


def test_a_file_that_is_not_groovy_is_told_with_its_line(tmp_path: Path) -> None:
    bad = tmp_path / "Jenkinsfile"
    text = JENKINSFILE.read_text().replace("axes {", "axes { )", 1)
    bad.write_text(text)
    done = read(bad)
    assert done.returncode == 1
    line = next(number for number, one in enumerate(text.splitlines(), start=1) if "axes" in one)
    assert f": {line}: unexpected token: )" in done.stderr


def test_every_section_is_one_that_jenkins_knows(pipeline: dict) -> None:
    matrix = matrix_of(pipeline)
    cell_stages = part(matrix, "stages")["body"]
    for place, known in (
        (pipeline, SECTIONS),
        (part(pipeline, "stages", "stage"), OF_STAGE),
        (matrix, OF_MATRIX),
        *((one, OF_STAGE) for one in cell_stages),
        (part(matrix, "post"), OF_POST),
    ):
        assert {one.get("call") for one in place["body"]} <= known
    assert {one["call"] for one in cell_stages} == {"stage"}


def test_the_matrix_has_a_cell_for_each_image_on_an_agent_with_its_label(pipeline: dict) -> None:
    matrix = matrix_of(pipeline)
    assert part(matrix, "axes", "axis", "name")["args"] == ["IMAGE"]
    values = part(matrix, "axes", "axis", "values")["args"]
    assert sorted(values) == list(images(PROJECT)), "the images of the Jenkinsfile are not those under descriptions/"
    assert part(matrix, "agent", "label")["args"] == ["image-factory && $IMAGE"]
    assert part(pipeline, "agent")["args"] == ["none"]
    assert not list(called(pipeline, "failFast")), "one image's failure would stop the others"
    assert not list(called(pipeline, "parallelsAlwaysFailFast"))


def test_a_cell_has_a_stage_for_each_verb_in_their_order(pipeline: dict) -> None:
    stages = part(matrix_of(pipeline), "stages")["body"]
    assert [one["args"][0] for one in stages] == ["setup", *STAGES]
    for one in stages[1:]:
        (line,) = [step["args"][0] for step in part(one, "steps")["body"]]
        assert line == f'$FACTORY {one["args"][0]} "$IMAGE"'


def test_each_shell_text_is_one_that_a_shell_reads(pipeline: dict) -> None:
    texts = [one["args"][0] for one in called(pipeline, "sh")]
    assert len(texts) == len(STAGES) + 3
    for text in texts:
        done = subprocess.run(["sh", "-n", "-c", text], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{text}\n{done.stderr}"


def test_what_is_kept_of_two_cells_never_meets(pipeline: dict) -> None:
    """All cells of a build share its archive: what they keep lies in folders of their own."""
    post = part(matrix_of(pipeline), "post")
    (kept,) = called(post, "archiveArtifacts")
    (page,) = called(post, "publishHTML")
    (tests,) = called(post, "junit")
    assert kept["args"][0]["artifacts"].startswith("out/$IMAGE/")
    assert page["args"][0]["target"]["reportDir"] == "out/$IMAGE"
    assert "$IMAGE" in page["args"][0]["target"]["reportName"]
    assert tests["args"][0]["testResults"].startswith("out/$IMAGE/")
