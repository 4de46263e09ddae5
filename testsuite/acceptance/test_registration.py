# SPDX-License-Identifier: Apache-2.0
"""Registration: the guest knows exactly our region servers, registers with them, and gets packages from them alone."""

from __future__ import annotations

import base64
import configparser
import hashlib
import json
import ssl

import pytest

CONFIG = "cat /etc/regionserverclnt.cfg"
UNIT = "systemctl show -p LoadState -p UnitFileState -p Result -p ExecMainStatus -p ActiveState guestregister.service"
AUTH = "grep -s -l -r -i -E '^ *(machine|login)' /etc/apt/auth.conf /etc/apt/auth.conf.d | sort -u"
UPDATE = "apt-get update -q -o Acquire::Retries=0 2>&1"
_KEYS = {
    ("server", "api"): "api",
    ("server", "certlocation"): "cert_location",
    ("instance", "dataprovider"): "data_provider",
    ("instance", "instanceargs"): "instance_args",
    ("service", "packagebackend"): "package_backend",
}


@pytest.fixture(autouse=True)
def _region_wanted(facts):
    if facts.description.registration.mode == "none":
        pytest.skip("the description says registration.mode = none")
    if facts.region is None:
        pytest.skip("this image came without the factory's own records: its region is not known")


@pytest.fixture
def on_demand(description, tried):
    """Checks of what happens without the customer's doing, where the site's servers are reached."""
    tried("region")
    if description.registration.mode != "on-demand":
        pytest.skip(f"the description says registration.mode = {description.registration.mode}")


@pytest.fixture
def config(_region_wanted, guest):
    """The client's configuration file, parsed as the client does."""
    parsed = configparser.RawConfigParser(strict=True)
    parsed.read_string(guest.root(CONFIG))
    return parsed


def _names(facts):
    """What the configuration calls the region servers: each address, else the name."""
    found = []
    for server in facts.region.servers:
        found += [address for address in (server.ipv4, server.ipv6) if address] or [server.name]
    return found


# -- what is in the image ---------------------------------------------------------------------------------------------


def test_the_guest_knows_exactly_our_region_servers(config, facts):
    """The client's configuration names exactly the site's region servers."""
    found = [name.strip() for name in config["server"]["regionsrv"].split(",") if name.strip()]
    assert sorted(found) == sorted(_names(facts)), f"the guest would register elsewhere: it asks {found}"


def test_the_client_is_configured_as_the_site_says(config, facts):
    """Every other setting of the client's configuration is the site's, and no placeholder is left."""
    client = facts.region.client
    wrong = {
        f"[{section}] {key}": found
        for (section, key), name in _KEYS.items()
        if (found := config.get(section, key, fallback=None)) != getattr(client, name)
    }
    https = config.get("instance", "httpsonly", fallback=None)
    assert not wrong, f"settings differ from the site's: {wrong}"
    assert https == ("true" if client.https_only else "false"), f"[instance] httpsOnly is {https!r}"
    assert config.has_option("server", "metadata_server") == bool(client.metadata_server), (
        "metadata_server is not as meant"
    )


def test_each_region_server_has_its_certificate(guest, facts):
    """For each region server its certificate is in the image, the very one the site gave, and no others are."""
    folder = facts.region.client.cert_location
    # where the sandbox put stand-ins, the image's own certificates were kept aside
    lines = guest.root(
        f"cd {folder} 2>/dev/null || exit 0; for file in $(ls); do kept=/var/lib/factory-acceptance/$file;"
        ' test -e "$kept" || kept=$file; echo "$file $(base64 -w0 <"$kept")"; done'
    ).splitlines()
    found = {
        name: base64.b64decode(content).decode(errors="replace")
        for name, content in (line.split(" ", 1) for line in lines)
    }
    wanted = {}
    for server in facts.region.servers:
        for name in [address for address in (server.ipv4, server.ipv6) if address] or [server.name]:
            wanted[f"{name}.pem"] = _fingerprint(server.pem)
    assert sorted(found) == sorted(wanted), f"{folder} holds {sorted(found)}, not {sorted(wanted)}"
    wrong = [name for name, text in found.items() if _fingerprint(text) != wanted[name]]
    assert not wrong, f"these certificates are not the site's: {wrong}"
    keys = [name for name, text in found.items() if "PRIVATE KEY" in text]
    assert not keys, f"private keys are in the image: {keys}"


def _fingerprint(pem):
    start, end = pem.find("-----BEGIN CERTIFICATE"), pem.find("-----END CERTIFICATE-----")
    if start < 0 or end < 0:
        return "not a certificate"
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem[start : end + 26])).hexdigest()


def test_the_certificates_are_writable_by_root_only(guest, facts):
    """Nobody but root can change the region configuration or the certificates."""
    names = "/etc/regionserverclnt.cfg"
    if facts.region.servers:  # a metadata server may stand for all of them
        names += f" {facts.region.client.cert_location} {facts.region.client.cert_location}/*"
    wrong = [line for line in guest.root(f"stat -c '%a %U %n' {names}").splitlines() if not _root_only(line)]
    assert not wrong, f"others than root may change where the guest registers: {wrong}"


def _root_only(line):
    mode, owner, _ = line.split(" ", 2)
    return owner == "root" and not int(mode, 8) & 0o022


def test_cloud_init_leaves_the_hosts_file_alone(guest):
    """cloud-init does not rewrite /etc/hosts at each boot, which would drop the update server's entry."""
    lines = guest.root("cat /etc/cloud/cloud.cfg /etc/cloud/cloud.cfg.d/*.cfg").splitlines()
    found = [line.split(":", 1)[1].split("#")[0].strip() for line in lines if line.startswith("manage_etc_hosts:")]
    assert not found or found[-1].lower() == "false", f"cloud-init rewrites /etc/hosts: manage_etc_hosts is {found[-1]}"


# -- what happened at the boot ----------------------------------------------------------------------------------------


def test_the_guest_registers_by_itself(guest, on_demand):
    """guestregister.service is enabled, ran at the first boot and succeeded."""
    found = dict(line.split("=", 1) for line in guest.root(UNIT).splitlines())
    assert found.get("LoadState") == "loaded", "there is no guestregister.service"
    assert found.get("UnitFileState") == "enabled", f"guestregister.service is {found.get('UnitFileState')}"
    assert found.get("Result") == "success", (
        f"registration failed: {found.get('Result')}, status {found.get('ExecMainStatus')}"
    )
    assert found.get("ExecMainStatus") == "0", f"guestregister ended with status {found.get('ExecMainStatus')}"


@pytest.mark.later
@pytest.mark.needs("registrations")
def test_the_update_server_knows_the_guest(facts, on_demand, description):
    """The update server holds one registration: this guest's, for the described product."""
    held = facts.registrations or []
    assert held, "no update server holds a registration"
    products = [product for entry in held for product in entry.products]
    assert description.registration.product in products, (
        f"the guest registered as {products}, not as {description.registration.product}"
    )


def test_the_credentials_are_roots_alone(guest, on_demand):
    """Only root can read the credentials that the registration left."""
    files = guest.root(f"{AUTH} || true").split()
    assert files, "the registration left no credentials for apt"
    wrong = [
        line
        for line in guest.root(f"stat -c '%a %U %n' {' '.join(files)}").splitlines()
        if not line.startswith("600 root ")
    ]
    assert not wrong, f"others than root may read the credentials: {wrong}"


def test_the_update_servers_authority_is_trusted(guest, facts, on_demand):
    """The guest trusts the update servers' certificate authority, the very one that the site gave."""
    ours = [server for server in facts.region.update_servers if server.ours]
    if not ours:
        pytest.skip(
            "the keys of the site's update servers are not ours: the sandbox answered with a stand-in authority"
        )
    bundle = guest.root("cat /etc/ssl/certs/ca-certificates.crt")
    known = {
        _fingerprint(part + "-----END CERTIFICATE-----") for part in bundle.split("-----END CERTIFICATE-----")[:-1]
    }
    wanted = {_fingerprint(server.pem) for server in ours}
    assert known & wanted, "the guest does not trust the update server's authority"


def test_apt_takes_packages_from_the_update_server(guest, facts, on_demand):
    """After registration apt reads the update server over verified TLS."""
    found = guest.root("apt-get indextargets --format '$(SITE)' | sort -u").split()
    names = [f"https://{server.name}/" for server in facts.region.update_servers]
    assert any(f"{site}/".startswith(name) for site in found for name in names), (
        f"apt reads {found}, and no update server ({names})"
    )
    loose = guest.root(
        "apt-config dump | grep -i -E 'Verify-(Peer|Host)' | grep -i -E '\"(false|0|no)\"' || true"
    ).strip()
    assert not loose, f"apt does not verify TLS: {loose}"


def test_the_package_lists_come_signed(guest, facts, on_demand):
    """apt-get update reads the update server's lists, with every signature checked, and without a warning."""
    printed = guest.root(f"{UPDATE}; echo status=$?")
    told = [line for line in printed.splitlines() if line.startswith(("W:", "E:", "Err:", "Ign:"))]
    ours = [
        line
        for line in told
        if any(server.name in line for server in facts.region.update_servers) or "NO_PUBKEY" in line
    ]
    assert not ours, f"apt-get update complains: {ours}"
    read = [line for line in printed.splitlines() if line.startswith(("Hit:", "Get:"))]
    assert any(server.name in line for line in read for server in facts.region.update_servers), (
        f"nothing was read from the update server: {printed[-600:]}"
    )


def test_a_package_can_be_installed(guest, description, on_demand):
    """One package that the image does not have is installed from the update server, its signature checked."""
    package = description.budgets.probe_package
    done = guest.try_root(
        f"export DEBIAN_FRONTEND=noninteractive; apt-get install -y -q --no-install-recommends {package} 2>&1;"
        f" dpkg-query -W -f '${{db:Status-Abbrev}}' {package};"
        f" apt-get purge -y -q {package} >/dev/null 2>&1; apt-get clean"
    )
    assert done.stdout.rstrip().endswith("ii"), f"{package} could not be installed: {done.stdout[-600:]}"
    assert "cannot be authenticated" not in done.stdout, f"{package} came without a signature"


def test_without_credentials_there_is_nothing(guest, facts, on_demand):
    """Once the credentials are gone, the update server answers 401 and apt-get update fails."""
    files = guest.root(f"{AUTH} || true").split()
    assert files, "the registration left no credentials for apt, so they cannot be what opens the update server"
    done = guest.try_root(
        "mkdir -m 0700 /run/kept; for file in "
        + " ".join(files)
        + '; do mv "$file" "/run/kept/$(echo $file | tr / _)"; done;'
        f" {UPDATE} -o APT::Update::Error-Mode=any; echo status=$?;"
        " for file in " + " ".join(files) + '; do mv "/run/kept/$(echo $file | tr / _)" "$file"; done; rmdir /run/kept'
    )
    assert "status=0" not in done.stdout, "apt-get update succeeds without credentials"
    assert "401" in done.stdout, f"the update server does not refuse with 401: {done.stdout[-600:]}"


def test_the_registration_log_holds_no_credentials(guest, on_demand):
    """The registration says in its log what it did, and keeps the password to itself."""
    files = guest.root(f"{AUTH} || true").split()
    words = guest.root(f"cat {' '.join(files)} /dev/null").split()
    secrets = [words[place + 1] for place, word in enumerate(words[:-1]) if word == "password"]
    assert secrets, "the registration left no credentials for apt"
    log = guest.root("cat /var/log/cloudregister 2>/dev/null; journalctl -b --no-pager -a -u guestregister.service")
    assert log.strip(), "the registration left no log"
    assert not any(secret in log for secret in secrets), "the log of the registration holds the password"


@pytest.mark.later
def test_it_stays_registered_at_a_reboot(facts, on_demand):
    """A reboot leaves the registration as it is."""
    if facts.reboot is None:
        pytest.fail("the guest was not rebooted")
    before, after = facts.reboot.before.registration, facts.reboot.after.registration
    assert before, "the guest was not registered before the reboot"
    assert before == after, f"a reboot changed the registration from {before} to {after}"


# -- bring your own licence -------------------------------------------------------------------------------------------


@pytest.fixture
def byos(facts):
    """What was seen on a guest of the same image that was started with the choice not to register."""
    if facts.other is None or facts.other.byos is None:
        pytest.fail("the image was not started with the choice not to register")
    return facts.other


@pytest.mark.later
@pytest.mark.needs("other")
def test_who_chooses_so_is_not_registered(byos):
    """A guest whose metadata says so at its first boot does not register."""
    assert not byos.registration, f"the guest registered against its owner's choice: {byos.registration}"
    assert byos.byos.guestregister_status == 0, "guestregister failed instead of leaving the guest alone"


@pytest.mark.later
@pytest.mark.needs("other")
def test_who_chooses_so_has_no_site_mirrors(byos, facts):
    """A guest whose metadata says so at its first boot has none of the site's mirrors, and no update server."""
    names = [server.name for server in facts.region.update_servers]
    addresses = [entry.url.rstrip("/") for entry in facts.description.update_repositories]
    found = [line for line in byos.repositories if any(name in line for name in names) or line.rstrip("/") in addresses]
    assert not found, f"the guest still reads the site's repositories: {json.dumps(found)}"
