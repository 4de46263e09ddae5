# SPDX-License-Identifier: Apache-2.0
"""``factory new``: a description that builds at once, made from one that is there."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from factory.describe.elements import ELEMENTS
from factory.describe.load import COMMON, DESCRIPTIONS, IMAGE_FILE, images, load_description
from factory.describe.places import KeyPath, key_lines
from factory.describe.schema import ImageName, Name
from factory.errors import FactoryError, Fault, InputFault
from factory.model import Description
from factory.store.metadata import identity

_VALUE = re.compile(r"""^(?P<before>[^=]*=\s*)(?P<value>"[^"\\]*"|'[^']*')""")
_CONFIG_NAME = re.compile(r"""(?P<before><image\b[^>]*?\bname=)(?P<quote>["'])(?P<name>[^"']*)(?P=quote)""", re.DOTALL)
_PURPOSE = ("metadata", "os_purpose")
_README = """\
# {name}

Made with `factory new {name} --from {source}`. It rotates as `{line}_latest`.

- `image.toml`: what it is called, metadata, repositories, limits. `os_purpose` is what tells it from other images
  of its distribution; only one of them can be `generic`.
- `config.xml` or the builder's own files: which packages are in it.
- `root/`: files laid into it; they win over `descriptions/common/root/`.

`factory describe {name}` checks all of it in seconds, `factory build {name}` builds it.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaffold:
    """A description that was made: its folder, its line, what its source was, and what else was changed in it."""

    image: str
    line: str
    source: str
    builder: str
    folder: Path
    files: tuple[str, ...]
    changed: tuple[str, ...]


def scaffold(project: Path, name: str, *, source: str, line: str = "", dry_run: bool = False) -> Scaffold:
    """Copy the description of ``source`` to a new one, and change what two images cannot share.

    Args:
        line: of the new image; without it, the source's prefix (``Standard_``) and the new name.
        dry_run: judge it, and keep nothing.

    Raises:
        InputFault: a name that no image can have or that is taken, no such source, or a source with faults. Nothing is
            left behind.
    """
    _expect_name(project, name)
    old = load_description(project, source)
    line = line or _line_for(old.line, name)
    _expect_line(project, line)
    target = project / DESCRIPTIONS / name
    with tempfile.TemporaryDirectory(prefix=".new-", dir=target.parent) as folder:
        place = Path(folder)  # a project of its own, so that the new description is judged before it is there
        made = place / DESCRIPTIONS / name
        shutil.copytree(project / DESCRIPTIONS / source, made, symlinks=True)
        if (keys := project / "keys").is_dir():
            (place / "keys").symlink_to(keys.resolve())
        changed = tuple(_rename(made, name, line, old))
        (made / "README.md").write_text(_README.format(name=name, source=source, line=line))
        found = load_description(place, name)
        files = tuple(sorted(path.relative_to(made).as_posix() for path in made.rglob("*") if not path.is_dir()))
        try:
            if not dry_run:
                made.rename(target)
        except OSError as taken:
            raise InputFault(f"'{target}' is there already", hint="choose another name, or remove it") from taken
    return Scaffold(
        image=name,
        line=found.line,
        source=source,
        builder=found.builder,
        folder=target,
        files=files,
        changed=changed,
    )


def _expect_name(project: Path, name: str) -> None:
    try:
        TypeAdapter(ImageName).validate_python(name)
    except ValidationError:
        raise InputFault(
            f"no image can be called '{name}'",
            hint="lower-case letters, digits, '.', '_' and '-', at most 63, a letter or digit at both ends",
        ) from None
    target = project / DESCRIPTIONS / name
    if name == COMMON:
        raise InputFault(f"no image can be called '{name}'", hint=f"'{target}' is what all images share")
    if target.exists() or target.is_symlink():
        raise InputFault(f"'{target}' is there already", hint="choose another name, or remove it")


def _expect_line(project: Path, line: str) -> None:
    try:
        TypeAdapter(Name).validate_python(line)
    except ValidationError:
        raise InputFault(
            f"no line can be called '{line}'", hint="letters, digits, '.', '_' and '-', at most 100; see --line"
        ) from None
    for image in images(project):
        try:
            taken = load_description(project, image).line
        except InputFault:  # told when that image is built
            continue
        if taken == line:
            raise InputFault(f"the line '{line}' is that of image '{image}'", hint="name another one with --line")


def _line_for(line: str, name: str) -> str:
    prefix, _, rest = line.partition("_")
    return f"{prefix}_{name}" if rest else f"{line}_{name}"


def _rename(made: Path, name: str, line: str, old: Description) -> Iterator[str]:
    """Change what is another image's; yields what was changed beyond names."""
    path = made / IMAGE_FILE
    text = path.read_text()
    wanted: dict[KeyPath, str] = {("image", "name"): name, ("image", "line"): line}
    if identity(old) is not None:
        wanted[_PURPOSE] = "custom"
        yield f'os_purpose = "custom": {old.name} is the generic image of {identity(old)}, and only one can be'
    path.write_text(_with_values(text, wanted))
    config = made / "config.xml"
    if config.is_file():
        found = config.read_text()
        config.write_text(_CONFIG_NAME.sub(lambda one: f"{one['before']}{one['quote']}{name}{one['quote']}", found, 1))
    element = made / ELEMENTS / old.name
    if element.is_dir():  # diskimage-builder is asked for the element of the image's name
        element.rename(made / ELEMENTS / name)


def _with_values(text: str, wanted: Mapping[KeyPath, str]) -> str:
    """The same TOML with other texts as values of some keys; everything else, comments too, stays as it is."""
    lines, at = text.splitlines(), key_lines(text)
    missing = [path for path in wanted if path not in at]
    for path in (path for path in wanted if path in at):
        number = at[path] - 1
        found = _VALUE.match(lines[number])
        if found is None or found["before"].split("=")[0].split(".")[-1].strip().strip("\"'") != path[-1]:
            fault = Fault(
                place=f"{IMAGE_FILE}:{at[path]} {'.'.join(map(str, path))}", problem="is not on a line of its own"
            )
            raise InputFault("the source's image.toml cannot be changed", faults=(fault,))
        lines[number] = f'{found["before"]}"{wanted[path]}"{lines[number][found.end() :]}'
    for path in missing:  # from the end, so that the numbers of lines stay
        table, key = str(path[0]), str(path[1])
        if (table,) not in at:
            lines += ["", f"[{table}]", f'{key} = "{wanted[path]}"']
        elif lines[at[table,] - 1].strip().startswith("["):
            lines.insert(at[table,], f'{key} = "{wanted[path]}"')
        else:
            raise FactoryError(f"the source's image.toml has no table [{table}]", hint="write it as a table")
    return "\n".join(lines) + "\n"
