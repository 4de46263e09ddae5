# SPDX-License-Identifier: Apache-2.0
"""Parts of files: asked of us by a client, asked by us of a mirror that cuts, and never served half."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.errors import InputsError
from factory.inputs.recorder import Origin, Recorder
from factory.inputs.server import OUTSIDE, parse_range, serve
from factory.inputs.upstream import Upstream
from factory.model import Repository
from testsuite.repository import NOW, Archive, make_key

pytestmark = pytest.mark.programs

DEBIAN = Repository(alias="debian", url="", suites=("trixie",))
BIG = bytes(range(256)) * 4096
PATH = "pool/main/b/big/big_1.0_all.deb"


@dataclass
class Moody:
    """A mirror with moods: where it cuts, whether it knows ranges, how slow it is, what its files are marked with."""

    root: Path
    cut_at: list[int] = field(default_factory=list)
    ranges: bool = True
    mark: str = '"one"'
    slow_s: float = 0.0
    after_cut: str = ""
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    sent: int = 0

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        content = (self.root / handler.path.lstrip("/")).read_bytes()
        wanted, condition = handler.headers.get("Range", ""), handler.headers.get("If-Range", "")
        self.asked.append((handler.path, wanted, condition))
        start = 0
        if wanted and self.ranges and condition in {"", self.mark}:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                handler.send_error(416)
                return
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        handler.send_header("Content-Length", str(len(content) - start))
        if self.mark:
            handler.send_header("ETag", self.mark)
        handler.end_headers()
        time.sleep(self.slow_s)
        body = content[start:]
        if handler.path.endswith(".deb") and self.cut_at:
            body = body[: self.cut_at.pop(0)]
            handler.close_connection = True
            self.mark = self.after_cut or self.mark
        self.sent += len(body)
        with contextlib.suppress(BrokenPipeError):  # who asked has lost patience
            handler.wfile.write(body)


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    return make_key(tmp_path_factory.mktemp("k"), "archive")


@pytest.fixture
def moody(tmp_path, key) -> Iterator[tuple[Moody, Archive, object]]:
    archive = Archive(root=tmp_path / "mirror", key=key)
    archive.add("big", BIG)
    archive.publish()
    mood = Moody(archive.root)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            mood.answer(self)

        def log_message(self, *rest: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

        def recorder() -> Recorder:
            origin = Origin(mirror=f"http://127.0.0.1:{server.server_address[1]}", keyring=key.keyring)
            patience = Upstream(pause_s=0.01)
            made = Recorder(origins={"debian": origin}, blobs=tmp_path / "blobs", now=NOW, upstream=patience)
            made.read_indexes((DEBIAN,))
            made.get("debian", archive.index_path)
            return made

        yield mood, archive, recorder
        server.shutdown()


def of_package(mood: Moody) -> list[tuple[str, str]]:
    return [(wanted, condition) for path, wanted, condition in mood.asked if path.endswith(".deb")]


def test_a_transfer_that_is_cut_goes_on_where_it_was_cut(moody, tmp_path) -> None:
    mood, _, recorder = moody
    mood.cut_at = [1000, 5000]
    answer = recorder().get("debian", PATH)
    assert (tmp_path / "blobs" / answer.sha512).read_bytes() == BIG
    assert of_package(mood) == [("", ""), ("bytes=1000-", '"one"'), ("bytes=6000-", '"one"')]


@pytest.mark.parametrize("mood_is", [{"after_cut": '"two"'}, {"ranges": False}, {"mark": ""}])
def test_another_file_is_never_glued_to_the_first_half(moody, tmp_path, mood_is) -> None:
    mood, _, recorder = moody
    mood.cut_at = [1000]
    for name, value in mood_is.items():
        setattr(mood, name, value)
    made = recorder()
    with pytest.raises(InputsError, match="cut a file short"):
        made.get("debian", PATH)
    assert PATH not in [entry.path for entry in made.inputs]
    assert not [
        path for path in (tmp_path / "blobs").iterdir() if len(path.name) == 128 and path.read_bytes() == BIG[:1000]
    ]


def test_the_next_night_goes_on_with_half_a_download(moody, tmp_path) -> None:
    mood, _, recorder = moody
    mood.cut_at, mood.mark = [1000], ""
    with pytest.raises(InputsError):
        recorder().get("debian", PATH)
    mood.sent = 0
    answer = recorder().get("debian", PATH)
    assert (tmp_path / "blobs" / answer.sha512).read_bytes() == BIG
    assert of_package(mood)[-1] == ("bytes=1000-", "")
    assert not list((tmp_path / "blobs").glob(".partial-*"))


@pytest.mark.parametrize("half", [b"something else", BIG + b"more", BIG])
def test_a_half_of_something_else_is_fetched_anew(moody, tmp_path, half) -> None:
    import hashlib

    mood, _, recorder = moody
    made = recorder()
    (tmp_path / "blobs" / f".partial-{hashlib.sha256(BIG).hexdigest()}").write_bytes(half)
    answer = made.get("debian", PATH)
    assert (tmp_path / "blobs" / answer.sha512).read_bytes() == BIG
    assert of_package(mood)[0][0] == f"bytes={len(half)}-"


def test_builds_at_the_same_time_fetch_a_file_once(moody) -> None:
    mood, _, recorder = moody
    made = [recorder(), recorder(), recorder()]
    mood.slow_s = 0.3
    with ThreadPoolExecutor(max_workers=6) as pool:
        answers = set(pool.map(lambda one: one.get("debian", PATH), [*made, *made]))
    assert len(answers) == 1
    assert len(of_package(mood)) == 1


# -- what a client may ask us


@pytest.fixture
def client(moody) -> Iterator[http.client.HTTPConnection]:
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    with serve(listening, moody[2]()):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        yield connection
        connection.close()


def ask(client: http.client.HTTPConnection, method: str = "GET", **headers: str):
    client.request(method, f"/debian/{PATH}", headers={name.replace("_", "-"): text for name, text in headers.items()})
    answer = client.getresponse()
    return answer.status, answer.read(), answer


@pytest.mark.parametrize(
    ("wanted", "status", "part"),
    [
        ("bytes=0-9", 206, BIG[:10]),
        ("bytes=1000-", 206, BIG[1000:]),
        ("bytes=-7", 206, BIG[-7:]),
        (f"bytes={len(BIG) - 1}-{len(BIG) + 5}", 206, BIG[-1:]),
        (f"bytes={len(BIG)}-", 416, b"the file is shorter\n"),
        ("bytes=-0", 416, b"the file is shorter\n"),
        ("bytes=5-2", 200, BIG),
        ("bytes=0-1,5-6", 200, BIG),
        ("lines=0-1", 200, BIG),
        ("bytes=-", 200, BIG),
    ],
)
def test_a_part_is_served_when_one_is_asked_for(client, wanted, status, part) -> None:
    found, body, answer = ask(client, Range=wanted)
    assert (found, body) == (status, part)
    if status == 206:
        start = BIG.rindex(part) if wanted.startswith("bytes=-") or len(part) == 1 else int(wanted[6:].split("-")[0])
        assert answer.getheader("Content-Range") == f"bytes {start}-{start + len(part) - 1}/{len(BIG)}"
    assert ask(client)[1] == BIG  # the connection goes on


def test_conditions_are_met_by_the_content_s_digest(client) -> None:
    status, body, answer = ask(client, "HEAD")
    tag = answer.getheader("ETag")
    assert (status, body, answer.getheader("Content-Length")) == (200, b"", str(len(BIG)))
    assert answer.getheader("Accept-Ranges") == "bytes"
    assert ask(client, If_None_Match=tag)[:2] == (304, b"")
    assert ask(client, If_None_Match=f'"x", W/{tag}')[:2] == (304, b"")
    assert ask(client, If_None_Match='"x"')[:2] == (200, BIG)
    assert ask(client, Range="bytes=0-1", If_Range=tag)[:2] == (206, BIG[:2])
    assert ask(client, Range="bytes=0-1", If_Range='"x"')[:2] == (200, BIG)


@given(st.text(alphabet="bytes=0123456789-, ", max_size=24), st.integers(min_value=0, max_value=99))
def test_no_range_leads_out_of_a_file(text, size) -> None:
    found = parse_range(text, size)
    if found not in {None, OUTSIDE}:
        start, length = found
        assert 0 <= start < start + length <= size
