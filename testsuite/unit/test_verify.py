# SPDX-License-Identifier: Apache-2.0
"""The harness around the acceptance suite: what it is told, how it is run, and what is made of its answers."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from factory.errors import FactoryError, InputFault, NotGood, VerifyError
from factory.model import Description, Outcome, Region, Registration, Server
from factory.sandbox.seed import Datasource, Key, Seed
from factory.verify import boots, knock, outside
from factory.verify.harness import _end_children
from factory.verify.subject import Subject, expectations, inspect, subject_of_file
from factory.verify.suite import merge_junit, run_suite

PROJECT = Path(__file__).parents[2]
SUITE = PROJECT / "testsuite" / "acceptance"
KEY = Key(private=Path("/nowhere"), public="ssh-ed25519 AAAA factory")


# -- the suite as a program -------------------------------------------------------------------------------------------

CHECKS = '''
import pytest

def test_green(facts):
    """The first guarantee."""
    assert facts.word == "told"

def test_red(facts):
    """The second guarantee."""
    found = [1, 2]
    assert not found, f"strange things: {found} {facts.secret}"

def test_not_asked(facts):
    """The third guarantee."""
    pytest.skip("the description says so")

@pytest.fixture
def broken():
    raise RuntimeError("cannot look")

def test_cannot_look(broken):
    """The fourth guarantee."""

@pytest.mark.later
def test_later(facts):
    """The fifth guarantee."""
    assert facts.nothing is None
'''


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A suite with the real harness inside and a few checks that need no guest."""
    folder = tmp_path / "suite"
    folder.mkdir()
    for name in ("conftest.py", "pytest.ini"):
        shutil.copy(SUITE / name, folder)
    (folder / "test_some.py").write_text(CHECKS)
    return folder


def _run(suite: Path, tmp_path: Path, **more):
    more = {"facts": {"word": "told", "secret": "hunter22"}, **more}
    return run_suite(suite, folder=tmp_path, name="x", log=tmp_path / "log", **more)


def test_outcomes_and_messages_of_the_suite_are_read_back(suite, tmp_path):
    found = {check.name.split("::")[1]: check for check in _run(suite, tmp_path, marks="not later").checks}
    assert {name: check.outcome for name, check in found.items()} == {
        "test_green": Outcome.PASSED,
        "test_red": Outcome.FAILED,
        "test_not_asked": Outcome.SKIPPED,
        "test_cannot_look": Outcome.FAILED,
    }
    assert found["test_red"].guarantee == "The second guarantee."
    assert found["test_red"].message == "strange things: [1, 2] hunter22"
    assert found["test_not_asked"].message == "the description says so"
    assert found["test_cannot_look"].message == "the check could not be made: RuntimeError: cannot look"


def test_secrets_are_in_no_result(suite, tmp_path):
    run = _run(suite, tmp_path, secrets=["hunter22", ""])
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and b"hunter22" in path.read_bytes()]
    assert kept == []
    assert any("********" in check.message for check in run.checks)


def test_one_check_can_be_selected(suite, tmp_path):
    run = _run(suite, tmp_path, select=["test_some.py::test_red"])
    assert [check.name for check in run.checks] == ["test_some.py::test_red"]
    assert run.phases == {"test_some.py::test_red": "call"}


def test_marks_select_what_needs_later_boots(suite, tmp_path):
    assert [check.name for check in _run(suite, tmp_path, marks="later").checks] == ["test_some.py::test_later"]


def test_nothing_to_run_is_an_error(suite, tmp_path):
    with pytest.raises(VerifyError, match="nothing was tested"):
        _run(suite, tmp_path, marks="not later and later")


def test_a_check_without_a_guarantee_is_an_error(suite, tmp_path):
    (suite / "test_mute.py").write_text("def test_mute():\n    pass\n")
    with pytest.raises(VerifyError, match="could not be run"):
        _run(suite, tmp_path)


def test_a_suite_that_does_not_parse_is_an_error_that_names_its_log(suite, tmp_path):
    (suite / "test_odd.py").write_text("def")
    with pytest.raises(VerifyError) as raised:
        _run(suite, tmp_path)
    assert any(name == "log" and Path(value).is_file() for name, value in raised.value.facts)


def test_facts_of_another_schema_are_refused(suite, tmp_path):
    with pytest.raises(VerifyError):
        _run(suite, tmp_path, facts={"schema": "acceptance/99"})


def test_two_junit_files_become_one(suite, tmp_path):
    first = _run(suite, tmp_path, marks="later")
    kept = tmp_path / "first.xml"
    first.junit.rename(kept)
    second = _run(suite, tmp_path, marks="not later")
    merge_junit([kept, second.junit], tmp_path / "all.xml")
    text = (tmp_path / "all.xml").read_text()
    assert len(re.findall(r"<testcase ", text)) == 5
    assert len(re.findall(r"<testsuite ", text)) == 2


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A small qcow2 with something in it."""
    raw, made = tmp_path / "raw", tmp_path / "small.qcow2"
    raw.write_bytes(os.urandom(1 << 20) + bytes(7 << 20))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, made], check=True)
    return made


def test_a_sound_image_has_its_virtual_size(image):
    assert inspect(image) == 8 << 20


def test_an_image_that_is_cut_off_is_not_good(image):
    with image.open("r+b") as file:
        file.truncate(image.stat().st_size // 2)
    with pytest.raises(NotGood, match="damaged or cut off"):
        inspect(image)


def test_an_image_whose_tables_are_damaged_is_not_good(image):
    with image.open("r+b") as file:
        file.seek(3 * 65536)
        file.write(os.urandom(4096))
    with pytest.raises(NotGood):
        inspect(image)


def test_another_format_is_not_good(tmp_path):
    path = tmp_path / "some.qcow2"
    path.write_bytes(b"this is text" * 1000)
    with pytest.raises(NotGood, match="is not a qcow2 image"):
        inspect(path)


def test_an_image_on_top_of_another_file_is_not_good(image, tmp_path):
    overlay = tmp_path / "overlay.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", image, overlay], check=True)
    with pytest.raises(NotGood, match="refers to other files"):
        inspect(overlay)


def test_a_missing_file_is_a_usage_error(tmp_path):
    with pytest.raises(InputFault, match="there is no file"):
        inspect(tmp_path / "none.qcow2")


# -- expectations -----------------------------------------------------------------------------------------------------


def test_a_strange_file_is_judged_by_what_holds_for_every_image(image):
    subject = subject_of_file(image, login_user="admin")
    told = json.loads(json.dumps(expectations(subject)))
    assert told["description"]["login_user"] == "admin"
    assert told["description"]["registration"]["mode"] == "none"
    assert told["description"]["update_repositories"] is None
    assert told["ntp_servers"] is None
    assert "packages" not in told
    assert "region" not in told
    assert not subject.registers


def _stage(tmp_path: Path, **more) -> boots.Stage:
    return boots.Stage(
        subject=Subject(
            path=tmp_path / "x.qcow2",
            virtual_size_bytes=1,
            description=Description(name="x", line="X", registration=Registration()),
            regions=(Region(name="r", servers=(Server(name="s", pem=tmp_path / "pem"),)),),
        ),
        namespace=None,
        accelerator="tcg",
        cpus=1,
        folder=tmp_path,
        log_dir=tmp_path,
        now=None,
        say=print,
        **more,
    )


def _cloud_config(seed: Seed):
    head, body = seed.user_data.split("\n", 1)
    assert head == "#cloud-config"
    return json.loads(body)


def test_the_first_guest_is_told_as_openstack_does(tmp_path):
    seed = boots.first_seed(_stage(tmp_path), KEY)
    told = boots.seed_facts(seed)
    assert seed.datasource is Datasource.CONFIG_DRIVE
    assert _cloud_config(seed)["write_files"][0]["path"] == told["marker"]["path"]
    assert re.fullmatch(r"[0-9a-f-]{36}", told["instance_id"])
    assert told["hostname"] == seed.hostname


def test_the_other_guest_chooses_not_to_register_and_sets_a_password(tmp_path):
    seed = boots.other_seed(_stage(tmp_path), KEY, password="some-password")
    assert seed.meta == {"factory_registration": "byos"}
    assert _cloud_config(seed)["password"] == "some-password"
    assert boots.seed_facts(seed)["instance_id"] == seed.instance_id


def test_each_start_is_another_instance(tmp_path):
    stage = _stage(tmp_path)
    seeds = [boots.new_seed(stage, KEY), boots.new_seed(stage, KEY), boots.other_seed(stage, KEY, password="x")]
    assert len({seed.instance_id for seed in seeds}) == 3


def test_stand_in_certificates_replace_the_images_own_and_keep_them(tmp_path):
    pinned = tmp_path / "certs" / "192.0.2.1.pem"
    pinned.parent.mkdir()
    pinned.write_text("the image's own\n")
    kept = tmp_path / "kept"
    seed = boots.new_seed(_stage(tmp_path, replacement_pems={str(pinned): "a stand-in\n"}), KEY)
    for _ in range(2):  # cloud-init runs bootcmd at every boot
        for command in _cloud_config(seed)["bootcmd"]:
            moved = [word.replace(boots.KEPT_PEMS, str(kept)) for word in command]
            subprocess.run(moved, check=True)
    assert pinned.read_text() == "a stand-in\n"
    assert (kept / pinned.name).read_text() == "the image's own\n"


# -- outside ----------------------------------------------------------------------------------------------------------


def test_knocking_tells_open_ports_from_those_that_end_at_once():
    """As behind QEMU: a closed port is accepted first and ended then; an open one talks, or stays silent."""
    servers = {kind: socket.create_server(("127.0.0.1", 0)) for kind in ("talks", "silent", "ends")}
    ports = {kind: server.getsockname()[1] for kind, server in servers.items()}
    held = []

    def serve(kind: str) -> None:
        made, _ = servers[kind].accept()
        if kind == "talks":
            made.sendall(b"SSH-2.0-x\r\n")
        if kind == "ends":
            made.close()
        held.append(made)

    threads = [threading.Thread(target=serve, args=(kind,)) for kind in servers]
    for thread in threads:
        thread.start()
    with socket.create_server(("127.0.0.1", 0)) as unused:
        refused = unused.getsockname()[1]
    found = knock.knock("127.0.0.1", [*ports.values(), refused])
    for thread in threads:
        thread.join()
    for made in (*held, *servers.values()):
        made.close()
    assert found == sorted([ports["talks"], ports["silent"]])


@pytest.mark.parametrize(
    ("said", "offered"),
    [
        ("debug1: Authentications that can continue: publickey\nPermission denied (publickey).\n", ["publickey"]),
        ("debug1: Authentications that can continue: publickey,password\n", ["publickey", "password"]),
        ("ssh: connect to host x port 22: Connection refused\n", []),
    ],
)
def test_what_sshd_offers_is_read_from_the_client(said, offered):
    from factory.system.run import Completed

    done = Completed(argv=("ssh",), returncode=255, stdout="", stderr=said, seconds=0.1)
    assert outside._offered(done) == offered


def test_the_scan_knows_no_port_twice():
    ports = outside.WELL_KNOWN_PORTS
    assert len(ports) == len(set(ports))
    assert 22 in ports
    assert all(0 < port < 65536 for port in ports)


# -- ending -----------------------------------------------------------------------------------------------------------


def test_only_our_programs_in_that_folder_are_ended(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "first").mkdir()
    script = "import sys, time; time.sleep(60)"
    ours = subprocess.Popen(["python3", "-c", script, f"{tmp_path}/other/disk"])
    kept = subprocess.Popen(["python3", "-c", script, f"{tmp_path}/first/disk"])
    try:
        _end_children(tmp_path / "other")
        assert ours.wait(5) == -9
        assert kept.poll() is None
    finally:
        kept.kill()
        kept.wait()


def test_a_verdict_needs_the_very_file_that_was_built(tmp_path):
    from factory.system.files import expect_digest

    path = tmp_path / "x.qcow2"
    path.write_bytes(b"x")
    with pytest.raises(FactoryError, match="is not the file that was recorded"):
        expect_digest(path, "0" * 64)
