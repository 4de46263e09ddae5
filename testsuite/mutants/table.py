# SPDX-License-Identifier: Apache-2.0
"""For each check of the acceptance suite, a way to spoil a guest so that this check, and not another cause, turns red.

``spoil`` is a shell script that root runs in a clone of a frozen, healthy guest. Where the fault lies in what is
expected of the file or the site rather than in the guest, ``facts`` changes what the suite is told. ``probe`` is asked
again from outside after the spoiling. ``at`` names the boot at which a fault shows: only these need a boot of their
own, and all faults of one boot share it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from factory.sandbox.guest import Guest
from factory.verify import outside
from factory.verify.seen import console_login

Facts = dict[str, Any]
PASSWORD = "Spoiled-1-Password"
_KEPT = (
    "password=$(fold -w \"$(od -An -tu1 -N2 /dev/vcsa1 | awk '{print $2}')\" /dev/vcs1"
    " | sed -n -E 's/^.*[Pp]assword[^:]*: *([^ ]{8,}) *$/\\1/p' | tail -n 1); test -n \"$password\"; "
)
_SSHD = "cat >/etc/ssh/sshd_config.d/00-0.conf <<'END'\n%s\nEND\n"
_OPEN_SSHD = (
    _SSHD % "PasswordAuthentication yes\nPermitRootLogin yes\nAuthenticationMethods any" + "systemctl restart ssh\n"
)
_LISTEN = (
    'systemd-run -q --unit=stranger python3 -c \'import socket, time; s = socket.create_server(("0.0.0.0", %d));'
    " time.sleep(900)'; until ss -H -l -n -t | grep -q '0.0.0.0:%d '; do sleep 0.2; done"
)
# BLKPG of linux/blkpg.h: tell the kernel of partitions that lie before the first one; the disk stays as it is.
_THREE_PARTITIONS = """python3 - <<'END'
import ctypes as c, fcntl, os
class Partition(c.Structure):
    _fields_ = [("start", c.c_longlong), ("length", c.c_longlong), ("pno", c.c_int), ("names", c.c_char * 128)]
class Request(c.Structure):
    _fields_ = [("op", c.c_int), ("flags", c.c_int), ("size", c.c_int), ("partition", c.c_void_p)]
disk = os.open("/dev/vda", os.O_RDONLY)
for number in (5, 6, 7):
    made = Partition(number * 65536, 4096, number)
    fcntl.ioctl(disk, 0x1269, Request(1, 0, c.sizeof(made), c.addressof(made)))
END
udevadm settle
"""
_REPOSITORY = "echo 'deb %s http://elsewhere.example/debian trixie main' >/etc/apt/sources.list.d/elsewhere.list"
_DPKG = (
    "printf 'Package: %s\\nStatus: install ok installed\\nPriority: optional\\nSection: devel\\nMaintainer: nobody\\n"
)
_AUTH = "$(grep -s -l -r -i -E '^ *(machine|login)' /etc/apt/auth.conf /etc/apt/auth.conf.d | head -n 1)"
_SOURCES = "/etc/apt/sources.list /etc/apt/sources.list.d"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One fault; ``says`` is a part of the message that people then read."""

    check: str
    says: str
    spoil: str = ""
    facts: Callable[[Facts], None] | None = None
    probe: Callable[[Guest], Facts] | None = None
    at: str = "now"

    @property
    def function(self) -> str:
        """The check without its parameter."""
        return self.check.split("[", 1)[0]


def _setting(*keys: str, value: Any) -> Callable[[Facts], None]:
    """A change of one expectation, by its place in the facts."""

    def change(facts: Facts) -> None:
        place = facts
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change


def _without_last_package(facts: Facts) -> None:
    facts["packages"] = facts["packages"][:-1]


def _not_in_the_image(facts: Facts) -> None:
    facts["packages"] = [*facts["packages"], {"name": "gone", "version": "1", "arch": "all"}]


# -- probes -----------------------------------------------------------------------------------------------------------


def _audit(guest: Guest) -> Facts:
    return {"audit": outside.audit(guest, log=guest.login.folder / "ssh-audit.log")}


def _password_login(guest: Guest) -> Facts:
    return {"password_login": outside.try_password(guest, user=guest.login.user, password=PASSWORD)}


def _root_login(guest: Guest) -> Facts:
    refused = {"exit": 255, "printed": "", "offered": ["publickey"]}
    return {"root_login": outside.try_key(guest, user="root"), "root_password_login": refused}


def _scan(guest: Guest) -> Facts:
    ports = (22, 80, 8080)
    return {"open_ports": outside.scan(guest, ports=ports), "scanned_ports": len(ports)}


def _agent(guest: Guest) -> Facts:
    return {"agent": guest.ask_agent(timeout_s=3)}


def _console(guest: Guest) -> Facts:
    from factory.verify.seen import shown_password

    shown = shown_password(guest)
    return {"console_login": console_login(guest, user=guest.login.user, password=shown, timeout_s=30)}


def _now(check: str, says: str, spoil: str = "", **more: Any) -> Mutant:
    return Mutant(check=check, says=says, spoil=spoil, **more)


MUTANTS = (
    # -- access
    _now(
        "test_access.py::test_the_login_user_is_the_described_one",
        "led to the account 'other'",
        "sed -i 's/^{user}:/other:/' /etc/passwd",
    ),
    _now(
        "test_access.py::test_the_login_user_accepts_the_injected_key_and_no_other",
        "keys that nobody injected",
        "echo 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIstranger stranger' >>/home/{user}/.ssh/authorized_keys",
    ),
    _now(
        "test_access.py::test_no_other_account_accepts_a_key",
        "further accounts accept keys: .*/root/",
        "mkdir -p /root/.ssh; cp /home/{user}/.ssh/authorized_keys /root/.ssh/authorized_keys",
    ),
    _now(
        "test_access.py::test_the_login_user_has_sudo_without_a_password",
        "sudo refused",
        "rm -f /etc/sudoers.d/*; sed -i /NOPASSWD/d /etc/sudoers",
    ),
    _now(
        "test_access.py::test_nobody_else_has_sudo_without_a_password",
        "also given to: .*games",
        "echo 'games ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/games",
    ),
    _now("test_access.py::test_root_has_no_password", "root has a password", f"echo root:{PASSWORD} | chpasswd"),
    _now(
        "test_access.py::test_no_other_account_has_a_password",
        "further accounts have a password: .*games",
        f"echo games:{PASSWORD} | chpasswd",
    ),
    _now(
        "test_access.py::test_only_root_and_the_login_user_have_a_shell",
        "login shell: .*games",
        "usermod -s /bin/bash games",
    ),
    _now("test_access.py::test_root_is_the_only_account_with_uid_zero", "uid 0: .*toor", "useradd -o -u 0 toor"),
    # -- ssh
    _now(
        "test_ssh.py::test_sshd_is_configured_without_passwords",
        "would take passwords: .*passwordauthentication",
        _SSHD % "PasswordAuthentication yes",
    ),
    _now(
        "test_ssh.py::test_sshd_is_configured_without_root",
        "lets root in: PermitRootLogin without-password",
        _SSHD % "PermitRootLogin prohibit-password",
    ),
    _now(
        "test_ssh.py::test_sshd_offers_modern_ciphers_only", "old ciphers: .*aes128-cbc", _SSHD % "Ciphers aes128-cbc"
    ),
    _now(
        "test_ssh.py::test_sshd_offers_modern_macs_only",
        "message authentication: .*hmac-sha1",
        _SSHD % "MACs hmac-sha1",
    ),
    _now(
        "test_ssh.py::test_sshd_offers_modern_key_exchange_only",
        "old key exchanges: .*group14-sha1",
        _SSHD % "KexAlgorithms diffie-hellman-group14-sha1",
    ),
    _now(
        "test_ssh.py::test_host_keys_are_modern",
        "old host keys: .*RSA",
        "ssh-keygen -q -t rsa -b 2048 -N '' -f /etc/ssh/ssh_host_rsa_key",
    ),
    _now(
        "test_ssh.py::test_host_keys_are_read_by_root_only",
        "open to others: .*644 root",
        "chmod 0644 /etc/ssh/ssh_host_ed25519_key",
    ),
    _now(
        "test_ssh.py::test_ssh_audit_finds_no_fault",
        "ssh-audit finds faults: .*hmac-sha1",
        _SSHD % "MACs hmac-sha1,hmac-sha2-512-etm@openssh.com" + "systemctl restart ssh",
        probe=_audit,
    ),
    _now(
        "test_ssh.py::test_a_password_login_is_refused",
        "came in over ssh with a password",
        f"echo {{user}}:{PASSWORD} | chpasswd\n{_OPEN_SSHD}",
        probe=_password_login,
    ),
    _now(
        "test_ssh.py::test_a_root_login_is_refused",
        "root came in over ssh with the injected key",
        f"mkdir -p -m 0700 /root/.ssh; cp /home/{{user}}/.ssh/authorized_keys /root/.ssh/\n{_OPEN_SSHD}",
        probe=_root_login,
    ),
    # -- network
    _now(
        "test_network.py::test_only_the_described_ports_listen",
        r"further sockets listen to the network .*8080, 'python3'",
        _LISTEN % (8080, 8080),
    ),
    _now(
        "test_network.py::test_port_22_is_sshd",
        r"port 22 is held by \['python3'\]",
        "systemctl stop ssh.socket 2>/dev/null || true; systemctl stop ssh.service; " + _LISTEN % (22, 22),
    ),
    _now(
        "test_network.py::test_a_port_scan_finds_only_the_described_ports",
        r"found these open: \[8080\]",
        _LISTEN % (8080, 8080),
        probe=_scan,
    ),
    # -- kernel
    _now(
        "test_kernel.py::test_redirects_are_ignored",
        "redirects are in use: .*all.accept_redirects",
        "sysctl -q -w net.ipv4.conf.all.accept_redirects=1",
    ),
    _now(
        "test_kernel.py::test_source_routes_are_ignored",
        "source routes are followed: .*default",
        "sysctl -q -w net.ipv4.conf.default.accept_source_route=1",
    ),
    _now(
        "test_kernel.py::test_broadcast_icmp_is_ignored",
        "broadcast ICMP is answered",
        "sysctl -q -w net.ipv4.icmp_echo_ignore_broadcasts=0",
    ),
    _now(
        "test_kernel.py::test_spoofed_source_addresses_are_dropped",
        "reverse path is not checked: .*default.rp_filter",
        "sysctl -q -w net.ipv4.conf.default.rp_filter=0",
    ),
    _now(
        "test_kernel.py::test_the_guest_does_not_forward",
        "too obliging: .*ip_forward",
        "sysctl -q -w net.ipv4.ip_forward=1",
    ),
    _now(
        "test_kernel.py::test_kernel_pointers_are_hidden",
        "shows too much: .*kptr_restrict",
        "sysctl -q -w kernel.kptr_restrict=0",
    ),
    _now(
        "test_kernel.py::test_an_unprivileged_user_sees_no_kernel_address",
        "kallsyms shows kernel addresses",
        "sysctl -q -w kernel.kptr_restrict=0 kernel.perf_event_paranoid=0",
    ),
    _now(
        "test_kernel.py::test_memory_and_links_are_protected",
        "protections are off: .*protected_symlinks",
        "sysctl -q -w fs.protected_symlinks=0",
    ),
    _now("test_kernel.py::test_apparmor_is_on", "enforces no profile", "aa-teardown >/dev/null"),
    _now(
        "test_kernel.py::test_apparmor_profiles_load_at_boot",
        "apparmor.service is disabled",
        "systemctl -q disable apparmor",
    ),
    _now(
        "test_kernel.py::test_random_numbers_come_from_the_hypervisor_too",
        "random generator in use is 'none'",
        "echo none >/sys/class/misc/hw_random/rng_current",
    ),
    _now(
        "test_kernel.py::test_the_initrd_has_the_driver[xen-blkfront]",
        "the initrd lacks xen-blkfront",
        ": >/boot/initrd.img-$(uname -r)",
    ),
    _now("test_kernel.py::test_the_guest_agent_is_installed", "not installed", "rm /usr/sbin/qemu-ga"),
    _now(
        "test_kernel.py::test_the_guest_agent_answers",
        "guest agent does not answer",
        "systemctl stop qemu-guest-agent",
        probe=_agent,
    ),
    _now(
        "test_kernel.py::test_the_kernel_is_clean",
        "although 99.0-spoiled is installed",
        "touch /boot/vmlinuz-99.0-spoiled",
    ),
    # -- cloud-init
    _now(
        "test_cloud_init.py::test_cloud_init_finished_without_errors",
        "reports errors|is 'error'",
        'sed -i \'s/"errors": \\[\\]/"errors": ["spoiled"]/\' /run/cloud-init/status.json /run/cloud-init/result.json',
    ),
    _now(
        "test_cloud_init.py::test_the_data_source_is_looked_for[OpenStack]",
        "would not find OpenStack",
        "echo 'datasource_list: [NoCloud, None]' >/etc/cloud/cloud.cfg.d/99-spoiled.cfg",
    ),
    _now(
        "test_cloud_init.py::test_the_module_runs[growpart]",
        "would not run growpart",
        "sed -i '/^ *- growpart/d' /etc/cloud/cloud.cfg",
    ),
    _now("test_cloud_init.py::test_user_data_is_carried_out", "was not carried out", "rm /etc/factory-acceptance"),
    _now("test_cloud_init.py::test_the_host_name_comes_from_the_cloud", "calls itself 'spoiled'", "hostname spoiled"),
    _now(
        "test_cloud_init.py::test_the_instance_id_is_the_clouds",
        "already held instances: .*of-the-build",
        "mkdir /var/lib/cloud/instances/of-the-build",
    ),
    _now(
        "test_cloud_init.py::test_randomness_is_seeded_by_the_cloud",
        "did not put the cloud's random seed",
        "sed -i /seed_random/d /var/log/cloud-init.log",
    ),
    _now(
        "test_cloud_init.py::test_package_update_is_carried_out",
        "left no package lists",
        "rm -rf /var/lib/apt/lists; mkdir /var/lib/apt/lists",
    ),
    _now(
        "test_cloud_init.py::test_the_disk_is_left_to_cloud_init",
        "switched off",
        "touch /etc/cloud/cloud-init.disabled",
    ),
    # -- disk
    _now(
        "test_disk.py::test_the_image_fits_the_smallest_disk",
        "the image wants 5.00 GiB",
        facts=_setting("image", "virtual_size_bytes", value=5 << 30),
    ),
    _now(
        "test_disk.py::test_the_root_file_system_is_the_described_one",
        "root file system is ext4, not btrfs",
        facts=_setting("description", "disk", "root_fs", value="btrfs"),
    ),
    _now(
        "test_disk.py::test_the_root_file_system_fills_the_disk",
        "on a disk of 16.00 GiB",
        facts=_setting("disk_bytes", value=16 << 30),
    ),
    _now("test_disk.py::test_the_image_uses_little_space", "more than 2048 MiB", "fallocate -l 2G /var/lib/filled"),
    _now(
        "test_disk.py::test_the_root_disk_is_virtio",
        "/etc/fstab names the root /dev/vda",
        "sed -i -E 's,^[^# ]+( +/ ),/dev/vda1\\1,' /etc/fstab",
    ),
    _now("test_disk.py::test_there_is_no_swap", "brings swap", "echo '/swap none swap sw 0 0' >>/etc/fstab"),
    _now(
        "test_disk.py::test_there_is_one_disk_layout",
        "unexpected partitions",
        _THREE_PARTITIONS,
    ),
    # -- time
    _now(
        "test_time.py::test_chrony_knows_exactly_the_sites_servers",
        "configured with .*192.0.2.99",
        "echo 'server 192.0.2.99 iburst' >/etc/chrony/sources.d/spoiled.sources",
    ),
    _now(
        "test_time.py::test_the_clock_is_synchronised",
        "not synchronised",
        "rm -f /etc/chrony/sources.d/*; sed -i -E '/^(server|pool)/d' /etc/chrony/chrony.conf;"
        " systemctl restart chrony",
    ),
    _now(
        "test_time.py::test_the_clock_is_right", "clock is off by", "systemctl stop chrony; date -s '1 hour' >/dev/null"
    ),
    _now(
        "test_time.py::test_the_time_zone_is_utc",
        "time zone is CE",
        "ln -sf /usr/share/zoneinfo/Europe/Berlin /etc/localtime",
    ),
    _now("test_time.py::test_time_comes_back_after_a_reboot", "chrony is disabled", "systemctl -q disable chrony"),
    _now(
        "test_time.py::test_the_guest_registered_after_it_had_the_time",
        "before it had the time",
        f"touch -d '1 year ago' {_AUTH}",
    ),
    # -- console
    _now(
        "test_console.py::test_the_vga_console_shows_the_password",
        "shows no password",
        "printf '\\033[2J\\033[H' >/dev/tty1; sleep 0.5",
    ),
    _now(
        "test_console.py::test_the_password_opens_the_vga_console",
        "did not open the VGA console",
        f"echo {{user}}:{PASSWORD} | chpasswd",
        probe=_console,
    ),
    _now(
        "test_console.py::test_only_root_can_read_the_password",
        "may read the console password: .*644 root /etc/spoiled",
        _KEPT + 'printf %s "$password" >/etc/spoiled; chmod 0644 /etc/spoiled',
    ),
    _now(
        "test_console.py::test_no_log_holds_the_password",
        "console password is written in .*journal",
        _KEPT + 'printf "%s\\n" "$password" | systemd-cat -t spoiled; journalctl --sync',
    ),
    _now(
        "test_console.py::test_the_serial_console_does_not_show_the_password",
        "in the serial console's log",
        _KEPT + 'printf "%s\\r\\n" "$password" >/dev/ttyS0; sleep 0.5',
    ),
    _now(
        "test_console.py::test_another_user_does_not_find_the_password",
        "reads the console password in .*/var/tmp/spoiled",
        _KEPT + 'printf %s "$password" >/var/tmp/spoiled; chmod 0644 /var/tmp/spoiled',
    ),
    _now(
        "test_console.py::test_there_is_no_password_when_switched_off",
        "although the description switches it off",
        facts=_setting("description", "console_password", value=False),
    ),
    _now(
        "test_console.py::test_the_serial_console_offers_a_login",
        "no login prompt on the serial console",
        "systemctl stop serial-getty@ttyS0",
    ),
    _now("test_console.py::test_the_vga_console_offers_a_login", "on the VGA console", "systemctl stop getty@tty1"),
    # -- files
    _now(
        "test_files.py::test_every_file_has_an_owner", r"nobody accounts for:\s+/usr/bin/stray", "touch /usr/bin/stray"
    ),
    _now(
        "test_files.py::test_packaged_files_are_unchanged",
        "were changed: .*/usr/bin/ldd",
        "echo '# spoiled' >>/usr/bin/ldd",
    ),
    _now(
        "test_files.py::test_nobody_can_write_system_files",
        "everybody can write: .*/usr/local/bin",
        "chmod o+w /usr/local/bin",
    ),
    _now(
        "test_files.py::test_set_uid_programs_are_the_known_ones",
        "unexpected set-uid .*/usr/bin/env",
        "chmod u+s /usr/bin/env",
    ),
    # -- first boot
    _now(
        "test_first_boot.py::test_nothing_is_left_from_the_build",
        "left behind: .*/var/log/build.log",
        "systemctl stop chrony; now=$(date +%s); date -s @{epoch} >/dev/null; echo spoiled >/var/log/build.log; sync;"
        " date -s @$now >/dev/null",
    ),
    _now("test_first_boot.py::test_there_is_no_shell_history", "histories: .*/root/", "touch /root/.bash_history"),
    _now(
        "test_first_boot.py::test_the_journal_begins_at_the_first_boot",
        "journal of another machine: .*0123456789abcdef",
        "mkdir /var/log/journal/0123456789abcdef0123456789abcdef",
    ),
    _now(
        "test_first_boot.py::test_the_boot_had_no_failed_service",
        "services that failed: .*spoiled",
        "systemd-run -q --wait --unit=spoiled false || true",
    ),
    _now(
        "test_first_boot.py::test_the_system_is_running",
        "not finished",
        "systemd-run -q --no-block -p Type=oneshot --unit=spoiled sleep 600; sleep 0.5",
    ),
    # -- packages
    _now(
        "test_packages.py::test_the_packages_are_those_of_the_build",
        "did not install: .*spoiled 1 all",
        (_DPKG % "spoiled") + "Architecture: all\\nVersion: 1\\nDescription: x\\n\\n' >>/var/lib/dpkg/status",
    ),
    _now(
        "test_packages.py::test_every_package_is_whole",
        "not wholly installed: .*spoiled",
        (_DPKG.replace("ok installed", "ok half-configured") % "spoiled")
        + "Architecture: all\\nVersion: 1\\nDescription: x\\n\\n' >>/var/lib/dpkg/status",
    ),
    _now(
        "test_packages.py::test_there_is_no_compiler",
        "build tools: .*/usr/local/bin/gcc",
        "ln -s /bin/true /usr/local/bin/gcc",
    ),
    _now(
        "test_packages.py::test_there_are_no_build_packages",
        r"only a build needs: \['make'\]",
        (_DPKG % "make") + "Architecture: all\\nVersion: 1\\nDescription: x\\n\\n' >>/var/lib/dpkg/status",
    ),
    _now("test_packages.py::test_nothing_is_pending", "pending: .*reboot-required", "touch /run/reboot-required"),
    _now(
        "test_packages.py::test_there_are_no_automatic_updates",
        "would start: .*apt-daily.timer",
        "systemctl -q enable apt-daily.timer",
    ),
    _now(
        "test_packages.py::test_the_repositories_are_the_described_ones",
        "also come from .*elsewhere.example",
        _REPOSITORY % "[signed-by=/usr/share/keyrings/debian-archive-keyring.pgp]",
    ),
    _now(
        "test_packages.py::test_the_described_repositories_are_there",
        "does not know the repositories",
        f"rm -rf {_SOURCES}; mkdir /etc/apt/sources.list.d",
    ),
    _now("test_packages.py::test_signatures_are_never_skipped", "without a signature", _REPOSITORY % "[trusted=yes]"),
    _now(
        "test_packages.py::test_the_repositories_keys_outlive_the_image",
        "expire before the image does",
        "for ring in $(grep -h -s -r -i '^signed-by:' /etc/apt/sources.list.d/*.sources | cut -d: -f2 | sort -u); do"
        " echo {short_lived_key} | base64 -d >$ring; done",
    ),
    _now(
        "test_packages.py::test_the_package_cache_is_empty",
        "downloaded packages are left",
        "touch /var/cache/apt/archives/spoiled_1_all.deb",
    ),
    _now(
        "test_packages.py::test_the_guest_has_no_build_traces",
        "still points to the build's servers",
        "echo 'Acquire::http::Proxy \"http://127.0.0.1:3142\";' >/etc/apt/apt.conf.d/99spoiled",
    ),
    _now(
        "test_packages.py::test_the_build_list_names_real_packages",
        "names only 0 packages",
        facts=_setting("packages", value=[]),
    ),
    # -- registration
    _now(
        "test_registration.py::test_the_guest_knows_exactly_our_region_servers",
        "would register elsewhere: .*203.0.113.9",
        "sed -i -E 's/^regionsrv.*/regionsrv = 203.0.113.9/' /etc/regionserverclnt.cfg",
    ),
    _now(
        "test_registration.py::test_the_client_is_configured_as_the_site_says",
        r"differ from the site's: .*\[server\] api",
        "sed -i -E 's/^api.*/api = spoiled/' /etc/regionserverclnt.cfg",
    ),
    _now(
        "test_registration.py::test_each_region_server_has_its_certificate",
        "not the site's",
        "cd {certificates}; for file in *.pem; do cat /etc/ssl/certs/ca-certificates.crt >$file; done",
    ),
    _now(
        "test_registration.py::test_the_certificates_are_writable_by_root_only",
        "may change where the guest registers",
        "chmod 0666 /etc/regionserverclnt.cfg",
    ),
    _now(
        "test_registration.py::test_cloud_init_leaves_the_hosts_file_alone",
        "rewrites /etc/hosts",
        "echo 'manage_etc_hosts: true' >/etc/cloud/cloud.cfg.d/99-spoiled.cfg",
    ),
    _now(
        "test_registration.py::test_the_guest_registers_by_itself",
        "guestregister.service is disabled",
        "systemctl -q disable guestregister",
    ),
    _now(
        "test_registration.py::test_the_update_server_knows_the_guest",
        "no update server holds a registration",
        facts=_setting("registrations", value=[]),
    ),
    _now(
        "test_registration.py::test_the_credentials_are_roots_alone",
        "may read the credentials: .*644 root",
        f"chmod 0644 {_AUTH}",
    ),
    _now(
        "test_registration.py::test_the_update_servers_authority_is_trusted",
        "does not trust",
        ": >/etc/ssl/certs/ca-certificates.crt",
    ),
    _now(
        "test_registration.py::test_apt_takes_packages_from_the_update_server",
        "no update server",
        "rm /etc/apt/sources.list.d/guestregister.sources",
    ),
    _now(
        "test_registration.py::test_the_package_lists_come_signed",
        "apt-get update complains: ",
        "for ring in $(grep -h -s -r -i '^signed-by:' /etc/apt/sources.list.d/*.sources | cut -d: -f2 | sort -u); do"
        " echo {short_lived_key} | base64 -d >$ring; done; rm -rf /var/lib/apt/lists/*",
    ),
    _now(
        "test_registration.py::test_a_package_can_be_installed",
        "could not be installed",
        # which of the update servers the guest chose is chance
        "sed -i /factory.invalid/d /etc/hosts; echo '127.0.0.9 {update_servers}' >>/etc/hosts",
    ),
    _now(
        "test_registration.py::test_without_credentials_there_is_nothing",
        "succeeds without credentials",
        "rm /etc/apt/sources.list.d/*.sources",
    ),
    _now(
        "test_registration.py::test_the_registration_log_holds_no_credentials",
        "the log of the registration holds the password",
        f"sed -n 's/.* password //p' {_AUTH} >>/var/log/cloudregister",
    ),
    # -- faults that show at a reboot: one boot for all of them
    Mutant(
        at="reboot",
        check="test_first_boot.py::test_a_reboot_keeps_the_host_keys",
        says="a reboot changed the host keys",
        spoil="rm /etc/ssh/ssh_host_ed25519_key*; ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key",
    ),
    Mutant(
        at="reboot",
        check="test_first_boot.py::test_a_reboot_keeps_the_machine_id",
        says="a reboot changed the machine-id",
        spoil="systemd-id128 new >/etc/machine-id",
    ),
    Mutant(
        at="reboot",
        check="test_registration.py::test_it_stays_registered_at_a_reboot",
        says="a reboot changed the registration",
        spoil="rm -rf /etc/guestregister/credentials /var/lib/guestregister /etc/apt/auth.conf.d",
    ),
    # -- faults that show when the disk becomes another instance: one boot for all of them
    Mutant(
        at="other",
        check="test_first_boot.py::test_the_machine_id_is_made_here",
        says="have the same machine-id",
        spoil="systemctl -q disable new-machine-id",
    ),
    Mutant(
        at="other",
        check="test_first_boot.py::test_a_new_instance_makes_a_new_machine_id",
        says="kept the machine-id",
    ),
    Mutant(
        at="other",
        check="test_first_boot.py::test_the_host_keys_are_made_here",
        says="share host keys",
        spoil="echo 'ssh_deletekeys: false' >/etc/cloud/cloud.cfg.d/99-spoiled-keys.cfg",
    ),
    Mutant(
        at="other",
        check="test_first_boot.py::test_a_new_instance_makes_new_host_keys",
        says="kept host keys",
    ),
    Mutant(
        at="other",
        check="test_first_boot.py::test_the_random_seed_is_made_here",
        says="from the same random seed",
        spoil="systemctl -q mask systemd-random-seed.service",
    ),
    Mutant(
        at="other",
        check="test_first_boot.py::test_the_console_password_is_made_here",
        says="the same console password",
        # the "random" characters come from a file of the image
        spoil=_KEPT + 'printf %s "$password" >/etc/spoiled-password;'
        " sed -i 's#</dev/urandom#</etc/spoiled-password#' /usr/lib/image-factory/console-password",
    ),
    Mutant(
        at="other",
        check="test_console.py::test_a_user_data_password_opens_the_console",
        says="does not open the VGA console",
        spoil="sed -i -E '/^ *- *set[_-]passwords/d' /etc/cloud/cloud.cfg",
    ),
    Mutant(
        at="other",
        check="test_console.py::test_a_user_data_password_replaces_the_shown_one",
        says="shows a random password although",
    ),
    Mutant(
        at="other",
        check="test_console.py::test_a_user_data_password_does_not_open_ssh",
        says="sshd offers .*password|opens ssh",
        spoil=_OPEN_SSHD,
    ),
    Mutant(
        at="other",
        check="test_disk.py::test_the_image_grows_on_a_second_disk_size",
        says="root file system has .* on a disk of 9",
        spoil="echo 'growpart: {{mode: \"off\"}}' >/etc/cloud/cloud.cfg.d/99-spoiled-growth.cfg",
    ),
    Mutant(
        at="other",
        check="test_registration.py::test_who_chooses_so_is_not_registered",
        says="against its owner's choice",
        spoil='sed -i \'s/== "byos"/== "never"/\' /usr/sbin/guestregister',
    ),
    Mutant(
        at="other",
        check="test_registration.py::test_who_chooses_so_has_no_site_mirrors",
        says="still reads the site's repositories",
    ),
)
