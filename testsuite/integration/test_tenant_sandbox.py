# SPDX-License-Identifier: Apache-2.0
"""A tenant of a real cloud as sandbox, the canary in it, and what is left when a factory is killed there: nothing."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from factory.canaries import judge_all
from factory.cloud.settings import ADMIN
from factory.installation import Installation
from factory.model import (
    Artifact,
    Bundle,
    Canaries,
    Description,
    Publication,
    Release,
    Site,
    StoredImage,
    Target,
    Tenant,
)
from factory.publish import publish
from factory.region.services import serve
from factory.rotate import rotate
from factory.sandbox.lease import KEY, new_lease, parse, runs
from factory.sandbox.network import answering
from factory.sandbox.openstack import session
from factory.sandbox.seed import fresh_key
from factory.store import open_store
from factory.system.clock import now
from factory.system.openstack import connect
from factory.system.state import State
from factory.verify.subject import subject_of
from testsuite.cloud.settings import OUTSIDE, OUTSIDE_SUBNET, SANDBOX
from testsuite.conftest import FACTORY, PROJECT, SUITE, NightRun
from testsuite.fakes.bundles import make_bundle, make_qcow2

if TYPE_CHECKING:
    from openstack.connection import Connection

    from testsuite.cloud import ComputeCloud

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_nova, pytest.mark.needs_image]

VERIFY_S = 3000.0
BOOT_S = 1500
"""Emulation inside emulation of a cloud, on a host that has more to do."""
SHORT_S = 300.0
SILENT_S = 6
"""How long an empty disk is waited for: it never says anything."""
SERVER = uuid.uuid4()
"""A server that nobody made: stands for the one behind a port."""
UNTRIED = {
    "test_console.py::test_the_password_opens_the_vga_console": "keyboard",
    "test_kernel.py::test_the_guest_agent_answers": "guest agent",
    "test_registration.py::test_the_update_server_knows_the_guest": "update servers",
    "boot::the_image_boots_twice": "one server",
}


@dataclass(frozen=True)
class Place:
    """The tenant, and a factory that uses it: its site file and its state."""

    cloud: ComputeCloud
    folder: Path
    state: State

    def site(self, **more: object) -> Path:
        """A site file whose sandbox is the tenant."""
        keys = {"cloud": self.cloud.sandbox, "flavor": self.cloud.flavors.small, "network": self.cloud.network} | more
        path = self.folder / "site.toml"
        path.write_text("[sandbox]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items()))
        return path

    def argv(self, *words: str | Path, **more: object) -> list[str | Path]:
        return [FACTORY, "--site", self.site(**more), "--state", self.state.path, *words]

    def type(self, *words: str | Path, timeout_s: float = SHORT_S, **more: object) -> subprocess.CompletedProcess[str]:
        """The command as a person types it."""
        return subprocess.run(
            self.argv(*words, **more),
            cwd=PROJECT,
            env=environment(self.cloud),
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )

    def member(self) -> Connection:
        return connect(self.cloud.sandbox, clouds_yaml=self.cloud.clouds_yaml, direct=True)


def environment(cloud: ComputeCloud) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FACTORY_", "OS_"))}
    return {**kept, "OS_CLIENT_CONFIG_FILE": str(cloud.clouds_yaml), "NO_PROXY": "*", "no_proxy": "*"}


def in_tenant(member: Connection) -> dict[str, list[str]]:
    """Everything of a tenant's own by kind, but for what other running programs lease there."""
    mine = member.current_project_id
    servers = [one for one in member.compute.servers() if not busy(one.name)]
    others = [one.id for one in member.compute.servers() if busy(one.name)]
    ports = [one for one in member.network.ports(project_id=mine) if one.device_id not in others]
    groups = [one for one in member.network.security_groups() if one.name != "default"]
    named = {
        "server": servers,
        "image": member.image.images(owner=mine),
        "key pair": member.compute.keypairs(),
        "security group": groups,
    }
    found = {kind: [one.name for one in things if not busy(one.name)] for kind, things in named.items()}
    return {**found, "port": [one.id for one in ports]}


def busy(name: str) -> bool:
    lease = parse(name)
    return lease is not None and lease.owner.pid != os.getpid() and runs(lease.owner)


@pytest.fixture
def place(compute_cloud: ComputeCloud, night: NightRun, tmp_path: Path) -> Iterator[Place]:
    made = Place(cloud=compute_cloud, folder=tmp_path, state=night.state)
    yield made
    left = in_tenant(made.member())
    assert not any(left.values()), f"left in the tenant: {left}"


@pytest.fixture
def empty_disk(tmp_path: Path) -> Path:
    path = tmp_path / "empty.qcow2"
    make_qcow2(path)
    return path


@pytest.fixture
def site_servers(compute_cloud: ComputeCloud, artifact: Artifact, night: NightRun, tmp_path: Path) -> Iterator[None]:
    """What the image's instances are told about, answering at the gateway of the tenant's network."""
    subject = subject_of(artifact, state=night.state)
    assert subject.view is not None
    view = subject.view
    with answering(
        compute_cloud.namespace,
        subject.regions,
        resolver=compute_cloud.host_address,
        ntp_servers=subject.ntp_servers,
        workdir=tmp_path / "servers",
        say=print,
        services=lambda namespace: serve(
            namespace,
            subject.regions,
            view=view,
            product=subject.description.registration.product,
            workdir=tmp_path / "region",
            log_dir=tmp_path / "region-logs",
            now=now(),
            say=print,
            client=subject.region_client,
        ),
    ):
        yield


# -- the verdict ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({}, id="in the tenant's project", marks=pytest.mark.slow),
        pytest.param({"cloud": ADMIN, "own_project": True}, id="in a project of its own"),
    ],
)
def test_a_disk_that_never_boots_is_red_although_its_server_is_active(
    place: Place, empty_disk: Path, more: dict[str, object]
) -> None:
    done = place.type("verify", empty_disk, boot_timeout_s=SILENT_S, **more)
    assert done.returncode == 1, done.stderr
    assert "is ACTIVE at" in done.stderr
    assert "failed   boot::the_image_boots" in done.stdout
    assert f"did not get to the end of its boot within {SILENT_S} s" in done.stdout
    assert leased_projects(place) == []


def leased_projects(place: Place) -> list[str]:
    admin = connect(ADMIN, clouds_yaml=place.cloud.clouds_yaml, direct=True)
    return [one.name for one in admin.identity.projects() if parse(one.name)]


def test_a_network_of_its_own_is_made_and_given_back(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment(place.cloud).items():
        monkeypatch.setenv(name, value)
    tenant = Tenant(cloud=place.cloud.sandbox, external_network=OUTSIDE)
    member = place.member()
    killed = os.fork()
    if killed == 0:
        with own_network(tenant, member):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(killed, 0)
    for port in [one for one in member.network.ports() if one.device_id == str(SERVER)]:
        member.network.delete_port(port)  # as a server's port goes with the server, which is swept first
    assert [parse(one.name).owner.pid for one in member.network.routers() if parse(one.name)] == [killed]
    with own_network(tenant, member) as network:
        (router,) = [one for one in member.network.routers() if parse(one.name)]
        assert router.external_gateway_info["network_id"] == member.network.find_network(OUTSIDE).id
        (inside,) = member.network.ports(network_id=network, device_id=router.id)
        assert inside.fixed_ips[0]["subnet_id"] == next(member.network.subnets(network_id=network)).id
    assert [one.name for one in member.network.routers()] == []
    assert {one.name for one in member.network.networks()} == {OUTSIDE, SANDBOX}
    assert list(member.network.ips()) == []


@contextlib.contextmanager
def own_network(tenant: Tenant, member: Connection) -> Iterator[str]:
    """A network with a router and a floating address; the cloud of the tests carries it nowhere."""
    with session(tenant, now=now(), say=print) as used:
        network = used.cloud.make_network(used.lease)
        port = member.network.create_port(network_id=network, device_id=str(SERVER))
        address = used.cloud.make_address(used.lease, str(SERVER))
        assert ip_address(address) in ip_network(OUTSIDE_SUBNET)
        yield network
        member.network.delete_port(port)


def test_a_cloud_without_room_and_a_full_quota_are_told_in_the_users_words(place: Place, empty_disk: Path) -> None:
    large, over = place.cloud.flavors.too_large, place.cloud.flavors.over_quota
    done = place.type("verify", empty_disk, flavor=large)
    assert done.returncode == 3, done.stderr
    assert f"has room for a server of flavor '{large}'" in done.stderr
    assert "No valid host was found" in done.stderr
    done = place.type("verify", empty_disk, flavor=over)
    assert done.returncode == 3, done.stderr
    assert "the quota of the tenant" in done.stderr
    assert "Quota exceeded" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_site_file_that_does_not_fit_the_cloud_is_told(place: Place, empty_disk: Path) -> None:
    for more, words in (
        ({"flavor": "no-such"}, "has no flavor 'no-such'"),
        ({"network": "no-such"}, "has no network 'no-such'"),
        ({"cloud": "no-such"}, "'no-such' is not in clouds.yaml"),
    ):
        done = place.type("verify", empty_disk, **more)
        assert done.returncode == 2, done.stderr
        assert words in done.stderr


# -- what a killed factory leaves -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_a_killed_factory_left_is_swept_and_nothing_else(place: Place, empty_disk: Path, tmp_path: Path) -> None:
    member = place.member()
    killed = subprocess.Popen(
        place.argv("verify", empty_disk, boot_timeout_s=600),
        cwd=PROJECT,
        env=environment(place.cloud),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    await_until(lambda: active(member, killed.pid), timeout_s=SHORT_S)
    alive = place.type("sandbox", "sweep", "--json")
    assert json.loads(alive.stdout)["value"] == [], "what a running factory uses is not swept"
    killed.kill()
    killed.wait()
    left = in_tenant(member)
    assert [len(left[kind]) for kind in ("server", "image", "key pair", "security group")] == [1, 1, 1, 1]
    ours = parse(left["server"][0])
    assert ours is not None
    assert ours.owner.pid == killed.pid

    key = fresh_key(tmp_path)
    running = new_lease(now=now(), hours=1)
    member.compute.create_keypair(name=running.name, public_key=key.public)
    member.compute.create_keypair(name="a-users-own", public_key=key.public)
    unmarked = member.image.create_image(
        ours.name, allow_duplicates=True, disk_format="qcow2", container_format="bare", visibility="private"
    )
    try:
        foreseen = json.loads(place.type("sandbox", "sweep", "--dry-run", "--json").stdout)["value"]
        assert in_tenant(member)["server"] == left["server"], "a dry run deletes nothing"
        done = place.type("sandbox", "sweep", "--json")
        assert done.returncode == 0, done.stderr
        swept = json.loads(done.stdout)["value"]
        assert swept == foreseen
        assert [one["thing"]["kind"] for one in swept] == ["server", "security group", "key pair", "image"]
        assert all("is dead" in one["why"] for one in swept)
        stays = in_tenant(member)
        assert (stays["server"], stays["security group"], stays["port"]) == ([], [], [])
        assert sorted(stays["key pair"]) == sorted(["a-users-own", running.name])
        assert stays["image"] == [unmarked.name]
        assert member.image.get_image(unmarked.id).status == "queued"
        assert not unmarked.properties.get(KEY)
    finally:
        member.compute.delete_keypair(running.name)
        member.compute.delete_keypair("a-users-own")
        member.image.delete_image(unmarked.id)


def active(member: Connection, pid: int) -> bool:
    """Whether a program has a server that is ACTIVE."""
    leases = [(one.status, parse(one.name)) for one in member.compute.servers()]
    return any(status == "ACTIVE" and lease and lease.owner.pid == pid for status, lease in leases)


def await_until(found: Callable[[], Any], *, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.5)


# -- the canary -------------------------------------------------------------------------------------------------------


@dataclass
class Released:
    """Releases of one line in the real Glance, and what ``_latest`` is to any reader."""

    place: Place
    here: Installation
    target: Target

    def release(self, bundle: Bundle) -> Release:
        with open_store(self.target, state=self.here.state, say=print) as store:
            made = publish(bundle, store=store, target=self.target, now=now(), say=print)
            rotate(made, store=store, now=now(), say=print)
        return made

    def latest(self, line: str) -> StoredImage:
        with open_store(self.target, state=self.here.state, say=print) as store:
            (found,) = [one for one in store.named(f"{line}_latest") if not one.hidden]
        return found

    def canary(self, release: Release, name: str) -> Canaries:
        run = self.here.state.new_run(name, now())
        publication = Publication(releases=(release,), reason="")
        judged, _ = judge_all(publication, run=run, here=self.here, now=now, say=print)
        return judged


@pytest.fixture
def released(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Released:
    for name, value in environment(place.cloud).items():
        monkeypatch.setenv(name, value)
    cloud = place.cloud
    tenant = Tenant(cloud=cloud.sandbox, flavor=cloud.flavors.small, network=cloud.network, site_services=False)
    target = Target(cloud=cloud.publisher, canary=tenant)
    here = Installation(
        project=SUITE.parents[1], state=State(path=tmp_path / "state").prepare(), site=Site(targets=(target,))
    )
    return Released(place=place, here=here, target=target)


def impatient(released: Released) -> Released:
    """The same with a canary that does not wait long for a system."""
    tenant = released.target.canary
    assert tenant is not None
    target = replace(released.target, canary=replace(tenant, boot_timeout_s=SILENT_S))
    return replace(released, target=target, here=replace(released.here, site=Site(targets=(target,))))


def test_a_red_canary_is_rolled_back_in_the_real_glance(released: Released, tmp_path: Path) -> None:
    line = "Test_Canary_Red"
    described = Description(name="red", line=line, metadata={"os_version": "13", "os_purpose": "custom"})
    hasty = impatient(released)
    first = hasty.release(make_bundle(tmp_path / "1", line=line, description=described))
    before = hasty.latest(line)
    tomorrow = now() + timedelta(days=1)
    second = hasty.release(make_bundle(tmp_path / "2", line=line, description=described, built_at=tomorrow))
    assert hasty.latest(line).id == second.image_id
    (judged,) = hasty.canary(second, "red").canaries
    assert (judged.green, judged.rolled_back) == (False, True)
    assert f"did not get to the end of its boot within {SILENT_S} s" in judged.faults[0]
    after = hasty.latest(line)
    assert (after.id, after.role) == (first.image_id, "latest") == (before.id, "latest")
    (again,) = hasty.canary(second, "red-again").canaries
    assert (again.green, again.rolled_back) == (False, True)
    assert hasty.latest(line).id == first.image_id, "it is not rolled back twice"
    (gone,) = hasty.canary(replace(second, image_id=str(uuid.UUID(int=0))), "gone").canaries
    assert "was withdrawn before its canary" in gone.faults[0]


# -- a whole night ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("site_servers")
def test_a_whole_night_judges_publishes_and_starts_by_name_in_the_cloud(place: Place, night: NightRun) -> None:
    """From the build on, which is the shared night's; what a tenant cannot do is not tried, and says why."""
    cloud = place.cloud
    state = cut_off_before_its_verdict(night, place.folder / "state")
    words = ["nightly", "debian13", "--cloud", cloud.sandbox, "--allow-dirty", "--json"]
    done = subprocess.run(
        [FACTORY, "--site", site_of_a_night(place), "--state", state.path, *words],
        cwd=PROJECT,
        env=environment(cloud),
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * VERIFY_S,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    made = json.loads(done.stdout)["value"]
    assert made["outcome"] == "published"
    expect_green_in_a_tenant(made["verdict"], cloud)
    ((judged,),) = (made["canaries"]["canaries"],)
    assert (judged["faults"], judged["rolled_back"]) == ([], False)
    assert judged["boot_s"] > 0
    reader = connect(cloud.reader, clouds_yaml=cloud.clouds_yaml, direct=True)
    assert reader.image.find_image("Standard_Debian_13_latest").id == judged["image_id"]
    assert judged["image_id"] == made["rotations"]["rotations"][0]["latest"]


def site_of_a_night(place: Place) -> Path:
    """A site file: the tenant judges, the publisher's cloud is the target, and the tenant is its canary."""
    site = place.site(site_services=True, boot_timeout_s=BOOT_S)
    cloud = place.cloud
    tenant = {"cloud": cloud.sandbox, "flavor": cloud.flavors.small, "network": cloud.network}
    canary = "".join(f"{key} = {json.dumps(value)}\n" for key, value in tenant.items())
    target = f'[[target]]\ncloud = "{cloud.publisher}"\nvisibility = "public"\n'
    site.write_text(f"{site.read_text()}\n{target}\n[target.canary]\n{canary}boot_timeout_s = {BOOT_S}\n")
    return site


def expect_green_in_a_tenant(verdict: dict[str, Any], cloud: ComputeCloud) -> None:
    """Everything that a tenant can do was tried, registration included, and nothing was red."""
    assert verdict["sandbox"] == f"openstack:{cloud.sandbox}"
    assert cloud.flavors.small in verdict["accelerator"]
    checks = {one["name"]: one for one in verdict["checks"]}
    assert [name for name, one in checks.items() if one["outcome"] == "failed"] == []
    registered = [one for name, one in checks.items() if name.startswith("test_registration.py")]
    assert sum(one["outcome"] == "passed" for one in registered) > 10
    assert checks["test_time.py::test_the_clock_is_synchronised"]["outcome"] == "passed"
    assert checks["test_network.py::test_a_port_scan_finds_only_the_described_ports"]["outcome"] == "passed"
    for name, words in UNTRIED.items():
        assert checks[name]["outcome"] == "skipped", name
        assert checks[name]["message"].startswith("not tried: ")
        assert words in checks[name]["message"]
    untried = [one["name"] for one in checks.values() if one["message"].startswith("not tried: ")]
    assert len(untried) < len(checks) / 5, untried


def cut_off_before_its_verdict(night: NightRun, folder: Path) -> State:
    """A state folder in which a night was cut off after its build, so that a night in the cloud goes on with it."""
    state = State(path=folder).prepare()
    for path in night.state.path.iterdir():
        if path.name in {"blobs", "tools"}:
            subprocess.run(["cp", "-alT", path, folder / path.name], check=True)
        elif path.name in {"keys", "cache", "signers", "region-packages.json"}:
            subprocess.run(["cp", "-aT", path, folder / path.name], check=True)
    run = state.runs / night.run.id
    state.runs.mkdir(exist_ok=True)
    subprocess.run(["cp", "-aT", night.run.path, run], check=True)
    for stage in ("verify", "sign", "publish", "rotate"):
        (run / f"{stage}.json").unlink(missing_ok=True)  # another test takes the last one away for a moment
    shutil.rmtree(run / "bundle")
    return state
