# SPDX-License-Identifier: Apache-2.0
"""Images against flavors."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest

from factory.model import Description, Disk, Flavor
from factory.table import judge, page, table

PROJECT = Path(__file__).parents[2]
IMAGE = Description(
    name="tiny", line="Tiny_1", capabilities=("kvm", "gpu"), metadata={"hypervisor_type": "qemu", "min_ram": "1024"}
)
FLAVOR = Flavor(name="s1", vcpus=1, ram_mib=1024, disk_gib=4)
NOW = datetime(2026, 11, 21, tzinfo=UTC)


@pytest.mark.parametrize(
    ("flavor", "why"),
    [
        ({}, ""),
        ({"disk_gib": 3}, "needs a disk of 4 GiB, the flavor has 3"),
        ({"disk_gib": 0}, ""),
        ({"ram_mib": 1023}, "needs 1024 MiB of memory, the flavor has 1023"),
        ({"arch": "aarch64"}, "the image is for x86_64, the flavor for aarch64"),
        ({"firmware": ("uefi",)}, "boots with bios, the flavor has uefi"),
        ({"firmware": ("uefi", "bios")}, ""),
        ({"hypervisor": "kvm"}, ""),
        ({"hypervisor": "xen"}, "is for the hypervisor qemu, the flavor has xen"),
        ({"requires": ("gpu", "kvm")}, ""),
        ({"requires": ("gpu", "nested", "rdma")}, "lacks nested, rdma"),
    ],
)
def test_where_an_image_runs(flavor: dict[str, object], why: str) -> None:
    cell = judge(IMAGE, dataclasses.replace(FLAVOR, **flavor))  # type: ignore[arg-type]
    assert cell.why_not == ((why,) if why else ())
    assert (cell.runs, cell.moves) == (not why, not why)


@pytest.mark.parametrize(
    ("flavor", "stays"),
    [
        ({"live_migration": False}, "the flavor cannot be moved while it runs"),
        ({"live_migration_requires": ("kvm",)}, ""),
        ({"live_migration_requires": ("agent",)}, "lacks agent"),
    ],
)
def test_where_it_can_move(flavor: dict[str, object], stays: str) -> None:
    cell = judge(IMAGE, dataclasses.replace(FLAVOR, **flavor))  # type: ignore[arg-type]
    assert cell.runs
    assert cell.moves is not bool(stays)
    assert cell.stays == ((stays,) if stays else ())


def test_all_reasons_are_told_at_once_and_the_larger_minimum_counts() -> None:
    image = dataclasses.replace(IMAGE, disk=Disk(min_gib=4), metadata={"min_disk": "8"})
    found = judge(image, dataclasses.replace(FLAVOR, disk_gib=4, ram_mib=256, requires=("x",))).why_not
    assert len(found) == 3
    assert found[0] == "needs a disk of 8 GiB, the flavor has 4"
    assert found[1] == "needs 512 MiB of memory, the flavor has 256"


class Reader(HTMLParser):
    """Counts elements; notes addresses and what is not escaped."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in {"src", "href"}]


def test_the_page_is_self_contained_and_escapes() -> None:
    images = [IMAGE, dataclasses.replace(IMAGE, name="<script>alert(1)</script>", capabilities=())]
    flavors = [FLAVOR, dataclasses.replace(FLAVOR, name="s2 & co", requires=("gpu",))]
    text = page(table(images, flavors), now=NOW)
    reader = Reader()
    reader.feed(text)
    assert reader.tags.count("td") == 4
    assert "script" not in reader.tags
    assert reader.links == []
    assert "&lt;script&gt;" in text
    assert "s2 &amp; co" in text
    assert "lacks gpu" in text


SITE = """\
[[flavor]]
name = "s1"
vcpus = 1
ram_mib = 1024
disk_gib = 10
[[flavor]]
name = "gpu"
vcpus = 8
ram_mib = 16384
disk_gib = 100
requires = ["gpu"]
live_migration = false
"""


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text(SITE)
    command = [sys.executable, "-m", "factory.cli", "--state", tmp_path / "state", "--site", tmp_path / "site.toml"]
    run = {"capture_output": True, "text": True, "cwd": PROJECT}
    done = subprocess.run([*command, "table", "--json", "--html", tmp_path / "t.html"], check=False, **run)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["schema"] == "factory/table/1"
    found = {(one["image"], one["flavor"]): one for one in told["value"]}
    assert found["debian13", "s1"]["runs"]
    assert found["debian13", "s1"]["live_migration"]
    assert found["debian13", "gpu"]["why_not"] == ["lacks gpu"]
    assert "debian13" in (tmp_path / "t.html").read_text()
    (tmp_path / "site.toml").write_text("")
    refused = subprocess.run([*command, "table"], check=False, **run)
    assert (refused.returncode, "names no flavor" in refused.stderr) == (2, True)
