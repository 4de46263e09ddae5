# SPDX-License-Identifier: Apache-2.0
"""The checks and their guarantees as a page: ``python testsuite/acceptance/catalogue.py >docs/reference/checks.md``."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
HEAD = """# The checks

<!-- written by testsuite/acceptance/catalogue.py; a test compares -->

`factory verify IMAGE` boots the very bytes that will be published and lets this suite look at them over ssh. Each line
is a guarantee; the name in front is the check that turns red when it is broken, and its message says what was found.
`factory verify FILE.qcow2` does the same with any image; guarantees that need the factory's own records (package list,
region, time servers) are then skipped, with that reason.

Results: `verify/junit.xml` and `verify/checks.json` in the run; consoles, with passwords masked, among its logs.
A verdict is green when something was tested and nothing failed. What a vendor's image does not keep, and its
description names with a reason (`[[unmet]]`), is *unmet*: told to users, and not red.

How it is done, and where its limits are:

* Two guests run side by side on throw-away overlays. The first (config drive, 8 GiB, clock a year behind) is judged,
  attacked from outside, and rebooted; the other (NoCloud, 6 GiB, a password by user-data, the choice not to register)
  is then started again as another instance.
* The port scan knocks from outside at the 1024 privileged TCP ports and those where something usually listens. Not at
  all 65 535: QEMU's user network passes a connection on only while the port is forwarded, which costs milliseconds a
  port. What listens on any other port, TCP or UDP, is read inside the guest.
* In [a tenant of a cloud](../how-to/use-a-tenant-as-sandbox.md) one server is judged by the same suite. What a tenant
  cannot do (a second guest, the VGA keyboard, a clock that is off, QEMU's guest agent) is skipped as "not tried".
* The VGA screen is read from the kernel's copy of it inside the guest; logins on it are typed on QEMU's keyboard.
* Every check has been seen red on an image spoiled in just its way (`testsuite/mutants/`).

Before all others stand three checks of the harness: `boot::the_image_boots`, `boot::the_image_reboots` and
`boot::the_image_boots_twice`; they are red, with the guest's last words, when a guest does not come up.
"""


def checks(folder=FOLDER):
    """Every check by file: (file, what the file is about, ((name, guarantee), ...))."""
    found = []
    for path in sorted(folder.glob("test_*.py")):
        tree = ast.parse(path.read_text())
        functions = [
            (node.name, " ".join((ast.get_docstring(node) or "").split()))
            for node in tree.body
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        ]
        found.append((path.name, (ast.get_docstring(tree) or "").split("\n\n")[0], functions))
    return found


def page():
    """The whole page."""
    parts = [HEAD]
    for name, about, functions in checks():
        parts.append(f"\n## {name}\n\n{about}\n")
        parts += [f"* `{function}`: {guarantee}" for function, guarantee in functions]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
