# SPDX-License-Identifier: Apache-2.0
"""RPM packages of ours, by the real rpmbuild: the same content always makes the same unsigned bytes.

What would differ between two builds is fixed: the build host and time, the times of files, and the compressor (gzip,
which every rpm that is still in use reads).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from factory.errors import RegionError
from factory.model import utc
from factory.region.config import GuestFile, install
from factory.region.packages.contents import Payload
from factory.region.packages.deb import MAINTAINER, level
from factory.region.packages.signing import PackageSigner
from factory.system.files import appearing
from factory.system.run import run

RELEASE = "1"
_NO_DATABASE = "/proc/no-rpm-database"
"""rpm makes the folder of its database in root's home where it is not told of another; this one cannot be made."""
_TIMEOUT_S = 120.0
_FIXED = {
    "_buildhost": "image-factory",
    "use_source_date_epoch_as_buildtime": "1",
    "clamp_mtime_to_source_date_epoch": "1",
    "source_date_epoch_from_changelog": "0",
    "_binary_payload": "w9.gzdio",
    "_binary_filedigest_algorithm": "8",
    "_build_id_links": "none",
    "debug_package": "%{nil}",
    "__os_install_post": "%{nil}",
    "_build_name_fmt": "%%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shelf:
    """The folders of one rpmbuild."""

    scratch: Path

    @property
    def stage(self) -> Path:
        return self.scratch / "stage"

    @property
    def made(self) -> Path:
        return self.scratch / "made"


def rpm_name(payload: Payload, version: str) -> str:
    """The file name."""
    return f"{payload.name}-{version}-{RELEASE}.noarch.rpm"


def build_rpm(payload: Payload, version: str, folder: Path) -> Path:
    """Build the unsigned package into ``folder`` and return its path."""
    target = folder / rpm_name(payload, version)
    with tempfile.TemporaryDirectory(prefix="factory-rpm-") as name:
        shelf = _Shelf(scratch=Path(name))
        shelf.stage.mkdir()
        install(shelf.stage, payload.all_rpm_files)
        level(shelf.stage, epoch=payload.epoch)
        spec = shelf.scratch / f"{payload.name}.spec"
        spec.write_text(spec_text(payload, version))
        places = {"_topdir": shelf.scratch / "top", "_rpmdir": shelf.made, "_dbpath": shelf.scratch / "db"}
        places |= {"_tmppath": shelf.scratch / "tmp", "stage": shelf.stage}
        argv: list[str | Path] = ["rpmbuild", "-bb", "--target", "noarch"]
        for macro, value in (*_FIXED.items(), *places.items()):
            argv += ["--define", f"{macro} {value}"]
        run([*argv, spec], timeout_s=_TIMEOUT_S, env={"SOURCE_DATE_EPOCH": str(payload.epoch)})
        with appearing(target) as partial:
            partial.write_bytes((shelf.made / target.name).read_bytes())
            partial.chmod(0o644)
    return target


def sign_rpm(package: Path, signer: PackageSigner) -> None:
    """Put our signature into the package's header, whole or not at all.

    Raises:
        RegionError: rpm does not accept the signature that was made.
    """
    with appearing(package) as partial:
        partial.write_bytes(package.read_bytes())
        partial.chmod(0o644)
        macros = {"_gpg_name": signer.fingerprint, "_gpg_path": signer.home, "__gpg": "/usr/bin/gpg"}
        macros |= {
            "_dbpath": _NO_DATABASE,
            "_gpg_sign_cmd_extra_args": " ".join(signer.options),
            "_gpg_digest_algo": "sha512",
        }
        argv: list[str | Path] = ["rpmsign"]
        for macro, value in macros.items():
            argv += ["--define", f"{macro} {value}"]
        run([*argv, "--addsign", partial], timeout_s=_TIMEOUT_S)
        if not is_signed(partial, signer):
            raise RegionError(
                f"the signature in '{package.name}' does not verify",
                hint="rpm must know the key's algorithm; RSA keys are understood by every rpm",
            )


def is_signed(package: Path, signer: PackageSigner) -> bool:
    """Whether rpm itself finds a good signature of this key in the package."""
    with tempfile.TemporaryDirectory(prefix="factory-rpmdb-") as name:
        key = Path(name) / "key.asc"
        key.write_text(signer.public_key)
        keyring: list[str | Path] = ["rpmkeys", "--define", f"_dbpath {name}/db"]
        run([*keyring, "--import", key], timeout_s=_TIMEOUT_S)
        checked = run([*keyring, "--checksig", "--verbose", package], check=False, timeout_s=_TIMEOUT_S)
    lines = [line.strip() for line in checked.stdout.splitlines()]
    return checked.returncode == 0 and any("ignature" in line and line.endswith(": OK") for line in lines)


def header_sha256(package: Path) -> str:
    """The digest of the header, which names the payload's digest; a signature does not change it."""
    query = ["rpm", "--define", f"_dbpath {_NO_DATABASE}", "-qp", "--nosignature"]
    asked = run([*query, "--queryformat", "%{SHA256HEADER}", package], timeout_s=_TIMEOUT_S)
    return asked.stdout.strip()


def spec_text(payload: Payload, version: str) -> str:
    """The spec file; every value in it is ours or was checked, because ``%`` would be expanded."""
    return "\n".join(_spec_lines(payload, version)) + "\n"


def _spec_lines(payload: Payload, version: str) -> Iterator[str]:
    yield f"Name: {payload.name}"
    yield f"Version: {version}"
    yield f"Release: {RELEASE}"
    yield f"Summary: {payload.summary[:1].upper()}{payload.summary[1:]}"
    yield "License: Apache-2.0"
    yield "Group: System/Management"
    yield f"Packager: {MAINTAINER}"
    yield "BuildArch: noarch"
    yield "AutoReqProv: no"
    yield from (f"Provides: {one}" for one in payload.rpm_provides)
    yield from (f"Conflicts: {one}" for one in payload.rpm_conflicts)
    yield from (f"Requires: {one}" for one in payload.rpm_requires)
    yield ""
    yield "%description"
    yield from payload.description
    yield ""
    yield "%install"
    yield "mkdir -p %{buildroot}"
    yield "cp -a %{stage}/. %{buildroot}/"
    if payload.unit:
        yield from ("", "%post", "[ ! -d /run/systemd/system ] || systemctl daemon-reload || :")
        yield from (
            "",
            "%preun",
            f'[ "$1" -gt 0 ] || [ ! -d /run/systemd/system ] || systemctl disable {payload.unit} || :',
        )
    yield from ("", "%files", "%defattr(-,root,root,-)")
    files = sorted(payload.all_rpm_files, key=lambda one: one.path)
    used = [folder for folder in payload.owned if any(file.path.startswith(f"{folder}/") for file in files)]
    yield from (f"%dir /{folder}" for folder in used)
    for file in files:
        yield _file_line(file, keep=payload.keep)
    yield from ("", "%changelog", f"* {utc(payload.epoch):%a %b %d %Y} {MAINTAINER} - {version}-{RELEASE}")
    yield f"- Content {payload.content_sha256}."


def _file_line(file: GuestFile, *, keep: tuple[str, ...]) -> str:
    if file.path in keep or file.path.startswith("etc/logrotate.d/"):
        return f"%config(noreplace) %attr(0{file.mode:o},root,root) /{file.path}"
    return f"/{file.path}" if file.link else f"%attr(0{file.mode:o},root,root) /{file.path}"
