# SPDX-License-Identifier: Apache-2.0
"""The network that guests of a cloud are attached to, and the world they see there.

    guests --macvtap-- HOST END ==veth== gateway (namespace) ==veth== HOST
                                         + the addresses that tests add

Guests' gateway and resolver is a network namespace of ours, not the host: what tests serve there (region servers,
update servers, names, time) holds the addresses written in the image, whatever the host's own addresses are. The host
reaches guests through it; a guest cannot open a connection to the host. The devices go with the namespace.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from factory.errors import CloudError, CommandFailed
from factory.system.namespaces import NetworkNamespace, network_namespace
from factory.system.run import run

_GONE_S = 10.0
_ONLY_ANSWERS = """
table inet guests {
  chain forward {
    type filter hook forward priority 0
    ct state established,related accept
    iifname "gateway" drop
  }
}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestsNetwork:
    """Where guests are: ``namespace`` holds their gateway, ``device`` carries their interfaces."""

    namespace: NetworkNamespace
    device: str
    link: str
    subnet: str
    gateway: str
    first: str
    last: str


@contextlib.contextmanager
def guests_network(folder: Path) -> Iterator[GuestsNetwork]:
    """A network for guests for the length of the block; devices and subnet are derived from ``folder``.

    Raises:
        CloudError: it cannot be made here.
    """
    digest = hashlib.sha256(str(folder).encode()).digest()
    device, link = f"fg{digest.hex()[:8]}", f"fh{digest.hex()[:8]}"
    with network_namespace() as namespace:
        try:
            _veth(device, namespace, "gateway")
            _veth(link, namespace, "host")
            # no addresses of the host's own on the guests' side
            run(["sh", "-c", f"echo 1 >/proc/sys/net/ipv6/conf/{device}/disable_ipv6"], timeout_s=20)
            run(["ip", "link", "set", device, "up"], timeout_s=20)
            third = _claim_subnet(link, digest[0])
            net = f"10.214.{third}"
            script = (
                "set -e; echo 1 >/proc/sys/net/ipv4/ip_forward; "
                f"ip address add {net}.1/25 dev gateway; ip link set gateway up; "
                f"ip address add {net}.254/30 dev host; ip link set host up; exec nft -f -"
            )
            run(namespace.inside(["sh", "-c", script]), stdin=_ONLY_ANSWERS.encode(), timeout_s=20)
            run(["ip", "route", "add", f"{net}.0/25", "via", f"{net}.254", "dev", link], timeout_s=20)
            yield GuestsNetwork(
                namespace=namespace,
                device=device,
                link=link,
                subnet=f"{net}.0/25",
                gateway=f"{net}.1",
                first=f"{net}.10",
                last=f"{net}.120",
            )
        finally:
            for name in (device, link):
                run(["ip", "link", "delete", name], check=False, timeout_s=20)


def _veth(ours: str, namespace: NetworkNamespace, theirs: str) -> None:
    """A pair with one end in the namespace; what a killed cloud of the same folder left is about to vanish."""
    deadline = time.monotonic() + _GONE_S
    argv = ["ip", "link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", str(namespace.pid)]
    while True:
        try:
            run(argv, timeout_s=20)
        except CommandFailed as failed:
            if time.monotonic() > deadline:
                raise CloudError(
                    f"the network device '{ours}' cannot be made", facts=failed.facts, hint="is one up in this folder?"
                ) from failed
            time.sleep(0.2)
        else:
            return


def _claim_subnet(link: str, first: int) -> int:
    """The third number of a subnet that nobody on this host routes to; claimed by its address on ``link``."""
    run(["ip", "link", "set", link, "up"], timeout_s=20)
    for offset in range(256):
        third = (first + offset) % 256
        taken = run(["ip", "-4", "route", "show", "root", f"10.214.{third}.0/24"], timeout_s=20).stdout
        if not taken.strip():
            run(["ip", "address", "add", f"10.214.{third}.253/30", "dev", link], timeout_s=20)
            return third
    raise CloudError("all of 10.214.0.0/16 is in use on this host")
