# SPDX-License-Identifier: Apache-2.0
"""A bundle whose signatures are all good, and that holds the source tarball of something else."""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.build.tarball import Manifest, manifest_of
from factory.errors import NotGood
from factory.model import Artifact, Bundle
from factory.sign.evidence import Evidence
from factory.sign.source import source_faults
from factory.system.state import State
from testsuite import samples
from testsuite.signing import NIGHT, Place, make_key

pytestmark = pytest.mark.programs

IMAGE, LOCK = "debian13.qcow2", "inputs.lock"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("site")
    (root / "keys").mkdir()
    made = NIGHT.replace(month=1, day=1, hour=0)
    fingerprint = make_key(root / "gnupg", root / "keys/images.asc", made=made, days=365, log=root / "log")
    state = State(path=root / "state").prepare()
    found = Place(state=state, keys=root / "keys", gnupg_home=root / "gnupg", fingerprint=fingerprint)
    found.list_key()
    return found


@pytest.fixture(autouse=True)
def _no_runs_before(place: Place) -> None:
    shutil.rmtree(place.state.runs, ignore_errors=True)


def manifest(made: Artifact, **changes: object) -> Manifest:
    """The one of an artifact, with changes."""
    names = (made.path, made.lock, made.packages_list)
    found = manifest_of(
        made.recipe,
        epoch=made.epoch,
        inputs_digest=made.inputs_digest,
        tools={},
        results={path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in names},
        layers={},
        size_bytes=made.size_bytes,
    )
    return replace(found, **changes)


def swapped(change: Callable[[Artifact], bytes]) -> Callable[[Artifact], None]:
    """Put another tarball where the build left its own, before anything of it is signed."""

    def spoil(made: Artifact) -> None:
        made.tarball.write_bytes(change(made))
        object.__setattr__(made, "tarball_sha256", hashlib.sha256(made.tarball.read_bytes()).hexdigest())

    return spoil


def packed(
    made: Artifact, *, lock: bytes | None = None, tree: dict[str, bytes] | None = None, **changes: object
) -> bytes:
    content = made.lock.read_bytes() if lock is None else lock
    return samples.source_tarball(manifest(made, **changes), lock=content, tree=tree or samples.TREE)


def other_build(made: Artifact) -> bytes:
    """Signed well, and the source of another night's image."""
    results = {IMAGE: "9" * 64, LOCK: "8" * 64, "debian13.packages": "7" * 64}
    return packed(made, lock=b"another\n", results=results, epoch=made.epoch + 3600)


SWAPPED: dict[str, tuple[Callable[[Artifact], bytes], tuple[str, ...]]] = {
    "another night's": (
        other_build,
        (
            f"another '{IMAGE}' than the bundle's",
            f"another '{LOCK}' than the bundle's",
            "another 'debian13.packages' than the bundle's",
            f"holds another '{LOCK}' than the bundle",
            "another epoch than the provenance",
        ),
    ),
    "another image's": (
        lambda made: packed(made, image="web", results={"web.qcow2": "9" * 64}),
        ("is the source of another image, 'web', not of 'debian13.qcow2'",),
    ),
    "a tree with one more script": (
        lambda made: packed(made, tree={**samples.TREE, "root/etc/cron.d/mine": b"* * * * * root evil\n"}),
        ("holds another build tree than its manifest names",),
    ),
    "a tree and a manifest that fit": (
        lambda made: packed(made, tree_sha256="9" * 64),
        ("holds another build tree than its manifest names", "another build tree than the provenance"),
    ),
    "another lock": (lambda made: packed(made, lock=b"x\n"), (f"holds another '{LOCK}' than the bundle",)),
    "other inputs": (lambda made: packed(made, inputs_digest="9" * 64), ("another inputs than the provenance",)),
    "another recipe": (lambda made: packed(made, recipe_digest="9" * 64), ("another recipe than the provenance",)),
    "another commit": (lambda made: packed(made, commit="9" * 40), ("another commit than the provenance",)),
    "a checkout that differed": (lambda made: packed(made, dirty=True), ("another state of the checkout",)),
    "no archive": (lambda _: b"not xz", ("cannot be unpacked",)),
    "cut off": (lambda made: made.tarball.read_bytes()[:-60], ("cannot be unpacked: it was cut off",)),
    "no manifest": (lambda _: archive({"top/config.xml": b"x"}), ("its manifest is missing",)),
    "a manifest of another schema": (lambda _: archive(with_manifest({"schema": "x/1"})), ("of another schema",)),
    "a manifest of another form": (
        lambda _: archive(with_manifest({"schema": "factory/source/1", "image": 7})),
        ("is of another form: image",),
    ),
    "a path outside": (lambda _: archive({"../../outside": b"x"}), ("leads out of its folder",)),
    "a device": (lambda _: archive({"top/null": None}), ("is neither a plain file nor a folder",)),
    "a link to what is no text": (
        lambda made: archive({**with_manifest(json.loads(manifest(made).text())), "top/link": "\udcff"}),
        ("holds a link to a name that is no text",),
    ),
}


def with_manifest(body: dict[str, object]) -> dict[str, bytes | str | None]:
    return {"top/rebuild/manifest.json": json.dumps(body).encode()}


def archive(files: dict[str, bytes | str | None]) -> bytes:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as made:
        for name, body in files.items():
            member = tarfile.TarInfo(name)
            if isinstance(body, bytes):
                member.size = len(body)
            else:
                member.type, member.linkname = (tarfile.CHRTYPE, "") if body is None else (tarfile.SYMTYPE, body)
            made.addfile(member, io.BytesIO(body if isinstance(body, bytes) else b""))
    return lzma.compress(plain.getvalue(), preset=0)


@pytest.mark.parametrize("case", SWAPPED)
def test_the_source_tarball_of_something_else_is_told(place: Place, tmp_path: Path, case: str) -> None:
    change, says = SWAPPED[case]
    made = place.sign(signing=place.signing, spoil=swapped(change))
    with pytest.raises(NotGood) as told:
        place.verify(made.directory)
    faults = list(told.value.facts)
    assert {name for name, _ in faults} == {"debian13.source.tar.xz"}
    assert len(faults) == len(says), faults
    for one in says:
        assert any(one in problem for _, problem in faults), faults


def test_the_image_s_own_is_good_and_nothing_is_unpacked(place: Place, tmp_path: Path, monkeypatch) -> None:
    made: Bundle = place.sign(signing=place.signing)
    before = sorted(made.directory.rglob("*"))
    monkeypatch.chdir(tmp_path)
    found = place.verify(made.directory)
    assert found.evidence is not None
    assert found.evidence.tree_sha256 == samples.TREE_SHA256
    assert sorted(made.directory.rglob("*")) == before
    assert not list(tmp_path.iterdir())


def test_what_is_not_signed_well_is_not_opened(place: Place, monkeypatch) -> None:
    """A stranger's archive would be looked into otherwise."""
    made: Bundle = place.sign(signing=place.signing)
    (made.directory / "debian13.source.tar.xz").write_bytes(other_build(made.artifact))
    opened = []
    monkeypatch.setattr("factory.sign.verify.source_faults", lambda *_, **__: opened.append(1) or ())
    with pytest.raises(NotGood) as told:
        place.verify(made.directory)
    assert "has the SHA-256" in str(told.value.facts)
    assert not opened


EVIDENCE = Evidence(
    run="r",
    builder="b",
    build_type="t",
    commit="",
    dirty=False,
    materials=0,
    subjects=0,
    passed=1,
    judged_at="",
    detached=(),
)


@settings(max_examples=60)
@given(at=st.integers(0, 2000), byte=st.integers(0, 255), packed=st.booleans())
def test_damaged_archives_are_told_never_a_traceback(tmp_path_factory, at: int, byte: int, *, packed: bool) -> None:
    plain = bytearray(
        lzma.decompress(archive(with_manifest({"schema": "factory/source/1"}) | {"top/config.xml": b"x"}))
    )
    plain[at % len(plain)] = byte
    path = tmp_path_factory.mktemp("t") / ("x.tar.xz" if packed else "x.tar")
    path.write_bytes(lzma.compress(bytes(plain), preset=0) if packed else bytes(plain))
    assert list(source_faults(path, image=IMAGE, sums={}, evidence=EVIDENCE))
