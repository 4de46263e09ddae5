# SPDX-License-Identifier: Apache-2.0
"""``factory region package``: the region's configuration and the guest client as signed packages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from factory.cli.edge import DryRun, Json, clock, installation, print_json, saying, table
from factory.cli.region import region_app


@region_app.command("package")
def region_package(
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where apt/ and rpm/ are made (default: in the state).")
    ] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Build signed deb and rpm packages of the region's configuration and the guest client, in repositories."""
    from factory.region.packages import PackageSigner, build_packages, payloads
    from factory.sign.keyring import signing_key

    here, now = installation(), clock()
    wanted = payloads(here.regions(now), here.site.region_client)
    folder = out or here.state.path / "packages"
    if dry_run:
        for payload in wanted:
            print(f"{payload.name}: {len(payload.files)} files into {folder}")
        return
    log = here.state.path / "logs" / "region-package.log"
    keys = here.project / "keys"
    with signing_key(here.site.signing, state=here.state, keys=keys, now=now, log=log) as (home, key, throw_away):
        signer = PackageSigner(
            home=home.path,
            fingerprint=key.fingerprint,
            public_key=home.export(key.fingerprint),
            now=now,
            agent=home.agent,
        )
        record = here.state.region_packages
        made = build_packages(wanted, folder, record=record, signer=signer, now=now, say=saying("package"))
    if as_json:
        print_json("region-package", made)
        return
    table(
        *(("package", f"{name} {version}") for name, version in made.versions.items()),
        ("key", made.fingerprint + (" (throw-away)" if throw_away else "")),
        *(("file", str(path)) for path in (*made.debs, *made.rpms)),
    )
