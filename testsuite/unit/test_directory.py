# SPDX-License-Identifier: Apache-2.0
"""The download directory and its page."""

from __future__ import annotations

import dataclasses
import html
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from factory.errors import FactoryError
from factory.model import Bundle, Target
from factory.store.directory import create_line, index_page, publish_directory
from factory.store.metadata import metadata
from testsuite.fakes.bundles import make_bundle, with_description

NAME = "Standard_Debian_13_20261121"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle", data_bytes=4096)


def test_a_release_is_offered_whole_and_once(bundle: Bundle, tmp_path: Path) -> None:
    folder = publish_directory(bundle, NAME, dist=tmp_path / "dist")
    assert folder == tmp_path / "dist" / "Standard_Debian_13" / NAME
    assert {path.name for path in folder.iterdir()} == {*bundle.files, "index.html"}
    assert [path.name for path in folder.parent.iterdir()] == [NAME]
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, check=True)
    written = (folder / "index.html").stat().st_mtime_ns
    publish_directory(bundle, NAME, dist=tmp_path / "dist")
    assert (folder / "index.html").stat().st_mtime_ns == written


def test_the_page_leads_to_what_is_attested(bundle: Bundle) -> None:
    attested = dataclasses.replace(bundle, statements=("https://slsa.dev/provenance/v1",))
    named = f'href="{bundle.artifact.path.name}.intoto.jsonl"'
    assert named in index_page(attested, NAME, metadata(bundle, Target()))
    assert named not in index_page(bundle, NAME, metadata(bundle, Target()))


def test_what_a_killed_run_left_is_replaced(bundle: Bundle, tmp_path: Path) -> None:
    left = tmp_path / "dist" / "Standard_Debian_13" / f".{NAME}.part"
    left.mkdir(parents=True)
    (left / "half").write_text("x")
    folder = publish_directory(bundle, NAME, dist=tmp_path / "dist")
    assert not left.exists()
    assert not (folder / "half").exists()


def test_other_bytes_than_were_signed_are_not_offered(bundle: Bundle, tmp_path: Path) -> None:
    bundle.artifact.path.write_bytes(b"other")
    with pytest.raises(FactoryError, match="not the file that was recorded"):
        publish_directory(bundle, NAME, dist=tmp_path / "dist")
    assert list((tmp_path / "dist" / "Standard_Debian_13").iterdir()) == []


def test_the_page_tells_what_is_needed_to_use_the_image(bundle: Bundle) -> None:
    page = index_page(bundle, NAME, metadata(bundle, Target()))
    text = html.unescape(re.sub(r"<[^>]+>", "", page))
    for expected in ("minimum disk 4 GiB", "throw-away key", "gpg --verify SHA256SUMS.asc SHA256SUMS", "A" * 40):
        assert expected in text
    for name in bundle.files:
        assert f'href="{name}"' in page
    assert "imgfactory_" not in page
    command = next(line for line in text.splitlines() if line.startswith("openstack image create"))
    words = shlex.split(command)
    assert words[-1] == NAME
    assert "hw_disk_bus=scsi" in words
    assert words[words.index("--file") + 1] == bundle.artifact.path.name


def test_hostile_text_is_escaped_and_quoted(bundle: Bundle) -> None:
    nasty = "<script>alert(1)</script> $(reboot) 'x'"
    other = with_description(bundle, metadata={"image_description": nasty})
    page = index_page(other, NAME, metadata(other, Target()))
    assert "<script>" not in page
    words = shlex.split(create_line("i.qcow2", NAME, {**metadata(other, Target())}))
    assert f"image_description={nasty}" in words


def test_a_key_that_is_kept_is_not_called_throw_away(bundle: Bundle) -> None:
    page = index_page(dataclasses.replace(bundle, throw_away_key=False), NAME, metadata(bundle, Target()))
    assert "throw-away" not in page
