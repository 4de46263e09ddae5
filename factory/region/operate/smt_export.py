# SPDX-License-Identifier: Apache-2.0
"""What an SMT server exported, looked at before it is imported into RMT: what will arrive, and what will not.

``smt-data-export`` writes a tar.gz, ``rmt-data-import`` (github.com/SUSE/rmt) reads the folder in it; files are TAB
separated without header or quoting. The archive comes from elsewhere: nothing of it is extracted, members are read one
after the other with limits, and only the names that SMT writes count.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, Self

from factory.errors import Fault, InputFault
from factory.system.files import appearing

MAX_MEMBERS = 10_000
MAX_BYTES = 2 << 30
MAX_LINE_BYTES = 1 << 20
MAX_HEADER_BYTES = 1 << 16
_KEPT_FAULTS = 20
_SHOWN = 60
_ID = re.compile(r"[0-9]{1,18}", re.ASCII)
_LOGIN = re.compile(r"[\x21-\x7e]{1,255}", re.ASCII)
_URL = re.compile(r"(https?|ftp|file)://[^\s]+", re.IGNORECASE)

COLUMNS = {
    "enabled_repos.csv": ("repository",),
    "enabled_custom_repos.csv": ("product", "name", "url"),
    "systems.csv": ("login", "password", "hostname", "registered"),
    "activations.csv": ("login", "product"),
    "hw_info.csv": ("login", "key", "value"),
}
"""The files an import reads, and their columns; a missing one ends the import with a traceback."""
COPIES = ("smt.conf", "hostname")
NOT_EXPORTED = (
    "staging groups and their repositories",
    "custom repositories that are disabled",
    "jobs",
    "patch status",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the RMT knows, by number; None where nobody said: then nothing is told to be unknown."""

    repositories: frozenset[int] | None = None
    products: frozenset[int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """One file of the export: its lines, and how many of them an import takes."""

    name: str
    lines: int = 0
    imported: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What an import will carry. ``faults`` make it fail or lose something, ``warnings`` are to be known."""

    files: tuple[Carried, ...]
    faults: tuple[Fault, ...]
    warnings: tuple[Fault, ...]
    not_exported: tuple[str, ...] = NOT_EXPORTED
    unknown_repositories: tuple[int, ...] = ()
    unknown_products: tuple[int, ...] = ()

    def carried(self, name: str) -> Carried:
        """What was found of one file."""
        return next((one for one in self.files if one.name == name), Carried(name=name))


@dataclass(slots=True)
class _Reading:
    """What is gathered while the members go by."""

    known: Known
    files: dict[str, Carried] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    warnings: list[Fault] = field(default_factory=list)
    told: Counter[tuple[str, str]] = field(default_factory=Counter)
    systems: set[str] = field(default_factory=set)
    activated: Counter[str] = field(default_factory=Counter)
    described: set[str] = field(default_factory=set)
    unknown_repositories: set[int] = field(default_factory=set)
    unknown_products: set[int] = field(default_factory=set)

    def fault(self, place: str, problem: str, cure: str = "", *, kind: str = "") -> None:
        """Keep the first faults of a kind, and count the others."""
        key = (place.partition(":")[0], kind or problem)
        self.told[key] += 1
        if self.told[key] <= _KEPT_FAULTS:
            self.faults.append(Fault(place=place, problem=problem, cure=cure))


def read_export(path: Path, *, known: Known | None = None) -> Report:
    """Examine an export without extracting it.

    Raises:
        InputFault: it is not a tar.gz that can be read, or larger than any export.
    """
    reading = _Reading(known=known or Known())
    with _opened(path) as archive:
        for name, stream in _members(archive, reading):
            _read_member(name, stream, reading)
    return _report(reading)


def unpack_export(path: Path, folder: Path) -> tuple[Path, ...]:
    """Write the files that an import reads into ``folder``, each whole and for its owner only; never a private key.

    Raises:
        InputFault: the archive cannot be read, or a file is there already.
    """
    made = []
    with _opened(path) as archive:
        for name, stream in _members(archive, _Reading(known=Known())):
            if name not in COLUMNS and name not in COPIES:
                continue
            target = folder / name
            if target.exists():
                raise InputFault(f"'{target}' is there already", hint="unpack into an empty folder")
            with appearing(target) as partial:
                partial.touch(mode=0o600)
                with partial.open("wb") as copy:
                    shutil.copyfileobj(stream, copy)
            made.append(target)
    return tuple(made)


# -- the archive ------------------------------------------------------------------------------------------------------


class _Limited:
    """Reading that ends the program's patience before the archive ends the host's memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.inflate = zlib.decompressobj(wbits=31)
        self.left = MAX_BYTES
        self.buffer = b""

    def read(self, size: int = -1) -> bytes:
        while (size < 0 or len(self.buffer) < size) and not self.inflate.eof:
            chunk = self.inflate.unconsumed_tail or self.file.read(1 << 16)
            if not chunk:
                raise tarfile.ReadError("the archive was cut off")
            made = self.inflate.decompress(chunk, 1 << 20)
            self.left -= len(made)
            if self.left < 0:
                raise tarfile.ReadError(f"it unpacks to more than {MAX_BYTES >> 20} MiB")
            self.buffer += made
        size = len(self.buffer) if size < 0 else size
        found, self.buffer = self.buffer[:size], self.buffer[size:]
        return found


_LONG_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


class _Careful(tarfile.TarInfo):
    """A header that is not believed when it announces a longer name than any path has."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        found = super().frombuf(buf, encoding, errors)
        if found.type in _LONG_HEADERS and found.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError("a header in it is larger than any header")
        return found


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    """The archive, to be read once from front to back; whatever is wrong with it, then or later, is one error."""
    try:
        file = path.open("rb")
    except OSError as unreadable:
        raise InputFault(f"'{path}' cannot be read: {unreadable.strerror}") from unreadable
    limited: Any = _Limited(file)  # tarfile only reads
    try:
        with file, tarfile.open(fileobj=limited, mode="r|", tarinfo=_Careful) as archive:
            yield archive
    except (tarfile.TarError, zlib.error, EOFError, ValueError) as malformed:
        raise InputFault(
            f"'{path.name}' is not an export that can be read: {malformed}",
            hint="smt-data-export writes a tar.gz; copy it again",
        ) from malformed


def _members(archive: tarfile.TarFile, reading: _Reading) -> Iterator[tuple[str, IO[bytes]]]:
    """The plain files below the archive's one folder, by the path in it; everything else is told."""
    seen: set[str] = set()
    for number, member in enumerate(archive, start=1):
        if number > MAX_MEMBERS:
            raise tarfile.ReadError(f"it has more than {MAX_MEMBERS} members")
        name = _plain_name(member, seen, reading)
        if name and (stream := archive.extractfile(member)) is not None:
            yield name, stream


def _plain_name(member: tarfile.TarInfo, seen: set[str], reading: _Reading) -> str:
    """The name below the top folder; empty for what is not a file, and for what has no business in an export."""
    shown = ascii(member.name)[1:-1][:_SHOWN]
    parts = PurePosixPath(member.name).parts
    if member.isdir():
        return ""
    if member.name.startswith("/") or ".." in parts:
        reading.fault(shown, "leads out of the archive", "nothing of it was read; who made this?", kind="outside")
        return ""
    if not member.isreg() or member.issparse():
        reading.fault(shown, "is neither a file nor a folder", "an export has no links or devices", kind="link")
        return ""
    name = "/".join(part for part in parts if part != ".")
    name = name.partition("/")[2] if "/" in name else name
    if name in seen:
        reading.fault(shown, "is there twice", "the second one was not read", kind="twice")
        return ""
    seen.add(name)
    return name


# -- the files --------------------------------------------------------------------------------------------------------


def _read_member(name: str, stream: IO[bytes], reading: _Reading) -> None:
    if name in COLUMNS:
        _read_table(name, stream, reading)
    elif name.startswith("ssl/") or name.endswith((".key", ".pem")):
        if b"PRIVATE KEY-----" in stream.read(MAX_LINE_BYTES):
            reading.warnings.append(
                Fault(
                    place=ascii(name)[1:-1][:_SHOWN],
                    problem="is a private key: who has this archive can pose as your update server",
                    cure="keep it as a key is kept, and delete it after the import; or export with --no-ssl-export",
                )
            )
    elif name == "smt.conf":
        if re.search(rb"(?im)^\s*(pass|password|nupass)\s*=\s*\S", stream.read(MAX_LINE_BYTES)):
            reading.warnings.append(
                Fault(place=name, problem="holds passwords of SMT's database and of SCC", cure="keep it for root only")
            )
    elif name not in COPIES and name != "enabled_products.csv":
        reading.warnings.append(Fault(place=ascii(name)[1:-1][:_SHOWN], problem="is no file of an export; not read"))


def _read_table(name: str, stream: IO[bytes], reading: _Reading) -> None:
    lines, imported = 0, 0
    skipped: Counter[str] = Counter()
    number = 0
    while line := stream.readline(MAX_LINE_BYTES):
        number += 1
        if not line.strip():
            continue
        lines += 1
        if len(line) >= MAX_LINE_BYTES:
            reading.fault(f"{name}:{number}", "is longer than any line of an export", kind="long")
            skipped["malformed"] += 1
            continue
        why = _take(name, number, line, reading)
        imported += not why
        skipped[why] += bool(why)
    reading.files[name] = Carried(
        name=name, lines=lines, imported=imported, skipped={why: count for why, count in skipped.items() if count}
    )


def _take(name: str, number: int, line: bytes, reading: _Reading) -> str:
    """Look at one line; returns why an import skips it, or nothing."""
    place = f"{name}:{number}"
    try:
        cells = line.decode().rstrip("\r\n").split("\t")
    except UnicodeDecodeError:
        reading.fault(place, "is not UTF-8", kind="utf-8")
        return "malformed"
    if len(cells) != len(COLUMNS[name]):
        wanted = ", ".join(COLUMNS[name])
        reading.fault(place, f"has {len(cells)} columns", f"TAB separated: {wanted}", kind="columns")
        return "malformed"
    return _TAKE[name](dict(zip(COLUMNS[name], cells, strict=True)), place, reading)


def _repository(cells: Mapping[str, str], place: str, reading: _Reading) -> str:
    if not _ID.fullmatch(cells["repository"]):
        reading.fault(place, f"{_quoted(cells['repository'])} is not a number of a repository", kind="id")
        return "malformed"
    number = int(cells["repository"])
    if reading.known.repositories is not None and number not in reading.known.repositories:
        reading.unknown_repositories.add(number)
        return "unknown repository"
    return ""


def _custom(cells: Mapping[str, str], place: str, reading: _Reading) -> str:
    if not _URL.fullmatch(cells["url"]):
        reading.fault(place, f"{_quoted(cells['url'])} is not an address", kind="url")
        return "malformed"
    if re.search(r"//[^/@]*:[^/@]*@", cells["url"]):
        reading.warnings.append(
            Fault(place=place, problem="its address carries a password", cure="change it afterwards")
        )
    if not cells["url"].endswith("/"):
        problem = "the import adds a '/' to the address"
        reading.warnings.append(Fault(place=place, problem=problem, cure="check that the repository answers there"))
    return _product(cells["product"], place, reading)


def _system(cells: Mapping[str, str], place: str, reading: _Reading) -> str:
    if not _LOGIN.fullmatch(cells["login"]) or not cells["password"]:
        reading.fault(place, "has no login or no password", kind="login")
        return "malformed"
    if cells["login"] in reading.systems:
        return "duplicate"
    if cells["registered"] and not re.fullmatch(r"[0-9]{1,12}(\.[0-9]+)?|NULL", cells["registered"], re.ASCII):
        reading.fault(place, f"{_quoted(cells['registered'])} is not a time in seconds", kind="time")
        return "malformed"
    reading.systems.add(cells["login"])
    return ""


def _activation(cells: Mapping[str, str], place: str, reading: _Reading) -> str:
    why = _product(cells["product"], place, reading)
    if not why:
        reading.activated[cells["login"]] += 1
    return why


def _hardware(cells: Mapping[str, str], place: str, reading: _Reading) -> str:
    if cells["key"] != "machinedata":
        return "other key"
    try:
        value = json.loads(cells["value"])
    except (ValueError, RecursionError):
        reading.fault(place, "machinedata is not JSON", "the system comes without its hardware", kind="json")
        return "malformed"
    if not isinstance(value, dict) or not isinstance(value.get("hwinfo"), dict | str):
        return "no hwinfo"
    reading.described.add(cells["login"])
    return ""


def _product(text: str, place: str, reading: _Reading) -> str:
    if not _ID.fullmatch(text):
        reading.fault(place, f"{_quoted(text)} is not a number of a product", kind="product")
        return "malformed"
    if reading.known.products is not None and int(text) not in reading.known.products:
        reading.unknown_products.add(int(text))
        return "unknown product"
    return ""


_TAKE = {
    "enabled_repos.csv": _repository,
    "enabled_custom_repos.csv": _custom,
    "systems.csv": _system,
    "activations.csv": _activation,
    "hw_info.csv": _hardware,
}


def _quoted(text: str) -> str:
    return ascii(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")


def numbers(text: str) -> frozenset[int]:
    """The numbers in the first column of what ``rmt-cli products list --all --csv`` (or ``repos list``) printed."""
    cells = (line.partition(",")[0].strip().strip('"') for line in text.splitlines())
    return frozenset(int(cell) for cell in cells if _ID.fullmatch(cell))


# -- the report -------------------------------------------------------------------------------------------------------


def _report(reading: _Reading) -> Report:
    for name in COLUMNS:
        if name not in reading.files:
            reading.fault(name, "is missing", "rmt-data-import would end with a traceback; make the export again")
    for (name, kind), count in reading.told.items():
        if count > _KEPT_FAULTS:
            reading.faults.append(Fault(place=name, problem=f"{count - _KEPT_FAULTS} more lines like these ({kind})"))
    orphans = sum(count for login, count in reading.activated.items() if login not in reading.systems)
    idle = len(reading.systems - reading.activated.keys())
    stray = len(reading.described - reading.systems)
    for count, place, problem in (
        (orphans, "activations.csv", "activations are of systems that the export does not have; they are dropped"),
        (idle, "systems.csv", "systems have no activation: they will get no repositories"),
        (stray, "hw_info.csv", "hardware descriptions are of systems that the export does not have"),
    ):
        if count:
            reading.warnings.append(Fault(place=place, problem=f"{count} {problem}"))
    files = dict(reading.files)
    if orphans and "activations.csv" in files:
        one = files["activations.csv"]
        files["activations.csv"] = Carried(
            name=one.name,
            lines=one.lines,
            imported=one.imported - orphans,
            skipped={**one.skipped, "unknown system": orphans},
        )
    return Report(
        files=tuple(files[name] for name in COLUMNS if name in files),
        faults=tuple(reading.faults),
        warnings=tuple(reading.warnings),
        unknown_repositories=tuple(sorted(reading.unknown_repositories)),
        unknown_products=tuple(sorted(reading.unknown_products)),
    )
