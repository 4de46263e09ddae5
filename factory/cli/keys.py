# SPDX-License-Identifier: Apache-2.0
"""``factory keys``: whom we trust, and which of our keys signed when."""

from __future__ import annotations

import typer

from factory.cli.edge import Json, app, installation, print_json, table

keys_app = typer.Typer(help="Signing keys: whom we trust, and which of ours signed when.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")


@keys_app.command("list")
def keys_list(as_json: Json = False) -> None:
    """The keys that sign, and when each was in use."""
    from factory.sign.keyring import key_dates

    found = key_dates(installation().project / "keys")
    if as_json:
        print_json("keys", found)
        return
    for key in found:
        table(("fingerprint", key.fingerprint), ("in use", f"{key.in_use_from} to {key.in_use_to or 'now'}"))
