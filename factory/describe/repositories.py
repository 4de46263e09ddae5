# SPDX-License-Identifier: Apache-2.0
"""Where packages come from: the address that an image carries, the one that the build reads, and whom to trust."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from factory.describe.host_apt import AptSource, host_keyring, host_repositories
from factory.describe.upstream_keys import upstream_keys, vendor_keyring
from factory.describe.vendors import no_builder, no_mirror, no_pin, no_updates, no_vendor_keyring
from factory.errors import Fault, InputFault
from factory.inputs.lock import TOOL_ALIASES, TOOLS, WHEELS
from factory.inputs.signers import UPSTREAM_KEYS
from factory.model import Description, Repository, Site
from factory.system.secrets import Login, Secrets

_DEBIAN = Repository(alias="debian", url="", suites=(), key="/usr/share/keyrings/debian-archive-keyring.pgp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """The repositories with their addresses; by alias mirrors, keyrings, and fingerprints of who must have signed."""

    repositories: tuple[Repository, ...]
    mirrors: Mapping[str, str]
    keyrings: Mapping[str, Path]
    signers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def sources(description: Description, site: Site, *, project: Path | None = None, root: Path = Path("/")) -> Sources:
    """Find an address and a keyring for every repository of a description.

    An address is, in this order: the site's, the description's, the one of the host's own apt. The build reads from
    ``[repositories.IMAGE]``, else from ``[mirrors]`` where the site names one, else from the same address.

    Args:
        project: may bring keyrings and name the keys that sign (``keys/``).

    Raises:
        InputFault: a repository without an address, or a keyring that this host does not have.
    """
    host = host_repositories(root)
    found = [(one, address(one, site, host)) for one in description.update_repositories]
    keyrings = {one.alias: keyring(one, host, root, project) for one in description.update_repositories}
    mirrors = {one.alias: mirror(description.name, one.alias, site) or url for one, url in found}
    faults = [_no_address(description, one) for one, url in found if not url and one.kind == "apt-deb"]
    faults += [no_mirror(description, one, site) for one, _ in found if not mirrors[one.alias] and one.kind == "rpm-md"]
    if description.registration.mode == "none":
        faults += [no_updates(description, one) for one, url in found if not url and one.kind == "rpm-md"]
    for one, _ in found:
        if keyrings[one.alias] is None:
            faults.append((_no_keyring if one.kind == "apt-deb" else no_vendor_keyring)(description, one))
    tools, signed = tools_mirror(mirrors, site, host), keyring(_DEBIAN, host, root, project)
    faults += [_reserved(description, one) for one, _ in found if one.alias in TOOL_ALIASES]
    faults += [] if tools else [_no_tools(site)]
    faults += [] if signed else [_no_tools_keyring(site)]
    try:
        keys = upstream_keys(project) if project else {}
    except InputFault as wrong:
        faults += wrong.faults or (Fault(place=UPSTREAM_KEYS, problem=wrong.message),)
        keys = {}
    else:
        faults += [no_pin(description, one) for one, _ in found if one.kind == "rpm-md" and one.alias not in keys]
    faults += [no_builder(description, one) for one, _ in found if one.kind == "rpm-md"]
    if faults:
        raise InputFault(f"image '{description.name}' cannot get its packages", faults=tuple(faults))
    python = {WHEELS: site.mirrors["python"]} if "python" in site.mirrors else {}
    return Sources(
        repositories=tuple(replace(one, url=url) for one, url in found),
        mirrors={**mirrors, TOOLS: tools, **python},
        keyrings={alias: path for alias, path in {**keyrings, TOOLS: signed}.items() if path is not None},
        signers={alias: named for alias in (*mirrors, TOOLS) if (named := _signers(keys, alias))},
    )


def _signers(keys: Mapping[str, tuple[str, ...]], alias: str) -> tuple[str, ...]:
    """The fingerprints that the project names for a repository; tools are Debian's unless it says otherwise."""
    return keys.get(alias) or (keys.get(_DEBIAN.alias, ()) if alias == TOOLS else ())


def tools_mirror(mirrors: Mapping[str, str], site: Site, host: Mapping[str, AptSource]) -> str:
    """Where what builds the image comes from: the site's mirror for it, else any Debian mirror that is known."""
    named = site.mirrors.get(TOOLS) or mirrors.get(_DEBIAN.alias) or site.mirrors.get(_DEBIAN.alias)
    return named or (host[_DEBIAN.alias].url if _DEBIAN.alias in host else "")


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


def keyring(
    repository: Repository, host: Mapping[str, AptSource], root: Path, project: Path | None = None
) -> Path | None:
    """The file that holds the keys which sign this repository: the project's own, else one of this host."""
    if project is not None and (own := vendor_keyring(project, repository.alias)):
        return own
    inside = root / repository.key.lstrip("/")
    # Debian 13 calls its keyrings .pgp, Debian 12 .gpg
    candidates = [inside, inside.with_suffix(".gpg"), inside.with_suffix(".pgp")]
    known = host.get(repository.alias)
    if known is not None:
        candidates += [path for path in (known.keyring, host_keyring(root)) if path]
    return next((path for path in candidates if path.is_file()), None)


def _reserved(description: Description, repository: Repository) -> Fault:
    return Fault(
        place=f"descriptions/{description.name}/image.toml update_repositories.{repository.alias}",
        problem="is what a lock calls the packages that build the image",
        cure="give it another name",
    )


def _no_tools(site: Site) -> Fault:
    return Fault(
        place=f"{site.path.name if site.path else 'site.toml'} mirrors.{TOOLS}",
        problem="no Debian mirror is known that what builds the image can come from",
        cure=f'write {TOOLS} = "http://..." (an address with dists/ and pool/ below it) under [mirrors] of site.toml',
    )


def _no_tools_keyring(site: Site) -> Fault:
    return Fault(
        place=f"{site.path.name if site.path else 'site.toml'} mirrors.{TOOLS}",
        problem="the keys that sign Debian's archive are not on this host",
        cure="install debian-archive-keyring",
    )


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
