# SPDX-License-Identifier: Apache-2.0
"""All nights at once: what starts beside what, and that one failure stops no other and none is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.errors import CommandFailed
from factory.model import Description, Disk
from factory.nights import Nights, Resources, all_nights, gravest, needs, next_to_start
from factory.system.crew import Crew

GIB = 1 << 30
PROJECT = Path(__file__).parents[2]


def of(memory_gib: float, disk_gib: float = 100, cpus: int = 1) -> Resources:
    return Resources(memory_bytes=int(memory_gib * GIB), disk_bytes=int(disk_gib * GIB), cpus=cpus)


HOST = of(10, 100, 4)


@pytest.mark.parametrize(
    ("waiting", "running", "free", "jobs", "first"),
    [
        ({}, [], HOST, None, None),
        ({"a": of(4, 6)}, [], HOST, None, "a"),
        ({"a": of(64, 900, 8)}, [], HOST, None, "a"),  # alone it starts on any host
        ({"a": of(64, 6)}, [of(1, 6)], HOST, None, None),
        ({"a": of(6, 6)}, [of(4, 6)], HOST, None, "a"),
        ({"a": of(6.1, 6)}, [of(4, 6)], HOST, None, None),
        ({"a": of(7, 6), "b": of(4, 6)}, [of(4, 6)], HOST, None, "b"),  # a small one goes before a large one
        ({"a": of(1, 95)}, [of(1, 6)], HOST, None, None),
        ({"a": of(1, 6)}, [of(1, 6)] * 3, HOST, None, "a"),
        ({"a": of(1, 6)}, [of(1, 6)] * 4, HOST, None, None),
        ({"a": of(1, 6)}, [of(1, 6)] * 2, HOST, 2, None),
        ({"a": of(0, 0, 0)}, [of(1, 6)] * 4, HOST, None, "a"),  # refused at once, takes nothing
    ],
)
def test_what_starts_beside_what_runs(waiting, running, free, jobs, first) -> None:
    assert next_to_start(waiting, running, free, jobs=jobs) == first


RESOURCES = st.builds(of, st.integers(0, 20), st.integers(0, 50), st.integers(0, 3))


@given(st.dictionaries(st.text(max_size=3), RESOURCES, max_size=12), RESOURCES, st.integers(1, 4) | st.none())
def test_all_get_their_turn_and_two_never_take_more_than_there_is(waiting, free, jobs) -> None:
    waiting, running, ended = dict(waiting), {}, []
    while waiting or running:
        while (name := next_to_start(waiting, running.values(), free, jobs=jobs)) is not None:
            running[name] = waiting.pop(name)
            if len(running) > 1:
                assert sum(one.memory_bytes for one in running.values()) <= free.memory_bytes
                assert sum(one.cpus for one in running.values()) <= free.cpus
        assert running, "something waits, and nothing runs"
        assert jobs is None or len(running) <= jobs
        ended.append(running.popitem())
    assert len({name for name, _ in ended}) == len(ended)


@pytest.mark.parametrize(
    ("min_gib", "free_gib", "wanted_gib"),
    [(4, 24, 4), (4, 5, 4), (12, 64, 9), (96, 64, 4)],
)
def test_a_night_needs_memory_for_its_guests_or_for_a_build_in_memory(min_gib, free_gib, wanted_gib) -> None:
    described = Description(name="one", line="One", disk=Disk(min_gib=min_gib))
    assert needs(described, of(free_gib)).memory_bytes == wanted_gib * GIB
    assert needs(None, of(free_gib)) == of(0, 0, 0)


@pytest.mark.parametrize(
    ("statuses", "worst"),
    [([], 0), ([0, 0], 0), ([0, 4], 4), ([4, 1, 0], 1), ([1, 2], 2), ([1, 3, 4], 3), ([3, 130], 130), ([-9, 0], 3)],
)
def test_the_status_is_the_gravest(statuses, worst) -> None:
    assert gravest(statuses) == worst


# -- with programs ----------------------------------------------------------------------------------------------------


def says(outcome: str, status: int = 0) -> str:
    night = json.dumps({"schema": "factory/nightly/1", "value": {"outcome": outcome, "reason": f"so {outcome}"}})
    return f"import sys; print('  0:00 build at work', file=sys.stderr); print({night!r}); sys.exit({status})"


BIG = "import sys; sys.stderr.write('x' * 300000 + '\\nend'); print('[' + '1,' * 200000)"
STAYS = """
import pathlib, signal, sys, time
def end(*_):
    print('cleaning up', file=sys.stderr, flush=True)
    pathlib.Path(sys.argv[1]).write_text('clean')
    sys.exit(130)
signal.signal(signal.SIGTERM, end)
print('ready', file=sys.stderr, flush=True)
time.sleep(600)
"""
STUBBORN = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('ready', file=sys.stderr, flush=True)
time.sleep(600)
"""
HOLD = """
import os, sys, time
from factory.nights import Resources, all_nights
one = Resources(memory_bytes=1, disk_bytes=1, cpus=1)
free = Resources(memory_bytes=9, disk_bytes=9, cpus=9)
try:
    all_nights(
        {'a': one, 'b': one},
        lambda image: [sys.executable, '-c', sys.argv[1], sys.argv[2] + image],
        free=free,
        env=dict(os.environ),
        said=lambda image, line: print(image, line, flush=True),
        seconds=time.monotonic,
    )
except KeyboardInterrupt:
    sys.exit(130)
"""


def every(programs: dict[str, str], *, jobs: int | None = None, free: Resources = HOST) -> tuple[Nights, list]:
    heard: list[tuple[str, str]] = []
    found = all_nights(
        {name: of(1, 6) for name in programs},
        lambda image: [sys.executable, "-c", programs[image]],
        free=free,
        env=dict(os.environ),
        said=lambda image, line: heard.append((image, line)),
        seconds=time.monotonic,
        jobs=jobs,
    )
    return found, heard


@pytest.mark.programs
def test_one_failure_stops_no_other_and_each_is_told() -> None:
    killed = "import os; os.kill(os.getpid(), 9)"
    fault = "import sys; print('factory: image.toml has 1 fault', file=sys.stderr); sys.exit(2)"
    found, heard = every(
        {
            "broken": "import sys; print('factory: the mirror is away', file=sys.stderr); sys.exit(3)",
            "faulty": fault,
            "good": says("published"),
            "held": "import sys; sys.exit(4)",
            "killed": killed,
            "red": says("red", 1),
            "silent": "",
            "talkative": BIG,
        }
    )
    told = {one.image: (one.outcome, one.status, one.reason) for one in found.nights}
    assert list(told) == sorted(told)
    assert told["good"] == ("published", 0, "so published")
    assert told["red"] == ("red", 1, "so red")
    assert told["broken"] == ("broken", 3, "the mirror is away")
    assert told["faulty"] == ("refused", 2, "image.toml has 1 fault")
    assert told["held"][:2] == ("held", 4)
    assert told["killed"] == ("broken", 3, "its process was ended by SIGKILL after 0 s")
    assert told["silent"] == ("broken", 3, "its process exited with status 0 after 0 s without a word")
    assert told["talkative"][:2] == ("broken", 3)
    assert found.status == 3
    assert found.at_once == HOST.cpus
    assert ("good", "  0:00 build at work") in heard
    assert ("talkative", "end") in heard
    assert sum(len(line) for name, line in heard if name == "talkative") >= 300000


@pytest.mark.programs
def test_at_most_as_many_as_fit_run_at_once() -> None:
    sleeps = "import time; time.sleep(0.5);" + says("published")
    found, _ = every(dict.fromkeys("abc", sleeps), jobs=1)
    assert (found.status, found.at_once) == (0, 1)
    assert found.seconds >= 1.5
    found, _ = every(dict.fromkeys("abc", sleeps))
    assert (found.status, found.at_once) == (0, 3)
    found, _ = every(dict.fromkeys("abc", sleeps), free=of(2.5, 100, 4))
    assert (found.status, found.at_once) == (0, 2)


@pytest.mark.programs
def test_an_interrupted_crew_ends_cleanly_and_who_does_not_is_killed(tmp_path: Path) -> None:
    ready: list[str] = []
    pids: list[int] = []

    def said(name: str, line: str) -> None:
        if line == "ready":
            ready.append(name)
            if len(ready) == 2:
                raise KeyboardInterrupt

    def hold() -> None:
        with Crew(said, grace_s=2) as crew:
            crew.start("clean", [sys.executable, "-c", STAYS, tmp_path / "mark"], env=dict(os.environ))
            crew.start("stubborn", [sys.executable, "-c", STUBBORN], env=dict(os.environ))
            pids.extend(member.process.pid for member in crew._members)
            while True:
                crew.wait()

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        hold()
    assert time.monotonic() - started < 30
    assert (tmp_path / "mark").read_text() == "clean"
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.programs
def test_a_program_that_left_another_behind_has_ended(tmp_path: Path) -> None:
    behind = "import subprocess, sys; p = subprocess.Popen(['sleep', '20'], start_new_session=True); print(p.pid)"
    with Crew(lambda *_: None) as crew:
        crew.start("one", [sys.executable, "-c", behind], env=dict(os.environ))
        ended = crew.wait()
    assert ended.returncode == 0
    assert ended.seconds < 15
    os.kill(int(ended.stdout), signal.SIGKILL)


def test_what_cannot_be_started_is_one_error(tmp_path: Path) -> None:
    with Crew(lambda *_: None) as crew, pytest.raises(CommandFailed):
        crew.start("one", ["true"], env={}, cwd=tmp_path / "none")


@pytest.mark.programs
def test_ctrl_c_at_the_terminal_ends_every_night(tmp_path: Path) -> None:
    """The whole: a process that holds two nights is interrupted, ends both, and exits as interrupted."""
    program = tmp_path / "hold.py"
    program.write_text(HOLD)
    held = subprocess.Popen(
        [sys.executable, program, STAYS, tmp_path / "mark-"],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert held.stdout is not None
    assert {held.stdout.readline(), held.stdout.readline()} == {"a ready\n", "b ready\n"}
    os.killpg(held.pid, signal.SIGINT)
    rest = held.stdout.read()
    assert held.wait(30) == 130
    assert "a cleaning up" in rest
    assert [(tmp_path / f"mark-{name}").read_text() for name in "ab"] == ["clean", "clean"]


VENDOR = """\
[image]
name = "away"
line = "Community_Away_1"
builder = "foreign"
[foreign]
url = "http://127.0.0.1:9/away.qcow2"
sha256 = "{}"
"""


@pytest.mark.programs
@pytest.mark.needs_root
def test_the_command_itself_tells_each_image_and_ends_with_the_gravest(tmp_path: Path) -> None:
    """Two images whose nights cannot go far: one whose vendor is away, one whose description has a fault."""
    away, faulty = tmp_path / "descriptions" / "away", tmp_path / "descriptions" / "faulty"
    for folder, text in ((away, VENDOR.format("ab" * 32)), (faulty, VENDOR.format("short"))):
        folder.mkdir(parents=True)
        (folder / "image.toml").write_text(text)
    argv = [Path(sys.executable).parent / "factory", "--project", tmp_path, "--state", tmp_path / "state"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("FACTORY_")}
    done = subprocess.run([*argv, "nightly", "--all", "--json"], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 3, done.stderr
    told = json.loads(done.stdout)
    assert told["schema"] == "factory/nightly-all/1"
    found = {one["image"]: one for one in told["value"]["nights"]}
    assert (found["away"]["outcome"], found["away"]["status"]) == ("broken", 3)
    assert (found["faulty"]["outcome"], found["faulty"]["status"]) == ("refused", 2)
    assert told["value"]["at_once"] == 2
    lines = done.stderr.splitlines()
    assert any(line.startswith("faulty ") and "image.toml" in line for line in lines)
    assert any(line.startswith("away   ") and "127.0.0.1:9" in line for line in lines)
    assert "Traceback" not in done.stderr
    shown = subprocess.run([*argv, "nightly", "--all"], capture_output=True, text=True, check=False, env=env)
    assert shown.returncode == 3
    assert "0 of 2 good, at most 2 at once" in shown.stdout
