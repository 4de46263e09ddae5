# SPDX-License-Identifier: Apache-2.0
"""Whether a ``regionData.cfg`` serves clients well from our server and from SUSE's: the rules that need no network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from factory.errors import Fault
from factory.model import Region
from factory.region import ini
from factory.region.certificates import fingerprint
from factory.region.data import Reading, read_file, read_region_data


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """What was found in a file; good when there are no faults."""

    faults: tuple[Fault, ...]
    notes: tuple[Fault, ...]
    regions: int
    networks: int


def validate(file: Path, *, hints: Sequence[str] = (), regions: Sequence[Region] = ()) -> Validation:
    """Check a file.

    Args:
        hints: what the images' hint plugin sends.
        regions: the site's, whose CA certificates are compared with the fingerprints of servers of the same name.

    Raises:
        InputFault: the file cannot be read.
    """
    text = read_file(file)
    read = read_region_data(text, place=str(file))
    faults = [*read.faults, *read.quirks, *_authority_faults(read, regions, text, str(file))]
    notes = list(read.notes)
    somewhere = any(entry.networks for entry in read.entries)
    for hint in hints:
        if hint.lower() in {entry.name for entry in read.entries}:
            continue
        if somewhere:
            cure = "instances that send it get the region of their address"
            notes.append(Fault(place=f"{file}:1", problem=f"no region is called '{hint}'", cure=cure))
        else:
            cure = "instances that send it get 404; add the region, or public-ips"
            faults.append(Fault(place=f"{file}:1", problem=f"no region is called '{hint}'", cure=cure))
    return Validation(
        faults=tuple(sorted(faults, key=_line)),
        notes=tuple(sorted(notes, key=_line)),
        regions=len(read.entries),
        networks=sum(len(entry.networks) for entry in read.entries),
    )


def _line(fault: Fault) -> int:
    number = fault.place.rpartition(":")[2].partition(" ")[0]
    return int(number) if number.isdigit() else 0


def _authority_faults(read: Reading, regions: Sequence[Region], text: str, place: str) -> Iterator[Fault]:
    authorities = {
        (region.name.lower(), server.name): server.pem for region in regions for server in region.update_servers
    }
    sections = {section.name.lower(): section for section in ini.read(text, place=place).sections.values()}
    for entry in read.entries:
        for server in entry.servers:
            pem = authorities.get((entry.name, server.name))
            option = sections[entry.name].options.get("smt-fingerprint")
            if pem is None or option is None:
                continue
            wanted = fingerprint(pem.read_text())
            if wanted != server.fingerprint:
                yield Fault(
                    place=f"{place}:{option.line} {entry.name}.smt-fingerprint",
                    problem=f"says {server.fingerprint[:11]}... of {server.name}, the site's CA has {wanted[:11]}...",
                    cure=f"every instance would refuse that server; the SHA-1 of '{pem.name}' is {wanted}",
                )
