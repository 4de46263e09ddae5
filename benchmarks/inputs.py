# SPDX-License-Identifier: Apache-2.0
"""What recorded inputs gain and cost, beside bare kiwi on the same mirror, in one run; nothing here is asserted.

``python benchmarks/inputs.py STATE [unchanged] [recording] [warm] [warm-100] [overlay] [mmdebstrap]`` on a state folder
with a published night of debian13 (``factory --state STATE nightly debian13``); without words, all of them. Everything
works on copies. ``warm`` and ``warm-100`` serve what that night recorded as a mirror on loopback, so that bare kiwi and
we fetch the same files at the same speed: at full speed, or held to 100 Mbit/s for all connections together.
Run it as root on a host that does nothing else; ``warm-100`` takes a quarter of an hour, the others minutes.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import unquote

sys.path.insert(0, str(Path(__file__).parents[1]))

from factory.inputs.lock import TOOL_ALIASES, Input, read_lock
from factory.inputs.recorder import Origin, Recorder
from factory.inputs.server import serve
from factory.model import Artifact, Recipe
from factory.system.clock import now
from factory.system.state import Run, State

PROJECT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
MBIT_BYTES = 1_000_000 // 8
OVERLAY = "descriptions/debian13/root/usr/share/benchmark"
_CHUNK_BYTES = 1 << 15
Row = tuple[str, str, str]


@dataclass
class Night:
    """A published night: its state folder, run, and what it was given."""

    state: Path
    run: Run
    recipe: Recipe
    artifact: Artifact
    lock: tuple[Input, ...]

    @property
    def files(self) -> list[Input]:
        """What the image's own build was given."""
        return [one for one in self.lock if one.found and one.repository not in TOOL_ALIASES]


def newest(state: Path) -> Night:
    run = next(one for one in State(path=state).runs_of("debian13") if one.has("rotate"))
    artifact = run.read("build", Artifact)
    return Night(state, run, artifact.recipe, artifact, read_lock(artifact.lock))


@contextlib.contextmanager
def copied(night: Night, *more: str) -> Iterator[Path]:
    """A state folder with the night's run and inputs, which may be spoiled; beside it, so that links can be made.

    Its builds install every package, unless ``more`` has "roots".
    """
    folder = Path(tempfile.mkdtemp(prefix="factory-bench-", dir=night.state.parent))
    try:
        for name in ("blobs", "tools", "keys", "region-packages.json", f"runs/{night.run.id}", *more):
            if (night.state / name).exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                subprocess.run(["cp", "-a", "--reflink=auto", night.state / name, folder / name], check=True)
        yield folder
    finally:
        shutil.rmtree(folder)


def typed(state: Path, *words: str | Path, project: Path = PROJECT) -> tuple[float, subprocess.CompletedProcess[str]]:
    """Seconds that a command took, as people type it."""
    argv = [BIN / "factory", "--project", project, "--state", state, *words]
    started = time.monotonic()
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - started
    if done.returncode != 0:
        sys.exit(done.stdout[-2000:] + done.stderr[-2000:])
    return seconds, done


# -- a mirror of what was recorded


@dataclass
class Budget:
    """So many bytes a second for all who ask together; 0 is without limit."""

    bytes_per_s: int
    at: float = field(default_factory=time.monotonic)
    mutex: threading.Lock = field(default_factory=threading.Lock)

    def take(self, count: int) -> None:
        if not self.bytes_per_s:
            return
        with self.mutex:
            self.at = max(self.at, time.monotonic() - 0.05) + count / self.bytes_per_s
            wait = self.at - time.monotonic()
        if wait > 0:
            time.sleep(wait)


class _Mirror(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, *rest, files: dict[str, Path], budget: Budget) -> None:
        self.files, self.budget = files, budget
        super().__init__(*rest)

    def do_GET(self) -> None:
        file = self.files.get(unquote(self.path))
        if file is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(file.stat().st_size))
        self.end_headers()
        with file.open("rb") as content:
            while chunk := content.read(_CHUNK_BYTES):
                self.budget.take(len(chunk))
                self.wfile.write(chunk)

    def log_message(self, *rest: object) -> None:
        pass


@contextlib.contextmanager
def mirror(night: Night, *, mbit: int = 0) -> Iterator[str]:
    """An address below which each repository is by its alias."""
    blobs = State(path=night.state).blobs
    files = {f"/{one.repository}/{unquote(one.path)}": blobs / one.sha512 for one in night.lock if one.found}
    handler = partial(_Mirror, files=files, budget=Budget(mbit * MBIT_BYTES))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


# -- what is measured


def unchanged(night: Night) -> list[Row]:
    """The night after, of which nothing is new; against the real mirrors."""
    with copied(night) as state:
        typed(state, "nightly", "debian13", "--json")  # the first of a copy learns what the mirrors call their indexes
        seconds, done = typed(state, "nightly", "debian13", "--json")
        told = json.loads(done.stdout)["value"]
        if told["outcome"] != "unchanged":
            return [("a night in which nothing changed", f"not measured: {told['reason']}", "under 5 s")]
        return [("a night in which nothing changed", f"{seconds:.1f} s", "under 5 s")]


def fetched_s(address: str, files: list[Input], path: Callable[[Input], str]) -> float:
    host = address.removeprefix("http://")
    client = HTTPConnection(host, timeout=600)
    started = time.monotonic()
    for one in files:
        client.request("GET", path(one))
        answer = client.getresponse()
        while answer.read(1 << 20):
            pass
        if answer.status != HTTPStatus.OK:
            sys.exit(f"{path(one)}: {answer.status}")
    client.close()
    return time.monotonic() - started


def recording(night: Night) -> list[Row]:
    """The files of a build fetched from a mirror, and from it through a recorder that has none of them yet."""
    import socket

    blobs = Path(tempfile.mkdtemp(prefix="factory-bench-", dir=night.state.parent))
    ordered = sorted(night.files, key=lambda one: (not one.path.endswith("InRelease"), one.path.endswith(".deb")))
    try:
        with mirror(night) as address:
            direct = fetched_s(address, ordered, lambda one: f"/{one.repository}/{one.path}")
            origins = {
                alias: Origin(mirror=f"{address}/{alias}", keyring=night.recipe.keyrings[alias])
                for alias in {one.repository for one in ordered}
            }
            through = []
            for _ in ("cold", "warm"):
                recorder = Recorder(origins=origins, blobs=blobs, now=now())
                listening = socket.create_server(("127.0.0.1", 0))
                port = listening.getsockname()[1]
                with serve(listening, recorder):
                    answered = fetched_s(
                        f"http://127.0.0.1:{port}", ordered, lambda one: f"/{one.repository}/{one.path}"
                    )
                through.append(answered)
    finally:
        shutil.rmtree(blobs)
    kiwi = night.artifact.seconds["kiwi"] + night.artifact.seconds.get("packages", 0)
    size = sum(one.size_bytes for one in ordered) / 1e6
    cost = through[0] - direct
    return [
        (f"{len(ordered)} files, {size:.0f} MB, from a mirror on loopback", f"{direct:.2f} s", ""),
        ("the same through a recorder that has none of them", f"{through[0]:.2f} s", ""),
        ("the same through a recorder that has all of them", f"{through[1]:.2f} s", ""),
        (f"what recording costs / that night's kiwi ({kiwi:.0f} s)", f"{cost / kiwi:.1%}", "under 5 %"),
    ]


def bare_kiwi_s(night: Night, address: str) -> float:
    """``kiwi-ng system build`` of the same tree from the same mirror, with nothing stored."""
    with tempfile.TemporaryDirectory(prefix="factory-bench-", dir="/dev/shm") as folder:
        scratch = Path(folder)
        (scratch / "kiwi.yml").write_text("mapper:\n  part_mapper: partx\n")
        repositories = []
        for one in night.recipe.repositories:
            for suite in one.suites:
                fields = [f"{address}/{one.alias}", "apt-deb", f"{one.alias}-{suite}", "", "false", "false", ""]
                repositories += ["--add-repo", ",".join([*fields, " ".join(one.components), suite, "false"])]
        argv = [BIN / "kiwi-ng", "--config", scratch / "kiwi.yml", "--shared-cache-dir", scratch / "cache"]
        argv += ["system", "build", "--description", night.run.tree, "--target-dir", scratch / "target"]
        argv += ["--ignore-repos-used-for-build", *repositories]
        started = time.monotonic()
        environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
        done = subprocess.run(argv, capture_output=True, text=True, check=False, env=environment)
        if done.returncode != 0:
            sys.exit(done.stdout[-2000:] + done.stderr[-2000:])
        return time.monotonic() - started


def our_build_s(night: Night, state: Path, address: str, *, project: Path = PROJECT) -> float:
    """Our build stage with all inputs stored; the mirror is still asked for its signed indexes."""
    site = state / "site.toml"
    aliases = sorted({one.repository for one in night.lock if one.repository != "wheels"})
    addresses = {one.alias: one.url for one in night.recipe.repositories}
    site.write_text(
        "[mirrors]\n"
        + "".join(f'{alias} = "{address}/{alias}"\n' for alias in aliases)
        + "[update_repositories]\n"
        + "".join(f'{alias} = "{url}"\n' for alias, url in addresses.items())
    )
    typed(state, "--site", site, "describe", "debian13", project=project)
    return typed(state, "--site", site, "build", "debian13", project=project)[0]


def warm(night: Night, *, mbit: int = 0) -> list[Row]:
    """Cold bare kiwi and our warm builds, in turns on one mirror: packages installed anew, and from the kept tree."""
    how, wanted = (f", mirror held to {mbit} Mbit/s", "at most 0.6") if mbit else ("", "at most 0.8")
    with mirror(night, mbit=mbit) as address, copied(night) as state:
        kiwi = bare_kiwi_s(night, address)
        anew = our_build_s(night, state, address)
        again = our_build_s(night, state, address)
        kiwi = min(kiwi, bare_kiwi_s(night, address))
    return [
        (f"cold bare `kiwi-ng system build`{how}", f"{kiwi:.0f} s", ""),
        (f"our warm `factory build`, every package installed anew{how}", f"{anew:.0f} s", ""),
        (f"our next `factory build`, from the kept root tree{how}", f"{again:.0f} s", ""),
        (f"packages installed anew / bare kiwi{how}", f"{anew / kiwi:.2f}", wanted),
        (f"from the kept root tree / bare kiwi{how}", f"{again / kiwi:.2f}", wanted),
    ]


def overlay(night: Night) -> list[Row]:
    """A build after one file of the overlay changed, from the root tree that the night kept."""
    with mirror(night) as address, copied(night, "roots") as state, tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "project"
        shutil.copytree(PROJECT / "descriptions", project / "descriptions", symlinks=True)
        for name in ("keys", "testsuite"):
            (project / name).symlink_to(PROJECT / name)
        (project / OVERLAY).parent.mkdir(parents=True, exist_ok=True)
        (project / OVERLAY).write_text("changed\n")
        if not State(path=state).roots.is_dir():  # a night of before trees were kept
            our_build_s(night, state, address)
        seconds = our_build_s(night, state, address, project=project)
    return [("`factory build` when only the overlay changed", f"{seconds:.0f} s", "under 40 s")]


def mmdebstrap(night: Night) -> list[Row]:
    """How long the packages alone take, by the fastest tool for that; no disk, no boot loader."""
    if shutil.which("mmdebstrap") is None:
        return [("mmdebstrap of the same packages", "not installed", "")]
    names = [one.name for one in night.artifact.packages if not one.name.startswith("image-factory-")]
    with mirror(night) as address, tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        first = night.recipe.repositories[0]
        argv = ["mmdebstrap", "--variant=custom", f"--include={','.join(names)}", "--aptopt=APT::Sandbox::User root"]
        argv += [first.suites[0], f"{folder}/root.tar"]
        for one in night.recipe.repositories:
            key = night.recipe.keyrings[one.alias]
            for suite in one.suites:
                argv.append(f"deb [signed-by={key}] {address}/{one.alias} {suite} {' '.join(one.components)}")
        started = time.monotonic()
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        seconds = time.monotonic() - started
    told = f"{seconds:.0f} s" if done.returncode == 0 else f"failed: {done.stderr.strip()[-120:]}"
    return [("mmdebstrap of the same packages into a tar file", told, "")]


MEASURES: dict[str, Callable[[Night], list[Row]]] = {
    "unchanged": unchanged,
    "recording": recording,
    "overlay": overlay,
    "mmdebstrap": mmdebstrap,
    "warm": warm,
    "warm-100": partial(warm, mbit=100),
}


def measure(state: Path, names: list[str] | None = None) -> list[Row]:
    """The rows of a table: what, measured, wanted."""
    night = newest(state)
    return [row for name in names or list(MEASURES) for row in MEASURES[name](night)]


if __name__ == "__main__":
    state, *names = sys.argv[1:] or sys.exit(__doc__)
    if unknown := set(names) - set(MEASURES):
        sys.exit(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(MEASURES)}")
    for what, measured, wanted in measure(Path(state).resolve(), names):
        print(f"| {what} | {measured} | {wanted} |")
