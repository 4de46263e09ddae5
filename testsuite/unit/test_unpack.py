# SPDX-License-Identifier: Apache-2.0
"""Archives that would do harm are refused; what was written by then lies below the folder only."""

from __future__ import annotations

import io
import lzma
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.errors import NotGood
from factory.system.unpack import Limits, unpack


def member(name: str, content: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    made = tarfile.TarInfo(name)
    made.size = len(content)
    for field, value in fields.items():
        setattr(made, field, value)
    return made, content


def packed(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    path.write_bytes(lzma.compress(plain.getvalue(), preset=0) if path.suffix == ".xz" else plain.getvalue())
    return path


TOP = member("top", type=tarfile.DIRTYPE, mode=0o700)


@pytest.fixture
def place(tmp_path) -> Path:
    folder = tmp_path / "outer" / "inner"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("ending", ["tar", "tar.xz"])
def test_files_folders_and_links_appear(tmp_path, place, ending) -> None:
    archive = packed(
        tmp_path / f"a.{ending}",
        TOP,
        member("top/a", b"one", mode=0o4755),
        member("top/deep/b", b"two", mode=0o666, uid=1234),
        member("top/link", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    )
    top = unpack(archive, place, links=True)
    assert top == place / "top"
    assert (top / "a").read_bytes() == b"one"
    assert (top / "a").stat().st_mode & 0o7777 == 0o755
    assert (top / "deep/b").stat().st_mode & 0o7777 == 0o644
    assert (top / "link").readlink() == Path("/etc/passwd")


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ([member("../outside", b"x")], "leads out"),
        ([member("top/../../outside", b"x")], "leads out"),
        ([member("/outside", b"x")], "leads out"),
        ([member("top/link", type=tarfile.LNKTYPE, linkname="/etc/passwd")], "neither a plain file"),
        ([member("top/pipe", type=tarfile.FIFOTYPE)], "neither a plain file"),
        ([member("top/device", type=tarfile.BLKTYPE, devmajor=7)], "neither a plain file"),
        ([member("top/l", type=tarfile.SYMTYPE, linkname="../.."), member("top/l/outside", b"x")], "through a link"),
        ([member("top/l", type=tarfile.SYMTYPE, linkname="outside"), member("top/l", b"x")], "is there twice"),
        ([member("top/a", b"x"), member("top/a", b"y")], "is there twice"),
        ([member("top/a\nb", b"x")], "name that no such file has"),
        ([member("/".join("d" * 40), b"x")], "name that no such file has"),
        ([member(f"top/{n}") for n in range(12)], "more than 10 files"),
        ([member("top/a", b"x" * (3 << 20))], "more than 2 MiB"),
        ([member("top/a"), member("other/b")], "does not hold one folder"),
    ],
)
def test_what_has_no_place_in_an_archive_is_refused(tmp_path, place, members, says) -> None:
    archive = packed(tmp_path / "a.tar.xz", *members)
    with pytest.raises(NotGood, match=says):
        unpack(archive, place, links=True, limits=Limits(bytes_unpacked=2 << 20, files=10))
    assert [path.name for path in (tmp_path / "outer").iterdir()] == ["inner"]
    assert not (tmp_path / "outside").exists()


def test_links_are_refused_where_none_are_asked_for(tmp_path, place) -> None:
    with pytest.raises(NotGood, match="'top/l' is neither"):
        unpack(packed(tmp_path / "a.tar", member("top/l", type=tarfile.SYMTYPE, linkname="a")), place)


def test_a_bomb_ends_early(tmp_path, place) -> None:
    bomb = tmp_path / "a.tar.xz"
    header, _ = member("top/zeros")
    header.size = 1 << 30
    with lzma.open(bomb, "wb", preset=0) as out:
        out.write(header.tobuf())
        for _ in range(64):
            out.write(bytes(1 << 20))
    assert bomb.stat().st_size < 1 << 20
    with pytest.raises(NotGood, match="more than 4 MiB"):
        unpack(bomb, place, limits=Limits(bytes_unpacked=4 << 20))
    assert sum(path.stat().st_size for path in place.rglob("*")) <= 4 << 20


def test_a_name_without_end_is_not_believed(tmp_path, place) -> None:
    header, _ = member("././@LongLink", type=tarfile.GNUTYPE_LONGNAME)
    header.size = 1 << 30
    (tmp_path / "a.tar").write_bytes(header.tobuf() + bytes(1 << 20))
    with pytest.raises(NotGood, match="larger than any header"):
        unpack(tmp_path / "a.tar", place)


@given(st.binary(max_size=4096))
def test_noise_is_refused(tmp_path_factory, noise) -> None:
    folder = tmp_path_factory.mktemp("noise")
    for name in ("a.tar", "a.tar.xz"):
        (folder / name).write_bytes(noise)
        (folder / "in").mkdir(exist_ok=True)
        with pytest.raises(NotGood):
            unpack(folder / name, folder / "in")
