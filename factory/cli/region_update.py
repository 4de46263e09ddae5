# SPDX-License-Identifier: Apache-2.0
"""``factory region update-server`` and ``factory region systems``: the sandbox update server, standing alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from factory.cli.edge import DryRun, Json, print_json, table
from factory.cli.region import region_app
from factory.errors import InputFault

if TYPE_CHECKING:
    from factory.region.registrations import Registrations
    from factory.region.update_settings import StandaloneSettings

systems_app = typer.Typer(help="Who is registered at a sandbox update server (not RMT).", no_args_is_help=True)
region_app.add_typer(systems_app, name="systems")

Config = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="The server's TOML file.")]
Database = Annotated[
    Path | None, typer.Option("--database", metavar="FILE", help="Instead: its file of registrations.")
]


@region_app.command("update-server")
def update_server(  # noqa: PLR0917 - each is an option
    config: Config = None,
    fqdn: Annotated[str, typer.Option(metavar="NAME", help="The name instances know it by.")] = "",
    listen: Annotated[list[str] | None, typer.Option(metavar="ADDRESS:PORT", help="Repeatable; default: 443.")] = None,
    certificate: Annotated[str, typer.Option(metavar="PEM", help="Its certificate, for NAME.")] = "",
    key: Annotated[str, typer.Option(metavar="PEM", help="The certificate's private key.")] = "",
    ca: Annotated[str, typer.Option(metavar="PEM", help="The CA certificate, served as /rmt.crt and /smt.crt.")] = "",
    database: Annotated[str, typer.Option(metavar="FILE", help="Where registrations are kept.")] = "",
    product: Annotated[list[str] | None, typer.Option(metavar="NAME/VERSION/ARCH", help="Repeatable.")] = None,
    repository: Annotated[
        list[str] | None, typer.Option(metavar="ALIAS=DIR", help="An apt or rpm-md tree to serve; repeatable.")
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Only what port 80 gives: the CA certificate, and the way to https.")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Read everything, say what is served, and end.")] = False,
    as_json: Json = False,
) -> None:
    """Run the sandbox update server, which is not RMT: for tests, never for customers.

    Everything can be said in a TOML file (--config); options win over it. It stays in the foreground, until SIGTERM.
    """
    from factory.region.update_gunicorn import serve_forever
    from factory.region.update_settings import from_options, read_toml

    if config is not None and (product or repository):
        raise InputFault("--product and --repository cannot be used with --config", hint="write them into the file")
    options = {"fqdn": fqdn, "certificate": certificate, "key": key, "ca": ca, "database": database}
    given = {name: value for name, value in options.items() if value}
    settings = (
        read_toml(config, given=given, listen=listen or ())
        if config is not None
        else from_options(given, listen=listen or (), products=product or (), repositories=repository or ())
    )
    if plain:
        settings = replace(settings, update=replace(settings.update, plain=True))
    if not check:
        serve_forever(settings)
        return
    told = _told(settings)
    if as_json:
        print_json("region-update-server", told)
        return
    table(("what", "sandbox update server, not RMT"), *((name, str(value)) for name, value in told.items()))


def _told(settings: StandaloneSettings) -> dict[str, object]:
    from factory.region.update import app_of

    app_of(settings.update, send=False)
    update = settings.update
    return {
        "fqdn": update.fqdn,
        "listen": ", ".join(settings.listen),
        "products": ", ".join(product.triple for product in update.products),
        "repositories": ", ".join(f"/repo/{one.location or one.alias}" for one in update.folders),
        "verification": update.verification.provider,
        "peers": ", ".join(update.sharing.peers),
        "database": update.database,
    }


@systems_app.command("list")
def systems_list(config: Config = None, database: Database = None, as_json: Json = False) -> None:
    """Everybody who is registered, oldest first."""
    with _registrations(config, database) as registrations:
        found = registrations.systems()
    if as_json:
        print_json("region-systems", found)
        return
    for one in found:
        table(
            ("login", one.login),
            ("host name", one.hostname),
            ("products", ", ".join(one.products) or "-"),
            ("mode", one.mode),
            ("registered", one.registered_at),
            ("last seen", one.last_seen_at or "never"),
        )
        print()
    print(f"{len(found)} registered")


@systems_app.command("remove")
def systems_remove(
    login: Annotated[str, typer.Argument(help="As 'systems list' shows it.", show_default=False)],
    config: Config = None,
    database: Database = None,
    dry_run: DryRun = False,
) -> None:
    """Forget a system; with --config, the peers are told (by the server, when it runs next)."""
    with _registrations(config, database) as registrations:
        count = sum(one.login == login for one in registrations.systems())
        if not count:
            raise InputFault(f"no system has the login '{login}'", hint="see 'factory region systems list'")
        if not dry_run:
            registrations.remove(login)
    print(f"{'would remove' if dry_run else 'removed'} {login}" + (f", {count} systems" if count > 1 else ""))


@contextmanager
def _registrations(config: Path | None, database: Path | None) -> Iterator[Registrations]:
    from factory.region.registrations import Registrations
    from factory.region.update import replay_log
    from factory.region.update_settings import read_toml

    if (config is None) is (database is None):
        raise InputFault("say --config FILE or --database FILE")
    settings = read_toml(config).update if config is not None else None
    path = Path(settings.database) if settings else database
    assert path is not None
    if not path.is_file():
        raise InputFault(f"'{path}' is not there", hint="the server makes it when it first runs")
    found = Registrations(path, journal=replay_log(settings) if settings else None)
    try:
        yield found
    finally:
        found.close()
