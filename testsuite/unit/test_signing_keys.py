# SPDX-License-Identifier: Apache-2.0
"""Keys that follow one another, with real GnuPG at other times: gaps, overlaps, and who signed on the day after."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from factory.doctor import signing_keys
from factory.errors import InputFault, NotGood, SignError
from factory.installation import Installation
from factory.model import Signing, Site
from factory.sign import sign
from factory.sign.calendar import ending, examine_keys, key_states
from factory.sign.dsse import encoded, envelopes
from factory.sign.keyring import key_dates
from factory.sign.openpgp import own_home
from factory.sign.request import SigningRequest, seal
from factory.sign.verify import verify_signatures
from factory.system.files import sha256_file
from factory.system.state import State
from testsuite import samples
from testsuite.conftest import FACTORY
from testsuite.signing import Place, make_key

pytestmark = pytest.mark.programs

YEARS = (2026, 2027, 2028)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@dataclass(frozen=True)
class Sequence:
    """Three keys, each made a month before its year and living half a year longer."""

    root: Path
    fingerprints: dict[int, str]

    @property
    def keys(self) -> Path:
        return self.root / "keys"

    def place(self, year: int) -> Place:
        return Place(
            state=State(path=self.root / "state").prepare(),
            keys=self.keys,
            gnupg_home=self.root / f"gnupg-{year}",
            fingerprint=self.fingerprints[year],
        )

    def entry(self, year: int, *, begin: str = "", end: str = "") -> str:
        return (
            f'[[key]]\nfingerprint = "{self.fingerprints[year]}"\nuser_id = "Images <images@cloud.example>"\n'
            f"created = {year - 1}-12-01\nin_use_from = {begin or f'{year}-01-01'}\n"
            f'in_use_to = {end or f"{year + 1}-01-01"}\nexpires = {year + 1}-06-01\nfile = "{year}.asc"\n\n'
        )

    def write(self, *entries: str) -> None:
        (self.keys / "keys.toml").write_text("".join(entries or (self.entry(year) for year in YEARS)))

    def write_known(self, now: datetime) -> None:
        """As the file stands at a time: a key that was not made yet cannot be listed."""
        self.write(*(self.entry(year) for year in YEARS if at(f"{year - 1}-12-01") <= now))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Sequence:
    root = tmp_path_factory.mktemp("keys")
    (root / "keys").mkdir()
    fingerprints = {}
    for year in YEARS:
        begin, end = at(f"{year - 1}-12-01"), at(f"{year + 1}-06-01")
        home, public = root / f"gnupg-{year}", root / "keys" / f"{year}.asc"
        fingerprints[year] = make_key(home, public, made=begin, days=(end - begin).days, log=root / "log")
    return Sequence(root=root, fingerprints=fingerprints)


@pytest.fixture
def keys(made: Sequence) -> Iterator[Sequence]:
    """A copy under a short path: gpg-agent has its sockets in the home, and unix(7) allows 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="keys-") as folder:
        shutil.copytree(made.root, folder, dirs_exist_ok=True)
        found = Sequence(root=Path(folder), fingerprints=made.fingerprints)
        found.write()
        yield found


NIGHTS = {
    "the first's first night": ("2026-01-01T02:00", 2026),
    "the first's last night": ("2026-12-31T23:59", 2026),
    "the second's first night": ("2027-01-01T00:00", 2027),
    "the third's": ("2028-07-01T02:00", 2028),
}


@pytest.mark.parametrize("case", NIGHTS)
def test_each_night_is_signed_by_its_key_and_stays_good_for_ever(keys, case):
    text, year = NIGHTS[case]
    now, place = at(text), keys.place(year)
    keys.write_known(now)
    bundle = place.sign(signing=place.signing, now=now)
    assert bundle.fingerprint == keys.fingerprints[year]
    assert bundle.key_ends == at(f"{year + 1}-01-01")
    for seconds, other in enumerate(sorted({*YEARS} - {year}), start=1):
        with pytest.raises(
            SignError, match=r"is not in use|was made in the future|expires too soon|has expired|is not in keys"
        ):
            keys.place(other).sign(signing=keys.place(other).signing, now=now + timedelta(seconds=seconds))
    keys.write()
    found = place.verify(bundle.directory, now=at("2030-01-01"))
    assert {one.fingerprint for one in found.signatures} == {keys.fingerprints[year]}


def test_what_the_old_key_signed_on_the_day_after_is_refused(keys):
    """Its holder goes on without the factory's leave: all is well signed, a day too late."""
    old, late = keys.place(2026), at("2027-01-01T02:00")
    keys.write_known(late)
    good = old.sign(signing=old.signing, now=late - timedelta(days=1))
    keys.write(keys.entry(2026, end="2027-01-02"), keys.entry(2027))
    bad = old.sign(signing=old.signing, now=late)
    assert old.verify(bad.directory, now=late)
    keys.write_known(late)
    assert old.verify(good.directory, now=late)
    with pytest.raises(NotGood) as refused:
        old.verify(bad.directory, now=late)
    faults = dict(refused.value.facts)
    late_words = "was made on 2027-01-01 02:00:00, when the key was not in use (2026-01-01 to 2027-01-01)"
    assert len(refused.value.facts) == 5
    assert all(problem.endswith(late_words) for problem in faults.values())
    assert "the signature of statement 2" in faults["debian13.qcow2.intoto.jsonl"]


def test_a_late_statement_among_timely_signatures_is_refused(keys):
    """The time of each statement's own signature counts."""
    old, late = keys.place(2026), at("2027-01-01T02:00")
    keys.write_known(late)
    bundle = old.sign(signing=old.signing, now=late - timedelta(days=1))
    name = "debian13.qcow2.intoto.jsonl"
    payloads = tuple(one.payload.decode() for one in envelopes((bundle.directory / name).read_bytes()))
    sums = bundle.directory / "SHA256SUMS"
    digests = {line[66:]: line[:64] for line in sums.read_text().splitlines() if not line.endswith(name)}
    request = SigningRequest(run="x", image="debian13.qcow2", digests=digests, statements=payloads, verdict="", lock="")
    with own_home(old.gnupg_home, now=late, log=keys.root / "log") as home:
        sealed = seal(request, home=home, key=home.keys(secret=True)[0], throw_away=False)
    (bundle.directory / name).write_text(sealed.files[name])
    sums.write_text(sealed.files["SHA256SUMS"])
    with own_home(old.gnupg_home, now=late - timedelta(days=1), log=keys.root / "log") as home:
        by = {"fingerprint": keys.fingerprints[2026], "what": "a test"}
        sums.with_name("SHA256SUMS.asc").write_bytes(home.sign_bytes(sums.read_bytes(), **by, armor=True))
    with pytest.raises(NotGood) as refused:
        old.verify(bundle.directory, now=late)
    assert {file for file, _ in refused.value.facts} == {name}


def test_keys_may_overlap_and_either_signs(keys):
    keys.write(keys.entry(2026, end="2027-02-01"), keys.entry(2027))
    now = at("2027-01-15T02:00")
    for seconds, year in enumerate((2026, 2027)):
        place = keys.place(year)
        when = now + timedelta(seconds=seconds)
        bundle = place.sign(signing=place.signing, now=when)
        assert place.verify(bundle.directory, now=when).fingerprint == keys.fingerprints[year]
    assert [one.state for one in key_states(key_dates(keys.keys), now=now)] == ["in use", "in use"]


def test_a_key_within_the_time_of_another_makes_no_gap(keys):
    long = keys.entry(2026, end="2028-01-01").replace("expires = 2027-06-01", "expires = 2028-06-01")
    keys.write(long, keys.entry(2027, begin="2027-02-01", end="2027-03-01"), keys.entry(2028))
    assert len(key_dates(keys.keys)) == 3


def test_a_statement_may_carry_the_signatures_of_two_keys_in_use(keys):
    keys.write(keys.entry(2026, end="2027-02-01"), keys.entry(2027))
    now, (old, new) = at("2027-01-15T02:00"), (keys.place(2026), keys.place(2027))
    folder = old.sign(signing=old.signing, now=now).directory
    path, sums = folder / "debian13.qcow2.intoto.jsonl", folder / "SHA256SUMS"
    with own_home(new.gnupg_home, now=now, log=keys.root / "log") as home:
        first, *others = path.read_text().splitlines(keepends=True)
        envelope = json.loads(first)
        made = home.sign_bytes(
            encoded(base64.b64decode(envelope["payload"])), fingerprint=new.fingerprint, what="a test"
        )
        envelope["signatures"].append({"keyid": new.fingerprint, "sig": base64.b64encode(made).decode()})
        before = sha256_file(path)
        path.write_text("".join([json.dumps(envelope) + "\n", *others]))
        sums.write_text(sums.read_text().replace(before, sha256_file(path)))
        by = {"fingerprint": new.fingerprint, "what": "a test", "armor": True}
        (folder / "SHA256SUMS.asc").write_bytes(home.sign_bytes(sums.read_bytes(), **by))
    found = old.verify(folder, now=now)
    assert [one.fingerprint for one in found.signatures if one.file.endswith(":1")] == [
        old.fingerprint,
        new.fingerprint,
    ]
    keys.write_known(now)  # without the overlap the old one's is too late, and the new one's does not help
    with pytest.raises(NotGood, match="does not verify"):
        old.verify(folder, now=now)


def faults(folder: Path) -> list[str]:
    with pytest.raises(InputFault) as refused:
        key_dates(folder)
    return [str(one).removeprefix(f"{folder}/") for one in refused.value.faults]


def test_a_gap_is_a_fault_with_its_line(keys):
    keys.write(keys.entry(2026), keys.entry(2027, begin="2027-01-03"), keys.entry(2028))
    assert faults(keys.keys) == ["keys.toml:10 key.1: no key is in use from 2027-01-01 to 2027-01-03"]
    with pytest.raises(InputFault, match="1 fault"):
        verify_signatures(keys.keys, keys=keys.keys, now=at("2027-01-01"))


def test_every_gap_is_told_and_with_every_other_fault(keys):
    first, last = keys.entry(2026, end="2026-11-01"), keys.entry(2028, begin="2028-01-02")
    keys.write(last, keys.entry(2027).replace("2027.asc", "gone.asc"), first)  # the order in the file is free
    assert faults(keys.keys) == [
        "keys.toml:10 key.1: file 'gone.asc' is not in keys/",
        "keys.toml:10 key.1: no key is in use from 2026-11-01 to 2027-01-01",
        "keys.toml:1 key.0: no key is in use from 2028-01-01 to 2028-01-02",
    ]


def test_faults_of_form_and_of_dates_are_told_together(keys):
    broken = keys.entry(2027).replace("in_use_from = 2027-01-01", 'in_use_from = "soon"')
    late = keys.entry(2026).replace("created = 2025-12-01", "created = 2026-02-01")
    keys.write(late, broken, keys.entry(2028))
    found = faults(keys.keys)
    assert len(found) == 2  # whether there is a gap, nobody can tell without the second key's dates
    assert found[0].startswith("keys.toml:10 key.1.in_use_from: Input should be")
    assert found[1] == "keys.toml:1 key.0: in_use_from is before created"


NO_GAP = {
    "an expiry ends a key too": (("2026-01-01", "2027-01-01", "2026-12-01"), True),
    "the next one begins on the day": (("2026-01-01", "2027-01-01", "2027-06-01"), False),
    "it ends later than the next begins": (("2026-01-01", "2027-03-01", "2027-06-01"), False),
    "it never ends": (("2026-01-01", "", ""), False),
}


@pytest.mark.parametrize("case", NO_GAP)
def test_what_is_a_gap(keys, case):
    (begin, end, expires), gap = NO_GAP[case]
    entry = f'[[key]]\nfingerprint = "{"A" * 40}"\nuser_id = "x"\ncreated = 2025-01-01\nfile = "2026.asc"\n'
    entry += f"in_use_from = {begin}\n" + (f"in_use_to = {end}\n" if end else "")
    entry += f"expires = {expires}\n" if expires else ""
    follower = entry.replace("A" * 40, "B" * 40).split("in_use_from")[0] + "in_use_from = 2027-01-01\n"
    keys.write(entry, follower)
    if gap:  # in use after it expires is a fault of its own
        assert "no key is in use from 2026-12-01 to 2027-01-01" in "\n".join(faults(keys.keys))
    else:
        assert len(key_dates(keys.keys)) == 2


ENDS = {
    "far from the end": ("2026-06-01", None, False),
    "31 days before": ("2028-11-30", "", False),
    "30 days before, with nothing after it": ("2028-12-02", "signs for 30 days more, until 2029-01-01; no key", False),
    "a successor is there": ("2026-12-20", "follows: name it in the site file", False),
    "after the last": ("2029-02-01", "no key is in use on 2029-02-01", True),
    "before the first": ("2025-12-31", "no key is in use on 2025-12-31", True),
}


@pytest.mark.parametrize("case", ENDS)
def test_people_hear_of_an_end_in_time(keys, case, tmp_path):
    text, expected, grave = ENDS[case]
    dates, now = key_dates(keys.keys), at(text)
    found = ending(dates, now=now)
    assert [one.grave for one in found] == ([grave] if expected else [])
    assert all(expected in one.says for one in found)
    here = Installation(project=keys.root, state=State(path=tmp_path), site=Site(signing=Signing(fingerprint="A" * 40)))
    told = list(signing_keys(here, now))
    assert [(one.ok, one.needed) for one in told] == [(not expected, grave if expected else True)]


def test_the_sign_stage_says_that_its_key_ends_soon(keys):
    place, said = keys.place(2026), []
    now = at("2026-12-10T02:00")
    keys.write_known(now)
    run = place.state.new_run("debian13", now)
    image = samples.artifact(run, built_at=now - timedelta(minutes=10))
    by = {"state": place.state, "signing": place.signing, "keys": place.keys}
    sign(image, samples.verdict(image), run=run, now=now, say=said.append, **by)
    assert [line for line in said if "warning" in line] == [
        "warning: this key signs for 21 days more; see docs/how-to/change-signing-keys.md"
    ]


def test_the_doctor_tells_faults_of_the_file(keys, tmp_path):
    keys.write(keys.entry(2026), keys.entry(2028))
    here = Installation(project=keys.root, state=State(path=tmp_path), site=Site())
    (found,) = signing_keys(here, at("2026-06-01"))
    assert not found.ok
    assert "no key is in use from 2027-01-01 to 2028-01-01" in found.says


def test_keys_are_compared_with_their_files(keys):
    now = at("2028-06-01")
    states, found = examine_keys(keys.keys, now=now)
    assert found == ()
    assert [(one.state, one.days_left) for one in states] == [
        ("retired", None),
        ("retired", None),
        ("in use", 214),
    ]
    assert json.dumps([one.fingerprint for one in states]) == json.dumps([*keys.fingerprints.values()])


SPOILT_FILES = {
    "another key's file": (
        lambda keys: shutil.copy(keys.keys / "2027.asc", keys.keys / "2026.asc"),
        "'2026.asc' holds {2027} instead",
    ),
    "no key": (lambda keys: (keys.keys / "2026.asc").write_text("hello"), "holds no OpenPGP public key"),
    "made on another day": (
        lambda keys: keys.write(
            keys.entry(2026).replace("created = 2025-12-01", "created = 2025-12-02"),
            *(keys.entry(year) for year in YEARS[1:]),
        ),
        "was made on 2025-12-01, not on 2025-12-02",
    ),
    "expires on another day": (
        lambda keys: keys.write(
            keys.entry(2026).replace("expires = 2027-06-01", "expires = 2027-07-01"),
            *(keys.entry(year) for year in YEARS[1:]),
        ),
        "expires 2027-06-01, not 2027-07-01 as listed",
    ),
}


@pytest.mark.parametrize("case", SPOILT_FILES)
def test_a_file_that_is_not_what_the_dates_say_is_a_fault(keys, case):
    spoil, expected = SPOILT_FILES[case]
    spoil(keys)
    _, found = examine_keys(keys.keys, now=at("2028-06-01"))
    assert [(one.fingerprint, one.grave) for one in found] == [(keys.fingerprints[2026], True)]
    assert expected.replace("{2027}", keys.fingerprints[2027]) in found[0].says


def test_the_site_signs_with_a_key_that_is_in_use(keys):
    now = at("2028-06-01")
    for wanted, says in (
        ("A" * 40, "is not listed"),
        (keys.fingerprints[2027].lower(), "is not in use (2027-01-01 to"),
    ):
        _, found = examine_keys(keys.keys, now=now, signing=wanted)
        assert [one.grave for one in found] == [True]
        assert says in found[0].says
    assert examine_keys(keys.keys, now=now, signing=keys.fingerprints[2028])[1] == ()


def test_the_command_tells_what_is_wrong_and_exits_so(keys, tmp_path):
    """Typed, on any day: the file of the first key is none."""
    (keys.root / "descriptions").mkdir()

    def typed(*words: str) -> subprocess.CompletedProcess[str]:
        command = [FACTORY, "--project", keys.root, "--state", tmp_path / "state", "keys", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    listed = typed("list", "--json")
    assert listed.returncode == 0, listed.stderr
    states = json.loads(listed.stdout)["value"]["states"]
    assert [one["fingerprint"] for one in states] == [*keys.fingerprints.values()]
    (keys.keys / "2026.asc").write_text("hello")
    keys.write(keys.entry(2026))
    wrong = typed("check")
    assert wrong.returncode == 1
    assert f"FAULT   {keys.fingerprints[2026]}: " in wrong.stdout
    assert "holds no OpenPGP public key" in wrong.stdout
    keys.write(keys.entry(2026), keys.entry(2028))
    gap = typed("check")
    assert (gap.returncode, "no key is in use from 2027-01-01 to 2028-01-01" in gap.stderr) == (2, True)
