# SPDX-License-Identifier: Apache-2.0
"""What ``factory list`` says of each image: how it last went, and what stands in the way of the next night."""

from __future__ import annotations

import http.server
import shutil
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from factory.cli.images import print_overview
from factory.describe.scaffold import scaffold
from factory.installation import Installation
from factory.ledger import Ledger
from factory.model import Site
from factory.overview import overview
from factory.system.state import State

pytestmark = pytest.mark.programs

PROJECT = Path(__file__).parents[2]
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
RUN = "20261121-090000-debian13"


class _Mirror(http.server.BaseHTTPRequestHandler):
    def __init__(self, *rest, asked: Counter, without: str, **names) -> None:
        self.asked, self.without = asked, without
        super().__init__(*rest, **names)

    def do_GET(self) -> None:
        self.asked[self.path] += 1
        found = not (self.without and self.without in self.path)
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"index")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def asked() -> Counter:
    return Counter()


@pytest.fixture
def here(tmp_path: Path, asked: Counter, request: pytest.FixtureRequest):
    """An installation of two images whose mirror lacks what the test says."""
    for name in ("common", "debian13"):
        shutil.copytree(PROJECT / "descriptions" / name, tmp_path / "descriptions" / name, symlinks=True)
    shutil.copytree(PROJECT / "keys", tmp_path / "keys")
    scaffold(tmp_path, "web", source="debian13")
    without = getattr(request, "param", "")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Mirror, asked=asked, without=without)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        site = Site(mirrors={"debian": address, "debian-security": address})
        yield Installation(project=tmp_path, state=State(path=tmp_path / "state"), site=site)
        server.shutdown()


def test_an_image_that_lacks_nothing_and_one_that_was_never_built(here, asked, tmp_path, capsys) -> None:
    with Ledger.open(tmp_path / "ledger.sqlite") as records:
        records.begin_run(RUN, image="debian13", line="Standard_Debian_13", started_at=NOW - timedelta(hours=4))
        records.end_run(RUN, outcome="red", ended_at=NOW - timedelta(hours=3), message="2 of 134 checks failed")
        found = overview(here, records, now=NOW)
    old, new = found.images
    assert (old.image, old.builder, old.name) == ("debian13", "kiwi", "Standard_Debian_13_latest")
    assert (old.outcome, old.age, old.run) == ("red", "3 h", RUN)
    assert old.at == (NOW - timedelta(hours=3)).isoformat()
    assert (new.line, new.outcome, new.at, new.run) == ("Standard_web", "never built", "", "")
    assert old.misses == new.misses == ()
    assert set(asked.values()) == {1}, "a mirror that two images read is asked once"
    print_overview(found)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["image", "debian13", "web"]
    assert "3 h ago" in lines[1]


@pytest.mark.parametrize("here", ["trixie-security"], indirect=True)
def test_a_mirror_that_does_not_answer_is_named_for_each_image_that_reads_it(here, capsys) -> None:
    found = overview(here, None, now=NOW)
    for one in found.images:
        (missing,) = one.misses
        assert missing.startswith("mirror debian-security trixie-security: ")
        assert "status 404 (set debian-security under [mirrors]" in missing
        assert one.outcome == "never built"
    assert not found.ready
    print_overview(found)
    assert "web misses\n  mirror debian-security" in capsys.readouterr().out


def test_a_faulty_description_is_a_line_of_the_list_and_hides_no_other(here) -> None:
    path = here.project / "descriptions" / "web" / "image.toml"
    path.write_text(path.read_text().replace("[disk]", "[disk]\nnosuch = 1"))
    good, bad = overview(here, None, now=NOW).images
    assert good.misses == ()
    assert (bad.image, bad.line, bad.builder) == ("web", "Standard_web", "kiwi")
    (fault,) = bad.misses
    assert fault.startswith("descriptions/web/image.toml:")
    assert "disk.nosuch: is not a known key" in fault


def test_what_the_description_checks_find_is_told_a_missing_key_too(here) -> None:
    path = here.project / "descriptions" / "web" / "image.toml"
    text = path.read_text().replace("[update_repositories.debian]", "[update_repositories.vendor]")
    path.write_text(text.replace("debian-archive-keyring.pgp", "no-such-keyring.pgp", 1))
    good, bad = overview(here, None, now=NOW).images
    assert good.misses == ()
    told = "\n".join(bad.misses)
    assert "update_repositories.vendor: has no address" in told
    assert "'/usr/share/keyrings/no-such-keyring.pgp' is not on this host" in told
    assert "'debian' is not in [update_repositories]" in told
