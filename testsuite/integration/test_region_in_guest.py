# SPDX-License-Identifier: Apache-2.0
"""Registration in the verified guest, through its systemd unit: servers that die, and everything that must fail closed.

The guest is the healthy one that all tests share, frozen after its first boot; each test has a clone of its own. What
runs in it is the image's own client, certificates and configuration.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from factory.region.certificates import issue
from factory.region.packages import build_packages, payloads
from factory.region.repositories import FolderRepository
from factory.region.services import RegionServices, serve
from factory.region.update_settings import VerificationSettings
from factory.sandbox.frozen import thaw
from factory.sandbox.guest import Guest
from factory.sandbox.network import sandbox_network
from factory.system.clock import now
from factory.verify.seen import as_root
from testsuite.integration.test_package_repositories import a_signer
from testsuite.mutants.base import Base, quiet

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_guest,
    pytest.mark.needs_image,
    pytest.mark.needs_mirror,
    pytest.mark.slow,  # without KVM each run of the client takes most of a minute
]

# The unit waits for a clock that is synchronised, which a thawed clone's is only after chrony has asked again.
FRESH = """
if [ "$(timedatectl show -p NTPSynchronized --value)" != yes ]; then
  systemctl restart chrony.service
  chronyc waitsync 60 0 0 1 >/dev/null
fi
guestregister --clean >/dev/null
printf '\\n[network]\\nround_pauses_s = 0.1 0.1\\nhealth_pauses_s = 0.1\\n' >>/etc/guestregister.conf
: >/var/log/cloudregister
"""
BY_UNIT = """
systemctl reset-failed guestregister.service
systemctl restart guestregister.service
systemctl show -p Result --value guestregister.service
cat /var/log/cloudregister
"""
TRACES = """
for path in /etc/guestregister/credentials /etc/apt/auth.conf.d/*guestregister* \\
    /etc/apt/sources.list.d/*guestregister* /usr/local/share/ca-certificates/registration_server_*; do
  test ! -e "$path" || echo "$path"
done
grep -F '# Added by SMT' /etc/hosts || true
"""
SERVER = "awk '/# Added by SMT/ {getline; print $1; exit}' /etc/hosts"


@dataclass(frozen=True)
class Told:
    """How a run of the unit ended: systemd's result, and the client's log."""

    result: str
    log: str


def by_unit(guest: Guest) -> Told:
    result, _, log = as_root(guest, BY_UNIT).stdout.partition("\n")
    return Told(result=result, log=log)


def traces(guest: Guest) -> list[str]:
    """What a registration leaves in the system; empty where nothing is half done."""
    return as_root(guest, TRACES).stdout.split("\n")[:-1]


@contextmanager
def stopped(services: RegionServices, address: str) -> Iterator[None]:
    services.stop(address)
    try:
        yield
    finally:
        services.start(address)


def test_servers_that_die_are_passed_over(healthy_guest: Base) -> None:
    services = healthy_guest.network.services
    dead = services.region_addresses[0]
    with healthy_guest.clone(FRESH) as (guest, _):
        with stopped(services, dead):
            assert traces(guest) == []
            for _ in range(8):  # which one is asked first is drawn by lot
                done = by_unit(guest)
                assert done.result == "success", done.log
                if dead in done.log:
                    break
                as_root(guest, "guestregister --clean >/dev/null")
            assert re.search(rf"{re.escape(dead)}\)? does not answer", done.log), done.log
        first = as_root(guest, SERVER).stdout.strip()
        assert first in services.update_addresses
        with stopped(services, first):
            done = by_unit(guest)
            assert done.result == "success", done.log
            second = as_root(guest, SERVER).stdout.strip()
            assert second in {*services.update_addresses} - {first}
            printed = as_root(guest, "apt-get update -q -o APT::Update::Error-Mode=any 2>&1").stdout
            assert services.update_names[second] in printed


def foreign_certificate(address: str) -> str:
    """For the right address, by somebody else."""
    return issue(address, now=now(), days=30, addresses=[address]).pem.decode()


def wrong_pems(base: Base) -> str:
    folder = base.words["certificates"]
    write = [
        f"cat >{folder}/{address}.pem <<'END'\n{foreign_certificate(address)}END\n"
        for address in base.network.services.region_addresses
    ]
    return "".join(write)


def wrong_product(_base: Base) -> str:
    return "sed -i -E 's#^product *=.*#product = debian/12/x86_64#' /etc/guestregister.conf"


FAULTS = (
    (wrong_pems, r"the certificate of .* is not accepted"),
    (wrong_product, r"refused \(422\)"),
)


def test_registration_fails_closed(healthy_guest: Base) -> None:
    services = healthy_guest.network.services
    for spoil, says in FAULTS:
        with healthy_guest.clone(FRESH + spoil(healthy_guest)) as (guest, _):
            before = {one.login for one in services.registrations()}
            done = by_unit(guest)
            assert done.result == "exit-code", done.log
            assert re.search(says, done.log), done.log
            assert traces(guest) == []
            assert {one.login for one in services.registrations()} == before, "the server knows who was refused"


# -- instance data and renewed certificates ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Updates:
    """The region's packages after a renewal, as an update server gives them out: their key, and the new PEM."""

    key: str
    item: str
    pem: str


def renewed(base: Base, folder: Path) -> Updates:
    """Renew the first region server's certificate, and publish the packages that carry it."""
    subject = base.stage.subject
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
    """A cloud that signs what it says of its instances, and update servers that want to see that."""

    key: ed25519.Ed25519PrivateKey
    clone: Callable[[str], AbstractContextManager[Guest]]
    updates: Updates


@pytest.fixture(scope="module")
def signing_cloud(healthy_guest: Base, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    folder = tmp_path_factory.mktemp("cloud")
    key = ed25519.Ed25519PrivateKey.generate()
    public = folder / "cloud.pem"
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    subject = healthy_guest.stage.subject
    updates = renewed(healthy_guest, folder)
    served = FolderRepository(alias="region", folder=str(folder / "packages" / "apt"))
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
                    client=subject.region_client,
                    verification=VerificationSettings(provider="openstack", public_key=str(public)),
                    folders=[served],
                ),
                ntp_servers=subject.ntp_servers,
                workdir=folder / "network",
                say=quiet,
            )
        )

        @contextmanager
        def clone(spoil: str) -> Iterator[Guest]:
            with thaw(
                healthy_guest.frozen,
                workdir=folder / "clone",
                namespace=network.namespace,
                console_log=folder / "console.log",
                say=quiet,
            ) as guest:
                as_root(guest, spoil)
                yield guest

        yield Cloud(key=key, clone=clone, updates=updates)


def provider(document: dict[str, object]) -> str:
    """A script that makes the guest say this of itself."""
    said = base64.b64encode(json.dumps(document).encode()).decode()
    return f"""
printf '#!/bin/sh\\necho {said} | base64 -d\\n' >/usr/local/sbin/provider
chmod 0755 /usr/local/sbin/provider
sed -i -E 's#^dataProvider *=.*#dataProvider = /usr/local/sbin/provider#i' /etc/regionserverclnt.cfg
"""


OURS = "5a1d9a3c-0a57-4d0c-9d7b-3f0a2b6c7d8e"
OTHER = "0b2e4c6a-1111-4222-8333-444455556666"
PRODUCT = "debian/13/x86_64"


def vouched(key: ed25519.Ed25519PrivateKey, *, instance: str = OURS, product: str = PRODUCT) -> dict[str, str]:
    """What the cloud says of an instance, signed."""
    until = (now() + timedelta(days=1)).isoformat()
    document = json.dumps({"instance_id": instance, "project_id": None, "product": product, "not_after": until})
    return {
        "document": base64.b64encode(document.encode()).decode(),
        "signature": base64.b64encode(key.sign(document.encode())).decode(),
        "algorithm": "ed25519",
    }


def told(vendordata: object, *, instance: str = OURS, product: str = PRODUCT) -> dict[str, object]:
    return {
        "schema": "image-factory/instance/1",
        "instance_id": instance,
        "project_id": None,
        "product": product,
        "vendordata": vendordata,
    }


def refused(key: ed25519.Ed25519PrivateKey) -> dict[str, dict[str, object]]:
    stranger = ed25519.Ed25519PrivateKey.generate()
    return {
        "wrong product": told(vouched(key, product="sles/15.6/x86_64")),
        "altered": told(vouched(key), instance=OTHER),
        "foreign": told(vouched(stranger)),
        "unsigned": told(None),
    }


def test_only_who_the_cloud_vouches_for_registers(signing_cloud: Cloud) -> None:
    with signing_cloud.clone("") as guest:
        for case, document in refused(signing_cloud.key).items():
            as_root(guest, FRESH + provider(document))
            done = by_unit(guest)
            assert done.result == "exit-code", f"{case}: {done.log}"
            assert "refused (422)" in done.log, f"{case}: {done.log}"
            assert traces(guest) == [], case
        as_root(guest, FRESH + provider(told(vouched(signing_cloud.key))))
        done = by_unit(guest)
        assert done.result == "success", done.log
        assert as_root(guest, "apt-get update -q -o APT::Update::Error-Mode=any 2>&1").returncode == 0


def test_renewed_certificates_arrive_as_a_package_update(signing_cloud: Cloud, healthy_guest: Base) -> None:
    updates = signing_cloud.updates
    wanted = f"""
cat >/usr/share/keyrings/region.asc <<'END'
{updates.key}
END
printf '\n[repository region]\nsuites = stable\ncomponents = main\nsigned-by = /usr/share/keyrings/region.asc\n' \
  >>/etc/guestregister.conf
"""
    pem = f"{healthy_guest.words['certificates']}/{updates.item}.pem"
    with signing_cloud.clone(FRESH + wanted + provider(told(vouched(signing_cloud.key)))) as guest:
        done = by_unit(guest)
        assert done.result == "success", done.log
        assert as_root(guest, f"cat {pem}").stdout != updates.pem
        upgrade = "apt-get update -q -o APT::Update::Error-Mode=any && apt-get upgrade -y -q"
        printed = as_root(guest, f"export DEBIAN_FRONTEND=noninteractive; ({upgrade}) 2>&1").stdout
        assert as_root(guest, f"cat {pem}").stdout == updates.pem, printed[-2000:]
        # the owner's configuration (here: another provider) is kept, and the next run still knows its servers
        done = by_unit(guest)
        assert done.result == "success", done.log


def test_the_images_own_provider_tells_who_the_guest_is(healthy_guest: Base) -> None:
    with healthy_guest.clone() as (guest, _):
        printed = as_root(guest, "/usr/lib/image-factory/instance-data").stdout
        ours = as_root(guest, "cloud-init query instance_id").stdout.strip()
    found = json.loads(printed)
    assert found["schema"] == "image-factory/instance/1"
    assert found["instance_id"] == ours
    assert found["product"] == PRODUCT
