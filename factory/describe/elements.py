# SPDX-License-Identifier: Apache-2.0
"""diskimage-builder's elements: what an image's own element needs, resolved as diskimage-builder itself does it.

An image brings ``elements/<image>/``; ``descriptions/common/elements/`` holds what all of them share, and the rest is
diskimage-builder's. The build tree gets those of the first two kinds.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.errors import Fault, InputFault

ELEMENTS = "elements"
HOOKS = "image-factory"
"""The element that lays the overlay in, runs the scripts and makes the disk bootable."""
SCRIPTS_FOLDER = f"{ELEMENTS}/{HOOKS}/scripts"
_PACKAGES = "package-installs.yaml"
_PACKAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._-]*")
_NO_HOOKS = {"tests", "__pycache__"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Element:
    """One element of an image; ``own`` when the project brings it."""

    name: str
    path: Path
    own: bool


def resolve_elements(own: Path, common: Path, *, image: str, shown: str) -> tuple[Element, ...]:
    """All elements of an image, sorted by name.

    Args:
        own: the image's description.
        common: what descriptions share.
        shown: how people call the image's description.

    Raises:
        InputFault: an element does not exist, two do the same, or none is an operating system; all that can be told.
    """
    from diskimage_builder import element_dependencies as dib
    from diskimage_builder.paths import get_path

    place = f"{shown}/{ELEMENTS}/{image}/element-deps"
    if not (own / ELEMENTS / image).is_dir():
        problem, cure = "is not there", f"make the element '{image}': a folder of that name with element-deps"
        raise _not_good(image, [Fault(place=f"{shown}/{ELEMENTS}/{image}", problem=problem, cure=cure)])
    folders = [folder for folder in (own / ELEMENTS, common / ELEMENTS) if folder.is_dir()]
    refused = (dib.MissingElementException, dib.AlreadyProvidedException, dib.MissingOSException)
    try:
        found = dib.get_elements([image], ":".join([*map(str, folders), get_path(ELEMENTS)]))
    except refused as wrong:
        problem = str(wrong) or "an element that is asked for by name is provided by another one, too"
        raise _not_good(image, [Fault(place=place, problem=problem)]) from None
    inside = tuple(folder.resolve() for folder in folders)
    elements = tuple(
        Element(name=name, path=Path(path), own=Path(path).parent in inside) for name, path in sorted(found)
    )
    faults = [*_hook_faults(elements, shown), *_package_faults(elements, shown)]
    if HOOKS not in {one.name for one in elements}:
        faults.append(Fault(place=place, problem=f"does not lead to '{HOOKS}'", cure=f"add a line '{HOOKS}'"))
    if faults:
        raise _not_good(image, faults)
    return elements


def write_elements(tree: Path, elements: tuple[Element, ...]) -> None:
    """Lay the project's elements into a build tree; the overlay is reached from there by a link."""
    for element in elements:
        if element.own:
            shutil.copytree(element.path, tree / ELEMENTS / element.name, symlinks=True)
    (tree / ELEMENTS / HOOKS / "root").symlink_to("../../root")
    (tree / SCRIPTS_FOLDER).mkdir()


def uses_apt(elements: tuple[Element, ...]) -> bool:
    """Whether these elements make an image of Debian packages."""
    return any(element.name == "dpkg" for element in elements)


def _not_good(image: str, faults: list[Fault]) -> InputFault:
    return InputFault(f"the elements of '{image}' do not make an image", faults=tuple(faults))


def _hook_faults(elements: tuple[Element, ...], shown: str) -> Iterator[Fault]:
    """Hooks of one name in one phase: diskimage-builder would stop at them, after the root tree was made."""
    seen: dict[tuple[str, str], str] = {}
    for element in elements:
        for phase in sorted(element.path.iterdir()):
            for hook in sorted(phase.iterdir()) if phase.is_dir() and phase.name not in _NO_HOOKS else ():
                first = seen.setdefault((phase.name, hook.name), element.name)
                if first != element.name:
                    problem = f"has the hook '{phase.name}/{hook.name}', and '{first}' has one of that name, too"
                    yield Fault(place=f"{shown}: element {element.name}", problem=problem, cure="rename one of them")


def _package_faults(elements: tuple[Element, ...], shown: str) -> Iterator[Fault]:
    """Lists of packages that are no such lists; only in the project's own elements."""
    import yaml

    for element in elements:
        path = element.path / _PACKAGES
        if not element.own or not path.is_file():
            continue
        place = f"{shown}: {element.name}/{_PACKAGES}"
        try:
            listed: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as unreadable:
            yield Fault(place=place, problem=" ".join(f"is not YAML: {unreadable}".split()))
            continue
        if not isinstance(listed, dict):
            yield Fault(place=place, problem="is not a list of 'package:' lines")
            continue
        for name, options in listed.items():
            if not isinstance(name, str) or not _PACKAGE.fullmatch(name):
                yield Fault(place=place, problem=f"'{name}' is no name of a package")
            elif not isinstance(options, dict | list | None):
                yield Fault(place=place, problem=f"'{name}' has '{options}' where options are expected")
