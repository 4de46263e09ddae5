# SPDX-License-Identifier: Apache-2.0
"""Write what is derived: the man page and CLI reference from the command line, the licences of what is installed.

``python docs/generate.py --check`` says what is out of date instead (exit 1).
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from pathlib import Path

import typer.main

from factory import __version__
from factory.cli import app

DOCS = Path(__file__).parent
PINNED = re.compile(r"^([a-z0-9-]+)==([^ ;]+)", re.MULTILINE)


def commands(group, prefix: str = "factory"):
    """Every verb with its words, depth first."""
    for name, command in group.commands.items():
        words = f"{prefix} {name}"
        if hasattr(command, "commands"):
            yield from commands(command, words)
        else:
            yield words, command


def usage(words: str, command) -> tuple[str, list[tuple[str, str]]]:
    """The line to type, and each parameter with its help."""
    parts, rows = [words], []
    for one in command.params:
        if one.name == "help":
            continue
        if one.param_type_name == "argument":
            parts.append(one.name.upper())
            rows.append((one.name.upper(), one.help or ""))
        else:
            flag = one.opts[0] if one.is_flag else f"{one.opts[0]} {one.metavar or one.name.upper()}"
            parts.append(f"[{flag}]")
            rows.append((flag, one.help or ""))
    return " ".join(parts), rows


def man_page() -> str:
    """``factory.1``, in man(7) macros."""
    group = typer.main.get_command(app)

    def safe(text: str) -> str:
        return text.replace("\\", "\\e").replace("-", "\\-")

    lines = [
        f'.TH FACTORY 1 "" "image-factory {__version__}" "User Commands"',
        ".SH NAME",
        "factory \\- build, boot, attack, sign, publish and rotate cloud images",
        ".SH SYNOPSIS",
        ".B factory",
        "[\\-\\-project DIR] [\\-\\-site FILE] [\\-\\-state DIR] VERB ...",
        ".SH VERBS",
    ]
    for words, command in commands(group):
        line, rows = usage(words, command)
        lines += [".TP", f".B {safe(line)}", safe((command.help or "").strip())]
        for name, text in rows:
            lines += [".RS", ".TP", f".I {safe(name)}", safe(text), ".RE"]
    lines += [
        ".SH EXIT STATUS",
        "0 done, or nothing to do; 1 what was examined is not good; 2 usage, description or site file;",
        "3 factory, tool, mirror or cloud; 4 another factory holds this line, nothing changed; 130 interrupted.",
        ".SH ENVIRONMENT",
        "FACTORY_STATE, FACTORY_SITE: like \\-\\-state and \\-\\-site.",
    ]
    return "\n".join(lines) + "\n"


def cli_reference() -> str:
    """``docs/reference/cli.md``."""
    lines = [
        "# The command line",
        "",
        "Made from the program by `make docs`. Options before the verb: `--project DIR`,",
        "`--site FILE`, `--state DIR`, `--version`.",
        "",
    ]
    for words, command in commands(typer.main.get_command(app)):
        line, rows = usage(words, command)
        lines += [f"## `{words}`", "", (command.help or "").strip(), "", f"    {line}", ""]
        lines += [f"- `{name}`: {text}" for name, text in rows] + [""] * bool(rows)
    lines += [
        "## Exit codes",
        "",
        "0 done or nothing to do; 1 what was examined is not good; 2 usage, description or site",
        "file; 3 factory, tool, mirror or cloud; 4 another factory holds this line; 130 interrupted.",
        "",
    ]
    return "\n".join(lines)


def licences() -> str:
    """``docs/reference/third-party.md``: every pinned package with the licence it declares."""
    rows = []
    for name, version in PINNED.findall((DOCS.parent / "locks" / "requirements.txt").read_text()):
        try:
            meta = importlib.metadata.metadata(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform or Python
        declared = meta.get("License-Expression") or next(
            (c.rsplit(" :: ", 1)[-1] for c in meta.get_all("Classifier") or [] if c.startswith("License ::")),
            (meta.get("License") or "not declared").splitlines()[0][:60],
        )
        rows.append(f"| {name} | {version} | {declared} |")
    head = (
        "# Third-party packages\n\nWhat `make setup` installs and the licence each declares; made by `make docs`.\n\n"
    )
    return head + "| package | version | licence |\n|---|---|---|\n" + "\n".join(rows) + "\n"


def main() -> int:
    """Write or check every derived file."""
    derived = {
        DOCS / "man" / "factory.1": man_page(),
        DOCS / "reference" / "cli.md": cli_reference(),
        DOCS / "reference" / "third-party.md": licences(),
    }
    stale = [path for path, text in derived.items() if not path.is_file() or path.read_text() != text]
    if "--check" in sys.argv:
        print("\n".join(f"{path}: make docs" for path in stale if "third-party" not in path.name))
        return int(any("third-party" not in path.name for path in stale))
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(derived[path])
    return 0


if __name__ == "__main__":
    sys.exit(main())
