# SPDX-License-Identifier: Apache-2.0
"""Signing on another host: what travels, what its signer refuses, and what becomes of the answer."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.errors import FactoryError, InputFault, NotGood
from factory.model import Artifact, Bundle, Signing, Verdict
from factory.sign import attach, request_of, sign_request
from factory.sign.request import expect_good, read_answer, read_request
from factory.system.state import Run, State
from testsuite import samples
from testsuite.signing import LATER, NIGHT, Place, make_key

pytestmark = pytest.mark.programs

IMAGE = "debian13.qcow2"
STATEMENTS = f"{IMAGE}.intoto.jsonl"


@dataclass(frozen=True)
class Hosts:
    """One host that built and one that has the key; only ``post`` goes between them."""

    build: State
    run: Run
    artifact: Artifact
    verdict: Verdict
    signer: Place
    post: Path

    def ask(self) -> Path:
        asked = request_of(self.artifact, self.verdict, run=self.run, signing=Signing(), now=LATER)
        (self.post / "request.json").write_text(asked.text())
        return self.post / "request.json"

    def answer(self, request: Path, *, signing: Signing | None = None) -> Path:
        read = read_request(request)
        by = {"signing": signing or self.signer.signing, "keys": self.signer.keys, "now": LATER}
        sealed = sign_request(read, state=self.signer.state, say=lambda _: None, **by)
        (self.post / "signatures.json").write_text(sealed.text())
        return self.post / "signatures.json"

    def attach(self, answer: Path) -> Bundle:
        by = {"keys": self.signer.keys, "trusted": self.build.keys / "public", "now": LATER + timedelta(minutes=1)}
        return attach(self.artifact, self.verdict, answer, run=self.run, signing=Signing(), say=lambda _: None, **by)


@pytest.fixture(scope="module")
def key() -> Iterator[tuple[Path, str]]:
    with tempfile.TemporaryDirectory(prefix="keys-") as folder:
        root = Path(folder)
        (root / "keys").mkdir()
        made = NIGHT.replace(month=1, day=1, hour=0)
        fingerprint = make_key(root / "gnupg", root / "keys" / "images.asc", made=made, days=365, log=root / "log")
        yield root, fingerprint


@pytest.fixture
def hosts(key: tuple[Path, str], tmp_path: Path) -> Hosts:
    root, fingerprint = key
    build = State(path=tmp_path / "build").prepare()
    signer = Place(
        state=State(path=tmp_path / "signer").prepare(),
        keys=root / "keys",
        gnupg_home=root / "gnupg",
        fingerprint=fingerprint,
    )
    signer.list_key()
    run = build.new_run("debian13", NIGHT)
    made = samples.artifact(run)
    (tmp_path / "post").mkdir()
    return Hosts(
        build=build, run=run, artifact=made, verdict=samples.verdict(made), signer=signer, post=tmp_path / "post"
    )


def test_an_image_is_signed_by_a_host_that_never_sees_it(hosts):
    bundle = hosts.attach(hosts.answer(hosts.ask()))
    assert (bundle.fingerprint, bundle.throw_away_key) == (hosts.signer.fingerprint, False)
    assert set(bundle.files) == {
        "SHA256SUMS",
        "SHA256SUMS.asc",
        "debian13.packages",
        IMAGE,
        STATEMENTS,
        "debian13.source.tar.xz",
        "inputs.lock",
        "verdict.json",
        "verdict.junit.xml",
    }
    found = hosts.signer.verify(bundle.directory)
    assert found.evidence.detached == ()
    assert {one.file for one in found.signatures} == {"SHA256SUMS", f"{STATEMENTS}:1", f"{STATEMENTS}:2"}
    assert (bundle.directory / IMAGE).stat().st_ino == hosts.artifact.path.stat().st_ino
    assert bundle.signed_at == LATER


def test_no_image_travels_and_no_key_does(hosts):
    answer = hosts.answer(hosts.ask())
    texts = [path.read_bytes() for path in sorted(hosts.post.iterdir())]
    assert [path.name for path in sorted(hosts.post.iterdir())] == ["request.json", "signatures.json"]
    for text in texts:
        assert b"the image's bytes" not in text
        assert b"PRIVATE" not in text
        assert len(text) < 64 << 10
    hosts.attach(answer)
    assert not list(hosts.build.path.rglob("*.key"))
    assert not (hosts.build.keys / "gnupg").exists()


def test_a_request_reads_back_and_is_the_same_each_time(hosts):
    first = hosts.ask().read_text()
    assert read_request(hosts.post / "request.json").text() == first == hosts.ask().read_text()


def test_the_signer_sees_what_it_signs(hosts):
    seen = expect_good(read_request(hosts.ask()), now=LATER)
    assert (seen.run, seen.commit, seen.dirty) == (hosts.run.id, "3" * 40, False)
    assert (seen.materials, seen.passed, seen.subjects) == (2, 2, 4)


Spoil = Callable[[dict[str, Any]], object]


def restate(asked: dict[str, Any], at: int, change: Spoil) -> None:
    statement = json.loads(asked["statements"][at])
    change(statement)
    asked["statements"][at] = json.dumps(statement)


def redden(asked: dict[str, Any], *, consistently: bool) -> None:
    verdict = json.loads(asked["verdict"])
    verdict["checks"][0]["outcome"] = "failed"
    asked["verdict"] = json.dumps(verdict)
    if consistently:
        digest = hashlib.sha256(asked["verdict"].encode()).hexdigest()
        asked["digests"]["verdict.json"] = digest
        restate(asked, 1, lambda made: made["predicate"]["configuration"][0]["digest"].update(sha256=digest))


def age(asked: dict[str, Any], judged_at: str) -> None:
    asked["verdict"] = re.sub(r'"judged_at": "[^"]*"', f'"judged_at": "{judged_at}"', asked["verdict"])


REFUSED: dict[str, tuple[Spoil, str]] = {
    "another digest of the image": (lambda asked: asked["digests"].update({IMAGE: "0" * 64}), "about other bytes of"),
    "a file too many": (lambda asked: asked["digests"].update({"evil.sh": "0" * 64}), "is not about 'evil.sh'"),
    "a file less": (lambda asked: asked["digests"].pop("debian13.packages"), "'debian13.packages', which is none"),
    "a path for a name": (
        lambda asked: asked["digests"].update({"../x": "0" * 64}),
        r"\.\./x: cannot stand in a bundle",
    ),
    "a signature for a file": (lambda asked: asked["digests"].update({"x.asc": "0" * 64}), "x.asc: cannot stand"),
    "sums among the files": (lambda asked: asked["digests"].update({"SHA256SUMS": "0" * 64}), "SHA256SUMS: cannot"),
    "no digest": (lambda asked: asked["digests"].update({IMAGE: "abc\n"}), f"{IMAGE}: has no SHA-256"),
    "another image": (lambda asked: asked.update(image="x.qcow2"), "x.qcow2: is not the one image"),
    "another run": (lambda asked: asked.update(run="20260101-000000-debian13"), "run: is another one than"),
    "a red verdict": (lambda asked: redden(asked, consistently=False), "is another text than its SHA-256"),
    "a red verdict, well wrapped": (lambda asked: redden(asked, consistently=True), "verdict.json: is red: 1 of 3"),
    "a stale verdict": (lambda asked: age(asked, "2026-11-13T02:05:00+00:00"), "is stale: 8 days old, at most 7"),
    "a verdict of tomorrow": (lambda asked: age(asked, "2026-11-22T02:05:00+00:00"), "is of the future"),
    "a verdict without time zone": (lambda asked: age(asked, "2026-11-21T02:05:00"), "does not say when"),
    "a verdict that is none": (lambda asked: asked.update(verdict="hello"), "verdict.json: is not JSON"),
    "another lock": (lambda asked: asked.update(lock=asked["lock"] + "x"), "inputs.lock: is another text"),
    "a lock with other inputs": (
        lambda asked: asked.update(lock=asked["lock"].replace("apt_3.0.3", "apt_6.6.6")),
        "materials that the lock has not: 1",
    ),
    "no provenance": (lambda asked: asked["statements"].pop(0), "has no provenance"),
    "a third statement": (lambda asked: asked["statements"].append(asked["statements"][1]), "2 statements of one type"),
    "a statement of another kind": (
        lambda asked: asked["statements"].append(
            '{"_type":"https://in-toto.io/Statement/v1","subject":[],'
            '"predicateType":"https://evil.example","predicate":{}}'
        ),
        "of another type, 'https://evil.example'",
    ),
    "a failed test": (
        lambda asked: restate(asked, 1, lambda made: made["predicate"].update(failedTests=["x"])),
        "1 failed",
    ),
    "a surrogate": (lambda asked: asked["statements"].append("\ud800"), "statement 3 is not JSON"),
    "a surrogate in a statement that is good otherwise": (
        lambda asked: asked["statements"].append(asked["statements"].pop()[:-1] + ',"x":"\ud800"}'),
        "statement 2 is not JSON",
    ),
    "a file for an image": (lambda asked: asked.update(image="inputs.lock"), "inputs.lock: is not the one image"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_request_whose_parts_do_not_agree_is_not_signed(hosts, case):
    spoil, expected = REFUSED[case]
    path = hosts.ask()
    asked = json.loads(path.read_text())
    spoil(asked)
    path.write_text(json.dumps(asked))
    with pytest.raises(NotGood, match="this is not signed") as refused:
        hosts.answer(path)
    assert re.search(expected, "\n".join(f"{name}: {problem}" for name, problem in refused.value.facts))
    assert not (hosts.post / "signatures.json").exists()


NO_REQUEST = {
    "empty": ("", "is not JSON"),
    "a list": ("[]", "is not a request to sign"),
    "another schema": ('{"schema": "factory/sign-request/2"}', "is not a request to sign"),
    "nothing but a schema": ('{"schema": "factory/sign-request/1"}', "is of another form: run"),
    "deep": ("[" * 100_000, "nested too deeply"),
    "a name twice": ('{"run": "a", "run": "b"}', "names 'run' twice"),
}


@pytest.mark.parametrize("case", NO_REQUEST)
def test_what_is_no_request_is_told(hosts, case):
    text, expected = NO_REQUEST[case]
    (hosts.post / "x").write_text(text)
    with pytest.raises(NotGood, match=expected):
        read_request(hosts.post / "x")
    with pytest.raises(InputFault, match="cannot be read"):
        read_request(hosts.post / "none")


@given(st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3), st.lists(st.text(max_size=30)), st.text())
def test_no_request_makes_the_signer_fall(sample_request, digests, statements, text):
    for change in ({"digests": digests}, {"statements": tuple(statements)}, {"verdict": text}, {"lock": text}):
        with pytest.raises(NotGood):
            expect_good(replace(sample_request, **change), now=LATER)


@pytest.fixture(scope="module")
def sample_request(tmp_path_factory: pytest.TempPathFactory):
    state = State(path=tmp_path_factory.mktemp("sample")).prepare()
    run = state.new_run("debian13", NIGHT)
    made = samples.artifact(run)
    return request_of(made, samples.verdict(made), run=run, signing=Signing(), now=LATER)


def changed(answer: Path, change: Spoil) -> Path:
    read = json.loads(answer.read_text())
    change(read)
    answer.write_text(json.dumps(read))
    return answer


ANSWERS: dict[str, tuple[Spoil, str]] = {
    "a file too many": (lambda read: read["files"].update({"evil.sh": "rm"}), "other files than were asked for"),
    "a path": (lambda read: read["files"].update({"../../x": "rm"}), "other files than were asked for"),
    "no checksums": (lambda read: read["files"].pop("SHA256SUMS"), "other files than were asked for"),
    "other statements": (lambda read: read["files"].update({STATEMENTS: ""}), "is to another request"),
    "statements that are none": (lambda read: read["files"].update({STATEMENTS: "x\n"}), "cannot be read: line 1"),
    "a surrogate": (lambda read: read["files"].update({STATEMENTS: "\ud800\n"}), "other text than UTF-8"),
    "a surrogate in checksums": (lambda read: read["files"].update(SHA256SUMS="\ud800\n"), "other text than UTF-8"),
    "other checksums": (
        lambda read: read["files"].update(SHA256SUMS=read["files"]["SHA256SUMS"].replace("a", "b")),
        "does not verify",
    ),
    "another signature": (
        lambda read: read["files"].update({"SHA256SUMS.asc": "hello"}),
        "does not verify",
    ),
    "another schema": (lambda read: read.update(schema="x"), "is not an answer to a request"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_an_answer_that_is_not_what_was_asked_makes_no_bundle(hosts, case):
    spoil, expected = ANSWERS[case]
    answer = changed(hosts.answer(hosts.ask()), spoil)
    with pytest.raises(NotGood, match=expected):
        hosts.attach(answer)
    assert not (hosts.run.path / "bundle").exists()
    assert not (hosts.run.path / ".bundle.part").exists()


def test_the_answer_to_another_run_makes_no_bundle(hosts, tmp_path):
    other = hosts.build.new_run("debian13", NIGHT + timedelta(hours=1))
    made = samples.artifact(other, content=b"another image")
    answer = replace(hosts, run=other, artifact=made, verdict=samples.verdict(made))
    with pytest.raises(NotGood, match="is to another request"):
        hosts.attach(answer.answer(answer.ask()))


def test_a_throw_away_key_of_another_host_is_not_trusted(hosts):
    answer = hosts.answer(hosts.ask(), signing=Signing())
    assert read_answer(answer).throw_away
    with pytest.raises(NotGood, match="does not verify") as refused:
        hosts.attach(answer)
    assert "not among the keys given" in refused.value.facts[0][1]


def test_an_image_that_changed_meanwhile_makes_no_bundle(hosts):
    answer = hosts.answer(hosts.ask())
    with hosts.artifact.path.open("r+b") as file:
        file.write(b"X")
    with pytest.raises(FactoryError, match="is not the file that was recorded"):
        hosts.attach(answer)


def test_a_red_image_is_not_even_asked_about(hosts):
    red = replace(hosts, verdict=samples.verdict(hosts.artifact, red=True))
    with pytest.raises(NotGood, match="a red image is not signed"):
        red.ask()


def test_a_signature_taken_from_a_bundle_signed_here_is_missed(hosts):
    """Which files have signatures of their own is attested, so that none can be taken away unseen."""
    place = replace(hosts.signer, state=hosts.build)
    bundle = place.sign(signing=place.signing, now=LATER + timedelta(hours=1))
    (bundle.directory / f"{IMAGE}.asc").unlink()
    with pytest.raises(NotGood) as refused:
        place.verify(bundle.directory, now=LATER + timedelta(hours=1))
    assert refused.value.facts == ((IMAGE, f"has no signature '{IMAGE}.asc'"),)
