# SPDX-License-Identifier: Apache-2.0
"""Which instances a sandbox update server accepts, and for how long it remembers that."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st

from factory.errors import InputFault
from factory.region.products import Product
from factory.region.registrations import Registrations
from factory.region.repositories import FolderRepository
from factory.region.update import app_of
from factory.region.update_settings import UpdateSettings, VerificationSettings
from factory.region.verification import (
    InstanceRefused,
    NoVerification,
    OpenStackVerification,
    RememberedInstances,
    Verified,
)

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
INSTANCE, OTHER = "3f1c2d4e-0000-4000-8000-00000000000a", "3f1c2d4e-0000-4000-8000-00000000000b"
PRODUCT = Product(id=1, identifier="debian", version="13", arch="x86_64")
PAID = Product(
    id=2,
    identifier="paid",
    version="13",
    arch="x86_64",
    product_type="extension",
    extends=("debian/13/x86_64",),
    free=False,
)
REPOFORMAT = "<repoformat>plugin:susecloud</repoformat>\n"


@dataclass(frozen=True)
class Cloud:
    """A cloud that signs for its instances."""

    private: Any
    algorithm: str
    public: Path

    def sign(self, document: bytes) -> bytes:
        if isinstance(self.private, ed25519.Ed25519PrivateKey):
            return self.private.sign(document)
        if isinstance(self.private, ec.EllipticCurvePrivateKey):
            return self.private.sign(document, ec.ECDSA(hashes.SHA256()))
        return bytes(self.private.sign(document, padding.PKCS1v15(), hashes.SHA256()))

    def vendordata(self, **changes: object) -> dict[str, str]:
        document = json.dumps(
            {
                "instance_id": INSTANCE,
                "project_id": "p1",
                "product": "debian/13/x86_64",
                "not_after": (NOW + timedelta(days=3650)).isoformat(),
                **changes,
            }
        ).encode()
        return {
            "document": base64.b64encode(document).decode(),
            "signature": base64.b64encode(self.sign(document)).decode(),
            "algorithm": self.algorithm,
        }


def cloud(folder: Path, algorithm: str) -> Cloud:
    private: Any = {
        "ed25519": ed25519.Ed25519PrivateKey.generate,
        "ecdsa-sha256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "rsa-sha256": lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
    }[algorithm]()
    public = folder / f"{algorithm}.pem"
    public.write_bytes(
        private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return Cloud(private=private, algorithm=algorithm, public=public)


@pytest.fixture(scope="module")
def signing(tmp_path_factory: pytest.TempPathFactory) -> Cloud:
    return cloud(tmp_path_factory.mktemp("cloud"), "ed25519")


def said(vendordata: object = None, **changes: object) -> str:
    document = {
        "schema": "image-factory/instance/1",
        "instance_id": INSTANCE,
        "project_id": "p1",
        "product": "debian/13/x86_64",
        "vendordata": vendordata,
        **changes,
    }
    return json.dumps(document) + "\n" + REPOFORMAT


def test_without_a_key_only_the_form_counts() -> None:
    provider = OpenStackVerification()
    found = provider.verify(said(), PRODUCT, now=NOW)
    assert (found.identifier, found.proven) == (INSTANCE, False)
    assert provider.verify(said().replace(REPOFORMAT, ""), PRODUCT, now=NOW).identifier == INSTANCE


@pytest.mark.parametrize("algorithm", ["ed25519", "ecdsa-sha256", "rsa-sha256"])
def test_with_a_key_the_cloud_must_have_signed(tmp_path: Path, algorithm: str) -> None:
    ours = cloud(tmp_path, algorithm)
    provider = OpenStackVerification(ours.public)
    found = provider.verify(said(ours.vendordata()), PRODUCT, now=NOW)
    assert (found.identifier, found.proven, found.products) == (INSTANCE, True, ("debian/13/x86_64",))
    (tmp_path / "foreign").mkdir()
    with pytest.raises(InstanceRefused, match="signature of the instance data is not good"):
        provider.verify(said(cloud(tmp_path / "foreign", algorithm).vendordata()), PRODUCT, now=NOW)


def altered(vendordata: dict[str, str]) -> dict[str, str]:
    document = base64.b64decode(vendordata["document"]).replace(b"debian/13", b"debian/14")
    return {**vendordata, "document": base64.b64encode(document).decode()}


REFUSALS: list[tuple[str, Callable[[Cloud], str], str]] = [
    ("empty", lambda _: "", "missing or no JSON"),
    ("no-json", lambda _: "hello", "missing or no JSON"),
    ("only-repoformat", lambda _: REPOFORMAT, "missing or no JSON"),
    ("nested", lambda _: "[" * 60000, "missing or no JSON"),
    ("list", lambda _: "[1]", "no document of schema"),
    ("schema", lambda c: said(c.vendordata(), schema="other/1"), "no document of schema"),
    ("tail", lambda c: said(c.vendordata()) + "x", "no document of schema"),
    ("id", lambda c: said(c.vendordata(), instance_id="../../etc"), "names no instance"),
    ("id-type", lambda c: said(c.vendordata(), instance_id=["x"]), "names no instance"),
    ("wrong-product", lambda c: said(c.vendordata(), product="debian/12/x86_64"), "is of product debian/12/x86_64"),
    ("no-product", lambda c: said(c.vendordata(), product=None), "is of product ?"),
    ("signed-product", lambda c: said(c.vendordata(product="debian/12/x86_64")), "is for another product"),
    ("signed-products", lambda c: said(c.vendordata(products=["debian/12/x86_64"])), "is for another product"),
    ("foreign", lambda c: said(c.vendordata(instance_id=OTHER)), "is of another instance"),
    ("foreign-project", lambda c: said(c.vendordata(project_id="p2")), "is of another project"),
    ("unsigned", lambda _: said(), "not signed by the cloud"),
    ("altered", lambda c: said(altered(c.vendordata())), "signature of the instance data is not good"),
    ("algorithm", lambda c: said({**c.vendordata(), "algorithm": "none"}), "signature of the instance data"),
    ("base64", lambda c: said({**c.vendordata(), "signature": "!"}), "signature of the instance data"),
    ("types", lambda _: said({"document": 7, "signature": {}, "algorithm": []}), "signature of the instance data"),
    ("expired", lambda c: said(c.vendordata(not_after=NOW.isoformat())), "is expired"),
    ("expired-epoch", lambda c: said(c.vendordata(not_after=NOW.timestamp() - 1)), "is expired"),
    ("no-end", lambda c: said(c.vendordata(not_after=None)), "does not say how long"),
    ("endless", lambda c: said(c.vendordata(not_after=1e300)), "does not say how long"),
]


@pytest.mark.parametrize(("make", "words"), [row[1:] for row in REFUSALS], ids=[row[0] for row in REFUSALS])
def test_who_is_refused(signing: Cloud, make: Callable[[Cloud], str], words: str) -> None:
    with pytest.raises(InstanceRefused, match=words.replace("?", r"\?")):
        OpenStackVerification(signing.public).verify(make(signing), PRODUCT, now=NOW)


@given(text=st.text(max_size=60), cut=st.integers(0, 600), byte=st.characters())
def test_nothing_but_the_signed_document_is_accepted(text: str, cut: int, byte: str, signing: Cloud) -> None:
    good = said(signing.vendordata())
    provider = OpenStackVerification(signing.public)
    for bad in (text, good[:cut], good[:cut] + byte + good[cut + 1 :]):
        try:
            found = provider.verify(bad, PRODUCT, now=NOW)
        except InstanceRefused:
            continue
        assert (found.identifier, found.products) == (INSTANCE, ("debian/13/x86_64",))


@pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"])
def test_a_key_that_is_none_is_a_fault(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key.pem").write_bytes(content)
    with pytest.raises(InputFault, match="is no public key"):
        OpenStackVerification(tmp_path / "key.pem")
    with pytest.raises(InputFault, match="checks no signature"):
        NoVerification(tmp_path / "key.pem")


def test_what_was_accepted_is_remembered_for_a_while(tmp_path: Path) -> None:
    remembered = RememberedInstances(tmp_path / "cache")
    key, day = ("SCC_1", "1", "debian/13/x86_64", "data"), timedelta(days=1)
    assert not remembered.knows(key, now=NOW)
    remembered.keep(key, Verified(), mode="payg", now=NOW)
    again = RememberedInstances(tmp_path / "cache")
    assert again.knows(key, now=NOW + timedelta(minutes=19))
    assert not again.knows((*key[:3], "other data"), now=NOW)
    assert not again.knows(key, now=NOW + timedelta(minutes=20))
    remembered.keep(key, Verified(), mode="hybrid", now=NOW)
    assert remembered.knows(key, now=NOW + day - timedelta(minutes=1))
    remembered.keep(key, Verified(not_after=NOW + timedelta(minutes=1)), mode="payg", now=NOW)
    assert not remembered.knows(key, now=NOW + timedelta(minutes=1))
    remembered.keep(("another",), Verified(), mode="payg", now=NOW + 2 * day)
    assert len(list((tmp_path / "cache").iterdir())) == 1, "what is over is removed"


def server(folder: Path, public: Path | None, **more: Any) -> UpdateSettings:
    (folder / "ca.pem").write_text("the CA")
    (folder / "repo/repodata").mkdir(parents=True)
    (folder / "repo/repodata/repomd.xml").write_text("metadata")
    return UpdateSettings(
        fqdn="update-a.test.invalid",
        ca=str(folder / "ca.pem"),
        database=str(folder / "r.sqlite"),
        products=(PRODUCT, PAID),
        folders=(FolderRepository(alias="repo", folder=str(folder / "repo")),),
        verification=VerificationSettings(provider="openstack", public_key=str(public) if public else ""),
        **more,
    )


def basic(answer: Any) -> dict[str, str]:
    sent = base64.b64encode(f"{answer.json['login']}:{answer.json['password']}".encode()).decode()
    return {"Authorization": f"Basic {sent}"}


def announce(client: FlaskClient, text: str, *, regcode: str = "") -> Any:
    return client.post(
        "/connect/subscriptions/systems",
        json={"hostname": "h", "instance_data": text},
        headers={"Authorization": f"Token token={regcode}"},
    )


def activate(client: FlaskClient, auth: dict[str, str], product: Product = PRODUCT) -> Any:
    asked = {"identifier": product.identifier, "version": product.version, "arch": product.arch}
    return client.post("/connect/systems/products", json=asked, headers={**auth, "System-Token": ""})


def header(text: str) -> dict[str, str]:
    return {"X-Instance-Data": base64.b64encode(text.encode()).decode()}


def live(signing: Cloud, **changes: object) -> str:
    return said(signing.vendordata(not_after=(datetime.now(tz=UTC) + timedelta(days=1)).isoformat(), **changes))


def test_an_instance_of_the_cloud_registers_under_its_identifier(tmp_path: Path, signing: Cloud) -> None:
    client = app_of(server(tmp_path, signing.public)).test_client()
    first = announce(client, live(signing))
    assert (first.status_code, first.json["login"]) == (201, INSTANCE)
    done = activate(client, basic(first))
    assert done.status_code == 201
    assert "System-Token" not in done.headers, "the identifier is the token"
    again = announce(client, live(signing))
    assert activate(client, basic(first)).status_code == 401, "who announces anew lost the old credentials"
    registrations = Registrations(tmp_path / "r.sqlite")
    (system,) = registrations.systems()
    assert (system.login, system.token) == (INSTANCE, INSTANCE)
    registrations.close()
    assert activate(client, basic(again)).status_code == 201


def test_refusals_are_422_with_the_providers_text(tmp_path: Path, signing: Cloud) -> None:
    client = app_of(server(tmp_path, signing.public, regcodes=("CODE",))).test_client()
    for text in (said(), live(signing, instance_id=OTHER), ""):
        refused = announce(client, text)
        assert refused.status_code == 422
        assert refused.json["error"] == refused.json["localized_error"] != ""
    auth = basic(announce(client, live(signing, product="debian/12/x86_64")))
    wrong = activate(client, auth)
    assert wrong.status_code == 422
    expected = "Instance verification failed: the signed document is for another product"
    assert wrong.json["error"] == expected
    byos = basic(announce(client, "", regcode="CODE"))
    assert activate(client, byos).status_code == 201, "not enforced where the owner brings the subscription"


def test_paid_extensions_must_be_in_the_signed_document(tmp_path: Path, signing: Cloud) -> None:
    client = app_of(server(tmp_path, signing.public)).test_client()
    auth = basic(announce(client, live(signing)))
    assert activate(client, auth).status_code == 201
    refused = activate(client, auth, PAID)
    expected = "Instance verification failed: The product is not available for this instance"
    assert (refused.status_code, refused.json["error"]) == (422, expected)
    both = basic(announce(client, live(signing, products=["debian/13/x86_64", "paid/13/x86_64"])))
    assert activate(client, both).status_code == 201
    assert activate(client, both, PAID).status_code == 201


PATHS = ("/services/1", "/services/1/repo/repoindex.xml", "/repo/repoindex.xml", "/repo/repo/repodata/repomd.xml")


@pytest.mark.parametrize("path", PATHS)
def test_repositories_verify_again(tmp_path: Path, signing: Cloud, path: str) -> None:
    settings = server(tmp_path, signing.public, plugin_urls=True)
    required = replace(settings, verification=replace(settings.verification, header_required=True))
    client = app_of(required).test_client()
    auth = basic(announce(client, live(signing)))
    activate(client, auth)
    assert client.get(path, headers={**auth, **header(live(signing))}).status_code == 200
    for bad in ({}, header(said()), header(live(signing, instance_id=OTHER)), {"X-Instance-Data": "!"}):
        refused = client.get(path, headers={**auth, **bad})
        assert refused.status_code == 403
        assert "Instance verification failed" in refused.text
    assert client.get(path, headers=header(live(signing))).status_code == 401
    lenient = app_of(settings).test_client()
    assert lenient.get(path, headers=auth).status_code == 200, "what it said at first is verified again"


class Counting(OpenStackVerification):
    calls = 0

    def verify(self, instance_data: str, product: Product, *, now: datetime | None = None) -> Verified:
        type(self).calls += 1
        if "boom" in instance_data:
            raise RuntimeError("provider bug")
        return super().verify(instance_data, product, now=now)


def test_a_provider_of_ones_own_is_asked_once_for_many_files(tmp_path: Path, signing: Cloud) -> None:
    name = f"{Counting.__module__}:{Counting.__name__}"
    settings = server(tmp_path, signing.public)
    settings = replace(settings, verification=replace(settings.verification, provider=name))
    client = app_of(settings).test_client()
    auth = basic(announce(client, live(signing)))
    assert activate(client, auth).status_code == 201
    from importlib import import_module

    counted = import_module(Counting.__module__).Counting
    counted.calls = 0
    sent = {**auth, **header(live(signing))}
    for _ in range(5):
        assert client.get("/repo/repo/repodata/repomd.xml", headers=sent).status_code == 200
    assert counted.calls == 1
    assert client.get("/services/1", headers={**auth, **header(live(signing) + "boom")}).status_code == 403
    broken = basic(announce(client, live(signing).replace('"p1"', '"p1", "x": "boom"')))
    answer = activate(client, broken)
    assert (answer.status_code, answer.json["error"]) == (422, "Unexpected instance verification error has occurred")


def test_a_cloned_instance_becomes_a_system_of_its_own(tmp_path: Path, signing: Cloud) -> None:
    """A snapshot carries the credentials; the cloud gives the new instance an identifier of its own."""
    client = app_of(server(tmp_path, signing.public)).test_client()
    auth = basic(announce(client, live(signing)))
    activate(client, auth)
    clone = said(json.loads(live(signing, instance_id=OTHER).splitlines()[0])["vendordata"], instance_id=OTHER)
    for _ in range(2):
        assert client.get("/services/1", headers={**auth, **header(clone)}).status_code == 200
    registrations = Registrations(tmp_path / "r.sqlite")
    assert [system.token for system in registrations.systems()] == [INSTANCE, OTHER]
    assert {system.products for system in registrations.systems()} == {("debian/13/x86_64",)}
    registrations.close()


def test_what_an_instance_pays_for(tmp_path: Path, signing: Cloud) -> None:
    client = app_of(server(tmp_path, signing.public)).test_client()
    good = live(signing)
    for metadata in (good, base64.b64encode(good.encode()).decode()):
        answer = client.get("/api/instance/check", query_string={"metadata": metadata, "identifier": "debian"})
        assert (answer.status_code, answer.json) == (200, {"flavor": "PAYG"})
    foreign = client.get("/api/instance/check", query_string={"metadata": said(), "identifier": "debian"})
    assert (foreign.status_code, foreign.json) == (422, {"flavor": "BYOS"})


def test_an_upgrade_to_another_family_is_not_allowed(tmp_path: Path, signing: Cloud) -> None:
    other = Product(id=3, identifier="other", version="14", arch="x86_64", predecessors=("debian/13/x86_64",))
    settings = server(tmp_path, signing.public)
    client = app_of(replace(settings, products=(*settings.products, other))).test_client()
    auth = basic(announce(client, live(signing)))
    activate(client, auth)
    asked = {"identifier": "other", "version": "14", "arch": "x86_64"}
    refused = client.put("/connect/systems/products", json=asked, headers=auth)
    assert (refused.status_code, refused.json["error"]) == (
        422,
        "Migration target not allowed on this instance type",
    )
