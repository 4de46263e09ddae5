# SPDX-License-Identifier: Apache-2.0
"""Inputs carried elsewhere: exactly what a lock names, and nothing that differs from it."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from factory.errors import InputFault, NotGood
from factory.inputs.export import Moved, export_inputs, import_inputs, unsound
from factory.inputs.lock import Input, read_lock, write_lock
from factory.system.files import sha256_file


def entry(path: str, content: bytes) -> Input:
    return Input(repository="debian", path=path, sha512=hashlib.sha512(content).hexdigest(), size_bytes=len(content))


@pytest.fixture
def lock(tmp_path) -> Path:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for content in (b"one", b"two", b"of another build"):
        (blobs / hashlib.sha512(content).hexdigest()).write_bytes(content)
    found = tmp_path / "inputs.lock"
    write_lock(
        found,
        [entry("a", b"one"), entry("b", b"two"), entry("c", b"one"), Input(repository="debian", path="d", status=404)],
    )
    return found


def exported(lock: Path, to: Path) -> Moved:
    return export_inputs(lock, blobs=lock.parent / "blobs", to=to, say=lambda _: None)


def imported(source: Path, blobs: Path) -> Moved:
    return import_inputs(source, blobs=blobs, say=lambda _: None)


@pytest.mark.parametrize("name", ["out", "out.tar"])
def test_an_export_is_what_the_lock_names_and_comes_in_again(lock, tmp_path, name) -> None:
    moved = exported(lock, tmp_path / name)
    assert (moved.files, moved.size_bytes) == (2, 6)
    other = tmp_path / "other"
    assert imported(tmp_path / name, other).new == 2
    assert imported(tmp_path / name, other).new == 0
    names = sorted(path.name for path in other.iterdir() if path.is_file())
    assert names == sorted(hashlib.sha512(content).hexdigest() for content in (b"one", b"two"))
    assert (other / "by-sha256" / hashlib.sha256(b"one").hexdigest()).read_bytes() == b"one"
    assert not unsound(read_lock(lock), other)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["blobs", "inputs.lock", "other", name])


def test_two_exports_are_the_same_file(lock, tmp_path) -> None:
    sums = [sha256_file(exported(lock, tmp_path / name).place) for name in ("a.tar", "b.tar")]
    assert sums[0] == sums[1]


@pytest.mark.parametrize("damage", [b"oNe", b"", None])
def test_a_store_that_is_not_whole_is_told_and_not_exported(lock, tmp_path, damage) -> None:
    file = tmp_path / "blobs" / hashlib.sha512(b"one").hexdigest()
    file.write_bytes(damage) if damage is not None else file.unlink()
    (bad,) = unsound(read_lock(lock), tmp_path / "blobs")
    assert (bad.path, bad.problem) == ("a", "is missing" if damage is None else "has other bytes")
    with pytest.raises(NotGood, match="1 of the inputs are not there"):
        exported(lock, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blobs", "inputs.lock"]


def test_a_damaged_export_is_not_taken_in_at_all(lock, tmp_path) -> None:
    exported(lock, tmp_path / "out")
    (tmp_path / "out" / "blobs" / hashlib.sha512(b"two").hexdigest()).write_bytes(b"tWo")
    with pytest.raises(NotGood, match="1 of the inputs"):
        imported(tmp_path / "out", tmp_path / "other")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["by-sha256"]


def test_a_tar_file_that_would_do_harm_is_refused(tmp_path) -> None:
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        member = tarfile.TarInfo("../outside")
        member.size = 1
        archive.addfile(member, io.BytesIO(b"x"))
    with pytest.raises(NotGood, match="leads out"):
        imported(tmp_path / "evil.tar", tmp_path / "other")
    assert not (tmp_path / "outside").exists()


def test_what_is_no_export_is_told(lock, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotGood, match="is no export"):
        imported(tmp_path / "empty", tmp_path / "other")
    with pytest.raises(InputFault, match="no folder or tar file"):
        imported(tmp_path / "none", tmp_path / "other")
    with pytest.raises(InputFault, match="exists already"):
        exported(lock, tmp_path / "blobs")
