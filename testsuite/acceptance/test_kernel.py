# SPDX-License-Identifier: Apache-2.0
"""The kernel: hardened settings, AppArmor, random numbers, and the drivers its initrd brings."""

from __future__ import annotations

import re
import subprocess

import pytest

SYSCTL = "sysctl -a 2>/dev/null"
INITRD = "cat /boot/initrd.img-$(uname -r) 2>/dev/null || cat /boot/initramfs-$(uname -r).img"
BUILT_IN = "cat /lib/modules/$(uname -r)/modules.builtin"
UNPACK = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ": "xz",
    b"\x04\x22\x4d\x18": "lz4",
    b"BZh": "bzip2",
}
CPIO = b"070701"
DRIVERS = ("virtio_blk", "virtio_scsi", "virtio_pci", "virtio_net", "xen-blkfront", "xen-netfront")


def _wrong(guest, pattern, allowed):
    """Settings whose name matches and whose value is not allowed; a pattern that matches nothing is wrong as well."""
    lines = [line.split(" = ", 1) for line in guest.root(SYSCTL).splitlines() if " = " in line]
    found = {name: value for name, value in lines if re.fullmatch(pattern, name)}
    return {name: value for name, value in found.items() if value not in allowed} if found else {pattern: "not set"}


def _for_all(guest, *settings):
    wrong = {}
    for pattern, *allowed in settings:
        wrong.update(_wrong(guest, pattern, allowed))
    return wrong


def test_redirects_are_ignored(guest):
    """No interface, present or future, accepts or sends ICMP redirects."""
    wrong = _for_all(
        guest,
        (r"net\.ipv[46]\.conf\.[^.]+\.accept_redirects", "0"),
        (r"net\.ipv4\.conf\.[^.]+\.secure_redirects", "0"),
        (r"net\.ipv4\.conf\.[^.]+\.send_redirects", "0"),
    )
    assert not wrong, f"ICMP redirects are in use: {wrong}"


def test_source_routes_are_ignored(guest):
    """No interface, present or future, follows a source route."""
    wrong = _for_all(guest, (r"net\.ipv[46]\.conf\.[^.]+\.accept_source_route", "0", "-1"))
    assert not wrong, f"source routes are followed: {wrong}"


def test_broadcast_icmp_is_ignored(guest):
    """The guest answers no ping to a broadcast address and no bogus ICMP error."""
    wrong = _for_all(
        guest,
        (r"net\.ipv4\.icmp_echo_ignore_broadcasts", "1"),
        (r"net\.ipv4\.icmp_ignore_bogus_error_responses", "1"),
    )
    assert not wrong, f"broadcast ICMP is answered: {wrong}"


def test_spoofed_source_addresses_are_dropped(guest):
    """Every interface, present or future, drops packets whose source could not be reached through it."""
    wrong = _for_all(guest, (r"net\.ipv4\.conf\.(all|default|e[^.]+)\.rp_filter", "1"))
    assert not wrong, f"the reverse path is not checked: {wrong}"


def test_the_guest_does_not_forward(guest):
    """The guest does not forward packets and survives SYN floods with cookies."""
    wrong = _for_all(
        guest,
        (r"net\.ipv4\.(ip_forward|conf\.all\.forwarding)", "0"),
        (r"net\.ipv6\.conf\.all\.forwarding", "0"),
        (r"net\.ipv4\.tcp_syncookies", "1"),
    )
    assert not wrong, f"the network stack is too obliging: {wrong}"


def test_kernel_pointers_are_hidden(guest):
    """The kernel shows its addresses and its log to nobody but root."""
    wrong = _for_all(guest, (r"kernel\.kptr_restrict", "1", "2"), (r"kernel\.dmesg_restrict", "1"))
    assert not wrong, f"the kernel shows too much: {wrong}"


def test_an_unprivileged_user_sees_no_kernel_address(guest):
    """An ordinary user who reads /proc/kallsyms sees zeros only."""
    found = guest.user("cut -d' ' -f1 /proc/kallsyms | grep -v '^0*$' | head -n 1")
    assert not found.strip(), f"/proc/kallsyms shows kernel addresses to everybody: {found.strip()}"


def test_memory_and_links_are_protected(guest):
    """Address randomisation is full, traps with links do not work, set-uid programs leave no core, tracing limited."""
    wrong = _for_all(
        guest,
        (r"kernel\.randomize_va_space", "2"),
        (r"fs\.protected_(hardlinks|symlinks)", "1"),
        (r"fs\.protected_(fifos|regular)", "1", "2"),
        (r"fs\.suid_dumpable", "0"),
        (r"kernel\.yama\.ptrace_scope", "1", "2", "3"),
        (r"kernel\.unprivileged_bpf_disabled", "1", "2"),
    )
    assert not wrong, f"kernel protections are off: {wrong}"


def test_apparmor_is_on(guest):
    """AppArmor is active and enforces profiles."""
    found = guest.root(
        "cat /sys/module/apparmor/parameters/enabled 2>/dev/null || echo N;"
        "grep -c '(enforce)' /sys/kernel/security/apparmor/profiles 2>/dev/null || true"
    ).split()
    assert found[0] == "Y", "AppArmor is not active in the running kernel"
    assert int(found[1] if len(found) > 1 else 0) > 0, "AppArmor is active but enforces no profile"


def test_apparmor_profiles_load_at_boot(guest):
    """The service that loads AppArmor's profiles is enabled and did its work."""
    found = guest.root("systemctl is-enabled apparmor; systemctl is-active apparmor || true").split()
    assert found == ["enabled", "active"], f"apparmor.service is {' and '.join(found) or 'missing'}"


def test_random_numbers_come_from_the_hypervisor_too(guest):
    """The kernel takes random numbers from the virtual hardware generator, and its pool is full."""
    found = guest.root(
        "cat /sys/class/misc/hw_random/rng_current 2>/dev/null || echo none; cat /proc/sys/kernel/random/entropy_avail"
    ).split()
    assert found[0].startswith("virtio_rng"), f"the hardware random generator in use is {found[0]!r}, not virtio_rng"
    assert int(found[1]) >= 256, f"the entropy pool holds only {found[1]} bits"


@pytest.fixture(scope="session")
def drivers(host, guest):
    """The names of the modules in the initrd (unpacked here: the guest is slow) and of those built into the kernel."""
    found = host.run("sudo -n sh -c %s", INITRD)
    assert found.rc == 0, "the guest has no initrd for the kernel it runs"
    names = _modules(found.stdout_bytes) | set(re.findall(r"([^/\n]+)\.ko", guest.root(BUILT_IN)))
    return {name.replace("-", "_") for name in names}


def _modules(initrd):
    """The names of the kernel modules in an initrd, which may be several archives one after the other."""
    names = set()
    while initrd:
        program = next((tool for magic, tool in UNPACK.items() if initrd.startswith(magic)), None)
        if program:
            initrd = subprocess.run([program, "-d", "-c"], input=initrd, capture_output=True, check=False).stdout
            names |= {name.decode() for name in re.findall(rb"/([^/\0]+)\.ko(?:\.[a-z0-9]+)?\0", initrd)}
            break
        end = initrd.find(b"TRAILER!!!")
        assert initrd.startswith(CPIO), "the initrd is in a format that nobody here can read"
        assert end > 0, "the initrd is cut off"
        names |= {name.decode() for name in re.findall(rb"/([^/\0]+)\.ko(?:\.[a-z0-9]+)?\0", initrd[:end])}
        initrd = initrd[end + 10 :].lstrip(b"\0")
    return names


@pytest.mark.parametrize("driver", DRIVERS)
def test_the_initrd_has_the_driver(drivers, driver):
    """The initial RAM disk (or the kernel itself) has this driver, so that the image boots on KVM and on Xen."""
    found = driver.replace("-", "_") in drivers
    assert found, f"the initrd lacks {driver}: the image would not boot on such hardware"


def test_the_guest_agent_is_installed(guest):
    """QEMU's guest agent is there, and starts when the hypervisor offers its channel."""
    found = guest.root(
        "command -v qemu-ga || true; systemctl cat qemu-guest-agent.service 2>/dev/null | grep -E '^BindsTo=' || true;"
        "systemctl is-enabled qemu-guest-agent 2>/dev/null || true"
    )
    assert "qemu-ga" in found, "QEMU's guest agent is not installed"
    assert "masked" not in found.split(), "QEMU's guest agent is masked"
    assert "disabled" not in found.split(), "QEMU's guest agent would not start"


@pytest.mark.later
@pytest.mark.needs("agent")
def test_the_guest_agent_answers(facts):
    """QEMU's guest agent answers the hypervisor."""
    if facts.outside is None:
        pytest.fail("nobody asked the guest agent")
    assert facts.outside.agent == "answers", f"QEMU's guest agent does not answer: {facts.outside.agent}"


def test_the_kernel_is_clean(guest):
    """The running kernel is the newest one installed, and the kernel is not tainted."""
    found = guest.root(
        "uname -r; ls /boot/vmlinuz-* | sed 's|.*/vmlinuz-||' | sort -V | tail -n 1; cat /proc/sys/kernel/tainted"
    )
    running, newest, tainted = found.split()
    assert running == newest, f"kernel {running} runs although {newest} is installed"
    assert tainted == "0", f"the kernel is tainted ({tainted})"
