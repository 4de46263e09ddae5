# SPDX-License-Identifier: Apache-2.0
"""The shared night's image, made again by ``factory rebuild`` as a person elsewhere would type it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote

import pytest

from factory.inputs.lock import read_lock
from factory.model import Artifact, Bundle
from factory.system.files import sha256_file, tree_digest
from testsuite.conftest import FACTORY, PROJECT, NightRun

TIMEOUT_S = 1500


def published(night: NightRun, folder: Path) -> tuple[Path, Path]:
    """The night's tarball and public keys, as somebody who downloaded them has them."""
    bundle = night.run.read("sign", Bundle)
    folder.mkdir()
    for name in (bundle.artifact.tarball.name, f"{bundle.artifact.tarball.name}.asc"):
        shutil.copyfile(bundle.directory / name, folder / name)
    keys = night.state.keys / "public"
    return folder / bundle.artifact.tarball.name, keys / f"{bundle.fingerprint}.asc"


# programs that shape an image, as a host must not have them: whoever calls one of them there fails
SHAPING = ("mke2fs", "mkfs.ext4", "dumpe2fs", "debugfs", "tune2fs", "qemu-img", "kiwi-ng", "rsync", "sgdisk", "sfdisk")
ANOTHER_HOST = """
umask 077
mount --bind "$1" /usr/local/sbin && taskset --cpu-list "$2" "${@:4}"
status=$?
cat /proc/net/dev >"$3"
exit $status
"""


def rebuild(tarball: Path, key: Path, *words: str | Path, state: Path) -> subprocess.CompletedProcess[str]:
    """Typed as on another host: other programs first in every PATH, one CPU, another umask, and nobody to be asked.

    What the namespace's network devices counted is in ``counters`` beside the tarball.
    """
    fakes = tarball.parent / "fakes"
    fakes.mkdir()
    for name in SHAPING:
        (fakes / name).write_text(f'#!/bin/sh\necho "$0 $*" >>{fakes}/asked\nexit 77\n')
        (fakes / name).chmod(0o755)
    cpu = str(max(os.sched_getaffinity(0)))
    host = ["unshare", "--net", "--mount", "bash", "-c", ANOTHER_HOST, "bash", fakes, cpu, tarball.parent / "counters"]
    typed = [FACTORY, "--project", PROJECT, "--state", state, "rebuild", tarball, "--key", key, *words]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FACTORY_")}
    return subprocess.run(
        [*host, *typed],
        cwd=tarball.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
        env={**environment, "PATH": f"{fakes}:{environment['PATH']}", "TZ": "Asia/Tokyo", "LC_ALL": "C"},
    )


def packets(counters: Path) -> dict[str, int]:
    """Packets received and sent, by network device (proc_pid_net(5))."""
    found = {}
    for line in counters.read_text().splitlines()[2:]:
        device, _, numbers = line.partition(":")
        found[device.strip()] = int(numbers.split()[1]) + int(numbers.split()[9])
    return found


@pytest.mark.needs_image
def test_an_image_is_made_again_bit_for_bit_without_a_network(night: NightRun, tmp_path: Path) -> None:
    artifact = night.run.read("build", Artifact)
    tarball, key = published(night, tmp_path / "elsewhere")
    out, state = tmp_path / "out", tmp_path / "another" / "state"
    done = rebuild(tarball, key, "--inputs", night.state.blobs, "--out", out, "--json", state=state)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    value = json.loads(done.stdout)["value"]
    assert (value["identical"], value["tarball_identical"]) == (True, True)
    assert value["sha256"] == artifact.sha256
    assert value["differences"] == value["unasked"] == []
    for path in (artifact.path, artifact.tarball, artifact.lock, artifact.files_list, artifact.packages_list):
        assert sha256_file(out / path.name) == sha256_file(path), path.name
    assert sha256_file(out / "sbom.cdx.json") == artifact.sbom_sha256
    assert packets(tarball.parent / "counters") == {"lo": 0}
    assert not (tarball.parent / "fakes" / "asked").exists()
    # the tools were made again from the lock, and are the same
    digest = artifact.tools["tools-tree"]
    assert tree_digest(state / "tools" / digest) == tree_digest(night.state.tools / digest)
    assert not list((state / "rebuilds").iterdir())


@pytest.mark.needs_image
@pytest.mark.parametrize(("repository", "package"), [("tools", "qemu-utils"), ("debian", "perl-base")])
def test_one_byte_of_one_stored_package_is_refused_by_name(
    night: NightRun, tmp_path: Path, repository: str, package: str
) -> None:
    artifact = night.run.read("build", Artifact)
    tarball, key = published(night, tmp_path / "elsewhere")
    blobs, state = tmp_path / "blobs", tmp_path / "state"
    blobs.mkdir()
    for digest in {entry.sha512 for entry in read_lock(artifact.lock) if entry.found}:  # some are in the tools, too
        (blobs / digest).symlink_to(night.state.blobs / digest)
    # one that the bootstrap needs, so that the refusal comes early
    entry = next(one for one in read_lock(artifact.lock) if one.repository == repository and f"/{package}_" in one.path)
    content = bytearray((blobs / entry.sha512).read_bytes())
    content[len(content) // 2] ^= 1
    (blobs / entry.sha512).unlink()
    (blobs / entry.sha512).write_bytes(content)
    state.mkdir()
    (state / "tools").symlink_to(night.state.tools)  # made already: a file of it is looked at all the same
    done = rebuild(tarball, key, "--inputs", blobs, state=state)
    assert done.returncode == 3
    name = unquote(entry.path).rsplit("/", 1)[-1]
    assert f"'{name}' of repository '{entry.repository}' is not what was recorded" in done.stderr
    assert (state / "failed-rebuild" / "logs" / "build.log").is_file() == (repository == "debian")
    assert not list((state / "rebuilds").iterdir())
