# SPDX-License-Identifier: Apache-2.0
"""Signed repositories of packages: one that apt reads, one that zypper and dnf read.

Both are written so that a client which reads at that moment sees the old or the new state: packages and digest-named
indexes first, the signed list of them last. What was offered before stays in the pool.

Formats: Debian's repository format (wiki.debian.org/DebianRepository/Format, apt-secure(8)); rpm-md as createrepo_c
makes it, signed beside as ``repomd.xml.asc``.
"""

from __future__ import annotations

import gzip
import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from factory.region.packages.deb import CONTENT_FIELD
from factory.region.packages.rpm import header_sha256, is_signed, sign_rpm
from factory.region.packages.signing import PackageSigner
from factory.region.packages.versions import Issued, order
from factory.system.files import appearing, digests, remove, sha256_file, write_whole
from factory.system.run import run

SUITE, COMPONENT = "stable", "main"
APT_ARCHITECTURES = ("amd64", "arm64", "all")
POOL = f"pool/{COMPONENT}"
KEY_FILE = "repository-key.asc"
_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Index:
    """A file that Release lists, by its path below the suite's folder."""

    path: str
    content: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


def write_apt_repository(
    debs: Sequence[Path], folder: Path, *, signer: PackageSigner, now: datetime, origin: str = "Image Factory"
) -> tuple[Path, ...]:
    """Add packages to the apt repository in ``folder`` and sign it; returns the packages' paths in it.

    Use it with ``deb [signed-by=KEY] ADDRESS stable main``; the key is beside, as ``repository-key.asc``. A detached
    signature is written beside each package. When nothing changed, nothing is written.
    """
    pool = folder / POOL
    pool.mkdir(parents=True, exist_ok=True)
    added = tuple(_add(deb, pool / deb.name, signer) for deb in debs)
    write_whole(folder / KEY_FILE, signer.public_key)
    suite = folder / "dists" / SUITE
    index = "\n".join(_stanza(deb, folder) for deb in sorted(pool.glob("*.deb"))).encode()
    indexes = tuple(_indexes(index))
    if not _is_current(suite, indexes, signer):
        _write_indexes(suite, indexes)
        release = release_text(indexes, origin=origin, date=now)
        # apt takes InRelease first: it is the last to change, and names indexes by their digests
        write_whole(suite / "Release", release)
        signer.detached(suite / "Release").replace(suite / "Release.gpg")
        write_whole(suite / "InRelease", signer.clear(release))
    return added


def published_debs(folder: Path) -> dict[str, list[Issued]]:
    """The versions that an apt repository offers, by package."""
    found: dict[str, list[Issued]] = {}
    for deb in sorted((folder / POOL).glob("*.deb")):
        fields = _fields(_control(deb))
        try:
            order(fields["Version"])
            one = Issued(version=fields["Version"], content_sha256=fields[CONTENT_FIELD])
        except (KeyError, ValueError):
            continue  # not a package of ours
        found.setdefault(fields["Package"], []).append(one)
    return found


def _add(deb: Path, target: Path, signer: PackageSigner) -> Path:
    if not target.is_file() or sha256_file(target) != sha256_file(deb):
        with appearing(target) as partial:
            shutil.copyfile(deb, partial)
            partial.chmod(0o644)
    if not signer.verifies(target, target.with_name(f"{target.name}.asc")):
        signer.detached(target)
    return target


def _control(deb: Path) -> str:
    return run(["dpkg-deb", "--field", deb], timeout_s=_TIMEOUT_S).stdout


def _fields(control: str) -> dict[str, str]:
    lines = (line.partition(": ") for line in control.splitlines() if not line.startswith(" "))
    return {name: value for name, _, value in lines}


def _stanza(deb: Path, folder: Path) -> str:
    about = digests(deb)
    extra = {
        "Filename": deb.relative_to(folder).as_posix(),
        "Size": str(about.size_bytes),
        "SHA256": about.sha256,
        "SHA512": about.sha512,
    }
    return _control(deb).rstrip("\n") + "\n" + "".join(f"{name}: {value}\n" for name, value in extra.items())


def _indexes(packages: bytes) -> Iterator[_Index]:
    for architecture in APT_ARCHITECTURES:
        where = f"{COMPONENT}/binary-{architecture}"
        yield _Index(path=f"{where}/Packages", content=packages)
        yield _Index(path=f"{where}/Packages.gz", content=gzip.compress(packages, 9, mtime=0))


def release_text(indexes: Sequence[_Index], *, origin: str, date: datetime) -> str:
    """The ``Release`` file."""
    fields = {
        "Origin": origin,
        "Label": origin,
        "Suite": SUITE,
        "Codename": SUITE,
        "Date": f"{date:%a, %d %b %Y %H:%M:%S} UTC",
        "Acquire-By-Hash": "yes",
        "Architectures": " ".join(APT_ARCHITECTURES),
        "Components": COMPONENT,
        "Description": "region servers of this cloud, and the registration client",
    }
    listed = "".join(f" {index.sha256} {len(index.content)} {index.path}\n" for index in indexes)
    return "".join(f"{name}: {value}\n" for name, value in fields.items()) + f"SHA256:\n{listed}"


def _is_current(suite: Path, indexes: Sequence[_Index], signer: PackageSigner) -> bool:
    """Whether the signed list there names exactly these indexes, and its signature is of this key."""
    release = suite / "Release"
    for index in indexes:
        for path in (suite / index.path, _by_hash(suite, index)):
            if not path.is_file() or path.read_bytes() != index.content:
                return False
    if not ((suite / "InRelease").is_file() and signer.verifies(release, suite / "Release.gpg")):
        return False
    text = release.read_text()
    listed = "".join(f" {index.sha256} {len(index.content)} {index.path}\n" for index in indexes)
    inline = (suite / "InRelease").read_text()
    return text.endswith(f"SHA256:\n{listed}") and text in inline


def _by_hash(suite: Path, index: _Index) -> Path:
    return (suite / index.path).parent / "by-hash" / "SHA256" / index.sha256


def _write_indexes(suite: Path, indexes: Sequence[_Index]) -> None:
    for index in indexes:
        write_whole(_by_hash(suite, index), index.content)
    for index in indexes:
        write_whole(suite / index.path, index.content)


def write_rpm_repository(
    rpms: Sequence[Path], folder: Path, *, signer: PackageSigner, now: datetime
) -> tuple[Path, ...]:
    """Sign packages, add them to the rpm-md repository in ``folder`` and sign that; returns their paths in it.

    zypper and dnf find the key beside the signed list, as ``repomd.xml.key``. When nothing changed, nothing is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    added = []
    for rpm in rpms:
        target = folder / rpm.name
        if not (target.is_file() and header_sha256(target) == header_sha256(rpm) and is_signed(target, signer)):
            with appearing(target) as partial:
                shutil.copyfile(rpm, partial)
                sign_rpm(partial, signer)
        added.append(target)
    listed = folder / "repodata" / "repomd.xml"
    if not (_lists_all(folder) and signer.verifies(listed, listed.with_name("repomd.xml.asc"))):
        _write_rpm_indexes(folder, signer, now=now)
    return tuple(added)


def _lists_all(folder: Path) -> bool:
    """Whether the index that is there names the bytes of every package in the folder."""
    primary = next((folder / "repodata").glob("*-primary.xml.gz"), None)
    text = gzip.decompress(primary.read_bytes()).decode() if primary else ""
    return bool(text) and all(sha256_file(package) in text for package in folder.glob("*.rpm"))


def _write_rpm_indexes(folder: Path, signer: PackageSigner, *, now: datetime) -> None:
    live = folder / "repodata"
    with tempfile.TemporaryDirectory(prefix="factory-repodata-") as name:
        argv: list[str | Path] = ["createrepo_c", "--quiet", "--no-database", "--general-compress-type", "gz"]
        argv += ["--revision", str(int(now.timestamp())), "--set-timestamp-to-revision"]
        run([*argv, "--outputdir", name, folder], timeout_s=_TIMEOUT_S)
        made = Path(name) / "repodata"
        keep = {path.name for path in made.iterdir()} | {"repomd.xml.asc", "repomd.xml.key"}
        for path in sorted(made.iterdir(), key=lambda one: one.name == "repomd.xml"):
            if path.name != "repomd.xml":
                write_whole(live / path.name, path.read_bytes())
        write_whole(live / "repomd.xml.key", signer.public_key)
        signature = signer.detached(made / "repomd.xml").read_bytes()
        write_whole(live / "repomd.xml", (made / "repomd.xml").read_bytes())
        write_whole(live / "repomd.xml.asc", signature)
    for path in live.iterdir():
        if path.name not in keep:
            remove(path)
