# SPDX-License-Identifier: Apache-2.0
"""A vendor's image, taken as it is: what is judged of its description, and the tree that tells where it is from.

There is nothing to resolve: no package is chosen, no file laid into it. The tree holds the pins and, where there is a
signature, the key, so that whoever has the tarball can fetch and check the same bytes without this factory.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from factory.describe.places import KeyPath, place
from factory.describe.upstream_keys import vendor_keyring
from factory.errors import Fault
from factory.model import Description, Foreign, Site

FOREIGN, VENDOR = "foreign", "vendor"
"""The builder; and what a lock and the site file call the place where the image comes from."""
VENDOR_SIGNATURE = "vendor-signature"
"""What a recipe calls the address of its detached signature."""
PREFIX = "Community_"
PINS, KEY, SCRIPT = "foreign.json", "vendor-key", "create_appliance.sh"
SCHEMA = "factory/foreign/1"
_SUITE = Path("testsuite") / "acceptance"
_BOOTS = "boot::the_image_boots"
_LATER_BOOTS = ("boot::the_image_reboots", "boot::the_image_boots_twice")
_FETCH = """\
#!/bin/sh
# Fetches this vendor's image and compares it with the pins that it was released by; needs curl and coreutils.
set -eu
curl --fail --location --output '{name}' '{url}'
{checks}
"""


def foreign_faults(
    project: Path, shown: str, description: Description, lines: Mapping[KeyPath, int]
) -> Iterator[Fault]:
    """What is wrong with the description of a vendor's image beyond its form."""
    if description.foreign is None:
        return
    if not description.line.startswith(PREFIX):
        problem = f"is '{description.line}', but what others made is published as {PREFIX}..."
        yield Fault(place=place(shown, lines, ("image", "line")), problem=problem, cure=f"begin it with {PREFIX}")
    if description.foreign.key and key_file(project, description.name) is None:
        yield Fault(
            place=place(shown, lines, ("foreign", "key")),
            problem="is in no keyring of the project",
            cure=f"put the vendor's public key into keys/vendor/{description.name}.asc",
        )
    known = known_checks(project)
    seen: set[str] = set()
    for number, one in enumerate(description.unmet):
        where = place(shown, lines, ("unmet", number, "check"))
        if one.check == _BOOTS:
            yield Fault(place=where, problem="cannot be left unmet: an image that does not boot is none")
        elif one.check in seen:
            yield Fault(place=where, problem=f"'{one.check}' is named twice")
        elif known and one.check.partition("[")[0] not in known:
            near = difflib.get_close_matches(one.check, known, n=1)
            cure = f"did you mean '{near[0]}'?" if near else "docs/reference/checks.md lists them"
            yield Fault(place=where, problem=f"there is no check '{one.check}'", cure=cure)
        seen.add(one.check)


def known_checks(project: Path) -> frozenset[str]:
    """The names of the acceptance suite's checks, read from its text; none where the project has no suite."""
    found = {
        f"{path.name}::{name}"
        for path in sorted((project / _SUITE).glob("test_*.py"))
        for name in re.findall(r"^def (test_\w+)\(", path.read_text(), re.MULTILINE)
    }
    return frozenset({*found, *_LATER_BOOTS}) if found else frozenset()


def key_file(project: Path, image: str) -> Path | None:
    """The keyring with the key of an image's vendor."""
    return vendor_keyring(project, image)


def mirror_of(description: Description, site: Site) -> str:
    """The address from which builds fetch the image: below the site's own mirror for it where there is one."""
    assert description.foreign is not None
    return under_mirror(description.foreign.url, description.name, site)


def under_mirror(address: str, image: str, site: Site) -> str:
    """An address of the vendor's, or the file of the same name on the site's mirror for this image."""
    own = site.repositories.get(image, {}).get(VENDOR)
    return f"{own.url}/{address.rpartition('/')[2]}" if own is not None else address


def write_foreign_tree(tree: Path, description: Description, *, key: Path | None) -> None:
    """Write the pins, the key, and a script that fetches and compares."""
    foreign = description.foreign
    assert foreign is not None
    tree.mkdir(parents=True)
    body = {"schema": SCHEMA, "image": description.name, **_pins(foreign)}
    (tree / PINS).write_text(json.dumps(body, indent=1, sort_keys=True) + "\n")
    name = foreign.url.rpartition("/")[2]
    sums = (("sha256sum", foreign.sha256), ("sha512sum", foreign.sha512))
    checks = "\n".join(f"echo '{digest}  {name}' | {program} --check -" for program, digest in sums if digest)
    (tree / SCRIPT).write_text(_FETCH.format(name=name, url=foreign.url, checks=checks))
    if key is not None:
        (tree / f"{KEY}{key.suffix}").write_bytes(key.read_bytes())
    for path in tree.iterdir():
        path.chmod(0o755 if path.name == SCRIPT else 0o644)
    tree.chmod(0o755)


def _pins(foreign: Foreign) -> dict[str, str]:
    said = {"url": foreign.url, "sha256": foreign.sha256, "sha512": foreign.sha512}
    said |= {"signature": foreign.signature, "key": foreign.key}
    return {name: value for name, value in said.items() if value}
