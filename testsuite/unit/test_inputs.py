# SPDX-License-Identifier: Apache-2.0
"""The recorder against a real, signed repository on loopback."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import http.client
import lzma
import socket
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.errors import InputsError
from factory.inputs.blobs import BlobStore
from factory.inputs.index import package_digests, parse_release, stanza, with_dependencies
from factory.inputs.lock import Input, lock_text, read_lock, write_lock
from factory.inputs.recorder import Origin, Recorder
from factory.inputs.server import parse_target, serve
from factory.inputs.signature import signed_text
from factory.inputs.stanzas import Stanzas
from factory.inputs.unpacking import index_text
from factory.inputs.upstream import Upstream
from factory.inputs.view import open_view
from factory.model import Repository
from testsuite.repository import NOW, SIGNED, Archive, SigningKey, make_key, mirror

DEBIAN = Repository(alias="debian", url="http://mirror.example/debian", suites=("trixie",))


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> dict[str, SigningKey]:
    folder = tmp_path_factory.mktemp("k")
    return {user: make_key(folder, user) for user in ("archive", "stranger")}


@pytest.fixture
def archive(tmp_path, keys) -> Archive:
    made = Archive(root=tmp_path / "mirror", key=keys["archive"])
    made.add("hello", b"hello deb", depends="libgreeting (>= 1), awk | nothing")
    made.add("libgreeting", b"library deb")
    made.publish()
    return made


@pytest.fixture
def site(archive, tmp_path):
    with mirror(archive.root) as (address, asked):

        def recorder(*, keyring: Path = archive.key.keyring, at=NOW, below: str = "") -> Recorder:
            origin = Origin(mirror=f"{address}{below}", keyring=keyring)
            patience = Upstream(pause_s=0.01)
            return Recorder(origins={"debian": origin}, blobs=tmp_path / "blobs", now=at, upstream=patience)

        yield recorder, asked, address


# -- what is recorded


def test_bytes_are_stored_by_their_sha512_and_listed(site, archive, tmp_path) -> None:
    recorder = site[0]()
    recorder.read_indexes((DEBIAN,))
    recorder.get("debian", archive.index_path)
    answer = recorder.get("debian", "pool/main/h/hello/hello_1.0_all.deb")
    assert answer.sha512 == hashlib.sha512(b"hello deb").hexdigest()
    assert (tmp_path / "blobs" / answer.sha512).read_bytes() == b"hello deb"
    assert [entry.path for entry in recorder.inputs] == sorted(
        ["dists/trixie/InRelease", archive.index_path, "pool/main/h/hello/hello_1.0_all.deb"]
    )
    assert recorder.epoch == int(SIGNED.timestamp())


def test_one_run_sees_one_state_of_the_mirror(site, archive) -> None:
    make, asked, _ = site
    recorder = make()
    first = recorder.get("debian", "dists/trixie/InRelease")
    archive.publish(signed=SIGNED + timedelta(hours=1))
    assert recorder.get("debian", "dists/trixie/InRelease") == first
    assert asked.count("/dists/trixie/InRelease") == 1


def test_a_warm_store_fetches_only_what_is_signed_anew(site, archive) -> None:
    make, asked, _ = site
    for _ in range(2):
        recorder = make()
        recorder.read_indexes((DEBIAN,))
        recorder.get("debian", archive.index_path)
        recorder.get("debian", "pool/main/h/hello/hello_1.0_all.deb")
    assert [path for path in asked if "InRelease" in path] == [
        "/dists/trixie/InRelease",
        "/dists/trixie/InRelease -> 304",
    ]
    assert asked.count(f"/{archive.index_path}") == 1
    assert asked.count("/pool/main/h/hello/hello_1.0_all.deb") == 1


def test_a_stored_file_that_was_damaged_is_fetched_again(site, archive, tmp_path) -> None:
    make, asked, _ = site
    path = "pool/main/h/hello/hello_1.0_all.deb"
    for damage in (b"", b"hello dEb"):
        recorder = make()
        recorder.read_indexes((DEBIAN,))
        recorder.get("debian", archive.index_path)
        answer = recorder.get("debian", path)
        assert (tmp_path / "blobs" / answer.sha512).read_bytes() == b"hello deb"
        (tmp_path / "blobs" / answer.sha512).write_bytes(damage)
    assert asked.count(f"/{path}") == 2


def test_what_the_mirror_does_not_have_is_an_input_too(site) -> None:
    recorder = site[0]()
    answer = recorder.get("debian", "dists/trixie/nothing")
    assert (answer.status, answer.found, answer.sha512) == (404, False, "")
    assert recorder.inputs == (answer,)
    assert recorder.faults == ()


def test_a_redirect_is_followed(site) -> None:
    recorder = site[0](below="/moved")
    assert recorder.get("debian", "dists/trixie/InRelease").found


def test_the_probe_comes_with_what_is_not_installed(site, archive) -> None:
    recorder = site[0]()
    recorder.read_indexes((DEBIAN,))
    recorder.get("debian", archive.index_path)
    assert recorder.fetch_with_dependencies("hello", frozenset({"awk"})) == 2
    assert [entry.path for entry in recorder.inputs][-1] == "pool/main/l/libgreeting/libgreeting_1.0_all.deb"


# -- what is refused


def test_an_index_signed_by_a_stranger_names_repository_and_key(site, archive, keys) -> None:
    archive.publish(key=keys["stranger"])
    recorder = site[0]()
    with pytest.raises(InputsError, match=r"signature of repository 'debian' \(suite trixie\) is not good") as refused:
        recorder.read_indexes((DEBIAN,))
    facts = dict(refused.value.facts)
    assert "not in the keyring" in facts["key"]
    assert facts["keyring"] == str(archive.key.keyring)
    assert recorder.faults == (refused.value,)
    assert recorder.inputs == ()


def test_an_index_changed_after_signing_is_refused(site, archive) -> None:
    path = archive.root / "dists/trixie/InRelease"
    path.write_bytes(path.read_bytes().replace(b"Codename: trixie", b"Codename: trixxx"))
    with pytest.raises(InputsError, match="is not good") as refused:
        site[0]().read_indexes((DEBIAN,))
    assert "changed after it was signed" in dict(refused.value.facts)["key"]


def test_unsigned_text_around_the_signed_is_not_read(site, archive, keys, tmp_path) -> None:
    path = archive.root / "dists/trixie/InRelease"
    path.write_bytes(b"Date: Fri, 31 Dec 2100 00:00:00 UTC\n\n" + path.read_bytes())
    text = signed_text(path, keyring=keys["archive"].keyring, repository="debian", suite="trixie")
    assert "2100" not in text


def test_an_armoured_keyring_is_as_good(site, archive, keys, tmp_path) -> None:
    import subprocess

    armoured = tmp_path / "archive.asc"
    argv = ["gpg", "--homedir", str(keys["archive"].home), "--armor", "--export", "archive"]
    armoured.write_bytes(subprocess.run(argv, stdout=subprocess.PIPE, check=True).stdout)
    recorder = site[0](keyring=armoured)
    recorder.read_indexes((DEBIAN,))
    assert recorder.epoch == int(SIGNED.timestamp())


@pytest.mark.parametrize(
    ("at", "says"),
    [(NOW + timedelta(days=30), "is out of date"), (NOW - timedelta(days=30), "was signed in the future")],
)
def test_an_index_must_be_of_now(site, at, says) -> None:
    with pytest.raises(InputsError, match=says):
        site[0](at=at).read_indexes((DEBIAN,))


def test_a_missing_suite_is_named(site) -> None:
    wanted = Repository(alias="debian", url="", suites=("nonesuch",))
    with pytest.raises(InputsError, match="has no suite 'nonesuch'"):
        site[0]().read_indexes((wanted,))


@pytest.mark.parametrize("kind", ["package", "index"])
def test_other_bytes_than_signed_are_never_served(site, archive, kind) -> None:
    recorder = site[0]()
    recorder.read_indexes((DEBIAN,))
    path = "pool/main/h/hello/hello_1.0_all.deb" if kind == "package" else archive.index_path
    if kind == "package":
        recorder.get("debian", archive.index_path)
    (archive.root / path).write_bytes(b"evil")
    with pytest.raises(InputsError, match=r"serves another '.*' than it signed"):
        recorder.get("debian", path)
    assert path not in [entry.path for entry in recorder.inputs]
    assert not (recorder.store.root / hashlib.sha512(b"evil").hexdigest()).exists()
    assert len(recorder.faults) == 1


@pytest.mark.parametrize("below", ["/cut", "/broken", "/loop"])
def test_a_mirror_in_trouble_is_an_error(site, below) -> None:
    recorder = site[0](below=below)
    with pytest.raises(InputsError):
        recorder.get("debian", "dists/trixie/InRelease")
    assert recorder.inputs == ()
    assert not list(recorder.store.root.glob(".incoming-*"))


@pytest.mark.parametrize(
    "path", ["pool/main/h/hello/hello_1.0_all.deb", "dists/trixie/Release", "pool/main/s/strange/strange.tar"]
)
def test_what_no_signed_index_names_is_refused_by_name(site, archive, path) -> None:
    """The package is one that an index would name, had the index been asked for first, as apt does."""
    (archive.root / path).parent.mkdir(parents=True, exist_ok=True)
    (archive.root / path).write_bytes(b"anything")
    recorder = site[0]()
    recorder.read_indexes((DEBIAN,))
    with pytest.raises(InputsError, match=f"no signed index of repository 'debian' names '{path}'") as refused:
        recorder.get("debian", path)
    assert dict(refused.value.facts)["address"].endswith(f"/{path}")
    assert recorder.faults == (refused.value,)
    assert [entry.path for entry in recorder.inputs] == ["dists/trixie/InRelease"]


def test_a_mirror_that_is_away_is_named(tmp_path, keys) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with (
            pytest.raises(InputsError, match="does not answer") as away,
            Upstream(pause_s=0.01).get(f"http://{address}/x"),
        ):
            pass
    assert dict(away.value.facts)["address"] == f"http://{address}/x"


def test_a_missing_keyring_is_named(site, tmp_path) -> None:
    with pytest.raises(InputsError, match="the keyring of repository 'debian' is missing"):
        site[0](keyring=tmp_path / "none.gpg").read_indexes((DEBIAN,))


# -- over HTTP


@pytest.fixture
def http_client(site):
    recorder = site[0]()
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    with serve(listening, recorder):
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        yield client
        client.close()


def ask(client: http.client.HTTPConnection, target: str, method: str = "GET") -> tuple[int, bytes]:
    client.request(method, target)
    answer = client.getresponse()
    return answer.status, answer.read()


def test_one_connection_serves_many_requests(http_client, archive) -> None:
    index = (archive.root / "dists/trixie/InRelease").read_bytes()
    assert ask(http_client, "/debian/dists/trixie/InRelease") == (200, index)
    kept = http_client.sock
    assert ask(http_client, "/debian/dists/trixie/InRelease", "HEAD") == (200, b"")
    assert ask(http_client, "/debian/dists/trixie/none")[0] == 404
    assert ask(http_client, f"/debian/{archive.index_path}") == (200, archive.index)
    assert http_client.sock is kept


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/unknown/dists/trixie/InRelease", 404),
        ("/debian/../unknown/x", 400),
        ("/debian/dists/./InRelease", 400),
        ("/debian/dists/%2e%2e/%2e%2e/x", 400),
        ("/debian/dists/a%2fb", 400),
        ("/debian/a%5cb", 400),
        ("/debian/a%00b", 400),
        ("/debian//x", 400),
        ("/debian/x?y=1", 400),
        ("/debian/", 400),
        ("/debian", 400),
        ("/", 400),
    ],
)
def test_targets_that_are_no_file_of_a_repository(http_client, target, status) -> None:
    assert ask(http_client, target)[0] == status


def test_other_methods_are_refused(http_client) -> None:
    assert ask(http_client, "/debian/x", "POST")[0] == 501


def test_a_fault_is_a_bad_gateway(http_client, archive, keys) -> None:
    archive.publish(key=keys["stranger"])
    status, body = ask(http_client, "/debian/dists/trixie/InRelease")
    assert status == 502
    assert b"not good" in body


@given(st.text(alphabet="/.%2eEfF5cab\\?#\x00 ~", max_size=30))
def test_no_target_leads_out_of_a_repository(target) -> None:
    parsed = parse_target(f"/{target}")
    if parsed is not None:
        from urllib.parse import unquote

        alias, path = parsed
        assert "/" not in alias
        assert not {"", ".", ".."} & set(unquote(path).split("/"))
        assert unquote(path).count("/") == path.count("/")


# -- lock, index, view


def test_a_lock_reads_back(tmp_path) -> None:
    inputs = (
        Input(repository="b", path="x", sha512="ab" * 64, size_bytes=3),
        Input(repository="a", path="y%2b", status=404),
    )
    digest = write_lock(tmp_path / "inputs.lock", inputs)
    assert read_lock(tmp_path / "inputs.lock") == tuple(sorted(inputs))
    assert digest == hashlib.sha256(lock_text(reversed(inputs)).encode()).hexdigest()
    assert '"schema"' in (tmp_path / "inputs.lock").read_text().splitlines()[0]


@pytest.mark.parametrize(
    "text",
    [
        "{}\n",
        '{"schema": "other/1"}\n',
        '{"schema": "factory/inputs/1"}\nnonsense\n',
        '{"schema": "factory/inputs/1"}\n[]\n',
        '{"schema": "factory/inputs/1"}\n{"repository": "a", "path": "b", "sha512": "zz", "size": 1}\n',
        '{"schema": "factory/inputs/1"}\n{"repository": "a", "path": "b"}\n',
    ],
)
def test_a_damaged_lock_is_told(tmp_path, text) -> None:
    (tmp_path / "inputs.lock").write_text(text)
    with pytest.raises(InputsError):
        read_lock(tmp_path / "inputs.lock")


@given(st.text(max_size=200))
def test_a_release_text_is_read_or_refused(text) -> None:
    with contextlib.suppress(InputsError):
        assert parse_release(text).date.tzinfo is not None


def test_packages_are_read_by_two_fields() -> None:
    text = (
        b"Package: a\nFilename: pool/a.deb\nMD5sum: x\nSHA256: " + b"1" * 64 + b"\n\nPackage: b\nSHA256: " + b"2" * 64
    )
    assert package_digests(text) == {"pool/a.deb": "1" * 64}
    first = b"Filename: c.deb\nSHA256: " + b"3" * 64 + b"\n\nFilename: d.deb\n\nSHA256: " + b"4" * 64
    assert package_digests(first) == {"c.deb": "3" * 64}
    assert package_digests(b"Filename: e.deb\nSHA256: " + b"5" * 63) == {}
    assert (stanza(Stanzas(text), "b") or {})["SHA256"] == "2" * 64
    assert stanza(Stanzas(text), "c") is None


PACKED = {
    "index.xz": lzma.compress,
    "of several blocks.xz": lambda text: lzma.compress(text[:3]) + lzma.compress(text[3:]),
    "index.gz": gzip.compress,
    "index.bz2": bz2.compress,
    "index": bytes,
}


@pytest.mark.parametrize("name", PACKED)
def test_an_index_is_unpacked_by_its_name_and_leaves_nothing_beside_it(name, tmp_path) -> None:
    text = b"Package: a\nFilename: a.deb\n" * 1000
    file = tmp_path / "0f" / ("a" * 128)
    file.parent.mkdir()
    file.write_bytes(PACKED[name](text))
    assert index_text(name, file) == text
    assert list(file.parent.iterdir()) == [file]
    if name != "index":
        file.write_bytes(file.read_bytes()[:-20])
        with pytest.raises(InputsError, match="is damaged"):
            index_text(name, file)
        assert list(file.parent.iterdir()) == [file]


def test_dependencies_that_go_in_circles_end() -> None:
    text = b"Package: a\nDepends: b\nFilename: a.deb\n\nPackage: b\nDepends: a, virtual\nFilename: b.deb\n"
    assert with_dependencies("a", frozenset(), [Stanzas(text)]) == {"a.deb", "b.deb"}


def test_the_view_offers_what_was_recorded_and_nothing_else(site, archive, tmp_path) -> None:
    recorder = site[0]()
    recorder.read_indexes((DEBIAN,))
    recorder.get("debian", "dists/trixie/main/binary-amd64/Packages.xz")
    recorder.get("debian", "dists/trixie/none")
    write_lock(tmp_path / "inputs.lock", recorder.inputs)
    view = open_view(tmp_path / "inputs.lock", blobs=tmp_path / "blobs", repositories=(DEBIAN,))
    found = view.open("debian", archive.index_path)
    assert found is not None
    assert found[0].read_bytes() == archive.index
    assert found[1] == len(archive.index)
    assert view.open("debian", "dists/trixie/none") is None
    assert view.open("debian", "pool/main/h/hello/hello_1.0_all.deb") is None
    assert view.open("other", "dists/trixie/InRelease") is None


def test_a_store_without_room_says_so(tmp_path) -> None:
    store = BlobStore(tmp_path / "blobs")
    store.prepare()
    with pytest.raises(InputsError, match="cannot take a recorded file"), store.incoming():
        raise OSError(28, "No space left on device")
    assert [path.name for path in store.root.iterdir()] == ["by-sha256"]
