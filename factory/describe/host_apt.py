# SPDX-License-Identifier: Apache-2.0
"""What the host's own apt is configured with: the embedded default for where Debian packages come from.

Formats: sources.list(5), both the one-line and the deb822 style.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

KEYRINGS = (
    "usr/share/keyrings/debian-archive-keyring.gpg",
    "usr/share/keyrings/debian-archive-keyring.pgp",
)
_ONE_LINE = re.compile(r"^\s*(?P<kind>deb|deb-src)\s+(?:\[(?P<options>[^]]*)\]\s+)?(?P<rest>\S.*)$")
_STAGES = ("stable", "oldstable", "oldoldstable", "testing", "unstable", "sid")
_CODENAMES = ("buster", "bullseye", "bookworm", "trixie", "forky", "duke")
_SUITES = frozenset((*_STAGES, *_CODENAMES))
_PARTS = re.compile(r"-(updates|backports|proposed-updates|backports-sloppy)$")
_SECURITY = re.compile(r"(-security|/updates)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class AptSource:
    """One configured repository address; ``keyring`` is the file that apt trusts for it, where one is named."""

    url: str
    suites: tuple[str, ...]
    components: tuple[str, ...]
    keyring: Path | None = None


def host_repositories(root: Path = Path("/")) -> Mapping[str, AptSource]:
    """The addresses of Debian's archives, by alias: ``debian`` and ``debian-security``, as far as the host has them."""
    found: dict[str, AptSource] = {}
    codenames = _SUITES | _own_codename(root)
    for source in sorted(_sources(root), key=_rank):
        alias = _alias(source, codenames)
        if alias and alias not in found:
            found[alias] = source
    return found


def host_keyring(root: Path = Path("/")) -> Path | None:
    """The keyring of Debian's archives on this host."""
    return next((root / name for name in KEYRINGS if (root / name).is_file()), None)


def _alias(source: AptSource, codenames: frozenset[str]) -> str:
    """Which of Debian's archives this is, or nothing."""
    if "main" not in source.components:
        return ""
    if all(_SECURITY.search(suite) and _SECURITY.sub("", suite) in codenames for suite in source.suites):
        return "debian-security"
    return "debian" if any(_PARTS.sub("", suite) in codenames for suite in source.suites) else ""


def _rank(source: AptSource) -> tuple[bool, bool]:
    """Debian's own archives before others that use its suites' names (vendors' repositories do)."""
    key = source.keyring.name if source.keyring else ""
    last = urlsplit(source.url).path.rstrip("/").rpartition("/")[2]
    return not key.startswith("debian-archive"), last not in {"debian", "debian-security"}


def _own_codename(root: Path) -> frozenset[str]:
    try:
        text = (root / "etc/os-release").read_text()
    except OSError:
        return frozenset()
    fields = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    debian = fields.get("ID", "").strip('"') == "debian"
    name = fields.get("VERSION_CODENAME", "").strip('"')
    return frozenset({name}) if debian and name else frozenset()


def _sources(root: Path) -> Iterator[AptSource]:
    folder = root / "etc/apt"
    parts = sorted((folder / "sources.list.d").glob("*")) if (folder / "sources.list.d").is_dir() else []
    for path in [folder / "sources.list", *parts]:
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        if path.suffix == ".sources":
            yield from parse_deb822(text, root)
        elif path.suffix == ".list":
            yield from parse_one_line(text, root)


def parse_one_line(text: str, root: Path = Path("/")) -> Iterator[AptSource]:
    """The ``deb`` lines of a one-line style file that apt could fetch over HTTP."""
    for line in text.splitlines():
        match = _ONE_LINE.match(line.split("#", 1)[0])
        if match is None or match["kind"] != "deb":
            continue
        options = dict(option.split("=", 1) for option in (match["options"] or "").split() if "=" in option)
        url, *rest = match["rest"].split()
        if rest and _over_http(url):
            keyring = _keyring(options.get("signed-by", ""), root)
            yield AptSource(url=url.rstrip("/"), suites=(rest[0],), components=tuple(rest[1:]), keyring=keyring)


def parse_deb822(text: str, root: Path = Path("/")) -> Iterator[AptSource]:
    """The enabled ``deb`` stanzas of a deb822 style file that apt could fetch over HTTP, one source an address."""
    for stanza in _stanzas(text):
        if "deb" not in stanza.get("types", "").split() or stanza.get("enabled", "yes").lower() in {"no", "false", "0"}:
            continue
        suites = tuple(stanza.get("suites", "").split())
        components = tuple(stanza.get("components", "").split())
        keyring = _keyring(stanza.get("signed-by", ""), root)
        for url in stanza.get("uris", "").split():
            if _over_http(url) and suites:
                yield AptSource(url=url.rstrip("/"), suites=suites, components=components, keyring=keyring)


def _stanzas(text: str) -> Iterator[dict[str, str]]:
    fields: dict[str, str] = {}
    name = ""
    for line in [*text.splitlines(), ""]:
        if line.startswith("#"):
            continue
        if not line.strip():
            if fields:
                yield fields
            fields, name = {}, ""
        elif line[0].isspace() and name:
            fields[name] += f"\n{line.strip()}"
        elif ":" in line:
            name, _, value = line.partition(":")
            name = name.strip().lower()
            fields[name] = value.strip()


def _over_http(url: str) -> bool:
    return urlsplit(url).scheme in {"http", "https"} if _parses(url) else False


def _parses(url: str) -> bool:
    try:
        return bool(urlsplit(url).hostname)
    except ValueError:
        return False


def _keyring(signed_by: str, root: Path) -> Path | None:
    """The first file that ``Signed-By`` names; a key written into the file itself is not one."""
    names = [name for name in re.split(r"[\s,]+", signed_by) if name.startswith("/")]
    return root / names[0].lstrip("/") if names else None
