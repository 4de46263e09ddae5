# SPDX-License-Identifier: Apache-2.0
"""QEMU's command line: pure, so that a frozen guest and its clones are the same machine by construction."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from factory.sandbox.seed import MAC_ADDRESS

SSH_PORT = 22
TCG_CPU = "qemu64,-cx16"
"""The fastest and steadiest model under TCG that Debian runs on (measured), without ``cmpxchg16b``.

QEMU 7.2's emulation of that instruction loses the processor's flags now and then; Linux 6.12 then dies of a
double fault in its memory allocator, in four of ten boots. Without the feature bit the kernel does not use it.
"""
_TCG_CPUS = 1
_KVM_CPUS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A virtual machine.

    ``memory`` is a file that holds the guest's memory (for freezing), ``private`` whether changes to it stay with this
    machine; ``incoming`` makes it wait for a frozen state. ``cpu`` empty means: the host's under KVM, else
    :data:`TCG_CPU`. ``cpus`` 0 means: two under KVM; one under TCG, whose second processor may run an instruction that
    Linux has already patched, and dies of it ("Oops: int3"). ``rtc`` is the time its clock starts at; with ``nova`` it
    says that it is OpenStack's.
    """

    accelerator: str
    disk: Path
    seed: Path
    serial: Path
    address: str
    cpu: str = ""
    cpus: int = 0
    memory_mib: int = 1024
    memory: Path | None = None
    private: bool = False
    incoming: bool = False
    rtc: datetime | None = None
    ipv6: bool = False
    nova: bool = False


def command_line(machine: Machine, *, control_fd: int, agent_fd: int) -> list[str]:
    """QEMU's arguments; ``control_fd`` and ``agent_fd`` are connected sockets that it inherits."""
    cpu = machine.cpu or ("host" if machine.accelerator == "kvm" else TCG_CPU)
    # The default for translated code is a gigabyte, as much as the guest's memory; half serves a boot.
    accelerator = "tcg,thread=multi,tb-size=512" if machine.accelerator == "tcg" else machine.accelerator
    cpus = machine.cpus or (_KVM_CPUS if machine.accelerator == "kvm" else _TCG_CPUS)
    kind, memory = "pc", []
    if machine.memory is not None:
        share = "off" if machine.private else "on"
        kind = "pc,memory-backend=mem"
        backend = f"memory-backend-file,id=mem,size={machine.memory_mib}M,mem-path={_quoted(machine.memory)}"
        memory = ["-object", f"{backend},share={share}"]
    rtc = machine.rtc.strftime("%Y-%m-%dT%H:%M:%S") if machine.rtc else "utc"
    network = f"user,id=net0,ipv6={'on' if machine.ipv6 else 'off'}"
    return [
        "qemu-system-x86_64",
        *("-name", "factory-guest"),
        *("-machine", kind),
        *("-accel", accelerator),
        *("-cpu", cpu),
        *("-smp", str(cpus)),
        *("-m", f"{machine.memory_mib}M"),
        *memory,
        *("-nodefaults", "-no-user-config"),
        *("-display", "none", "-vga", "std"),
        *("-rtc", f"base={rtc}"),
        *(("-smbios", "type=1,manufacturer=OpenStack Foundation,product=OpenStack Nova") if machine.nova else ()),
        *("-serial", f"file:{_quoted(machine.serial)}"),
        *("-drive", f"file={_quoted(machine.disk)},if=virtio,format=qcow2,cache=unsafe"),
        *("-drive", f"file={_quoted(machine.seed)},if=virtio,format=raw,readonly=on"),
        *("-netdev", f"{network},hostfwd=tcp:{machine.address}:{SSH_PORT}-:{SSH_PORT}"),
        *("-device", f"virtio-net-pci,netdev=net0,mac={MAC_ADDRESS}"),
        *("-device", "virtio-rng-pci"),
        *("-chardev", f"socket,id=agent0,fd={agent_fd}"),
        *("-device", "virtio-serial-pci"),
        *("-device", "virtserialport,chardev=agent0,name=org.qemu.guest_agent.0"),
        *("-chardev", f"socket,id=control0,fd={control_fd}"),
        *("-mon", "chardev=control0,mode=control"),
        *(("-incoming", "defer") if machine.incoming else ()),
    ]


def _quoted(path: Path) -> str:
    """A path inside one of QEMU's comma-separated options."""
    return str(path).replace(",", ",,")
