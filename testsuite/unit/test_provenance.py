# SPDX-License-Identifier: Apache-2.0
"""What is attested about an image, judged by gpg, python-gnupg, protobuf and securesystemslib, and what is refused."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import gnupg
import pytest
from google.protobuf.json_format import ParseDict
from hypothesis import given
from hypothesis import strategies as st
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.predicates.test_result.v0 import test_result_pb2
from in_toto_attestation.v1.statement import Statement
from in_toto_attestation.v1.statement_pb2 import Statement as StatementMessage
from securesystemslib._gpg.common import parse_signature_packet
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import GPGSigner, Signature

from factory.errors import NotGood
from factory.model import Bundle
from factory.sign.checksums import parse_sums, sums_text
from factory.sign.dsse import PAYLOAD_TYPE, encoded, envelopes, line
from factory.sign.evidence import judge
from factory.sign.openpgp import own_home
from factory.sign.statements import PROVENANCE, TEST_RESULT, provenance
from factory.sign.strict_json import Malformed
from factory.sign.verify import verify_file
from factory.system.state import State
from testsuite import samples
from testsuite.signing import LATER, NIGHT, Place, make_key

pytestmark = pytest.mark.programs

DOCS = Path(__file__).parents[2] / "docs" / "reference" / "provenance.md"
IMAGE = "debian13.qcow2"
STATEMENTS = f"{IMAGE}.intoto.jsonl"
MIB = 1 << 20
Spoil = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A site with a listed key of its own."""
    root = tmp_path_factory.mktemp("site")
    keys = root / "keys"
    keys.mkdir()
    made = NIGHT.replace(month=1, day=1, hour=0)
    fingerprint = make_key(root / "gnupg", keys / "images.asc", made=made, days=365, log=root / "log")
    found = Place(
        state=State(path=root / "state").prepare(), keys=keys, gnupg_home=root / "gnupg", fingerprint=fingerprint
    )
    found.list_key()
    return found


@pytest.fixture(scope="module")
def bundle(place: Place) -> Bundle:
    return place.sign(signing=place.signing)


@pytest.fixture
def copied(bundle: Bundle, tmp_path: Path) -> Path:
    shutil.copytree(bundle.directory, tmp_path / "bundle")
    return tmp_path / "bundle"


def statements_in(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(one.payload) for one in envelopes((folder / STATEMENTS).read_bytes())]


def refused(place: Place, folder: Path) -> str:
    with pytest.raises(NotGood) as caught:
        place.verify(folder)
    return "\n".join(f"{name}: {problem}" for name, problem in caught.value.facts)


def resign(place: Place, folder: Path, *payloads: bytes, sums: bool = True) -> None:
    """As somebody would who has the key: other statements, good signatures over everything."""
    with own_home(place.gnupg_home, now=LATER, log=place.gnupg_home.parent / "log") as home:
        if payloads:
            made = [
                line(one, keyid=place.fingerprint, signature=home.sign_bytes(encoded(one), **_by(place)))
                for one in payloads
            ]
            (folder / STATEMENTS).write_text("".join(made))
        if sums:
            listed = parse_sums((folder / "SHA256SUMS").read_text())
            found = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in listed}
            (folder / "SHA256SUMS").write_text(sums_text(found))
            signature = home.sign_bytes((folder / "SHA256SUMS").read_bytes(), **_by(place), armor=True)
            (folder / "SHA256SUMS.asc").write_bytes(signature)


def _by(place: Place) -> dict[str, str]:
    return {"fingerprint": place.fingerprint, "what": "a test"}


# -- what is attested --------------------------------------------------------------------------------------------------


def test_the_provenance_says_how_the_image_was_made(bundle):
    made = statements_in(bundle.directory)[0]
    definition, details = (made["predicate"][name] for name in ("buildDefinition", "runDetails"))
    assert (made["_type"], made["predicateType"]) == ("https://in-toto.io/Statement/v1", PROVENANCE)
    subjects = {one["name"]: one["digest"] for one in made["subject"]}
    sums = parse_sums((bundle.directory / "SHA256SUMS").read_text())
    assert {name: digest["sha256"] for name, digest in subjects.items()} == {
        name: sums[name] for name in (IMAGE, "debian13.source.tar.xz", "inputs.lock", "debian13.packages")
    }
    assert subjects[IMAGE]["sha512"] == bundle.artifact.sha512
    assert definition["externalParameters"]["image"] == "debian13"
    assert definition["externalParameters"]["repositories"] == {
        "debian": {"suites": ["trixie"], "components": ["main"]}
    }
    assert definition["internalParameters"]["sourceDateEpoch"] == str(bundle.artifact.epoch)
    assert definition["resolvedDependencies"] == [
        {"name": "descriptions", "digest": {"gitCommit": "3" * 40}, "annotations": {"dirty": False}},
        {"name": "build-tree", "digest": {"factoryTreeSha256": samples.TREE_SHA256}},
        {"name": "debian/dists/trixie/InRelease", "digest": {"sha512": "6" * 128}},
        {"name": "debian/pool/main/a/apt/apt_3.0.3_amd64.deb", "digest": {"sha512": "7" * 128}},
    ]
    assert details["builder"]["id"] == "https://image-factory.example/builder/embedded"
    assert details["builder"]["version"]["qemu-img"] == "7.2.22"
    run = bundle.directory.parent.name
    assert details["metadata"] == {
        "invocationId": run,
        "startedOn": "2026-11-21T02:00:00Z",
        "finishedOn": "2026-11-21T02:03:13Z",
    }


def test_the_provenance_names_who_must_have_signed_the_indexes(bundle):
    recipe = replace(bundle.artifact.recipe, signers={"debian": ("A" * 40, "B" * 40)})
    made = provenance(
        replace(bundle.artifact, recipe=recipe),
        run_id="x",
        built={IMAGE: "0" * 64},
        lock=bundle.artifact.lock,
        detached=(),
        builder_id="",
    )
    repositories = definition(json.loads(made))["externalParameters"]["repositories"]
    assert repositories["debian"]["signers"] == ["A" * 40, "B" * 40]


def test_the_test_result_says_what_the_verdict_says(bundle):
    tested = statements_in(bundle.directory)[1]
    verdict = (bundle.directory / "verdict.json").read_bytes()
    assert tested["predicateType"] == TEST_RESULT
    assert [(one["name"], one["digest"]["sha256"]) for one in tested["subject"]] == [(IMAGE, bundle.artifact.sha256)]
    predicate = tested["predicate"]
    assert predicate["result"] == "PASSED"
    assert predicate["passedTests"] == ["test_root_login_is_refused", "test_only_ssh_listens"]
    configuration = predicate["configuration"][0]
    assert configuration["digest"] == {"sha256": hashlib.sha256(verdict).hexdigest()}
    assert configuration["annotations"]["skippedTests"] == ["test_xen_initrd"]
    assert configuration["annotations"]["regionProof"] == "registered with the embedded region server"


def test_no_mirror_and_no_secret_is_attested(bundle):
    text = (bundle.directory / STATEMENTS).read_text()
    said = "".join(envelope.payload.decode() for envelope in envelopes(text.encode()))
    assert "debian/pool" in said
    assert not re.search(r"mirror|secret|user:", said)


def test_the_libraries_of_in_toto_know_every_field(bundle):
    """Unknown names and wrong types make ParseDict raise."""
    kinds = {PROVENANCE: provenance_pb2.Provenance, TEST_RESULT: test_result_pb2.TestResult}
    for statement in statements_in(bundle.directory):
        ParseDict(statement["predicate"], kinds[statement["predicateType"]]())
        Statement.copy_from_pb(ParseDict(statement, StatementMessage())).validate()


def test_a_site_names_its_builder(place):
    made = place.sign(
        signing=place.signing.__class__(
            fingerprint=place.fingerprint, gnupg_home=place.gnupg_home, builder="https://images.cloud.example/builder"
        ),
        now=LATER + timedelta(seconds=1),
    )
    assert place.verify(made.directory, now=LATER + timedelta(seconds=1)).evidence.builder == (
        "https://images.cloud.example/builder"
    )


def test_an_rsa_key_and_a_signing_subkey_attest_as_well(place, tmp_path):
    """As sites have them: RSA, or a primary key that only certifies and a subkey that signs."""
    for seconds, kind in enumerate(("rsa3072", "subkey"), start=2):
        with tempfile.TemporaryDirectory(prefix="key-") as folder:
            with own_home(Path(folder), now=NIGHT, log=tmp_path / "log") as home:
                algorithm, usage = ("rsa3072", "sign") if kind == "rsa3072" else ("ed25519", "cert")
                home.gpg("--passphrase", "", "--quick-generate-key", "Images", algorithm, usage, "1y")
                fingerprint = home.keys(secret=True)[0].fingerprint
                if kind == "subkey":
                    home.gpg("--passphrase", "", "--quick-add-key", fingerprint, "ed25519", "sign", "1y")
                (tmp_path / f"{kind}.asc").write_text(home.export(fingerprint))
            other = replace(place, keys=tmp_path, gnupg_home=Path(folder), fingerprint=fingerprint)
            other.list_key(in_use_from="2026-11-01")
            (tmp_path / "images.asc").write_text((tmp_path / f"{kind}.asc").read_text())
            made = other.sign(signing=other.signing, now=LATER + timedelta(seconds=seconds))
            found = other.verify(made.directory, now=LATER + timedelta(minutes=1))
            assert {one.fingerprint for one in found.signatures} == {fingerprint}
            assert len(found.signatures) == 5


# -- judged by others --------------------------------------------------------------------------------------------------


def test_the_recipe_of_the_documentation_works_with_plain_gpg(place, copied, tmp_path):
    recipe = next(re.finditer(r"```sh\n(.*?)```", DOCS.read_text(), re.DOTALL)).group(1).replace("X.qcow2", IMAGE)
    home = tmp_path / "gnupg"
    home.mkdir(mode=0o700)
    gpg = ["gpg", "--batch", "--no-autostart", "--import", place.keys / "images.asc"]
    environment = {"PATH": os.environ["PATH"], "GNUPGHOME": str(home)}
    (home / "gpg.conf").write_text("faked-system-time 20261122T000000!\nstatus-fd 1\nno-autostart\n")
    subprocess.run(gpg, env=environment, capture_output=True, check=True)

    def follow(text: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-ec", text], cwd=copied, env=environment, capture_output=True, text=True, check=False
        )

    for which, kind in (("1s/", PROVENANCE), ("2s/", TEST_RESULT)):
        done = follow(recipe.replace("1s/", which))
        assert done.returncode == 0, done.stderr
        assert f"VALIDSIG {place.fingerprint}" in done.stdout
        assert json.loads((copied / "statement.json").read_text())["predicateType"] == kind
    text = (copied / STATEMENTS).read_text()
    (copied / STATEMENTS).write_text(text.replace('"payload":"eyJf', '"payload":"eyJe'))
    assert follow(recipe).returncode != 0


def test_python_gnupg_finds_a_statement_good_and_another_bad(place, bundle, tmp_path):
    (tmp_path / "home").mkdir(mode=0o700)
    options = ["--no-autostart", "--faked-system-time", f"{LATER:%Y%m%dT%H%M%S}"]
    stranger = gnupg.GPG(gnupghome=str(tmp_path / "home"), options=options)
    stranger.import_keys((place.keys / "images.asc").read_text())
    for text in (bundle.directory / STATEMENTS).read_text().splitlines():
        envelope = json.loads(text)
        payload = base64.b64decode(envelope["payload"])
        signed = b"DSSEv1 28 application/vnd.in-toto+json %d " % len(payload) + payload
        (tmp_path / "sig").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
        found = stranger.verify_data(str(tmp_path / "sig"), signed)
        assert (found.valid, found.pubkey_fingerprint) == (True, place.fingerprint)
        assert not stranger.verify_data(str(tmp_path / "sig"), signed + b" ").valid


def test_securesystemslib_verifies_the_envelope(place, bundle, tmp_path):
    """Its own reader of OpenPGP, and its own Ed25519 (cryptography), over its own encoding."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    gpg = ["gpg", "--homedir", home, "--no-autostart", "--faked-system-time", "20261121T020000!", "--import"]
    subprocess.run([*gpg, place.keys / "images.asc"], capture_output=True, check=True)
    _, key = GPGSigner.import_(place.fingerprint.lower(), str(home))
    for text in (bundle.directory / STATEMENTS).read_text().splitlines():
        read = Envelope.from_dict(json.loads(text))
        assert list(read.signatures) == [place.fingerprint]
        packet = bytes.fromhex(read.signatures.pop(place.fingerprint).signature)
        parsed = parse_signature_packet(packet)
        fields = {"other_headers": parsed["other_headers"]}
        read.signatures[key.keyid] = Signature(key.keyid, parsed["signature"], fields)
        assert read.verify([key], 1) == {key.keyid: key}
        read.payload += b" "
        with pytest.raises(VerificationError):
            read.verify([key], 1)


# -- what does not verify, although everything is signed ---------------------------------------------------------------


def first(statement: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in statement["subject"] if one["name"] == name)


def definition(statement: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = statement["predicate"]["buildDefinition"]
    return found


def materials(statement: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = definition(statement)["resolvedDependencies"]
    return found


SPOILT_PROVENANCE: dict[str, tuple[Spoil, str]] = {
    "image by another digest": (
        lambda made: first(made, IMAGE)["digest"].update(sha256="0" * 64),
        "provenance is about other bytes of 'debian13.qcow2' than SHA256SUMS",
    ),
    "image by another SHA-512": (
        lambda made: first(made, IMAGE)["digest"].update(sha512="0" * 128),
        "provenance has another SHA-512 of 'debian13.qcow2'",
    ),
    "no digest": (lambda made: first(made, IMAGE).pop("digest"), "about other bytes of 'debian13.qcow2'"),
    "a subject missing": (
        lambda made: made["subject"].remove(first(made, "inputs.lock")),
        "is not about 'inputs.lock'",
    ),
    "a subject twice": (lambda made: made["subject"].append(first(made, IMAGE)), "names the subject .* twice"),
    "a foreign subject": (
        lambda made: made["subject"].append({"name": "evil\u202e.qcow2", "digest": {"sha256": "0" * 64}}),
        r"is about 'evil\\u202e.qcow2', which is none",
    ),
    "no subject": (lambda made: made.update(subject=[]), "is not about 'debian13.qcow2'"),
    "another build type": (
        lambda made: definition(made).update(buildType="https://evil.example/v1"),
        "of a build of type 'https://evil.example/v1'",
    ),
    "a material missing": (lambda made: materials(made).pop(), "names not the lock's: 1, such as 'debian/pool"),
    "a material too many": (
        lambda made: materials(made).append({"name": "debian/pool/x", "digest": {"sha512": "0" * 128}}),
        "names materials that the lock has not: 1, such as 'debian/pool/x'",
    ),
    "a material twice": (lambda made: materials(made).append(materials(made)[-1]), "one material twice"),
    "other bytes of a material": (
        lambda made: materials(made)[-1]["digest"].update(sha512="0" * 128),
        "names other bytes than the lock: 1",
    ),
    "no commit": (lambda made: materials(made).pop(0), "does not name its descriptions once"),
    "no builder": (lambda made: made["predicate"]["runDetails"]["builder"].update(id=""), "names no builder"),
    "no list of signatures": (
        lambda made: definition(made)["internalParameters"].pop("detachedSignatures"),
        "does not say which files have a signature",
    ),
    "signatures of a foreign file": (
        lambda made: definition(made)["internalParameters"].update(detachedSignatures=["../x"]),
        "does not say which files have a signature",
    ),
    "another predicate": (lambda made: made.update(predicateType="https://evil.example/v1"), "of another type, 'https"),
    "a test result in its place": (lambda made: made.update(predicateType=TEST_RESULT), "has 2 statements of one type"),
    "no statement": (lambda made: made.update(_type="https://in-toto.io/Statement/v0.1"), "another form: _type"),
    "a number for a name": (lambda made: first(made, IMAGE).update(name=1), "another form: subject.0.name|subject"),
    "a text for subjects": (lambda made: made.update(subject="all"), "another form: subject"),
    "a list for a predicate": (lambda made: made.update(predicate=[]), "another form: predicate"),
    "an empty predicate": (lambda made: made.update(predicate={}), "provenance is of another form: buildDefinition"),
}
SPOILT_RESULT: dict[str, tuple[Spoil, str]] = {
    "failed": (lambda made: made["predicate"].update(result="FAILED"), "test result is 'FAILED'"),
    "warned": (lambda made: made["predicate"].update(warnedTests=["x"]), "names other unmet tests"),
    "a failed test": (lambda made: made["predicate"].update(failedTests=["x"]), "test result is 'PASSED', 1 failed"),
    "a test too many": (lambda made: made["predicate"]["passedTests"].append("x"), "names other passed tests"),
    "another image": (
        lambda made: first(made, IMAGE)["digest"].update(sha256="0" * 64),
        "test result is about other bytes",
    ),
    "more than the image": (
        lambda made: made["subject"].append({"name": "inputs.lock", "digest": {"sha256": "0" * 64}}),
        "test result is about 'inputs.lock', which is none",
    ),
    "another verdict": (
        lambda made: made["predicate"]["configuration"][0]["digest"].update(sha256="0" * 64),
        "does not rest on this verdict.json",
    ),
    "no verdict": (lambda made: made["predicate"].update(configuration=[]), "does not rest on this verdict.json"),
}


def judged(bundle: Bundle, payloads: list[bytes], **change: bytes) -> str:
    texts = {"verdict": "verdict.json", "lock": "inputs.lock"}
    read = {key: change.get(key, (bundle.directory / name).read_bytes()) for key, name in texts.items()}
    sums = parse_sums((bundle.directory / "SHA256SUMS").read_text())
    for key, name in texts.items():
        sums[name] = hashlib.sha256(read[key]).hexdigest()
    found = judge(payloads, sums=sums, sha512=bundle.artifact.sha512, **read)
    assert (found.evidence is None) == bool(found.faults)
    return "\n".join(f"{name}: {problem}" for name, problem in found.faults)


def spoilt(bundle: Bundle, at: int, spoil: Spoil) -> list[bytes]:
    statements = copy.deepcopy(statements_in(bundle.directory))
    spoil(statements[at])
    return [json.dumps(one).encode() for one in statements]


def test_what_was_written_is_good(bundle):
    assert judged(bundle, spoilt(bundle, 0, lambda _: None)) == ""


@pytest.mark.parametrize("case", SPOILT_PROVENANCE)
def test_a_provenance_that_says_something_else_is_a_fault(bundle, case):
    spoil, expected = SPOILT_PROVENANCE[case]
    assert re.search(expected, judged(bundle, spoilt(bundle, 0, spoil)))


@pytest.mark.parametrize("case", SPOILT_RESULT)
def test_a_test_result_that_says_something_else_is_a_fault(bundle, case):
    spoil, expected = SPOILT_RESULT[case]
    assert re.search(expected, judged(bundle, spoilt(bundle, 1, spoil)))


def changed_verdict(bundle: Bundle, spoil: Spoil) -> bytes:
    read = json.loads((bundle.directory / "verdict.json").read_text())
    spoil(read)
    return json.dumps(read).encode()


SPOILT_VERDICT: dict[str, tuple[Spoil, str]] = {
    "red": (lambda said: said["checks"][0].update(outcome="failed"), "verdict.json: is red: 1 of 3 checks failed"),
    "red, and says so": (
        lambda said: (said["checks"][0].update(outcome="failed"), said.update(passed=False)),
        "verdict.json: is red",
    ),
    "nothing tested": (lambda said: said.update(checks=[]), "verdict.json: is not green: nothing was tested"),
    "other bytes": (lambda said: said.update(artifact_sha256="0" * 64), "verdict.json: is about other bytes"),
    "another image": (lambda said: said.update(image="other.qcow2"), "verdict.json: is about other bytes"),
    "an unknown outcome": (lambda said: said["checks"][0].update(outcome="maybe"), "verdict.json: is of another form"),
    "another schema": (lambda said: said.update(schema="factory/verdict/9"), "verdict.json: is of another schema"),
    "green by word only": (lambda said: said.update(passed=False), "verdict.json: says passed: false"),
}


@pytest.mark.parametrize("case", SPOILT_VERDICT)
def test_a_verdict_that_is_not_green_about_these_bytes_is_a_fault(bundle, case):
    spoil, expected = SPOILT_VERDICT[case]
    found = judged(bundle, spoilt(bundle, 0, lambda _: None), verdict=changed_verdict(bundle, spoil))
    assert expected in found


def test_a_verdict_without_end_is_not_read(bundle):
    huge = b'{"schema": "' + b"x" * (17 * MIB) + b'"}'
    found = judged(bundle, spoilt(bundle, 0, lambda _: None), verdict=huge)
    assert "verdict.json: is longer than 16 MiB" in found


def test_a_red_verdict_is_refused_although_a_trusted_key_signed_all_of_it(place, copied):
    text = changed_verdict_in(copied)
    tested = statements_in(copied)
    tested[1]["predicate"]["configuration"][0]["digest"]["sha256"] = hashlib.sha256(text).hexdigest()
    tested[1]["predicate"]["passedTests"].pop(0)
    resign(place, copied, *(json.dumps(one).encode() for one in tested))
    assert refused(place, copied) == "verdict.json: is red: 1 of 3 checks failed"


def changed_verdict_in(folder: Path) -> bytes:
    read = json.loads((folder / "verdict.json").read_text())
    read["checks"][0]["outcome"], read["passed"] = "failed", False
    (folder / "verdict.json").write_text(json.dumps(read))
    return (folder / "verdict.json").read_bytes()


WHICH = {
    "no provenance": ((1,), "has no provenance"),
    "no test result": ((0,), "has no test result"),
    "provenance twice": ((0, 0, 1), "has 2 statements of one type, provenance"),
    "none": ((), "has no provenance"),
}


@pytest.mark.parametrize("case", WHICH)
def test_both_statements_are_there_once(bundle, case):
    which, expected = WHICH[case]
    payloads = spoilt(bundle, 0, lambda _: None)
    assert expected in judged(bundle, [payloads[at] for at in which])


def test_the_order_of_statements_is_free(bundle):
    assert judged(bundle, spoilt(bundle, 0, lambda _: None)[::-1]) == ""


def test_statements_of_another_night_are_refused(place, copied):
    """Even when whoever has the key put them there."""
    other = place.sign(signing=place.signing, now=LATER + timedelta(hours=1))
    shutil.copyfile(other.directory / STATEMENTS, copied / STATEMENTS)
    assert f"{STATEMENTS}: has the SHA-256" in refused(place, copied)


def test_statements_about_another_image_are_refused_although_all_is_signed(place, copied, monkeypatch):
    monkeypatch.setattr(samples.artifact, "__kwdefaults__", {**samples.artifact.__kwdefaults__, "content": b"another"})
    other = place.sign(signing=place.signing, now=LATER + timedelta(hours=2))
    resign(place, copied, *(one.payload for one in envelopes((other.directory / STATEMENTS).read_bytes())))
    found = refused(place, copied)
    assert "provenance is about other bytes of 'debian13.qcow2' than SHA256SUMS" in found
    assert "test result is about other bytes of 'debian13.qcow2' than SHA256SUMS" in found


def test_every_single_byte_counts(place, bundle, tmp_path):
    for name in bundle.files:
        folder = tmp_path / name
        shutil.copytree(bundle.directory, folder)
        body = bytearray((folder / name).read_bytes())
        body[len(body) // 2] ^= 4
        (folder / name).write_bytes(body)
        assert re.search(rf"^{re.escape(name)}(:|\.asc:)", refused(place, folder), re.MULTILINE), name


# -- envelopes ---------------------------------------------------------------------------------------------------------


def envelope(**change: object) -> bytes:
    made = {
        "payload": base64.b64encode(b"{}").decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"keyid": "A", "sig": "AAAA"}],
    }
    return json.dumps({**made, **change}).encode() + b"\n"


HOSTILE = {
    "no line's end": (envelope()[:-1], "does not end with a line"),
    "an empty line": (b"\n", "line 1 is not JSON"),
    "not JSON": (b"hello\n", "line 1 is not JSON"),
    "not UTF-8": (b'{"payload": "\xff"}\n', "line 1 is not JSON"),
    "a list": (b"[]\n", "another form"),
    "deep": (b"[" * 200_000 + b"]" * 200_000 + b"\n", "nested too deeply"),
    "huge": (b'"' + b"x" * (17 * MIB) + b'"\n', "longer than 16 MiB"),
    "many lines": (envelope() * 17, "holds 17 lines"),
    "a name twice": (b'{"payload": "", "payload": ""}\n', "names 'payload' twice"),
    "NaN": (b'{"payload": NaN}\n', "holds NaN"),
    "a long number": (b'{"payload": ' + b"1" * 5000 + b"}\n", "is not JSON"),
    "another payload type": (envelope(payloadType="application/vnd.in-toto+json;v=2"), "is of the type 'application"),
    "a payload type in another case": (envelope(payloadType=PAYLOAD_TYPE.upper()), "is of the type"),
    "a payload type with a surrogate": (b'{"payload":"","payloadType":"\\ud800","signatures":[]}\n', "is of the type"),
    "no payload type": (b'{"payload":"","signatures":[]}\n', "another form: payloadType"),
    "a number for a payload": (envelope(payload=1), "another form: payload"),
    "not base64": (envelope(payload="e30=!"), "a payload that is not base64"),
    "no signature": (envelope(signatures=[]), "has 0 signatures"),
    "signatures an object": (envelope(signatures={}), "another form: signatures"),
    "nine signatures": (
        envelope(signatures=[{"keyid": str(one), "sig": ""} for one in range(9)]),
        "has 9 signatures",
    ),
    "one key twice": (envelope(signatures=[{"keyid": "A", "sig": ""}] * 2), "two signatures of one key"),
    "a signature without key": (envelope(signatures=[{"sig": ""}]), "another form: signatures.0.keyid"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_envelope_is_malformed(case):
    text, expected = HOSTILE[case]
    with pytest.raises(Malformed, match=expected):
        envelopes(text)


def test_a_hostile_bundle_does_not_verify(place, copied):
    (copied / STATEMENTS).write_bytes(b"[" * 200_000 + b"\n")
    resign(place, copied)
    assert "nested too deeply" in refused(place, copied)


def one_more(place: Place, folder: Path, made: bytes, keyid: str) -> None:
    lines = (folder / STATEMENTS).read_text().splitlines(keepends=True)
    read = json.loads(lines[0])
    read["signatures"].append({"keyid": keyid, "sig": base64.b64encode(made).decode()})
    (folder / STATEMENTS).write_text(json.dumps(read) + "\n" + lines[1])
    resign(place, folder)


def test_a_good_signature_does_not_outweigh_a_bad_one(place, copied):
    good = json.loads((copied / STATEMENTS).read_text().splitlines()[1])["signatures"][0]["sig"]
    one_more(place, copied, base64.b64decode(good), "B" * 40)  # a true signature, over the other statement
    assert refused(place, copied) == f"{STATEMENTS}: the signature of statement 1 does not match the file"


def test_rubbish_for_a_signature_is_a_fault(place, copied):
    one_more(place, copied, b"\x88\x00junk", "B" * 40)
    assert "the signature of statement 1" in refused(place, copied)


def test_a_stranger_beside_our_signature_is_a_fault(place, copied, tmp_path):
    stranger = make_key(tmp_path / "x", tmp_path / "x.asc", made=NIGHT, days=30, log=tmp_path / "log")
    payload = envelopes((copied / STATEMENTS).read_bytes())[0].payload
    with own_home(tmp_path / "x", now=LATER, log=tmp_path / "log") as home:
        made = home.sign_bytes(encoded(payload), fingerprint=stranger, what="a test")
    one_more(place, copied, made, stranger)
    assert f"was made by {stranger}, which is not among the keys given" in refused(place, copied)


def test_a_signature_that_names_another_key_is_a_fault(place, copied):
    text = (copied / STATEMENTS).read_text()
    (copied / STATEMENTS).write_text(text.replace(place.fingerprint, "0" * 40, 1))
    resign(place, copied)
    assert f"was made by {place.fingerprint}, but names {'0' * 40}" in refused(place, copied)


def test_a_signature_over_the_payload_without_its_type_is_a_fault(place, copied):
    lines = (copied / STATEMENTS).read_text().splitlines(keepends=True)
    read = json.loads(lines[0])
    with own_home(place.gnupg_home, now=LATER, log=place.gnupg_home.parent / "log") as home:
        made = home.sign_bytes(base64.b64decode(read["payload"]), **_by(place))
    read["signatures"][0]["sig"] = base64.b64encode(made).decode()
    (copied / STATEMENTS).write_text(json.dumps(read) + "\n" + lines[1])
    resign(place, copied)
    assert "the signature of statement 1 does not match the file" in refused(place, copied)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
FIELDS = ("_type", "subject", "predicateType", "predicate", "payload", "payloadType", "signatures", "name", "digest")


@given(json_values, st.sampled_from(FIELDS))
def test_no_json_makes_the_reader_of_envelopes_fall(value, name):
    for one in (value, {name: value}):
        try:
            found = envelopes(json.dumps(one).encode() + b"\n")
        except Malformed:
            continue
        raise AssertionError(found)


@given(st.data())
def test_no_change_makes_the_judge_fall_and_none_goes_through(bundle_texts, data):
    """One place of one statement, anywhere, becomes something else."""
    statements = copy.deepcopy(bundle_texts["statements"])
    at: Any = statements[data.draw(st.integers(0, 1))]
    while True:
        key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        inner = at[key]
        if not isinstance(inner, dict | list) or not inner or data.draw(st.booleans()):
            break
        at = inner
    at[key] = data.draw(json_values)
    payloads = [json.dumps(one).encode() for one in statements]
    for text in (payloads, [data.draw(st.binary(max_size=200)), *payloads[1:]]):
        judge(text, **bundle_texts["beside"])  # no exception is the claim; the tables above say what is found


@given(st.binary(max_size=300) | json_values.map(lambda value: json.dumps(value).encode()))
def test_no_verdict_and_no_lock_makes_the_judge_fall(bundle_texts, text):
    payloads = [json.dumps(one).encode() for one in bundle_texts["statements"]]
    for name in ("verdict", "lock"):
        assert judge(payloads, **{**bundle_texts["beside"], name: text}).faults


@pytest.fixture(scope="module")
def bundle_texts(bundle: Bundle) -> dict[str, Any]:
    return {
        "statements": statements_in(bundle.directory),
        "beside": {
            "sums": parse_sums((bundle.directory / "SHA256SUMS").read_text()),
            "verdict": (bundle.directory / "verdict.json").read_bytes(),
            "lock": (bundle.directory / "inputs.lock").read_bytes(),
            "sha512": bundle.artifact.sha512,
        },
    }


# -- bundles of older factories ----------------------------------------------------------------------------------------


def without_statements(place: Place, folder: Path, *, schema: str) -> None:
    (folder / STATEMENTS).unlink()
    text = (folder / "verdict.json").read_text().replace("factory/verdict/2", schema)
    (folder / "verdict.json").write_text(text)
    sums = (folder / "SHA256SUMS").read_text().splitlines(keepends=True)
    (folder / "SHA256SUMS").write_text("".join(one for one in sums if not one.endswith(f"  {STATEMENTS}\n")))
    resign(place, folder)


def test_a_bundle_of_an_older_factory_is_good_and_has_no_provenance(place, copied):
    without_statements(place, copied, schema="factory/verdict/1")
    assert place.verify(copied).evidence is None
    (copied / f"{IMAGE}.asc").unlink()
    assert "has no signature" in refused(place, copied)


def test_a_newer_bundle_without_statements_is_not_good(place, copied):
    without_statements(place, copied, schema="factory/verdict/2")
    assert "lists no statements: this has no provenance" in refused(place, copied)


def test_statements_that_were_taken_away_are_missed(place, copied):
    (copied / STATEMENTS).unlink()
    assert f"{STATEMENTS}: is missing" in refused(place, copied)


# -- one file alone ----------------------------------------------------------------------------------------------------


def test_a_tarball_is_good_by_the_signed_checksums_beside_it(place, copied):
    tarball = copied / "debian13.source.tar.xz"
    (copied / f"{tarball.name}.asc").unlink()
    found = verify_file(tarball, keys=place.keys, now=LATER)
    assert [(one.file, one.fingerprint) for one in found] == [("SHA256SUMS", place.fingerprint)]
    tarball.write_bytes(b"another tarball")
    with pytest.raises(NotGood) as caught:
        verify_file(tarball, keys=place.keys, now=LATER)
    assert "has the SHA-256" in str(caught.value.facts)
    (copied / "other.tar.xz").write_bytes(b"x")
    with pytest.raises(NotGood, match="does not verify"):
        verify_file(copied / "other.tar.xz", keys=place.keys, now=LATER)
