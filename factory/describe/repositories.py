# SPDX-License-Identifier: Apache-2.0
"""Where packages come from: the address that an image carries, the one that the build reads, and whom to trust."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from factory.describe.host_apt import AptSource, host_keyring, host_repositories
from factory.errors import Fault, InputFault
from factory.model import Description, Repository, Site
from factory.system.secrets import Login, Secrets


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """The repositories with their addresses; mirrors and the host's keyrings by alias."""

    repositories: tuple[Repository, ...]
    mirrors: Mapping[str, str]
    keyrings: Mapping[str, Path]


def sources(description: Description, site: Site, *, root: Path = Path("/")) -> Sources:
    """Find an address and a keyring for every repository of a description.

    An address is, in this order: the site's, the description's, the one of the host's own apt. The build reads from
    ``[repositories.IMAGE]``, else from ``[mirrors]`` where the site names one, else from the same address.

    Raises:
        InputFault: a repository without an address, or a keyring that this host does not have.
    """
    host = host_repositories(root)
    found = [(one, address(one, site, host)) for one in description.update_repositories]
    keyrings = {one.alias: keyring(one, host, root) for one in description.update_repositories}
    faults = [_no_address(description, one) for one, url in found if not url]
    faults += [_no_keyring(description, one) for one, _ in found if keyrings[one.alias] is None]
    if faults:
        raise InputFault(f"image '{description.name}' cannot get its packages", faults=tuple(faults))
    return Sources(
        repositories=tuple(replace(one, url=url) for one, url in found),
        mirrors={one.alias: mirror(description.name, one.alias, site) or url for one, url in found},
        keyrings={alias: path for alias, path in keyrings.items() if path is not None},
    )


def address(repository: Repository, site: Site, host: Mapping[str, AptSource]) -> str:
    """The address that the image carries for this repository; empty when nobody names one."""
    named = site.update_repositories.get(repository.alias) or repository.url
    return named or (host[repository.alias].url if repository.alias in host else "")


def mirror(image: str, alias: str, site: Site) -> str:
    """Where builds of an image read a repository, when the site says so: its own mirror before everybody's."""
    own = site.repositories.get(image, {}).get(alias)
    return own.url if own is not None else site.mirrors.get(alias, "")


def logins(image: str, site: Site, secrets: Secrets) -> dict[str, Login]:
    """The credentials for an image's own mirrors, by the mirror's address; read now, and never to be written.

    Raises:
        InputFault: a reference leads nowhere; every fault at once.
    """
    found: dict[str, Login] = {}
    faults: list[Fault] = []
    shown = site.path.name if site.path else "site.toml"
    for alias, one in site.repositories.get(image, {}).items():
        if not one.user:
            continue
        read: list[str] = []
        for key, reference in (("user", one.user), ("password", one.password)):
            try:
                read.append(secrets.read(reference, place=f"{shown} repositories.{image}.{alias}.{key}"))
            except InputFault as unread:
                faults += unread.faults
        if len(read) == len(("user", "password")):
            found[one.url] = Login(user=read[0], password=read[1])
    if faults:
        raise InputFault("secrets that the site file refers to cannot be read", faults=tuple(faults))
    return found


def keyring(repository: Repository, host: Mapping[str, AptSource], root: Path) -> Path | None:
    """The file on this host that holds the keys which sign this repository."""
    inside = root / repository.key.lstrip("/")
    # Debian 13 calls its keyrings .pgp, Debian 12 .gpg
    candidates = [inside, inside.with_suffix(".gpg"), inside.with_suffix(".pgp")]
    known = host.get(repository.alias)
    if known is not None:
        candidates += [path for path in (known.keyring, host_keyring(root)) if path]
    return next((path for path in candidates if path.is_file()), None)


def _no_address(description: Description, repository: Repository) -> Fault:
    return Fault(
        place=f"descriptions/{description.name}/image.toml update_repositories.{repository.alias}",
        problem="has no address: neither image.toml nor site.toml names one, and the host's apt has no such archive",
        cure=f'write {repository.alias} = "http://..." under [update_repositories] of site.toml',
    )


def _no_keyring(description: Description, repository: Repository) -> Fault:
    return Fault(
        place=f"descriptions/{description.name}/image.toml update_repositories.{repository.alias}.key",
        problem=f"'{repository.key}' is not on this host, so its signatures cannot be verified",
        cure="install the package that brings it (Debian: debian-archive-keyring)",
    )
