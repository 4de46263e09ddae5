# SPDX-License-Identifier: Apache-2.0
"""Imports run one way, so that the story can be read from the bottom up."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "factory"
LAYERS = (
    {"model", "errors", ""},
    {"system"},
    {"inputs", "region", "sandbox", "store", "cloud", "ledger", "ledger_detail", "ledger_migrations"},
    {
        "describe",
        "build",
        "canary",
        "verify",
        "sign",
        "publish",
        "rotate",
        "retention",
        "airgap",
        "report",
        "gc",
        "notify",
        "policy",
        "promises",
        "table",
    },
    {
        "watch",
        "canaries",
        "diff",
        "record",
        "sources",
        "unchanged",
        "pipeline",
        "rebuild",
        "doctor",
        "installation",
        "nights",
        "overview",
    },
    {"cli"},
)
MODULES = sorted(ROOT.rglob("*.py"))


def part(module: str) -> str:
    return [*module.split("."), ""][1]


def layer(name: str) -> int:
    return next(number for number, names in enumerate(LAYERS) if name in names)


def imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            below = node.module == "factory" and {f"factory.{alias.name}" for alias in node.names}
            found |= below or {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] == "factory"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    own = path.relative_to(ROOT).with_suffix("").parts[0].replace("__init__", "")
    for module in imported(path):
        other = part(module).removeprefix("__version__")
        if other in {own, "__version__"}:
            continue
        assert layer(other) <= layer(own), f"{own} imports {module}, which stands above it"
        if layer(own) == 3:
            assert layer(other) < 3, f"stages never import each other: {own} imports {module}"


def test_only_the_command_line_prints_exits_and_reads_the_environment() -> None:
    offenders = []
    for path in MODULES:
        if path.parent.name == "cli" or "guest" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            text = ast.unparse(node) if isinstance(node, ast.Call | ast.Attribute) else ""
            if text.startswith(("print(", "sys.exit(")) or text in {"os.environ", "os.getenv"}:
                offenders.append(f"{path.relative_to(ROOT)}:{node.lineno} {text[:40]}")
    assert not offenders
