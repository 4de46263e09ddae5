# SPDX-License-Identifier: Apache-2.0
"""image.toml and site.toml: what is read, and how every mistake is told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.describe.load import generic_twice, images, load_description, load_site
from factory.describe.places import key_lines, parse_toml
from factory.describe.schema import ImageFile, SiteFile
from factory.errors import Fault, InputFault
from factory.model import Retention, Site

PROJECT = Path(__file__).parents[2]
IMAGE = """\
[image]
name = "tiny"
line = "Tiny_1"

[update_repositories.debian]
suites = ["trixie"]
key = "/usr/share/keyrings/debian-archive-keyring.pgp"
"""
SITE = """\
[mirrors]
debian = "http://mirror.example/debian"

[[region]]
name = "one"
networks = ["192.0.2.0/24"]
servers = [
  {name = "region-a.example", ipv4 = "192.0.2.10", pem = "a.pem"},
  {name = "region-b.example", ipv6 = "2001:db8::1", pem = "b.pem"},
]
update_servers = [{name = "update.example", ipv4 = "192.0.2.20", pem = "ca.pem"}]

[[target]]
cloud = "public"
visibility = "shared"

[signing]
fingerprint = "aaaabbbbccccddddeeeeffff0000111122223333"
gnupg_home = "gnupg"

[ntp]
servers = ["192.0.2.123", "ntp.example"]

[retention]
daily = 3
"""


def project(folder: Path, text: str, name: str = "tiny") -> Path:
    place = folder / "descriptions" / name
    place.mkdir(parents=True)
    (place / "image.toml").write_text(text)
    return folder


def told(fault: InputFault) -> list[str]:
    return [str(one) for one in fault.faults]


def test_the_debian13_description_is_read() -> None:
    found = load_description(PROJECT, "debian13")
    assert (found.line, found.login_user, found.disk.min_gib) == ("Standard_Debian_13", "linux", 4)
    assert [one.alias for one in found.update_repositories] == ["debian", "debian-security"]
    assert all(one.url == "" for one in found.update_repositories), "an address stands in the repository"
    assert found.ntp_servers, "a site without [ntp] would have no time"


def test_defaults_are_the_models(tmp_path: Path) -> None:
    found = load_description(project(tmp_path, IMAGE), "tiny")
    assert (found.builder, found.publish, found.console_password) == ("kiwi", "every-night", True)
    assert found.budgets.listening_ports == (22,)
    assert found.retention == Retention()


def test_images_are_the_folders_with_a_description(tmp_path: Path) -> None:
    project(tmp_path, IMAGE, "b")
    project(tmp_path, IMAGE, "a")
    project(tmp_path, IMAGE, "common")
    (tmp_path / "descriptions" / "empty").mkdir()
    assert images(tmp_path) == ("a", "b")
    assert images(tmp_path / "nowhere") == ()


def test_an_unknown_image_is_told_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputFault, match="no image 'debain13'") as caught:
        load_description(project(tmp_path, IMAGE), "debain13")
    assert caught.value.hint == "known: tiny"
    assert caught.value.exit_code == 2


def test_a_name_outside_the_descriptions_is_no_image(tmp_path: Path) -> None:
    project(tmp_path, IMAGE)
    with pytest.raises(InputFault, match="no image"):
        load_description(tmp_path, "../descriptions/tiny")


def test_the_name_must_be_the_folders(tmp_path: Path) -> None:
    with pytest.raises(InputFault) as caught:
        load_description(project(tmp_path, IMAGE, "other"), "other")
    assert told(caught.value) == [
        "descriptions/other/image.toml:2 image.name: is 'tiny' (the folder is called 'other')"
    ]


# change in IMAGE -> the place and a word of what is told
BAD_IMAGES = [
    ("unknown key", ('line = "Tiny_1"', 'line = "Tiny_1"\nlien = 1'), "t:4 image.lien", "did you mean 'line'"),
    ("unknown table", ("[image]", "[disc]\n[image]"), "t:1 disc", "did you mean 'disk'"),
    ("wrong type", ('"Tiny_1"', "5"), "t:3 image.line", "is a number (5)"),
    ("missing key", ('line = "Tiny_1"', ""), "t:1 image.line", "is missing"),
    ("missing table", ("[update_repositories.debian]\n", ""), "t:5 image.suites", "is not a known key"),
    ("enum", ('line = "Tiny_1"', 'line = "T"\npublish = "daily"'), "t:4 image.publish", "'every-night', 'monthly'"),
    ("number as text", ("[image]", '[disk]\nmin_gib = "4"\n[image]'), "t:2 disk.min_gib", "write a whole number"),
    ("too small", ("[image]", "[disk]\nmin_gib = 0\n[image]"), "t:2 disk.min_gib", "greater than or equal to 1"),
    (
        "bool as text",
        ('line = "Tiny_1"', 'line = "T"\nconsole_password = "no"'),
        "t:4 image.console_password",
        "true or",
    ),
    ("address", ("suites", 'url = "ftp://x/y"\nsuites'), "t:6 update_repositories.debian.url", "not an http"),
    (
        "password in address",
        ("suites", 'url = "https://u:p@x/y"\nsuites'),
        "t:6 update_repositories.debian.url",
        "password",
    ),
    ("alias", ("repositories.debian", "repositories.Debian"), "t:5 update_repositories.Debian", "not an allowed name"),
    ("relative key", ("/usr/share", "usr/share"), "t:7 update_repositories.debian.key", "not an absolute path"),
    ("no suites", ('["trixie"]', "[]"), "t:6 update_repositories.debian.suites", "at least 1"),
    ("product", ("[image]", '[registration]\nproduct = "debian"\n[image]'), "t:2 registration.product", "wrong form"),
    ("port", ("[image]", "[verify]\nlistening_ports = [22, 70000]\n[image]"), "t:2 verify.listening_ports[1]", "65535"),
    ("metadata", ("[image]", "[metadata]\nos_version = 13\n[image]"), "t:2 metadata.os_version", "write a text"),
    ("user", ('line = "Tiny_1"', 'line = "T"\nlogin_user = "Root Me"'), "t:4 image.login_user", "wrong form"),
    (
        "secret line break",
        ("[image]", '[metadata]\nos_version = "1\\n3"\n[image]'),
        "t:2 metadata.os_version",
        "line break",
    ),
]


@pytest.mark.parametrize(
    ("change", "place", "words"), [row[1:] for row in BAD_IMAGES], ids=[row[0] for row in BAD_IMAGES]
)
def test_a_mistake_is_told_with_its_place(change: tuple[str, str], place: str, words: str) -> None:
    text = IMAGE.replace(*change)
    assert text != IMAGE
    with pytest.raises(InputFault) as caught:
        parse_toml(text, ImageFile, shown="t")
    assert caught.value.exit_code == 2
    matching = [line for line in told(caught.value) if line.startswith(f"{place}:")]
    assert matching, told(caught.value)
    assert words in matching[0]


def test_all_faults_are_told_at_once_in_order_of_lines() -> None:
    text = IMAGE.replace('line = "Tiny_1"', "line = 5\ncolour = 1").replace('["trixie"]', '"trixie"')
    with pytest.raises(InputFault, match="'t' has 3 faults") as caught:
        parse_toml(text, ImageFile, shown="t")
    assert [fault.place for fault in caught.value.faults] == [
        "t:3 image.line",
        "t:4 image.colour",
        "t:7 update_repositories.debian.suites",
    ]


MALFORMED = [
    ("[image\n", "t:1:7"),
    ("a = \n", "t:1:5"),
    ("a = 1\na = 2\n", "t:2:6"),
    ("\x00", "t:1:1"),
    ("[a]\n[a]\n", "t:2:3"),
    ('a = "unterminated\n', "t:1:18"),
]


@pytest.mark.parametrize(("text", "place"), MALFORMED)
def test_malformed_toml_is_told_with_line_and_column(text: str, place: str) -> None:
    with pytest.raises(InputFault, match="is not TOML") as caught:
        parse_toml(text, ImageFile, shown="t")
    assert caught.value.faults[0].place == place


def test_bytes_that_are_no_text_are_told(tmp_path: Path) -> None:
    project(tmp_path, IMAGE)
    (tmp_path / "descriptions/tiny/image.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputFault, match="cannot be read"):
        load_description(tmp_path, "tiny")


# -- site.toml --------------------------------------------------------------------------------------------------------


def site(folder: Path, text: str = SITE, pems: tuple[str, ...] = ("a.pem", "b.pem", "ca.pem")) -> Path:
    for name in pems:
        (folder / name).write_text("a certificate")
    path = folder / "site.toml"
    path.write_text(text)
    return path


def test_without_a_site_file_everything_is_the_default() -> None:
    assert load_site(None) == Site()


def test_an_empty_site_file_is_the_default_too(tmp_path: Path) -> None:
    path = site(tmp_path, "")
    assert load_site(path) == Site(path=path)


def test_a_site_is_read(tmp_path: Path) -> None:
    found = load_site(site(tmp_path))
    assert found.mirrors == {"debian": "http://mirror.example/debian"}
    (region,) = found.regions
    assert [server.addresses for server in region.servers] == [("192.0.2.10",), ("2001:db8::1",)]
    assert region.servers[0].pem == tmp_path / "a.pem"
    assert found.targets[0].visibility == "shared"
    assert found.signing.fingerprint == "AAAABBBBCCCCDDDDEEEEFFFF0000111122223333"
    assert found.signing.gnupg_home == tmp_path / "gnupg"
    assert found.ntp_servers == ("192.0.2.123", "ntp.example")
    assert found.retention is not None
    assert (found.retention.daily, found.retention.monthly) == (3, 24)


BAD_SITES = [
    ("server without PEM", (', pem = "b.pem"', ""), "site.toml:9 region[0].servers[1].pem", "is missing"),
    ("PEM that is not there", ("b.pem", "c.pem"), "site.toml:9 region[0].servers[1].pem", "'c.pem'"),
    ("address", ("192.0.2.10", "192.0.2.256"), "site.toml:8 region[0].servers[0].ipv4", "192.0.2.256"),
    ("network", ("192.0.2.0/24", "192.0.2.1/24"), "site.toml:6 region[0].networks[0]", "host bits"),
    ("short fingerprint", ("aaaabbbbccccddddeeee", ""), "site.toml:18 signing.fingerprint", "wrong form"),
    ("visibility", ('"shared"', '"secret"'), "site.toml:15 target[0].visibility", "'community'"),
    ("mirror", ("http://mirror", "file://mirror"), "site.toml:2 mirrors.debian", "not an http"),
    ("unknown key", ("daily = 3", "dialy = 3"), "site.toml:25 retention.dialy", "did you mean 'daily'"),
    (
        "no servers",
        ("update_servers = [", "update_servers = [] #["),
        "site.toml:11 region[0].update_servers",
        "at least 1",
    ),
    ("time server", ("ntp.example", "ntp example"), "site.toml:22 ntp.servers[1]", "neither a host name"),
]


@pytest.mark.parametrize(
    ("change", "place", "words"), [row[1:] for row in BAD_SITES], ids=[row[0] for row in BAD_SITES]
)
def test_a_mistake_in_the_site_is_told_with_its_place(
    tmp_path: Path, change: tuple[str, str], place: str, words: str
) -> None:
    text = SITE.replace(*change)
    assert text != SITE
    with pytest.raises(InputFault) as caught:
        load_site(site(tmp_path, text))
    matching = [line for line in told(caught.value) if line.startswith(f"{place}:")]
    assert matching, told(caught.value)
    assert words in matching[0]
    assert str(tmp_path) not in "\n".join(caught.value.lines()), "places are relative"


def test_a_site_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputFault, match="does not exist"):
        load_site(tmp_path / "site.toml")


# -- never a traceback ------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.one_of(st.integers(), st.booleans(), st.text(max_size=8), st.floats(), st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=8,
)
KEYS = st.sampled_from(sorted(set(re.findall(r"[a-z_0-9]+", IMAGE + SITE)) | {"servers", "disk", "metadata", "verify"}))


def as_toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{as_toml(key)} = {as_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(letter):08X}" for letter in value if not 0xD800 <= ord(letter) < 0xE000) + '"'
    return str(value).lower() if value is not None else '"x"'


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(KEYS, KEYS, VALUES), max_size=4), st.sampled_from(["", "["]))
def test_tables_of_any_shape_are_read_or_told(rows: list[tuple[str, str, object]], twice: str) -> None:
    close = "]" if twice else ""
    text = "".join(f"{twice}[{table}]{close}\n{key} = {as_toml(value)}\n" for table, key, value in rows)
    for schema in (ImageFile, SiteFile):
        read_or_told(text, schema)


@settings(deadline=None, max_examples=150)
@given(st.one_of(st.text(), st.text(alphabet="[]{}=\"'#.\n\\ abc1,-")))
def test_any_text_is_read_or_told(text: str) -> None:
    read_or_told(text, SiteFile)


@settings(deadline=None, max_examples=100)
@given(st.integers(0, len(SITE)), st.integers(0, 12), st.text(alphabet="[]{}=\"'#.\n\\ ab1,-", max_size=4))
def test_a_damaged_site_is_read_or_told(start: int, length: int, inserted: str) -> None:
    read_or_told(SITE[:start] + inserted + SITE[start + length :], SiteFile)


def read_or_told(text: str, schema: type[ImageFile | SiteFile]) -> None:
    faults: tuple[Fault, ...] = (Fault(place="t:1", problem="read"),)
    try:
        parse_toml(text, schema, shown="t")
    except InputFault as found:
        faults = found.faults
    assert faults
    for fault in faults:
        line = re.match(r"t(?::(\d+))?", fault.place)
        assert line is not None
        assert line[1] is None or 1 <= int(line[1]) <= text.count("\n") + 1


LINES = [
    ("a = 1\n[b]\nc = 2\n[b.d]\ne = 3\n", {("a",): 1, ("b",): 2, ("b", "c"): 3, ("b", "d"): 4, ("b", "d", "e"): 5}),
    ("[[a]]\nb = 1\n[[a]]\nb = 2\n", {("a", 0, "b"): 2, ("a", 1): 3, ("a", 1, "b"): 4}),
    ("[[a]]\n[[a.b]]\nc = 1\n[[a.b]]\nc = 2\n", {("a", 0, "b", 0, "c"): 3, ("a", 0, "b", 1, "c"): 5}),
    ('a = """\nb = 1\n"""\nc = 2\n', {("a",): 1, ("c",): 4}),
    ("a = [\n  1,\n  2,\n]\nb = 1\n", {("a",): 1, ("b",): 5}),
    ("a = [\n {b = 1},\n {b = 2}]\n", {("a", 0, "b"): 2, ("a", 1, "b"): 3}),
    ('a.b = 1\n"c d" = 2\n', {("a", "b"): 1, ("c d",): 2}),
    ('a = "[ {" # [\nb = 1\n', {("a",): 1, ("b",): 2}),
]


@pytest.mark.parametrize(("text", "wanted"), LINES)
def test_the_line_of_a_key_is_known(text: str, wanted: dict[tuple[str | int, ...], int]) -> None:
    found = key_lines(text)
    assert {path: found.get(path) for path in wanted} == wanted


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ('hw_disk_bus = "virto"', 10, "no value of it"),
        ('os_version = "trixie"', 10, "does not look like it"),
        ('imgfactory_role = "latest"', 10, "set by the factory"),
        ('os_distro = "debian"\nhw_firmware_type = "uefi"', 11, "made for 'bios'"),
        ('min_disk = "2"', 10, "disk.min_gib is 4"),
        ('__support_kvm_gpu_type = "true"\n__support_kvm = "true"', 10, "exclude each other"),
        ('__image_capabilities = "3"', 10, "set by the factory"),
        ('img_signature = "AAAA"', 10, "set by the factory"),
    ],
)
def test_wrong_properties_are_told_with_their_line(tmp_path: Path, text: str, line: int, problem: str) -> None:
    with pytest.raises(InputFault) as refused:
        load_description(project(tmp_path, f"{IMAGE}\n[metadata]\n{text}\n"), "tiny")
    assert refused.value.exit_code == 2
    first = refused.value.faults[0]
    assert first.place.startswith(f"descriptions/tiny/image.toml:{line} metadata."), first
    assert problem in first.problem


@pytest.mark.parametrize(
    ("publish", "promised", "good"),
    [
        ("monthly", "monthly", True),
        ("monthly", "daily", False),
        ("on-security", "weekly", False),
        ("on-security", "critical_bug", True),
        ("every-night", "daily", True),
        ("monthly", "never", True),
    ],
)
def test_no_promise_that_the_publish_policy_cannot_keep(
    tmp_path: Path, publish: str, promised: str, *, good: bool
) -> None:
    text = IMAGE.replace("line =", f'publish = "{publish}"\nline =') + f'[metadata]\nreplace_frequency = "{promised}"\n'
    folder = project(tmp_path, text)
    if good:
        assert load_description(folder, "tiny").metadata["replace_frequency"] == promised
    else:
        with pytest.raises(InputFault) as refused:
            load_description(folder, "tiny")
        assert f"published {publish}" in told(refused.value)[0]


def described(folder: Path, name: str, line: str, metadata: str = "", arch: str = "") -> None:
    text = IMAGE.replace('"tiny"', f'"{name}"').replace("Tiny_1", line).replace("line =", f"{arch}line =")
    project(folder, f"{text}\n[metadata]\n{metadata}\n", name)


def test_one_generic_image_of_a_distribution_version_and_architecture(tmp_path: Path) -> None:
    described(tmp_path, "one", "Standard_One")
    described(tmp_path, "two", "Standard_Two")
    described(tmp_path, "three", "Standard_Three", 'os_version = "12"')
    described(tmp_path, "four", "Standard_Four", 'os_purpose = "minimal"')
    described(tmp_path, "broken", "Standard_Broken", 'hw_disk_bus = "x"')
    (fault,) = generic_twice(tmp_path)
    assert fault.place == "descriptions/one/image.toml:9 metadata.os_purpose"
    assert "descriptions/two/image.toml:9" in fault.problem
    assert "debian 13 on x86_64" in fault.problem
    assert generic_twice(tmp_path, "two") == (fault,)
    assert generic_twice(tmp_path, "three") == ()
    described(tmp_path, "five", "Standard_Five")
    assert len(generic_twice(tmp_path)) == 3


CLOUDS = """\
[[target]]
cloud = "public"
otc = true
aged_purpose = "archive"
signature = {key = "platform.pem", certificate = "01234567-89ab-cdef-0123-456789abcdef"}

[[target]]
cloud = "private"

[otc]
exclusions = [["__support_a", "__support_b"]]
[otc.properties]
__platform = "Debian"
[otc.image.debian13]
__os_version = "Debian GNU/Linux 13 64bit"
[[otc.capability]]
name = "kvm"
bit = 0
flag = "__support_kvm"
[[otc.capability]]
name = "nested"
bit = 7

[[flavor]]
name = "s3.small"
vcpus = 1
ram_mib = 1024
disk_gib = 0
requires = ["kvm"]
live_migration_requires = ["nested"]

[freshness.debian-security]
fresh_within_h = 24
upstream = "http://upstream.example/debian-security"
"""


def test_what_a_site_says_of_its_cloud(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text(CLOUDS)
    site = load_site(tmp_path / "site.toml")
    public, private = site.targets
    assert public.otc is not None
    assert [(one.name, one.bit, one.flag) for one in public.otc.capabilities] == [
        ("kvm", 0, "__support_kvm"),
        ("nested", 7, ""),
    ]
    assert public.otc.images["debian13"] == {"__os_version": "Debian GNU/Linux 13 64bit"}
    assert public.signature is not None
    assert (public.signature.key, public.aged_purpose) == (tmp_path / "platform.pem", "archive")
    assert (private.otc, private.signature) == (None, None)
    assert site.flavors[0].requires == ("kvm",)
    assert site.flavors[0].live_migration
    assert site.freshness["debian-security"].fresh_within_h == 24


@pytest.mark.parametrize(
    ("old", "new", "place", "problem"),
    [
        ("bit = 7", "bit = 0", "site.toml:22 otc.capability[1].bit", "there twice"),
        ('name = "nested"', 'name = "kvm"', "site.toml:21 otc.capability[1].name", "there twice"),
        ("bit = 7", "bit = 64", "site.toml:22 otc.capability[1].bit", "less than or equal"),
        ("__platform =", "platform =", "site.toml:13", "not an allowed name"),
        (
            "fresh_within_h = 24",
            "fresh_within_h = 0",
            "site.toml:33 freshness.debian-security.fresh_within_h",
            "greater",
        ),
        ("ram_mib = 1024", 'ram_mib = "1024"', "site.toml:27 flavor[0].ram_mib", "is text"),
        ("01234567-", "0123456-", "site.toml:5 target[0].signature.certificate", "wrong form"),
    ],
)
def test_what_a_site_gets_wrong_of_its_cloud(tmp_path: Path, old: str, new: str, place: str, problem: str) -> None:
    assert old in CLOUDS
    (tmp_path / "site.toml").write_text(CLOUDS.replace(old, new))
    with pytest.raises(InputFault) as refused:
        load_site(tmp_path / "site.toml")
    found = told(refused.value)
    assert any(one.startswith(place) and problem in one for one in found), found


def test_otc_without_its_table_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text('[[target]]\ncloud = "public"\notc = true\n')
    with pytest.raises(InputFault) as refused:
        load_site(tmp_path / "site.toml")
    assert told(refused.value)[0].startswith("site.toml:3 target[0].otc: there is no [otc]")
