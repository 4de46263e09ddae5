# SPDX-License-Identifier: Apache-2.0
"""From a description to a build tree: what is in it, that it is always the same, and what is refused before a build."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.describe import build_sources, check_image, describe
from factory.describe.checkout import checkout
from factory.describe.host_apt import host_repositories, parse_deb822, parse_one_line
from factory.describe.kiwi_xml import config_faults, parse, placeholder_alias, read_config, with_addresses
from factory.describe.load import load_description
from factory.describe.repositories import sources
from factory.describe.resolve import apt_source, chrony_sources
from factory.errors import InputFault
from factory.model import Recipe, Region, Repository, Site, VendorMirror
from factory.region.certificates import issue
from factory.region.embedded import embedded_region
from factory.system.state import Run

PROJECT = Path(__file__).parents[2]
NOW = datetime(2026, 6, 1, tzinfo=UTC)
ADDRESSES = {"debian": "http://mirror.test/debian", "debian-security": "http://mirror.test/security"}
SITE = Site(update_repositories=ADDRESSES)


@pytest.fixture(scope="session")
def region(tmp_path_factory: pytest.TempPathFactory) -> Region:
    return embedded_region(tmp_path_factory.mktemp("region"), now=NOW)


def resolve(folder: Path, region: Region, *, site: Site = SITE, project: Path = PROJECT) -> Recipe:
    run = Run(path=folder / "20260601-000000-debian13")
    run.path.mkdir(parents=True, exist_ok=True)
    return describe(project, "debian13", site=site, regions=(region,), run=run, now=NOW)


@pytest.fixture(scope="session")
def recipe(region: Region, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return resolve(tmp_path_factory.mktemp("run"), region)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the project's descriptions, to spoil."""
    shutil.copytree(PROJECT / "descriptions", tmp_path / "project" / "descriptions", symlinks=True)
    return tmp_path / "project"


def files(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): path.read_text(errors="replace")
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


# -- the tree ---------------------------------------------------------------------------------------------------------


def test_two_resolutions_give_the_same_digests(region: Region, recipe: Recipe, tmp_path: Path) -> None:
    again = resolve(tmp_path, region)
    assert again.tree_sha256 == recipe.tree_sha256
    assert again.digest == recipe.digest


def test_the_umask_and_times_do_not_count(region: Region, recipe: Recipe, copy: Path, tmp_path: Path) -> None:
    for path in (copy / "descriptions").rglob("*"):
        if path.is_symlink():
            continue  # one leads to /dev/null, whose mode is everybody's
        path.chmod(path.stat().st_mode & 0o700)
        os.utime(path, (1, 1))
    before = os.umask(0o077)
    try:
        again = resolve(tmp_path, region, project=copy)
    finally:
        os.umask(before)
    assert again.tree_sha256 == recipe.tree_sha256


def test_a_changed_file_gives_another_digest(region: Region, recipe: Recipe, copy: Path, tmp_path: Path) -> None:
    with (copy / "descriptions/common/root/etc/sysctl.d/90-hardening.conf").open("a") as file:
        file.write("# one line more\n")
    again = resolve(tmp_path, region, project=copy)
    assert again.tree_sha256 != recipe.tree_sha256
    assert again.digest != recipe.digest


def test_the_metadata_counts_although_it_is_not_in_the_tree(
    region: Region, recipe: Recipe, copy: Path, tmp_path: Path
) -> None:
    path = copy / "descriptions/debian13/image.toml"
    path.write_text(path.read_text().replace("used_mib = 2048", "used_mib = 2047"))
    again = resolve(tmp_path, region, project=copy)
    assert again.tree_sha256 == recipe.tree_sha256
    assert again.digest != recipe.digest


def test_resolving_again_replaces_the_tree(region: Region, tmp_path: Path) -> None:
    first = resolve(tmp_path, region)
    (first.tree / "stranger").write_text("left from before")
    again = resolve(tmp_path, region)
    assert not (again.tree / "stranger").exists()
    assert sorted(path.name for path in again.tree.parent.iterdir()) == ["tree"]


def test_the_tree_names_real_addresses_and_no_placeholder(recipe: Recipe) -> None:
    config = (recipe.tree / "config.xml").read_text()
    assert 'path="http://mirror.test/debian"' in config
    assert 'path="http://mirror.test/security"' in config
    assert not any(f"http://{alias}.example" in text for text in files(recipe.tree).values() for alias in ADDRESSES)


def test_a_private_build_mirror_is_nowhere_in_the_tree(region: Region, recipe: Recipe, tmp_path: Path) -> None:
    site = replace(SITE, mirrors={"debian": "http://private.test/debian"})
    found = resolve(tmp_path, region, site=site)
    assert found.mirrors["debian"] == "http://private.test/debian"
    assert found.mirrors["debian-security"] == "http://mirror.test/security"
    assert not any("private.test" in text for text in files(found.tree).values())
    assert found.digest == recipe.digest, "where the same bytes are read from does not shape the image"


def test_the_image_trusts_each_repository_by_its_own_key(recipe: Recipe) -> None:
    root = recipe.tree / "root" / "etc/apt/sources.list.d"
    assert sorted(path.name for path in root.iterdir()) == ["debian-security.sources", "debian.sources"]
    assert (root / "debian.sources").read_text() == (
        "Types: deb\nURIs: http://mirror.test/debian\nSuites: trixie trixie-updates\nComponents: main\n"
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.pgp\n"
    )


def test_the_image_carries_its_region(recipe: Recipe, region: Region) -> None:
    root = recipe.tree / "root"
    config = configparser.RawConfigParser()
    config.read(root / "etc/regionserverclnt.cfg")
    servers = config["server"]["regionsrv"].split(",")
    assert servers == [address for server in region.servers for address in server.addresses]
    for server, item in zip(region.servers, servers, strict=True):
        assert (root / f"usr/lib/regionService/certs/{item}.pem").read_text() == server.pem.read_text()
    assert os.access(root / "usr/sbin/guestregister", os.X_OK)
    assert (root / "etc/systemd/system/multi-user.target.wants/guestregister.service").is_symlink()
    assert not any("PRIVATE KEY" in text for name, text in files(root).items() if name.endswith(".pem"))


@pytest.mark.parametrize(("mode", "config", "enabled"), [("byos", True, False), ("none", False, False)])
def test_the_registration_mode_decides(
    region: Region, copy: Path, tmp_path: Path, mode: str, *, config: bool, enabled: bool
) -> None:
    path = copy / "descriptions/debian13/image.toml"
    path.write_text(path.read_text().replace('"on-demand"', f'"{mode}"'))
    root = resolve(tmp_path, region, project=copy).tree / "root"
    assert (root / "etc/regionserverclnt.cfg").exists() == config
    assert (root / "etc/systemd/system/multi-user.target.wants/guestregister.service").is_symlink() == enabled


def test_console_password_false_leaves_its_parts_out(
    region: Region, recipe: Recipe, copy: Path, tmp_path: Path
) -> None:
    with_it = {name for name in files(recipe.tree / "root") if "console-password" in name}
    path = copy / "descriptions/debian13/image.toml"
    path.write_text(path.read_text().replace("console_password = true", "console_password = false"))
    without = {
        name for name in files(resolve(tmp_path, region, project=copy).tree / "root") if "console-password" in name
    }
    assert len(with_it) == 3
    assert without == set()


def test_the_login_user_is_the_described_one_everywhere(region: Region, copy: Path, tmp_path: Path) -> None:
    path = copy / "descriptions/debian13/image.toml"
    path.write_text(path.read_text().replace('login_user = "linux"', 'login_user = "cloud"'))
    tree = resolve(tmp_path, region, project=copy).tree
    assert (tree / "root/etc/sudoers.d/login-user").read_text() == "cloud ALL=(ALL) NOPASSWD:ALL\n"
    assert "name: cloud\n" in (tree / "root/etc/cloud/cloud.cfg.d/91-login-user.cfg").read_text()
    assert "readonly login_user=cloud\n" in (tree / "config.sh").read_text()


def test_every_file_of_the_overlay_is_declared(recipe: Recipe) -> None:
    root = recipe.tree / "root"
    found = {f"/{path.relative_to(root).as_posix()}" for path in root.rglob("*") if path.is_symlink() or path.is_file()}
    declared = set(recipe.description.declared_files)
    debs = {name for name in found if name.startswith("/var/cache/image-factory/")}
    packaged = {name for deb in debs for name in packed(root / deb[1:])}
    assert found - debs - packaged <= declared
    assert {name for name in declared if "*" not in name and "guestregister" not in name} <= found
    assert "/etc/regionserverclnt.cfg" in packaged
    assert not packaged & declared
    assert "/var/lib/image-factory/*" in declared


def packed(deb: Path) -> set[str]:
    """The files in a package, as dpkg-deb lists them."""
    listing = subprocess.run(["dpkg-deb", "--contents", deb], capture_output=True, text=True, check=True).stdout
    return {line.split()[5].removeprefix(".") for line in listing.splitlines() if not line.startswith("d")}


def test_the_packages_in_the_tree_hold_what_lies_in_the_overlay(recipe: Recipe, tmp_path: Path) -> None:
    root = recipe.tree / "root"
    debs = sorted((root / "var/cache/image-factory").glob("*.deb"))
    assert [deb.name.split("_")[0] for deb in debs] == ["image-factory-guestregister", "image-factory-region-config"]
    for deb in debs:
        subprocess.run(["dpkg-deb", "--extract", deb, tmp_path / "out"], check=True)
    same = [
        path.relative_to(root)
        for path in root.rglob("*")
        if path.is_file() and (tmp_path / "out" / path.relative_to(root)).is_file()
    ]
    assert Path("etc/regionserverclnt.cfg") in same
    assert Path("usr/sbin/guestregister") in same
    for path in same:
        assert (root / path).read_bytes() == (tmp_path / "out" / path).read_bytes()
        assert (root / path).stat().st_mode == (tmp_path / "out" / path).stat().st_mode


def test_the_scripts_are_good_shell(recipe: Recipe) -> None:
    names = ("post_bootstrap.sh", "config.sh", "pre_disk_sync.sh", "create_appliance.sh")
    scripts = [recipe.tree / name for name in names]
    scripts += (recipe.tree / "root/usr/lib/image-factory").glob("*-*[!r]")
    for script in scripts:
        shell = script.read_text().splitlines()[0].removeprefix("#!")
        if "python" in shell:
            continue
        done = subprocess.run([shell, "-n", script], check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert os.access(script, os.X_OK), f"{script} is not executable"


APPLIANCE = [
    (["--repo", "nonsense"], "--repo needs ALIAS=URL"),
    (["--repo", "nix=http://x"], "there is no repository 'nix'"),
    (["--keyring", "/nowhere"], "--keyring needs a file"),
    (["--what"], "usage:"),
]


@pytest.mark.parametrize(("words", "told"), APPLIANCE)
def test_create_appliance_tells_a_wrong_option(recipe: Recipe, words: list[str], told: str) -> None:
    script = [recipe.tree / "create_appliance.sh", *words]
    done = subprocess.run(script, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert told in done.stderr


def test_the_recipe_travels_as_json(recipe: Recipe) -> None:
    run = Run(path=recipe.tree.parent)
    run.write("describe", recipe)
    assert run.read("describe", Recipe) == recipe


# -- what is refused --------------------------------------------------------------------------------------------------


def refused(folder: Path, region: Region, *, site: Site = SITE, project: Path = PROJECT) -> list[str]:
    with pytest.raises(InputFault) as caught:
        resolve(folder, region, site=site, project=project)
    assert caught.value.exit_code == 2
    assert not (folder / "20260601-000000-debian13" / "tree").exists()
    return [str(fault) for fault in caught.value.faults]


BAD_XML = [
    ("malformed", ("</packages>", "</package>"), "config.xml:72:", "mismatch"),
    ("unknown element", ("<timezone>", "<timezon/><timezone>"), "config.xml:13", "timezon"),
    ("unknown value", ('firmware="bios"', 'firmware="bois"'), "config.xml:16", "firmware"),
    ("unknown attribute", ('<package name="zstd"', '<package nmae="zstd"'), "config.xml:", "package"),
    ("real address", ("http://debian.example/", "http://mirror.test/"), "config.xml:27", "names a real address"),
    ("unknown alias", ("http://debian.example/", "http://debain.example/"), "config.xml:27", "'debain' is not in"),
    ("another size", (">4096<", ">8192<"), "config.xml:", "'8192' M"),
    ("another file system", ('filesystem="ext4"', 'filesystem="xfs"'), "config.xml:16", "is 'xfs'"),
    ("another name", ('name="debian13"', 'name="debian12"'), "config.xml:4", "is 'debian12'"),
    (
        "entities",
        ("<image ", "<!DOCTYPE image [<!ENTITY a SYSTEM 'file:///etc/passwd'>]>\n<image "),
        "config.xml:",
        "document type",
    ),
    ("not a disk", ('image="oem"', 'image="tbz"'), "config.xml:16", "raw disk"),
]


@pytest.mark.parametrize(("change", "place", "words"), [row[1:] for row in BAD_XML], ids=[row[0] for row in BAD_XML])
def test_a_mistake_in_config_xml_is_told(
    region: Region, copy: Path, tmp_path: Path, change: tuple[str, str], place: str, words: str
) -> None:
    path = copy / "descriptions/debian13/config.xml"
    text = path.read_text().replace(*change, 1)
    assert text != path.read_text()
    path.write_text(text)
    told = refused(tmp_path, region, project=copy)
    assert any(place in line and words in line for line in told), told


def with_server(region: Region, pem: Path) -> Region:
    first, *rest = region.servers
    return replace(region, servers=(replace(first, pem=pem), *rest))


def certificate(folder: Path, *, address: str, now: datetime = NOW, days: int = 4000) -> Path:
    path = folder / "server.pem"
    path.write_bytes(issue("region", now=now, days=days, addresses=[address]).pem)
    return path


def test_a_missing_pem_is_told_with_its_server(region: Region, tmp_path: Path) -> None:
    told = refused(tmp_path, with_server(region, tmp_path / "absent.pem"))
    assert any("absent.pem" in line and region.servers[0].name in line for line in told), told


def test_a_pem_with_the_wrong_name_is_told(region: Region, tmp_path: Path) -> None:
    told = refused(tmp_path, with_server(region, certificate(tmp_path, address="203.0.113.9")))
    assert any("server.pem" in line and region.servers[0].ipv4 in line for line in told), told


def test_an_expired_certificate_is_told_with_a_cure(region: Region, tmp_path: Path) -> None:
    old = certificate(tmp_path, address=region.servers[0].ipv4, now=NOW - timedelta(days=900), days=800)
    told = refused(tmp_path, with_server(region, old))
    assert any("server.pem" in line and "expired" in line and "(" in line for line in told), told


def test_a_certificate_that_ends_before_the_image_is_told(region: Region, tmp_path: Path) -> None:
    short = certificate(tmp_path, address=region.servers[0].ipv4, days=30)
    told = refused(tmp_path, with_server(region, short))
    assert any("server.pem" in line for line in told), told


def test_a_private_key_in_a_pem_is_told(region: Region, tmp_path: Path) -> None:
    issued = issue("region", now=NOW, days=4000, addresses=[region.servers[0].ipv4])
    path = tmp_path / "server.pem"
    path.write_bytes(issued.pem + issued.key_pem)
    told = refused(tmp_path, with_server(region, path))
    assert any("private key" in line for line in told), told


def test_a_private_key_in_an_overlay_is_told(region: Region, copy: Path, tmp_path: Path) -> None:
    issued = issue("region", now=NOW, days=10, names=["x.test"])
    path = copy / "descriptions/debian13/root/etc/x.key"
    path.parent.mkdir(parents=True)
    path.write_bytes(issued.key_pem)
    told = refused(tmp_path, region, project=copy)
    assert any("root/etc/x.key" in line for line in told), told


def test_an_overlay_that_replaces_the_region_is_told(region: Region, copy: Path, tmp_path: Path) -> None:
    path = copy / "descriptions/debian13/root/var/lib/cloudregister/state"
    path.parent.mkdir(parents=True)
    path.write_text("registered")
    assert refused(tmp_path, region, project=copy)


def test_an_overlay_with_a_pipe_is_told(region: Region, copy: Path, tmp_path: Path) -> None:
    path = copy / "descriptions/debian13/root/pipe"
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    told = refused(tmp_path, region, project=copy)
    assert any("neither a file" in line for line in told), told


def test_an_alias_that_no_image_knows_is_told(region: Region, tmp_path: Path) -> None:
    told = refused(tmp_path, region, site=replace(SITE, mirrors={"debain": "http://x.test"}))
    assert told == ["site.toml mirrors.debain: is an alias that no image knows (known: debian, debian-security)"]


def test_mirrors_of_an_image_or_alias_that_is_not_there_are_told(region: Region, tmp_path: Path) -> None:
    vendor = VendorMirror(url="https://vendor.test")
    tables = {"debian13": {"debain": vendor}, "debian31": {"debian": vendor}}
    told = refused(tmp_path, region, site=replace(SITE, repositories=tables))
    assert [line.split(" (known")[0] for line in told] == [
        "site.toml repositories.debian13.debain: is an alias that this image does not know",
        "site.toml repositories.debian31.debian: there is no such image",
    ]


def test_faults_of_all_files_are_told_together(region: Region, copy: Path, tmp_path: Path) -> None:
    path = copy / "descriptions/debian13/config.xml"
    path.write_text(path.read_text().replace(">4096<", ">8192<"))
    told = refused(
        tmp_path,
        with_server(region, tmp_path / "absent.pem"),
        project=copy,
        site=replace(SITE, mirrors={"debain": "http://x.test"}),
    )
    assert len(told) == 3, told


def test_region_check_tells_faults_without_leaving_anything(region: Region, tmp_path: Path) -> None:
    assert check_image(PROJECT, "debian13", site=SITE, regions=(region,), now=NOW) == ()
    bad = with_server(region, tmp_path / "absent.pem")
    assert check_image(PROJECT, "debian13", site=SITE, regions=(bad,), now=NOW)


# -- repositories -----------------------------------------------------------------------------------------------------

DEB822 = """\
Types: deb deb-src
URIs: http://a.test/debian/
Suites: trixie
 trixie-updates
# a comment
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.pgp

Types: deb
Enabled: no
URIs: http://off.test/debian
Suites: trixie
Components: main

Types: deb
URIs: http://a.test/debian-security
Suites: trixie-security
Components: main
"""
ONE_LINE = """\
# deb http://comment.test/debian bookworm main
deb cdrom:[Debian]/ bookworm main
deb-src http://source.test/debian bookworm main
deb [arch=amd64 signed-by=/k.gpg] https://b.test/debian bookworm main contrib
deb http://b.test/security bookworm-security main
deb http://vendor.test/linux/debian bookworm stable
"""
HOSTS = [
    ("deb822", {"sources.list.d/debian.sources": DEB822}, "http://a.test/debian", "http://a.test/debian-security"),
    ("one line", {"sources.list": ONE_LINE}, "https://b.test/debian", "http://b.test/security"),
    ("old security", {"sources.list": "deb http://c.test/s buster/updates main\n"}, None, "http://c.test/s"),
    (
        "a vendor comes first",
        {
            "sources.list.d/a.list": "deb [signed-by=/etc/apt/keyrings/v.gpg] http://v.test/12/p bookworm main\n",
            "sources.list.d/b.sources": DEB822,
        },
        "http://a.test/debian",
        "http://a.test/debian-security",
    ),
    ("nothing", {}, None, None),
    ("another distribution", {"sources.list": "deb http://u.test/ubuntu noble main\n"}, None, None),
    ("another file", {"sources.list.d/x.save": DEB822}, None, None),
]


@pytest.mark.parametrize(("written", "main", "security"), [row[1:] for row in HOSTS], ids=[row[0] for row in HOSTS])
def test_the_hosts_archives_are_found(
    tmp_path: Path, written: dict[str, str], main: str | None, security: str | None
) -> None:
    for name, text in written.items():
        path = tmp_path / "etc/apt" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = host_repositories(tmp_path)
    assert found["debian"].url == main if main else "debian" not in found
    assert found["debian-security"].url == security if security else "debian-security" not in found


def test_a_release_that_nobody_knew_is_found_by_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "etc/apt").mkdir(parents=True)
    (tmp_path / "etc/apt/sources.list").write_text("deb http://d.test/debian zurg main\n")
    assert host_repositories(tmp_path) == {}
    (tmp_path / "etc/os-release").write_text('ID=debian\nVERSION_CODENAME="zurg"\n')
    assert host_repositories(tmp_path)["debian"].url == "http://d.test/debian"


@settings(deadline=None)
@given(st.text(alphabet="deb htps:/[]=#.\n-srcTyUISuie:", max_size=120))
def test_any_apt_configuration_is_read(text: str) -> None:
    for source in (*parse_one_line(text), *parse_deb822(text)):
        assert source.url.startswith(("http://", "https://"))
        assert source.suites


def test_an_address_is_the_sites_then_the_descriptions_then_the_hosts(tmp_path: Path) -> None:
    description = load_description(PROJECT, "debian13")
    keyring = tmp_path / "usr/share/keyrings/debian-archive-keyring.gpg"
    keyring.parent.mkdir(parents=True)
    keyring.touch()
    (tmp_path / "etc/apt/sources.list.d").mkdir(parents=True)
    (tmp_path / "etc/apt/sources.list.d/debian.sources").write_text(DEB822)

    def urls(site: Site, named: str = "") -> list[str]:
        first, *rest = description.update_repositories
        changed = replace(description, update_repositories=(replace(first, url=named), *rest))
        return [one.url for one in sources(changed, site, root=tmp_path).repositories]

    assert urls(Site()) == ["http://a.test/debian", "http://a.test/debian-security"]
    assert urls(Site(), "http://named.test") == ["http://named.test", "http://a.test/debian-security"]
    assert urls(SITE, "http://named.test") == list(ADDRESSES.values())


def test_a_missing_address_and_keyring_are_told_together(tmp_path: Path) -> None:
    with pytest.raises(InputFault) as caught:
        sources(load_description(PROJECT, "debian13"), Site(), root=tmp_path)
    told = [str(fault) for fault in caught.value.faults]
    assert [line.split(": ")[0].rpartition(" ")[2] for line in told] == [
        "update_repositories.debian",
        "update_repositories.debian-security",
        "update_repositories.debian.key",
        "update_repositories.debian-security.key",
        "mirrors.tools",
        "mirrors.tools",
    ]
    assert all("site.toml" in line for line in (*told[:2], told[4]))


def test_the_tools_come_from_a_mirror_that_is_known(tmp_path: Path) -> None:
    description = load_description(PROJECT, "debian13")
    keyring = tmp_path / "usr/share/keyrings/debian-archive-keyring.gpg"
    keyring.parent.mkdir(parents=True)
    keyring.touch()
    (tmp_path / "etc/apt/sources.list.d").mkdir(parents=True)

    def found(site: Site) -> tuple[str, str | None]:
        made = sources(description, site, root=tmp_path)
        assert made.keyrings["tools"] == keyring
        assert "tools" not in {one.alias for one in made.repositories}
        return made.mirrors["tools"], made.mirrors.get("wheels")

    named = {"debian": "http://private.test/debian"}
    assert found(replace(SITE, mirrors={})) == (ADDRESSES["debian"], None)
    assert found(replace(SITE, mirrors=named)) == ("http://private.test/debian", None)
    own = {**named, "tools": "http://tools.test/debian", "python": "https://py.test/simple"}
    assert found(replace(SITE, mirrors=own)) == ("http://tools.test/debian", "https://py.test/simple")
    other = replace(description, update_repositories=(replace(description.update_repositories[1]),))
    with pytest.raises(InputFault) as told:
        sources(other, replace(SITE, mirrors={}), root=tmp_path)
    assert [fault.place for fault in told.value.faults] == ["site.toml mirrors.tools"]
    assert 'tools = "http://' in told.value.faults[0].cure
    taken = replace(description, update_repositories=(replace(description.update_repositories[0], alias="wheels"),))
    with pytest.raises(InputFault, match="cannot get its packages") as told:
        sources(taken, SITE, root=tmp_path)
    assert any("update_repositories.wheels" in fault.place for fault in told.value.faults)
    (tmp_path / "etc/apt/sources.list.d/debian.sources").write_text(DEB822)
    assert sources(other, replace(SITE, mirrors={}), root=tmp_path).mirrors["tools"] == "http://a.test/debian"


def test_an_images_own_mirror_comes_before_everybodys_and_stays_out_of_its_tree(region: Region, tmp_path: Path) -> None:
    vendor = VendorMirror(url="https://vendor.test/debian", user="env:VENDOR_USER", password="file:vendor-password")
    mirrors = {"debian": "http://private.test/debian"}
    site = replace(SITE, mirrors=mirrors, repositories={"debian13": {"debian": vendor}})
    found = resolve(tmp_path, region, site=site)
    assert found.mirrors["debian"] == "https://vendor.test/debian"
    told = ("vendor.test", "VENDOR_USER", "vendor-password", "private.test")
    assert not any(word in text for text in files(found.tree).values() for word in told)
    assert {one[1] for one in build_sources(PROJECT, "debian13", site=site) if one[0] == "debian"} == {vendor.url}


def test_the_addresses_a_build_reads_are_known_beforehand() -> None:
    site = replace(SITE, mirrors={"debian": "http://private.test/debian"})
    assert list(build_sources(PROJECT, "debian13", site=site)) == [
        ("debian", "http://private.test/debian", "trixie"),
        ("debian", "http://private.test/debian", "trixie-updates"),
        ("debian-security", "http://mirror.test/security", "trixie-security"),
    ]


# -- small parts ------------------------------------------------------------------------------------------------------


def test_addresses_are_escaped_in_xml() -> None:
    text = "<source path=\"http://a.example/\"/><source  path='http://b.example/' />"
    found = with_addresses(text, {"a": 'http://x/?a&"b', "b": "http://y/'"})
    assert found == "<source path=\"http://x/?a&amp;&quot;b\"/><source  path='http://y/&apos;' />"


@pytest.mark.parametrize(
    ("url", "alias"),
    [
        ("http://debian.example/", "debian"),
        ("http://debian-security.example/x", "debian-security"),
        ("http://example/", None),
        ("http://mirror.test/", None),
        ("obs://x/y", None),
        ("http://[broken", None),
    ],
)
def test_a_placeholder_names_an_alias(url: str, alias: str | None) -> None:
    assert placeholder_alias(url) == alias


def test_older_descriptions_are_read_as_kiwi_does(tmp_path: Path) -> None:
    text = (PROJECT / "descriptions/debian13/config.xml").read_text()
    old = text.replace('schemaversion="8.5"', 'schemaversion="8.3"').replace("output_console=", "console=")
    path = tmp_path / "config.xml"
    path.write_text(old.replace('input_console="console serial"', ""))
    assert read_config(path, shown="config.xml")


def test_the_suites_of_both_files_agree() -> None:
    description = load_description(PROJECT, "debian13")
    shown = "config.xml"
    text = (PROJECT / "descriptions/debian13/config.xml").read_text()
    assert list(config_faults(parse(text, shown=shown), description, shown=shown)) == []
    spoiled = text.replace('"trixie-updates"', '"trixie-backports"')
    (fault,) = config_faults(parse(spoiled, shown=shown), description, shown=shown)
    assert "trixie-backports" in fault.problem


def test_apt_sources_and_time_servers_are_written_as_their_programs_read_them() -> None:
    one = Repository(alias="a", url="http://x/y", suites=("s", "t"), components=("c", "d"), key="/k")
    assert apt_source(one) == "Types: deb\nURIs: http://x/y\nSuites: s t\nComponents: c d\nSigned-By: /k\n"
    assert list(chrony_sources(["192.0.2.1", "2001:db8::1", "ntp.test"])) == [
        "server 192.0.2.1 iburst",
        "server 2001:db8::1 iburst",
        "pool ntp.test iburst maxsources 4",
    ]


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@t.test"]
    done = subprocess.run(["git", "-C", folder, *identity, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_commit_of_the_descriptions_is_known(copy: Path) -> None:
    assert checkout(copy).commit == ""
    git(copy, "init", "-q")
    assert checkout(copy).dirty, "nothing is committed"
    git(copy, "add", "-A")
    git(copy, "commit", "-qm", "first")
    first = git(copy, "rev-parse", "HEAD")
    (copy / "README").write_text("elsewhere")
    git(copy, "add", "-A")
    git(copy, "commit", "-qm", "second")
    found = checkout(copy)
    assert (found.commit, found.dirty) == (first, False)
    (copy / "descriptions/debian13/root").mkdir(exist_ok=True)
    (copy / "descriptions/debian13/root/new").write_text("untracked")
    assert checkout(copy).dirty
