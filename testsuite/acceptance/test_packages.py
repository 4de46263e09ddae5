# SPDX-License-Identifier: Apache-2.0
"""The packages: those of the build, whole, from known repositories, and updated only when the customer says so."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

INSTALLED = "dpkg-query -W -f '${db:Status-Abbrev}\\t${Package}\\t${Version}\\t${Architecture}\\n'"
COMPILERS = "cc gcc g++ c++ clang tcc make cmake ld as rustc go javac"
SOURCES = (
    "cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null || true"
)
APT_CONFIG = "apt-config dump"
BUILD_PACKAGES = re.compile(
    r"build-essential|dpkg-dev|debhelper|gcc(-[0-9]+)?|g\+\+(-[0-9]+)?|cpp(-[0-9]+)?|binutils|make|cmake|pkgconf"
    r"|.*-dev|linux-(headers|kbuild)-.*|dracut-kiwi-.*|kiwi-.*"
)
_DAY_S = 86400


def _installed(guest):
    rows = [line.split("\t") for line in guest.root(INSTALLED).splitlines()]
    return {(name, version, arch) for status, name, version, arch in rows if status.startswith("ii")}


def test_the_packages_are_those_of_the_build(guest, facts):
    """The guest has exactly the packages, in exactly the versions, that the build's package list names."""
    if facts.packages is None:
        pytest.skip("this image came without a package list")
    listed = {(entry.name, entry.version, entry.arch) for entry in facts.packages}
    added = set(facts.seed.installed or ())
    found = {row for row in _installed(guest) if row[0] not in added}
    assert listed, "the build's package list is empty"
    more, less = sorted(found - listed), sorted(listed - found)
    assert not more, f"packages that the build did not install: {[' '.join(row) for row in more]}"
    assert not less, f"packages of the build that are missing: {[' '.join(row) for row in less]}"


def test_every_package_is_whole(guest):
    """No package is half installed, and dpkg has no work left."""
    rows = [line.split("\t") for line in guest.root(INSTALLED).splitlines()]
    half = [f"{name} ({status.strip()})" for status, name, *_ in rows if status.strip() != "ii"]
    audit = guest.root("dpkg --audit; ls /var/lib/dpkg/updates").strip()
    assert not half, f"packages that are not wholly installed: {half}"
    assert not audit, f"dpkg has work left: {audit}"


def test_there_is_no_compiler(guest):
    """The image has no compiler, linker or make."""
    found = guest.root(f"for tool in {COMPILERS}; do command -v $tool || true; done").split()
    assert not found, f"the image has build tools: {found}"


def test_there_are_no_build_packages(guest):
    """None of the packages that only a build needs is left."""
    found = sorted(name for name, _, _ in _installed(guest) if BUILD_PACKAGES.fullmatch(name))
    assert not found, f"packages that only a build needs: {found}"


def test_nothing_is_pending(guest):
    """No restart, no package configuration and no update that the image's own snapshot has is pending."""
    found = guest.root(
        "ls /run/reboot-required 2>/dev/null || true; apt-get -s -qq dist-upgrade | grep -E '^(Inst|Conf|Remv)' || true"
    ).strip()
    assert not found, f"work is pending: {found}"


def test_there_are_no_automatic_updates(guest):
    """Nothing updates packages unless the customer asks: no timer, no service, no periodic setting."""
    timers = guest.root(
        "for unit in apt-daily.timer apt-daily-upgrade.timer unattended-upgrades.service; do"
        " state=$(systemctl is-enabled $unit 2>/dev/null || true);"
        " active=$(systemctl is-active $unit 2>/dev/null || true);"
        ' echo "$unit ${state:-missing} ${active:-inactive}"; done'
    )
    running = [line.split()[0] for line in timers.splitlines() if "enabled" in line.split() or "active" in line.split()]
    settings = [line for line in guest.root(APT_CONFIG).splitlines() if line.startswith("APT::Periodic::")]
    wrong = [line for line in settings if '"0"' not in line and not line.endswith('"";')]
    assert not running, f"automatic updates would start: {running}"
    assert not wrong, f"apt would do periodic work: {wrong}"


def _stanzas(guest):
    """The repositories of the guest: the address of each, and the keyring that it names."""
    found = []
    for block in guest.root(SOURCES).split("\n\n"):
        fields = {}
        for line in block.splitlines():
            if line.startswith(("deb ", "deb-src ")):
                words = [word for word in line.split("]")[-1].split() if word not in {"deb", "deb-src"}]
                found.append({"URIs": words[0], "Signed-By": "", "Trusted": str("trusted=yes" in line), "line": line})
            elif ":" in line and not line.startswith(("#", " ")):
                key, value = line.split(":", 1)
                if key in fields and key == "Types":
                    found.append(fields)
                    fields = {}
                fields[key] = value.strip()
        if fields.get("URIs"):
            found.append(fields)
    return [entry for entry in found if entry.get("Enabled", "yes") != "no"]


def _addresses(guest):
    return {address.rstrip("/") for entry in _stanzas(guest) for address in entry["URIs"].split()}


def test_the_repositories_are_the_described_ones(guest, facts, description):
    """Packages come from the description's update repositories and the region's update servers, from nowhere else."""
    if description.update_repositories is None:
        pytest.skip("this image came without the factory's own records: its repositories are not known")
    wanted = {entry.url.rstrip("/") for entry in description.update_repositories}
    names = [server.name for server in facts.region.update_servers or ()] if facts.region else []
    found = _addresses(guest)
    strange = sorted(url for url in found - wanted if not any(f"//{name}/" in url + "/" for name in names))
    shown = [re.sub("//[^/@]*@", "//", url) for url in strange]
    assert not strange, f"packages could also come from {shown}"


def test_the_described_repositories_are_there(guest, description):
    """Every update repository that the description names is configured in the guest (or put away by a registration)."""
    if description.update_repositories is None:
        pytest.skip("this image came without the factory's own records: its repositories are not known")
    known = guest.root(f"{SOURCES}; cat /etc/apt/sources.list.d/*.disabled 2>/dev/null || true")
    missing = sorted(entry.url for entry in description.update_repositories if entry.url.rstrip("/") not in known)
    shown = [re.sub("//[^/@]*@", "//", url) for url in missing]
    assert not missing, f"the guest does not know the repositories {shown}"


def test_signatures_are_never_skipped(guest):
    """Neither a repository nor apt's settings switch signature checks off."""
    trusted = [entry["URIs"] for entry in _stanzas(guest) if entry.get("Trusted", "").lower() in {"yes", "true"}]
    loose = [
        line
        for line in guest.root(APT_CONFIG).splitlines()
        if line.startswith(
            ("APT::Get::AllowUnauthenticated", "Acquire::AllowInsecureRepositories", "Acquire::Check-Valid-Until")
        )
        and any(word in line.lower() for word in ('"1"', '"true"', '"yes"'))
        and "Valid-Until" not in line
    ]
    assert not trusted, f"these repositories are trusted without a signature: {trusted}"
    assert not loose, f"apt accepts unsigned packages: {loose}"


def test_the_repositories_keys_outlive_the_image(guest, facts, description):
    """Each keyring that a repository names has a key which is valid for as long as the image is kept."""
    until = time.time() + (facts.lifetime_days or 744) * _DAY_S
    rings = {entry.get("Signed-By", "") for entry in _stanzas(guest)}
    assert "" not in rings, "a repository names no keyring: apt would trust every key in /etc/apt/trusted.gpg.d"
    short = {ring: when for ring in sorted(rings) if (when := _valid_until(guest, ring)) < until}
    assert not short, f"keys that expire before the image does (keyring: last day): {_days(short)}"


def _days(rings):
    return {ring: time.strftime("%Y-%m-%d", time.gmtime(when)) for ring, when in rings.items()}


def _valid_until(guest, ring):
    """The latest day on which a key of this keyring is valid, in seconds; 0 when it holds none."""
    content = base64.b64decode(guest.root(f"base64 {ring} 2>/dev/null || true"))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "ring")
        file.write_bytes(content)
        argv = ["gpg", "--homedir", folder, "--batch", "--with-colons", "--show-keys", str(file)]
        listed = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
    primary = [line.split(":") for line in listed.splitlines() if line.startswith("pub:")]
    return max((float(row[6]) if row[6] else float("inf") for row in primary if row[1] not in {"r", "e"}), default=0.0)


def test_the_package_cache_is_empty(guest):
    """The image brings no downloaded packages."""
    found = guest.root("find /var/cache/apt/archives -name '*.deb' | head").split()
    fresh = [path for path in found if not any(name in path for name in ("partial",))]
    assert not fresh, f"downloaded packages are left: {fresh}"


def test_the_guest_has_no_build_traces(guest):
    """Nothing in the guest's apt configuration points to the build's own servers or to a proxy."""
    found = guest.root("grep -r -l -E '127\\.0\\.0\\.1|localhost|:3142' /etc/apt 2>/dev/null || true").split()
    proxies = [line for line in guest.root(APT_CONFIG).splitlines() if "::Proxy" in line and '"";' not in line]
    assert not found, f"apt still points to the build's servers in {found}"
    assert not proxies, f"apt uses a proxy: {proxies}"


def test_the_build_list_names_real_packages(facts):
    """The package list beside the image is a list of packages with versions, not an empty file."""
    if facts.packages is None:
        pytest.skip("this image came without a package list")
    broken = [json.dumps(vars(entry)) for entry in facts.packages if not (entry.name and entry.version)]
    assert len(facts.packages) > 50, f"the package list names only {len(facts.packages)} packages"
    assert not broken, f"the package list has broken lines: {broken[:3]}"
