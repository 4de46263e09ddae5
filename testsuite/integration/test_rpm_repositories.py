# SPDX-License-Identifier: Apache-2.0
"""rpm-md repositories as inputs: made by the real programs, recorded, and replayed for zypper and dnf."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from factory.errors import InputsError
from factory.inputs.lock import Input, read_lock, write_lock
from factory.inputs.recorder import Origin
from factory.inputs.rpm import RpmRecorder, RpmReplay
from factory.inputs.rpm_md import KEY, REPOMD, SIGNATURE
from factory.inputs.server import serve
from factory.inputs.signers import Signers
from factory.inputs.sources import BlobFolder
from factory.inputs.upstream import Upstream
from factory.model import Repository
from factory.region.certificates import issue
from factory.system.clock import now
from factory.system.secrets import Login
from testsuite.repository import SigningKey, mirror
from testsuite.unit.test_upstream_keys import fingerprint
from testsuite.unit.test_vendor_mirrors import PASSWORD, USER, guarded

IN_CI = os.environ.get("CI") == "true"
PROGRAMS = ("rpmbuild", "rpmsign", "createrepo_c", "gpg", "gpgv", "zstd")
VENDOR = Repository(alias="vendor", url="", suites=())
SPEC = """\
Name: {name}
Version: 1.0
Release: 1
Epoch: 1
Summary: A package
License: Apache-2.0
BuildArch: noarch
{more}
%description
A package.
%install
mkdir -p %{{buildroot}}/usr/share/{name}
echo {name} > %{{buildroot}}/usr/share/{name}/word
%files
/usr/share/{name}
"""


@pytest.fixture(scope="module", autouse=True)
def _programs() -> None:
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing and not IN_CI:
        pytest.skip(f"not installed: {', '.join(missing)}")
    assert not missing


def call(*argv: str | Path, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "HOME": str(cwd)}
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False, env=env, timeout=100)
    assert done.returncode == 0 or not check, done.stdout + done.stderr
    return done


@dataclass(frozen=True)
class RpmKey(SigningKey):
    """A vendor's key: RSA, which every rpm knows."""

    def sign_packages(self, *packages: Path) -> None:
        macros = {"_gpg_name": self.user, "_gpg_path": self.home, "__gpg": shutil.which("gpg")}
        options = [word for name, text in macros.items() for word in ("--define", f"{name} {text}")]
        call("rpmsign", *options, "--addsign", *packages, cwd=packages[0].parent)

    def sign_repomd(self, root: Path) -> None:
        (root / SIGNATURE).unlink(missing_ok=True)
        gpg = ["gpg", "--homedir", self.home, "--batch", "--local-user", self.user]
        call(*gpg, "--armor", "--detach-sign", "--output", root / SIGNATURE, root / REPOMD, cwd=root)


def rpm_key(folder: Path, user: str, homes: Path) -> RpmKey:
    home = homes / user
    home.mkdir(mode=0o700)
    gpg = ["gpg", "--homedir", str(home), "--batch", "--quiet"]
    subprocess.run([*gpg, "--passphrase", "", "--quick-gen-key", user, "rsa2048", "sign", "never"], check=True)
    keyring = folder / f"{user}.gpg"
    keyring.write_bytes(subprocess.run([*gpg, "--export", user], stdout=subprocess.PIPE, check=True).stdout)
    return RpmKey(home=home, keyring=keyring, user=user)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RpmKey]:
    folder, homes = tmp_path_factory.mktemp("k"), tmp_path_factory.mktemp("g")
    made = {user: rpm_key(folder, user, homes) for user in ("vendor", "stranger")}
    both = folder / "both.gpg"
    both.write_bytes(b"".join(one.keyring.read_bytes() for one in made.values()))
    return {user: RpmKey(home=one.home, keyring=both, user=user) for user, one in made.items()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, keys: dict[str, RpmKey]) -> Path:
    """A signed repository with two packages."""
    folder = tmp_path_factory.mktemp("rpm")
    for name, more in (("tool", "Requires: tool-library"), ("tool-library", "")):
        spec = folder / f"{name}.spec"
        spec.write_text(SPEC.format(name=name, more=more))
        places = {"_topdir": folder / "top", "_rpmdir": folder / "repository", "_dbpath": folder / "db"}
        options = [word for macro, path in places.items() for word in ("--define", f"{macro} {path}")]
        call("rpmbuild", "-bb", *options, spec, cwd=folder)
    keys["vendor"].sign_packages(*(folder / "repository").rglob("*.rpm"))
    index(folder / "repository", keys["vendor"])
    return folder / "repository"


def index(root: Path, key: RpmKey, *options: str) -> None:
    call("createrepo_c", "--quiet", "--no-database", *options, ".", cwd=root)
    key.sign_repomd(root)


@dataclass
class Place:
    """A mirror of the vendor, and a factory's store."""

    root: Path
    folder: Path
    address: str
    keys: dict[str, RpmKey]
    asked: list[str] = field(default_factory=list)

    def recorder(self, *, pinned: bool = True, login: Login | None = None) -> RpmRecorder:
        key = self.keys["vendor"]
        pins = (fingerprint(key.home, key.user),) if pinned else ()
        return RpmRecorder(
            origins={"vendor": Origin(mirror=self.address, keyring=key.keyring, signers=pins)},
            blobs=self.folder / "blobs",
            now=now(),
            upstream=Upstream(pause_s=0.01, attempts=1, logins={self.address: login} if login else {}),
            signers=Signers(self.folder / "signers"),
        )

    def replay(self, lock: tuple[Input, ...], name: str = "scratch") -> RpmReplay:
        return RpmReplay(
            lock=lock,
            keyrings={"vendor": self.keys["vendor"].keyring},
            blobs=self.folder / name,
            sources=(BlobFolder(self.folder / "blobs"),),
            epoch=int(now().timestamp()),
        )

    def package(self, name: str) -> str:
        (path,) = self.root.rglob(f"{name}-1.0-1.*.rpm")
        return str(path.relative_to(self.root))


@pytest.fixture
def place(built: Path, keys: dict[str, RpmKey], tmp_path: Path) -> Iterator[Place]:
    root = tmp_path / "mirror"
    shutil.copytree(built, root)
    with mirror(root) as (address, asked):
        yield Place(root, tmp_path, address, keys, asked)


@pytest.mark.parametrize("packing", ["zstd", "gz", "xz"])
def test_packages_are_known_by_the_signed_index_alone(place: Place, packing: str) -> None:
    shutil.rmtree(place.root / "repodata")
    index(place.root, place.keys["vendor"], f"--general-compress-type={packing.replace('zstd', 'gz')}")
    if packing == "zstd":
        repack(place)
    recorder = place.recorder()
    recorder.read_indexes((VENDOR,))
    ending = {"zstd": ".zst"}.get(packing, f".{packing}")
    packages = recorder.packages("vendor")
    assert any(one.path.endswith(f"primary.xml{ending}") for one in recorder.inputs)
    assert {(one.name, one.evr, one.made_of) for one in packages.values()} == {
        ("tool", "1:1.0-1", ("tool", "1.0-1")),
        ("tool-library", "1:1.0-1", ("tool-library", "1.0-1")),
    }
    (offer,) = recorder.offers(["tool"], ["vendor"])
    assert (offer.path, offer.version) == (place.package("tool"), "1:1.0-1")
    answer = recorder.get("vendor", offer.path)
    assert recorder.store.path(answer.sha512).read_bytes() == (place.root / offer.path).read_bytes()
    assert recorder.epoch == max(int(float(text)) for text in _times((place.root / REPOMD).read_text())), (
        "the newest time that was signed"
    )
    assert {one.path for one in recorder.inputs if "repomd" in one.path} == {REPOMD, SIGNATURE}
    assert not list((place.folder / "blobs").glob(".incoming-*"))


def repack(place: Place) -> None:
    """As newer versions of createrepo_c pack the list of packages."""
    (old,) = (place.root / "repodata").glob("*primary.xml.gz")
    packed = subprocess.run(["zstd", "-c"], input=gzip.decompress(old.read_bytes()), capture_output=True, check=True)
    digests = [hashlib.sha256(content).hexdigest() for content in (old.read_bytes(), packed.stdout)]
    (old.parent / f"{digests[1]}-primary.xml.zst").write_bytes(packed.stdout)
    old.unlink()
    text = (place.root / REPOMD).read_text().replace(*digests).replace("primary.xml.gz", "primary.xml.zst")
    (place.root / REPOMD).write_text(text)
    place.keys["vendor"].sign_repomd(place.root)


def _times(text: str) -> list[str]:
    words = text.replace("revision>", "timestamp>").split("timestamp>")
    return [one.removesuffix("</") for one in words[1::2]]


def test_what_was_recorded_is_asked_for_on_condition_and_packages_never_again(place: Place) -> None:
    first = place.recorder()
    first.get("vendor", place.package("tool"))
    place.asked.clear()
    old = (place.root / REPOMD).stat().st_mtime - 3600
    for path in (REPOMD, SIGNATURE):
        os.utime(place.root / path, (old, old))
    for _ in range(2):
        again = place.recorder()
        again.get("vendor", place.package("tool"))
        assert again.inputs == first.inputs
    assert place.asked[2:] == [f"/{REPOMD} -> 304", f"/{SIGNATURE} -> 304"]


def tampered(place: Place) -> None:
    text = (place.root / REPOMD).read_text()
    (place.root / REPOMD).write_text(text.replace("<revision>", "<revision>1"))


def unsigned(place: Place) -> None:
    (place.root / SIGNATURE).unlink()


def of_a_stranger(place: Place) -> None:
    place.keys["stranger"].sign_repomd(place.root)


def other_list(place: Place) -> None:
    (path,) = (place.root / "repodata").glob("*primary.xml*")
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def other_package(place: Place) -> None:
    path = place.root / place.package("tool")
    path.write_bytes(path.read_bytes()[:-1] + b"x")


BAD: dict[str, tuple[Callable[[Place], None], str]] = {
    "tampered": (tampered, "signature of repository 'vendor' is not good"),
    "unsigned": (unsigned, "repository 'vendor' is not signed"),
    "of a stranger": (of_a_stranger, "is signed by another key"),
    "another list": (other_list, "serves another '.*primary.xml.*' than it signed"),
    "another package": (other_package, r"serves another 'tool-1\.0-1\.noarch\.rpm' than it signed"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_the_vendor_did_not_sign_is_refused_by_name(place: Place, case: str) -> None:
    spoil, says = BAD[case]
    spoil(place)
    recorder = place.recorder()
    with pytest.raises(InputsError, match=says) as told:
        recorder.get("vendor", place.package("tool"))
    assert not [one for one in recorder.inputs if one.path.endswith(".rpm")]
    if case == "of a stranger":
        both = [fingerprint(key.home, key.user) for key in place.keys.values()]
        assert sorted(text for _, text in told.value.facts) == sorted(both), "both fingerprints are shown"


def test_without_a_pin_who_signed_first_must_sign_from_then_on(place: Place) -> None:
    place.recorder(pinned=False).read_indexes((VENDOR,))
    of_a_stranger(place)
    with pytest.raises(InputsError, match="is signed by another key"):
        place.recorder(pinned=False).read_indexes((VENDOR,))


def test_a_package_that_no_index_names_and_the_key_beside_it_are_not_given(place: Place) -> None:
    (place.root / "stray-1.0-1.noarch.rpm").write_bytes(b"stray")
    (place.root / KEY).write_bytes(b"a key")
    recorder = place.recorder()
    with pytest.raises(InputsError, match=r"no signed index of repository 'vendor' names 'stray-1\.0-1\.noarch\.rpm'"):
        recorder.get("vendor", "stray-1.0-1.noarch.rpm")
    assert recorder.get("vendor", KEY).status == 404
    assert recorder.get("vendor", "repodata/nothing.xml").status == 404
    assert f"/{KEY}" not in place.asked


def test_a_replay_gives_what_was_recorded_and_nothing_else(place: Place) -> None:
    recorder = place.recorder()
    recorder.get("vendor", place.package("tool"))
    write_lock(place.folder / "inputs.lock", recorder.inputs)
    lock = read_lock(place.folder / "inputs.lock")
    place.asked.clear()
    replay = place.replay(lock)
    assert replay.get("vendor", place.package("tool")) == recorder.get("vendor", place.package("tool"))
    assert replay.get("vendor", SIGNATURE).found
    assert replay.epoch == recorder.epoch
    assert set(replay.inputs) <= set(lock)
    with pytest.raises(InputsError, match="the lock does not name"):
        replay.get("vendor", place.package("tool-library"))
    assert place.asked == []
    evil = b"another package"
    forged = [one for one in lock if not one.path.endswith(".rpm")]
    with place.replay(lock, "forging").store.incoming() as incoming:
        incoming.write(evil)
        (place.folder / "blobs" / incoming.digests.sha512).write_bytes(evil)
        made = Input(
            repository="vendor", path=place.package("tool"), sha512=incoming.digests.sha512, size_bytes=len(evil)
        )
    with pytest.raises(InputsError, match="is not the one that repository 'vendor' signed"):
        place.replay((*forged, made), "other").get("vendor", place.package("tool"))


def test_a_password_of_the_vendor_is_written_nowhere(
    place: Place, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = tmp_path_factory.mktemp("tls")
    chain = issue("vendor", now=now(), days=99, addresses=["127.0.0.1"]).write(tls, "vendor")
    monkeypatch.setenv("SSL_CERT_FILE", str(chain[0]))
    with guarded(place.root, chain) as (address, seen):
        behind = Place(place.root, place.folder, address, place.keys)
        with pytest.raises(InputsError, match="does not let anybody without credentials in") as told:
            behind.recorder().read_indexes((VENDOR,))
        recorder = behind.recorder(login=Login(user=USER, password=PASSWORD))
        recorder.get("vendor", place.package("tool"))
    assert len(seen) > 4
    write_lock(place.folder / "inputs.lock", recorder.inputs)
    secret = base64.b64encode(f"{USER}:{PASSWORD}".encode())
    written = [path.read_bytes() for path in place.folder.rglob("*") if path.is_file()]
    said = "\n".join(told.value.lines()).encode()
    assert not any(word in text for text in (*written, said) for word in (PASSWORD.encode(), USER.encode(), secret))


# -- the clients that builders use -------------------------------------------------------------------------------------


@contextlib.contextmanager
def served(answers: RpmRecorder | RpmReplay) -> Iterator[str]:
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    with serve(listening, answers):
        yield f"http://127.0.0.1:{port}/vendor"


def by_zypper(folder: Path, address: str) -> list[str]:
    (folder / "etc/zypp/repos.d").mkdir(parents=True)
    (folder / "etc/zypp/repos.d/vendor.repo").write_text(
        f"[vendor]\nname=vendor\nenabled=1\nautorefresh=1\nbaseurl={address}\ntype=rpm-md\ngpgcheck=0\n"
    )
    zypper = ["zypper", "--root", folder, "--non-interactive", "--no-gpg-checks"]
    call(*zypper, "refresh", cwd=folder)
    call(*zypper, "install", "--download-only", "tool", cwd=folder)
    return sorted(path.name for path in folder.rglob("*.rpm"))


def by_dnf(folder: Path, address: str) -> list[str]:
    folder.mkdir(parents=True)
    dnf = ["dnf", f"--installroot={folder}", "--releasever=1", "--assumeyes", "--nogpgcheck", "--disableplugin=*"]
    dnf += [f"--repofrompath=vendor,{address}", "--repo=vendor", f"--setopt=cachedir={folder}/cache"]
    call(*dnf, "install", "--downloadonly", "tool", cwd=folder)
    return sorted(path.name for path in folder.rglob("*.rpm"))


@pytest.mark.needs_root
@pytest.mark.parametrize("client", ["zypper", "dnf"])
def test_a_client_gets_the_same_from_the_recorder_and_offline_from_the_replay(place: Place, client: str) -> None:
    if shutil.which(client) is None and not IN_CI:
        pytest.skip(f"{client} is not installed")
    fetch = {"zypper": by_zypper, "dnf": by_dnf}[client]
    recorder = place.recorder()
    with served(recorder) as address:
        found = fetch(place.folder / "first", address)
    assert found == ["tool-1.0-1.noarch.rpm", "tool-library-1.0-1.noarch.rpm"]
    assert recorder.faults == ()
    lock = recorder.inputs
    assert {place.package("tool"), place.package("tool-library"), REPOMD, SIGNATURE} <= {one.path for one in lock}
    place.asked.clear()
    replay = place.replay(lock)
    with served(replay) as address:
        assert fetch(place.folder / "second", address) == found
    assert replay.faults == ()
    assert (place.asked, replay.unasked) == ([], ())
