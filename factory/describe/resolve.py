# SPDX-License-Identifier: Apache-2.0
"""A description, the site and the regions, made into one folder that the plain builder can build.

The folder is the same to the byte whenever the same is put in: files are merged in a fixed order and their modes are
normalised. What cannot be kept so in git (owners, other modes) is set by ``config.sh`` in the image.
"""

from __future__ import annotations

import ipaddress
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from factory.describe.appliance import appliance_script
from factory.describe.blueprint import Blueprint
from factory.describe.elements import SCRIPTS_FOLDER, write_elements
from factory.describe.kiwi_xml import with_addresses
from factory.describe.load import COMMON, DESCRIPTIONS
from factory.describe.region_packages import FOLDER, pack
from factory.errors import Fault, InputFault
from factory.model import Description, Region, RegionClient, Repository
from factory.region.config import guest_files, install

SCRIPTS = ("post_bootstrap.sh", "config.sh", "pre_disk_sync.sh")
ROOT = "root"
GENERATED_FILES = "generated-files.txt"
_HEADER = """\
#!/bin/bash
# Put together by 'factory describe' from the image's own and the common part; runs in the root tree.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
readonly login_user={login_user}
"""


def write_tree(
    project: Path,
    tree: Path,
    description: Description,
    *,
    blueprint: Blueprint,
    repositories: tuple[Repository, ...],
    regions: tuple[Region, ...],
    client: RegionClient,
    ntp_servers: tuple[str, ...],
    record: Path | None = None,
) -> frozenset[str]:
    """Write the build tree of a description to ``tree``, which must not exist.

    Args:
        record: the versions of our own packages that were given out.

    Returns:
        The files of the overlay that belong to a package, as paths in the image.
    """
    addresses = {repository.alias: repository.url for repository in repositories}
    own, common = project / DESCRIPTIONS / description.name, project / DESCRIPTIONS / COMMON
    tree.mkdir(parents=True)
    scripts = tree
    if blueprint.elements:
        write_elements(tree, blueprint.elements)
        scripts = tree / SCRIPTS_FOLDER
    else:
        (tree / "config.xml").write_text(with_addresses(blueprint.config, addresses))
    for script in SCRIPTS:
        _script(scripts / script, description, [own / script, common / script])
    root = tree / ROOT
    root.mkdir()
    for layer in layers(own, common, description):
        merge(layer, root)
    install(root, guest_files(regions, client, description.registration, repositories))
    packaged = pack(root, regions, client, description.registration, apt=blueprint.apt, record=record)
    for name, text in generated_files(description, repositories, ntp_servers).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    appliance = tree / "create_appliance.sh"
    appliance.write_text(appliance_script(description, blueprint.suites, addresses))
    appliance.chmod(0o755)
    normalise(tree)
    return packaged


def layers(own: Path, common: Path, description: Description) -> list[Path]:
    """The overlays in the order in which they are laid on each other: the image's own wins."""
    wanted = [common / ROOT]
    if description.console_password:
        wanted.append(common / "console-password" / ROOT)
    return [layer for layer in [*wanted, own / ROOT] if layer.is_dir()]


def overlay_files(tree: Path, *, packaged: frozenset[str] = frozenset()) -> tuple[str, ...]:
    """The files that the build tree lays into the image and no package owns, as paths in the image."""
    root = tree / ROOT
    found = (path for path in root.rglob("*") if path.is_symlink() or not path.is_dir())
    names = (path.relative_to(root).as_posix() for path in found)
    return tuple(
        sorted(f"/{name}" for name in names if f"/{name}" not in packaged and not name.startswith(f"{FOLDER}/"))
    )


def made_later(project: Path, image: str) -> tuple[str, ...]:
    """The files that programs of the image make in an instance: globs, from the common and the image's own list."""
    found = []
    for folder in (COMMON, image):
        path = project / DESCRIPTIONS / folder / GENERATED_FILES
        lines = path.read_text().splitlines() if path.is_file() else []
        found += [glob for line in lines if (glob := line.split("#", 1)[0].strip())]
    return tuple(found)


def merge(layer: Path, root: Path) -> None:
    """Lay one overlay over what is there."""
    for path in sorted(layer.rglob("*")):
        target = root / path.relative_to(layer)
        if path.is_symlink():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            target.symlink_to(path.readlink())
        elif path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        elif path.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            shutil.copymode(path, target)
        else:
            fault = Fault(place=str(path), problem="is neither a file, a folder nor a link")
            raise InputFault("an overlay holds something that cannot be in a build tree", faults=(fault,))


def normalise(tree: Path) -> None:
    """Give every file one of two modes: what a checkout keeps, whatever the umask was."""
    for path in [tree, *tree.rglob("*")]:
        if path.is_symlink():
            continue
        executable = path.is_dir() or path.stat().st_mode & 0o100
        path.chmod(0o755 if executable else 0o644)


def generated_files(
    description: Description, repositories: Sequence[Repository], ntp_servers: Sequence[str]
) -> Mapping[str, str]:
    """Files of the overlay that follow from ``image.toml`` and the site, by path in the image without leading slash."""
    user = description.login_user
    found = {f"etc/apt/sources.list.d/{one.alias}.sources": apt_source(one) for one in repositories}
    found["etc/chrony/sources.d/site.sources"] = "".join(f"{line}\n" for line in chrony_sources(ntp_servers))
    found["etc/sudoers.d/login-user"] = f"{user} ALL=(ALL) NOPASSWD:ALL\n"
    found["etc/cloud/cloud.cfg.d/91-login-user.cfg"] = login_user_config(user)
    found["usr/lib/image-factory/login-user"] = f"{user}\n"
    return found


def apt_source(repository: Repository) -> str:
    """The repository as apt reads it; only the named keyring is trusted for it."""
    fields = {
        "Types": "deb",
        "URIs": repository.url,
        "Suites": " ".join(repository.suites),
        "Components": " ".join(repository.components),
        "Signed-By": repository.key,
    }
    return "".join(f"{name}: {value}\n" for name, value in fields.items())


def chrony_sources(servers: Sequence[str]) -> Iterator[str]:
    """The directives of chrony: a name may stand for many servers, an address for one."""
    for server in servers:
        try:
            ipaddress.ip_address(server)
        except ValueError:
            yield f"pool {server} iburst maxsources 4"
        else:
            yield f"server {server} iburst"


def login_user_config(user: str) -> str:
    """cloud-init's view of the login user, who is in the image already."""
    return f"""\
# The user whom the cloud's key opens. /etc/sudoers.d/login-user gives the right to become root.
system_info:
  default_user:
    name: {user}
    gecos: {user}
    groups: [adm, sudo]
    lock_passwd: true
    shell: /bin/bash
    sudo: null
"""


def _script(target: Path, description: Description, parts: Sequence[Path]) -> None:
    found = [part for part in parts if part.is_file()]
    if not found:
        return
    bodies = [f"\n# ---- {part.parent.name}/{part.name}\n{part.read_text()}" for part in found]
    target.write_text(_HEADER.format(login_user=description.login_user) + "".join(bodies))
    target.chmod(0o755)
