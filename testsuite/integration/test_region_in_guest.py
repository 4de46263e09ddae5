# SPDX-License-Identifier: Apache-2.0
"""Registration as the image does it: servers that die, and everything that must fail closed.

Each test runs twice. Once in the root file system of the shared night's image, on this host's processor: the image's
own client, Python, OpenSSL, apt and dpkg, started as its unit says. And once (a long test) in a guest, through systemd:
a clone of the healthy one that all tests share, which was frozen after its first boot and then forgot its registration.
Without KVM a run of the client takes seconds there and a change of the trust store takes many, so the cases that must
leave nothing behind come one after the other in one clone, and what registers comes last.
"""

from __future__ import annotations

import base64
import json
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from factory.model import Site
from factory.region.certificates import issue
from factory.region.embedded import with_embedded_client
from factory.region.packages import build_packages, payloads
from factory.region.repositories import FolderRepository
from factory.region.services import RegionServices, serve, verification_for
from factory.region.update_settings import VerificationSettings
from factory.sandbox.network import sandbox_network
from factory.system.clock import now
from factory.system.namespaces import NetworkNamespace
from factory.system.run import run, running
from factory.verify.subject import Subject, subject_of
from testsuite.integration.test_package_repositories import a_signer
from testsuite.mutants.base import Base, quiet

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_guest,
    pytest.mark.needs_image,
    pytest.mark.needs_mirror,
    pytest.mark.timeout(900),
]
TIMEOUT_S = 400
CLOSED_S = 240
"""Within how long a refusal has to be over in an emulated guest beside others; alone it takes some ten seconds."""

KEEP = """
printf '\\n[network]\\nround_pauses_s = 0.1 0.1\\nhealth_pauses_s = 0.1\\n' >>/etc/guestregister.conf
mkdir /root/kept
cp -a /etc/guestregister.conf /etc/regionserverclnt.cfg {certificates} /root/kept/
"""
# The unit waits for a clock that is synchronised: a thawed clone is not before chrony has asked again. The trust
# store got the region's authority when the guest registered at its first boot, and keeps it: to make the store again is
# most of a minute of an emulated guest's time, each time. Which authorities are in it is judged at that first boot.
FRESH_GUEST = """
mount --bind /bin/true /usr/sbin/update-ca-certificates
systemctl restart chrony.service
chronyc waitsync 60 0 0 1 >/dev/null
guestregister --clean >/dev/null
"""
FRESH_IMAGE = """
echo nameserver 127.0.0.1 >/etc/resolv.conf
mkdir -p /run/cloud-init /run/lock
echo '{"v1": {"platform": "nocloud", "instance_id": "{instance}"}}' >/run/cloud-init/instance-data.json
"""
AS_BEFORE = """
cp -a /root/kept/guestregister.conf /root/kept/regionserverclnt.cfg /etc/
cp -a /root/kept/certs/. {certificates}/
"""
BY_UNIT = """
: >/var/log/cloudregister
systemctl reset-failed guestregister.service
systemctl restart guestregister.service
systemctl show -p Result --value guestregister.service
cat /var/log/cloudregister
"""
AS_THE_UNIT = """
: >/var/log/cloudregister
command=$(sed -n 's/^ExecStart=//p' /usr/lib/systemd/system/guestregister.service)
if $(echo "$command" | sed 's/--wait-for-clock [0-9]*/--wait-for-clock 0/') >/dev/null 2>&1
then echo success; else echo exit-code; fi
cat /var/log/cloudregister
"""
TRACES = """
for path in /etc/guestregister/credentials /etc/apt/auth.conf.d/*guestregister* \\
    /etc/apt/sources.list.d/*guestregister* /usr/local/share/ca-certificates/registration_server_* \\
    /var/lib/guestregister/state.json; do
  test ! -e "$path" || echo "$path"
done
grep -F '# Added by SMT' /etc/hosts || true
"""
UPDATE = "apt-get update -q -o APT::Update::Error-Mode=any 2>&1"
SERVER = "awk '/# Added by SMT/ {getline; print $1; exit}' /etc/hosts"
PROVIDER = "/usr/lib/image-factory/instance-data"
OWN = f"sed -i -E 's#^dataProvider *=.*#dataProvider = {PROVIDER}#i' /etc/regionserverclnt.cfg"
PRODUCT = "debian/13/x86_64"
OTHER = "0b2e4c6a-1111-4222-8333-444455556666"


@dataclass(frozen=True)
class Told:
    """How a run of the unit ended: systemd's result, the client's log, and what was left in the system."""

    result: str
    log: str
    left: str
    seconds: float


@dataclass(frozen=True)
class Shared:
    """Where the image's client runs, and what plays the region around it."""

    run: Callable[[str], str]
    services: RegionServices
    subject: Subject
    certificates: str
    instance: str
    start: str
    say: Callable[[str], None]

    def root(self, script: str) -> str:
        """What a script of root prints."""
        text = script.replace("{certificates}", self.certificates).replace("{instance}", self.instance)
        return self.run(text)

    def by_unit(self, spoil: str = "") -> Told:
        """Change something, then start the unit: in one session, because each takes its time."""
        started = time.monotonic()
        printed = self.root(f"{spoil}\n{self.start}\necho '-- left'\n{TRACES}")
        result, _, rest = printed.partition("\n")
        log, _, left = rest.rpartition("-- left\n")
        return Told(result=result, log=log, left=left, seconds=time.monotonic() - started)

    def refused(self, spoil: str, says: str) -> None:
        """The unit fails for this reason, in bounded time, and leaves nothing: not here, and not on the servers."""
        before = {one.login for one in self.services.registrations()}
        done = self.by_unit(AS_BEFORE + spoil)
        self.say(f"refused after {done.seconds:.1f} s: {says}")
        assert done.result == "exit-code", done.log
        assert re.search(says, done.log), done.log
        assert done.left == "", "half registered"
        assert done.seconds < CLOSED_S
        assert {one.login for one in self.services.registrations()} == before, "the server knows who was refused"


@contextmanager
def in_the_guest(base: Base) -> Iterator[Shared]:
    with base.clone() as (guest, _):
        shared = Shared(
            run=lambda script: guest.ssh("sudo -n sh -s", stdin=script.encode(), timeout_s=TIMEOUT_S).stdout,
            services=base.network.services,
            subject=base.stage.subject,
            certificates=base.words["certificates"],
            instance=base.facts["seed"]["instance_id"],
            start=BY_UNIT,
            say=base.say,
        )
        shared.root(FRESH_GUEST + KEEP)
        yield shared


@contextmanager
def in_the_image(subject: Subject, folder: Path) -> Iterator[Shared]:
    assert subject.view
    assert subject.region_client
    client = subject.region_client
    with ExitStack() as stack:
        network = stack.enter_context(
            sandbox_network(
                subject.regions,
                services=lambda namespace: serve(
                    namespace,
                    subject.regions,
                    view=subject.view,
                    product=subject.description.registration.product,
                    workdir=folder / "region",
                    log_dir=folder / "logs",
                    now=now(),
                    say=quiet,
                    client=client,
                ),
                workdir=folder / "network",
                say=quiet,
            )
        )
        root = stack.enter_context(image_root(subject.path, folder, network.namespace))
        shared = Shared(
            run=root,
            services=network.services,
            subject=subject,
            certificates=client.cert_location,
            instance=str(uuid.uuid4()),
            start=AS_THE_UNIT,
            say=print,
        )
        shared.root(FRESH_IMAGE + KEEP)
        yield shared


@contextmanager
def image_root(image: Path, folder: Path, network: NetworkNamespace) -> Iterator[Callable[[str], str]]:
    """A way to run scripts in an image's root file system, as root, in a network; a throw-away copy of it.

    The copy is mounted in a mount namespace that dies with us: so does the mount, and with it the loop device.
    """
    raw, top = folder / "disk.raw", folder / "root"
    top.mkdir()
    run(["qemu-img", "convert", "-O", "raw", image, raw], timeout_s=TIMEOUT_S)
    table = json.loads(run(["sfdisk", "--json", raw], timeout_s=60).stdout)["partitiontable"]
    largest = max(table["partitions"], key=lambda one: one["size"])
    offset = int(largest["start"]) * int(table.get("sectorsize", 512))
    argv = ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", MOUNT, "sh", raw, str(offset), top]
    log = folder / "root.log"
    with running(network.inside(argv), log=log, grace_s=1.0) as holder:
        deadline = time.monotonic() + TIMEOUT_S
        while "ready" not in log.read_text():
            assert holder.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        enter = ["nsenter", f"--mount=/proc/{holder.pid}/ns/mnt", "--", "chroot", top]

        def script(text: str) -> str:
            path = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"
            argv = network.inside([*enter, "/usr/bin/env", "-i", path, "HOME=/root", "/bin/sh", "-s"])
            return run(argv, stdin=text.encode(), timeout_s=TIMEOUT_S).stdout

        yield script


MOUNT = """
set -e
mount -o "loop,offset=$2" "$1" "$3"
mount -t tmpfs tmpfs "$3/run"
mount -t tmpfs tmpfs "$3/tmp"
mount -t proc proc "$3/proc"
mount --bind /dev "$3/dev"
echo ready
exec sleep infinity
"""


@pytest.fixture(scope="module", params=["image", pytest.param("guest", marks=pytest.mark.slow)])
def clone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    if request.param == "guest":
        place = in_the_guest(request.getfixturevalue("healthy_guest"))
    else:
        subject = subject_of(request.getfixturevalue("artifact"), state=request.getfixturevalue("shared_state"))
        place = in_the_image(subject, tmp_path_factory.mktemp("image"))
    with place as shared:
        yield shared


@pytest.fixture
def unregistered(clone: Shared) -> Shared:
    """The clone without a registration, configured as its image was."""
    if left := clone.root(TRACES):
        clone.root(f"guestregister --clean >/dev/null\n{AS_BEFORE}")
        left = clone.root(TRACES)
    assert left == ""
    return clone


@contextmanager
def stopped(services: RegionServices, address: str) -> Iterator[None]:
    services.stop(address)
    try:
        yield
    finally:
        services.start(address)


# -- what must fail closed --------------------------------------------------------------------------------------------


def wrong_pems(shared: Shared) -> str:
    """For the right addresses, by somebody else."""
    write = []
    for address in shared.services.region_addresses:
        pem = issue(address, now=now(), days=30, addresses=[address]).pem.decode()
        write.append(f"cat >{{certificates}}/{address}.pem <<'END'\n{pem}END\n")
    return "".join(write)


def test_a_region_server_with_another_certificate_is_not_believed(unregistered: Shared) -> None:
    unregistered.refused(wrong_pems(unregistered), r"the certificate of .* is not accepted")


def test_another_product_is_refused(unregistered: Shared) -> None:
    product = "sed -i -E 's#^product *=.*#product = debian/12/x86_64#' /etc/guestregister.conf"
    unregistered.refused(product, r"refused \(422\)")


# -- instance data ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Updates:
    """The region's packages after a renewal, as an update server gives them out: their key, and the new PEM."""

    key: str
    item: str
    pem: str


def renewed(shared: Shared, folder: Path) -> Updates:
    """Renew the first region server's certificate, and publish the packages that carry it."""
    subject = shared.subject
    assert subject.region_client
    region, server = subject.regions[0], subject.regions[0].servers[0]
    made = issue(server.name, now=now() + timedelta(days=1), days=900, addresses=server.addresses)
    pem = folder / "renewed.pem"
    pem.write_bytes(server.pem.read_bytes() + made.pem)
    after = replace(region, servers=(replace(server, pem=pem), *region.servers[1:]))
    with a_signer(folder / "state") as signer:
        build_packages(
            payloads((after, *subject.regions[1:]), subject.region_client),
            folder / "packages",
            record=folder / "versions.json",
            signer=signer,
            now=now(),
            say=quiet,
        )
        return Updates(key=signer.public_key, item=server.addresses[0], pem=pem.read_text())


@dataclass(frozen=True)
class Cloud:
    """A cloud that signs what it says of its instances, update servers that want to see that, and one instance."""

    key: ed25519.Ed25519PrivateKey
    instance: str
    updates: Updates


@pytest.fixture(scope="module")
def cloud(clone: Shared, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    folder = tmp_path_factory.mktemp("cloud")
    key = ed25519.Ed25519PrivateKey.generate()
    public = folder / "cloud.pem"
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    updates = renewed(clone, folder)
    served = FolderRepository(alias="region", folder=str(folder / "packages" / "apt"))
    verification = VerificationSettings(provider="openstack", public_key=str(public))
    with clone.services.with_settings(verification=verification, folders=[served]):
        yield Cloud(key=key, instance=clone.instance, updates=updates)


def provider(document: dict[str, object]) -> str:
    """A script that makes the guest say this of itself."""
    said = base64.b64encode(json.dumps(document).encode()).decode()
    return f"""
printf '#!/bin/sh\\necho {said} | base64 -d\\n' >/usr/local/sbin/provider
chmod 0755 /usr/local/sbin/provider
sed -i -E 's#^dataProvider *=.*#dataProvider = /usr/local/sbin/provider#i' /etc/regionserverclnt.cfg
"""


def vouched(cloud: Cloud, *, product: str = PRODUCT, by: ed25519.Ed25519PrivateKey | None = None) -> dict[str, str]:
    """What the cloud (or somebody else) says of the instance, signed."""
    until = (now() + timedelta(days=1)).isoformat()
    claims = {"instance_id": cloud.instance, "project_id": None, "product": product, "not_after": until}
    document = json.dumps(claims)
    return {
        "document": base64.b64encode(document.encode()).decode(),
        "signature": base64.b64encode((by or cloud.key).sign(document.encode())).decode(),
        "algorithm": "ed25519",
    }


def told(instance: str, vendordata: object) -> dict[str, object]:
    return {
        "schema": "image-factory/instance/1",
        "instance_id": instance,
        "project_id": None,
        "product": PRODUCT,
        "vendordata": vendordata,
    }


def test_the_images_own_provider_tells_who_the_guest_is(clone: Shared) -> None:
    found = json.loads(clone.root(AS_BEFORE + PROVIDER))
    assert found["schema"] == "image-factory/instance/1"
    assert found["instance_id"] == clone.instance
    assert found["product"] == PRODUCT


def test_what_it_tells_is_what_a_nights_update_servers_ask_for(unregistered: Shared) -> None:
    """Where no cloud signs: an image of the embedded region, and the sandbox that is made for its settings."""
    night = verification_for(with_embedded_client(Site()).region_client)
    with unregistered.services.with_settings(verification=night):
        done = unregistered.by_unit(AS_BEFORE + OWN)
        assert done.result == "success", done.log
        assert any(unregistered.instance in one.instance_data for one in unregistered.services.registrations())


CASES = ("unsigned", "altered", "foreign", "wrong product")


@pytest.mark.parametrize("case", CASES)
def test_who_the_cloud_does_not_vouch_for_is_refused(unregistered: Shared, cloud: Cloud, case: str) -> None:
    """What the image's own provider prints is not signed here; the other cases are told by a script."""
    document = {
        "unsigned": None,
        "altered": told(OTHER, vouched(cloud)),
        "foreign": told(cloud.instance, vouched(cloud, by=ed25519.Ed25519PrivateKey.generate())),
        "wrong product": told(cloud.instance, vouched(cloud, product="sles/15.6/x86_64")),
    }[case]
    unregistered.refused(provider(document) if document else OWN, r"refused \(422\)")


# -- what registers ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def registered(clone: Shared, cloud: Cloud) -> Told:
    """The clone registers as who the cloud says it is, while the region server that it has to ask first is dead.

    Addresses are asked before names, so the other server is configured by its name.
    """
    servers = [server for region in clone.subject.regions for server in region.servers]
    dead, other = servers[0].addresses[0], servers[1]
    script = f"""
cat >/usr/share/keyrings/region.asc <<'END'
{cloud.updates.key}
END
printf '\\n[repository region]\\nsuites = stable\\ncomponents = main\\nsigned-by = /usr/share/keyrings/region.asc\\n' \\
  >>/etc/guestregister.conf
cp {{certificates}}/{other.addresses[0]}.pem {{certificates}}/{other.name}.pem
sed -i -E 's#^regionsrv *=.*#regionsrv = {dead},{other.name}#' /etc/regionserverclnt.cfg
"""
    with stopped(clone.services, dead):
        done = clone.by_unit(AS_BEFORE + provider(told(cloud.instance, vouched(cloud))) + script)
    clone.say(f"registered after {done.seconds:.1f} s")
    return done


def test_who_the_cloud_vouches_for_registers_though_a_region_server_is_dead(
    clone: Shared, cloud: Cloud, registered: Told
) -> None:
    dead = clone.services.region_addresses[0]
    assert registered.result == "success", registered.log
    assert re.search(rf"{re.escape(dead)}\)? does not answer", registered.log), registered.log
    assert [one.login for one in clone.services.registrations() if one.login == cloud.instance]


@pytest.mark.usefixtures("registered")
def test_renewed_certificates_arrive_as_a_package_update(clone: Shared, cloud: Cloud) -> None:
    read = f"cat {{certificates}}/{cloud.updates.item}.pem"
    assert clone.root(read) != cloud.updates.pem
    upgrade = "apt-get upgrade -y -q -o Dir::Etc::SourceList=/dev/null"
    printed = clone.root(f"export DEBIAN_FRONTEND=noninteractive; {UPDATE} && {upgrade} 2>&1")
    assert clone.root(read) == cloud.updates.pem, printed[-2000:]
    # the owner's configuration (here: another provider) is kept
    assert "/usr/local/sbin/provider" in clone.root("cat /etc/regionserverclnt.cfg")


@pytest.mark.usefixtures("registered")
def test_an_update_server_that_dies_is_left_for_its_sibling(clone: Shared) -> None:
    first = clone.root(SERVER).strip()
    assert first in clone.services.update_addresses
    with stopped(clone.services, first):
        done = clone.by_unit()
        assert done.result == "success", done.log
        assert "moved from" in done.log
        second = clone.root(SERVER).strip()
        assert second in {*clone.services.update_addresses} - {first}
        assert clone.services.update_names[second] in clone.root(UPDATE)
