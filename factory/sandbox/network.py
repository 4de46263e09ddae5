# SPDX-License-Identifier: Apache-2.0
"""The world a guest finds itself in: a network namespace where the addresses written in the image answer, and no other.

On the namespace's loopback device are the addresses of every region and update server, of the time servers and of the
resolver. What has no address here is unreachable at once; a name that is not ours does not exist. The servers die with
the block, and with us.
"""

from __future__ import annotations

import contextlib
import ipaddress
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from factory.errors import SandboxError
from factory.model import Region
from factory.system.files import remove, write_whole
from factory.system.namespaces import NetworkNamespace, network_namespace
from factory.system.run import last_lines, running

NTP_ADDRESS = "203.0.113.123"
"""Where time servers that the image knows by name are answered (an address kept for documentation, RFC 5737)."""

_STRATUM = 3
_START_S = 15.0

Services = TypeVar("Services")


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxNetwork(Generic[Services]):
    """The namespace that guests boot in, and the servers in it.

    ``services`` is whatever the caller's servers gave (region and update servers), ``names`` every name that resolves.
    """

    namespace: NetworkNamespace
    services: Services
    names: Mapping[str, tuple[str, ...]]
    addresses: tuple[str, ...]
    dns_log: Path
    ntp_log: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What answers: every address on the loopback device, and every name."""

    addresses: tuple[str, ...]
    names: Mapping[str, tuple[str, ...]]


def plan(
    regions: Sequence[Region], *, ntp_servers: Sequence[str] = (), names: Mapping[str, Sequence[str]] | None = None
) -> Plan:
    """Decide the addresses and names of a sandbox; pure.

    A time server given as an address gets it; one given as a name resolves to :data:`NTP_ADDRESS`.
    """
    found: dict[str, list[str]] = {name.lower(): list(given) for name, given in (names or {}).items()}
    addresses: list[str] = [address for given in found.values() for address in given]
    for region in regions:
        for server in (*region.servers, *region.update_servers):
            addresses += server.addresses
            for name in filter(None, (server.name, server.registry)):
                if not is_address(name):
                    found.setdefault(name.lower(), []).extend(server.addresses)
    for server_name in ntp_servers:
        if is_address(server_name):
            addresses.append(server_name)
        else:
            found.setdefault(server_name.lower(), []).append(NTP_ADDRESS)
            addresses.append(NTP_ADDRESS)
    return Plan(
        addresses=tuple(
            dict.fromkeys(address for address in addresses if not ipaddress.ip_address(address).is_loopback)
        ),
        names={name: tuple(dict.fromkeys(given)) for name, given in found.items()},
    )


def is_address(text: str) -> bool:
    """Whether ``text`` is an IP address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def resolver_arguments(names: Mapping[str, tuple[str, ...]], *, address: str = "127.0.0.1") -> list[str]:
    """Dnsmasq's command line: these names, and for every other "no such name"; pure.

    It stays root inside the namespace: a change of user would clear the signal that ends it when we die.
    """
    records = [f"--host-record={name},{','.join(given)}" for name, given in sorted(names.items())]
    quiet = ["--conf-file=/dev/null", "--no-hosts", "--no-resolv", "--no-poll", "--pid-file=", "--user=root"]
    listening = [f"--listen-address={address}", "--bind-interfaces", "--cache-size=0", "--local=/#/"]
    return ["dnsmasq", "--no-daemon", *quiet, *listening, "--log-queries", "--log-facility=-", *records]


def time_server_configuration(pid_file: Path) -> str:
    """Chronyd's configuration: serve the host's time to everybody, change nothing (with ``-x``), ask nobody; pure."""
    return f"local stratum {_STRATUM}\nallow all\ncmdport 0\nbindcmdaddress /\npidfile {pid_file}\n"


@contextlib.contextmanager
def sandbox_network(
    regions: Sequence[Region],
    *,
    workdir: Path,
    say: Callable[[str], None],
    services: Callable[[NetworkNamespace], contextlib.AbstractContextManager[Services]],
    ntp_servers: Sequence[str] = (),
    names: Mapping[str, Sequence[str]] | None = None,
) -> Iterator[SandboxNetwork[Services]]:
    """A sandbox network for the length of the block.

    Args:
        regions: whose servers' addresses and names exist.
        workdir: for configuration, and the logs of the resolver and the time server.
        services: starts the region and update servers in the namespace (``contextlib.nullcontext`` for none).
        ntp_servers: the time servers the image was told, names or addresses.
        names: further names and their addresses.

    Raises:
        SandboxError: a server did not start.
    """
    decided = plan(regions, ntp_servers=ntp_servers, names=names)
    with contextlib.ExitStack() as stack:
        namespace = stack.enter_context(network_namespace(decided.addresses))
        yield _answer(stack, namespace, decided, workdir=workdir, say=say, services=services)


@contextlib.contextmanager
def answering(
    namespace: NetworkNamespace,
    regions: Sequence[Region],
    *,
    resolver: str,
    workdir: Path,
    say: Callable[[str], None],
    services: Callable[[NetworkNamespace], contextlib.AbstractContextManager[Services]],
    ntp_servers: Sequence[str] = (),
    names: Mapping[str, Sequence[str]] | None = None,
) -> Iterator[SandboxNetwork[Services]]:
    """The same in a namespace that is there already, such as the gateway of a cloud's guests; addresses go afterwards.

    Args:
        resolver: the address of that namespace which guests were told to ask for names.

    Raises:
        SandboxError: a server did not start.
    """
    decided = plan(regions, ntp_servers=ntp_servers, names=names)
    with contextlib.ExitStack() as stack:
        for address in decided.addresses:
            namespace.add_address(address)
            stack.callback(namespace.drop_address, address)
        yield _answer(stack, namespace, decided, workdir=workdir, say=say, services=services, resolver=resolver)


def _answer(
    stack: contextlib.ExitStack,
    namespace: NetworkNamespace,
    decided: Plan,
    *,
    workdir: Path,
    say: Callable[[str], None],
    services: Callable[[NetworkNamespace], contextlib.AbstractContextManager[Services]],
    resolver: str = "127.0.0.1",
) -> SandboxNetwork[Services]:
    workdir.mkdir(parents=True, exist_ok=True, mode=0o700)
    dns_log, ntp_log = workdir / "dns.log", workdir / "ntp.log"
    configuration, pid_file = workdir / "chrony.conf", workdir / "chronyd.pid"
    for path in (dns_log, ntp_log, pid_file):
        remove(path)
    write_whole(configuration, time_server_configuration(pid_file))
    _start(stack, namespace, resolver_arguments(decided.names, address=resolver), log=dns_log, when="started, version")
    time_server = ["chronyd", "-x", "-d", "-u", "root", "-f", str(configuration)]
    _start(stack, namespace, time_server, log=ntp_log, when="chronyd version")
    say(f"the sandbox answers at {len(decided.addresses)} addresses and {len(decided.names)} names")
    return SandboxNetwork(
        namespace=namespace,
        services=stack.enter_context(services(namespace)),
        names=decided.names,
        addresses=decided.addresses,
        dns_log=dns_log,
        ntp_log=ntp_log,
    )


def _start(
    stack: contextlib.ExitStack, namespace: NetworkNamespace, argv: Sequence[str], *, log: Path, when: str
) -> None:
    server = stack.enter_context(running(namespace.inside(argv), log=log, grace_s=2.0))
    deadline = time.monotonic() + _START_S
    while when not in last_lines(log):
        if server.poll() is not None or time.monotonic() > deadline:
            raise SandboxError(
                f"the sandbox's '{argv[0]}' did not start",
                facts=tuple(("said", line) for line in last_lines(log).strip().splitlines()[-4:]),
                hint=f"'factory doctor' tells whether '{argv[0]}' is installed",
            )
        time.sleep(0.05)
