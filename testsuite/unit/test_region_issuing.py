# SPDX-License-Identifier: Apache-2.0
"""Certificates of region servers: made, renewed with overlap, listed; read by openssl, and used in real handshakes."""

from __future__ import annotations

import contextlib
import json
import re
import ssl
import stat
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from factory.cli import app
from factory.describe.load import images
from factory.errors import FactoryError, InputFault
from factory.model import Description, Recipe, Region, RegionClient, Registration
from factory.region.check import check_pem
from factory.region.config import guest_files, install
from factory.region.issuing import Files, Made, Pin, Wanted, expiries, finish, make, renew
from factory.system.run import run
from factory.system.state import State
from testsuite.fakes.regions import make_region, write_site
from testsuite.fakes.tls import Answers, tls_server

PROJECT = Path(__file__).parents[2]
NOW = datetime(2026, 3, 1, tzinfo=UTC)
HOST = "region-a.cloud.example"
WANTED = Wanted(
    host=HOST, names=[HOST], addresses=["127.0.0.1", "2001:db8::1"], key_type="ecdsa", about={"country": "DE"}
)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files.of(HOST, tmp_path / "out")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def openssl(path: Path) -> str:
    argv = ["openssl", "x509", "-in", path, "-noout", "-text", "-nameopt", "RFC2253"]
    return run(argv, timeout_s=20).stdout


KINDS = {
    "rsa": ("Public-Key: (4096 bit)", "Digital Signature, Key Encipherment"),
    "ecdsa": ("NIST CURVE: P-256", "Digital Signature"),
    "ecdsa-p384": ("NIST CURVE: P-384", "Digital Signature"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_openssl_reads_what_we_make(files: Files, kind: str) -> None:
    about = {"country": "DE", "state": "S", "location": "L", "organization": "O", "department": "D"}
    made = make(replace(WANTED, key_type=kind, days=365, about=about), files, now=NOW)
    told = openssl(made.certificate)
    public_key, usage = KINDS[kind]
    for words in (
        "Version: 3 (0x2)",
        public_key,
        f"Subject: CN={HOST},OU=D,O=O,L=L,ST=S,C=DE",
        "DNS:region-a.cloud.example, IP Address:127.0.0.1, IP Address:2001:DB8:0:0:0:0:0:1",
        "Not After : Mar  1 00:00:00 2027 GMT",
        "CA:FALSE",
        usage,
        "TLS Web Server Authentication",
    ):
        assert words in told, words
    identifiers = re.findall(r"X509v3 (Subject|Authority) Key Identifier: *\n +([0-9A-F:]+)", told)
    assert {name for name, _ in identifiers} == {"Subject", "Authority"}
    assert len({value for _, value in identifiers}) == 1
    assert "sha256" in told or "SHA256" in told
    at = str(int(NOW.timestamp()) + 3600)
    run(["openssl", "verify", "-x509_strict", "-attime", at, "-CAfile", made.pem, made.certificate], timeout_s=20)
    key = run(["openssl", "pkey", "-in", made.key, "-pubout"], timeout_s=20).stdout
    assert key == run(["openssl", "x509", "-in", made.certificate, "-noout", "-pubkey"], timeout_s=20).stdout


def test_files_and_modes_are_the_guides(files: Files) -> None:
    made = make(WANTED, files, now=NOW)
    relative = {path.relative_to(files.folder).as_posix() for path in (made.certificate, made.key, made.pem)}
    assert relative == {f"ssl.crt/{HOST}.crt", f"ssl.key/{HOST}.key", f"regionServCert/{HOST}.pem"}
    assert (mode(made.key), mode(made.key.parent), mode(made.pem)) == (0o600, 0o700, 0o644)
    assert made.pem.read_bytes() == made.certificate.read_bytes()
    assert "PRIVATE" not in made.pem.read_text()
    assert check_pem(made.pem.read_text(), HOST, place="x", now=NOW, lifetime_days=760) == ()


@pytest.mark.parametrize("left", ["pem", "certificate", "key"])
def test_nothing_is_overwritten(files: Files, left: str) -> None:
    made = make(WANTED, files, now=NOW)
    before = {path: path.read_bytes() for path in (made.certificate, made.key, made.pem)}
    for path in before:
        if path != getattr(made, left):
            path.unlink()
    with pytest.raises(InputFault, match="nothing was changed"):
        make(WANTED, files, now=NOW)
    assert {path for path in before if path.exists()} == {getattr(made, left)}
    assert getattr(made, left).read_bytes() == before[getattr(made, left)]


def test_a_crash_before_the_last_file_is_made_good(files: Files) -> None:
    made = make(WANTED, files, now=NOW)
    made.pem.unlink()
    assert make(WANTED, files, now=NOW) == made
    assert made.pem.read_bytes() == made.certificate.read_bytes()


def test_a_renewal_puts_the_old_certificate_first_and_keeps_names_kind_and_subject(files: Files) -> None:
    first = make(replace(WANTED, days=365), files, now=NOW)
    before = first.key.read_bytes(), first.certificate.read_bytes()
    later = NOW + timedelta(days=200)
    second = renew(Wanted(host=HOST), files, now=later)
    assert (first.key.read_bytes(), first.certificate.read_bytes()) == before, "the server in use keeps its files"
    assert second.sha256[0] == first.sha256[0]
    assert second.expires[0] < second.expires[1]
    assert mode(second.key) == 0o600
    told = openssl(second.certificate)
    assert "IP Address:2001:DB8" in told
    assert "NIST CURVE: P-256" in told
    assert f"CN={HOST},C=DE" in told
    assert check_pem(second.pem.read_text(), HOST, place="x", now=later, lifetime_days=760) == ()
    with pytest.raises(InputFault, match="under way"):
        renew(WANTED, files, now=later)


def test_a_successor_must_last_longer(files: Files) -> None:
    made = make(WANTED, files, now=NOW)
    with pytest.raises(InputFault, match="expire before"):
        renew(replace(WANTED, days=30), files, now=NOW)
    assert made.pem.read_bytes() == made.certificate.read_bytes()


@pytest.mark.parametrize("crash_after", [0, 1, 2, 3, 4])
def test_a_renewal_is_ended_also_after_a_crash(files: Files, crash_after: int) -> None:
    make(replace(WANTED, days=365), files, now=NOW)
    second = renew(WANTED, files, now=NOW)
    key, certificate = second.key.read_bytes(), second.certificate.read_bytes()
    moves = [
        (files.key(), files.key(".old")),
        (files.key(".new"), files.key()),
        (files.certificate(), files.certificate(".old")),
        (files.certificate(".new"), files.certificate()),
    ]
    for source, target in moves[:crash_after]:
        source.replace(target)
    done = finish(files)
    assert (done.key.read_bytes(), done.certificate.read_bytes()) == (key, certificate)
    assert done.pem.read_bytes() == certificate
    assert files.key(".old").exists()
    assert not files.key(".new").exists()
    with pytest.raises(InputFault, match="no renewal"):
        finish(files)


def test_faults_of_the_caller_are_told(files: Files, tmp_path: Path) -> None:
    for host in ("a/b", "https://a", "", "../x"):
        with pytest.raises(InputFault):
            Files.of(host, tmp_path)
    with pytest.raises(InputFault, match="no certificate can be made"):
        make(replace(WANTED, about={"country": "Germany"}), files, now=NOW)
    with pytest.raises(InputFault, match="no certificate of"):
        renew(WANTED, files, now=NOW)
    files.pem.parent.mkdir(parents=True)
    files.pem.write_text("nothing\n")
    with pytest.raises(InputFault, match="holds no certificate"):
        renew(WANTED, files, now=NOW)


# -- both servers are accepted ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def renewed(files: Files) -> Iterator[tuple[Made, Made]]:
    now = datetime.now(UTC)
    first = make(replace(WANTED, days=30), files, now=now)
    second = renew(WANTED, files, now=now)
    yield first, second


def test_python_and_curl_accept_the_old_and_the_new_server_and_no_other(files: Files, tmp_path: Path) -> None:
    """Real handshakes, with nothing trusted but the PEM of two certificates."""
    stranger = make(WANTED, Files.of(HOST, tmp_path / "other"), now=datetime.now(UTC))
    with renewed(files) as (first, second):
        for made, good in ((first, True), (second, True), (stranger, False)):
            with tls_server(made.certificate, made.key, Answers({"/x": (200, b"yes")})) as port:
                assert handshake(second.pem, port) == good
                curl = run(curl_argv(second.pem, port), timeout_s=20, check=False)
                assert (curl.returncode == 0, curl.stdout == "yes") == (good, good), curl.stderr


def handshake(pem: Path, port: int) -> bool:
    import socket

    context = ssl.create_default_context(cafile=str(pem))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    try:
        with (
            socket.create_connection(("127.0.0.1", port), 5) as plain,
            context.wrap_socket(plain, server_hostname=HOST),
        ):
            return True
    except ssl.SSLCertVerificationError:
        return False


def curl_argv(pem: Path, port: int) -> list[str]:
    address = f"{HOST}:{port}"
    return [
        "curl",
        "-sS",
        "--noproxy",
        "*",
        "--cacert",
        str(pem),
        "--resolve",
        f"{address}:127.0.0.1",
        f"https://{address}/x",
    ]


def test_the_guest_clients_own_file_accepts_both(files: Files) -> None:
    import importlib.machinery
    import importlib.util

    path = Path(__file__).parents[2] / "factory/region/guest/guestregister"
    loader = importlib.machinery.SourceFileLoader("guestregister_under_test", str(path))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    client = importlib.util.module_from_spec(spec)
    sys.modules[loader.name] = client
    loader.exec_module(client)
    answer = (
        b'<regionSMTdata>\n<smtInfo SMTserverIP="192.0.2.9" SMTserverName="u.cloud.example" fingerprint="'
        + b":".join([b"AA"] * 20)
        + b'" region="n"/>\n</regionSMTdata>'
    )
    with renewed(files) as (first, second):
        for made in (first, second):
            with tls_server(made.certificate, made.key, Answers({"/regionInfo": (200, answer)})) as port:
                found = client.ask_region_server(f"127.0.0.1:{port}", second.pem.read_text(), "regionInfo", "", 5.0)
                assert found[0].name == "u.cloud.example"


# -- who carries what -------------------------------------------------------------------------------------------------


def test_expiry_is_held_against_the_images_that_carry_a_certificate(files: Files) -> None:
    first = make(replace(WANTED, days=365), files, now=NOW)
    old = first.pem.read_text()
    second = renew(WANTED, files, now=NOW)
    both = second.pem.read_text()
    pins = [
        Pin(carrier="20260101-000000-image", item=HOST, pem=old, until=NOW + timedelta(days=300)),
        Pin(carrier="20260201-000000-image", item=HOST, pem=old, until=NOW + timedelta(days=400)),
        Pin(carrier="image", item=HOST, pem=both, until=NOW + timedelta(days=760)),
        Pin(carrier="image", item="192.0.2.1", pem=both, until=NOW + timedelta(days=760)),
        Pin(carrier="broken", item=HOST, pem="-----BEGIN CERTIFICATE-----\nA\n-----END CERTIFICATE-----\n", until=NOW),
    ]
    earlier, later = expiries(pins, now=NOW)
    assert (earlier.sha256, earlier.days_left) == (first.sha256[0], 365)
    assert earlier.carried_by == ("20260101-000000-image", "20260201-000000-image", "image")
    assert earlier.outlived_by == ("20260201-000000-image (until 2027-04-05)",)
    assert (later.items, later.carried_by, later.outlived_by) == ((HOST, "192.0.2.1"), ("image",), ())


# -- the command ------------------------------------------------------------------------------------------------------


def factory(tmp_path: Path, *argv: str) -> tuple[int, str]:
    """``factory region cert`` in this process: its status, and what it said."""
    options = ["--project", str(PROJECT), "--state", str(tmp_path / "state"), "--site", str(tmp_path / "site.toml")]
    done = CliRunner().invoke(app, [*options, "region", "cert", *argv])
    if isinstance(done.exception, FactoryError):
        return done.exception.exit_code, "\n".join(done.exception.lines())
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout


def test_the_command_makes_what_the_site_file_names_and_lists_it(tmp_path: Path) -> None:
    """PEMs that do not exist yet are no fault of the site file while they are made."""
    region = make_region(tmp_path / "region", now=datetime.now(UTC))
    for server in region.servers:
        server.pem.unlink()
    write_site(tmp_path / "site.toml", region)
    assert factory(tmp_path, "--key", "ecdsa", "--dry-run")[0] == 0
    assert not (tmp_path / "state/keys").exists()
    code, told = factory(tmp_path, "--key", "ecdsa", "--json")
    assert code == 0, told
    made = json.loads(told)["value"]
    assert [one["pem"] for one in made] == [str(server.pem) for server in region.servers]
    assert all(Path(one["key"]).is_relative_to(tmp_path / "state") for one in made)
    for server in region.servers:
        for item in (server.name, *server.addresses):
            now = datetime.now(UTC)
            assert check_pem(server.pem.read_text(), item, place="x", now=now, lifetime_days=760) == ()
    code, told = factory(tmp_path, region.servers[0].name)
    assert (code, "nothing was changed" in told) == (2, True)
    assert factory(tmp_path, region.servers[0].name, "--renew", "--days", "4000")[0] == 0
    code, told = factory(tmp_path, "--list", "--json")
    assert code == 0, told
    rows = json.loads(told)["value"]
    assert {item for row in rows for item in row["items"]} == {"192.0.2.1", "2001:db8::1", "192.0.2.2", "192.0.2.3"}
    assert sum("192.0.2.1" in row["items"] for row in rows) == 2, "in a renewal both are listed"
    assert all(row["carried_by"] == list(images(PROJECT)) and not row["outlived_by"] for row in rows)
    assert factory(tmp_path, region.servers[0].name, "--finish")[0] == 0
    assert factory(tmp_path, region.servers[0].name, "--finish")[0] == 2
    for words in (["--renew", "--finish"], ["--key", "dsa"], ["a/b"], ["x.example", "--country", "Germany"]):
        assert factory(tmp_path, *words)[0] == 2, words


def test_published_images_are_held_against_what_they_carry(tmp_path: Path) -> None:
    """A run counts when it was published; what its build tree pins counts, not what the site names today."""
    now = datetime.now(UTC)
    region = make_region(tmp_path / "region", now=now, days=900)
    write_site(tmp_path / "site.toml", region)
    old = make_region(tmp_path / "old", now=now, days=100)
    state = State(path=tmp_path / "state").prepare()
    for number, published in ((1, True), (2, False)):
        run_of = state.new_run("debian13", now - timedelta(days=number))
        install(run_of.tree / "root", guest_files((old,), RegionClient(), Registration(), ()))
        run_of.write("describe", sample_recipe(run_of.tree, old, now))
        if published:
            run_of.file("publish").write_text("{}")
            carrier = run_of.id
    code, told = factory(tmp_path, "--list", "--json")
    rows = json.loads(told)["value"]
    assert code == 1, "the published image outlives what it pins"
    assert {one for row in rows for one in row["carried_by"]} == {*images(PROJECT), carrier}
    assert all(row["outlived_by"][0].startswith(carrier) for row in rows if carrier in row["carried_by"])
    assert not any(row["outlived_by"] for row in rows if "debian13" in row["carried_by"])


def sample_recipe(tree: Path, region: Region, now: datetime) -> Recipe:
    return Recipe(
        description=Description(name="debian13", line="Standard_Debian_13"),
        tree=tree,
        tree_sha256="0" * 64,
        digest="0" * 64,
        commit="",
        dirty=False,
        repositories=(),
        mirrors={},
        keyrings={},
        regions=(region,),
        region_client=RegionClient(),
        ntp_servers=(),
        resolved_at=now,
    )
