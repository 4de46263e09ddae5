# SPDX-License-Identifier: Apache-2.0
"""A tenant as sandbox, as far as it is decided without a cloud: leases, faults, flavors, what is not tried."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.describe.load import load_site
from factory.errors import InputFault
from factory.model import Description, Tenant
from factory.sandbox.lease import Lease, Leased, Owner, new_lease, parse, runs, this_host, this_program, why_sweep
from factory.sandbox.nova_faults import Asked, told, too_slow
from factory.sandbox.openstack import continuation
from factory.sandbox.tenant_cloud import FlavorFound, choose, said_plainly
from factory.verify.subject import Subject, subject_of_file
from factory.verify.tenant import not_tried, properties
from testsuite.fakes.bundles import make_qcow2

NOW = datetime(2026, 11, 21, 2, 0, tzinfo=UTC)
HEX8 = st.text("0123456789abcdef", min_size=8, max_size=8)


# -- leases -----------------------------------------------------------------------------------------------------------


@given(
    lease=HEX8,
    host=HEX8,
    start=HEX8,
    pid=st.integers(1, 4_194_304),
    expires=st.integers(1_700_000_000, 4_000_000_000),
)
def test_a_lease_is_read_back_from_its_name_which_is_a_host_name(
    lease: str, host: str, start: str, pid: int, expires: int
) -> None:
    made = Lease(
        id=lease,
        expires=datetime.fromtimestamp(expires, tz=UTC),
        owner=Owner(host=host, pid=pid, start=start),
    )
    assert parse(made.name) == made
    assert len(made.name) <= 63
    assert made.name.replace("-", "").isalnum()


@pytest.mark.parametrize(
    "name",
    [
        "",
        "factory-lease",
        "factory-lease-1-2-3-4-5",
        "my-factory-lease-00000000-00000000-00000000-1-00000000",
        "factory-lease-00000000-00000000-00000000-1-00000000-kept",
        "factory-lease-00000000-00000000-00000000-1-00000000\n",
        "factory-lease-0000000G-00000000-00000000-1-00000000",
        "factory-lease-00000000-00000000-00000000-\u0661-00000000",
    ],
)
def test_no_other_name_is_a_lease(name: str) -> None:
    assert parse(name) is None


OURS = Owner(host="0000aaaa", pid=77, start="11111111")
OTHERS = dataclasses.replace(OURS, host="0000bbbb")


def _name(owner: Owner, *, hours: float) -> str:
    return Lease(id="12345678", expires=NOW + timedelta(hours=hours), owner=owner).name


@pytest.mark.parametrize(
    ("owner", "hours", "alive", "tag", "why"),
    [
        (OURS, 1, True, "same", ""),
        (OURS, 1, False, "same", "the factory that made it (process 77) is dead"),
        (OURS, 1, False, None, "the factory that made it (process 77) is dead"),
        (OURS, -1, True, "same", "its lease ended at 2026-11-21 01:00 UTC"),
        (OURS, 0, True, "same", "its lease ended at 2026-11-21 02:00 UTC"),
        (OTHERS, 1, False, "same", ""),
        (OTHERS, -1, False, "same", "its lease ended at 2026-11-21 01:00 UTC"),
        (OURS, -1, False, "", ""),
        (OURS, -1, False, "another", ""),
    ],
)
def test_who_may_be_swept(owner: Owner, hours: float, *, alive: bool, tag: str | None, why: str) -> None:
    name = _name(owner, hours=hours)
    thing = Leased(kind="server", id="1", name=name, tag=name if tag == "same" else tag)
    assert why_sweep(thing, now=NOW, host=OURS.host, alive=alive) == why


def test_what_is_not_called_like_a_lease_is_never_swept() -> None:
    for name in ("web", "factory-probe", f"{_name(OURS, hours=-1)}-copy"):
        thing = Leased(kind="image", id="1", name=name, tag=name)
        assert why_sweep(thing, now=NOW, host=OURS.host, alive=False) == ""


def test_a_running_program_is_known_by_its_number_and_its_start() -> None:
    ours = this_program()
    assert ours == this_program()
    assert (ours.host, ours.pid) == (this_host(), os.getpid())
    assert runs(ours)
    assert not runs(dataclasses.replace(ours, start="00000000"))  # another program has the number now
    gone = subprocess.Popen(["sleep", "100"])
    there = dataclasses.replace(ours, pid=gone.pid)
    assert not runs(there)
    gone.kill()
    gone.wait()
    assert not runs(there)


def test_a_fresh_lease_is_ours_and_not_to_be_swept() -> None:
    lease = new_lease(now=NOW, hours=4)
    thing = Leased(kind="key pair", id=lease.name, name=lease.name)
    assert runs(lease.owner)
    assert why_sweep(thing, now=NOW, host=this_host(), alive=runs(lease.owner)) == ""
    assert new_lease(now=NOW, hours=4).id != lease.id


# -- what a cloud says ------------------------------------------------------------------------------------------------

ASKED = Asked(cloud="lab", flavor="m1.big")


@pytest.mark.parametrize(
    ("said", "status", "message", "hint"),
    [
        (
            "Quota exceeded for ram: Requested 80000, but already used 0 of 51200 ram",
            403,
            "the quota of the tenant in 'lab' for memory is used up",
            "smaller flavor than 'm1.big'",
        ),
        (
            "Quota exceeded for cores, ram: Requested 40, 80000, but already used 0, 0 of 20, 51200 cores, ram",
            403,
            "the quota of the tenant in 'lab' for virtual processors and memory is used up",
            "factory sandbox sweep",
        ),
        (
            "Quota exceeded for resources: ['floatingip'].",
            409,
            "the quota of the tenant in 'lab' for floating addresses is used up",
            "have the quota raised",
        ),
        ("Quota exceeded, too many key pairs.", 403, "the quota of the tenant in 'lab' is used up", "quota raised"),
        ("Request entity too large", 413, "the quota of the tenant in 'lab' is used up", "quota raised"),
        (
            "No valid host was found. There are not enough hosts available.",
            0,
            "no host of 'lab' has room for a server of flavor 'm1.big'",
            "operator",
        ),
        ("Flavor's memory is too small for requested image.", 400, "flavor 'm1.big' is too small", "minimum disk"),
        (
            "Flavor's disk is smaller than the minimum size specified in image metadata.",
            400,
            "flavor 'm1.big' is too small",
            "minimum disk",
        ),
        (
            "Build of instance 1-2 aborted: Failed to allocate the network(s), not rescheduling.",
            0,
            "'lab' could not connect the server to its network",
            "'network' in [sandbox]",
        ),
        (
            "Unable to complete operation on network 7285. There are one or more ports still in use on the network.",
            409,
            "'lab' still uses what was to be deleted",
            "factory sandbox sweep",
        ),
        (
            "Fixed IP address 192.0.2.7 is already in use on instance 1 of the network.",
            409,
            "'lab' could not connect the server to its network",
            "'network' in [sandbox]",
        ),
        ("Image 1 is unacceptable: bad data", 0, "'lab' could not make a disk from the image", "metadata"),
        ("Exceeded maximum number of retries.", 0, "'lab' could not build the server", "operator"),
        ("Policy doesn't allow it", 403, "'lab' does not let this user do that", "member role"),
    ],
)
def test_a_clouds_words_become_the_users(said: str, status: int, message: str, hint: str) -> None:
    found = told(said, asked=ASKED, status=status)
    assert found.message.startswith(message), found
    assert hint in found.hint


def test_only_what_the_image_asks_for_is_the_images_fault() -> None:
    assert told("Image 1 is unacceptable: bad data", asked=ASKED).of_image
    assert not told("No valid host was found.", asked=ASKED).of_image
    assert not told("Quota exceeded for ram: Requested 1", asked=ASKED, status=403).of_image


def test_a_slow_cloud_is_told_with_what_the_server_waits_for() -> None:
    found = too_slow(ASKED, state="BUILD, spawning", seconds=60)
    assert found.message == "the server in 'lab' was not ACTIVE within 60 s (it is BUILD, spawning)"
    assert "timeout_s" in found.hint


def test_a_clouds_words_are_shown_without_control_characters() -> None:
    assert said_plainly("no\x1b[2J\r\n  room\u202e") == "no room"
    assert len(said_plainly("x" * 10_000)) == 400


# -- flavors ----------------------------------------------------------------------------------------------------------


def _flavor(name: str, ram_mib: int, disk_gib: int) -> FlavorFound:
    return FlavorFound(id=f"id-{name}", name=name, vcpus=1, ram_mib=ram_mib, disk_gib=disk_gib)


FLAVORS = (_flavor("big", 8192, 40), _flavor("tiny", 512, 1), _flavor("fits", 2048, 10), _flavor("volumes", 1024, 0))


@pytest.mark.parametrize(("wanted", "chosen"), [("", "fits"), ("big", "big"), ("id-tiny", "tiny")])
def test_the_flavor_is_the_named_one_or_the_smallest_that_fits(wanted: str, chosen: str) -> None:
    assert choose(FLAVORS, wanted, cloud="lab", min_disk_gib=4).name == chosen


@pytest.mark.parametrize(
    ("wanted", "gib", "words"),
    [("none", 4, "no flavor 'none'"), ("volumes", 4, "boots from volumes"), ("", 100, "no flavor of 'lab' has")],
)
def test_a_flavor_that_cannot_be_used_is_told(wanted: str, gib: int, words: str) -> None:
    with pytest.raises(InputFault, match=words):
        choose(FLAVORS, wanted, cloud="lab", min_disk_gib=gib)


# -- the console ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("known", "shown", "more"),
    [
        ("", "abc", "abc"),
        ("abc", "abc", ""),
        ("abc", "abcdef", "def"),
        ("x" * 3000 + "end", "x" * 2000 + "end" + "new", "new"),  # the window moved on
        ("the first boot", "SeaBIOS", "SeaBIOS"),  # the server began a new console
        ("abc", "abcd\ufffd", "d"),
    ],
)
def test_what_is_new_on_a_console_of_which_only_the_end_is_shown(known: str, shown: str, more: str) -> None:
    assert continuation(known, shown) == more


@given(
    lines=st.lists(st.integers(0, 10**9), min_size=1, max_size=300, unique=True),
    steps=st.lists(st.integers(1, 60), min_size=1, max_size=10),
)
def test_a_console_is_heard_completely_and_once(lines: list[int], steps: list[int]) -> None:
    whole, heard, at = "".join(f"{number:010d}\n" for number in lines), "", 0
    for step in steps:
        at = min(len(whole), at + 11 * step)
        heard += continuation(heard, whole[max(0, at - 3000) : at])
    assert heard == whole[:at]


# -- what is tried, and what the copy says ----------------------------------------------------------------------------


def test_what_a_tenant_cannot_do_has_a_reason() -> None:
    reached = not_tried(Tenant(cloud="lab", site_services=True))
    alone = not_tried(Tenant(cloud="lab", site_services=False))
    assert set(reached) == {"agent", "clock", "keyboard", "other", "registrations"}
    assert set(alone) - set(reached) == {"region", "time"}
    assert all(len(reason) > 20 for reason in alone.values())


def test_every_ability_that_a_check_needs_is_one_the_harness_knows() -> None:
    suite = Path(__file__).parents[1] / "acceptance"
    import re

    words = "".join(path.read_text() for path in suite.glob("test_*.py"))
    groups = re.findall(r"(?:mark\.needs|tried)\(([^)]*)\)", words)
    named = {name for group in groups for name in re.findall(r'"(\w+)"', group)}
    assert named == set(not_tried(Tenant(cloud="lab", site_services=False)))


def test_the_copy_asks_for_the_hardware_that_the_release_asks_for(tmp_path: Path) -> None:
    make_qcow2(tmp_path / "a.qcow2")
    assert properties(subject_of_file(tmp_path / "a.qcow2", login_user="linux")) == {}
    metadata = {"hw_disk_bus": "virtio", "os_purpose": "generic", "provided_until": "none", "os_distro": "debian"}
    described = Subject(
        path=tmp_path / "a.qcow2",
        virtual_size_bytes=1 << 20,
        description=Description(name="a", line="L", metadata=metadata),
    )
    assert properties(described) == {"hw_disk_bus": "virtio", "os_distro": "debian"}


# -- the site file ----------------------------------------------------------------------------------------------------


def _site(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "site.toml"
    path.write_text(text)
    return path


def test_a_canary_takes_from_the_sandbox_what_it_does_not_say(tmp_path: Path) -> None:
    site = load_site(
        _site(
            tmp_path,
            '[sandbox]\ncloud = "lab"\nflavor = "m1"\nnetwork = "net"\nlease_h = 2\n'
            '[[target]]\ncloud = "images"\n[target.canary]\ncloud = "users"\n[[target]]\ncloud = "other"\n',
        )
    )
    assert site.sandbox == Tenant(cloud="lab", flavor="m1", network="net", lease_h=2, site_services=False)
    assert site.targets[0].canary == dataclasses.replace(site.sandbox, cloud="users")
    assert site.targets[1].canary is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[sandbox]\nnetwork = "n"\n', "sandbox.cloud: is missing"),
        ('[sandbox]\ncloud = "lab"\n', "sandbox.network: is missing, and so is external_network"),
        ('[sandbox]\ncloud = "embedded"\nnetwork = "n"\n', "is 'embedded', which starts no servers"),
        ('[[target]]\ncloud = "images"\n[target.canary]\nnetwork = "n"\n', "target[0].canary.cloud: is missing"),
        ('[[target]]\n[target.canary]\ncloud = "x"\nnetwork = "n"\n', "is for the embedded cloud"),
        ('[sandbox]\ncloud = "lab"\nnetwork = "n"\nlease_h = 0\n', "sandbox.lease_h"),
        ('[sandbox]\ncloud = "lab"\nnetwork = "n"\nflavour = "x"\n', "sandbox.flavour"),
    ],
)
def test_tenants_that_cannot_be_are_told_with_their_place(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputFault) as told_:
        load_site(_site(tmp_path, text))
    assert words in "\n".join(told_.value.lines())
