# SPDX-License-Identifier: Apache-2.0
"""The parts of the build that need no builder: what is decided, parsed, checked and told."""

from __future__ import annotations

import json
import os
import struct
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.build import contents, disk, filesystem
from factory.build.box import memory_for_target
from factory.build.failure import clean, explain, full
from factory.build.identity import build_id, identity
from factory.build.kiwi import doing, repository_options
from factory.build.leftovers import clean_leftovers, is_dead, own_mark
from factory.build.tarball import write_tar
from factory.build.tidy import expect_tidy, tidy_faults
from factory.errors import BuildError, CommandFailed, InputsError
from factory.model import Repository
from factory.system.files import sha256_file
from factory.system.run import run

GIB = 1 << 30
LOGS = Path(__file__).parent / "build_logs"


# -- what is decided


@pytest.mark.parametrize(
    ("available_gib", "disk_gib", "gib"), [(24, 4, 8), (10, 4, 8), (9, 4, None), (8, 2, 6), (0, 1, None)]
)
def test_files_are_kept_in_memory_when_it_is_free(available_gib, disk_gib, gib) -> None:
    assert memory_for_target(available_gib * GIB, disk_gib) == (gib and gib * GIB)


def test_identifiers_follow_from_image_and_epoch() -> None:
    one = identity("debian13", 1000)
    assert one == identity("debian13", 1000)
    others = [identity("debian13", 1001), identity("debian12", 1000)]
    for other in others:
        assert {other.root_uuid, other.hash_seed}.isdisjoint({one.root_uuid, one.hash_seed})
        assert other.disk_id != one.disk_id
    assert one.root_uuid != one.hash_seed
    assert 0 < one.disk_id < 1 << 32
    assert build_id("a", "b") != build_id("b", "a")


@pytest.mark.parametrize(
    ("name", "dead"),
    [
        ("/x/factory-box-7-100.12 (deleted)", False),
        ("/x/factory-box-7-101.12 (deleted)", True),
        ("/x/factory-box-8-100", True),
        ("/x/disk.raw", False),
        ("factory-box-", False),
    ],
)
def test_a_mark_tells_a_dead_factory_from_a_living(name, dead) -> None:
    assert is_dead(name, lambda pid: "100" if pid == 7 else None) is dead


def test_only_files_of_dead_boxes_are_removed(tmp_path) -> None:
    said: list[str] = []
    for name in (own_mark(), "factory-box-1-1", "tree"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    clean_leftovers([tmp_path], said.append)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([own_mark(), "tree"])
    assert len(said) == 1


def test_each_suite_is_read_from_the_inputs_server() -> None:
    repository = Repository(
        alias="debian", url="http://m.example", suites=("trixie", "trixie-updates"), components=("main", "contrib")
    )
    assert repository_options((repository,)) == [
        "--add-repo",
        "http://127.0.0.1:3142/debian,apt-deb,inputs-debian-trixie,,false,false,,main contrib,trixie,false",
        "--add-repo",
        (
            "http://127.0.0.1:3142/debian,apt-deb,inputs-debian-trixie-updates,,false,false,,main contrib,"
            "trixie-updates,false"
        ),
    ]


@pytest.mark.parametrize(
    ("log", "now"),
    [
        ("", "starting"),
        ("[ INFO    ]: 10:09:55 | Preparing new root system\n", "Preparing new root system"),
        (
            "[ INFO    ]: 10:09:55 | A\n[ DEBUG   ]: 10:10:24 | system: Setting up bash (5.2) ...\n",
            "Setting up bash (5.2)",
        ),
        ("[ DEBUG   ]: 10:10:24 | system: Setting up bash (5.2) ...\n[ INFO    ]: 10:09:55 | B\n", "B"),
        (
            "[ DEBUG   ]: 1 | system: Get:7 http://127.0.0.1:3142/debian trixie/main amd64 nano amd64 8 [1 kB]",
            "fetching nano",
        ),
        (
            "[ DEBUG   ]: 1 | bootstrap: Get:1 http://127.0.0.1:3142/debian trixie InRelease [140 kB]",
            "fetching InRelease",
        ),
        ("[ DEBUG   ]: 10:10:24 | system: Setting up \x1b[31mevil (5.2) ...\n", "Setting up  [31mevil (5.2)"),
    ],
)
def test_progress_tells_what_kiwi_does(log, now) -> None:
    assert doing(log) == now


# -- the disk


def mbr(*partitions: tuple[int, int, int], kernel_sector: int = 1, rest: tuple[int, int] = (2, 60)) -> bytes:
    """2 MiB of a disk with these (type, first sector, sectors), and a boot loader that says where its rest is."""
    head = bytearray(2048 * 512)
    struct.pack_into("<Q", head, 0x5C, kernel_sector)
    for index, (kind, start, sectors) in enumerate(partitions):
        head[446 + 16 * index + 4] = kind
        struct.pack_into("<II", head, 446 + 16 * index + 8, start, sectors)
    head[510:512] = b"\x55\xaa"
    struct.pack_into("<QH", head, 512 + 0x1F4, *rest)
    return bytes(head)


def test_the_root_partition_is_found() -> None:
    found = disk.root_partition(mbr((0x83, 2048, 4096)))
    assert (found.number, found.offset_bytes, found.size_bytes) == (1, 1 << 20, 2 << 20)


@pytest.mark.parametrize(
    "table", [b"", bytes(512), mbr(), mbr((0x82, 2048, 10)), mbr((0x83, 2048, 10), (0x83, 4096, 10)), mbr((0xEE, 1, 9))]
)
def test_other_layouts_are_refused(table) -> None:
    with pytest.raises(BuildError):
        disk.root_partition(table)


def test_an_embedded_boot_loader_is_recognised() -> None:
    disk.expect_embedded_grub(mbr((0x83, 2048, 4096)))


@pytest.mark.parametrize(
    "head",
    [
        mbr((0x83, 2048, 4096), kernel_sector=0),
        mbr((0x83, 2048, 4096), kernel_sector=262144),
        mbr((0x83, 2048, 4096), rest=(300000, 60)),
        mbr((0x83, 2048, 4096), rest=(2, 4000)),
        mbr((0x83, 2048, 4096), rest=(2, 0)),
    ],
)
def test_a_boot_loader_in_the_file_system_is_refused(head) -> None:
    with pytest.raises(BuildError, match="not embedded"):
        disk.expect_embedded_grub(head)


def test_the_disk_identifier_is_set_and_nothing_else() -> None:
    head = mbr((0x83, 2048, 4096))
    changed = disk.with_disk_id(head, 0x12345678)
    assert changed[440:444] == bytes.fromhex("78563412")
    assert (changed[:440], changed[444:]) == (head[:440], head[444:])


# -- the file system


def test_crc32c_is_the_one_of_the_standard() -> None:
    assert filesystem.crc32c(b"123456789") ^ 0xFFFFFFFF == 0xE3069283


def test_used_inodes_are_those_not_free() -> None:
    text = "Group 0:\n  Free inodes: 14-15, 17\nGroup 1:\n  Free inodes: 21-32\nGroup 2:\n  Free inodes: \n"
    assert list(filesystem.used_inodes(text, 33)) == [2, 11, 12, 13, 16, 18, 19, 20, 33]


@given(st.text(max_size=300))
def test_what_is_no_ext4_is_told(text) -> None:
    with pytest.raises(BuildError, match="not ext4"):
        filesystem.parse_format(text)


def test_the_superblock_of_a_real_file_system_stays_good(tmp_path) -> None:
    from factory.system.run import run

    file = tmp_path / "fs"
    run(["truncate", "--size=8M", file])
    run(["mke2fs", "-q", "-F", "-t", "ext4", "-O", "metadata_csum", file])
    content = bytearray(file.read_bytes())
    content[1024:2048] = filesystem.with_write_time(bytes(content[1024:2048]), 1_000_000_000)
    file.write_bytes(content)
    told = run(["dumpe2fs", "-h", file]).stdout
    assert "Last write time:          Sun Sep  9 01:46:40 2001" in told
    run(["e2fsck", "-f", "-n", file])


# -- what is in an image


@pytest.fixture
def root(tmp_path) -> Path:
    """A root file system as small as can be, and tidy."""
    made = tmp_path / "root"
    for folder in (
        "etc/ssh",
        "etc/apt/sources.list.d",
        "usr/bin",
        "var/lib/dpkg/info",
        "var/log",
        "tmp",
        "run",
        "root",
    ):
        (made / folder).mkdir(parents=True)
    (made / "bin").symlink_to("usr/bin")
    (made / "etc/machine-id").write_text("")
    (made / "usr/bin/true").write_text("true")
    (made / "usr/bin/made-here").write_text("x")
    (made / "usr/bin/true.moved").write_text("moved")
    (made / "var/log/wtmp").write_text("")
    (made / "var/lib/dpkg/info/coreutils:amd64.list").write_text("/.\n/bin\n/bin/true\n/usr\n/usr/bin\n")
    (made / "var/lib/dpkg/diversions").write_text("/bin/true\n/bin/true.moved\nother\n")
    return made


def test_every_file_is_listed_with_its_owner(root) -> None:
    schema, *lines = map(json.loads, contents.files_list(contents.Tree(root)).splitlines())
    assert schema == {"schema": "factory/files/1"}
    package = {line["path"]: line["package"] for line in lines}
    assert package["/usr/bin/true"] == "coreutils"
    assert package["/usr"] == "coreutils"
    assert package["/usr/bin/true.moved"] == "other"
    assert package["/usr/bin/made-here"] == "generated"
    assert [line["path"] for line in lines] == sorted(package)
    found = {line["path"]: line for line in lines}
    assert (found["/bin"]["kind"], found["/bin"]["target"]) == ("link", "usr/bin")
    assert (found["/usr/bin/true"]["size"], found["/etc"]["kind"]) == (4, "dir")


def test_files_are_listed_by_what_a_program_read_of_them(root: Path) -> None:
    for name in (b"two  spaces", b"of\nlines", b"\\", b"\xff", "\ufffd".encode(), "\u00fc".encode()):
        (root / os.fsdecode(name)).write_bytes(b"content of " + name)
    tree = contents.Tree(root)
    said = run(["find", root, "-type", "f", "-exec", "sha256sum", "--zero", "--", "{}", "+"]).stdout
    sums = contents.told_sums(said, root)
    assert {"/two  spaces", "/of\nlines", "/\\", "/\u00fc", "/usr/bin/true"} <= sums.keys()
    assert "/\ufffd" not in sums  # one of two files, and nobody knows which
    assert contents.files_list(tree, sums) == contents.files_list(tree)
    assert "0" * 64 in contents.files_list(tree, {"/usr/bin/true": "0" * 64})


def test_links_never_lead_out_of_the_image(root, tmp_path) -> None:
    (tmp_path / "secret").write_text("secret")
    (root / "etc/leak").symlink_to(tmp_path / "secret")
    (root / "etc/up").symlink_to("../../../../..")
    tree = contents.Tree(root)
    assert tree.read("/etc/leak") == b""
    assert "/secret" not in tree.entries
    assert tree.canonical("/etc/up/x") == "/x"


def test_links_in_circles_end(root) -> None:
    (root / "a").symlink_to("b")
    (root / "b").symlink_to("a")
    assert contents.Tree(root).canonical("/a/x") in {"/a/x", "/b/x"}


def test_packages_know_source_and_origin() -> None:
    status = (
        "Package: a\nStatus: install ok installed\nVersion: 1:2.0+1\nArchitecture: amd64\nSource: src (2.0)\n"
        "Description: x\n Package: not\n\n"
        "Package: b\nStatus: deinstall ok config-files\nVersion: 1\nArchitecture: all\n\n"
        "Package: c\nStatus: install ok installed\nVersion: 3\nArchitecture: all\n"
    )
    origins = contents.package_origins(
        [("debian", "pool/main/a/a/a_2.0%2b1_amd64.deb"), ("debian", "dists/x/InRelease")]
    )
    found = contents.installed_packages(status, origins)
    assert [(p.name, p.version, p.source, p.origin) for p in found] == [
        ("a", "1:2.0+1", "src", "debian"),
        ("c", "3", "c", ""),
    ]
    assert contents.packages_text(found).splitlines()[0] == "a 1:2.0+1 amd64 src debian"
    assert json.loads(contents.packages_json(found))["packages"][1]["name"] == "c"


# -- what must not be in an image


def test_a_tidy_root_has_no_faults(root) -> None:
    assert tidy_faults(contents.Tree(root)) == ()
    expect_tidy(contents.Tree(root))


SPOILERS = {
    "/etc/ssh/ssh_host_ed25519_key": "host key",
    "/etc/machine-id": "not empty",
    "/var/lib/dbus/machine-id": "not empty",
    "/var/lib/systemd/random-seed": "secret",
    "/var/lib/systemd/credential.secret": "secret",
    "/var/log/dpkg.log": "log of the build",
    "/var/log/apt/history.log": "log of the build",
    "/var/cache/apt/pkgcache.bin": "cache",
    "/var/cache/apt/archives/a_1_all.deb": "cache",
    "/var/cache/ldconfig/aux-cache": "cache",
    "/var/lib/apt/lists/mirror_InRelease": "package index",
    "/var/lib/dpkg/status-old": "backup",
    "/tmp/x": "temporary",
    "/var/tmp/x": "temporary",
    "/root/.bash_history": "trace of a person",
    "/root/.ssh/authorized_keys": "let its owner in",
    "/home/linux/.ssh/authorized_keys": "let its owner in",
    "/.profile": "trace of the builder",
    "/image/config.xml": "trace of the builder",
    "/usr/sbin/policy-rc.d": "trace of the builder",
    "/var/lib/cloud/instance/x": "state of a boot",
}


@pytest.mark.parametrize("path", SPOILERS)
def test_what_must_not_be_in_an_image_is_found(root, path) -> None:
    file = root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("0123456789abcdef0123456789abcdef\n")
    faults = [fault for fault in tidy_faults(contents.Tree(root)) if fault.place == path]
    assert len(faults) == 1
    assert SPOILERS[path] in faults[0].problem
    with pytest.raises(BuildError, match="must not be in it") as told:
        expect_tidy(contents.Tree(root))
    assert path in str(told.value.facts)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("URIs: http://127.0.0.1:3142/debian\n", "inputs server"),
        ("Types: deb\ntrusted: yes\n", "without a signature"),
        ("deb [arch=amd64 trusted=yes] http://m.example x main\n", "without a signature"),
    ],
)
def test_a_repository_of_the_box_or_without_signature_is_found(root, text, says) -> None:
    (root / "etc/apt/sources.list.d/x.sources").write_text(text)
    assert [says in fault.problem for fault in tidy_faults(contents.Tree(root))] == [True]


def test_a_missing_machine_id_is_told(root) -> None:
    (root / "etc/machine-id").unlink()
    assert [fault.place for fault in tidy_faults(contents.Tree(root))] == ["/etc/machine-id"]


# -- the source tarball


def test_a_tarball_follows_from_names_modes_and_contents(tmp_path) -> None:
    sums = []
    for number in (1, 2):
        tree = tmp_path / str(number)
        names = ["b", "a/x", "a.sh"]
        for name in names if number == 1 else reversed(names):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_text(name)
        (tree / "a.sh").chmod(0o755)
        (tree / "link").symlink_to("b")
        os.utime(tree / "b", (number, number))
        write_tar(tree, tmp_path / f"{number}.tar", name="image-1", epoch=1000)
        sums.append(sha256_file(tmp_path / f"{number}.tar"))
    assert sums[0] == sums[1]
    with tarfile.open(tmp_path / "1.tar") as archive:
        members = archive.getmembers()
    assert [member.name for member in members] == [
        "image-1", "image-1/a", "image-1/a.sh", "image-1/a/x", "image-1/b", "image-1/link",
    ]  # fmt: skip
    assert {(member.uid, member.gid, member.uname, member.mtime) for member in members} == {(0, 0, "", 1000)}
    assert members[2].mode == 0o755


# -- what went wrong

FAILURES = {
    "package-unknown.log": ("no repository has the package 'no-such-package-here'", "config.xml"),
    "config-sh.log": ("the description's 'config.sh' failed", "everything it said"),
    "no-space.log": ("there was no space left", "disk.min_gib"),
    "postinst.log": ("the package 'broken-postinst' could not be installed", "say why"),
    "dib-package-unknown.log": ("no repository has the package 'no-such-package-here'", "package-installs.yaml"),
    "dib-hook.log": ("the hook 'post-install.d/90-image-factory' failed", "the log has more"),
    "schema.log": ("the description is not what kiwi's schema allows", "config.xml"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failed_build_names_what_is_at_fault(name) -> None:
    message, hint = FAILURES[name]
    failed = CommandFailed("'nsenter' exited with status 1 after 9 s")
    told = explain("debian13", LOGS / name, failed=failed, faults=(), free_bytes=1 << 20)
    assert told.message.startswith(f"the build of 'debian13' failed: {message}")
    assert hint in told.hint
    assert dict(told.facts)["log"] == str(LOGS / name)
    assert any(key == "said" for key, _ in told.facts)


def test_a_hook_that_failed_is_told_with_its_own_words() -> None:
    told = explain("x", LOGS / "dib-hook.log", failed=CommandFailed("x"), faults=(), free_bytes=0)
    said = [value for key, value in told.facts if key == "said"]
    assert said == [
        "post-install.d/90-image-factory",
        "Failed to disable unit: Unit file no-such.timer does not exist.",
    ]


def test_what_the_inputs_server_could_not_get_comes_first() -> None:
    fault = InputsError("the mirror 'm.example' does not answer", facts=(("address", "a"),), hint="check it")
    told = explain("debian13", LOGS / "package-unknown.log", failed=CommandFailed("x"), faults=(fault,), free_bytes=0)
    assert told.message == "the build of 'debian13' failed: the mirror 'm.example' does not answer"
    assert told.hint == "check it"


def test_an_unknown_failure_tells_how_it_ended(tmp_path) -> None:
    log = tmp_path / "build.log"
    log.write_text("something\n\x1b[31mred\n")
    failed = CommandFailed("'nsenter' was ended by SIGKILL after 9 s")
    told = explain("debian13", log, failed=failed, faults=(), free_bytes=0)
    assert "was ended by SIGKILL" in told.message
    assert "too little memory" in told.hint
    assert "\x1b" not in str(told.facts)


def test_a_full_disk_is_named_in_the_tail(tmp_path) -> None:
    failed = CommandFailed("'qemu-img' failed", facts=(("said", "error while writing: No space left on device"),))
    assert "no space left" in full("debian13", failed, place=tmp_path).message
    assert "no space left" not in full("debian13", CommandFailed("x"), place=tmp_path).message
    assert "no space left" in full("debian13", OSError(28, "No space left on device"), place=tmp_path).message


@given(st.text(max_size=400))
def test_lines_of_a_log_are_harmless(line) -> None:
    assert clean(line).isprintable()
    assert len(clean(line)) <= 300
