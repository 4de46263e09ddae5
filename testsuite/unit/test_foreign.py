# SPDX-License-Identifier: Apache-2.0
"""Vendors' images: what their descriptions may say, how bytes are held against their pins, what may stay unmet."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from factory.describe.foreign import known_checks
from factory.describe.load import load_description, load_site
from factory.errors import InputFault, InputsError
from factory.inputs.blobs import BlobStore
from factory.inputs.pinned import fetch_pinned
from factory.inputs.signature import signers_of_detached
from factory.inputs.upstream import Upstream
from factory.model import Check, Outcome, Site, Unmet, Verdict, utc
from factory.verify.unmet import settled
from testsuite.repository import make_key, mirror

pytestmark = pytest.mark.programs

PROJECT = Path(__file__).parents[2]
KEY = "0123456789ABCDEF0123456789ABCDEF01234567"
IMAGE = f"""\
[image]
name = "vendor"
line = "Community_Vendor_1"
builder = "foreign"
login_user = "debian"

[disk]
min_gib = 3

[foreign]
url = "https://vendor.example/images/vendor-1.qcow2"
sha256 = "{"ab" * 32}"
"""
SIGNED = """\
signature = "https://vendor.example/images/vendor-1.qcow2.sig"
key = "0123 4567 89ab cdef 0123  4567 89AB CDEF 0123 4567"
"""
UNMET = """
[[unmet]]
check = "{}"
reason = "the vendor chose otherwise"
"""
SUITE = "def test_keys(host):\n    pass\n\n\ndef test_ciphers(host):\n    pass\n"


def project(folder: Path, text: str, *, key: bool = True) -> Path:
    place = folder / "descriptions" / "vendor"
    place.mkdir(parents=True)
    (place / "image.toml").write_text(text)
    suite = folder / "testsuite" / "acceptance"
    suite.mkdir(parents=True)
    (suite / "test_ssh.py").write_text(SUITE)
    if key:
        (folder / "keys" / "vendor").mkdir(parents=True)
        (folder / "keys" / "vendor" / "vendor.asc").write_text("a key")
    return folder


def test_a_vendors_image_is_described_by_its_pins(tmp_path: Path) -> None:
    found = load_description(project(tmp_path, IMAGE + SIGNED + UNMET.format("test_ssh.py::test_keys")), "vendor")
    assert found.foreign is not None
    assert (found.builder, found.login_user, found.disk.min_gib) == ("foreign", "debian", 3)
    assert (found.foreign.sha256, found.foreign.sha512, found.foreign.key) == ("ab" * 32, "", KEY)
    assert found.unmet == (Unmet(check="test_ssh.py::test_keys", reason="the vendor chose otherwise"),)
    assert found.registration.mode == "none"
    assert found.update_repositories == ()
    assert not found.console_password


@pytest.mark.parametrize(
    ("change", "place", "says"),
    [
        (('line = "Community_', 'line = "Standard_'), "image.toml:3 image.line", "begin it with Community_"),
        (("sha256 =", "sha256sum ="), "foreign.sha256sum", "did you mean 'sha256'?"),
        ((f'sha256 = "{"ab" * 32}"', ""), "foreign", "pins no bytes"),
        ((f'sha256 = "{"ab" * 32}"', f'sha256 = "{"AB" * 32}"'), "foreign.sha256", "has the wrong form"),
        (("/images/vendor-1.qcow2", "/"), "foreign.url", "does not end in the name of a file"),
        (("https://vendor.example", "https://me:secret@vendor.example"), "foreign.url", "user name or password"),
        (("https:", "file:"), "foreign.url", "is not an http or https address"),
        (("[disk]", "[update_repositories.debian]\nsuites = ['x']\n[disk]"), "update_repositories", "not a known key"),
        (("[disk]", "[registration]\nmode = 'byos'\n[disk]"), "registration", "not a known key"),
        (("login_user", "console_password = true\nlogin_user"), "image.console_password", "not allowed"),
        (("[foreign]", "[foreign]\nmax_mib = 0"), "foreign.max_mib", ""),
        (("[foreign]", '[foreign]\nsignature = "https://vendor.example/x.sig"'), "foreign", "only one of signature"),
        (("[disk]", UNMET.format("boot::the_image_boots") + "[disk]"), "unmet", "does not boot is none"),
        (("[disk]", UNMET.format("test_ssh.py::test_kays") + "[disk]"), "unmet", "mean 'test_ssh.py::test_keys'?"),
        (("[disk]", UNMET.format("test_ssh.py::test_keys") * 2 + "[disk]"), "unmet", "is named twice"),
        (("[disk]", '[[unmet]]\ncheck = "test_ssh.py::test_keys"\n[disk]'), "unmet", "is missing"),
    ],
)
def test_a_mistake_is_told_with_its_place(tmp_path: Path, change, place, says) -> None:
    assert change[0] in IMAGE
    with pytest.raises(InputFault) as refused:
        load_description(project(tmp_path, IMAGE.replace(*change)), "vendor")
    told = [str(one) for one in refused.value.faults]
    assert any(place in one and says in one for one in told), told
    assert "secret@" not in "\n".join(told)


def test_a_key_that_the_project_does_not_have_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(InputFault) as refused:
        load_description(project(tmp_path, IMAGE + SIGNED, key=False), "vendor")
    assert "keys/vendor/vendor.asc" in str(refused.value.faults[0])


@pytest.mark.parametrize(
    "extra", ["[foreign]\nurl = 'https://vendor.example/x'\n", UNMET.format("test_ssh.py::test_keys")]
)
def test_what_is_for_vendors_images_is_no_key_of_others(tmp_path: Path, extra: str) -> None:
    folder = project(tmp_path, "")
    text = '[image]\nname = "vendor"\nline = "L"\n[update_repositories.debian]\nsuites = ["x"]\nkey = "/k"\n'
    (folder / "descriptions" / "vendor" / "image.toml").write_text(text + extra)
    with pytest.raises(InputFault) as refused:
        load_description(folder, "vendor")
    assert "is not a known key" in str(refused.value.faults[0])


def test_the_checks_that_can_be_named_are_those_of_the_suite() -> None:
    found = known_checks(PROJECT)
    assert len(found) > 100
    assert "boot::the_image_boots_twice" in found
    assert "boot::the_image_boots" not in found


def test_the_site_may_name_a_mirror_for_a_vendors_image(tmp_path: Path) -> None:
    from factory.describe.check import unused
    from factory.describe.foreign import mirror_of

    described = load_description(project(tmp_path, IMAGE), "vendor")
    (tmp_path / "site.toml").write_text('[repositories.vendor.vendor]\nurl = "http://mirror.example/kept"\n')
    site = load_site(tmp_path / "site.toml")
    assert mirror_of(described, Site()) == "https://vendor.example/images/vendor-1.qcow2"
    assert mirror_of(described, site) == "http://mirror.example/kept/vendor-1.qcow2"
    assert not list(unused(site, {"vendor": described}))


# -- bytes ------------------------------------------------------------------------------------------------------------

CONTENT = b"not really an image" * 1000


def pins(content: bytes, *kinds: str) -> dict[str, str]:
    return {kind: hashlib.new(kind, content).hexdigest() if kind in kinds else "" for kind in ("sha256", "sha512")}


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


@pytest.mark.parametrize("kinds", [("sha256",), ("sha512",), ("sha256", "sha512")])
def test_a_pinned_file_is_fetched_once(tmp_path: Path, store: BlobStore, kinds) -> None:
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "x.qcow2").write_bytes(CONTENT)
    with mirror(tmp_path / "served") as (address, asked):
        for _ in range(2):
            found = fetch_pinned(
                f"{address}/x.qcow2", **pins(CONTENT, *kinds), limit_bytes=1 << 20, store=store, upstream=Upstream()
            )
            assert store.path(found.sha512).read_bytes() == CONTENT
    assert asked == ["/x.qcow2"]


@pytest.mark.parametrize(
    ("path", "wanted", "limit", "says"),
    [
        ("x.qcow2", pins(b"other", "sha256"), 1 << 20, "'x.qcow2' is not the file that is pinned"),
        ("x.qcow2", pins(b"other", "sha512"), 1 << 20, "'x.qcow2' is not the file that is pinned"),
        (
            "x.qcow2",
            {**pins(CONTENT, "sha256"), "sha512": hashlib.sha512(b"other").hexdigest()},
            1 << 20,
            "'x.qcow2' is not the file that is pinned",
        ),
        ("x.qcow2", pins(CONTENT, "sha256"), len(CONTENT) - 1, "is larger than 0 MiB"),
        ("gone.qcow2", pins(CONTENT, "sha256"), 1 << 20, "the vendor does not serve 'gone.qcow2'"),
        ("broken/x.qcow2", pins(CONTENT, "sha256"), 1 << 20, ""),
    ],
)
def test_anything_else_is_an_error_by_name_and_is_not_kept(tmp_path, store, path, wanted, limit, says) -> None:
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "x.qcow2").write_bytes(CONTENT)
    upstream = Upstream(pause_s=0, attempts=2)
    with mirror(tmp_path / "served") as (address, _), pytest.raises(InputsError) as refused:
        fetch_pinned(f"{address}/{path}", **wanted, limit_bytes=limit, store=store, upstream=upstream)
    assert says in refused.value.message
    assert address in "\n".join(refused.value.lines())
    assert not [one for one in store.root.iterdir() if one.is_file() and one.stat().st_size]


def test_a_download_that_was_cut_off_goes_on_and_another_half_does_not_spoil_it(tmp_path, store) -> None:
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "x.qcow2").write_bytes(CONTENT)
    wanted = pins(CONTENT, "sha256")
    store.prepare()
    for half in (CONTENT[:5000], b"something else", CONTENT):
        (store.root / f".partial-{wanted['sha256']}").write_bytes(half)
        with mirror(tmp_path / "served") as (address, _):
            found = fetch_pinned(f"{address}/x.qcow2", **wanted, limit_bytes=1 << 20, store=store, upstream=Upstream())
        store.path(found.sha512).unlink()
        (store.root / "by-sha256" / wanted["sha256"]).unlink()


def test_a_detached_signature_tells_who_signed(tmp_path: Path) -> None:
    ours, other = make_key(tmp_path, "vendor"), make_key(tmp_path, "stranger")
    file, signature = tmp_path / "x", tmp_path / "x.sig"
    file.write_bytes(CONTENT)
    gpg = ["gpg", "--homedir", str(ours.home), "--batch", "--yes"]
    subprocess.run([*gpg, "--output", signature, "--detach-sign", file], check=True)
    listed = subprocess.run([*gpg, "--list-keys", "--with-colons"], capture_output=True, text=True, check=True).stdout
    fingerprint = next(line.split(":")[9] for line in listed.splitlines() if line.startswith("fpr"))
    assert signers_of_detached(file, signature, keyring=ours.keyring, what="x") == (fingerprint,)
    with pytest.raises(InputsError, match="the signature of x is not good") as refused:
        signers_of_detached(file, signature, keyring=other.keyring, what="x")
    assert "not in the keyring" in "\n".join(refused.value.lines())
    file.write_bytes(CONTENT + b"!")
    with pytest.raises(InputsError) as refused:
        signers_of_detached(file, signature, keyring=ours.keyring, what="x")
    assert "changed after it was signed" in "\n".join(refused.value.lines())
    signature.write_bytes(b"nonsense")
    with pytest.raises(InputsError):
        signers_of_detached(file, signature, keyring=ours.keyring, what="x")


# -- what may stay unmet ----------------------------------------------------------------------------------------------


def check(name: str, outcome: str, message: str = "") -> Check:
    return Check(name=name, guarantee=f"{name} holds.", outcome=Outcome(outcome), message=message)


def verdict(*checks: Check) -> Verdict:
    return Verdict(artifact_sha256="0", checks=checks, accelerator="tcg", boot_s=1, judged_at=utc(0))


@pytest.mark.parametrize(
    ("found", "unmet", "becomes", "message", "said"),
    [
        ("failed", ["t.py::a"], "unmet", "why; seen: bad", ""),
        ("failed", [], "failed", "bad", ""),
        ("failed", ["t.py::b"], "failed", "bad", "'t.py::b' was not looked at"),
        ("passed", ["t.py::a"], "passed", "passes, although unmet names it: why", "'t.py::a' passes: take it out"),
        ("skipped", ["t.py::a"], "skipped", "bad", "'t.py::a' was not looked at"),
    ],
)
def test_only_a_failure_that_is_named_is_accepted(found, unmet, becomes, message, said) -> None:
    told: list[str] = []
    named = tuple(Unmet(check=one, reason="why") for one in unmet)
    (one,) = settled((check("t.py::a", found, "bad"),), named, say=told.append)
    assert (one.outcome, one.message) == (becomes, message)
    assert said in "\n".join(told)
    assert bool(said) == bool(told)


def test_a_name_stands_for_all_variants_and_a_variant_for_itself() -> None:
    checks = (check("t.py::a[x]", "failed"), check("t.py::a[y]", "failed"), check("t.py::ab", "failed"))
    whole = settled(checks, [Unmet(check="t.py::a", reason="why")], say=lambda _: None)
    assert [one.outcome.value for one in whole] == ["unmet", "unmet", "failed"]
    single = settled(checks, [Unmet(check="t.py::a[y]", reason="why")], say=lambda _: None)
    assert [one.outcome.value for one in single] == ["failed", "unmet", "failed"]


def test_what_is_unmet_makes_no_image_red_and_none_green_by_itself() -> None:
    good, unmet, bad = check("a", "passed"), check("b", "unmet"), check("c", "failed")
    assert verdict(good, unmet).passed
    assert not verdict(unmet).passed
    assert not verdict(good, unmet, bad).passed
    assert verdict(good, unmet).unmet == (unmet,)
    assert verdict(good, unmet).failures == ()
