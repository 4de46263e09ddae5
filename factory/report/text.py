# SPDX-License-Identifier: Apache-2.0
"""Numbers in words, and other people's text made safe to look at."""

from __future__ import annotations

import re
from datetime import datetime

from markupsafe import Markup, escape

_HIDDEN = re.compile(
    "[\x00-\x08\x0a-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
_CONTROLS = (
    *("NUL", "SOH", "STX", "ETX", "EOT", "ENQ", "ACK", "BEL", "BS", "TAB", "LF", "VT", "FF", "CR", "SO", "SI"),
    *("DLE", "DC1", "DC2", "DC3", "DC4", "NAK", "SYN", "ETB", "CAN", "EM", "SUB", "ESC", "FS", "GS", "RS", "US"),
)
_KIB = 1024.0
_MINUTE_S = 60
_HOUR_S = 3600
_SMALL_S = 10


def visible(text: object) -> Markup:
    """Escaped text in which characters that hide, move or reorder others are shown by name instead of obeyed."""
    plain = str(text)
    pieces: list[Markup] = []
    at = 0
    for match in _HIDDEN.finditer(plain):
        pieces += [escape(plain[at : match.start()]), _named(match.group())]
        at = match.end()
    return Markup("").join([*pieces, escape(plain[at:])])


def visible_lines(text: object) -> Markup:
    """The same, where the text may have lines of its own: line feeds stay, everything else is shown."""
    return Markup("\n").join(visible(line) for line in str(text).split("\n"))


def _named(char: str) -> Markup:
    code = ord(char)
    name = _CONTROLS[code] if code < len(_CONTROLS) else f"{code:02X}"
    return Markup('<span class="ctl">{}</span>').format(name)


def duration(seconds: float) -> str:
    """``0.4 s``, ``42 s``, ``3 min 20 s``, ``1 h 5 min``."""
    if seconds < _SMALL_S:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < _MINUTE_S:
        return f"{whole} s"
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S} min {whole % _MINUTE_S} s"
    return f"{whole // _HOUR_S} h {whole % _HOUR_S // _MINUTE_S} min"


def size(size_bytes: float | None) -> str:
    """Bytes in the binary unit that fits; nothing known is a dash."""
    if size_bytes is None:
        return "\u2013"
    value, unit = float(size_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if abs(value) < _KIB:
            break
        value, unit = value / _KIB, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def size_change(delta_bytes: float) -> str:
    """A difference of sizes with its sign."""
    return ("+" if delta_bytes >= 0 else "\u2212") + size(abs(delta_bytes))


def moment(value: datetime | str | None) -> str:
    """A time as ``2026-11-21 02:00:00 UTC``; text that is none stays as it is."""
    if value is None:
        return "\u2013"
    try:
        time = datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        return str(value)
    return f"{time:%Y-%m-%d %H:%M:%S} UTC"


def grouped(fingerprint: str) -> str:
    """A fingerprint in groups of four, as people compare them."""
    return " ".join(fingerprint[at : at + 4] for at in range(0, len(fingerprint), 4))


def variant(name: str) -> str:
    """What a check that runs several times was about: ``growpart`` of ``test_the_module_runs[growpart]``."""
    head, bracket, rest = name.partition("[")
    return rest.removesuffix("]") if head and bracket and rest.endswith("]") else ""
