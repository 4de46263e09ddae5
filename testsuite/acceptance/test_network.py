# SPDX-License-Identifier: Apache-2.0
"""What listens: sshd and nothing else."""

from __future__ import annotations

import pytest

SOCKETS = "ss -H -l -n -t -u -p"
_DHCP_CLIENT = "68"


def _open(guest):
    """Sockets that the network can reach: (protocol, port, program); the DHCP client's own socket is no service."""
    found = []
    for line in guest.root(SOCKETS).splitlines():
        protocol, _, _, _, local, *rest = line.split()
        address, port = local.rsplit(":", 1)
        address = address.split("%")[0].strip("[]")
        program = rest[-1].split('"')[1] if rest and '"' in rest[-1] else "?"
        if address.startswith("127.") or address == "::1" or (protocol, port) == ("udp", _DHCP_CLIENT):
            continue
        found.append((protocol, int(port), program))
    return found


def test_only_the_described_ports_listen(guest, description):
    """No TCP or UDP port listens to the network but those the description names (22)."""
    wanted = {("tcp", port) for port in description.budgets.listening_ports}
    found = {(protocol, port) for protocol, port, _ in _open(guest)}
    strange = sorted(entry for entry in _open(guest) if entry[:2] not in wanted)
    assert not strange, f"further sockets listen to the network (protocol, port, program): {strange}"
    assert not wanted - found, f"described ports do not listen: {sorted(wanted - found)}"


def test_port_22_is_sshd(guest):
    """What listens on port 22 is sshd (or systemd on its behalf)."""
    programs = {program for protocol, port, program in _open(guest) if (protocol, port) == ("tcp", 22)}
    assert programs, "nothing listens on port 22"
    assert programs <= {"sshd", "systemd"}, f"port 22 is held by {sorted(programs)}"


@pytest.mark.later
def test_a_port_scan_finds_only_the_described_ports(facts, description):
    """A scan from outside finds no open TCP port but those the description names."""
    if facts.outside is None or facts.outside.open_ports is None:
        pytest.fail("nothing was scanned from outside")
    strange = sorted(set(facts.outside.open_ports) - set(description.budgets.listening_ports))
    missing = sorted(set(description.budgets.listening_ports) - set(facts.outside.open_ports))
    assert not strange, f"a scan of {facts.outside.scanned_ports} ports found these open: {strange}"
    assert not missing, f"a scan found these described ports closed: {missing}"
