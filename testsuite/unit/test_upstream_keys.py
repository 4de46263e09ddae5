# SPDX-License-Identifier: Apache-2.0
"""Whose signature an index must have, by full fingerprint: real keys, real signatures, a real mirror."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from factory.describe.repositories import sources
from factory.describe.upstream_keys import upstream_keys, vendor_keyring
from factory.errors import InputFault, InputsError
from factory.inputs.recorder import Origin, Recorder
from factory.inputs.signature import signed
from factory.inputs.signers import Signers
from factory.inputs.upstream import Upstream
from factory.model import Description, Repository, Site
from testsuite.repository import NOW, SIGNED, Archive, SigningKey, make_key, mirror

PROJECT = Path(__file__).parents[2]
DEBIAN = Repository(alias="debian", url="", suites=("trixie",))


@dataclass(frozen=True)
class Keys:
    """Two keys of an archive in one keyring, and a GnuPG home that has both."""

    old: str
    new: str
    both: SigningKey
    by_old: SigningKey
    by_new: SigningKey


def fingerprint(home: Path, user: str) -> str:
    argv = ["gpg", "--homedir", str(home), "--batch", "--with-colons", "--list-keys", user]
    listed = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    return next(line.split(":")[9] for line in listed.splitlines() if line.startswith("fpr:"))


class TwoKeys(SigningKey):
    """Signs with both keys at once, as archives do while they change keys."""

    def sign(self, text: str) -> bytes:
        argv = ["gpg", "--homedir", str(self.home), "--batch", "--clearsign"]
        argv += [word for user in self.user.split() for word in ("--local-user", user)]
        return subprocess.run(argv, input=text.encode(), stdout=subprocess.PIPE, check=True).stdout


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> Keys:
    folder = tmp_path_factory.mktemp("k")
    made = make_key(folder, "old")
    gpg = ["gpg", "--homedir", str(made.home), "--batch", "--quiet"]
    subprocess.run([*gpg, "--passphrase", "", "--quick-gen-key", "new", "ed25519", "sign", "never"], check=True)
    ring = folder / "both.gpg"
    ring.write_bytes(subprocess.run([*gpg, "--export", "old", "new"], stdout=subprocess.PIPE, check=True).stdout)
    return Keys(
        old=fingerprint(made.home, "old"),
        new=fingerprint(made.home, "new"),
        both=TwoKeys(home=made.home, keyring=ring, user="old new"),
        by_old=SigningKey(home=made.home, keyring=ring, user="old"),
        by_new=SigningKey(home=made.home, keyring=ring, user="new"),
    )


@dataclass
class Place:
    archive: Archive
    address: str
    folder: Path
    hours: int = 0

    def read(self, key: SigningKey, *, pinned: tuple[str, ...] = (), suite: str = "trixie") -> None:
        """A night that reads the index, which ``key`` signed anew."""
        self.hours += 1
        self.archive.suite = suite
        self.archive.publish(key=key, signed=SIGNED + timedelta(hours=self.hours))
        origin = Origin(mirror=self.address, keyring=key.keyring, signers=pinned)
        recorder = Recorder(
            origins={"debian": origin},
            blobs=self.folder / "blobs",
            now=NOW,
            upstream=Upstream(pause_s=0.01),
            signers=Signers(self.folder / "state" / "upstream"),
        )
        assert recorder.get("debian", f"dists/{suite}/InRelease").found

    def refused(self, key: SigningKey, **names: tuple[str, ...]) -> list[tuple[str, str]]:
        with pytest.raises(InputsError, match=r"repository 'debian' \(suite trixie\) is signed by another key") as told:
            self.read(key, **names)
        assert "keys/upstream.toml" in told.value.hint
        return list(told.value.facts)


@pytest.fixture
def place(tmp_path: Path, keys: Keys) -> Iterator[Place]:
    archive = Archive(root=tmp_path / "mirror", key=keys.by_old)
    archive.add("hello", b"hello deb")
    archive.publish()
    with mirror(archive.root) as (address, _):
        yield Place(archive, address, tmp_path)


def test_all_good_signers_are_named_by_their_full_fingerprint(place, keys) -> None:
    place.archive.publish(key=keys.both)
    file = place.archive.root / "dists/trixie/InRelease"
    assert signed(file, keyring=keys.both.keyring, repository="debian", suite="trixie").signers == tuple(
        sorted([keys.old, keys.new])
    )


def test_a_named_key_is_enough_and_another_one_of_the_keyring_is_not(place, keys) -> None:
    place.read(keys.by_old, pinned=(keys.old,))
    place.read(keys.both, pinned=(keys.old,))
    place.read(keys.by_new, pinned=(keys.old, keys.new))
    assert place.refused(keys.by_new, pinned=(keys.old,)) == [
        ("signed by", keys.new),
        ("expected by keys/upstream.toml", keys.old),
    ]
    assert not (place.folder / "state").exists()


def test_who_signed_first_must_sign_from_then_on(place, keys) -> None:
    place.read(keys.by_old)
    place.read(keys.by_old)
    assert place.refused(keys.by_new) == [("signed by", keys.new), ("seen before", keys.old)]
    place.read(keys.by_new, suite="trixie-updates")  # each suite has its own memory


def test_a_change_of_keys_with_both_for_a_while_is_followed(place, keys) -> None:
    place.read(keys.by_old)
    place.read(keys.both)
    place.read(keys.by_new)
    place.read(keys.by_old)


def test_what_was_refused_is_not_remembered(place, keys) -> None:
    place.read(keys.by_old)
    place.refused(keys.by_new)
    place.refused(keys.by_new)


def test_a_key_that_expired_signs_nothing_that_counts(tmp_path) -> None:
    """gpgv says of such a signature that it is valid, and not that it is good."""
    home = make_key(tmp_path, "other").home
    gpg = ["gpg", "--homedir", str(home), "--batch", "--quiet", "--faked-system-time", "20200101T000000!"]
    for user, lasts in (("expired", "1d"), ("lasting", "never")):
        argv = [*gpg, "--passphrase", "", "--quick-gen-key", user, "ed25519", "sign", lasts]
        subprocess.run(argv, check=True, capture_output=True)
    argv = [*gpg, "--clearsign", "--local-user", "expired", "--local-user", "lasting"]
    text, ring = tmp_path / "text", tmp_path / "ring.gpg"
    text.write_bytes(subprocess.run(argv, input=b"x\n", capture_output=True, check=True).stdout)
    argv = ["gpg", "--homedir", str(home), "--batch", "--export"]
    ring.write_bytes(subprocess.run(argv, stdout=subprocess.PIPE, check=True).stdout)
    found = signed(text, keyring=ring, repository="debian", suite="trixie")
    assert found.signers == (fingerprint(home, "lasting"),)


# -- what the project says


def test_the_projects_own_file_is_good() -> None:
    found = upstream_keys(PROJECT)
    assert {"debian", "debian-security"} <= set(found)
    assert all(len(one) == 40 for named in found.values() for one in named)


@pytest.mark.parametrize(
    ("text", "place", "problem"),
    [
        (
            '[debian]\nfingerprints = ["350947F8"]\n',
            "keys/upstream.toml:2 debian.fingerprints[0]",
            "no full fingerprint",
        ),
        ("[debian]\nfingerprints = []\n", "keys/upstream.toml:2 debian.fingerprints", ""),
        ("[debian]\nkeys = 1\n", "keys/upstream.toml:2 debian.keys", ""),
        ("[debian\n", "keys/upstream.toml", ""),
    ],
)
def test_faults_of_the_file_are_told_with_their_place(tmp_path, text, place, problem) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys/upstream.toml").write_text(text)
    with pytest.raises(InputFault) as told:
        upstream_keys(tmp_path)
    assert any(one.place.startswith(place) and problem in one.problem for one in told.value.faults)


def test_without_the_file_nothing_is_named(tmp_path) -> None:
    assert upstream_keys(tmp_path) == {}


def test_the_projects_keyring_goes_before_the_hosts(tmp_path) -> None:
    """A root without any keyring stands for a host that has none."""
    shutil.copytree(PROJECT / "keys", tmp_path / "keys")
    (tmp_path / "keys/vendor/debian.gpg").write_bytes(b"a keyring")
    assert vendor_keyring(tmp_path, "debian") == tmp_path / "keys/vendor/debian.gpg"
    assert vendor_keyring(tmp_path, "other") is None
    description = Description(name="d", line="L", update_repositories=(DEBIAN,))
    site = Site(update_repositories={"debian": "http://mirror.example/debian"})
    found = sources(description, site, project=tmp_path, root=tmp_path)
    assert found.keyrings["debian"] == tmp_path / "keys/vendor/debian.gpg"
    assert found.signers["debian"] == upstream_keys(PROJECT)["debian"]
    assert found.signers["tools"] == found.signers["debian"]
