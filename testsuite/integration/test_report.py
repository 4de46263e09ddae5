# SPDX-License-Identifier: Apache-2.0
"""The pages as a browser shows them: Chromium lays them out, and the pixels and the DOM are looked at."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import tempfile
import zlib
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from factory.ledger import Ledger, detail_of
from factory.model import Artifact, Bundle, Package, Publication, Role, Rotations, Verdict
from factory.report import report
from factory.system.files import sha256_file
from factory.system.state import Run, State
from testsuite import samples

NIGHT = samples.NIGHT
PACKAGES = tuple(Package(name=f"package-{number:03d}", version=f"1.{number}-1", arch="amd64") for number in range(280))
HOSTILE = (
    "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">\x1b[31mred\x1b[0m \u202eevil"
)
COLOURS = {"light": {"green": (0x1B, 0x7A, 0x4B), "red": (0xB3, 0x26, 0x1E), "paper": (0xF5, 0xF4, 0xF0)}}


@dataclass(frozen=True)
class Browser:
    """A headless browser that talks to nobody; ``folder`` is for profiles and pictures."""

    program: str
    folder: Path

    def show(self, page: Path, *options: str) -> str:
        """Show a page; returns what the browser prints."""
        flags = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
        flags += " disable-component-update disable-sync disable-dev-shm-usage hide-scrollbars"
        with tempfile.TemporaryDirectory(dir=self.folder, ignore_cleanup_errors=True) as profile:
            argv = [self.program, *(f"--{flag}" for flag in flags.split()), f"--user-data-dir={profile}", *options]
            done = subprocess.run([*argv, page.as_uri()], capture_output=True, text=True, timeout=90, check=True)
        return done.stdout

    def dom(self, page: Path) -> str:
        return self.show(page, "--dump-dom")

    def text(self, page: Path) -> str:
        return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", self.dom(page)))

    def shot(self, page: Path, *options: str, size: str = "1000,1500") -> Path:
        png = self.folder / f"{page.parent.name}-{page.stem}-{size.replace(',', 'x')}{'-dark' if options else ''}.png"
        self.show(page, f"--screenshot={png}", f"--window-size={size}", *options)
        return png


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        assert not os.environ.get("CI"), "chromium is missing"
        pytest.skip("chromium is missing")
    return Browser(program=found, folder=tmp_path_factory.mktemp("browser"))


def pixels(png: Path) -> tuple[int, int, Counter[tuple[int, int, int]]]:
    """Width, height and how often each colour occurs, of an 8-bit RGB or RGBA image (PNG specification, section 9)."""
    body = png.read_bytes()
    assert body.startswith(b"\x89PNG\r\n\x1a\n")
    at, packed, width, height, step = 8, b"", 0, 0, 3
    while at < len(body):
        length, kind = struct.unpack(">I4s", body[at : at + 8])
        chunk = body[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            width, height, depth, colour = struct.unpack(">IIBB", chunk[:10])
            assert depth == 8
            step = {2: 3, 6: 4}[colour]
        elif kind == b"IDAT":
            packed += chunk
        at += length + 12
    raw, stride = zlib.decompress(packed), width * step
    colours: Counter[tuple[int, int, int]] = Counter()
    above = bytearray(stride)
    for row in range(height):
        start = row * (stride + 1)
        line = unfiltered(raw[start], bytearray(raw[start + 1 : start + 1 + stride]), above, step)
        colours.update(zip(line[0::step], line[1::step], line[2::step], strict=True))
        above = line
    return width, height, colours


def unfiltered(kind: int, line: bytearray, above: bytearray, step: int) -> bytearray:
    for i in range(len(line)) if kind else ():
        left, up, corner = (line[i - step], above[i], above[i - step]) if i >= step else (0, above[i], 0)
        if kind == 1:
            line[i] = (line[i] + left) & 255
        elif kind == 2:
            line[i] = (line[i] + up) & 255
        elif kind == 3:
            line[i] = (line[i] + (left + up) // 2) & 255
        elif kind == 4:
            guess = left + up - corner
            near = min((abs(guess - left), 0, left), (abs(guess - up), 1, up), (abs(guess - corner), 2, corner))
            line[i] = (line[i] + near[2]) & 255
    return line


class Recorder:
    """Records a night in the ledger as the pipeline does."""

    def __init__(self, ledger: Ledger, run: Run, started: datetime) -> None:
        self.ledger, self.run, self.at = ledger, run, started

    def __call__(
        self, stage: str, value: object, seconds: float, *, outcome: str = "done", message: str = "", **more: Any
    ) -> None:
        self.ledger.record_stage(
            self.run.id,
            stage,
            outcome=outcome,
            started_at=self.at,
            seconds=seconds,
            message=message,
            detail=detail_of(value, **more),
        )
        self.at += timedelta(seconds=seconds)

    def end(self, outcome: str, message: str) -> Run:
        self.ledger.end_run(self.run.id, outcome=outcome, ended_at=self.at, message=message)
        return self.run


def night(
    ledger: Ledger, state: State, day: int, *, red: bool = False, packages: tuple[Package, ...] = PACKAGES
) -> Run:
    """A night with the values that the stages return."""
    started = NIGHT.replace(day=day)
    run = state.new_run("debian13", started)
    console = run.log("console")
    console.write_text("".join(f"[   {n}.000000] systemd[1]: Started unit {n}.\n" for n in range(90)) + HOSTILE + "\n")
    run.log("build").write_text("kiwi says hello\n")
    made = samples.artifact(run, content=b"x" * (300_000 + day * 1000), packages=packages, built_at=started)
    judged = samples.verdict(made, red=red, console_log=console)
    ledger.begin_run(
        run.id, image="debian13", line="Standard_Debian_13", started_at=started, recipe=made.recipe, trigger="timer"
    )
    record = Recorder(ledger, run, started)
    record("describe", made.recipe, 0.8)
    record("build", made, 212.4, message="0 MB, 280 packages")
    if red:
        record("verify", judged, 141.0, outcome="red", message="1 of 4 checks failed")
        return record.end("red", f"1 of 4 checks failed {HOSTILE}")
    record("verify", judged, 141.0, message="2 checks passed")
    bundle = bundle_of(run, made, judged, record.at)
    record("sign", bundle, 2.1)
    released = samples.release(bundle, generation=day - 14)
    record("publish", Publication(releases=(released,), reason="every night"), 9.6, message=released.dated_name)
    images = (
        samples.stored(day - 14, role=Role.LATEST, name="Standard_Debian_13_latest"),
        samples.stored(day - 15, role=Role.PREV, name="Standard_Debian_13_prev"),
        samples.stored(day - 16, role=Role.ARCHIVE, name="Standard_Debian_13_20261119", hidden=True),
    )
    record("rotate", Rotations(rotations=(samples.rotation(released),)), 1.4, images=images)
    return record.end("published", "published every night")


def bundle_of(run: Run, made: Artifact, judged: Verdict, at: datetime) -> Bundle:
    folder = run.path / "bundle"
    folder.mkdir()
    files = (made.path, made.tarball, made.lock, made.packages_list)
    for path in files:
        os.link(path, folder / path.name)
    (folder / "SHA256SUMS").write_text("".join(f"{sha256_file(path)}  {path.name}\n" for path in files))
    return Bundle(
        artifact=made,
        verdict=judged,
        fingerprint="3B266565509D535DDC1C025B79B602F048401137",
        throw_away_key=True,
        directory=folder,
        files=tuple(sorted(path.name for path in folder.iterdir())),
        signed_at=at,
    )


@pytest.fixture(scope="session")
def nights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages of a green night, a red one, and the list of both."""
    state = State(path=tmp_path_factory.mktemp("report") / "state").prepare()
    newer = samples.updated(PACKAGES, "package-007", "1.7-2+deb13u1")[:-1]
    with Ledger.open(state.ledger) as ledger:
        runs = {
            "older": night(ledger, state, 20),
            "green": night(ledger, state, 21, packages=(*newer, Package(name="new", version="1", arch="all"))),
            "red": night(ledger, state, 22, red=True),
        }
        pages = {name: report(ledger, run, now=NIGHT + timedelta(days=2)) for name, run in runs.items()}
    return {**pages, "index": state.runs / "index.html"}


def share(colours: Counter[tuple[int, int, int]], wanted: tuple[int, int, int]) -> float:
    return colours[wanted] / colours.total()


@pytest.fixture(scope="session")
def green_pixels(browser, nights):
    return pixels(browser.shot(nights["green"]))


def test_a_green_night_looks_green(green_pixels):
    width, height, colours = green_pixels
    assert (width, height) == (1000, 1500)
    assert len(colours) > 100, "the page is blank"
    assert share(colours, COLOURS["light"]["paper"]) > 0.05
    assert share(colours, COLOURS["light"]["green"]) > 0.003
    assert share(colours, COLOURS["light"]["red"]) < 0.0001


def test_a_red_night_looks_red(browser, nights):
    _, _, colours = pixels(browser.shot(nights["red"]))
    assert share(colours, COLOURS["light"]["red"]) > 0.0015
    assert share(colours, (0xFB, 0xE9, 0xE7)) > 0.03, "the headline is not on red ground"
    assert share(colours, COLOURS["light"]["green"]) < 0.002
    assert share(colours, (0x0D, 0x11, 0x14)) > 0.05, "the console's last lines are not shown"


def test_the_page_goes_dark_with_the_desk(browser, nights):
    _, _, colours = pixels(browser.shot(nights["green"], "--blink-settings=preferredColorScheme=0"))
    assert share(colours, (0x13, 0x17, 0x1A)) > 0.05
    assert share(colours, COLOURS["light"]["paper"]) == 0


def test_the_bar_of_times_is_in_proportion(green_pixels):
    """The colours of the stages in the picture are as wide as the stages were long."""
    _, _, colours = green_pixels
    build, verify = colours[(0x3F, 0x7C, 0xAC)], colours[(0x2A, 0x9D, 0x8F)]
    assert build / verify == pytest.approx(212.4 / 141.0, rel=0.06)


def test_what_people_want_to_know_stands_there(browser, nights):
    text = browser.text(nights["green"])
    for wanted in (
        "Published as Standard_Debian_13_latest",
        "Nobody logs in as root over ssh",
        "1 updated, 1 added, 1 removed",
        "package-007 1.7-1 1.7-2+deb13u1",
        "3B26 6565 509D 535D DC1C 025B 79B6 02F0 4840 1137",
        "throw-away key",
        "1 older image hidden",
        "0.3 s measured",
        "logs/build.log",
        "6 min 7 s",
    ):
        assert wanted in text, wanted
    assert "The console's last lines" not in text
    text = browser.text(nights["red"])
    assert "Red: 1 of 4 checks failed" in text
    assert "/etc/machine-id holds 32 characters" in text
    assert "not reached" in text
    text = browser.text(nights["index"])
    assert text.index("2026-11-22") < text.index("2026-11-21") < text.index("2026-11-20")


def test_hostile_text_is_shown_and_not_obeyed(browser, nights):
    dom = browser.dom(nights["red"])
    assert "<title>" in dom
    assert "owned" not in re.search(r"<title>(.*?)</title>", dom).group(1)
    assert "<script" not in dom
    assert "<img" not in dom
    assert "&lt;script&gt;document.title='owned'" in dom
    assert "\x1b" not in dom
    assert '<span class="ctl">ESC</span>[31mred' in dom
    assert "\u202e" not in dom
    assert '<span class="ctl">202E</span>evil' in dom


def test_even_script_that_got_in_would_not_run(browser, nights, tmp_path):
    """The policy holds by itself: the same page with a script pasted in keeps its title and its style."""
    spoilt = tmp_path / "spoilt.html"
    text = nights["red"].read_text()
    spoilt.write_text(
        text.replace("<main>", "<script>document.title='owned'</script><style>html{background:#00ff00}</style><main>")
    )
    assert "owned</title>" not in browser.dom(spoilt)
    _, _, colours = pixels(browser.shot(spoilt, size="1200,600"))
    assert colours[(0, 255, 0)] == 0
    assert share(colours, COLOURS["light"]["paper"]) > 0.05


def test_nothing_runs_off_a_narrow_screen(browser, nights):
    """On a phone's width the words wrap: no pixel column at the right edge holds anything but paper."""
    width, _, colours = pixels(browser.shot(nights["red"], size="500,1600"))
    assert width == 500
    assert share(colours, COLOURS["light"]["paper"]) > 0.05
