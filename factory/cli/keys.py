# SPDX-License-Identifier: Apache-2.0
"""``factory keys``: whom we trust, and which of our keys signed when."""

from __future__ import annotations

from typing import Annotated

import typer

from factory.cli.edge import Json, app, clock, installation, print_json, table
from factory.system.text import visible

keys_app = typer.Typer(help="Signing keys: whom we trust, and which of ours signed when.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")
_MONTH_DAYS = 30


@keys_app.command("list")
def keys_list(as_json: Json = False) -> None:
    """The keys that sign, when each is in use, and how long it still signs."""
    from factory.sign.calendar import key_states
    from factory.sign.keyring import key_dates

    dates = key_dates(installation().project / "keys")
    found = key_states(dates, now=clock())
    if as_json:
        print_json("keys", {"keys": dates, "states": found})
        return
    for key in found:
        left = f", {key.days_left} days left" if key.state == "in use" and key.days_left is not None else ""
        table(
            ("fingerprint", key.fingerprint),
            ("user id", visible(key.user_id)),
            ("in use", f"{key.in_use_from} to {key.ends or 'now'} ({key.state}{left})"),
        )


@keys_app.command("check")
def keys_check(
    days: Annotated[int, typer.Option("--days", min=0, help="Warn so long before the last key's end.")] = _MONTH_DAYS,
    as_json: Json = False,
) -> None:
    """Whether keys.toml has no fault or gap and its files are what it says (exit 1), and which key ends soon."""
    from factory.sign.calendar import examine_keys

    here = installation()
    states, found = examine_keys(here.project / "keys", now=clock(), signing=here.site.signing.fingerprint, days=days)
    if as_json:
        print_json("keys-check", {"states": states, "findings": found})
    else:
        for one in found:
            print(f"{'FAULT  ' if one.grave else 'warning'} {one.fingerprint or 'keys.toml'}: {one.says}")
        if not states:
            print("no key is listed: the factory signs with a throw-away key of its own")
        elif not found:
            print(f"good: {len(states)} key(s), {sum(one.state == 'in use' for one in states)} in use")
    if any(one.grave for one in found):
        raise typer.Exit(1)
