# SPDX-License-Identifier: Apache-2.0
"""The download directory: ``<dist>/<line>/<dated name>/`` with a release's files and a page about them."""

from __future__ import annotations

import contextlib
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path

from factory.errors import StoreError
from factory.model import RELEASE_NOTE, Bundle, Target
from factory.store.metadata import release_properties
from factory.system.files import appearing, expect_digest, free_bytes, write_whole
from factory.system.readings import link

_PAGES = Path(__file__).parent / "pages"
_OURS_ALONE = "imgfactory_"


def publish_directory(bundle: Bundle, dated_name: str, *, dist: Path, target: Target | None = None) -> Path:
    """Offer a release for download; the folder appears whole, and one that is there already is left alone.

    Args:
        target: whose vendor and visibility the page's properties name.

    Raises:
        StoreError: no room; the bundle's files are not what was signed.
    """
    line = bundle.artifact.recipe.description.line
    folder = dist / line / dated_name
    if (folder / "index.html").is_file():
        return folder
    try:
        with appearing(folder) as partial:
            partial.mkdir(parents=True)
            for name in bundle.files:
                _link_or_copy(bundle.directory / name, partial / name)
            expect_digest(partial / bundle.artifact.path.name, bundle.artifact.sha256)
            properties = release_properties(bundle, target or Target(), dated_name)
            write_whole(partial / "index.html", index_page(bundle, dated_name, properties))
    except OSError as failed:
        raise StoreError(
            "the download directory could not be written",
            facts=(("folder", str(folder)), ("free", f"{free_bytes(dist) >> 20} MiB")),
            hint="make room, then run this again",
        ) from failed
    return folder


def index_page(bundle: Bundle, dated_name: str, properties: Mapping[str, str]) -> str:
    """The page of one release, as HTML; everything that is not ours is escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_PAGES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    artifact = bundle.artifact
    offered = {key: value for key, value in sorted(properties.items()) if not key.startswith(_OURS_ALONE)}
    return environment.get_template("release.html").render(
        bundle=bundle,
        artifact=artifact,
        description=artifact.recipe.description,
        dated_name=dated_name,
        image=artifact.path.name,
        files=[(name, (bundle.directory / name).stat().st_size) for name in bundle.files],
        properties=offered,
        min_disk_gib=properties["min_disk"],
        create_line=create_line(artifact.path.name, dated_name, offered),
        verify_lines=verify_lines(bundle.fingerprint),
        note=release_note(bundle),
    )


def release_note(bundle: Bundle) -> str:
    """The note of a release, as text; nothing where there is none."""
    path = bundle.directory / RELEASE_NOTE
    return path.read_text(errors="replace") if RELEASE_NOTE in bundle.files and path.is_file() else ""


def create_line(file: str, name: str, properties: Mapping[str, str]) -> str:
    """The command that makes this image in one's own cloud."""
    words = ["openstack", "image", "create", "--disk-format", "qcow2", "--container-format", "bare", "--file", file]
    words += ["--min-disk", properties["min_disk"], "--min-ram", properties["min_ram"]]
    for key, value in properties.items():
        if key not in {"min_disk", "min_ram"}:
            words += ["--property", f"{key}={value}"]
    return shlex.join([*words, name])


def verify_lines(fingerprint: str) -> str:
    """The commands that verify the signature of the sums, and the files against them."""
    return f"gpg --verify SHA256SUMS.asc SHA256SUMS   # must name {fingerprint}\nsha256sum --check SHA256SUMS"


def _link_or_copy(source: Path, to: Path) -> None:
    """Signed files never change, so the run's and the directory's may be one; across file systems they are copied."""
    with contextlib.suppress(OSError):
        link(source, to)
        return
    shutil.copyfile(source, to)
