# SPDX-License-Identifier: Apache-2.0
"""What ``factory sign`` does in each of its ways: here, for another host, and with another host's answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from factory.cli.edge import clock, installation, print_json, saying, table
from factory.errors import InputFault

if TYPE_CHECKING:
    from factory.model import Bundle
    from factory.pipeline import Line
    from factory.sign.evidence import Evidence
    from factory.sign.request import SigningRequest


def sign_here(line: Line) -> Bundle:
    """Sign with a key of this host."""
    from factory.model import Artifact, Verdict

    return line.sign(line.run.read("build", Artifact), line.run.read("verify", Verdict))


def ask_another_host(line: Line, out: Path | None, *, as_json: bool) -> None:
    """Show what is to be signed, and write it to a file when there is one."""
    from factory.model import Artifact, Verdict
    from factory.sign import request_of
    from factory.sign.request import expect_good
    from factory.system.files import write_whole

    now = clock()
    artifact, verdict = line.run.read("build", Artifact), line.run.read("verify", Verdict)
    request = request_of(artifact, verdict, run=line.run, signing=line.here.site.signing, now=now)
    show(request, expect_good(request, now=now), as_json=as_json)
    if out is not None:
        write_whole(out, request.text())


def sign_for_another_host(path: Path, out: Path | None, *, dry_run: bool, as_json: bool) -> None:
    """Check a request, show it, and sign it unless that was all that was wanted."""
    from factory.sign import sign_request
    from factory.sign.request import expect_good, read_request
    from factory.system.files import write_whole

    if dry_run == (out is not None):
        raise InputFault("--request needs --signatures-out FILE, or --dry-run")
    here, now = installation(), clock()
    request = read_request(path)
    show(request, expect_good(request, now=now), as_json=as_json)
    if out is not None:
        sealed = sign_request(
            request,
            state=here.state,
            signing=here.site.signing,
            keys=here.project / "keys",
            now=now,
            say=saying("sign"),
        )
        write_whole(out, sealed.text())


def take_answer(line: Line, answer: Path) -> Bundle:
    """Make the bundle of what another host signed."""
    from factory.model import Artifact, Bundle, Verdict
    from factory.sign import attach

    if line.run.has("sign"):
        raise InputFault(f"run {line.run.id} is signed already", hint="its bundle is in the run's folder")
    artifact, verdict, here = line.run.read("build", Artifact), line.run.read("verify", Verdict), line.here
    return line.stage(
        "sign",
        Bundle,
        lambda: attach(
            artifact,
            verdict,
            answer,
            run=line.run,
            signing=here.site.signing,
            keys=here.project / "keys",
            trusted=here.state.keys / "public",
            now=clock(),
            say=saying("sign"),
        ),
    )


def show(request: SigningRequest, attested: Evidence, *, as_json: bool) -> None:
    """What would be signed, for the person who has the key."""
    from factory.system.text import visible

    if as_json:
        print_json("sign-request", {"run": request.run, "files": dict(request.digests), "attested": attested})
        return
    rows = [
        ("image", request.image),
        ("run", request.run),
        ("builder", attested.builder),
        ("commit", (attested.commit or "not in git") + (" with uncommitted changes" if attested.dirty else "")),
        ("materials", f"{attested.materials} inputs, those of the lock"),
        ("verdict", f"green, {attested.passed} checks passed, {attested.judged_at}"),
        *((f"sha256 {name}", digest) for name, digest in sorted(request.digests.items())),
    ]
    table(*((visible(name), visible(text)) for name, text in rows))
