# SPDX-License-Identifier: Apache-2.0
"""A package repository of one's own: really signed with GnuPG, really served over HTTP, on loopback."""

from __future__ import annotations

import contextlib
import hashlib
import http
import http.server
import lzma
import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

NOW = datetime(2026, 11, 21, 2, 3, 4, tzinfo=UTC)
SIGNED = datetime(2026, 11, 20, 20, 0, 0, tzinfo=UTC)


@dataclass(frozen=True)
class SigningKey:
    home: Path
    keyring: Path
    user: str

    def sign(self, text: str) -> bytes:
        argv = ["gpg", "--homedir", str(self.home), "--batch", "--clearsign", "--local-user", self.user]
        return subprocess.run(argv, input=text.encode(), stdout=subprocess.PIPE, check=True).stdout


def make_key(folder: Path, user: str) -> SigningKey:
    # beside the test's own folder: its agent's socket has to fit into 107 characters
    home = Path(tempfile.mkdtemp(prefix="gnupg-", dir=folder.parent))
    gpg = ["gpg", "--homedir", str(home), "--batch", "--quiet"]
    subprocess.run([*gpg, "--passphrase", "", "--quick-gen-key", user, "ed25519", "sign", "never"], check=True)
    keyring = folder / f"{user}.gpg"
    keyring.write_bytes(subprocess.run([*gpg, "--export", user], stdout=subprocess.PIPE, check=True).stdout)
    return SigningKey(home=home, keyring=keyring, user=user)


@dataclass
class Archive:
    """Files below a folder, and the index that says what they are."""

    root: Path
    key: SigningKey
    suite: str = "trixie"
    packages: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, content: bytes, *, depends: str = "") -> str:
        """A package file; returns its path."""
        path = f"pool/main/{name[0]}/{name}/{name}_1.0_all.deb"
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        extra = f"Depends: {depends}\n" if depends else ""
        self.packages[name] = (
            f"Package: {name}\nVersion: 1.0\nArchitecture: all\n{extra}Filename: {path}\n"
            f"Size: {len(content)}\nSHA256: {digest}\n"
        )
        return path

    def add_source(self, name: str, version: str, **files: bytes) -> None:
        """A source package; of its files ``dsc`` is called ``NAME_VERSION.dsc``."""
        folder = f"pool/main/{name[0]}/{name}"
        (self.root / folder).mkdir(parents=True, exist_ok=True)
        lines = []
        for ending, content in files.items():
            file = f"{name}_{version.partition(':')[2] or version}.{ending.replace('_', '.')}"
            (self.root / folder / file).write_bytes(content)
            lines.append(f" {hashlib.sha256(content).hexdigest()} {len(content)} {file}")
        self.sources[f"{name} {version}"] = (
            f"Package: {name}\nBinary: {name}, {name}-doc\nVersion: {version}\nDirectory: {folder}\n"
            "Checksums-Sha256:\n" + "\n".join(lines) + "\n"
        )

    @property
    def index(self) -> bytes:
        return lzma.compress("\n".join(self.packages.values()).encode())

    @property
    def index_path(self) -> str:
        return f"dists/{self.suite}/main/binary-amd64/by-hash/SHA256/{hashlib.sha256(self.index).hexdigest()}"

    def publish(
        self,
        *,
        signed: datetime = SIGNED,
        valid_days: int | None = 7,
        key: SigningKey | None = None,
        more: tuple[str, ...] = (),
    ) -> None:
        """Sign the index; ``more`` are further lines of the Release file."""
        index = self.index
        for path in (self.index_path, f"dists/{self.suite}/main/binary-amd64/Packages.xz"):
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / path).write_bytes(index)
        lines = [f"Suite: {self.suite}", f"Codename: {self.suite}", f"Date: {_date(signed)}"]
        lines += [f"Valid-Until: {_date(signed + timedelta(days=valid_days))}"] if valid_days is not None else []
        lines += ["Architectures: amd64", "Components: main", "Acquire-By-Hash: yes", *more, "SHA256:"]
        # apt wants the plain file listed too, and never asks for it
        for name, content in (("Packages.xz", index), ("Packages", lzma.decompress(index))):
            lines += [f" {hashlib.sha256(content).hexdigest()} {len(content)} main/binary-amd64/{name}"]
        lines += self._publish_sources() if self.sources else []
        signed_index = self.root / f"dists/{self.suite}/InRelease"
        signed_index.write_bytes((key or self.key).sign("\n".join(lines) + "\n"))
        os.utime(signed_index, (signed.timestamp(), signed.timestamp()))  # as mirrors keep it: when it was signed

    def _publish_sources(self) -> list[str]:
        """Write the index of source packages; returns its line in the signed one."""
        content = lzma.compress("\n".join(self.sources.values()).encode())
        digest, folder = hashlib.sha256(content).hexdigest(), self.root / f"dists/{self.suite}/main/source"
        (folder / "by-hash/SHA256").mkdir(parents=True, exist_ok=True)
        (folder / "by-hash/SHA256" / digest).write_bytes(content)
        (folder / "Sources.xz").write_bytes(content)
        return [f" {digest} {len(content)} main/source/Sources.xz"]


def _date(time: datetime) -> str:
    return time.strftime("%a, %d %b %Y %H:%M:%S UTC")


class _Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, *rest, asked: list[str], **names) -> None:
        self.asked = asked
        super().__init__(*rest, **names)

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/moved"))
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.path.startswith("/loop"):
            self.send_response(302)
            self.send_header("Location", "/loop")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.path.startswith("/cut/"):
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"half")
            self.close_connection = True
        elif self.path.startswith("/broken/"):
            self.send_error(503)
        else:
            super().do_GET()

    def send_response(self, code: int, message: str | None = None) -> None:
        if code == http.HTTPStatus.NOT_MODIFIED:
            last = max(number for number, path in enumerate(self.asked) if path == self.path)
            self.asked[last] += " -> 304"
        super().send_response(code, message)

    def log_message(self, *rest) -> None:
        pass


@contextlib.contextmanager
def mirror(root: Path) -> Iterator[tuple[str, list[str]]]:
    """A mirror of ``root``: its address, and the paths it was asked for; ``-> 304`` behind one that was not sent."""
    asked: list[str] = []
    handler = partial(_Handler, directory=str(root), asked=asked)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()
        thread.join()
