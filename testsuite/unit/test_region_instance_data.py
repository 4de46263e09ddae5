# SPDX-License-Identifier: Apache-2.0
"""The dataProvider of OpenStack images: from the metadata service, a config drive, and cloud-init where neither is."""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from factory.sandbox.metadata import ADDRESS, metadata_service
from factory.sandbox.seed import Datasource, Seed, fresh_key, write_seed
from factory.system.namespaces import NetworkNamespace, network_namespace
from factory.system.run import Completed, run

pytestmark = pytest.mark.programs

GUEST = Path(__file__).parents[2] / "factory/region/guest"
PROVIDER, PLUGIN = GUEST / "instance-data", GUEST / "openstackregion.py"
UUID = "11111111-2222-4333-8444-555555555555"
PROJECT = "0123456789abcdef0123456789abcdef"
SIGNED = {"document": "e30=", "signature": "c2ln", "algorithm": "ed25519", "more": "kept"}
CLOUD_INIT = "run/cloud-init/instance-data.json"
PYTHONS = tuple(
    str(found)
    for version in ("3.6", "3.13")
    for found in sorted((Path.home() / ".pyenv/versions").glob(f"{version}.*/bin/python{version}"))[-1:]
) or (sys.executable,)


def load(program: Path) -> ModuleType:
    loader = importlib.machinery.SourceFileLoader(program.name.replace("-", "_"), str(program))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


provider = load(PROVIDER)


@pytest.mark.parametrize("program", [PROVIDER, PLUGIN], ids=lambda path: path.name)
def test_it_is_python_3_6_and_needs_the_standard_library_only(program: Path) -> None:
    tree = ast.parse(program.read_text(), feature_version=(3, 6))
    names = {one.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for one in node.names}
    names |= {node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    assert names <= sys.stdlib_module_names


def test_what_both_programs_share_is_the_same_text() -> None:
    def shared(program: Path) -> str:
        _, start, rest = program.read_text().partition("# -- reading OpenStack's documents")
        found, end, _ = rest.partition("# -- the end of what is the same")
        assert start
        assert end
        return found

    assert shared(PROVIDER) == shared(PLUGIN)


def put(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


BASE_PRODUCT = "<product><name>SLES</name><version>15.7</version><arch>x86_64</arch><a><name>no</name></a></product>"
OS_RELEASE = 'ID="opensuse-leap"\nVERSION_ID="15.6"\n'


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"etc/guestregister.conf": "[registration]\nproduct = debian/13/x86_64\n"}, "debian/13/x86_64"),
        ({"etc/products.d/baseproduct": BASE_PRODUCT, "etc/os-release": OS_RELEASE}, "SLES/15.7/x86_64"),
        ({"etc/products.d/baseproduct": "<!DOCTYPE a [<!ENTITY b 'c'>]>" + BASE_PRODUCT}, None),
        ({"etc/products.d/baseproduct": "<product>"}, None),
        ({"etc/guestregister.conf": "[registration]\nproduct = nonsense\n"}, None),
        ({"etc/guestregister.conf": "not ini"}, None),
        ({"etc/os-release": 'ID="un"balanced"\nVERSION_ID=1\n'}, None),
        ({}, None),
    ],
)
def test_the_product_is_found(tmp_path: Path, files: dict[str, str], found: str | None) -> None:
    assert provider.product(str(put(tmp_path, files))) == found


def test_without_anything_else_the_product_is_what_the_system_calls_itself(tmp_path: Path) -> None:
    put(tmp_path, {"usr/lib/os-release": "ID=debian\nVERSION_ID=12\n", "etc/os-release": OS_RELEASE})
    assert provider.product(str(tmp_path)).startswith("opensuse-leap/15.6/")


@pytest.fixture(scope="module")
def namespace() -> Iterator[NetworkNamespace]:
    with network_namespace() as made:
        yield made


@pytest.fixture(scope="module")
def served(namespace: NetworkNamespace) -> Iterator[dict[str, str]]:
    """What the metadata service serves, to be changed at will."""
    files: dict[str, str] = {}
    with metadata_service(namespace, files):
        yield files


@pytest.fixture
def service(served: dict[str, str]) -> dict[str, str]:
    served.clear()
    served.update(documents())
    return served


@pytest.fixture(scope="module")
def desert() -> Iterator[NetworkNamespace]:
    """A network without a metadata service."""
    with network_namespace() as made:
        yield made


def ask(namespace: NetworkNamespace, root: Path, *options: str | Path, python: str = sys.executable) -> Completed:
    argv = [python, "-W", "error", PROVIDER, "--root", root, *options]
    return run(namespace.inside(argv), check=False, timeout_s=60)


def documents(**changes: object) -> dict[str, str]:
    metadata = {"uuid": UUID, "project_id": PROJECT, "availability_zone": "eu-1a", **changes}
    vendor = {"static": {}, "image_factory": SIGNED}
    return {
        "openstack/latest/meta_data.json": json.dumps(metadata),
        "openstack/latest/vendor_data2.json": json.dumps(vendor),
    }


def instance_root(tmp_path: Path) -> Path:
    return put(tmp_path / "root", {"etc/guestregister.conf": "[registration]\nproduct = debian/13/x86_64\n"})


def expected(**changes: object) -> dict[str, object]:
    return {
        "schema": "image-factory/instance/1",
        "instance_id": UUID,
        "project_id": PROJECT,
        "product": "debian/13/x86_64",
        "vendordata": SIGNED,
        **changes,
    }


def assert_says(done: Completed, found: dict[str, object]) -> None:
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\n")
    assert done.stdout.count("\n") == 1
    assert json.loads(done.stdout) == found


@pytest.mark.needs_root
@pytest.mark.parametrize("python", PYTHONS)
def test_the_metadata_service_tells(
    namespace: NetworkNamespace, service: dict[str, str], tmp_path: Path, python: str
) -> None:
    assert_says(ask(namespace, instance_root(tmp_path), python=python), expected())


@pytest.mark.needs_root
@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"openstack/latest/vendor_data2.json": "{}"}, None),
        ({"openstack/latest/vendor_data2.json": '{"image_factory": {"document": 7}}'}, None),
        ({"openstack/latest/vendor_data2.json": "[" * 100000}, None),
        (
            {
                "openstack/latest/vendor_data2.json": "{}",
                "openstack/latest/vendor_data.json": json.dumps({"image_factory": SIGNED}),
            },
            SIGNED,
        ),
    ],
)
def test_vendordata_is_passed_on_where_it_is_offered(
    namespace: NetworkNamespace, service: dict[str, str], tmp_path: Path, changes: dict[str, str], found: object
) -> None:
    service.update(changes)
    assert_says(ask(namespace, instance_root(tmp_path)), expected(vendordata=found))


@pytest.mark.needs_root
@pytest.mark.parametrize("metadata", ["not json", "[]", '{"uuid": 7}', '{"uuid": "a b"}', '{"uuid": "' + "a" * 2000000])
def test_metadata_that_tells_nothing_is_nothing_said(
    namespace: NetworkNamespace, service: dict[str, str], tmp_path: Path, metadata: str
) -> None:
    service["openstack/latest/meta_data.json"] = metadata
    done = ask(namespace, instance_root(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


@pytest.mark.needs_root
def test_without_openstack_nobody_waits(desert: NetworkNamespace, tmp_path: Path) -> None:
    done = ask(desert, instance_root(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


@pytest.mark.needs_root
def test_with_nocloud_the_instance_id_is_cloud_inits(
    desert: NetworkNamespace, namespace: NetworkNamespace, service: dict[str, str], tmp_path: Path
) -> None:
    root = instance_root(tmp_path)
    put(root, {CLOUD_INIT: json.dumps({"v1": {"platform": "nocloud", "instance_id": "factory-first-1"}})})
    found = expected(instance_id="factory-first-1", project_id=None, vendordata=None)
    assert_says(ask(desert, root), found)
    assert_says(ask(namespace, root), found)  # somebody else's metadata service is not asked


@pytest.mark.needs_root
def test_an_address_that_swallows_everything_is_given_up_soon(desert: NetworkNamespace, tmp_path: Path) -> None:
    desert.add_address(ADDRESS)
    try:
        with desert.listen(ADDRESS, 80):  # accepts by its backlog and never answers
            done = ask(desert, instance_root(tmp_path))
    finally:
        desert.drop_address(ADDRESS)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    assert done.seconds < 10


def iso(tmp_path: Path, *options: str) -> Path:
    """A CD as Nova writes it, with these options of genisoimage."""
    put(tmp_path / "drive", {**documents(), **{f"openstack/latest/other-{number}": "x" for number in range(99)}})
    path = tmp_path / "drive.iso"
    argv = ["genisoimage", "-quiet", "-o", path, *(options or ("-J", "-r")), "-V", "config-2", tmp_path / "drive"]
    subprocess.run(argv, check=True, capture_output=True)
    return path


PLAIN_CD = ("-ldots", "-allow-lowercase", "-allow-multidot", "-l")


@pytest.mark.needs_root
@pytest.mark.parametrize("options", [(), PLAIN_CD], ids=["joliet", "plain"])
def test_a_config_drive_on_a_cd_tells(desert: NetworkNamespace, tmp_path: Path, options: tuple[str, ...]) -> None:
    assert_says(ask(desert, instance_root(tmp_path), "--config-drive", iso(tmp_path, *options)), expected())


@pytest.mark.needs_root
@pytest.mark.parametrize(("size_mib", "bits"), [(1, 12), (64, 16), (80, 32)])
def test_a_config_drive_with_vfat_tells(desert: NetworkNamespace, tmp_path: Path, size_mib: int, bits: int) -> None:
    drive = tmp_path / "drive.img"
    with drive.open("wb") as file:
        file.truncate(size_mib << 20)
    put(tmp_path / "drive", {**documents(), "openstack/latest/other": "x" * 99999})
    formatted = ["mkfs.vfat", "-n", "config-2", "-F", str(bits), *(["-s", "1"] if bits == 32 else []), drive]
    subprocess.run(formatted, check=True, capture_output=True)
    subprocess.run(["mcopy", "-s", "-i", drive, tmp_path / "drive/openstack", "::"], check=True)
    assert_says(ask(desert, instance_root(tmp_path), "--config-drive", drive), expected())


@pytest.mark.needs_root
def test_the_sandboxs_own_config_drive_tells(desert: NetworkNamespace, tmp_path: Path) -> None:
    seed = Seed(key=fresh_key(tmp_path), instance_id="x", hostname="h", datasource=Datasource.CONFIG_DRIVE)
    drive = write_seed(seed, tmp_path / "seed.img")
    done = ask(desert, instance_root(tmp_path), "--config-drive", drive)
    found = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(found["instance_id"]) == len(UUID)
    assert (found["project_id"], found["vendordata"]) == (None, None)


@pytest.mark.needs_root
def test_a_drive_that_is_none_is_nothing_said(desert: NetworkNamespace, tmp_path: Path) -> None:
    (tmp_path / "junk").write_bytes(b"junk" * 100000)
    (tmp_path / "empty").touch()
    for name in ("junk", "empty", "missing"):
        done = ask(desert, instance_root(tmp_path), "--config-drive", tmp_path / name)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_drive_is_never_more_than_nothing(drives: tuple[Path, ...], data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(drives)).read_bytes())
    for _ in range(data.draw(st.integers(1, 20))):
        place = data.draw(st.integers(0, min(len(content), 80000) - 1))
        content[place] = data.draw(st.integers(0, 255))
    spoiled = drives[0].with_name("spoiled")
    spoiled.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    os.environ[provider.DRIVE_VARIABLE] = str(spoiled)
    try:
        assert isinstance(provider.from_drive("meta_data.json"), bytes)
    finally:
        del os.environ[provider.DRIVE_VARIABLE]


@pytest.fixture(scope="module")
def drives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    folder = tmp_path_factory.mktemp("drives")
    seed = Seed(key=fresh_key(folder), instance_id="x", hostname="h", datasource=Datasource.CONFIG_DRIVE)
    return write_seed(seed, folder / "seed.img"), iso(folder)
