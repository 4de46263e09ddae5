# SPDX-License-Identifier: Apache-2.0
"""Whether every installed package is a file of the lock that a signed index names; anything else fails by name.

Three things are laid beside each other: the image's dpkg database, the package indexes whose signature this build
verified, and the lock. An installed package is honest when an index names its name, version and architecture, the lock
has the file that the index names, with the content that the index names, and the list of digests that dpkg keeps of it
is the one in that file. (That the files themselves have these digests is a check of the booted guest.) The packages of
the region are made on the spot by ``describe``; they lie in the signed build tree, and only the ones there, by their
name, version, architecture and list of digests, are allowed beside the repositories'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from factory.build.debs import Deb, read_deb
from factory.errors import BuildError, Fault
from factory.inputs.answers import Inputs
from factory.inputs.lock import Input
from factory.inputs.stanzas import Offer, fields_of

OWN_PACKAGES = Path("root/var/cache/image-factory")
"""Where a build tree holds the packages that ``describe`` made."""
_NOT_THERE = frozenset({"config-files", "not-installed"})
_CURE = "install it from a repository of image.toml; a package that is in none needs one: [update_repositories]"
_SHOWN, _NAMED = 20, 3
Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """A package of a dpkg database; ``md5sums`` is the list of digests that dpkg keeps of it, None when it has none."""

    name: str
    version: str
    arch: str
    state: str
    md5sums: bytes | None

    @property
    def key(self) -> Key:
        return self.name, self.version, self.arch

    def __str__(self) -> str:
        return f"{self.name} {self.version} ({self.arch})"


def installed(status: str, read: Callable[[str], bytes]) -> tuple[Installed, ...]:
    """The packages of a dpkg status text, also those that are only half there.

    Args:
        read: the content of a file of the image by its path, empty when there is none.
    """
    found = []
    for text in status.split("\n\n"):
        fields = fields_of(text.encode())
        state = fields.get("Status", "").rpartition(" ")[2]
        if not fields.get("Package") or state in _NOT_THERE:
            continue
        name, arch = fields["Package"], fields.get("Architecture", "")
        lists = [f"/var/lib/dpkg/info/{one}.md5sums" for one in (f"{name}:{arch}", name)]
        content = next((content for path in lists if (content := read(path))), None)
        version = fields.get("Version", "")
        found.append(Installed(name=name, version=version, arch=arch, state=state, md5sums=content))
    return tuple(sorted(found, key=lambda one: one.key))


def faults(
    packages: Iterable[Installed],
    offered: Iterable[Offer],
    own: Iterable[Deb],
    locked: Callable[[Offer], Deb | None],
) -> tuple[Fault, ...]:
    """Every installed package that is not from a locked, signed source, and why; nothing is read or written here.

    Args:
        offered: what the signed indexes offer under the names of ``packages``.
        own: the packages in the build tree.
        locked: the package file of an offer, when the lock has it with the content that the index names.
    """
    by_key: dict[Key, list[Offer]] = {}
    names: dict[str, list[Offer]] = {}
    for offer in offered:
        by_key.setdefault((offer.name, offer.version, offer.arch), []).append(offer)
        names.setdefault(offer.name, []).append(offer)
    ours = {(deb.name, deb.version, deb.arch): deb for deb in own}
    found = []
    for package in packages:
        if package.state != "installed":
            found.append(_fault(package, f"is {package.state or 'in no known state'}", cure="see why in the build log"))
        elif package.key in ours:
            if not _same(package, ours[package.key]):
                found.append(_fault(package, "has the name of a package of the build tree, and is another one"))
        elif package.key not in by_key:
            found.append(_fault(package, _unknown(names.get(package.name, []))))
        else:
            files = [deb for offer in by_key[package.key] if (deb := locked(offer)) is not None]
            if not files:
                found.append(_fault(package, "is in a signed index, but its file was not fetched from there"))
            elif not any(_same(package, deb) for deb in files):
                found.append(_fault(package, "has the name of the package that was fetched, and is another one"))
    return tuple(found)


def _fault(package: Installed, problem: str, *, cure: str = _CURE) -> Fault:
    return Fault(place=str(package), problem=problem, cure=cure)


def _unknown(offers: list[Offer]) -> str:
    known = sorted({f"{offer.version} in {offer.repository}" for offer in offers})
    return "is in no signed index of this build" + (f", which has {', '.join(known)}" if known else "")


def _same(package: Installed, deb: Deb) -> bool:
    """Whether dpkg keeps the digests that the package file brought; a file without a list has nothing to compare."""
    return deb.md5sums is None or (package.md5sums or b"") == deb.md5sums


def expect_locked(
    image: str, packages: tuple[Installed, ...], *, tree: Path, inputs: Inputs, repositories: tuple[str, ...]
) -> None:
    """Raise when an installed package is not from a locked, signed source.

    Args:
        packages: the image's, from its dpkg database.
        tree: the build tree.
        repositories: the aliases that the image's packages may come from.

    Raises:
        BuildError: names every such package, and what to do.
    """
    own = [read_deb(path) for path in sorted((tree / OWN_PACKAGES).glob("*.deb"))]
    offered = inputs.offers((package.name for package in packages), repositories)
    files = {(entry.repository, unquote(entry.path)): entry for entry in inputs.inputs if entry.found}
    found = faults(packages, offered, own, lambda offer: _locked(offer, files, inputs))
    if found:
        names = ", ".join(one.place.partition(" ")[0] for one in found[:_NAMED]) + (" ..." if found[_NAMED:] else "")
        raise BuildError(
            f"the image '{image}' has what is not from a locked, signed source: {names}",
            facts=tuple(("package", f"{one.place} {one.problem}") for one in found[:_SHOWN]),
            hint=found[0].cure,
        )


def _locked(offer: Offer, files: Mapping[tuple[str, str], Input], inputs: Inputs) -> Deb | None:
    entry = files.get((offer.repository, offer.path))
    if entry is None or inputs.store.sha512_of(offer.sha256) != entry.sha512:
        return None
    return read_deb(inputs.store.path(entry.sha512), shown=offer.path)
