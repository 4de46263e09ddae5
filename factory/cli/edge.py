# SPDX-License-Identifier: Apache-2.0
"""Where the command line meets the world: options, environment, printing, and the way out."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from factory import __version__
from factory.errors import FactoryError, InputFault
from factory.system.text import visible
from factory.system.values import adapter

if TYPE_CHECKING:
    from datetime import datetime

    from factory.installation import Installation
    from factory.ledger import Ledger
    from factory.model import Site
    from factory.pipeline import Line
    from factory.system.state import Run

app = typer.Typer(
    name="factory",
    help="Build, boot, attack, sign, publish and rotate cloud images.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
STARTED = time.monotonic()

Image = Annotated[str, typer.Argument(help="A folder under descriptions/.", show_default=False)]
RunId = Annotated[str | None, typer.Option("--run", metavar="ID", help="A run of the image (default: its newest).")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
AllowDirty = Annotated[bool, typer.Option("--allow-dirty", help="Publish descriptions that differ from their commit.")]
AllowStale = Annotated[
    bool, typer.Option("--allow-stale", help="Publish although a mirror is further behind than [freshness] allows.")
]
InCloud = Annotated[
    str | None,
    typer.Option("--cloud", metavar="NAME", help="Boot it in a tenant: a cloud of clouds.yaml, see [sandbox]."),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options that stand before the verb."""

    project: Path | None = None
    site: Path | None = None
    state: Path | None = None


OPTIONS = Options()


def print_version(asked: bool) -> None:
    """Print the version and end."""
    if asked:
        print(f"factory {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    project: Annotated[
        Path | None, typer.Option(help="Where descriptions/ and testsuite/ are (default: here).", metavar="DIR")
    ] = None,
    site: Annotated[Path | None, typer.Option(help="The site file.", metavar="FILE")] = None,
    state: Annotated[Path | None, typer.Option(help="The state folder.", metavar="DIR")] = None,
    version: Annotated[  # noqa: ARG001 its callback answers
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=print_version)
    ] = False,
) -> None:
    """Options that stand before the verb."""
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)
    global OPTIONS  # noqa: PLW0603 the command line is read once
    OPTIONS = Options(project=project, site=site, state=state)


def installation(cloud: str | None = None) -> Installation:
    """Where this factory works, from options, environment and defaults (the only reader of the environment).

    Args:
        cloud: the tenant that images are verified in, instead of the one in the site file or our own QEMU.
    """
    from factory.describe import load_site
    from factory.installation import Installation
    from factory.region.embedded import with_embedded_client
    from factory.system.state import State

    project = (OPTIONS.project or Path.cwd()).resolve()
    if not (project / "descriptions").is_dir():
        raise InputFault(
            f"there is no 'descriptions' folder in '{project}'", hint="go to the clone, or use --project DIR"
        )
    return Installation(
        project=project,
        state=State(path=state_folder()).prepare(),
        site=in_cloud(with_registry(with_embedded_client(load_site(site_file()))), cloud),
        environment=dict(os.environ),
    )


def with_registry(site: Site) -> Site:
    """The site with the Python registry that this shell names to pip; one with a password is nothing to write down."""
    from dataclasses import replace
    from urllib.parse import urlsplit

    named = os.environ.get("PIP_INDEX_URL", "")
    if "python" in site.mirrors or urlsplit(named).scheme not in {"http", "https"} or "@" in urlsplit(named).netloc:
        return site
    return replace(site, mirrors={**site.mirrors, "python": named})


def in_cloud(site: Site, cloud: str | None) -> Site:
    """The site with another tenant as sandbox; what it needs besides its cloud is that of ``[sandbox]``."""
    from dataclasses import replace

    from factory.model import Tenant

    if cloud is None:
        return site
    if cloud == "embedded":
        raise InputFault("the embedded cloud starts no servers", hint="--cloud takes a cloud of your clouds.yaml")
    default = Tenant(cloud=cloud, site_services=bool(site.regions))
    return replace(site, sandbox=replace(site.sandbox or default, cloud=cloud))


def state_folder() -> Path:
    """``--state``, else ``$FACTORY_STATE``, else the system's or the user's place for state."""
    named = OPTIONS.state or os.environ.get("FACTORY_STATE")
    if named:
        return Path(named).resolve()
    if os.geteuid() == 0:
        return Path("/var/lib/factory")
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "factory"


def site_file() -> Path | None:
    """``--site``, else ``$FACTORY_SITE``, else ./site.toml or /etc/factory/site.toml where there is one."""
    named = OPTIONS.site or os.environ.get("FACTORY_SITE")
    if named:
        return Path(named)
    return next((path for path in (Path("site.toml"), Path("/etc/factory/site.toml")) if path.is_file()), None)


@contextlib.contextmanager
def one_stage(image: str, run: str | None, *, fresh: bool = False, cloud: str | None = None) -> Iterator[Line]:
    """A run of an image for a single verb: a new one when ``fresh``, else ``run`` or the image's newest."""
    from factory.pipeline import Line
    from factory.system.clock import now
    from factory.system.lock import exclusive

    here = installation(cloud)
    with exclusive(here.state.locks / f"{image}.lock", what=f"image {image}"), ledger(here) as records:
        found = here.state.new_run(image, now()) if fresh else here.state.run_of(image, run)
        yield Line(run=found, here=here, ledger=records, now=now, say=say)


@contextlib.contextmanager
def ledger(here: Installation) -> Iterator[Ledger | None]:
    """The ledger, or None with a word when it cannot be used: a lost ledger stops no night."""
    from factory.errors import LedgerError
    from factory.ledger import Ledger

    try:
        opened = Ledger.open(here.ledger)
    except LedgerError as lost:
        say("ledger", f"{lost.message}; going on without it")
        yield None
        return
    with opened as records:
        yield records


def report_page(records: Ledger, run: Run) -> Path:
    """Write the page of a run."""
    from factory.report import report as write_report

    return write_report(records, run, now=clock())


def page_of_night(records: Ledger, run: Run) -> Path | None:
    """The page of a night; one that cannot be written is said and changes no result."""
    from factory.errors import LedgerError

    try:
        return report_page(records, run)
    except (LedgerError, OSError) as lost:
        say("report", f"no page: {lost}")
        return None


def announce(here: Installation, image: str, outcome: str, reason: str) -> None:
    """Tell whom the site file names; a failure to do so changes nothing."""
    from factory.notify import notify

    notify(here.site.notify, subject=f"{image}: {outcome}", text=reason, say=saying("notify"))


def clock() -> datetime:
    """The time at which this command asks."""
    from factory.system.clock import now

    return now()


def say(stage: str, text: str) -> None:
    """One progress line: elapsed time, stage, text. Control characters from elsewhere are made visible."""
    elapsed = int(time.monotonic() - STARTED)
    print(f"{elapsed // 60:3d}:{elapsed % 60:02d} {stage:<9} {visible(text)}", file=sys.stderr, flush=True)


def saying(stage: str) -> Callable[[str], None]:
    """The progress line of one stage or verb."""
    return lambda text: say(stage, text)


def table(*rows: tuple[str, str]) -> None:
    """Names and values, aligned."""
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")


def print_json(verb: str, value: object) -> None:
    """One document with its schema."""
    body = adapter(type(value)).dump_python(value, mode="json")
    print(json.dumps({"schema": f"factory/{verb}/1", "value": body}, indent=1, sort_keys=True))


def fail(error: FactoryError) -> NoReturn:
    """Print an error as people read it, and exit with its code."""
    for number, line in enumerate(error.lines()):
        print(f"factory: {line}" if number == 0 else line, file=sys.stderr)
    sys.exit(error.exit_code)
