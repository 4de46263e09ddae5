# SPDX-License-Identifier: Apache-2.0
"""What a host lacks for a vendor's image is told at once, by place and cure, before anything is done as root."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.build.repository_keys import expect_keys_live
from factory.describe import image_faults
from factory.describe.vendors import whence
from factory.doctor import mirrors
from factory.errors import BuildError, Fault
from factory.inputs.keyring import NEVER, keys_in, parse_keys
from factory.installation import Installation
from factory.model import Site
from factory.system.state import Run, State
from testsuite import samples
from testsuite.repository import NOW, make_key
from testsuite.unit.test_upstream_keys import fingerprint

pytestmark = pytest.mark.programs

PROJECT = Path(__file__).parents[2]
FACTORY = Path(sys.executable).parent / "factory"
SECRETS = ("customer-4711", "pass:of/the=organization")
SLES = """
[image]
name = "sles15"
line = "Enterprise_SLES_15"

[metadata]
os_distro = "sles"
os_version = "15.6"
os_purpose = "generic"

[update_repositories.sles15-pool]
type = "rpm-md"
key = "/usr/lib/rpm/gnupg/keys/suse.asc"

[update_repositories.sles15-updates]
type = "rpm-md"
key = "/usr/lib/rpm/gnupg/keys/suse.asc"

[registration]
mode = "on-demand"
product = "SLES/15.6/x86_64"
"""
SITE = """
[mirrors]
tools = "http://tools.example/debian"

[repositories.sles15.sles15-pool]
url = "https://updates.vendor.example/pool"
user = "env:SCC_USER"
password = "file:scc-password"
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with an image of a vendor, whose mirrors and keys nobody has."""
    folder = tmp_path / "project"
    for name in ("descriptions/common", "descriptions/debian13", "keys"):
        shutil.copytree(PROJECT / name, folder / name, symlinks=True)
    shutil.copytree(folder / "descriptions/debian13", folder / "descriptions/sles15")
    (folder / "descriptions/sles15/image.toml").write_text(SLES)
    config = (folder / "descriptions/sles15/config.xml").read_text()
    config = re.sub(r" *<repository .*?</repository>\n", "", config, flags=re.DOTALL)
    repositories = "".join(
        f'  <repository type="rpm-md" alias="{alias}"><source path="http://{alias}.example/"/></repository>\n'
        for alias in ("sles15-pool", "sles15-updates")
    )
    config = config.replace('name="debian13"', 'name="sles15"').replace(
        '  <packages type="image"', f'{repositories}  <packages type="image"', 1
    )
    (folder / "descriptions/sles15/config.xml").write_text(config.replace("manager>apt<", "manager>zypper<"))
    return folder


def describe(project: Path, image: str, *options: str | Path) -> subprocess.CompletedProcess[str]:
    env = {name: text for name, text in os.environ.items() if not name.startswith("FACTORY_")}
    return subprocess.run(
        [FACTORY, "--state", project.parent / "state", "--project", project, *options, "describe", image],
        cwd=project.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=env | {"SCC_USER": SECRETS[0]},
    )


def test_everything_that_is_missing_is_told_at_once(project: Path) -> None:
    done = describe(project, "sles15")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    for alias in ("sles15-pool", "sles15-updates"):
        table = f"repositories.sles15.{alias}"
        assert f"site.toml {table}: is missing: nobody says where builds of 'sles15' read '{alias}'" in done.stderr
        assert f'write [{table}] with url = "https://..."' in done.stderr
        assert f"keys/vendor/{alias}.asc: is missing" in done.stderr
        assert f"keys/upstream.toml {alias}: is missing" in done.stderr
    for word in ("SCC (SUSE Customer Center)", "RMT of your own", '"env:NAME" or "file:PATH"'):
        assert word in done.stderr
    assert "schema" not in done.stderr, "its config.xml is a good one"
    assert "suite" not in done.stderr


def test_what_is_there_is_not_told_and_no_credential_is_written_anywhere(project: Path) -> None:
    (project.parent / "scc-password").write_text(SECRETS[1])
    (project.parent / "scc-password").chmod(0o600)
    site = project.parent / "site.toml"
    site.write_text(SITE)
    pinned = make_key(project.parent, "vendor")
    (project / "keys/vendor").mkdir(exist_ok=True)
    shutil.copy(pinned.keyring, project / "keys/vendor/sles15-pool.gpg")
    with (project / "keys/upstream.toml").open("a") as pins:
        pins.write(f'\n[sles15-pool]\nfingerprints = ["{fingerprint(pinned.home, "vendor")}"]\n')
    done = describe(project, "sles15", "--site", site)
    assert done.returncode == 2
    told = [line for line in done.stderr.splitlines() if "sles15-pool" in line]
    assert len(told) == 1, done.stderr
    assert "no builder of this version installs from" in told[0]
    assert "repositories.sles15.sles15-updates: is missing" in done.stderr
    good = describe(project, "debian13", "--site", site)
    assert good.returncode == 0, good.stderr
    site.unlink()
    (project.parent / "scc-password").unlink()
    written = [path.read_bytes() for path in project.parent.rglob("*") if path.is_file()]
    said = f"{done.stdout}{done.stderr}{good.stdout}{good.stderr}".encode()
    assert written
    for secret in SECRETS:
        assert not any(secret.encode() in text for text in (*written, said))


def test_doctor_asks_nobody_for_a_mirror_that_nobody_names(project: Path) -> None:
    here = Installation(project=project, state=State(path=project.parent / "state"), site=Site())
    found = [(one.name, one.ok, one.says) for one in mirrors(here, ["sles15"])]
    assert found == [
        ("mirror sles15-pool", False, "nobody says where it is"),
        ("mirror sles15-updates", False, "nobody says where it is"),
    ]


def test_an_image_that_never_registers_needs_an_address(project: Path) -> None:
    path = project / "descriptions/sles15/image.toml"
    path.write_text(path.read_text().replace('mode = "on-demand"', 'mode = "none"'))
    done = describe(project, "sles15")
    assert (
        "image.toml update_repositories.sles15-pool: has no address, and an image that never registers" in done.stderr
    )


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('type = "rpm-md"\n', 'type = "rpm-md"\nsuites = ["x"]\n', "names suites or components"),
        ('type = "rpm-md"\n', "", "names no suites"),
        ('"rpm-md"', '"yum"', "'apt-deb' or 'rpm-md'"),
    ],
)
def test_a_repository_is_of_one_kind(project: Path, old: str, new: str, says: str) -> None:
    path = project / "descriptions/sles15/image.toml"
    path.write_text(path.read_text().replace(old, new, 1))
    done = describe(project, "sles15")
    assert done.returncode == 2
    assert says in done.stderr
    assert "image.toml:1" in done.stderr


@pytest.mark.parametrize(
    ("product", "words"),
    [
        ("SLES/15.6/x86_64", "SCC"),
        ("SLES_SAP/15.6/x86_64", "SCC"),
        ("RHEL/9.4/x86_64", "Red Hat"),
        ("almalinux/9/x86_64", "a public mirror"),
    ],
)
def test_people_are_told_whom_to_ask(product: str, words: str) -> None:
    assert words in whence(product)


# -- keys that end before the image does -------------------------------------------------------------------------------


def ending(folder: Path, user: str, *days: int) -> Path:
    """A keyring with a key for each number of days from now; they were made long ago."""
    gpg = ["gpg", "--homedir", make_key(folder, f"{user}-home").home, "--batch", "--quiet", "--passphrase", ""]
    for number, many in enumerate(days):
        name = f"{user}{number}"
        until = (NOW + timedelta(days=many)).strftime("%Y%m%dT000000")
        argv = [*gpg, "--faked-system-time", "20200101T000000", "--quick-gen-key", name, "ed25519", "sign", until]
        subprocess.run(argv, check=True)
    ring = folder / f"{user}.gpg"
    names = [f"{user}{number}" for number in range(len(days))]
    ring.write_bytes(subprocess.run([*gpg, "--export", *names], stdout=subprocess.PIPE, check=True).stdout)
    return ring


def faults(project: Path, ring: Path, pins: tuple[str, ...] = ()) -> list[Fault]:
    """Those of debian13 about keys; images are kept for two years."""
    vendor = project / "keys/vendor"
    shutil.rmtree(vendor, ignore_errors=True)
    vendor.mkdir()
    for alias in ("debian", "debian-security"):
        shutil.copy(ring, vendor / f"{alias}.gpg")
    lines = "".join(f"[{alias}]\nfingerprints = {list(pins)!r}\n" for alias in ("debian", "debian-security"))
    (project / "keys/upstream.toml").write_text(lines.replace("'", '"') if pins else "")
    found = image_faults(project, "debian13", site=Site(mirrors={"tools": "http://t.example"}), now=NOW)
    return [one for one in found if one.place.endswith(".key")]


def test_a_key_that_ends_before_the_image_does_is_refused(project: Path) -> None:
    ring = ending(project.parent, "short", 100)
    (key,) = keys_in(ring)
    told = faults(project, ring)
    assert [one.place for one in told] == [
        "descriptions/debian13/image.toml update_repositories.debian.key",
        "descriptions/debian13/image.toml update_repositories.debian-security.key",
    ]
    kept = NOW + timedelta(days=24 * 31)
    assert f"no key that signs lives until {kept:%Y-%m-%d}" in told[0].problem
    assert f"{key.fingerprint} ends {NOW + timedelta(days=100):%Y-%m-%d}" in told[0].problem


def test_one_key_that_lives_long_enough_is_enough_when_it_may_sign(project: Path) -> None:
    """While an archive changes its keys, both are in the keyring, and both sign."""
    ring = ending(project.parent, "change", 100, 2000)
    short, long = keys_in(ring)
    assert short.ends < long.ends < NEVER
    assert faults(project, ring) == []
    assert faults(project, ring, (short.fingerprint, long.fingerprint)) == []
    told = faults(project, ring, (short.fingerprint,))
    assert [long.fingerprint in one.problem for one in told] == [False, False]


def test_a_keyring_without_the_named_keys_or_without_any_is_told(project: Path) -> None:
    told = faults(project, ending(project.parent, "other", 2000), ("A" * 40,))
    assert all("holds none of the keys that keys/upstream.toml names" in one.problem for one in told)
    assert len(told) == 2
    broken = project.parent / "broken.gpg"
    broken.write_bytes(b"no keyring")
    assert [one.problem for one in faults(project, broken)] == [
        "'debian.gpg' holds no key",
        "'debian-security.gpg' holds no key",
    ]


@pytest.mark.parametrize(
    ("days", "named", "good"),
    [((100,), False, False), ((100, 2000), False, True), ((100, 2000), True, False), ((), False, True)],
)
def test_the_keys_that_lie_in_the_image_are_judged_too(
    tmp_path: Path, *, days: tuple[int, ...], named: bool, good: bool
) -> None:
    """A package of the image may bring another keyring than the one that the build verified with."""
    content = ending(tmp_path, "image", *days).read_bytes() if days else b""
    (tmp_path / "image").write_bytes(content)
    pins = {"debian": (keys_in(tmp_path / "image")[0].fingerprint,)} if named else {}
    made = samples.recipe(Run(path=tmp_path / "20261121-000000-debian13"))
    repository = dataclasses.replace(made.repositories[0], key="/usr/share/keyrings/x.gpg")
    recipe = dataclasses.replace(made, repositories=(repository,), signers=pins)
    read = {"/usr/share/keyrings/x.gpg": content}.get
    if good:
        expect_keys_live(recipe, lambda path: read(path, b""), epoch=int(NOW.timestamp()))
        return
    with pytest.raises(BuildError, match="instances could not update from 'debian'") as told:
        expect_keys_live(recipe, lambda path: read(path, b""), epoch=int(NOW.timestamp()))
    assert f"ends {NOW + timedelta(days=100):%Y-%m-%d}" in str(told.value.facts)
    assert ("kept until", f"{NOW + timedelta(days=24 * 31):%Y-%m-%d}") in told.value.facts


def test_the_keys_of_this_hosts_debian_live_long_enough() -> None:
    assert image_faults(PROJECT, "debian13", site=Site(mirrors={"tools": "http://t.example"}), now=NOW) == ()


LISTING = """pub:-:255:22:AAAA:1:{primary}::-:::scSC::::::ed25519:::0:
fpr:::::::::0123456789ABCDEF0123456789ABCDEF01234567:
uid:-::::1::X::A \\x3a key <a@mirror.example>::::::::::0:
sub:{validity}:255:22:BBBB:1:{sub}:::::s::::::ed25519::
fpr:::::::::FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF:
"""


@pytest.mark.parametrize(
    ("primary", "sub", "validity", "ends"),
    [("", "", "-", None), ("2000", "", "-", 2000), ("2000", "9000", "-", 2000), ("", "9000", "r", None)],
)
def test_subkeys_sign_no_longer_than_their_primary_key(primary: str, sub: str, validity: str, ends: int | None) -> None:
    (key,) = parse_keys(LISTING.format(primary=primary, sub=sub, validity=validity).splitlines())
    assert key.fingerprint == "0123456789ABCDEF0123456789ABCDEF01234567"
    assert key.user_id == "A : key <a@mirror.example>"
    assert key.ends == NEVER if ends is None else key.ends.timestamp() == ends


@given(st.lists(st.text(alphabet="pubfrsid:-0123456789e\\x%", max_size=80), max_size=12))
def test_any_listing_is_read(lines: list[str]) -> None:
    assert all(key.fingerprint for key in parse_keys(lines))
