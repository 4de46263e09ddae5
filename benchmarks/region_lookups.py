# SPDX-License-Identifier: Apache-2.0
"""How the region server grows with the number of prefixes, beside a linear scan; kept in docs/explanation/.

Wanted: the time of one look-up does not grow, the time to start grows in proportion. All sizes and the linear scan are
measured in one run, so the ratios hold whatever the host. Nothing here is asserted.
"""

from __future__ import annotations

import ipaddress
import os
import platform
import random
import time
from collections.abc import Callable
from pathlib import Path

from flask import Flask
from werkzeug.test import create_environ

from factory.region.data import RegionEntry, UpdateServer, read_region_data, render
from factory.region.server import app_for, parse_region_data

KEPT = Path(__file__).parents[1] / "docs" / "explanation" / "region-lookups.md"
SIZES = (100, 1_000, 10_000, 100_000)
REGIONS = 50
LOOKUPS = 20_000
SCANS = 20
ANSWERS = 2_000
ROUNDS = 5


def region_data(size: int, seed: random.Random) -> str:
    """Half IPv4, half IPv6, with nested prefixes, spread over the regions."""
    networks: set[ipaddress.IPv4Network | ipaddress.IPv6Network] = set()
    while len(networks) < size:
        if len(networks) % 2:
            length = seed.randint(12, 28)
            networks.add(ipaddress.IPv4Network((seed.getrandbits(length) << (32 - length), length)))
        else:
            length = seed.randint(28, 64)
            networks.add(ipaddress.IPv6Network((seed.getrandbits(length) << (128 - length), length)))
    ordered = sorted(networks, key=str)
    seed.shuffle(ordered)
    server = {"ipv4": "192.0.2.20", "ipv6": "", "name": "update.test.invalid", "registry": "registry.test.invalid"}
    entries = [
        RegionEntry(
            name=f"region-{number}",
            networks=tuple(ordered[number::REGIONS]),
            servers=(UpdateServer(**server, fingerprint=":".join(["AB"] * 20), region=f"region-{number}"),) * 2,
        )
        for number in range(REGIONS)
    ]
    return render(entries)


def peers(count: int, networks: list, seed: random.Random) -> list[str]:
    """Addresses of instances: each somewhere in one of the networks."""
    chosen = seed.choices(networks, k=count)
    return [str(network[seed.getrandbits(network.max_prefixlen - network.prefixlen)]) for network, _ in chosen]


def linear_scan(networks: list[tuple[object, str]], peer: str) -> str:
    """What one would write first: look at every network, keep the longest."""
    address = ipaddress.ip_address(peer)
    best, region = -1, ""
    for network, name in networks:
        if network.version == address.version and network.prefixlen > best and address in network:
            best, region = network.prefixlen, name
    return region


def answering(app: Flask) -> Callable[[str], object]:
    base = create_environ("/regionInfo")

    def answer(peer: str) -> bytes:
        return b"".join(app.wsgi_app({**base, "REMOTE_ADDR": peer}, lambda _status, _headers: None))

    return answer


def per_call_s(call: Callable[[str], object], arguments: list[str]) -> float:
    """The mean time of a call, in the quickest of some rounds."""
    rounds = []
    for _ in range(ROUNDS):
        started = time.process_time()
        for argument in arguments:
            call(argument)
        rounds.append((time.process_time() - started) / len(arguments))
    return min(rounds)


def measure(size: int) -> dict[str, float]:
    seed = random.Random(size)
    text = region_data(size, seed)
    starts = []
    for _ in range(3):
        started = time.process_time()
        table = parse_region_data(text, place="benchmark")
        starts.append(time.process_time() - started)
    networks = [
        (network, entry.name) for entry in read_region_data(text, place="x").entries for network in entry.networks
    ]
    asked = peers(LOOKUPS, networks, seed)
    few = asked[:SCANS]
    wrong = [peer for peer in few if table.region_of(peer) != linear_scan(networks, peer)]
    if wrong:
        raise SystemExit(f"the look-up and the linear scan disagree about {wrong}")
    return {
        "size": size,
        "start_s": min(starts),
        "lookup_s": per_call_s(table.region_of, asked),
        "answer_s": per_call_s(answering(app_for(table)), asked[:ANSWERS]),
        "scan_s": per_call_s(lambda peer: linear_scan(networks, peer), few),
    }


def main() -> None:
    found = [measure(size) for size in SIZES]
    first = found[0]
    lines = [
        "| prefixes | start | per prefix | look-up | / smallest | answer | / smallest | linear scan | scan / look-up |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {one['size']:,} | {one['start_s'] * 1e3:,.1f} ms | {one['start_s'] / one['size'] * 1e6:.1f} µs "
        f"| {one['lookup_s'] * 1e6:.2f} µs | {one['lookup_s'] / first['lookup_s']:.2f} "
        f"| {one['answer_s'] * 1e6:.0f} µs | {one['answer_s'] / first['answer_s']:.2f} "
        f"| {one['scan_s'] * 1e6:,.0f} µs | {one['scan_s'] / one['lookup_s']:,.0f} |"
        for one in found
    ]
    head = (
        "# Look-ups of the region server, measured\n\nWritten by `python benchmarks/region_lookups.py`, all lines in "
        f"one run on one host ({os.cpu_count()} CPUs, Python {platform.python_version()}). Half of the prefixes and of "
        "the peers are IPv6. Times are processor time, so that other work on the host does "
        "not count. *Start* is reading, checking and loading `regionData.cfg`; *look-up* is from the peer's address as "
        "text to the name of its region, by prefix tree; *answer* is the whole reply of the application to a request "
        "without a hint; *linear scan* looks at every network.\n\n"
    )
    KEPT.write_text(head + "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
