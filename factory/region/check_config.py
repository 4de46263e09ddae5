# SPDX-License-Identifier: Apache-2.0
"""``/etc/regionserverclnt.cfg`` by itself (rules 1 to 3 and 6, and the form of what rules 4 and 5 name)."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

from factory.region import ini
from factory.region.check_findings import At, Notes
from factory.region.region_rules import NAME

OFF = {"", "none"}
SHELL = re.compile(r"[|;&$`<>(){}*?~\"'\\]")
_PLACEHOLDER = re.compile(
    r"<[^>]*>|\b(REPLACE|SUBSTITUTE|PLACEHOLDER|CHANGE_?ME|YOUR_)\w*|\A[A-Z]{3,}(?:[_ -][A-Z]+)+\Z"
)
_KNOWN = {
    "server": {"api", "certlocation", "regionsrv", "metadata_server"},
    "instance": {"dataprovider", "instanceargs", "httpsonly"},
    "service": {"verifyaccess", "packagebackend"},
}
_WANTED_SERVERS = 2
_ADVISED_SERVERS = 3


def option(read: ini.Ini, section: str, name: str) -> ini.Option | None:
    """An option, by its lower-cased name."""
    found = read.sections.get(section)
    return found.options.get(name) if found else None


def split(value: str) -> tuple[str, ...]:
    """The items of a comma list, trimmed as the client does."""
    return tuple(item.strip() for item in value.split(",") if item.strip())


def region_items(text: str) -> tuple[str, ...]:
    """The region servers that a ``regionserverclnt.cfg`` lists."""
    found = option(ini.read(text, place=""), "server", "regionsrv")
    return split(found.value) if found else ()


def examine_text(text: str, notes: Notes, *, file: str) -> ini.Ini:
    """Look at a ``regionserverclnt.cfg``; returns it as it was read."""
    read = ini.read(text, place=file)
    notes.look(1, 2, 3, 4, 5, 6)
    for fault in read.faults:
        place = re.search(r":(\d+)\Z", fault.place)
        notes.error(
            1,
            At(file=file, line=int(place[1]) if place else 1),
            fault.problem,
            why="the client cannot read the file and ends with exit 1",
            cure=fault.cure,
        )
    _words(read, notes, file)
    if "server" not in read.sections:
        notes.error(
            1,
            At(file=file, line=1),
            "there is no [server] section",
            why="the client stops at once",
            cure="name the region servers there",
        )
    else:
        _metadata_server(read, notes, file)
        _server_options(read, notes, file)
        _regionsrv(read, notes, file)
    _https(read, notes, file)
    _provider(read, notes, file)
    _plugin(read, notes, file)
    _backend(read, notes, file)
    return read


def _words(read: ini.Ini, notes: Notes, file: str) -> None:
    for section in read.sections.values():
        if section.name not in _KNOWN:
            notes.warn(
                1,
                At(file=file, line=section.line, key=f"[{section.name}]"),
                "is a section that no client reads",
                why="what stands in it has no effect (section names are case-sensitive)",
                cure=f"known: {', '.join(f'[{name}]' for name in _KNOWN)}",
            )
            continue
        for name, found in section.options.items():
            at = At(file=file, line=found.line, key=f"{section.name}.{name}")
            if _PLACEHOLDER.search(found.value):
                notes.error(
                    1,
                    at,
                    f"{found.value!r} is a placeholder that nobody filled in",
                    why="the client takes it literally and fails",
                    cure="write the real value, or remove the line",
                )
            if name not in _KNOWN[section.name]:
                notes.warn(
                    1,
                    at,
                    "is an option that no client reads",
                    why="it has no effect",
                    cure=f"known here: {', '.join(sorted(_KNOWN[section.name]))}",
                )


def _metadata_server(read: ini.Ini, notes: Notes, file: str) -> None:
    found = option(read, "server", "metadata_server")
    if found is None:
        return
    at = At(file=file, line=found.line, key="server.metadata_server")
    try:
        parts = urlsplit(found.value)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname)
    except ValueError:
        good = False
    if not good:
        notes.error(
            1,
            at,
            f"{found.value!r} is not an http(s) address",
            why="the client exits with 'Invalid URL', even where region servers are named",
            cure="remove the line, or write the address of your metadata server",
        )
    notes.warn(
        1, at, "replaces all region servers", why="none of them is ever asked", cure="remove it unless it is meant"
    )


def _server_options(read: ini.Ini, notes: Notes, file: str) -> None:
    line = read.sections["server"].line
    if option(read, "server", "metadata_server") is None:
        for name, spelled in (("api", "api"), ("certlocation", "certLocation"), ("regionsrv", "regionsrv")):
            found = option(read, "server", name)
            if found is None or not found.value:
                notes.error(
                    2,
                    At(file=file, line=found.line if found else line, key="server"),
                    f"has no '{spelled}'",
                    why="the client cannot ask any region server",
                    cure=f"write {spelled} = ...",
                )
    api, location = option(read, "server", "api"), option(read, "server", "certlocation")
    if api and api.value.startswith("/"):
        notes.error(
            2,
            At(file=file, line=api.line, key="server.api"),
            "begins with '/'",
            why="the client would ask https://SERVER//..., and region servers answer 404",
            cure="drop the slash",
        )
    if api and re.search(r"\s|://", api.value):
        notes.error(
            2,
            At(file=file, line=api.line, key="server.api"),
            f"{api.value!r} is not a path",
            why="the client puts it after https://SERVER/",
            cure="write the path only, such as regionInfo",
        )
    if location and location.value and not location.value.startswith("/"):
        notes.error(
            8,
            At(file=file, line=location.line, key="server.certLocation"),
            "is not an absolute path",
            why="PEMs are looked up from whatever folder the client runs in, and none is found",
            cure="begin it with '/'",
        )


def _regionsrv(read: ini.Ini, notes: Notes, file: str) -> None:
    found = option(read, "server", "regionsrv")
    if found is None:
        return
    at = At(file=file, line=found.line, key="server.regionsrv")
    listed = split(found.value)
    for item in listed:
        if problem := item_problem(item):
            notes.error(
                2,
                at,
                f"{item!r} {problem}",
                why="this server is never reached, and no PEM is found for it",
                cure="write a bare address or a DNS name",
            )
    for item in sorted({item for item in listed if listed.count(item) > 1}):
        notes.error(2, at, f"{item!r} is there twice", why="a dead server is asked twice", cure="name each server once")


def item_problem(item: str) -> str:
    """Why ``item`` cannot stand in ``regionsrv``, or an empty text."""
    if "://" in item:
        return "has a scheme; the client adds https://"
    if item.startswith("["):
        return "has brackets; the client adds them"
    try:
        ipaddress.ip_address(item)
    except ValueError:
        if re.fullmatch(r"[\d.]+", item) or not NAME.fullmatch(item):
            return "is neither an address nor a DNS name"
    return ""


def count_servers(notes: Notes, rule: int, at: At, number: int, *, what: str) -> None:
    """Two servers of a kind at least, three recommended: error at none, warning below two, advice below three."""
    cure = f"make it {_ADVISED_SERVERS}; {_WANTED_SERVERS} is the least that survives the loss of one"
    if number == 0:
        notes.error(rule, at, f"no {what} is named", why="no instance can register", cure=cure)
    elif number < _WANTED_SERVERS:
        notes.warn(rule, at, f"only one {what} is named", why="while it is down, no instance can register", cure=cure)
    elif number < _ADVISED_SERVERS:
        notes.advise(
            rule, at, f"{number} {what}s are named", why="during maintenance of one there is only one left", cure=cure
        )


def _https(read: ini.Ini, notes: Notes, file: str) -> None:
    found = option(read, "instance", "httpsonly")
    why = "the client fetches the update server's CA over plain http on port 80, where nobody may answer"
    if "instance" not in read.sections:
        notes.error(
            1, At(file=file, line=1), "there is no [instance] section", why=why, cure="add it, with httpsOnly = true"
        )
    elif found is None:
        at = At(file=file, line=read.sections["instance"].line, key="instance")
        notes.error(3, at, "has no 'httpsOnly'", why=why, cure="write httpsOnly = true")
    elif found.value == "false":
        at = At(file=file, line=found.line, key="instance.httpsOnly")
        notes.warn(3, at, "is false: port 80 must be served", why=why, cure="write httpsOnly = true")
    elif found.value != "true":
        at = At(file=file, line=found.line, key="instance.httpsOnly")
        notes.error(3, at, f"{found.value!r} does not count as true", why=why, cure="only the exact text 'true' counts")


def _provider(read: ini.Ini, notes: Notes, file: str) -> None:
    found = option(read, "instance", "dataprovider")
    if found is None or found.value in OFF:
        return
    at = At(file=file, line=found.line, key="instance.dataProvider")
    if not found.value.startswith("/"):
        notes.error(
            4,
            at,
            f"{found.value!r} is not an absolute path",
            why="the client never runs it, and the update server gets no instance data",
            cure="write the full path",
        )
    if SHELL.search(found.value):
        notes.error(
            4,
            at,
            "uses shell syntax",
            why="it is split at blanks and run without a shell, so it does something else",
            cure="put it into a script, and name the script",
        )


def _plugin(read: ini.Ini, notes: Notes, file: str) -> None:
    found = option(read, "instance", "instanceargs")
    if found is not None and found.value not in OFF and not found.value.isidentifier():
        notes.error(
            5,
            At(file=file, line=found.line, key="instance.instanceArgs"),
            f"{found.value!r} is not a module name",
            why="the client cannot import it and asks without a region hint",
            cure="name a module of the client's cloudregister package, without .py",
        )


def _backend(read: ini.Ini, notes: Notes, file: str) -> None:
    if "service" not in read.sections:
        return
    found = option(read, "service", "packagebackend")
    if found is None:
        notes.error(
            6,
            At(file=file, line=read.sections["service"].line, key="service"),
            "has no 'packageBackend'",
            why="the client ends with an uncaught error",
            cure="add the option, or drop the section",
        )
    elif found.value == "dnf":
        notes.error(
            6,
            At(file=file, line=found.line, key="service.packageBackend"),
            "'dnf' means: never register",
            why="the client chooses an update server, then stops with exit 0",
            cure="write zypper or apt; for an image that must not register, mode = 'none' in image.toml",
        )
