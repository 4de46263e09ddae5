# SPDX-License-Identifier: Apache-2.0
"""The host the factory works on: what is missing, what can go."""

from __future__ import annotations

import typer

from factory.cli.edge import DryRun, Json, app, clock, installation, print_json


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what is missing on this host, why it is needed, and what is still embedded (exit 3 when something is)."""
    from factory.doctor import examine

    found = examine(installation())
    if as_json:
        print_json("doctor", found)
    else:
        for finding in found:
            print(f"{'ok     ' if finding.ok else 'MISSING'} {finding.name}: {finding.says}")
            if not finding.ok and finding.cure:
                print(f"        {finding.cure}")
    if any(finding.needed and not finding.ok for finding in found):
        raise typer.Exit(3)


@app.command()
def gc(dry_run: DryRun = False, as_json: Json = False) -> None:
    """Remove old runs, blobs and logs that nothing needs any more."""
    from factory.gc import collect

    found = collect(installation().state, now=clock(), dry_run=dry_run)
    if as_json:
        print_json("gc", found)
        return
    for path, why in found.removals:
        print(f"{'would remove' if dry_run else 'removed'} {path}: {why}")
    print(f"{found.freed_bytes / 1e6:.0f} MB {'would be ' if dry_run else ''}freed")
