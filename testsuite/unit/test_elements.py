# SPDX-License-Identifier: Apache-2.0
"""Images by diskimage-builder: their elements, their build tree, and what the builder is told in its box."""

from __future__ import annotations

import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from factory.build import dib
from factory.build.identity import identity
from factory.build.tools import LISTS, read_list
from factory.describe import describe, scaffold
from factory.describe.elements import resolve_elements
from factory.describe.load import load_description
from factory.errors import InputFault
from factory.model import Recipe, Region, Repository, Site
from factory.region.check import tree_subject
from factory.region.embedded import embedded_region
from factory.system.state import Run

PROJECT = Path(__file__).parents[2]
DESCRIPTIONS = PROJECT / "descriptions"
NOW = datetime(2026, 6, 1, tzinfo=UTC)
ADDRESSES = {"debian": "http://mirror.test/debian", "debian-security": "http://mirror.test/security"}
SITE = Site(update_repositories=ADDRESSES)
IMAGE = "debian13-dib"


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Region:
    return embedded_region(tmp_path_factory.mktemp("region"), now=NOW)


@pytest.fixture(scope="module")
def recipes(region: Region, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Recipe]:
    """The same Debian, once for each builder."""
    folder = tmp_path_factory.mktemp("runs")
    return {image: resolved(PROJECT, image, folder, region) for image in (IMAGE, "debian13")}


def resolved(project: Path, image: str, folder: Path, region: Region) -> Recipe:
    run = Run(path=folder / f"20260601-000000-{image}")
    run.path.mkdir(parents=True)
    return describe(project, image, site=SITE, regions=(region,), run=run, now=NOW)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the descriptions, to spoil."""
    shutil.copytree(DESCRIPTIONS, tmp_path / "project" / "descriptions", symlinks=True)
    return tmp_path / "project"


def graph(project: Path, image: str = IMAGE):
    folder = project / "descriptions"
    return resolve_elements(folder / image, folder / "common", image=image, shown=f"descriptions/{image}")


# -- the graph of elements


def test_the_image_leads_to_the_projects_elements_and_to_dibs_own() -> None:
    found = {one.name: one.own for one in graph(PROJECT)}
    assert {name for name, own in found.items() if own} == {IMAGE, "image-factory", "image-factory-debian"}
    assert {"dpkg", "package-installs", "block-device-mbr"} <= set(found)
    # these would lay packages, an own bootloader and settings into the image that nobody asked for
    assert not {"base", "bootloader", "cloud-init", "debootstrap", "vm"} & set(found)


def test_an_element_of_the_image_wins_over_the_common_one(project: Path) -> None:
    own = project / "descriptions" / IMAGE / "elements" / "image-factory"
    shutil.copytree(project / "descriptions/common/elements/image-factory", own)
    assert {one.path for one in graph(project) if one.name == "image-factory"} == {own}


def written(text: str, *names: str):
    def spoil(folder: Path) -> None:
        path = folder.joinpath(*names)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    return spoil


OWN = ("elements", IMAGE)
FAULTS = {
    "no element": (lambda folder: shutil.rmtree(folder / "elements"), f"elements/{IMAGE} is not there"),
    "unknown": (written("image-factory\nno-such-thing\n", *OWN, "element-deps"), "Element 'no-such-thing' not found"),
    "no system": (written("image-factory\n", *OWN, "element-deps"), "include an operating system"),
    "two systems": (
        written("image-factory\nimage-factory-debian\ndebian-minimal\n", *OWN, "element-deps"),
        "operating-system: already provided by",
    ),
    "no image-factory": (
        written("image-factory-debian\nblock-device-mbr\n", *OWN, "element-deps"),
        "does not lead to 'image-factory'",
    ),
    "hook twice": (written("", *OWN, "cleanup.d", "99-image-factory"), "has one of that name, too"),
    "no yaml": (written("a: [\n", *OWN, "package-installs.yaml"), "is not YAML"),
    "no mapping": (written("- a\n", *OWN, "package-installs.yaml"), "is not a list of 'package:' lines"),
    "no package": (written('"a b":\n', *OWN, "package-installs.yaml"), "'a b' is no name of a package"),
    "no options": (written("nano: yes\n", *OWN, "package-installs.yaml"), "where options are expected"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_elements_that_make_no_image_are_told_before_a_build(
    case: str, project: Path, region: Region, tmp_path: Path
) -> None:
    spoil, says = FAULTS[case]
    spoil(project / "descriptions" / IMAGE)
    with pytest.raises(InputFault) as told:
        resolved(project, IMAGE, tmp_path / "runs", region)
    assert any(says in f"{fault.place} {fault.problem}" for fault in told.value.faults), told.value.lines()
    assert all(fault.place.startswith(f"descriptions/{IMAGE}") for fault in told.value.faults)


# -- side by side with kiwi


def test_both_builders_are_given_the_same_packages() -> None:
    config = ET.parse(DESCRIPTIONS / "debian13" / "config.xml")
    listed = yaml.safe_load((DESCRIPTIONS / IMAGE / "elements" / IMAGE / "package-installs.yaml").read_text())
    assert sorted(listed) == sorted(one.attrib["name"] for one in config.iter("package"))


def files(root: Path) -> dict[str, str | bytes]:
    return {
        path.relative_to(root).as_posix(): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def test_both_builders_lay_in_the_same_files_and_run_the_same_scripts(recipes: dict[str, Recipe]) -> None:
    by_dib, by_kiwi = recipes[IMAGE].tree, recipes["debian13"].tree
    assert files(by_dib / "root") == files(by_kiwi / "root")
    scripts = by_dib / "elements/image-factory/scripts"
    for name in ("post_bootstrap.sh", "config.sh", "pre_disk_sync.sh"):
        ours, theirs = (scripts / name).read_text(), (by_kiwi / name).read_text()
        # kiwi fills the initrd that it finds, dib's element makes one
        theirs = re.sub(r"# a place for the initrd.*?\ndone\n", "", theirs, flags=re.DOTALL)
        assert ours.replace(IMAGE, "debian13") == theirs


def test_both_are_described_alike() -> None:
    one, other = (load_description(PROJECT, image) for image in (IMAGE, "debian13"))
    for name in ("arch", "disk", "login_user", "console_password", "registration", "budgets", "update_repositories"):
        assert getattr(one, name) == getattr(other, name), name
    assert (one.builder, other.builder) == ("diskimage-builder", "kiwi")
    assert one.line != other.line


def test_hooks_and_kiwi_boot_with_the_same_command_line() -> None:
    kind = ET.parse(DESCRIPTIONS / "debian13" / "config.xml").find("preferences/type")
    settings = (DESCRIPTIONS / "common/elements/image-factory/environment.d/50-image-factory.bash").read_text()
    assert kind is not None
    assert f"DIB_BOOTLOADER_DEFAULT_CMDLINE:-{kind.attrib['kernelcmdline']}}}" in settings


# -- the build tree


def test_the_tree_is_made_of_elements_alone_and_always_the_same(
    recipes: dict[str, Recipe], region: Region, tmp_path: Path
) -> None:
    recipe = recipes[IMAGE]
    assert sorted(path.name for path in recipe.tree.iterdir()) == ["create_appliance.sh", "elements", "root"]
    assert resolved(PROJECT, IMAGE, tmp_path, region).tree_sha256 == recipe.tree_sha256
    hooks = recipe.tree / "elements/image-factory"
    assert (hooks / "root").resolve() == recipe.tree / "root"
    executable = [path for path in (recipe.tree / "elements").glob("*/*.d/*") if path.parent.name != "environment.d"]
    assert executable
    assert all(path.stat().st_mode & 0o111 for path in executable)


def test_a_tree_without_config_xml_is_examined_like_any(recipes: dict[str, Recipe]) -> None:
    subject = tree_subject(recipes[IMAGE].tree)
    assert subject.kind == "build tree"
    assert "dpkg --install" in subject.content.scripts


@pytest.mark.programs
def test_the_scripts_of_elements_are_shell(recipes: dict[str, Recipe]) -> None:
    tree = recipes[IMAGE].tree
    scripts = [*tree.glob("elements/*/*.d/*"), *tree.glob("elements/*/scripts/*"), tree / "create_appliance.sh"]
    assert len(scripts) > 8
    for script in scripts:
        subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.programs
def test_create_appliance_asks_for_its_builder_and_knows_the_repositories(
    recipes: dict[str, Recipe], tmp_path: Path
) -> None:
    script = recipes[IMAGE].tree / "create_appliance.sh"

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        path = {"PATH": str(programs)}
        return subprocess.run([bash, script, *words], capture_output=True, text=True, check=False, env=path)

    bash, programs = shutil.which("bash"), tmp_path / "bin"
    programs.mkdir()
    for name in ("dirname", "cat"):
        (programs / name).symlink_to(shutil.which(name) or "")
    assert "debian-security" in run("--help").stdout
    refused = run("--repo", "other=http://x.example/")
    assert refused.returncode == 2
    assert "there is no repository 'other'" in refused.stderr
    missing = run("--repo", "debian=http://x.example/")
    assert missing.returncode == 3
    assert "disk-image-create is not installed" in missing.stderr


@pytest.mark.programs
def test_create_appliance_runs_the_builder_on_the_tree(recipes: dict[str, Recipe], tmp_path: Path) -> None:
    """With programs that tell how they were called, and a device-mapper that is said to be there."""
    tree = shutil.copytree(recipes[IMAGE].tree, tmp_path / "tree", symlinks=True)
    script, said = tree / "create_appliance.sh", tmp_path / "said"
    script.write_text(script.read_text().replace("/dev/mapper/control", "/dev/null"))
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("disk-image-create", "mmdebstrap", "kpartx"):
        told = f'#!/bin/bash\n{{ printf "%s " "$@"; echo; env; }} >{said}\ntouch "${{@: -2:1}}.raw"\n'
        (programs / name).write_text(told)
        (programs / name).chmod(0o755)
    words = ["--repo", "debian=http://x.example/d", "--target", str(tmp_path / "out")]
    subprocess.run(["bash", script, *words], check=True, env={"PATH": f"{programs}:/usr/bin:/bin"}, cwd=tmp_path)
    text = said.read_text()
    assert text.splitlines()[0].endswith(f"-o {tmp_path}/out/{IMAGE} {IMAGE} ")
    assert "--image-size 4" in text
    assert f"ELEMENTS_PATH={tree}/elements" in text
    assert "debian-trixie:deb http://x.example/d trixie main" in text
    assert "debian-security-trixie-security:deb http://mirror.test/security trixie-security main" in text


def test_a_new_image_is_made_from_one_by_elements(project: Path, region: Region, tmp_path: Path) -> None:
    made = scaffold(project, "web", source=IMAGE)
    assert made.builder == "diskimage-builder"
    recipe = resolved(project, "web", tmp_path / "runs", region)
    assert sorted(path.name for path in (recipe.tree / "elements").iterdir()) == [
        "image-factory",
        "image-factory-debian",
        "web",
    ]
    assert dib.command(recipe)[-1] == "web"


# -- in the box


def test_dib_is_told_the_identifiers_and_no_address_but_the_inputs_server(recipes: dict[str, Recipe]) -> None:
    recipe, marks = recipes[IMAGE], identity(IMAGE, 1_700_000_000)
    told = dib.environment(recipe, marks)
    (disk, parts) = yaml.safe_load(told["DIB_BLOCK_DEVICE_CONFIG"])
    (root,) = parts["partitioning"]["partitions"]
    assert disk["local_loop"]["name"] == parts["partitioning"]["base"]
    assert root["mkfs"]["uuid"] == marks.root_uuid
    assert root["mkfs"]["name"] == "mkfs_root"  # dib knows the root file system by this name
    assert told["SOURCE_DATE_EPOCH"] == "1700000000"
    assert told["DIB_APT_SOURCES_CONF"].splitlines() == [
        "debian-trixie:deb [trusted=yes] http://127.0.0.1:3142/debian trixie main",
        "debian-trixie-updates:deb [trusted=yes] http://127.0.0.1:3142/debian trixie-updates main",
        "debian-security-trixie-security:deb [trusted=yes] http://127.0.0.1:3142/debian-security trixie-security main",
    ]
    assert not {url for text in told.values() for url in re.findall(r"//([^/ ]+)", text)} - {"127.0.0.1:3142"}
    assert dib.command(recipe)[-1] == IMAGE


def test_several_components_are_asked_for() -> None:
    repositories = (Repository(alias="a", url="", suites=("one", "two"), components=("main", "extra")),)
    assert [line.rpartition("/")[2] for line in dib.sources(repositories).splitlines()] == [
        "a one main extra",
        "a two main extra",
    ]


@pytest.mark.parametrize(
    ("log", "says"),
    [
        ("", "starting"),
        (
            "dib-run-parts Running /t/hooks/root.d/08-image-factory-debian\nI: running\n",
            "root.d/08-image-factory-debian",
        ),
        ("dib-run-parts Running /t/in_target.d/install.d/01-x\n> Unpacking nano (8) ...\n> ok\n", "Unpacking nano (8)"),
        ("> Setting up nano (8) ...\ndib-run-parts Running /t/finalise.d/50-x\n", "finalise.d/50-x"),
    ],
)
def test_progress_is_what_the_log_says_last(log: str, says: str) -> None:
    assert dib.doing(log) == says


def test_the_list_of_tools_pins_what_the_lock_of_this_environment_has() -> None:
    locked = (PROJECT / "locks" / "requirements.txt").read_text()
    (pinned,) = read_list(LISTS["diskimage-builder"]).python
    entry = re.search(
        rf"(?m)^{pinned.project}==(\S+) \\\n(?:    --hash=sha256:\S+ \\\n)*?    --hash=sha256:{pinned.sha256}", locked
    )
    assert entry is not None
    assert f"-{entry[1]}-" in pinned.file
    assert "//" not in re.sub(r"(?m)#.*", "", LISTS["diskimage-builder"].read_text())


@pytest.mark.programs
def test_sudo_of_the_box_keeps_the_environment_and_drops_its_options(tmp_path: Path) -> None:
    standin = PROJECT / "factory/build/inside/standins/sudo.sh"
    words = ["bash", standin, "-E", "-n", "sh", "-c", 'echo "$KEPT $1"', "sh", "-x"]
    found = subprocess.run(
        words, capture_output=True, text=True, check=True, env={"KEPT": "1", "PATH": "/usr/bin:/bin"}
    )
    assert found.stdout == "1 -x\n"
