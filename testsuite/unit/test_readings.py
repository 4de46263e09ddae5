# SPDX-License-Identifier: Apache-2.0
"""What was read of a file is believed for as long as it is the file that was read, and not longer."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from factory.errors import FactoryError
from factory.system.files import digests, expect_digest
from factory.system.readings import SETTLED_NS, _settled, known_sha256, link

WAS, IS = b"what was read", b"another thing"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def settle() -> None:
    time.sleep(2 * SETTLED_NS / 1e9)


@pytest.fixture
def known(tmp_path: Path) -> Path:
    """A file that was read, and is believed to be the same still."""
    path = tmp_path / "image"
    path.write_bytes(WAS)
    settle()
    expect_digest(path, sha256(WAS))
    assert known_sha256(path) == sha256(WAS)
    return path


def with_its_old_times(path: Path) -> None:
    before = path.stat()
    path.write_bytes(IS)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def as_another_file(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(IS)
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.replace(path)


def through_a_second_name(path: Path) -> None:
    link(path, path.with_name("second"))
    assert known_sha256(path) == sha256(WAS)
    path.with_name("second").write_bytes(IS)


@pytest.mark.parametrize(
    "change", [lambda path: path.write_bytes(IS), with_its_old_times, as_another_file, through_a_second_name]
)
def test_every_change_is_seen(known: Path, change: Callable[[Path], object]) -> None:
    change(known)
    with pytest.raises(FactoryError, match="not the file that was recorded"):
        expect_digest(known, sha256(WAS))


def test_a_file_that_was_just_written_is_read_each_time(tmp_path: Path) -> None:
    path = tmp_path / "image"
    for number in range(100):  # where the kernel's clock is coarse, many of these have the time of the one before
        content = b"%6d" % number
        path.write_bytes(content)
        expect_digest(path, sha256(content))
        assert known_sha256(path) is None


def test_times_of_whole_seconds_tell_too_little() -> None:
    assert _settled((0, 0, 1, 5, 5), 10**10)
    assert not _settled((0, 0, 1, 5, 10**9), 10**10)


def test_nothing_is_read_twice_unless_it_must_be(known: Path) -> None:
    def seen() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    known.write_bytes(b"x" * (8 << 20))
    found = digests(known)
    settle()
    expect_digest(known, found.sha256)
    read = seen()
    expect_digest(known, found.sha256)
    assert seen() - read < 1 << 20
    expect_digest(known, found.sha256, anew=True)
    assert seen() - read > 8 << 20


def test_a_second_name_does_not_make_believe_what_was_never_read(tmp_path: Path) -> None:
    path, second = tmp_path / "image", tmp_path / "second"
    path.write_bytes(WAS)
    link(path, second)
    assert known_sha256(second) is None
