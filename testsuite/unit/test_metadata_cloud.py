# SPDX-License-Identifier: Apache-2.0
"""What clouds add to an image's metadata: bits, flags, signatures, one generic image; and what they really hold."""

from __future__ import annotations

import base64
import dataclasses
import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import pytest
from castellan.common.objects import x_509
from castellan.key_manager.key_manager import KeyManager
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cursive import signature_utils
from hypothesis import given
from hypothesis import strategies as st
from oslo_config import cfg

from factory.errors import InputFault
from factory.model import Bundle, Capability, Otc, PlatformSignature, StoredImage, Target
from factory.publish import publish
from factory.rotate import rotate
from factory.store.memory import MemoryGlance, MemoryStore
from factory.store.metadata import differs, identity, metadata, with_unknown_bits
from factory.store.platform_signature import signature_properties
from factory.store.properties import CAPABILITIES, EXCLUSIVE, SIGNATURE, faults
from testsuite.fakes.bundles import BUILT, make_bundle, with_description

OTC = Otc(
    capabilities=(
        Capability(name="kvm", bit=0, flag="__support_kvm"),
        Capability(name="nested", bit=5),
        Capability(name="gpu", bit=9, flag="__support_kvm_gpu_type"),
    ),
    properties={"__platform": "Debian"},
    images={"debian13": {"__os_version": "Debian GNU/Linux 13 64bit", "__os_bit": "64"}},
)
CERTIFICATE = "01234567-89ab-cdef-0123-456789abcdef"


def silent(_line: str) -> None:
    return


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle"), data_bytes=4096)


def night(bundle: Bundle, store: MemoryStore, target: Target, said: list[str] | None = None) -> StoredImage:
    say = silent if said is None else said.append
    release = publish(bundle, store=store, target=target, now=BUILT, say=say)
    rotate(release, store=store, now=BUILT, say=say)
    image = store.get(release.image_id)
    assert image is not None
    return image


# -- the Open Telekom Cloud's own properties


def test_bits_flags_and_properties_are_the_sites(bundle: Bundle) -> None:
    found = metadata(with_description(bundle, capabilities=("kvm", "nested", "unheard")), Target(otc=OTC))
    ours = {key: value for key, value in found.items() if key.startswith("__")}
    assert ours == {
        CAPABILITIES: "33",
        "__support_kvm": "true",
        "__platform": "Debian",
        "__os_version": "Debian GNU/Linux 13 64bit",
        "__os_bit": "64",
    }
    assert not any(key.startswith("__") for key in metadata(bundle, Target()))
    assert CAPABILITIES not in metadata(bundle, Target(otc=Otc(properties={"__platform": "Debian"})))


@given(st.integers(0, 2**64 - 1), st.sets(st.sampled_from(["kvm", "nested", "gpu"])))
def test_bits_that_the_site_does_not_name_stay(found: int, has: set[str]) -> None:
    known = {one.name: 1 << one.bit for one in OTC.capabilities}
    ours = sum(known[name] for name in has)
    merged = int(with_unknown_bits({CAPABILITIES: str(ours)}, {CAPABILITIES: str(found)}, OTC)[CAPABILITIES])
    assert merged & sum(known.values()) == ours
    assert merged & ~sum(known.values()) == found & ~sum(known.values())


@pytest.mark.parametrize("found", ["", "0x21", "-1", "many", "9" * 21])
def test_a_bitmask_that_is_none_is_replaced(found: str) -> None:
    assert with_unknown_bits({CAPABILITIES: "1"}, {CAPABILITIES: found}, OTC) == {CAPABILITIES: "1"}


@pytest.mark.parametrize(("one", "other"), [*EXCLUSIVE, ("__support_a", "__support_b")])
def test_exclusions(bundle: Bundle, one: str, other: str) -> None:
    wanted = {**metadata(bundle, Target()), one: "true"}
    exclusive = [("__support_a", "__support_b")]
    assert faults(wanted, place="x", exclusive=exclusive) == ()
    (fault,) = faults({**wanted, other: "true"}, place="x", exclusive=exclusive)
    assert "exclude each other" in fault.problem


def test_capabilities_that_exclude_each_other_are_not_published(bundle: Bundle) -> None:
    service = MemoryGlance()
    both = with_description(bundle, capabilities=("kvm", "gpu"))
    with pytest.raises(InputFault, match="cannot be published") as refused:
        publish(both, store=MemoryStore(service, "p"), target=Target(otc=OTC), now=BUILT, say=silent)
    assert "__support_kvm_gpu_type" in refused.value.faults[0].place
    assert service.images == {}


def test_what_the_cloud_set_between_upload_and_description_stays(bundle: Bundle) -> None:
    class Platform(MemoryStore):
        def upload(self, image_id: str, path: Path) -> None:
            super().upload(image_id, path)
            self.patch(image_id, {CAPABILITIES: str(1 << 40 | 1 << 9)})

    image = night(with_description(bundle, capabilities=("kvm",)), Platform(MemoryGlance(), "p"), Target(otc=OTC))
    assert image.properties[CAPABILITIES] == str(1 << 40 | 1)


# -- one property and another


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"os_secure_boot": "required", "hw_firmware_type": "bios"}, "not uefi"),
        ({"os_require_quiesce": "yes", "hw_qemu_guest_agent": "no"}, "guest agent"),
        ({"maintained_until": "2020-01-01"}, "before the image was built"),
        ({"img_signature": "A" * 140}, "needs img_signature_hash_method"),
        ({"__description": "<b>"}, "angle"),
        ({"__description": "x" * 1025}, "1024"),
        ({"__os_bit": "16"}, "no value of it"),
        ({"image_source": "ftp://x"}, "does not look like it"),
        ({"provided_until": "2026-13-01"}, "does not look like it"),
        ({"os_version": "trixie"}, "does not look like it"),
    ],
)
def test_properties_that_do_not_go_together(bundle: Bundle, wrong: dict[str, str], problem: str) -> None:
    (fault,) = faults({**metadata(bundle, Target()), **wrong}, place="x")
    assert problem in f"{fault.problem} {fault.cure}"


@pytest.mark.parametrize("version", ["13", "24.04", "15.6", "9.4-20240501", "rolling", "tumbleweed", "testing"])
def test_versions(bundle: Bundle, version: str) -> None:
    assert faults({**metadata(bundle, Target()), "os_version": version}, place="x") == ()


def test_a_promised_guest_agent_has_to_be_in_the_image(bundle: Bundle) -> None:
    bare = dataclasses.replace(bundle, artifact=dataclasses.replace(bundle.artifact, packages=()))
    wrong = with_description(bare, metadata={"hw_qemu_guest_agent": "yes"})
    with pytest.raises(InputFault) as refused:
        publish(wrong, store=MemoryStore(MemoryGlance(), "p"), target=Target(), now=BUILT, say=silent)
    assert "qemu-guest-agent is not in the image" in refused.value.faults[0].problem


def test_an_aged_generic_image_is_called_as_the_target_says(bundle: Bundle, tmp_path: Path) -> None:
    store, target = MemoryStore(MemoryGlance(), "p"), Target(aged_purpose="archive")
    first = night(bundle, store, target)
    assert first.properties["os_purpose"] == "generic"
    later = dataclasses.replace(make_bundle(tmp_path, built_at=BUILT + timedelta(days=1)))
    night(later, store, target)
    aged = store.get(first.id)
    assert aged is not None
    assert (aged.name, aged.properties["os_purpose"]) == ("Standard_Debian_13_prev", "archive")


# -- one generic image


def other_line(bundle: Bundle, **changes: object) -> Bundle:
    return with_description(bundle, line="Community_Debian_13", **changes)


def test_a_second_generic_line_is_refused_and_nothing_is_written(bundle: Bundle) -> None:
    service = MemoryGlance()
    store = MemoryStore(service, "p")
    first = night(bundle, store, Target())
    with pytest.raises(InputFault, match="second generic image of debian 13 on x86_64") as refused:
        night(other_line(bundle), store, Target())
    assert first.id in refused.value.faults[0].place
    assert list(service.images) == [first.id]


@pytest.mark.parametrize(
    ("changes", "target"),
    [
        ({"metadata": {"os_purpose": "minimal", "os_version": "13"}}, Target()),
        ({"metadata": {"os_version": "12"}}, Target()),
        ({}, Target(visibility="private")),
    ],
    ids=["other purpose", "other version", "not public"],
)
def test_other_lines_live_beside_it(bundle: Bundle, changes: dict[str, object], target: Target) -> None:
    store = MemoryStore(MemoryGlance(), "p")
    night(bundle, store, Target())
    assert night(other_line(bundle, **changes), store, target).name == "Community_Debian_13_latest"


def test_an_established_line_goes_on_beside_a_newcomer_and_says_so(bundle: Bundle, tmp_path: Path) -> None:
    service = MemoryGlance()
    store = MemoryStore(service, "p")
    first = night(bundle, store, Target())
    theirs = {"visibility": "public", "name": "x", **{key: first.properties[key] for key in IDENTITY}}
    foreign = MemoryStore(service, "q").create("q", {**theirs, "os_purpose": "generic"})
    ours = store.create("p2", {**theirs, "os_purpose": "generic", "imgfactory_line": "Other"})
    said: list[str] = []
    night(make_bundle(tmp_path, built_at=BUILT + timedelta(days=1)), store, Target(), said)
    assert any(text.startswith("ALARM") and ours.id in text and "line 'Other'" in text for text in said)
    assert any(text.startswith("warning: 1 public image(s) of others") and foreign.id in text for text in said)


def test_a_line_is_no_rival_of_itself(bundle: Bundle, tmp_path: Path) -> None:
    store, said = MemoryStore(MemoryGlance(), "p"), list[str]()
    night(bundle, store, Target(), said)
    night(make_bundle(tmp_path, built_at=BUILT + timedelta(days=1)), store, Target(), said)
    assert not any(text.startswith(("ALARM", "warning")) for text in said), said


IDENTITY = ("os_distro", "os_version", "architecture")


def test_identity(bundle: Bundle) -> None:
    assert str(identity(bundle.artifact.recipe.description)) == "debian 13 on x86_64"
    assert identity(with_description(bundle, metadata={"os_purpose": "custom"}).artifact.recipe.description) is None


# -- what the store really holds


class Forgetful(MemoryStore):
    """A cloud that keeps some properties for itself: drops or changes what is written to them."""

    def __init__(self, rules: Mapping[str, str | None], *, times: int = 99) -> None:
        super().__init__(MemoryGlance(), "p")
        self.rules, self.left, self.patches = rules, times, 0

    def patch(self, image_id: str, change: Mapping[str, object]) -> StoredImage:
        self.patches += 1
        wanted = dict(change)
        for key, value in self.rules.items():
            if key in wanted and self.left > 0:
                self.left -= 1
                wanted[key] = value
        return super().patch(image_id, {key: value for key, value in wanted.items() if value is not None})


def test_what_reads_as_meant_costs_no_request(bundle: Bundle) -> None:
    store = Forgetful({})
    release = publish(bundle, store=store, target=Target(), now=BUILT, say=silent)
    before = store.patches
    assert rotate(release, store=store, now=BUILT, say=silent).differs == ()
    assert store.patches == before + 1, "the swap of a first release is one PATCH"
    assert rotate(release, store=store, now=BUILT, say=silent).differs == ()
    assert store.patches == before + 1


def test_a_lost_property_is_set_again(bundle: Bundle) -> None:
    store, said = Forgetful({"hw_rng_model": None}, times=1), list[str]()
    image = night(bundle, store, Target(), said)
    assert image.properties["hw_rng_model"] == "virtio"
    assert any("setting again" in text and "hw_rng_model is missing" in text for text in said)
    assert not any("ALARM" in text for text in said)


def test_what_the_cloud_keeps_for_itself_is_an_alarm_and_stays_in_the_record(bundle: Bundle) -> None:
    store, said = Forgetful({"os_version": "12", "hw_disk_bus": None}), list[str]()
    release = publish(bundle, store=store, target=Target(), now=BUILT, say=said.append)
    done = rotate(release, store=store, now=BUILT, say=said.append)
    assert done.differs == ("hw_disk_bus is missing, meant was 'scsi'", "os_version is '12', meant was '13'")
    assert sum("ALARM" in text for text in said) == 2


def test_another_visibility_than_meant_is_a_difference(bundle: Bundle) -> None:
    image = night(bundle, MemoryStore(MemoryGlance(), "p"), Target())
    (found,) = differs(dataclasses.replace(image, visibility="private"), bundle, Target())
    assert str(found) == "visibility is 'private', meant was 'public'"


# -- the platform's signature, as the platform verifies it


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_key(tmp_path_factory.mktemp("key") / "platform.pem", ec.generate_private_key(ec.SECP384R1()))


def write_key(path: Path, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, mode: int = 0o600) -> Path:
    pem = serialization.PrivateFormat.PKCS8
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, pem, serialization.NoEncryption()))
    path.chmod(mode)
    return path


class OneCertificate(KeyManager):
    """The key manager of a cloud that holds one certificate; cursive, as Glance and Nova use it, asks it."""

    certificate = b""

    def __init__(self, configuration: object) -> None:
        super().__init__(configuration)

    def get(self, _context: object, managed_object_id: str, *_rest: object, **_names: object) -> x_509.X509:
        assert managed_object_id == CERTIFICATE
        return x_509.X509(self.certificate)

    create_key = create_key_pair = store = copy = delete = add_consumer = remove_consumer = list = get


def certify(key: Path) -> bytes:
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "images")])
    made = x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number())
    made = made.not_valid_before(BUILT - timedelta(days=1)).not_valid_after(BUILT + timedelta(days=36500))
    return made.sign(private, hashes.SHA384()).public_bytes(serialization.Encoding.DER)


def platform_verifies(properties: Mapping[str, str], data: bytes) -> None:
    verifier = signature_utils.get_verifier(
        None,
        properties["img_signature_certificate_uuid"],
        properties["img_signature_hash_method"],
        properties["img_signature"],
        properties["img_signature_key_type"],
    )
    verifier.update(data)
    verifier.verify()


def test_the_platform_accepts_what_we_sign_and_nothing_else(bundle: Bundle, key: Path) -> None:
    from castellan import options

    options.set_defaults(cfg.CONF, backend=f"{__name__}.OneCertificate")
    OneCertificate.certificate = certify(key)
    made = signature_properties(PlatformSignature(key=key, certificate=CERTIFICATE), bundle.artifact.sha512)
    assert tuple(made) == SIGNATURE
    assert len(made["img_signature"]) <= 140
    assert made["img_signature_key_type"] == "ECC_SECP384R1"
    assert faults({**metadata(bundle, Target()), **made}, place="x") == ()
    data = bundle.artifact.path.read_bytes()
    platform_verifies(made, data)
    with pytest.raises(InvalidSignature):
        platform_verifies(made, data + b"\0")


def test_the_signature_is_on_the_record_before_the_bytes_arrive(bundle: Bundle, key: Path) -> None:
    seen = {}

    class Watching(MemoryStore):
        def upload(self, image_id: str, path: Path) -> None:
            image = self.get(image_id)
            assert image is not None
            seen.update(image.properties)
            super().upload(image_id, path)

    target = Target(signature=PlatformSignature(key=key, certificate=CERTIFICATE))
    image = night(bundle, Watching(MemoryGlance(), "p"), target)
    assert {one: seen[one] for one in SIGNATURE} == {one: image.properties[one] for one in SIGNATURE}
    assert re.fullmatch(r"[A-Za-z0-9+/=]+", base64.b64encode(base64.b64decode(seen["img_signature"])).decode())
    assert differs(image, bundle, target) == ()


@pytest.mark.parametrize("wrong", ["missing", "open to others", "rsa", "p-256", "no key"])
def test_a_wrong_platform_key_is_told_before_anything_is_sent(bundle: Bundle, tmp_path: Path, wrong: str) -> None:
    path = tmp_path / "platform.pem"
    if wrong == "open to others":
        write_key(path, ec.generate_private_key(ec.SECP384R1()), 0o644)
    elif wrong == "rsa":
        write_key(path, rsa.generate_private_key(65537, 2048))
    elif wrong == "p-256":
        write_key(path, ec.generate_private_key(ec.SECP256R1()))
    elif wrong == "no key":
        path.write_text("-----BEGIN PRIVATE KEY-----\nxxxx\n-----END PRIVATE KEY-----\n")
        path.chmod(0o600)
    service = MemoryGlance()
    target = Target(signature=PlatformSignature(key=path, certificate=CERTIFICATE))
    with pytest.raises(InputFault, match=r"platform\.pem") as refused:
        publish(bundle, store=MemoryStore(service, "p"), target=target, now=BUILT, say=silent)
    assert refused.value.exit_code == 2
    assert "xxxx" not in "\n".join(refused.value.lines())
    assert service.images == {}
