# SPDX-License-Identifier: Apache-2.0
"""What an rpm-md repository says of itself: read, or refused by name."""

from __future__ import annotations

import contextlib
import io
from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from factory.errors import InputsError
from factory.inputs.rpm_md import RpmPackage, epoch, parse_primary, parse_repomd

DIGEST = "0123456789abcdef" * 4
REPOMD = f"""<?xml version="1.0" encoding="UTF-8"?>
<repomd xmlns="http://linux.duke.edu/metadata/repo" xmlns:rpm="http://linux.duke.edu/metadata/rpm">
  <revision>1795200000</revision>
  <data type="primary">
    <checksum type="sha256">{DIGEST}</checksum>
    <open-checksum type="sha256">{"f" * 64}</open-checksum>
    <location href="repodata/{DIGEST}-primary.xml.zst"/>
    <timestamp>1795203600</timestamp>
    <size>100</size>
  </data>
  <data type="filelists">
    <checksum type="sha256">{"a" * 64}</checksum>
    <location href="repodata/filelists.xml.gz"/>
    <timestamp>1795203000</timestamp>
  </data>
</repomd>
"""
PRIMARY = f"""<?xml version="1.0" encoding="UTF-8"?>
<metadata xmlns="http://linux.duke.edu/metadata/common" xmlns:rpm="http://linux.duke.edu/metadata/rpm" packages="1">
<package type="rpm">
  <name>tool</name><arch>noarch</arch><version epoch="1" ver="2.0" rel="3"/>
  <checksum type="sha256" pkgid="YES">{DIGEST}</checksum>
  <size package="4711" installed="1" archive="1"/>
  <location href="noarch/tool-2.0-3.noarch.rpm"/>
  <format><rpm:sourcerpm>tools-all-2.0-3.src.rpm</rpm:sourcerpm></format>
</package>
</metadata>
"""


def packages(text: str) -> list[RpmPackage]:
    return list(parse_primary(io.BytesIO(text.encode())))


def test_a_repomd_names_its_indexes_and_its_date() -> None:
    found = parse_repomd(REPOMD.encode())
    assert found.primary == f"repodata/{DIGEST}-primary.xml.zst"
    assert found.files == {found.primary: DIGEST, "repodata/filelists.xml.gz": "a" * 64}
    assert found.date == datetime.fromtimestamp(1795203600, UTC)
    assert epoch([found]) == 1795203600


@pytest.mark.parametrize(
    ("revision", "date"),
    [("1795299999", 1795299999), ("15.6", 1795203600), ("", 1795203600), ("1.795e9", 1795203600), ("7", 1795203600)],
)
def test_a_revision_counts_where_it_is_a_time(revision: str, date: int) -> None:
    text = REPOMD.replace("<revision>1795200000<", f"<revision>{revision}<")
    assert epoch([parse_repomd(text.encode())]) == date


def test_a_package_is_read_with_all_that_says_what_it_is() -> None:
    (found,) = packages(PRIMARY)
    assert found == RpmPackage(
        name="tool",
        epoch="1",
        version="2.0",
        release="3",
        arch="noarch",
        path="noarch/tool-2.0-3.noarch.rpm",
        sha256=DIGEST,
        size_bytes=4711,
        source="tools-all-2.0-3.src.rpm",
    )
    assert (found.evr, found.made_of) == ("1:2.0-3", ("tools-all", "2.0-3"))
    (plain,) = packages(PRIMARY.replace('epoch="1"', 'epoch="0"').replace("tools-all-2.0-3.src.rpm", ""))
    assert (plain.evr, plain.made_of) == ("2.0-3", ("tool", "2.0-3"))


PLACES = ("../x.rpm", "/x.rpm", "a//b.rpm", "http://elsewhere.example/x.rpm", "a/../../x", "", "a\\b", "./x", "a&#10;b")


@pytest.mark.parametrize("place", PLACES)
def test_a_file_is_below_its_repository(place: str) -> None:
    with pytest.raises(InputsError) as told:
        packages(PRIMARY.replace("noarch/tool-2.0-3.noarch.rpm", place))
    assert "is no path below the repository" in str(told.value.facts)
    with pytest.raises(InputsError) as told:
        parse_repomd(REPOMD.replace("repodata/filelists.xml.gz", place).encode())
    assert "is no path below the repository" in str(told.value.facts)


ENTITIES = '<!DOCTYPE x [<!ENTITY a "b"><!ENTITY c "&a;&a;&a;&a;">]>'
BAD = {
    "no xml": ("", "<repomd", "syntax|closed|element|token|found"),
    "another kind": ("repomd ", "html ", "mismatched|another kind"),
    "entities": ("<repomd ", f"{ENTITIES}<repomd ", "DTDForbidden|DTD"),
    "no primary": ('type="primary"', 'type="group"', "names no list of packages"),
    "md5": ('<checksum type="sha256">', '<checksum type="md5">', "by a md5 checksum, not by SHA-256"),
    "a short digest": (DIGEST, "0123", "not by SHA-256"),
    "no date": ("17952", "", "has no date"),
    "elsewhere": (
        '<location href="repodata/f',
        '<location xml:base="http://e.example" href="repodata/f',
        "another address",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_trusted_is_refused(case: str) -> None:
    old, new, says = BAD[case]
    text = REPOMD.replace(old, new) if old else new
    with pytest.raises(InputsError, match=r"repomd\.xml cannot be used") as told:
        parse_repomd(text.encode())
    assert any(one in str(told.value.facts) for one in says.split("|")), told.value.facts


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<name>tool</name>", ""),
        ('<version epoch="1" ver="2.0" rel="3"/>', ""),
        ('package="4711"', 'package="many"'),
        ("<metadata ", f"{ENTITIES}<metadata "),
        ('type="sha256" pkgid', 'type="sha" pkgid'),
        ("</metadata>", ""),
    ],
)
def test_a_list_of_packages_that_is_not_one_is_refused(old: str, new: str) -> None:
    with pytest.raises(InputsError, match="list of packages cannot be used"):
        packages(PRIMARY.replace(old, new))


def test_what_is_too_long_is_not_read() -> None:
    with pytest.raises(InputsError):
        parse_repomd(REPOMD.encode() + b" " * (5 << 20))


@given(at=st.integers(0, 3000), byte=st.integers(0, 255))
@example(at=PRIMARY.index("UTF-8") + 1, byte=ord("-"))  # an encoding that nobody knows
def test_damaged_text_is_read_or_refused(at: int, byte: int) -> None:
    for text, read in ((REPOMD, parse_repomd), (PRIMARY, lambda raw: list(parse_primary(io.BytesIO(raw))))):
        raw = bytearray(text.encode())
        raw[at % len(raw)] = byte
        with contextlib.suppress(InputsError):
            read(bytes(raw))


@given(st.integers(0, 60))
def test_many_packages_are_read_one_by_one(many: int) -> None:
    head, package, tail = (
        PRIMARY.partition("<package ")[0],
        PRIMARY.partition("<package ")[2].partition("</metadata>")[0],
        "</metadata>",
    )
    text = head + "".join(f"<package {package}".replace("tool-2", f"tool{number}-2") for number in range(many)) + tail
    assert [one.path for one in packages(text)] == [f"noarch/tool{number}-2.0-3.noarch.rpm" for number in range(many)]
