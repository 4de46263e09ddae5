# SPDX-License-Identifier: Apache-2.0
"""An image as a vendor could make it: by mmdebstrap, without anything of this factory; no mount and no loop device.

GRUB is made inside the new system and written to the gap before the first partition, as its first sectors expect it.
"""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

PACKAGES = (
    "linux-image-cloud-amd64",
    "grub-pc-bin",
    "grub2-common",
    "systemd-sysv",
    "systemd-resolved",
    "libpam-systemd",
    "dbus",
    "openssh-server",
    "cloud-init",
    "cloud-guest-utils",
    "e2fsprogs",
    "fdisk",
    "sudo",
    "iproute2",
    "python3",
    "ca-certificates",
    "initramfs-tools",
    "zstd",
)
LABEL, USER = "vendor", "debian"
_SECTOR, _FIRST = 512, 2048
_MODULES = ("biosdisk", "part_msdos", "ext2", "linux", "normal", "search", "search_label", "configfile", "echo", "test")
_MENU = f"""\
set timeout=0
menuentry "vendor" {{
  search --no-floppy --label {LABEL} --set=root
  linux /vmlinuz root=LABEL={LABEL} ro console=tty0 console=ttyS0,115200n8 net.ifnames=0
  initrd /initrd.img
}}
"""
_MODULES_LINE = " ".join(_MODULES)
_HOOK = f"""\
set -eu
chroot "$1" mkdir -p /boot/grub
chroot "$1" grub-mkimage -O i386-pc -p '(hd0,msdos1)/boot/grub' -o /boot/grub/core.img {_MODULES_LINE}
cp "$1/usr/lib/grub/i386-pc/boot.img" "$1/boot/grub/core.img" "$2/"
printf '%s' '{_MENU}' > "$1/boot/grub/grub.cfg"
printf 'LABEL={LABEL} / ext4 defaults 0 1\\n' > "$1/etc/fstab"
printf 'vendor\\n' > "$1/etc/hostname"
: > "$1/etc/machine-id"
rm -f "$1"/etc/ssh/ssh_host_*
printf 'datasource_list: [ConfigDrive, NoCloud, OpenStack, None]\\n' > "$1/etc/cloud/cloud.cfg.d/90-vendor.cfg"
chroot "$1" systemctl enable systemd-networkd systemd-resolved >/dev/null 2>&1
"""


def vendor_image(folder: Path, *, mirror: str, suite: str = "trixie", size_gib: int = 3) -> Path:
    """Make ``vendor.qcow2`` in ``folder``: boots by BIOS, talks on the serial line, finishes cloud-init."""
    hook, tar, root = folder / "hook.sh", folder / "root.tar", folder / "root.ext4"
    hook.write_text(_HOOK)
    argv = ["mmdebstrap", "--mode=root", "--variant=apt", f"--include={','.join(PACKAGES)}"]
    argv += ["--aptopt=APT::Install-Recommends false", f'--customize-hook=sh {hook} "$1" {folder}']
    ran([*argv, suite, str(tar), f"deb {mirror} {suite} main"])
    sectors = (size_gib << 30) // _SECTOR
    # a tree rather than the tar: older mke2fs read no archive
    tree = folder / "tree"
    tree.mkdir(mode=0o755)
    ran(["tar", "-xf", str(tar), "-C", str(tree), "--numeric-owner", "--xattrs", "--xattrs-include=*"])
    size_kib = (sectors - _FIRST) * _SECTOR // 1024
    ran(["mke2fs", "-q", "-t", "ext4", "-L", LABEL, "-d", str(tree), str(root), f"{size_kib}k"])
    return write_disk(folder, root, sectors=sectors)


def write_disk(folder: Path, root: Path, *, sectors: int) -> Path:
    """One partition behind an MBR; with GRUB where ``boot.img`` and ``core.img`` lie in ``folder``."""
    disk, image = folder / "disk.raw", folder / "vendor.qcow2"
    entry = struct.pack("<B3sB3sII", 0x80, b"\xfe\xff\xff", 0x83, b"\xfe\xff\xff", _FIRST, sectors - _FIRST)
    boot = (folder / "boot.img").read_bytes() if (folder / "boot.img").is_file() else bytes(440)
    core = (folder / "core.img").read_bytes() if (folder / "core.img").is_file() else b""
    assert len(core) < (_FIRST - 1) * _SECTOR
    with disk.open("wb") as file:
        file.truncate(sectors * _SECTOR)
        file.write(boot[:440] + b"VNDR\0\0" + entry + bytes(48) + b"\x55\xaa")
        file.write(core)
    ran(["dd", f"if={root}", f"of={disk}", "bs=1M", "seek=1", "conv=notrunc,sparse", "status=none"])
    ran(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", str(disk), str(image)])
    disk.unlink()
    return image


def ran(argv: list[str]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{argv[0]}: {done.stderr[-3000:]}"
