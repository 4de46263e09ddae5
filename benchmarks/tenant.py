# SPDX-License-Identifier: Apache-2.0
"""What the sandbox in a tenant costs over a server that is made by hand: to the end of its boot, and logged in.

``python benchmarks/tenant.py DIR IMAGE``: DIR holds a cloud that ``python -m testsuite.cloud up DIR`` has brought up,
IMAGE is a qcow2 with cloud-init and the login user ``linux``. Wanted: less than 10 % more than by hand, where the copy
is uploaded, one key and one server are made, and ssh is tried until ``cloud-init status --wait`` answers.
"""

from __future__ import annotations

import base64
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the cloud of the tests

from factory.model import Tenant
from factory.sandbox.openstack import session
from factory.sandbox.seed import Key, fresh_key
from factory.system.clock import now
from factory.system.openstack import connect
from testsuite.cloud import ComputeCloud, attached

ROUNDS = int(os.environ.get("BENCHMARK_ROUNDS", "2"))
BOOT_S = 1800.0
USER_DATA = "#cloud-config\n{}\n"
ALONE = {"factory_registration": "byos"}


def ours_s(cloud: ComputeCloud, image: Path, folder: Path) -> float:
    key = fresh_key(folder)
    tenant = Tenant(cloud=cloud.sandbox, flavor=cloud.flavors.small, network=cloud.network)
    started = time.monotonic()
    with session(tenant, now=now(), say=print) as used:
        copy = used.copy(image, properties={}, min_disk_gib=4)
        with used.boot(
            copy,
            workdir=folder,
            key=key,
            user="linux",
            user_data=USER_DATA,
            console_log=folder / "console.log",
            timeout_s=BOOT_S,
            min_disk_gib=4,
            metadata=ALONE,
        ) as guest:
            guest.ssh("true")
            return time.monotonic() - started


def by_hand_s(cloud: ComputeCloud, image: Path, folder: Path) -> float:
    key = fresh_key(folder)
    member = connect(cloud.sandbox, clouds_yaml=cloud.clouds_yaml, direct=True)
    started = time.monotonic()
    copy = member.image.create_image(
        "by-hand", filename=str(image), disk_format="qcow2", container_format="bare", visibility="private"
    )
    pair = member.compute.create_keypair(name="by-hand", public_key=key.public)
    server = member.compute.create_server(
        name="by-hand",
        image_id=copy.id,
        flavor_id=member.compute.find_flavor(cloud.flavors.small, ignore_missing=False).id,
        networks=[{"uuid": member.network.find_network(cloud.network, ignore_missing=False).id}],
        key_name=pair.name,
        user_data=base64.b64encode(USER_DATA.encode()).decode(),
        metadata=ALONE,
    )
    try:
        server = member.compute.wait_for_server(server, wait=600)
        address = next(one["addr"] for group in server.addresses.values() for one in group)
        while not _booted(address, key):
            time.sleep(1)
        return time.monotonic() - started
    finally:
        member.compute.delete_server(server)
        member.compute.wait_for_delete(server, wait=120)
        member.compute.delete_keypair(pair)
        member.image.delete_image(copy)


def _booted(address: str, key: Key) -> bool:
    options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "BatchMode=yes", "ConnectTimeout=5"]
    argv = ["ssh", "-q", "-i", str(key.private), *(word for one in options for word in ("-o", one))]
    return subprocess.run([*argv, f"linux@{address}", "cloud-init status --wait"], check=False).returncode in {0, 2}


def measure(cloud: ComputeCloud, image: Path) -> list[tuple[str, str, str]]:
    """Rows of a table: what, measured, wanted."""
    seconds: dict[str, list[float]] = {"ours": [], "by hand": []}
    for number in range(ROUNDS):
        ways = {"ours": ours_s, "by hand": by_hand_s}
        for name in sorted(ways, reverse=number % 2 == 1):
            with tempfile.TemporaryDirectory(prefix="factory-bench-") as folder:
                seconds[name].append(ways[name](cloud, image, Path(folder)))
    ours, hand = (statistics.median(seconds[name]) for name in ("ours", "by hand"))
    return [
        ("a server by hand, logged in after its boot", f"{hand:.0f} s", ""),
        ("the sandbox in a tenant / by hand", f"{ours / hand:.2f}", "under 1.10"),
    ]


if __name__ == "__main__":
    held = attached(Path(sys.argv[1]).absolute())
    os.environ["OS_CLIENT_CONFIG_FILE"] = str(held.clouds_yaml)
    os.environ["no_proxy"] = "*"
    for row in measure(held, Path(sys.argv[2])):
        print(" | ".join(row))
