# SPDX-License-Identifier: Apache-2.0
"""Rebuilds as people elsewhere do them: from a store and a mirror over HTTP, after a kill, and of something else."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from urllib.parse import unquote

import pytest

from factory.build.tarball import MANIFEST, REBUILD
from factory.inputs.lock import read_lock
from factory.model import Artifact
from factory.system.files import tree_digest
from testsuite.conftest import FACTORY, PROJECT, NightRun
from testsuite.integration.test_rebuild_image import TIMEOUT_S, published, rebuild
from testsuite.repository import make_key

STORE, MIRROR = 8001, 8002
CHANGED = "etc/systemd/journald.conf.d/size.conf"
SERVED = """
import functools, http.server, json, subprocess, sys, threading
places, log, *argv = json.loads(sys.argv[1]), *sys.argv[2:]
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
asked = []
class Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_request(self, code="-", size="-"):
        asked.append((self.server.server_address[1], self.path, int(code)))
for port, folder in places.items():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), functools.partial(Handler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
done = subprocess.run(argv)
with open(log, "w") as file:
    json.dump(asked, file)
sys.exit(done.returncode)
"""


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("FACTORY_")}


@pytest.mark.slow
@pytest.mark.needs_image
def test_from_a_store_and_a_mirror_over_http_and_nothing_else(night: NightRun, tmp_path: Path) -> None:
    """In a network of loopback alone; the mirror lost one package, which the store has."""
    artifact = night.run.read("build", Artifact)
    tarball, key = published(night, tmp_path / "elsewhere")
    mirror = tmp_path / "mirror"
    entries = [one for one in read_lock(artifact.lock) if one.repository == "debian" and one.found]
    lost = next(one for one in entries if "/cloud-init_" in one.path)
    for entry in entries:
        file = mirror / "debian" / unquote(entry.path)
        file.parent.mkdir(parents=True, exist_ok=True)
        if entry != lost:
            file.symlink_to(night.state.blobs / entry.sha512)
    places = {STORE: str(night.state.blobs), MIRROR: str(mirror)}
    argv = ["unshare", "--net", sys.executable, "-c", SERVED, json.dumps(places), tmp_path / "asked.json"]
    argv += [FACTORY, "--project", PROJECT, "--state", tmp_path / "state", "rebuild", tarball, "--key", key, "--json"]
    argv += ["--inputs", f"http://127.0.0.1:{STORE}", "--repo", f"debian=http://127.0.0.1:{MIRROR}/debian"]
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, timeout=TIMEOUT_S, env=environment(), cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    value = json.loads(done.stdout)["value"]
    assert (value["identical"], value["tarball_identical"], value["sha256"]) == (True, True, artifact.sha256)
    asked = [tuple(one) for one in json.loads((tmp_path / "asked.json").read_text())]
    from_mirror = {unquote(path) for port, path, status in asked if port == MIRROR and status == 200}
    shared = {one.sha512 for one in read_lock(artifact.lock) if one.repository != "debian"}  # with the tools, say
    own = [one for one in entries if one != lost and one.sha512 not in shared]
    assert {f"/debian/{unquote(one.path)}" for one in own} <= from_mirror
    assert (STORE, f"/{lost.sha512}", 200) in asked
    assert not {f"/{one.sha512}" for one in own} & {path for port, path, _ in asked if port == STORE}


@pytest.mark.slow
@pytest.mark.needs_image
def test_a_rebuild_that_was_killed_leaves_nothing_behind_the_next_one(night: NightRun, tmp_path: Path) -> None:
    tarball, key = published(night, tmp_path / "elsewhere")
    state = tmp_path / "state"
    argv = [FACTORY, "--project", PROJECT, "--state", state, "rebuild", tarball, "--key", key]
    argv += ["--inputs", night.state.blobs]
    first = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment())
    assert first.stderr is not None
    said = ""
    for line in first.stderr:
        said += line
        if "kiwi, 2" in line:  # twenty seconds, or more, of the builder
            break
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert "kiwi, 2" in said, said[-2000:]
    left = [path.name for path in (state / "rebuilds").iterdir()]
    assert len(left) == 1
    again = rebuild(tarball, key, "--inputs", night.state.blobs, "--json", state=state)
    assert again.returncode == 0, again.stderr[-3000:]
    assert json.loads(again.stdout)["value"]["identical"] is True
    assert not list((state / "rebuilds").iterdir())
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    loops = subprocess.run(["losetup", "--list", "--output", "BACK-FILE"], capture_output=True, text=True, check=True)
    assert left[0] not in loops.stdout


@pytest.mark.slow
@pytest.mark.needs_image
def test_another_image_is_told_apart_down_to_the_file(night: NightRun, tmp_path: Path) -> None:
    """The tarball of the night with one line more in one file of the overlay, signed by somebody else whom we trust."""
    assert shutil.which("diffoscope"), "diffoscope is not installed (packages/apt.txt)"
    tarball, _ = published(night, tmp_path / "elsewhere")
    with tarfile.open(tarball) as archive:
        archive.extractall(tmp_path / "unpacked", filter="tar")  # our own; a link in it leads to /dev/null
    (tree,) = (tmp_path / "unpacked").iterdir()
    (tree / REBUILD).rename(tmp_path / "records")
    with (tree / "root" / CHANGED).open("a") as file:
        file.write("# one line more\n")
    manifest = tmp_path / "records" / MANIFEST
    body = json.loads(manifest.read_text())
    body["tree_sha256"] = tree_digest(tree)
    manifest.write_text(json.dumps(body))
    (tmp_path / "records").rename(tree / REBUILD)
    with tarfile.open(tarball, "w:xz", preset=0) as archive:
        archive.add(tree, tree.name)
    stranger = make_key(tmp_path, "stranger")
    gpg = ["gpg", "--homedir", str(stranger.home), "--batch", "--yes"]
    subprocess.run([*gpg, "--armor", "--output", f"{tarball}.asc", "--detach-sign", str(tarball)], check=True)
    public = tmp_path / "stranger.asc"
    subprocess.run([*gpg, "--armor", "--output", str(public), "--export"], check=True)
    image = night.run.read("build", Artifact).path
    words = ["--inputs", night.state.blobs, "--image", image, "--out", tmp_path / "out", "--diffoscope", "--json"]
    # looking into two images takes the host's own programs
    argv = [FACTORY, "--project", PROJECT, "--state", tmp_path / "state", "rebuild", tarball, "--key", public, *words]
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, timeout=TIMEOUT_S, env=environment(), cwd=tmp_path
    )
    assert done.returncode == 1, done.stderr[-3000:]
    value = json.loads(done.stdout)["value"]
    files = {one["name"]: one["classes"] for one in value["differences"] if one["what"] == "file"}
    assert files == {f"/{CHANGED}": ["content"]}
    assert value["identical"] is False
    report = tmp_path / "out" / "diffoscope.txt"
    assert 0 < report.stat().st_size <= 16 << 20
