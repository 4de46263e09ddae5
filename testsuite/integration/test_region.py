# SPDX-License-Identifier: Apache-2.0
"""Real region and update servers in a namespace, and the guest client's very file against them."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from factory.errors import RegionError
from factory.model import Region, RegionClient
from factory.region.certificates import issue
from factory.region.config import GUEST_PROGRAM
from factory.region.embedded import embedded_region
from factory.region.services import RegionServices, serve
from factory.region.update_settings import VerificationSettings
from factory.system.clock import now
from factory.system.namespaces import NetworkNamespace, network_namespace
from factory.system.run import run, running
from testsuite.integration.region_fixtures import Instance, Recorded, make_instance, record_repository

pytestmark = [pytest.mark.needs_root, pytest.mark.timeout(300)]

PRODUCT = "debian/13/x86_64"
REGION_A, REGION_B, UPDATE_A, UPDATE_B = "192.0.2.10", "198.51.100.10", "192.0.2.20", "198.51.100.20"
CREDENTIALS = "etc/guestregister/credentials"
PYTHONS = tuple(
    str(found)
    for version in ("3.6", "3.13")
    for found in sorted((Path.home() / ".pyenv/versions").glob(f"{version}.*/bin/python{version}"))[-1:]
) or (sys.executable,)
"""The oldest and a strict Python where pyenv has them; the syntax is held to 3.6 everywhere by a unit test."""
NewInstance = Callable[..., Instance]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return record_repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Region:
    return embedded_region(tmp_path_factory.mktemp("keys") / "region", now=now())


@pytest.fixture(scope="module")
def namespace() -> Iterator[NetworkNamespace]:
    with network_namespace() as made:
        yield made


@pytest.fixture(scope="module")
def running_services(
    namespace: NetworkNamespace, region: Region, recorded: Recorded, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RegionServices]:
    work = tmp_path_factory.mktemp("services")
    with serve(
        namespace,
        (region,),
        view=recorded.view,
        product=PRODUCT,
        workdir=work / "work",
        log_dir=work / "logs",
        now=now(),
        say=lambda _: None,
    ) as services:
        yield services


@pytest.fixture
def services(running_services: RegionServices) -> RegionServices:
    """The servers, all running, with nobody registered."""
    for address in (REGION_A, REGION_B, UPDATE_A, UPDATE_B):
        running_services.start(address)
    for system in running_services.registrations():
        running_services.forget(system.login)
    return running_services


@pytest.fixture
def instance(
    tmp_path: Path, region: Region, namespace: NetworkNamespace, recorded: Recorded
) -> Callable[..., Instance]:
    def make(**changes: object) -> Instance:
        regions = (changes.pop("region", region),)
        return make_instance(tmp_path / "root", regions, namespace, recorded, **{"python": PYTHONS[-1], **changes})

    return make


@pytest.mark.parametrize("python", PYTHONS)
def test_an_instance_registers_and_cleans(services: RegionServices, instance: NewInstance, python: str) -> None:
    guest = instance(python=python)
    fresh = guest.snapshot()
    done = guest.guestregister()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"guestregister: registered {PRODUCT} at update-")
    (system,) = services.registrations()
    assert system.products == (PRODUCT,)
    credentials = dict(line.split("=") for line in guest.read(CREDENTIALS).splitlines())
    assert credentials["username"] == system.login
    assert (guest.root / CREDENTIALS).stat().st_mode & 0o777 == 0o600
    assert (guest.root / "etc/apt/auth.conf.d/90guestregister.conf").stat().st_mode & 0o777 == 0o600
    assert not guest.has("etc/apt/sources.list.d/debian.sources")
    assert credentials["password"] not in guest.read("var/log/cloudregister") + done.stdout
    assert guest.guestregister("--status").returncode == 0

    again = guest.guestregister()
    assert again.stdout.startswith("guestregister: already registered at update-")
    assert len(services.registrations()) == 1

    cleaned = guest.guestregister("--clean")
    assert (cleaned.returncode, cleaned.stdout) == (0, "guestregister: not registered any more\n")
    assert services.registrations() == ()
    assert guest.snapshot() == fresh
    assert guest.guestregister("--status").returncode == 69


def apt(guest: Instance, *words: str) -> tuple[int, str]:
    """apt-get as in the instance: its sources, credentials, keyring, trust store and /etc/hosts."""
    root = guest.root
    for folder in (
        "var/lib/apt/lists/partial",
        "var/cache/apt/archives/partial",
        "var/lib/dpkg",
        "etc/apt/preferences.d",
    ):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "var/lib/dpkg/status").touch()
    sources = root / "etc/apt/sources.list.d/guestregister.sources"
    if sources.exists():
        sources.write_text(sources.read_text().replace("Signed-By: /usr", f"Signed-By: {root}/usr"))
    options = {
        "Dir": root,
        "Dir::Etc::Parts": "/nonexistent",
        "Dir::State::Status": root / "var/lib/dpkg/status",
        "Dir::Bin::methods": "/usr/lib/apt/methods",
        "Acquire::https::CAInfo": root / "etc/ssl/certs/ca-certificates.crt",
        "Acquire::Retries": "0",
        "APT::Architecture": "amd64",
        "APT::Architectures": "amd64",
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
    }
    flags = [f"-o{name}={value}" for name, value in options.items()]
    script = 'mount --bind "$0" /etc/hosts && exec "$@"'
    argv = ["unshare", "--mount", "/bin/sh", "-c", script, root / "etc/hosts", "apt-get", *flags, *words]
    done = run(guest.namespace.inside(argv), check=False, timeout_s=60)
    return done.returncode, done.stdout + done.stderr


def test_apt_installs_from_the_update_server_until_the_registration_ends(
    services: RegionServices, instance: NewInstance
) -> None:
    guest = instance()
    assert guest.guestregister().returncode == 0
    status, said = apt(guest, "update")
    assert status == 0, said
    assert "/repo/debian trixie InRelease" in said
    status, said = apt(guest, "install", "--download-only", "--yes", "probe")
    assert status == 0, said
    assert guest.has("var/cache/apt/archives/probe_1.0+test1_all.deb"), said

    (system,) = services.registrations()
    services.forget(system.login)
    shutil.rmtree(guest.root / "var/lib/apt/lists")
    status, said = apt(guest, "update")
    assert status == 100
    assert "401  Unauthorized" in said


def test_apt_refuses_a_repository_signed_by_somebody_else(
    services: RegionServices, instance: NewInstance, tmp_path: Path
) -> None:
    guest = instance()
    assert guest.guestregister().returncode == 0
    (tmp_path / "other").mkdir()
    (guest.root / "usr/share/keyrings/archive.gpg").write_bytes(record_repository(tmp_path / "other").keyring)
    status, said = apt(guest, "update")
    assert status == 100, said
    assert "NO_PUBKEY" in said


def test_it_registers_with_one_server_of_each_kind_dead(services: RegionServices, instance: NewInstance) -> None:
    services.stop(REGION_A)
    services.stop(UPDATE_B)
    guest = instance()
    done = guest.guestregister()
    assert done.returncode == 0, done.stderr
    assert "192.0.2.20\tupdate-a.factory.invalid\tupdate-a\n" in guest.read("etc/hosts")


def test_it_moves_when_its_update_server_dies(services: RegionServices, instance: NewInstance) -> None:
    guest = instance()
    assert guest.guestregister().returncode == 0
    before = guest.read(CREDENTIALS).splitlines()[:2]
    current = json.loads(guest.read("var/lib/guestregister/state.json"))["server"]
    other = "update-b" if current["name"].startswith("update-a") else "update-a"
    services.stop(current["ipv4"])
    moved = guest.guestregister()
    assert moved.stdout == f"guestregister: moved from {current['name']} to {other}.factory.invalid\n", moved.stderr
    assert guest.read(CREDENTIALS).splitlines()[:2] == before
    assert guest.read("etc/hosts").count("# Added by SMT") == 1
    assert current["name"] not in guest.read("etc/hosts") + guest.read("etc/apt/sources.list.d/guestregister.sources")
    assert len(services.registrations()) == 1
    assert apt(guest, "update")[0] == 0


def test_it_stays_registered_when_no_other_server_takes_over(services: RegionServices, instance: NewInstance) -> None:
    guest = instance()
    assert guest.guestregister().returncode == 0
    before = guest.snapshot()
    services.stop(UPDATE_A)
    services.stop(UPDATE_B)
    done = guest.guestregister()
    assert done.returncode == 1
    assert "is dead and no other took over" in done.stderr
    assert guest.snapshot() == before


def test_it_registers_anew_when_the_server_forgot_it(services: RegionServices, instance: NewInstance) -> None:
    guest = instance()
    assert guest.guestregister().returncode == 0
    (old,) = services.registrations()
    services.forget(old.login)
    assert guest.guestregister().stdout.startswith("guestregister: registered ")
    (new,) = services.registrations()
    assert new.login != old.login
    assert guest.guestregister("--force-new").returncode == 0
    (newest,) = services.registrations()
    assert newest.login not in {old.login, new.login}


def assert_nothing_happened(done, guest: Instance, fresh: dict[str, str], words: str) -> None:
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stderr.count("\n") == 1, "one clear line"
    assert "Traceback" not in done.stderr
    assert guest.snapshot() == fresh


def test_an_unknown_product_is_refused(services: RegionServices, instance: NewInstance) -> None:
    guest = instance(product="debian/99/x86_64")
    fresh = guest.snapshot()
    assert_nothing_happened(guest.guestregister(), guest, fresh, "refused (422): No product found")
    assert services.registrations() == ()


@pytest.mark.parametrize("kind", ["foreign", "name", "expired", "missing"])
def test_it_asks_no_region_server_that_it_cannot_verify(
    services: RegionServices, instance: NewInstance, kind: str
) -> None:
    guest = instance()
    for item in (REGION_A, REGION_B):
        pem = guest.root / f"usr/lib/regionService/certs/{item}.pem"
        other = issue("other.test.invalid", now=now(), days=30, names=["other.test.invalid"], addresses=[item])
        if kind == "missing":
            pem.unlink()
        else:
            pem.write_bytes(other.pem)
    fresh = guest.snapshot()
    said = "no region server has a certificate" if kind == "missing" else "is not accepted"
    assert_nothing_happened(guest.guestregister(), guest, fresh, said)
    assert services.registrations() == ()


def spoiled_services(
    namespace: NetworkNamespace,
    region: Region,
    recorded: Recorded,
    work: Path,
    client: RegionClient | None = None,
    verification: VerificationSettings | None = None,
):
    return serve(
        namespace,
        (region,),
        view=recorded.view,
        product=PRODUCT,
        workdir=work / "work",
        log_dir=work / "logs",
        now=now(),
        say=lambda _: None,
        client=client,
        handshake=False,
        verification=verification,
    )


def with_servers(region: Region, folder: Path, **changes: object) -> Region:
    """The region with its region servers' certificates made anew, spoiled in one way."""
    folder.mkdir()
    servers = []
    for server in region.servers:
        wanted = {"now": now(), "days": 30, "names": [server.name], "addresses": [server.ipv4], **changes}
        pem, key = issue(server.name, **wanted).write(folder, server.name)
        servers.append(replace(server, pem=pem, key=key))
    return replace(region, servers=tuple(servers))


@pytest.mark.parametrize(
    "changes",
    [{"addresses": ["203.0.113.1"]}, {"now": now() - timedelta(days=100)}],
    ids=["wrong-name", "expired"],
)
@pytest.mark.parametrize("python", PYTHONS)
def test_a_region_server_with_a_bad_certificate_is_not_used(
    region: Region, recorded: Recorded, tmp_path: Path, changes: dict[str, object], python: str
) -> None:
    """The very certificate is pinned, and still its name and its dates count."""
    spoiled = with_servers(region, tmp_path / "spoiled", **changes)
    with network_namespace() as namespace, spoiled_services(namespace, spoiled, recorded, tmp_path) as services:
        guest = make_instance(tmp_path / "root", (spoiled,), namespace, recorded, python=python)
        fresh = guest.snapshot()
        assert_nothing_happened(guest.guestregister(), guest, fresh, "is not accepted")
        assert services.registrations() == ()


def test_a_ca_with_another_fingerprint_is_not_trusted(region: Region, recorded: Recorded, tmp_path: Path) -> None:
    """The region server names one CA, the update servers give another, with which their certificates would verify."""
    foreign = issue("foreign CA", now=now(), days=30, is_authority=True)
    with network_namespace() as namespace, spoiled_services(namespace, region, recorded, tmp_path) as services:
        for settings in tmp_path.glob("work/region-*/update-server-*.json"):
            found = json.loads(settings.read_text())
            found["ca"] = str(foreign.write(tmp_path, "foreign")[0])
            settings.write_text(json.dumps(found))
        for address in (UPDATE_A, UPDATE_B):
            services.stop(address)
            services.start(address)
        guest = make_instance(tmp_path / "root", (region,), namespace, recorded, python=PYTHONS[-1])
        fresh = guest.snapshot()
        assert_nothing_happened(guest.guestregister(), guest, fresh, "has another fingerprint")
        assert services.registrations() == ()


def test_a_server_whose_certificate_is_not_from_the_ca_gets_no_credentials(
    region: Region, recorded: Recorded, tmp_path: Path
) -> None:
    servers = []
    for server in region.update_servers:
        certificate, key = issue(server.name, now=now(), days=30, names=[server.name]).write(tmp_path, server.name)
        servers.append(replace(server, certificate=certificate, key=key))
    spoiled = replace(region, update_servers=tuple(servers))
    with network_namespace() as namespace, spoiled_services(namespace, spoiled, recorded, tmp_path) as services:
        guest = make_instance(tmp_path / "root", (region,), namespace, recorded, python=PYTHONS[-1])
        fresh = guest.snapshot()
        assert_nothing_happened(guest.guestregister(), guest, fresh, "is not accepted")
        assert services.registrations() == ()


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("run/cloud-init/instance-data.json", '{"ds": {"meta_data": {"meta": {"factory_registration": "byos"}}}}'),
        ("run/cloud-init/instance-data.json", '{"ds": {"meta_data": {"factory_registration": "BYOL"}}}'),
        ("var/lib/cloud/instance/cloud-config.txt", "#cloud-config\n\n# from 1 files\nfactory_registration: byos\n"),
    ],
    ids=["openstack", "nocloud", "user-data"],
)
def test_an_owner_who_brings_the_subscription_is_left_alone(
    services: RegionServices, instance: NewInstance, path: str, text: str
) -> None:
    guest = instance()
    (guest.root / path).parent.mkdir(parents=True)
    (guest.root / path).write_text(text)
    fresh = guest.snapshot()
    done = guest.guestregister()
    assert (done.returncode, done.stderr) == (0, "")
    assert "the owner brings the subscription" in done.stdout
    assert guest.snapshot() == fresh
    assert services.registrations() == ()


def test_a_choice_that_is_not_understood_registers_nothing(services: RegionServices, instance: NewInstance) -> None:
    guest = instance()
    (guest.root / "run/cloud-init").mkdir(parents=True)
    (guest.root / "run/cloud-init/instance-data.json").write_text(
        '{"ds": {"meta_data": {"factory_registration": "bios"}}}'
    )
    fresh = guest.snapshot()
    assert_nothing_happened(guest.guestregister(), guest, fresh, "neither byos nor on-demand")


KILLER = """
import os, runpy, signal, sys
left = int(sys.argv[1])
EVENTS = {"os.rename", "os.remove", "subprocess.Popen", "socket.connect", "os.truncate"}
def count(event, arguments):
    global left
    if event in EVENTS or (event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_CREAT):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(count)
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs the guest client and kills it just before its Nth connection or change of a file."""


def killed_before(guest: Instance, step: int, *options: str) -> bool:
    """Run the client until just before its ``step``-th effect; False when it has no such step and ended by itself."""
    argv = guest.command(*options)
    at = argv.index(str(guest.root / GUEST_PROGRAM))
    script = guest.root / "killer.py"
    script.write_text(KILLER)
    done = run([*argv[:at], script, str(step), *argv[at:]], check=False, timeout_s=60)
    assert done.returncode in {0, -9, 137}, done.stderr
    return done.returncode != 0


STEPS = tuple(range(1, 60))


def test_a_registration_that_was_killed_anywhere_is_finished_by_the_next_run(
    services: RegionServices, instance: NewInstance
) -> None:
    services.stop(UPDATE_B)
    guest = instance()
    assert guest.guestregister().returncode == 0
    whole = [name for name in guest.snapshot() if name != "var/log/cloudregister"]
    for step in STEPS:
        assert guest.guestregister("--clean").returncode == 0
        cut = killed_before(guest, step)
        done = guest.guestregister()
        assert done.returncode == 0, f"killed before step {step}: {done.stderr}"
        assert sorted(guest.snapshot()) == sorted(whole), f"killed before step {step}"
        assert guest.read("etc/hosts").count("# Added by SMT") == 1
        assert guest.guestregister("--status").returncode == 0
        login = guest.read(CREDENTIALS).splitlines()[0].removeprefix("username=")
        assert login in {system.login for system in services.registrations()}
        if not cut:
            assert step > 15, "the client does more than that"
            break
    else:
        pytest.fail("more steps than tried")


def test_a_clean_up_that_was_killed_anywhere_is_finished_by_the_next_run(
    services: RegionServices, instance: NewInstance
) -> None:
    guest = instance()
    fresh = guest.snapshot()
    for step in STEPS:
        assert guest.guestregister().returncode == 0
        cut = killed_before(guest, step, "--clean")
        assert guest.guestregister("--clean").returncode == 0
        assert guest.snapshot() == fresh, f"killed before step {step}"
        assert services.registrations() == ()
        if not cut:
            assert step > 5
            break
    else:
        pytest.fail("more steps than tried")


def test_a_stand_in_takes_the_place_of_certificates_whose_key_is_not_ours(
    region: Region, recorded: Recorded, tmp_path: Path
) -> None:
    foreign = replace(
        region,
        embedded=False,
        servers=tuple(replace(server, key=None) for server in region.servers),
        update_servers=tuple(replace(server, key=None) for server in region.update_servers),
    )
    with network_namespace() as namespace, spoiled_services(namespace, foreign, recorded, tmp_path) as services:
        assert "the key is not ours" in services.region_proof
        assert set(services.replacement_pems) == {
            f"/usr/lib/regionService/certs/{address}.pem" for address in (REGION_A, REGION_B)
        }
        guest = make_instance(tmp_path / "root", (foreign,), namespace, recorded, python=PYTHONS[-1])
        assert guest.guestregister().returncode == 1
        for path, pem in services.replacement_pems.items():
            (guest.root / path.lstrip("/")).write_text(pem)
        done = guest.guestregister()
        assert done.returncode == 0, done.stderr
        assert len(services.registrations()) == 1


HANDSHAKE = """
import sys
from factory.region.online import handshake_problem
print(handshake_problem(sys.argv[1], open(sys.argv[2]).read(), "regionInfo", timeout_s=5))
"""


def test_a_handshake_tells_whether_the_pinned_certificate_is_the_servers(
    services: RegionServices, region: Region
) -> None:
    def ask(item: str, pem: Path) -> str:
        return run(services.namespace.inside([sys.executable, "-c", HANDSHAKE, item, pem]), timeout_s=20).stdout.strip()

    ours, other = (server.pem for server in region.servers)
    assert ask(REGION_A, ours) == ""
    assert "certificate verify failed" in ask(REGION_A, other)
    assert "refused" in ask("203.0.113.1", ours) or "unreachable" in ask("203.0.113.1", ours)
    services.stop(REGION_A)
    assert "refused" in ask(REGION_A, ours)


def test_with_ipv6_it_registers_over_ipv6(region: Region, recorded: Recorded, tmp_path: Path) -> None:
    six = iter(["2001:db8::10", "2001:db8::11"])
    servers = []
    for server in region.servers:
        made = issue(server.name, now=now(), days=30, names=[server.name], addresses=[server.ipv4, v6 := next(six)])
        pem, key = made.write(tmp_path, server.name)
        servers.append(replace(server, ipv6=v6, pem=pem, key=key))
    updates = [replace(one, ipv6=f"2001:db8::2{number}") for number, one in enumerate(region.update_servers)]
    dual = replace(region, servers=tuple(servers), update_servers=tuple(updates))
    with network_namespace() as namespace, spoiled_services(namespace, dual, recorded, tmp_path) as services:
        guest = make_instance(tmp_path / "root", (dual,), namespace, recorded, python=PYTHONS[-1])
        done = guest.guestregister()
        assert done.returncode == 0, done.stderr
        assert "\n2001:db8::2" in guest.read("etc/hosts")
        assert "region server 2001:db8::1" in guest.read("var/log/cloudregister")
        assert len(services.registrations()) == 1
        assert apt(guest, "update")[0] == 0


CRASHING = """
import os, sys, time
from pathlib import Path
from factory.inputs.view import RepositoryView
from factory.region.embedded import embedded_region
from factory.region.services import serve
from factory.system.clock import now
from factory.system.namespaces import network_namespace
work = Path(sys.argv[1])
view = RepositoryView(repositories=(), inputs={}, blobs=work)
with network_namespace() as namespace, serve(
    namespace, (embedded_region(work / "keys", now=now()),), view=view, product="debian/13/x86_64",
    workdir=work, log_dir=work, now=now(), say=print,
):
    (work / "up").touch()
    time.sleep(60)
"""


def test_no_server_outlives_a_factory_that_was_killed(tmp_path: Path) -> None:
    def left() -> list[str]:
        found = []
        for commandline in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = commandline.read_bytes().decode(errors="replace")
                if "gunicorn" in words and str(tmp_path) in words:
                    found.append(words)
        return found

    with running([sys.executable, "-c", CRASHING, tmp_path], log=tmp_path / "crashing.log") as process:
        for _ in range(600):
            if (tmp_path / "up").exists():
                break
            time.sleep(0.1)
        assert len(left()) == 8, (tmp_path / "crashing.log").read_text()
        process.kill()
        process.wait()
        for _ in range(50):
            if not left():
                break
            time.sleep(0.1)
        assert left() == []


SILENT = """
import http.client, socket, ssl, sys, time
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
silent = [socket.create_connection((sys.argv[1], 443), 5) for _ in range(100)]
silent += [context.wrap_socket(socket.create_connection((sys.argv[1], 443), 60)) for _ in range(50)]
started = time.monotonic()
connection = http.client.HTTPSConnection(sys.argv[1], timeout=60, context=context)
connection.request("GET", "/regionInfo")
print(connection.getresponse().status, time.monotonic() - started)
"""


def test_clients_that_say_nothing_do_not_stop_a_server(services: RegionServices) -> None:
    done = run(services.namespace.inside([sys.executable, "-c", SILENT, REGION_A]), timeout_s=100)
    status, seconds = done.stdout.split()
    assert status == "200"
    assert float(seconds) < 30


def test_the_wait_for_the_clock_is_bounded(services: RegionServices, instance: NewInstance) -> None:
    started = time.monotonic()
    assert instance().guestregister("--wait-for-clock", "1").returncode == 0
    assert time.monotonic() - started < 20


def test_without_https_only_the_ca_comes_over_port_80(region: Region, recorded: Recorded, tmp_path: Path) -> None:
    client = RegionClient(https_only=False)
    with (
        network_namespace() as namespace,
        spoiled_services(namespace, region, recorded, tmp_path, client=client) as services,
    ):
        guest = make_instance(tmp_path / "root", (region,), namespace, recorded, python=PYTHONS[-1], client=client)
        assert guest.guestregister().returncode == 0
        assert len(services.registrations()) == 1
        plain = tmp_path.glob("logs/update-server-*-http.log")
        assert any('"GET /smt.crt HTTP/1.1" 200' in log.read_text() for log in plain)


def test_access_logs_name_requests_and_no_secrets(services: RegionServices, instance: NewInstance) -> None:
    guest = instance()
    assert guest.guestregister().returncode == 0
    found = services.access_log(UPDATE_A) + services.access_log(UPDATE_B)
    assert '"POST /connect/systems/products HTTP/1.1" 201' in found
    password = dict(line.split("=") for line in guest.read(CREDENTIALS).splitlines())["password"]
    assert password not in found


def test_a_server_that_cannot_start_is_told_with_its_log(region: Region, recorded: Recorded, tmp_path: Path) -> None:
    broken = replace(region.servers[0], key=tmp_path / "none.key")
    spoiled = replace(region, servers=(broken, *region.servers[1:]))
    with (
        network_namespace() as namespace,
        pytest.raises(RegionError, match="did not start"),
        spoiled_services(namespace, spoiled, recorded, tmp_path),
    ):
        pytest.fail("it started")


def signed_data(private: ed25519.Ed25519PrivateKey, **changes: str) -> str:
    """What a data provider prints, with a document that a cloud signed."""
    instance = {"instance_id": "3f1c2d4e-0000-4000-8000-00000000000a", "project_id": "p", "product": PRODUCT}
    document = json.dumps({**instance, "not_after": "2999-01-01T00:00:00+00:00", **changes}).encode()
    vendordata = {
        "document": base64.b64encode(document).decode(),
        "signature": base64.b64encode(private.sign(document)).decode(),
        "algorithm": "ed25519",
    }
    return json.dumps({"schema": "image-factory/instance/1", **instance, "vendordata": vendordata})


def test_update_servers_verify_instances(region: Region, recorded: Recorded, tmp_path: Path) -> None:
    """What the cloud did not sign, or signed for another product or instance, registers nothing and leaves nothing."""
    cloud = ed25519.Ed25519PrivateKey.generate()
    public = cloud.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (tmp_path / "cloud.pem").write_bytes(public)
    said = tmp_path / "said"
    client = RegionClient(data_provider="/usr/lib/test/instance-data")
    verification = VerificationSettings(provider="openstack", public_key=str(tmp_path / "cloud.pem"))
    with (
        network_namespace() as namespace,
        spoiled_services(namespace, region, recorded, tmp_path, client, verification) as services,
    ):
        guest = make_instance(tmp_path / "root", (region,), namespace, recorded, python=PYTHONS[-1], client=client)
        provider = guest.root / "usr/lib/test/instance-data"
        provider.parent.mkdir(parents=True)
        provider.write_text(f"#!/bin/sh\ncat {said}\n")
        provider.chmod(0o755)
        fresh = guest.snapshot()
        good = signed_data(cloud)
        for bad, words in (
            (signed_data(ed25519.Ed25519PrivateKey.generate()), "signature of the instance data is not good"),
            (signed_data(cloud, instance_id="3f1c2d4e-0000-4000-8000-00000000000b"), "is of another instance"),
            (signed_data(cloud, product="debian/12/x86_64"), "is for another product"),
            (good.replace("debian/13", "debian/12"), "is of product debian/12/x86_64"),
            (signed_data(cloud, not_after="2001-01-01T00:00:00+00:00"), "is expired"),
        ):
            said.write_text(bad)
            assert_nothing_happened(guest.guestregister(), guest, fresh, words)
            assert services.registrations() == ()
        said.write_text(good)
        done = guest.guestregister()
        assert done.returncode == 0, done.stderr
        (system,) = services.registrations()
        assert (system.login, system.products) == ("3f1c2d4e-0000-4000-8000-00000000000a", (PRODUCT,))
        assert apt(guest, "update")[0] == 0
        assert "already registered" in guest.guestregister().stdout
