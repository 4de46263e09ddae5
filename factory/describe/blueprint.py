# SPDX-License-Identifier: Apache-2.0
"""What a builder is told about an image, beside the overlay and the scripts that all builders share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from factory.describe.elements import Element, resolve_elements, uses_apt
from factory.describe.kiwi_xml import build_suites, config_faults, parse, read_config
from factory.describe.load import COMMON, DESCRIPTIONS
from factory.errors import InputFault
from factory.model import Description

_APT = "<packagemanager>apt</packagemanager>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Blueprint:
    """kiwi's ``config.xml``, or the elements of diskimage-builder.

    ``suites`` are what it reads from: (alias in ``[update_repositories]``, suite, components); ``apt`` tells whether
    the image is made of Debian packages.
    """

    apt: bool
    suites: tuple[tuple[str, str, str], ...]
    config: str = ""
    elements: tuple[Element, ...] = ()


def read_blueprint(project: Path, description: Description) -> Blueprint:
    """Read what the builder of an image is told.

    Raises:
        InputFault: it has faults; all are told.
    """
    own = f"{DESCRIPTIONS}/{description.name}"
    return (
        _with_elements(project, description, own) if _is_dib(description) else _with_config(project, description, own)
    )


def _is_dib(description: Description) -> bool:
    return description.builder == "diskimage-builder"


def _with_config(project: Path, description: Description, own: str) -> Blueprint:
    shown = f"{own}/config.xml"
    config = read_config(project / shown, shown=shown)
    root = parse(config, shown=shown)
    if faults := tuple(config_faults(root, description, shown=shown)):
        raise InputFault(f"'{shown}' does not fit image.toml", faults=faults)
    return Blueprint(apt=_APT in config, suites=build_suites(root), config=config)


def _with_elements(project: Path, description: Description, own: str) -> Blueprint:
    common = project / DESCRIPTIONS / COMMON
    elements = resolve_elements(project / own, common, image=description.name, shown=own)
    suites = tuple(
        (one.alias, suite, " ".join(one.components)) for one in description.update_repositories for suite in one.suites
    )
    return Blueprint(apt=uses_apt(elements), suites=suites, elements=elements)
