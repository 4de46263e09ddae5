# SPDX-License-Identifier: Apache-2.0
"""The sources of a published image from a small mirror that has them all.

Nothing stands in for anything: ``dpkg-source`` packs, ``apt-ftparchive`` writes the indexes, GnuPG signs them, Apache
serves them with ranges, ``factory inputs export --sources`` fetches them, and ``dpkg-source`` unpacks what came.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import lzma
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import pytest

from factory.inputs.lock import write_lock
from factory.inputs.recorder import Recorder, origins_of
from factory.model import Artifact, Bundle, Package, Repository
from factory.system.clock import now
from factory.system.state import Run, State
from testsuite.conftest import FACTORY
from testsuite.fakes.bundles import make_bundle
from testsuite.repository import SigningKey, make_key

IN_CI = os.environ.get("CI") == "true"
PROGRAMS = ("dpkg-source", "dpkg-deb", "apt-ftparchive", "apache2", "gpg", "qemu-img")
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
DEBIAN = Repository(alias="debian", url="", suites=("trixie",), components=("main",))
BIG_BYTES = 6 << 20
ORIGINAL = "large_3.orig.tar.gz"
APACHE = """\
ServerRoot {root}
PidFile {root}/apache.pid
ErrorLog {root}/error.log
Mutex file:{root} default
ServerName mirror.example
User www-data
Group www-data
Listen 127.0.0.1:{port}
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule env_module /usr/lib/apache2/modules/mod_env.so
LoadModule ratelimit_module /usr/lib/apache2/modules/mod_ratelimit.so
LogFormat "%>s %{{Range}}i %B %U" asked
CustomLog {root}/access.log asked
DocumentRoot {root}/www
<Directory {root}/www>
Require all granted
</Directory>
<IfDefine SLOW>
<Directory {root}/www/pool>
SetOutputFilter RATE_LIMIT
SetEnv rate-limit 1024
</Directory>
</IfDefine>
"""


@dataclass(frozen=True)
class Made:
    """A source package and a binary package of it: their names and versions, and what is in the source's archives."""

    source: str
    version: str
    binary: str
    binary_version: str
    files: dict[str, bytes] = field(default_factory=dict)
    extra: str = ""
    format: str = "3.0 (quilt)"


SOURCES = (
    # an epoch, and a binary rebuilt without a change of source
    Made("greetings", "1:1.2-3", "hello", "1:1.2-3+b1", {"hello.c": b"int main(void) { return 0; }\n"}),
    Made("native", "2.0", "native", "2.0", {"tool": b"#!/bin/sh\n"}, format="3.0 (native)"),
    Made("large", "3-1", "large", "3-1", {"noise": random.Random(3).randbytes(BIG_BYTES)}),
    # its build linked 'native' in, in a version that the mirror still has beside the newer one
    Made("linked", "4-1", "linked", "4-1", {"x.c": b"int x;\n"}, extra="Built-Using: native (= 1.0)\n"),
    Made("native", "1.0", "", "", {"tool": b"#!/bin/sh\n# the older\n"}, format="3.0 (native)"),
)


@pytest.fixture(scope="module", autouse=True)
def _programs() -> None:
    missing = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if missing and not IN_CI:
        pytest.skip(f"not installed: {', '.join(missing)}")
    assert not missing


def call(*argv: str | Path, cwd: Path, stdin: str | None = None) -> str:
    env = {"PATH": PATH, "LC_ALL": "C.UTF-8", "HOME": str(cwd), "SOURCE_DATE_EPOCH": "1795000000"}
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False, env=env, input=stdin)
    assert done.returncode == 0, done.stderr
    return done.stdout


def pack_source(one: Made, folder: Path, pool: Path) -> None:
    """A source package as maintainers make it: an original tarball, and Debian's part of it beside."""
    upstream = one.version.rpartition(":")[2].partition("-")[0]
    tree = folder / f"{one.source}-{upstream}"
    tree.mkdir(parents=True)
    for name, content in one.files.items():
        (tree / name).write_bytes(content)
    if "native" not in one.format:
        call("tar", "-czf", f"{one.source}_{upstream}.orig.tar.gz", tree.name, cwd=folder)
    (tree / "debian/source").mkdir(parents=True)
    (tree / "debian/source/format").write_text(f"{one.format}\n")
    (tree / "debian/control").write_text(
        f"Source: {one.source}\nMaintainer: Nobody <nobody@mirror.example>\n\n"
        f"Package: {one.binary or one.source}\nArchitecture: all\nDescription: a package\n"
    )
    (tree / "debian/changelog").write_text(
        f"{one.source} ({one.version}) trixie; urgency=low\n\n  * New.\n\n"
        " -- Nobody <nobody@mirror.example>  Fri, 20 Nov 2026 20:00:00 +0000\n"
    )
    call("dpkg-source", "--build", tree.name, cwd=folder)
    for path in folder.iterdir():
        if path.is_file():
            path.replace(pool / path.name)


def pack_binary(one: Made, folder: Path, pool: Path) -> None:
    said = "" if (one.source, one.version) == (one.binary, one.binary_version) else f" ({one.version})"
    source = f"Source: {one.source}{said}\n" if said or one.source != one.binary else ""
    (folder / "DEBIAN").mkdir(parents=True)
    (folder / "DEBIAN/control").write_text(
        f"Package: {one.binary}\n{source}Version: {one.binary_version}\nArchitecture: all\n{one.extra}"
        "Maintainer: Nobody <nobody@mirror.example>\nDescription: a package\n"
    )
    call("dpkg-deb", "--build", "--root-owner-group", folder, pool, cwd=pool)


@dataclass
class Mirror:
    """A folder served by Apache, and what it was asked for."""

    root: Path
    key: SigningKey
    port: int

    @property
    def www(self) -> Path:
        return self.root / "www"

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def write_indexes(self, signed: datetime) -> None:
        for place, command in (("main/binary-amd64/Packages", "packages"), ("main/source/Sources", "sources")):
            file = self.www / "dists/trixie" / f"{place}.xz"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(lzma.compress(call("apt-ftparchive", command, "pool", cwd=self.www).encode()))
        (self.www / "dists/trixie/InRelease").unlink(missing_ok=True)
        fields = {"Suite": "stable", "Codename": "trixie", "Components": "main", "Architectures": "amd64"}
        options = [word for name, text in fields.items() for word in ("-o", f"APT::FTPArchive::Release::{name}={text}")]
        text = call("apt-ftparchive", *options, "release", "dists/trixie", cwd=self.www)
        dated = [
            f"Date: {signed:%a, %d %b %Y %H:%M:%S} UTC" if line[:5] == "Date:" else line for line in text.split("\n")
        ]
        (self.www / "dists/trixie/InRelease").write_bytes(self.key.sign("\n".join(dated)))

    @contextlib.contextmanager
    def served(self, *, slow: bool = False) -> Iterator[None]:
        argv = ["apache2", "-f", self.root / "httpd.conf", "-DFOREGROUND", *(["-DSLOW"] if slow else [])]
        (self.root / "access.log").unlink(missing_ok=True)
        (self.root / "said").unlink(missing_ok=True)
        with (self.root / "said").open("w") as said, subprocess.Popen(argv, env={"PATH": PATH}, stderr=said) as server:
            try:
                self._wait()
                yield
            finally:
                server.terminate()

    def _wait(self) -> None:
        for _ in range(200):
            with contextlib.suppress(OSError), urllib.request.urlopen(self.address + "/dists/trixie/InRelease"):
                return
            time.sleep(0.05)
        pytest.fail("".join(path.read_text() for path in (self.root / "said", *self.root.glob("error.log"))))

    def asked(self) -> list[tuple[str, str, int, str]]:
        """Status, range, sent bytes and name of every file of the pool that was asked for."""
        lines = [line.split() for line in (self.root / "access.log").read_text().splitlines()]
        return [
            (status, ranges, int(sent), path.rpartition("/")[2])
            for status, ranges, sent, path in lines
            if "/pool/" in path
        ]

    def path(self, name: str) -> Path:
        return next(self.www.rglob(name))


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool with all packages."""
    folder = tmp_path_factory.mktemp("packed")
    for number, one in enumerate(SOURCES):
        pool = folder / "pool/main" / one.source[0] / one.source
        pool.mkdir(parents=True, exist_ok=True)
        pack_source(one, folder / f"source-{number}", pool)
        if one.binary:
            pack_binary(one, folder / f"binary-{number}", pool)
    return folder / "pool"


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return make_key(tmp_path_factory.mktemp("k"), "archive")


@pytest.fixture
def place(packed: Path, key: SigningKey) -> Iterator[Mirror]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="factory-mirror-") as folder:
        root = Path(folder)
        root.chmod(0o755)  # Apache's own user reads it
        shutil.copytree(packed, root / "www/pool")
        (root / "httpd.conf").write_text(APACHE.format(root=root, port=port))
        made = Mirror(root=root, key=key, port=port)
        made.write_indexes(now())
        yield made


@dataclass
class Factory:
    """A state folder with a published run of a small image."""

    run: Run
    out: Path

    def start(self) -> subprocess.Popen[str]:
        argv = [
            FACTORY,
            "--state",
            self.run.state.path,
            "inputs",
            "export",
            "tiny",
            "--sources",
            "--out",
            self.out,
            "--json",
        ]
        env = {name: text for name, text in os.environ.items() if not name.startswith("FACTORY_")}
        pipe = subprocess.PIPE
        return subprocess.Popen(argv, stdout=pipe, stderr=pipe, text=True, env=env, cwd=self.run.path.parents[2])

    def export(self) -> tuple[int, dict, str]:
        with self.start() as started:
            printed, said = started.communicate(timeout=60)
        return started.returncode, json.loads(printed or "{}"), said

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.out)) for path in self.out.rglob("*") if path.is_file())


@pytest.fixture
def factory(place: Mirror, tmp_path: Path) -> Factory:
    """A run as a night left it; its lock is what a build with these packages fetches."""
    (tmp_path / "descriptions").mkdir()
    state = State(path=tmp_path / "state").prepare()
    run = state.new_run("tiny", now())
    made: Bundle = make_bundle(run.path / "bundle", data_bytes=4096)
    recipe = dataclasses.replace(
        made.artifact.recipe,
        description=dataclasses.replace(made.artifact.recipe.description, name="tiny"),
        repositories=(DEBIAN,),
        mirrors={"debian": place.address},
        keyrings={"debian": place.key.keyring},
    )
    recorder = Recorder(origins=origins_of(recipe), blobs=state.blobs, now=now())
    with place.served():
        recorder.read_indexes((DEBIAN,))
        assert recorder.get("debian", "dists/trixie/main/binary-amd64/Packages.xz").found
    lock = run.path / "inputs.lock"
    write_lock(lock, recorder.inputs)
    packages = [Package(name=one.binary, version=one.binary_version, arch="all") for one in SOURCES if one.binary]
    packages += [Package(name="our-own", version="1", arch="all")]
    artifact: Artifact = dataclasses.replace(
        made.artifact, recipe=recipe, lock=lock, packages=tuple(packages), epoch=recorder.epoch
    )
    run.write("describe", recipe)
    run.write("build", artifact)
    return Factory(run=run, out=tmp_path / "out")


def test_every_source_is_had_and_can_be_unpacked(place: Mirror, factory: Factory, tmp_path: Path) -> None:
    with place.served():
        status, found, said = factory.export()
        assert status == 0, said
        assert {(one["name"], one["version"]): tuple(one["binaries"]) for one in found["value"]["packages"]} == {
            ("greetings", "1:1.2-3"): ("hello",),
            ("large", "3-1"): ("large",),
            ("linked", "4-1"): ("linked",),
            ("native", "1.0"): ("linked",),
            ("native", "2.0"): ("native",),
        }
        assert found["value"]["ours"] == ["our-own"]
        once = place.asked()
        assert len(once) == sum(2 if one.format.endswith("(native)") else 3 for one in SOURCES)
        assert factory.export()[0] == 0
        assert place.asked() == once, "what is there is not asked for again"
    for one in SOURCES:
        (dsc,) = factory.out.glob(f"{one.source}_{one.version.replace(':', '%3A')}/*.dsc")
        target = tmp_path / f"unpacked-{one.source}-{one.version}"
        call("dpkg-source", "--require-strong-checksums", "--extract", dsc, target, cwd=tmp_path)
        assert {name: (target / name).read_bytes() for name in one.files} == one.files
    listed = json.loads((factory.out / "sources.json").read_text())["sources"]
    for file in (file | {"folder": one["folder"]} for one in listed for file in one["files"]):
        content = (factory.out / file["folder"] / file["name"]).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (file["sha256"], file["size"])
        assert content == (place.www / file["path"]).read_bytes()


def test_a_killed_export_goes_on_where_it_stopped(place: Mirror, factory: Factory) -> None:
    with place.served(slow=True), factory.start() as killed:
        part = factory.out / "large_3-1" / f"{ORIGINAL}.part"
        until = time.monotonic() + 30
        while not part.is_file() or part.stat().st_size < 1 << 20:
            assert time.monotonic() < until, "nothing came"
            assert killed.poll() is None, killed.communicate()
            time.sleep(0.02)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
    there = part.stat().st_size
    assert there < BIG_BYTES
    whole = [name for name in factory.files() if not name.endswith(".part")]
    with place.served():
        status, _, said = factory.export()
        assert status == 0, said
        asked = place.asked()
    size = place.path(ORIGINAL).stat().st_size
    assert ("206", f"bytes={there}-", size - there, ORIGINAL) in asked
    assert not {name for *_, name in asked} & {Path(name).name for name in whole}
    assert (factory.out / "large_3-1" / ORIGINAL).read_bytes() == place.path(ORIGINAL).read_bytes()
    assert not list(factory.out.rglob("*.part"))


@pytest.mark.parametrize("half", [False, True], ids=["whole", "gone on with"])
def test_a_file_that_is_not_what_was_signed_is_refused_by_name(place: Mirror, factory: Factory, *, half: bool) -> None:
    path = place.path(ORIGINAL)
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    if half:
        (factory.out / "large_3-1").mkdir(parents=True)
        (factory.out / "large_3-1" / f"{ORIGINAL}.part").write_bytes(good[:1000])
    with place.served():
        status, printed, said = factory.export()
        assert (status, printed) == (3, {})
        assert f"the mirror serves another '{ORIGINAL}' than was signed" in said
        assert hashlib.sha256(good).hexdigest() in said
        assert "Traceback" not in said
        assert not [name for name in factory.files() if ORIGINAL in name]
        assert "sources.json" not in factory.files()
        path.write_bytes(good)
        status, _, said = factory.export()
        assert status == 0, said
    assert (factory.out / "large_3-1" / ORIGINAL).read_bytes() == good


def test_an_index_of_sources_that_was_changed_is_no_index(place: Mirror, factory: Factory) -> None:
    """Its signed digest says what it must be: nobody can slip a source in by it."""
    index = place.www / "dists/trixie/main/source/Sources.xz"
    index.write_bytes(lzma.compress(lzma.decompress(index.read_bytes()).replace(b"1:1.2-3", b"1:1.2-4")))
    with place.served():
        status, found, said = factory.export()
    assert status == 1
    assert "debian trixie main: the mirror serves another 'main/source/Sources.xz' than was signed" in said
    assert {one["missing"] for one in found["value"]["packages"]} == {
        "no Sources index of debian has this version any more"
    }
