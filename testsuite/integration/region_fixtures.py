# SPDX-License-Identifier: Apache-2.0
"""A tiny signed Debian repository as recorded inputs, a fake instance, and the guest client run in a namespace."""

from __future__ import annotations

import hashlib
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from factory.inputs.blobs import BlobStore
from factory.inputs.lock import Input
from factory.inputs.view import RepositoryView
from factory.model import Region, RegionClient, Registration, Repository
from factory.region.config import GUEST_PROGRAM, guest_files, install
from factory.system.namespaces import NetworkNamespace
from factory.system.run import Completed, run, running

IMAGE_URL = "https://deb.mirror.example/debian"
KEYRING = "usr/share/keyrings/archive.gpg"
CA_WRAPPER = """#!/bin/sh
exec /usr/sbin/update-ca-certificates --certsconf {root}/etc/ca-certificates.conf \\
  --certsdir {root}/usr/share/ca-certificates --localcertsdir {root}/usr/local/share/ca-certificates \\
  --etccertsdir {root}/etc/ssl/certs --hooksdir {root}/none "$@"
"""


@dataclass(frozen=True)
class Recorded:
    """A view, and the keyring that signs it."""

    view: RepositoryView
    keyring: bytes


def record_repository(folder: Path) -> Recorded:
    """One package in a repository signed by a fresh key, stored as the inputs server stores it."""
    deb = _package(folder)
    pool = f"pool/main/p/probe/{deb.name.replace('+', '%2b')}"
    packages = _control(folder) + (
        f"Filename: pool/main/p/probe/{deb.name}\nSize: {deb.stat().st_size}\n"
        f"SHA256: {hashlib.sha256(deb.read_bytes()).hexdigest()}\n"
    )
    index = f" {hashlib.sha256(packages.encode()).hexdigest()} {len(packages)} main/binary-amd64/Packages\n"
    release = (
        "Origin: Test\nSuite: trixie\nCodename: trixie\nArchitectures: amd64\nComponents: main\n"
        "Date: Sat, 01 Nov 2025 00:00:00 UTC\nAcquire-By-Hash: yes\nSHA256:\n" + index
    )
    signed, keyring = _sign(folder, release)
    store = BlobStore(folder / "blobs")
    store.prepare()
    found = {
        "dists/trixie/InRelease": signed,
        "dists/trixie/main/binary-amd64/Packages": packages.encode(),
        pool: deb.read_bytes(),
    }
    inputs = {}
    for path, content in found.items():
        with store.incoming() as incoming:
            incoming.write(content)
            kept = store.keep(incoming)
        inputs["debian", path] = Input(repository="debian", path=path, sha512=kept.sha512, size_bytes=kept.size_bytes)
    repository = Repository(alias="debian", url=IMAGE_URL, suites=("trixie",), key=f"/{KEYRING}")
    return Recorded(
        view=RepositoryView(repositories=(repository,), inputs=inputs, blobs=folder / "blobs"), keyring=keyring
    )


def _control(folder: Path) -> str:
    return (folder / "probe" / "DEBIAN" / "control").read_text()


def _package(folder: Path) -> Path:
    (folder / "probe" / "DEBIAN").mkdir(parents=True)
    (folder / "probe" / "DEBIAN" / "control").write_text(
        "Package: probe\nVersion: 1.0+test1\nArchitecture: all\nDescription: probe\n"
        "Maintainer: nobody <nobody@test.invalid>\n"
    )
    deb = folder / "probe_1.0+test1_all.deb"
    subprocess.run(["dpkg-deb", "--build", folder / "probe", deb], check=True, capture_output=True)
    return deb


def _sign(folder: Path, release: str) -> tuple[bytes, bytes]:
    home = folder / "gnupg"
    home.mkdir(mode=0o700)
    gpg = ["gpg", "--homedir", str(home), "--batch", "--quiet", "--passphrase", "", "--pinentry-mode", "loopback"]
    try:
        subprocess.run([*gpg, "--quick-generate-key", "archive@test.invalid", "ed25519", "sign"], check=True)
        signed = subprocess.run([*gpg, "--clearsign"], input=release.encode(), check=True, capture_output=True).stdout
        return signed, subprocess.run([*gpg, "--export"], check=True, capture_output=True).stdout
    finally:
        subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=False)


@dataclass(frozen=True)
class Instance:
    """A fake root that the guest client works on; ``python`` runs it."""

    root: Path
    namespace: NetworkNamespace
    python: str
    client: RegionClient = field(default_factory=RegionClient)

    def guestregister(self, *options: str, timeout_s: float = 60) -> Completed:
        return run(self.command(*options), check=False, timeout_s=timeout_s)

    def command(self, *options: str) -> list[str]:
        program = self.root / GUEST_PROGRAM
        return self.namespace.inside([self.python, "-W", "error", program, "--root", self.root, "--debug", *options])

    def started(self, *options: str):
        return running(self.command(*options), log=self.root / "started.log", grace_s=0.1)

    def read(self, name: str) -> str:
        return (self.root / name).read_text()

    def has(self, name: str) -> bool:
        return (self.root / name).exists()

    def snapshot(self) -> dict[str, str]:
        """The files that registration may change, without log and lock."""
        return {
            path.relative_to(self.root).as_posix(): f"{path.lstat().st_mode:o} {path.read_text(errors='replace')}"
            for folder in ("etc", "usr/local", "var/lib")
            for path in sorted((self.root / folder).rglob("*"))
            if path.is_file() and "etc/ssl/certs" not in str(path)
        }


def make_instance(
    root: Path,
    regions: tuple[Region, ...],
    namespace: NetworkNamespace,
    recorded: Recorded,
    *,
    python: str,
    product: str = "debian/13/x86_64",
    client: RegionClient | None = None,
) -> Instance:
    """A fake instance as an image of these regions would start."""
    client = client or RegionClient()
    install(root, guest_files(regions, client, Registration(product=product), recorded.view.repositories))
    with (root / "etc/guestregister.conf").open("a") as config:
        config.write("\n[network]\nround_pauses_s = 0.1 0.1\nhealth_pauses_s = 0.1\n")
    for folder in ("etc/apt/sources.list.d", "etc/apt/auth.conf.d", "etc/ssl/certs", "usr/local/share/ca-certificates"):
        (root / folder).mkdir(parents=True)
    for folder in ("usr/share/ca-certificates", "none", "usr/share/keyrings"):
        (root / folder).mkdir(parents=True)
    (root / "etc/ca-certificates.conf").write_text("# none\n")
    (root / "etc/hosts").write_text("127.0.0.1\tlocalhost\n")
    (root / KEYRING).write_bytes(recorded.keyring)
    (root / "etc/apt/sources.list.d/debian.sources").write_text(
        f"Types: deb\nURIs: {IMAGE_URL}\nSuites: trixie\nComponents: main\nSigned-By: /{KEYRING}\n"
    )
    wrapper = root / "usr/sbin/update-ca-certificates"
    wrapper.write_text(CA_WRAPPER.format(root=root))
    wrapper.chmod(0o755)
    return Instance(root=root, namespace=namespace, python=python, client=client)
