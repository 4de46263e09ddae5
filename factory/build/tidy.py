# SPDX-License-Identifier: Apache-2.0
"""What must not be in an image. The description's ``config.sh`` removes it; here it is only looked for."""

from __future__ import annotations

import re
from collections.abc import Callable

from factory.build.contents import Entry, Tree
from factory.errors import BuildError, Fault

_EMPTY_ID = (b"", b"uninitialized\n")
_SHOWN = 20


def _nothing_but(*allowed: str) -> Callable[[Entry], bool]:
    return lambda entry: entry.kind != "dir" and entry.path not in allowed


def _content(entry: Entry) -> bool:
    return entry.kind == "file" and entry.size_bytes > 0


def _anything(_: Entry) -> bool:
    return True


RULES: tuple[tuple[str, str, Callable[[Entry], bool]], ...] = (
    (r"/etc/ssh/ssh_host_.*", "a host key: every instance would share it", _anything),
    (r"/var/lib/systemd/(random-seed|credential\.secret)", "a secret every instance would share", _anything),
    (r"/var/lib/(urandom|random)/.*seed", "a random seed every instance would share", _anything),
    (r"/var/log/.*", "a log of the build", _content),
    (r"/var/cache/apt/.*", "a cache of the build", _nothing_but("/var/cache/apt/archives/lock")),
    (r"/var/lib/apt/lists/.*", "a package index of the build", _nothing_but("/var/lib/apt/lists/lock")),
    (r"/var/cache/(ldconfig|kiwi|man|debconf/.*-old).*", "a cache of the build", _content),
    (r"/var/lib/dpkg/.*-old", "a backup of the build", _content),
    (r"/(tmp|var/tmp|run)/.*", "a temporary file of the build", _anything),
    (r"/var/lib/cloud/(instance|instances|data|sem)(/.*)?", "state of a boot", _nothing_but()),
    (r"/var/lib/dhcp/.*\.leases", "state of a boot", _content),
    (r"/(root|home/[^/]+)/\.(bash_history|wget-hsts|lesshst|viminfo)", "a trace of a person", _anything),
    (r"/(root|home/[^/]+)/\.ssh/.+", "a key: the image would let its owner in", _anything),
    (r"/(\.kconfig|\.profile|image|config\.bootoptions|kiwi_apt\.config.*)(/.*)?", "a trace of the builder", _anything),
    (r"/(usr/)?sbin/policy-rc\.d|/usr/sbin/policy-rc\.d", "a trace of the builder", _anything),
)


def tidy_faults(tree: Tree) -> tuple[Fault, ...]:
    """Everything in the image that must not be there, by path."""
    any_of_them = re.compile("|".join(f"(?:{pattern})" for pattern, _, _ in RULES))
    suspects = [(path, entry) for path, entry in tree.entries.items() if any_of_them.fullmatch(path)]
    found = [
        Fault(place=path, problem=problem)
        for path, entry in suspects
        for pattern, problem, applies in RULES
        if re.fullmatch(pattern, path) and applies(entry)
    ]
    return tuple(sorted([*found, *_identity(tree), *_network(tree)], key=lambda fault: fault.place))


def _identity(tree: Tree) -> list[Fault]:
    faults = []
    entry = tree.entries.get("/etc/machine-id")
    if entry is None:
        faults.append(Fault(place="/etc/machine-id", problem="is missing: systemd cannot store a new one"))
    elif tree.read("/etc/machine-id") not in _EMPTY_ID:
        faults.append(Fault(place="/etc/machine-id", problem="is not empty: every instance would share it"))
    bus = tree.entries.get("/var/lib/dbus/machine-id")
    if bus is not None and bus.kind == "file" and bus.size_bytes:
        faults.append(Fault(place="/var/lib/dbus/machine-id", problem="is not empty: every instance would share it"))
    return faults


def _network(tree: Tree) -> list[Fault]:
    """Settings of the box, or of a repository that is trusted without a signature."""
    faults = []
    for path, entry in tree.entries.items():
        if not path.startswith("/etc/apt/") or entry.kind != "file":
            continue
        text = tree.read(path)
        if b"127.0.0.1:3142" in text:
            faults.append(Fault(place=path, problem="names the factory's own inputs server"))
        if re.search(rb"(?im)^\s*trusted:\s*yes|\[[^]]*trusted=yes", text):
            faults.append(Fault(place=path, problem="trusts a repository without a signature"))
    return faults


def expect_tidy(tree: Tree) -> None:
    """Raise BuildError with every path that must not be in an image."""
    faults = tidy_faults(tree)
    if faults:
        facts = [(f"{fault.problem}", fault.place) for fault in faults[:_SHOWN]]
        raise BuildError(
            f"the image carries {len(faults)} files that must not be in it",
            facts=tuple(("path", f"{place}: {problem}") for problem, place in facts),
            hint="remove them in the description's config.sh",
        )
