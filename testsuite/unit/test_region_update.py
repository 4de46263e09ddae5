# SPDX-License-Identifier: Apache-2.0
"""The update server's side of the conversation, as SUSEConnect and zypper hold it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from defusedxml import ElementTree
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.test import TestResponse

from factory.errors import InputFault
from factory.model import Repository
from factory.region.access import Gate
from factory.region.catalogue import Catalogue
from factory.region.products import products
from factory.region.registrations import Registrations
from factory.region.repositories import recorded
from factory.region.update import make_app, plain_app
from factory.region.update_settings import RecordedInputs, UpdateSettings, read_settings
from factory.region.verification import NoVerification

PRODUCT = {"identifier": "debian", "version": "13", "arch": "x86_64"}
CONTENT = bytes(range(256)) * 8


@dataclass(frozen=True)
class Folder:
    """A view of plain files."""

    files: dict[str, Path]
    repositories: tuple[Repository, ...] = (
        Repository(alias="debian", url="https://m.example/debian", suites=("trixie",)),
    )

    def open(self, alias: str, path: str) -> tuple[Path, int] | None:
        found = self.files.get(f"{alias}/{path}")
        return (found, found.stat().st_size) if found else None


@pytest.fixture
def registrations(tmp_path: Path) -> Iterator[Registrations]:
    made = Registrations(tmp_path / "registrations.sqlite")
    yield made
    made.close()


@pytest.fixture
def client(tmp_path: Path, registrations: Registrations) -> FlaskClient:
    return app_client(tmp_path, registrations)


def app_client(tmp_path: Path, registrations: Registrations, *, plugin_urls: bool = False) -> FlaskClient:
    (tmp_path / "ca.pem").write_text("the CA")
    (tmp_path / "file").write_bytes(CONTENT)
    view = Folder({"debian/dists/trixie/InRelease": tmp_path / "file", "debian/pool/a_1%2b2.deb": tmp_path / "file"})
    catalogue = Catalogue(
        fqdn="update-a.test.invalid",
        products=products(("debian/13/x86_64", "SLES/15.6/x86_64")),
        repositories=recorded(view),
        plugin_urls=plugin_urls,
    )
    gate = Gate(registrations=registrations, verification=NoVerification())
    return make_app(catalogue, gate, ca=tmp_path / "ca.pem").test_client()


def basic(login: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{login}:{password}".encode()).decode()}


def announce(client: FlaskClient) -> dict[str, str]:
    answer = client.post(
        "/connect/subscriptions/systems",
        json={"hostname": "guest", "distro_target": "debian-13-x86_64", "hwinfo": {"cpus": 1}, "instance_data": "data"},
        headers={"Authorization": "Token token="},
    )
    assert answer.status_code == 201
    assert answer.json is not None
    assert set(answer.json) == {"id", "login", "password", "last_seen_at"}
    assert answer.json["last_seen_at"] is None
    return basic(answer.json["login"], answer.json["password"])


def registered(client: FlaskClient) -> dict[str, str]:
    auth = announce(client)
    assert client.post("/connect/systems/products", json=PRODUCT, headers=auth).status_code == 201
    return auth


def error(answer: TestResponse) -> str:
    assert answer.json is not None
    assert set(answer.json) == {"type", "error", "localized_error"}
    return str(answer.json["localized_error"])


def test_the_whole_conversation_of_a_registration(client: FlaskClient, registrations: Registrations) -> None:
    health = client.get("/api/health/status").json
    assert health == {"state": "online", "server": "Image Factory sandbox update server; not RMT"}
    assert client.get("/smt.crt").text == client.get("/rmt.crt").text == "the CA"
    auth = announce(client)
    service: Any = client.post("/connect/systems/products", json=PRODUCT, headers=auth).json
    assert (service["id"], service["name"]) == (1, "debian_13_x86_64")
    assert service["url"] == "https://update-a.test.invalid/services/1?credentials=debian_13_x86_64"
    assert service["obsoleted_service_name"] == ""
    repository = service["product"]["repositories"][0]
    assert (repository["name"], repository["url"]) == ("debian", "https://update-a.test.invalid/repo/debian")
    assert client.post("/connect/systems/products/migrations", json={}, headers=auth).status_code == 422

    index = "/services/1/repo/repoindex.xml"
    refused = client.head(index)
    assert refused.status == "401 Unauthorized"
    assert refused.headers["WWW-Authenticate"] == 'Basic realm="RMT API"'
    assert client.head(index, headers=auth).status_code == 200
    found = client.get(index, headers=auth)
    assert ElementTree.fromstring(found.data).find("repo").get("alias") == "debian"
    assert 'ttl="86400"' in found.text
    assert client.get("/repo/repoindex.xml", headers=auth).text.startswith("<repoindex>\n")

    with_body = client.get("/connect/systems/products", json=PRODUCT, headers=auth)
    with_query = client.get("/connect/systems/products", query_string=PRODUCT, headers=auth)
    assert with_body.status_code == with_query.status_code == 200
    assert with_body.json == with_query.json
    assert with_body.json is not None
    assert with_body.json["extensions"] == []
    activations: Any = client.get("/connect/systems/activations", headers=auth).json
    assert [one["service"]["id"] for one in activations] == [1]
    assert client.put("/connect/systems", json={"hostname": "renamed"}, headers=auth).status_code == 204
    (system,) = registrations.systems()
    assert (system.hostname, system.instance_data, system.products) == ("renamed", "data", ("debian/13/x86_64",))

    assert client.delete("/connect/systems", headers=auth).status_code == 204
    assert registrations.systems() == ()
    assert client.delete("/connect/systems", headers=auth).status == "401 Unauthorized"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("POST", "/connect/systems/products", {**PRODUCT, "version": "12"}, 422, "No product found"),
        ("POST", "/connect/systems/products", {**PRODUCT, "arch": "s390x"}, 422, "No product found"),
        ("POST", "/connect/systems/products", {"identifier": "debian"}, 422, "missing or empty: version, arch"),
        ("POST", "/connect/systems/products", {**PRODUCT, "identifier": ["debian"]}, 422, "No product found"),
        ("POST", "/connect/systems/products", ["debian"], 422, "not a JSON object"),
        ("GET", "/connect/systems/products", PRODUCT, 422, "is not activated on this system"),
        ("DELETE", "/connect/systems/products", PRODUCT, 422, "is a base product"),
        ("POST", "/connect/systems/products/synchronize", {}, 422, "missing or empty: products"),
        ("GET", "/connect/repositories/installer", None, 422, "missing or empty"),
    ],
)
def test_what_cannot_be_done_is_422_with_a_text(
    client: FlaskClient, method: str, path: str, body: object, status: int, words: str
) -> None:
    answer = client.open(path, method=method, json=body, headers=announce(client))
    assert answer.status_code == status
    assert words in error(answer)


@pytest.mark.parametrize(
    "path",
    [
        "/connect/systems/activations",
        "/connect/systems/products",
        "/services/1",
        "/repo/repoindex.xml",
        "/repo/debian/x",
    ],
)
@pytest.mark.parametrize("auth", [{}, basic("SCC_1", "x"), {"Authorization": "Basic !"}, {"Authorization": "Token x"}])
def test_without_good_credentials_it_is_401_with_a_challenge(
    client: FlaskClient, path: str, auth: dict[str, str]
) -> None:
    answer = client.get(path, headers=auth)
    assert answer.status == "401 Unauthorized"
    assert answer.headers["WWW-Authenticate"] == 'Basic realm="RMT API"'
    assert error(answer)


@pytest.mark.parametrize(("version", "status"), [("13", 201), ("13.0", 201), ("15-6", 422), ("15.6", 422), ("1", 422)])
def test_versions_match_as_rmt_does(client: FlaskClient, version: str, status: int) -> None:
    answer = client.post("/connect/systems/products", json={**PRODUCT, "version": version}, headers=announce(client))
    assert answer.status_code == status
    sles = {"identifier": "sles", "version": "15-6", "arch": "x86_64"}
    assert client.post("/connect/systems/products", json=sles, headers=announce(client)).status_code == 201


def test_files_need_a_registered_product(client: FlaskClient, registrations: Registrations) -> None:
    path = "/repo/debian/dists/trixie/InRelease"
    announced = announce(client)
    assert client.get(path, headers=announced).status_code == 403
    assert client.get("/services/1", headers=announced).status_code == 403
    auth = registered(client)
    assert client.get(path, headers=auth).data == CONTENT
    assert client.get("/services/9", headers=auth).status_code == 404
    assert client.head(path, headers=auth).headers["Content-Length"] == str(len(CONTENT))
    part = client.get(path, headers={**auth, "Range": "bytes=10-19"})
    assert (part.status_code, part.data) == (206, CONTENT[10:20])
    beyond = client.get(path, headers={**auth, "Range": f"bytes={len(CONTENT)}-"})
    assert beyond.status_code == 416
    registrations.remove(registrations.systems()[-1].login)
    assert client.get(path, headers=auth).status == "401 Unauthorized"


@pytest.mark.parametrize("name", ["a_1%2b2.deb", "a_1%2B2.deb", "a_1+2.deb"])
def test_names_are_looked_up_as_they_were_asked_for(client: FlaskClient, name: str) -> None:
    """gunicorn hands on the raw request line; recorded names are percent-encoded as apt writes them."""
    answer = client.get(
        f"/repo/debian/pool/{name}",
        headers=registered(client),
        environ_overrides={"RAW_URI": f"/repo/debian/pool/{name}"},
    )
    assert answer.status_code == (200 if name == "a_1%2b2.deb" else 404)


@pytest.mark.parametrize(
    "path",
    [
        "../file",
        "dists/../../file",
        "%2e%2e/file",
        "dists//InRelease",
        "/etc/passwd",
        "..%5cfile",
        "dists/trixie/InRelease%00",
        "dists/trixie/InRelease/",
    ],
)
def test_no_path_leads_out_of_the_recorded_files(client: FlaskClient, path: str) -> None:
    answer = client.get(
        f"/repo/debian/{path}", headers=registered(client), environ_overrides={"RAW_URI": f"/repo/debian/{path}"}
    )
    assert answer.status_code in {301, 308, 404}


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FlaskClient, dict[str, str]]]:
    folder = tmp_path_factory.mktemp("one")
    registrations = Registrations(folder / "r.sqlite")
    client = app_client(folder, registrations)
    yield client, registered(client)
    registrations.close()


@given(path=st.text(max_size=40))
def test_no_path_is_an_error_of_the_server(path: str, lasting: tuple[FlaskClient, dict[str, str]]) -> None:
    client, auth = lasting
    assert client.get("/repo/debian/" + path, headers=auth).status_code < 500


def test_a_system_token_is_rotated_and_an_unknown_one_is_a_clone(
    client: FlaskClient, registrations: Registrations
) -> None:
    auth = announce(client)
    first = client.post("/connect/systems/products", json=PRODUCT, headers={**auth, "System-Token": ""})
    token = first.headers["System-Token"]
    assert token
    assert "System-Token" not in client.post("/connect/systems/products", json=PRODUCT, headers=auth).headers
    second = client.put("/connect/systems", json={}, headers={**auth, "System-Token": token})
    assert second.headers["System-Token"] != token
    assert len(registrations.systems()) == 1
    client.get("/connect/systems/activations", headers={**auth, "System-Token": "of-the-snapshot"})
    original, clone = registrations.systems()
    assert (clone.login, clone.products) == (original.login, original.products)


def test_synchronize_leaves_only_what_is_named(client: FlaskClient, registrations: Registrations) -> None:
    auth = registered(client)
    sles = {"identifier": "SLES", "version": "15.6", "arch": "x86_64"}
    client.post("/connect/systems/products", json=sles, headers=auth)
    kept: Any = client.post("/connect/systems/products/synchronize", json={"products": [sles, 7]}, headers=auth).json
    assert [one["identifier"] for one in kept] == ["SLES"]
    assert registrations.systems()[-1].products == ("SLES/15.6/x86_64",)


def test_zyppers_plugin_addresses(tmp_path: Path, registrations: Registrations) -> None:
    client = app_client(tmp_path, registrations, plugin_urls=True)
    service: Any = client.post("/connect/systems/products", json=PRODUCT, headers=announce(client)).json
    assert service["url"] == "plugin:/susecloud?credentials=debian_13_x86_64&path=/services/1"
    assert service["product"]["repositories"][0]["url"].endswith("&path=/repo/debian")


def test_it_says_what_it_is(client: FlaskClient, tmp_path: Path) -> None:
    assert "not RMT" in client.get("/").text
    assert "not RMT" in client.get("/api/health/status").headers["X-Sandbox"]
    plain = plain_app("update-a.test.invalid", tmp_path / "ca.pem").test_client()
    assert plain.get("/rmt.crt").text == "the CA"
    assert plain.get("/repo/debian/x").headers["Location"] == "https://update-a.test.invalid/repo/debian/x"
    assert plain.get("/api/health/status").status_code == 404
    assert plain.post("/connect/subscriptions/systems").status_code == 404


def test_big_and_broken_bodies_are_refused(client: FlaskClient) -> None:
    path = "/connect/subscriptions/systems"
    too_long = client.post(path, data=b"{" * (2 << 20))
    assert (too_long.status_code, bool(error(too_long))) == (413, True)
    wrong = client.delete(path)
    assert (wrong.status_code, bool(error(wrong)), "POST" in wrong.headers["Allow"]) == (405, True, True)
    assert client.get("/connect/nothing").json is not None
    assert client.get("/nothing").json is None
    assert client.post(path, data=b"{").status_code == 422
    assert client.post(path, json={"hostname": {"a": 1}, "instance_data": 7}).status_code == 201


def test_registrations_survive_a_new_process(tmp_path: Path, registrations: Registrations) -> None:
    made = registrations.announce(hostname="h", instance_data="", now=datetime(2026, 1, 1, tzinfo=UTC))
    other = Registrations(tmp_path / "registrations.sqlite")
    assert [system.login for system in other.systems()] == [made.login]
    assert (tmp_path / "registrations.sqlite").stat().st_mode & 0o777 == 0o600
    other.close()


def test_settings_travel_through_a_file(tmp_path: Path) -> None:
    settings = UpdateSettings(
        fqdn="a.invalid",
        ca="/ca.pem",
        database="/db",
        products=products(("debian/13/x86_64",)),
        recorded=RecordedInputs(
            lock="/lock", blobs="/blobs", repositories=(Repository(alias="debian", url="u", suites=("trixie",)),)
        ),
    )
    settings.write(tmp_path / "s.json")
    assert read_settings(tmp_path / "s.json") == settings
    (tmp_path / "s.json").write_text(json.dumps({"fqdn": 1}))
    with pytest.raises(InputFault, match="holds no settings"):
        read_settings(tmp_path / "s.json")


@pytest.mark.parametrize("triple", ["debian", "debian/13", "debian//x86_64", "a/b/c/d"])
def test_a_product_is_three_words(triple: str) -> None:
    with pytest.raises(InputFault, match="is no product"):
        products((triple,))
