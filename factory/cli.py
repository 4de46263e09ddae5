# SPDX-License-Identifier: Apache-2.0
"""One command per verb: the only place that prints, reads the environment, and exits.

Results go to standard output, progress and messages to standard error. Heavy modules are imported inside the verbs, so
that ``factory --help`` answers at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from factory import __version__
from factory.errors import FactoryError, InputFault

if TYPE_CHECKING:
    from datetime import datetime

    from factory.installation import Installation
    from factory.ledger import Ledger
    from factory.model import Check, Step
    from factory.pipeline import Line, Night
    from factory.system.state import Run

app = typer.Typer(
    name="factory",
    help="Build, boot, attack, sign, publish and rotate cloud images.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
cloud_app = typer.Typer(help="The embedded Keystone and Glance on loopback.", no_args_is_help=True)
region_app = typer.Typer(help="Region servers: what images carry to find them.", no_args_is_help=True)
keys_app = typer.Typer(help="Signing keys: whom we trust, and which of ours signed when.", no_args_is_help=True)
inputs_app = typer.Typer(help="What builds fetched.", no_args_is_help=True)
app.add_typer(cloud_app, name="cloud")
app.add_typer(region_app, name="region")
app.add_typer(keys_app, name="keys")
app.add_typer(inputs_app, name="inputs")

Image = Annotated[str, typer.Argument(help="A folder under descriptions/.", show_default=False)]
RunId = Annotated[str | None, typer.Option("--run", metavar="ID", help="A run of the image (default: its newest).")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
AllowDirty = Annotated[bool, typer.Option("--allow-dirty", help="Publish descriptions that differ from their commit.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options that stand before the verb."""

    project: Path | None = None
    site: Path | None = None
    state: Path | None = None


OPTIONS = Options()
INTERRUPTED = 130


# -- the six stages ---------------------------------------------------------------------------------------------------


@app.command()
def describe(image: Image, as_json: Json = False) -> None:
    """Resolve a description into a recipe: a build tree that plain kiwi can build."""
    with one_stage(image, None, fresh=True) as line:
        recipe = line.describe()
        line.begin()
    if as_json:
        print_json("describe", recipe)
        return
    description = recipe.description
    table(
        ("image", description.name),
        ("line", description.line),
        ("builder", f"{description.builder}, {description.arch}, {description.disk.firmware}"),
        ("publish", description.publish),
        ("commit", (recipe.commit or "not in git") + (" with uncommitted changes" if recipe.dirty else "")),
        *((f"repository {one.alias}", f"{one.url} {' '.join(one.suites)}") for one in recipe.repositories),
        *((f"mirror {alias}", url) for alias, url in recipe.mirrors.items()),
        *((f"region {one.name}", ", ".join(server.name for server in one.servers)) for one in recipe.regions),
        ("tree", str(recipe.tree)),
        ("tree digest", recipe.tree_sha256),
        ("recipe digest", recipe.digest),
        ("run", line.run.id),
    )


@app.command()
def build(image: Image, run: RunId = None, as_json: Json = False) -> None:
    """Build the image from its recipe (describes first when the newest run is built already)."""
    with one_stage(image, run, fresh=run is None and newest_stage(image) != "describe") as line:
        recipe = line.describe()
        line.begin()
        artifact = line.build(recipe)
    if as_json:
        print_json("build", artifact)
        return
    table(
        ("image", str(artifact.path)),
        ("sha256", artifact.sha256),
        ("size", f"{artifact.size_bytes / 1e6:.1f} MB, virtual {artifact.virtual_size_bytes >> 30} GiB"),
        ("packages", f"{len(artifact.packages)}, listed in {artifact.packages_list}"),
        ("source", str(artifact.tarball)),
        ("run", line.run.id),
    )


@app.command()
def verify(
    image: Annotated[str, typer.Argument(help="A folder under descriptions/, or a qcow2 file.", show_default=False)],
    run: RunId = None,
    as_json: Json = False,
) -> None:
    """Boot the image in the sandbox, run the acceptance suite, and judge it (exit 1 when red)."""
    from factory.model import Artifact

    if image.endswith(".qcow2") or "/" in image:
        from factory.verify import verify_file

        here = installation()
        verdict = verify_file(Path(image), state=here.state, suite=here.suite, say=saying("verify"), now=clock())
    else:
        with one_stage(image, run) as line:
            verdict = line.verify(line.run.read("build", Artifact))
    if as_json:
        print_json("verify", verdict)
    else:
        print_checks(verdict.checks)
    if not verdict.passed:
        raise typer.Exit(1)


@app.command()
def sign(image: Image, run: RunId = None, as_json: Json = False) -> None:
    """Sign a green image, its checksums and its source tarball."""
    from factory.model import Artifact, Verdict

    with one_stage(image, run) as line:
        bundle = line.sign(line.run.read("build", Artifact), line.run.read("verify", Verdict))
    if as_json:
        print_json("sign", bundle)
        return
    table(
        ("bundle", str(bundle.directory)),
        ("key", bundle.fingerprint + (" (throw-away)" if bundle.throw_away_key else "")),
        *(("file", name) for name in bundle.files),
    )


@app.command()
def publish(image: Image, run: RunId = None, allow_dirty: AllowDirty = False, as_json: Json = False) -> None:
    """Upload a signed image, hidden, read its digest back, and fill the download directory."""
    from factory.model import Bundle

    with one_stage(image, run) as line:
        publication = line.publish(line.run.read("sign", Bundle), force=True, allow_dirty=allow_dirty)
    if as_json:
        print_json("publish", publication)
        return
    table(*((release.dated_name, release.image_id) for release in publication.releases), ("why", publication.reason))


@app.command()
def rotate(image: Image, run: RunId = None, as_json: Json = False) -> None:
    """Make a published image ``<line>_latest``; the one before becomes ``_prev``."""
    from factory.model import Publication

    with one_stage(image, run) as line:
        rotations = line.rotate(line.run.read("publish", Publication))
    if as_json:
        print_json("rotate", rotations)
        return
    for one in rotations.rotations:
        table(("latest", one.latest), ("prev", one.prev or "-"), ("gap", f"{one.gap_s * 1000:.0f} ms"))


# -- the night --------------------------------------------------------------------------------------------------------


@app.command()
def nightly(
    image: Image,
    force: Annotated[bool, typer.Option("--force", help="Make an image even though nothing changed.")] = False,
    allow_dirty: AllowDirty = False,
    as_json: Json = False,
) -> None:
    """Describe, build, verify, sign, publish and rotate one image, and report."""
    from factory import pipeline
    from factory.doctor import require
    from factory.system.clock import now

    here = installation()
    require(here)
    with ledger(here) as records:
        try:
            night = pipeline.nightly(
                image, here=here, ledger=records, now=now, say=say, force=force, allow_dirty=allow_dirty
            )
        except FactoryError as broken:
            announce(here, image, "broken", broken.message)
            if records is not None and (runs := here.state.runs_of(image)):
                say("report", str(page_of_night(records, runs[0]) or "no page"))
            raise
        page = page_of_night(records, night.run) if records else None
    if night.outcome == "red":
        announce(here, image, "red", night.reason)
    if as_json:
        print_json("nightly", night)
    else:
        print_night(night, here, page)
    if night.outcome == "red":
        raise typer.Exit(1)


@app.command()
def reconcile(image: Image, dry_run: DryRun = False, as_json: Json = False) -> None:
    """Finish or undo what a crash left in Glance, from what Glance itself shows."""
    from factory.describe import load_description
    from factory.rotate import reconcile as mend
    from factory.store import open_store
    from factory.system.lock import exclusive

    here = installation()
    line = load_description(here.project, image).line
    steps: list[Step] = []
    with exclusive(here.state.locks / f"{image}.lock", what=f"image {image}"):
        for target in here.site.targets:
            with open_store(target, state=here.state, say=saying("reconcile")) as store:
                steps += mend(line, store=store, now=clock(), say=saying("reconcile"), dry_run=dry_run)
    if as_json:
        print_json("reconcile", steps)
        return
    for step in steps:
        print(f"{step.name}: {step.why}\n  image {step.image_id}: {dict(step.change)}")
    if not steps:
        print(f"{line}: nothing to do")


@app.command()
def rollback(image: Image, as_json: Json = False) -> None:
    """Withdraw ``<line>_latest`` in favour of ``_prev``, on every target."""
    from factory.describe import load_description
    from factory.rotate import rollback as withdraw
    from factory.store import open_store
    from factory.system.lock import exclusive

    here = installation()
    line = load_description(here.project, image).line
    done = []
    with exclusive(here.state.locks / f"{image}.lock", what=f"image {image}"):
        for target in here.site.targets:
            with open_store(target, state=here.state, say=saying("rollback")) as store:
                done.append(withdraw(line, store=store, target=target, now=clock(), say=saying("rollback")))
    if as_json:
        print_json("rollback", done)
        return
    for one in done:
        table(("cloud", one.target.cloud), ("latest", one.latest), ("prev", one.prev or "-"))


@app.command("list")
def list_images(as_json: Json = False) -> None:
    """The images there are, and how each last went."""
    from factory.describe import images, load_description

    here = installation()
    rows = []
    for name in images(here.project):
        description = load_description(here.project, name)
        runs = here.state.runs_of(name)
        last = f"{runs[0].id} ({', '.join(runs[0].stages()) or 'nothing finished'})" if runs else "never built"
        rows.append({"image": name, "line": description.line, "builder": description.builder, "last": last})
    if as_json:
        print_json("list", rows)
        return
    for row in rows:
        table(*row.items())


@app.command()
def status(as_json: Json = False) -> None:
    """Each image's last run, its outcome, and what is published."""
    from factory.describe import images
    from factory.ledger import summary

    here = installation()
    with ledger(here) as records:
        found = [] if records is None else summary(records, images(here.project), now=clock())
    if as_json:
        print_json("status", found)
        return
    for row in found:
        table(*((name, "-" if value in {None, ""} else str(value)) for name, value in row.items()))
        print()


@app.command()
def report(
    image: Image,
    run: RunId = None,
    tell: Annotated[bool, typer.Option("--notify", help="Tell whom [notify] in the site file names.")] = False,
) -> None:
    """Write a run's page, one self-contained HTML file, and print its path."""
    here = installation()
    found = here.state.run_of(image, run)
    with ledger(here) as records:
        if records is None:
            raise FactoryError("there is no ledger to report from", hint="run 'factory nightly' first")
        page = report_page(records, found)
    print(page)
    if tell:
        announce(here, image, "ended", f"run {found.id} finished {', '.join(found.stages()) or 'nothing'}; see {page}")


@app.command("verify-signature")
def verify_signature(
    directory: Annotated[Path, typer.Argument(help="A bundle or download directory.", show_default=False)],
    key: Annotated[list[Path] | None, typer.Option("--key", help="A public key file to trust (repeatable).")] = None,
    as_json: Json = False,
) -> None:
    """Check checksums and signatures of a bundle with public keys only (exit 1 when not good)."""
    from factory.sign.verify import verify_signatures

    here = installation()
    found = verify_signatures(
        directory,
        keys=here.project / "keys",
        public_keys=tuple(key or ()),
        trusted=here.state.keys / "public",
        now=clock(),
    )
    if as_json:
        print_json("verify-signature", found)
        return
    print(f"{directory}: good")
    table(("signed by", found.fingerprint), ("files", str(len(found.files))))


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


# -- groups -----------------------------------------------------------------------------------------------------------


@cloud_app.command("up")
def cloud_up() -> None:
    """Start it (installing nothing); it stays up until 'factory cloud down'."""
    from factory.cloud import up

    access = up(installation().state.cloud, say=saying("cloud"))
    table(("clouds.yaml", str(access.clouds_yaml)), ("keystone", access.auth_url), ("try", "factory cloud env"))


@cloud_app.command("down")
def cloud_down() -> None:
    """End exactly the processes that 'up' started; images stay."""
    from factory.cloud import down

    down(installation().state.cloud)


@cloud_app.command("status")
def cloud_status(as_json: Json = False) -> None:
    """Whether it runs (exit 1 when it does not)."""
    from factory.cloud import status as cloud_state

    found = cloud_state(installation().state.cloud)
    if as_json:
        print_json("cloud-status", found)
    else:
        table(*((name, str(value)) for name, value in found.items()))
    if not found["running"]:
        raise typer.Exit(1)


@cloud_app.command("env")
def cloud_env() -> None:
    """Shell lines that point 'openstack' and 'glance' at it (use with eval)."""
    from factory.cloud import env

    print(env(installation().state.cloud), end="")


@region_app.command("check")
def region_check(image: Image) -> None:
    """Check what an image will carry to find its region servers (exit 1 on faults)."""
    from factory.describe import check_image

    here = installation()
    faults = check_image(here.project, image, site=here.site, regions=here.regions(clock()), now=clock())
    for fault in faults:
        print(fault)
    if faults:
        raise typer.Exit(1)
    print(f"{image}: region configuration and certificates are good")


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


@inputs_app.command("show")
def inputs_show(image: Image, run: RunId = None, as_json: Json = False) -> None:
    """What a run's build fetched, by repository and path."""
    from factory.inputs.lock import read_lock
    from factory.model import Artifact

    artifact = installation().state.run_of(image, run).read("build", Artifact)
    entries = read_lock(artifact.lock)
    if as_json:
        print_json("inputs", entries)
        return
    for entry in entries:
        print(f"{entry.sha512[:16]} {entry.size_bytes:>11} {entry.repository}/{entry.path}")


# -- the edge ---------------------------------------------------------------------------------------------------------


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


def installation() -> Installation:
    """Where this factory works, from options, environment and defaults (the only reader of the environment)."""
    from factory.describe import load_site
    from factory.installation import Installation
    from factory.system.state import State

    project = (OPTIONS.project or Path.cwd()).resolve()
    if not (project / "descriptions").is_dir():
        raise InputFault(
            f"there is no 'descriptions' folder in '{project}'", hint="go to the clone, or use --project DIR"
        )
    return Installation(project=project, state=State(path=state_folder()).prepare(), site=load_site(site_file()))


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
def one_stage(image: str, run: str | None, *, fresh: bool = False) -> Iterator[Line]:
    """A run of an image for a single verb: a new one when ``fresh``, else ``run`` or the image's newest."""
    from factory.pipeline import Line
    from factory.system.clock import now
    from factory.system.lock import exclusive

    here = installation()
    with exclusive(here.state.locks / f"{image}.lock", what=f"image {image}"), ledger(here) as records:
        found = here.state.new_run(image, now()) if fresh else here.state.run_of(image, run)
        yield Line(run=found, here=here, ledger=records, now=now, say=say)


def newest_stage(image: str) -> str:
    """The last finished stage of the image's newest run, or nothing."""
    runs = installation().state.runs_of(image)
    return (runs[0].stages() or ("",))[-1] if runs else ""


@contextlib.contextmanager
def ledger(here: Installation) -> Iterator[Ledger | None]:
    """The ledger, or None with a word when it cannot be used: a lost ledger stops no night."""
    from factory.errors import LedgerError
    from factory.ledger import Ledger

    try:
        opened = Ledger.open(here.state.ledger)
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


STARTED = time.monotonic()


def say(stage: str, text: str) -> None:
    """One progress line: elapsed time, stage, text. Control characters from elsewhere are made visible."""
    elapsed = int(time.monotonic() - STARTED)
    safe = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
    print(f"{elapsed // 60:3d}:{elapsed % 60:02d} {stage:<9} {safe}", file=sys.stderr, flush=True)


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
    from pydantic import TypeAdapter

    body = TypeAdapter(type(value)).dump_python(value, mode="json")
    print(json.dumps({"schema": f"factory/{verb}/1", "value": body}, indent=1, sort_keys=True))


def print_checks(checks: Iterable[Check]) -> None:
    """Every check, failures last so that they are read."""
    for check in sorted(checks, key=lambda one: one.outcome == "failed"):
        print(f"{check.outcome.value:<8} {check.name}")
        if check.outcome == "failed":
            print(f"         {check.guarantee}\n         {check.message}")


def print_night(night: Night, here: Installation, page: Path | None) -> None:
    """The summary: stages with results and seconds, where the files are, and what the release is called."""
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True)
    summary = Table("stage", "result", "seconds", "", title=f"{night.image}: {night.outcome} ({night.reason})")
    for stage in night.stages:
        summary.add_row(stage.stage, stage.outcome, f"{stage.seconds:.1f}", stage.note)
    console.print(summary)
    if night.verdict is not None and not night.verdict.passed:
        print_checks(night.verdict.failures)
    table(
        ("run", str(night.run.path)),
        ("itself", f"{night.own_cpu_s:.1f} s of processor time outside the programs it called"),
        *((("report", str(page)),) if page else ()),
        *((("download", str(here.state.dist)),) if night.rotations else ()),
    )
    if night.rotations and any(one.target.cloud == "embedded" for one in night.rotations.rotations):
        print(f'look:     eval "$({Path(sys.argv[0]).name} --state {here.state.path} cloud env)"; glance image-list')


def fail(error: FactoryError) -> NoReturn:
    """Print an error as people read it, and exit with its code."""
    for number, line in enumerate(error.lines()):
        print(f"factory: {line}" if number == 0 else line, file=sys.stderr)
    sys.exit(error.exit_code)


def main() -> None:
    """Run the command line; every way out has its exit code (see :mod:`factory.errors`)."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup stays nohup
            signal.signal(number, signal.default_int_handler)
    try:
        code = app(standalone_mode=False)
    except FactoryError as error:
        fail(error)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except typer.TyperException as usage:
        if usage.format_message().startswith("Usage:"):  # a group without a verb
            print(usage.format_message())
            sys.exit(2)
        fail(
            InputFault(
                usage.format_message(), hint="'factory --help' lists the verbs, 'factory VERB --help' explains one"
            )
        )
    except BrokenPipeError:
        sys.exit(3)
    except OSError as trouble:
        fail(
            FactoryError(
                f"the operating system says: {trouble.strerror or trouble}",
                facts=(("file", str(trouble.filename)),) if trouble.filename else (),
                hint="'factory doctor' looks for what is missing; 'factory gc' makes space",
            )
        )
    if code == INTERRUPTED:  # typer turns Ctrl-C into this status
        print("factory: interrupted; the next run goes on or cleans up", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
