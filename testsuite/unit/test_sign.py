# SPDX-License-Identifier: Apache-2.0
"""Signing and verifying with real GnuPG and throw-away keys; a table of what is refused."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import gnupg
import pytest
from defusedxml import ElementTree
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.errors import FactoryError, InputFault, NotGood, SignError
from factory.model import Check, Outcome, Signing, Verdict
from factory.sign import sign
from factory.sign.checksums import MalformedSums, parse_sums, sums_text
from factory.sign.junit import junit
from factory.sign.keyring import THROW_AWAY_USER_ID, key_dates
from factory.sign.openpgp import Home, own_home, parse_keys, parse_signatures
from factory.sign.verify import verify_signatures
from factory.system.run import run as run_program
from factory.system.state import State
from testsuite import samples
from testsuite.signing import LATER, NIGHT, Place, make_key

pytestmark = pytest.mark.programs

YEAR = timedelta(days=365)


@pytest.fixture(scope="session")
def real_key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GnuPG home with a key made on 2026-01-01 for a year, as a site would have."""
    folder = tmp_path_factory.mktemp("site")
    make_key(
        folder / "gnupg",
        folder / "images.asc",
        made=NIGHT.replace(month=1, day=1, hour=0),
        days=365,
        log=folder / "agent.log",
    )
    return folder


@pytest.fixture
def place(tmp_path: Path, real_key: Path) -> Place:
    keys = tmp_path / "keys"
    keys.mkdir()
    shutil.copy(real_key / "images.asc", keys)
    shutil.copytree(real_key / "gnupg", tmp_path / "gnupg")
    shown = Home(path=tmp_path / "gnupg", now=NIGHT).keys()
    return Place(
        state=State(path=tmp_path / "state").prepare(),
        keys=keys,
        gnupg_home=tmp_path / "gnupg",
        fingerprint=shown[0].fingerprint,
    )


def agents(folder: Path, *, wanted: int) -> list[str]:
    """The gpg-agents that work in ``folder``, directly or through a file descriptor of this process.

    An agent is told to end and not waited for (it is nobody's child), so ``wanted`` may take a moment to come true.
    """
    deadline = time.monotonic() + 2
    while True:
        shown = subprocess.run(["pgrep", "-a", "gpg-agent"], capture_output=True, text=True, check=False).stdout
        found = [line for line in shown.splitlines() if str(folder) in line or f"/proc/{os.getpid()}/" in line]
        if len(found) == wanted or time.monotonic() > deadline:
            return found
        time.sleep(0.02)


# -- the throw-away key ------------------------------------------------------------------------------------------------


def test_a_green_image_becomes_a_bundle_that_verifies(place):
    bundle = place.sign()

    assert bundle.directory == place.state.runs_of("debian13")[0].path / "bundle"
    assert bundle.throw_away_key
    assert set(bundle.files) == {
        "SHA256SUMS",
        "SHA256SUMS.asc",
        "debian13.packages",
        "debian13.qcow2",
        "debian13.qcow2.asc",
        "debian13.qcow2.intoto.jsonl",
        "debian13.source.tar.xz",
        "debian13.source.tar.xz.asc",
        "inputs.lock",
        "throw-away-key.pub",
        "verdict.json",
        "verdict.junit.xml",
    }
    found = place.verify(bundle.directory)
    assert found.fingerprint == bundle.fingerprint
    assert found.throw_away
    assert set(found.files) == {name for name in bundle.files if not name.startswith("SHA256SUMS")} - {
        "debian13.qcow2.asc",
        "debian13.source.tar.xz.asc",
    }
    assert [one.made_at for one in found.signatures] == [LATER] * 5


def test_the_image_is_linked_and_not_copied(place):
    bundle = place.sign()
    assert (bundle.directory / "debian13.qcow2").stat().st_ino == bundle.artifact.path.stat().st_ino


def test_plain_gpg_and_sha256sum_agree(place, tmp_path):
    bundle = place.sign()
    checked = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=bundle.directory, capture_output=True, check=False
    )
    assert checked.returncode == 0
    (tmp_path / "home").mkdir(mode=0o700)
    gpg = [
        "gpg",
        "--homedir",
        str(tmp_path / "home"),
        "--no-autostart",
        "--batch",
        "--faked-system-time",
        "20261122T000000",
    ]
    subprocess.run([*gpg, "--import", "throw-away-key.pub"], cwd=bundle.directory, capture_output=True, check=True)
    shown = subprocess.run(
        [*gpg, "--verify", "SHA256SUMS.asc", "SHA256SUMS"],
        cwd=bundle.directory,
        capture_output=True,
        text=True,
        check=False,
    )
    assert THROW_AWAY_USER_ID in shown.stderr


def test_python_gnupg_finds_a_bundle_good_and_a_changed_file_bad(place, tmp_path):
    bundle = place.sign()
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    stranger = gnupg.GPG(
        gnupghome=str(home),
        options=["--no-autostart", "--faked-system-time", f"{LATER:%Y%m%dT%H%M%S}"],
    )
    key = (bundle.directory / "throw-away-key.pub").read_text()
    assert stranger.import_keys(key).fingerprints == [bundle.fingerprint]
    for name in ("debian13.qcow2", "SHA256SUMS"):
        file, signature = bundle.directory / name, bundle.directory / f"{name}.asc"
        assert stranger.verify_data(str(signature), file.read_bytes()).pubkey_fingerprint == bundle.fingerprint
        assert stranger.verify_data(str(signature), file.read_bytes())
        assert not stranger.verify_data(str(signature), file.read_bytes() + b"x")


def test_the_throw_away_key_is_made_once_private_and_says_what_it_is(place):
    first, second = place.sign(), place.sign(now=LATER + timedelta(days=1))
    home = place.state.keys / "gnupg"
    assert first.fingerprint == second.fingerprint
    assert home.stat().st_mode & 0o777 == 0o700
    key = Home(path=home, now=LATER).keys()[0]
    assert key.user_id == THROW_AWAY_USER_ID
    assert key.expires == LATER + YEAR
    assert [path.name for path in (place.state.keys / "public").iterdir()] == [f"{first.fingerprint}.asc"]
    assert "PRIVATE" not in (place.state.keys / "public" / f"{first.fingerprint}.asc").read_text()


def test_a_throw_away_key_near_its_end_is_replaced_and_old_bundles_stay_good(place):
    old = place.sign()
    later = LATER + YEAR - timedelta(days=5)
    new = place.sign(now=later)
    assert new.fingerprint != old.fingerprint
    assert place.verify(old.directory, now=later + YEAR).fingerprint == old.fingerprint
    assert place.verify(new.directory, now=later).fingerprint == new.fingerprint


def test_half_a_key_from_a_crash_is_not_used(place):
    leftover = place.state.keys / ".gnupg.part"
    leftover.mkdir(parents=True, mode=0o700)
    (leftover / "pubring.kbx").write_bytes(b"half")
    place.sign()
    assert not leftover.exists()


def test_no_agent_and_no_socket_is_left(place):
    place.sign()
    assert not agents(place.state.path, wanted=0)
    assert list((place.state.keys / "gnupg").glob("S.*")) == []


def test_a_long_state_path_is_no_trouble(place, tmp_path):
    deep = replace(place, state=State(path=tmp_path / "long" / ("x" * 120)).prepare())
    bundle = deep.sign()
    assert deep.verify(bundle.directory).fingerprint == bundle.fingerprint


# -- a site's own key --------------------------------------------------------------------------------------------------


def test_a_listed_key_signs_and_its_agent_ends(place):
    place.list_key()
    bundle = place.sign(signing=place.signing)
    assert bundle.fingerprint == place.fingerprint
    assert not bundle.throw_away_key
    assert "throw-away-key.pub" not in bundle.files
    assert not place.verify(bundle.directory).throw_away
    assert not agents(place.gnupg_home, wanted=0)


def test_an_agent_that_was_running_stays(place):
    place.list_key()
    agent = ["gpg-connect-agent", "--homedir", str(place.gnupg_home), "/bye"]
    run_program(agent, timeout_s=20)
    try:
        place.sign(signing=place.signing)
        assert len(agents(place.gnupg_home, wanted=1)) == 1
    finally:
        run_program(["gpgconf", "--homedir", place.gnupg_home, "--kill", "gpg-agent"], timeout_s=20)


def test_a_signature_stays_good_after_its_key_expired(place):
    place.list_key(extra="expires = 2027-01-01\n")
    bundle = place.sign(signing=place.signing)
    found = place.verify(bundle.directory, now=NIGHT + 3 * YEAR)
    assert found.signatures[0].key_expired


REFUSED_KEYS = {
    "not listed": (lambda _: None, LATER, "is not in keys/keys.toml"),
    "not yet in use": (lambda place: place.list_key(in_use_from="2026-12-01"), LATER, "is not in use on 2026-11-21"),
    "no longer in use": (lambda place: place.list_key(extra="in_use_to = 2026-11-21\n"), LATER, "is not in use"),
    "expires in 13 days": (lambda place: place.list_key(), NIGHT.replace(month=12, day=19), "expires too soon"),
    "expired": (lambda place: place.list_key(), NIGHT + YEAR, "has expired"),
    "from the future": (lambda place: place.list_key(in_use_from="2026-01-01"), None, "was made in the future"),
}


@pytest.mark.parametrize("case", REFUSED_KEYS)
def test_a_key_that_does_not_count_signs_nothing(place, case):
    prepare, now, expected = REFUSED_KEYS[case]
    prepare(place)
    if now is None:  # listed as in use, while the key itself was made later
        text = (place.keys / "keys.toml").read_text()
        (place.keys / "keys.toml").write_text(text.replace("2026-01-01", "2025-01-01"))
        now = NIGHT.replace(year=2025)
    with pytest.raises(SignError, match=expected):
        place.sign(signing=place.signing, now=now)
    assert not (place.state.runs_of("debian13")[0].path / "bundle").exists()


def test_another_fingerprint_and_a_missing_home_are_named(place):
    place.list_key()
    with pytest.raises(SignError, match=r"private key A{40} is not in"):
        place.sign(signing=replace(place.signing, fingerprint="A" * 40))
    with pytest.raises(SignError, match="does not say where it is"):
        place.sign(signing=Signing(fingerprint=place.fingerprint), now=LATER + timedelta(seconds=1))
    with pytest.raises(SignError, match="does not exist"):
        place.sign(signing=replace(place.signing, gnupg_home=place.keys / "none"), now=LATER + timedelta(seconds=2))


# -- what is not signed ------------------------------------------------------------------------------------------------


def only_skipped(artifact):
    judged = samples.verdict(artifact)
    return replace(judged, checks=(replace(judged.checks[0], outcome=Outcome.SKIPPED),))


REFUSED_VERDICTS = {
    "red": (lambda made: samples.verdict(made, red=True), "a red image is not signed: 1 of 4"),
    "nothing tested": (lambda made: replace(samples.verdict(made), checks=()), "nothing was tested"),
    "all skipped": (only_skipped, "nothing was tested"),
    "other bytes": (lambda made: replace(samples.verdict(made), artifact_sha256="0" * 64), "about other bytes"),
    "judged before it was built": (
        lambda made: replace(samples.verdict(made), judged_at=made.built_at - timedelta(days=1)),
        "does not fit",
    ),
    "judged in the future": (
        lambda made: replace(samples.verdict(made), judged_at=made.built_at + timedelta(days=1)),
        "does not fit",
    ),
}


@pytest.mark.parametrize("case", REFUSED_VERDICTS)
def test_an_image_without_a_good_verdict_is_refused(place, case):
    verdict, expected = REFUSED_VERDICTS[case]
    with pytest.raises(NotGood, match=expected):
        place.sign(verdict=verdict)
    assert not (place.state.runs_of("debian13")[0].path / "bundle").exists()


def test_a_stale_verdict_is_refused(place):
    run = place.state.new_run("debian13", NIGHT)
    made = samples.artifact(run)
    with pytest.raises(NotGood, match="is stale: 8 days old"):
        sign(
            made,
            samples.verdict(made),
            run=run,
            state=place.state,
            signing=Signing(),
            keys=place.keys,
            now=NIGHT + timedelta(days=8, minutes=6),
            say=print,
        )


@pytest.mark.parametrize("which", ["path", "tarball", "lock"])
def test_a_file_that_changed_after_the_build_is_not_signed(place, which):
    def spoil(artifact):
        with getattr(artifact, which).open("r+b") as file:
            file.write(b"X")

    with pytest.raises(FactoryError, match="is not the file that was recorded"):
        place.sign(spoil=spoil)


# -- what does not verify ----------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    body = bytearray(path.read_bytes())
    body[3] ^= 1
    path.write_bytes(body)


SPOILT = {
    "one bit of the image": (lambda at: flip(at / "debian13.qcow2"), "debian13.qcow2: has the SHA-256"),
    "image cut short": (lambda at: os.truncate(at / "debian13.qcow2", 5), "debian13.qcow2: has the SHA-256"),
    "image missing": (lambda at: (at / "debian13.qcow2").unlink(), "debian13.qcow2: is missing"),
    "image a link": (
        lambda at: ((at / "debian13.qcow2").unlink(), (at / "debian13.qcow2").symlink_to("/etc/hostname")),
        "debian13.qcow2: is not a plain file",
    ),
    "packages changed": (lambda at: flip(at / "debian13.packages"), "debian13.packages: has the SHA-256"),
    "lock missing": (lambda at: (at / "inputs.lock").unlink(), "inputs.lock: is missing"),
    "extra file": (lambda at: (at / "extra.sh").write_text("rm"), "extra.sh: is not listed"),
    "very many extra files": (
        lambda at: [(at / f"extra{number:03}").write_text("") for number in range(130)],
        "more: 30 faults are not shown",
    ),
    "extra folder": (lambda at: (at / "extra").mkdir(), "extra: is not listed"),
    "hostile name": (lambda at: (at / "a\x1b[2Jb").write_text(""), r"a\\x1b\[2Jb: is not listed"),
    "sums changed": (
        lambda at: (at / "SHA256SUMS").write_text((at / "SHA256SUMS").read_text().replace("a", "b")),
        "SHA256SUMS.asc: does not match",
    ),
    "sums missing": (lambda at: (at / "SHA256SUMS").unlink(), "SHA256SUMS: is missing"),
    "sums not sums": (lambda at: (at / "SHA256SUMS").write_text("hello\n"), "SHA256SUMS: is malformed: line 1"),
    "sums name a path": (
        lambda at: (at / "SHA256SUMS").write_text(f"{'0' * 64}  ../../etc/passwd\n"),
        "not a file of this folder",
    ),
    "sums unsigned": (lambda at: (at / "SHA256SUMS.asc").unlink(), "has no signature 'SHA256SUMS.asc'"),
    "image unsigned": (lambda at: (at / "debian13.qcow2.asc").unlink(), "has no signature 'debian13.qcow2.asc'"),
    "tarball unsigned": (lambda at: (at / "debian13.source.tar.xz.asc").unlink(), "has no signature"),
    "signature empty": (lambda at: (at / "SHA256SUMS.asc").write_text(""), "SHA256SUMS.asc: holds no signature"),
    "signature garbage": (lambda at: (at / "SHA256SUMS.asc").write_bytes(b"\x88\x00junk"), "cannot be checked"),
    "signature of another file": (
        lambda at: (at / "debian13.qcow2.asc").write_bytes((at / "SHA256SUMS.asc").read_bytes()),
        "debian13.qcow2.asc: does not match",
    ),
}


@pytest.fixture(scope="module")
def good_bundle(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("good")
    keys = root / "keys"
    keys.mkdir()
    place = Place(state=State(path=root / "state").prepare(), keys=keys, gnupg_home=root, fingerprint="")
    return place, place.sign()


@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_bundle_does_not_verify(good_bundle, tmp_path, case):
    place, bundle = good_bundle
    copy = tmp_path / "bundle"
    shutil.copytree(bundle.directory, copy)
    assert place.verify(copy).fingerprint == bundle.fingerprint
    spoil, expected = SPOILT[case]
    spoil(copy)
    with pytest.raises(NotGood) as refused:
        place.verify(copy)
    assert refused.value.exit_code == 1
    assert re.search(expected, "\n".join(f"{a}: {b}" for a, b in refused.value.facts))


def test_an_index_page_beside_the_files_is_tolerated_and_named(good_bundle, tmp_path):
    place, bundle = good_bundle
    shutil.copytree(bundle.directory, tmp_path / "dist")
    (tmp_path / "dist" / "index.html").write_text("<p>")
    assert place.verify(tmp_path / "dist").unsigned == ("index.html",)


def test_a_signature_by_another_key_is_refused(place, tmp_path):
    bundle = place.sign()
    public = tmp_path / "other.asc"
    make_key(tmp_path / "other", public, made=NIGHT, days=30, log=tmp_path / "log")
    with pytest.raises(NotGood) as refused:
        place.verify(bundle.directory, public_keys=(public,))
    assert bundle.fingerprint in refused.value.facts[0][1]
    assert "not among the keys given" in refused.value.facts[0][1]


WHEN_KEYS_CHANGED = {
    "moved before its time in use": ("2026-12-01", "", "was not in use (2026-12-01 to now)"),
    "moved after its time in use": ("2026-01-01", "in_use_to = 2026-11-21\n", "was not in use"),
}


@pytest.mark.parametrize("case", WHEN_KEYS_CHANGED)
def test_a_signature_outside_the_keys_time_in_use_is_refused(place, case):
    in_use_from, extra, expected = WHEN_KEYS_CHANGED[case]
    place.list_key()
    bundle = place.sign(signing=place.signing)
    place.list_key(in_use_from=in_use_from, extra=extra)
    with pytest.raises(NotGood) as refused:
        place.verify(bundle.directory)
    assert all(expected in problem for _, problem in refused.value.facts)


def test_a_signature_made_after_the_key_expired_is_refused(place):
    """An old key's holder signs on with a clock that is set back for gpg, then the dates tell."""
    place.list_key()
    bundle = place.sign(signing=place.signing)
    with own_home(place.gnupg_home, now=NIGHT, log=place.keys.parent / "log") as home:
        (bundle.directory / "SHA256SUMS.asc").unlink()
        home.sign(bundle.directory / "SHA256SUMS", bundle.directory / "SHA256SUMS.asc", fingerprint=place.fingerprint)
        shortened = home.gpg("--quick-set-expire", place.fingerprint, "20261120T000000", check=False)
        assert shortened.returncode == 0
        (place.keys / "images.asc").write_text(home.export(place.fingerprint))
    with pytest.raises(NotGood, match="does not verify") as refused:
        place.verify(bundle.directory)
    assert "when the key was not valid (2026-01-01 to 2026-11-20)" in refused.value.facts[0][1]


def test_a_revoked_key_is_refused(place):
    place.list_key()
    bundle = place.sign(signing=place.signing)
    certificate = next((place.gnupg_home / "openpgp-revocs.d").glob("*.rev")).read_text()
    with own_home(place.gnupg_home, now=LATER, log=place.keys.parent / "log") as home:
        home.gpg("--import", stdin=certificate.replace(":-----BEGIN", "-----BEGIN").encode())
        (place.keys / "images.asc").write_text(home.export(place.fingerprint))
    with pytest.raises(NotGood) as refused:
        place.verify(bundle.directory)
    assert "is revoked" in refused.value.facts[0][1]


def test_nothing_to_verify_with_is_a_usage_error(place, tmp_path):
    bundle = place.sign()
    with pytest.raises(InputFault, match="no public key to verify with"):
        verify_signatures(bundle.directory, keys=place.keys, now=LATER)
    with pytest.raises(InputFault, match="no folder"):
        place.verify(tmp_path / "none")
    with pytest.raises(InputFault, match="no public key file"):
        place.verify(bundle.directory, public_keys=(tmp_path / "none.asc",))
    (tmp_path / "not-a-key").write_text("hello")
    with pytest.raises(SignError, match="holds no OpenPGP public key"):
        place.verify(bundle.directory, public_keys=(tmp_path / "not-a-key",))


def test_a_private_key_is_not_taken_for_a_public_one(place, tmp_path):
    (tmp_path / "secret.asc").write_text("-----BEGIN PGP PRIVATE KEY BLOCK-----\n")
    with pytest.raises(SignError, match="holds a private key"):
        place.verify(place.sign().directory, public_keys=(tmp_path / "secret.asc",))


# -- files -------------------------------------------------------------------------------------------------------------

FINGERPRINT = "0123456789ABCDEF0123456789ABCDEF01234567"
GOOD_ENTRY = f"""[[key]]
fingerprint = "{FINGERPRINT}"
user_id = "Images"
created = 2026-01-01
in_use_from = 2026-01-02
file = "images.asc"
"""
FAULTY_KEYS = {
    "short id": (GOOD_ENTRY.replace(FINGERPRINT, FINGERPRINT[-8:]), [":1 key.0.fingerprint: is not a full"]),
    "unknown key": (GOOD_ENTRY + 'colour = "red"\n', [":1 key.0.colour: Extra inputs"]),
    "unknown table": (GOOD_ENTRY + "[other]\n", [" other: Extra inputs"]),
    "a text for a date": (GOOD_ENTRY.replace("2026-01-01", '"yesterday"'), ["key.0.created: Input should be"]),
    "missing file": (GOOD_ENTRY.replace("images.asc", "gone.asc"), ["'gone.asc' is not in keys/"]),
    "file elsewhere": (GOOD_ENTRY.replace("images.asc", "../x.asc"), ["is not a plain name"]),
    "twice, and in use before made": (
        GOOD_ENTRY + GOOD_ENTRY.replace("2026-01-02", "2025-01-02"),
        [":7 key.1: the key", ":7 key.1: in_use_from is before created"],
    ),
    "ends before it starts": (GOOD_ENTRY + "in_use_to = 2026-01-02\n", ["in_use_to is not after in_use_from"]),
    "used after expiry": (
        GOOD_ENTRY + "in_use_to = 2027-01-01\nexpires = 2026-12-31\n",
        ["in use after it expires"],
    ),
    "not TOML": ("[[key]\n", ["line 1"]),
}


@pytest.mark.parametrize("case", FAULTY_KEYS)
def test_faults_of_keys_toml_are_told_with_their_place(tmp_path, case):
    text, expected = FAULTY_KEYS[case]
    (tmp_path / "images.asc").write_text("")
    (tmp_path / "keys.toml").write_text(text)
    with pytest.raises(InputFault) as refused:
        key_dates(tmp_path)
    told = [str(fault) for fault in refused.value.faults]
    assert len(told) == len(expected)
    assert all(wanted in line for wanted, line in zip(expected, told, strict=True))


def test_the_repositorys_own_keys_toml_is_good():
    assert key_dates(Path(__file__).parents[2] / "keys") == ()


def test_a_fingerprint_may_be_written_in_groups(tmp_path):
    (tmp_path / "images.asc").write_text("")
    grouped = " ".join(FINGERPRINT[at : at + 4].lower() for at in range(0, 40, 4))
    (tmp_path / "keys.toml").write_text(GOOD_ENTRY.replace(FINGERPRINT, grouped))
    assert key_dates(tmp_path)[0].fingerprint == FINGERPRINT


NAMES = st.text(st.characters(categories=("L", "N", "P")), min_size=1).filter(
    lambda name: "/" not in name and "\\" not in name and name not in {".", ".."} and name[0] not in " *"
)


@settings(deadline=None)
@given(st.dictionaries(NAMES, st.text("0123456789abcdef", min_size=64, max_size=64), min_size=1))
def test_sums_read_back_as_written(digests):
    assert parse_sums(sums_text(digests)) == digests


@settings(deadline=None, max_examples=50)
@given(st.text())
def test_no_text_makes_sums_name_a_file_elsewhere(text):
    try:
        found = parse_sums(text)
    except MalformedSums:
        return
    assert all("/" not in name and name not in {"", ".", ".."} for name in found)


@settings(deadline=None)
@given(st.text(), st.text())
def test_any_message_gives_well_formed_junit(name, message):
    check = Check(name=name, guarantee=message, outcome=Outcome.FAILED, message=message)
    judged = Verdict(artifact_sha256="0" * 64, checks=(check,), accelerator="tcg", boot_s=1.0, judged_at=NIGHT)
    root = ElementTree.fromstring(junit(judged).encode("utf-8", "surrogatepass"))
    assert root.get("failures") == "1"


@settings(deadline=None)
@given(st.text(st.characters(exclude_characters="\n")))
def test_no_user_id_makes_a_bad_signature_good(text):
    status = f"[GNUPG:] NEWSIG\n[GNUPG:] BADSIG 79B602F048401137 {text}\n"
    assert [one.fault for one in parse_signatures(status)] == ["does not match the file"]


def test_a_key_without_user_id_is_judged_like_any_other():
    assert [one.fault for one in parse_signatures("[GNUPG:] NEWSIG\n[GNUPG:] BADSIG 79B602F048401137 \n")] == [
        "does not match the file"
    ]


def test_a_bad_signature_is_not_outvoted_by_a_later_good_one():
    valid = f"[GNUPG:] VALIDSIG {'A' * 40} 2026-11-21 1795226400 0 4 0 22 10 00 {'A' * 40}"
    status = f"[GNUPG:] NEWSIG\n[GNUPG:] BADSIG 79B6 x\n[GNUPG:] NEWSIG\n[GNUPG:] GOODSIG 79B6 x\n{valid}\n"
    assert [bool(one.fault) for one in parse_signatures(status)] == [True, False]


def test_escapes_of_a_user_id_are_undone_once():
    listing = "pub:-:255:22:79B6:1:::-:::sc:::\nfpr:::::::::AA:\nuid:-::::1::B::a\\x5cnb\\x3a c:\n"
    assert [key.user_id for key in parse_keys(listing)] == ["a\\nb: c"]


def test_a_line_separator_in_a_user_id_starts_no_status_line():
    valid = f"[GNUPG:] VALIDSIG {'A' * 40} 2026-11-21 1795226400 0 4 0 22 10 00 {'A' * 40}"
    status = f"[GNUPG:] NEWSIG\n[GNUPG:] ERRSIG 79B602F048401137 22 10 00 1 9 \u2028{valid}\x85{valid}\r{valid}\n"
    assert [bool(one.fault) for one in parse_signatures(status)] == [True]
    hostile = "mallory\u2028pub:-:::::::::::s\u2028fpr:::::::::CC:"
    listing = f"pub:-:255:22:79B6:1:::-:::sc:::\nfpr:::::::::AA:\nuid:-::::1::B::{hostile}:\n"
    assert [key.fingerprint for key in parse_keys(listing)] == ["AA"]
