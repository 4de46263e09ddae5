# SPDX-License-Identifier: Apache-2.0
"""A description in halves, the names of kept root trees, and how kiwi reads in a box."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from json import dumps
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kiwi.command import Command
from kiwi.command_process import CommandProcess

from factory.build import kept
from factory.build.halves import halves
from factory.inputs.lock import Input
from factory.inputs.roots import NOTE, Root, surplus
from factory.system.files import sha256_file
from testsuite.conftest import PROJECT

HEAD = '<description type="system"><author>A</author><contact>a@b.example</contact></description>'
PREFERENCES = (
    "<preferences><version>1.0.0</version><packagemanager>apt</packagemanager><timezone>UTC</timezone>{more}"
    '<type image="oem" filesystem="ext4"{attributes}><size unit="M">1024</size></type></preferences>'
)
PACKAGES = (
    '<packages type="bootstrap"><package name="apt"/></packages><packages type="image"><package name="x"/></packages>'
)


def described(
    folder: Path, *, attributes: str = "", more: str = "", packages: str = PACKAGES, rest: str = "", script: str = ""
) -> Path:
    preferences = PREFERENCES.format(attributes=attributes, more=more)
    text = f'<?xml version="1.0"?>\n<image schemaversion="8.3" name="i">{HEAD}{preferences}{packages}{rest}</image>\n'
    (folder / "config.xml").write_text(text)
    if script:
        (folder / "post_bootstrap.sh").write_text(script)
    return folder


def tags(text: str) -> set[str]:
    return {one.tag for one in ET.fromstring(text).iter()}


def test_the_first_half_has_the_packages_and_the_second_all_else(tmp_path: Path) -> None:
    rest = '<users><user name="root" password="!"/></users><repository><source path="http://m.example"/></repository>'
    found = halves(described(tmp_path, rest=rest, script="#!/bin/sh\n"))
    assert found is not None
    assert found.packages["post_bootstrap.sh"] == "#!/bin/sh\n"
    assert tags(found.packages["config.xml"]) >= {"packages", "packagemanager", "type", "size"}
    assert not tags(found.packages["config.xml"]) & {"users", "timezone", "repository"}
    assert tags(found.afterwards) >= {"users", "timezone", "repository", "type", "size"}
    assert "packages" not in tags(found.afterwards)


def test_the_projects_own_description_has_halves() -> None:
    found = halves(PROJECT / "descriptions" / "debian13")
    assert found is not None
    assert 'name="linux-image-cloud-amd64"' in found.packages["config.xml"]
    assert "dpkg-divert" in found.packages["post_bootstrap.sh"]


SAME_FIRST = {
    "a comment": {"rest": "<!-- why -->"},
    "a user": {"rest": '<users><user name="root" password="!"/></users>'},
    "a repository": {"rest": '<repository><source path="http://m.example"/></repository>'},
    "a locale": {"more": "<locale>en_US</locale>"},
}
OTHER_FIRST = {
    "a package": {"packages": PACKAGES.replace('"x"', '"y"')},
    "a package of the bootstrap": {"packages": PACKAGES.replace('"apt"', '"dpkg"')},
    "the script": {"script": "#!/bin/sh\ntrue\n"},
    "how packages are chosen": {"packages": PACKAGES.replace('"image"', '"image" patternType="plusRecommended"')},
}
WHOLE = {
    "profiles": {"rest": '<profiles><profile name="a" description="b"/></profiles>'},
    "drivers": {"rest": '<drivers><file name="a"/></drivers>'},
    "packages of a profile": {"packages": PACKAGES.replace('"image"', '"image" profiles="a"')},
    "an archive": {"packages": PACKAGES.replace('<package name="x"/>', '<archive name="x.tar"/>')},
    "a file": {"packages": PACKAGES.replace('<package name="x"/>', '<file name="x"/>')},
    "a package by condition": {"packages": PACKAGES.replace('name="x"', 'name="x" arch="x86_64"')},
    "packages to delete": {"packages": PACKAGES + '<packages type="delete"><package name="x"/></packages>'},
    "a prebuilt bootstrap": {"packages": PACKAGES.replace('"bootstrap"', '"bootstrap" bootstrap_package="b"')},
    "no bootstrap": {"packages": PACKAGES.replace('"bootstrap"', '"image"')},
    "an overlay root": {"attributes": ' overlayroot="true"'},
    "an installer": {"attributes": ' installiso="true"'},
    "another package manager": {"more": "<packagemanager>zypper</packagemanager>"},
}


@pytest.mark.parametrize("case", SAME_FIRST)
def test_what_comes_afterwards_does_not_change_the_first_half(tmp_path: Path, case: str) -> None:
    before, after = halves(described(tmp_path)), halves(described(tmp_path, **SAME_FIRST[case]))
    assert before
    assert after
    assert before.packages == after.packages


@pytest.mark.parametrize("case", OTHER_FIRST)
def test_what_shapes_the_packages_changes_the_first_half(tmp_path: Path, case: str) -> None:
    before, after = halves(described(tmp_path)), halves(described(tmp_path, **OTHER_FIRST[case]))
    assert before
    assert after
    assert before.packages != after.packages


@pytest.mark.parametrize("case", WHOLE)
def test_what_is_known_to_work_only_as_a_whole_is_not_halved(tmp_path: Path, case: str) -> None:
    assert halves(described(tmp_path, **WHOLE[case])) is None


@pytest.mark.parametrize("text", ["", "<image", '<!DOCTYPE x [<!ENTITY e "e">]><image>&e;</image>'])
def test_what_is_no_description_is_left_to_kiwi_to_refuse(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.xml").write_text(text)
    assert halves(tmp_path) is None


# -- names

BASIS = {
    "tools": "a" * 64,
    "epoch": 1_795_140_670,
    "command": ("kiwi-ng", "system", "prepare"),
    "description": {"config.xml": "<image/>\n"},
    "indexes": (Input(repository="debian", path="dists/trixie/InRelease", sha512="b" * 128, size_bytes=1),),
}
ANOTHER = {
    "tools": "c" * 64,
    "epoch": 1_795_140_671,
    "command": ("kiwi-ng", "system", "prepare", "--add-repo"),
    "description": {"config.xml": "<image/>\n", "post_bootstrap.sh": ""},
    "indexes": (Input(repository="debian", path="dists/trixie/InRelease", sha512="d" * 128, size_bytes=1),),
}


@pytest.mark.parametrize("part", BASIS)
def test_another_basis_is_another_tree(part: str) -> None:
    assert kept.key_of(**BASIS) == kept.key_of(**BASIS)
    assert kept.key_of(**{**BASIS, part: ANOTHER[part]}) != kept.key_of(**BASIS)


def test_another_box_is_another_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = kept.key_of(**BASIS)
    (tmp_path / "init.sh").write_text("another\n")
    monkeypatch.setattr(kept, "_MADE_BY", tmp_path)
    assert kept.key_of(**BASIS) != before


# -- the shelf


def shelved(folder: Path, key: str, *, image: str = "debian13", age_s: int = 0) -> kept.Shelf:
    shelf = kept.Shelf(folder=folder, key=key, image=image)
    shelf.place.mkdir(parents=True)
    (shelf.place / kept.ARCHIVE).write_bytes(key.encode())
    root = Root(image=image, sha256=sha256_file(shelf.place / kept.ARCHIVE), inputs=BASIS["indexes"])
    (shelf.place / NOTE).write_text(dumps(asdict(root)))
    os.utime(shelf.place, (2_000_000_000 - age_s,) * 2)
    return shelf


def test_a_whole_tree_is_found_and_counts_as_used(tmp_path: Path) -> None:
    shelf = shelved(tmp_path, "a")
    found = kept.find(shelf)
    assert found is not None
    assert found.inputs == BASIS["indexes"]
    assert abs(shelf.place.stat().st_mtime - time.time()) < 60
    assert kept.find(kept.Shelf(folder=tmp_path, key="b", image="debian13")) is None


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (kept.ARCHIVE, lambda path: path.write_bytes(b"b")),
        (kept.ARCHIVE, Path.unlink),
        (NOTE, lambda path: path.write_text("{")),
        (NOTE, lambda path: path.write_text("[1]")),
        (NOTE, Path.unlink),
    ],
)
def test_a_damaged_tree_is_none_and_goes(tmp_path: Path, name: str, damage) -> None:
    shelf = shelved(tmp_path, "a")
    damage(shelf.place / name)
    assert kept.find(shelf) is None
    assert not shelf.place.exists()


def test_the_newest_trees_of_each_image_stay(tmp_path: Path) -> None:
    for age_s, key in enumerate("abcd"):
        shelved(tmp_path, key, age_s=age_s)
    shelved(tmp_path, "other", image="web", age_s=99)
    (tmp_path / ".e.part").mkdir()
    assert {path.name for path in surplus(tmp_path)} == {"c", "d"}
    assert surplus(tmp_path / "nowhere") == ()


# -- how kiwi reads in a box


@pytest.fixture(scope="module")
def lines():
    path = Path(kept.__file__).parent / "inside" / "standins" / "kiwi_ng.py"
    found = importlib.util.spec_from_file_location("kiwi_ng_of_the_box", path)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module.Lines


def said(lines, argv: list[str]) -> tuple[list[str], CommandProcess]:
    process = CommandProcess(Command.call(argv))
    process.command = lines(process.command.command)
    return [line.stdout_line for line in process.command if line.stdout_line], process


def test_all_that_a_program_prints_is_read_at_once(lines) -> None:
    program = "import sys\nfor n in range(20000): print('line', n)\nprint('bad', file=sys.stderr)\nsys.exit(3)"
    started = time.monotonic()
    found, process = said(lines, [sys.executable, "-c", program])
    assert time.monotonic() - started < 5  # five kilobytes a second would be a minute
    assert found == [f"line {n}" for n in range(20000)]
    assert process.command.get_error_output() == "bad\n"
    assert process.returncode() == 3


def test_a_line_is_given_when_it_is_there(lines) -> None:
    program = "import sys, time; print('first', flush=True); sys.stdin.read()"
    read, write = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", program], stdin=read, stdout=-1, stderr=-1)
    call = Command.call(["true"])._replace(output=process.stdout, error=process.stderr, process=process)
    threading.Timer(20, process.kill).start()  # in place of hanging
    assert next(lines(call)).stdout_line == "first"
    assert process.poll() is None
    os.close(read)
    os.close(write)
    process.kill()


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), max_size=30), max_size=20))
def test_lines_are_those_that_kiwi_reads_itself(lines, texts: list[str]) -> None:
    argv = ["printf", "%s\\n", *texts]
    theirs = [line.stdout_line for line in CommandProcess(Command.call(argv)).command if line.stdout_line]
    assert said(lines, argv)[0] == theirs
