# SPDX-License-Identifier: Apache-2.0
"""Python packages, laid into a tools tree: wheels as they are, and source archives of Poetry projects in pure Python.

No build backend runs: a wheel's files are its installation (PyPA, "Binary distribution format"), and of a pure Python
project the folder that its ``pyproject.toml`` names is. What is made from the same file is the same to the byte, which
a backend of another version would not promise.
"""

from __future__ import annotations

import calendar
import posixpath
import re
import tarfile
import tomllib
import zipfile
from collections.abc import Mapping
from configparser import ConfigParser
from pathlib import Path, PurePosixPath
from typing import Any

from factory.build.roots import Root
from factory.errors import BuildError
from factory.system.unpack import Careful

PACKAGES = "usr/lib/python3/dist-packages"
_LIMIT_BYTES = 64 << 20
_SCRIPT = """\
#!/usr/bin/python3
import sys
from {module} import {function}
sys.exit({function}())
"""
_NAME = re.compile(r"[\w.]+")


def add_python(root: Root, file: Path, name: str) -> None:
    """Lay a wheel (``.whl``) or source archive (``.tar.gz``) into a root; ``name`` is its file name.

    Raises:
        BuildError: it is damaged, or is not of a form that can be laid in without running anything of it.
    """
    try:
        found, scripts = _wheel(file) if name.endswith(".whl") else _source(file, name)
    except (zipfile.BadZipFile, tarfile.TarError, OSError, KeyError, ValueError) as damaged:
        raise BuildError(f"'{name}' cannot be unpacked", facts=(("said", str(damaged)[:300]),)) from damaged
    for inside, (content, mtime, mode) in sorted(found.items()):
        place = f"usr/bin/{path.name}" if (path := _script(inside)) else f"{PACKAGES}/{inside}"
        root.add_file(place, content, name=name, mode=mode, mtime=mtime)
    for script, target in sorted(scripts.items()):
        module, _, function = target.partition(":")
        if not all(_NAME.fullmatch(word) for word in (module, function)):
            raise BuildError(f"'{name}' has a program '{script}' that is not one function")
        text = _SCRIPT.format(module=module, function=function)
        root.add_file(f"usr/bin/{script}", text.encode(), name=name, mode=0o755)


Files = dict[str, tuple[bytes, int, int]]
"""By name: content, time of the last change, and mode."""


def _script(inside: str) -> PurePosixPath | None:
    """A member of a wheel that is a program of its own: ``NAME.data/scripts/PROGRAM``."""
    path = PurePosixPath(inside)
    return path if path.match("*.data/scripts/*") and len(path.parts) == 3 else None  # noqa: PLR2004


def _wheel(file: Path) -> tuple[Files, Mapping[str, str]]:
    found: Files = {}
    left = _LIMIT_BYTES
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            top = member.filename.partition("/")[0]
            program = _script(member.filename) is not None
            if not top or (top.endswith(".data") and not program) or member.filename.endswith((".so", ".pyd")):
                raise ValueError(f"'{member.filename}' needs more than to be copied")
            left -= member.file_size
            if left < 0:
                raise ValueError("it unpacks to too much")
            if not member.is_dir():
                mode = 0o755 if program or member.external_attr >> 16 & 0o100 else 0o644
                mtime = calendar.timegm((*member.date_time, 0, 0, 0))
                found[member.filename] = _for_this_python(archive.read(member), program), mtime, mode
    return found, _console_scripts(found)


def _for_this_python(content: bytes, program: bool) -> bytes:  # noqa: FBT001
    """A program names its interpreter as ``#!python``, for whoever installs it to say where that is."""
    return content.replace(b"#!python", b"#!/usr/bin/python3", 1) if program and content[:8] == b"#!python" else content


def _console_scripts(files: Files) -> dict[str, str]:
    parser = ConfigParser(delimiters=("=",), interpolation=None)
    parser.optionxform = str  # type: ignore[method-assign,assignment]
    for inside, (content, _, _) in files.items():
        if posixpath.basename(inside) == "entry_points.txt" and posixpath.dirname(inside).endswith(".dist-info"):
            parser.read_string(content.decode())
    return dict(parser["console_scripts"]) if parser.has_section("console_scripts") else {}


def _source(file: Path, name: str) -> tuple[Files, Mapping[str, str]]:
    top = name.removesuffix(".tar.gz")
    files = _members(file, top)
    project = tomllib.loads(files["pyproject.toml"][0].decode())["tool"]["poetry"]
    if project.get("build"):
        raise ValueError("it is built by a program of its own")
    packages = [str(one["include"]) for one in project["packages"]]
    found = {inside: one for inside, one in files.items() if inside.partition("/")[0] in packages}
    if not found or any(inside.endswith((".c", ".pyx", ".so")) for inside in found):
        raise ValueError("it is not pure Python")
    known, (content, mtime, mode) = f"{project['name']}-{project['version']}.dist-info", files["PKG-INFO"]
    found[f"{known}/METADATA"] = content, mtime, mode
    found[f"{known}/entry_points.txt"] = _entry_points(project).encode(), mtime, mode
    return found, dict(project.get("scripts", {}))


def _members(file: Path, top: str) -> Files:
    found: Files = {}
    left = _LIMIT_BYTES
    with tarfile.open(file, mode="r:gz", tarinfo=Careful) as archive:
        for member in archive:
            left -= member.size
            if left < 0:
                raise ValueError("it unpacks to too much")
            content = archive.extractfile(member) if member.isreg() else None
            if content is not None and member.name.startswith(f"{top}/"):
                found[member.name.removeprefix(f"{top}/")] = content.read(), int(member.mtime), 0o644
    return found


def _entry_points(project: Mapping[str, Any]) -> str:
    groups = {"console_scripts": project.get("scripts", {}), **project.get("plugins", {})}
    text = ""
    for group in sorted(groups):
        lines = "".join(f"{name}={target}\n" for name, target in sorted(groups[group].items()))
        text += f"[{group}]\n{lines}\n"
    return text
