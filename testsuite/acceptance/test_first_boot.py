# SPDX-License-Identifier: Apache-2.0
"""The first boot: nothing unique is in the image, and each instance makes its own.

Some of this can be seen only by booting again: the same bytes once more (``other``), the same disk after a reboot
(``reboot``), the same disk as another instance (``new_instance``). The harness made those boots and noted what it saw.
"""

from __future__ import annotations

import pytest

OLD_FILES = r"""
find /var/log /var/cache /var/tmp /tmp /root /home /var/lib/cloud /var/lib/dhcp /var/lib/chrony /var/lib/systemd \
  /etc/ssh /var/crash /var/mail /var/spool -xdev -type f -size +0 -printf '%C@ %p\n' 2>/dev/null || true
"""
ALLOWED_OLD = ("/root/.bashrc", "/root/.profile", "/etc/ssh/ssh_config", "/etc/ssh/sshd_config", "/etc/ssh/moduli")
ALLOWED_OLD_FOLDERS = (
    "/etc/ssh/ssh_config.d/",
    "/etc/ssh/sshd_config.d/",
    "/var/cache/debconf/",
    "/var/lib/systemd/catalog/",
    "/var/lib/systemd/deb-systemd-helper-",
    "/var/lib/systemd/deb-systemd-user-helper-",
)


@pytest.mark.later
@pytest.mark.needs("other")
def test_the_machine_id_is_made_here(guest, facts):
    """The guest has a machine-id of its own: 32 hex digits, and not that of another guest of the same image."""
    found = guest.root("cat /etc/machine-id").strip()
    assert len(found) == 32, f"/etc/machine-id holds {found!r}"
    if facts.other is None:
        pytest.fail("the image was not booted a second time, to compare")
    assert found != facts.other.machine_id, "two guests of this image have the same machine-id: it is in the image"


@pytest.mark.later
@pytest.mark.needs("other")
def test_the_host_keys_are_made_here(guest, facts):
    """The guest has ssh host keys of its own, and shares none with another guest of the same image."""
    lines = guest.root("for key in /etc/ssh/ssh_host_*_key.pub; do ssh-keygen -lf $key; done").splitlines()
    found = {line.split()[1] for line in lines}
    assert found, "the guest has no host keys"
    if facts.other is None:
        pytest.fail("the image was not booted a second time, to compare")
    assert not found & set(facts.other.host_keys), "two guests of this image share host keys: they are in the image"


@pytest.mark.later
@pytest.mark.needs("other")
def test_the_random_seed_is_made_here(guest, facts):
    """The seed of the random number generator is not in the image."""
    found = guest.root("sha256sum /var/lib/systemd/random-seed 2>/dev/null | cut -d' ' -f1 || true").strip()
    if facts.other is None:
        pytest.fail("the image was not booted a second time, to compare")
    assert not found or found != facts.other.random_seed, "two guests of this image start from the same random seed"


@pytest.mark.later
@pytest.mark.needs("other")
def test_the_console_password_is_made_here(facts, description):
    """Each instance of the image makes a console password of its own."""
    if not description.console_password:
        pytest.skip("the description says console_password = false")
    if facts.reboot is None or facts.new_instance is None:
        pytest.fail("the image was not booted as another instance, to compare")
    first, second = facts.reboot.before.password_sha256, facts.new_instance.after.password_sha256
    assert first, "the console of the first guest shows no password"
    assert first != second, "two instances of this image have the same console password: it is in the image"


def test_nothing_is_left_from_the_build(guest, facts):
    """No log, cache, key, crash report or shell history of the build is in the image."""
    if not facts.epoch:
        pytest.skip("this image does not say when it was built: it came without the factory's own records")
    rows = [line.split(" ", 1) for line in guest.root(OLD_FILES).splitlines()]
    old = [path for stamp, path in rows if abs(float(stamp) - facts.epoch) < 2]
    left = [path for path in old if path not in ALLOWED_OLD and not path.startswith((*ALLOWED_OLD_FOLDERS, "/home/"))]
    assert not left, f"files that the build left behind: {left[:20]}"


def test_there_is_no_shell_history(guest):
    """Nobody's shell history is in the image."""
    found = guest.root("ls /root/.*_history /home/*/.*_history 2>/dev/null || true").split()
    assert not found, f"shell histories: {found}"


def test_the_journal_begins_at_the_first_boot(guest):
    """The journal knows this machine and this boot only."""
    boots = guest.root("journalctl --list-boots --no-pager -q | grep -c . || true").strip()
    others = guest.root('ls /var/log/journal 2>/dev/null | grep -v -x "$(cat /etc/machine-id)" || true').split()
    assert not others, f"the image holds the journal of another machine: {others}"
    assert boots in {"0", "1"}, f"the journal knows {boots} boots"


def test_the_boot_had_no_failed_service(guest):
    """Every service that the image starts came up."""
    found = guest.root("systemctl --failed --plain --no-legend | cut -d' ' -f1").split()
    assert not found, f"services that failed: {found}"


def test_the_system_is_running(guest):
    """systemd finished the boot and has no job left."""
    found = guest.root("systemctl is-system-running || true").strip()
    jobs = guest.root("systemctl list-jobs --no-legend || true").strip()
    assert found in {"running", "degraded"}, f"the boot is not finished: the system is {found}"
    assert not jobs, f"the boot is not finished: {jobs}"


# -- at later boots ---------------------------------------------------------------------------------------------------


@pytest.fixture
def reboot(facts):
    """What was seen before and after a reboot of the same instance."""
    if facts.reboot is None:
        pytest.fail("the guest was not rebooted")
    return facts.reboot


@pytest.fixture
def new_instance(facts):
    """What was seen before and after the same disk was started as another instance."""
    if facts.new_instance is None:
        pytest.fail("the disk was not started as another instance")
    return facts.new_instance


@pytest.mark.later
def test_a_reboot_keeps_the_host_keys(reboot):
    """A reboot keeps the ssh host keys."""
    assert reboot.after.boot_id != reboot.before.boot_id, "the guest did not really reboot"
    assert sorted(reboot.after.host_keys) == sorted(reboot.before.host_keys), "a reboot changed the host keys"


@pytest.mark.later
def test_a_reboot_keeps_the_machine_id(reboot):
    """A reboot keeps the machine-id."""
    assert reboot.after.machine_id == reboot.before.machine_id, "a reboot changed the machine-id"


@pytest.mark.later
@pytest.mark.needs("other")
def test_a_new_instance_makes_new_host_keys(new_instance):
    """The same disk under a new instance id makes new ssh host keys."""
    shared = set(new_instance.after.host_keys) & set(new_instance.before.host_keys)
    assert not shared, f"an instance with a new id kept host keys: {sorted(shared)}"


@pytest.mark.later
@pytest.mark.needs("other")
def test_a_new_instance_makes_a_new_machine_id(new_instance):
    """The same disk under a new instance id makes a new machine-id."""
    assert new_instance.after.machine_id != new_instance.before.machine_id, (
        "an instance with a new id kept the machine-id"
    )
