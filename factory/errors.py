# SPDX-License-Identifier: Apache-2.0
"""What can go wrong, as a sentence, the facts, and a way out.

Exit codes are the same for every verb:

==== =========================================================================
0    done, or nothing to do
1    what was examined is not good: a red image, a signature that does not verify
2    usage, description or site file
3    the factory, a tool, a mirror or a cloud
4    another factory holds this line; nothing changed
130  interrupted
==== =========================================================================
"""

from __future__ import annotations

from dataclasses import dataclass


class FactoryError(Exception):
    """A broken factory, tool, mirror or cloud.

    Args:
        message: one sentence, without a full stop, that names the thing at fault.
        hint: what the reader can do next.
        facts: further ``name: value`` lines, in the order given.
    """

    exit_code = 3

    def __init__(self, message: str, *, hint: str = "", facts: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.facts = facts

    def lines(self) -> list[str]:
        """The error as people read it: the sentence, each fact, the causes, then the hint."""
        found = [self.message, *(f"  {name + ':':<9}{value}" for name, value in self.facts)]
        cause = self.__cause__
        if isinstance(cause, FactoryError):
            found.append(f"  {'cause:':<9}{cause.message}")
            found += [f"  {name + ':':<9}{value}" for name, value in cause.facts]
        elif cause is not None and str(cause):
            found.append(f"  {'cause:':<9}{cause}")
        hint = self.hint or (cause.hint if isinstance(cause, FactoryError) else "")
        if hint:
            found.append(f"  {'hint:':<9}{hint}")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing wrong in a file that a person wrote.

    ``place`` is where to look (``descriptions/debian13/image.toml:7 disk.min_gib``), ``problem`` what is wrong,
    ``cure`` what to write instead (may be empty).
    """

    place: str
    problem: str
    cure: str = ""

    def __str__(self) -> str:
        return f"{self.place}: {self.problem}" + (f" ({self.cure})" if self.cure else "")


class InputFault(FactoryError):
    """A usage error, or faults in a description or site file: all of them at once, each with its place."""

    exit_code = 2

    def __init__(self, message: str, *, faults: tuple[Fault, ...] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.faults = faults

    def lines(self) -> list[str]:
        head, *rest = super().lines()
        return [head, *(f"  {fault}" for fault in self.faults), *rest]


class NotGood(FactoryError):
    """What was examined is not good: the factory works, the thing does not pass."""

    exit_code = 1


class LineHeld(FactoryError):
    """Another factory works on this line; nothing was changed."""

    exit_code = 4


class CommandFailed(FactoryError):
    """Another program failed, was missing, or ran too long."""


class DescribeError(FactoryError):
    """The recipe could not be resolved."""


class BuildError(FactoryError):
    """The builder or the tail failed."""


class InputsError(FactoryError):
    """A mirror, or the store of recorded inputs."""


class SandboxError(FactoryError):
    """A guest, its network, or the servers around it."""


class GuestSilent(SandboxError):
    """The guest still runs but did not get as far as expected in time."""


class GuestStopped(SandboxError):
    """The guest ended by itself."""


class VerifyError(FactoryError):
    """The acceptance suite could not be run (a failed check is a value, not this)."""


class SignError(FactoryError):
    """GnuPG or a key."""


class StoreError(FactoryError):
    """Glance, or the download directory."""


class CloudError(FactoryError):
    """The embedded Keystone and Glance."""


class RegionError(FactoryError):
    """Region server, update server, certificates."""


class LedgerError(FactoryError):
    """The record of runs."""
