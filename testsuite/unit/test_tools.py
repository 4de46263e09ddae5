# SPDX-License-Identifier: Apache-2.0
"""What a tools tree is made of, and how: resolved from indexes, recorded, replayed, laid into a folder."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.server
import io
import lzma
import os
import re
import stat
import tarfile
import threading
import tomllib
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.build.roots import Root
from factory.build.tools import LIST, ToolsTree, read_list, tree_digest
from factory.build.wheels import PACKAGES, add_python
from factory.cli.edge import with_registry
from factory.errors import BuildError, InputsError
from factory.inputs.closure import closure
from factory.inputs.lock import TOOLS, WHEELS, Input
from factory.inputs.recorder import Origin
from factory.inputs.registry import Registries, pip_registries
from factory.inputs.replay import Replay
from factory.inputs.sources import source_named
from factory.inputs.tools import Pinned, Suite, ToolsRecorder, WheelsRecorder, packages_only, replayed
from factory.inputs.upstream import Upstream
from factory.model import Site
from testsuite.repository import NOW, SIGNED, Archive, SigningKey, make_key
from testsuite.repository import mirror as served_by

PROJECT = Path(__file__).parents[2]
SUITE = Suite(name="trixie", components=("main",), arch="amd64")


# -- the list


def test_the_list_pins_what_the_lock_of_this_environment_has() -> None:
    locked = (PROJECT / "locks" / "requirements.txt").read_text()
    kiwi = next(one for one in read_list().python if one.project == "kiwi")
    assert re.search(rf"^kiwi==11\.[^ ]+ \\\n    --hash=sha256:{kiwi.sha256}", locked, re.MULTILINE)
    assert all(len(one.sha256) == 64 for one in read_list().python)


def test_the_list_names_no_mirror() -> None:
    assert "//" not in re.sub(r"(?m)#.*", "", LIST.read_text())
    assert tomllib.loads(LIST.read_text())["debian"]["suite"]


# -- which packages


def index(*packages: tuple[str, str]) -> bytes:
    """``Packages`` of names and further lines."""
    stanzas = [
        f"Package: {name}\nVersion: 1\nPriority: optional\n{more}Filename: pool/{name}.deb\nSHA256: {name:0<64}\n"
        for name, more in packages
    ]
    return "\n".join(stanzas).encode()


CLOSURES = {
    "alone": ([("a", "")], ["a"], "a"),
    "depends": ([("a", "Depends: b (>= 1), c\n"), ("b", "Pre-Depends: d\n"), ("c", ""), ("d", "")], ["a"], "a b c d"),
    "recommends do not count": ([("a", "Recommends: b\n"), ("b", "")], ["a"], "a"),
    "a circle": ([("a", "Depends: b\n"), ("b", "Depends: a\n")], ["a"], "a b"),
    "the first alternative there is": ([("a", "Depends: x | b | c\n"), ("b", ""), ("c", "")], ["a"], "a b"),
    "what is wanted anyway settles it": ([("a", "Depends: b | c\n"), ("b", ""), ("c", "")], ["a", "c"], "a c"),
    "virtual": ([("a", "Depends: v\n"), ("c", "Provides: v\n"), ("b", "Provides: v (= 2), w\n")], ["a"], "a b"),
    "virtual, by priority": (
        [("a", "Depends: v\n"), ("b", "Provides: v\n"), ("c", "Priority: required\nProvides: x, v\n")],
        ["a"],
        "a c",
    ),
    "virtual, provided by what is wanted": (
        [("a", "Depends: v\n"), ("b", "Provides: v\n"), ("c", "Provides: v\n")],
        ["a", "c"],
        "a c",
    ),
    "qualified": ([("a", "Depends: b:any, c [amd64]\n"), ("b", ""), ("c", "")], ["a"], "a b c"),
    "a name that begins another": ([("ab", ""), ("a", "Depends: ab\n")], ["a"], "a ab"),
}


@pytest.mark.parametrize("case", CLOSURES)
def test_what_is_needed_follows_from_the_index(case) -> None:
    packages, wanted, expected = CLOSURES[case]
    found = closure(wanted, [index(*packages)])
    assert " ".join(one.name for one in found) == expected
    assert [one.path for one in found] == [f"pool/{one.name}.deb" for one in found]


def test_what_is_left_out_takes_its_own_needs_with_it() -> None:
    text = index(("a", "Depends: b, c | d\n"), ("b", "Depends: e\n"), ("c", ""), ("d", ""), ("e", ""))
    assert [one.name for one in closure(["a"], [text], without=["b", "d"])] == ["a"]


@pytest.mark.parametrize(
    ("packages", "says"),
    [([("b", "")], "no package index has 'a'"), ([("a", "Depends: x | y\n")], "no package index has any of: x, y")],
)
def test_what_no_index_has_is_told_with_who_needs_it(packages, says) -> None:
    with pytest.raises(InputsError, match=re.escape(says)):
        closure(["a"], [index(*packages)])


@given(st.permutations([("a", "Depends: v, d\n"), ("b", "Provides: v\n"), ("c", "Provides: v\n"), ("d", "")]))
def test_the_order_of_the_index_does_not_count(packages) -> None:
    assert closure(["a"], [index(*packages)]) == closure(["a"], [index(*sorted(packages))])


@given(st.text(alphabet="ab:, |\n()Depnsovi", max_size=120))
def test_any_index_is_read_or_refused(text) -> None:
    with contextlib.suppress(InputsError):
        closure(["a"], [text.encode()])


# -- recorded and replayed


@pytest.fixture(scope="module")
def key(tmp_path_factory) -> SigningKey:
    return make_key(tmp_path_factory.mktemp("k"), "archive")


@pytest.fixture
def archive(tmp_path, key) -> Archive:
    made = Archive(root=tmp_path / "mirror", key=key)
    made.add("kiwi-tools", b"tools", depends="libfirst")
    made.add("libfirst", b"first")
    made.add("unwanted", b"unwanted")
    made.publish()
    return made


def recorder(archive: Archive, mirror: str, blobs: Path) -> ToolsRecorder:
    origin = Origin(mirror=mirror, keyring=archive.key.keyring)
    return ToolsRecorder(origin, blobs=blobs, now=NOW, upstream=Upstream(pause_s=0.01))


def test_tools_are_recorded_by_the_signed_index_and_replayed_from_the_lock(archive, tmp_path) -> None:
    with served_by(archive.root) as (mirror, _):
        made = recorder(archive, mirror, tmp_path / "blobs")
        indexes = made.indexes(SUITE)
        found = made.resolve(SUITE, indexes, ["kiwi-tools"], [])
        entries = (*indexes, *(made.get_package(one) for one in found))
    assert [one.name for one in found] == ["kiwi-tools", "libfirst"]
    assert made.epoch == int(SIGNED.timestamp())
    replay = Replay(
        lock=entries,
        keyrings={TOOLS: archive.key.keyring},
        blobs=tmp_path / "other",
        sources=(source_named(str(tmp_path / "blobs")),),
        epoch=made.epoch,
    )
    again = replayed(replay, entries)
    assert sorted(again) == sorted(entries)
    assert replay.epoch == made.epoch
    assert set(packages_only(again)) == {"kiwi-tools_1.0_all.deb", "libfirst_1.0_all.deb"}
    assert tree_digest(packages_only(again)) == tree_digest(packages_only(entries))


def test_a_package_that_the_index_of_its_lock_does_not_name_so_is_refused(archive, tmp_path) -> None:
    with served_by(archive.root) as (mirror, _):
        made = recorder(archive, mirror, tmp_path / "blobs")
        indexes = made.indexes(SUITE)
        entries = [*indexes, *map(made.get_package, made.resolve(SUITE, indexes, ["libfirst"], []))]
    evil = b"another package"
    sha512 = hashlib.sha512(evil).hexdigest()
    (tmp_path / "blobs" / sha512).write_bytes(evil)
    entries[-1] = replace(entries[-1], sha512=sha512, size_bytes=len(evil))
    replay = Replay(
        lock=entries,
        keyrings={TOOLS: archive.key.keyring},
        blobs=tmp_path / "other",
        sources=(source_named(str(tmp_path / "blobs")),),
        epoch=made.epoch,
    )
    with pytest.raises(InputsError, match="is not the one that repository 'tools' signed"):
        replayed(replay, entries)


def test_an_index_that_a_stranger_signed_is_refused(archive, tmp_path) -> None:
    archive.publish(key=make_key(tmp_path, "stranger"))
    with served_by(archive.root) as (mirror, _), pytest.raises(InputsError, match="signature of repository 'tools'"):
        recorder(archive, mirror, tmp_path / "blobs").indexes(SUITE)


def test_a_mirror_with_other_bytes_than_its_index_says_is_refused(archive, tmp_path) -> None:
    (archive.root / "pool/main/l/libfirst/libfirst_1.0_all.deb").write_bytes(b"evil!")
    with served_by(archive.root) as (mirror, _):
        made = recorder(archive, mirror, tmp_path / "blobs")
        found = made.resolve(SUITE, made.indexes(SUITE), ["libfirst"], [])
        with pytest.raises(InputsError, match=r"serves another 'libfirst_1\.0_all\.deb' than it signed"):
            made.get_package(found[0])


def test_a_suite_that_is_not_there_is_told(archive, tmp_path) -> None:
    with served_by(archive.root) as (mirror, _), pytest.raises(InputsError, match="where the tools come from") as told:
        recorder(archive, mirror, tmp_path / "blobs").indexes(replace(SUITE, name="forky"))
    assert "[mirrors] of site.toml" in told.value.hint


# -- Python registries

WHEEL = b"a wheel"
PIN = Pinned(project="Some.Tool", file="some_tool-1.0-py3-none-any.whl", sha256=hashlib.sha256(WHEEL).hexdigest())


@pytest.fixture
def registry(tmp_path) -> Iterator[str]:
    """The address of a registry's simple pages; files lie elsewhere on it."""
    root = tmp_path / "registry"
    for folder in ("simple/some-tool", "files/ab"):
        (root / folder).mkdir(parents=True)
    page = f'<a href="../../files/ab/{PIN.file}#sha256=00" data-requires-python="&gt;=3">{PIN.file}</a>'
    (root / "simple/some-tool/index.html").write_text(f"<html><a href=other-1.0.tar.gz>x</a>{page}")
    (root / "files/ab" / PIN.file).write_bytes(WHEEL)
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/simple"
        server.shutdown()


def test_a_pinned_file_is_found_by_the_pages_of_a_registry(registry, tmp_path) -> None:
    absent = registry.replace("/simple", "/nothing")
    found = WheelsRecorder([PIN], Registries([absent, registry]), blobs=tmp_path / "blobs", now=NOW).get_pinned(PIN)
    assert (found.repository, found.path) == (WHEELS, f"Some.Tool/{PIN.file}")
    assert (tmp_path / "blobs" / found.sha512).read_bytes() == WHEEL
    # a registry that is away does not matter when the file is in the store
    assert WheelsRecorder([PIN], Registries([]), blobs=tmp_path / "blobs", now=NOW).get_pinned(PIN) == found


def test_a_registry_cannot_give_something_else(registry, tmp_path) -> None:
    pin = replace(PIN, sha256="0" * 64)
    with pytest.raises(InputsError, match="serves another"):
        WheelsRecorder([pin], Registries([registry]), blobs=tmp_path / "blobs", now=NOW).get_pinned(pin)


def test_what_no_registry_has_is_told_without_a_password(registry, tmp_path) -> None:
    pin = replace(PIN, file="some_tool-9.9.tar.gz")
    secret = registry.replace("http://", "http://me:s3cret@")
    with pytest.raises(InputsError, match=r"no Python registry has 'some_tool-9\.9\.tar\.gz'") as told:
        WheelsRecorder([pin], Registries([secret]), blobs=tmp_path / "blobs", now=NOW).get_pinned(pin)
    assert "does not name it" in str(told.value.facts)
    assert "s3cret" not in str(told.value.lines())
    assert "[mirrors] of site.toml" in told.value.hint


def test_pip_tells_the_registries_of_this_host() -> None:
    found = pip_registries()
    assert found
    assert all(one.startswith(("http://", "https://")) for one in found)


# -- laid into a folder


def deb(folder: Path, *members: tuple[tarfile.TarInfo, bytes], form: str = "xz") -> Path:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    packed = {"xz": lzma.compress, "gz": gzip.compress, "": bytes, "zst": bytes}[form](plain.getvalue())
    path = folder / "made_1_all.deb"
    parts = ((b"debian-binary", b"2.0\n"), (b"control.tar", b"odd"), (f"data.tar.{form}".rstrip(".").encode(), packed))
    body = b"!<arch>\n"
    for name, content in parts:
        body += name.ljust(16) + b"0".ljust(32) + str(len(content)).encode().ljust(10) + b"`\n" + content
        body += b"\n" * (len(content) % 2)
    path.write_bytes(body)
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, *, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.mode, made.mtime = kind, link, mode, 1_700_000_000
    return made


@pytest.fixture
def root(tmp_path) -> Root:
    (tmp_path / "root").mkdir()
    return Root(tmp_path / "root", unneeded=["usr/share/doc"])


@pytest.mark.parametrize("form", ["xz", "gz", ""])
def test_a_package_is_laid_in_without_owners_and_set_id_bits(root, tmp_path, form) -> None:
    before = os.umask(0o077)
    try:
        root.add_package(
            deb(
                tmp_path,
                (member("./usr/bin/", tarfile.DIRTYPE, mode=0o2775), b""),
                (member("./usr/bin/tool", mode=0o4755), b"program"),
                (member("./usr/bin/same", tarfile.LNKTYPE, link="./usr/bin/tool"), b""),
                (member("./usr/bin/link", tarfile.SYMTYPE, link="/etc/passwd"), b""),
                (member("./lib/old/place"), b"merged"),
                (member("./usr/share/doc/tool/README"), b"left out"),
                form=form,
            ),
            "tool",
        )
    finally:
        os.umask(before)
    folder = root.folder
    tool = (folder / "usr/bin/tool").stat()
    assert (stat.S_IMODE(tool.st_mode), int(tool.st_mtime), tool.st_nlink) == (0o755, 1_700_000_000, 2)
    assert stat.S_IMODE((folder / "usr/bin").stat().st_mode) == 0o755
    assert (folder / "usr/bin/link").readlink() == Path("/etc/passwd")
    assert (folder / "usr/lib/old/place").read_bytes() == b"merged"
    assert not (folder / "usr/share").exists()


EVIL = {
    "absolute": ([member("/etc/passwd")], "leads out"),
    "upwards": ([member("./../outside")], "leads out"),
    "through a link": (
        [member("./a", tarfile.SYMTYPE, link="/tmp"), member("./a/file")],
        "would write through",
    ),
    "through a link of a link": (
        [member("./a", tarfile.SYMTYPE, link="."), member("./a/a/file")],
        "would write through",
    ),
    "over a link": ([member("./a", tarfile.SYMTYPE, link="/etc/passwd"), member("./a")], "cannot be unpacked"),
    "hard link outwards": ([member("./a", tarfile.LNKTYPE, link="/etc/passwd")], "leads out"),
    "hard link upwards": ([member("./a", tarfile.LNKTYPE, link="../../etc/passwd")], "leads out"),
    "device": ([member("./a", tarfile.CHRTYPE)], "neither a file"),
    "pipe": ([member("./a", tarfile.FIFOTYPE)], "neither a file"),
    "twice": ([member("./a"), member("./a")], "cannot be unpacked"),
}


@pytest.mark.parametrize("case", EVIL)
def test_a_package_that_would_do_harm_is_refused(root, tmp_path, case) -> None:
    members, says = EVIL[case]
    with pytest.raises(BuildError, match=says):
        root.add_package(deb(tmp_path, *((one, b"") for one in members)), "evil")
    assert not (tmp_path / "outside").exists()


@given(cut=st.integers(0, 300), byte=st.integers(0, 255))
def test_a_damaged_package_is_told(tmp_path_factory, cut, byte) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    content = bytearray(deb(folder, (member("./a"), b"content")).read_bytes())
    content[cut % len(content)] ^= byte
    (folder / "d.deb").write_bytes(content[: len(content) - cut])
    (folder / "root").mkdir()
    with contextlib.suppress(BuildError):  # and nothing else
        Root(folder / "root").add_package(folder / "d.deb", "damaged")
    assert [one.name for one in folder.iterdir() if one.name not in {"made_1_all.deb", "d.deb"}] == ["root"]


def test_a_packing_that_is_not_known_is_told(root, tmp_path) -> None:
    with pytest.raises(BuildError, match=r"not read here: data\.tar\.zst"):
        root.add_package(deb(tmp_path, (member("./a"), b""), form="zst"), "new")


# -- Python packages


def wheel(folder: Path, files: dict[str, str], name: str = "tool-1.0-py3-none-any.whl") -> Path:
    with zipfile.ZipFile(folder / name, "w") as archive:
        for inside, text in files.items():
            archive.writestr(zipfile.ZipInfo(inside), text)
    return folder / name


def test_a_wheel_is_laid_in_with_its_programs(root, tmp_path) -> None:
    points = "[console_scripts]\ntool = tool.main:run\n"
    path = wheel(tmp_path, {"tool/main.py": "x = 1\n", "tool-1.0.dist-info/entry_points.txt": points})
    add_python(root, path, path.name)
    assert (root.folder / PACKAGES / "tool/main.py").read_text() == "x = 1\n"
    program = root.folder / "usr/bin/tool"
    assert program.read_text() == "#!/usr/bin/python3\nimport sys\nfrom tool.main import run\nsys.exit(run())\n"
    assert stat.S_IMODE(program.stat().st_mode) == 0o755


def test_programs_in_a_wheel_can_be_run(root, tmp_path) -> None:
    path = tmp_path / "tool-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inside, mode in (("tool/hooks/10-first", 0o755), ("tool/hooks/README", 0o644)):
            member = zipfile.ZipInfo(inside)
            member.external_attr = (stat.S_IFREG | mode) << 16
            archive.writestr(member, "#!/bin/bash\n")
        archive.writestr("tool-1.0.data/scripts/tool-lint", "#!python\nprint()\n")
    add_python(root, path, path.name)
    hooks, program = root.folder / PACKAGES / "tool/hooks", root.folder / "usr/bin/tool-lint"
    assert [stat.S_IMODE((hooks / name).stat().st_mode) for name in ("10-first", "README")] == [0o755, 0o644]
    assert program.read_text() == "#!/usr/bin/python3\nprint()\n"
    assert stat.S_IMODE(program.stat().st_mode) == 0o755


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"../../../outside": "x"}, "leads out"),
        ({"/etc/passwd": "x"}, "needs more than to be copied"),
        ({"tool/fast.so": "x"}, "needs more than to be copied"),
        ({"tool-1.0.data/data/etc/x": "x"}, "needs more than to be copied"),
        ({"tool-1.0.data/scripts/../../x": "x"}, "needs more than to be copied"),
        ({"tool-1.0.dist-info/entry_points.txt": "[console_scripts]\na = b;c:d\n"}, "not one function"),
    ],
)
def test_a_wheel_that_is_more_than_files_is_refused(root, tmp_path, files, says) -> None:
    path = wheel(tmp_path, files)
    with pytest.raises(BuildError) as told:
        add_python(root, path, path.name)
    assert says in str(told.value.lines())
    assert not list(tmp_path.glob("outside*"))


def source(folder: Path, project: str, files: dict[str, str]) -> Path:
    path = folder / "tool-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in {"PKG-INFO": "Name: tool\n", "pyproject.toml": project, **files}.items():
            made = member(f"tool-1.0/{name}")
            made.size = len(text)
            archive.addfile(made, io.BytesIO(text.encode()))
    return path


PROJECT_TOML = """
[tool.poetry]
name = "tool"
version = "1.0"
packages = [{include = "tool"}]
[tool.poetry.scripts]
tool = "tool.main:run"
[tool.poetry.plugins."tool.tasks"]
build = "tool.tasks.build"
"""


def test_a_source_archive_of_pure_python_is_laid_in_as_its_wheel_would_be(root, tmp_path) -> None:
    path = source(tmp_path, PROJECT_TOML, {"tool/main.py": "x = 1\n", "setup.py": "raise SystemExit\n"})
    add_python(root, path, path.name)
    found = {one.name for one in (root.folder / PACKAGES).iterdir()}
    assert found == {"tool", "tool-1.0.dist-info"}
    points = (root.folder / PACKAGES / "tool-1.0.dist-info/entry_points.txt").read_text()
    assert "[tool.tasks]\nbuild=tool.tasks.build\n" in points
    assert (root.folder / "usr/bin/tool").is_file()


@pytest.mark.parametrize(
    ("project", "files"),
    [
        (PROJECT_TOML, {"tool/fast.c": ""}),
        (PROJECT_TOML.replace("packages", 'build = "build.py"\npackages'), {"tool/main.py": ""}),
        (PROJECT_TOML, {}),
        ("[build-system]\n", {"tool/main.py": ""}),
    ],
)
def test_a_source_archive_that_has_to_be_built_is_refused(root, tmp_path, project, files) -> None:
    path = source(tmp_path, project, files)
    with pytest.raises(BuildError, match=r"'tool-1\.0\.tar\.gz' cannot be unpacked"):
        add_python(root, path, path.name)


# -- what it is called


def entry(path: str, digest: str = "a", repository: str = TOOLS) -> Input:
    return Input(repository=repository, path=path, sha512=digest * 128, size_bytes=1)


def test_a_tree_is_known_by_its_packages_alone() -> None:
    one = [entry("dists/trixie/InRelease"), entry("pool/a_1_all.deb"), entry("kiwi/kiwi-1.0.tar.gz", "b", WHEELS)]
    other = [entry("dists/trixie/InRelease", "c"), entry("elsewhere/a_1_all.deb"), *one[2:]]
    assert tree_digest(packages_only(one)) == tree_digest(packages_only(other))
    changed = [one[0], entry("pool/a_1_all.deb", "d"), one[2]]
    assert tree_digest(packages_only(one)) != tree_digest(packages_only(changed))


def test_versions_are_those_of_the_files() -> None:
    files = (
        entry("pool/e2fsprogs_1.47.2-3%2bb12_amd64.deb"),
        entry("pool/e2fsprogs-l10n_9_all.deb"),
        entry("kiwi/kiwi-11.1.6.tar.gz", repository=WHEELS),
        entry("annotated-doc/annotated_doc-0.0.7-py3-none-any.whl", repository=WHEELS),
    )
    tree = ToolsTree(path=Path("/x"), digest="", epoch=0, inputs=files)
    assert (tree.version("e2fsprogs"), tree.version("kiwi")) == ("1.47.2-3+b12", "11.1.6")
    assert (tree.version("annotated_doc"), tree.version("nonesuch")) == ("0.0.7", "")


# -- where it comes from


@pytest.mark.parametrize(
    ("named", "site", "expected"),
    [
        ("https://py.example/simple", {}, "https://py.example/simple"),
        ("https://py.example/simple", {"python": "https://own.example/simple"}, "https://own.example/simple"),
        ("https://me:s3cret@py.example/simple", {}, None),  # would stand in records
        ("file:///srv/simple", {}, None),
        ("", {}, None),
    ],
)
def test_the_shell_may_name_a_registry(monkeypatch, named, site, expected) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", named)
    assert with_registry(Site(mirrors=site)).mirrors.get("python") == expected
