# SPDX-License-Identifier: Apache-2.0
"""zypper itself against the sandbox update server: services, metadata and packages over TLS with credentials.

It runs with a root folder of its own, in a network namespace with nothing but the server, and sees the server's CA as
the only one there is.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from factory.system.namespaces import NetworkNamespace, network_namespace
from testsuite.integration.update_server_fixtures import FQDN, Standalone, authority, described, running_server

pytestmark = [pytest.mark.needs_root, pytest.mark.timeout(120)]

ADDRESS = "192.0.2.20"
INSTANCE = "3f1c2d4e-0000-4000-8000-00000000000a"
SERVICE = "SLES_15.6_x86_64"
PRODUCT = {"identifier": "SLES", "version": "15.6", "arch": "x86_64"}
PRODUCTS = """
[[product]]
identifier = "SLES"
version = "15.6"
arch = "x86_64"
[[repository]]
alias = "SLE-Product"
location = "SUSE/Products/SLE-Product-SLES/15-SP6/x86_64/product"
folder = "repo"
"""
SPEC = """
Name: probe
Version: 1.0
Release: 1
Summary: A probe
License: Apache-2.0
BuildArch: noarch
%description
A probe.
%files
"""
POST = """
import http.client, json, ssl, sys
connection = http.client.HTTPSConnection(sys.argv[1], context=ssl.create_default_context(cafile=sys.argv[2]))
connection.request("POST", sys.argv[3], body=sys.argv[4], headers=json.loads(sys.argv[5]))
reply = connection.getresponse()
print(json.dumps([reply.status, json.loads(reply.read() or b"null")]))
"""
RESOLVER = """#!{python}
import base64, sys
# frames: command, headers, empty line, body, NUL
def receive():
    frame = b""
    while not frame.endswith(b"\\0"):
        frame += sys.stdin.buffer.read(1) or sys.exit(0)
    lines = frame.rstrip(b"\\0").decode().strip("\\n").split("\\n")
    return lines[0], dict(line.split(":", 1) for line in lines[1:] if ":" in line)
def send(text):
    sys.stdout.buffer.write(text.encode() + b"\\0")
    sys.stdout.flush()
while True:
    command, headers = receive()
    if command == "_DISCONNECT":
        send("ACK\\n\\n")
        sys.exit(0)
    data = base64.b64encode(open("{data}", "rb").read()).decode()
    url = "https://{fqdn}" + headers["path"] + "?credentials=" + headers["credentials"]
    send("RESOLVEDURL\\nX-Instance-Data:" + data + "\\n\\n" + url)
"""


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None and not os.environ.get("CI"):
        pytest.skip(f"{name} not installed")
    assert found, f"{name} is not installed"
    return found


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An rpm made here, in an rpm-md tree made here."""
    work = tmp_path_factory.mktemp("rpm")
    (work / "probe.spec").write_text(SPEC)
    build = [tool("rpmbuild"), "-bb", "--define", f"_topdir {work}/top", work / "probe.spec"]
    subprocess.run(build, check=True, capture_output=True)
    (work / "repo").mkdir()
    for package in (work / "top/RPMS/noarch").glob("*.rpm"):
        shutil.copy(package, work / "repo")
    subprocess.run([tool("createrepo_c"), "--quiet", work / "repo"], check=True, capture_output=True)
    return work / "repo"


@dataclass
class Guest:
    """A root folder for zypper, and the world it sees."""

    root: Path
    server: Standalone
    namespace: NetworkNamespace

    def register(self, instance_data: str = "") -> None:
        """What SUSEConnect does before it calls zypper."""
        token = {"Authorization": "Token token=", "Content-Type": "application/json"}
        announced = self.post(
            "/connect/subscriptions/systems", {"hostname": "g", "instance_data": instance_data}, token
        )
        login, password = announced["login"], announced["password"]
        basic = {"Authorization": "Basic " + base64.b64encode(f"{login}:{password}".encode()).decode()}
        self.service = self.post("/connect/systems/products", PRODUCT, basic)
        folder = self.root / "etc/zypp/credentials.d"
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("SCCcredentials", SERVICE):
            (folder / name).write_text(f"username={login}\npassword={password}\n")

    def post(self, path: str, body: object, headers: dict[str, str]) -> Any:
        argv = [sys.executable, "-c", POST, FQDN, str(self.server.folder / "ca.pem"), path, json.dumps(body)]
        done = self.run([*argv, json.dumps(headers)])
        status, answer = json.loads(done.stdout)
        assert status == 201, answer
        return answer

    def run(self, argv: list[str]) -> subprocess.CompletedProcess[str]:
        """A program in the guest's network, with its hosts, its CA, and its plugins of zypper."""
        (self.root / "hosts").write_text(f"127.0.0.1 localhost\n{ADDRESS} {FQDN}\n")
        (self.root / "certs").mkdir(exist_ok=True)
        shutil.copy(self.server.folder / "ca.pem", self.root / "certs/ca-certificates.crt")
        (self.root / "zypp/plugins").mkdir(parents=True, exist_ok=True)
        script = (
            "mount --bind $0/hosts /etc/hosts && mount --bind $0/certs /etc/ssl/certs && "
            'mount --bind $0/zypp /usr/lib/zypp && exec "$@"'
        )
        inside = self.namespace.inside(["unshare", "--mount", "/bin/sh", "-c", script, self.root, *argv])
        return subprocess.run(
            inside,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            stdin=subprocess.DEVNULL,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": str(self.root)},
        )

    def zypper(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.run([tool("zypper"), "--root", str(self.root), "--non-interactive", "--no-gpg-checks", *words])


def serving(folder: Path, repository: Path, more: str = "", *, plugin_urls: bool = False) -> Standalone:
    folder.mkdir()
    shutil.copytree(repository, folder / "repo")
    return described(
        folder,
        authority(folder),
        address=ADDRESS,
        port=443,
        products=PRODUCTS,
        more=more,
        server=f"plugin_urls = {str(plugin_urls).lower()}",
    )


@pytest.fixture(scope="module")
def namespace() -> Iterator[NetworkNamespace]:
    with network_namespace([ADDRESS]) as made:
        Path("/usr/lib/zypp").mkdir(exist_ok=True)  # zypper's own folder, a mount point here
        yield made


def requests_of(server: Standalone, path: str) -> list[tuple[str, str]]:
    """Method and status of what zypper asked for a path, in order."""
    lines = [line for line in server.log.splitlines() if f" {path} HTTP" in line and "ZYpp" in line]
    return [(line.split('"')[1].split()[0], line.split('" ')[1].split()[0]) for line in lines]


def test_zypper_installs_from_the_update_server(namespace: NetworkNamespace, repository: Path, tmp_path: Path) -> None:
    server = serving(tmp_path / "server", repository)
    with running_server(server, namespace.inside([])):
        guest = Guest(tmp_path / "root", server, namespace)
        guest.root.mkdir()
        guest.register()
        added = guest.zypper("addservice", "-t", "ris", guest.service["url"], SERVICE)
        assert added.returncode == 0, added.stderr
        refreshed = guest.zypper("refs")
        assert refreshed.returncode == 0, refreshed.stdout + refreshed.stderr
        listed = guest.zypper("-x", "lr").stdout
        assert f'alias="{SERVICE}:SLE-Product"' in listed
        installed = guest.zypper("install", "--download-only", "--no-confirm", "probe")
        assert installed.returncode == 0, installed.stdout + installed.stderr
        (package,) = guest.root.rglob("probe-1.0-1.noarch.rpm")
        assert package.read_bytes() == next(repository.glob("*.rpm")).read_bytes()
        index = requests_of(server, "/services/1/repo/repoindex.xml")
        assert index[:4] == [("HEAD", "401"), ("HEAD", "200"), ("GET", "401"), ("GET", "200")]

        # with the registration the access ends
        login = guest.root.joinpath("etc/zypp/credentials.d/SCCcredentials").read_text().split()[0].split("=")[1]
        assert server.factory("systems", "remove", login, "--config", "server.toml").returncode == 0
        refused = guest.zypper("refs", "--force")  # the index may be kept for a day
        assert refused.returncode != 0
        assert "401" in refused.stdout + refused.stderr or "credentials" in (refused.stdout + refused.stderr).lower()


def test_zypper_refuses_a_server_of_another_ca(namespace: NetworkNamespace, repository: Path, tmp_path: Path) -> None:
    server = serving(tmp_path / "server", repository)
    with running_server(server, namespace.inside([])):
        guest = Guest(tmp_path / "root", server, namespace)
        guest.root.mkdir()
        guest.register()
        (tmp_path / "foreign").mkdir()
        authority(tmp_path / "foreign")
        shutil.copy(tmp_path / "foreign/ca.pem", server.folder / "ca.pem")  # what the guest trusts from now on
        guest.zypper("addservice", "-t", "ris", guest.service["url"], SERVICE)
        refused = guest.zypper("refs")
        assert refused.returncode != 0
        assert "certificate" in (refused.stdout + refused.stderr).lower()
        assert requests_of(server, "/services/1/repo/repoindex.xml") == []


def test_zypper_sends_instance_data_through_its_resolver_plugin(
    namespace: NetworkNamespace, repository: Path, tmp_path: Path
) -> None:
    """The public-cloud flavour: ``plugin:/susecloud`` addresses, a resolver plugin, ``X-Instance-Data`` required."""
    private = ed25519.Ed25519PrivateKey.generate()
    folder = tmp_path / "server"
    verification = '[verification]\nprovider = "openstack"\npublic_key = "cloud.pem"\nheader_required = true\n'
    # the key is there before the server looks
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    server = serving(folder, repository, verification, plugin_urls=True)
    (folder / "cloud.pem").write_bytes(public)
    good = instance_data(private)
    with running_server(server, namespace.inside([])):
        guest = Guest(tmp_path / "root", server, namespace)
        guest.root.mkdir()
        guest.register(good)
        assert guest.service["url"].startswith("plugin:/susecloud?credentials=")
        data = tmp_path / "instance-data"
        plugin = guest.root / "zypp/plugins/urlresolver/susecloud"
        plugin.parent.mkdir(parents=True)
        plugin.write_text(RESOLVER.format(python=sys.executable, data=data, fqdn=FQDN))
        plugin.chmod(0o755)

        data.write_text(instance_data(ed25519.Ed25519PrivateKey.generate()))
        assert guest.zypper("addservice", "-t", "ris", guest.service["url"], SERVICE).returncode == 0
        refused = guest.zypper("refs")
        assert refused.returncode != 0
        assert ("HEAD", "403") in requests_of(server, "/services/1/repo/repoindex.xml"), refused.stderr + server.log

        data.write_text(good)
        refreshed = guest.zypper("refs")
        assert refreshed.returncode == 0, refreshed.stdout + refreshed.stderr
        installed = guest.zypper("install", "--download-only", "--no-confirm", "probe")
        assert installed.returncode == 0, installed.stdout + installed.stderr
        assert list(guest.root.rglob("probe-1.0-1.noarch.rpm"))


def instance_data(private: ed25519.Ed25519PrivateKey) -> str:
    """What the guest's data provider says, signed by a cloud, and the line that clients add."""
    document = json.dumps(
        {
            "instance_id": INSTANCE,
            "project_id": None,
            "product": "SLES/15.6/x86_64",
            "not_after": "2999-01-01T00:00:00Z",
        }
    ).encode()
    vendordata = {
        "document": base64.b64encode(document).decode(),
        "signature": base64.b64encode(private.sign(document)).decode(),
        "algorithm": "ed25519",
    }
    said = {
        "schema": "image-factory/instance/1",
        "instance_id": INSTANCE,
        "project_id": None,
        "product": "SLES/15.6/x86_64",
        "vendordata": vendordata,
    }
    return json.dumps(said) + "\n<repoformat>plugin:susecloud</repoformat>\n"
