# SPDX-License-Identifier: Apache-2.0
"""Tables of networks and of update servers, as CSV or JSON, made into region data.

A cloud's address plan usually comes out of another system as a table. Columns of the table of networks: ``region``,
``network``. Columns of the table of servers: ``region``, ``name``, ``ipv4``, ``ipv6``, ``registry``, and one of
``fingerprint`` and ``ca`` (a PEM file, relative to the table). A JSON table is a list of objects with these keys.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from factory.errors import Fault, InputFault
from factory.model import Region
from factory.region.certificates import fingerprint
from factory.region.data import (
    FINGERPRINT,
    Network,
    RegionEntry,
    UpdateServer,
    entries_of,
    network_of,
    read_file,
    read_region_data,
    render,
    server_address_problem,
)
from factory.region.region_rules import NAME, REGION_NAME, KeyLines, check_regions

_BLANKS = " \t\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """What a table has to have, and what it may have besides."""

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()


NETWORKS = Columns(required=("region", "network"))
SERVERS = Columns(required=("region", "name"), optional=("ipv4", "ipv6", "registry", "fingerprint", "ca"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row: where it starts, and its trimmed values (empty where there is none)."""

    place: str
    values: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """Region data that can be served: its text, what it says, and what is worth knowing about it."""

    text: str
    entries: tuple[RegionEntry, ...]
    notes: tuple[Fault, ...]


def generate(
    regions: Sequence[Region],
    *,
    networks: Path | None = None,
    servers: Path | None = None,
    place: str = "site.toml",
    lines: KeyLines | None = None,
) -> Generated:
    """Make region data.

    Args:
        regions: the site's; ``place`` is what faults call their file, ``lines`` where its keys stand.
        networks: a table to take all networks from.
        servers: a table to take all regions and update servers from.

    Raises:
        InputFault: with every fault of site and tables.
    """
    faults: list[Fault] = []
    if servers is not None:
        entries = _entries_of_servers(read_table(servers, SERVERS, faults), servers.parent, faults)
    else:
        found = check_regions(regions, place=place, lines=lines)
        faults += found
        entries = () if found else entries_of(regions)
    if networks is not None:
        known = {entry.name for entry in entries} if not faults or servers is not None else None
        placed = _placed(read_table(networks, NETWORKS, faults), known, faults)
        entries = tuple(replace(entry, networks=_sorted(placed.get(entry.name, ()))) for entry in entries)
    if not faults and not entries:
        faults.append(Fault(place=place, problem="names no region", cure="add [[region]], or give a table of servers"))
    text = render(entries)
    read = read_region_data(text, place="the region data made of this") if not faults else None
    faults += read.faults if read else ()
    if faults or read is None:
        raise InputFault("no region data can be made of this", faults=tuple(faults))
    return Generated(text=text, entries=read.entries, notes=read.notes)


def read_table(path: Path, columns: Columns, faults: list[Fault]) -> list[Row]:
    """The rows of a table that can be understood; what cannot is added to ``faults``. ``.json`` is JSON, else CSV."""
    try:
        text = read_file(path).removeprefix("\ufeff")
    except InputFault as unreadable:
        faults += unreadable.faults
        return []
    rows = _json_rows(text, path, faults) if path.suffix == ".json" else _csv_rows(text, path, columns, faults)
    return [row for row in rows if _whole(row, columns, faults)]


def _whole(row: Row, columns: Columns, faults: list[Fault]) -> bool:
    cure = f"there are {', '.join((*columns.required, *columns.optional))}"
    unknown = [name for name in row.values if name not in (*columns.required, *columns.optional)]
    missing = [name for name in columns.required if not row.values.get(name)]
    faults += [Fault(place=row.place, problem=f"{name!r} is no column", cure=cure) for name in unknown]
    faults += [Fault(place=row.place, problem=f"has no {name}", cure="fill in the column") for name in missing]
    return not missing


def _csv_rows(text: str, path: Path, columns: Columns, faults: list[Fault]) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    at = 1
    try:
        for cells in reader:
            place, at = f"{path}:{at}", reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                if not _header_good(header, place, columns, faults):
                    return
            elif len(cells) != len(header):
                problem = f"has {len(cells)} cells where the header has {len(header)}"
                faults.append(Fault(place=place, problem=problem, cure="quote cells that hold commas"))
            else:
                yield Row(place=place, values=dict(zip(header, (cell.strip() for cell in cells), strict=True)))
    except csv.Error as wrong:
        faults.append(Fault(place=f"{path}:{max(at, reader.line_num)}", problem=f"is not CSV: {wrong}"))
        return
    if header is None:
        cure = f"start with the line {','.join((*columns.required, *columns.optional))}"
        faults.append(Fault(place=f"{path}:1", problem="is empty", cure=cure))


def _header_good(header: Sequence[str], place: str, columns: Columns, faults: list[Fault]) -> bool:
    every = (*columns.required, *columns.optional)
    cure = f"the columns are {', '.join(every)}, separated by commas"
    found = [f"has no column '{name}'" for name in columns.required if name not in header]
    found += [f"{name!r} is no column" for name in header if name not in every]
    found += [f"has column '{name}' twice" for name in every if header.count(name) > 1]
    faults += [Fault(place=place, problem=problem, cure=cure) for problem in found]
    return not found


def _json_rows(text: str, path: Path, faults: list[Fault]) -> Iterator[Row]:
    try:
        whole = json.loads(text)
    except ValueError as wrong:
        where = getattr(wrong, "lineno", 1)
        faults.append(Fault(place=f"{path}:{where}", problem=f"is not JSON: {getattr(wrong, 'msg', wrong)}"))
        return
    except RecursionError:
        faults.append(Fault(place=f"{path}:1", problem="is nested too deeply", cure="write [{...}, {...}]"))
        return
    if not isinstance(whole, list):
        faults.append(Fault(place=f"{path}:1", problem="is not a list", cure="write [{...}, {...}]"))
        return
    for line, element in _elements(text):
        row = _json_row(element, f"{path}:{line}", faults)
        if row is not None:
            yield row


def _elements(text: str) -> Iterator[tuple[int, object]]:
    """The elements of a list that is known to be good JSON, each with its line, which Python's reader does not tell."""
    decoder = json.JSONDecoder(object_pairs_hook=_Pairs)
    line, counted, position = 1, 0, text.index("[") + 1
    while True:
        while text[position] in f"{_BLANKS},":
            position += 1
        if text[position] == "]":
            return
        line, counted = line + text.count("\n", counted, position), position
        element, position = decoder.raw_decode(text, position)
        yield line, element


class _Pairs(list[tuple[str, object]]):
    """A JSON object with its keys in order, so that one that is there twice is seen."""


def _json_row(element: object, place: str, faults: list[Fault]) -> Row | None:
    if not isinstance(element, _Pairs):
        faults.append(Fault(place=place, problem="is not an object", cure="write {...} for each row"))
        return None
    names = [name for name, _ in element]
    found = [f"has {name!r} twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    found += [f"{name!r} is not a text" for name, value in element if not isinstance(value, str | None)]
    faults += [Fault(place=place, problem=problem, cure="write each value once, in quotes") for problem in found]
    values = {name: value.strip() for name, value in element if isinstance(value, str)}
    return None if found else Row(place=place, values=values)


def _placed(rows: Sequence[Row], known: set[str] | None, faults: list[Fault]) -> Mapping[str, list[Network]]:
    """The networks of each region; ``known`` are the regions there may be, or None where that cannot be told."""
    found: dict[str, list[Network]] = {}
    owners: dict[Network, tuple[str, str]] = {}
    for row in rows:
        region = row.values["region"].lower()
        if known is not None and region not in known:
            cure = f"there are {', '.join(sorted(known)) or 'none'}"
            faults.append(Fault(place=row.place, problem=f"there is no region '{region}'", cure=cure))
        try:
            network = network_of(row.values["network"])
        except ValueError as wrong:
            cure = "write ADDRESS/LENGTH with host bits zero"
            faults.append(Fault(place=row.place, problem=str(wrong), cure=cure))
            continue
        owner, place = owners.setdefault(network, (region, row.place))
        if owner != region:
            cure = f"first in '{owner}', {place}"
            faults.append(Fault(place=row.place, problem=f"{network} is in two regions", cure=cure))
        elif place == row.place:
            found.setdefault(region, []).append(network)
    return found


def _sorted(networks: Sequence[Network]) -> tuple[Network, ...]:
    return tuple(sorted(networks, key=lambda one: (one.version, one.network_address.packed, one.prefixlen)))


def _entries_of_servers(rows: Sequence[Row], folder: Path, faults: list[Fault]) -> tuple[RegionEntry, ...]:
    regions: dict[str, list[UpdateServer]] = {}
    families: dict[str, tuple[tuple[bool, bool], str]] = {}
    for row in rows:
        server = _server(row, folder, faults)
        regions.setdefault(server.region, []).append(server)
        family, first = families.setdefault(server.region, ((bool(server.ipv4), bool(server.ipv6)), row.place))
        if family != (bool(server.ipv4), bool(server.ipv6)):
            problem = f"has other address families than the first server of '{server.region}'"
            faults.append(Fault(place=row.place, problem=problem, cure=f"see {first}: they are paired by position"))
    return tuple(RegionEntry(name=name, networks=(), servers=tuple(servers)) for name, servers in regions.items())


def _server(row: Row, folder: Path, faults: list[Fault]) -> UpdateServer:
    def wrong(problem: str, cure: str) -> None:
        faults.append(Fault(place=row.place, problem=problem, cure=cure))

    value = {name: row.values.get(name, "") for name in (*SERVERS.required, *SERVERS.optional)}
    if not REGION_NAME.fullmatch(value["region"]):
        wrong(f"{value['region']!r} is no region name", "use letters, digits, '.', '_' and '-'")
    for column in ("name", "registry"):
        if value[column] and not NAME.fullmatch(value[column]):
            wrong(f"{value[column]!r} is not a DNS name", "use the name in the server's certificate")
    for column, version in (("ipv4", 4), ("ipv6", 6)):
        problem = server_address_problem(value[column], version) if value[column] else ""
        if problem:
            wrong(problem, "write the update server's own address, bare")
    if not value["ipv4"] and not value["ipv6"]:
        wrong("has no address", "fill in ipv4, ipv6 or both")
    return UpdateServer(
        ipv4=value["ipv4"],
        ipv6=value["ipv6"],
        name=value["name"],
        registry=value["registry"] or value["name"],
        fingerprint=_print_of(value, folder, wrong),
        region=value["region"].lower(),
    )


def _print_of(value: Mapping[str, str], folder: Path, wrong: Callable[[str, str], None]) -> str:
    if bool(value["fingerprint"]) == bool(value["ca"]):
        wrong("needs either fingerprint or ca", "ca names the PEM file that the server gives as /rmt.crt")
    elif value["ca"]:
        try:
            return fingerprint((folder / value["ca"]).read_text())
        except (OSError, ValueError) as unreadable:
            wrong(f"'{value['ca']}' is not a CA certificate: {unreadable}", "the path is relative to the table")
    elif not FINGERPRINT.fullmatch(value["fingerprint"]):
        wrong(f"{value['fingerprint']!r} is not a SHA-1 fingerprint", "20 bytes, upper case, with colons")
    return value["fingerprint"]
