# SPDX-License-Identifier: Apache-2.0
"""Which region of an OpenStack cloud this instance is in: the plugin that ``instanceArgs = openstackregion`` names.

SUSE's registercloudguest calls it as ``cloudregister.openstackregion``, guestregister as
``/usr/lib/image-factory/openstackregion.py``. The region is the instance's property ``region`` where its owner or the
cloud set one (``meta.region``), else its availability zone without the last part: ``eu-west-1a`` is in ``eu-west-1``,
``eu-de-01`` and ``eu-de-b`` are in ``eu-de``. ``nova`` is Nova's own default for a zone and tells nothing.

Standard library only, Python 3.6 and later.
"""

import errno
import http.client
import json
import os
import re
import socket
import subprocess
import time

ZONE_PART = re.compile(r"(?<=[0-9])[A-Za-z]\Z|-([A-Za-z]|[0-9]+)\Z")
REGION = re.compile(r"[A-Za-z0-9._-]{1,128}\Z")
NO_ZONE = "nova"


# -- reading OpenStack's documents: the same text in instance-data and openstackregion.py, a test holds it -------------

SERVICE = "169.254.169.254"
DRIVES = ("/dev/disk/by-label/config-2", "/dev/disk/by-label/CONFIG-2")
DRIVE_VARIABLE = "IMAGE_FACTORY_CONFIG_DRIVE"
CLOUD_INIT = "/run/cloud-init/instance-data.json"
ELSEWHERE = ("nocloud", "none", "lxd")
MAX_BYTES = 1 << 20
TIMEOUT_S = 5.0
TRIES = 3
READ_DRIVE = 'mount -o ro,nosuid,nodev,noexec "$0" /mnt && head -c "$2" "/mnt/openstack/latest/$1"'


def parsed(content):
    """The JSON object in these bytes, or an empty one."""
    try:
        found = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and len(content) <= MAX_BYTES else {}


def cloud_init(root="/"):
    """What cloud-init noted of this instance, or an empty object."""
    try:
        with open(os.path.join(root, CLOUD_INIT.lstrip("/")), "rb") as file:
            found = parsed(file.read(MAX_BYTES + 1))
    except OSError:
        return {}
    return found.get("v1") if isinstance(found.get("v1"), dict) else {}


def from_service(name):
    """A document of the metadata service as bytes; empty when there is none."""
    for attempt in range(TRIES):
        connection = http.client.HTTPConnection(SERVICE, 80, timeout=TIMEOUT_S)
        try:
            connection.request("GET", "/openstack/latest/" + name)
            reply = connection.getresponse()
            content = reply.read(MAX_BYTES + 1)
            if reply.status == 200:
                return content
            if reply.status < 500 and reply.status != 429:
                return b""
        except (ConnectionRefusedError, socket.timeout):
            return b""
        except OSError as wrong:
            if wrong.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
                return b""
        except http.client.HTTPException:
            pass
        finally:
            connection.close()
        if attempt + 1 < TRIES:
            time.sleep(1)
    return b""


def from_drive(name):
    """A document of the config drive as bytes; empty when there is none.

    The drive is mounted in a mount namespace of its own, so that nothing stays mounted however this ends.
    """
    for device in [os.environ[DRIVE_VARIABLE]] if os.environ.get(DRIVE_VARIABLE) else DRIVES:
        if not os.path.exists(device):
            continue
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", READ_DRIVE]
        try:
            done = subprocess.run(
                command + [device, name, str(MAX_BYTES + 1)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=30,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0 and done.stdout:
            return done.stdout
    return b""


def source(root="/"):
    """What reads OpenStack's documents here: the metadata service, else the config drive, else None."""
    if os.environ.get(DRIVE_VARIABLE):
        return from_drive
    if cloud_init(root).get("platform") in ELSEWHERE:
        return None
    for read in (from_service, from_drive):
        if parsed(read("meta_data.json")):
            return read
    return None


# -- the end of what is the same --------------------------------------------------------------------------------------


def region_of(metadata):
    """The region that an instance's metadata tells, or an empty text."""
    meta = metadata.get("meta")
    told = meta.get("region") if isinstance(meta, dict) else None
    zone = metadata.get("availability_zone")
    if not isinstance(told, str) or not told.strip():
        told = ZONE_PART.sub("", zone.strip()) if isinstance(zone, str) and zone.strip() != NO_ZONE else ""
    return told.strip() if REGION.match(told.strip()) else ""


def generateRegionSrvArgs():
    """``regionHint=REGION`` for the region server's address, or an empty text when nobody tells the region."""
    read = source()
    region = region_of(parsed(read("meta_data.json"))) if read else ""
    return "regionHint=" + region if region else ""
