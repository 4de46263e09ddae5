# SPDX-License-Identifier: Apache-2.0
"""What a sandbox update server is told: the values, the file that carries them, and the TOML that people write."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from factory.errors import Fault, InputFault
from factory.model import Repository
from factory.region.products import Product, faults
from factory.region.products import products as triples
from factory.region.region_rules import NAME
from factory.region.repositories import FolderRepository, is_plain
from factory.region.sharing_settings import SharingSettings
from factory.system.files import write_whole

_CLOSED = {"extra": "forbid"}
_LOCATION = re.compile(r"[A-Za-z0-9._~+:@/-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedInputs:
    """The lock and blobs of a build, from which its repositories are served."""

    lock: str
    blobs: str
    repositories: tuple[Repository, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationSettings:
    """``[verification]``: the provider, the cloud's public key, and whether repositories need ``X-Instance-Data``."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = _CLOSED

    provider: str = "none"
    public_key: str = ""
    header_required: bool = False
    cache_dir: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateSettings:
    """What one server process needs to know; written to a file, because the server is a process of its own.

    ``plain`` makes the server of port 80, which only gives the CA certificate and sends ``/repo`` to https.
    """

    fqdn: str
    ca: str
    database: str
    products: tuple[Product, ...] = ()
    recorded: RecordedInputs | None = None
    folders: tuple[FolderRepository, ...] = ()
    verification: VerificationSettings = field(default_factory=VerificationSettings)
    sharing: SharingSettings = field(default_factory=SharingSettings)
    regcodes: tuple[str, ...] = ()
    plugin_urls: bool = False
    plain: bool = False

    def write(self, path: Path) -> None:
        """Keep the settings in a file."""
        write_whole(path, json.dumps(asdict(self), indent=1), mode=0o600)


@dataclass(frozen=True, slots=True, kw_only=True)
class StandaloneSettings:
    """A server that people run: the settings, and where and with which certificate it answers."""

    update: UpdateSettings
    listen: tuple[str, ...]
    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTable:
    """``[server]``."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = _CLOSED

    fqdn: str
    certificate: str
    key: str
    ca: str
    database: str
    listen: tuple[str, ...] = ("0.0.0.0:443", "[::]:443")
    plugin_urls: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ByosTable:
    """``[byos]``: the registration codes that owners may bring."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = _CLOSED

    regcodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """The whole TOML file."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = _CLOSED

    server: ServerTable
    product: tuple[Product, ...]
    repository: tuple[FolderRepository, ...]
    verification: VerificationSettings = field(default_factory=VerificationSettings)
    regsharing: SharingSettings = field(default_factory=SharingSettings)
    byos: ByosTable = field(default_factory=ByosTable)


def read_settings(path: Path) -> UpdateSettings:
    """Read what :meth:`UpdateSettings.write` wrote.

    Raises:
        InputFault: the file is not that.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(UpdateSettings).validate_json(path.read_bytes())
    except (OSError, ValidationError) as wrong:
        raise InputFault(f"'{path}' holds no settings of an update server", hint=str(wrong)) from wrong


def read_toml(path: Path, *, given: Mapping[str, str] | None = None, listen: Sequence[str] = ()) -> StandaloneSettings:
    """Read the file of a standalone server; relative paths in it are relative to it.

    ``given`` are keys of ``[server]`` that win over the file's (paths in it are relative to the present folder).

    Raises:
        InputFault: with all its faults.
    """
    try:
        read = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as wrong:
        raise InputFault(f"'{path}' cannot be read", hint=str(wrong)) from wrong
    server = read.get("server")
    if isinstance(server, dict):
        server.update(_absolute(given or {}), **({"listen": list(listen)} if listen else {}))
    return standalone(_validated(read, str(path)), place=str(path), folder=path.absolute().parent)


def from_options(
    given: Mapping[str, str], *, listen: Sequence[str], products: Sequence[str], repositories: Sequence[str]
) -> StandaloneSettings:
    """The settings of a server that is described by options only.

    Raises:
        InputFault: with all their faults.
    """
    pairs = [text.partition("=") for text in repositories]
    if wrong := [text for text, (alias, _, folder) in zip(repositories, pairs, strict=True) if not (alias and folder)]:
        raise InputFault(f"{wrong[0]!r} is no repository", hint="write ALIAS=DIR")
    read = {
        "server": {**_absolute(given), **({"listen": list(listen)} if listen else {})},
        "product": [asdict(product) for product in triples(products)],
        "repository": [{"alias": alias, "folder": folder} for alias, _, folder in pairs],
    }
    return standalone(_validated(read, "options"), place="options", folder=Path.cwd())


def _absolute(given: Mapping[str, str]) -> dict[str, str]:
    return {name: value if name == "fqdn" else str(Path(value).absolute()) for name, value in given.items()}


def _validated(read: object, place: str) -> File:
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(File).validate_python(read)
    except ValidationError as wrong:
        told = tuple(
            Fault(place=f"{place} {'.'.join(map(str, one['loc']))}", problem=one["msg"]) for one in wrong.errors()
        )
        raise InputFault(f"'{place}' cannot be used", faults=told) from wrong


def standalone(found: File, *, place: str, folder: Path) -> StandaloneSettings:
    """The settings of a file (or of options); paths are relative to ``folder``.

    Raises:
        InputFault: with all its faults.
    """

    def at(name: str) -> str:
        return str(folder / name) if name else ""

    server = found.server
    numbered = _numbered(found.product)
    told = [
        *faults(numbered, aliases=[one.alias for one in found.repository], place=place),
        *_missing(place, {"server.certificate": server.certificate, "server.key": server.key}, folder, Path.is_file),
        *_missing(place, {"server.ca": server.ca, "verification.public_key": found.verification.public_key}, folder),
        *_missing(place, {f"repository {one.alias}": one.folder for one in found.repository}, folder, Path.is_dir),
        *_bad_places(place, found.repository),
    ]
    if not NAME.fullmatch(server.fqdn):
        told.append(Fault(place=f"{place} server.fqdn", problem=f"{server.fqdn!r} is no DNS name"))
    if not numbered:
        told.append(Fault(place=f"{place} product", problem="names no product: nobody could register"))
    if told:
        raise InputFault(f"'{place}' cannot be used", faults=tuple(told))
    sharing = found.regsharing
    verification = found.verification
    return StandaloneSettings(
        update=UpdateSettings(
            fqdn=server.fqdn,
            ca=at(server.ca),
            database=at(server.database),
            products=numbered,
            folders=tuple(replace(one, folder=at(one.folder)) for one in found.repository),
            verification=replace(
                verification, public_key=at(verification.public_key), cache_dir=at(verification.cache_dir)
            ),
            sharing=replace(
                sharing,
                api_secret_file=at(sharing.api_secret_file),
                data_dir=at(sharing.data_dir),
                ca_path=at(sharing.ca_path),
            ),
            regcodes=found.byos.regcodes,
            plugin_urls=server.plugin_urls,
        ),
        listen=server.listen,
        certificate=Path(at(server.certificate)),
        key=Path(at(server.key)),
    )


def _numbered(found: Sequence[Product]) -> tuple[Product, ...]:
    """Products without an id get the next free one, in their order: peers must have the same list."""
    taken = {product.id for product in found}
    numbers = (number for number in range(1, 2 * len(found) + 2) if number not in taken)
    return tuple(product if product.id > 0 else replace(product, id=next(numbers)) for product in found)


def _missing(place: str, named: Mapping[str, str], folder: Path, is_there: Any = Path.is_file) -> list[Fault]:  # noqa: ANN401 - a method of Path
    return [
        Fault(place=f"{place} {key}", problem=f"'{name}' is not there")
        for key, name in named.items()
        if name and not is_there(folder / name)
    ]


def _bad_places(place: str, repositories: Sequence[FolderRepository]) -> list[Fault]:
    aliases = [one.alias for one in repositories]
    locations = [(one.location or one.alias).strip("/") for one in repositories]
    return [
        *(
            Fault(place=f"{place} repository {alias}", problem="is there twice")
            for alias in sorted({one for one in aliases if aliases.count(one) > 1})
        ),
        *(
            Fault(place=f"{place} repository", problem=f"two repositories are at /repo/{location}")
            for location in sorted({one for one in locations if locations.count(one) > 1})
        ),
        *(
            Fault(place=f"{place} repository", problem=f"'{location}' is no place below /repo/")
            for location in locations
            if not _LOCATION.fullmatch(location) or not is_plain(location)
        ),
    ]
