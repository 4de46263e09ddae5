# SPDX-License-Identifier: Apache-2.0
"""The bill of materials, and what it is made from: licences, changelogs, inventories, package files."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from cyclonedx.model.bom import Bom
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.spdx import is_expression, is_supported_id
from cyclonedx.validation.json import JsonStrictValidator
from hypothesis import given
from hypothesis import strategies as st
from packageurl import PackageURL

from factory.build import sbom
from factory.build.changelog import ENTRIES, TEXT_LONGEST, changelog_text, entries_of, fixes_in
from factory.build.compare import differences
from factory.build.contents import Entry, Tree, package_of_file
from factory.build.deb import files_of_deb
from factory.build.evidence import changelogs_bytes, coverage, evidence_of, read_changelogs, with_package_files
from factory.build.inventory import Inventory, Unit, inventory_of, read_inventory, sysctl, units
from factory.build.licences import Licences, licences_of, spdx_expression
from factory.build.records import PackageFile, package_files, write_records
from factory.build.tarball import Manifest
from factory.errors import BuildError, NotGood
from factory.inputs.blobs import BlobStore
from factory.inputs.lock import Input
from factory.model import Description, Package
from factory.system.files import Digests, sha256_file

DEP5 = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n"


# -- licences


@pytest.mark.parametrize(
    ("short", "expression"),
    [
        ("GPL-2+", "GPL-2.0-or-later"),
        ("GPL-2", "GPL-2.0-only"),
        ("GPL-2.0+", "GPL-2.0-or-later"),
        ("GPL-3.0.0", "GPL-3.0-only"),
        ("LGPL-2.1+", "LGPL-2.1-or-later"),
        ("LGPL-2", "LGPL-2.0-only"),
        ("AGPL-3+", "AGPL-3.0-or-later"),
        ("GFDL-NIV-1.3+", "GFDL-1.3-no-invariants-or-later"),
        ("GFDL-1.2", "GFDL-1.2-only"),
        ("Expat", "MIT"),
        ("expat", "MIT"),
        ("BSD-3-clause", "BSD-3-Clause"),
        ("Apache-2", "Apache-2.0"),
        ("Artistic-2", "Artistic-2.0"),
        ("ISC", "ISC"),
        ("zlib", "Zlib"),
        ("Expat or GPL-2", "MIT OR GPL-2.0-only"),
        ("Expat and ISC", "MIT AND ISC"),
        ("GPL-2+ or Expat and ISC", "GPL-2.0-or-later OR (MIT AND ISC)"),
        ("GPL-2+ or Expat, and ISC", "(GPL-2.0-or-later OR MIT) AND ISC"),
        ("Expat and Expat", "MIT"),
        ("GPL-2 with Linux-syscall-note exception", "GPL-2.0-only WITH Linux-syscall-note"),
        ("Apache-2.0 with LLVM exception", "Apache-2.0 WITH LLVM-exception"),
        # no SPDX name, and so none is made up
        ("public-domain", ""),
        ("GPL-2+ with Autoconf exception", ""),
        ("GPL-2+ with OpenSSL exception", ""),
        ("GPL", ""),
        ("GPL-2+ or Tcl-BSDish", ""),
        ("Artistic", ""),
        ("GPL-2/MPL-1.1", ""),
        ("Linux-syscall-note", ""),
        ("LicenseRef-scancode-public-domain", ""),
        ("GPL-9", ""),
        ("Expat, and ISC, or GPL-2", ""),
        ("and", ""),
        ("", ""),
    ],
)
def test_short_names_become_spdx_expressions_where_spdx_knows_them(short: str, expression: str) -> None:
    assert spdx_expression(short) == expression
    if expression:
        assert is_supported_id(expression) or is_expression(expression)


def test_the_licences_of_a_machine_readable_file_are_those_of_its_files() -> None:
    text = (
        f"{DEP5}Upstream-Name: small\nLicense: Expat\n\nFiles: *\nCopyright: 2020 A\nLicense: GPL-2+\n all of it\n\n"
        "Files: lib/*\nCopyright: B\nLicense: BSD-like\n\n# a comment\nFiles: x\nLicense:\n GPL-3\n\n"
        "License: GPL-2+\n the text\n .\n more of it\n\nLicense: Unused-Text\n never\n"
    )
    assert licences_of(text) == Licences(spdx=("GPL-2.0-or-later", "MIT"), named=("BSD-like",))


def test_prose_names_no_licence_but_the_texts_it_points_at() -> None:
    prose = "Free software.\nSee `/usr/share/common-licenses/GPL-2' and /usr/share/common-licenses/LGPL."
    assert licences_of(prose) == Licences(refers_to=("GPL-2", "LGPL"))
    assert licences_of("") == Licences()


@given(st.text(max_size=400))
def test_no_text_makes_a_licence_up(text: str) -> None:
    for found in (licences_of(text), licences_of(f"{DEP5}\nFiles: *\nLicense: {text}\n")):
        for one in found.spdx:
            assert is_supported_id(one) or is_expression(one)
        assert all(one.isprintable() and len(one) <= 200 for one in found.named)


@given(
    st.lists(st.sampled_from(["GPL-2+", "Expat", "public-domain", "or", "and", "with", ",", "exception", "(", "X/Y"]))
)
def test_every_expression_is_one_that_spdx_reads(words: list[str]) -> None:
    found = spdx_expression(" ".join(words))
    assert not found or is_supported_id(found) or is_expression(found)


# -- changelogs

LOG = """small (1.2-3) trixie-security; urgency=high

  * Non-maintainer upload.
  * Fix a hole (CVE-2026-12345, CVE-2026-1234567) and CVE-2026-12345 again.

 -- A Person <a@images.example>  Sat, 21 Nov 2026 02:00:00 +0100

small (1.2-2) trixie; urgency=medium

  * DSA-5999-1: another.
\t* tab

 -- B Person <b@images.example>  Fri, 20 Nov 2026 02:00:00 +0000

Old text that is no entry

small (1.2-1) unstable; urgency=low

  * First.

 -- B Person <b@images.example>  never
"""


def test_entries_are_read_newest_first() -> None:
    first, second, third = entries_of(LOG)
    assert (first.source, first.version, first.urgency, first.date) == ("small", "1.2-3", "high", "2026-11-21")
    assert first.fixes == ("CVE-2026-12345", "CVE-2026-1234567")
    assert first.text.startswith("  * Non-maintainer upload.\n  * Fix a hole")
    assert (second.version, second.fixes) == ("1.2-2", ("DSA-5999-1",))
    assert (third.version, third.date) == ("1.2-1", "")
    assert [one.version for one in entries_of(LOG, most=1)] == ["1.2-3"]


def test_fixes_of_a_long_entry_are_kept_though_its_text_is_not() -> None:
    lines = "\n".join(f"  * Fix CVE-2026-{number:04d}." for number in range(1000, 1200))
    (found,) = entries_of(f"linux (6.1-1) trixie; urgency=high\n\n{lines}\n\n -- A <a@b.example>  x\n")
    assert len(found.fixes) == 200
    assert len(found.text) <= TEXT_LONGEST + 10


@pytest.mark.parametrize(
    ("text", "fixes"),
    [
        ("CVE-2026-0001 DLA-1-1, USN-7000-2", ("CVE-2026-0001", "DLA-1-1", "USN-7000-2")),
        ("(GHSA-abcd-2345-wxyz)", ("GHSA-abcd-2345-wxyz",)),
        ("CVE-26-1 xCVE-2026-0001 CVE-2026-123 cve-2026-0001", ()),
    ],
)
def test_fixes_are_known_by_their_form(text: str, fixes: tuple[str, ...]) -> None:
    assert fixes_in(text) == fixes


def test_changelogs_are_read_compressed_or_not_and_never_further_than_a_limit() -> None:
    assert changelog_text(gzip.compress(LOG.encode())) == LOG
    assert changelog_text(LOG.encode()) == LOG
    assert changelog_text(b"\x1f\x8bnot gzip") == ""
    assert len(changelog_text(gzip.compress(b"x" * (8 << 20)))) == 2 << 20


@given(st.text(max_size=600) | st.lists(st.sampled_from([*LOG.splitlines(), " -- ", "x (1) y;"])).map("\n".join))
def test_no_text_makes_the_changelog_reader_fail(text: str) -> None:
    for one in entries_of(text):
        assert one.source
        assert one.version
        assert all(char == "\n" or char.isprintable() for char in one.text)
    assert len(entries_of(text)) <= ENTRIES


# -- inventories


def link(path: str, target: str) -> Entry:
    return Entry(path=path, kind="link", mode=0o777, uid=0, gid=0, size_bytes=0, target=target)


def test_units_are_enabled_or_masked_by_links() -> None:
    found = units(
        [
            link("/etc/systemd/system/multi-user.target.wants/ssh.service", "/usr/lib/systemd/system/ssh.service"),
            link("/usr/lib/systemd/system/sockets.target.wants/dbus.socket", "../dbus.socket"),
            link("/etc/systemd/system/basic.target.requires/ssh.service", "/x"),
            link("/etc/systemd/system/apt-daily.timer", "/dev/null"),
            link("/etc/systemd/system/dbus-org.service", "/usr/lib/systemd/system/x.service"),
            link("/etc/systemd/user/sockets.target.wants/ssh-agent.socket", "/x"),
            link("/etc/other/multi-user.target.wants/no.service", "/x"),
        ]
    )
    assert found == (
        Unit(name="apt-daily.timer", masked=True),
        Unit(name="dbus.socket", wanted_by=("sockets.target",)),
        Unit(name="ssh.service", wanted_by=("basic.target", "multi-user.target")),
        Unit(name="ssh-agent.socket", scope="user", wanted_by=("sockets.target",)),
    )


def test_the_last_setting_of_a_kernel_key_counts() -> None:
    found = sysctl(
        [
            ("10", "# no = 1\n; no = 2\nkernel.kptr_restrict = 1\n-net/ipv4/conf/eth0.1/rp_filter=2\nbroken"),
            ("90", "kernel.kptr_restrict=2\nnet.ipv4.tcp_rmem = 4096  131072\t6291456\n"),
        ]
    )
    assert found == {
        "kernel.kptr_restrict": "2",
        "net.ipv4.conf.eth0/1.rp_filter": "2",
        "net.ipv4.tcp_rmem": "4096 131072 6291456",
    }


def test_a_file_of_settings_hides_one_by_the_same_name(tmp_path: Path) -> None:
    for path, text in (
        ("etc/sysctl.d/50-a.conf", "a = etc\n"),
        ("usr/lib/sysctl.d/50-a.conf", "a = usr\nb = usr\n"),
        ("usr/lib/sysctl.d/10-c.conf", "c = 1\n"),
        ("usr/lib/os-release", 'ID=debian\nVERSION_ID="13"\nPRETTY_NAME="Debian GNU/Linux 13 (trixie)"\n'),
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    tree = Tree(tmp_path)
    found = inventory_of(tree.entries, tree.read)
    assert dict(found.sysctl) == {"a": "etc", "c": "1"}
    assert (found.distro, found.version, found.files) == ("debian", "13", 4)
    assert read_inventory(found.text()) == found


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema": "other"}', '{"schema": "factory/inventory/1", "units": 7}']
)
def test_an_inventory_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(NotGood):
        read_inventory(text)


# -- package files


def make_deb(folder: Path, files: dict[str, bytes], *, name: str = "small_1.2-3_amd64.deb", form: str = "xz") -> Path:
    """A package with these files and nothing else, made as deb(5) says."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=f"w:{form}") as archive:
        for path, content in files.items():
            member = tarfile.TarInfo(f".{path}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    parts = [("debian-binary", b"2.0\n"), ("control.tar.xz", b"odd"), (f"data.tar.{form}", packed.getvalue())]
    made = b"!<arch>\n"
    for part, content in parts:
        made += f"{part:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode() + content
        made += b"\n" * (len(content) % 2)
    path = folder / name
    path.write_bytes(made)
    return path


@pytest.mark.parametrize("form", ["xz", "gz", "bz2"])
def test_single_files_are_read_out_of_a_package(tmp_path: Path, form: str) -> None:
    deb = make_deb(tmp_path, {"/usr/share/doc/small/copyright": b"c", "/usr/bin/small": b"x" * 70000}, form=form)
    assert files_of_deb(deb, ["/usr/share/doc/small/copyright", "/none"]) == {"/usr/share/doc/small/copyright": b"c"}
    told = subprocess.run(["dpkg-deb", "--fsys-tarfile", deb], capture_output=True, check=True).stdout
    assert b"usr/share/doc/small/copyright" in told


@given(st.binary(max_size=300), st.integers(0, 400))
def test_a_damaged_package_holds_nothing(tmp_path_factory: pytest.TempPathFactory, junk: bytes, cut: int) -> None:
    folder = tmp_path_factory.mktemp("deb")
    whole = make_deb(folder, {"/a": b"content"}).read_bytes()
    for content in (junk, b"!<arch>\n" + junk, whole[: min(cut, len(whole) - 60)]):
        (folder / "bad.deb").write_bytes(content)
        assert files_of_deb(folder / "bad.deb", ["/a"]) in ({}, {"/a": b"content"}, {"/a": b""})


# -- evidence

STATUS = """Package: small
Status: install ok installed
Maintainer: A Team <team@images.example>
Architecture: amd64
Source: small-source (1.2-3)
Version: 1.2-3+b1

Package: linked
Status: install ok installed
Maintainer: Nobody
Architecture: all
Source: small-source (1.2-3)
Version: 1.2-3

Package: bare
Status: install ok installed
Architecture: all
Version: 2:1.0

Package: gone
Status: deinstall ok config-files
Architecture: all
Version: 1
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    doc = root / "usr/share/doc"
    (doc / "small").mkdir(parents=True)
    (doc / "small/copyright").write_text(f"{DEP5}\nFiles: *\nLicense: GPL-2+\n")
    (doc / "small/changelog.Debian.gz").write_bytes(gzip.compress(LOG.replace("small (", "small-source (").encode()))
    (doc / "linked").symlink_to("small")
    return root


def test_packages_tell_about_themselves_also_through_links(root: Path) -> None:
    found = evidence_of(STATUS, Tree(root))
    assert set(found.about) == {("small", "amd64"), ("linked", "all"), ("bare", "all")}
    small = found.about[("small", "amd64")]
    assert (small.source, small.source_version, small.maintainer) == (
        "small-source",
        "1.2-3",
        "A Team <team@images.example>",
    )
    assert found.about[("linked", "all")].licences == small.licences == Licences(spdx=("GPL-2.0-or-later",))
    assert found.about[("bare", "all")].licences is None
    assert [one.version for one in found.sources["small-source"].entries] == ["1.2-3", "1.2-2", "1.2-1"]
    assert (found.sources["bare"].version, found.sources["bare"].entries) == ("2:1.0", ())
    assert coverage(one.licences for one in found.about.values())["missing"] == 1


def test_a_changelog_of_what_is_packaged_is_not_that_of_the_package(root: Path) -> None:
    (root / "usr/share/doc/small/changelog.Debian.gz").write_bytes(gzip.compress(LOG.encode()))  # of another source
    assert evidence_of(STATUS, Tree(root)).sources["small-source"].entries == ()


def test_what_an_image_leaves_out_is_read_from_the_package_file(root: Path, tmp_path: Path) -> None:
    texts = {
        "/usr/share/doc/bare/copyright": f"{DEP5}\nFiles: *\nLicense: Expat\n".encode(),
        "/usr/share/doc/bare/changelog.gz": gzip.compress(LOG.replace("small (", "bare (").encode()),
    }
    deb = make_deb(tmp_path, texts, name="bare_1.0_all.deb")
    found = with_package_files(evidence_of(STATUS, Tree(root)), {("bare", "all"): deb})
    assert found.about[("bare", "all")].licences == Licences(spdx=("MIT",))
    assert len(found.sources["bare"].entries) == 3


def test_changelogs_are_kept_and_read_back(root: Path) -> None:
    found = evidence_of(STATUS, Tree(root))
    kept = changelogs_bytes(found.sources)
    assert kept == changelogs_bytes(dict(reversed(found.sources.items())))
    assert read_changelogs(kept) == dict(found.sources)
    assert json.loads(lzma.decompress(kept))["schema"] == "factory/changelogs/1"


@pytest.mark.parametrize(
    "content", [b"", b"x", lzma.compress(b"[]"), lzma.compress(b'{"schema": 1}'), lzma.compress(bytes(80 << 20))]
)
def test_changelogs_of_another_form_are_refused(content: bytes) -> None:  # fmt: skip
    with pytest.raises(NotGood):
        read_changelogs(content)


# -- the bill

SUBJECT = sbom.Subject(
    file="small.x86_64.qcow2",
    name="small",
    build_id="0123456789ab",
    sha256="1" * 64,
    sha512="2" * 128,
    epoch=1_795_000_000,
    inventory=Inventory(distro="debian", version="13", title="Debian GNU/Linux 13 (trixie)"),
    tools={"kiwi": "10.2", "mke2fs": "1.47"},
)
PART = sbom.Part(
    system="deb",
    vendor="debian",
    name="libsmall2",
    version="2:1.2-3+b1",
    arch="amd64",
    distro="debian-13",
    source="small",
    source_version="2:1.2-3",
    maintainer="A Team <team@images.example>",
    origin="debian-security",
    sha256="3" * 64,
    sha512="4" * 128,
    licences=Licences(spdx=("GPL-2.0-or-later",)),
)


def bill(*parts: sbom.Part, subject: sbom.Subject = SUBJECT) -> dict:
    text = sbom.sbom_text(subject, parts)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    body: dict = json.loads(text)
    # CycloneDX's own library reads it, and writes the same in the same order
    assert json.loads(JsonV1Dot6(Bom.from_json(body)).output_as_string()) == body
    return body


def component(body: dict, name: str) -> dict:
    (found,) = [one for one in body["components"] if one["name"] == name]
    return found


def test_a_package_is_a_component_with_all_that_is_known() -> None:
    found = component(bill(PART), "libsmall2")
    purl = PackageURL.from_string(found["purl"])
    assert (purl.type, purl.namespace, purl.name, purl.version) == ("deb", "debian", "libsmall2", "2:1.2-3+b1")
    assert purl.qualifiers == {"arch": "amd64", "distro": "debian-13", "upstream": "small@2:1.2-3"}
    assert found["hashes"] == [{"alg": "SHA-256", "content": "3" * 64}, {"alg": "SHA-512", "content": "4" * 128}]
    assert found["licenses"] == [{"license": {"id": "GPL-2.0-or-later", "acknowledgement": "declared"}}]
    assert found["supplier"] == {"name": "A Team", "contact": [{"name": "A Team", "email": "team@images.example"}]}
    properties = {one["name"]: one["value"] for one in found["properties"]}
    assert properties["image-factory:repository"] == "debian-security"


def test_the_bill_is_about_the_image_and_names_what_made_it() -> None:
    body = bill(PART)
    about = body["metadata"]["component"]
    assert (about["type"], about["name"]) == ("file", "small.x86_64.qcow2")
    assert about["hashes"] == [{"alg": "SHA-256", "content": "1" * 64}, {"alg": "SHA-512", "content": "2" * 128}]
    assert [one["name"] for one in body["metadata"]["tools"]["components"]] == ["kiwi", "mke2fs"]
    assert body["metadata"]["timestamp"].startswith("2026-11-18T")
    system = component(body, "debian")
    assert (system["type"], system["version"]) == ("operating-system", "13")
    (depends,) = [one["dependsOn"] for one in body["dependencies"] if one["ref"] == about["bom-ref"]]
    assert len(depends) == len(body["components"])


def test_the_same_image_has_the_same_bill_and_another_one_another_number() -> None:
    others = [replace(PART, name=f"lib{number}") for number in range(20)]
    one, same = (sbom.sbom_text(SUBJECT, order) for order in (others, others[::-1]))
    assert one == same
    told = Licences(spdx=("ISC", "MIT OR ISC", "BSD-3-Clause"), named=("vim", "Artistic"))
    assert len(bill(*others, replace(PART, licences=told, name="Zlib"))["components"]) == len(others) + 2
    other = bill(subject=replace(SUBJECT, sha256="5" * 64))
    assert other["serialNumber"] != json.loads(one)["serialNumber"]


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        (None, None),
        (Licences(spdx=("MIT",)), [{"id": "MIT"}]),
        (Licences(spdx=("GPL-2.0-only", "MIT OR ISC")), "GPL-2.0-only AND (MIT OR ISC)"),
        (Licences(spdx=("MIT OR ISC",)), "MIT OR ISC"),
        (Licences(spdx=("MIT",), named=("public-domain",)), [{"id": "MIT"}, {"name": "public-domain"}]),
        (Licences(named=("Vim",)), [{"name": "Vim"}]),
        (Licences(refers_to=("GPL-3",)), [{"name": "see /usr/share/doc/libsmall2/copyright"}]),
        (Licences(), [{"name": "see /usr/share/doc/libsmall2/copyright"}]),
    ],
)
def test_licences_are_expressions_or_names_and_never_made_up(licences: Licences | None, expected: object) -> None:
    found = component(bill(replace(PART, licences=licences)), "libsmall2").get("licenses")
    if isinstance(expected, str):
        assert found == [{"expression": expected, "acknowledgement": "declared"}]
    elif expected is None:
        assert found is None
    else:
        assert [
            {key: one["license"][key] for key in one["license"] if key != "acknowledgement"} for one in found
        ] == expected


@given(
    name=st.text(min_size=1, max_size=9) | st.text('ab%?&=@:+~<"', min_size=1, max_size=9),
    version=st.text('12%?&=@:+~<"', min_size=1, max_size=9),
    maintainer=st.text(max_size=60),
    licence=st.text(min_size=1, max_size=30),
)
def test_hostile_words_of_packages_make_a_bill_that_is_still_one(name, version, maintainer, licence) -> None:
    told = licences_of(f"{DEP5}\nFiles: *\nLicense: {licence}\n")
    try:
        body = bill(replace(PART, name=name, version=version, maintainer=maintainer, licences=told))
    except BuildError:
        assert any(char <= " " or char > "~" or char == "/" for char in name + version)
        return
    assert len(body["components"]) == 2


def test_the_number_of_epochs_goes_where_a_packaging_wants_it() -> None:
    rpm = replace(PART, system="rpm", vendor="opensuse", distro="opensuse-15.6", name="small", arch="x86_64", source="")
    rpm = replace(rpm, version="1:2.0-3", source_version="")
    assert sbom.package_url(rpm).to_string() == "pkg:rpm/opensuse/small@2.0-3?arch=x86_64&distro=opensuse-15.6&epoch=1"


def test_records_name_the_file_that_each_package_came_from(root: Path, tmp_path: Path) -> None:
    store, tree = BlobStore(tmp_path / "blobs"), tmp_path / "tree"
    store.prepare()
    tree.mkdir()
    own = make_deb(tree, {"/x": b"ours"}, name="bare_1.0_all.deb")
    with store.incoming() as incoming:
        incoming.write(make_deb(tmp_path, {"/y": b"theirs"}).read_bytes())
        kept = store.keep(incoming)
    packages = (
        Package(name="bare", version="2:1.0", arch="all", source="bare"),
        Package(name="small", version="1.2-3+b1", arch="amd64", source="small-source", origin="debian"),
    )
    inputs = [Input(repository="debian", path="pool/s/small_1.2-3%2bb1_amd64.deb", sha512=kept.sha512, size_bytes=1)]
    files = package_files(packages, inputs, store, tree)
    assert files[("small", "amd64")] == PackageFile(
        path=store.path(kept.sha512), sha256=kept.sha256, sha512=kept.sha512
    )
    assert files[("bare", "all")].ours
    assert files[("bare", "all")].sha256 == sha256_file(own)
    made = write_records(
        tmp_path,
        image=tmp_path / "small.qcow2",
        name="small",
        sums=Digests(sha256="1" * 64, sha512="2" * 128, size_bytes=1),
        epoch=SUBJECT.epoch,
        build_id="b",
        tools={"kiwi": "1"},
        packages=packages,
        files=files,
        found=evidence_of(STATUS, Tree(root)),
        pack=lambda text: b"the box's own " + text,
    )
    assert made.changelogs.read_bytes().startswith(b"the box's own {")
    body = json.loads(made.sbom.read_text())
    assert PackageURL.from_string(component(body, "bare")["purl"]).namespace == "image-factory"
    assert dict(made.licences) == {"spdx": 1, "partly": 0, "named": 0, "prose": 0, "missing": 1}
    assert made.sbom_sha256 == sha256_file(made.sbom)


def test_names_of_package_files_are_read() -> None:
    assert package_of_file("pool/s/small_1%3a1.2%2bb1_amd64.deb") == ("small", "1.2+b1", "amd64")
    assert package_of_file("pool/s/small_1.2.dsc") is None


# -- a rebuild compares what was written


def manifests(recorded: dict[str, str], made: dict[str, str], *, tool: str = "1") -> tuple[str, ...]:
    description = Description(name="small", line="Small")
    common = {"image": "small", "arch": "x86_64", "epoch": 1, "identity": {}, "description": description}
    common |= {"repositories": (), "recipe_digest": "", "tree_sha256": "", "commit": "", "dirty": False}
    common |= {"inputs_digest": "", "layers": {}, "size_bytes": 1}
    old = Manifest(**common, tools={"kiwi": "1"}, results={"small.x86_64.qcow2": "i", **recorded})
    new = Manifest(**common, tools={"kiwi": tool}, results={"small.x86_64.qcow2": "i", **made})
    lists = {"files.list": b"{}\n", "packages.json": b'{"packages": []}', "inputs.lock": b"{}\n"}
    return tuple(f"{one.what} {one.name}" for one in differences(old, new, old=lists, new=lists))


@pytest.mark.parametrize(
    ("recorded", "made", "tool", "differs"),
    [
        ({sbom.NAME: "1"}, {sbom.NAME: "1"}, "1", ()),
        ({sbom.NAME: "1"}, {sbom.NAME: "2"}, "1", (f"result {sbom.NAME}",)),
        ({"inventory.json": "1"}, {"inventory.json": "2"}, "1", ("result inventory.json",)),
        ({sbom.NAME: "1"}, {}, "1", (f"result {sbom.NAME}",)),
        ({}, {sbom.NAME: "1", "inventory.json": "1", "changelogs.json.xz": "1"}, "1", ()),
        ({sbom.NAME: "1"}, {sbom.NAME: "2"}, "2", ("tool kiwi",)),
    ],
)
def test_a_rebuild_compares_the_bill(recorded: dict, made: dict, tool: str, differs: tuple[str, ...]) -> None:
    """Tarballs of older factories name none, and a bill names the tools that are compared anyway."""
    assert manifests(recorded, made, tool=tool) == differs
