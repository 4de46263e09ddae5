# SPDX-License-Identifier: Apache-2.0
"""Product trees, folders of packages, registration codes, and versions of the connect API."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import settings as settings_of
from hypothesis import strategies as st
from werkzeug.test import TestResponse

from factory.errors import InputFault, RegionError
from factory.region.products import Product
from factory.region.registrations import Registrations
from factory.region.repositories import FolderRepository
from factory.region.update import app_of
from factory.region.update_settings import UpdateSettings, VerificationSettings, read_toml

SP5 = Product(id=1, identifier="SLES", version="15.5", arch="x86_64", repositories=("sp5",))
SP6 = Product(
    id=2, identifier="SLES", version="15.6", arch="x86_64", repositories=("sp6",), predecessors=("SLES/15.5/x86_64",)
)
SAP = Product(
    id=3,
    identifier="SLES_SAP",
    version="15.6",
    arch="x86_64",
    repositories=("sp6",),
    predecessors=("SLES/15.5/x86_64",),
)
MODULE5 = Product(
    id=4,
    identifier="basesystem",
    version="15.5",
    arch="x86_64",
    product_type="module",
    extends=("SLES/15.5/x86_64",),
    repositories=("module",),
    recommended=True,
)
MODULE6 = Product(
    id=5,
    identifier="basesystem",
    version="15.6",
    arch="x86_64",
    product_type="module",
    extends=("SLES/15.6/x86_64",),
    repositories=("module",),
    predecessors=("basesystem/15.5/x86_64",),
)
LTSS = Product(
    id=6,
    identifier="SLES-LTSS",
    version="15.5",
    arch="x86_64",
    product_type="extension",
    extends=("basesystem/15.5/x86_64",),
    repositories=("ltss",),
    free=False,
)
UNMIRRORED = Product(id=7, identifier="empty", version="1", arch="x86_64", repositories=("unmirrored",))
BARE = Product(id=8, identifier="bare", version="1", arch="x86_64", repositories=())
PRODUCTS = (SP5, SP6, SAP, MODULE5, MODULE6, LTSS, UNMIRRORED, BARE)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> UpdateSettings:
    root = tmp_path_factory.mktemp("server")
    (root / "ca.pem").write_text("the CA")
    (root / "secret").write_text("outside")
    for alias in ("sp5", "sp6", "module", "ltss"):
        (root / alias / "repodata").mkdir(parents=True)
        (root / alias / "repodata/repomd.xml").write_text(alias)
        (root / alias / "a b+c~1.rpm").write_text("package")
    (root / "sp5/product.license").mkdir()
    (root / "sp5/product.license/license.txt").write_text("be free")
    (root / "sp5/out").symlink_to(root / "secret")
    (root / "sp5/loop").symlink_to("loop")
    (root / "unmirrored").mkdir()
    places = {"sp5": "SUSE/Products/SLES/15-SP5", "sp6": "SUSE/Products/SLES/15-SP6", "ltss": "SUSE/Products"}
    aliases = ("sp5", "sp6", "module", "ltss", "unmirrored")
    return UpdateSettings(
        fqdn="update-a.test.invalid",
        ca=str(root / "ca.pem"),
        database=str(root / "r.sqlite"),
        products=PRODUCTS,
        folders=tuple(
            FolderRepository(alias=one, folder=str(root / one), location=places.get(one, ""), installer=one == "sp6")
            for one in aliases
        ),
        regcodes=("GOOD-CODE",),
    )


@pytest.fixture
def client(settings: UpdateSettings, tmp_path: Path) -> FlaskClient:
    return app_of(replace(settings, database=str(tmp_path / "r.sqlite"))).test_client()


def body(product: Product, **more: object) -> dict[str, object]:
    return {"identifier": product.identifier, "version": product.version, "arch": product.arch, **more}


def announced(client: FlaskClient, *, regcode: str = "", **more: object) -> dict[str, str]:
    answer = client.post(
        "/connect/subscriptions/systems",
        json={"hostname": "h", **more},
        headers={"Authorization": f"Token token={regcode}"},
    )
    assert answer.status_code == 201, answer.text
    assert answer.json is not None
    basic = base64.b64encode(f"{answer.json['login']}:{answer.json['password']}".encode()).decode()
    return {"Authorization": f"Basic {basic}"}


def with_products(client: FlaskClient, *products: Product, **more: Any) -> dict[str, str]:
    auth = announced(client, **more)
    for product in products:
        answer = client.post("/connect/systems/products", json=body(product), headers=auth)
        assert answer.status_code == 201, answer.text
    return auth


def error(answer: TestResponse) -> str:
    assert answer.json is not None
    return str(answer.json["error"])


def active(client: FlaskClient, auth: dict[str, str]) -> list[int]:
    found: Any = client.get("/connect/systems/activations", headers=auth).json
    return [one["service"]["id"] for one in found]


def test_a_product_shows_the_tree_of_its_extensions(client: FlaskClient) -> None:
    auth = with_products(client, SP5)
    shown: Any = client.get("/connect/systems/products", json=body(SP5), headers=auth).json
    (module,) = shown["extensions"]
    (ltss,) = module["extensions"]
    assert [one["identifier"] for one in (shown, module, ltss)] == ["SLES", "basesystem", "SLES-LTSS"]
    assert [one["product_type"] for one in (shown, module, ltss)] == ["base", "module", "extension"]
    assert (module["recommended"], ltss["recommended"], ltss["extensions"]) == (True, False, [])
    assert set(shown) == set(module) == set(ltss)
    (repository,) = shown["repositories"]
    assert repository["url"] == "https://update-a.test.invalid/repo/SUSE/Products/SLES/15-SP5"
    assert ltss["free"] is True, "as plain RMT says"


@pytest.mark.parametrize(
    ("have", "want", "status", "words"),
    [
        ((), MODULE5, 422, "requires one of these products to be activated first: SLES 15.5 x86_64"),
        ((SP6,), MODULE5, 422, "requires one of these products"),
        ((SP5,), LTSS, 422, "requires one of these products to be activated first: basesystem"),
        ((SP5, MODULE5), LTSS, 201, ""),
        ((), UNMIRRORED, 422, "Not all mandatory repositories are mirrored for product empty 1 x86_64"),
        ((), BARE, 422, "No repositories found for product: bare 1 x86_64"),
    ],
    ids=["no-base", "other-base", "no-module", "good", "unmirrored", "no-repositories"],
)
def test_what_can_be_activated(
    client: FlaskClient, have: tuple[Product, ...], want: Product, status: int, words: str
) -> None:
    auth = with_products(client, *have)
    answer = client.post("/connect/systems/products", json=body(want), headers=auth)
    assert answer.status_code == status
    assert words in (error(answer) if status == 422 else "")
    assert active(client, auth) == [*(one.id for one in have), *([want.id] if status == 201 else [])]


def test_products_are_taken_away_from_the_outside_in(client: FlaskClient) -> None:
    auth = with_products(client, SP5, MODULE5, LTSS)
    refused = client.delete("/connect/systems/products", json=body(MODULE5), headers=auth)
    assert (refused.status_code, "Other activated products depend upon it" in error(refused)) == (422, True)
    base = client.delete("/connect/systems/products", json=body(SP5), headers=auth)
    assert (base.status_code, "is a base product" in error(base)) == (422, True)
    assert client.delete("/connect/systems/products", json=body(LTSS), headers=auth).status_code == 200
    gone = client.delete("/connect/systems/products", json=body(LTSS), headers=auth)
    assert (gone.status_code, "is not yet activated" in error(gone)) == (422, True)
    service: Any = client.delete("/connect/systems/products", json=body(MODULE5), headers=auth).json
    assert service["product"]["identifier"] == "basesystem"
    assert active(client, auth) == [SP5.id]


def test_an_upgrade_replaces_its_predecessor(client: FlaskClient) -> None:
    auth = with_products(client, SP5, MODULE5)
    done = client.put("/connect/systems/products", json=body(SP6), headers=auth)
    assert done.status_code == 201
    assert done.json is not None
    assert (done.json["id"], done.json["obsoleted_service_name"]) == (SP6.id, "SLES_15.5_x86_64")
    assert client.put("/connect/systems/products", json=body(MODULE6), headers=auth).status_code == 201
    assert active(client, auth) == [SP6.id, MODULE6.id]
    same: Any = client.put("/connect/systems/products", json=body(SP6), headers=auth).json
    assert same["obsoleted_service_name"] == ""
    back = client.put("/connect/systems/products", json=body(SP5), headers=auth)
    assert back.status_code == 201, "a rollback"
    other = client.put("/connect/systems/products", json=body(UNMIRRORED), headers=auth)
    assert other.status_code == 422


def test_migration_paths(client: FlaskClient) -> None:
    auth = with_products(client, SP5, MODULE5)
    installed = {"installed_products": [body(SP5), body(MODULE5)]}
    paths: Any = client.post("/connect/systems/products/migrations", json=installed, headers=auth).json
    assert [[one["identifier"] + one["version"] for one in path] for path in paths] == [
        ["SLES15.6", "basesystem15.6"],
    ]
    only_base = {"installed_products": [body(SP5)]}
    paths = client.post("/connect/systems/products/migrations", json=only_base, headers=auth).json
    assert [path[0]["identifier"] for path in paths] == ["SLES", "SLES_SAP"]
    offline = "/connect/systems/products/offline_migrations"
    to_sap: Any = client.post(offline, json={**only_base, "target_base_product": body(SAP)}, headers=auth).json
    assert [[one["id"] for one in path] for path in to_sap] == [[SAP.id]]
    missing = client.post(offline, json=only_base, headers=auth)
    assert error(missing) == "Required parameters are missing or empty: target_base_product"
    nothing = client.post(offline, json={}, headers=auth)
    assert error(nothing) == "Required parameters are missing or empty: installed_products, target_base_product"
    foreign = client.post(
        "/connect/systems/products/migrations", json={"installed_products": [body(SP6)]}, headers=auth
    )
    assert "are not activated on the system" in error(foreign)


def test_the_installers_repositories_need_no_credentials(client: FlaskClient) -> None:
    assert client.get("/connect/repositories/installer").status_code == 422
    found: Any = client.get("/connect/repositories/installer", query_string=body(SP6)).json
    assert [one["name"] for one in found] == ["sp6"]
    assert client.get("/connect/repositories/installer", query_string=body(SP5)).json == []


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        ("", 200),
        ("application/json,application/vnd.scc.suse.com.v4+json", 200),
        ("application/vnd.scc.suse.com.v3+json", 404),
        ("application/vnd.scc.suse.com.v3+json,application/vnd.scc.suse.com.v4+json", 200),
        ("application/vnd.scc.suse.com.v9+json", 406),
        ("application/vnd.scc.suse.com.v1+json", 406),
        ("application/vnd.scc.suse.com.v99999999999999999999+json", 200),
    ],
)
def test_versions_of_the_api(client: FlaskClient, accept: str, status: int) -> None:
    auth = with_products(client, SP5)
    headers = {**auth, "Accept": accept}
    sent = {"products": [body(SP5)]}
    assert client.post("/connect/systems/products/synchronize", json=sent, headers=headers).status_code == status
    everywhere = client.get("/connect/systems/activations", headers=headers).status_code
    assert everywhere == (406 if status == 406 else 200)


def test_owners_bring_a_registration_code(client: FlaskClient) -> None:
    refused = client.post(
        "/connect/subscriptions/systems", json={"hostname": "h"}, headers={"Authorization": "Token token=BAD"}
    )
    assert (refused.status_code, error(refused)) == (401, "Unknown Registration Code.")
    auth = with_products(client, SP5, regcode="GOOD-CODE")
    (shown,) = client.get("/connect/systems/activations", headers=auth).json or ()
    assert (shown["regcode"], shown["status"]) == ("GOOD-CODE", "ACTIVE")
    payg = with_products(client, SP5, MODULE5)
    (base, _) = client.get("/connect/systems/activations", headers=payg).json or ()
    assert (base["regcode"], base["status"], base["expires_at"]) == (None, None, None)
    bad = client.post("/connect/systems/products", json=body(LTSS, token="BAD"), headers=payg)
    assert error(bad) == "No subscription with this Registration Code found"
    hybrid = client.post("/connect/systems/products", json=body(LTSS, token="GOOD-CODE"), headers=payg)
    assert hybrid.status_code == 201


def test_a_code_that_is_withdrawn_ends_the_use_of_repositories(settings: UpdateSettings, tmp_path: Path) -> None:
    here = replace(settings, database=str(tmp_path / "r.sqlite"))
    auth = with_products(app_of(here).test_client(), SP5, regcode="GOOD-CODE")
    later = app_of(replace(here, regcodes=("OTHER",))).test_client()
    assert later.get("/repo/SUSE/Products/SLES/15-SP5/repodata/repomd.xml", headers=auth).status_code == 403
    assert app_of(here).test_client().get("/services/1", headers=auth).status_code == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("SUSE/Products/SLES/15-SP5/repodata/repomd.xml", 200),
        ("SUSE/Products/SLES/15-SP5/a%20b%2bc~1.rpm", 200),
        ("SUSE/Products/SLES/15-SP6/repodata/repomd.xml", 403),
        ("module/repodata/repomd.xml", 403),
        ("SUSE/Products/repodata/repomd.xml", 403),
        ("SUSE/Products/SLES/15-SP5/repodata", 404),
        ("SUSE/Products/SLES/15-SP5/", 404),
        ("SUSE/Products/SLES/15-SP5/out", 404),
        ("SUSE/Products/SLES/15-SP5/loop", 404),
        ("SUSE/Products/SLES/15-SP5/../sp6/repodata/repomd.xml", 404),
        ("SUSE/Products/SLES/15-SP5/%2e%2e/%2e%2e/secret", 404),
        ("SUSE/Products/SLES/15-SP5/..%2fsecret", 404),
        ("SUSE/Products/SLES/15-SP5/%00", 404),
        ("SUSE/Products/SLES/15-SP5/" + "x" * 300, 404),
        ("SUSE/Products/SLES/15-SP5/product.license/../repodata/repomd.xml", 404),
        ("nowhere/file", 404),
    ],
)
def test_an_instance_gets_its_own_products_files_only(client: FlaskClient, path: str, status: int) -> None:
    auth = with_products(client, SP5)
    got = client.get(f"/repo/{path}", headers=auth, environ_overrides={"RAW_URI": f"/repo/{path}"})
    assert got.status_code == status
    assert client.get(f"/repo/{path}", environ_overrides={"RAW_URI": f"/repo/{path}"}).status_code == 401
    if ".." not in path and "%2e" not in path:  # what a web server in front asks
        asked = client.get("/api/auth/check", headers={**auth, "X-Original-URI": f"/repo/{path}?x=1"})
        assert asked.status_code == (403 if status == 403 else 200)


def test_licences_can_be_read_by_everybody(client: FlaskClient) -> None:
    path = "/repo/SUSE/Products/SLES/15-SP5/product.license/license.txt"
    assert client.get(path).text == "be free"
    assert client.get("/api/auth/check", headers={"X-Original-URI": path}).status_code == 200
    assert client.get("/api/auth/check", headers={"X-Original-URI": "/repo/module/x"}).status_code == 401
    assert client.get("/api/auth/check", headers={"X-Original-URI": "%/../product.license/x"}).status_code == 401


def test_what_an_instance_pays_for(client: FlaskClient) -> None:
    good = client.get("/api/instance/check?metadata=anything&identifier=sles")
    assert (good.status_code, good.json) == (200, {"flavor": "PAYG"})
    for query in ("", "?identifier=SLES", "?metadata=x&identifier=nothing", "?metadata=x"):
        bad = client.get(f"/api/instance/check{query}")
        assert (bad.status_code, bad.json) == (422, {"flavor": "BYOS"})


HOSTILE = [
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b'{"hostname": "\\ud800", "instance_data": "\\udfff\\u0000"}',
    b"\xff\xfe{\x00}\x00",
    b"\xff",
    b'{"hostname": NaN}',
    b'{"hwinfo": {"a": Infinity}}',
    b'{"hostname": ' + b"9" * 10_000 + b"}",
    b"null",
    b"\x00",
    b'{"installed_products": {"a": 1}, "products": {"a": []}, "identifier": {"a": 1}, "version": 1, "arch": null}',
    b'{"installed_products": [[1], null, {"identifier": ["x"]}], "target_base_product": [], "products": [[1], 7, {}]}',
]


@pytest.mark.parametrize("sent", HOSTILE, ids=range(len(HOSTILE)))
def test_no_body_is_an_error_of_the_server(client: FlaskClient, sent: bytes) -> None:
    auth = with_products(client, SP5)
    for rule in client.application.url_map.iter_rules():
        for method in (rule.methods or set()) & {"GET", "POST", "PUT", "DELETE"}:
            if "<" in rule.rule or (rule.rule, method) == ("/connect/systems", "DELETE"):
                continue
            answer = client.open(rule.rule, method=method, data=sent, headers=auth)
            assert answer.status_code < 500, (method, rule.rule)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = (
    "hostname",
    "hwinfo",
    "instance_data",
    "identifier",
    "version",
    "arch",
    "token",
    "installed_products",
    "products",
)


@pytest.fixture(scope="module")
def shared_client(settings: UpdateSettings) -> tuple[FlaskClient, dict[str, str]]:
    client = app_of(settings).test_client()
    return client, with_products(client, SP5)


@settings_of(max_examples=25)
@given(sent=st.dictionaries(st.sampled_from(KEYS), json_values))
def test_no_json_is_an_error_of_the_server(
    sent: dict[str, object], shared_client: tuple[FlaskClient, dict[str, str]]
) -> None:
    client, auth = shared_client
    text = json.dumps(sent)
    for method, path in (
        ("POST", "/connect/subscriptions/systems"),
        ("PUT", "/connect/systems"),
        ("GET", "/connect/systems/products"),
        ("POST", "/connect/systems/products"),
        ("PUT", "/connect/systems/products"),
        ("POST", "/connect/systems/products/migrations"),
    ):
        assert client.open(path, method=method, data=text, headers=auth).status_code < 500


TOML = """
[server]
fqdn = "update-a.test.invalid"
listen = ["127.0.0.2:443"]
certificate = "server.pem"
key = "server.key"
ca = "ca.pem"
database = "db/registrations.sqlite"
[[product]]
identifier = "SLES"
version = "15.6"
arch = "x86_64"
repositories = ["product"]
[[product]]
id = 1
identifier = "module"
version = "15.6"
arch = "x86_64"
product_type = "module"
extends = ["SLES/15.6/x86_64"]
[[repository]]
alias = "product"
folder = "repo"
"""


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    for name in ("server.pem", "server.key", "ca.pem"):
        (tmp_path / name).write_text(name)
    (tmp_path / "repo").mkdir()
    (tmp_path / "server.toml").write_text(TOML)
    return tmp_path / "server.toml"


def test_a_server_is_described_in_one_file(toml: Path) -> None:
    read = read_toml(toml)
    assert read.listen == ("127.0.0.2:443",)
    assert read.update.database == str(toml.parent / "db/registrations.sqlite")
    assert [(one.identifier, one.id) for one in read.update.products] == [("SLES", 2), ("module", 1)]
    assert read.update.folders[0].folder == str(toml.parent / "repo")
    other = read_toml(toml, given={"fqdn": "b.test.invalid"}, listen=["127.0.0.3:444"])
    assert (other.update.fqdn, other.listen) == ("b.test.invalid", ("127.0.0.3:444",))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('fqdn = "update-a.test.invalid"', "", ["server.fqdn: Field required"]),
        ("listen =", "listne =", ["server.listne: Unexpected keyword"]),
        ('ca = "ca.pem"', 'ca = "none.pem"', ["server.ca: 'none.pem' is not there"]),
        ('folder = "repo"', 'folder = "ropo"', ["repository product: 'ropo' is not there"]),
        ('"product"]', '"produce"]', ["product SLES/15.6/x86_64: names the repository 'produce'"]),
        (
            'extends = ["SLES/15.6/x86_64"]',
            'extends = ["SLES/15/x86_64", "module/15.6/x86_64"]',
            ["module/15.6/x86_64: extends 'SLES/15/x86_64', which is not there", "module/15.6/x86_64: extends itself"],
        ),
        ('product_type = "module"', 'product_type = "base"', ["must extend a product unless it is a base product"]),
        ("[[product]]\nid = 1", "[[product]]\nid = 1\nfree = 7", ["product.1.free"]),
        ("[server]", "[server", []),
        ('fqdn = "update-a.test.invalid"', 'fqdn = "https://a"', ["server.fqdn: 'https://a' is no DNS name"]),
        ('version = "15.6"', 'version = "15/6"', ["has the version '15/6'"]),
        ('alias = "product"', 'alias = "product"\nlocation = "a/../b"', ["'a/../b' is no place below /repo/"]),
        ('folder = "repo"', 'folder = "repo"\n[[repository]]\nalias = "product"\nfolder = "repo"', ["is there twice"]),
    ],
)
def test_all_faults_of_the_file_are_told(toml: Path, old: str, new: str, told: list[str]) -> None:
    assert old in TOML
    toml.write_text(TOML.replace(old, new))
    with pytest.raises(InputFault) as caught:
        read_toml(toml)
    said = "\n".join(caught.value.lines())
    assert all(one in said for one in told), said
    assert str(toml) in said


def test_registrations_of_another_version_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    Registrations(path).close()
    import sqlite3

    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(RegionError, match="version 99"):
        Registrations(path)
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(RegionError, match="holds no registrations"):
        Registrations(path)


def test_a_provider_that_is_not_there_is_a_fault(settings: UpdateSettings) -> None:
    for name in ("nothing", "nowhere.module:Class", "json:nothing"):
        with pytest.raises(InputFault, match="there is no instance verification provider"):
            app_of(replace(settings, verification=VerificationSettings(provider=name)))
