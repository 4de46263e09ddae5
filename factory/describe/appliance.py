# SPDX-License-Identifier: Apache-2.0
"""``create_appliance.sh``: builds the tree again with nothing but its builder."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from importlib.resources import files

from factory.model import Description

_SCRIPTS = {"kiwi": "create_appliance.sh", "diskimage-builder": "create_appliance_dib.sh"}


def appliance_script(
    description: Description, suites: Sequence[tuple[str, str, str]], addresses: Mapping[str, str]
) -> str:
    """The script for a build tree that reads these (alias, suite, components)."""
    aliases = list(dict.fromkeys(alias for alias, _, _ in suites))
    lines = [f"image={shlex.quote(description.name)}"]
    if description.builder != "kiwi":
        lines.append(f"disk_gib={description.disk.min_gib}")
    lines += ["declare -A address=("]
    lines += [f"    [{alias}]={shlex.quote(addresses[alias])}" for alias in aliases]
    lines += [")", "suites=("]
    lines += [f"    {shlex.quote(f'{alias}|{suite}|{components}')}" for alias, suite, components in suites]
    keys = list(dict.fromkeys(one.key for one in description.update_repositories))
    lines += [")", "keyrings=(", *(f"    {shlex.quote(key)}" for key in keys), ")"]
    text = (files("factory.describe") / _SCRIPTS[description.builder]).read_text()
    before, marker, after = text.partition("# @SETTINGS@\n")
    assert marker, "create_appliance.sh has lost its place for settings"
    return before + "\n".join(lines) + "\n" + after
