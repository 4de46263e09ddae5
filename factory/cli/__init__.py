# SPDX-License-Identifier: Apache-2.0
"""One command per verb: the only place that prints, reads the environment, and exits.

Results go to standard output, progress and messages to standard error. Heavy modules are imported inside the verbs, so
that ``factory --help`` answers at once.
"""

from __future__ import annotations

import signal
import sys

import typer

# Importing a module adds its verbs, in the order in which --help shows them.
from factory.cli import (
    stages,
    images,
    releases,
    diff,
    rebuild,
    host,
    cloud,
    sandbox,
    region,
    region_check,
    region_cert,
    region_packages,
    region_operate,
    region_server,
    region_update,
    keys,
    inputs,
)
from factory.cli.edge import app, fail
from factory.errors import FactoryError, InputFault

__all__ = [
    "app",
    "cloud",
    "diff",
    "host",
    "images",
    "inputs",
    "keys",
    "main",
    "rebuild",
    "region",
    "region_cert",
    "region_check",
    "region_operate",
    "region_packages",
    "region_server",
    "region_update",
    "releases",
    "sandbox",
    "stages",
]

INTERRUPTED = 130


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
