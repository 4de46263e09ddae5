# SPDX-License-Identifier: Apache-2.0
"""A new description from one that is there: good at once, and nothing else is touched."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from factory.describe import generic_twice, image_faults, load_description
from factory.describe.load import images
from factory.describe.scaffold import scaffold
from factory.errors import InputFault
from factory.model import Site
from factory.system.clock import now

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in ("common", "debian13"):
        shutil.copytree(PROJECT / "descriptions" / name, tmp_path / "descriptions" / name, symlinks=True)
    shutil.copytree(PROJECT / "keys", tmp_path / "keys")
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_new_description_is_good_at_once_and_differs_only_in_what_two_images_cannot_share(project: Path) -> None:
    before = contents(project)
    made = scaffold(project, "web", source="debian13")
    found, source = load_description(project, "web"), load_description(project, "debian13")
    assert (found.name, found.line) == ("web", "Standard_web") == (made.image, made.line)
    assert found.metadata == {**source.metadata, "os_purpose": "custom"}
    assert found.budgets == source.budgets
    assert image_faults(project, "web", site=Site(), now=now()) == ()
    assert generic_twice(project) == ()
    after = contents(project)
    assert {name: after[name] for name in before} == before
    assert {name.split("/")[1] for name in after if name not in before} == {"web"}
    own = {name: body for name, body in contents(project / "descriptions" / "web").items() if name != "README.md"}
    assert own.keys() == contents(project / "descriptions" / "debian13").keys()
    changed = [name for name, body in own.items() if body != before[f"descriptions/debian13/{name}"]]
    assert sorted(changed) == ["config.xml", "image.toml"]
    assert "web" in (project / "descriptions" / "web" / "README.md").read_text()
    # comments stay, and three lines are others
    lines = (own["image.toml"].splitlines(), before["descriptions/debian13/image.toml"].splitlines())
    assert sum(one != other for one, other in zip(*lines, strict=True)) == 3


@pytest.mark.parametrize("source", [name for name in images(PROJECT) if name != "debian13"])
def test_each_image_of_ours_can_be_a_start(tmp_path: Path, source: str) -> None:
    shutil.copytree(PROJECT / "descriptions", tmp_path / "descriptions", symlinks=True)
    shutil.copytree(PROJECT / "keys", tmp_path / "keys")
    faults = image_faults(tmp_path, source, site=Site(), now=now())
    made = scaffold(tmp_path, "web", source=source)
    assert made.builder == load_description(tmp_path, source).builder
    own = [str(one) for one in image_faults(tmp_path, "web", site=Site(), now=now())]
    # what this host lacks for the source, it lacks for the copy
    assert own == [str(one).replace(f"descriptions/{source}/", "descriptions/web/") for one in faults]


def test_a_copy_of_a_copy_and_a_line_of_ones_own(project: Path) -> None:
    scaffold(project, "web", source="debian13")
    made = scaffold(project, "web.2", source="web", line="Web_Two")
    assert made.line == load_description(project, "web.2").line == "Web_Two"
    assert made.changed == ()
    assert images(project) == ("debian13", "web", "web.2")


def test_a_dry_run_keeps_nothing(project: Path) -> None:
    before = contents(project)
    assert scaffold(project, "web", source="debian13", dry_run=True).line == "Standard_web"
    assert contents(project) == before
    assert sorted(path.name for path in (project / "descriptions").iterdir()) == ["common", "debian13"]


@pytest.mark.parametrize(
    ("name", "source", "line", "says"),
    [
        ("web", "debain13", "", "did you mean 'debian13'?"),
        ("web", "slackware", "", "known: debian13"),
        ("web", "common", "", "there is no image 'common'"),
        ("debian13", "debian13", "", "is there already"),
        ("taken", "debian13", "", "is there already"),
        ("link", "debian13", "", "is there already"),
        ("common", "debian13", "", "no image can be called 'common'"),
        ("Web", "debian13", "", "no image can be called 'Web'"),
        ("../web", "debian13", "", "no image can be called '../web'"),
        ("a/b", "debian13", "", "no image can be called 'a/b'"),
        ("", "debian13", "", "no image can be called ''"),
        (".new", "debian13", "", "no image can be called '.new'"),
        ("web\n", "debian13", "", "no image can be called"),
        ("x" * 64, "debian13", "", "at most 63"),
        ("web", "debian13", "a b", "no line can be called 'a b'"),
        ("web", "debian13", "Standard_Debian_13", "is that of image 'debian13'"),
    ],
)
def test_what_cannot_be_made_is_refused_and_leaves_nothing(project: Path, name, source, line, says) -> None:
    (project / "descriptions" / "taken").mkdir()
    (project / "descriptions" / "link").symlink_to("nowhere")
    before = contents(project), sorted(project.glob("descriptions/*"))
    with pytest.raises(InputFault) as refused:
        scaffold(project, name, source=source, line=line)
    assert says in "\n".join(refused.value.lines())
    assert (contents(project), sorted(project.glob("descriptions/*"))) == before


def test_a_source_with_faults_is_no_start(project: Path) -> None:
    path = project / "descriptions" / "debian13" / "image.toml"
    path.write_text(path.read_text().replace('publish = "every-night"', 'publish = "sometimes"'))
    with pytest.raises(InputFault) as refused:
        scaffold(project, "web", source="debian13")
    assert "image.publish" in "\n".join(refused.value.lines())
    assert images(project) == ("debian13",)


SMALL = """\
[update_repositories.debian]
suites = ["trixie"]
key = "/usr/share/keyrings/debian-archive-keyring.pgp"
"""


@pytest.mark.parametrize(
    "written",
    [
        '[image]\nname = "small"\nline = "Small_1"\n',
        "[image]\n  name='small' # called so\n  line = 'Small_1'\n[metadata]\nos_version = \"9\"\n",
        '[image]\nline = "Small_1"\nname = "small"\n[metadata]\nos_purpose = "generic" # for now\n',
        'image.name = "small"\nimage.line = "Small_1"\n',
    ],
)
def test_names_are_changed_however_they_are_written(tmp_path: Path, written: str) -> None:
    folder = tmp_path / "descriptions" / "small"
    folder.mkdir(parents=True)
    (folder / "image.toml").write_text(written + SMALL)
    scaffold(tmp_path, "other", source="small")
    found = load_description(tmp_path, "other")
    assert (found.name, found.line, found.metadata["os_purpose"]) == ("other", "Small_other", "custom")
    assert generic_twice(tmp_path) == ()
    kept = [one for one in written.split() if "#" in one or one in {"called", "so", "for", "now"}]
    assert all(one in (tmp_path / "descriptions" / "other" / "image.toml").read_text() for one in kept)


FOREIGN = """\
[image]
name = "small"
line = "Community_Small_1"
builder = "foreign"
[foreign]
url = "https://vendor.example/small.qcow2"
sha256 = "%s"
signature = "https://vendor.example/small.qcow2.sig"
key = "%s"
"""


def test_a_copy_of_a_vendors_image_wants_its_own_key(tmp_path: Path) -> None:
    folder, keys = tmp_path / "descriptions" / "small", tmp_path / "keys" / "vendor"
    for one in (folder, keys):
        one.mkdir(parents=True)
    (folder / "image.toml").write_text(FOREIGN % ("ab" * 32, "AB" * 20))
    (keys / "small.asc").write_text("a key")
    with pytest.raises(InputFault) as refused:
        scaffold(tmp_path, "other", source="small")
    assert "keys/vendor/other.asc" in "\n".join(refused.value.lines())
    (keys / "other.asc").write_text("a key")
    assert scaffold(tmp_path, "other", source="small").line == "Community_other"


def test_what_cannot_be_changed_by_the_line_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "descriptions" / "small"
    folder.mkdir(parents=True)
    (folder / "image.toml").write_text('image = {name = "small", line = "Small_1"}\n' + SMALL)
    with pytest.raises(InputFault) as refused:
        scaffold(tmp_path, "other", source="small")
    assert "image.toml:1 image.name: is not on a line of its own" in "\n".join(refused.value.lines())
    assert images(tmp_path) == ("small",)


@settings(max_examples=40)
@given(st.from_regex(r"[a-z0-9]([a-z0-9._-]{0,20}[a-z0-9])?", fullmatch=True))
def test_every_name_that_the_schema_takes_can_be_made(tmp_path_factory, name: str) -> None:
    assume(name not in {"small", "common"})
    project = tmp_path_factory.mktemp("p")
    folder = project / "descriptions" / "small"
    folder.mkdir(parents=True)
    (folder / "image.toml").write_text('[image]\nname = "small"\nline = "Small_1"\n' + SMALL)
    scaffold(project, name, source="small", line="Other_1")
    assert load_description(project, name).name == name
