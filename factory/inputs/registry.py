# SPDX-License-Identifier: Apache-2.0
"""Where a Python registry has a file: read from its "simple" pages (PyPA, "Simple repository API").

Which registry is the business of the host: the one that pip here is configured with, or the one named in the site file.
Nothing that a registry says is believed: what comes from it must have the digest that was pinned.
"""

from __future__ import annotations

import html.parser
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urldefrag, urljoin, urlsplit, urlunsplit

from factory.errors import CommandFailed, InputsError
from factory.inputs.upstream import Upstream
from factory.system.run import run
from factory.system.secrets import Login

_OK = 200
_PAGE_BYTES = 32 << 20
_TIMEOUT_S = 60.0
_ASK_PIP = """
import pwd, os, sys
os.environ["HOME"] = pwd.getpwuid(os.getuid()).pw_dir
from pip._internal.configuration import Configuration
from pip._internal.models.index import PyPI
found = Configuration(isolated=False)
found.load()
values = dict(found.items())
if values and all(isinstance(value, dict) for value in values.values()):
    values = {name: text for one in values.values() for name, text in one.items()}
named = {}
for key in ("global.{}", "install.{}", "download.{}", ":env:.{}"):
    for name in ("index-url", "extra-index-url"):
        if key.format(name) in values:
            named[name] = values[key.format(name)]
print(named.get("index-url", PyPI.simple_url))
print("\\n".join(named.get("extra-index-url", "").split()))
"""


def pip_registries() -> tuple[str, ...]:
    """The registries that pip on this host asks, over HTTP, in its order.

    Raises:
        InputsError: pip is not here to be asked.
    """
    try:
        said = run([sys.executable, "-c", _ASK_PIP], timeout_s=_TIMEOUT_S, cwd=Path("/")).stdout
    except CommandFailed as absent:
        raise InputsError(
            "which Python registry this host uses cannot be found out: pip does not say",
            facts=absent.facts[-2:],
            hint='write python = "https://..." under [mirrors] of site.toml',
        ) from absent
    return tuple(line for line in said.split() if urlsplit(line).scheme in {"http", "https"})


class Registries:
    """Python registries, asked in order; each is known by the address of its simple pages.

    Args:
        addresses: credentials may stand in them; these go to that host alone, and are shown nowhere.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        known = [_without_login(address) for address in addresses]
        self._pages = tuple(shown for shown, _ in known)
        self.upstream = Upstream(logins={host: login for _, logins in known for host, login in logins.items()})

    def find(self, project: str, file: str) -> str:
        """The address of a project's file.

        Raises:
            InputsError: no registry has it, or answers.
        """
        tried = []
        for address in self._pages:
            page = f"{address.rstrip('/')}/{re.sub(r'[-_.]+', '-', project).lower()}/"
            try:
                if found := self._link(page, file):
                    return found
                tried.append(("tried", f"{page}: does not name it"))
            except InputsError as away:
                tried.append(("tried", f"{page}: {away.message}"))
        raise InputsError(
            f"no Python registry has '{file}'",
            facts=tuple(tried),
            hint='name another registry: python = "https://..." under [mirrors] of site.toml, or pip\'s index-url',
        )

    def _link(self, page: str, file: str) -> str:
        text = b""
        with self.upstream.get(page) as (status, body):
            if status != _OK:
                return ""
            for chunk in body:
                text += chunk
                if len(text) > _PAGE_BYTES:
                    raise InputsError("its page has no end")
        links = _Links()
        links.feed(text.decode(errors="replace"))
        addresses = (urldefrag(urljoin(page, link)).url for link in links.found)
        return next((one for one in addresses if urlsplit(one).path.rpartition("/")[2] == file), "")


class _Links(html.parser.HTMLParser):
    """The targets of a page's links."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if tag == "a" and name == "href" and value]


def _without_login(address: str) -> tuple[str, dict[str, Login]]:
    """An address as people may see it, and the credentials that stood in it."""
    parts = urlsplit(address)
    if parts.username is None:
        return address, {}
    shown = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    return shown, {
        f"{urlsplit(shown).scheme}://{urlsplit(shown).netloc}": Login(
            user=parts.username, password=parts.password or ""
        )
    }
