# SPDX-License-Identifier: Apache-2.0
"""The ledger, on real SQLite files and a real PostgreSQL: what is recorded is read back; damage stops nothing."""

from __future__ import annotations

import itertools
import json
import os
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import psycopg
import pytest
import sqlalchemy
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from factory import ledger as ledger_module
from factory.errors import LedgerError, SandboxError
from factory.ledger import Ledger, age, detail_of, status_of, summary
from factory.ledger_detail import CONSOLE_LINES, console_end, without_password
from factory.model import Bundle, Publication, Role, Rotations
from factory.system.state import Run
from testsuite import samples
from testsuite.postgres import database, programs, server

pytestmark = pytest.mark.programs

NIGHT = samples.NIGHT


_databases = itertools.count(1)


@pytest.fixture(scope="session")
def postgres():
    """The folder of the socket of a PostgreSQL; a skip at a desk that has none."""
    if programs() is None:
        assert not os.environ.get("CI"), "PostgreSQL is not installed (packages/apt.txt)"
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    with server() as socket:
        yield socket


def address(request: pytest.FixtureRequest, kind: str, folder: Path) -> str | Path:
    """Where a new ledger of a kind is."""
    if kind == "sqlite":
        return folder / "ledger.sqlite"
    return database(request.getfixturevalue("postgres"), f"ledger{next(_databases)}")


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request, tmp_path: Path):
    """Where a ledger can be made, in either database."""
    return address(request, request.param, tmp_path)


@pytest.fixture
def ledger(place):
    with Ledger.open(place) as opened:
        yield opened


@pytest.fixture
def sqlite_ledger(tmp_path: Path):
    with Ledger.open(tmp_path / "ledger.sqlite") as opened:
        yield opened


def name(day: int, image: str = "debian13") -> str:
    return f"202611{day:02d}-020000-{image}"


def night(ledger: Ledger, day: int, outcome: str, image: str = "debian13") -> str:
    run_id, started = name(day, image), NIGHT.replace(day=day)
    ledger.begin_run(run_id, image=image, line="Standard_Debian_13", started_at=started)
    ledger.record_stage(run_id, "build", outcome="done", started_at=started, seconds=200)
    if outcome != "running":
        ledger.end_run(run_id, outcome=outcome, ended_at=started + timedelta(minutes=8), message="why")
    return run_id


def test_a_run_is_read_back_as_it_was_recorded(ledger, tmp_path):
    run = Run(path=tmp_path / name(21))
    made = samples.artifact(run)
    judged = samples.verdict(made)
    ledger.begin_run(
        run.id, image="debian13", line="Standard_Debian_13", started_at=NIGHT, recipe=made.recipe, trigger="timer"
    )
    ledger.record_stage(
        run.id, "verify", outcome="done", started_at=NIGHT, seconds=61.5, message="ok", detail=detail_of(judged)
    )
    ledger.record_stage(run.id, "build", outcome="done", started_at=NIGHT, seconds=200.0, detail=detail_of(made))
    ledger.end_run(run.id, outcome="published", ended_at=NIGHT + timedelta(minutes=5), message="every night")

    found = ledger.run(run.id)
    assert found is not None
    assert (found.image, found.line, found.outcome, found.message) == (
        "debian13",
        "Standard_Debian_13",
        "published",
        "every night",
    )
    assert (found.started_at, found.ended_at) == (NIGHT, NIGHT + timedelta(minutes=5))
    assert (found.recipe_digest, found.inputs_digest, found.trigger) == ("2" * 64, "4" * 64, "timer")
    assert [stage.stage for stage in found.stages] == ["build", "verify"]
    assert found.stages[0].digest == made.sha256
    assert found.detail["verify"] == detail_of(judged)
    assert found.seconds == 261.5


def test_a_stage_done_again_replaces_the_earlier_attempt(ledger):
    for outcome in ("broken", "done"):
        ledger.record_stage(name(21), "build", outcome=outcome, started_at=NIGHT, seconds=1)
    assert [stage.outcome for stage in ledger.run(name(21)).stages] == ["done"]


def test_a_broken_stage_ends_its_run_and_going_on_opens_it_again(ledger):
    night(ledger, 21, "running")
    ledger.record_stage(name(21), "verify", outcome="broken", started_at=NIGHT, seconds=90, message="no guest")
    found = ledger.run(name(21))
    assert (found.outcome, found.message, found.ended_at) == ("broken", "no guest", NIGHT + timedelta(seconds=90))
    ledger.begin_run(name(21), image="debian13", line="L", started_at=NIGHT + timedelta(hours=1))
    found = ledger.run(name(21))
    assert (found.outcome, found.ended_at, found.started_at) == ("running", None, NIGHT)


def test_a_run_that_never_began_is_not_listed(ledger):
    ledger.record_stage(name(21), "describe", outcome="done", started_at=NIGHT, seconds=1)
    assert ledger.runs() == ()
    assert ledger.run(name(21)).image == "debian13"


def test_runs_come_newest_first_and_by_image(ledger):
    for day in (19, 21, 20):
        night(ledger, day, "published")
    night(ledger, 22, "red", image="rocky-10")
    assert [run.id for run in ledger.runs()] == [name(22, "rocky-10"), name(21), name(20), name(19)]
    assert [run.id for run in ledger.runs("debian13", 2)] == [name(21), name(20)]
    assert ledger.run("nothing") is None


PREVIOUS = {
    "the newest published before": ({18: "published", 19: "published", 20: "red"}, 19),
    "published is preferred to withheld": ({18: "published", 19: "withheld"}, 18),
    "withheld when none was published": ({18: "withheld", 19: "red", 20: "broken"}, 18),
    "not itself, not later": ({21: "published", 22: "published"}, None),
    "none": ({}, None),
}


@pytest.mark.parametrize("case", PREVIOUS)
def test_the_previous_image_is_the_last_good_one(ledger, case):
    nights, expected = PREVIOUS[case]
    for day, outcome in nights.items():
        night(ledger, day, outcome)
        night(ledger, day, "published", image="other")
    found = ledger.previous_green("debian13", before=name(21))
    assert (found.id if found else None) == (name(expected) if expected else None)


def test_times_of_any_zone_are_kept_as_utc(ledger):
    local = datetime(2026, 11, 21, 4, 0, tzinfo=timezone(timedelta(hours=2)))
    ledger.begin_run(name(21), image="debian13", line="L", started_at=local)
    found = ledger.run(name(21)).started_at
    assert (found, found.utcoffset()) == (NIGHT, timedelta(0))


def test_forgotten_runs_take_their_stages_along(ledger):
    night(ledger, 20, "published")
    night(ledger, 21, "published")
    ledger.forget([name(20), "never-was-there"])
    assert [run.id for run in ledger.runs()] == [name(21)]
    assert raw(ledger, "SELECT run_id, stage FROM stages") == [(name(21), "build")]


def raw(ledger: Ledger, statement: str) -> list[tuple]:
    """What the database itself answers."""
    with ledger._engine.begin() as connection:
        found = connection.execute(sqlalchemy.text(statement))
        return [tuple(row) for row in found] if found.returns_rows else []


def test_the_schema_is_made_once_and_as_the_models_say(place):
    for _ in range(2):
        with Ledger.open(place) as opened:
            assert raw(opened, "SELECT version_num FROM alembic_version") == [(ledger_module._NEWEST_SCHEMA,)]
            with opened._engine.connect() as connection:
                context = MigrationContext.configure(connection, opts={"compare_type": False})
                tables = ledger_module._Base.metadata.tables
                changes = [
                    one for one in compare_metadata(context, ledger_module._Base.metadata) if "index" not in one[0]
                ]
                assert {table for table in tables if connection.dialect.has_table(connection, table)} == set(tables)
                assert changes == []
    scripts = ScriptDirectory(str(Path(ledger_module.__file__).with_name("ledger_migrations")))
    assert scripts.get_current_head() == ledger_module._NEWEST_SCHEMA


def test_the_schema_goes_down_and_up_again(place):
    with Ledger.open(place) as opened:
        night(opened, 21, "published")
        config = Config()
        config.set_main_option("script_location", str(Path(ledger_module.__file__).with_name("ledger_migrations")))
        with opened._engine.execution_options(factory_writes=True).begin() as connection:
            config.attributes["connection"] = connection
            command.downgrade(config, "base")
            assert not connection.dialect.has_table(connection, "runs")
    with Ledger.open(place) as again:
        assert again.runs() == ()
        night(again, 22, "published")
        assert [run.id for run in again.runs()] == [name(22)]


def test_factories_that_open_a_new_ledger_at_once_make_it_once(place):
    def work(day: int) -> str:
        with Ledger.open(place) as opened:
            return night(opened, day, "published")

    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(work, range(10, 22)))
    with Ledger.open(place) as opened:
        assert [run.id for run in opened.runs()] == sorted(made, reverse=True)
        assert all(len(run.stages) == 1 for run in opened.runs())


def test_a_postgresql_that_was_restarted_is_asked_again(postgres):
    with Ledger.open(database(postgres, f"ledger{next(_databases)}")) as opened:
        night(opened, 20, "published")
        with psycopg.connect(host=str(postgres), user="factory", dbname="postgres", autocommit=True) as other:
            ended = other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'factory'"
            ).fetchall()
        assert ended, "no connection was open"
        night(opened, 21, "published")
        assert [run.id for run in opened.runs()] == [name(21), name(20)]


def test_a_postgresql_that_is_away_is_one_clear_error(tmp_path):
    with pytest.raises(LedgerError, match="cannot be used") as told:
        Ledger.open(f"postgresql://factory:s3cret@/ledger?host={tmp_path}")
    assert "s3cret" not in "".join(told.value.lines())


def test_the_ledger_is_migrated_once_and_opened_again(tmp_path):
    path = tmp_path / "deep" / "led%ger.sqlite"
    with Ledger.open(path) as opened:
        night(opened, 21, "published")
    with Ledger.open(f"sqlite:///{path}") as again:
        assert [run.id for run in again.runs()] == [name(21)]
    with sqlite3.connect(path) as raw:
        assert raw.execute("SELECT version_num FROM alembic_version").fetchall() == [("0001",)]
        assert raw.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_writer_waits_for_another_that_began_earlier(sqlite_ledger, tmp_path):
    """One that only reads at first would see an old state, and SQLite would refuse its write once the other is done."""
    night(sqlite_ledger, 20, "published")
    failures: list[BaseException] = []

    def write() -> None:
        try:
            night(sqlite_ledger, 21, "published")
        except LedgerError as failed:
            failures.append(failed)

    other = sqlite3.connect(tmp_path / "ledger.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    other.execute("UPDATE runs SET message = 'other'")
    writer = threading.Thread(target=write)
    writer.start()
    writer.join(0.4)
    assert writer.is_alive(), "it did not wait"
    other.execute("COMMIT")
    other.close()
    writer.join(20)
    assert failures == []
    assert [run.message for run in sqlite_ledger.runs()] == ["why", "other"]


def overwrite_middle(path: Path) -> None:
    body = bytearray(path.read_bytes())
    body[100:] = b"\xff" * (len(body) - 100)
    path.write_bytes(body)


def use(path: Path) -> None:
    with Ledger.open(path) as opened:
        night(opened, 22, "published")
        opened.runs()


DAMAGE = {
    "not a database": lambda path: path.write_bytes(b"\x7fELF" * 1000),
    "pages overwritten": overwrite_middle,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "cut to its head": lambda path: path.write_bytes(path.read_bytes()[:120]),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_ledger_is_one_clear_error(tmp_path, case):
    path = tmp_path / "ledger.sqlite"
    with Ledger.open(path) as opened:
        night(opened, 21, "published")
    DAMAGE[case](path)
    with pytest.raises(LedgerError) as told:
        use(path)
    assert str(path) in told.value.message
    assert "only history is lost" in told.value.hint


def test_damage_while_open_is_a_ledger_error_too(ledger):
    night(ledger, 21, "published")
    raw(ledger, "DROP TABLE stages")
    with pytest.raises(LedgerError, match="cannot be used"):
        ledger.runs()
    with pytest.raises(LedgerError, match="cannot be used"):
        night(ledger, 22, "published")


def test_a_ledger_of_a_newer_factory_is_refused(place):
    with Ledger.open(place) as opened:
        raw(opened, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(LedgerError, match="another version of the factory"):
        Ledger.open(place)


def test_a_ledger_of_a_newer_factory_is_not_touched(tmp_path):
    path = tmp_path / "ledger.sqlite"
    Ledger.open(path).close()
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    raw.close()
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="another version of the factory"):
        Ledger.open(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("url", ["nonsense", "mysterydb://host/x", "sqlite:////proc/none/ledger.sqlite"])
def test_an_address_that_leads_nowhere_is_told(url):
    with pytest.raises(LedgerError, match="cannot be used"):
        Ledger.open(url)


def test_a_password_in_the_address_is_not_shown():
    with pytest.raises(LedgerError) as told:
        Ledger.open("postgresql+nodriver://factory:s3cret@127.0.0.1:1/ledger")
    assert "s3cret" not in "".join(told.value.lines())
    assert "factory:***@127.0.0.1" in told.value.message


# -- details ----------------------------------------------------------------------------------------------------------


def bundle_of(run: Run) -> Bundle:
    made = samples.artifact(run)
    folder = run.path / "bundle"
    folder.mkdir()
    (folder / "debian13.qcow2").write_bytes(b"12345")
    (folder / "SHA256SUMS").write_text(f"{'a' * 64}  debian13.qcow2\n")
    return Bundle(
        artifact=made,
        verdict=samples.verdict(made),
        fingerprint="F" * 40,
        throw_away_key=True,
        directory=folder,
        files=("SHA256SUMS", "debian13.qcow2"),
        signed_at=NIGHT,
    )


def test_every_stages_value_has_a_plain_detail(tmp_path):
    bundle = bundle_of(Run(path=tmp_path / name(21)))
    released = samples.release(bundle)
    rotated = samples.rotation(released)
    images = [samples.stored(7, role=Role.LATEST, name="Standard_Debian_13_latest")]
    values = (
        bundle.artifact.recipe,
        bundle.artifact,
        bundle.verdict,
        bundle,
        Publication(releases=(released,), reason="every night"),
        Rotations(rotations=(rotated,)),
    )
    details = [detail_of(value, images=images if isinstance(value, Rotations) else ()) for value in values]
    assert all(json.loads(json.dumps(detail)) == detail for detail in details)
    recipe, artifact, verdict, signed, publication, rotations = details
    assert recipe["repositories"][0]["url"] == "https://mirror.example/debian"
    assert "private-mirror" not in json.dumps(details)
    assert artifact["packages"][0] == ["apt", "3.0.3", "amd64"]
    assert [check["outcome"] for check in verdict["checks"]] == ["passed", "passed", "skipped"]
    assert signed["files"] == [
        {"name": "SHA256SUMS", "size_bytes": 81},
        {"name": "debian13.qcow2", "size_bytes": 5},
    ]
    assert signed["sums"] == {"debian13.qcow2": "a" * 64}
    assert publication["releases"][0]["dated_name"] == released.dated_name
    assert rotations["rotations"][0]["gap_s"] == 0.31
    assert rotations["images"][0]["role"] == "latest"
    assert detail_of(None) == {}


def test_the_console_is_kept_only_when_red(tmp_path):
    made = samples.artifact(Run(path=tmp_path / name(21)))
    log = tmp_path / "console.log"
    log.write_bytes(b"\xff\xfe\n" + b"".join(b"line %d\r\n" % number for number in range(2000)))
    assert "console" not in detail_of(samples.verdict(made, console_log=log))
    red = detail_of(samples.verdict(made, red=True, console_log=log))
    assert len(red["console"]) == CONSOLE_LINES
    assert red["console"][-1] == "line 1999"
    assert "console" in detail_of(SandboxError("x"), console_log=log)
    assert console_end(tmp_path / "none") == []


def test_an_error_keeps_its_facts_and_hint():
    found = detail_of(SandboxError("the guest is silent", hint="look", facts=(("log", "/x"),)))
    assert found == {"error": ["the guest is silent", "  log:     /x", "  hint:    look"], "exit_code": 3}


@settings(deadline=None)
@given(st.text("ab:@/", max_size=8), st.sampled_from(["mirror.example", "mirror.example:8080", "[2001:db8::1]"]))
def test_no_password_survives_in_an_address(user, host):
    found = without_password(f"https://{user.replace('/', '')}@{host}/debian")
    assert found == f"https://{host}/debian"


# -- status -----------------------------------------------------------------------------------------------------------


def test_status_tells_last_run_and_what_is_published(ledger):
    run_id = night(ledger, 19, "running")
    released = {"releases": [{"dated_name": "Standard_Debian_13_20261119"}]}
    rotated = {"rotations": [{"prev": "uuid-of-prev"}]}
    ledger.record_stage(run_id, "publish", outcome="done", started_at=NIGHT, seconds=9, detail=released)
    ledger.record_stage(run_id, "rotate", outcome="done", started_at=NIGHT, seconds=1, detail=rotated)
    ledger.end_run(run_id, outcome="published", ended_at=NIGHT.replace(day=19))
    night(ledger, 21, "red")
    found, never = summary(ledger, ["debian13", "rocky-10"], now=NIGHT + timedelta(hours=3))
    assert found == {
        "image": "debian13",
        "line": "Standard_Debian_13",
        "outcome": "red",
        "run": name(21),
        "stage": "build",
        "message": "why",
        "age": "2 h",
        "at": "2026-11-21T02:08:00+00:00",
        "latest": "Standard_Debian_13_20261119",
        "prev": "uuid-of-prev",
        "published": name(19),
        "published_age": "2 days",
    }
    assert never["outcome"] == "never built"
    assert json.loads(json.dumps([found, never])) == [found, never]


def test_a_damaged_detail_does_not_break_status(ledger):
    night(ledger, 21, "published")
    last = ledger.runs()[0]
    assert status_of("debian13", last, replace(last, stages=()), now=NIGHT)["latest"] == ""


AGES = [(0, "0 min"), (119, "119 min"), (120, "2 h"), (47 * 60, "47 h"), (48 * 60, "2 days"), (-5, "0 min")]


@pytest.mark.parametrize(("minutes", "words"), AGES)
def test_ages_are_told_in_the_unit_that_fits(minutes, words):
    assert age(timedelta(minutes=minutes)) == words


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=50))
@example("\0 \ud7ff \U0010ffff")
def test_any_text_is_kept_as_it_is(ledger, text):
    ledger.record_stage(
        "a-b-c", "build", outcome="done", started_at=NIGHT, seconds=1, message=text, detail={"said": text}
    )
    found = ledger.run("a-b-c").stages[0]
    assert found.detail == {"said": text}
    assert found.message == text.replace("\0", "\u2400")
