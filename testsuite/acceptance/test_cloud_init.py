# SPDX-License-Identifier: Apache-2.0
"""cloud-init: the data sources, and what it did with what the cloud said."""

from __future__ import annotations

import json

import pytest

STATUS = "cloud-init status --format json || true"
# The image's own files only: at a boot ds-identify narrows the list to the source it found, in /run.
CONFIG = (
    "python3 -c 'import json; from cloudinit import util;"
    ' own = util.read_conf_with_confd("/etc/cloud/cloud.cfg");'
    " print(json.dumps(util.mergemanydict([own, util.get_builtin_cfg()])))'"
)
WANTED_SOURCES = ("OpenStack", "ConfigDrive", "NoCloud")
WANTED_MODULES = ("growpart", "resizefs", "seed_random", "package_update_upgrade_install", "ssh", "set_passwords")


def _config(guest):
    return json.loads(guest.root(CONFIG))


def test_cloud_init_finished_without_errors(guest):
    """cloud-init got to its end and reports no error."""
    found = json.loads(guest.root(STATUS))
    assert found.get("status") == "done", f"cloud-init is {found.get('status')!r}: {found.get('errors')}"
    assert not found.get("errors"), f"cloud-init reports errors: {found.get('errors')}"


@pytest.mark.parametrize("source", WANTED_SOURCES)
def test_the_data_source_is_looked_for(guest, source):
    """cloud-init looks for this data source."""
    found = _config(guest).get("datasource_list", [])
    assert source in found, f"cloud-init would not find {source}; it looks for {found}"


@pytest.mark.parametrize("module", WANTED_MODULES)
def test_the_module_runs(guest, module):
    """cloud-init runs this module at some stage of the boot."""
    config = _config(guest)
    entries = [
        entry if isinstance(entry, str) else entry[0]
        for stage in ("cloud_init_modules", "cloud_config_modules", "cloud_final_modules")
        for entry in config.get(stage, [])
    ]
    names = {entry.replace("-", "_") for entry in entries}
    assert module in names, f"cloud-init would not run {module}"


def test_user_data_is_carried_out(guest, facts):
    """What the customer's user-data asks for is done: the file that this guest's user-data names is there."""
    if not facts.seed.marker:
        pytest.fail("the guest was started without user-data")
    found = guest.root(f"cat {facts.seed.marker.path} 2>/dev/null || true").strip()
    assert found == facts.seed.marker.content, f"the user-data was not carried out: {facts.seed.marker.path} is missing"


def test_the_host_name_comes_from_the_cloud(guest, facts):
    """The guest's host name is the one the cloud gave it."""
    found = guest.user("hostname").strip()
    assert found == facts.seed.hostname, f"the guest calls itself {found!r}, not {facts.seed.hostname!r}"


def test_the_instance_id_is_the_clouds(guest, facts):
    """cloud-init took the instance id the cloud gave, and knows no instance but this one."""
    found = guest.root("cat /var/lib/cloud/data/instance-id; ls /var/lib/cloud/instances").split()
    assert found[0] == facts.seed.instance_id, f"cloud-init thinks this is {found[0]!r}, not {facts.seed.instance_id!r}"
    assert found[1:] == [facts.seed.instance_id], f"the image already held instances: {found[1:]}"


def test_randomness_is_seeded_by_the_cloud(guest, facts):
    """The random seed that the cloud hands over went into the kernel's pool."""
    log = guest.root("cat /var/log/cloud-init.log")
    told = [line for line in log.splitlines() if "seed_random" in line and "bytes" in line and "random" in line]
    assert told, "cloud-init did not put the cloud's random seed into the pool"


@pytest.mark.needs("region")
def test_package_update_is_carried_out(guest, facts):
    """A package_update in the user-data refreshes the package lists."""
    if facts.description.registration.mode == "none" and not facts.seed.package_update:
        pytest.skip("registration mode is 'none' and the sandbox has no update repositories for this image")
    log = guest.root("cat /var/log/cloud-init.log")
    assert "package_update" in log, "cloud-init did not look at package_update"
    lists = guest.root("ls /var/lib/apt/lists | grep -c -E '(InRelease|Release|Packages)' || true").strip()
    assert int(lists) > 0, "package_update left no package lists: the update was not carried out"


def test_the_disk_is_left_to_cloud_init(guest):
    """cloud-init is not switched off by a file or by the kernel command line."""
    found = guest.root(
        "ls /etc/cloud/cloud-init.disabled 2>/dev/null || true; grep -o 'cloud-init=disabled' /proc/cmdline || true"
    )
    assert not found.strip(), f"cloud-init is switched off: {found.strip()}"
