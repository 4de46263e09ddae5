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
import struct
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
TIMEOUT_S = 3.0
TRIES = 3


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

    The drive is read here and not mounted: nothing can stay mounted, and kernels without iso9660 or vfat do as well.
    """
    for device in [os.environ[DRIVE_VARIABLE]] if os.environ.get(DRIVE_VARIABLE) else DRIVES:
        try:
            with open(device, "rb", buffering=0) as drive:
                for read in (iso_file, fat_file):
                    found = read(Blocks(drive.fileno()), ["openstack", "latest", name])
                    if found:
                        return found
        except (OSError, ValueError, struct.error):
            continue
    return b""


class Blocks:
    """The bytes of a device; what should be there and is not is a ValueError."""

    def __init__(self, descriptor):
        self.descriptor = descriptor

    def at(self, place, size):
        found = os.pread(self.descriptor, size, place)
        if len(found) < size:
            raise ValueError("the device ends too soon")
        return found

    def number(self, form, place):
        return struct.unpack(form, self.at(place, struct.calcsize(form)))[0]


def iso_file(blocks, path):
    """A file's content on a CD (ECMA-119, with Joliet's names where there are some); None when this is no CD."""
    record, code = None, "ascii"
    for sector in range(16, 32):
        block = blocks.at(sector * 2048, 2048)
        if block[1:6] != b"CD001" or block[0] == 255:
            break
        if block[0] == 1 and not record:
            record = block[156:190]
        if block[0] == 2 and block[88:91] in (b"%/@", b"%/C", b"%/E"):
            record, code = block[156:190], "utf-16-be"
    for name in path if record else ():
        record = iso_record(iso_content(blocks, record), name, code)
        if not record:
            return b""
    return iso_content(blocks, record) if record else None


def iso_content(blocks, record):
    start, size = struct.unpack_from("<I", record, 2)[0], struct.unpack_from("<I", record, 10)[0]
    return blocks.at(start * 2048, min(size, MAX_BYTES + 1))


def iso_record(folder, wanted, code):
    place = 0
    while place < len(folder):
        length = folder[place]
        if not length:  # records do not cross sectors
            place = (place // 2048 + 1) * 2048
            continue
        record = folder[place : place + length]
        place += length
        if len(record) > 33:
            name = record[33 : 33 + record[32]].decode(code, "replace")
            if name.split(";")[0].rstrip(".").lower() == wanted:
                return record
    return None


def fat_file(blocks, path):
    """A file's content on a FAT file system with long names (Microsoft's "FAT: General Overview"); None on others."""
    if blocks.at(510, 2) != b"\x55\xaa":
        return None
    sector, per_cluster, reserved, fats, entries, small = struct.unpack("<HBHBHH", blocks.at(11, 10))
    if sector not in (512, 1024, 2048, 4096) or not per_cluster or not fats:
        return None
    root = (reserved + fats * (blocks.number("<H", 22) or blocks.number("<I", 36))) * sector
    start, size = root + (entries * 32 + sector - 1) // sector * sector, per_cluster * sector
    clusters = ((small or blocks.number("<I", 32)) * sector - start) // size
    bits = 12 if clusters < 4085 else 16 if clusters < 65525 else 32

    def content(cluster, limit):
        found = b""
        while 2 <= cluster < clusters + 2 and len(found) < limit:
            found += blocks.at(start + (cluster - 2) * size, size)
            place = reserved * sector + cluster * bits // 8
            after = blocks.number("<I" if bits == 32 else "<H", place)
            if bits == 12:
                after >>= 4 * (cluster % 2)
            cluster = after & (0x0FFFFFFF if bits == 32 else (1 << bits) - 1)
        return found[:limit]

    folder = blocks.at(root, entries * 32) if entries else content(blocks.number("<I", 44), MAX_BYTES)
    found = b""
    for name in path:
        entry = fat_entry(folder, name)
        if not entry:
            return b""
        first = struct.unpack_from("<H", entry, 26)[0] | (
            struct.unpack_from("<H", entry, 20)[0] << 16 if bits == 32 else 0
        )
        found = content(first, min(struct.unpack_from("<I", entry, 28)[0] or MAX_BYTES, MAX_BYTES + 1))
        folder = found
    return found


def fat_entry(folder, wanted):
    long_name = b""
    for place in range(0, len(folder) - 31, 32):
        entry = folder[place : place + 32]
        if entry[0] == 0:
            break
        if entry[11] == 0x0F:  # a part of a long name, the last part first
            long_name = entry[1:11] + entry[14:26] + entry[28:32] + long_name
            continue
        name = long_name.decode("utf-16-le", "replace").split("\0")[0]
        long_name = b""
        if entry[0] == 0xE5 or entry[11] & 0x08:  # deleted, or the label
            continue
        short = entry[:8].decode("ascii", "replace").rstrip() + "." + entry[8:11].decode("ascii", "replace").rstrip()
        if wanted in (name.lower(), short.rstrip(".").lower()):
            return entry
    return None


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
