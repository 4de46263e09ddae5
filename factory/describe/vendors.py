# SPDX-License-Identifier: Apache-2.0
"""What a person has to do who lacks the mirror of a vendor's repository: which key of the site file, and from whom."""

from __future__ import annotations

from factory.errors import Fault
from factory.inputs.signers import UPSTREAM_KEYS
from factory.model import Description, Repository, Site

_SUSE = (
    "SUSE's repositories come from SCC (SUSE Customer Center) with your organization's mirroring credentials, "
    "or from an RMT of your own, which wants none"
)
_RED_HAT = "Red Hat's repositories come with your subscription, or from a Satellite or mirror of your own"
_PUBLIC = "a public mirror or one of your own, which wants no credentials"
_VENDORS = (("SLES", _SUSE), ("SLE", _SUSE), ("SUSE", _SUSE), ("RHEL", _RED_HAT))


def whence(product: str) -> str:
    """Where the repositories of a product (``SLES/15.6/x86_64``) are got from, for people."""
    name = product.partition("/")[0].upper()
    return next((words for start, words in _VENDORS if name.startswith(start)), _PUBLIC)


def no_mirror(description: Description, repository: Repository, site: Site) -> Fault:
    """The fault of a repository that nobody says where to read."""
    table = f"repositories.{description.name}.{repository.alias}"
    shown = site.path.name if site.path else "site.toml"
    words = whence(description.registration.product)
    login = (
        "" if words == _PUBLIC else ', and where it wants credentials user and password as "env:NAME" or "file:PATH"'
    )
    return Fault(
        place=f"{shown} {table}",
        problem=f"is missing: nobody says where builds of '{description.name}' read '{repository.alias}'",
        cure=f'write [{table}] with url = "https://..."{login}; {words}',
    )


def no_updates(description: Description, repository: Repository) -> Fault:
    """The fault of a repository that instances could not reach: neither by address nor by registration."""
    return Fault(
        place=f"descriptions/{description.name}/image.toml update_repositories.{repository.alias}",
        problem="has no address, and an image that never registers gets none from an update server",
        cure=f'write {repository.alias} = "https://..." under [update_repositories] of site.toml, or register',
    )


def no_vendor_keyring(description: Description, repository: Repository) -> Fault:
    """The fault of a repository whose public key the project does not bring."""
    return Fault(
        place=f"keys/vendor/{repository.alias}.asc",
        problem=f"is missing: nothing to verify '{repository.alias}' of '{description.name}' with",
        cure="put the vendor's public key there, from the vendor's own site",
    )


def no_pin(description: Description, repository: Repository) -> Fault:
    """The fault of a repository of which nobody wrote down who signs it."""
    return Fault(
        place=f"{UPSTREAM_KEYS} {repository.alias}",
        problem=f"is missing: nobody says by full fingerprint who signs '{repository.alias}' of '{description.name}'",
        cure=f'write [{repository.alias}] with fingerprints = ["..."], compared with the vendor\'s own word',
    )


def no_builder(description: Description, repository: Repository) -> Fault:
    """The fault of a repository that builds cannot install from."""
    return Fault(
        place=f"descriptions/{description.name}/image.toml update_repositories.{repository.alias}.type",
        problem=f"is '{repository.kind}', which no builder of this version installs from",
        cure="such descriptions can be written and judged; they are built by a later version",
    )
