# SPDX-License-Identifier: Apache-2.0
"""A lock replayed from a store, against a repository that was really signed and really recorded."""

from __future__ import annotations

import shutil
import socket
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest

from factory.errors import InputFault, InputsError
from factory.inputs.lock import Input
from factory.inputs.recorder import Origin, Recorder
from factory.inputs.replay import Replay, nearest
from factory.inputs.sources import BlobFolder, BlobStoreServer, Mirror, source_named
from factory.inputs.upstream import Upstream
from factory.model import Repository
from testsuite.repository import NOW, SIGNED, Archive, SigningKey, make_key, mirror

DEBIAN = Repository(alias="debian", url="http://mirror.example/debian", suites=("trixie",))
HELLO = "pool/main/h/hello/hello_1.0_all.deb"


@dataclass(frozen=True)
class Recorded:
    lock: tuple[Input, ...]
    blobs: Path
    keyring: Path
    archive: Archive
    own: Path

    def replay(self, *sources: object, **names: object) -> Replay:
        kept = {"lock": self.lock, "keyrings": {"debian": self.keyring}, "epoch": int(SIGNED.timestamp())}
        found = sources or (BlobFolder(self.blobs),)
        return Replay(**{**kept, "blobs": self.own, "sources": found, **names})  # type: ignore[arg-type]

    def entry(self, path: str) -> Input:
        return next(one for one in self.lock if one.path == path)


@pytest.fixture(scope="module")
def key(tmp_path_factory) -> SigningKey:
    return make_key(tmp_path_factory.mktemp("k"), "archive")


@pytest.fixture
def recorded(tmp_path, key) -> Recorded:
    archive = Archive(root=tmp_path / "mirror", key=key)
    archive.add("hello", b"hello deb", depends="libgreeting")
    archive.add("libgreeting", b"library deb")
    archive.publish()
    with mirror(archive.root) as (address, _):
        origin = Origin(mirror=address, keyring=key.keyring)
        recorder = Recorder(origins={"debian": origin}, blobs=tmp_path / "blobs", now=NOW)
        recorder.read_indexes((DEBIAN,))
        recorder.get("debian", archive.index_path)
        recorder.get("debian", "dists/trixie/nothing")
        recorder.fetch_with_dependencies("hello", frozenset())
    return Recorded(recorder.inputs, tmp_path / "blobs", key.keyring, archive, tmp_path / "own")


def everything(replay: Replay, recorded: Recorded) -> None:
    replay.read_indexes((DEBIAN,))
    replay.get("debian", recorded.archive.index_path)
    replay.get("debian", "dists/trixie/nothing")
    replay.fetch_with_dependencies("hello", frozenset())


def test_a_replay_answers_as_the_recording_did_and_asks_nobody(recorded, monkeypatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("a replay opened a connection")

    monkeypatch.setattr(socket, "create_connection", no_network)
    replay = recorded.replay()
    everything(replay, recorded)
    assert replay.inputs == recorded.lock
    assert replay.unasked == ()
    assert replay.faults == ()
    assert replay.epoch == int(SIGNED.timestamp())
    assert replay.store.path(recorded.entry(HELLO).sha512).read_bytes() == b"hello deb"


def test_years_later_an_index_is_judged_at_the_time_of_its_lock(recorded) -> None:
    recorded.replay().read_indexes((DEBIAN,))  # Valid-Until was a week after the signature, and is past today
    late = recorded.replay(epoch=int((SIGNED + timedelta(days=30)).timestamp()))
    with pytest.raises(InputsError, match="is out of date"):
        late.read_indexes((DEBIAN,))


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("pool/main/h/hello/hello_2.0_all.deb", f"debian/{HELLO}"),
        ("dists/trixie/InReleas", "debian/dists/trixie/InRelease"),
        ("a", ""),
    ],
)
def test_a_miss_names_what_was_asked_and_the_nearest_known(recorded, path, near) -> None:
    replay = recorded.replay()
    with pytest.raises(InputsError, match=f"the lock does not name 'debian/{path}'") as missed:
        replay.get("debian", path)
    assert dict(missed.value.facts).get("nearest", "") == near
    assert replay.faults == (missed.value,)


def test_the_same_path_of_another_repository_is_near() -> None:
    assert nearest("security", "x/y", [("debian", "x/y"), ("security", "z")]) == "debian/x/y"


def test_a_lock_cannot_bring_in_what_no_signed_index_names(recorded) -> None:
    strange = Input(repository="debian", path="pool/strange.deb", sha512=recorded.entry(HELLO).sha512, size_bytes=9)
    replay = recorded.replay(lock=(*recorded.lock, strange))
    everything(replay, recorded)
    with pytest.raises(InputsError, match=r"no signed index of repository 'debian' names 'pool/strange\.deb'"):
        replay.get("debian", "pool/strange.deb")


@pytest.mark.parametrize("damage", [b"hello dEb", b"hello de", b"hello deb!", b""])
def test_a_stored_file_with_other_bytes_is_refused_by_name(recorded, damage) -> None:
    (recorded.blobs / recorded.entry(HELLO).sha512).write_bytes(damage)
    replay = recorded.replay()
    with pytest.raises(InputsError, match=r"'hello_1.0_all.deb' of repository 'debian' is not what was recorded"):
        replay.get("debian", HELLO)
    assert not replay.inputs
    assert [path.name for path in recorded.own.iterdir()] == ["by-sha256"]


def test_a_file_that_is_not_stored_is_named(recorded) -> None:
    (recorded.blobs / recorded.entry(HELLO).sha512).unlink()
    with pytest.raises(InputsError, match=r"'hello_1.0_all.deb' .* is not in the store of recorded inputs"):
        recorded.replay().get("debian", HELLO)


def test_what_is_served_is_a_copy(recorded) -> None:
    replay = recorded.replay()
    everything(replay, recorded)
    answer = replay.get("debian", HELLO)
    (recorded.blobs / answer.sha512).write_bytes(b"other")
    assert replay.store.path(answer.sha512).read_bytes() == b"hello deb"


def test_an_index_of_a_stranger_is_refused_though_the_lock_names_it(recorded, tmp_path) -> None:
    stranger = make_key(tmp_path, "stranger")
    with pytest.raises(InputsError, match="signature of repository 'debian'"):
        recorded.replay(keyrings={"debian": stranger.keyring}).read_indexes((DEBIAN,))


def test_a_lock_cannot_bring_in_what_the_index_does_not_know(recorded) -> None:
    other = recorded.entry("pool/main/l/libgreeting/libgreeting_1.0_all.deb")
    lock = tuple(
        replace(one, sha512=other.sha512, size_bytes=other.size_bytes) if one.path == HELLO else one
        for one in recorded.lock
    )
    replay = recorded.replay(lock=lock)
    replay.read_indexes((DEBIAN,))
    replay.get("debian", recorded.archive.index_path)
    with pytest.raises(InputsError, match="is not the one that repository 'debian' signed"):
        replay.get("debian", HELLO)


# -- sources


@pytest.fixture
def patience() -> Upstream:
    return Upstream(pause_s=0.01, attempts=1)


def test_a_store_over_http_is_as_good_as_a_folder(recorded, patience) -> None:
    with mirror(recorded.blobs) as (address, asked):
        replay = recorded.replay(BlobStoreServer(address, patience))
        everything(replay, recorded)
        assert replay.inputs == recorded.lock
        assert asked.count(f"/{recorded.entry(HELLO).sha512}") == 1
        (recorded.blobs / recorded.entry(HELLO).sha512).write_bytes(b"evil")
        shutil.rmtree(recorded.own)
        with pytest.raises(InputsError, match="is not what was recorded"):
            recorded.replay(BlobStoreServer(address, patience)).get("debian", HELLO)


def test_the_next_source_has_what_the_first_spoiled(recorded, tmp_path) -> None:
    spoiled = tmp_path / "spoiled"
    shutil.copytree(recorded.blobs, spoiled)
    (spoiled / recorded.entry(HELLO).sha512).write_bytes(b"evil")
    replay = recorded.replay(BlobFolder(spoiled), BlobFolder(recorded.blobs))
    everything(replay, recorded)
    assert replay.get("debian", HELLO).found


def test_a_mirror_may_stand_in_and_must_give_what_the_lock_names(recorded, patience, tmp_path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with mirror(recorded.archive.root) as (address, asked):
        replay = recorded.replay(BlobFolder(empty), instead={"debian": Mirror(address, patience)})
        everything(replay, recorded)
        assert replay.inputs == recorded.lock
        assert asked.count(f"/{HELLO}") == 1
        (recorded.archive.root / HELLO).write_bytes(b"hello dEb")
        shutil.rmtree(recorded.own)
        with pytest.raises(InputsError, match="is not what was recorded") as refused:
            recorded.replay(BlobFolder(empty), instead={"debian": Mirror(address, patience)}).get("debian", HELLO)
        assert address in str(refused.value.facts)


def test_an_answer_without_end_is_cut(recorded, patience) -> None:
    entry = recorded.entry(HELLO)
    (recorded.blobs / entry.sha512).write_bytes(b"x" * (8 << 20))
    with mirror(recorded.blobs) as (address, _):
        for source in (BlobFolder(recorded.blobs), BlobStoreServer(address, patience)):
            replay = recorded.replay(source)
            with replay.store.incoming() as incoming:
                assert source.copy(entry, incoming)
                assert incoming.digests.size_bytes == entry.size_bytes + 1


def test_a_source_that_is_not_there_is_told(tmp_path) -> None:
    with pytest.raises(InputFault, match="no folder"):
        source_named(str(tmp_path / "none"))
    assert isinstance(source_named("http://store.example/cache"), BlobStoreServer)
