# SPDX-License-Identifier: Apache-2.0
"""The root of a build box, made from packages alone.

What maintainer scripts would have done, as far as builders need it, stands here: users and groups from base-passwd's
own lists, the alternatives that programs are called by, names that lead nowhere but to ourselves, and where apt, dpkg
and a builder find room to write. Modules are compiled once, by the tree's own Python.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from factory.build.roots import Root
from factory.build.wheels import PACKAGES, add_python
from factory.errors import BuildError
from factory.system.run import run

VERSION = 1
"""Of how a tree is made from its packages: part of its name. Who changes what is made counts it up; a test knows what
each version makes."""
_THREADS = 4
_UNNEEDED = (
    *(f"usr/share/{name}" for name in ("bash-completion", "bug", "doc", "doc-base", "i18n", "info", "javascript")),
    *(f"usr/share/{name}" for name in ("lintian", "locale", "man", "menu", "zoneinfo", "zsh")),
    "etc/systemd",
    "usr/lib/systemd",
    "usr/lib/udev",
)
_LINKS = {
    "etc/mtab": "../proc/self/mounts",
    "usr/bin/awk": "gawk",
    "usr/bin/which": "which.debianutils",
}
_FOLDERS = {
    "boot": 0o755,
    "dev": 0o755,
    "proc": 0o755,
    "run": 0o755,
    "sys": 0o755,
    "tmp": 0o1777,
    "var/tmp": 0o1777,
    "root": 0o700,
    "etc/apt": 0o755,
    "var/lib/dpkg": 0o755,
}
# file systems of features that GRUB and fsck of every release in support can read; Debian 13's own list is longer
_MKE2FS = """\
[defaults]
	base_features = sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr
	default_mntopts = acl,user_xattr
	enable_periodic_fsck = 0
	blocksize = 4096
	inode_size = 256
	inode_ratio = 16384

[fs_types]
	ext3 = {
		features = has_journal
	}
	ext4 = {
		features = has_journal,extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize
	}
"""
_FILES = {
    "etc/hostname": "localhost\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "etc/resolv.conf": "nameserver 127.0.0.1\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files\n",
    "etc/mke2fs.conf": _MKE2FS,
}
COMPILE = ("python3", "-I", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", "-x", "/tests?/")
"""The one program that runs, inside the tree; places are added."""


def make_root(folder: Path, packages: Mapping[str, Path]) -> None:
    """Make a root in ``folder``, which is there and empty, from package files by their names.

    Raises:
        BuildError: a package is damaged, holds what it must not, or another has the same file.
    """
    lay(folder, packages)
    _compile(folder)


def lay(folder: Path, packages: Mapping[str, Path]) -> None:
    """All of :func:`make_root` that runs no program."""
    folder.chmod(0o755)
    root = Root(folder, unneeded=_UNNEEDED)
    debian = sorted(name for name in packages if name.endswith(".deb"))
    with ThreadPoolExecutor(max_workers=_THREADS) as pool:
        for done in [pool.submit(root.add_package, packages[name], name) for name in debian]:
            done.result()
    for name in sorted(set(packages) - set(debian)):
        add_python(root, packages[name], name)
    _finish(folder)


def _finish(folder: Path) -> None:
    """What maintainer scripts would have done."""
    for inside, mode in _FOLDERS.items():
        _folder(folder, inside).chmod(mode)
    for inside, target in _LINKS.items():
        if not (folder / inside).is_symlink():
            (folder / inside).symlink_to(target)
    masters = folder / "usr/share/base-passwd"
    _write(folder, "etc/passwd", (masters / "passwd.master").read_text())
    _write(folder, "etc/group", (masters / "group.master").read_text())
    # Python's requests reads it when it is imported, although there is nobody to talk to
    certificates = sorted((folder / "usr/share/ca-certificates").rglob("*.crt"))
    _write(folder, "etc/ssl/certs/ca-certificates.crt", "".join(path.read_text() for path in certificates))
    for inside, text in _FILES.items():
        _write(folder, inside, text)


def _folder(folder: Path, inside: str) -> Path:
    """A folder of the tree, made where it is not there; whatever umask we run with, everybody may look into it."""
    path = folder
    for part in Path(inside).parts:
        path /= part
        if not path.is_dir():
            path.mkdir()
            path.chmod(0o755)
    return path


def _write(folder: Path, inside: str, text: str) -> None:
    path = folder / inside
    _folder(folder, str(Path(inside).parent))
    path.unlink(missing_ok=True)
    path.write_text(text)
    path.chmod(0o644)


def _compile(folder: Path) -> None:
    """Compile the modules that a builder imports; else every start of one pays for that again."""
    version = next((path.name for path in sorted((folder / "usr/lib").glob("python3.*"))), "")
    if not version:
        raise BuildError("the tools tree has no Python")
    places = [f"/usr/lib/{version}", f"/{PACKAGES}"]
    run(["chroot", folder, *COMPILE, *places], env={"SOURCE_DATE_EPOCH": "0"}, timeout_s=600, umask=0o022)
