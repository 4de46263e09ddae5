# SPDX-License-Identifier: Apache-2.0
"""The disk: how small it may be, how full it is, and that it grows."""

from __future__ import annotations

import json

import pytest

_GIB = 1 << 30
DISKS = "lsblk --json --bytes --output NAME,TYPE,SIZE,MOUNTPOINT,FSTYPE"
ROOT = "df --block-size=1 --output=size,used,avail / | tail -n 1; findmnt -n -o FSTYPE,SOURCE /"


def test_the_image_fits_the_smallest_disk(facts, description):
    """The image's virtual size is not larger than the smallest disk it is for."""
    size, limit = facts.image.virtual_size_bytes, description.disk.min_gib * _GIB
    assert size <= limit, f"the image wants {size / _GIB:.2f} GiB, but promises to fit {description.disk.min_gib} GiB"


def test_the_root_file_system_is_the_described_one(guest, description):
    """The root file system is of the described type."""
    found = guest.root(ROOT).splitlines()[1].split()[0]
    assert found == description.disk.root_fs, f"the root file system is {found}, not {description.disk.root_fs}"


def test_the_root_file_system_fills_the_disk(guest, facts):
    """On a larger disk the root partition and its file system grow at the first boot to the whole disk."""
    size = int(guest.root(ROOT).split()[0])
    given = facts.disk_bytes
    assert size > 0.92 * given, f"the root file system has {size / _GIB:.2f} GiB on a disk of {given / _GIB:.2f} GiB"


def test_the_image_uses_little_space(guest, description):
    """A freshly booted guest uses less space than the budget."""
    used = int(guest.root(ROOT).split()[1]) >> 20
    assert used <= description.budgets.used_mib, (
        f"the guest uses {used} MiB, more than {description.budgets.used_mib} MiB"
    )


def test_the_root_disk_is_virtio(guest):
    """The root disk is found through virtio (or Xen), by its UUID and not by its name."""
    fstab = guest.root("cat /etc/fstab")
    roots = [line.split()[0] for line in fstab.splitlines() if line.split()[1:2] == ["/"]]
    assert roots, "/etc/fstab does not name the root file system"
    assert roots[0].startswith(("UUID=", "PARTUUID=", "LABEL=", "/dev/disk/by-")), (
        f"/etc/fstab names the root {roots[0]}"
    )


def test_there_is_no_swap(guest):
    """The image brings no swap: that is the customer's choice."""
    found = guest.root("tail -n +2 /proc/swaps; awk '$3 == \"swap\"' /etc/fstab").strip()
    assert not found, f"the image brings swap: {found}"


@pytest.fixture
def small(facts):
    """What was seen at the boot on the other disk size."""
    return facts.other


@pytest.mark.later
@pytest.mark.needs("other")
def test_the_image_grows_on_a_second_disk_size(small):
    """The image boots and fills a disk of another size, too."""
    if small is None:
        pytest.fail("no boot on another disk size was made")
    assert small.root_bytes > 0.92 * small.disk_bytes, (
        f"the root file system has {small.root_bytes / _GIB:.2f} GiB on a disk of {small.disk_bytes / _GIB:.2f} GiB"
    )


def test_there_is_one_disk_layout(guest):
    """The disk holds the described partitions only: at most a BIOS boot, an EFI and the root partition."""
    disks = [entry for entry in json.loads(guest.root(DISKS))["blockdevices"] if entry["type"] == "disk"]
    rooted = [entry for entry in disks if any(part["mountpoint"] == "/" for part in entry.get("children", []))]
    assert rooted, "the root file system is not on a partition"
    assert len(rooted[0]["children"]) <= 3, f"unexpected partitions: {[part['name'] for part in rooted[0]['children']]}"
