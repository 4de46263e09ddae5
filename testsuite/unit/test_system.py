# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from factory.errors import CommandFailed, FactoryError, InputFault, LineHeld
from factory.model import Check, Outcome, Verdict
from factory.system.files import appearing, digests, expect_digest, tree_digest, write_whole
from factory.system.lock import exclusive
from factory.system.run import ENVIRONMENT, run, running
from factory.system.state import Run, State

NOW = datetime(2026, 11, 21, 2, 3, 4, tzinfo=UTC)


# -- programs


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["no-such-program-here"], "could not be started"),
        (["sh", "-c", "echo facts; exit 3"], "exited with status 3"),
        (["sh", "-c", "kill -9 $$"], "SIGKILL"),
    ],
)
def test_a_failure_names_command_and_how_it_ended(argv, says) -> None:
    with pytest.raises(CommandFailed) as failed:
        run(argv)
    assert says in failed.value.message
    assert dict(failed.value.facts)["command"].startswith(argv[0])


def test_a_failure_with_a_log_shows_its_last_words(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "x.log"
    with pytest.raises(CommandFailed) as failed:
        run(["sh", "-c", "echo the last word >&2; exit 1"], log=log)
    assert ("log", str(log)) in failed.value.facts
    assert ("said", "the last word") in failed.value.facts


@pytest.mark.parametrize("log", [None, "x.log"])
def test_a_late_program_is_ended_with_its_children(log, tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(CommandFailed, match="did not end within 1 s"):
        run(["sh", "-c", "sleep 60 & sleep 60"], timeout_s=1, log=tmp_path / log if log else None)
    assert time.monotonic() - started < 10


def test_nothing_of_our_environment_reaches_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_OURS", "x")
    seen = dict(line.split("=", 1) for line in run(["env"]).stdout.splitlines())
    assert set(seen) <= {*ENVIRONMENT, "PWD", "SHLVL", "_", "OLDPWD"}


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def wait_until(true, limit_s: float = 10.0) -> bool:
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.05)
    return False


def test_children_die_when_we_are_killed(tmp_path: Path) -> None:
    """A real factory process, killed with SIGKILL: what it started is gone."""
    code = f"""
import pathlib, time
from factory.system.run import running
with running(["sh", "-c", "echo $$ > {tmp_path}/pid; exec sleep 600"], log=pathlib.Path("{tmp_path}/log")):
    time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", code])
    assert wait_until(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text().strip())
    child = int((tmp_path / "pid").read_text())
    assert alive(child)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert wait_until(lambda: not alive(child))


def test_a_program_ends_with_its_block(tmp_path: Path) -> None:
    with running(["sleep", "600"], log=tmp_path / "log") as process:
        assert alive(process.pid)
    assert not alive(process.pid)


# -- files


def test_write_whole_leaves_the_old_content_when_it_cannot_finish(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, "old")
    with pytest.raises(TypeError):
        write_whole(path, 7)  # type: ignore[arg-type]
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_appearing_shows_nothing_of_a_failure(tmp_path: Path) -> None:
    def fail_half_way() -> None:
        with appearing(tmp_path / "folder") as partial:
            partial.mkdir()
            (partial / "half").write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fail_half_way()
    assert list(tmp_path.iterdir()) == []
    with appearing(tmp_path / "folder") as partial:
        partial.mkdir()
        (partial / "whole").write_text("whole")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["whole"]


def test_digests_of_a_known_file(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    found = digests(path)
    assert found.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert found.sha512.startswith("ddaf35a193617aba")
    assert found.size_bytes == 3
    expect_digest(path, found.sha256)
    path.write_bytes(b"abd")
    with pytest.raises(FactoryError, match="not the file that was recorded"):
        expect_digest(path, found.sha256)


def test_tree_digest_sees_names_modes_links_and_content_but_no_times(tmp_path: Path) -> None:
    def make(root: Path) -> Path:
        (root / "a").mkdir(parents=True)
        (root / "a" / "f").write_text("x")
        (root / "l").symlink_to("a/f")
        return root

    first, second = make(tmp_path / "1"), make(tmp_path / "2")
    os.utime(second / "a" / "f", (1, 1))
    assert tree_digest(first) == tree_digest(second)
    seen = {tree_digest(first)}
    for change in (
        lambda: (second / "a" / "f").chmod(0o755),
        lambda: (second / "a" / "f").write_text("y"),
        lambda: (second / "new").touch(),
        lambda: ((second / "l").unlink(), (second / "l").symlink_to("a")),
    ):
        change()
        seen.add(tree_digest(second))
    assert len(seen) == 5


# -- lock and state


def test_a_second_holder_is_told_who_holds_the_lock(tmp_path: Path) -> None:
    with exclusive(tmp_path / "lock", what="image x"):
        with pytest.raises(LineHeld, match="image x") as held, exclusive(tmp_path / "lock", what="image x"):
            pass
        assert ("process", str(os.getpid())) in held.value.facts
        assert held.value.exit_code == 4
    with exclusive(tmp_path / "lock", what="image x"):
        pass


def test_a_killed_holder_frees_the_lock(tmp_path: Path) -> None:
    code = f"""
import pathlib, time
from factory.system.lock import exclusive
with exclusive(pathlib.Path("{tmp_path}/lock"), what="x"):
    pathlib.Path("{tmp_path}/held").touch(); time.sleep(600)
"""
    holder = subprocess.Popen([sys.executable, "-c", code])
    assert wait_until((tmp_path / "held").exists)
    holder.kill()
    holder.wait()
    with exclusive(tmp_path / "lock", what="x"):
        pass


def verdict(path: Path) -> Verdict:
    check = Check(name="a", guarantee="b", outcome=Outcome.PASSED)
    return Verdict(
        artifact_sha256="0" * 64, checks=(check,), accelerator="tcg", boot_s=1.5, judged_at=NOW, console_log=path
    )


def test_a_value_survives_its_file_and_the_run_may_move(tmp_path: Path) -> None:
    state = State(path=tmp_path / "state").prepare()
    assert state.path.stat().st_mode & 0o777 == 0o700
    run_ = state.new_run("debian13", NOW)
    assert (run_.id, run_.image) == ("20261121-020304-debian13", "debian13")
    value = verdict(run_.log("console"))
    run_.write("verify", value)
    assert run_.read("verify", Verdict) == value
    moved = run_.path.rename(tmp_path / run_.id)
    assert Run(path=moved).read("verify", Verdict).console_log == moved / "logs" / "console.log"


def test_missing_and_damaged_stage_files_are_told_apart(tmp_path: Path) -> None:
    run_ = State(path=tmp_path).new_run("debian13", NOW)
    with pytest.raises(InputFault, match="no finished 'verify'"):
        run_.read("verify", Verdict)
    for damaged in (
        "",
        "{}",
        '{"schema": "factory/verify/99", "value": {}}',
        '{"schema": "factory/verify/1", "value": {}}',
    ):
        run_.file("verify").write_text(damaged)
        with pytest.raises(FactoryError) as found:
            run_.read("verify", Verdict)
        assert found.value.exit_code == 3


def test_the_newest_run_of_an_image(tmp_path: Path) -> None:
    state = State(path=tmp_path)
    with pytest.raises(InputFault, match="there is no run of 'debian13'"):
        state.run_of("debian13")
    first = state.new_run("debian13", NOW)
    second = state.new_run("debian13", NOW.replace(hour=5))
    state.new_run("debian13-dib", NOW.replace(hour=6))
    assert state.run_of("debian13") == second
    assert state.run_of("debian13", first.id) == first
    with pytest.raises(InputFault, match="20000101"):
        state.run_of("debian13", "20000101-000000-debian13")
