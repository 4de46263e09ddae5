# SPDX-License-Identifier: Apache-2.0
"""``factory region``: what images carry to find their region servers, and those servers."""

from __future__ import annotations

import typer

from factory.cli.edge import app

region_app = typer.Typer(help="Region servers: what images carry to find them.", no_args_is_help=True)
app.add_typer(region_app, name="region")
